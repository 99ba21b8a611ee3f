"""How long an application's own ``wal_checkpoint(TRUNCATE)`` takes beside each contender."""

import sqlite3
import time
from contextlib import closing
from typing import Final

from basenet.testing.bench import report
from basenet.testing.bench.contenders import ALONE, BASENET, LITESTREAM, Contender
from basenet.testing.bench.context import Context
from basenet.testing.bench.report import Line
from basenet.testing.bench.restoring import read_content, restore
from basenet.testing.bench.sidecars import running

_BUSY_S: Final = 2.0
_EVERY: Final = 300


def truncating(context: Context) -> list[Line]:
    """3,000 one-row transactions with a truncating checkpoint after every 300th."""
    calls_ms: dict[Contender, list[float]] = {}
    missing: dict[Contender, int] = {}
    for contender in [ALONE, *context.choose(LITESTREAM, BASENET)]:
        with context.scene() as scene, running(scene, contender) as sidecar:
            with closing(
                sqlite3.connect(scene.database, isolation_level=None, timeout=_BUSY_S)
            ) as application:
                calls_ms[contender] = _write(application, context.few(3_000, 900))
            if contender is not ALONE:
                sidecar.wait_archived()
                out = scene.root / "restored.db"
                restore(sidecar, out)
                missing[contender] = read_content(scene.database).rows - read_content(out).rows
        context.say(f"truncating {contender}: {calls_ms[contender]} ms")
    p50 = {contender: report.median(calls) for contender, calls in calls_ms.items()}
    is_met = None
    if BASENET in p50 and LITESTREAM in p50:
        is_met = p50[BASENET] <= p50[LITESTREAM] and missing[BASENET] == 0
    return [
        Line(
            what="wal_checkpoint(TRUNCATE) in a loop: p50 / max of a call, rows missing later",
            aim="not longer than litestream; no loss",
            answers={
                contender: f"{p50[contender]:.1f} / {max(calls):.0f} ms"
                + (f", {missing[contender]} missing" if contender in missing else "")
                for contender, calls in calls_ms.items()
            },
            is_met=is_met,
            facts={contender.label: calls for contender, calls in calls_ms.items()},
        )
    ]


def _write(application: sqlite3.Connection, count: int) -> list[float]:
    """Write and checkpoint; return the milliseconds of each checkpoint."""
    calls = []
    for index in range(count):
        application.execute("INSERT INTO t (ts, k, v) VALUES (1, 'x', ?)", (index,))
        if index % _EVERY == _EVERY - 1:
            began = time.perf_counter()
            application.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            calls.append(round((time.perf_counter() - began) * 1e3, 1))
    return calls
