"""Captured commits in, final frames out: what is durable when, and what is merged."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.daemon.journalist import Journalist
from basenet.daemon.pump import MERGED_BYTES_MAX, FinalFrame, Pump, coalesce, is_in_rush
from basenet.errors import ChainBroken, UnavailableError
from basenet.journal.journal import Journal
from basenet.sqlite.captured import CaptureFlag
from tests.daemon.model import SHARD, Model, born, frames_of, loaded

WAIT_S = 10


@dataclass
class Bench:
    """A pump over a real journal, and what it told in which order."""

    journal: Journal
    model: Model
    pump: Pump = field(init=False)
    told: list[str] = field(default_factory=list)
    final: list[FinalFrame] = field(default_factory=list)
    stored_when_final: list[int] = field(default_factory=list)

    def sync(self) -> None:
        self.told.append("sync")

    def on_final(self, frames: Sequence[FinalFrame]) -> None:
        self.told.append("final")
        self.final += frames
        self.stored_when_final.append(self.journal.frame_sizes(SHARD, 0)[-1][0])

    async def drained(self) -> bool:
        with trio.fail_after(WAIT_S):
            return await self.pump.drained()


@asynccontextmanager
async def pumping(folder: Path, *, starts: bool = True) -> AsyncIterator[Bench]:
    """Run a pump and its journalist for the body; ``starts`` False: the body starts the pump."""
    model = Model()
    journal = born(folder, model)
    bench = Bench(journal, model)
    journalist = Journalist(journal)
    bench.pump = Pump(
        framer=loaded(journal)[1],
        journalist=journalist,
        sync_wal=bench.sync,
        on_final=bench.on_final,
        limiter=trio.CapacityLimiter(1),
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journalist.run)
            if starts:
                nursery.start_soon(bench.pump.run)
            yield bench
            nursery.cancel_scope.cancel()
    finally:
        journal.close()


# The order of acts


async def test_a_frame_is_durable_before_it_is_final(tmp_path: Path) -> None:
    """Sync of the log, then the journal, and only then does anybody hear of it."""
    async with pumping(tmp_path) as bench:
        for _ in range(3):
            bench.pump.waiting.put([bench.model.commit()])
            assert await bench.drained()
        assert bench.told == ["sync", "final"] * 3
        assert [frame.head.seq for frame in bench.final] == [2, 3, 4]
        assert bench.stored_when_final == [2, 3, 4]
        assert (bench.pump.submitted, bench.pump.finalized) == (3, 3)


async def test_what_is_final_is_what_the_journal_holds(tmp_path: Path) -> None:
    """Byte for byte, so that the archive needs no second read."""
    async with pumping(tmp_path) as bench:
        bench.pump.waiting.put([bench.model.commit(), bench.model.commit(21)])
        assert await bench.drained()
        rows = bench.journal.frames(SHARD, 2, 3, 1 << 20)
        assert [frame.record for frame in bench.final] == [record for _, record in rows]
        assert [frame.size for frame in bench.final] == [len(record) for _, record in rows]
        assert [frame.local_last for frame in bench.final] == [1, 2]


async def test_nothing_of_a_run_is_final_before_its_end(tmp_path: Path) -> None:
    """Its pieces are durable one by one, and told together; their bytes stay in the journal."""
    async with pumping(tmp_path) as bench:
        pieces = bench.model.three_pieces()
        for number, piece in enumerate(pieces[:2], start=2):
            bench.pump.waiting.put([piece])
            assert await bench.drained()
            assert bench.journal.frame_sizes(SHARD, 0)[-1][0] == number
            assert bench.final == []
        bench.pump.waiting.put(pieces[2:])
        assert await bench.drained()
        assert [frame.head.seq for frame in bench.final] == [2, 3, 4]
        assert [frame.record is None for frame in bench.final] == [True, True, False]
        assert bench.told.count("final") == 1


async def test_who_reads_along_is_told_of_every_page(tmp_path: Path) -> None:
    """A snapshot in the making hears which pages changed, before they are framed."""
    async with pumping(tmp_path) as bench:
        seen: list[tuple[list[int], int, int]] = []
        bench.pump.on_captured = lambda pgnos, db_pages, page_size: seen.append(
            (pgnos.tolist(), db_pages, page_size)
        )
        bench.pump.waiting.put([bench.model.commit(1, 4), bench.model.commit(21)])
        assert await bench.drained()
        assert seen == [([1, 4], 20, 512), ([21], 21, 512)]


async def test_the_chain_stands_still_while_its_lock_is_held(tmp_path: Path) -> None:
    """Whoever needs one state of tree and tip takes the lock; the commit follows after."""
    async with pumping(tmp_path) as bench:
        async with bench.pump.chain_lock:
            bench.pump.waiting.put([bench.model.commit()])
            await wait_all_tasks_blocked()
            assert bench.pump.framer.tip.seq == 1
        assert await bench.drained()
        assert bench.pump.framer.tip.seq == 2


# How many frames


async def test_an_ordinary_application_gets_a_frame_per_commit(tmp_path: Path) -> None:
    """Up to 64 that wait are not merged: each is a restore point."""
    async with pumping(tmp_path, starts=False) as bench, trio.open_nursery() as nursery:
        bench.pump.waiting.put([bench.model.commit() for _ in range(64)])
        nursery.start_soon(bench.pump.run)
        assert await bench.drained()
        assert len(bench.final) == 64
        assert bench.told == ["sync", "final"]
        nursery.cancel_scope.cancel()


async def test_a_backlog_becomes_one_frame_and_loses_no_commit(tmp_path: Path) -> None:
    """The last image of each page is in it, the state root is right and commits add up."""
    async with pumping(tmp_path, starts=False) as bench, trio.open_nursery() as nursery:
        bench.pump.waiting.put([bench.model.commit(number % 7 + 1) for number in range(65)])
        nursery.start_soon(bench.pump.run)
        assert await bench.drained()
        (frame,) = bench.final
        assert frame.local_last == 65
        assert frame.head.state_root == bench.model.root
        assert frames_of(bench.journal)[-1].head == frame.head
        nursery.cancel_scope.cancel()


def test_a_rush_is_many_commits_in_a_short_time() -> None:
    """64 commits are never one, and 65 are one within 13 ms."""
    model = Model()
    items = [model.commit() for _ in range(65)]
    assert not is_in_rush(items[:64], 0.0)
    assert is_in_rush(items, 0.012)
    assert not is_in_rush(items, 0.013)


def test_neighbours_are_merged_and_flagged_changes_stay() -> None:
    """A RECOVERED change says something of its own, so it ends the merging on both sides."""
    model = Model()
    before = [model.commit(1), model.commit(2)]
    recovered = model.commit(3, flags=CaptureFlag.RECOVERED)
    after = [model.commit(2), model.commit(2)]
    out = coalesce([*before, recovered, *after], is_run_open=False)
    assert [item.commits for item in out] == [2, 0, 2]
    assert out[1] is recovered
    assert [item.pgnos.tolist() for item in out] == [[1, 2], [3], [2]]
    assert bytes(out[2].pages) == model.pages[2]


def test_a_run_is_never_merged() -> None:
    """Neither its pieces nor its end, not even if its beginning was taken before."""
    model = Model()
    run = model.three_pieces()
    plain = [model.commit(), model.commit()]
    out = coalesce([*run, *plain], is_run_open=False)
    assert list(out[:3]) == run
    assert [item.commits for item in out] == [0, 0, 1, 2]
    out = coalesce([*run[1:], *plain], is_run_open=True)
    assert list(out[:2]) == run[1:]
    assert len(coalesce([run[2], *plain], is_run_open=True)) == 2


def test_what_is_merged_fits_a_frame() -> None:
    """At most 1 MiB raw, and none is lost at the seams; a larger commit stays by itself."""
    model = Model(0, page_size=65536)
    items = [model.commit(*range(1, 3 + number % 4 * 5)) for number in range(12)]
    large = max(item.raw_bytes for item in items)
    out = coalesce(items, is_run_open=False)
    assert 1 < len(out) < len(items)
    assert large > MERGED_BYTES_MAX
    assert all(item.raw_bytes <= MERGED_BYTES_MAX or item.raw_bytes == large for item in out)
    assert sum(item.commits for item in out) == 12
    assert out[-1].cursor == items[-1].cursor


# Room, rest and end


async def test_drained_waits_for_all_that_was_captured_before(tmp_path: Path) -> None:
    """Not for what comes later, and not at all if nothing waits."""
    async with pumping(tmp_path, starts=False) as bench, trio.open_nursery() as nursery:
        assert await bench.drained()
        bench.pump.waiting.put([bench.model.commit(), bench.model.commit()])
        is_drained = trio.Event()

        async def wait() -> None:
            assert await bench.drained()
            is_drained.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not is_drained.is_set()
        nursery.start_soon(bench.pump.run)
        with trio.fail_after(WAIT_S):
            await is_drained.wait()
        assert bench.pump.finalized == 2
        nursery.cancel_scope.cancel()


async def test_room_comes_when_the_pump_has_taken(tmp_path: Path) -> None:
    """Until then a full queue holds capture back."""
    async with pumping(tmp_path, starts=False) as bench, trio.open_nursery() as nursery:
        model = Model(0, page_size=65536)
        with trio.fail_after(WAIT_S):
            await bench.pump.room()
        while bench.pump.waiting.put([model.commit(*range(1, 65))]):
            pass
        came = trio.Event()

        async def wait() -> None:
            await bench.pump.room()
            came.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not came.is_set()
        nursery.start_soon(bench.pump.run)
        with trio.fail_after(WAIT_S):
            await came.wait()
        nursery.cancel_scope.cancel()


async def test_a_pump_that_ends_tells_those_who_wait(tmp_path: Path) -> None:
    """`drained` says that the commits are not final: the next session captures them again."""
    with pytest.RaisesGroup(ChainBroken, flatten_subgroups=True):
        async with pumping(tmp_path, starts=False) as bench, trio.open_nursery() as nursery:
            answers: list[bool] = []

            async def wait() -> None:
                with trio.CancelScope(shield=True):
                    answers.append(await bench.drained())

            bench.pump.waiting.put([Model().commit(30)])
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            nursery.start_soon(bench.pump.run)
    assert answers == [False]
    assert bench.final == []
    assert not await bench.drained()


async def test_a_pump_that_ended_finishes_nothing_more(tmp_path: Path) -> None:
    """What waits is not finished, and no thread is left waiting for room: puts are refused."""
    async with pumping(tmp_path, starts=False) as bench:
        bench.pump.waiting.put([bench.model.commit()])
        with trio.move_on_after(0):
            await bench.pump.run()
        assert not await bench.drained()
        with pytest.raises(UnavailableError):
            bench.pump.waiting.put([bench.model.commit()])
