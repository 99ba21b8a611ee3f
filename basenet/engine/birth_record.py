"""What a node must never forget about the birth of a shard: one value, persisted whole.

A *promise* is this node's signature under a genesis, persisted before it is sent: until it ends by
the rules of `engine.consent`, this node signs no other one. A node that wrote a genesis itself
holds a promise to itself, and the same one bars it from signing another's. A lineage is *known*
only with the complete certificate (Q2).

Geneses are kept as the bytes that their authors wrote: the same bytes are sent after a crash.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from basenet.units import JournalId, Lineage, PublicKeyBytes
from basenet.wire.birth import Withdraw
from basenet.wire.certificate import Certificate

WITHDRAWN_MAX: Final = 64
"""How many withdrawn geneses are remembered; the oldest go first.

A voter that still holds a promise to an older one makes its author take a new journal id, which is
loud and safe. It takes as many changes of mind without reaching that voter once.
"""


class FileFate(IntEnum):
    """What becomes of the database file that a node had when its lineage became known."""

    NONE = 0
    """There was none: it is made from the chain."""
    ADOPTED = 1
    """Its content is that of the genesis: it goes on."""
    KEPT_ASIDE = 2
    """It is kept as ``<db>.before-<lineage>`` and repaired to the chain."""
    REFUSED = 3
    """It has rows that nobody decided against: this node does not take part until somebody does."""
    REPAIRED = 4
    """It is repaired to the chain in place; what it loses by that is in an orphan bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Whose genesis this node signs; ``journal_id``: with which journal its author offered it."""

    author: PublicKeyBytes
    journal_id: JournalId
    genesis: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLineage:
    """The lineage of the shard. ``certificate``: None where its genesis has one voter.

    ``is_settled``: a quorum of its voters know it, so that it may be told to others than voters.
    """

    genesis: bytes
    certificate: Certificate | None
    file: FileFate
    is_settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BirthRecord:
    """The durable state of one shard's birth at one node.

    ``is_decided``: the operator chose this node as the author. ``withdrawn``: geneses of this node
    that it took back. ``left``: lineages that it left for a forced one, oldest first.
    """

    is_decided: bool = False
    promise: Promise | None = None
    withdrawn: tuple[Withdraw, ...] = field(default=())
    known: KnownLineage | None = None
    left: tuple[Lineage, ...] = field(default=())
