"""Small values in the journal with a checksum of their own: SQLite does not notice a rotten bit.

``crc32 u32 (big endian) | value``
"""

from typing import Final
from zlib import crc32

from basenet.errors import CorruptionError

_CRC_BYTES: Final = 4


def close(value: bytes) -> bytes:
    """Return ``value`` behind its checksum."""
    return crc32(value).to_bytes(_CRC_BYTES, "big") + value


def reopen(stored: bytes, what: str) -> bytes:
    """Return the value again; raise `CorruptionError` if it reads back differently."""
    value = stored[_CRC_BYTES:]
    if len(stored) < _CRC_BYTES or stored[:_CRC_BYTES] != crc32(value).to_bytes(_CRC_BYTES, "big"):
        raise CorruptionError(f"{what} reads back differently")
    return value
