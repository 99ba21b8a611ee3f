"""The words of the domain as types, and the numbers that everybody shares.

Integers on the wire are big endian. A ``Seq`` numbers frames of one lineage from 1 without gaps;
0 means "no frame yet". A ``LocalNumber`` numbers the commits that this node captured from one
shard, from 1 without gaps.
"""

import re
from typing import Final, NewType

from basenet.errors import UsageError

ShardId = NewType("ShardId", str)
Seq = NewType("Seq", int)
Epoch = NewType("Epoch", int)
View = NewType("View", int)
LocalNumber = NewType("LocalNumber", int)
PageNumber = NewType("PageNumber", int)
TimestampNs = NewType("TimestampNs", int)
Lineage = NewType("Lineage", bytes)
JournalId = NewType("JournalId", bytes)
FrameHash = NewType("FrameHash", bytes)
StateRoot = NewType("StateRoot", bytes)
PublicKeyBytes = NewType("PublicKeyBytes", bytes)

LINEAGE_BYTES: Final = 16
JOURNAL_ID_BYTES: Final = 16
HASH_BYTES: Final = 32
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SALT_BYTES: Final = 16
ZERO_HASH: Final = bytes(HASH_BYTES)

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

PAGE_SIZE_MIN: Final = 512
PAGE_SIZE_MAX: Final = 65536
# SQLite never stores content in the page that covers this offset: its lock bytes lie there.
LOCK_BYTE_OFFSET: Final = 0x40000000

GROUP_PAGES: Final = 16  # hash group, compression block and range-read unit in one
PARTIAL_RAW_BYTES_MAX: Final = 4 * MIB  # a bigger transaction becomes a run of PARTIAL frames
FRAME_PAYLOAD_BYTES_MAX: Final = 8 * MIB - KIB
SHARD_ID_BYTES_MAX: Final = 64
SEGMENT_TARGET_BYTES: Final = 4 * MIB

_SHARD_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


def is_page_size(value: int) -> bool:
    """Return whether ``value`` is a page size that SQLite can have: 512 .. 65536, a power of 2."""
    return PAGE_SIZE_MIN <= value <= PAGE_SIZE_MAX and value & (value - 1) == 0


def lock_page(page_size: int) -> PageNumber:
    """Return the number of the page that SQLite leaves empty for its lock bytes."""
    return PageNumber(LOCK_BYTE_OFFSET // page_size + 1)


def part_groups(page_size: int) -> int:
    """Return how many groups one part holds: the largest 16-ary subtree of at most 16 MiB raw.

    256 groups (4,096 pages) up to 4 KiB pages, 16 groups (256 pages) above.
    """
    return 256 if page_size <= 4 * KIB else GROUP_PAGES


def is_shard_id(text: str) -> bool:
    """Return whether ``text`` is a shard id: safe in a path, an object name, a URL and a log."""
    return _SHARD_ID.match(text) is not None


def parse_shard_id(text: str) -> ShardId:
    """Return ``text`` as a shard id; raise `UsageError` if it is not one."""
    if not is_shard_id(text):
        raise UsageError(
            f"shard id {text!r} is not usable: it must match ^[a-z0-9][a-z0-9._-]{{0,63}}$; "
            "name the shard yourself with id=path in BASE_SHARDS"
        )
    return ShardId(text)


def shard_id_of_stem(stem: str) -> ShardId:
    """Return the shard id of a database file whose name without suffix is ``stem``."""
    return parse_shard_id(re.sub(r"[^a-z0-9._-]", "-", stem.lower()))
