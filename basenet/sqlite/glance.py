"""Pages as they are right now: read without a lock, to be believed by their hash alone.

`pages` holds a read transaction so that what it reads is one state. Who wants pages by content
needs no state: each page is compared with a hash, and another state of it is as good as none. So
this takes no lock, pins no log and asks no connection; a checkpoint, a reset or a commit beside it
can only make a page come out old, new or torn, and the hash tells.

The newest frame of a page is looked for in the page numbers that the wal-index lists, frame by
frame, in the first half of each of its blocks; what is not there lies in the database file.
"""

import os
from collections.abc import Sequence
from typing import Final

import numpy as np

from basenet.errors import UnavailableError
from basenet.sqlite.attach import Database
from basenet.sqlite.walformat import FRAME_HEADER_BYTES, Words, frame_offset
from basenet.sqlite.walindex import INDEX_BYTES, Index

_BLOCK_BYTES: Final = 32768
_FRAMES_PER_BLOCK: Final = 4096
# A log that is reset while it is read is looked at again.
_ATTEMPTS_MAX: Final = 3
_FRAME_BYTES: Final = 4  # a page number in the wal-index


def glance(database: Database, pgnos: Sequence[int]) -> dict[int, bytes]:
    """Return the present contents of the pages ``pgnos``, without those that are not there.

    Any of them may be torn. In any thread; raises `UnavailableError` if the database was closed or
    the disk does not answer.
    """
    try:
        for _ in range(_ATTEMPTS_MAX):
            before = database.read_index()
            found = _look(database, pgnos, before)
            if _generation(database.read_index()) == _generation(before):
                break
    except OSError as error:
        raise UnavailableError(f"{database.path} cannot be read now: {error}.") from error
    return found


def _generation(index: Index | None) -> tuple[bytes, bool] | None:
    """Return what changes before frames that were listed are written over."""
    return None if index is None else (index.header.salts, index.is_backfilled)


def _look(database: Database, pgnos: Sequence[int], index: Index | None) -> dict[int, bytes]:
    logged = _newest_frames(database, index)
    contents = ((pgno, _read(database, pgno, logged.get(pgno))) for pgno in pgnos)
    return {pgno: page for pgno, page in contents if len(page) == database.page_size}


def _read(database: Database, pgno: int, row: int | None) -> bytes:
    size = database.page_size
    if row is None:
        return os.pread(database.database_fd, size, (pgno - 1) * size)
    return os.pread(database.wal_fd, size, frame_offset(row, size) + FRAME_HEADER_BYTES)


def _newest_frames(database: Database, index: Index | None) -> dict[int, int]:
    """Return the index in the log, from 0, of the newest frame of each page that is in it."""
    if index is None or index.is_backfilled:
        return {}
    listed = _listed_pgnos(database.shm_fd, index.header.frame_max)
    pgnos, from_end = np.unique(listed[::-1], return_index=True)
    rows = len(listed) - 1 - from_end
    return dict(zip(pgnos.tolist(), rows.tolist(), strict=True))


def _listed_pgnos(shm_fd: int, frame_max: int) -> Words:
    """Return the page numbers of the log's frames, as far as the wal-index has them."""
    parts: list[bytes] = []
    block, left = 0, frame_max
    while left > 0:
        start = 0 if block else INDEX_BYTES
        count = min(left, _FRAMES_PER_BLOCK - start // _FRAME_BYTES)
        part = os.pread(shm_fd, count * _FRAME_BYTES, block * _BLOCK_BYTES + start)
        parts.append(part)
        if len(part) < count * _FRAME_BYTES:
            break
        block, left = block + 1, left - count
    listed = b"".join(parts)
    return np.frombuffer(listed[: len(listed) // _FRAME_BYTES * _FRAME_BYTES], np.uint32)
