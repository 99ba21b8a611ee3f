"""The journal's tables, and how a row id names a frame or a group of one shard.

A row id packs the shard's number with the seq (44 bits) or the group (32 bits), so that each
shard's frames are appended to their own range of one table and a range read is one scan. SQLite's
ids are signed, which leaves 19 bits for the number.
"""

import secrets
from typing import Final

import apsw

from basenet.errors import CorruptionError, UsageError
from basenet.units import JOURNAL_ID_BYTES, Seq

VERSION: Final = 1
SEQ_MAX: Final = (1 << 44) - 1
SHARD_NUMBER_MAX: Final = (1 << 19) - 2
_SEQ_BITS: Final = 44
_GROUP_BITS: Final = 32

# `shard.tip` and `local_last` are those of the last whole frame: inside a PARTIAL run they stay
# where the run began. `frame.bytes_end` counts the bytes of the lineage's frames from the first
# one that was ever stored here up to this one, itself included, so that sizes of ranges are
# differences. `frame.crc` is that of `record`: SQLite itself does not notice a rotten bit.
_META: Final = "CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID"
_SHARD: Final = """CREATE TABLE shard (
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
) STRICT"""
_FRAME: Final = """CREATE TABLE frame (
    id INTEGER PRIMARY KEY,
    flags INTEGER NOT NULL,
    local_first INTEGER NOT NULL,
    local_last INTEGER NOT NULL,
    bytes_end INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    state_root BLOB NOT NULL,
    record BLOB NOT NULL
) STRICT"""
_LEAF: Final = "CREATE TABLE leaf (id INTEGER PRIMARY KEY, hashes BLOB NOT NULL) STRICT"
_TABLES: Final = (_META, _SHARD, _FRAME, _LEAF)


def is_empty(connection: apsw.Connection, path: str) -> bool:
    """Return whether the file has no tables yet; False: it is a journal of our version.

    Raises `UsageError` when it is of a newer or of another program, `CorruptionError` when its
    tables are not ours; nothing was changed then.
    """
    version = connection.pragma("user_version")
    if version not in (0, VERSION):
        raise UsageError(
            f"the journal {path} has version {version}, this basenet knows {VERSION}: "
            "run the newer basenet that wrote it."
        )
    tables = {table for (table,) in connection.execute("SELECT sql FROM sqlite_schema") if table}
    if version == VERSION:
        if tables != set(_TABLES):
            raise CorruptionError(
                f"the journal {path} is damaged (its tables are not those of version {version}): "
                f"move {path}* aside; basenet then continues from the archive as a child lineage."
            )
        return False
    if tables:
        raise UsageError(
            f"{path} is a database, but not a journal of basenet: set BASE_DATA_DIR to a "
            "directory of basenet's own."
        )
    return True


def create(connection: apsw.Connection) -> None:
    """Create the tables of a new journal, all or none of them."""
    journal_id = secrets.token_bytes(JOURNAL_ID_BYTES)
    connection.execute("BEGIN")
    for table in _TABLES:
        connection.execute(table)
    connection.execute("INSERT INTO meta VALUES ('journal_id', ?), ('jcount', 0)", (journal_id,))
    connection.pragma("user_version", VERSION)
    connection.execute("COMMIT")


def frame_id(number: int, seq: int) -> int:
    """Return the row id of frame ``seq`` of the shard ``number``."""
    return _pack(number, _SEQ_BITS, seq)


def seq_of(row_id: int) -> Seq:
    """Return the seq of the frame with the row id ``row_id``."""
    return Seq(row_id & SEQ_MAX)


def frame_ids(number: int, first: int = 0, last: int = SEQ_MAX) -> tuple[int, int]:
    """Return the row ids between which the frames ``first`` .. ``last`` of a shard lie.

    Whatever the seqs are, no frame of another shard lies between them.
    """
    low, high = max(first, 0), min(last, SEQ_MAX)
    if low > high:
        return 1, 0
    return frame_id(number, low), frame_id(number, high)


def leaf_id(number: int, group: int) -> int:
    """Return the row id of the leaf hashes of ``group`` of the shard ``number``."""
    return _pack(number, _GROUP_BITS, group)


def leaf_ids(number: int, first: int = 0) -> tuple[int, int]:
    """Return the row ids between which the groups of a shard from ``first`` on lie."""
    return leaf_id(number, first), leaf_id(number, (1 << _GROUP_BITS) - 1)


def _pack(number: int, bits: int, value: int) -> int:
    assert 0 < number <= SHARD_NUMBER_MAX, "a shard's number does not fit a row id"
    assert 0 <= value < 1 << bits, "a seq or group does not fit a row id"
    return number << bits | value
