"""When the file itself says that it is read-only: BASE_FENCE=readonly, on top of the lock.

Theory of operation
===================

The lock fence needs a process that holds it. A container that is killed as a whole, a machine that
is started again, a guardian that is frozen with its daemon: then nobody holds anything, and an
application writes. With BASE_FENCE=readonly page 1 carries the read-only mark, too, wherever this
node does not write (`sqlite.page1`)::

    follows      another node leads, or none has for `_GRACE_S`        marked
    is cut off   it leads, and no quorum answers any more              marked
    leads        capture begins behind the place where it is cleared   not marked, since
                                                                       the fence opens only then
    is mended    before the first page is fetched (`ReplicaFile.mend`) marked
    ends         by SIGTERM, or for a command of the operator          marked

A mark is put there and taken away as everything is applied: under the lock, page 1 as one commit,
its intent journalled first with the place at which the file stands already. So a crash leaves the
file marked or not, and the next start knows the commit for ours; to be marked twice or to be
cleared twice is nothing.

*What the application committed and is in no frame yet* stands in front of the mark: no place tells
of both. So capture ends first (`_retire`), which takes that all of it is sealed and durable. Where
it cannot be sealed, since somebody else leads, the file is marked after a while all the same, and
nothing is journalled: capture takes the mark for a commit that changes nothing.

With BASE_FENCE=lock a mark that is found is taken away as soon as the file is at its place.
"""

from contextlib import suppress
from typing import Final, Protocol

import structlog
import trio

from basenet.config.model import Fence
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.replica import Driver
from basenet.daemon.cluster.settling import Settler
from basenet.daemon.cluster.writing import Writer
from basenet.daemon.framer import instant
from basenet.engine.events import Instant
from basenet.errors import UnavailableError
from basenet.sqlite.captured import Captured
from basenet.units import PublicKeyBytes, ShardId

log = structlog.get_logger()

# A leader that starts again, or loses its view for a moment, keeps its applications' connections.
_GRACE_S: Final = 2.0
_PATIENCE_S: Final = 5.0
_PAUSE_S: Final = 0.2
_FOREVER: Final = float("inf")


class Marked(Protocol):
    """What is marked; `term.Term` satisfies it."""

    shard: ShardId
    file: ReplicaFile
    driver: Driver
    settler: Settler
    writer: Writer | None

    @property
    def leads(self) -> bool:
        """Whether this node leads, answered or not."""
        ...

    def lease_until(self) -> Instant:
        """Return until when a quorum gave its lease; the past without one."""
        ...

    async def end_writing(self) -> list[Captured]:
        """End the term of writing, if there is one; return what is in no frame."""
        ...


class Marking:
    """Keeps the mark of one term's file; `run` ends by an error."""

    def __init__(self, term: Marked, *, me: PublicKeyBytes, fence: Fence) -> None:
        self._term = term
        self._me = me
        self._is_wanted = fence is Fence.READONLY
        self.lock = trio.Lock()
        """Held by whoever begins or ends a term of writing."""
        self.retired: Writer | None = None
        """The writer that was ended for a mark: what of it is not final, it still knows."""
        self._is_busy = False
        self._news = trio.Event()
        self._led_s = trio.current_time()

    @property
    def is_open(self) -> bool:
        """Whether nothing but the lock keeps the application from writing."""
        return not self._is_busy and not self._term.file.is_read_only

    def look(self) -> None:
        """Take note of a step of the replica; costs nothing while all is as it should be."""
        if self._term.file.is_read_only is self._is_wanted:
            return
        if self._is_wanted and self._leads:
            self._led_s = trio.current_time()
        else:
            self._news.set()

    @property
    def _leads(self) -> bool:
        """Whether this node leads; a leader that no quorum answers has stopped, and does not."""
        term = self._term
        return term.leads and (term.driver.can_seal or term.lease_until() > instant())

    async def run(self) -> None:
        """Mark the file, or take the mark away, whenever that becomes right."""
        while True:
            self._news = trio.Event()
            wait_s = self._wait_s()
            if wait_s > 0:
                with trio.move_on_after(wait_s):
                    await self._news.wait()
                continue
            with suppress(UnavailableError):
                if await self._turn():
                    continue
            await trio.sleep(_PAUSE_S)

    def _wait_s(self) -> float:
        """Return for how long there is nothing to do, as far as can be told now."""
        term = self._term
        if not term.file.is_open or term.file.is_read_only is self._is_wanted:
            return _FOREVER
        if not self._is_wanted:
            return 0.0
        if self._leads:
            return _FOREVER
        if term.driver.replica.leader != self._me:
            return 0.0
        return max(0.0, self._led_s + _GRACE_S - trio.current_time())

    async def _turn(self) -> bool:
        """Let the file say what it should; return False if that cannot be now."""
        term = self._term
        async with self.lock:
            if self._wait_s() > 0:
                return True
            self._is_busy = True
            try:
                await term.file.held()
                if self._wait_s() > 0:
                    return True
                if not term.settler.is_file_ready:
                    return False
                is_at_rest = await self._retire()
                is_patient = trio.current_time() < self._led_s + _GRACE_S + _PATIENCE_S
                if not is_at_rest and is_patient:
                    return False
                return await self._mark(is_read_only=self._is_wanted, is_noted=is_at_rest)
            finally:
                self._is_busy = False

    async def make_writable(self) -> bool:
        """Take the mark away before this node's application may write; False: not yet.

        The caller has `lock`. Raises `UnavailableError`, as everything that applies does.
        """
        term = self._term
        if not term.file.is_read_only:
            return True
        self._is_busy = True
        try:
            await term.file.held()
            is_at_rest = term.settler.is_caught_up and await self._retire()
            if not is_at_rest or not await self._mark(is_read_only=False, is_noted=True):
                return False
        finally:
            self._is_busy = False
        if term.file.database.others_connected():
            log.warning("reopen_connections", shard=term.shard)
        return True

    async def leave(self) -> None:
        """Mark the file at the end of a term; the fence is held, or about to be."""
        term = self._term
        if not self._is_wanted or not term.file.is_open:
            return
        async with self.lock:
            self._is_busy = True  # for good: nobody writes in this term any more
            if term.file.is_read_only or not term.settler.is_file_ready:
                return
            await term.file.held()
            is_at_rest = await self._retire()
            await self._mark(is_read_only=True, is_noted=is_at_rest)

    async def _mark(self, *, is_read_only: bool, is_noted: bool) -> bool:
        was = self._term.file.is_read_only
        is_done = await self._term.settler.mark(is_read_only=is_read_only, is_noted=is_noted)
        if is_done and was is not is_read_only:
            event = "file_read_only" if is_read_only else "file_writable"
            log.info(event, shard=self._term.shard, is_noted=is_noted)
        return is_done

    async def _retire(self) -> bool:
        """End capture where all that was committed is in durable frames; return whether it is.

        The fence is held, so nothing is committed meanwhile.
        """
        term = self._term
        writer, performer = term.writer, term.driver.performer
        if writer is None:
            return not performer.is_undoing
        if not await writer.follower.look() or not self._is_at_rest(writer):
            return False
        self.retired = writer
        left = await term.end_writing()
        assert not left, "commits under a fence that is held"
        return not performer.is_undoing

    def _is_at_rest(self, writer: Writer) -> bool:
        driver = self._term.driver
        is_durable = driver.performer.is_idle and not driver.replica.is_run_open
        return is_durable and writer.is_at_rest
