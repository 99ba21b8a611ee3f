"""Where a snapshot lies until it is known to be right: compressed blocks, and pages on top of them.

Both spools are files without a name in the data directory, or memory while they are small, so that
nothing is left behind by a crash. They are used from worker threads, one at a time.
"""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Final

import numpy as np
import numpy.typing as npt

from basenet.errors import UnavailableError
from basenet.units import MIB

MEMORY_BYTES_MAX: Final = MIB


class _Spool:
    """Bytes at offsets, in memory up to `MEMORY_BYTES_MAX`."""

    def __init__(self, folder: Path) -> None:
        # Closed by `close`; the file has no name, so a crash leaves nothing behind.
        self._file: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(  # noqa: SIM115
            max_size=MEMORY_BYTES_MAX, dir=str(folder)
        )
        self._folder = folder
        self.size = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        try:
            self._file.seek(offset)
            self._file.write(data)
        except OSError as error:
            raise self._explain(error) from error
        self.size = max(self.size, offset + len(data))

    def read(self, offset: int, length: int) -> bytes:
        try:
            self._file.seek(offset)  # writes what is still buffered
            data = self._file.read(length)
        except OSError as error:
            raise self._explain(error) from error
        assert len(data) == length, "a spool gives back what was put into it"
        return data

    def close(self) -> None:
        # On a full disk what is buffered cannot be written, and nobody wants it any more.
        with suppress(OSError):
            self._file.close()

    def _explain(self, error: OSError) -> UnavailableError:
        return UnavailableError(
            f"the snapshot does not fit into {self._folder} ({error}): make room there, or "
            "set BASE_DATA_DIR to a larger disk"
        )


class BlockSpool:
    """The compressed block of each group; a block that is replaced leaves its place unused."""

    def __init__(self, folder: Path) -> None:
        """Spool to memory or into ``folder``."""
        self._spool = _Spool(folder)
        self._offsets = array("Q")
        self.sizes = array("I")

    def put(self, group: int, block: bytes) -> None:
        """Keep the block of ``group``: the next one, or another for one that is there."""
        offset = self._spool.size
        self._spool.write(offset, block)
        if group == len(self.sizes):
            self._offsets.append(offset)
            self.sizes.append(len(block))
        else:
            self._offsets[group] = offset
            self.sizes[group] = len(block)

    def get(self, group: int) -> bytes:
        """Return the block of ``group``."""
        return self._spool.read(self._offsets[group], self.sizes[group])

    def join(self, groups: Sequence[int]) -> bytes:
        """Return the blocks of ``groups``, end to end."""
        pieces = []
        start = behind = 0
        for group in groups:
            # Blocks that lie behind one another, mostly all, are read at once: a part is large.
            if self._offsets[group] != behind:
                if behind > start:
                    pieces.append(self._spool.read(start, behind - start))
                start = self._offsets[group]
                behind = start
            behind += self.sizes[group]
        if behind > start:
            pieces.append(self._spool.read(start, behind - start))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def cut(self, groups: int) -> None:
        """Forget the blocks from ``groups`` on."""
        del self._offsets[groups:]
        del self.sizes[groups:]

    def close(self) -> None:
        """Give up the memory or the file."""
        self._spool.close()


class PageSpool:
    """The newest image of each page that was put into it; 4 bytes of memory a page."""

    def __init__(self, folder: Path, page_size: int) -> None:
        """Spool pages of ``page_size`` bytes to memory or into ``folder``."""
        self._spool = _Spool(folder)
        self._page_size = page_size
        self._slots: npt.NDArray[np.uint32] = np.zeros(1024, dtype=np.uint32)  # 0: not here
        self._count = 0

    def put(self, pgno: int, page: bytes | memoryview) -> None:
        """Keep ``page`` as the newest image of ``pgno``."""
        if pgno >= len(self._slots):
            grown = np.zeros(max(pgno + 1, 2 * len(self._slots)), dtype=np.uint32)
            grown[: len(self._slots)] = self._slots
            self._slots = grown
        slot = int(self._slots[pgno])
        if not slot:
            self._count += 1
            slot = self._count
            self._slots[pgno] = slot
        self._spool.write((slot - 1) * self._page_size, page)

    def get(self, pgno: int) -> bytes | None:
        """Return the newest image of ``pgno``, or None if it was never put."""
        slot = int(self._slots[pgno]) if pgno < len(self._slots) else 0
        return self._spool.read((slot - 1) * self._page_size, self._page_size) if slot else None

    def pgnos(self, db_pages: int) -> Iterator[int]:
        """Iterate over the pages that are here, ascending, up to ``db_pages``."""
        yield from map(int, np.flatnonzero(self._slots[: db_pages + 1]))

    def close(self) -> None:
        """Give up the memory or the file."""
        self._spool.close()
