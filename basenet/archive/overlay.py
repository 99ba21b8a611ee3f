"""The pages that changed after a page set: the newest image of each, and what is left of the set.

A query lays them over the page set instead of writing a database. They wait in a file without a
name, and in memory there are some bytes a page.
"""

from collections.abc import Sequence
from pathlib import Path

from basenet.archive.spool import PageSpool
from basenet.errors import UnavailableError
from basenet.units import GROUP_PAGES, lock_page
from basenet.wire.merkle import group_count


class Overlay:
    """What a `Follower` hands on, by page."""

    def __init__(
        self, folder: Path, page_size: int, db_pages: int, *, is_folder_free: bool = False
    ) -> None:
        """Lay nothing over a page set of ``db_pages`` pages; pages are spooled into ``folder``.

        ``is_folder_free``: it is where TMPDIR leads, and not where a copy lies.
        """
        self._folder = folder
        self._is_folder_free = is_folder_free
        self._spool: PageSpool | None = None
        self._held: set[int] = set()
        self._resized: set[int] = set()
        self.page_size = page_size
        self.db_pages = db_pages
        self.base_pages = db_pages
        """Up to which page the page set still counts: what lay beyond was cut off since."""

    def reset(self, page_size: int) -> None:
        """Begin anew with a database of no pages; of the page set nothing is left."""
        self.close()
        self._held.clear()
        self._resized.clear()
        self.page_size, self.db_pages, self.base_pages = page_size, 0, 0

    def resize(self, lowest: int, db_pages: int) -> None:
        """Forget the pages beyond ``lowest``, then make room for ``db_pages``."""
        if lowest < self.db_pages:
            self._held = {pgno for pgno in self._held if pgno <= lowest}
            self.base_pages = min(self.base_pages, lowest)
        # The group at an end may have got more or fewer pages.
        ends = {self.db_pages, lowest, db_pages}
        if len(ends) > 1:
            self._resized |= {(end - 1) // GROUP_PAGES for end in ends if end}
        lock = lock_page(self.page_size)
        if self.base_pages < lock <= db_pages:
            self._resized.add((lock - 1) // GROUP_PAGES)
        self.db_pages = db_pages

    def put(self, pgnos: Sequence[int], pages: bytes | memoryview, wanted: Sequence[int]) -> None:
        """Take the pages at the places ``wanted`` of ``pgnos`` and ``pages``.

        Raises `UnavailableError` when the folder is full.
        """
        view, size = memoryview(pages), self.page_size
        if self._spool is None:
            self._spool = PageSpool(self._folder, size)
        for index in wanted:
            try:
                self._spool.put(pgnos[index], view[index * size : (index + 1) * size])
            except UnavailableError as error:
                raise self._explain() from error
            self._held.add(pgnos[index])

    def pgnos(self) -> list[int]:
        """Return the pages that `get` gives, ascending."""
        return sorted(self._held)

    def holds(self, pgno: int) -> bool:
        """Return whether `get` gives ``pgno``."""
        return pgno in self._held

    def get(self, pgno: int) -> bytes | None:
        """Return the newest image of ``pgno``, or None if the page set's counts."""
        if self._spool is None or pgno not in self._held:
            return None
        try:
            return self._spool.get(pgno)
        except UnavailableError as error:
            raise self._explain() from error

    def _explain(self) -> UnavailableError:
        elsewhere = ", or name another directory in TMPDIR" if self._is_folder_free else ""
        return UnavailableError(
            f"the pages that changed do not fit into {self._folder}: make room there{elsewhere}"
        )

    def touched_groups(self) -> list[int]:
        """Return the groups that may differ from those of the page set, ascending."""
        groups = {(pgno - 1) // GROUP_PAGES for pgno in self._held} | self._resized
        return sorted(group for group in groups if group < group_count(self.db_pages))

    def close(self) -> None:
        """Give up the memory or the file."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
