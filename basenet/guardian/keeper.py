"""All fences of a node: closed, unless the daemon says "released until T" and T is to come.

Called from one thread only. Time is CLOCK_BOOTTIME in nanoseconds and an argument, so that suspend
counts and tests need not wait.

A fence is known by its path and outlives the daemon: the next one guards it again under a number of
its own, and it does not open in between. When another file lies at the path, the old file's locks
stay, and the new file is fenced, too, as soon as it is a WAL database that somebody has opened: its
*heir*, which becomes the fence when a daemon guards the new file.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from basenet.errors import BasenetError, ConflictError
from basenet.guardian.fence import Fence, FenceState
from basenet.guardian.protocol import (
    Close,
    Drop,
    Failed,
    Guard,
    Held,
    Ready,
    Renew,
    Replaced,
    Share,
    ToDaemon,
    ToGuardian,
)

if TYPE_CHECKING:
    from pathlib import Path

Tell = Callable[[ToDaemon, tuple[int, ...]], None]
"""Send a message to the daemon, with descriptors."""

# At each look around this part of the files is looked at, in turn, and at least so many: each one
# is within ten seconds, whatever their number, and a thousand of them cost no CPU to speak of.
LOOKS_SHARE: Final = 100
LOOKS_MIN: Final = 5


@dataclass(slots=True, kw_only=True)
class _Entry:
    """A fence, the daemon's number for it, and what the daemon is owed.

    ``ticket``: of the question that HELD will answer, None when nothing was asked; 0 is GUARD's,
    whose answer carries the descriptors.
    """

    fence: Fence
    number: int | None
    ticket: int | None
    is_waited_for: bool = False  # a thread waits for the lock
    is_doomed: bool = False  # dropped while a thread waited
    heir: Fence | None = None  # of the file that lies at the path now


class Keeper:
    """Opens and closes fences."""

    def __init__(self, *, tell: Tell, wait_for: Callable[[Fence], None]) -> None:
        """Answer the daemon through ``tell``; ``wait_for`` begins to wait for a lock."""
        self._tell = tell
        self._wait_for = wait_for
        self._entries: dict[int, _Entry] = {}
        self._by_path: dict[Path, _Entry] = {}
        self._round: list[_Entry] = []
        # Before this instant no fence has to be closed; None: none is open.
        self._close_at: int | None = None

    @property
    def fences(self) -> tuple[Fence, ...]:
        """Every fence there is, the daemon's or not; one of a replaced file before its heir."""
        owned = [(entry.fence, entry.heir) for entry in self._by_path.values()]
        return tuple(fence for pair in owned for fence in pair if fence is not None)

    @property
    def is_closed(self) -> bool:
        """Whether no application can begin to write to any fenced database."""
        return not any(
            entry.fence.state in (FenceState.OPEN, FenceState.CLOSING)
            for entry in self._by_path.values()
        )

    def adopt(self, fences: Iterable[Fence]) -> None:
        """Take over fences that this process held before it was exec'd anew, and close them."""
        for fence in fences:
            if (replaced := self._by_path.get(fence.path)) is not None:
                replaced.heir = fence
                fence.close()
                continue
            entry = _Entry(fence=fence, number=None, ticket=None)
            self._by_path[fence.path] = entry
            self._close(entry)

    def handle(self, message: ToGuardian, now: int) -> None:
        """Do what the daemon says."""
        match message:
            case Guard():
                self._guard(message)
            case Drop():
                self._drop(message.fence)
            case Close():
                if (entry := self._entries.get(message.fence)) is not None:
                    entry.ticket = message.ticket
                    self._close(entry)
            case Renew():
                for number, until in message.leases:
                    self._renew(number, until, now)
            case Share(until=until):
                self._renew_all(message.numbers(), until, now)
            case Ready():
                pass  # the parent's business

    def tick(self, now: int) -> int | None:
        """Close what has run out; return when the next fence does, None if none is open.

        A renewal only makes it later, so that most ticks need not look at the fences.
        """
        if self._close_at is None or now < self._close_at:
            return self._close_at
        earliest = self._close_at = None
        for entry in self._by_path.values():
            state = entry.fence.state
            # One that is being closed is tried again, too: all threads may be waiting for others.
            if state is FenceState.CLOSING or (
                state is FenceState.OPEN and entry.fence.open_until <= now
            ):
                self._close(entry)
            elif state is not FenceState.OPEN:
                continue
            elif earliest is None or entry.fence.open_until < earliest:
                earliest = entry.fence.open_until
        if self._close_at is None:
            self._close_at = earliest
        return earliest

    def on_locked(self, fence: Fence, now: int) -> None:
        """Note that a waiter's thread has got the lock of ``fence``."""
        entry = self._by_path.get(fence.path)
        if entry is None or entry.fence is not fence:
            fence.drop()  # another file took its place meanwhile
            return
        entry.is_waited_for = False
        if entry.is_doomed:
            del self._by_path[fence.path]
            fence.drop()
        elif fence.state is FenceState.OPEN and fence.open_until > now:
            # It was released while the thread waited.
            fence.open(fence.open_until)
            self._close_at = 0
        elif fence.state is not FenceState.REPLACED:
            fence.mark_closed()
            self._say_held(entry)

    def close_all(self) -> None:
        """Close every fence: the daemon is dead, or a new one is about to start."""
        for entry in self._by_path.values():
            self._close(entry)

    def forget_daemon(self) -> None:
        """Close every fence and forget the numbers: the next daemon gives its own.

        The locks stay; a fence that the next daemon guards again never opens in between.
        """
        for entry in self._by_path.values():
            entry.number = entry.ticket = None
            entry.fence.repair()
        self._entries.clear()
        self._round.clear()
        self.close_all()

    def _guard(self, message: Guard) -> None:
        inode = (message.device, message.inode)
        entry = self._by_path.get(message.path)
        try:
            if entry is not None and not entry.fence.is_of(inode):
                entry = self._inherit(entry, inode)
            if entry is None:
                fence = Fence.set_up(message.path, database_inode=inode)
                entry = _Entry(fence=fence, number=message.fence, ticket=0)
                self._by_path[message.path] = entry
        except BasenetError as error:
            is_conflict = isinstance(error, ConflictError)
            failed = Failed(fence=message.fence, is_conflict=is_conflict, reason=str(error))
            self._tell(failed, ())
            return
        entry.number, entry.ticket, entry.is_doomed = message.fence, 0, False
        if entry.fence.state is FenceState.REPLACED:
            entry.fence.state = FenceState.CLOSING  # the file was put back
        self._entries[message.fence] = entry
        self._close(entry)

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number, None)
        if entry is None:
            return
        entry.number = entry.ticket = None
        _drop_heir(entry)
        if entry.is_waited_for:
            # Its descriptor must not be closed under the thread: the number could be used again.
            entry.is_doomed = True
            return
        del self._by_path[entry.fence.path]
        entry.fence.drop()

    def _inherit(self, entry: _Entry, database_inode: tuple[int, int]) -> _Entry | None:
        """Let go of a fence whose file is not at its path any more; return its heir's entry."""
        del self._by_path[entry.fence.path]
        if entry.number is not None:
            self._entries.pop(entry.number, None)
        if not entry.is_waited_for:
            entry.fence.drop()
        heir = entry.heir
        if heir is None or not heir.is_of(database_inode):
            _drop_heir(entry)
            return None
        self._by_path[heir.path] = inherited = _Entry(fence=heir, number=None, ticket=None)
        return inherited

    def _renew(self, number: int, until: int, now: int) -> None:
        entry = self._entries.get(number)
        if entry is None or until <= now or entry.fence.state is FenceState.REPLACED:
            return
        if entry.fence.state is FenceState.OPEN:
            entry.fence.open_until = max(entry.fence.open_until, until)
            return
        entry.ticket = None
        entry.fence.open(until)
        self._close_at = 0

    def _renew_all(self, numbers: Iterable[int], until: int, now: int) -> None:
        """Renew each; most are open, and may be a thousand three times a second."""
        entries, is_open = self._entries, FenceState.OPEN
        for number in numbers if until > now else ():
            entry = entries.get(number)
            if entry is None or entry.fence.state is not is_open:
                self._renew(number, until, now)
            elif entry.fence.open_until < until:
                entry.fence.open_until = until

    def _close(self, entry: _Entry) -> None:
        if entry.fence.state is FenceState.REPLACED:
            return
        if entry.fence.close():
            self._say_held(entry)
            return
        self._close_at = 0
        if not entry.is_waited_for:
            entry.is_waited_for = True
            self._wait_for(entry.fence)

    def _say_held(self, entry: _Entry) -> None:
        if entry.ticket is None or entry.number is None:
            return
        held = Held(fence=entry.number, ticket=entry.ticket)
        self._tell(held, entry.fence.descriptors() if entry.ticket == 0 else ())
        entry.ticket = None

    def look_around(self) -> None:
        """See whether the next few files are still those that are fenced."""
        count = len(self._entries)
        for _ in range(min(max(LOOKS_MIN, -(-count // LOOKS_SHARE)), count)):
            if not self._round:
                self._round = list(self._entries.values())
            self._look(self._round.pop())

    def _look(self, entry: _Entry) -> None:
        """Tell the daemon, once, when another file lies where the fenced one was."""
        if entry.number is None:
            return  # dropped since the round began
        if entry.fence.state is FenceState.REPLACED:
            _fence_heir(entry)
            return
        if entry.fence.is_in_place():
            return
        entry.fence.close()
        entry.fence.state = FenceState.REPLACED
        self._tell(Replaced(fence=entry.number), ())


def _fence_heir(entry: _Entry) -> None:
    """Fence what lies at the path of a replaced file, if that can be done now."""
    if entry.heir is None:
        with contextlib.suppress(BasenetError):
            entry.heir = Fence.found(entry.fence.path)
    elif entry.heir.is_in_place():
        entry.heir.close()
    else:
        _drop_heir(entry)


def _drop_heir(entry: _Entry) -> None:
    if entry.heir is not None:
        entry.heir.drop()
        entry.heir = None
