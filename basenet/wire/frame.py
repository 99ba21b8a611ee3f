r"""The frame: one step of a shard's history, chained by hash to the one before it.

Theory of operation
===================

A frame is a *head* and a payload. The head alone (fixed fields, checksum of the payload, hash of
the previous frame, state root, author, signature) suffices to check the chain, so an archive can
prove where a snapshot stands without carrying the pages again::

    ver u8=2 | sid_len u16 | shard | seq u64 | prev_seq u64 | timestamp_ns i64 | salt[16]
    | payload_len u32 | payload | cksm[32]
    | kind u8 | flags u8 | epoch u64 | view u64 | prev_hash[32] | state_root[32] | author[32]
    | sig[64]

    cksm       = SHA256(shard || seq || prev_seq || salt || payload)
    frame_hash = SHA256("basenet/frame/2\0" || every field but payload and sig)
    sig        = Ed25519(author, "basenet/framesig/1\0" || frame_hash)

``cksm`` is only the dedupe key (with the salt): it concatenates the shard id without its length.
What binds a frame to its place is the hash. Version 1, the layout of the system that basenet
follows, ends after ``cksm`` and has neither chain nor signature; it decodes, and is never written.

Who checks what: `decode_frame` the form and ``cksm``; `Head.is_signed_by_author` the signature, and
so every field but the payload, which ``cksm`` binds; `check_link` and `wire.chain` the neighbours;
the reader who holds the CONFIGs whether the author may write at all.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from hashlib import sha256
from struct import Struct
from typing import Final, NamedTuple

from basenet.errors import ChainBroken, FrameCorrupt
from basenet.units import (
    FRAME_PAYLOAD_BYTES_MAX,
    HASH_BYTES,
    SALT_BYTES,
    SIGNATURE_BYTES,
    ZERO_HASH,
    Epoch,
    FrameHash,
    PublicKeyBytes,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.codec import Reader
from basenet.wire.codec import shard_id as encode_shard_id
from basenet.wire.signature import AnySigner, is_signed

FRAME_VERSION: Final = 2
FRAME_VERSION_OLD: Final = 1
_FIXED: Final = Struct(">QQq16sI")  # seq, prev_seq, timestamp_ns, salt, payload_len
_TRAILER: Final = Struct(">BBQQ32s32s32s")  # kind .. author
_REST_BYTES: Final = HASH_BYTES + _TRAILER.size + SIGNATURE_BYTES  # behind the payload
_PREV_HASH_OFFSET: Final = 1 + 1 + 8 + 8  # within the trailer
_CHECKSUM_HEAD: Final = Struct(">QQ16s")
_HASH_DOMAIN: Final = b"basenet/frame/2\0"
_SIGNATURE_DOMAIN: Final = b"basenet/framesig/1\0"
_GENESIS_DOMAIN: Final = b"basenet/genesis/2\0"
HEAD_RECORD_VERSION: Final = 6


class Kind(IntEnum):
    """What a frame is."""

    COMMIT = 1
    CONFIG = 2


class Flag(IntFlag):
    """What is special about a frame."""

    NONE = 0
    PARTIAL = 1
    RECOVERED = 2
    REGRESSED = 4


# Looked up instead of constructed: an enum's constructor costs as much as the hash of a head.
_KINDS: Final = {int(kind): kind for kind in Kind}
_FLAGS: Final = tuple(Flag(value) for value in range(8))
_NO_FLAG: Final = Flag.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Everything of a frame but its payload; made by `seal` and the decoders only.

    ``hash`` is computed from the other fields, never read, so it can be relied on.
    """

    shard: ShardId
    seq: Seq
    prev_seq: Seq
    timestamp_ns: TimestampNs
    salt: bytes
    payload_len: int
    cksm: bytes
    kind: Kind
    flags: Flag
    epoch: Epoch
    view: View
    prev_hash: FrameHash
    state_root: StateRoot
    author: PublicKeyBytes
    signature: bytes
    hash: FrameHash

    @property
    def is_partial(self) -> bool:
        """Whether only further frames end the transaction that this one begins or goes on with."""
        # Nearly all frames have no flag, and the `&` of an enum costs as much as a hash.
        return self.flags is not _NO_FLAG and bool(self.flags & Flag.PARTIAL)

    @property
    def signed_message(self) -> bytes:
        """What the author signs: the hash, in the domain of frames."""
        return _SIGNATURE_DOMAIN + self.hash

    def is_signed_by_author(self) -> bool:
        """Return whether the author signed this frame's hash."""
        return is_signed(self.author, self.signature, self.signed_message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A head and its payload (see `wire.payload`)."""

    head: Head
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameV1:
    """A frame of the layout before chain and signature; read, never written."""

    shard: ShardId
    seq: Seq
    prev_seq: Seq
    timestamp_ns: TimestampNs
    salt: bytes
    payload: bytes
    cksm: bytes


def checksum(
    shard: str, seq: int, prev_seq: int, salt: bytes, payload: bytes | memoryview
) -> bytes:
    """Return the dedupe checksum of a frame."""
    hasher = sha256(shard.encode("ascii") + _CHECKSUM_HEAD.pack(seq, prev_seq, salt))
    hasher.update(payload)
    return hasher.digest()


def genesis_prev_hash(config_payload: bytes) -> FrameHash:
    """Return the prev_hash of a lineage's first frame: it binds the genesis to its own content."""
    return FrameHash(sha256(_GENESIS_DOMAIN + config_payload).digest())


def seal(
    *,
    shard: ShardId,
    seq: Seq,
    timestamp_ns: TimestampNs,
    salt: bytes,
    payload: bytes,
    kind: Kind,
    flags: Flag,
    epoch: Epoch,
    view: View,
    prev_hash: FrameHash,
    state_root: StateRoot,
    signer: AnySigner,
) -> Frame:
    """Return the frame with its checksum, hash and signature."""
    assert seq >= 1, "seq counts from 1"
    assert timestamp_ns >= 0, "a frame before 1970"
    assert len(payload) <= FRAME_PAYLOAD_BYTES_MAX, "the payload of a frame is too long"
    # struct would pad or cut these in silence.
    assert len(salt) == SALT_BYTES, "a salt of another length"
    assert len(prev_hash) == len(state_root) == HASH_BYTES, "a hash of another length"
    assert (problem := _contradiction(kind, flags, state_root)) is None, problem
    prev_seq = Seq(seq - 1)
    cksm = checksum(shard, seq, prev_seq, salt, payload)
    fixed = _FIXED.pack(seq, prev_seq, timestamp_ns, salt, len(payload))
    front = encode_shard_id(shard) + fixed
    trailer = _TRAILER.pack(kind, flags, epoch, view, prev_hash, state_root, signer.public)
    digest = _hash(front, cksm, trailer)
    head = Head(
        shard=shard,
        seq=seq,
        prev_seq=prev_seq,
        timestamp_ns=timestamp_ns,
        salt=salt,
        payload_len=len(payload),
        cksm=cksm,
        kind=kind,
        flags=flags,
        epoch=epoch,
        view=view,
        prev_hash=prev_hash,
        state_root=state_root,
        author=signer.public,
        signature=signer.sign(_SIGNATURE_DOMAIN + digest),
        hash=digest,
    )
    return Frame(head=head, payload=payload)


def _contradiction(kind: Kind, flags: Flag, state_root: bytes) -> str | None:
    """Return what is wrong with this combination, or None."""
    if flags is _NO_FLAG:
        return None
    if kind == Kind.CONFIG and flags:
        return "a CONFIG frame carries flags"
    if flags & Flag.PARTIAL and state_root != ZERO_HASH:
        return "a PARTIAL frame carries a state root"
    return None


def _hash(front: bytes, cksm: bytes, trailer: bytes) -> FrameHash:
    """Return the frame hash; ``front`` runs from sid_len to payload_len."""
    return FrameHash(sha256(b"".join((_HASH_DOMAIN, b"\x02", front, cksm, trailer))).digest())


def _encode_front(head: Head) -> bytes:
    fixed = _FIXED.pack(head.seq, head.prev_seq, head.timestamp_ns, head.salt, head.payload_len)
    return encode_shard_id(head.shard) + fixed


def _encode_rest(head: Head) -> bytes:
    trailer = _TRAILER.pack(
        head.kind, head.flags, head.epoch, head.view, head.prev_hash, head.state_root, head.author
    )
    return head.cksm + trailer + head.signature


def encode_frame(frame: Frame) -> bytes:
    """Encode a version 2 frame record."""
    head = frame.head
    return b"".join((b"\x02", _encode_front(head), frame.payload, _encode_rest(head)))


def encode_head(head: Head) -> bytes:
    """Encode a HEAD record (version 6): the frame without its payload."""
    return b"\x06" + _encode_front(head) + _encode_rest(head)


class _Front(NamedTuple):
    """The fields before the payload, and their bytes."""

    encoded: bytes
    shard: ShardId
    seq: int
    prev_seq: int
    timestamp_ns: int
    salt: bytes
    payload_len: int


def _decode_front(reader: Reader) -> _Front:
    start = reader.offset
    shard = reader.shard_id()
    seq, prev_seq, timestamp_ns, salt, payload_len = _FIXED.unpack(reader.view(_FIXED.size))
    if seq < 1:
        raise reader.fail("seq 0, where frames are counted from 1")
    if timestamp_ns < 0:
        raise reader.fail(f"a negative timestamp, {timestamp_ns}")
    if payload_len > FRAME_PAYLOAD_BYTES_MAX:
        raise reader.fail(f"a payload of {payload_len} bytes, above {FRAME_PAYLOAD_BYTES_MAX}")
    encoded = reader.since(start)
    return _Front(encoded, shard, seq, prev_seq, timestamp_ns, salt, payload_len)


def _decode_rest(reader: Reader, front: _Front) -> Head:
    cksm = reader.take(HASH_BYTES)
    trailer = reader.take(_TRAILER.size)
    signature = reader.take(SIGNATURE_BYTES)
    reader.finish()
    kind, flags, epoch, view, prev_hash, root, author = _TRAILER.unpack(trailer)
    if kind not in _KINDS or flags >= len(_FLAGS):
        raise reader.fail(f"kind {kind} or flags {flags} are unknown; upgrade basenet")
    if front.prev_seq != front.seq - 1:
        raise reader.fail(f"seq {front.seq} does not follow prev_seq {front.prev_seq}")
    if problem := _contradiction(_KINDS[kind], _FLAGS[flags], root):
        raise reader.fail(problem)
    return Head(
        shard=front.shard,
        seq=Seq(front.seq),
        prev_seq=Seq(front.prev_seq),
        timestamp_ns=TimestampNs(front.timestamp_ns),
        salt=front.salt,
        payload_len=front.payload_len,
        cksm=cksm,
        kind=_KINDS[kind],
        flags=_FLAGS[flags],
        epoch=Epoch(epoch),
        view=View(view),
        prev_hash=FrameHash(prev_hash),
        state_root=StateRoot(root),
        author=PublicKeyBytes(author),
        signature=signature,
        hash=_hash(front.encoded, cksm, trailer),
    )


def decode_frame(data: bytes | memoryview) -> Frame | FrameV1:
    """Decode one frame record; its checksum is verified, its signature and chain are not.

    Raises `FrameCorrupt` for anything malformed, also for trailing bytes.
    """
    reader = Reader(data, error=FrameCorrupt, what="a frame record")
    version = reader.u8()
    if version not in (FRAME_VERSION_OLD, FRAME_VERSION):
        raise reader.fail(f"frame version {version} is unknown; upgrade basenet")
    front = _decode_front(reader)
    payload = reader.take(front.payload_len)
    expected = checksum(front.shard, front.seq, front.prev_seq, front.salt, payload)
    if version == FRAME_VERSION:
        head = _decode_rest(reader, front)
        if head.cksm != expected:
            raise reader.fail(f"the checksum of frame {front.seq} is wrong")
        return Frame(head=head, payload=payload)
    cksm = reader.take(HASH_BYTES)
    reader.finish()
    if cksm != expected:
        raise reader.fail(f"the checksum of frame {front.seq} is wrong")
    return FrameV1(
        shard=front.shard,
        seq=Seq(front.seq),
        prev_seq=Seq(front.prev_seq),
        timestamp_ns=TimestampNs(front.timestamp_ns),
        salt=front.salt,
        payload=payload,
        cksm=cksm,
    )


def decode_head_of(data: bytes | memoryview) -> Head:
    """Decode the head of an encoded frame of version 2, without a look at its payload.

    Raises `FrameCorrupt` if it is malformed; whether the payload fits the checksum is not asked.
    """
    reader = Reader(data, error=FrameCorrupt, what="a frame record")
    version = reader.u8()
    if version != FRAME_VERSION:
        raise reader.fail(f"frame version {version} where {FRAME_VERSION} is expected")
    front = _decode_front(reader)
    reader.view(front.payload_len)
    return _decode_rest(reader, front)


def decode_head(data: bytes | memoryview) -> Head:
    """Decode a HEAD record; raise `FrameCorrupt` if it is malformed."""
    reader = Reader(data, error=FrameCorrupt, what="a HEAD record")
    if reader.u8() != HEAD_RECORD_VERSION:
        raise reader.fail("it is not a HEAD record")
    return _decode_rest(reader, _decode_front(reader))


def strip_frame(data: bytes, before: FrameHash | None) -> tuple[bytes, FrameHash]:
    """Return an encoded frame without what a reader can compute, and its hash.

    That is ``cksm``, and ``prev_hash`` if the frame continues the one with the hash ``before``.
    Raises `FrameCorrupt` if the frame is cut or its payload is not the one of its checksum, and
    `ChainBroken` if it does not continue ``before``.
    """
    # By hand: thousands of them may be stripped in a second, and nothing else of them matters.
    front = 3 + int.from_bytes(data[1:3], "big") + _FIXED.size
    if data[:1] != b"\x02" or len(data) < front + _REST_BYTES:
        raise FrameCorrupt(f"a frame of {len(data)} bytes is cut, or not of version 2.")
    shard = data[3 : front - _FIXED.size]
    seq, prev_seq, _, salt, length = _FIXED.unpack_from(data, front - _FIXED.size)
    end = front + length
    if len(data) != end + _REST_BYTES or not shard.isascii():
        raise FrameCorrupt(f"frame {seq} has {len(data)} bytes where {end + _REST_BYTES} belong.")
    place = end + HASH_BYTES
    cksm, trailer = data[end:place], data[place : place + _TRAILER.size]
    payload = memoryview(data)[front:end]
    if cksm != checksum(str(shard, "ascii"), seq, prev_seq, salt, payload):
        raise FrameCorrupt(f"the checksum of frame {seq} is wrong.")
    digest = _hash(data[1:front], cksm, trailer)
    prev_hash = place + _PREV_HASH_OFFSET
    rest = prev_hash + HASH_BYTES
    if before is None:
        return data[:end] + data[place:], digest
    if data[prev_hash:rest] != before:
        raise ChainBroken(f"frame {seq} does not continue the frame {before.hex()}.")
    return b"".join((data[:end], data[place:prev_hash], data[rest:])), digest


def restore_frame(data: memoryview, before: Head | None) -> Frame:
    """Return the frame that `strip_frame` was given; ``before`` as it was there.

    Raises `FrameCorrupt` if ``data`` is malformed. If it is another frame's, or changed, the
    signature of the frame is wrong.
    """
    reader = Reader(data, error=FrameCorrupt, what="a stripped frame record")
    if reader.u8() != FRAME_VERSION:
        raise reader.fail(f"it is not of version {FRAME_VERSION}")
    front = _decode_front(reader)
    payload = reader.take(front.payload_len)
    cksm = checksum(front.shard, front.seq, front.prev_seq, front.salt, payload)
    place = reader.take(_PREV_HASH_OFFSET)
    prev_hash = reader.take(HASH_BYTES) if before is None else before.hash
    rest = b"".join((cksm, place, prev_hash, reader.view(reader.remaining)))
    return Frame(
        head=_decode_rest(Reader(rest, error=FrameCorrupt, what="a stripped frame record"), front),
        payload=payload,
    )


def check_link(before: Head, after: Head) -> None:
    """Raise `ChainBroken` unless ``after`` directly continues ``before``."""
    if after.shard != before.shard or after.seq != before.seq + 1:
        raise ChainBroken(
            f"frame {after.seq} of {after.shard!r} does not follow {before.seq} of {before.shard!r}"
        )
    if after.prev_hash != before.hash:
        raise ChainBroken(
            f"frame {after.seq} of {after.shard!r} names {after.prev_hash.hex()} as its "
            f"predecessor, but frame {before.seq} is {before.hash.hex()}: two histories are mixed"
        )
    if after.timestamp_ns <= before.timestamp_ns:
        raise ChainBroken(
            f"frame {after.seq} of {after.shard!r} is from {after.timestamp_ns} ns, not later than "
            f"frame {before.seq} from {before.timestamp_ns} ns: its author's clock was not clamped"
        )
