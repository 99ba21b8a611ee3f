"""A clock that was set is told once, and told again when it was set back."""

from dataclasses import dataclass

import structlog

from basenet.archive.clock import SECOND_NS, Clock
from basenet.daemon.wallclock import TOLD_SECONDS, WallClock


@dataclass
class Host:
    """A machine whose wall clock can be set."""

    boot_s: float = 100.0
    ahead_s: float = 0.0

    def clock(self) -> Clock:
        return Clock(
            boot_ns=lambda: int(self.boot_s * SECOND_NS),
            wall_ns=lambda: int((10**9 + self.boot_s + self.ahead_s) * SECOND_NS),
        )


def test_each_step_is_told_once_and_a_small_one_never() -> None:
    """The metric shows what is left of all steps."""
    host = Host()
    wall = WallClock(host.clock())
    with structlog.testing.capture_logs() as told:
        for ahead_s in (0.0, TOLD_SECONDS / 2, 1e9, 1e9 + 1, -1e6, 0.0):
            for _ in range(2):
                host.boot_s += 1000  # asleep or not: no step
                host.ahead_s = ahead_s
                wall.look()
                assert abs(wall.step_seconds - ahead_s) < 0.001
    assert [(one["event"], one["seconds"], one["since_start"]) for one in told] == [
        ("clock_stepped", 10**9, 10**9),
        ("clock_stepped", -(10**6 + 10**9), -(10**6)),
        ("clock_stepped", 10**6, 0),
    ]
