"""A voter without a database: it keeps frames and leaf hashes, judges roots and votes (Q19).

Theory of operation
===================

A witness is a cheap third voter: two nodes with data and a witness survive the loss of any one. Its
term is that of any replica, with two things missing:

*The file.* There is none, so what is final is only settled: frames, leaf hashes and certificates
in the journal. Where a node was away too long it fetches leaf hashes (32 bytes a page), never
pages. A database that lies at the configured path is left alone.

*The lead.* Its replica never hears that the database holds anything, so no application may ever
write here; when its turn to lead comes, it hands over to a voter with data (`cluster.tending`).

What it keeps counts for finality and never as a copy of the data: CONFIG sees to it that no quorum
is without a database (`engine.configuration`).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.placing import Found
from basenet.daemon.cluster.settling import Place
from basenet.daemon.cluster.term import Term
from basenet.engine.adoption import NOWHERE
from basenet.journal.records import ReplicaRecord
from basenet.sqlite.captured import Cursor
from basenet.sqlite.inject import Prepared
from basenet.units import Seq, ShardId
from basenet.wire.merkle import StateTree
from basenet.wire.payload import CommitPayload

_NO_CURSOR: Final = Cursor(
    device=0, inode=0, page_size=0, salts=bytes(8), frame=0, checksum=(0, 0), change=0
)


class NoFile(ReplicaFile):
    """What a witness has in place of a database: nothing is opened, fenced or written."""

    def __init__(self, *, shard: ShardId, path: Path, limiter: trio.CapacityLimiter) -> None:
        super().__init__(shard=shard, path=path, guard=None, limiter=limiter)

    @property
    def is_fenced(self) -> bool:
        """Return False: there is no log to keep short."""
        return False

    async def open(self, *, page_size: int = 0) -> bool:  # noqa: ARG002  (of `ReplicaFile`)
        """Open nothing."""
        return False

    async def prepare(
        self,
        changes: Sequence[Iterable[CommitPayload]],  # noqa: ARG002  (of `ReplicaFile`)
    ) -> Prepared | None:
        """Return None: there is nothing to inject."""
        return None

    async def cursor(self) -> Cursor:
        """Return the place in no log; no capture ever begins there."""
        return _NO_CURSOR


class WitnessTerm(Term):
    """A term whose file is a `NoFile`."""

    async def _find_place(self, record: ReplicaRecord) -> Found:
        """Return the end of the log: what is settled is all that there is."""
        return Found((record.tip.seq, record.tip.hash))

    def _build(self, record: ReplicaRecord, place: Place, tree: StateTree) -> None:
        """Tell the replica of no database, so that it never lets anybody write."""
        super()._build(record, NOWHERE, tree)
        self.settler.moved_to(place)

    def _on_applied(self, seq: Seq) -> None:
        """Tell the shard, and not the replica."""
        self._told.applied(seq)
