"""Virtual time: one line of true time for the world, and each machine's own clock beside it.

Nobody in the world but the checkers can see true time. A machine's clock starts anywhere and runs
at its own rate, as CLOCK_BOOTTIME does: the engine must be right for any rates within the drift
that it allows for, and the lease is expected to break beyond it.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

from basenet.engine.events import Instant

MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000 * MILLISECOND
_PARTS: Final = 1_000_000


class Scheduler:
    """What will happen, ordered by true time in ns and, at one time, by who asked first."""

    __slots__ = ("_heap", "_number", "events", "now")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Callable[[Any], object], object]] = []
        self._number = 0
        self.now = 0
        self.events = 0

    def at(self, when: int, action: Callable[[Any], object], argument: object = None) -> None:
        """Let ``action(argument)`` happen at ``when``, or now if that is past."""
        self._number += 1
        heappush(self._heap, (max(when, self.now), self._number, action, argument))

    def run(self, until: int) -> None:
        """Let everything happen that is due before ``until``; then it is ``until``."""
        heap = self._heap
        while heap and heap[0][0] < until:
            self.now, _, action, argument = heappop(heap)
            self.events += 1
            action(argument)
        self.now = until


class LocalClock:
    """One machine's clock: ``offset`` at the beginning of true time, fast by ``drift`` ppm."""

    __slots__ = ("_drift", "_offset")

    def __init__(self, offset: int, drift: int) -> None:
        self._offset = offset
        self._drift = drift

    def read(self, true: int) -> Instant:
        """Return what the clock shows at the true time ``true``."""
        drift = self._drift
        return Instant(self._offset + true + (true * drift // _PARTS if drift else 0))

    def true_time(self, shown: int) -> int:
        """Return the first true time at which the clock shows ``shown`` or more."""
        if not self._drift:
            return shown - self._offset
        true = (shown - self._offset) * _PARTS // (_PARTS + self._drift)
        while self.read(true) < shown:
            true += 1
        while self.read(true - 1) >= shown:
            true -= 1
        return true

    def restart(self, true: int, shown: int) -> None:
        """Let the clock go on from ``shown``, as after a reboot of the machine."""
        self._offset += shown - self.read(true)
