"""The journal's tables, and how a row id names a frame or a group of one shard.

A row id packs the shard's number with the seq (44 bits) or the group (32 bits), so that each
shard's frames are appended to their own range of one table and a range read is one scan. SQLite's
ids are signed, which leaves 19 bits for the number.

Version 1 had the first four tables; `journal.migration` adds the others. A journal of a newer
program is refused.
"""

from collections.abc import Mapping
from typing import Final

import apsw

from basenet.errors import CorruptionError, UsageError
from basenet.units import Seq

VERSION: Final = 2
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
# The frames above the final one, of any author, by hash. `seq` is in the index so that what lies at
# or below a height is found without touching the records.
_BRANCH: Final = """CREATE TABLE branch (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    hash BLOB NOT NULL,
    seq INTEGER NOT NULL,
    local_first INTEGER NOT NULL,
    local_last INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    head BLOB NOT NULL,
    record BLOB NOT NULL
) STRICT"""
_BRANCH_INDEX: Final = "CREATE UNIQUE INDEX branch_by_hash ON branch (number, hash, seq)"
# What a shard with peers has beyond the row in `shard`, of which `local_last` is that of the log's
# last frame; here it counts what is in the branch and in orphan bundles, too.
_REPLICA: Final = """CREATE TABLE replica (
    number INTEGER PRIMARY KEY,
    ballot BLOB NOT NULL,
    place_seq INTEGER NOT NULL,
    place_hash BLOB NOT NULL,
    intent BLOB,
    local_last INTEGER NOT NULL
) STRICT"""
# `certificate` and `config` have the row ids of the frames that they are about.
_CERTIFICATE: Final = """CREATE TABLE certificate (
    id INTEGER PRIMARY KEY,
    record BLOB NOT NULL
) STRICT"""
_CONFIG: Final = """CREATE TABLE config (
    id INTEGER PRIMARY KEY,
    crc INTEGER NOT NULL,
    certificate BLOB,
    record BLOB NOT NULL
) STRICT"""
_BIRTH: Final = "CREATE TABLE birth (shard TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT"
_PEER: Final = """CREATE TABLE peer (
    heard INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    journal_id BLOB NOT NULL,
    jcount INTEGER NOT NULL,
    UNIQUE (key, journal_id)
) STRICT"""
_ORPHAN: Final = """CREATE TABLE orphan (
    id TEXT PRIMARY KEY,
    shard TEXT NOT NULL,
    lineage BLOB NOT NULL,
    path TEXT NOT NULL,
    kept_seq INTEGER NOT NULL,
    first_local INTEGER NOT NULL,
    last_local INTEGER NOT NULL,
    commits INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT"""
TABLES_1: Final = (_META, _SHARD, _FRAME, _LEAF)
SINCE_2: Final = (
    _BRANCH,
    _BRANCH_INDEX,
    _REPLICA,
    _CERTIFICATE,
    _CONFIG,
    _BIRTH,
    _PEER,
    _ORPHAN,
)
_TABLES: Final = {1: TABLES_1, VERSION: TABLES_1 + SINCE_2}


def read_version(connection: apsw.Connection, path: str) -> int:
    """Return the version of the journal's tables; 0: the file has none yet.

    Raises `UsageError` when it is of a newer or of another program, `CorruptionError` when its
    tables are not ours; nothing was changed then.
    """
    version: int = connection.pragma("user_version")
    if version != 0 and version not in _TABLES:
        raise UsageError(
            f"the journal {path} has version {version}, this basenet knows {VERSION}: "
            "run the newer basenet that wrote it."
        )
    tables = {table for (table,) in connection.execute("SELECT sql FROM sqlite_schema") if table}
    if version:
        if tables != set(_TABLES[version]):
            raise CorruptionError(
                f"the journal {path} is damaged (its tables are not those of version {version}): "
                f"move {path}* aside; basenet then continues from the archive as a child lineage."
            )
    elif tables:
        raise UsageError(
            f"{path} is a database, but not a journal of basenet: set BASE_DATA_DIR to a "
            "directory of basenet's own."
        )
    return version


def create(connection: apsw.Connection, meta: Mapping[str, object]) -> None:
    """Create the tables of a new journal, all or none of them; ``meta``: what it is."""
    connection.execute("BEGIN")
    for table in _TABLES[VERSION]:
        connection.execute(table)
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
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
