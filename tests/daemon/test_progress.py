"""A shard's watermarks and who waits for them."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.daemon.marks import Mark
from basenet.daemon.progress import Progress, Watermark
from basenet.errors import UnavailableError
from basenet.units import LocalNumber, Seq, TimestampNs


def begun(seq: int, archived: int) -> Progress:
    progress = Progress()
    tip = Mark(seq=Seq(seq), size=0, local_last=LocalNumber(seq - 1), timestamp_ns=TimestampNs(seq))
    progress.begin(tip, Seq(archived))
    return progress


async def test_who_waits_goes_on_when_the_watermark_is_reached() -> None:
    """Not before, and every one of them."""
    progress, done = begun(5, 5), []

    async def wait(seq: int) -> None:
        await progress.wait_until(lambda: progress.final_seq >= seq)
        done.append(seq)

    async with trio.open_nursery() as nursery:
        for seq in (5, 6, 7):
            nursery.start_soon(wait, seq)
        await wait_all_tasks_blocked()
        assert done == [5]
        progress.set_final(Seq(6))
        await wait_all_tasks_blocked()
        assert done == [5, 6]
        progress.set_final(Seq(7))
    assert done == [5, 6, 7]


async def test_the_archive_wakes_too() -> None:
    """And its time of day stays when a later report has none."""
    progress = begun(5, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(progress.moved)
        await wait_all_tasks_blocked()
        progress.set_archived(Seq(5), 77)
    progress.set_archived(Seq(5), None)
    assert (progress.archived_seq, progress.archived_ns) == (5, 77)
    assert progress.marks.count_commits() == 0


async def test_a_wait_may_give_up_by_raising() -> None:
    """A change of state wakes it, and its own question says that it is hopeless."""
    progress = begun(1, 0)
    is_over: list[bool] = []

    def question() -> bool:
        if is_over:
            raise UnavailableError("it is over.")
        return False

    with pytest.RaisesGroup(UnavailableError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(progress.wait_until, question)
            await wait_all_tasks_blocked()
            is_over.append(True)
            progress.wake()


def test_it_begins_with_what_the_journal_holds() -> None:
    """Everything stored is final; what is not archived waits."""
    progress = begun(9, 4)
    assert (progress.final_seq, progress.archived_seq) == (9, 4)
    assert progress.marks.count_commits() == 1


class Waiter:
    """Waits for a seq to be final, and counts how often it was asked whether it is."""

    def __init__(self, progress: Progress, seq: int) -> None:
        self.progress = progress
        self.seq = Seq(seq)
        self.looks = 0
        self.is_done = False

    def look(self) -> bool:
        self.looks += 1
        return self.progress.final_seq >= self.seq

    async def run(self) -> None:
        await self.progress.wait_for(Watermark.FINAL, self.seq, self.look)
        self.is_done = True


async def test_a_commit_wakes_those_whose_goal_it_reaches() -> None:
    """Of a thousand who wait each looks twice: when it comes, and when its own seq is final."""
    progress = begun(0, 0)
    waiters = [Waiter(progress, 1 + number // 2) for number in range(1_000)]
    async with trio.open_nursery() as nursery:
        for waiter in waiters:
            nursery.start_soon(waiter.run)
        await wait_all_tasks_blocked()
        for seq in range(1, 501):
            progress.set_final(Seq(seq))
            progress.set_archived(Seq(seq), None)
            progress.advance(Watermark.APPLIED, Seq(seq))
            await wait_all_tasks_blocked()
            assert sum(waiter.is_done for waiter in waiters) == 2 * seq
    assert {waiter.looks for waiter in waiters} == {2}


async def test_a_commit_may_reach_many_goals_at_once() -> None:
    """And leaves those that are ahead."""
    progress = begun(0, 0)
    waiters = [Waiter(progress, seq) for seq in (3, 3, 5, 7, 8)]
    async with trio.open_nursery() as nursery:
        for waiter in waiters:
            nursery.start_soon(waiter.run)
        await wait_all_tasks_blocked()
        progress.set_final(Seq(7))
        await wait_all_tasks_blocked()
        assert [waiter.is_done for waiter in waiters] == [True, True, True, True, False]
        nursery.cancel_scope.cancel()


async def test_a_change_of_state_wakes_everybody() -> None:
    """Whose question may say now that waiting is in vain; the others wait on."""
    progress, is_over = begun(0, 0), [False]
    patient = Waiter(progress, 9)

    def look() -> bool:
        if is_over[0]:
            raise UnavailableError("it is over.")
        return False

    with pytest.RaisesGroup(UnavailableError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(patient.run)
            nursery.start_soon(progress.wait_for, Watermark.APPLIED, Seq(9), look)
            await wait_all_tasks_blocked()
            progress.wake()
            await wait_all_tasks_blocked()
            assert patient.looks == 2
            is_over[0] = True
            progress.wake()
    assert not patient.is_done


async def test_who_gave_up_leaves_nothing_behind() -> None:
    """Also where others wait for the same seq."""
    progress = begun(0, 0)
    stays = Waiter(progress, 5)
    async with trio.open_nursery() as outer:
        outer.start_soon(stays.run)
        async with trio.open_nursery() as nursery:
            for seq in (4, 5, 6, 5):
                nursery.start_soon(Waiter(progress, seq).run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert list(progress._goals[Watermark.FINAL]) == [5]
        progress.set_final(Seq(5))
    assert stays.is_done
    assert not progress._goals[Watermark.FINAL]
