"""Pages on their way into a database file: the newest image of each, in few large writes.

Small transactions touch the same pages again and again, and scattered ones. Written one by one,
each page costs a system call and a hash; 20,000 transactions of two pages in a database of 12,800
take 1.7 s that way and 0.9 s this way. So pages wait here until `WAITING_BYTES_MAX` have gathered.
Then only the newest image of each page is hashed, and neighbours are written with one call. Frames
with many pages go straight to the file.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from basenet.archive.place import Draft
from basenet.units import HASH_BYTES, MIB, lock_page
from basenet.wire.merkle import leaf_hash, leaf_hashes, normalised_first_page

WAITING_BYTES_MAX: Final = 32 * MIB
# From here on a frame's own pages make writes that are large enough.
DIRECT_PAGES_MIN: Final = 64
# Linux takes 1,024 pieces in one call.
_PIECES_MAX: Final = 1024


class PageBuffer:
    """The pages and the leaf hashes of a database that is being rebuilt."""

    def __init__(self, draft: Draft, page_size: int, leaves: bytearray) -> None:
        """``leaves``: the leaf hashes of the pages that are in the file already, 32 bytes each."""
        self._draft = draft
        self._waiting: dict[int, bytes] = {}
        self.page_size = page_size
        self.leaves = leaves

    @property
    def db_pages(self) -> int:
        """How many pages the database has."""
        return len(self.leaves) // HASH_BYTES

    def reset(self, page_size: int) -> None:
        """Begin anew with a database of no pages."""
        self._waiting.clear()
        self.leaves = bytearray()
        self.page_size = page_size
        self._draft.resize(0)

    def resize(self, lowest: int, db_pages: int) -> None:
        """Forget the pages beyond ``lowest``, then make room for ``db_pages``."""
        if lowest < self.db_pages:
            del self.leaves[lowest * HASH_BYTES :]
            self._waiting = {p: page for p, page in self._waiting.items() if p <= lowest}
        before = self.db_pages
        self.leaves.extend(bytes((db_pages - before) * HASH_BYTES))
        lock = lock_page(self.page_size)
        if before < lock <= db_pages:
            self._set_leaves(lock, leaf_hash(lock, bytes(self.page_size)))

    def put(self, pgnos: Sequence[int], pages: bytes | memoryview, wanted: Sequence[int]) -> None:
        """Take the pages at the places ``wanted`` (ascending) of ``pgnos`` and ``pages``."""
        size, view = self.page_size, memoryview(pages)
        if len(wanted) >= DIRECT_PAGES_MIN:
            for first, after in _find_runs(pgnos, wanted):
                self._write(pgnos[first], [view[first * size : after * size]])
                for index in range(first, after):
                    self._waiting.pop(pgnos[index], None)
            return
        for index in wanted:
            self._waiting[pgnos[index]] = bytes(view[index * size : (index + 1) * size])
        if len(self._waiting) * size > WAITING_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        pgnos = sorted(self._waiting)
        for first, after in _find_runs(pgnos, range(len(pgnos))):
            for start in range(first, after, _PIECES_MAX):
                run = pgnos[start : min(start + _PIECES_MAX, after)]
                self._write(run[0], [self._waiting[pgno] for pgno in run])
        self._waiting.clear()

    def _write(self, first_pgno: int, pieces: list[bytes] | list[memoryview]) -> None:
        """Hash and write whole pages that follow one another from ``first_pgno``."""
        pgno = first_pgno
        for piece in pieces:
            self._set_leaves(pgno, leaf_hashes(pgno, piece, self.page_size))
            pgno += len(piece) // self.page_size
        head: list[bytes | memoryview] = list(pieces)
        if first_pgno == 1:
            head[0] = normalised_first_page(head[0])
        self._draft.write_all((first_pgno - 1) * self.page_size, head)

    def _set_leaves(self, first_pgno: int, leaves: bytes) -> None:
        start = (first_pgno - 1) * HASH_BYTES
        self.leaves[start : start + len(leaves)] = leaves


def _find_runs(pgnos: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of places in ``wanted`` that follow one another in place and page."""
    first = after = None
    for index in wanted:
        if after is not None and first is not None:
            if index == after and pgnos[index] == pgnos[index - 1] + 1:
                after = index + 1
                continue
            yield first, after
        first, after = index, index + 1
    if after is not None and first is not None:
        yield first, after
