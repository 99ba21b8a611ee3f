"""zstd within bounds."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.errors import FrameCorrupt
from basenet.units import MIB
from basenet.wire.codec import Reader
from basenet.wire.compression import compress, decompress_exactly


def decompress(body: bytes, raw_len: int) -> bytes:
    reader = Reader(b"", error=FrameCorrupt, what="a body")
    return decompress_exactly(body, raw_len, reader)


def make_bomb(announced: int, blocks: int, *, is_single_segment: bool) -> bytes:
    """Return a frame of run-length blocks that unpack to far more than the header announces."""
    descriptor = b"\xa0" if is_single_segment else b"\x80\x68"  # 0x68: a window of 8 MiB
    size = min(announced, 128 * 1024)
    block = (size << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (size << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return (
        b"\x28\xb5\x2f\xfd" + descriptor + announced.to_bytes(4, "little") + block * blocks + last
    )


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=70_000), st.sampled_from([1, 3]))
def test_what_was_compressed_comes_back(data: bytes, level: int) -> None:
    """Also from a context that was used before."""
    assert decompress(compress(data, level=level), len(data)) == data


@given(st.binary(min_size=1, max_size=2000))
def test_a_context_that_was_used_gives_the_same_bytes_as_a_new_one(data: bytes) -> None:
    """No state of one body leaks into the next."""
    assert compress(data, level=1) == zstandard.ZstdCompressor(level=1).compress(data)


def test_contexts_are_not_shared_by_threads() -> None:
    """Four threads compress and decompress at once, each its own data."""

    def work(seed: int) -> bool:
        data = bytes((seed * 7 + index * index) & 0xFF for index in range(5000))
        return all(decompress(compress(data, level=1), len(data)) == data for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize("is_single_segment", [True, False])
def test_a_bomb_is_refused_before_it_is_unpacked(*, is_single_segment: bool) -> None:
    """80 kB that would unpack to 2.6 GB cost no more than the 4 MiB that they announce."""
    bomb = make_bomb(4 * MIB, 20_000, is_single_segment=is_single_segment)
    tracemalloc.start()
    with pytest.raises(FrameCorrupt, match="zstd says"):
        decompress(bomb, 4 * MIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * MIB


def test_a_frame_that_announces_another_size_is_refused() -> None:
    """More, less, or nothing at all."""
    body = compress(bytes(1000), level=1)
    for raw_len in (999, 1001, 1):
        with pytest.raises(FrameCorrupt, match="another content size"):
            decompress(body, raw_len)
    silent = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(1000))
    with pytest.raises(FrameCorrupt, match="another content size"):
        decompress(silent, 1000)


def test_a_frame_with_a_dictionary_is_refused() -> None:
    """A reader has none."""
    dictionary = zstandard.train_dictionary(
        1024, [b"%d sells %d" % (number, number * number) for number in range(2000)]
    )
    body = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"7 sells 49")
    with pytest.raises(FrameCorrupt, match="a dictionary"):
        decompress(body, 10)


def test_a_window_above_8_mib_is_refused() -> None:
    """16 MiB would be allocated for 1,000 bytes."""
    body = b"\x28\xb5\x2f\xfd\x80\x70" + (1000).to_bytes(4, "little") + b"\0"
    assert zstandard.get_frame_parameters(body).window_size == 16 * MIB
    with pytest.raises(FrameCorrupt, match="window of 16777216 bytes is too large"):
        decompress(body, 1000)


def test_what_is_not_exactly_one_frame_is_refused() -> None:
    """Empty, cut anywhere, extended, doubled, or a skippable frame that announces a size."""
    body = compress(bytes(range(256)) * 4, level=1)
    skippable = b"\x50\x2a\x4d\x18" + (1024).to_bytes(4, "little") + bytes(1024)
    cut = [body[:length] for length in range(len(body))]
    for wrong in [*cut, body + b"x", body + body, body + skippable, skippable]:
        with pytest.raises(FrameCorrupt):
            decompress(wrong, 1024)
    assert decompress(body, 1024) == bytes(range(256)) * 4, "a refusal spoils no context"


@given(st.binary(max_size=200), st.integers(1, 5000))
def test_garbage_is_refused(garbage: bytes, raw_len: int) -> None:
    """Nothing but `FrameCorrupt` is raised."""
    with pytest.raises(FrameCorrupt):
        decompress(b"\x28\xb5\x2f\xfd" + garbage, raw_len)
