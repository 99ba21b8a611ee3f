"""The archive's clocks, turned by trio's own: with `autojump_clock` no test waits."""

import trio

from basenet.archive.clock import SECOND_NS, Clock

BEGIN_NS = 1_800_000_000 * SECOND_NS


def boot_ns() -> int:
    return int(trio.current_time() * SECOND_NS)


def wall_ns() -> int:
    return BEGIN_NS + boot_ns()


def trio_clock() -> Clock:
    return Clock(boot_ns=boot_ns, wall_ns=wall_ns)
