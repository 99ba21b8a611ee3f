"""A commit counts only once the application's own log holds it for good (docs/pitfalls.md, P7)."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from basenet.control.surface import ShardState
from basenet.daemon.node import Node
from basenet.daemon.shard import Shard
from basenet.units import ShardId
from tests.daemon.node import running_node
from tests.sqlite.application import Application

WAIT_S = 20
APP = ShardId("app")


class LogDisk:
    """Stands in for ``os.fdatasync``: notes the syncs of -wal files, and can hold them up."""

    def __init__(self) -> None:
        self.log_bytes: list[int] = []
        self.opened = threading.Event()
        self.opened.set()
        self.reached = threading.Event()
        self._real = os.fdatasync

    def __call__(self, descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith("-wal"):
            self.reached.set()
            assert self.opened.wait(WAIT_S)
            self.log_bytes.append(os.fstat(descriptor).st_size)
        self._real(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogDisk]:
    disk = LogDisk()
    monkeypatch.setattr(os, "fdatasync", disk)
    yield disk
    disk.opened.set()


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    with Application(tmp_path / "app.db") as application:
        application.sql("pragma journal_mode=wal", "pragma synchronous=normal", "create table t(x)")
        yield application


def count_log_bytes(application: Application) -> int:
    return Path(f"{application.path}-wal").stat().st_size


async def capture(node: Node, nursery: trio.Nursery, path: Path) -> Shard:
    shard = Shard(node=node, shard=APP, path=path)
    nursery.start_soon(shard.run)
    with trio.fail_after(WAIT_S):
        await shard.progress.wait_until(lambda: shard.state is ShardState.CAPTURING)
    return shard


async def end(shard: Shard) -> None:
    shard.stop()
    with trio.fail_after(WAIT_S):
        await shard.ended.wait()


async def test_no_commit_is_final_before_its_log_is_synced(
    tmp_path: Path, disk: LogDisk, application: Application
) -> None:
    """While the disk has not taken the log nothing of the commit is stored, final or shown."""
    async with (
        running_node(tmp_path, shards=str(application.path)) as node,
        trio.open_nursery() as nursery,
    ):
        shard = await capture(node, nursery, application.path)
        before = shard.progress.final_seq
        disk.opened.clear()
        disk.reached.clear()
        application.sql("insert into t values(1)")
        log_bytes = count_log_bytes(application)
        assert await trio.to_thread.run_sync(disk.reached.wait, WAIT_S)
        sizes = await node.journalist.read(lambda journal: journal.frame_sizes(APP, before))
        assert sizes == []
        assert shard.progress.final_seq == before
        disk.opened.set()
        with trio.fail_after(WAIT_S):
            await shard.progress.wait_until(lambda: shard.progress.final_seq > before)
        assert disk.log_bytes[-1] >= log_bytes
        await end(shard)


async def test_a_lineage_is_not_born_over_commits_that_could_be_lost(
    tmp_path: Path, disk: LogDisk, application: Application
) -> None:
    """The genesis holds the state of the file with its log; a power failure must not undo that."""
    application.sql("insert into t values(1)")
    log_bytes = count_log_bytes(application)
    async with (
        running_node(tmp_path, shards=str(application.path)) as node,
        trio.open_nursery() as nursery,
    ):
        shard = await capture(node, nursery, application.path)
        assert shard.progress.final_seq == 1
        assert disk.log_bytes
        assert disk.log_bytes[0] >= log_bytes
        await end(shard)


async def test_an_operator_may_do_without_the_sync(
    tmp_path: Path, disk: LogDisk, application: Application
) -> None:
    """BASE_SYNC_WAL=off: commits are captured and the application's log is never synced by us."""
    async with (
        running_node(tmp_path, shards=str(application.path)) as found,
        trio.open_nursery() as nursery,
    ):
        node = replace(found, config=replace(found.config, sync_wal=False))
        shard = await capture(node, nursery, application.path)
        application.sql("insert into t values(1)")
        with trio.fail_after(WAIT_S):
            await shard.progress.wait_until(lambda: shard.progress.final_seq > 1)
        assert disk.log_bytes == []
        await end(shard)
