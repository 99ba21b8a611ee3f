"""Page images that wait to become one transaction: in memory, or in a file when they are many."""

import contextlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import Final

from basenet.errors import UnavailableError
from basenet.units import MIB

MEMORY_BYTES_MAX: Final = 64 * MIB


class Spool:
    """Room for ``count`` pages, each at its place. Raises `UnavailableError` for a full disk."""

    def __init__(self, folder: Path, *, count: int, page_size: int) -> None:
        """Make room; what does not fit 64 MiB goes into a nameless file in ``folder``."""
        self._page_size = page_size
        self._file: int | None = None
        self._buffer: bytearray | mmap.mmap
        size = count * page_size
        if size <= MEMORY_BYTES_MAX:
            self._buffer = bytearray(size)
            return
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._file = os.dup(file.fileno())
            os.posix_fallocate(self._file, 0, size)
            self._buffer = mmap.mmap(self._file, size)
        except OSError as error:
            self.close()
            raise UnavailableError(
                f"{size} bytes of pages do not fit {folder} ({error.strerror}); free space on its "
                "disk"
            ) from error

    def put(self, place: int, image: bytes | memoryview) -> None:
        """Keep the page at ``place`` (from 0)."""
        self._buffer[place * self._page_size : (place + 1) * self._page_size] = image

    def get(self, place: int) -> bytes:
        """Return the page at ``place``."""
        return bytes(self._buffer[place * self._page_size : (place + 1) * self._page_size])

    def view(self) -> memoryview:
        """Return all places, end to end; released before `close`."""
        return memoryview(self._buffer)

    def close(self) -> None:
        """Give the room back."""
        buffer = getattr(self, "_buffer", None)
        if isinstance(buffer, mmap.mmap):
            # A view that an error's traceback still holds keeps the room until it goes.
            with contextlib.suppress(BufferError):
                buffer.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None
