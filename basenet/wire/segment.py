"""LBN2: the one signed container of the archive.

::

    "LBN2" | sid_len u16 | shard | start_seq u64 | count u32 | (len u32, record) * | crc32 u32
    | pubkey[32] | sig[64] over all above

Theory of operation
===================

An object is decoded in one order, and nothing in it is used before the signature holds: magic,
lengths, crc (tells an accident from a forgery in the message), key trusted, signature, records.
The first record is always EPOCH: it says which role the object plays (log, page set, TIP), for
which service, in which lineage and under which archive epoch it was written, so a signed object
served under another name, service or role is refused. Only objects whose frames are all of
version 1 (the system that basenet follows) have no EPOCH.

``count`` counts frames only; objects without frames (page sets, TIP) have count 0 and the start
of their HEAD. Records are told apart by their first byte::

    1, 2 frame   3 CERT   4 EPOCH   5 PAGESET   6 HEAD   7 TREE   8 PACKED

A PACKED record stands for the frames in it (`wire.packed`): they are unpacked where it is, and from
then on nothing tells them from others. What an object may hold depends on its role::

    LOG        EPOCH | frame (of version 2, seqs without a gap) or CERT, one or more | TREE, or none
    PAGE_SET   EPOCH | HEAD | CERT, any number | PAGESET
    TIP        EPOCH | HEAD | CERT, any number

The links between frames (prev_hash), who may author them and what a certificate is worth are not
judged here: they need the frames before, and the CONFIG in force.
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final
from zlib import crc32

from basenet.errors import CorruptionError, SegmentCorrupt, SegmentUnsigned, UntrustedKey
from basenet.units import (
    HASH_BYTES,
    KEY_BYTES,
    LINEAGE_BYTES,
    MIB,
    SIGNATURE_BYTES,
    Lineage,
    PublicKeyBytes,
    Seq,
    ShardId,
)
from basenet.wire.certificate import CERT_RECORD_VERSION, Certificate, decode_certificate
from basenet.wire.codec import Reader, u8, u32, u64
from basenet.wire.codec import shard_id as encode_shard_id
from basenet.wire.frame import (
    FRAME_VERSION,
    FRAME_VERSION_OLD,
    HEAD_RECORD_VERSION,
    Flag,
    Frame,
    FrameV1,
    Head,
    decode_frame,
    decode_head,
)
from basenet.wire.packed import PACKED_RECORD_VERSION, decode_packed, encode_packed
from basenet.wire.signature import Signer, get_fingerprint, is_signed

MAGIC: Final = b"LBN2"
EPOCH_RECORD_VERSION: Final = 4
PAGESET_RECORD_VERSION: Final = 5
TREE_RECORD_VERSION: Final = 7
# A frame of 8 MiB beside others that filled the 4 MiB target; a manifest is far below.
OBJECT_BYTES_MAX: Final = 64 * MIB
_PACKED: Final = bytes([PACKED_RECORD_VERSION])
_TAIL_BYTES: Final = 4 + KEY_BYTES + SIGNATURE_BYTES


class Role(IntEnum):
    """What an object is, so that one kind can never be served as another."""

    LOG = 1
    PAGE_SET = 2
    TIP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """Under which archive epoch, lineage, writer, role and service an object was written."""

    archive_epoch: int
    lineage: Lineage
    writer: PublicKeyBytes
    role: Role
    service_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSetRecord:
    """The undecoded bytes of a PAGESET record; `wire.pageset` decodes them."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRecord:
    """The group hashes that the object's frames changed, at the last frame, ascending."""

    groups: tuple[tuple[int, bytes], ...]


Record = Frame | FrameV1 | Certificate | EpochRecord | PageSetRecord | Head | TreeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A decoded object whose signature was verified by a trusted key."""

    shard: ShardId
    start_seq: Seq
    count: int
    records: tuple[Record, ...]
    public: PublicKeyBytes

    @property
    def epoch(self) -> EpochRecord | None:
        """The EPOCH record; None only for objects of version 1 frames."""
        first = self.records[0] if self.records else None
        return first if isinstance(first, EpochRecord) else None

    @property
    def frames(self) -> list[Frame]:
        """The version 2 frames, ascending."""
        return [record for record in self.records if isinstance(record, Frame)]

    @property
    def certificates(self) -> list[Certificate]:
        """The certificates of its frames, or of its HEAD, in their order."""
        return [record for record in self.records if isinstance(record, Certificate)]

    @property
    def end_seq(self) -> Seq:
        """The seq of the last frame (``start_seq`` when there are no frames)."""
        return Seq(self.start_seq + max(self.count - 1, 0))


def service_hash(service: str) -> bytes:
    """Return the hash that binds an object to the service ``service``."""
    return sha256(service.encode()).digest()


def encode_epoch(record: EpochRecord) -> bytes:
    """Encode an EPOCH record."""
    return b"".join(
        (
            u8(EPOCH_RECORD_VERSION),
            u64(record.archive_epoch),
            record.lineage,
            record.writer,
            u8(record.role),
            record.service_hash,
        )
    )


def encode_tree(record: TreeRecord) -> bytes:
    """Encode a TREE record; the groups ascend strictly."""
    return u8(TREE_RECORD_VERSION) + b"".join(
        u32(group) + digest for group, digest in record.groups
    )


def pack_frames(frames: Sequence[bytes]) -> Sequence[bytes]:
    """Return the records to store encoded ``frames`` as: themselves, or one PACKED record.

    Raises `CorruptionError` if they are not sound frames in a chain, as far as that is looked at.
    """
    packed = encode_packed(frames)
    return frames if packed is None else (packed,)


def encode_segment(
    *,
    shard: ShardId,
    start_seq: Seq,
    count: int,
    records: Iterable[bytes],
    signer: Signer | None,
) -> bytes:
    """Return the bytes of an LBN2 object over the encoded ``records``, ``count`` of them frames.

    Raises `SegmentUnsigned` without a signer: an unsigned object is never written.
    """
    if signer is None:
        raise SegmentUnsigned("a segment is never written unsigned: no signing key is configured.")
    parts = [MAGIC, encode_shard_id(shard), u64(start_seq), u32(count)]
    for record in records:
        parts += (u32(len(record)), record)
    size, crc = _TAIL_BYTES, 0
    for part in parts:
        size, crc = size + len(part), crc32(part, crc)
    assert size <= OBJECT_BYTES_MAX, "an object that no reader accepts"
    signed = b"".join((*parts, u32(crc), signer.public))
    return signed + signer.sign(signed)


def decode_segment(
    data: bytes, *, trusted: AbstractSet[bytes] | None, what: str = "an LBN2 object"
) -> Segment:
    """Decode and verify an object that must be signed by one of the ``trusted`` keys.

    ``what`` names the object in messages. Raises `SegmentUnsigned` when ``trusted`` is None,
    `UntrustedKey` for a foreign key and `SegmentCorrupt` for everything else.
    """
    if trusted is None:
        raise SegmentUnsigned(f"{what} cannot be read: no trusted keys are configured.")
    public = _verify_outside(data, trusted, what)
    reader = Reader(memoryview(data)[:-_TAIL_BYTES], error=SegmentCorrupt, what=what)
    reader.take(len(MAGIC))
    shard, start_seq, count = reader.shard_id(), Seq(reader.u64()), reader.u32()
    records: list[Record] = []
    unpacked = 0
    while reader.remaining:
        record = reader.view(reader.u32())
        if record[:1] != _PACKED:
            records.append(_decode_record(record, reader))
            continue
        raw_len, packed = decode_packed(record, reader, OBJECT_BYTES_MAX - len(data) - unpacked)
        unpacked += raw_len
        records += packed
    segment = Segment(
        shard=shard, start_seq=start_seq, count=count, records=tuple(records), public=public
    )
    if problem := _records_contradiction(segment):
        raise reader.fail(problem)
    return segment


def _verify_outside(data: bytes, trusted: AbstractSet[bytes], what: str) -> PublicKeyBytes:
    """Return the signer's key after checking length, magic, crc, trust and signature."""
    reader = Reader(data, error=SegmentCorrupt, what=what)
    if not len(MAGIC) + _TAIL_BYTES <= len(data) <= OBJECT_BYTES_MAX:
        raise reader.fail(f"{len(data)} bytes are too few or too many for an LBN2 object")
    if reader.take(len(MAGIC)) != MAGIC:
        raise reader.fail("it does not start with LBN2")
    view = memoryview(data)
    body, public = view[:-_TAIL_BYTES], bytes(view[-_TAIL_BYTES:][4:-SIGNATURE_BYTES])
    if u32(crc32(body)) != view[-_TAIL_BYTES:][:4]:
        raise reader.fail("its crc does not fit its bytes")
    if public not in trusted:
        raise UntrustedKey(
            f"{what} is signed by the key {get_fingerprint(public)}, which is not trusted: "
            "give its public key with --trusted-keys FILE or BASE_TRUSTED_KEYS."
        )
    if not is_signed(public, bytes(view[-SIGNATURE_BYTES:]), view[:-SIGNATURE_BYTES]):
        raise reader.fail("its signature is wrong")
    return PublicKeyBytes(public)


def check_identity(
    segment: Segment,
    *,
    service: str,
    shard: ShardId,
    lineage: Lineage,
    role: Role,
    what: str,
) -> EpochRecord:
    """Return the EPOCH of an object that is what its name says, or raise `SegmentCorrupt`.

    The signature alone does not prevent that a true object is served under another name.
    """
    epoch = segment.epoch
    if epoch is None:
        raise SegmentCorrupt(
            f"{what} has no EPOCH record, so nothing says what it was written for."
        )
    is_service = epoch.service_hash == service_hash(service)
    facts = {
        "shard": (segment.shard, shard),
        "service": (service if is_service else "by its hash", service),
        "lineage": (epoch.lineage.hex(), lineage.hex()),
        "role": (epoch.role.name, role.name),
    }
    for name, (found, expected) in facts.items():
        if found != expected:
            raise SegmentCorrupt(
                f"{what} was signed for another {name} ({found}) than {expected}: it lies under a "
                "name that is not its own."
            )
    return epoch


def decode_epoch(data: bytes | memoryview) -> EpochRecord:
    """Decode an EPOCH record; raise `SegmentCorrupt` if it is malformed."""
    reader = Reader(data, error=SegmentCorrupt, what="an EPOCH record")
    if reader.u8() != EPOCH_RECORD_VERSION:
        raise reader.fail("it is not an EPOCH record")
    archive_epoch = reader.u64()
    lineage, writer = Lineage(reader.take(LINEAGE_BYTES)), PublicKeyBytes(reader.take(KEY_BYTES))
    role = reader.u8()
    if role not in tuple(Role):
        raise reader.fail(f"role {role} is unknown; upgrade basenet")
    digest = reader.take(HASH_BYTES)
    reader.finish()
    return EpochRecord(
        archive_epoch=archive_epoch,
        lineage=lineage,
        writer=writer,
        role=Role(role),
        service_hash=digest,
    )


def decode_tree(data: bytes | memoryview) -> TreeRecord:
    """Decode a TREE record; raise `SegmentCorrupt` if it is malformed."""
    reader = Reader(data, error=SegmentCorrupt, what="a TREE record")
    if reader.u8() != TREE_RECORD_VERSION:
        raise reader.fail("it is not a TREE record")
    groups: list[tuple[int, bytes]] = []
    while reader.remaining:
        group, digest = reader.u32(), reader.take(HASH_BYTES)
        if groups and group <= groups[-1][0]:
            raise reader.fail("its groups do not ascend strictly")
        groups.append((group, digest))
    return TreeRecord(groups=tuple(groups))


def _decode_page_set(data: memoryview) -> PageSetRecord:
    return PageSetRecord(data=bytes(data[1:]))


_DECODERS: Final[dict[int, Callable[[memoryview], Record]]] = {
    FRAME_VERSION_OLD: decode_frame,
    FRAME_VERSION: decode_frame,
    CERT_RECORD_VERSION: decode_certificate,
    EPOCH_RECORD_VERSION: decode_epoch,
    PAGESET_RECORD_VERSION: _decode_page_set,
    HEAD_RECORD_VERSION: decode_head,
    TREE_RECORD_VERSION: decode_tree,
}


def _decode_record(data: memoryview, outer: Reader) -> Record:
    """Decode one record; an error in it names the object, too."""
    version = data[0] if data else 0
    decode = _DECODERS.get(version)
    if decode is None:
        raise outer.fail(f"record version {version} is unknown; upgrade basenet")
    try:
        return decode(data)
    except CorruptionError as error:
        raise outer.fail(str(error).removesuffix(".")) from error


def _records_contradiction(segment: Segment) -> str | None:
    """Return why these records cannot stand in one object, or None."""
    frames = [record for record in segment.records if isinstance(record, Frame | FrameV1)]
    if len(frames) != segment.count:
        return f"it holds {len(frames)} frames and announces {segment.count}"
    for seq, frame in enumerate(frames, segment.start_seq):
        facts = frame.head if isinstance(frame, Frame) else frame
        if facts.shard != segment.shard or facts.seq != seq:
            return (
                f"frame {facts.seq} of {facts.shard!r} does not belong at {seq} of "
                f"{segment.shard!r}"
            )
    if frames and all(isinstance(record, FrameV1) for record in segment.records):
        return None
    epoch = segment.epoch
    if epoch is None:
        return "its first record must be EPOCH"
    rest = segment.records[1:]
    if epoch.role == Role.LOG:
        return _log_contradiction(rest, [record.head for record in segment.frames])
    return _anchored_contradiction(rest, epoch.role, segment)


def _log_contradiction(rest: tuple[Record, ...], heads: list[Head]) -> str | None:
    """Return what is wrong with the records after the EPOCH of a LOG object, or None."""
    body = rest[:-1] if rest and isinstance(rest[-1], TreeRecord) else rest
    if not all(isinstance(record, Frame | Certificate) for record in body):
        return "a log object holds one EPOCH, then frames of version 2 and CERTs, then one TREE"
    if not heads:
        return "a log object without frames"
    return _certificates_contradiction(body, heads)


def _anchored_contradiction(rest: tuple[Record, ...], role: Role, segment: Segment) -> str | None:
    """Return what is wrong with the records after the EPOCH of a page set or a TIP, or None."""
    kinds = [type(record) for record in rest if not isinstance(record, Certificate)]
    expected = [Head, PageSetRecord] if role == Role.PAGE_SET else [Head]
    head = rest[0] if rest else None
    if kinds != expected or not isinstance(head, Head):
        return f"a {role.name} object holds EPOCH, HEAD, CERTs and, if a page set, one PAGESET"
    if (head.shard, head.seq) != (segment.shard, segment.start_seq):
        return f"its HEAD is frame {head.seq} of {head.shard!r}, not its start"
    if head.flags & Flag.PARTIAL:
        return f"its HEAD, frame {head.seq}, lies inside a PARTIAL run"
    return _certificates_contradiction(rest, [head])


def _certificates_contradiction(records: tuple[Record, ...], heads: list[Head]) -> str | None:
    """Return which CERT speaks of none of ``heads``, or None."""
    hashes = {head.seq: head.hash for head in heads}
    for record in records:
        if isinstance(record, Certificate) and hashes.get(record.height) != record.hash:
            return f"its CERT at {record.height} speaks of another frame"
    return None
