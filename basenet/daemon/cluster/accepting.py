"""What a node held beyond a forced lineage is kept, before it follows that lineage (B44).

Theory of operation
===================

::

    left      ... ── 40 ── 41 ── 42 ── 43 ── what was committed and is in no frame
    forced           40 ── 41'
                     parent

Everything above the parent's frame goes into one bundle: what was final here, the branch up to what
the file holds (or else up to what this node voted for), and what its application committed behind
that. It is marked *was final*. Where the very frame of the parent is not held (another history, or
a log that begins above it) nobody can tell here where the two part: then all frames that are held
are kept, behind the lowest of them, and a copy of the database beside it.

The bundle is durable before the record of the birth changes, and named by what is in it: a crash in
between repeats it, and finds it there.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from basenet.daemon.cluster.branch import Branch
from basenet.daemon.cluster.file import ReplicaFile, decode_intent
from basenet.daemon.cluster.forcing import climb
from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.orphaning import note_bundle, seal_unproposed, write_once
from basenet.daemon.cluster.orphans import FOLDER, BundleFacts, Reason
from basenet.daemon.cluster.placing import capture_all
from basenet.daemon.node import Node
from basenet.engine.birth_events import KeepOrphans
from basenet.engine.forced import compute_orphans
from basenet.errors import ConflictError, UnavailableError
from basenet.journal.journal import Journal
from basenet.journal.records import ReplicaRecord
from basenet.sqlite.captured import Captured, Cursor
from basenet.units import MIB, LocalNumber, PublicKeyBytes, Seq, ShardId
from basenet.wire.frame import Frame, Head, Kind, decode_frame, encode_frame
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_commit_summary
from basenet.wire.signature import AnySigner

log = structlog.get_logger()

_READ_BYTES: Final = 16 * MIB
_RETRY_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What was kept of a lineage that is left: how many commits, behind which seq."""

    commits: int
    kept_seq: Seq


class Leaver:
    """Keeps what one shard holds beyond a forced lineage."""

    def __init__(
        self,
        *,
        node: Node,
        signer: AnySigner,
        shard: ShardId,
        open_file: Callable[[], Awaitable[ReplicaFile | None]],
        report: Callable[[str, None], None],
    ) -> None:
        """``open_file`` opens the database and fences it; None where there is none."""
        self._node = node
        self._signer = signer
        self._shard = shard
        self._open_file = open_file
        self._report = report

    async def leave(self, orphans: KeepOrphans) -> Left | None:
        """Make durable what is held beyond ``orphans``, trying for ever; None: nothing.

        No term is at work. Raises `CorruptionError`.
        """
        record = await self._node.journalist.perform(
            lambda journal: journal.load_replica(self._shard)
        )
        if record is None or record.lineage != orphans.lineage:
            return None
        while True:
            try:
                return await self._keep(record, orphans, await self._open_file())
            except (ConflictError, UnavailableError) as error:
                self._report(str(error), None)
                await trio.sleep(_RETRY_S)

    async def _keep(
        self, record: ReplicaRecord, orphans: KeepOrphans, file: ReplicaFile | None
    ) -> Left | None:
        frames = Frames(self._shard, self._node.journalist)
        chain = await self._chain(record)
        found = compute_orphans(
            record.lineage,
            (orphans.parent_seq, orphans.parent_hash),
            tuple(chain),
            record.ballot.final.height,
        )
        heads = list(found.heads)
        items = await self._uncaptured(record, file) if file is not None else []
        if not heads and not items:
            return None
        beyond = {head.hash for head in found.heads}
        below = [head for head in chain if head.hash not in beyond]
        if below:
            kept = below[-1]
        else:
            kept = heads.pop(0)
            if file is not None:
                await file.keep_aside(record.lineage)
            if not heads and not items:
                return None  # no frame is held that the copy does not tell of
        branch = await self._branch(record)
        get = frames.getter(self._node.journalist.journal)
        tip = heads[-1] if heads else kept
        unproposed = await trio.to_thread.run_sync(
            lambda: seal_unproposed(items, branch=branch, tip=tip, signer=self._signer, get=get),
            limiter=self._node.work_limiter,
        )
        return await self._write(record, heads, unproposed, kept)

    async def _chain(self, record: ReplicaRecord) -> list[Head]:
        """Return the heads of all that is held, ascending: the log and one branch above it."""
        by_hash = {head.hash: head for head in (*record.heads, record.tip)}
        path = climb(record, by_hash, record.place[1])
        voted = record.ballot.voted
        if not path and voted is not None:
            path = climb(record, by_hash, voted.hash)
        heads = await self._node.journalist.read(
            lambda journal: list(_log_heads(journal, self._shard, record.tip.seq))
        )
        return [*(heads or [record.tip]), *path]

    async def _branch(self, record: ReplicaRecord) -> Branch:
        leaves = await self._node.journalist.read(lambda journal: journal.leaves(self._shard))
        return Branch(StateTree(record.page_size, leaves), (record.tip.seq, record.tip.hash))

    async def _uncaptured(self, record: ReplicaRecord, file: ReplicaFile) -> list[Captured]:
        """Return what was committed behind what the journal knows of."""
        await file.held()
        intent = decode_intent(record.intent) if record.intent is not None else None
        cursor = Cursor.decode(record.cursor) if record.cursor is not None else None
        standing = await file.inspect(cursor, intent)
        if standing.cursor is None or not standing.commits:
            return []
        behind = standing.cursor
        return await trio.to_thread.run_sync(
            capture_all, file.database, behind, limiter=self._node.capture_limiter
        )

    async def _write(
        self,
        record: ReplicaRecord,
        heads: Sequence[Head],
        unproposed: Sequence[Frame],
        kept: Head,
    ) -> Left:
        journal = self._node.journalist.journal
        waiting = sum(decode_commit_summary(frame.payload).commits for frame in unproposed)
        own, of_others = await self._node.journalist.read(
            lambda journal: _count(_frames(journal, self._shard, heads), self._signer.public)
        )
        own += waiting
        commits = own + of_others
        end = unproposed[-1].head if unproposed else (*heads, kept)[len(heads) - 1]
        last = LocalNumber(record.local_last + waiting)
        facts = BundleFacts(
            shard=self._shard,
            lineage=record.lineage,
            kept_seq=kept.seq,
            kept_hash=kept.hash,
            kept_root=kept.state_root,
            page_size=0,
            db_pages=0,
            reason=Reason.FORCED,
            created_ns=end.timestamp_ns,
            first_local=LocalNumber(max(1, last - own + 1)),
            last_local=LocalNumber(max(last, 0)),
            unproposed_seq=unproposed[0].head.seq if unproposed else Seq(0),
        )

        def records() -> Iterator[bytes]:
            for frame in _frames(journal, self._shard, heads):
                yield encode_frame(frame)
            for frame in unproposed:
                yield encode_frame(frame)

        path, facts = await trio.to_thread.run_sync(
            lambda: write_once(
                self._node.config.data_dir / FOLDER,
                facts,
                [*(head.hash for head in heads), *(frame.head.hash for frame in unproposed)],
                records,
                certificate=None,
                signer=self._signer,
            ),
            limiter=self._node.background_limiter,
        )
        await note_bundle(self._node, facts, path, commits)
        return Left(commits=commits, kept_seq=kept.seq)


def _count(frames: Iterator[Frame], mine: PublicKeyBytes) -> tuple[int, int]:
    """Return how many commits are of ``mine``, and how many of others."""
    own = of_others = 0
    for frame in frames:
        if frame.head.kind is not Kind.COMMIT:
            continue
        commits = decode_commit_summary(frame.payload).commits
        if frame.head.author == mine:
            own += commits
        else:
            of_others += commits
    return own, of_others


def _log_heads(journal: Journal, shard: ShardId, last: Seq) -> Iterator[Head]:
    at = journal.first_seq(shard)
    while at <= last:
        rows = journal.frames(shard, at, last, _READ_BYTES)
        if not rows:
            return
        for seq, record in rows:
            frame = decode_frame(record)
            assert isinstance(frame, Frame), "the journal holds no frame of version 1"
            yield frame.head
            at = Seq(seq + 1)


def _frames(journal: Journal, shard: ShardId, heads: Sequence[Head]) -> Iterator[Frame]:
    """Yield the frames of ``heads``, of the log or the branch; on the reading connection."""
    for head in heads:
        record = journal.branch_frame(shard, head.hash)
        if record is None:
            record = next(one for _, one in journal.frames(shard, head.seq, head.seq, 1))
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "the journal holds no frame of version 1"
        yield frame
