"""How long a lone commit takes to the archive, and what waiting for it costs.

A commit is lone when the one before it is longer ago than the flush interval. The archive is a
directory that is listed twice a millisecond; the moment counts when the object has its final name.
A store is not listed, which would keep it busy: there the moment counts when the daemon answers a
wait for this commit, so the time of asking is in it.
"""

import random
import sqlite3
import time
from contextlib import closing
from typing import Final

from basenet.errors import UnavailableError
from basenet.testing.bench import report
from basenet.testing.bench.contenders import BASENET, LITESTREAM, LITESTREAM_FAST, Contender
from basenet.testing.bench.context import Context
from basenet.testing.bench.others import Others
from basenet.testing.bench.report import Line
from basenet.testing.bench.sidecars import Sidecar, running
from basenet.testing.objectstores import environment_for, make_bucket, running_object_store

_LOOK_S: Final = 0.0005
_PATIENCE_S: Final = 10.0
_PAUSE_S: Final = (1.1, 1.6)
P50_AIM_MS: Final = 10.0
S3_P50_AIM_MS: Final = 40.0
_BUCKET: Final = "bench"
IDLE_AIM_PERCENT: Final = 0.5


def lag(context: Context) -> list[Line]:
    """Lone commits, then silence."""
    lags_ms: dict[Contender, list[float]] = {}
    idle: dict[Contender, float] = {}
    for contender in context.choose(LITESTREAM, LITESTREAM_FAST, BASENET):
        with (
            context.scene() as scene,
            closing(sqlite3.connect(scene.database, isolation_level=None)) as application,
            running(scene, contender) as sidecar,
        ):
            lags_ms[contender] = [_commit(application, sidecar) for _ in range(context.few(30, 3))]
            time.sleep(2.0)
            idle[contender] = idle_percent(sidecar, context.few(20, 3))
        context.say(f"lag {contender.label}: {sorted(lags_ms[contender])}, idle {idle[contender]}")
    return [_lag_line(lags_ms), idle_line("one idle database", idle, IDLE_AIM_PERCENT)]


def lag_s3(context: Context) -> list[Line]:
    """Lone commits to an S3 server (moto, in a process of its own)."""
    if not context.wants(BASENET):
        return []
    with running_object_store("s3") as url:
        make_bucket("s3", url, _BUCKET)
        others = Others()
        with (
            context.scene(
                archive_url=f"s3://{_BUCKET}/lag", environment=environment_for("s3", url)
            ) as scene,
            closing(sqlite3.connect(scene.database, isolation_level=None)) as application,
            running(scene, BASENET) as sidecar,
        ):
            lags_ms = [_wait_for_commit(application, sidecar) for _ in range(context.few(30, 3))]
        busy = others.cores(0.0)
    p50 = report.median(lags_ms)
    context.say(f"lag-s3: {sorted(lags_ms)}, {busy} cores busy")
    return [
        Line(
            what="lone commit → the daemon answers that it is in S3 (moto), p50 / max",
            aim=f"p50 ≤ {S3_P50_AIM_MS:.0f} ms",
            answers={BASENET: f"{p50:.1f} / {max(lags_ms):.0f} ms"},
            is_met=p50 <= S3_P50_AIM_MS,
            facts={"lags_ms": lags_ms, "busy_cores": busy},
        )
    ]


def _wait_for_commit(application: sqlite3.Connection, sidecar: Sidecar) -> float:
    time.sleep(random.uniform(*_PAUSE_S))
    application.execute("INSERT INTO t (ts, k, v) VALUES (1, 'lone', 2)")
    began = time.perf_counter()
    sidecar.wait_archived()
    return round((time.perf_counter() - began) * 1e3, 1)


def _commit(application: sqlite3.Connection, sidecar: Sidecar) -> float:
    time.sleep(random.uniform(*_PAUSE_S))
    before = sidecar.newest()
    application.execute("INSERT INTO t (ts, k, v) VALUES (1, 'lone', 2)")
    began = time.perf_counter()
    while sidecar.newest() == before:
        if time.perf_counter() - began > _PATIENCE_S:
            raise UnavailableError("a lone commit was not archived in 10 s")
        time.sleep(_LOOK_S)
    return round((time.perf_counter() - began) * 1e3, 1)


def idle_percent(sidecar: Sidecar, seconds: float) -> float:
    """Return how much of a core the sidecar takes while nothing happens."""
    before = sidecar.usage().cpu_seconds
    time.sleep(seconds)
    return round(100 * (sidecar.usage().cpu_seconds - before) / seconds, 2)


def idle_line(what: str, idle: dict[Contender, float], aim_percent: float) -> Line:
    """Return the line of the idle CPU."""
    return Line(
        what=f"{what}: idle CPU",
        aim=f"≤ {aim_percent:.1f} %",
        answers={contender: f"{percent:.2f} %" for contender, percent in idle.items()},
        is_met=idle[BASENET] <= aim_percent if BASENET in idle else None,
    )


def _lag_line(lags_ms: dict[Contender, list[float]]) -> Line:
    p50 = {contender: report.median(values) for contender, values in lags_ms.items()}
    return Line(
        what="lone commit → object in the archive, p50 / max",
        aim="p50 ≤ 10 ms",
        answers={
            contender: f"{p50[contender]:.1f} / {max(values):.0f} ms"
            for contender, values in lags_ms.items()
        },
        is_met=p50[BASENET] <= P50_AIM_MS if BASENET in p50 else None,
        facts={contender.label: values for contender, values in lags_ms.items()},
    )
