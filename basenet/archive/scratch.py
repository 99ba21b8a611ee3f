"""A place for a restore that nobody keeps: proven, looked at, and gone.

The file loses its name as soon as it is there, so that the kernel removes it with the process that
holds it, however that ends. It grows up to a bound and not further: the disk is the application's,
too.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from basenet.archive.place import Draft, Place
from basenet.errors import UnavailableError
from basenet.units import MIB, PAGE_SIZE_MIN, is_page_size

_PAGE_SIZE_AT = 16
_PAGE_SIZE_64K = 1


class ScratchTooSmall(UnavailableError):  # noqa: N818  (states a fact; the kind is in the base)
    """The database does not fit into what a scratch file may take of the disk."""


class ScratchDraft(Draft):
    """A draft without a name, at most ``bytes_max`` large; whole pages can be read back."""

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        """Make the file and take its name away; raises `UnavailableError`."""
        super().__init__(path)
        path.unlink()
        self._bytes_max = bytes_max
        self._size = 0
        self.page_size = 0

    def resize(self, size: int) -> None:
        """Cut or extend the file; raises `ScratchTooSmall` beyond the bound."""
        self._require(size)
        super().resize(size)
        self._size = size

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``; raises `ScratchTooSmall` beyond the bound."""
        self._require(offset + len(data))
        super().write(offset, data)

    def _require(self, size: int) -> None:
        if size > self._bytes_max:
            raise ScratchTooSmall(
                f"a database of {size // MIB} MiB needs more than the {self._bytes_max // MIB} MiB "
                f"that a scratch file may take of the disk of {self.path.parent}: make room there"
            )

    @property
    def db_pages(self) -> int:
        """How many pages the file holds."""
        return self._size // self.page_size if self.page_size else 0

    def seal(self) -> None:
        """Take the page size from the first page; nothing is written any more.

        Pages that are no database get the smallest size, and SQLite says what they are.
        """
        header = os.pread(self._file, _PAGE_SIZE_AT + 2, 0)
        stored = int.from_bytes(header[_PAGE_SIZE_AT:], "big")
        size = 1 << 16 if stored == _PAGE_SIZE_64K else stored
        self.page_size = size if is_page_size(size) else PAGE_SIZE_MIN

    def read_page(self, pgno: int) -> bytes:
        """Return page ``pgno``, from 1."""
        return os.pread(self._file, self.page_size, (pgno - 1) * self.page_size)

    def keep(self) -> "ScratchPages":
        """Return the pages for longer than the draft is open; the caller closes them."""
        return ScratchPages(os.dup(self._file), self.page_size, self.db_pages)


class ScratchPages:
    """The pages of a scratch file that outlive its restore."""

    def __init__(self, file: int, page_size: int, db_pages: int) -> None:
        """Take over the descriptor ``file``."""
        self._file = file
        self.page_size = page_size
        self.db_pages = db_pages

    def read_page(self, pgno: int) -> bytes:
        """Return page ``pgno``, from 1."""
        return os.pread(self._file, self.page_size, (pgno - 1) * self.page_size)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)


class Scratch(Place):
    """Where `restore` writes a database that is looked at and not kept."""

    def __init__(
        self, folder: Path, *, bytes_max: int, examine: Callable[[ScratchDraft], None]
    ) -> None:
        """Restore into ``folder``, at most ``bytes_max``; ``examine`` sees what was proven.

        ``examine`` is called in a thread and may raise what it finds.
        """
        super().__init__(folder / "scratch")
        self._bytes_max = bytes_max
        self._examine = examine

    def check(self) -> None:
        """Accept whatever is there: nothing stands in the way of a file without a name."""

    def open_draft(self) -> ScratchDraft:
        """Return a new, empty draft without a name."""
        name = f".{secrets.token_hex(8)}.proof"
        return ScratchDraft(self.path.with_name(name), bytes_max=self._bytes_max)

    def accept(self, draft: Draft) -> list[Path]:
        """Let the draft be examined; it is gone when it is closed."""
        assert isinstance(draft, ScratchDraft), "a scratch makes its drafts itself"
        draft.seal()
        self._examine(draft)
        return []
