"""A thousand shards on three nodes of this machine: born, idle, and with some of them active.

CPU is that of the whole node, daemon and guardian, and so is memory. Nobody asks the nodes anything
while they are measured: an answer about a thousand shards costs more than they do.
"""

import multiprocessing
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from basenet.control.surface import NodeStatus, ShardRole
from basenet.errors import BasenetError, UnavailableError
from basenet.testing.bench import report
from basenet.testing.bench.contenders import BASENET
from basenet.testing.bench.context import Context
from basenet.testing.bench.processes import Usage, usage_of, wait_until
from basenet.testing.bench.report import Line
from basenet.testing.cluster import Cluster, ClusterNode

IDLE_AIM_PERCENT: Final = 2.0
_BIRTH_S_MAX: Final = 900.0
# After its birth each log is looked at for a minute, ever more rarely.
_SETTLE_S: Final = 90.0
_IDLE_S: Final = 60.0
_ACTIVE_S: Final = 30.0
_ACTIVE: Final = 20
_PACE: Final = 10.0
# To be asked about a thousand shards keeps a node busy for a while, so they are asked rarely.
_LOOK_S: Final = 10.0
_WRITE_S_MAX: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What each node took, by name: CPU in percent of a core, daemon and guardian; memory."""

    daemons: dict[str, float]
    guardians: dict[str, float]
    resident: dict[str, int]
    guardians_resident: dict[str, int]

    def nodes(self) -> list[float]:
        """Return the CPU of each node."""
        return [self.daemons[name] + self.guardians[name] for name in self.daemons]


def cluster_idle(context: Context) -> list[Line]:
    """Start three nodes over shards that nobody has yet; leave them alone; write to some."""
    few, many = context.few(200, 6), context.few(1_000, 12)
    lines: list[Line] = []
    for count in (few, many):
        names = [f"s{number:04}" for number in range(count)]
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=context.root)))
            cluster = stack.enter_context(Cluster(folder, shards=names, BASE_LOG_LEVEL="warning"))
            cluster.start()
            born_s = wait_until(
                lambda cluster=cluster, count=count: _born(cluster) == count,  # type: ignore[misc]
                f"{count} shards are born and have a writer",
                seconds_max=_BIRTH_S_MAX,
                every=_LOOK_S,
            )
            context.say(f"cluster-idle: {count} shards born in {born_s:.0f} s")
            time.sleep(context.few(int(_SETTLE_S), 2))
            idle = _measure(cluster, context.few(int(_IDLE_S), 2))
            context.say(f"cluster-idle: {count} shards idle: {idle}")
            active = None
            if count == many:
                with _writers(cluster, names[: context.few(_ACTIVE, 2)]):
                    active = _measure(cluster, context.few(int(_ACTIVE_S), 2))
                context.say(f"cluster-idle: some active: {active}")
            leaders = _writers_of(cluster)
            cluster.stop()
        lines += _lines(count, born_s, idle, active, leaders)
    return lines


def _statuses(cluster: Cluster) -> list[NodeStatus]:
    found: list[NodeStatus] = []
    for node in cluster:
        try:
            found.append(node.client.get_node_status())
        except BasenetError:
            continue
    return found


def _born(cluster: Cluster) -> int:
    """Return how many shards have a writer and are known to all three nodes."""
    followed: Counter[str] = Counter()
    written: set[str] = set()
    for status in _statuses(cluster):
        for shard in status.shards:
            followed[shard.shard] += shard.writer is not None and shard.final_seq > 0
            if shard.role is ShardRole.WRITER:
                written.add(shard.shard)
    return sum(followed[shard] == len(cluster.names) for shard in written)


def _writers_of(cluster: Cluster) -> dict[str, str]:
    """Return who writes each shard."""
    return {
        shard.shard: status.node_id
        for status in _statuses(cluster)
        for shard in status.shards
        if shard.role is ShardRole.WRITER
    }


def _measure(cluster: Cluster, seconds: float) -> Taken:
    before, began = _usage(cluster), time.monotonic()
    time.sleep(seconds)
    after, elapsed = _usage(cluster), time.monotonic() - began

    def percent(kind: int) -> dict[str, float]:
        return {
            name: round(
                100 * (after[name][kind].cpu_seconds - before[name][kind].cpu_seconds) / elapsed, 2
            )
            for name in after
        }

    return Taken(
        daemons=percent(0),
        guardians=percent(1),
        resident={name: pair[0].resident_bytes for name, pair in after.items()},
        guardians_resident={name: pair[1].resident_bytes for name, pair in after.items()},
    )


def _usage(cluster: Cluster) -> dict[str, tuple[Usage, Usage]]:
    return {node.name: (usage_of(_daemon(node)), usage_of(node.guardian_pid)) for node in cluster}


def _daemon(node: ClusterNode) -> int:
    pid = node.daemon_pid()
    if pid is None:
        raise UnavailableError(f"the daemon of {node.name} has ended: {node.tail(3)}")
    return pid


class _writers:  # noqa: N801  (used as a function)
    """An application of its own that writes to some shards while the body runs."""

    def __init__(self, cluster: Cluster, shards: Sequence[str]) -> None:
        owners = _writers_of(cluster)
        paths = [str(cluster[owners[shard]].database(shard)) for shard in shards]
        context = multiprocessing.get_context("spawn")
        self._begun, self._stop = context.Event(), context.Event()
        self._process = context.Process(
            target=_write, args=(paths, self._begun, self._stop), daemon=True
        )

    def __enter__(self) -> None:
        self._process.start()
        if not self._begun.wait(_WRITE_S_MAX):
            raise UnavailableError("the application has not committed to all of its databases")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._process.join(_WRITE_S_MAX)
        if self._process.exitcode != 0:
            raise UnavailableError(f"the application ended with {self._process.exitcode}")


def _write(paths: Sequence[str], begun: Event, stop: Event) -> None:
    """Commit a row to each database in turn, `_PACE` times a second to each."""
    with ExitStack() as stack:
        connections = [
            stack.enter_context(closing(sqlite3.connect(path, isolation_level=None, timeout=30.0)))
            for path in paths
        ]
        for connection in connections:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v)")
        began, count = time.monotonic(), 0
        while not stop.is_set():
            connections[count % len(connections)].execute(
                "INSERT INTO t (v) VALUES (randomblob(99))"
            )
            count += 1
            if count == len(connections):
                begun.set()
            due = began + count / (_PACE * len(connections))
            time.sleep(max(0.0, due - time.monotonic()))


def _lines(
    count: int, born_s: float, idle: Taken, active: Taken | None, leaders: Mapping[str, str]
) -> list[Line]:
    worst = max(idle.nodes())
    share = Counter(leaders.values())
    facts = {"idle": idle, "active": active, "writers": dict(share), "born_s": born_s}
    lines = [
        Line(
            what=f"{count:,} shards on three nodes: all born and led after",
            aim="",
            answers={BASENET: f"{born_s:.0f} s"},
            is_met=None,
            facts=facts,
        ),
        Line(
            what=f"{count:,} idle shards: CPU of a node; of it the guardian",
            aim=f"≤ {IDLE_AIM_PERCENT:.0f} %",
            answers={BASENET: f"{_span(idle.nodes())} %; {_span(idle.guardians.values())} %"},
            is_met=worst <= IDLE_AIM_PERCENT,
        ),
        Line(
            what=f"{count:,} shards: memory of a daemon / of a guardian",
            aim="",
            answers={
                BASENET: f"{report.megabytes(max(idle.resident.values()))} / "
                f"{report.megabytes(max(idle.guardians_resident.values()))}"
            },
            is_met=None,
        ),
    ]
    if active is not None:
        lines.append(
            Line(
                what=f"{count:,} shards, {_PACE:.0f} tx/s to each of {_ACTIVE}: CPU of a node",
                aim="",
                answers={BASENET: f"{_span(active.nodes())} %"},
                is_met=None,
            )
        )
    return lines


def _span(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.1f} to {ordered[-1]:.1f}"
