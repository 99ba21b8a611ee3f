"""All fences of a node: closed, unless the daemon says "released until T" and T is to come.

Called from one thread only. Time is CLOCK_BOOTTIME in nanoseconds and an argument, so that suspend
counts and tests need not wait.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from basenet.errors import BasenetError
from basenet.guardian.fence import Fence, FenceState
from basenet.guardian.protocol import (
    Close,
    Drop,
    Failed,
    Guard,
    Held,
    Renew,
    Replaced,
    ToDaemon,
    ToGuardian,
)

if TYPE_CHECKING:
    from pathlib import Path

Tell = Callable[[ToDaemon, tuple[int, ...]], None]
"""Send a message to the daemon, with descriptors."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    """A fence, the daemon's number for it, and what it is waited for."""

    fence: Fence
    number: int
    is_waited_for: bool = False  # a thread waits for the lock
    owes_held: bool = True  # the daemon wants to hear HELD once it is closed
    is_doomed: bool = False  # dropped while a thread waited


class Keeper:
    """Opens and closes fences."""

    def __init__(self, *, tell: Tell, wait_for: Callable[[Fence], None]) -> None:
        """Answer the daemon through ``tell``; ``wait_for`` begins to wait for a lock."""
        self._tell = tell
        self._wait_for = wait_for
        self._entries: dict[int, _Entry] = {}
        self._by_path: dict[Path, _Entry] = {}

    def handle(self, message: ToGuardian, now: int) -> None:
        """Do what the daemon says."""
        match message:
            case Guard():
                self._guard(message)
            case Drop():
                self._drop(message.fence)
            case Close():
                if (entry := self._entries.get(message.fence)) is not None:
                    entry.owes_held = True
                    self._close(entry)
            case Renew():
                for number, until in message.leases:
                    self._renew(number, until, now)

    def tick(self, now: int) -> int | None:
        """Close what has run out; return when the next fence does, None if none is open."""
        earliest: int | None = None
        for entry in self._entries.values():
            if not self._look(entry) or entry.fence.state is not FenceState.OPEN:
                continue
            if entry.fence.open_until <= now:
                self._close(entry)
            elif earliest is None or entry.fence.open_until < earliest:
                earliest = entry.fence.open_until
        return earliest

    def on_locked(self, fence: Fence, now: int) -> None:
        """Note that a waiter's thread has got the lock of ``fence``."""
        entry = self._by_path[fence.path]
        entry.is_waited_for = False
        if entry.is_doomed:
            del self._by_path[fence.path]
            fence.drop()
        elif fence.state is FenceState.OPEN and fence.open_until > now:
            # It was released while the thread waited.
            fence.open(fence.open_until)
        else:
            fence.mark_closed()
            self._say_held(entry)

    def close_all(self) -> None:
        """Close every fence: the daemon is dead, or a new one is about to start."""
        for entry in self._entries.values():
            self._close(entry)

    def forget_daemon(self) -> None:
        """Close every fence and forget the numbers: the next daemon gives its own.

        The locks stay; a fence that the next daemon guards again never opens in between.
        """
        self.close_all()
        self._entries.clear()

    def _guard(self, message: Guard) -> None:
        entry = self._by_path.get(message.path)
        try:
            if entry is None:
                inode = (message.device, message.inode)
                fence = Fence(message.path, database_inode=inode)
                entry = _Entry(fence=fence, number=message.fence)
                self._by_path[message.path] = entry
        except BasenetError as error:
            self._tell(Failed(fence=message.fence, reason=str(error)), ())
            return
        entry.number, entry.owes_held, entry.is_doomed = message.fence, True, False
        self._entries[message.fence] = entry
        if self._look(entry):
            self._close(entry)

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number, None)
        if entry is None:
            return
        if entry.is_waited_for:
            # Its descriptor must not be closed under the thread: the number could be used again.
            entry.is_doomed = True
            return
        del self._by_path[entry.fence.path]
        entry.fence.drop()

    def _renew(self, number: int, until: int, now: int) -> None:
        entry = self._entries.get(number)
        if entry is None or until <= now or entry.fence.state is FenceState.REPLACED:
            return
        if entry.fence.state is FenceState.OPEN:
            entry.fence.open_until = max(entry.fence.open_until, until)
            return
        entry.owes_held = False
        entry.fence.open(until)

    def _close(self, entry: _Entry) -> None:
        if entry.fence.close():
            self._say_held(entry)
        elif not entry.is_waited_for:
            entry.is_waited_for = True
            self._wait_for(entry.fence)

    def _say_held(self, entry: _Entry) -> None:
        if entry.owes_held and entry.number in self._entries:
            entry.owes_held = False
            self._tell(Held(fence=entry.number), entry.fence.descriptors())

    def _look(self, entry: _Entry) -> bool:
        """Return whether the fenced file is still in its place; tell the daemon once if not."""
        if entry.fence.state is FenceState.REPLACED:
            return False
        if entry.fence.is_in_place():
            return True
        entry.fence.close()
        entry.fence.state = FenceState.REPLACED
        self._tell(Replaced(fence=entry.number), ())
        return False
