"""Whether somebody set this machine's clock while basenet ran: told, and nothing is decided by it.

A step is what the wall clock moved against CLOCK_BOOTTIME, which nobody sets and which goes on
while the machine sleeps. Commits are stamped by the wall clock, so restores by time go wrong by a
wrong one; what retention deletes does not depend on it (`archive.watch`).
"""

from typing import Final

import structlog

from basenet.archive.clock import SECOND_NS, SYSTEM_CLOCK, Clock

log = structlog.get_logger()

TOLD_SECONDS: Final = 60.0
"""A smaller step is not worth a word: it is what a time service does at the start."""


class WallClock:
    """This machine's wall clock, since the process began."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        """Take the clock as it is now for right."""
        self._clock = clock
        self._began_ns = self._told_ns = self._offset_ns()

    def _offset_ns(self) -> int:
        return self._clock.wall_ns() - self._clock.boot_ns()

    @property
    def step_seconds(self) -> float:
        """By how much it was set since the process began; 0 when it agrees again."""
        return (self._offset_ns() - self._began_ns) / SECOND_NS

    def look(self) -> None:
        """Log that it was set since the last look."""
        offset_ns = self._offset_ns()
        moved = (offset_ns - self._told_ns) / SECOND_NS
        if abs(moved) > TOLD_SECONDS:
            self._told_ns = offset_ns
            log.warning("clock_stepped", seconds=round(moved), since_start=round(self.step_seconds))
