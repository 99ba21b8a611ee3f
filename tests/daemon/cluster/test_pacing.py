# ruff: noqa: ARG001  (the clock of a test is virtual because it is asked for)
"""Births take turns, and none holds up the others for long."""

import trio
import trio.testing

from basenet.daemon.cluster.pacing import PATIENCE_S, Births

Clock = trio.testing.MockClock


async def test_so_many_at_once_and_the_next_when_one_may_write(autojump_clock: Clock) -> None:
    """In the order in which they asked."""
    births, begun = Births(at_once=3), list[int]()
    may_write = [trio.Event() for _ in range(8)]
    async with trio.open_nursery() as nursery:

        async def be_born(number: int) -> None:
            await births.turn(nursery, may_write[number].wait)
            begun.append(number)

        for number in range(8):
            nursery.start_soon(be_born, number)
            await trio.testing.wait_all_tasks_blocked()
        assert begun == [0, 1, 2]
        may_write[1].set()
        await trio.testing.wait_all_tasks_blocked()
        assert begun == [0, 1, 2, 3]
        nursery.cancel_scope.cancel()


async def test_who_waits_for_a_human_holds_up_no_other(autojump_clock: Clock) -> None:
    """Its turn is over after a while, and it goes on all the same."""
    births, began_s = Births(at_once=1), trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            await births.turn(nursery, trio.sleep_forever)
        assert trio.current_time() == began_s + 3 * PATIENCE_S
        nursery.cancel_scope.cancel()


async def test_a_shard_that_ends_gives_its_turn_back(autojump_clock: Clock) -> None:
    """At once."""
    births = Births(at_once=1)
    began_s = trio.current_time()
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            await births.turn(nursery, trio.sleep_forever)
            nursery.cancel_scope.cancel()
    assert trio.current_time() == began_s
