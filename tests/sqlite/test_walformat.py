"""The log's bytes against a slow reference, and against SQLite itself in both directions."""

import sqlite3
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.sqlite import walformat
from basenet.sqlite.walformat import FrameCodec, checksum_words
from tests.sqlite.application import Application

PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
SALTS = b"saltSALT"


def slow_checksum(data: bytes, start: tuple[int, int], *, is_big_endian: bool) -> tuple[int, int]:
    """The loop of SQLite's walChecksumBytes, word by word."""
    order: Literal["big", "little"] = "big" if is_big_endian else "little"
    s0, s1 = start
    for offset in range(0, len(data), 8):
        s0 = (s0 + int.from_bytes(data[offset : offset + 4], order) + s1) % 2**32
        s1 = (s1 + int.from_bytes(data[offset + 4 : offset + 8], order) + s0) % 2**32
    return s0, s1


@settings(max_examples=60, deadline=None)
@given(
    page_size=st.sampled_from(PAGE_SIZES[:5]),
    is_big_endian=st.booleans(),
    start=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 4),
)
def test_blocks_verify_exactly_as_the_loop_does(
    *, page_size: int, is_big_endian: bool, start: tuple[int, int], seed: int, count: int
) -> None:
    """The vectorised checksum equals the slow one for every frame, size and byte order."""
    codec = FrameCodec(page_size, is_big_endian=is_big_endian)
    rng = np.random.default_rng(seed)
    pages = [(int(rng.integers(1, 2**32)), rng.bytes(page_size)) for _ in range(count)]
    block, end = codec.encode(pages, db_pages=9, salts=SALTS, start=start)
    expected = start
    for row in range(count):
        frame = block[row * codec.frame_bytes : (row + 1) * codec.frame_bytes]
        expected = slow_checksum(frame[:8] + frame[24:], expected, is_big_endian=is_big_endian)
        assert frame[16:24] == b"".join(value.to_bytes(4, "big") for value in expected)
    assert end == expected
    frames = codec.verify(block, SALTS, start)
    assert frames.pgnos.tolist() == [pgno for pgno, _ in pages]
    assert frames.sizes.tolist() == [0] * (count - 1) + [9]
    assert frames.last_checksum == end
    assert [bytes(image) for image in frames.images] == [page for _, page in pages]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changed_byte_ends_the_verified_prefix(data: st.DataObject) -> None:
    """A flipped bit in frame k leaves exactly the k frames before it."""
    codec = FrameCodec(512)
    pages = [(number + 1, bytes([number]) * 512) for number in range(6)]
    block = bytearray(codec.encode(pages, db_pages=6, salts=SALTS, start=(1, 2))[0])
    place = data.draw(st.integers(0, len(block) - 1))
    block[place] ^= 1 << data.draw(st.integers(0, 7))
    assert len(codec.verify(bytes(block), SALTS, (1, 2))) == place // codec.frame_bytes


def test_other_salts_end_the_verified_prefix() -> None:
    """A frame of another generation is not ours, however right its checksum."""
    codec = FrameCodec(512)
    block, _ = codec.encode([(1, bytes(512))], db_pages=1, salts=SALTS, start=(0, 0))
    assert len(codec.verify(block, b"otherone", (0, 0))) == 0
    assert len(codec.verify(b"", SALTS, (0, 0))) == 0
    assert len(codec.verify(block[:-1], SALTS, (0, 0))) == 0


def test_single_frames_are_verified_against_what_they_were() -> None:
    """A frame read again must be the one that was verified before."""
    codec = FrameCodec(512)
    pages = [(number, bytes([number]) * 512) for number in (1, 2, 3)]
    block, _ = codec.encode(pages, db_pages=3, salts=SALTS, start=(5, 6))
    frames = codec.verify(block, SALTS, (5, 6))
    second = block[codec.frame_bytes : 2 * codec.frame_bytes]
    images = codec.verify_each(second, frames.sums[:, :1], frames.sums[:, 1:2])
    assert images is not None
    assert bytes(images[0]) == pages[1][1]
    assert codec.verify_each(second, frames.sums[:, 1:2], frames.sums[:, 2:3]) is None
    damaged = bytearray(second)
    damaged[100] ^= 1
    assert codec.verify_each(bytes(damaged), frames.sums[:, :1], frames.sums[:, 1:2]) is None
    assert codec.verify_each(b"", frames.sums[:, :1], frames.sums[:, 1:2]) is None


@pytest.mark.parametrize("is_big_endian", [False, True])
def test_the_header_survives_encoding(*, is_big_endian: bool) -> None:
    """Every field comes back, and any changed byte of what it covers makes it no header."""
    raw = walformat.encode_header(
        page_size=65536, salts=SALTS, checkpoints=7, is_big_endian=is_big_endian
    )
    header = walformat.decode_header(raw)
    assert header is not None
    assert (header.page_size, header.salts, header.checkpoints) == (65536, SALTS, 7)
    assert header.is_big_endian is is_big_endian
    assert header.checksum == checksum_words(raw[:24], (0, 0), is_big_endian=is_big_endian)
    for place in range(32):
        broken = bytearray(raw)
        broken[place] ^= 0x40
        assert walformat.decode_header(bytes(broken)) is None
    assert walformat.decode_header(raw[:31]) is None
    assert walformat.decode_header(b"") is None


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_log_that_sqlite_wrote_verifies(tmp_path: Path, page_size: int) -> None:
    """Header and all frames of a real log, at every page size."""
    path = tmp_path / "app.db"
    with Application(path) as application:
        application.sql(f"pragma page_size={page_size}", "pragma journal_mode=wal")
        application.sql("create table t(x)", "insert into t values(zeroblob(100000))")
        application.kill()
    raw = Path(f"{path}-wal").read_bytes()
    header = walformat.decode_header(raw)
    assert header is not None
    assert header.page_size == page_size
    codec = FrameCodec(page_size, is_big_endian=header.is_big_endian)
    frames = codec.verify(raw[32:], header.salts, header.checksum)
    assert len(frames) == (len(raw) - 32) // codec.frame_bytes
    assert frames.sizes[-1] > 0


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("is_big_endian", [False, True])
def test_a_log_that_we_wrote_is_recovered_by_sqlite(
    tmp_path: Path, *, page_size: int, is_big_endian: bool
) -> None:
    """SQLite accepts our frames as its own: the pages of one state on top of another."""
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"pragma page_size={page_size}")
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table t(x)")
    connection.execute("pragma wal_checkpoint(truncate)")
    before = path.read_bytes()
    connection.execute("insert into t values(randomblob(70000))")
    expected = connection.execute("select hex(x) from t").fetchall()
    connection.close()
    after = path.read_bytes()
    path.write_bytes(before)
    codec = FrameCodec(page_size, is_big_endian=is_big_endian)
    raw = walformat.encode_header(page_size=page_size, salts=SALTS, is_big_endian=is_big_endian)
    header = walformat.decode_header(raw)
    assert header is not None
    pages = [
        (start // page_size + 1, after[start : start + page_size])
        for start in range(0, len(after), page_size)
    ]
    block, _ = codec.encode(pages, db_pages=len(pages), salts=SALTS, start=header.checksum)
    Path(f"{path}-wal").write_bytes(raw + block)
    connection = sqlite3.connect(path)
    assert connection.execute("select hex(x) from t").fetchall() == expected
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
