"""A histogram that the daemon fills while it works and that a scrape reads as a fact."""

import bisect
from collections.abc import Sequence
from typing import Final

from basenet.control.surface import HistogramSample

# SQLite's write lock is held 0.1-30 ms as a rule; a second is an application's busy time-out gone.
LOCK_HELD_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0)


class Histogram:
    """Counts observations between ascending bounds. Safe under one writer and any reader."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float] = LOCK_HELD_BOUNDS_S) -> None:
        assert bounds, "a histogram needs a bound"
        assert list(bounds) == sorted(set(bounds)), "bounds ascend strictly"
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count ``value`` in the first bucket whose bound is not below it."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def get_sample(self) -> HistogramSample:
        """Return the counts as they are now."""
        return HistogramSample(bounds=self._bounds, counts=tuple(self._counts), total=self._total)
