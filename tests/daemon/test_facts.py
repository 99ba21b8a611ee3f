"""What a node alone tells of its shards: to a scrape the same as to `status`."""

from pathlib import Path
from typing import Any

import pytest
import trio

from basenet.control.metrics import SHARD_FAMILIES, ShardCounts
from basenet.control.surface import Level, NotCaughtUp, ShardMetrics, ShardState, ShardStatus
from basenet.daemon.facts import Facts
from basenet.daemon.keeper import Keeper
from basenet.daemon.supervisor import Supervisor
from basenet.errors import NotFoundError
from basenet.units import Seq
from tests.daemon.node import running_node
from tests.sqlite.application import Application

WAIT_S = 30


class Noting:
    """A status that notes which of its fields are read."""

    def __init__(self, status: ShardStatus) -> None:
        self._status = status
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._status, name)


async def test_a_scrape_reads_what_status_shows(tmp_path: Path) -> None:
    """Whatever field of a status a metric is made of is told to the scrape, and the same."""
    with Application(tmp_path / "app.db") as application:
        application.sql("pragma journal_mode=wal", "create table t(x)", "insert into t values(1)")
        async with (
            running_node(tmp_path, shards=f"{tmp_path}/*.db") as node,
            trio.open_nursery() as nursery,
        ):
            supervisor = Supervisor(node)
            facts = Facts(node, supervisor, Keeper(node, supervisor))
            assert facts.node_status().ready
            nursery.start_soon(supervisor.run, nursery)
            with trio.fail_after(WAIT_S):
                await supervisor.settled()
                application.sql("insert into t values(2)")
                await supervisor.shards[facts.shard_ids()[0]].capture_now()
            assert facts.shard_ids() == ["app"]
            assert facts.node_status().shards == ()
            status, metrics = facts.shard_status("app"), facts.shard_metrics("app")
            assert status.state is ShardState.CAPTURING
            assert status.captured_local > 0
            assert status.wal_bytes > 0
            noting = Noting(metrics.status)
            noted = ShardMetrics(status=noting)  # type: ignore[arg-type]  # (by duck)
            for family in SHARD_FAMILIES:
                family.read(noted)
            ShardCounts().add(noted, facts.node_metrics().now_ns)
            assert len(noting.read) > 20
            assert {name: getattr(metrics.status, name) for name in noting.read} == {
                name: getattr(status, name) for name in noting.read
            }
            with pytest.raises(NotFoundError):
                facts.shard_metrics("nope")
            supervisor.stop()
            with trio.fail_after(WAIT_S):
                await supervisor.shards[status.shard].ended.wait()
            nursery.cancel_scope.cancel()


async def test_many_may_wait_at_once_and_who_gives_up_leaves_nothing(tmp_path: Path) -> None:
    """Each is answered with what was committed before it asked; a far seq ends with its time."""
    with Application(tmp_path / "app.db") as application:
        application.sql("pragma journal_mode=wal", "create table t(x)")
        async with (
            running_node(tmp_path, shards=f"{tmp_path}/*.db") as node,
            trio.open_nursery() as nursery,
        ):
            supervisor = Supervisor(node)
            facts = Facts(node, supervisor, Keeper(node, supervisor))
            nursery.start_soon(supervisor.run, nursery)
            with trio.fail_after(WAIT_S):
                await supervisor.settled()
            shard = supervisor.shards[facts.shard_ids()[0]]
            reached: list[int] = []

            async def wait_now(before: int) -> None:
                result = await facts.wait("app", None, Level.FINAL, WAIT_S)
                assert result.final_seq >= result.seq > before
                reached.append(result.seq)

            async with trio.open_nursery() as waiting:
                for number in range(20):
                    before = shard.progress.final_seq
                    await trio.to_thread.run_sync(
                        application.sql, f"insert into t values({number})"
                    )
                    waiting.start_soon(wait_now, before)
                    waiting.start_soon(wait_now, before)
            assert len(reached) == 40
            last = shard.progress.final_seq
            assert (await facts.wait("app", last, Level.APPLIED, WAIT_S)).seq == last
            with pytest.raises(NotCaughtUp, match="is final up to seq"):
                await facts.wait("app", Seq(last + 1_000), Level.FINAL, 0.05)
            assert not any(shard.progress._goals.values())
            supervisor.stop()
            with trio.fail_after(WAIT_S):
                await shard.ended.wait()
            nursery.cancel_scope.cancel()
