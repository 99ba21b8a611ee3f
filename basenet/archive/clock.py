"""The two clocks of the archive, as values, so that tests can turn them.

``boot_ns`` is CLOCK_BOOTTIME: it never steps and goes on while the machine sleeps, so a lease that
ran out during a suspend is known to have run out (P18). ``wall_ns`` is the time of day; nothing is
decided by it, it only tells people when something happened.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SECOND_NS: Final = 1_000_000_000


def _boot_ns() -> int:
    # Only Linux counts the time asleep; elsewhere the monotonic clock is what there is.
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where a component of the archive reads the time, in nanoseconds."""

    boot_ns: Callable[[], int] = _boot_ns
    wall_ns: Callable[[], int] = time.time_ns


SYSTEM_CLOCK: Final = Clock()
