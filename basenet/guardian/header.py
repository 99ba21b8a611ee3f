"""A torn header in -shm: repaired by whoever holds the write lock.

A writer that dies or is stopped between its two copies of the header leaves them different.
SQLite's readers then want the write lock to repair it, and wait ten seconds for a fence that never
opens. So the fence's holder repairs: copy 2 is written first, hence if its own checksum is right it
is the newer one and everything that it speaks of is in the log already.
"""

import os
from typing import Final

from basenet.sqlite.walindex import decode_header

_COPY_BYTES: Final = 48
HEADER_BYTES: Final = 2 * _COPY_BYTES


def repair_header(shm: int) -> bool:
    """Make both copies of the header behind the descriptor equal; return whether one was written.

    The caller holds the write lock. Where neither copy is right (the index was never built),
    nothing is done: the next connection that reads recovers it, and needs the lock for that.
    """
    copies = os.pread(shm, 2 * _COPY_BYTES, 0)
    first, second = copies[:_COPY_BYTES], copies[_COPY_BYTES:]
    if first == second or len(copies) < 2 * _COPY_BYTES:
        return False
    if decode_header(second + second) is not None:
        os.pwrite(shm, second, 0)
    elif decode_header(first + first) is not None:
        os.pwrite(shm, first, _COPY_BYTES)
    else:
        return False
    return True
