"""The envelope: which shard and lineage a message is about, and frames in packs of any cut.

The bytes between two nodes are one envelope each, in msgpack. Nothing unknown is accepted: another
kind, a field too many, a value out of its bounds, trailing bytes. What an envelope names is not yet
known to be true: `engine` and the daemon judge who may say what, and a shard or lineage that the
receiver does not have is answered or dropped, never processed.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from basenet.errors import PeerError
from basenet.units import (
    FRAME_PAYLOAD_BYTES_MAX,
    KIB,
    MIB,
    ShardId,
)
from basenet.wire.birth import BirthMessage
from basenet.wire.certificate import Certificate
from basenet.wire.fields import LineageField
from basenet.wire.heights import Heights
from basenet.wire.message import Heartbeat, HeartbeatAck, Message
from basenet.wire.reachable import Reachable
from basenet.wire.rollback import Compared, RolledBack
from basenet.wire.transfer import TransferMessage

PACK_BYTES: Final = 4 * MIB
"""A pack ends when it has so much; one frame may be larger than that and stands alone then."""
_RECORD_BYTES_MAX: Final = FRAME_PAYLOAD_BYTES_MAX + KIB
PACK_RECORDS_MAX: Final = 4096

_ShardField = Annotated[ShardId, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
_Records = Annotated[
    tuple[Annotated[bytes, Meta(max_length=_RECORD_BYTES_MAX)], ...],
    Meta(min_length=1, max_length=PACK_RECORDS_MAX),
]


class _Envelope(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """One message between two nodes."""


class AboutShard(_Envelope, frozen=True):
    """A message of the protocol about one shard in one lineage."""

    shard: _ShardField
    lineage: LineageField
    body: Message


class AboutBirth(_Envelope, frozen=True):
    """A message about a shard of which one side knows no lineage."""

    shard: _ShardField
    body: BirthMessage


class FramePack(_Envelope, frozen=True):
    """Frames, in any cut and order, encoded as in the journal and the archive (Q6)."""

    shard: _ShardField
    lineage: LineageField
    records: _Records


class FinalPack(_Envelope, frozen=True):
    """A piece of the final history, ascending, and what certifies the last frame of it."""

    shard: _ShardField
    lineage: LineageField
    records: _Records
    certificate: Certificate | None


class AboutState(_Envelope, frozen=True):
    """A question for, or a piece of, the state of the database (docs/formats/transfer.md)."""

    shard: _ShardField
    lineage: LineageField
    body: TransferMessage


class BetweenNodes(_Envelope, frozen=True):
    """A message of two nodes that is about no shard, or about all of them."""

    body: Heartbeat | HeartbeatAck | RolledBack | Compared | Reachable | Heights


Envelope = AboutShard | AboutBirth | FramePack | FinalPack | AboutState | BetweenNodes

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Envelope]] = msgspec.msgpack.Decoder(Envelope)


def encode_envelope(envelope: Envelope) -> bytes:
    """Encode ``envelope``."""
    return _ENCODER.encode(envelope)


def decode_envelope(data: bytes) -> Envelope:
    """Decode what a peer sent; raise `PeerError` if anything in it is not as it must be."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"a message of the peer cannot be read: {error}") from error


def cut(records: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Yield ``records`` in packs that a message can carry."""
    pack: list[bytes] = []
    size = 0
    for record in records:
        if pack and (size + len(record) > PACK_BYTES or len(pack) == PACK_RECORDS_MAX):
            yield tuple(pack)
            pack, size = [], 0
        pack.append(record)
        size += len(record)
    if pack:
        yield tuple(pack)
