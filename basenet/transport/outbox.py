"""What waits to be sent to one peer: bounded, the urgent first, never blocking who sends.

A peer that reads slowly or not at all costs its own messages and nobody else's: when the bound is
reached, what comes next is dropped and counted. The protocol asks again for whatever it misses.

It asks several times a second, and so again and again for what is large and still on its way. Were
each question answered, a few megabytes for a slow peer would be sent without end, in front of what
it waits for. So a large message has *tags*, and `is_coming` tells whether one is under way.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from math import inf
from typing import Final

import trio

from basenet.transport.framing import pack
from basenet.units import MIB

ORDINARY_BYTES_MAX: Final = 8 * MIB
BULK_BYTES_MAX: Final = 48 * MIB
# One write: large enough to spare system calls, small enough that what is urgent waits briefly.
_WRITE_BYTES: Final = 256 * 1024
# What was written lies in buffers of both sides, and is decrypted and decoded, for a while.
_ARRIVES_S: Final = 2.0


class Outbox:
    """The messages for one peer on one lane, in order; urgent ones overtake."""

    def __init__(self, bytes_max: int) -> None:
        self.dropped = 0
        self._bytes_max = bytes_max
        self._urgent: dict[str, bytes] = {}
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._put_count = self._taken_count = 0
        # By tag: the number of the message, and from when on it may be sent again.
        self._coming: dict[Hashable, tuple[int, float]] = {}
        self._news = trio.Event()

    @property
    def queued_bytes(self) -> int:
        """How many bytes wait, urgent ones aside."""
        return self._queued_bytes

    def put(self, message: bytes, tags: Iterable[Hashable] = ()) -> bool:
        """Queue ``message``; False when it was dropped because too much waits.

        ``tags`` name what is in it, for `is_coming`.
        """
        packed = pack(message)
        if self._queued_bytes + len(packed) > self._bytes_max:
            self.dropped += 1
            return False
        self._queue.append(packed)
        self._queued_bytes += len(packed)
        self._put_count += 1
        for tag in tags:
            self._coming[tag] = (self._put_count, inf)
        self._news.set()
        return True

    def is_coming(self, tag: Hashable) -> bool:
        """Return whether a message with ``tag`` waits here or was sent a moment ago."""
        _, until_s = self._coming.get(tag, (0, -inf))
        return trio.current_time() < until_s

    def put_urgent(self, slot: str, message: bytes) -> None:
        """Send ``message`` before everything that waits; it replaces an older one of its slot.

        For what is worthless once a newer one exists: heartbeats and their answers.
        """
        self._urgent[slot] = pack(message)
        self._news.set()

    def clear(self) -> None:
        """Forget everything: it was meant for a connection that has ended."""
        self._urgent.clear()
        self._queue.clear()
        self._queued_bytes = 0
        self._coming.clear()
        self._taken_count = self._put_count

    async def take(self) -> bytes:
        """Return the next bytes to write, as soon as there are any."""
        while not self._urgent and not self._queue:
            self._news = trio.Event()
            await self._news.wait()
        parts = list(self._urgent.values())
        self._urgent.clear()
        size = sum(map(len, parts))
        while self._queue and (not parts or size + len(self._queue[0]) <= _WRITE_BYTES):
            message = self._queue.popleft()
            self._queued_bytes -= len(message)
            self._taken_count += 1
            size += len(message)
            parts.append(message)
        if self._coming:
            self._note_taken()
        return b"".join(parts)

    def _note_taken(self) -> None:
        """Let the time of what was taken run, and forget what must have arrived."""
        now_s, taken = trio.current_time(), self._taken_count
        self._coming = {
            tag: (number, now_s + _ARRIVES_S if number <= taken and until_s == inf else until_s)
            for tag, (number, until_s) in self._coming.items()
            if until_s > now_s
        }
