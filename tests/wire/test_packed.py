"""PACKED: frames compressed together, and nothing else."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from basenet.errors import ChainBroken, FrameCorrupt, SegmentCorrupt
from basenet.units import KIB, MIB, Lineage, PublicKeyBytes, Seq, ShardId
from basenet.wire import segment
from basenet.wire.codec import u8, u32
from basenet.wire.frame import Frame, encode_frame, encode_head
from basenet.wire.packed import PACKED_FRAME_BYTES_MAX, encode_packed
from basenet.wire.segment import (
    OBJECT_BYTES_MAX,
    EpochRecord,
    Role,
    Segment,
    decode_segment,
    encode_epoch,
    encode_segment,
    pack_frames,
    service_hash,
)
from basenet.wire.signature import Signer

MakeFrame = Callable[..., Frame]


def epoch_record() -> bytes:
    return encode_epoch(
        EpochRecord(
            archive_epoch=1,
            lineage=Lineage(b"l" * 16),
            writer=PublicKeyBytes(b"w" * 32),
            role=Role.LOG,
            service_hash=service_hash("shop"),
        )
    )


def packed_record(raw: bytes, *, raw_len: int | None = None) -> bytes:
    """Return a PACKED record over ``raw``, written from the layout alone."""
    body = zstandard.ZstdCompressor().compress(raw)
    return u8(8) + u32(len(raw) if raw_len is None else raw_len) + body


def sized(*records: bytes) -> bytes:
    return b"".join(u32(len(record)) + record for record in records)


def stripped(*encoded: bytes) -> bytes:
    """Return the content of a pack of frames, written from the layout alone."""
    return sized(
        *(
            frame[:-210] + frame[-178:-160] + (b"" if index else frame[-160:-128]) + frame[-128:]
            for index, frame in enumerate(encoded)
        )
    )


def following(make_frame: MakeFrame, before: Frame, **fields: Any) -> Frame:
    head = before.head
    facts = {
        "seq": head.seq + 1,
        "prev_hash": head.hash,
        "timestamp_ns": head.timestamp_ns + 1,
    }
    return make_frame(**facts | fields)


@pytest.fixture(scope="module")
def frames(make_frame: MakeFrame) -> list[Frame]:
    """Twenty frames in a chain; frame 7 is the first."""
    chain = [make_frame()]
    while len(chain) < 20:
        chain.append(following(make_frame, chain[-1]))
    return chain


def decode(signer: Signer, *records: bytes, count: int) -> Segment:
    data = encode_segment(
        shard=ShardId("orders"),
        start_seq=Seq(7),
        count=count,
        records=(epoch_record(), *records),
        signer=signer,
    )
    return decode_segment(data, trusted={signer.public}, what="object x.lbn")


def test_packed_frames_come_back_byte_for_byte(signer: Signer, frames: list[Frame]) -> None:
    """What was hashed and signed is what a reader gets; the object is much smaller."""
    encoded = [encode_frame(frame) for frame in frames]
    (record,) = pack_frames(encoded)
    assert record[0] == 8
    hashes = 20 * 32 + 19 * 32
    assert int.from_bytes(record[1:5], "big") == sum(map(len, encoded)) + 4 * 20 - hashes
    assert len(record) < sum(map(len, encoded))
    decoded = decode(signer, record, count=20).frames
    assert decoded == frames
    assert [encode_frame(frame) for frame in decoded] == encoded


def test_packs_and_frames_stand_side_by_side(signer: Signer, frames: list[Frame]) -> None:
    """A pack is the frames in it, where it stands; their order still counts."""
    encoded = [encode_frame(frame) for frame in frames]
    first, second = packed_record(stripped(*encoded[:3])), packed_record(stripped(*encoded[4:9]))
    assert decode(signer, first, encoded[3], second, count=9).frames == frames[:9]
    with pytest.raises(SegmentCorrupt, match="does not belong at 7"):
        decode(signer, encoded[3], first, second, count=9)
    with pytest.raises(SegmentCorrupt, match="9 frames and announces 8"):
        decode(signer, first, encoded[3], second, count=8)


def test_a_frame_that_was_changed_has_another_hash(signer: Signer, frames: list[Frame]) -> None:
    """What is left out is computed, so nothing in the pack vouches for it but the signatures."""
    encoded = [encode_frame(frame) for frame in frames[:2]]
    content = bytearray(stripped(*encoded))
    place = content.index(frames[0].payload)
    content[place] ^= 1
    decoded = decode(signer, packed_record(bytes(content)), count=2).frames
    assert not decoded[0].head.is_signed_by_author()
    assert decoded[1].head.prev_hash == decoded[0].head.hash
    assert not decoded[1].head.is_signed_by_author()


def test_what_is_not_worth_it_is_not_packed(make_frame: MakeFrame, frames: list[Frame]) -> None:
    """Nothing, and frames that are large on average."""
    assert encode_packed([]) is None
    large = make_frame(payload=bytes(3 * PACKED_FRAME_BYTES_MAX))
    second = following(make_frame, large)
    third = following(make_frame, second)
    encoded = [encode_frame(frame) for frame in (large, second, third)]
    assert encode_packed(encoded[:1]) is None
    assert encode_packed(encoded[:2]) is None
    assert pack_frames(encoded[:2]) == encoded[:2]
    assert encode_packed(encoded) is None
    assert encode_packed([encode_frame(frame) for frame in frames[:2]]) is not None


def test_only_a_sound_chain_is_packed(make_frame: MakeFrame, frames: list[Frame]) -> None:
    """What a reader will compute is what stands there, or nothing is written."""
    encoded = [encode_frame(frame) for frame in frames[:3]]
    stranger = following(make_frame, frames[0], prev_hash=b"x" * 32)
    with pytest.raises(ChainBroken, match="does not continue"):
        encode_packed([encoded[0], encoded[2]])
    with pytest.raises(ChainBroken, match="does not continue"):
        encode_packed([encoded[0], encode_frame(stranger)])
    damaged = bytearray(encoded[1])
    damaged[damaged.index(frames[1].payload)] ^= 1
    with pytest.raises(FrameCorrupt, match="checksum"):
        encode_packed([encoded[0], bytes(damaged)])
    with pytest.raises(FrameCorrupt, match="not of version 2"):
        encode_packed([encode_head(frames[0].head)])
    for length in range(len(encoded[0])):
        with pytest.raises(FrameCorrupt):
            encode_packed([encoded[0][:length]])
    with pytest.raises(FrameCorrupt, match="bytes where"):
        encode_packed([encoded[0] + b"x"])


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b"\x08", "without a size"),
        (b"\x08\0\0\0", "without a size"),
        (packed_record(b"", raw_len=0), "of 0 bytes"),
        (u8(8) + u32(5), "zstd"),
        (packed_record(b"\0\0\0\0"), "record of 0 bytes in a PACKED one with 0 left"),
        (packed_record(b"\0\0\0\x09x"), "record of 9 bytes in a PACKED one with 1 left"),
        (packed_record(b"\0\0"), "PACKED one with"),
        (packed_record(sized(b"\x02x")), "a stripped frame record is damaged"),
        (packed_record(sized(b"\x01x")), "not of version 2"),
        (packed_record(sized(b"\x03x")), "not of version 2"),
        (packed_record(sized(epoch_record())), "not of version 2"),
        (packed_record(sized(packed_record(sized(b"\x02x")))), "not of version 2"),
        (packed_record(bytes(100), raw_len=99), "another content size"),
        (packed_record(bytes(100)) + b"x", "zstd"),
    ],
)
def test_a_malformed_pack_is_refused(signer: Signer, record: bytes, problem: str) -> None:
    """The message names the object; nothing but frames of version 2 is in a pack."""
    with pytest.raises(SegmentCorrupt, match=rf"object x\.lbn .*{problem}"):
        decode(signer, record, count=1)


def test_a_bomb_is_refused_before_it_is_unpacked(signer: Signer) -> None:
    """Packs count as what is in them, all together no more than an object may have."""
    bomb = packed_record(bytes(OBJECT_BYTES_MAX))
    assert len(bomb) < 10 * KIB
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(17 * MIB))
    wide = u8(8) + u32(17 * MIB) + wide
    tracemalloc.start()
    with pytest.raises(SegmentCorrupt, match=f"of {OBJECT_BYTES_MAX} bytes where"):
        decode(signer, bomb, count=1)
    with pytest.raises(SegmentCorrupt, match="window"):
        decode(signer, wide, count=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB


def test_packs_share_what_an_object_may_hold(
    signer: Signer, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has only what the first and the object itself leave."""
    encoded = [encode_frame(frame) for frame in frames[:2]]
    packs = [packed_record(stripped(one)) for one in encoded]
    assert decode(signer, *packs, count=2).frames == frames[:2]
    raw = sum(len(stripped(one)) for one in encoded)
    size = 4 + 8 + 12 + 100 + sum(4 + len(one) for one in (epoch_record(), *packs))
    monkeypatch.setattr(segment, "OBJECT_BYTES_MAX", raw + size)
    assert decode(signer, *packs, count=2).frames == frames[:2]
    monkeypatch.setattr(segment, "OBJECT_BYTES_MAX", raw + size - 1)
    with pytest.raises(SegmentCorrupt, match="bytes where"):
        decode(signer, *packs, count=2)
