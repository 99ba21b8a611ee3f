"""The cursor over bytes."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.errors import FrameCorrupt, SegmentCorrupt
from basenet.units import ShardId
from basenet.wire import codec
from basenet.wire.codec import Reader

SHARD_IDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}\Z", fullmatch=True)


def reader_of(data: bytes) -> Reader:
    return Reader(data, error=FrameCorrupt, what="a thing")


@pytest.mark.parametrize(
    ("bits", "encode", "decode", "is_signed"),
    [
        (8, codec.u8, Reader.u8, False),
        (16, codec.u16, Reader.u16, False),
        (32, codec.u32, Reader.u32, False),
        (64, codec.u64, Reader.u64, False),
        (64, codec.i64, Reader.i64, True),
    ],
)
def test_an_integer_is_big_endian_and_comes_back(
    *, bits: int, encode: Callable[[int], bytes], decode: Callable[[Reader], int], is_signed: bool
) -> None:
    """Both ends of each range, and the bytes between them in the order of the network."""
    low = -(1 << (bits - 1)) if is_signed else 0
    high = (1 << (bits - 1)) - 1 if is_signed else (1 << bits) - 1
    for value in (low, low + 1, 0, 1, high - 1, high):
        encoded = encode(value)
        assert encoded == value.to_bytes(bits // 8, "big", signed=is_signed)
        reader = reader_of(encoded)
        assert decode(reader) == value
        reader.finish()


@given(st.lists(st.binary(max_size=40)), st.binary(max_size=3))
def test_fields_come_back_in_order_and_the_rest_is_counted(
    fields: list[bytes], rest: bytes
) -> None:
    """Reading moves the offset by exactly what was read."""
    reader = reader_of(b"".join(fields) + rest)
    for field in fields:
        start = reader.offset
        assert reader.take(len(field)) == field
        assert reader.since(start) == field
    assert reader.remaining == len(rest)


@pytest.mark.parametrize("decode", [Reader.u8, Reader.u16, Reader.u32, Reader.u64, Reader.i64])
def test_reading_beyond_the_end_is_refused_with_the_error_of_the_format(
    decode: Callable[[Reader], int],
) -> None:
    """Nothing is read, nothing moves, and the message names the thing and the place."""
    reader = reader_of(b"x")
    reader.u8()
    with pytest.raises(FrameCorrupt, match=r"^a thing is damaged at byte 1: .* 0 left\.$"):
        decode(reader)
    assert reader.offset == 1
    with pytest.raises(SegmentCorrupt, match="4294967295 bytes expected, 1 left"):
        Reader(b"x", error=SegmentCorrupt, what="it").view((1 << 32) - 1)


def test_trailing_bytes_are_refused() -> None:
    """`finish` is what makes an encoding the only one of its value."""
    reader = reader_of(b"ab")
    reader.u8()
    with pytest.raises(FrameCorrupt, match="1 bytes too many"):
        reader.finish()


@given(SHARD_IDS)
def test_a_shard_id_comes_back(text: str) -> None:
    """Its length is two bytes in front of it."""
    encoded = codec.shard_id(ShardId(text))
    assert encoded == len(text).to_bytes(2, "big") + text.encode()
    assert reader_of(encoded).shard_id() == text


@pytest.mark.parametrize(
    "text",
    ["", "-a", "A", "a/b", "../a", "a\n", "a\0b", "\xe9", "a" * 65, "a" * 65535],
    ids=range(10),
)
def test_what_is_no_shard_id_is_refused(text: str) -> None:
    """Object names, paths and log lines are built of it, so nothing else passes (Q21: 1..64)."""
    raw = text.encode("latin-1")
    with pytest.raises(FrameCorrupt, match="no shard id") as refused:
        reader_of(codec.u16(len(raw)) + raw).shard_id()
    assert len(str(refused.value)) < 200
    with pytest.raises(AssertionError):
        codec.shard_id(ShardId(text))
