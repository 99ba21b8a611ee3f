"""Journal against archive: what `archive.continuation` decides, in the daemon's own terms."""

from basenet.archive.continuation import Child, JournalFacts
from basenet.daemon.chain import Parent
from basenet.daemon.journalist import Journalist
from basenet.journal.records import ShardRecord
from basenet.units import HASH_BYTES, FrameHash, JournalId, Seq, ShardId
from basenet.wire.frame import Frame, decode_frame
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_config


async def read_journal_facts(
    journalist: Journalist, record: ShardRecord, journal_id: JournalId
) -> JournalFacts:
    """Return what the journal says of the shard of ``record``."""
    shard = record.shard
    config = decode_config(record.config)
    sizes = await journalist.read(lambda journal: journal.frame_sizes(shard, 0))

    async def hash_at(seq: Seq) -> FrameHash | None:
        if seq == record.tip.seq:
            return record.tip.hash
        return await journalist.read(lambda journal: _hash_at(journal.frames(shard, seq, seq, 0)))

    return JournalFacts(
        journal_id=journal_id,
        lineage=record.lineage,
        config=config,
        genesis_seq=Seq(config.parent[1] + 1 if config.parent else 1),
        first_seq=sizes[0][0] if sizes else Seq(record.tip.seq + 1),
        tip_seq=record.tip.seq,
        tip_hash=record.tip.hash,
        archived_seq=record.archived_seq,
        hash_at=hash_at,
    )


def _hash_at(rows: list[tuple[Seq, bytes]]) -> FrameHash | None:
    if not rows:
        return None
    frame = decode_frame(rows[0][1])
    assert isinstance(frame, Frame), "the journal holds frames of version 2"
    return frame.head.hash


async def make_parent(
    journalist: Journalist, shard: ShardId, child: Child, record: ShardRecord | None
) -> Parent:
    """Return the parent that a child lineage is born from."""
    if child.state is None:
        assert record is not None, "only a journal's own history needs no archived state"
        leaves = await journalist.read(lambda journal: journal.leaves(shard))
        hashes = bytes(StateTree(record.page_size, leaves).groups)
        return Parent(
            lineage=child.parent,
            seq=child.seq,
            hash=child.hash,
            state_root=record.tip.state_root,
            page_size=record.page_size,
            timestamp_ns=record.tip.timestamp_ns,
            group_hashes=_split(hashes, bytes([1]) * (len(hashes) // HASH_BYTES)),
            is_forced=child.is_forced,
            is_archived=False,
        )
    state = child.state
    return Parent(
        lineage=child.parent,
        seq=child.seq,
        hash=child.hash,
        state_root=state.state_root,
        page_size=state.page_size,
        timestamp_ns=state.head.timestamp_ns,
        group_hashes=_split(state.groups, state.known),
        is_forced=child.is_forced,
        is_archived=not child.needs_snapshot,
        has_regressed=child.has_regressed,
    )


async def make_parent_of_copy(journalist: Journalist, record: ShardRecord) -> Parent:
    """Return what a copied journal continues as a child: its own history, up to its tip (Q4)."""
    child = Child(
        parent=record.lineage,
        seq=record.tip.seq,
        hash=record.tip.hash,
        state=None,
        is_forced=False,
        archive_epoch=0,
    )
    return await make_parent(journalist, record.shard, child, record)


def _split(groups: bytes, known: bytes) -> tuple[bytes | None, ...]:
    return tuple(
        groups[index * HASH_BYTES : (index + 1) * HASH_BYTES] if is_known else None
        for index, is_known in enumerate(known)
    )
