"""Zstandard within bounds: what basenet writes, and all that it reads.

Theory of operation
===================

A body is exactly one zstd frame with its content size in the header, no dictionary and a window of
at most 8 MiB; the reader knows the content size from elsewhere and hands it in. So a bomb is
refused before it is unpacked: the buffer has the announced size, and zstd stops at its end.

Making a context costs twice what compressing a page does, and a context serves one thread at a
time. So idle contexts wait in a list: taking one off and putting one back are atomic in Python, and
no list ever holds more contexts than threads have run at once. A context that failed is dropped.
"""

from typing import Final

import zstandard

from basenet.units import MIB
from basenet.wire.codec import Reader

ZSTD_WINDOW_BYTES_MAX: Final = 8 * MIB

_compressors: Final[dict[int, list[zstandard.ZstdCompressor]]] = {}
_decompressors: Final[list[zstandard.ZstdDecompressor]] = []


def compress(data: bytes | memoryview, *, level: int) -> bytes:
    """Return ``data`` as one zstd frame with content size, without checksum and dictionary."""
    idle = _compressors.setdefault(level, [])
    try:
        context = idle.pop()
    except IndexError:
        context = zstandard.ZstdCompressor(level=level)
    compressed = context.compress(data)
    idle.append(context)
    return compressed


def decompress_exactly(body: bytes | memoryview, raw_len: int, reader: Reader) -> bytes:
    """Decompress one zstd frame of exactly ``raw_len`` (>= 1) bytes with nothing behind it.

    ``reader`` names the object in the error. Never allocates more than ``raw_len`` and the window.
    """
    try:
        facts = zstandard.get_frame_parameters(body)
        if facts.content_size != raw_len or facts.dict_id:
            raise reader.fail("its zstd frame has another content size, or a dictionary")
        if facts.window_size > ZSTD_WINDOW_BYTES_MAX:
            raise reader.fail(f"its zstd window of {facts.window_size} bytes is too large")
        try:
            context = _decompressors.pop()
        except IndexError:
            context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        pages = context.decompress(body, max_output_size=raw_len, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise reader.fail(f"zstd says {error}") from error
    _decompressors.append(context)
    assert len(pages) == raw_len, "zstd compares what it unpacked with the size in the header"
    return pages
