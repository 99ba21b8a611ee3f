"""Answers about all shards, made a slice at a time.

Theory of operation
===================

To tell of a thousand shards takes tens of milliseconds, and while the event loop does nothing else
no lease is renewed and no commit moves on. So such an answer is made by these rules:

1. After every `SHARDS_AT_ONCE` shards everybody else has a turn. What is told of one shard is of
   one moment; the answer as a whole is of the time that it took.
2. The node is asked before its shards: an answer that says "ready" has no shard from before.
3. A shard that goes meanwhile is left out.
4. What is told of a shard becomes bytes or numbers at once, and is let go. Thousands of objects
   that live until the answer is sent would rouse the garbage collector, whose look at all that a
   large daemon holds takes longer than the answer.
5. One answer is made at a time: of many at once each would put a slice into every turn. Who asks
   meanwhile shares the *next* one with all who do, and never the one that is being made: it may
   hold facts that are older than the question.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, TypeVar

import trio

from basenet.errors import NotFoundError
from basenet.units import ShardId

SHARDS_AT_ONCE: Final = 25  # a millisecond or two

_Answer = TypeVar("_Answer")


async def visit(shards: Iterable[ShardId], look: Callable[[ShardId], None]) -> None:
    """Call ``look`` for each of ``shards``, and let others run every `SHARDS_AT_ONCE`.

    A shard of which ``look`` raises `NotFoundError` has gone, and is passed over.
    """
    for count, shard in enumerate(shards, start=1):
        with contextlib.suppress(NotFoundError):
            look(shard)
        if count % SHARDS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()


class _Round(Generic[_Answer]):
    """Those who asked before their answer was begun, and the answer."""

    def __init__(self) -> None:
        self.answers: list[_Answer] = []


class Shared(Generic[_Answer]):
    """One kind of answer, made for all who ask before it is begun."""

    def __init__(self, turn: trio.Lock, make: Callable[[], Awaitable[_Answer]]) -> None:
        """``turn`` is held while ``make`` runs; kinds that share it are not made at once."""
        self._turn = turn
        self._make = make
        self._next: _Round[_Answer] = _Round()

    async def get(self) -> _Answer:
        """Return an answer that was begun after this call; raises what making it raises."""
        mine = self._next
        async with self._turn:
            # Whoever made it for us may have been cancelled, or have failed: then it is made anew.
            if not mine.answers:
                if self._next is mine:
                    self._next = _Round()
                mine.answers.append(await self._make())
            return mine.answers[0]
