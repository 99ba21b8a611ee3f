"""Answers about all shards let others run in between, and overlapping ones are shared."""

from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.control.slices import SHARDS_AT_ONCE, Shared, visit
from basenet.errors import NotFoundError, UnavailableError
from basenet.units import ShardId

MANY = [ShardId(f"s{number:04}") for number in range(40 * SHARDS_AT_ONCE)]


async def test_others_run_between_the_slices() -> None:
    """No more than two slices pass between two turns of another task, each shard once."""
    seen: list[ShardId] = []
    turns: list[int] = []

    async def take_turns() -> None:
        while True:
            turns.append(len(seen))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await visit(MANY, seen.append)
        nursery.cancel_scope.cancel()
    assert seen == MANY
    steps = [after - before for before, after in pairwise([0, *turns, len(seen)])]
    assert max(steps) <= 2 * SHARDS_AT_ONCE


async def test_few_shards_are_of_one_moment() -> None:
    """An answer about fewer shards than a slice is made in one turn."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await visit(MANY[: SHARDS_AT_ONCE - 1], lambda _: None)
        assert turns == 0
        nursery.cancel_scope.cancel()


async def test_a_shard_that_has_gone_is_passed_over() -> None:
    """What is told of the others goes on; another error ends it."""
    seen: list[ShardId] = []

    def look(shard: ShardId) -> None:
        if shard == MANY[3]:
            raise NotFoundError(f"there is no shard {shard}")
        seen.append(shard)

    await visit(MANY, look)
    assert seen == [*MANY[:3], *MANY[4:]]

    def fail(_: ShardId) -> None:
        raise UnavailableError("the disk is gone")

    with pytest.raises(UnavailableError):
        await visit(MANY, fail)


class Kitchen:
    """Makes one numbered answer after the other, each when it is let."""

    def __init__(self) -> None:
        self.begun = self.at_once = self.most_at_once = 0
        self.ready: dict[int, trio.Event] = {}
        self.failing: set[int] = set()

    async def make(self) -> int:
        self.begun += 1
        number = self.begun
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.ready.setdefault(number, trio.Event()).wait()
        finally:
            self.at_once -= 1
        if number in self.failing:
            raise UnavailableError(f"answer {number} failed")
        return number

    def let(self, number: int) -> None:
        self.ready.setdefault(number, trio.Event()).set()


def into(
    answers: list[int | str], get: Callable[[], Awaitable[int]]
) -> Callable[[], Awaitable[None]]:
    """Return a task that keeps what ``get`` answers."""

    async def ask() -> None:
        try:
            answers.append(await get())
        except UnavailableError as error:
            answers.append(str(error))

    return ask


async def test_who_asks_meanwhile_shares_the_next_answer() -> None:
    """Nobody gets an answer that was begun before the question, and three questions make two."""
    kitchen, first, later = Kitchen(), list[int | str](), list[int | str]()
    shared = Shared(trio.Lock(), kitchen.make)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(into(first, shared.get))
        await wait_all_tasks_blocked()
        nursery.start_soon(into(later, shared.get))
        nursery.start_soon(into(later, shared.get))
        await wait_all_tasks_blocked()
        assert kitchen.begun == 1
        kitchen.let(1)
        await wait_all_tasks_blocked()
        assert (first, later, kitchen.begun) == ([1], [], 2)
        # Too late for the second one, too.
        last: list[int | str] = []
        nursery.start_soon(into(last, shared.get))
        await wait_all_tasks_blocked()
        kitchen.let(2)
        kitchen.let(3)
    assert (first, later, last) == ([1], [2, 2], [3])
    assert kitchen.most_at_once == 1


async def test_an_answer_whose_maker_goes_is_made_by_another() -> None:
    """Of two who share it, one is cancelled while it makes it: the other one makes it anew."""
    kitchen, answers = Kitchen(), list[int | str]()
    shared = Shared(trio.Lock(), kitchen.make)
    with trio.CancelScope() as leaving:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(into([], shared.get))
            await wait_all_tasks_blocked()
            leaving.cancel()
    kitchen.let(2)
    await into(answers, shared.get)()
    assert (answers, kitchen.begun) == ([2], 2)

    async def leave(scope: trio.CancelScope) -> None:
        with scope:
            await shared.get()

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(into(answers, shared.get))  # makes the third
        await wait_all_tasks_blocked()
        nursery.start_soon(leave, scope)  # makes the fourth, and goes
        await wait_all_tasks_blocked()
        nursery.start_soon(into(answers, shared.get))
        await wait_all_tasks_blocked()
        kitchen.let(3)
        await wait_all_tasks_blocked()
        assert kitchen.begun == 4
        scope.cancel()
        await wait_all_tasks_blocked()
        assert kitchen.begun == 5
        kitchen.let(5)
    assert answers == [2, 3, 5]


async def test_a_failure_is_told_to_one_and_tried_anew_for_the_next() -> None:
    """An answer that failed is not kept."""
    kitchen, answers = Kitchen(), list[int | str]()
    shared = Shared(trio.Lock(), kitchen.make)
    kitchen.failing = {2}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(into(answers, shared.get))
        await wait_all_tasks_blocked()
        for _ in range(2):
            nursery.start_soon(into(answers, shared.get))
        await wait_all_tasks_blocked()
        for number in (1, 2, 3):
            kitchen.let(number)
            await wait_all_tasks_blocked()
    assert answers == [1, "answer 2 failed", 3]


async def test_kinds_of_answers_take_turns() -> None:
    """Many kinds at once would each put a slice into every turn of the event loop."""
    kitchen, turn = Kitchen(), trio.Lock()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(into([], Shared(turn, kitchen.make).get))
        for number in (1, 2, 3):
            await wait_all_tasks_blocked()
            assert kitchen.begun == number
            kitchen.let(number)
    assert kitchen.most_at_once == 1
