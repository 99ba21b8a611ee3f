"""Whether something comes so often that it pays to wait a moment for the next of it."""

from math import inf
from typing import Final

BEAT_S: Final = 0.012
"""What comes at least this often is a stream; who counts on the next one waits for it so long."""


class Rhythm:
    """When something came last, and how long after the one before."""

    __slots__ = ("_gap_s", "_last_s")

    def __init__(self) -> None:
        self._last_s = -inf
        self._gap_s = inf

    def beat(self, now_s: float) -> None:
        """Note that it came; ``now_s``: of any clock that never goes back."""
        self._gap_s, self._last_s = now_s - self._last_s, now_s

    def is_stream(self, now_s: float) -> bool:
        """Return whether it came twice within a beat, and a beat has not passed since."""
        return self._gap_s <= BEAT_S and now_s - self._last_s <= BEAT_S
