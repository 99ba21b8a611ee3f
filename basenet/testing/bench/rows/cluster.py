"""Three nodes on this machine: how soon a commit is final, how many, and what a death costs.

The nodes, the application and who measures share the cores: with a core for each node every figure
would be better. *Final* is what `wait?now=1&level=final` answers, asked on a connection that stays
open, from the moment at which SQLite has returned from the commit.
"""

import os
import queue
import random
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from basenet.control.surface import ShardRole
from basenet.errors import UnavailableError
from basenet.testing.bench import report
from basenet.testing.bench.clusters import Asker, Meter, mean, settle, spread, three_nodes
from basenet.testing.bench.contenders import ALONE, BASENET
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import Load, read_acknowledged, read_report
from basenet.testing.bench.report import Line, percentile
from basenet.testing.cluster import Cluster, ClusterNode, ClusterStuck

_PACE: Final = 200.0
_ASK_EVERY: Final = (3, 11)
_LOOK_S: Final = 0.001
_TRY_S: Final = 0.003
_PATIENCE_S: Final = 60.0
_BEHIND_MAX: Final = 200
_ROW_BYTES: Final = 1_000
FINAL_AIM_MS: Final = 5.0
RATE_AIM: Final = 10_000.0
FAILOVER_AIM_S: Final = (1.5, 3.0)
_INSERT: Final = "INSERT INTO t (ts, k, v) VALUES (1, 'paced', ?)"


def final(context: Context) -> list[Line]:
    """One-row commits at 200 a second; some of them are waited for."""
    with three_nodes(context) as cluster:
        writer = settle(cluster)
        meter = Meter(cluster)
        idle_s = context.few(10, 2)
        time.sleep(idle_s)
        idle = {name: 100 * cpu / idle_s for name, cpu in meter.cpu_seconds().items()}
        meter.again()
        count, waits_ms = _pace(writer, context.few(30, 4))
        cpu = {name: 1e3 * value / count for name, value in meter.cpu_seconds().items()}
        memory, guardians = meter.resident(), meter.guardians()
    p50, p99 = report.median(waits_ms), percentile(waits_ms, 0.99)
    context.say(f"cluster-final: p50 {p50:.1f} p99 {p99:.1f} ms, CPU {cpu}, {memory}")
    facts = {"waits_ms": waits_ms, "cpu_ms": cpu, "memory": memory, "guardians": guardians}
    return [
        Line(
            what=f"three nodes, {_PACE:.0f} tx/s: commit → final, p50 / p99",
            aim=f"p50 ≤ {FINAL_AIM_MS:.0f} ms",
            answers={BASENET: f"{p50:.1f} / {p99:.1f} ms"},
            is_met=p50 <= FINAL_AIM_MS,
            facts=facts,
        ),
        Line(
            what="CPU of a daemon for each of them; idle",
            aim="",
            answers={BASENET: f"{spread(cpu)} ms; {mean(idle):.1f} %"},
            is_met=None,
        ),
        Line(
            what="memory of a daemon / of a guardian",
            aim="",
            answers={BASENET: f"{max(memory.values())} / {max(guardians.values())}"},
            is_met=None,
        ),
    ]


def _pace(writer: ClusterNode, seconds: float) -> tuple[int, list[float]]:
    """Commit at the pace; return how many commits, and of some how long they took to be final."""
    asked: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    waits_ms: list[float] = []
    with (
        closing(Asker(writer)) as asker,
        closing(sqlite3.connect(writer.database(), isolation_level=None)) as application,
    ):

        def wait() -> None:
            while (began := asked.get()) is not None:
                asker.wait_final()
                waits_ms.append(round((time.perf_counter() - began) * 1e3, 2))

        waiter = threading.Thread(target=wait)
        waiter.start()
        application.execute("PRAGMA synchronous=NORMAL")
        begun, count, ask_at = time.perf_counter(), 0, 0
        while time.perf_counter() - begun < seconds:
            application.execute(_INSERT, (os.urandom(100),))
            if count >= ask_at and asked.empty():
                asked.put(time.perf_counter())
                ask_at = count + random.randint(*_ASK_EVERY)
            count += 1
            time.sleep(max(0.0, begun + count / _PACE - time.perf_counter()))
        asked.put(None)
        waiter.join()
    if not waits_ms:
        raise UnavailableError("no commit became final")
    return count, waits_ms


def rate(context: Context) -> list[Line]:
    """One-row commits as fast as they go, of an unmodified writer, alone and at the writer's."""
    load = Load(transactions=context.few(60_000, 5_000))
    ratios, rates, cpus = [], [], []
    alone_rate = 0.0
    with three_nodes(context) as cluster:
        writer = settle(cluster)
        meter = Meter(cluster)
        for _ in range(context.pairs):
            with context.scene() as scene:
                alone_rate = load.run(scene.database).rate
            meter.again()
            with load.start(writer.database()) as process, closing(Asker(writer)) as asker:
                began = time.perf_counter()
                beside = read_report(process)
                asker.wait_final()
                seconds = time.perf_counter() - began
            ratios.append(beside.rate / alone_rate)
            rates.append(load.transactions / seconds)
            cpus.append(mean(meter.cpu_seconds()))
            context.say(
                f"cluster-rate: alone {alone_rate:.0f}/s, beside {beside.rate:.0f}/s, all final "
                f"{rates[-1]:.0f}/s, CPU {meter.cpu_seconds()}, {meter.resident()}"
            )
        memory = meter.resident()
    facts = {"ratios": ratios, "final_rates": rates, "cpu_s": cpus, "memory": memory}
    return [
        Line(
            what=f"three nodes, {load.transactions:,} one-row transactions: final, a second",
            aim=f"≥ {RATE_AIM:,.0f}",
            answers={BASENET: f"{report.median(rates):,.0f}"},
            is_met=report.median(rates) >= RATE_AIM,
            facts=facts,
        ),
        Line(
            what="the application meanwhile, beside / alone, median",
            aim="",
            answers={
                ALONE: f"{alone_rate:,.0f}/s",
                BASENET: f"{report.median(ratios):.2f}; CPU {report.median(cpus):.1f} s a node",
            },
            is_met=None,
        ),
    ]


def apply(context: Context) -> list[Line]:
    """One-row commits at 200 a second: when a reader of a replica's file sees each."""
    load = Load(transactions=int(_PACE * context.few(20, 3)), rate=_PACE)
    with three_nodes(context) as cluster:
        writer = settle(cluster)
        replica = cluster.others(writer)[0]
        notes = cluster.folder / "commits"
        with closing(sqlite3.connect(replica.database(), isolation_level=None)) as reader:
            first = _count(reader)
            with load.start(writer.database(), notes) as process:
                seen = _watch(reader, first + load.transactions)
                read_report(process)
        committed = dict(read_acknowledged(notes))
    lags_ms = [
        (at_ns - committed[count - first]) / 1e6
        for count, at_ns in seen
        if count - first in committed
    ]
    p50, p99 = report.median(lags_ms), percentile(lags_ms, 0.99)
    context.say(f"cluster-apply: p50 {p50:.1f} p99 {p99:.1f} ms, {len(lags_ms)} seen")
    return [
        Line(
            what=f"three nodes, {_PACE:.0f} tx/s: commit → visible on a replica, p50 / p99",
            aim="",
            answers={BASENET: f"{p50:.1f} / {p99:.1f} ms"},
            is_met=None,
            facts={"lags_ms": lags_ms},
        )
    ]


def _count(reader: sqlite3.Connection) -> int:
    found: int = reader.execute("SELECT max(id) FROM t").fetchone()[0]
    return found


def _watch(reader: sqlite3.Connection, last: int) -> list[tuple[int, int]]:
    """Return each new number of rows and when (time_ns) it was seen, up to ``last``."""
    seen: list[tuple[int, int]] = []
    before, deadline = _count(reader), time.monotonic() + _PATIENCE_S + last / _PACE
    while before < last:
        if time.monotonic() > deadline:
            raise UnavailableError(f"a replica shows {before} rows and not {last}")
        count = _count(reader)
        if count != before:
            seen.append((count, time.time_ns()))
            before = count
        time.sleep(_LOOK_S)
    return seen


def failover(context: Context) -> list[Line]:
    """SIGKILL of guardian and daemon of the writer's node; an application on each other node."""
    took_s: list[float] = []
    with three_nodes(context) as cluster:
        writer = settle(cluster)
        for trial in range(context.few(context.trials, 2)):
            began = time.perf_counter()
            writer.kill()
            following = _write_somewhere(cluster, began + _PATIENCE_S)
            with closing(Asker(following)) as asker:
                asker.wait_final()
            took_s.append(round(time.perf_counter() - began, 3))
            context.say(f"cluster-failover: {trial + 1}: {took_s[-1]:.3f} s, to {following.name}")
            writer.start()
            try:
                writer = _settled_again(cluster)
            except ClusterStuck as error:
                raise UnavailableError(str(error)) from error
    p50, worst = report.median(took_s), max(took_s)
    return [
        Line(
            what=f"writer's node killed, {len(took_s)} times: until a commit elsewhere is final, "
            "p50 / max",
            aim="p50 ≤ {:.1f} s, max ≤ {:.1f} s".format(*FAILOVER_AIM_S),
            answers={BASENET: f"{p50:.2f} / {worst:.2f} s"},
            is_met=p50 <= FAILOVER_AIM_S[0] and worst <= FAILOVER_AIM_S[1],
            facts={"took_s": took_s},
        )
    ]


def _write_somewhere(cluster: Cluster, deadline: float) -> ClusterNode:
    """Try to commit on every node that runs, as its application does; return where it worked."""
    nodes = [node for node in cluster if node.is_running]
    applications = [
        sqlite3.connect(node.database(), isolation_level=None, timeout=0) for node in nodes
    ]
    try:
        while time.perf_counter() < deadline:
            for node, application in zip(nodes, applications, strict=True):
                with suppress(sqlite3.OperationalError):
                    application.execute(_INSERT, (b"after",))
                    return node
            time.sleep(_TRY_S)
    finally:
        for application in applications:
            application.close()
    raise UnavailableError("no node may write after the writer's death")


def _settled_again(cluster: Cluster) -> ClusterNode:
    """Return the writer once all are at one place and a lease has had time to come and stay."""
    cluster.wait_settled()
    time.sleep(random.uniform(1.0, 2.0))
    return cluster.wait_writer()


def join(context: Context) -> list[Line]:
    """Two nodes without a file join one that has a large one, while its application writes."""
    size = context.few(context.join_mb, 20) * 1_000_000
    database = context.root / "large.db"
    rows = _make_large(database, size)
    with three_nodes(context, database) as cluster:
        began = time.perf_counter()
        writer = cluster.wait_writer()
        until_writer_s = time.perf_counter() - began
        meter = Meter(cluster)
        ended = threading.Event()
        load = threading.Thread(target=_update, args=(writer.database(), rows, ended))
        load.start()
        try:
            took_s = _wait_joined(cluster, writer, began)
        finally:
            ended.set()
            load.join()
        cpu, memory = meter.cpu_seconds(), meter.resident()
    context.say(f"cluster-join: {took_s}, writer after {until_writer_s:.1f} s, {cpu}, {memory}")
    text = " and ".join(f"{seconds:.1f} s" for seconds in took_s)
    return [
        Line(
            what=f"two nodes join, {size / 1e6:,.0f} MB, the writer under load",
            aim="",
            answers={BASENET: text},
            is_met=None,
            facts={"took_s": took_s, "writer_s": until_writer_s, "cpu_s": cpu, "memory": memory},
        )
    ]


def _make_large(database: Path, size: int) -> int:
    """Fill a database with random rows up to ``size`` bytes; return how many."""
    rows = size // (_ROW_BYTES + 30)
    with closing(sqlite3.connect(database)) as made:
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        made.executemany(
            "INSERT INTO t (v) VALUES (?)", ((os.urandom(_ROW_BYTES),) for _ in range(rows))
        )
        made.commit()
        made.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return rows


def _update(database: Path, rows: int, ended: threading.Event) -> None:
    """Change a random row 200 times a second until ``ended``."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as application:
        application.execute("PRAGMA synchronous=NORMAL")
        while not ended.wait(1 / _PACE):
            change = os.urandom(_ROW_BYTES), random.randrange(1, rows)
            with suppress(sqlite3.OperationalError):  # a node that stops being the writer says so
                application.execute("UPDATE t SET v = ? WHERE id = ?", change)


def _wait_joined(cluster: Cluster, writer: ClusterNode, began: float) -> list[float]:
    """Return after how many seconds each other node was close behind what is final."""
    took_s: list[float] = []
    waiting = cluster.others(writer)
    deadline = began + 20 * _PATIENCE_S
    while waiting:
        if time.perf_counter() > deadline:
            raise UnavailableError(f"not joined:\n{cluster.describe()}")
        for node in list(waiting):
            status = node.find_status()
            if status is None or status.role not in (ShardRole.REPLICA, ShardRole.WRITER):
                continue
            if status.applied_seq > 1 and status.final_seq - status.applied_seq < _BEHIND_MAX:
                took_s.append(round(time.perf_counter() - began, 1))
                waiting.remove(node)
        time.sleep(0.1)
    return took_s
