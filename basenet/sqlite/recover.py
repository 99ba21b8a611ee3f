"""What differs from the leaf hashes: the bridge over commits that cannot be followed.

When the log was overwritten before it was read, or the database was changed while no daemon looked,
the commits in between are gone as single steps, but their sum is in the file. Reading the whole
database at one position and comparing each page's leaf hash with the one that the chain implies
gives that sum: the pages that differ, one change flagged RECOVERED, and the cursor from which
following goes on. Nothing is lost but those commits' own restore points.

170,000 pages take about a second: SHA-256 over 700 MB, page by page.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from basenet.sqlite.attach import Database
from basenet.sqlite.captured import Captured, CaptureFlag, Cursor, pages_max
from basenet.sqlite.pages import PageView
from basenet.units import HASH_BYTES, lock_page
from basenet.wire.merkle import leaf_hashes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """A whole database as leaf hashes: 32 bytes a page, end to end, as of ``cursor``."""

    page_size: int
    db_pages: int
    leaves: bytearray
    cursor: Cursor


def scan(database: Database) -> Scan:
    """Hash every page at one position of the log.

    Raises `UnavailableError` if SQLite is busy, `CorruptionError` if the file is damaged.
    """
    with PageView(database) as view:
        leaves = bytearray()
        for first, block in view.blocks():
            leaves += leaf_hashes(first, block, view.page_size)
        return Scan(
            page_size=view.page_size, db_pages=view.db_pages, leaves=leaves, cursor=view.cursor
        )


class Difference:
    """The pages of one state that differ from leaf hashes; iterate once, inside `PageView`."""

    __slots__ = ("_before", "_captured_ns", "_commits", "_leaves", "_pages", "_pgnos", "_view")

    def __init__(
        self, view: PageView, leaves: bytes, *, before: Cursor | None, commits: int
    ) -> None:
        self._view = view
        self._leaves = leaves
        self._before = before or view.cursor
        self._commits = commits
        self._captured_ns = time.time_ns()
        self._pgnos: list[int] = []
        self._pages: list[memoryview] = []

    def __iter__(self) -> Iterator[Captured]:
        view = self._view
        step = pages_max(view.page_size)
        found = False
        for first, block in view.blocks():
            for pgno in self._differing(first, block):
                if len(self._pgnos) == step:
                    # Only now is it certain that another piece follows.
                    yield self._piece(CaptureFlag.PARTIAL)
                found = True
                offset = (pgno - first) * view.page_size
                self._pgnos.append(pgno)
                self._pages.append(block[offset : offset + view.page_size])
        if found or view.db_pages * HASH_BYTES != len(self._leaves):
            yield self._piece(CaptureFlag.NONE)

    def _differing(self, first: int, block: memoryview) -> list[int]:
        hashes = leaf_hashes(first, block, self._view.page_size)
        start = (first - 1) * HASH_BYTES
        known = self._leaves[start : start + len(hashes)]
        if known == hashes:
            return []
        count = len(hashes) // HASH_BYTES
        known_rows = np.zeros((count, HASH_BYTES), np.uint8)
        is_known = len(known) // HASH_BYTES
        known_rows[:is_known] = np.frombuffer(known, np.uint8).reshape(-1, HASH_BYTES)
        rows = np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES)
        differs = (rows != known_rows).any(axis=1)
        lock = lock_page(self._view.page_size)
        return [first + row for row in np.flatnonzero(differs).tolist() if first + row != lock]

    def _piece(self, partial: CaptureFlag) -> Captured:
        view = self._view
        piece = Captured(
            page_size=view.page_size,
            db_pages=view.db_pages,
            commits=0 if partial else self._commits,
            pgnos=np.array(self._pgnos, np.uint32),
            pages=b"".join(self._pages),
            flags=CaptureFlag.RECOVERED | partial,
            cursor=self._before if partial else view.cursor,
            captured_ns=self._captured_ns,
        )
        self._pgnos.clear()
        self._pages.clear()
        return piece


def diff(
    view: PageView,
    leaves: bytes | bytearray | memoryview,
    *,
    before: Cursor | None = None,
    commits: int = 0,
) -> Iterator[Captured]:
    """Yield, as one RECOVERED change, what differs in ``view`` from ``leaves``; maybe nothing.

    ``leaves``: 32 bytes a page, end to end, of the state that the chain ends with (copied, so the
    caller may change it meanwhile); empty gives all pages. ``commits``: how many commits the change
    stands for, if known. ``before``: the cursor that all but the last piece carry.
    """
    return iter(Difference(view, bytes(leaves), before=before, commits=commits))
