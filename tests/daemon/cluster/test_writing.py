"""The writer's term: every commit in one frame, numbers without gaps, whatever interrupts it."""

from pathlib import Path

import trio

from basenet.sqlite.recover import scan
from basenet.wire.frame import Kind
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_commit_summary
from tests.daemon.cluster.alone import Alone, alone
from tests.daemon.cluster.nodes import eventually
from tests.sqlite.application import Application


async def in_thread(app: Application, *statements: str) -> None:
    """Let the application run while the event loop does, which keeps its fence open."""
    await trio.to_thread.run_sync(app.sql, *statements)


def commits_of(here: Alone) -> int:
    """How many commits the frames say they carry."""
    return sum(
        decode_commit_summary(frame.payload).commits
        for frame in here.frames()
        if frame.head.kind is Kind.COMMIT
    )


def check(here: Alone, commits: int) -> None:
    """Every commit is in exactly one frame, and the chain leads to the file."""
    assert commits_of(here) == commits
    assert here.record().local_last == here.term.local_last == commits
    found = scan(here.file.database)
    root = StateTree(found.page_size, found.leaves).root()
    assert here.record().tip.state_root == root == here.term.branch.final.root()


async def test_every_commit_is_in_one_frame(tmp_path: Path, socket: Path) -> None:
    """Few make a frame each, many share; the state roots are those of the file."""
    async with alone(tmp_path, socket) as here:
        await here.writable()
        with Application(tmp_path / "app.db") as app:
            await in_thread(app, "CREATE TABLE t (x)")
            await here.captured()
            for _ in range(60):
                await in_thread(app, "INSERT INTO t VALUES (randomblob(300))")
            seq = await here.captured()
            check(here, 61)
            assert seq <= 62
            assert here.term.unfinal().commits == 0
    assert [name for name, _ in here.told if name == "orphaned"] == []


async def test_a_term_goes_on_where_the_last_one_ended(tmp_path: Path, socket: Path) -> None:
    """By a stop or by a kill, with commits that nobody captured."""
    path = tmp_path / "app.db"
    async with alone(tmp_path, socket) as here:
        await here.writable()
        with Application(path) as app:
            await in_thread(app, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    async with alone(tmp_path, socket, is_killed=True) as here:
        await here.writable()
        with Application(path) as app:
            await in_thread(app, "INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (3)")
    async with alone(tmp_path, socket) as here:
        await here.writable()
        with Application(path) as app:
            await in_thread(app, "INSERT INTO t VALUES (4)")
            await here.captured()
            check(here, 5)


async def test_a_large_transaction_is_a_run(tmp_path: Path, socket: Path) -> None:
    """And what comes behind it is captured, too."""
    async with alone(tmp_path, socket) as here:
        await here.writable()
        with Application(tmp_path / "app.db") as app:
            await in_thread(app, "CREATE TABLE t (x)")
            await in_thread(app, "INSERT INTO t VALUES (randomblob(11000000))")
            await in_thread(app, "INSERT INTO t VALUES (1)")
            await here.captured()
            check(here, 3)
            assert sum(frame.head.is_partial for frame in here.frames()) == 2


async def test_finish_takes_all_that_is_in_no_frame(tmp_path: Path, socket: Path) -> None:
    """Also when more waits than there is room for, since nothing is sealed any more."""
    async with alone(tmp_path, socket) as here:
        await here.writable()
        with Application(tmp_path / "app.db") as app:
            await in_thread(app, "CREATE TABLE t (x)")
            await here.captured()
            writer = here.term.writer
            assert writer is not None
            writer._is_finishing = True  # as if it could not seal
            for _ in range(3):
                await in_thread(app, "INSERT INTO t VALUES (randomblob(6000000))")
            await eventually(lambda: not writer.waiting.has_room)
            await here.file.held()
            with trio.fail_after(20):
                left = await writer.finish()
            assert sum(item.commits for item in left) == 3
            assert writer.local_last == 1
            here.term.writer = None


async def test_the_file_is_fenced_when_the_term_has_ended(tmp_path: Path, socket: Path) -> None:
    """Nothing is committed that nobody captures."""
    async with alone(tmp_path, socket) as here:
        await here.writable()
        fence = here.file.fence
        assert fence is not None
        here.term.stop()
        await eventually(lambda: not here.term.is_at_work)
        assert fence.is_held
