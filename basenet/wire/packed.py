"""PACKED: the small frames of a log object, compressed together.

::

    8 | raw_len u32 | zstd frame of (len u32, stripped frame) *

Theory of operation
===================

A page that is written twenty times a second is twenty times almost the same. Compressed one by one
each image is stored anew; compressed together only what changed is. So a small frame carries its
pages as they are (codec RAW), is hashed, signed and journalled like that, and the object that takes
it to the archive packs it with its neighbours. Hashes do not get smaller, so those that follow from
the rest are left out (`wire.frame.strip_frame`). Whoever reads the object gets the same frames,
byte for byte: nothing in a frame knows how it was stored.

A pack is one zstd frame with the rules of `wire.compression`, and holds nothing but frames. Its raw
size counts as if it lay in the object, so that packs within packs, or many of them, cannot grow
beyond what an object may be.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from basenet.errors import FrameCorrupt
from basenet.units import KIB, FrameHash
from basenet.wire.codec import Reader, u8, u32
from basenet.wire.compression import compress, decompress_exactly
from basenet.wire.frame import Frame, restore_frame, strip_frame

PACKED_RECORD_VERSION: Final = 8
# [m] 20 commits of a row of 100 random bytes, 93 kB raw: 42 kB one by one, 8.2 kB together, 6.9 kB
# stripped, at level 1 as at 9, in 0.1 ms.
PACK_ZSTD_LEVEL: Final = 1
# Larger frames are compressed themselves, or cannot be.
PACKED_FRAME_BYTES_MAX: Final = 64 * KIB
_HEAD_BYTES: Final = 5


def encode_packed(frames: Sequence[bytes]) -> bytes | None:
    """Return the PACKED record of encoded ``frames``, or None if that is not worth it.

    It is not for frames that are large on average, and where it saves nothing. Raises
    `CorruptionError` if they are not sound frames of version 2 in a chain.
    """
    size = sum(map(len, frames))
    if not frames or size > len(frames) * PACKED_FRAME_BYTES_MAX:
        return None
    parts: list[bytes] = []
    before: FrameHash | None = None
    for frame in frames:
        stripped, before = strip_frame(frame, before)
        parts += (u32(len(stripped)), stripped)
    raw = b"".join(parts)
    packed = u8(PACKED_RECORD_VERSION) + u32(len(raw)) + compress(raw, level=PACK_ZSTD_LEVEL)
    return packed if len(packed) < size else None


def decode_packed(data: memoryview, reader: Reader, bytes_max: int) -> tuple[int, list[Frame]]:
    """Return the raw size of a PACKED record and the frames in it.

    ``reader`` names the object, and its error is raised if the record is malformed or holds more
    than ``bytes_max`` bytes.
    """
    if len(data) < _HEAD_BYTES:
        raise reader.fail("a PACKED record without a size")
    raw_len = int.from_bytes(data[1:_HEAD_BYTES], "big")
    if not 1 <= raw_len <= bytes_max:
        raise reader.fail(f"a PACKED record of {raw_len} bytes where {bytes_max} are left")
    raw = decompress_exactly(data[_HEAD_BYTES:], raw_len, reader)
    frames: list[Frame] = []
    for record in _cut(memoryview(raw), reader):
        try:
            frames.append(restore_frame(record, frames[-1].head if frames else None))
        except FrameCorrupt as error:
            raise reader.fail(str(error).removesuffix(".")) from error
    return raw_len, frames


def _cut(raw: memoryview, reader: Reader) -> Iterator[memoryview]:
    offset = 0
    while offset < len(raw):
        length = int.from_bytes(raw[offset : offset + 4], "big")
        offset += 4
        left = len(raw) - offset
        if not 1 <= length <= left:
            raise reader.fail(f"a record of {length} bytes in a PACKED one with {left} left")
        yield raw[offset : offset + length]
        offset += length
