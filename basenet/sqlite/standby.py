"""A database that follows another one: only we write it, and others may read it all the time.

Theory of operation
===================

A *standby* is attached, and SQLite's write lock on it is held for as long as we are here: readers
read, writers get SQLITE_BUSY. A change is appended to its log as one commit (`inject`), so each
reader sees the state before or the state after, whichever process it is and whenever it began.

Before anything is written the new state is computed: the leaf hashes of the pages that change are
set in a copy of the tree, and its root must be the one that was signed. So a page that was lost or
misplaced on the way is refused while every reader still has the state before.

After a crash the file is at the state before or after the change that was being made, never in
between; which one, its own pages tell: `Standby` reads all of them once when it opens.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, overload

import numpy as np
import numpy.typing as npt

from basenet.errors import ChainBroken, ConflictError, UnavailableError
from basenet.sqlite import locks
from basenet.sqlite.apply import Applier
from basenet.sqlite.attach import Database, attach
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.inject import Transaction
from basenet.sqlite.pages import PageView
from basenet.units import MIB, StateRoot, lock_page
from basenet.wire.merkle import StateTree, leaf_hash, leaf_hashes

_PIECE_BYTES: Final = MIB


class Pages(Protocol):
    """Where the pages of a change come from."""

    def read_page(self, pgno: int) -> bytes:
        """Return page ``pgno`` as it is after the change."""
        ...


class _Pieces(Sequence[tuple[npt.NDArray[np.uint32], bytes]]):
    """The pages of a change, read a piece at a time: it can be as large as the database."""

    def __init__(self, pages: Pages, pgnos: Sequence[int], page_size: int) -> None:
        self._pages = pages
        self._pgnos = np.array(pgnos, np.uint32)
        self._step = max(1, _PIECE_BYTES // page_size)

    def __len__(self) -> int:
        return (len(self._pgnos) + self._step - 1) // self._step

    @overload
    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint32], bytes]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[npt.NDArray[np.uint32], bytes]]: ...
    def __getitem__(
        self, index: int | slice
    ) -> tuple[npt.NDArray[np.uint32], bytes] | Sequence[tuple[npt.NDArray[np.uint32], bytes]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        pgnos = self._pgnos[index * self._step : (index + 1) * self._step]
        return pgnos, b"".join(self._pages.read_page(pgno) for pgno in pgnos.tolist())


class _Change(Transaction):
    """A transaction that knows its size without reading its pages."""

    _count: int

    def __init__(self, pages: Pages, pgnos: Sequence[int], page_size: int, db_pages: int) -> None:
        super().__init__(pieces=_Pieces(pages, pgnos, page_size), db_pages=db_pages)
        object.__setattr__(self, "_count", len(pgnos))

    @property
    def page_count(self) -> int:
        """How many pages it writes."""
        return self._count


class Standby:
    """One standby, open. Every method blocks; one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Attach the database at ``path``, keep writers out of it, and read all of its pages.

        Raises `UnavailableError` while somebody writes to it or has it locked, `ConflictError` when
        another basenet has it, `UsageError` for what is no database, `CorruptionError`.
        """
        self._database = attach(path)
        self._applier: Applier | None = None
        try:
            _fence(self._database)
            self._applier = Applier(self._database)
            # What a crash left behind the end of the log must not come back.
            self._applier.forget_tail()
            self._tree = read_tree(self._database)
        except BaseException:
            self.close()
            raise

    @property
    def page_size(self) -> int:
        """The size of a page in bytes."""
        return self._database.page_size

    @property
    def db_pages(self) -> int:
        """How many pages the database has."""
        return self._tree.db_pages

    @property
    def root(self) -> StateRoot:
        """The state root of the database."""
        return self._tree.root()

    def find_different(self, pages: Pages, db_pages: int) -> list[int]:
        """Return which of ``pages``, a whole database, differ from what stands here, ascending."""
        lock = lock_page(self.page_size)
        return [
            pgno
            for pgno in range(1, db_pages + 1)
            if pgno != lock and leaf_hash(pgno, pages.read_page(pgno)) != self._tree.leaf(pgno)
        ]

    def prove(
        self, pages: Pages, pgnos: Sequence[int], *, lowest: int, db_pages: int, root: StateRoot
    ) -> StateTree:
        """Return the tree after a change, whose root is ``root``; nothing is written.

        ``pgnos``: which pages change, ascending; ``lowest``: the smallest size in between. Raises
        `ChainBroken` if another state comes out.
        """
        tree = self._tree.copy()
        if lowest < tree.db_pages:
            tree.update([], [], lowest)
        tree.update(pgnos, (leaf_hash(pgno, pages.read_page(pgno)) for pgno in pgnos), db_pages)
        if tree.root() != root:
            raise ChainBroken(
                "the pages in the archive do not give the state root that was signed, so at least "
                "one of them is missing or stale; run `basenet verify` on the archive"
            )
        return tree

    def apply(self, pages: Pages, pgnos: Sequence[int], tree: StateTree) -> None:
        """Make a change that `prove` returned ``tree`` for visible, durably, as one commit.

        Raises `UnavailableError` when the disk refuses, `ConflictError` when the path is not our
        file any more; the state before is then what stands there.
        """
        assert self._applier is not None, "open"
        if foreign := self._database.why_foreign():
            raise ConflictError(foreign)
        size, before = self.page_size, self._tree
        pgnos = list(pgnos)
        if not pgnos and tree.db_pages == before.db_pages:
            self._tree = tree
            return
        assert pgnos, "a database that shrinks changes its first page"
        change = _Change(pages, pgnos, size, tree.db_pages)
        self._applier.apply(self._applier.prepare_merged([change]))
        self._tree = tree

    def relieve(self) -> None:
        """Keep the log short, as far as readers allow, who may be waited for a moment.

        Raises `ConflictError`.
        """
        assert self._applier is not None, "open"
        try:
            self._applier.make_way()
        except DatabaseReplaced as error:
            raise ConflictError(str(error)) from error

    def close(self) -> None:
        """Let go, with the log copied into the file if nobody is in the way."""
        database = self._database
        if self._applier is not None and database.connections:
            with suppress(DatabaseReplaced, UnavailableError):
                database.checkpoint(database.connections[0])
        # In this order: a descriptor that is closed drops the locks of a connection.
        database.close_connections()
        if self._applier is not None:
            self._applier.close()
            self._applier = None
        database.close()


def _fence(database: Database) -> None:
    if not locks.try_lock(database.shm_fd, locks.WAL_WRITE_BYTE):
        raise UnavailableError(
            f"{database.path} is being written by another program: a copy that follows an archive "
            "can only be read; stop the writer"
        )


def read_tree(database: Database) -> StateTree:
    """Return the tree over all pages of an attached database, at one moment."""
    leaves = bytearray()
    with PageView(database) as view:
        for first, block in view.blocks():
            leaves += leaf_hashes(first, block, view.page_size)
    return StateTree(database.page_size, leaves)
