"""The journal's tables.

A row id packs the shard's number with the seq (44 bits) or the group (32 bits), so that each
shard's frames are appended to their own range of one table and a range read is one scan.
"""

from typing import Final

import apsw

from basenet.errors import UsageError

VERSION: Final = 1
SEQ_BITS: Final = 44
GROUP_BITS: Final = 32

_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
CREATE TABLE shard (
    number INTEGER PRIMARY KEY,
    shard TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL,
    lineage BLOB NOT NULL,
    config BLOB NOT NULL,
    page_size INTEGER NOT NULL,
    db_pages INTEGER NOT NULL,
    cursor BLOB,
    detached BLOB,
    tip BLOB NOT NULL,
    local_last INTEGER NOT NULL,
    archived_seq INTEGER NOT NULL DEFAULT 0,
    broken_seq INTEGER,
    snapshot_seq INTEGER NOT NULL DEFAULT 0,
    snapshot_ns INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE frame (
    id INTEGER PRIMARY KEY,
    flags INTEGER NOT NULL,
    local_first INTEGER NOT NULL,
    local_last INTEGER NOT NULL,
    state_root BLOB NOT NULL,
    size INTEGER NOT NULL,
    record BLOB NOT NULL
) STRICT;
CREATE TABLE leaf (id INTEGER PRIMARY KEY, hashes BLOB NOT NULL) STRICT;
"""


def prepare(connection: apsw.Connection, path: str) -> None:
    """Create the tables in an empty file; refuse a file of a newer program.

    Raises `UsageError` when the journal's version is not ours.
    """
    version = connection.pragma("user_version")
    if version == VERSION:
        return
    if version != 0:
        raise UsageError(
            f"the journal {path} has version {version}, this basenet knows {VERSION}: "
            "run the newer basenet that wrote it."
        )
    with connection:
        connection.execute(_TABLES)
        connection.pragma("user_version", VERSION)
