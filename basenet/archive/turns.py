"""Taking turns with what is large: how much memory the shards of a node need at once to ship it.

Theory of operation
===================

Shards ship on their own, and a small object costs next to nothing. But after an outage every shard
has megabytes that wait, at the same moment: each would hold its frames, the sealed object and what
packing needs, twice or three times `SEGMENT_TARGET_BYTES`. So a shard that is about to ship much
takes one of `TURNS_MAX` turns; the others' frames stay in the journal meanwhile.

A turn lasts for one attempt, so that a shard whose object cannot be written does not stand in the
way of the rest. And it is a courtesy: whoever waited `PATIENCE_SECONDS` for one goes without.

What was freed lies scattered over the C library's heaps and stays the process's. When the last turn
has ended it is given back, at most every few seconds.
"""

import ctypes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from basenet.units import KIB

TURNS_MAX: Final = 3
PATIENCE_SECONDS: Final = 30.0
# What fewer bytes than this need is not worth waiting for.
LARGE_BYTES_MIN: Final = 256 * KIB
_TRIM_PAUSE_SECONDS: Final = 5.0


class Turns:
    """The turns of one node, shared by its shards."""

    def __init__(
        self, *, turns_max: int = TURNS_MAX, give_back: Callable[[], object] | None = None
    ) -> None:
        """``give_back``: what to do when the last turn has ended; by default `give_back_memory`."""
        self._free = trio.Semaphore(turns_max)
        self._taken = 0
        self._give_back = give_back or give_back_memory
        self._gave_back_at = float("-inf")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a turn, or go without one after `PATIENCE_SECONDS`."""
        is_held = False
        with trio.move_on_after(PATIENCE_SECONDS):
            await self._free.acquire()
            is_held = True
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            if is_held:
                self._free.release()
            now = trio.current_time()
            if not self._taken and now >= self._gave_back_at + _TRIM_PAUSE_SECONDS:
                self._gave_back_at = now
                self._give_back()


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library is one that can: some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
