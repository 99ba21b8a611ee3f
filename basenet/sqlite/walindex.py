"""The wal-index: what SQLite's processes tell each other about the log, read from outside.

Theory of operation
===================

The first 136 bytes of -shm, in the machine's byte order::

    0   version u32 | unused u32 | iChange u32 | isInit u8 | bigEndSum u8 | page size u16
    16  mxFrame u32 | nPage u32 | frame checksum u32*2 | salts[8] | own checksum u32*2
    48  the same 48 bytes again
    96  nBackfill u32 | read marks u32*5 | locks[8] | nBackfillAttempted u32 | unused u32

A writer updates copy 2, then copy 1; a reader believes them when both are equal, isInit is set and
the own checksum is right (walIndexTryHdr in SQLite's wal.c). We read by pread: a mapping of a
sparse -shm on a full disk would end in SIGBUS, and the page cache gives the same bytes.

iChange grows by exactly 1 per commit and by nothing else; only a recovery (a process died between
the two copies, or everybody left) sets it back to 0. Salts name the generation of frames in the
log; a reset adds 1 to the first and draws the second anew, or draws both.
"""

import os
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the guardian reads headers, too, and has no room for numpy
    from basenet.sqlite.walformat import Checksum

INDEX_BYTES: Final = 136
READ_MARK_UNUSED: Final = 0xFFFFFFFF

_COPY_BYTES: Final = 48
_COPY: Final = Struct("=IIIBBHIIII8sII")
_CHECKPOINT: Final = Struct("=I5I8xI")
_TEN_WORDS: Final = Struct("=10I")
_MASK: Final = 0xFFFFFFFF
# Two copies differ only while a writer is between two memory copies; a reader that finds them so
# this often in a row has met a writer that is stopped or dead there.
_ATTEMPTS_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexHeader:
    """Where the log ends, as of the last commit.

    ``change``: iChange. ``frame_max``: mxFrame, 0 in an empty generation. ``checksum``: of the last
    frame. ``salts``: 8 bytes as they stand in the frames.
    """

    change: int
    is_big_endian: bool
    page_size: int
    frame_max: int
    db_pages: int
    checksum: "Checksum"
    salts: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """One consistent look at the wal-index.

    ``raw``: the header's bytes, to compare with the next look. ``backfilled``: frames that the
    database file holds already. ``read_marks``: five frame numbers or `READ_MARK_UNUSED`.
    """

    header: IndexHeader
    raw: bytes
    backfilled: int
    read_marks: tuple[int, ...]

    @property
    def is_backfilled(self) -> bool:
        """Whether the database file holds everything, so that the log may be reset any moment."""
        return self.backfilled == self.header.frame_max


def decode_header(raw: bytes) -> IndexHeader | None:
    """Return the header in the first 96 bytes, or None if it is torn, uninitialised or wrong."""
    if len(raw) < 2 * _COPY_BYTES or raw[:_COPY_BYTES] != raw[_COPY_BYTES : 2 * _COPY_BYTES]:
        return None
    (
        _version, _unused, change, is_init, big_endian, size, frame_max, db_pages,
        frame0, frame1, salts, own0, own1,
    ) = _COPY.unpack_from(raw)  # fmt: skip
    if not is_init:
        return None
    s0 = s1 = 0
    words = _TEN_WORDS.unpack_from(raw)
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) & _MASK
        s1 = (s1 + x1 + s0) & _MASK
    if (s0, s1) != (own0, own1):
        return None
    return IndexHeader(
        change=change,
        is_big_endian=bool(big_endian),
        # 65536 does not fit 16 bits and is stored as 1.
        page_size=(size & 0xFE00) + ((size & 1) << 16),
        frame_max=frame_max,
        db_pages=db_pages,
        checksum=(frame0, frame1),
        salts=salts,
    )


def read_header_bytes(descriptor: int) -> bytes:
    """Return the bytes of header copy 1, unchecked: equal bytes mean that nothing happened."""
    return os.pread(descriptor, _COPY_BYTES, 0)


def read_index(descriptor: int) -> Index | None:
    """Return one consistent look at the -shm behind ``descriptor``, or None if there is none.

    None means that the header is torn (a writer is stopped or died between its copies) or not
    there yet; the next connection that reads repairs it.
    """
    for _ in range(_ATTEMPTS_MAX):
        raw = os.pread(descriptor, INDEX_BYTES, 0)
        header = decode_header(raw)
        if header is None or len(raw) < INDEX_BYTES:
            continue
        backfilled, *marks, _attempted = _CHECKPOINT.unpack_from(raw, 2 * _COPY_BYTES)
        return Index(
            header=header,
            raw=raw[:_COPY_BYTES],
            backfilled=backfilled,
            read_marks=tuple(marks),
        )
    return None
