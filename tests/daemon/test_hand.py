"""What is handed to a thread is done there, in order, and never left half done."""

import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.daemon.hand import Hand


async def test_work_is_done_in_one_other_thread_in_its_order() -> None:
    """Its result comes back, or its error."""
    done: list[int] = []

    def act(number: int) -> tuple[int, int]:
        done.append(number)
        return number, threading.get_ident()

    def fail() -> None:
        raise ValueError("no")

    with Hand("test") as hand:
        results = [await hand.do(lambda number=number: act(number)) for number in range(100)]
        assert [number for number, _ in results] == done == list(range(100))
        (thread,) = {thread for _, thread in results}
        assert thread != threading.get_ident()
        with pytest.raises(ValueError, match="no"):
            await hand.do(fail)
        assert await hand.do(lambda: 1) == 1


async def test_what_has_begun_is_waited_for_and_then_the_thread_ends() -> None:
    """However the one who asked is cancelled."""
    may_end, thread = threading.Event(), threading.Event()
    names = {each.name for each in threading.enumerate()}
    assert "a hand of ours" not in names
    ended: list[bool] = []

    def act() -> None:
        thread.set()
        ended.append(may_end.wait(30))

    async with trio.open_nursery() as nursery:
        with Hand("a hand of ours") as hand:
            nursery.start_soon(hand.do, act)
            await trio.to_thread.run_sync(thread.wait)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert not ended
                may_end.set()
    assert ended == [True]
    ours = [each for each in threading.enumerate() if each.name == "a hand of ours"]
    for each in ours:
        each.join(30)
        assert not each.is_alive()
