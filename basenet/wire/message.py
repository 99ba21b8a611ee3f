"""What nodes say to each other about one shard, and the lane of heartbeats between two nodes.

Values only: who may say what is judged in `engine`. The structs are what the transport encodes with
msgspec (array-like, tagged, nothing unknown accepted); no signature ever covers that encoding, only
the tuples of `wire.tuples`. Frames travel beside these messages, in messages of any cut: `Propose`
names what it proposes and never carries it, so that a transaction of any size can be proposed (Q6).

Every field has its bounds in its type, so that what msgspec decoded can be signed, verified and
compared without another look: lengths of keys, hashes and signatures, no negative number, and at
most `VOTERS_MAX` of what each voter gives once.

A `Mark` is a place on a chain and the view in which a vote or certificate reached it; view -1 is
"the genesis of this epoch": before any vote.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from basenet.wire.certificate import PHASE_MAX, Certificate
from basenet.wire.fields import (
    Count,
    EpochField,
    FrameHashField,
    HashField,
    KeyField,
    LineageField,
    SeqField,
    SignatureField,
    ViewField,
)
from basenet.wire.payload import VOTERS_MAX
from basenet.wire.tuples import BOOT_NONCE_BYTES, NONCE_BYTES

EXCEPTIONS_MAX: Final = 1_000
"""An acknowledgement that would have to except more shards grants none (Q7)."""
REFUSALS_MAX: Final = 64 * VOTERS_MAX
"""What the voters may have refused in one epoch (Q8); each is held to 64 (cluster rules, 24)."""
LED_SHARDS_MAX: Final = 100_000
"""One node cannot lead more: each of its databases takes a dozen descriptors."""

_NonceField = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
_BootNonceField = Annotated[bytes, Meta(min_length=BOOT_NONCE_BYTES, max_length=BOOT_NONCE_BYTES)]


class Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """Where a chain had got to, and in which view (-1: by the epoch's genesis alone)."""

    view: Annotated[int, Meta(ge=-1)]
    height: SeqField
    hash: FrameHashField


class _Message(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """Of one shard in one lineage, which the envelope names; ``epoch`` of the sender."""

    epoch: EpochField


class NewView(_Message, frozen=True):
    """The promise never to vote below ``view``, and the highest thing that the sender accepted.

    ``proof``: in the Byzantine mode the certificate for exactly ``high``, None at the genesis.
    """

    view: ViewField
    sender: KeyField
    high: Mark
    proof: Certificate | None
    signature: SignatureField


class Refuse(_Message, frozen=True):
    """The promise never to vote for ``hash`` or a descendant of it (Q8)."""

    sender: KeyField
    height: SeqField
    hash: FrameHashField
    signature: SignatureField


class Justification(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True
):
    """Why a view starts at its anchor: a quorum of NewViews, and refusals that bend a high (Q8)."""

    new_views: Annotated[tuple[NewView, ...], Meta(max_length=VOTERS_MAX)]
    refusals: Annotated[tuple[Refuse, ...], Meta(max_length=REFUSALS_MAX)] = ()


class Propose(_Message, frozen=True):
    """The leader asks for a vote on ``end``, the last of the frames after ``prev``.

    ``anchor``: where the view starts; ``justification``: why (None in view 0). ``prepared`` and
    ``final``: the highest certificates that the leader knows.
    """

    view: ViewField
    prev_height: SeqField
    prev_hash: FrameHashField
    end_height: SeqField
    end_hash: FrameHashField
    anchor: Mark
    justification: Justification | None
    prepared: Certificate | None
    final: Certificate | None
    signature: SignatureField


class Vote(_Message, frozen=True):
    """A vote for the frame ``hash`` and everything below it."""

    view: ViewField
    phase: Annotated[int, Meta(ge=0, le=PHASE_MAX)]
    height: SeqField
    hash: FrameHashField
    signature: SignatureField


class Certified(_Message, frozen=True):
    """A certificate that somebody holds."""

    certificate: Certificate


class Wish(_Message, frozen=True):
    """The wish to leave the present view for ``view``: a pre-vote, no promise."""

    view: ViewField
    signature: SignatureField


class Release(_Message, frozen=True):
    """The leader of ``view`` hands over to the leader of ``target``."""

    view: ViewField
    target: ViewField
    signature: SignatureField


class Need(_Message, frozen=True):
    """Send me the frames of your chain above this frame, which I hold."""

    view: ViewField
    above_height: SeqField
    above_hash: FrameHashField


class Pull(_Message, frozen=True):
    """Send me the branch that ends in ``hash``, as far down as ``above_height``."""

    height: SeqField
    hash: FrameHashField
    above_height: SeqField


class SyncRequest(_Message, frozen=True):
    """Send me what is final above ``above_height``, epoch by epoch, with certificates."""

    above_height: SeqField


class ReadIndexRequest(_Message, frozen=True):
    """Tell me how far I must have applied before a read that begins now is up to date."""

    nonce: _NonceField


class ReadIndex(_Message, frozen=True):
    """Everything final at the time of the request is at or below ``height``."""

    view: ViewField
    height: SeqField
    nonce: _NonceField
    signature: SignatureField


Message = (
    Propose
    | Vote
    | Certified
    | NewView
    | Wish
    | Release
    | Refuse
    | Need
    | Pull
    | SyncRequest
    | ReadIndexRequest
    | ReadIndex
)


class LedShard(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True
):
    """A shard that the sender of a heartbeat leads."""

    lineage: LineageField
    epoch: EpochField
    view: ViewField


class Heartbeat(
    msgspec.Struct,
    frozen=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag=True,
    kw_only=True,
):
    """I am alive, and I lead these shards: one per pair of nodes, however many shards (Q7).

    ``number`` counts the heartbeats of this run of the sender, whose ``boot_nonce`` no other run
    has. ``base_version``: 0 when ``led`` is the whole list, else the version that ``led`` and
    ``unled`` change into ``list_version``.
    """

    boot_nonce: _BootNonceField
    number: Count
    list_version: Count
    list_hash: HashField
    base_version: Count
    led: Annotated[tuple[LedShard, ...], Meta(max_length=LED_SHARDS_MAX)]
    unled: Annotated[tuple[LineageField, ...], Meta(max_length=LED_SHARDS_MAX)]


class HeartbeatAck(
    msgspec.Struct,
    frozen=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag=True,
    kw_only=True,
):
    """The answer: a grant for every shard of the list in ``list_version``, except ``exceptions``.

    ``held_version``: the version of the list that the sender of the ack holds in full. An ack with
    ``is_granting`` False grants nothing (too many exceptions, or the list is not held).
    """

    boot_nonce: _BootNonceField
    number: Count
    held_version: Count
    list_hash: HashField
    is_granting: bool
    exceptions: Annotated[tuple[LineageField, ...], Meta(max_length=EXCEPTIONS_MAX)]
    signature: SignatureField
