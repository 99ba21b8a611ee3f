"""A data directory that was copied is another journal: alone it begins a child lineage (Q4, Q9)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from basenet.control.surface import ShardState
from basenet.daemon.shard import Shard
from basenet.journal.records import ShardRecord
from basenet.units import Lineage, ShardId
from basenet.wire.payload import ConfigPayload, decode_config
from tests.daemon.node import running_node
from tests.sqlite.application import Application

WAIT_S = 20
APP = ShardId("app")


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    with Application(tmp_path / "app.db") as application:
        application.sql("pragma journal_mode=wal", "create table t(x)")
        yield application


async def live(folder: Path, application: Application) -> tuple[ShardRecord, ConfigPayload]:
    """Capture one commit with the data directory of ``folder``; return what is known then."""
    async with (
        running_node(folder, shards=str(application.path)) as node,
        trio.open_nursery() as nursery,
    ):
        shard = Shard(node=node, shard=APP, path=application.path)
        nursery.start_soon(shard.run)
        with trio.fail_after(WAIT_S):
            await shard.progress.wait_until(lambda: shard.state is ShardState.CAPTURING)
            before = shard.progress.final_seq
            application.sql("insert into t values(1)")
            await shard.progress.wait_until(lambda: shard.progress.final_seq > before)
        shard.stop()
        with trio.fail_after(WAIT_S):
            await shard.ended.wait()
        record = node.journalist.journal.load(APP)
        assert record is not None
        config = decode_config(record.config)
        assert [voter.journal_id for voter in config.voters] == [node.author.journal_id]
        return record, config


async def test_a_copy_without_an_archive_begins_a_child(
    tmp_path: Path, application: Application
) -> None:
    """Of its own history, up to where it stood; the original goes on, and so does the child."""
    first, _ = await live(tmp_path, application)
    shutil.copytree(tmp_path / "data", tmp_path / "copy" / "data")
    child, config = await live(tmp_path / "copy", application)
    assert config.parent == (first.lineage, first.tip.seq, first.tip.hash)
    assert not config.is_forced
    again, _ = await live(tmp_path / "copy", application)
    assert Lineage(again.lineage) == child.lineage
    assert again.tip.seq > child.tip.seq
    (tmp_path / "copy").rename(tmp_path / "moved")
    moved, _ = await live(tmp_path / "moved", application)
    assert moved.lineage == child.lineage
