"""Which shards there are, and what becomes of those that come and go."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from basenet.control.surface import ShardState
from basenet.daemon.supervisor import Supervisor, check_configured
from basenet.errors import UsageError
from basenet.units import ShardId
from tests.daemon.node import running_node
from tests.sqlite.application import Application

WAIT_S = 20


def make_database(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table t(x)")
    connection.commit()
    connection.close()
    return path


@asynccontextmanager
async def supervising(folder: Path, shards: str) -> AsyncIterator[Supervisor]:
    """Supervise for the body, then stop as the service does."""
    async with running_node(folder, shards=shards) as node, trio.open_nursery() as nursery:
        supervisor = Supervisor(node)
        nursery.start_soon(supervisor.run, nursery)
        with trio.fail_after(WAIT_S):
            await supervisor.settled()
        yield supervisor
        supervisor.stop()
        with trio.fail_after(WAIT_S):
            for shard in list(supervisor.shards.values()):
                await shard.ended.wait()
        nursery.cancel_scope.cancel()


async def until(is_so: Callable[[], bool]) -> None:
    """Return when ``is_so``; the signals are the kernel's, so there is no event to wait for."""
    with trio.fail_after(WAIT_S):
        while not is_so():  # noqa: ASYNC110  (as the docstring says)
            await trio.sleep(0.005)


async def test_every_database_of_a_directory_is_captured(tmp_path: Path) -> None:
    """Once settled, each is captured from its genesis on."""
    for name in ("a", "b"):
        make_database(tmp_path / "dbs" / f"{name}.db")
    async with supervising(tmp_path, f"{tmp_path}/dbs/") as supervisor:
        assert set(supervisor.shards) == {"a", "b"}
        for shard in supervisor.shards.values():
            assert shard.state is ShardState.CAPTURING
            assert shard.progress.final_seq == 1
        assert supervisor.opened == 2


async def test_a_database_that_appears_is_captured(tmp_path: Path) -> None:
    """Its directory says so; nobody restarts anything."""
    make_database(tmp_path / "dbs" / "a.db")
    async with supervising(tmp_path, f"{tmp_path}/dbs/") as supervisor:
        make_database(tmp_path / "dbs" / "late.db")
        await until(lambda: "late" in supervisor.shards)
        late = supervisor.shards[ShardId("late")]
        with trio.fail_after(WAIT_S):
            await late.progress.wait_until(lambda: late.state is ShardState.CAPTURING)
        assert supervisor.opened == 2


async def test_a_database_that_goes_is_dropped_alone(tmp_path: Path) -> None:
    """Its task ends and its name is free; its neighbour is captured all the time."""
    paths = [make_database(tmp_path / "dbs" / f"{name}.db") for name in ("a", "b")]
    async with supervising(tmp_path, f"{tmp_path}/dbs/") as supervisor:
        gone, stays = (supervisor.shards[ShardId(name)] for name in ("a", "b"))
        session = stays.session
        for path in (tmp_path / "dbs").glob("a.db*"):
            path.unlink()
        await until(lambda: "a" not in supervisor.shards)
        assert gone.ended.is_set()
        assert stays.session is session is not None
        make_database(paths[0])
        await until(lambda: "a" in supervisor.shards)
        assert supervisor.shards[ShardId("a")] is not gone


async def test_what_cannot_be_named_is_refused_and_the_rest_served(tmp_path: Path) -> None:
    """`status` shows the sentence."""
    make_database(tmp_path / "dbs" / "good.db")
    make_database(tmp_path / "dbs" / f"{'x' * 65}.db")
    async with supervising(tmp_path, f"{tmp_path}/dbs/") as supervisor:
        assert set(supervisor.shards) == {"good"}
        (sentence,) = supervisor.refused
        assert "is not usable" in sentence


async def test_a_named_file_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """It is settled all the same: a start does not hang on it."""
    async with supervising(tmp_path, f"{tmp_path}/app.db") as supervisor:
        (shard,) = supervisor.shards.values()
        assert shard.state is ShardState.WAITING
        assert "does not exist" in str(shard.error)


async def test_one_database_under_two_names_is_refused_the_second_time(tmp_path: Path) -> None:
    """The first name is served, and nothing ends for the second."""
    path = make_database(tmp_path / "app.db")
    (tmp_path / "link.db").symlink_to(path)
    async with supervising(tmp_path, f"{path},{tmp_path}/link.db") as supervisor:
        (shard,) = supervisor.shards.values()
        assert (shard.shard, shard.state) == ("app", ShardState.CAPTURING)
        assert len(supervisor.refused) == 1


async def test_a_stop_captures_what_is_committed(tmp_path: Path) -> None:
    """The last commit before it is final when every shard has ended."""
    path = make_database(tmp_path / "app.db")
    with Application(path) as application:
        async with supervising(tmp_path, str(path)) as supervisor:
            (shard,) = supervisor.shards.values()
            application.sql("insert into t values(1)", "insert into t values(2)")
            with trio.fail_after(WAIT_S):
                assert await shard.capture_now() == 3
        assert shard.progress.final_seq == 3


async def test_a_node_without_databases_is_a_mistake(tmp_path: Path) -> None:
    """One sentence, before anything begins."""
    async with running_node(tmp_path, shards="/data/a.db") as node:
        check_configured(node.config)
        with pytest.raises(UsageError, match="BASE_SHARDS"):
            check_configured(replace(node.config, shards=()))
