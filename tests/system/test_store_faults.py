"""The daemon at a real server in bad weather: nothing lost, nothing hidden, nobody asked to help.

The server is Ceph, the weather a fault proxy in front of it. The long run, with an outage of
minutes and ten SIGKILLs, is `cmd/basenet-store-soak`.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from basenet.control.surface import ShardStatus
from basenet.errors import UnavailableError
from basenet.testing.faultproxy import (
    ALL,
    EVER,
    READS,
    WRITES,
    Fault,
    FaultKind,
    Weather,
    running_weather,
)
from basenet.units import MIB
from tests.sqlite.application import Application
from tests.system.harness import Daemon, until
from tests.system.stores import Archive, Host, make_archive

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
SHARDS = ("one", "two", "three", "four")
PATIENCE_S = 120.0


class Sight:
    """A host that sees Ceph through a proxy, and what the proxy was asked."""

    def __init__(self, host: Host, archive: Archive, weather: Weather) -> None:
        self.host = host
        self.archive = archive
        self.weather = weather
        self.asked: Counter[str] = Counter()  # by shard
        weather.proxy.on_request = self._note

    def _note(self, _method: str, target: str) -> None:
        for shard in SHARDS:
            self.asked[shard] += f"default/{shard}/" in target or f"default%2F{shard}%2F" in target

    def serve(self, **settings: str) -> Daemon:
        """Start the daemon behind the proxy."""
        return self.host.serve(self.archive.through(self.weather.url), **settings)

    def look(self, daemon: Daemon) -> None:
        """Compare what the daemon says is archived with what the store holds after that."""
        said = until(lambda: ask(daemon), "the daemon answers", PATIENCE_S)
        held = self.archive.archived_seqs(*SHARDS)
        for status in said:
            assert status.archived_seq <= held[status.shard], status.shard

    def wait_archived(self, daemon: Daemon) -> None:
        """Return once all is archived and every sentence says so."""
        for path in sorted(self.host.folder.glob("*.db")):
            daemon.wait_archived(path.stem, PATIENCE_S)
            daemon.wait_status(
                lambda status: status.archive == "ok" and not status.lag_commits,
                "ok",
                path.stem,
                PATIENCE_S,
            )


@pytest.fixture
def sight(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sight]:
    archive = make_archive(request, "rgw", tmp_path)
    with contextlib.ExitStack() as stack:
        weather = stack.enter_context(running_weather(archive.server_url))
        yield Sight(Host(tmp_path / "host", archive, stack), archive, weather)


@contextlib.contextmanager
def applications(sight: Sight, *shards: str) -> Iterator[list[Application]]:
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(Application(sight.host.database(shard))) for shard in shards]
        for application in running:
            application.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t(x)")
        yield running


def commit(applications: list[Application], count: int, size: int = 300) -> None:
    """Let every application commit ``count`` times."""
    for application in applications:
        application.sql(*[f"INSERT INTO t VALUES (randomblob({size}))"] * count)


def often(kind: FaultKind, methods: frozenset[str] = ALL, chance: float = 0.4) -> Fault:
    return Fault(kind, methods=methods, count=EVER, chance=chance)


def test_spoilt_requests_lose_nothing_and_hide_nothing(sight: Sight) -> None:
    """503, 429, resets on both ways, truncated, stale and lost answers, and slowness, by chance."""
    kinds = {
        FaultKind.UNAVAILABLE: ALL,
        FaultKind.TOO_MANY: ALL,
        FaultKind.RESET_REQUEST: ALL,
        FaultKind.LOSE_ANSWER: WRITES,
        FaultKind.TRUNCATE_ANSWER: READS,
        FaultKind.RESET_ANSWER: READS,
        FaultKind.STALE_ANSWER: READS,
    }
    proxy = sight.weather.proxy
    with applications(sight, *SHARDS[:2]) as running:
        daemon = sight.serve()
        sight.wait_archived(daemon)
        sight.weather.set_latency(0.02)
        for kind, methods in kinds.items():
            before = proxy.fault_counts[kind]
            sight.weather.add(often(kind, methods))

            def write(kind: FaultKind = kind, before: int = before) -> bool:
                commit(running, 2)
                return proxy.fault_counts[kind] >= before + 2

            until(write, f"{kind}", PATIENCE_S)
            sight.look(daemon)
            sight.weather.clear()
        # A daemon that starts in it finds its way, too.
        sight.weather.add(*(often(kind, methods, 0.1) for kind, methods in kinds.items()))
        daemon.kill()
        commit(running, 5)
        daemon = sight.serve()
        commit(running, 5)
        sight.look(daemon)
        sight.weather.clear()
        sight.wait_archived(daemon)
        assert not daemon.metric("base_leases_lost_total")
    for shard in SHARDS[:2]:
        sight.archive.check(sight.host.database(shard), data_dir=sight.host.data_dir)
    sight.archive.verify(data_dir=sight.host.data_dir)


def test_an_outage_under_load_is_told_survived_and_ends_by_itself(sight: Sight) -> None:
    """First nothing is answered at all, then all is refused; SIGKILL in it; no memory, no herd."""
    with applications(sight, *SHARDS) as running:
        # The time limit of a request is one that suits a test.
        daemon = sight.serve(BASE_RETRY_DEADLINE="2s")
        sight.wait_archived(daemon)
        before = {shard: daemon.status(shard).archived_seq for shard in SHARDS}
        failures = daemon.metric("base_archive_failures_total")
        memory = read_memory(daemon)
        sight.weather.add(often(FaultKind.SWALLOW, chance=1.0))
        sight.asked.clear()
        for _ in range(12):
            commit(running, 1, MIB)
        for shard in SHARDS:
            status = daemon.wait_status(
                lambda status: status.archive != "ok" and status.lag_bytes > 10 * MIB,
                "the truth",
                shard,
                PATIENCE_S,
            )
            assert "did not answer within 2 s" in status.archive
            assert status.archived_seq == before[shard]
            assert status.lag_commits > 0
            assert status.worst_case_loss_ms >= status.lag_ms > 0
        assert daemon.metric("base_archive_failures_total") > failures
        assert daemon.metric("base_unarchived_seconds") > 0
        # What waits for the store waits in the journal: 4 databases of 12 MiB each.
        assert read_memory(daemon) - memory < 32 * MIB
        # A shard asks, is not answered for 2 s, and pauses for longer each time.
        assert max(sight.asked.values()) <= 12

        daemon.kill()
        sight.weather.clear()
        sight.weather.add(often(FaultKind.UNAVAILABLE, chance=1.0))
        daemon = sight.serve()
        commit(running, 5)
        for shard in SHARDS:
            daemon.wait_status(
                lambda status: "503" in status.archive, "the other truth", shard, PATIENCE_S
            )
        sight.weather.clear()
        sight.wait_archived(daemon)
        sight.look(daemon)
        assert not daemon.metric("base_unarchived_seconds")
    for shard in SHARDS:
        sight.archive.check(sight.host.database(shard), data_dir=sight.host.data_dir)
    sight.archive.verify(data_dir=sight.host.data_dir)


def ask(daemon: Daemon) -> Sequence[ShardStatus] | None:
    """Return what the daemon says of its shards, None while it does not answer."""
    with contextlib.suppress(UnavailableError):
        return daemon.client.get_node_status().shards
    return None


def read_memory(daemon: Daemon) -> int:
    """Return the daemon's resident memory in bytes."""
    pages = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096
