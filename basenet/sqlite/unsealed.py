"""Committed frames without a checksum: what a bug of SQLite leaves in a log, and what follows.

Theory of operation
===================

A page that is written twice in one transaction is overwritten in its place in the log. From then on
SQLite writes frames without salts and checksum, all zero, and seals them all when it commits,
from the first that was overwritten on. Older versions (seen in 3.40.1, not in 3.54.1) forget in
ROLLBACK TO that the log may now end *before* that frame; what is then written up to it is committed
and stays unsealed::

    frame    | 1 .. 9 | 10 .. 58   | 59 ..
             | sealed | zeros      | sealed, and commits that follow
                      ^ ROLLBACK TO came back to here; 59 had been overwritten

The wal-index is right, so everybody who has the database open sees everything. But a recovery walks
the checksums: once nobody has it open, or after a crash, SQLite takes up the log to frame 9 only,
and *acknowledged commits are gone*. The application's own last close would have copied the log
into the file; it does not while we have the file open. So we must not leave such a log behind:

* what cannot be followed frame by frame is bridged by a page comparison (`recover`);
* such frames count as committed where the wal-index says so and a read transaction keeps them from
  changing (`pages`), though nothing vouches for their bytes but the disk;
* the log is copied into the file and *truncated* at once, again and again until it is done
  (`rotation`). A checkpoint alone would not do: the front of the log, replayed by a recovery onto
  the newer file, would put old pages among new ones.
"""

import os
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from basenet.sqlite.walformat import FRAME_HEADER_BYTES, FrameCodec, WalHeader, Words, frame_offset
from basenet.units import MIB

_BLOCK_BYTES: Final = 4 * MIB


def is_unsealed(wal_fd: int, frame: int, page_size: int) -> bool:
    """Return whether frame number ``frame`` (from 1) names a page and has no salts and checksum."""
    raw = os.pread(wal_fd, FRAME_HEADER_BYTES, frame_offset(frame - 1, page_size))
    return len(raw) == FRAME_HEADER_BYTES and any(raw[:4]) and not any(raw[8:])


def find_unsealed(wal_fd: int, codec: FrameCodec, frame_max: int) -> int | None:
    """Return the number of the first frame up to ``frame_max`` without a checksum, or None."""
    for first, headers in _headers(wal_fd, codec, 0, frame_max):
        rows = np.flatnonzero(blank_rows(headers))
        if len(rows):
            return first + int(rows[0]) + 1
    return None


def count_cut_off(wal_fd: int, codec: FrameCodec, salts: bytes, frame_max: int) -> int:
    """Return how many commits of the generation ``salts`` a recovery left behind ``frame_max``.

    0 if what lies there is not the rest of an unsealed log.
    """
    end = max(os.fstat(wal_fd).st_size // codec.frame_bytes, frame_max)
    generation = np.frombuffer(salts, ">u4").astype(np.uint32)
    commits, has_blank = 0, False
    for _, headers in _headers(wal_fd, codec, frame_max, end):
        is_blank = blank_rows(headers)
        belongs = is_blank | (headers[:, 2:4] == generation).all(axis=1)
        count = len(belongs) if belongs.all() else int(belongs.argmin())
        has_blank |= bool(is_blank[:count].any())
        commits += int(np.count_nonzero(headers[:count, 1]))
        if count < len(belongs):
            break
    return commits if has_blank else 0


def count_unsealed(wal_fd: int, codec: FrameCodec, header: WalHeader) -> int:
    """Return how many commits a recovery of the log would lose behind frames without a checksum."""
    checksum, first = header.checksum, 0
    step = max(1, _BLOCK_BYTES // codec.frame_bytes)
    while True:
        block = os.pread(wal_fd, step * codec.frame_bytes, frame_offset(first, codec.page_size))
        frames = codec.verify(block, header.salts, checksum)
        first += len(frames)
        if len(frames) < step:
            return count_cut_off(wal_fd, codec, header.salts, first)
        checksum = frames.last_checksum


def blank_rows(headers: Words) -> npt.NDArray[np.bool_]:
    """Return which of the frame headers, shape (n, 6), name a page and are otherwise unsealed."""
    return np.asarray((headers[:, 0] != 0) & ~headers[:, 2:].any(axis=1), bool)


def _headers(wal_fd: int, codec: FrameCodec, first: int, end: int) -> Iterator[tuple[int, Words]]:
    """Yield (frames before, their headers) for the frames behind ``first`` up to ``end``."""
    step = max(1, _BLOCK_BYTES // codec.frame_bytes)
    while first < end:
        count = min(step, end - first)
        block = os.pread(wal_fd, count * codec.frame_bytes, frame_offset(first, codec.page_size))
        headers = codec.headers(block)
        if not len(headers):
            return
        yield first, headers
        first += len(headers)
