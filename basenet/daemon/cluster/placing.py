"""Where a shard's database file stands when a term begins, and what was committed behind that.

Theory of operation
===================

The journal names the *place* of the file, a frame, and where capture stood then. From there on the
log is read::

    nothing behind            the file is at its place
    an injection of ours      the intent names it: the place is its end
    commits                   they wait for a frame, or are a stranger's; on a file that is behind
                              the journal's log they are kept as the next line says
    another log               pages are compared with the state at the place; what differs is kept
                              aside, as a whole file, and ours is mended
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from basenet.daemon.cluster.branch import Branch
from basenet.daemon.cluster.file import Outcome, ReplicaFile, decode_intent
from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.settling import Place
from basenet.daemon.node import Node
from basenet.engine.adoption import NOWHERE
from basenet.errors import CorruptionError
from basenet.journal.journal import Journal
from basenet.journal.records import OrphanRow, ReplicaRecord
from basenet.sqlite.attach import Database
from basenet.sqlite.capture import Capture
from basenet.sqlite.captured import Captured, Cursor
from basenet.units import LocalNumber, ShardId, TimestampNs
from basenet.wire.frame import Frame, Head, decode_frame

log = structlog.get_logger()

REPLACED: Final = "the file that lay there did not go on from the shard's own"
"""Why a whole file is in the index of what was put aside."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the file holds. ``cursor``: capture goes on there; None: nothing was committed since.

    ``items``: changes that were told by pages, in front of the cursor.
    """

    place: Place
    cursor: Cursor | None = None
    items: Sequence[Captured] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Finds the place of one shard's file."""

    node: Node
    shard: ShardId
    file: ReplicaFile
    branch: Branch
    frames: Frames

    async def find(self, record: ReplicaRecord, *, is_file_new: bool) -> Found:
        """Return where the file stands; under the fence, before anything is applied."""
        if record.place == NOWHERE:
            return Found(NOWHERE)
        if is_file_new:
            return await self._find_new(record)
        intent = decode_intent(record.intent) if record.intent is not None else None
        cursor = Cursor.decode(record.cursor) if record.cursor is not None else None
        standing = await self.file.inspect(cursor, intent)
        place = record.place
        if intent is not None and standing.is_applied:
            place = intent.place
        is_at_end = place[0] >= record.tip.seq
        if standing.outcome is Outcome.UNKNOWN:
            if intent is not None and self._has_peers(record):
                # Applied or not: an application that closed last has left no log to tell.
                place = max(place, intent.place)
            return await self._find_by_pages(record, place, standing.reason)
        if not standing.commits:
            return Found(place)
        log.warning(
            "commits_found",
            shard=self.shard,
            commits=standing.commits,
            reason=standing.reason,
        )
        if not is_at_end:
            # No tree tells the state below the end of the log, so only the file does.
            return await self._set_aside(record)
        return Found(place, standing.cursor)

    async def _find_by_pages(self, record: ReplicaRecord, place: Place, reason: str) -> Found:
        """Return where a file stands whose log tells nothing."""
        if not (self.branch.final.db_pages or record.heads) and await self.file.is_blank():
            # To close a file empties its log, and here there is no page to know it by.
            return await self._find_new(record)
        log.warning("file_not_at_its_place", shard=self.shard, reason=reason)
        is_at_end = place[0] >= record.tip.seq
        return await (self._compare(record, place) if is_at_end else self._set_aside(record))

    async def _find_new(self, record: ReplicaRecord) -> Found:
        """Return where a file stands that holds nothing yet: at the genesis, if that is empty."""
        if self.branch.final.db_pages or record.heads:
            return await self._be_nowhere()
        cursor = (await self.file.cursor()).encode()
        await self.node.journalist.perform(
            lambda journal: journal.set_place(
                self.shard, record.place, cursor=cursor, local_last=None, intent=None
            )
        )
        return Found(record.place)

    async def _compare(self, record: ReplicaRecord, place: Place) -> Found:
        """Return what the file holds beyond ``place``, at the end of the log or above, by pages."""
        get = self.frames.getter(self.node.journalist.journal)
        heads = {head.hash: head for head in (*record.heads, record.tip)}
        if place[1] not in heads or heads[place[1]].is_partial:
            return await self._be_nowhere()
        tree = await trio.to_thread.run_sync(
            self.branch.state_at, heads[place[1]], get, limiter=self.node.work_limiter
        )
        leaves = bytes(tree.leaves) if tree.page_size == self.file.database.page_size else b""
        has_peers = self._has_peers(record)
        items: list[Captured] = []
        is_other = False

        def take(piece: Captured) -> None:
            nonlocal is_other
            if has_peers:
                # A whole other database may lie there: that it differs is enough.
                is_other = True
            else:
                items.append(piece)

        cursor = await self.file.compare(leaves, take)
        if is_other:
            return await self._set_aside(record)
        if place != record.place:
            # The intent that told of it speaks of a log that is gone.
            encoded = cursor.encode()
            await self.node.journalist.perform(
                lambda journal: journal.set_place(
                    self.shard, place, cursor=encoded, local_last=None, intent=None
                )
            )
        return Found(place, cursor, items)

    def _has_peers(self, record: ReplicaRecord) -> bool:
        """Return whether what is not the shard's own in the file is a stranger's."""
        return len(record.ballot.config.voters) > 1 and not self.file.is_adopted

    async def _set_aside(self, record: ReplicaRecord) -> Found:
        """Keep a copy of a file that does not go on from ours, and have ours mended (Q11).

        It may be another file, or the application wrote unfenced and the log has begun anew since:
        nothing tells, and a file system gives the number of a deleted file to the next one. So it
        is never adopted by a shard with peers, unless the operator said so (`cluster.resetting`).
        A lone voter has nobody to ask: what such a file holds is taken for the application's, as in
        standalone.
        """
        copy = await self.file.keep_aside(record.lineage)
        # Own frames that are not decided: should they lose, nothing but the copy has their effect.
        undecided = await self.node.journalist.read(
            lambda journal: journal.undecided_locals(self.shard)
        )
        # A stranger's commits have no numbers.
        first, last = undecided or (LocalNumber(record.local_last + 1), record.local_last)
        row = OrphanRow(
            id=f"{self.shard}/{copy.name}",
            shard=self.shard,
            lineage=record.lineage,
            path=str(copy),
            kept_seq=record.tip.seq,
            first_local=first,
            last_local=last,
            commits=last - first + 1,
            created_ns=TimestampNs(time.time_ns()),
            state="kept",
            reason=REPLACED,
        )
        await self.node.journalist.perform(lambda journal: journal.add_orphan(row))
        log.error("file_replaced", shard=self.shard, path=str(self.file.path), kept=str(copy))
        return await self._be_nowhere()

    async def _be_nowhere(self) -> Found:
        await self.note_nowhere()
        return Found(NOWHERE)

    async def note_nowhere(self) -> None:
        """Make durable that the file is at no frame: it is mended from here on."""
        await self.node.journalist.perform(
            lambda journal: journal.set_place(
                self.shard, NOWHERE, cursor=None, local_last=None, intent=None
            )
        )


def unsettled_of(record: ReplicaRecord) -> list[Head]:
    """Return the heads between the log and the ballot's final frame, ascending."""
    by_hash = {head.hash: head for head in record.heads}
    path: list[Head] = []
    digest = record.ballot.final.hash
    while digest != record.tip.hash:
        if digest not in by_hash:
            break
        path.append(by_hash[digest])
        digest = by_hash[digest].prev_hash
    path.reverse()
    return path


def find_head(journal: Journal, shard: ShardId, place: Place) -> Head:
    """Return the head of a frame of the branch or of the log; raises `CorruptionError`."""
    record = journal.branch_frame(shard, place[1])
    if record is None:
        record = next((one for _, one in journal.frames(shard, place[0], place[0], 1)), None)
    if record is None:
        raise CorruptionError(
            f"the journal lacks frame {place[0]} of shard {shard}, at which the file stands: move "
            "journal.db and what begins with its name out of the data directory"
        )
    frame = decode_frame(record)
    assert isinstance(frame, Frame), "the journal holds no frame of version 1"
    return frame.head


def capture_all(database: Database, cursor: Cursor) -> list[Captured]:
    """Return everything that was committed behind ``cursor``, under the fence; for a thread."""
    capture = Capture(database)
    capture.restart_at(cursor)
    try:
        return list(capture.poll())
    finally:
        capture.rotation.pin.release()
