"""Captured commits on their way from a capture thread to the pump.

The capture thread does not wait with commits: where the queue is full it is told so, keeps its pin
and stops reading; the application's own WAL is then the buffer, and nothing is lost (DESIGN 4).
Only within one huge transaction, whose pieces cannot be handed over by halves, it waits for room.
"""

import threading
from collections.abc import Callable
from typing import Final

from basenet.errors import UnavailableError
from basenet.sqlite.captured import Captured
from basenet.units import MIB

# Enough to keep the pump busy over one slow fsync, little enough for many shards in one process.
WAITING_BYTES_MAX: Final = 4 * MIB
# What the pump takes at once: one journal transaction.
TAKEN_BYTES_MAX: Final = 2 * MIB


class Waiting:
    """A bounded queue, filled by one thread and emptied by the event loop."""

    def __init__(self, notify: Callable[[], None]) -> None:
        """Take the thread-safe function that wakes the pump.

        It is called when something waits that was not there before, and once more when it is ample.
        """
        self._notify = notify
        self._room = threading.Condition()
        self._items: list[Captured] = []
        self._bytes = 0
        self._is_closed = False
        self.put_count = 0
        """How many pieces were ever added."""
        self.oldest_ns: int | None = None
        """When the oldest piece that waits was captured."""

    def put(self, batch: list[Captured]) -> bool:
        """Add ``batch``; return whether there is room for more.

        Raises `UnavailableError` when the pump is gone.
        """
        with self._room:
            if not batch[-1].is_run_last:
                self._room.wait_for(lambda: self._is_closed or self.has_room)
            if self._is_closed:
                raise UnavailableError("the shard's pump has ended; capture starts again with it.")
            # Waking the event loop for each poll would cost both threads dearly.
            is_news = not self._items
            if is_news:
                self.oldest_ns = batch[0].captured_ns
            was_ample = self.is_ample
            self._items += batch
            self.put_count += len(batch)
            self._bytes += sum(item.raw_bytes for item in batch)
            is_news |= self.is_ample and not was_ample
        if is_news:
            self._notify()
        return self.has_room

    @property
    def is_ample(self) -> bool:
        """Whether what waits is as much as is taken at once: no use in waiting for more."""
        return self._bytes >= TAKEN_BYTES_MAX

    @property
    def has_room(self) -> bool:
        """Whether the capture thread may go on reading."""
        return self._bytes < WAITING_BYTES_MAX

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._items

    @property
    def raw_bytes(self) -> int:
        """How much waits, in bytes of pages."""
        return self._bytes

    @property
    def commits(self) -> int:
        """How many captured commits wait."""
        with self._room:
            return sum(item.commits for item in self._items)

    def take(self, bytes_max: int = TAKEN_BYTES_MAX) -> list[Captured]:
        """Return and forget the first of what waits, in order: at most ``bytes_max``.

        A single piece is returned however large it is. The pump is woken for what is left.
        """
        with self._room:
            count = size = 0
            for item in self._items:
                if count and size + item.raw_bytes > bytes_max:
                    break
                size += item.raw_bytes
                count += 1
            items, self._items = self._items[:count], self._items[count:]
            self._bytes -= size
            self.oldest_ns = self._items[0].captured_ns if self._items else None
            self._room.notify_all()
        if self._items:
            self._notify()
        return items

    def close(self) -> None:
        """Refuse everything from now on and free a thread that waits for room."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()
