"""A shard's watermarks and who waits for them."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.daemon.marks import Mark
from basenet.daemon.progress import Progress
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
