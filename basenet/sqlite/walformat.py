"""The bytes of an SQLite write-ahead log, and their checksums a block at a time.

Theory of operation
===================

::

    header, 32 bytes: magic u32 | version u32 | page_size u32 | checkpoints u32 | salts[8] | sum[8]
    frame:            pgno u32 | db_pages_after u32 (0: not a commit) | salts[8] | sum[8] | page

All integers are big endian (https://sqlite.org/fileformat2.html#walformat). The checksum runs over
pairs of 32-bit words (x0, x1), whose byte order the magic's last bit tells::

    s0 += x0 + s1;  s1 += x1 + s0          (mod 2^32)

A frame's checksum covers its first 8 bytes and its page, starting from the checksum *stored* in
the frame before (frame 1: in the header). That step is linear: with M = [[1,1],[1,2]] and m pairs,

    (s0', s1') = M^m (s0, s1) + sum over i of M^(m-1-i) (x0_i, x0_i + x1_i)

and the powers of M hold Fibonacci numbers, so the sum is a dot product with a constant vector per
page size. Since each frame starts from a stored value, a whole block is verified with array
operations alone: expected = M^m * (stored one before) + dot, compared with what is stored.
2.9 million pages a second against 6 thousand for the loop.

Readers here never raise for what they find: a log may be rewritten while it is read, and the
caller knows from the wal-index what must be there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from basenet.units import is_page_size

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
SALTS_BYTES: Final = 8
VERSION: Final = 3_007_000

_MAGIC_LITTLE: Final = 0x377F0682
_MAGIC_BIG: Final = 0x377F0683
_HEADER: Final = Struct(">IIII8sII")
_FRAME_HEADER: Final = Struct(">II8sII")
_MASK: Final = 0xFFFFFFFF

Checksum = tuple[int, int]
Words = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class WalHeader:
    """What the first 32 bytes of a log say about the generation of frames that follows."""

    page_size: int
    is_big_endian: bool
    checkpoints: int
    salts: bytes
    checksum: Checksum


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """Consecutive frames that verified.

    ``pgnos``, ``sizes`` (database pages after the commit, 0 inside a transaction): shape (n,).
    ``sums``: stored checksums, shape (2, n). ``images``: page contents, shape (n, page_size), a
    view into the block that was read.
    """

    pgnos: Words
    sizes: Words
    sums: Words
    images: Bytes

    def __len__(self) -> int:
        return len(self.pgnos)

    @property
    def last_checksum(self) -> Checksum:
        """The checksum from which the next frame continues."""
        return int(self.sums[0, -1]), int(self.sums[1, -1])


def frame_bytes(page_size: int) -> int:
    """Return the size of one frame in bytes."""
    return FRAME_HEADER_BYTES + page_size


def frame_offset(frames_before: int, page_size: int) -> int:
    """Return where in the file the frame after ``frames_before`` frames begins."""
    return HEADER_BYTES + frames_before * frame_bytes(page_size)


def checksum_words(data: bytes, start: Checksum, *, is_big_endian: bool) -> Checksum:
    """Return the checksum of a few bytes (a multiple of 8), one pair of words after the other."""
    s0, s1 = start
    order = ">u4" if is_big_endian else "<u4"
    words = np.frombuffer(data, order).tolist()
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) & _MASK
        s1 = (s1 + x1 + s0) & _MASK
    return s0, s1


def decode_header(raw: bytes) -> WalHeader | None:
    """Return the header in ``raw``, or None if there is none: empty, torn or not of a log."""
    if len(raw) < HEADER_BYTES:
        return None
    magic, version, page_size, checkpoints, salts, s0, s1 = _HEADER.unpack_from(raw)
    is_big_endian = magic == _MAGIC_BIG
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or version != VERSION:
        return None
    if not is_page_size(page_size):
        return None
    if checksum_words(raw[:24], (0, 0), is_big_endian=is_big_endian) != (s0, s1):
        return None
    return WalHeader(
        page_size=page_size,
        is_big_endian=is_big_endian,
        checkpoints=checkpoints,
        salts=salts,
        checksum=(s0, s1),
    )


def encode_header(
    *, page_size: int, salts: bytes, checkpoints: int = 0, is_big_endian: bool = False
) -> bytes:
    """Return the 32 bytes that open a log with these salts."""
    magic = _MAGIC_BIG if is_big_endian else _MAGIC_LITTLE
    raw = _HEADER.pack(magic, VERSION, page_size, checkpoints, salts, 0, 0)
    s0, s1 = checksum_words(raw[:24], (0, 0), is_big_endian=is_big_endian)
    return _HEADER.pack(magic, VERSION, page_size, checkpoints, salts, s0, s1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Coefficients:
    """``step``: M^m, row by row. ``weights``: shape (2, words of a frame), 0 for salts and sum."""

    step: tuple[int, int, int, int]
    weights: Words


@lru_cache(maxsize=8)  # there are eight page sizes
def _coefficients(page_size: int) -> _Coefficients:
    pairs = (8 + page_size) // 8
    fibonacci = [0, 1]
    for _ in range(2 * pairs):
        fibonacci.append((fibonacci[-1] + fibonacci[-2]) & _MASK)
    covered = np.empty((2, 2 * pairs), np.uint32)
    # M^p = [[F(2p-1), F(2p)], [F(2p), F(2p+1)]] times (x0, x0 + x1), for p = pairs after this one.
    descending = np.array(fibonacci[: 2 * pairs + 1], np.uint32)[::-1]
    covered[0, 0::2], covered[0, 1::2] = descending[1::2], descending[2::2]
    covered[1, 0::2], covered[1, 1::2] = descending[0:-1:2], descending[1::2]
    weights = np.zeros((2, FRAME_HEADER_BYTES // 4 + page_size // 4), np.uint32)
    weights[:, :2] = covered[:, :2]
    weights[:, FRAME_HEADER_BYTES // 4 :] = covered[:, 2:]
    before, middle, after = (fibonacci[2 * pairs + shift] for shift in (-1, 0, 1))
    return _Coefficients(step=(before, middle, middle, after), weights=weights)


class FrameCodec:
    """Verifies and builds frames of one page size and checksum byte order."""

    __slots__ = ("_dtype", "_step", "_weights", "frame_bytes", "is_big_endian", "page_size")

    def __init__(self, page_size: int, *, is_big_endian: bool = False) -> None:
        self.page_size = page_size
        self.is_big_endian = is_big_endian
        self.frame_bytes = frame_bytes(page_size)
        coefficients = _coefficients(page_size)
        self._step = tuple(np.uint32(value) for value in coefficients.step)
        self._weights = coefficients.weights
        self._dtype = np.dtype(">u4" if is_big_endian else "<u4")

    def _rows(self, block: bytes | memoryview) -> tuple[Bytes, Words]:
        """Return the whole frames in ``block`` as bytes and the four header words of each."""
        count = len(block) // self.frame_bytes
        rows = np.frombuffer(block, np.uint8, count * self.frame_bytes)
        rows = rows.reshape(count, self.frame_bytes)
        header = np.frombuffer(block, ">u4", count * self.frame_bytes // 4)
        header = header.reshape(count, self.frame_bytes // 4)[:, :6].astype(np.uint32)
        return rows, header

    def headers(self, block: bytes | memoryview) -> Words:
        """Return the six header words of each whole frame in ``block``, unchecked, (n, 6)."""
        return self._rows(block)[1]

    def _dots(self, rows: Bytes) -> Words:
        """Return what each frame adds to the checksum, shape (2, n)."""
        words = rows.view(self._dtype)
        return np.asarray(np.einsum("ij,kj->ki", words, self._weights), np.uint32)

    def _expected(self, rows: Bytes, previous: Words) -> Words:
        """Return the checksums of ``rows`` continued from ``previous``, both shape (2, n)."""
        dots = self._dots(rows)
        m00, m01, m10, m11 = self._step
        dots[0] += m00 * previous[0] + m01 * previous[1]
        dots[1] += m10 * previous[0] + m11 * previous[1]
        return dots

    def verify(self, block: bytes | memoryview, salts: bytes, start: Checksum) -> Frames:
        """Return the leading frames of ``block`` that carry ``salts`` and continue ``start``.

        Stops at the first that does not: its page may be half written, or of another generation.
        """
        frames, good = self.examine(block, salts, start)
        count = len(good) if good.all() else int(good.argmin())
        return Frames(
            pgnos=frames.pgnos[:count],
            sizes=frames.sizes[:count],
            sums=frames.sums[:, :count],
            images=frames.images[:count],
        )

    def examine(
        self, block: bytes | memoryview, salts: bytes, start: Checksum
    ) -> tuple[Frames, npt.NDArray[np.bool_]]:
        """Return all whole frames in ``block``, and which of them are sealed.

        That is: carry ``salts`` and continue what is stored in the frame before (the first:
        ``start``).
        """
        rows, header = self._rows(block)
        sums = header[:, 4:6].T
        previous = np.empty_like(sums)
        if len(rows):
            previous[:, 0] = start
            previous[:, 1:] = sums[:, :-1]
        salt0, salt1 = np.frombuffer(salts, ">u4").tolist()
        good = (self._expected(rows, previous) == sums).all(axis=0)
        good &= (header[:, 2] == salt0) & (header[:, 3] == salt1)
        frames = Frames(
            pgnos=header[:, 0],
            sizes=header[:, 1],
            sums=sums,
            images=rows[:, FRAME_HEADER_BYTES:],
        )
        return frames, np.asarray(good)

    def verify_each(
        self,
        block: bytes | memoryview,
        previous: Words,
        sums: Words,
        is_sealed: npt.NDArray[np.bool_] | None = None,
    ) -> Bytes | None:
        """Return the images of the frames in ``block`` if each still has the checksum it had.

        ``previous`` and ``sums``: shape (2, n), as stored when the frames were first verified.
        ``is_sealed``: for which the checksum speaks; None: for all. None is returned if at least
        one frame was overwritten since.
        """
        rows, header = self._rows(block)
        if rows.shape[0] != sums.shape[1] or not np.array_equal(header[:, 4:6].T, sums):
            return None
        is_right = (self._expected(rows, previous) == sums).all(axis=0)
        if not (is_right if is_sealed is None else is_right | ~is_sealed).all():
            return None
        return rows[:, FRAME_HEADER_BYTES:]

    def encode(
        self,
        pages: Sequence[tuple[int, bytes | memoryview]],
        *,
        db_pages: int,
        salts: bytes,
        start: Checksum,
    ) -> tuple[bytes, Checksum]:
        """Return one transaction as frames that continue ``start``, and the checksum after it.

        ``pages``: (pgno, content) in writing order; the last frame carries ``db_pages``.
        """
        block = bytearray(len(pages) * self.frame_bytes)
        for index, (pgno, content) in enumerate(pages):
            offset = index * self.frame_bytes
            size = db_pages if index == len(pages) - 1 else 0
            _FRAME_HEADER.pack_into(block, offset, pgno, size, salts, 0, 0)
            block[offset + FRAME_HEADER_BYTES : offset + self.frame_bytes] = content
        rows, _ = self._rows(memoryview(block))
        m00, m01, m10, m11 = (int(value) for value in self._step)
        s0, s1 = start
        for index, (dot0, dot1) in enumerate(self._dots(rows).T.tolist()):
            s0, s1 = (m00 * s0 + m01 * s1 + dot0) & _MASK, (m10 * s0 + m11 * s1 + dot1) & _MASK
            rows[index, 16:24] = np.array((s0, s1), ">u4").view(np.uint8)
        return bytes(block), (s0, s1)
