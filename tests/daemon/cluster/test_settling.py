"""What is final goes into the log and into the file, and a crash anywhere is made good."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from basenet.daemon.cluster import rhythm, settling
from basenet.daemon.cluster.placing import unsettled_of
from basenet.daemon.cluster.settling import changes_of, read_whole
from basenet.engine.adoption import NOWHERE
from basenet.engine.effects import Finalize
from basenet.journal.records import BranchRow, Settled
from basenet.units import Seq
from basenet.wire.frame import Kind
from tests.daemon.cluster.lines import Bench, Line, a_line, at_bench, finalize
from tests.daemon.cluster.nodes import eventually
from tests.fakes.branching import SHARD


class Crash(Exception):  # noqa: N818
    """The process ends here."""


async def settle(bench: Bench, *effects: Finalize) -> None:
    """Settle ``effects``, and rest."""
    async with trio.open_nursery() as nursery:
        for effect in effects:
            bench.settler.put(effect)
        nursery.start_soon(bench.settler.run)
        await bench.settler.drained()
        nursery.cancel_scope.cancel()


async def test_frames_of_others_are_settled_and_applied(tmp_path: Path) -> None:
    """In the log, in the file, told to the shard with its certificate; the branch is empty."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        for commit in (line.create, line.commit, lambda: line.commit(pieces=2)):
            rows = commit()
            await settle(bench, line.keep(bench.journal, rows))
            assert await bench.holds()
            assert bench.settler.is_caught_up
            assert bench.applied[-1] == rows[-1].head.seq
        assert bench.now().heads == ()
        assert bench.now().tip == line.chain.tip.head
        assert bytes(bench.journal.leaves(SHARD)) == line.leaves()
        told = [frame for frames in bench.settled for frame in frames]
        assert [frame.head.seq for frame in told] == [2, 3, 4, 5]
        assert [frame.record is None for frame in told] == [False, False, True, False]
        assert bench.settler.final is not None
        assert bench.settler.final.certificate is not None


async def test_own_frames_are_only_settled(tmp_path: Path) -> None:
    """The file holds them, and may hold more: its place never goes back."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        first, second = line.create(), line.commit()
        line.keep(bench.journal, first)
        line.keep(bench.journal, second)
        place = (second[0].head.seq, second[0].head.hash)
        bench.settler.moved_to(place)
        await settle(bench, finalize(first, is_own=True))
        assert bench.settler.place == place
        assert bench.settler.settled == (first[0].head.seq, first[0].head.hash)
        assert bench.settler.applied_frames == 0
        await settle(bench, finalize(second))  # as others tell it, which is the same
        assert bench.settler.place == place
        assert bench.settler.applied_frames == 0


async def test_what_is_final_can_be_shown_while_it_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a steady load something is being settled all the time, and a learner has to join.

    A CONFIG alone is shown after the log has it, since the log is what proves its epoch.
    """
    shown: list[tuple[int | None, int]] = []
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        settle_in_journal = bench.node.journalist.settle

        async def look_and_settle(settled: Settled, patience_s: float) -> None:
            final = bench.settler.final
            shown.append((final and final.head.seq, settled.heads[-1].seq))
            if final is not None:
                assert final.certificate is not None
                assert (final.certificate.hash, final.tree.root()) == (
                    final.head.hash,
                    final.head.state_root,
                )
            await settle_in_journal(settled, patience_s)

        monkeypatch.setattr(bench.node.journalist, "settle", look_and_settle)
        await settle(bench, line.keep(bench.journal, line.create()))
        await settle(bench, line.keep(bench.journal, line.branching.new_config()))
        assert bench.settler.final is not None
        assert bench.settler.final.head.kind is Kind.CONFIG
        await settle(bench, line.keep(bench.journal, line.commit()))
    assert shown == [(2, 2), (None, 3), (4, 4)]


async def test_who_tells_history_waits_for_what_is_being_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for nothing that is not even put."""
    entered, go_on, told = trio.Event(), trio.Event(), trio.Event()
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        settler, settle_in_journal = bench.settler, bench.node.journalist.settle

        async def hesitate(settled: Settled, patience_s: float) -> None:
            entered.set()
            await go_on.wait()
            await settle_in_journal(settled, patience_s)

        async def tell() -> None:
            await settler.settled_up_to(2)
            assert settler.settled[0] == 2
            told.set()

        monkeypatch.setattr(bench.node.journalist, "settle", hesitate)
        with trio.fail_after(30):
            await settler.settled_up_to(99)
            async with trio.open_nursery() as nursery:
                settler.put(line.keep(bench.journal, line.create()))
                nursery.start_soon(settler.run)
                await entered.wait()
                nursery.start_soon(tell)
                await trio.lowlevel.checkpoint()
                assert not told.is_set()
                go_on.set()
                await told.wait()
                await settler.settled_up_to(99)
                nursery.cancel_scope.cancel()


async def test_a_batch_never_crosses_a_config(tmp_path: Path) -> None:
    """Each CONFIG ends one, since its certificate is kept; and so does a change of authors."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        effects = [line.keep(bench.journal, line.create())]
        config = line.branching.new_config()
        effects.append(line.keep(bench.journal, config))
        effects.append(line.keep(bench.journal, line.commit()))
        effects.append(line.keep(bench.journal, line.commit()))
        await settle(bench, *effects)
        assert [[one.head.seq for one in frames] for frames in bench.settled] == [[2, 3], [4, 5]]
        assert await bench.holds()
        assert bench.journal.certificate_for(SHARD, 2) is not None


async def test_what_is_held_back_is_caught_up_from_the_log(tmp_path: Path) -> None:
    """Whole runs at a time; which pages changed meanwhile is told to who mends."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        bench.settler.hold_back()
        effects = [line.keep(bench.journal, line.create())]
        effects += [line.keep(bench.journal, line.commit(pieces=3)) for _ in range(3)]
        await settle(bench, *effects)
        assert bench.settler.place[0] == 1
        assert bench.settler.changed_groups == {0}
        assert not bench.settler.is_caught_up
        frames = read_whole(bench.journal, SHARD, 2, 11, 1)
        assert [frame.head.seq for frame in frames] == [2]
        assert [one.head.seq for one in read_whole(bench.journal, SHARD, 3, 11, 1)] == [3, 4, 5]
        await bench.settler.catch_up()
        assert await bench.holds()
        assert bench.settler.is_caught_up
        assert bench.now().place == bench.settler.place


async def test_settling_goes_on_while_somebody_mends(tmp_path: Path) -> None:
    """Who fetches pages for long holds the file, not the log; applying begins without a gap."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        bench.settler.hold_back()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.settler.run)
            async with bench.settler.file_lock:
                bench.settler.put(line.keep(bench.journal, line.create()))
                with trio.fail_after(10):
                    await bench.settler.reached(2)
            nursery.start_soon(bench.settler.catch_up)
            for _ in range(5):
                bench.settler.put(line.keep(bench.journal, line.commit()))
                await trio.lowlevel.checkpoint()
            with trio.fail_after(10):
                await bench.settler.reached(7)
                await bench.settler.drained()
                await eventually(lambda: bench.settler.is_caught_up)
            assert await bench.holds()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def steady(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, most: int = 100
) -> AsyncIterator[list[int]]:
    """Whenever something is about to be settled, the next commit is final, ``most`` times.

    So the settler never rests meanwhile; yields the seqs that were put.
    """
    line, put = bench.line, list[int]()
    settle_in_journal = bench.node.journalist.settle

    def put_next() -> None:
        if len(put) < most:
            effect = line.keep(bench.journal, line.commit("INSERT INTO t (v) VALUES (1)"))
            put.append(effect.heads[-1].seq)
            bench.settler.put(effect)

    async def go_on(settled: Settled, patience_s: float) -> None:
        put_next()
        await settle_in_journal(settled, patience_s)

    monkeypatch.setattr(bench.node.journalist, "settle", go_on)
    async with trio.open_nursery() as nursery:
        put_next()
        nursery.start_soon(bench.settler.run)
        with trio.fail_after(60):
            yield put
        nursery.cancel_scope.cancel()


async def test_catching_up_ends_though_something_is_settled_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that comes back while the writer goes on at full speed applies again as before."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        await settle(bench, line.keep(bench.journal, line.create()))
        bench.settler.hold_back()
        await settle(bench, *[line.keep(bench.journal, line.commit()) for _ in range(5)])
        async with steady(bench, monkeypatch) as put:
            await bench.settler.catch_up()
            assert bench.settler.is_file_ready
            assert len(put) < 50
            await eventually(lambda: bench.settler.place[0] == bench.settler.settled[0] == put[-1])
        assert len(put) == 100
        assert await bench.holds()


async def test_whoever_waits_for_what_was_put_waits_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a term would not end, or only after a time, while others write."""
    async with (
        a_line(tmp_path) as line,
        at_bench(tmp_path, line) as bench,
        steady(bench, monkeypatch) as put,
    ):
        seq = put[-1]
        await bench.settler.drained()
        assert bench.settler.settled[0] >= seq
        assert len(put) < 50


async def test_the_file_of_a_writer_is_caught_up_while_its_frames_are_settled(
    tmp_path: Path,
) -> None:
    """It holds them first; what others wrote it holds when it is applied, not before."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        rows = [line.create(), line.commit()]
        for one in rows:
            line.keep(bench.journal, one)
        bench.settler.moved_to((rows[0][0].head.seq, rows[0][0].head.hash))
        bench.settler.put(finalize(rows[0], is_own=True))
        assert bench.settler.is_caught_up
        bench.settler.put(finalize(rows[1]))
        assert not bench.settler.is_caught_up


async def test_peers_wait_while_too_much_is_not_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By bytes, or by count."""
    monkeypatch.setattr(settling, "_WAITING_MAX", 1)
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        for rows in (line.create(), line.commit(), line.commit()):
            bench.settler.put(line.keep(bench.journal, rows))
        with trio.move_on_after(0) as scope:
            await bench.settler.room()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.settler.run)
            with trio.fail_after(10):
                await bench.settler.room()
                await bench.settler.settled_up_to(4)
            nursery.cancel_scope.cancel()
        assert bench.settler.settled[0] == 4


def seqs_of(bench: Bench) -> list[list[int]]:
    """What was settled, batch by batch."""
    return [[one.head.seq for one in frames] for frames in bench.settled]


async def test_a_frame_without_pages_moves_the_place_alone(tmp_path: Path) -> None:
    """A CONFIG is applied by nothing being written; also from the log."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        await settle(bench, line.keep(bench.journal, line.create()))
        before = await bench.file.position()
        await settle(bench, line.keep(bench.journal, line.branching.new_config()))
        assert bench.settler.place[0] == 3
        bench.settler.hold_back()
        await settle(bench, line.keep(bench.journal, line.branching.new_config()))
        assert (bench.settler.place[0], bench.settler.applied_seq) == (3, 3)
        await bench.settler.catch_up()
        assert bench.now().place == bench.settler.place == bench.settler.settled
        assert bench.settler.place[0] == 4
        assert await bench.file.position() == before
        assert bench.settler.applied_frames == 1


async def test_what_the_file_holds_already_is_not_applied_again(tmp_path: Path) -> None:
    """Though others tell it: the place of a file that is ahead never goes back."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        rows = [line.create(), line.commit(), line.commit()]
        for one in rows:
            line.keep(bench.journal, one)
        place = (rows[2][0].head.seq, rows[2][0].head.hash)
        bench.settler.moved_to(place)
        await settle(bench, finalize(rows[0]), finalize(rows[1]))
        assert bench.settler.settled[0] == 3
        assert bench.settler.place == place
        assert bench.settler.applied_seq == 3
        assert bench.settler.applied_frames == 0


@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_while_it_catches_up_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """The intent tells whether the injection happened, here as well."""
    async with a_line(tmp_path) as line:
        async with at_bench(tmp_path, line) as bench:
            await settle(bench, line.keep(bench.journal, line.create()))
            await bench.settler._rest()
            bench.settler.hold_back()
            rows = line.commit()
            await settle(bench, line.keep(bench.journal, rows))
            crash_before(bench.file, "inject", monkeypatch, after=after)
            with pytest.raises(Crash):
                await bench.settler.catch_up()
        async with at_bench(tmp_path, line) as bench:
            assert bench.settler.place[0] == rows[-1].head.seq - (not after)
        await _recover(tmp_path, line, rows)


async def test_own_frames_and_those_of_others_share_no_batch(tmp_path: Path) -> None:
    """What is in the file already is not injected, and what is not is."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        rows = [line.create(), line.commit(), line.commit()]
        for one in rows:
            line.keep(bench.journal, one)
        prepared = await bench.file.prepare(changes_of([rows[0][0].record]))
        assert prepared is not None
        await bench.file.inject(prepared)
        bench.settler.moved_to((rows[0][0].head.seq, rows[0][0].head.hash))
        own = finalize(rows[0], is_own=True)
        await settle(bench, own, finalize(rows[1]), finalize(rows[2]))
        assert seqs_of(bench) == [[2], [3, 4]]
        assert bench.settler.applied_frames == 1
        assert await bench.holds()


async def test_in_a_stream_a_settle_shares_the_transaction_of_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of frames of others, too; the first batch waits for nobody."""
    monkeypatch.setattr(settling, "_REST_S", 600.0)
    monkeypatch.setattr(settling, "BEAT_S", 600.0)
    monkeypatch.setattr(rhythm, "BEAT_S", 600.0)
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        effects = [line.keep(bench.journal, rows) for rows in (line.create(), line.commit())]
        journalist = bench.node.journalist
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.settler.run)
            bench.settler.put(effects[0])
            with trio.fail_after(60):
                await bench.settler.drained()
            count = bench.journal.jcount
            bench.settler.put(effects[1])
            await eventually(lambda: len(journalist._requests) == 1)
            assert (bench.journal.jcount, bench.settler.settled[0]) == (count, 2)
            await journalist.keep(line.branching.step(line.commit()), None)
            with trio.fail_after(60):
                await bench.settler.drained()
            assert (bench.journal.jcount, bench.settler.settled[0]) == (count + 1, 3)
            nursery.cancel_scope.cancel()


async def test_a_batch_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By frames and by bytes; a large one is decoded in a thread."""
    monkeypatch.setattr(settling, "_INLINE_BYTES", 0)
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        monkeypatch.setattr(settling, "_BATCH_HEADS", 2)
        rows = [line.create(), *(line.commit() for _ in range(4))]
        await settle(bench, *[line.keep(bench.journal, one) for one in rows])
        assert seqs_of(bench) == [[2, 3], [4, 5], [6]]
        monkeypatch.setattr(settling, "_BATCH_BYTES", 1)
        await settle(bench, *[line.keep(bench.journal, line.commit()) for _ in range(2)])
        assert seqs_of(bench)[3:] == [[7], [8]]
        assert await bench.holds()


async def test_only_whole_transactions_are_read_from_the_log(tmp_path: Path) -> None:
    """Nothing of a run whose end is not asked for, and nothing above the end of the log."""
    async with a_line(tmp_path) as line, at_bench(tmp_path, line) as bench:
        bench.settler.hold_back()
        rows = [line.create(), line.commit(pieces=3)]
        await settle(bench, *[line.keep(bench.journal, one) for one in rows])

        def read(start: int, last: int) -> list[int]:
            return [one.head.seq for one in read_whole(bench.journal, SHARD, start, last, 2**20)]

        assert read(2, 5) == [2, 3, 4, 5]
        assert read(2, 4) == [2]
        assert read(3, 4) == []
        assert read(6, 9) == []


def crash_before(target: Any, name: str, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """Let an awaited step raise instead of beginning, or behind its end."""
    act: Callable[..., Awaitable[Any]] = getattr(target, name)

    async def crashing(*args: Any, **more: Any) -> Any:
        if after:
            await act(*args, **more)
        raise Crash(name)

    monkeypatch.setattr(target, name, crashing)


STEPS = [
    ("frames", "records"),
    ("file", "prepare"),
    ("journalist", "settle"),
    ("file", "inject"),
    ("file", "relieve"),
    ("journalist", "perform"),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("part", "name"), STEPS)
async def test_a_crash_at_any_step_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, name: str, *, after: bool
) -> None:
    """The journal tells where the file stands, and the rest is applied to that."""
    async with a_line(tmp_path) as line:
        async with at_bench(tmp_path, line) as bench:
            await settle(bench, line.keep(bench.journal, line.create()))
            await bench.settler._rest()
        rows = line.commit()
        async with at_bench(tmp_path, line) as bench:
            effect = line.keep(bench.journal, rows)
            target = {"frames": bench.frames, "file": bench.file}.get(part, bench.node.journalist)
            with monkeypatch.context() as patch:
                crash_before(target, name, patch, after=after)
                bench.settler.put(effect)
                if (part, name) == ("journalist", "perform"):
                    crash = bench.settler._rest  # comes when nothing has come for a while
                    await settle(bench)
                else:
                    crash = bench.settler.run
                with trio.fail_after(10), pytest.raises(Crash):
                    await crash()
        await _recover(tmp_path, line, rows)


async def _recover(folder: Path, line: Line, rows: list[BranchRow]) -> None:
    """Start again as a term does; the file ends at the final state."""
    async with at_bench(folder, line) as bench:
        assert bench.settler.place != NOWHERE
        unsettled = unsettled_of(bench.record)
        assert unsettled in ([], [row.head for row in rows])
        if unsettled:
            await settle(bench, finalize(rows))
        elif bench.settler.place[0] < bench.settler.settled[0]:
            bench.settler.hold_back()
            await bench.settler.catch_up()
        assert await bench.holds()
        assert bench.settler.place == (rows[-1].head.seq, rows[-1].head.hash)
        await settle(bench, line.keep(bench.journal, line.commit()))
        assert await bench.holds()
        assert bench.settler.settled[0] == Seq(rows[-1].head.seq + 1)
