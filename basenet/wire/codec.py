"""A cursor over bytes that never reads beyond them.

All integers are big endian and unsigned unless the name says otherwise. Each decoder passes the
error class of its format, so that a short or malformed input is reported as what it was meant
to be.
"""

import struct
from typing import Final

from basenet.errors import BasenetError
from basenet.units import SHARD_ID_BYTES_MAX, ShardId, is_shard_id

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_I64: Final = struct.Struct(">q")


class Reader:
    """Reads fields of ``data`` from left to right; raises ``error`` when it runs out."""

    __slots__ = ("_data", "_error", "_what", "offset")

    def __init__(self, data: bytes | memoryview, *, error: type[BasenetError], what: str) -> None:
        self._data = memoryview(data)
        self._error = error
        self._what = what
        self.offset = 0

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self.offset

    def fail(self, problem: str) -> BasenetError:
        """Return the error that says what is wrong here; the caller raises it."""
        return self._error(f"{self._what} is damaged at byte {self.offset}: {problem}.")

    def _advance(self, length: int) -> int:
        start = self.offset
        if length > len(self._data) - start:
            raise self.fail(f"{length} bytes expected, {len(self._data) - start} left")
        self.offset = start + length
        return start

    def view(self, length: int) -> memoryview:
        """Return the next ``length`` bytes without a copy."""
        start = self._advance(length)
        return self._data[start : start + length]

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes as a copy."""
        return bytes(self.view(length))

    def since(self, start: int) -> bytes:
        """Return a copy of what was read since ``offset`` was ``start``."""
        return bytes(self._data[start : self.offset])

    def u8(self) -> int:
        """Read one byte."""
        return self._data[self._advance(1)]

    def u16(self) -> int:
        """Read two bytes."""
        start = self._advance(2)
        return int(_U16.unpack_from(self._data, start)[0])

    def u32(self) -> int:
        """Read four bytes."""
        start = self._advance(4)
        return int(_U32.unpack_from(self._data, start)[0])

    def u64(self) -> int:
        """Read eight bytes."""
        start = self._advance(8)
        return int(_U64.unpack_from(self._data, start)[0])

    def i64(self) -> int:
        """Read eight bytes as a signed integer."""
        start = self._advance(8)
        return int(_I64.unpack_from(self._data, start)[0])

    def shard_id(self) -> ShardId:
        """Read ``sid_len u16 | shard``; refuse what is no shard id, since names are built of it."""
        text = str(self.view(self.u16()), "latin-1")
        if not is_shard_id(text):
            raise self.fail(f"{text[:SHARD_ID_BYTES_MAX]!r} is no shard id")
        return ShardId(text)

    def finish(self) -> None:
        """Refuse trailing bytes."""
        if self.remaining:
            raise self.fail(f"{self.remaining} bytes too many")


def shard_id(value: ShardId) -> bytes:
    """Encode ``sid_len u16 | shard``."""
    assert is_shard_id(value), "a shard id is parsed before anything is written for it"
    return _U16.pack(len(value)) + value.encode("ascii")


def u8(value: int) -> bytes:
    """Encode one byte."""
    return value.to_bytes(1, "big")


def u16(value: int) -> bytes:
    """Encode two bytes."""
    return _U16.pack(value)


def u32(value: int) -> bytes:
    """Encode four bytes."""
    return _U32.pack(value)


def u64(value: int) -> bytes:
    """Encode eight bytes."""
    return _U64.pack(value)


def i64(value: int) -> bytes:
    """Encode a signed integer in eight bytes."""
    return _I64.pack(value)
