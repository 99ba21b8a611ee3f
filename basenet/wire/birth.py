"""What nodes say to each other about a shard of which one of them knows no lineage.

Values only: who may say what is judged in `engine.birth` and `engine.forced`. These messages name
their shard in the envelope and no lineage: there is none yet, or it stands in the genesis that they
carry. A genesis travels as the encoded frame that its author persisted, the same bytes each time.
No signature ever covers the encoding of these structs, only the tuples `genesis` and `withdraw` of
`wire.tuples` and the frame's own.
"""

from enum import IntEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from basenet.units import (
    HASH_BYTES,
    KIB,
    StateRoot,
)
from basenet.wire.certificate import Certificate
from basenet.wire.fields import (
    FrameHashField,
    HashField,
    JournalIdField,
    KeyField,
    LineageField,
    SignatureField,
)
from basenet.wire.payload import VOTERS_MAX

GENESIS_BYTES_MAX: Final = 16 * KIB
"""An encoded genesis: 31 voters with the longest ids, and its head."""
_PAGES_MAX: Final = 2**32 - 1

_Root = Annotated[StateRoot, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
_NodeId = Annotated[str, Meta(pattern=r"^[a-z0-9.-]{1,253}\Z")]
_Genesis = Annotated[bytes, Meta(max_length=GENESIS_BYTES_MAX)]


class MemberRole(IntEnum):
    """What a member can be for a shard: a voter with the database, one without, no voter."""

    VALIDATOR = 1
    WITNESS = 2
    ARCHIVE = 3


class FileFacts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A database file: its state root, and whether any table of the user has a row.

    ``page_size`` in bytes. A file that does not exist, or is empty, has no facts.
    """

    state_root: _Root
    page_size: Annotated[int, Meta(ge=0, le=65536)]
    db_pages: Annotated[int, Meta(ge=0, le=_PAGES_MAX)]
    has_rows: bool


class HeldPromise(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Whose genesis a node has promised to sign, and no other: author, his journal, the genesis.

    ``voters``: the keys of the voters that the genesis names.
    """

    author: KeyField
    journal_id: JournalIdField
    lineage: LineageField
    frame_hash: FrameHashField
    voters: Annotated[tuple[KeyField, ...], Meta(min_length=1, max_length=VOTERS_MAX)]


class Standing(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """Where a node without a lineage stands: everything on which the choice of an author rests.

    ``members_hash``: SHA256(M) of the membership that its configuration gives it, zeros while that
    is not complete. ``file``: None without one. ``writer``: its BASE_WRITER. ``is_decided``: the
    operator chose this node as the author. ``promised``: its own genesis included.
    """

    members_hash: HashField
    role: MemberRole
    file: FileFacts | None
    writer: _NodeId | None
    is_decided: bool
    promised: HeldPromise | None


class _Message(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """Of one shard, which the envelope names."""


class BirthAsk(_Message, frozen=True, kw_only=True):
    """This is how I stand; how do you? Whoever knows a lineage answers with `LineageKnown`."""

    standing: Standing


class BirthAnswer(_Message, frozen=True, kw_only=True):
    """This is how I stand."""

    standing: Standing


class GenesisOffer(_Message, frozen=True, kw_only=True):
    """Sign this genesis of mine; ``standing`` is how I stood when I offered it."""

    genesis: _Genesis
    standing: Standing


class GenesisPromise(_Message, frozen=True, kw_only=True):
    """My signature under the genesis: I sign no other one, and nothing else for this shard."""

    lineage: LineageField
    frame_hash: FrameHashField
    signature: SignatureField


class Withdraw(_Message, frozen=True, kw_only=True):
    """I, its author, never complete this genesis: forget the promise."""

    lineage: LineageField
    frame_hash: FrameHashField
    signature: SignatureField


class LineageKnown(_Message, frozen=True, kw_only=True):
    """The lineage exists: its genesis, and all its voters' signatures.

    ``certificate``: None where the genesis names one voter, its author, whose signature on the
    frame is enough. ``is_asking``: tell me whether you know it, too.
    """

    genesis: _Genesis
    certificate: Certificate | None
    is_asking: bool = False


BirthMessage = BirthAsk | BirthAnswer | GenesisOffer | GenesisPromise | Withdraw | LineageKnown
