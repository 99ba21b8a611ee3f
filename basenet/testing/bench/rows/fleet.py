"""What one hundred databases in a directory take, each open in an application."""

import sqlite3
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Final

from basenet.testing.bench import report
from basenet.testing.bench.contenders import BASENET, LITESTREAM, Contender
from basenet.testing.bench.context import Context
from basenet.testing.bench.processes import wait_until
from basenet.testing.bench.report import Line
from basenet.testing.bench.rows.lag import idle_line, idle_percent
from basenet.testing.bench.sidecars import Basenet, Scene, Sidecar, make_sidecar

ARCHIVED_AIM_S: Final = 5.0
RESIDENT_AIM_BYTES: Final = 140_000_000
IDLE_AIM_PERCENT: Final = 1.0
DESCRIPTORS_AIM: Final = 10.0
_ROWS: Final = 100
_SETTLE_S: Final = 8.0


def fleet(context: Context) -> list[Line]:
    """Start beside the databases; wait until all are archived; look at an idle minute."""
    count = context.few(100, 10)
    seconds: dict[Contender, float] = {}
    resident: dict[Contender, int] = {}
    idle: dict[Contender, float] = {}
    descriptors: dict[Contender, float] = {}
    for contender in context.choose(LITESTREAM, BASENET):
        with context.scene(is_empty=True) as scene, ExitStack() as stack:
            for index in range(count):
                stack.enter_context(closing(_make_database(scene, index)))
            sidecar = make_sidecar(replace(scene, is_directory=True), contender)
            stack.callback(sidecar.kill)
            sidecar.start()
            seconds[contender] = wait_until(
                lambda sidecar=sidecar: _archived(sidecar) >= count,  # type: ignore[misc]
                f"{count} databases are archived",
            )
            percent = idle_percent(sidecar, context.few(int(_SETTLE_S), 1))
            idle[contender] = idle_percent(sidecar, context.few(20, 2))
            usage = sidecar.usage()
            resident[contender] = usage.resident_bytes
            descriptors[contender] = usage.descriptors / count
            sidecar.stop()
        context.say(
            f"fleet {contender.label}: {seconds[contender]:.2f} s, {usage.resident_bytes / 1e6:.0f}"
            f" MB, settling {percent} %, idle {idle[contender]} %, {usage.descriptors} descriptors"
        )
    return _lines(count, seconds, resident, idle, descriptors)


def _make_database(scene: Scene, index: int) -> sqlite3.Connection:
    connection = sqlite3.connect(scene.directory / f"t{index:03}.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t (x) VALUES (?)", [(row,) for row in range(_ROWS)])
    connection.execute("COMMIT")
    return connection


def _archived(sidecar: Sidecar) -> int:
    """Return how many databases can be restored."""
    if not isinstance(sidecar, Basenet):
        return sidecar.stored("/ltx/0/")[0]
    status = sidecar.status()
    return sum(
        shard.last_snapshot_seq is not None and shard.archived_seq >= shard.captured_seq
        for shard in (status.shards if status is not None else ())
    )


def _lines(
    count: int,
    seconds: dict[Contender, float],
    resident: dict[Contender, int],
    idle: dict[Contender, float],
    descriptors: dict[Contender, float],
) -> list[Line]:
    name = f"{count} open databases"
    is_ours = BASENET in seconds
    return [
        Line(
            what=f"{name}: until all are archived",
            aim="≤ 5 s",
            answers={contender: f"{value:.1f} s" for contender, value in seconds.items()},
            is_met=seconds[BASENET] <= ARCHIVED_AIM_S if is_ours else None,
        ),
        Line(
            what=f"{name}: memory",
            aim="≤ 140 MB",
            answers={contender: report.megabytes(value) for contender, value in resident.items()},
            is_met=resident[BASENET] <= RESIDENT_AIM_BYTES if is_ours else None,
        ),
        idle_line(name, idle, IDLE_AIM_PERCENT),
        Line(
            what=f"{name}: descriptors each",
            aim="≤ 10",
            answers={contender: f"{value:.1f}" for contender, value in descriptors.items()},
            is_met=descriptors[BASENET] <= DESCRIPTORS_AIM if is_ours else None,
        ),
    ]
