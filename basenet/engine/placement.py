"""Who may take part in a shard: the membership of a birth, and where a new shard is placed.

Theory of operation
===================

M, the *membership*, is fixed by configuration and never by who is up (Q1): two halves of a cluster
that cannot see each other must not both believe to be all of it. So it is either complete or it is
not there at all::

    static BASE_PEERS    each entry has said HELLO at least once, and so has a node id and a key
    DNS names            exactly BASE_BOOTSTRAP_EXPECT distinct (id, key) have said HELLO

The driver keeps what it heard for as long as it runs: a member that has since gone stays one.

The *order* of M for a shard is that of rendezvous hashing: each member's score is the first 8 bytes
of SHA256(shard || 00 || node id), and the lowest comes first. Every node computes the same order
from the same M, and each shard has another one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from basenet.units import PublicKeyBytes, ShardId
from basenet.wire.payload import compute_members_hash

UNKNOWN: Final = "the membership is not known yet"
_SCORE_BYTES: Final = 8


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """A node: the id in its certificate, and its key."""

    node_id: str
    key: PublicKeyBytes


@dataclass(frozen=True, slots=True)
class Membership:
    """M: the nodes of the cluster, ascending by id; ids and keys are each unique."""

    peers: tuple[Peer, ...]

    @property
    def hash(self) -> bytes:
        """SHA256(M), which the genesis carries."""
        return compute_members_hash((peer.node_id, peer.key) for peer in self.peers)

    def order(self, shard: ShardId) -> tuple[Peer, ...]:
        """Return the members in the order of preference for ``shard``."""
        return tuple(sorted(self.peers, key=lambda peer: (score(shard, peer.node_id), peer)))


def score(shard: ShardId, node_id: str) -> bytes:
    """Return the rendezvous score of a node for ``shard``: the lowest comes first."""
    return sha256(f"{shard}\0{node_id}".encode("ascii")).digest()[:_SCORE_BYTES]


def compute_static_membership(me: Peer, entries: Mapping[str, Peer | None]) -> Membership | str:
    """Return M under static BASE_PEERS, or the sentence that says why it is not complete.

    ``entries``: each entry of BASE_PEERS, and who said HELLO there (None: nobody yet). This node is
    a member whether it is among the entries or not.
    """
    silent = sorted(text for text, peer in entries.items() if peer is None)
    if silent:
        return f"no node has said HELLO yet at {', '.join(silent)} of BASE_PEERS"
    return _compute_membership([me, *(peer for peer in entries.values() if peer is not None)])


def compute_expected_membership(
    me: Peer, greeted: Iterable[Peer], expected: int | None
) -> Membership | str:
    """Return M under DNS names, or the sentence that says why it is not complete.

    ``greeted``: every (id, key) that said HELLO since this node started. ``expected``:
    BASE_BOOTSTRAP_EXPECT, None when it is unset.
    """
    if expected is None:
        return (
            "BASE_PEERS has DNS names and BASE_BOOTSTRAP_EXPECT is unset, so no shard is born: "
            "set it to the number of nodes of the cluster"
        )
    membership = _compute_membership([me, *greeted])
    if isinstance(membership, str):
        return membership
    count = len(membership.peers)
    if count < expected:
        return f"{count} of BASE_BOOTSTRAP_EXPECT={expected} nodes have said HELLO"
    if count > expected:
        names = ", ".join(peer.node_id for peer in membership.peers)
        return (
            f"{count} nodes have said HELLO ({names}), but BASE_BOOTSTRAP_EXPECT is {expected}: "
            "correct the number, or the names in BASE_PEERS that lead to another cluster"
        )
    return membership


def _compute_membership(peers: Iterable[Peer]) -> Membership | str:
    """Return the distinct ``peers`` as M, or which two of them contradict each other."""
    distinct = sorted(set(peers))
    for field, what in (("node_id", "node id"), ("key", "key")):
        seen: dict[object, Peer] = {}
        for peer in distinct:
            other = seen.setdefault(getattr(peer, field), peer)
            if other != peer:
                return (
                    f"two nodes have the same {what}: {other.node_id} ({other.key.hex()}) and "
                    f"{peer.node_id} ({peer.key.hex()}); give each node its own certificate"
                )
    return Membership(peers=tuple(distinct))
