"""A transaction in pieces that a crash cut off: what of it is in frames already.

Theory of operation
===================

Capture goes on behind the last whole transaction, so one that was cut off comes again from its
first page, while the first of its pieces are frames already, and may be in other journals. It is
cut as before, since it is the same transaction of the same log: so exactly these pieces are left
out, and the run goes on. What comes again otherwise is no continuation of it::

    in frames      [1 2 3] [4 5 6]
    comes again    [1 2 3] [4 5 6] [7 8 9]       the third piece is the next frame
"""

from collections.abc import Sequence

from basenet.errors import UnavailableError
from basenet.sqlite.captured import Captured
from basenet.wire.merkle import leaf_hash


class Resumed:
    """Leaves out what an open run has already."""

    def __init__(self, pgnos: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Take the pages of the open run, with their leaf hashes; none when no run is open."""
        self._pgnos = list(pgnos)
        self._hashes = list(hashes)
        self._seen = 0
        self._is_begun = False

    def unseen(self, items: Sequence[Captured]) -> list[Captured]:
        """Return those of ``items`` that no frame has.

        Raises `UnavailableError` when it is another transaction than the one that was cut off.
        """
        if not self._is_begun and items:
            self._is_begun = True
            if self._pgnos and not _comes_before(items[0], self._pgnos[-1]):
                self._seen = len(self._pgnos)  # it goes on where it was
        left = list(items)
        while left and self._seen < len(self._pgnos):
            self._leave_out(left.pop(0))
        return left

    def _leave_out(self, item: Captured) -> None:
        size, end = item.page_size, self._seen + len(item.pgnos)
        pgnos = item.pgnos.tolist()
        view = memoryview(item.pages)
        hashes = [
            leaf_hash(pgno, view[index * size : (index + 1) * size])
            for index, pgno in enumerate(pgnos)
        ]
        is_same = (
            not item.is_run_last
            and pgnos == self._pgnos[self._seen : end]
            and hashes == self._hashes[self._seen : end]
        )
        if not is_same:
            raise UnavailableError(
                "a large transaction was cut off by a crash, and what is in the database now is "
                "another one; trying again until another node has decided about it"
            )
        self._seen = end


def _comes_before(item: Captured, pgno: int) -> bool:
    return not len(item.pgnos) or int(item.pgnos[0]) <= pgno
