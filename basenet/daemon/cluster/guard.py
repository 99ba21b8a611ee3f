"""The daemon's end of the guardian: asks for fences, keeps them open, and hears when they are held.

Theory of operation
===================

The guardian, our parent, holds SQLite's write lock on every database of the node, except until the
instants that `Fence.renew` named. What a `Fence` says here is always on the safe side: `is_held` is
true only between the guardian's HELD and the next `renew`, so whoever writes while it is true
writes alone::

    renew() ... flush()      the application may write until then      is_held False
    close() or held()        CLOSE with a new ticket  -->  guardian    is_held False
                             HELD with that ticket   <--               is_held True
    renew()                  the ticket is void: a HELD on its way     is_held False
                             counts for nothing

Nothing here waits for the guardian's socket: what does not fit waits in a queue, in which a lease
is always the newest one.

*Together.* Fences whose shards share a lease and are at rest form a `FenceGroup`, which is renewed
as one, by a packet that is made anew only when somebody joined or left. A fence leaves it at once
by `close`, `held` and `drop`, and when its file is replaced; from then on it is in no packet of the
group, neither in one that waits.

*Duplicates.* The guardian's first HELD brings the descriptors that it locked. They are the same
lock owner as the guardian itself, so they must never unlock anything and are kept for one case:
when the guardian dies, the locks live on through them, and what was open is locked through them at
once (`Guard.run`). Then the daemon ends: it has lost its parent, and only a supervisor can start
both.

*Closing them.* To close any descriptor of a file drops all POSIX locks that this process holds on
it, those of its SQLite connections among them. Hence `Fence.drop` comes after the database was
closed, and asserts it. A descriptor that arrives for a fence that nobody waits for any more is kept
until the process ends.
"""

import array
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from basenet.control.histogram import Histogram
from basenet.engine.events import Instant
from basenet.errors import BasenetError, ConflictError, UnavailableError, UsageError
from basenet.guardian import protocol
from basenet.guardian.header import repair_header
from basenet.sqlite import locks
from basenet.sqlite.attach import is_attached

log = structlog.get_logger()

# Renewals of many shards within this time are one packet; an opening waits for it at most.
_FLUSH_GAP_S: Final = 0.01
# How long an application's open transaction is waited for when the guardian has died.
_SEIZE_S_MAX: Final = 5.0
_DESCRIPTORS: Final = 2
_GONE: Final = (
    "the guardian, parent of this process, is gone: fences are held until this process ends; "
    "start `basenet serve` again"
)


class FenceGroup:
    """Fences that are renewed together, until one instant. Made by `Guard.group`."""

    def __init__(self, guard: "Guard") -> None:
        self.until = Instant(0)
        """Of the last renewal."""
        self._guard = guard
        self._members: dict[int, None] = {}
        self._packed: bytes | None = b""
        # How much of the packed numbers is sent; None while nothing is to be.
        self._sent: int | None = None

    def __len__(self) -> int:
        return len(self._members)

    def add(self, number: int) -> None:
        """Renew a fence with the others, from the next time on."""
        self._members[number] = None
        self._change()

    def remove(self, number: int) -> None:
        """Renew a fence no more."""
        del self._members[number]
        self._change()

    def renew(self, until: Instant) -> None:
        """Let applications write to all of them until ``until``; sent by `Guard.flush`."""
        self.until = max(until, self.until)
        self._sent = 0

    def disband(self) -> None:
        """Be sent no more; all have left."""
        assert not self._members, "a group that somebody relies on"
        self._guard.forget_group(self)

    def next_packet(self) -> bytes | None:
        """Return what is to be sent next; None when all is."""
        if self._sent is None:
            return None
        if self._packed is None:
            self._packed = protocol.pack_fences(self._members)
        size = protocol.RENEWALS_MAX * protocol.FENCE_BYTES
        fences = self._packed[self._sent : self._sent + size]
        if not fences:
            self._sent = None
            return None
        self._sent += size
        return protocol.encode(protocol.Share(until=self.until, fences=fences))

    def _change(self) -> None:
        self._packed = None
        if self._sent is not None:
            self._sent = 0


class Fence:
    """One database's fence, as the daemon sees it. Made by `Guard.fence`.

    ``on_replaced`` is called, once, when another file lies at the path: stop the shard.
    """

    def __init__(
        self, guard: "Guard", *, number: int, path: Path, database_inode: tuple[int, int]
    ) -> None:
        self.path = path
        self.number = number
        self.on_replaced: Callable[[], None] | None = None
        self._guard = guard
        self._group: FenceGroup | None = None
        self._on_left: Callable[[], None] = lambda: None
        self._inode = database_inode
        self._descriptors: tuple[int, ...] = ()
        self._ticket = 0  # of the newest question, void after a renewal
        self._is_asked = True  # GUARD is a question, too
        self._is_held = self._is_replaced = self._is_dropped = False
        self._waiting = 0
        self._until: Instant | None = None
        self._failure: BasenetError | None = None
        self._asked_s = trio.current_time()
        self._news = trio.Event()

    @property
    def is_held(self) -> bool:
        """Whether the write lock is ours: nobody but the daemon writes to the database."""
        return self._is_held

    @property
    def is_open_until(self) -> Instant | None:
        """Until when an application may begin to write; None while the fence is held."""
        if self._group is None or self._until is None:
            return self._until
        return max(self._until, self._group.until)

    @property
    def is_replaced(self) -> bool:
        """Whether another file lies at the path: this fence never opens again."""
        return self._is_replaced

    def renew(self, until: Instant) -> None:
        """Let applications write until ``until`` (CLOCK_BOOTTIME); sent by `Guard.flush`.

        Does nothing while somebody waits in `held`, after `drop`, for a replaced file, and when the
        guardian is gone.
        """
        if self._waiting or self._is_dropped or self._is_replaced or self._guard.is_gone:
            return
        self._is_held = self._is_asked = False
        self._until = max(until, self._until or until)
        self._guard.collect(self.number, until)

    def close(self) -> None:
        """Ask for the write lock and return at once; harmless when repeated."""
        if self._is_held or self._is_asked or self._is_dropped or self._guard.is_gone:
            return
        self._leave()
        self._is_asked = True
        self._asked_s = trio.current_time()
        self._ticket = self._guard.next_ticket()
        self._guard.forget_lease(self.number)
        self._guard.send(protocol.Close(fence=self.number, ticket=self._ticket))

    async def held(self) -> None:
        """Return when the write lock is ours.

        An open transaction of an application is waited for; bound the wait with a cancel scope.
        Raises `ConflictError` when another file lies at the path and `UnavailableError` when the
        guardian is gone and the lock was not had.
        """
        self._waiting += 1
        try:
            self.close()
            while not self._is_held:
                self._raise_failure()
                await self._news.wait()
        finally:
            self._waiting -= 1

    def drop(self) -> None:
        """Let go of the database for good, after it was closed (see above)."""
        if self._is_dropped:
            return
        assert not is_attached(*self._inode), f"{self.path} is dropped before it is closed"
        self._leave()
        self._is_dropped, self._is_held, self._until = True, False, None
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()
        self._guard.forget(self.number)
        self._guard.send(protocol.Drop(fence=self.number))
        self._announce()

    # In company.

    def join(self, group: FenceGroup, on_left: Callable[[], None]) -> bool:
        """Be renewed with ``group``; False unless this one is open, and may be kept so.

        It was renewed by itself just now. ``on_left`` is called when it has left by itself.
        """
        is_open = not (self._is_held or self._is_asked or self._waiting)
        is_over = self._is_dropped or self._is_replaced or self._guard.is_gone
        if self._group is not None or not is_open or is_over:
            return False
        self._group, self._on_left = group, on_left
        group.add(self.number)
        return True

    def part(self) -> None:
        """Be renewed by itself again; harmless for one that is."""
        if self._group is not None:
            self._until = self.is_open_until
            self._group.remove(self.number)
            self._group = None

    def _leave(self) -> None:
        """Leave the group, if there is one: what closes this fence must not be undone by it."""
        if self._group is not None:
            self.part()
            self._on_left()

    # At the end.

    def surrender(self) -> tuple[int, ...]:
        """Return the descriptors, which are the caller's from now on."""
        descriptors, self._descriptors, self._is_dropped = self._descriptors, (), True
        return descriptors

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_replaced:
            raise ConflictError(
                f"{self.path} was replaced by another file; the shard stops, and the new file is "
                "not touched"
            )
        if self._is_dropped or (self._guard.is_gone and not self._descriptors):
            raise UnavailableError(f"the fence of {self.path} is given up: {_GONE}.")

    def _announce(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # What the guardian says.

    def on_held(self, ticket: int, descriptors: tuple[int, ...]) -> None:
        """Take HELD."""
        if descriptors:
            self._descriptors = descriptors
        if self._is_asked and ticket == self._ticket and not self._is_held:
            self._guard.fence_wait.observe(trio.current_time() - self._asked_s)
            self._is_held, self._until = True, None
            self._announce()

    def on_failed(self, failed: protocol.Failed) -> None:
        """Take FAILED."""
        kind = ConflictError if failed.is_conflict else UnavailableError
        self._failure = kind(failed.reason)
        self._announce()

    def on_gone(self) -> bool:
        """Lock through the duplicates at once; return whether the lock is ours or never will be."""
        if not self._descriptors:
            self._announce()
            return True
        if not locks.try_lock(self._descriptors[1], locks.WAL_WRITE_BYTE):
            return False
        self._seized()
        return True

    async def seize(self) -> None:
        """Wait for the lock through the duplicates; the guardian is gone."""
        shm = self._descriptors[1]
        await trio.to_thread.run_sync(
            locks.wait_for_lock, shm, locks.WAL_WRITE_BYTE, abandon_on_cancel=True
        )
        self._seized()

    def _seized(self) -> None:
        repair_header(self._descriptors[1])
        self._is_held, self._until = True, None
        self._announce()

    def mark_replaced(self) -> None:
        """Take REPLACED."""
        self._leave()
        self._is_replaced, self._is_held = True, False
        self._announce()
        if self.on_replaced is not None:
            self.on_replaced()


class Guard:
    """The connection to the guardian and all fences of this daemon.

    ``on_gone`` is called when the guardian has died and every fence that could be was locked: this
    node must not be a writer any more.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Talk to the guardian over ``connection``, our end of a pair of packet sockets."""
        connection.setblocking(False)
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None
        self.fence_wait = Histogram()
        """How long it took from asking for a fence to holding it, in seconds."""
        self._connection = connection
        self._fences: dict[int, Fence] = {}
        self._numbers = self._tickets = 0
        self._leases: dict[int, int] = {}
        self._groups: list[FenceGroup] = []
        self._unsent: deque[bytes] = deque()
        self._is_flush_due = False
        self._flushed_s = -_FLUSH_GAP_S
        self._flush_wanted = trio.Event()
        self._is_full = trio.Event()
        self._strays: list[int] = []

    async def run(self) -> None:
        """Hear the guardian for as long as it lives.

        Raises `UnavailableError` when it is gone: every fence was locked then, those that an
        application's open transaction kept open as far as that was over within 5 s.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_when_possible)
            nursery.start_soon(self._flush_when_wanted)
            await self._receive()
            nursery.cancel_scope.cancel()
        await self._seize_all()
        raise UnavailableError(f"{_GONE}.")

    async def fence(self, path: Path, database_inode: tuple[int, int]) -> Fence:
        """Return a fence on the database at ``path``; it is held.

        ``database_inode``: (st_dev, st_ino) of the open database. A connection of ours has read
        from it, so its -shm exists. Raises `ConflictError` when another basenet has the database or
        another file lies at the path, and `UnavailableError` when it cannot be fenced now.
        """
        self._numbers += 1
        fence = Fence(self, number=self._numbers, path=path, database_inode=database_inode)
        self._fences[self._numbers] = fence
        device, inode = database_inode
        number = self._numbers
        try:
            self.send(protocol.Guard(fence=number, device=device, inode=inode, path=path))
            await fence.held()
        except BaseException:
            self._give_up(number, fence)
            raise
        return fence

    def group(self) -> FenceGroup:
        """Return a group for fences that are renewed together; `FenceGroup.disband` ends it."""
        group = FenceGroup(self)
        self._groups.append(group)
        return group

    def ready(self) -> None:
        """Tell the guardian that this daemon serves, so that the application may start."""
        self.send(protocol.Ready())

    def flush(self) -> None:
        """Send all collected renewals, in one packet (of 8,000 at most).

        At once, or 10 ms after the flush before: shards that flush one by one share packets.
        """
        if trio.current_time() - self._flushed_s >= _FLUSH_GAP_S:
            self._flush_now()
        else:
            self._flush_wanted.set()

    # What fences ask.

    def next_ticket(self) -> int:
        """Return a ticket that no question had before."""
        self._tickets = self._tickets % 0xFFFFFFFF + 1
        return self._tickets

    def collect(self, number: int, until: Instant) -> None:
        """Note a renewal for the next flush."""
        self._leases[number] = max(until, self._leases.get(number, until))

    def forget_lease(self, number: int) -> None:
        """Take back a renewal that was not sent."""
        self._leases.pop(number, None)

    def forget_group(self, group: FenceGroup) -> None:
        """Send nothing of ``group`` any more."""
        self._groups.remove(group)

    def forget(self, number: int) -> None:
        """Know a fence no longer."""
        self.forget_lease(number)
        self._fences.pop(number, None)

    def send(self, message: protocol.ToGuardian) -> None:
        """Send a message, or queue it."""
        if self.is_gone:
            return
        self._unsent.append(protocol.encode(message))
        self._send()

    def _give_up(self, number: int, fence: Fence) -> None:
        """Drop a fence that was never handed out; what arrives for it is kept, not closed."""
        self._strays += fence.surrender()
        self.forget(number)
        self.send(protocol.Drop(fence=number))

    def _send(self) -> None:
        while not self.is_gone:
            packet = self._next_packet()
            if packet is None:
                return
            try:
                self._connection.send(packet)
            except BlockingIOError:
                self._unsent.appendleft(packet)
                self._is_full.set()
                return
            except OSError as error:
                # The end of the guardian is told by the receiving side.
                log.debug("guardian_deaf", reason=str(error))
                return

    def _next_packet(self) -> bytes | None:
        if self._unsent:
            return self._unsent.popleft()
        if not self._is_flush_due:
            return None
        for group in self._groups:
            packet = group.next_packet()
            if packet is not None:
                return packet
        batch = dict(list(self._leases.items())[: protocol.RENEWALS_MAX])
        if not batch:
            self._is_flush_due = False
            return None
        for number in batch:
            del self._leases[number]
        return protocol.encode(protocol.Renew(leases=tuple(batch.items())))

    def _flush_now(self) -> None:
        self._flushed_s = trio.current_time()
        self._is_flush_due = True
        self._send()

    async def _flush_when_wanted(self) -> None:
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted = trio.Event()
            await trio.sleep_until(self._flushed_s + _FLUSH_GAP_S)
            self._flush_now()

    async def _send_when_possible(self) -> None:
        while True:
            await self._is_full.wait()
            self._is_full = trio.Event()
            with suppress(OSError):
                await trio.lowlevel.wait_writable(self._connection)
            self._send()

    async def _receive(self) -> None:
        """Take messages until the guardian's end is closed."""
        while True:
            await trio.lowlevel.wait_readable(self._connection)
            try:
                packet, control, flags, _ = self._connection.recvmsg(
                    protocol.PACKET_BYTES_MAX,
                    socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                continue
            except ConnectionError:
                return
            if not packet:
                return
            if flags & socket.MSG_CTRUNC:
                raise UnavailableError(
                    "no descriptor is left for the locks of a database: raise the limit of open "
                    "files (ulimit -Hn, LimitNOFILE= in the unit)."
                )
            self._take(protocol.decode(packet), _descriptors_of(control))

    def _take(
        self, message: protocol.ToDaemon | protocol.ToGuardian, descriptors: tuple[int, ...]
    ) -> None:
        assert isinstance(message, protocol.Held | protocol.Failed | protocol.Replaced)
        fence = self._fences.get(message.fence)
        if fence is None:
            self._strays += descriptors
            return
        match message:
            case protocol.Held():
                fence.on_held(message.ticket, descriptors)
            case protocol.Failed():
                fence.on_failed(message)
            case protocol.Replaced():
                log.error("database_replaced", path=str(fence.path))
                fence.mark_replaced()

    async def _seize_all(self) -> None:
        self.is_gone = True
        contended = [fence for fence in self._fences.values() if not fence.on_gone()]
        log.error("guardian_gone", fences=len(self._fences), contended=len(contended))
        if self.on_gone is not None:
            self.on_gone()
        with trio.move_on_after(_SEIZE_S_MAX):
            async with trio.open_nursery() as nursery:
                for fence in contended:
                    nursery.start_soon(fence.seize)


def _descriptors_of(control: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data)
    return tuple(found)


def inherited_connection(environment: Mapping[str, str]) -> socket.socket | None:
    """Return our end of the socket to the guardian; None when there is no guardian.

    ``environment`` is this process's; the variable is not for its children. Raises `UsageError`
    when the variable names something else.
    """
    text = environment.get(protocol.GUARDIAN_FD)
    if text is None:
        return None
    try:
        descriptor = int(text)
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise UsageError(_not_a_socket(text))
    except (ValueError, OSError) as error:
        raise UsageError(_not_a_socket(text)) from error
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def _not_a_socket(text: str) -> str:
    return (
        f"{protocol.GUARDIAN_FD}={text} is not the guardian's socket: it is set by `basenet serve` "
        "for the daemon that it starts; unset it."
    )
