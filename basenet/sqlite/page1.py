"""What page 1 of a database says about who may write: bytes 18 and 19, the file format versions.

Byte 19 is the version that a program must know to read the file, byte 18 to write it; both are 2 in
WAL mode. SQLite takes a file whose byte 18 is larger for read-only, and answers "attempt to write a
readonly database" at once, without asking for a lock. That is the *read-only mark*: it needs nobody
who holds something, so it outlives every process of ours, and the machine. Neither byte is part of
a state root (`wire.merkle`).

A connection that has begun a transaction while the mark was there takes the file for read-only
until it is closed. One that has it open and began none since does not: page 1 is read again.
"""

import os
from typing import Final

from basenet.sqlite.attach import Database
from basenet.wire.merkle import normalised_first_page

WRITE_VERSION_AT: Final = 18
WAL_VERSION: Final = 2
READ_ONLY_VERSION: Final = 3


def first_page(page: bytes | memoryview, *, is_read_only: bool) -> bytes:
    """Return page 1 of a database in WAL mode, with the read-only mark or without it."""
    plain = normalised_first_page(page)
    if not is_read_only:
        return plain
    return plain[:WRITE_VERSION_AT] + bytes((READ_ONLY_VERSION,)) + plain[WRITE_VERSION_AT + 1 :]


def clear_copy(descriptor: int) -> None:
    """Take the mark from a database file that nobody has open, and that has no log.

    ``descriptor`` is open for writing; the caller syncs it.
    """
    if os.pread(descriptor, 1, WRITE_VERSION_AT) > bytes((WAL_VERSION,)):
        os.pwrite(descriptor, bytes((WAL_VERSION,)), WRITE_VERSION_AT)


def is_marked(database: Database) -> bool:
    """Return whether SQLite took the file for read-only when it was attached."""
    return database.connections[0].readonly("main")
