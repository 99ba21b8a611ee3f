"""Has the shard's database file brought to a final state: after a roll-back, or when it is new.

Theory of operation
===================

The target is the final state of this moment, and it moves: while pages are fetched, further frames
become final here and at the peers. A page that a later frame changed is had from that frame, which
lies in our own journal; every other page is had from any peer. So whatever a peer has not any more
for the target at hand, it has for the next one, and each round lacks less than the one before. That
holds for a page that every commit changes, too, of which peers only ever have a newer version: a
round begins when the log has the frame of its target (under a steady load something is always on
its way there), and reads all frames between the target of the first round and its own.

The journal says that the file is at no frame (`term.NOWHERE`) until all of it is injected, in one
transaction that readers see as a whole.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

import structlog
import trio

from basenet.daemon.cluster.branch import Branch
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.mending import MendResult, Target
from basenet.daemon.cluster.settling import Place, Settler
from basenet.daemon.node import Node
from basenet.errors import UnavailableError
from basenet.journal.journal import Journal
from basenet.units import GROUP_PAGES, MIB, Seq, ShardId
from basenet.wire.frame import Frame, Kind, decode_frame
from basenet.wire.payload import decode_commit

log = structlog.get_logger()

Wants = Sequence[tuple[int, bytes]]
FetchPages = Callable[[Wants, int], Awaitable[Mapping[int, bytes]]]
_FRAMES_BYTES_MAX: Final = 256 * MIB
_PAUSE_S: Final = 0.2
_PAUSE_S_MAX: Final = 5.0
_SCHEMA_LOOK_S: Final = 0.5


class Repair:
    """Mends one shard's file."""

    def __init__(
        self,
        *,
        node: Node,
        shard: ShardId,
        file: ReplicaFile,
        branch: Branch,
        settler: Settler,
        fetch: FetchPages,
    ) -> None:
        """``fetch`` asks peers for pages of the given page size."""
        self._node = node
        self._shard = shard
        self._file = file
        self._branch = branch
        self._settler = settler
        self._fetch = fetch
        self.problem: str | None = None
        self.rounds = 0
        self._since: Seq | None = None

    async def run(self, pgnos: set[int] | None) -> None:
        """Mend until the file is at a final state; ``pgnos``: what may differ, None: any page."""
        pause_s = _PAUSE_S
        self._since = None
        log.info("mending", shard=self._shard, pages=None if pgnos is None else len(pgnos))
        while True:
            self.rounds += 1
            try:
                place, result = await self._round(pgnos)
            except UnavailableError as error:
                if str(error) != self.problem:
                    log.warning("mending_waits", shard=self._shard, reason=str(error))
                self.problem = str(error)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
                continue
            break
        if result is not None:
            await self._wait_for_old_connections(result)
        await self._note(place)
        self.problem = None
        log.info("mended", shard=self._shard, seq=place[0])

    async def _round(self, pgnos: set[int] | None) -> tuple[Place, MendResult | None]:
        await self._file.held()
        async with self._branch.lock:
            place = self._branch.final_place
            tree = await trio.to_thread.run_sync(
                self._branch.final.copy, limiter=self._node.work_limiter
            )
        await self._settler.reached(place[0])
        self._since = place[0] if self._since is None else self._since
        looked_at = None
        if pgnos is not None:
            looked_at = sorted(pgnos | _pages_of(self._settler.changed_groups))
        target = Target(
            page_size=tree.page_size or self._file.database.page_size,
            db_pages=tree.db_pages,
            leaf=tree.leaf,
            pgnos=None if looked_at is None else [one for one in looked_at if one <= tree.db_pages],
        )
        async with self._settler.file_lock:
            result = await self._file.mend(target, _Sources(self, target, place[0]))
        log.info(
            "mended_pages",
            shard=self._shard,
            seq=place[0],
            pages=result.pages,
            from_file=result.from_file,
            from_frames=result.from_frames,
            from_peers=result.from_peers,
        )
        return place, result

    async def _wait_for_old_connections(self, result: MendResult) -> None:
        """Stay fenced while a connection may know a schema that was undone (P6)."""
        if not result.is_schema_undone:
            return
        while self._file.database.others_connected():
            if self.problem is None:
                self.problem = (
                    "a change of the schema was rolled back: restart the application, so that no "
                    "connection goes on with the schema that it knew"
                )
                log.error("restart_the_application", shard=self._shard, reason=self.problem)
            await trio.sleep(_SCHEMA_LOOK_S)

    async def _note(self, place: Place) -> None:
        cursor = await self._file.cursor()
        encoded = cursor.encode()
        await self._node.journalist.perform(
            lambda journal: journal.set_place(
                self._shard, place, cursor=encoded, local_last=None, intent=None
            )
        )
        self._settler.moved_to(place)

    # What sources ask.

    def journal_frames(self, last: Seq) -> Iterator[Frame]:
        """Yield frames of the journal's log from ``last`` downwards; for a thread."""
        journal = self._node.journalist.journal
        return newest_frames(journal, self._shard, last, since=self._since or last)

    async def fetch(self, wants: Wants, page_size: int) -> Mapping[int, bytes]:
        """Ask peers for pages."""
        return await self._fetch(wants, page_size)


class _Sources:
    """Where pages come from: `mending.PageSources`."""

    def __init__(self, repair: Repair, target: Target, seq: Seq) -> None:
        """``seq``: of the frame whose state ``target`` is."""
        self._repair = repair
        self._target = target
        self._seq = seq

    def images(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yield (pgno, image) of frames, the newest first."""
        for frame in self._repair.journal_frames(self._seq):
            if frame.head.kind is not Kind.COMMIT:
                continue
            payload = decode_commit(frame.payload)
            for index, pgno in enumerate(payload.pgnos.tolist()):
                yield pgno, payload.page(index)

    async def fetch(self, wants: Wants) -> Mapping[int, bytes]:
        """Ask peers for pages by number and leaf hash."""
        return await self._repair.fetch(wants, self._target.page_size)

    async def wait_for_more(self) -> bool:
        """Return False: the next round aims at a newer state."""
        return False


def newest_frames(journal: Journal, shard: ShardId, last: int, *, since: int) -> Iterator[Frame]:
    """Yield the frames of the log from ``last`` downwards: those above ``since``, however many.

    And as many more as are worth reading.
    """
    first = journal.first_seq(shard)
    size, step = 0, 64
    while last >= first and (last > since or size < _FRAMES_BYTES_MAX):
        start = max(first, last - step + 1)
        rows: list[bytes] = []
        at = start
        while at <= last:
            read = journal.frames(shard, at, last, 16 * MIB)
            if not read:
                return
            rows += [record for _, record in read]
            at = read[-1][0] + 1
        for record in reversed(rows):
            size += len(record)
            frame = decode_frame(record)
            assert isinstance(frame, Frame), "the journal holds no frame of version 1"
            yield frame
        last = start - 1


def _pages_of(groups: set[int]) -> set[int]:
    return {group * GROUP_PAGES + index + 1 for group in groups for index in range(GROUP_PAGES)}
