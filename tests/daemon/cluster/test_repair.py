"""The file is brought to a final state, wherever its pages are, while that state moves on."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from basenet.daemon.cluster import repair as repairing
from basenet.daemon.cluster.file import MendResult, PageSources, Target
from basenet.daemon.cluster.repair import Repair, newest_frames
from basenet.engine.adoption import NOWHERE
from basenet.errors import UnavailableError
from basenet.journal.journal import Journal
from basenet.journal.records import Settled
from basenet.units import Seq
from basenet.wire.merkle import leaf_hash
from tests.daemon.cluster.lines import PAGE_SIZE, Bench, a_line, at_bench
from tests.daemon.cluster.nodes import eventually
from tests.daemon.cluster.test_settling import settle
from tests.fakes.branching import SHARD
from tests.sqlite.application import Application

Wants = Sequence[tuple[int, bytes]]
Answer = Callable[[Wants], Awaitable[Mapping[int, bytes]]]
BLOB = "INSERT INTO t (v) VALUES (randomblob(20000))"


class Mended:
    """A bench whose file is at no frame, and a repair that asks ``answer``."""

    def __init__(self, bench: Bench, nursery: trio.Nursery) -> None:
        self.bench = bench
        self.line = bench.line
        self.asked: list[int] = []
        self.answer: Answer = self.have
        self.repair = Repair(
            node=bench.node,
            shard=SHARD,
            file=bench.file,
            branch=bench.branch,
            settler=bench.settler,
            fetch=self._fetch,
        )
        bench.settler.hold_back()
        bench.settler.moved_to(NOWHERE)
        nursery.start_soon(bench.settler.run)

    async def _fetch(self, wants: Wants, page_size: int) -> Mapping[int, bytes]:
        assert page_size == PAGE_SIZE
        self.asked += [pgno for pgno, _ in wants]
        return await self.answer(wants)

    async def have(self, wants: Wants) -> Mapping[int, bytes]:
        """Answer as a peer that is at the end of the line: older pages it has no more."""
        await trio.lowlevel.checkpoint()
        pages = self.line.chain.pages
        hashes = {pgno: leaf_hash(pgno, page) for pgno, page in pages.items()}
        return {pgno: pages[pgno] for pgno, wanted in wants if hashes.get(pgno) == wanted}

    async def settle(self, *statements: str) -> int:
        """Let a commit become final while the file is mended; return its seq."""
        effect = self.line.keep(self.bench.journal, self.line.commit(*statements))
        self.bench.settler.put(effect)
        with trio.fail_after(20):
            await self.bench.settler.reached(effect.heads[-1].seq)
        return effect.heads[-1].seq

    async def mend(self, pgnos: set[int] | None = None) -> None:
        """Mend and catch up, as a term does."""
        with trio.fail_after(30):
            await self.repair.run(pgnos)
            record = self.bench.now()
            assert record.place == self.bench.settler.place
            assert record.cursor == (await self.bench.file.cursor()).encode()
            await self.bench.settler.catch_up()

    def forget_frames(self) -> None:
        """Let the log of the journal be empty."""
        self.bench.journal.set_archived(SHARD, self.bench.settler.settled[0], keep_bytes=0)


@asynccontextmanager
async def mended(folder: Path, *, commits: int = 3) -> AsyncIterator[Mended]:
    """An empty file, and a final state of so many commits behind the tables."""
    async with a_line(folder) as line, at_bench(folder, line) as bench:
        for rows in (line.create(), *(line.commit(BLOB) for _ in range(commits))):
            bench.settler.hold_back()
            await settle(bench, line.keep(bench.journal, rows))
        async with trio.open_nursery() as nursery:
            yield Mended(bench, nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "_PAUSE_S", 0.001)
    monkeypatch.setattr(repairing, "_SCHEMA_LOOK_S", 0.001)


async def test_what_the_journal_has_is_asked_of_nobody(tmp_path: Path) -> None:
    """All pages come from frames, and the journal says where the file stands."""
    async with mended(tmp_path) as here:
        await here.mend()
        assert here.asked == []
        assert here.repair.rounds == 1
        assert await here.bench.holds()
        assert here.bench.settler.is_caught_up
        record = here.bench.now()
        assert record.place == (record.tip.seq, record.tip.hash)
        assert record.cursor is not None


async def test_what_the_journal_has_not_comes_from_peers(tmp_path: Path) -> None:
    """Every page by number and leaf hash, each asked for once."""
    async with mended(tmp_path) as here:
        here.forget_frames()
        await here.mend()
        assert len(here.asked) == len(set(here.asked))
        assert set(here.asked) >= set(range(2, here.line.chain.db_pages + 1))
        assert await here.bench.holds()
        assert here.repair.problem is None


async def test_what_lies_in_the_file_already_is_asked_of_nobody(tmp_path: Path) -> None:
    """A second mending of the same state writes nothing."""
    async with mended(tmp_path) as here:
        await here.mend()
        here.forget_frames()
        here.bench.settler.hold_back()
        here.bench.settler.moved_to(NOWHERE)
        await here.mend()
        assert here.asked == []
        assert await here.bench.holds()


async def test_a_target_that_moves_while_pages_are_fetched_is_followed(tmp_path: Path) -> None:
    """The peer has gone on and lacks the old pages: the next round aims at the newer state."""
    async with mended(tmp_path) as here:
        here.forget_frames()
        seqs: list[int] = []

        async def go_on(wants: Wants) -> Mapping[int, bytes]:
            if not seqs:
                seqs.append(await here.settle("UPDATE t SET v = randomblob(20000)"))
            return await here.have(wants)

        here.answer = go_on
        with trio.fail_after(30):
            await here.repair.run(None)
        assert here.repair.rounds == 2
        assert here.bench.settler.place[0] == seqs[0]
        assert here.repair.problem is None
        await here.bench.settler.catch_up()
        assert await here.bench.holds()


async def test_what_becomes_final_meanwhile_is_applied_afterwards(tmp_path: Path) -> None:
    """The round that has all its pages ends at its own target; the rest is caught up."""
    async with mended(tmp_path) as here:
        here.forget_frames()
        before, seqs = here.bench.settler.settled[0], list[int]()

        async def late(wants: Wants) -> Mapping[int, bytes]:
            found = await here.have(wants)
            seqs.append(await here.settle(BLOB))
            return found

        here.answer = late
        with trio.fail_after(30):
            await here.repair.run(None)
        assert here.repair.rounds == 1
        assert here.bench.settler.place[0] == before < seqs[-1]
        await here.bench.settler.catch_up()
        assert here.bench.settler.place[0] == seqs[-1]
        assert await here.bench.holds()


async def test_a_page_that_every_commit_changes_is_had_from_our_own_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a steady load the newest frame is always on its way there, and every peer is ahead."""
    async with mended(tmp_path) as here:
        here.forget_frames()
        bench, is_awaited = here.bench, trio.Event()
        settle_in_journal, reached = bench.node.journalist.settle, bench.settler.reached

        async def settle_late(settled: Settled, patience_s: float) -> None:
            await is_awaited.wait()
            await settle_in_journal(settled, patience_s)

        async def wait(seq: int) -> None:
            is_awaited.set()
            await reached(seq)

        async def ahead(wants: Wants) -> Mapping[int, bytes]:
            is_awaited.set()
            return await here.have(wants)

        monkeypatch.setattr(bench.node.journalist, "settle", settle_late)
        monkeypatch.setattr(bench.settler, "reached", wait)
        here.answer = ahead
        effect = here.line.keep(bench.journal, here.line.commit("INSERT INTO t (v) VALUES (1)"))
        here.line.commit("INSERT INTO t (v) VALUES (2)")  # as only the peer has it
        bench.settler.put(effect)
        await eventually(lambda: bench.branch.final_place[0] == effect.heads[-1].seq)
        with trio.fail_after(30):
            await here.repair.run(None)
        assert here.repair.rounds == 1
        assert bench.settler.place[0] == effect.heads[-1].seq


async def test_only_what_may_differ_is_looked_at(tmp_path: Path) -> None:
    """The pages that were undone, and those that changed since; what else is there is believed."""
    async with mended(tmp_path) as here:
        await here.mend()
        db_pages = here.line.chain.db_pages
        assert db_pages > 16  # of two groups
        here.bench.settler.hold_back()
        here.bench.settler.moved_to(NOWHERE)
        here.forget_frames()
        looked_at: list[Sequence[int] | None] = []
        real = here.bench.file.mend

        async def mend(target: Target, sources: PageSources) -> MendResult:
            looked_at.append(None if target.pgnos is None else list(target.pgnos))
            return await real(target, sources)

        here.bench.file.mend = mend  # type: ignore[method-assign]
        await here.mend({2, 3, db_pages + 5})
        here.bench.settler.hold_back()
        here.bench.settler.moved_to(NOWHERE)
        await here.settle("UPDATE u SET x = 1")
        here.bench.settler.changed_groups = {0}
        await here.mend({db_pages})
        assert looked_at == [[2, 3], [*range(1, 17), db_pages]]
        assert await here.bench.holds()


async def test_it_is_tried_again_ever_more_seldom_and_the_problem_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as long each time, up to 5 s, and no problem is left in the end."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        assert here.repair.problem == "nobody is there"
        pauses.append(seconds)

    monkeypatch.setattr(repairing, "_PAUSE_S", 0.2)
    monkeypatch.setattr(
        repairing, "trio", SimpleNamespace(sleep=sleep, to_thread=trio.to_thread), raising=True
    )
    async with mended(tmp_path) as here:
        here.forget_frames()

        async def nobody(wants: Wants) -> Mapping[int, bytes]:
            if len(pauses) < 7:
                raise UnavailableError("nobody is there")
            return await here.have(wants)

        here.answer = nobody
        await here.mend()
        assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        assert here.repair.rounds == 8
        assert here.repair.problem is None
        assert await here.bench.holds()


async def test_pages_of_a_failed_round_are_not_asked_for_again(tmp_path: Path) -> None:
    """Half of them came; the next round asks for the other half."""
    async with mended(tmp_path) as here:
        here.forget_frames()

        async def half(wants: Wants) -> Mapping[int, bytes]:
            found = await here.have(wants)
            if here.repair.rounds > 1:
                return found
            return {pgno: page for pgno, page in found.items() if pgno % 2}

        here.answer = half
        await here.mend()
        assert here.repair.rounds == 2
        assert all(pgno % 2 == 0 or here.asked.count(pgno) == 1 for pgno in here.asked)
        assert await here.bench.holds()


async def test_a_connection_that_knew_the_undone_schema_is_waited_for(tmp_path: Path) -> None:
    """P6: the file is at no frame until the application has closed it, and it is said why."""
    async with mended(tmp_path) as here:
        await here.mend()
        bench, path = here.bench, here.bench.file.path
        with Application(path) as application:
            await trio.to_thread.run_sync(
                application.sql, "CREATE TABLE undone (x)", "INSERT INTO undone VALUES (1)"
            )
            bench.settler.hold_back()
            bench.settler.moved_to(NOWHERE)
            await here.repair._node.journalist.perform(
                lambda journal: journal.set_place(
                    SHARD, NOWHERE, cursor=None, local_last=None, intent=None
                )
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.mend)
                await eventually(lambda: here.repair.problem is not None)
                assert "restart the application" in str(here.repair.problem)
                assert bench.now().place == NOWHERE
                await trio.to_thread.run_sync(application.close)
        assert here.repair.problem is None
        assert bench.now().place == bench.settler.place == bench.branch.final_place
        assert await bench.holds()


async def test_frames_are_read_from_the_newest_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last one that is asked for, in pieces, and no more than are worth it."""

    def seqs(journal: Journal, last: int, since: int = 72) -> list[Seq]:
        return [frame.head.seq for frame in newest_frames(journal, SHARD, last, since=since)]

    async with mended(tmp_path, commits=70) as here:
        journal = here.bench.journal
        assert seqs(journal, 72) == list(range(72, 0, -1))
        assert seqs(journal, 65) == list(range(65, 0, -1))
        monkeypatch.setattr(repairing, "_FRAMES_BYTES_MAX", 1)
        assert seqs(journal, 72) == list(range(72, 8, -1))
        assert seqs(journal, 72, since=8) == list(range(72, 8, -1))
        assert seqs(journal, 72, since=7) == list(range(72, 0, -1))
        monkeypatch.undo()
        journal.set_archived(SHARD, 70, keep_bytes=0)
        assert seqs(journal, 72) == [72, 71]
        assert seqs(journal, 70) == []
