"""A real database whose states become the frames of a hand-made history."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from tests.archive.builder import Archive, History


class Recorder:
    """A database file of the test's own; `begin` adopts it, `commit` records what changed since."""

    def __init__(self, path: Path, *, page_size: int = 4096) -> None:
        self._path = path
        self._page_size = page_size
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute(f"PRAGMA page_size = {page_size}")
        self.history: History

    def run(self, statement: str, values: Sequence[object] = ()) -> None:
        """Run a statement, which commits by itself."""
        self._connection.execute(statement, values).close()

    def begin(self) -> None:
        """Make the present state the first frame's."""
        self.history = History(page_size=self._page_size, pages=self._pages())

    def commit(self) -> int:
        """Record the difference to the last state as one frame; return its seq."""
        pages = self._pages()
        before = self.history.pages
        changes = {pgno: page for pgno, page in pages.items() if before.get(pgno) != page}
        return self.history.commit(changes, db_pages=len(pages))[-1].head.seq

    def _pages(self) -> dict[int, bytes]:
        data, size = self._path.read_bytes(), self._page_size
        return {1 + at // size: data[at : at + size] for at in range(0, len(data), size)}


def write(archive: Archive, folder: Path) -> Path:
    """Write ``archive`` to a directory and return it."""
    for name, stored in archive.store.objects.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored.data)
    return folder
