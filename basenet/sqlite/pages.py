"""The whole database at one position of the log, read beside everybody else.

Theory of operation
===================

SQLite's rule for a reader is ours: a page is its newest frame up to the reader's position, or, with
no such frame, what the database file holds. A read transaction of an own connection keeps that
true while we read by descriptor:

* on marks 1..4 nobody copies frames behind the mark into the file and nobody resets the log, so
  frames up to any later position and the rest of the file stand still;
* on mark 0 nobody copies anything. The log may be reset once, but then everything was in the file
  already (nBackfill == mxFrame), and the log is not looked at.

So one look at the wal-index *after* the transaction began fixes the position, whichever mark it is.
The log's frames are verified when they are listed and again when they are read, except those that
SQLite left without a checksum (`unsealed`): for them the wal-index speaks.
"""

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

import apsw
import numpy as np
import numpy.typing as npt

from basenet.errors import CorruptionError, UnavailableError
from basenet.sqlite.attach import Database, translated
from basenet.sqlite.captured import Cursor
from basenet.sqlite.tail import LogReader
from basenet.sqlite.walformat import Words, frame_offset
from basenet.sqlite.walindex import Index
from basenet.units import MIB, lock_page

BLOCK_BYTES: Final = 4 * MIB
_ATTEMPTS_MAX: Final = 20


class PageView:
    """One consistent state of the database; a context manager that holds a read transaction.

    Has its own connection, so it may live in another thread than the capture.
    """

    __slots__ = (
        "_codec",
        "_connection",
        "_database",
        "_frame_pgnos",
        "_frame_rows",
        "_is_sealed",
        "_sums",
        "cursor",
        "db_pages",
        "page_size",
    )

    def __init__(self, database: Database) -> None:
        """Open the view; raises `UnavailableError` if SQLite is busy, `CorruptionError`."""
        self._database = database
        self.page_size = database.page_size
        self._connection = database.connect()
        try:
            index = self._begin()
            reader = LogReader(database)
            self._codec = reader.codec(index.header)
            self._list_frames(reader, index)
        except BaseException:
            self._connection.close()
            raise
        self.cursor = cursor_at(database, index)
        self.db_pages = self._count_pages(index)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def _begin(self) -> Index:
        try:
            self._connection.execute("begin")
            self._connection.execute("pragma schema_version").fetchall()
        except apsw.Error as error:
            raise translated(error, self._database.path) from error
        for _ in range(_ATTEMPTS_MAX):
            index = self._database.read_index()
            if index is not None:
                return index
        raise UnavailableError(f"{self._database.path}-shm is being changed; trying again.")

    def _count_pages(self, index: Index) -> int:
        """Return the size of the database in pages, as SQLite's pager counts it.

        The wal-index knows it since the first commit, before that the file's length says it. (Page
        1 may say less when a program lets its file grow in chunks: its next commit does not.)
        """
        size = os.fstat(self._database.database_fd).st_size
        return index.header.db_pages or size // self.page_size

    def _list_frames(self, reader: LogReader, index: Index) -> None:
        """Verify the log up to the position and note the newest frame of each page in it."""
        self._frame_pgnos: Words = np.empty(0, np.uint32)
        self._frame_rows: npt.NDArray[np.intp] = np.empty(0, np.intp)
        self._sums: Words = np.empty((2, 0), np.uint32)
        self._is_sealed = np.empty(0, bool)
        if index.is_backfilled:
            return
        log = reader.list_frames(index.header)
        self._sums, self._is_sealed = log.sums, log.is_sealed
        self._frame_pgnos, first = np.unique(log.pgnos[::-1], return_index=True)
        self._frame_rows = np.asarray(len(log.pgnos) - 1 - first, np.intp)

    def blocks(
        self, first: int = 1, last: int | None = None, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[int, memoryview]]:
        """Yield (first page number, contents end to end) for the pages ``first`` to ``last``.

        ``last`` defaults to, and is cut at, the end of the database. The lock page is zeros.
        Raises `CorruptionError` if the file is shorter than the database or a frame is damaged.
        """
        end = self.db_pages if last is None else min(last, self.db_pages)
        step = max(1, block_bytes // self.page_size)
        for begin in range(first, end + 1, step):
            count = min(step, end + 1 - begin)
            yield begin, self._read(begin, count)

    def _read(self, first: int, count: int) -> memoryview:
        size = self.page_size
        block = bytearray(count * size)
        got = 0
        view = memoryview(block)
        while got < len(block):
            done = os.preadv(self._database.database_fd, [view[got:]], (first - 1) * size + got)
            if not done:
                break
            got += done
        low, high = np.searchsorted(self._frame_pgnos, (first, first + count))
        pgnos, rows = self._frame_pgnos[low:high], self._frame_rows[low:high]
        self._check_length(first, count, got // size, pgnos)
        self._overlay(block, first, pgnos, rows)
        lock = lock_page(size)
        if first <= lock < first + count:
            block[(lock - first) * size : (lock - first + 1) * size] = bytes(size)
        return view

    def _check_length(self, first: int, count: int, got: int, in_log: Words) -> None:
        """Refuse a page that is neither in the file nor in the log."""
        missing = np.arange(first + got, first + count, dtype=np.uint32)
        missing = missing[missing != lock_page(self.page_size)]
        missing = np.setdiff1d(missing, in_log, assume_unique=True)
        if len(missing):
            raise CorruptionError(
                f"{self._database.path} is cut short: page {missing[0]} of {self.db_pages} is "
                "neither in the file nor in its log; restore the database."
            )

    def _overlay(
        self, block: bytearray, first: int, pgnos: Words, rows: npt.NDArray[np.intp]
    ) -> None:
        """Put the log's newer images of ``pgnos`` into ``block``."""
        if not len(pgnos):
            return
        images = np.frombuffer(block, np.uint8).reshape(-1, self.page_size)
        order = np.argsort(rows)
        rows, places = rows[order], pgnos[order].astype(np.intp) - first
        done = 0
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            row, count = int(run[0]), len(run)
            offset = frame_offset(row, self.page_size)
            raw = os.pread(self._database.wal_fd, count * self._codec.frame_bytes, offset)
            sums = self._sums[:, row : row + count + 1]
            is_sealed = self._is_sealed[row : row + count]
            found = self._codec.verify_each(raw, sums[:, :-1], sums[:, 1:], is_sealed)
            if found is None:
                raise CorruptionError(
                    f"{self._database.path}-wal is damaged near frame {row + 1}; check the disk."
                )
            images[places[done : done + count]] = found
            done += count


def read_pages(database: Database, first: int, count: int) -> memoryview:
    """Return up to ``count`` pages from ``first`` on, end to end, as committed at one moment.

    The moment lies between call and return. Shorter when the database ends before; the pages are
    what a snapshot's fuzzy copy needs: later changes are in the chain.
    """
    with PageView(database) as view:
        size = count * database.page_size
        for _, block in view.blocks(first, first + count - 1, size):
            return block
    return memoryview(b"")


def cursor_at(database: Database, index: Index) -> Cursor:
    """Return the cursor at the end of the log that ``index`` describes."""
    header = index.header
    return Cursor(
        device=database.device,
        inode=database.inode,
        page_size=database.page_size,
        salts=header.salts,
        frame=header.frame_max,
        checksum=header.checksum,
        change=header.change,
    )
