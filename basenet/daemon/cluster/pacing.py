"""Births of many shards: a few at a time, so that those which are born can be led.

Theory of operation
===================

A thousand shards that are born at once keep every node busy for longer than an election takes, so
nobody hears their leaders in time; and the elections that follow are work, too. So the author of a
shard takes a turn before it writes the genesis, and all that can be done before is done: the file
is fenced and read, every member has answered. The turn ends when its application may write, or
after `PATIENCE_S`: a birth that waits for a member, or for a human, holds up no other.

Each node has turns of its own, for the shards of which it is the author.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

AT_ONCE: Final = 8
PATIENCE_S: Final = 5.0


class Births:
    """The turns of one node."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._turns = trio.Semaphore(at_once)

    async def turn(self, nursery: trio.Nursery, wait: Callable[[], Awaitable[None]]) -> None:
        """Return when a birth may begin; its turn lasts until the coroutine ``wait`` returns.

        ``nursery`` lives as long as the shard.
        """
        await self._turns.acquire()
        nursery.start_soon(self._hold, wait)

    async def _hold(self, wait: Callable[[], Awaitable[None]]) -> None:
        try:
            with trio.move_on_after(PATIENCE_S):
                await wait()
        finally:
            self._turns.release()
