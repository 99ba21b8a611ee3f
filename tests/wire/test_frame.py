"""The frame record, its head, and the link to the frame before."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.errors import ChainBroken, FrameCorrupt
from basenet.units import (
    FRAME_PAYLOAD_BYTES_MAX,
    ZERO_HASH,
    Epoch,
    FrameHash,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.frame import (
    Flag,
    Frame,
    FrameV1,
    Head,
    Kind,
    check_link,
    checksum,
    decode_frame,
    decode_head,
    decode_head_of,
    encode_frame,
    encode_head,
    genesis_prev_hash,
    seal,
)
from basenet.wire.payload import ConfigPayload, encode_config
from basenet.wire.signature import Signer

MakeFrame = Callable[..., Frame]
U64 = st.integers(0, (1 << 64) - 1)
HASHES = st.binary(min_size=32, max_size=32)
# Of a frame of the shard "orders" (6 bytes) with the payload "payload" (7 bytes).
SEQ, PREV_SEQ, TIMESTAMP, SALT, LENGTH, PAYLOAD, CKSM = 9, 17, 25, 33, 49, 53, 60
KIND, FLAGS, ROOT, SIGNATURE = 92, 93, 142, 206


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(Kind))
    values = [Flag(value) for value in range(8)] if kind == Kind.COMMIT else [Flag.NONE]
    flags = draw(st.sampled_from(values))
    root = ZERO_HASH if flags & Flag.PARTIAL else draw(HASHES)
    return seal(
        shard=ShardId(draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}\Z", fullmatch=True))),
        seq=Seq(draw(st.integers(1, (1 << 64) - 1))),
        timestamp_ns=TimestampNs(draw(st.integers(0, (1 << 63) - 1))),
        salt=draw(st.binary(min_size=16, max_size=16)),
        payload=draw(st.binary(max_size=100)),
        kind=kind,
        flags=flags,
        epoch=Epoch(draw(U64)),
        view=View(draw(U64)),
        prev_hash=FrameHash(draw(HASHES)),
        state_root=StateRoot(root),
        signer=Signer(draw(HASHES)),
    )


def encode_old(*, seq: int = 3, payload: bytes = b"rows", cksm: bytes | None = None) -> bytes:
    """Return a version 1 frame, written from the layout alone."""
    place = seq.to_bytes(8, "big") + (seq - 1).to_bytes(8, "big")
    salt = b"s" * 16
    if cksm is None:
        cksm = sha256(b"orders" + place + salt + payload).digest()
    time = (5).to_bytes(8, "big")
    length = len(payload).to_bytes(4, "big")
    return b"\1\0\6orders" + place + time + salt + length + payload + cksm


@settings(max_examples=100)
@given(frames())
def test_a_frame_comes_back_and_is_its_authors(frame: Frame) -> None:
    """Every field, and what it was decoded from is a function of it."""
    encoded = encode_frame(frame)
    assert decode_frame(encoded) == frame
    assert decode_frame(memoryview(encoded)) == frame
    assert frame.head.is_signed_by_author()


@settings(max_examples=100)
@given(frames())
def test_a_head_comes_back_with_the_hash_of_its_frame(frame: Frame) -> None:
    """6, then the frame from sid_len on without its payload; hashed as version 2 (Q21)."""
    encoded = encode_head(frame.head)
    assert decode_head(encoded) == frame.head
    whole = encode_frame(frame)
    start = 3 + len(frame.head.shard) + 44
    assert encoded[1:] == whole[1:start] + whole[start + frame.head.payload_len :]


@settings(max_examples=100)
@given(frames())
def test_the_head_of_a_frame_is_read_without_its_payload(frame: Frame) -> None:
    """The same head, and nothing is asked of the payload but that it is there."""
    encoded = encode_frame(frame)
    assert decode_head_of(encoded) == decode_head_of(memoryview(encoded)) == frame.head
    start = 3 + len(frame.head.shard) + 44
    payload = bytes(byte ^ 0xFF for byte in encoded[start:][: frame.head.payload_len])
    damaged = encoded[:start] + payload + encoded[start + len(payload) :]
    assert decode_head_of(damaged) == frame.head
    with pytest.raises(FrameCorrupt):
        decode_head_of(encoded[:-1])
    with pytest.raises(FrameCorrupt, match="frame version 1"):
        decode_head_of(b"\1" + encoded[1:])


@settings(max_examples=100)
@given(frames())
def test_hash_checksum_and_signature_cover_what_the_format_says(frame: Frame) -> None:
    """The hash every field but payload and sig; the checksum the dedupe fields and the payload."""
    head, whole = frame.head, encode_frame(frame)
    start = 3 + len(head.shard) + 44
    fields = whole[:start] + whole[start + len(frame.payload) : -64]
    assert head.hash == sha256(b"basenet/frame/2\0" + fields).digest()
    place = head.seq.to_bytes(8, "big") + head.prev_seq.to_bytes(8, "big")
    data = head.shard.encode() + place + head.salt + frame.payload
    assert (
        head.cksm
        == sha256(data).digest()
        == checksum(head.shard, head.seq, head.prev_seq, head.salt, frame.payload)
    )
    assert head.signature == whole[-64:]


def test_the_signature_covers_its_domain_and_the_hash(
    make_frame: MakeFrame, signer: Signer
) -> None:
    """So that it passes for no other kind of signature (Q21)."""
    head = make_frame().head
    assert head.signature == signer.sign(b"basenet/framesig/1\0" + head.hash)
    bare = replace(head, signature=signer.sign(head.hash))
    assert not bare.is_signed_by_author()


def test_the_genesis_is_bound_to_its_own_content() -> None:
    """DESIGN 5."""
    assert genesis_prev_hash(b"config") == sha256(b"basenet/genesis/2\0config").digest()


def test_a_frame_of_version_1_decodes() -> None:
    """The layout of the followed system: no trailer, no chain."""
    assert decode_frame(encode_old()) == FrameV1(
        shard=ShardId("orders"),
        seq=Seq(3),
        prev_seq=Seq(2),
        timestamp_ns=TimestampNs(5),
        salt=b"s" * 16,
        payload=b"rows",
        cksm=encode_old()[-32:],
    )


@pytest.mark.parametrize(
    "data",
    [
        encode_old(cksm=bytes(32)),
        encode_old() + b"\0",
        encode_old()[:-1],
        encode_old(seq=0x100)[:9] + bytes(8) + encode_old(seq=0x100)[17:],
        encode_old()[:6] + b"/" + encode_old()[7:],
    ],
)
def test_a_damaged_frame_of_version_1_is_refused(data: bytes) -> None:
    """Its checksum is all that it has."""
    with pytest.raises(FrameCorrupt):
        decode_frame(data)


def test_damage_to_a_frame_of_version_1_is_refused_but_for_its_time(
    mutations: Callable[[bytes], Iterator[bytes]],
) -> None:
    """The followed system's checksum leaves the timestamp out: only a segment's signature tells."""
    original = decode_frame(encode_old())
    for damaged in mutations(encode_old()):
        try:
            frame = decode_frame(damaged)
        except FrameCorrupt:
            continue
        assert isinstance(frame, FrameV1)
        assert replace(frame, timestamp_ns=TimestampNs(5)) == original


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, b"\0", "frame version 0 is unknown"),
        (0, b"\3", "frame version 3 is unknown"),
        (1, b"\0\0", "no shard id"),
        (1, b"\0\x41", "shard id"),
        (1, b"\xff\xff", "65535 bytes expected"),
        (3, b"O", "'Orders' is no shard id"),
        (SEQ, bytes(16), "seq 0"),
        (SEQ, bytes(8) + b"\xff" * 8, "seq 0"),
        (PREV_SEQ, bytes(8), "seq 7 does not follow prev_seq 0"),
        (PREV_SEQ, (7).to_bytes(8, "big"), "does not follow"),
        (TIMESTAMP, b"\x80", "negative timestamp"),
        (LENGTH, (FRAME_PAYLOAD_BYTES_MAX + 1).to_bytes(4, "big"), "above 8387584"),
        (LENGTH, b"\xff\xff\xff\xff", "a payload of 4294967295 bytes"),
        (LENGTH, (FRAME_PAYLOAD_BYTES_MAX).to_bytes(4, "big"), "bytes expected"),
        (PAYLOAD, b"P", "checksum of frame 7 is wrong"),
        (SALT, b"P", "checksum of frame 7 is wrong"),
        (CKSM, b"\xff", "checksum of frame 7 is wrong"),
        (KIND, b"\0", "kind 0"),
        (KIND, b"\3", "kind 3"),
        (FLAGS, b"\x08", "flags 8 are unknown"),
        (FLAGS, b"\x80", "flags 128 are unknown"),
        (FLAGS, b"\1", "a PARTIAL frame carries a state root"),
        (KIND, b"\2\2", "a CONFIG frame carries flags"),
        (KIND, b"\2\1", "a CONFIG frame carries flags"),
    ],
)
def test_a_frame_that_breaks_a_rule_is_refused(
    make_frame: MakeFrame, offset: int, value: bytes, problem: str
) -> None:
    """Each rule of the format and of Q21, by the bytes that break it; heads obey the same."""
    frame = make_frame()
    whole = bytearray(encode_frame(frame))
    whole[offset : offset + len(value)] = value
    with pytest.raises(FrameCorrupt, match=problem):
        decode_frame(bytes(whole))
    if problem.startswith(("checksum", "bytes", "frame version")):
        return
    head = bytearray(encode_head(frame.head))
    place = offset if offset < PAYLOAD else offset - len(frame.payload)
    head[place : place + len(value)] = value
    with pytest.raises(FrameCorrupt, match=problem):
        decode_head(bytes(head))


def test_a_head_is_not_a_frame_and_a_frame_is_no_head(make_frame: MakeFrame) -> None:
    """The first byte tells them apart."""
    frame = make_frame()
    with pytest.raises(FrameCorrupt, match="not a HEAD"):
        decode_head(encode_frame(frame))
    with pytest.raises(FrameCorrupt, match="version 6"):
        decode_frame(encode_head(frame.head))


def test_no_damage_to_a_frame_goes_unseen(
    make_frame: MakeFrame, mutations: Callable[[bytes], Iterator[bytes]]
) -> None:
    """`decode_frame` refuses it, or it changed the trailer or time, and then the signature does."""
    frame = make_frame()
    accepted = 0
    for damaged in mutations(encode_frame(frame)):
        try:
            decoded = decode_frame(damaged)
        except FrameCorrupt:
            continue
        accepted += 1
        assert isinstance(decoded, Frame)
        assert encode_frame(decoded) == damaged, "one value, one encoding"
        assert decoded.payload == frame.payload
        assert not decoded.head.is_signed_by_author()
    assert accepted > 100, "the trailer's fields are free"


def test_no_damage_to_a_head_goes_unseen(
    make_frame: MakeFrame, mutations: Callable[[bytes], Iterator[bytes]]
) -> None:
    """The same without the payload; the checksum is a field like any other here."""
    for damaged in mutations(encode_head(make_frame().head)):
        try:
            decoded = decode_head(damaged)
        except FrameCorrupt:
            continue
        assert encode_head(decoded) == damaged
        assert not decoded.is_signed_by_author()


@given(st.binary(max_size=300))
def test_garbage_is_no_frame_and_no_head(garbage: bytes) -> None:
    """Only `FrameCorrupt`, also behind a plausible beginning."""
    start = encode_old()[1:49]
    for decode, version in ((decode_frame, 1), (decode_frame, 2), (decode_head, 6)):
        for data in (garbage, bytes([version]) + garbage, bytes([version]) + start + garbage):
            with pytest.raises(FrameCorrupt):
                decode(data)


def test_no_announced_payload_is_allocated(make_frame: MakeFrame) -> None:
    """A few bytes that announce 8 MiB cost nothing."""
    data = bytearray(encode_frame(make_frame()))
    data[LENGTH : LENGTH + 4] = FRAME_PAYLOAD_BYTES_MAX.to_bytes(4, "big")
    tracemalloc.start()
    with pytest.raises(FrameCorrupt):
        decode_frame(bytes(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_the_largest_payload_is_sealed_and_one_byte_more_is_not(make_frame: MakeFrame) -> None:
    """8 MiB - 1 KiB: a frame stays below 8 MiB."""
    frame = make_frame(payload=bytes(FRAME_PAYLOAD_BYTES_MAX))
    assert decode_frame(encode_frame(frame)) == frame
    with pytest.raises(AssertionError):
        make_frame(payload=bytes(FRAME_PAYLOAD_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "fields",
    [
        {"seq": 0},
        {"timestamp_ns": -1},
        {"salt": b"short"},
        {"prev_hash": b"short"},
        {"state_root": b"short"},
        {"shard": "No Shard"},
        {"flags": Flag.PARTIAL},
        {"kind": Kind.CONFIG, "flags": Flag.RECOVERED},
    ],
)
def test_a_wrong_frame_is_never_sealed(make_frame: MakeFrame, fields: dict[str, Any]) -> None:
    """What no reader accepts would end the chain; struct would even pad short fields in silence."""
    with pytest.raises(AssertionError):
        make_frame(**fields)


def follow(before: Head, make_frame: MakeFrame, **fields: Any) -> Head:
    facts: dict[str, Any] = {
        "seq": before.seq + 1,
        "prev_hash": before.hash,
        "timestamp_ns": before.timestamp_ns + 1,
    }
    return make_frame(**facts | fields).head


def test_a_frame_follows_the_one_before(make_frame: MakeFrame) -> None:
    """Seq + 1, its hash, a later time, the same shard."""
    before = make_frame().head
    check_link(before, follow(before, make_frame))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"seq": 9}, "frame 9 of 'orders' does not follow 7"),
        ({"seq": 7}, "does not follow"),
        ({"shard": "others"}, "frame 8 of 'others' does not follow 7 of 'orders'"),
        ({"prev_hash": b"x" * 32}, "two histories are mixed"),
        ({"timestamp_ns": 1_700_000_000_000_000_000}, "not later than frame 7"),
        ({"timestamp_ns": 5}, "not later than frame 7"),
    ],
)
def test_what_does_not_follow_breaks_the_chain(
    make_frame: MakeFrame, fields: dict[str, Any], problem: str
) -> None:
    """A gap, a repetition, another shard, another history, or time that stands still."""
    before = make_frame().head
    with pytest.raises(ChainBroken, match=problem):
        check_link(before, follow(before, make_frame, **fields))


def test_a_change_of_any_field_of_a_frame_breaks_the_link_after_it(
    make_frame: MakeFrame, mutations: Callable[[bytes], Iterator[bytes]]
) -> None:
    """The next frame's prev_hash binds all but payload and sig, and cksm binds the payload."""
    before = make_frame().head
    after = follow(before, make_frame)
    signature_at = len(encode_head(before)) - 64
    for damaged in mutations(encode_head(before)):
        try:
            other = decode_head(damaged)
        except FrameCorrupt:
            continue
        if encode_head(other)[:signature_at] == encode_head(before)[:signature_at]:
            continue
        with pytest.raises(ChainBroken):
            check_link(other, after)


def test_a_config_frame_carries_a_config(
    make_frame: MakeFrame, make_config: Callable[..., ConfigPayload]
) -> None:
    """Kind 2 without flags is whole."""
    frame = make_frame(kind=Kind.CONFIG, payload=encode_config(make_config()))
    assert decode_frame(encode_frame(frame)) == frame
