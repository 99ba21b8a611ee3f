"""The way out, tried from every disk at many moments: what `members force` would keep.

Nothing is changed in the world. At each moment every honest voter is taken for the survivor: its
forced lineage must continue what is final on its own disk and everything that it voted for on top
of that. Every other node is then taken for one that accepts: each frame that is final on its disk
must be an ancestor of the parent, or in its orphan bundle.
"""

from typing import Final

from basenet.engine.forced import (
    Survivor,
    choose_parent,
    compute_orphans,
    force_lineage,
    refuse_force,
)
from basenet.engine.genesis import check_complete, read_genesis
from basenet.engine.placement import Peer
from basenet.testing.simulator.checkers import Violation, quorum_of
from basenet.testing.simulator.clock import SECOND
from basenet.testing.simulator.node import Node
from basenet.testing.simulator.world import World
from basenet.units import FrameHash, Lineage, TimestampNs
from basenet.wire.chain import check_genesis
from basenet.wire.frame import Head

_EVERY: Final = SECOND
_FORCED: Final = Lineage(b"a forced lineage")


class WayOut:
    """Looks at a world once a second of its chaos; ``looks`` counts the survivors tried."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.looks = 0
        self.orphans = 0
        for when in range(_EVERY, world.scenario.chaos, _EVERY):
            world.scheduler.at(when, self.look)

    def look(self, _: object) -> None:
        """Take every honest voter for the survivor."""
        honest = [node for node in self._world.nodes if node.is_honest]
        for survivor in honest:
            ballot = survivor.disk.ballot
            member = (survivor.key, survivor.disk.journal_id)
            if member in {(voter.key, voter.journal_id) for voter in ballot.config.voters}:
                self._check_refusal(survivor)
                parent = self._force(survivor)
                kept = {head.hash for head in self._chain(survivor, parent)}
                for node in honest:
                    self._accept(node, parent, kept)
                self.looks += 1

    def _force(self, survivor: Node) -> Head:
        """Make the forced lineage and judge it; return its parent."""
        disk, world = survivor.disk, self._world
        ballot = disk.ballot
        parent = choose_parent(ballot, lambda digest: self._head(survivor, digest))
        chain = {head.hash for head in self._chain(survivor, parent)}
        if ballot.final.hash not in chain:
            raise Violation(f"way out: {survivor.name} forces a lineage without what is final")
        voted = ballot.voted
        if voted is not None and voted.height > ballot.final.height:
            branch = self._chain(survivor, disk.frames[voted.hash].head)
            if ballot.final.hash in {head.hash for head in branch} and voted.hash not in chain:
                raise Violation(f"way out: {survivor.name} forces a lineage without its own vote")
        genesis = force_lineage(
            Survivor(
                peer=Peer("survivor", survivor.key),
                journal_id=disk.journal_id,
                signer=survivor.signer,
            ),
            parent.shard,
            ballot.config,
            parent,
            lineage=_FORCED,
            salt=bytes(16),
            timestamp_ns=TimestampNs(0),
        )
        check_genesis(genesis.head, genesis.config, parent)
        check_complete(genesis, None, world.notary.verify)
        if read_genesis(genesis.record, parent.shard, world.notary.verify) != genesis:
            raise Violation("way out: a forced genesis does not survive its bytes")
        return parent

    def _accept(self, node: Node, parent: Head, kept: set[FrameHash]) -> None:
        """Let ``node`` accept the lineage over ``parent`` and look for what it would lose."""
        disk = node.disk
        final = disk.frames.get(disk.ballot.final.hash)
        if final is None:
            return
        chain = tuple(reversed(self._chain(node, final.head)))
        place = (parent.seq, parent.hash)
        orphans = compute_orphans(disk.ballot.config.lineage, place, chain, final.head.seq)
        bundle = {head.hash for head in orphans.heads}
        lost = [head.seq for head in chain if head.hash not in kept | bundle]
        if lost:
            raise Violation(f"way out: {node.name} accepts and loses the final frames {lost}")
        self.orphans += len(bundle)

    def _check_refusal(self, survivor: Node) -> None:
        """Compare the refusal with a count of our own, for whoever has power now."""
        config = survivor.disk.ballot.config
        there = frozenset(
            (node.key, node.disk.journal_id) for node in self._world.nodes if node.is_powered
        )
        count = sum((voter.key, voter.journal_id) in there for voter in config.voters)
        if (refuse_force(config, there) is not None) != (count >= quorum_of(config)):
            raise Violation(f"way out: {count} of {len(config.voters)} voters answer")

    @staticmethod
    def _head(node: Node, digest: FrameHash) -> Head | None:
        frame = node.disk.frames.get(digest)
        return frame.head if frame else None

    def _chain(self, node: Node, tip: Head) -> list[Head]:
        """Return ``tip`` and what the node holds below it, descending."""
        chain, head = [], self._head(node, tip.hash)
        while head is not None:
            chain.append(head)
            head = self._head(node, head.prev_hash)
        return chain
