"""The clocks of the archive, as values, so that tests can turn them.

``boot_ns`` is CLOCK_BOOTTIME: it never steps and goes on while the machine sleeps, so a lease that
ran out during a suspend is known to have run out (P18). ``wall_ns`` is the time of day; nothing is
decided by it, it only tells people when something happened. ``steady`` is what retention measures
ages with (`basenet.archive.watch`): it is never ahead of the time that went by.
"""

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

SECOND_NS: Final = 1_000_000_000
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE: Final = "/proc/self/ns/time"
_UPTIME: Final = Path("/proc/uptime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Two clocks that nobody sets, at one moment. Only readings of one ``course`` compare.

    ``course``: of which boot and time namespace they are. CLOCK_MONOTONIC leaves out suspended
    time, which the kernel takes from the machine's clock; ``uptime_ns`` is the kernel's own file,
    which a library that was preloaded to fake the time does not reach.
    """

    course: str
    monotonic_ns: int
    uptime_ns: int

    def elapsed_ns(self, since: "Reading") -> int:
        """Return how much time went by at least; 0 where the readings do not compare."""
        if self.course != since.course:
            return 0
        by_monotonic_ns = self.monotonic_ns - since.monotonic_ns
        return max(0, min(by_monotonic_ns, self.uptime_ns - since.uptime_ns))


def _boot_ns() -> int:
    # Only Linux counts the time asleep; elsewhere the monotonic clock is what there is.
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@cache
def _course() -> str:
    try:
        return f"{_BOOT_ID.read_text().strip()} {os.readlink(_TIME_NAMESPACE)}"  # noqa: PTH115
    except OSError:
        return secrets.token_hex(16)  # only this process compares with itself


def read_steady() -> Reading:
    """Read the clocks that nobody sets."""
    monotonic_ns = time.monotonic_ns()
    try:
        uptime_ns = int(float(_UPTIME.read_text().split()[0]) * SECOND_NS)
    except (OSError, ValueError, IndexError):
        uptime_ns = monotonic_ns
    return Reading(course=_course(), monotonic_ns=monotonic_ns, uptime_ns=uptime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where a component of the archive reads the time, in nanoseconds."""

    boot_ns: Callable[[], int] = _boot_ns
    wall_ns: Callable[[], int] = time.time_ns
    steady: Callable[[], Reading] = read_steady


SYSTEM_CLOCK: Final = Clock()
