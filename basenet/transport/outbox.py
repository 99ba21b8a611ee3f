"""What waits to be sent to one peer: bounded, the urgent first, never blocking who sends.

A peer that reads slowly or not at all costs its own messages and nobody else's: when the bound is
reached, what comes next is dropped and counted. The protocol asks again for whatever it misses.
"""

from collections import deque
from typing import Final

import trio

from basenet.transport.framing import pack
from basenet.units import MIB

ORDINARY_BYTES_MAX: Final = 8 * MIB
BULK_BYTES_MAX: Final = 48 * MIB
# One write: large enough to spare system calls, small enough that what is urgent waits briefly.
_WRITE_BYTES: Final = 256 * 1024


class Outbox:
    """The messages for one peer on one lane, in order; urgent ones overtake."""

    def __init__(self, bytes_max: int) -> None:
        self.dropped = 0
        self._bytes_max = bytes_max
        self._urgent: dict[str, bytes] = {}
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._news = trio.Event()

    @property
    def queued_bytes(self) -> int:
        """How many bytes wait, urgent ones aside."""
        return self._queued_bytes

    def put(self, message: bytes) -> bool:
        """Queue ``message``; False when it was dropped because too much waits."""
        packed = pack(message)
        if self._queued_bytes + len(packed) > self._bytes_max:
            self.dropped += 1
            return False
        self._queue.append(packed)
        self._queued_bytes += len(packed)
        self._news.set()
        return True

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
            size += len(message)
            parts.append(message)
        return b"".join(parts)
