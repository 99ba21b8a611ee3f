# ruff: noqa: ASYNC240  (nothing else runs in these event loops)
"""BASE_FENCE=readonly in one node: files marked and cleared, and what a start makes of them."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.config.model import Fence
from basenet.control.surface import ShardState
from basenet.daemon import framer
from basenet.daemon.cluster import marking
from basenet.daemon.cluster.file import Prepared, encode_intent
from basenet.daemon.cluster.gate import NEVER
from basenet.daemon.cluster.term import Term
from basenet.daemon.shard import Shard
from basenet.engine.effects import Orphan
from basenet.engine.events import Instant
from basenet.errors import UnavailableError
from basenet.journal.records import Settled
from basenet.sqlite.captured import Captured, CaptureFlag, Cursor
from basenet.sqlite.standing import Outcome, decode_intent, find_standing
from basenet.units import PublicKeyBytes, Seq, ShardId
from basenet.wire.payload import decode_commit
from tests.daemon.cluster.alone import alone
from tests.daemon.cluster.files import (
    PLACE,
    State,
    StateSources,
    apply,
    opened,
    payload_of,
    whole_of,
)
from tests.daemon.cluster.lines import a_line, at_bench
from tests.daemon.cluster.nodes import eventually
from tests.daemon.cluster.test_settling import settle
from tests.daemon.cluster.test_writing import in_thread
from tests.daemon.node import running_node
from tests.fakes.branching import SHARD
from tests.sqlite.application import Application, ApplicationError
from tests.sqlite.replica import Source, content_of
from tests.sqlite.test_page1 import set_mark

READ_ONLY = "attempt to write a readonly database"


def answer(path: Path, statement: str = "INSERT INTO t (v) VALUES (1)") -> str:
    """What SQLite says to a new connection that waits for no lock; empty: it did it."""
    with Application(path, timeout_s=0) as app:
        try:
            app.sql(statement)
        except ApplicationError as error:
            return str(error)
    return ""


# -- the file --------------------------------------------------------------------------------------


async def test_what_is_applied_keeps_the_mark(path: Path, socket: Path, source: Source) -> None:
    """Page 1 in a batch, growth, a mending; the state is that of the source all the time."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        assert not here.file.is_read_only
        assert await here.file.mark(is_read_only=True)
        assert not await here.file.mark(is_read_only=True)
        for statement in (
            "INSERT INTO t (v) VALUES (randomblob(30000))",
            "CREATE TABLE u (x)",
            "PRAGMA user_version=9",
        ):
            source.run(statement)
            await apply(here.file, payload_of(source))
            assert READ_ONLY in answer(path)
            assert (await here.file.facts()).state_root == State.of(source).root
        source.run("DELETE FROM t")
        source.run("VACUUM")
        state = State.of(source)
        await here.file.mend(state.target(), StateSources(pages=state.pages()))
        assert (await here.file.facts()).state_root == state.root
        assert READ_ONLY in answer(path)
        here.release()
        assert READ_ONLY in answer(path)  # the lock is open
        await here.file.held()
        assert await here.file.mark(is_read_only=False)
    assert content_of(path) == content_of(source.path)


async def test_the_mark_outlives_everybody(path: Path, socket: Path, source: Source) -> None:
    """The next daemon reads it from the file; where it is to be writable it is cleared."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        await here.file.mark(is_read_only=True)
    assert READ_ONLY in answer(path)
    assert READ_ONLY in answer(path)  # the first one has emptied the log as it closed
    async with opened(path, socket) as here:
        assert here.file.is_read_only
        await here.file.mark(is_read_only=False)
        here.release()
        assert answer(path) == ""


async def test_a_mark_is_known_for_ours_by_its_intent(
    path: Path, socket: Path, source: Source
) -> None:
    """Before it was written, and after; and a log that we have begun anew behind it."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        cursor = await here.file.cursor()
        intents: list[bytes] = []

        async def keep(prepared: Prepared) -> None:
            intents.append(encode_intent(prepared.before, prepared.after, PLACE))
            # `inspect` waits for the act that is under way.
            intent = decode_intent(intents[-1])
            found = await trio.to_thread.run_sync(find_standing, here.file.database, cursor, intent)
            assert (found.is_applied, found.commits) == (False, 0)

        for is_read_only in (True, False):
            await here.file.mark(is_read_only=is_read_only, on_ready=keep)
            found = await here.file.inspect(cursor, decode_intent(intents[-1]))
            assert (found.outcome, found.commits) == (Outcome.APPLIED, 0)
            assert found.is_applied
        # Nobody journalled it: then it is a stranger's.
        assert (await here.file.inspect(cursor, None)).commits == 2


async def test_a_mark_that_could_not_be_written_is_none(
    path: Path, socket: Path, source: Source
) -> None:
    """The file says what it said, and so does what is applied next."""

    async def fail(_: Prepared) -> None:
        raise UnavailableError("the journal is away")

    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        with pytest.raises(UnavailableError, match="journal"):
            await here.file.mark(is_read_only=True, on_ready=fail)
        assert not here.file.is_read_only
        here.release()
        with pytest.raises(UnavailableError, match="not fenced"):
            await here.file.mark(is_read_only=True)
        await here.file.held()
        source.run("CREATE TABLE u (x)")
        await apply(here.file, payload_of(source))
        here.release()
        assert answer(path) == ""


async def test_what_is_mended_is_marked_before_anything_is_fetched(
    path: Path, socket: Path, source: Source
) -> None:
    """Pages may be long in coming, and what was orphaned lies in the file meanwhile."""
    async with opened(path, socket) as here:
        here.file._marks_mended = True
        await apply(here.file, whole_of(source))
        source.run("INSERT INTO t (v) VALUES (randomblob(9000))")
        state = State.of(source)
        with pytest.raises(UnavailableError, match="had by no node"):
            await here.file.mend(state.target(), StateSources())
        assert READ_ONLY in answer(path)
        # A file that is made anew, since its pages have another size; the old one is writable.
        with closing(Source(path.with_name("other.db"), 512)) as other:
            state = State.of(other)
            done = await here.file.mend(state.target(), StateSources(pages=state.pages()))
        assert READ_ONLY in answer(path)
        assert done.set_aside is not None
        assert answer(done.set_aside) == ""


async def test_a_replica_is_marked_though_something_is_applied_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the batch that is under way; what is final already and waits is applied afterwards."""
    monkeypatch.setattr(marking, "_PAUSE_S", 600.0)
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        await settle(bench, line.keep(bench.journal, line.create()))
        follower = SimpleNamespace(
            shard=SHARD,
            file=bench.file,
            settler=bench.settler,
            writer=None,
            leads=False,
            driver=SimpleNamespace(
                performer=SimpleNamespace(is_undoing=False),
                replica=SimpleNamespace(leader=b"the writer"),
            ),
        )
        mark = marking.Marking(
            cast("marking.Marked", follower), me=PublicKeyBytes(b"me"), fence=Fence.READONLY
        )
        settle_in_journal, may_settle = bench.node.journalist.settle, trio.Event()

        async def settle_late(settled: Settled, patience_s: float) -> None:
            await may_settle.wait()
            await settle_in_journal(settled, patience_s)

        monkeypatch.setattr(bench.node.journalist, "settle", settle_late)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.settler.run)
            for _ in range(2):
                bench.settler.put(line.keep(bench.journal, line.commit()))
                await wait_all_tasks_blocked()
            nursery.start_soon(mark.run)
            await wait_all_tasks_blocked()
            may_settle.set()
            await eventually(lambda: bench.file.is_read_only)
            await bench.settler.drained()
            nursery.cancel_scope.cancel()
        assert bench.settler.place[0] == 4
        assert await bench.holds()


# -- a term ----------------------------------------------------------------------------------------


async def told(path: Path) -> str:
    return await trio.to_thread.run_sync(answer, path)


async def test_a_node_writes_and_leaves_a_file_that_refuses(tmp_path: Path, socket: Path) -> None:
    """Again and again; no start takes a mark for a commit, and no frame carries one."""
    path = tmp_path / "app.db"
    for turn in range(3):
        async with alone(tmp_path, socket, fence=Fence.READONLY) as here:
            await here.writable()
            with Application(path) as app:
                await in_thread(app, "CREATE TABLE IF NOT EXISTS t (v)", "PRAGMA user_version=3")
                await in_thread(app, f"INSERT INTO t VALUES ({turn})")
                await here.captured()
            last = here.record().local_last
        assert READ_ONLY in answer(path)
        async with alone(tmp_path, socket, fence=Fence.READONLY) as here:
            assert here.record().local_last == last
            assert not here.node.journalist.journal.orphans(SHARD)
            commits = [decode_commit(one.payload) for one in here.frames()[1:]]
            firsts = [one.page(0) for one in commits if one.pgnos[0] == 1]
            assert firsts
            assert {bytes(page[18:20]) for page in firsts} == {b"\x02\x02"}
        assert READ_ONLY in answer(path)


async def test_lock_again_takes_the_mark_away(tmp_path: Path, socket: Path) -> None:
    """At the next start, before the fence opens."""
    path = tmp_path / "app.db"
    async with alone(tmp_path, socket, fence=Fence.READONLY) as here:
        await here.writable()
        assert await told_created(path) == ""
        await here.captured()
    assert READ_ONLY in answer(path)
    async with alone(tmp_path, socket) as here:
        await here.writable()
        assert await told(path) == ""
    assert answer(path) == ""


async def told_created(path: Path) -> str:
    return await trio.to_thread.run_sync(answer, path, "CREATE TABLE t (v)")


class Deposable(Term):
    """A term whose node is told that it does not lead."""

    is_deposed = False

    @property
    def leads(self) -> bool:
        return super().leads and not self.is_deposed

    def writable_until(self) -> Instant:
        return NEVER if self.is_deposed else super().writable_until()

    def depose(self, *, is_deposed: bool = True) -> None:
        self.is_deposed = is_deposed
        if is_deposed:
            self.close_fence()
        self.rouse()


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_GRACE_S", "_PATIENCE_S", "_PAUSE_S"):
        monkeypatch.setattr(marking, name, 0.02)


@pytest.mark.usefixtures("_hasty")
async def test_who_loses_the_lead_marks_the_file(tmp_path: Path, socket: Path) -> None:
    """And clears it when it leads again; connections that met the mark have to be opened anew."""
    path = tmp_path / "app.db"
    fence = Fence.READONLY
    async with alone(tmp_path, socket, kind=Deposable, fence=fence) as here:
        term = here.term
        assert isinstance(term, Deposable)
        await here.writable()
        with Application(path) as app:
            await in_thread(app, "CREATE TABLE t (v)", "INSERT INTO t VALUES (1)")
            await here.captured()
            for count in range(2, 4):
                writer = term.writer
                term.depose()
                await eventually(lambda: here.file.is_read_only)
                assert term.writer is None
                assert term.marking.retired is writer
                assert READ_ONLY in await told(path)
                term.depose(is_deposed=False)
                await here.writable()
                assert not here.file.is_read_only
                assert await told(path) == ""
                seq = await here.captured()
                assert seq == here.record().tip.seq
                assert await trio.to_thread.run_sync(app.sql, "SELECT count(*) FROM t") == [[count]]
        assert term.unfinal().commits == 0
        # Each commit has one number, and no mark has any.
        assert here.record().local_last == 4


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("is_closed", [False, True])
async def test_commits_that_cannot_be_sealed_do_not_keep_the_mark_away(
    tmp_path: Path, socket: Path, *, is_closed: bool
) -> None:
    """They are in the log in front of it, and are found there, or by pages, by whoever goes on."""
    path = tmp_path / "app.db"
    fence = Fence.READONLY
    async with alone(tmp_path, socket, kind=Deposable, fence=fence, is_killed=True) as here:
        term = here.term
        assert isinstance(term, Deposable)
        await here.writable()
        with Application(path) as app:
            await in_thread(app, "CREATE TABLE t (v)", "INSERT INTO t VALUES (1)")
            await here.captured()
            assert term.writer is not None
            term.writer._is_finishing = True  # nothing is sealed any more
            await in_thread(app, "INSERT INTO t VALUES (2)")
            term.depose()
            await eventually(lambda: here.file.is_read_only)
            assert term.writer is not None
            assert READ_ONLY in await told(path)
            last = here.record().local_last
            if not is_closed:
                app.kill()
    if is_closed:
        assert READ_ONLY in answer(path)
    async with alone(tmp_path, socket, fence=fence) as here:
        await here.writable()
        assert not here.file.is_read_only
        with Application(path) as app:
            rows = await trio.to_thread.run_sync(app.sql, "SELECT v FROM t")
            assert rows == [[1], [2]]
        # In the log the mark counts as one commit, which changes nothing.
        wanted = last + (0 if is_closed else 2)
        await eventually(lambda: here.record().local_last == wanted)
        assert not here.node.journalist.journal.orphans(SHARD)


@pytest.mark.usefixtures("_hasty")
async def test_an_orphan_of_a_deposed_writer_leaves_a_marked_file(
    tmp_path: Path, socket: Path
) -> None:
    """The bundle has what was lost; the file is mended, and marked."""
    path = tmp_path / "app.db"
    async with alone(tmp_path, socket, kind=Deposable, fence=Fence.READONLY) as here:
        term = here.term
        assert isinstance(term, Deposable)
        await here.writable()
        with Application(path) as app:
            await in_thread(app, "CREATE TABLE t (v)", "INSERT INTO t VALUES (1)")
            seq = await here.captured()
            assert term.writer is not None
            term.writer._is_finishing = True  # nothing is sealed any more
            await in_thread(app, "INSERT INTO t VALUES (2)")
            assert await term.writer.follower.look()
            term.depose()
            await term.orphan(Orphan(heads=(), kept_height=Seq(seq), certificate=None))
            await eventually(lambda: here.file.is_read_only and term.settler.is_caught_up)
            assert READ_ONLY in await told(path)
            assert await trio.to_thread.run_sync(app.sql, "SELECT v FROM t") == [[1]]
            (row,) = here.node.journalist.journal.orphans(SHARD)
            assert row.commits >= 1
            term.depose(is_deposed=False)
            await here.writable()
            assert not here.file.is_read_only


async def test_what_was_marked_and_is_closed_by_its_readers_is_known_again(
    tmp_path: Path, socket: Path
) -> None:
    """The log is gone, and its pages tell: the mark is no difference."""
    path = tmp_path / "app.db"
    async with alone(tmp_path, socket, fence=Fence.READONLY) as here:
        await here.writable()
        assert await told_created(path) == ""
        await here.captured()
    assert READ_ONLY in answer(path)
    assert not Path(f"{path}-wal").exists()
    async with alone(tmp_path, socket, fence=Fence.READONLY) as here:
        await here.writable()
        assert await told(path) == ""
        await here.captured()
        assert not here.node.journalist.journal.orphans(SHARD)
        assert here.term.repair.rounds == 0


def test_frames_never_carry_the_mark(path: Path) -> None:
    """Not even if somebody else marks a file while its commits are captured."""
    with Application(path) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (v)")
    page = bytearray(path.read_bytes()[:4096])
    page[18] = 3
    item = Captured(
        page_size=4096,
        db_pages=2,
        commits=1,
        pgnos=np.array([1, 2], np.uint32),
        pages=memoryview(bytes(page) + bytes(4096)),
        flags=CaptureFlag.NONE,
        cursor=cursor_of_nothing(),
        captured_ns=0,
    )
    pages = framer.payload_of(item).pages
    assert bytes(pages[18:20]) == b"\x02\x02"
    assert len(pages) == 8192


def cursor_of_nothing() -> Cursor:
    return Cursor(
        device=0, inode=0, page_size=4096, salts=bytes(8), frame=0, checksum=(0, 0), change=0
    )


async def test_a_node_alone_takes_the_mark_away(path: Path, tmp_path: Path) -> None:
    """What a cluster has left is captured and written to again."""
    with Application(path) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (v)")
    for count in range(1, 3):
        set_mark(path)
        async with (
            running_node(tmp_path, shards=f"app={path}") as node,
            trio.open_nursery() as nursery,
        ):
            shard = Shard(node=node, shard=ShardId("app"), path=path)
            nursery.start_soon(shard.run)
            with trio.fail_after(30):
                await shard.progress.wait_until(lambda: shard.state is ShardState.CAPTURING)  # noqa: B023
                before = shard.progress.final_seq
                assert await told(path) == ""
                await shard.progress.wait_until(lambda: shard.progress.final_seq > before)  # noqa: B023
                shard.stop()
                await shard.ended.wait()
            assert shard.regressed == 0
        with Application(path) as app:
            assert app.sql("SELECT count(*) FROM t") == [[count]]
