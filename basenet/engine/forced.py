"""The way out when the quorum is gone: a forced lineage, begun by an operator's word and no other.

Theory of operation
===================

`members force` on one survivor begins a child lineage whose only voter is that node (Q5). Its
parent is the highest frame that this node *voted* for, which keeps everything that may be final as
far as this node can know. What became final by the votes of others alone is lost, which is why the
genesis is FORCED: readers believe it only by a key that the operator named or by ``--lineage``.

It is refused while a quorum of the last CONFIG answers, for then nothing is lost and CONFIG can
remove the dead. Nobody follows it by itself: `members accept` does (`engine.knowing`), or an
emptied data directory. Who accepts keeps what it holds beyond the parent as an orphan bundle.
"""

from collections.abc import Callable
from dataclasses import dataclass

from basenet.engine.ballot import Ballot
from basenet.engine.genesis import Genesis, write_genesis
from basenet.engine.liveness import Member
from basenet.engine.placement import Peer
from basenet.units import FrameHash, JournalId, Lineage, Seq, ShardId, TimestampNs
from basenet.wire.frame import Head
from basenet.wire.payload import ConfigPayload, FaultModel, Voter, compute_members_hash
from basenet.wire.quorum import quorum_size
from basenet.wire.signature import AnySigner


def refuse_force(config: ConfigPayload, answering: frozenset[Member]) -> str | None:
    """Return why no lineage may be forced now, or None.

    ``config``: the last one that this node knows. ``answering``: who answered just now, this node
    included; a voter counts with the journal that CONFIG lists and no other.
    """
    here = [voter.node_id for voter in config.voters if (voter.key, voter.journal_id) in answering]
    quorum = quorum_size(len(config.voters), config.fault_model)
    if len(here) >= quorum:
        return (
            f"{len(here)} of {len(config.voters)} voters answer ({', '.join(here)}), which is a "
            "quorum: nothing is lost; remove the dead ones with `members remove`"
        )
    return None


def choose_parent(ballot: Ballot, head_of: Callable[[FrameHash], Head | None]) -> Head:
    """Return the frame that a forced lineage continues: the highest that this node voted for.

    ``head_of`` finds a frame that this node holds, its own final frame included. The vote counts
    when its branch goes through what is final; else the final frame is the highest.
    """
    final = head_of(ballot.final.hash)
    assert final is not None, "a node without its own final frame"
    voted = ballot.voted
    if voted is None or voted.height <= final.seq:
        return final
    parent = head = head_of(voted.hash)
    while head is not None and head.seq > final.seq:
        head = head_of(head.prev_hash)
    if parent is None or head is None or head.hash != final.hash:
        return final
    assert not parent.is_partial, "a vote inside a PARTIAL run"
    return parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """The node on which the lineage is forced."""

    peer: Peer
    journal_id: JournalId
    signer: AnySigner


def force_lineage(
    survivor: Survivor,
    shard: ShardId,
    config: ConfigPayload,
    parent: Head,
    *,
    lineage: Lineage,
    salt: bytes,
    timestamp_ns: TimestampNs,
) -> Genesis:
    """Return the genesis of a forced lineage over ``parent`` of the lineage of ``config``.

    ``config``: in force at the parent. ``lineage`` and ``salt``: 16 random bytes each. The page
    size is that of ``config``: a COMMIT says its own, so it only tells a file from none.
    """
    peer = survivor.peer
    forced = ConfigPayload(
        lineage=lineage,
        parent=(config.lineage, parent.seq, parent.hash),
        voters=(Voter(node_id=peer.node_id, key=peer.key, journal_id=survivor.journal_id),),
        page_size=config.page_size,
        members_hash=compute_members_hash([(peer.node_id, peer.key)]),
        fault_model=FaultModel.CRASH,
        is_forced=True,
    )
    return write_genesis(
        forced,
        shard=shard,
        state_root=parent.state_root,
        timestamp_ns=TimestampNs(max(timestamp_ns, parent.timestamp_ns + 1)),
        salt=salt,
        signer=survivor.signer,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphans:
    """The bundle of a node that accepts a forced lineage: ``heads``, ascending.

    Those at or below ``final_seq`` are marked `was final`.
    """

    lineage: Lineage
    heads: tuple[Head, ...]
    final_seq: Seq

    @property
    def final_count(self) -> int:
        """How many of them were final."""
        return sum(head.seq <= self.final_seq for head in self.heads)


def compute_orphans(
    lineage: Lineage, parent: tuple[Seq, FrameHash], chain: tuple[Head, ...], final_seq: Seq
) -> Orphans:
    """Return what a node keeps of its ``chain`` (ascending, all it holds) before it follows.

    Everything above the parent's frame. Where the node does not hold that very frame, nobody can
    tell here where the two histories part: everything is kept.
    """
    parent_seq, parent_hash = parent
    at_parent = next((head for head in chain if head.seq == parent_seq), None)
    is_same = at_parent is not None and at_parent.hash == parent_hash
    kept = tuple(head for head in chain if not is_same or head.seq > parent_seq)
    return Orphans(lineage=lineage, heads=kept, final_seq=final_seq)
