"""A forced lineage begins on the survivor: its file is brought to the frame that it goes on from.

Theory of operation
===================

The parent of a forced lineage is the highest frame that this node voted for (`engine.forced`). It
is not final in the lineage that is left, so a replica's file does not have it yet::

    log (final)          branch
    ... ── 40 ── 41 ──── 42 ── 43        parent: 43, voted for
            ^ the file                   42 and 43 are injected, then the lineage begins above 43

The pages come from the frames, which this journal holds and which go with the old lineage; so they
are injected before it does, and their intent is journalled as for any batch (Q13). A crash before
the new lineage is in the journal begins all of it anew: the birth knows the lineage already.

On a node that wrote, the file has the parent's frame and maybe commits beyond it. Those are not
lost: they are captured in the new lineage, whose only author this node is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from basenet.daemon.cluster.branch import Branch
from basenet.daemon.cluster.file import Outcome, ReplicaFile, decode_intent, encode_intent
from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.settling import Place, changes_of, read_whole
from basenet.daemon.journalist import Journalist
from basenet.engine.adoption import NOWHERE
from basenet.engine.forced import choose_parent
from basenet.errors import ConflictError, CorruptionError
from basenet.journal.records import ReplicaRecord
from basenet.sqlite.captured import Cursor
from basenet.units import HASH_BYTES, MIB, ZERO_HASH, FrameHash
from basenet.wire.frame import Head, encode_frame
from basenet.wire.merkle import StateTree, state_root

_EMPTY: Final = state_root(0, 0, ZERO_HASH)
_LOG_BYTES_MAX: Final = 256 * MIB


@dataclass(frozen=True, slots=True)
class ForcedPlan:
    """What a forced lineage goes on from. ``path``: the frames above the log up to ``parent``."""

    parent: Head
    path: tuple[Head, ...]


def plan_forced(record: ReplicaRecord) -> ForcedPlan:
    """Return what a forced lineage over ``record`` goes on from.

    Raises `ConflictError` where this node's file is no state of that history.
    """
    by_hash = {head.hash: head for head in (*record.heads, record.tip)}
    parent = choose_parent(record.ballot, by_hash.get)
    return ForcedPlan(parent, _path_to(record, by_hash, parent.hash))


def _path_to(
    record: ReplicaRecord, by_hash: Mapping[FrameHash, Head], digest: FrameHash
) -> tuple[Head, ...]:
    """Return the frames above the log up to ``digest``; check that the file can come there."""
    path = climb(record, by_hash, digest)
    known = {head.hash for head in path} | {record.tip.hash}
    is_below = record.place[0] <= record.tip.seq or record.place[1] in known
    is_above = digest in {head.hash for head in climb(record, by_hash, record.place[1])}
    if record.place == NOWHERE or not (is_below or is_above or digest == record.tip.hash):
        raise ConflictError(
            f"the database of shard {record.shard} here is being mended and holds no state of its "
            "history: force the lineage on another survivor, or restore it from the archive."
        )
    return path


def climb(
    record: ReplicaRecord, by_hash: Mapping[FrameHash, Head], digest: FrameHash
) -> tuple[Head, ...]:
    """Return the frames of the branch from above the log up to ``digest``, ascending."""
    path: list[Head] = []
    while digest in by_hash and digest != record.tip.hash:
        path.append(by_hash[digest])
        digest = by_hash[digest].prev_hash
    return tuple(reversed(path)) if digest == record.tip.hash else ()


@dataclass(frozen=True, slots=True)
class ForcedState:
    """The state of the parent; ``cursor``: where capture goes on, None: by comparing the file."""

    tree: StateTree
    cursor: bytes | None


class Forcing:
    """Brings one shard's file to the parent of its forced lineage."""

    def __init__(
        self, journalist: Journalist, file: ReplicaFile, limiter: trio.CapacityLimiter
    ) -> None:
        self._journalist = journalist
        self._file = file
        self._limiter = limiter

    async def come_to(self, record: ReplicaRecord, parent: tuple[int, bytes]) -> ForcedState:
        """Bring the file to the frame ``parent``; return its state.

        The file is open and fenced. Raises `ConflictError`, `CorruptionError`, `UnavailableError`.
        """
        by_hash = {head.hash: head for head in (*record.heads, record.tip)}
        digest = FrameHash(parent[1])
        head = by_hash.get(digest)
        if head is None:
            raise CorruptionError(
                f"the journal lacks frame {parent[0]} of shard {record.shard}, from which its "
                "forced lineage goes on"
            )
        path = _path_to(record, by_hash, digest)
        frames = Frames(record.shard, self._journalist)
        tree = await self._tree_at(record, head, frames)
        cursor = await self._advance(record, path, frames, (head.seq, head.hash))
        return ForcedState(tree, cursor)

    async def _tree_at(self, record: ReplicaRecord, head: Head, frames: Frames) -> StateTree:
        leaves = await self._journalist.read(lambda journal: journal.leaves(record.shard))
        branch = Branch(StateTree(record.page_size, leaves), (record.tip.seq, record.tip.hash))
        get = frames.getter(self._journalist.journal)
        return await trio.to_thread.run_sync(branch.state_at, head, get, limiter=self._limiter)

    async def _advance(
        self, record: ReplicaRecord, path: Sequence[Head], frames: Frames, goal: Place
    ) -> bytes | None:
        """Inject what the file lacks; return where capture goes on."""
        await self._file.held()
        intent = decode_intent(record.intent) if record.intent is not None else None
        cursor = Cursor.decode(record.cursor) if record.cursor is not None else None
        standing = await self._file.inspect(cursor, intent)
        place = record.place
        if intent is not None and standing.is_applied:
            place = intent.place
        if place[0] >= goal[0]:
            if place != goal or standing.cursor is None:
                return None
            return standing.cursor.encode()
        found: Place | None = place
        if standing.outcome is Outcome.UNKNOWN:
            found = await self._recognise(record, path)
        if found is None or standing.commits:
            raise ConflictError(
                f"the database of shard {record.shard} here was changed while no fence was held: "
                "force the lineage on another survivor, or restore it from the archive."
            )
        place = found
        above = [head for head in path if head.seq > place[0]]
        records = [*await self._below(record, place), *await frames.records(above)]
        await self._apply(records, record, goal)
        return (await self._file.cursor()).encode()

    async def _recognise(self, record: ReplicaRecord, path: Sequence[Head]) -> Place | None:
        """Return which state the file has by its content, where its log does not tell."""
        leaves = await self._file.leaves()
        page_size = self._file.database.page_size
        if record.tip.state_root == _EMPTY and len(leaves) <= HASH_BYTES:
            return record.tip.seq, record.tip.hash  # made just now, and nothing was written to it
        root = StateTree(page_size, leaves).root()
        return next(
            (
                (head.seq, head.hash)
                for head in reversed((record.tip, *path))
                if head.state_root == root
            ),
            None,
        )

    async def _below(self, record: ReplicaRecord, place: Place) -> list[bytes]:
        """Return what the file lacks of the log."""
        if place[0] >= record.tip.seq:
            return []
        found = await self._journalist.read(
            lambda journal: read_whole(
                journal, record.shard, place[0] + 1, record.tip.seq, _LOG_BYTES_MAX
            )
        )
        if not found or found[-1].head.seq < record.tip.seq:
            raise ConflictError(
                f"the database of shard {record.shard} here is too far behind its history: force "
                "the lineage on another survivor."
            )
        return [encode_frame(frame) for frame in found]

    async def _apply(self, records: Sequence[bytes], record: ReplicaRecord, end: Place) -> None:
        changes = await trio.to_thread.run_sync(changes_of, records, limiter=self._limiter)
        prepared = await self._file.prepare(changes) if changes else None
        if prepared is None:
            return
        intent = encode_intent(prepared.before, prepared.after, end)
        await self._journalist.perform(
            lambda journal: journal.set_place(
                record.shard, None, cursor=None, local_last=None, intent=intent
            )
        )
        await self._file.inject(prepared)
