"""How long we held SQLite's write lock is told, asked for or not."""

from pathlib import Path

import trio

from basenet.control.surface import ShardState
from basenet.daemon.shard import Shard
from basenet.units import ShardId
from tests.daemon.node import running_node
from tests.sqlite.application import Application

WAIT_S = 20


async def test_the_times_of_the_write_lock_never_pile_up_and_outlive_the_session(
    tmp_path: Path,
) -> None:
    """Nobody scrapes: every second they move on, and once more when the file is let go."""
    with Application(tmp_path / "app.db") as application:
        application.sql("pragma journal_mode=wal", "create table t(x)")
        async with (
            running_node(tmp_path, shards=str(application.path)) as node,
            trio.open_nursery() as nursery,
        ):
            shard = Shard(node=node, shard=ShardId("app"), path=application.path)
            nursery.start_soon(shard.run)
            with trio.fail_after(WAIT_S):
                await shard.progress.wait_until(lambda: shard.state is ShardState.CAPTURING)
            session = shard.session
            assert session is not None
            session.capture.lock_held_s.append(("rotate", 0.02))
            shard.check_connected(trio.current_time())
            assert session.capture.lock_held_s == []
            assert sum(node.lock_held["rotate"].get_sample().counts) == 1
            session.capture.lock_held_s.append(("rotate", 0.2))
            shard.stop()
            with trio.fail_after(WAIT_S):
                await shard.ended.wait()
            sample = node.lock_held["rotate"].get_sample()
            assert sum(sample.counts) == 2
            assert round(sample.total, 2) == 0.22
