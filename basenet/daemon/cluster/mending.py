"""Bringing a database file to a known state by content, whatever it holds now.

Theory of operation
===================

A state is its leaf hashes. So to join, to roll back, to repair a bad page and to take a snapshot in
are one thing (P30, P31)::

    which pages differ       the pages named, or all, hashed and compared with the target's leaves
    where each comes from    the file itself, frames at hand, other nodes: whoever has an image
                             with that hash, in this order, as long as something is missing
    what is written          all of them as one transaction: readers see the state before, or after

An image is used only after its hash was found to be the target's, so sources need no trust, and an
old image that happens to be the right one costs nothing to fetch. A roll-back of a few commits is
done from the log of the file alone: what stood there before stands in earlier frames, or in the
database file below them.

Images wait in a `Spool`; nothing here holds the whole database in memory but the list of pages. If
some pages are not to be had, what was found is kept for the next attempt (`Gatherer`): its target
is a newer state, of which most pages are the same.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import trio

from basenet.daemon.cluster.spool import Spool
from basenet.errors import UnavailableError
from basenet.sqlite.attach import Database
from basenet.sqlite.captured import Cursor
from basenet.sqlite.inject import Position, Transaction
from basenet.sqlite.pages import PageView
from basenet.sqlite.walformat import FRAME_HEADER_BYTES, HEADER_BYTES, FrameCodec
from basenet.units import HASH_BYTES, MIB, lock_page
from basenet.wire.merkle import leaf_hash, leaf_hashes

_BLOCK_BYTES: Final = 4 * MIB
# What is asked of other nodes at once.
_FETCH_BYTES: Final = 4 * MIB
_FETCH_PAGES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The state to come to.

    ``leaf``: the leaf hash of a page, of any from 1 to ``db_pages``; called in a thread. ``pgnos``:
    which pages may differ (those that the file lacks are added); None: the whole file is looked at.
    No transaction leads to a state without a page: a file that has more than a header is moved
    aside for it.
    """

    page_size: int
    db_pages: int
    leaf: Callable[[int], bytes]
    pgnos: Iterable[int] | None = None


class PageSources(Protocol):
    """Who may have pages that the file lacks."""

    def images(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """Yield (pgno, image) of the frames at hand, the newest first; runs in a thread."""
        ...

    async def fetch(self, wants: Sequence[tuple[int, bytes]]) -> Mapping[int, bytes]:
        """Ask other nodes for pages by number and leaf hash; what nobody has is left out."""
        ...

    async def wait_for_more(self) -> bool:
        """Return True once it is worth asking again; False: nobody will have the rest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MendResult:
    """What was done.

    ``pages`` were written, so many of them ``from_file``, ``from_frames`` and ``from_peers`` (by
    this attempt, or by one before that failed).
    ``position``, ``cursor``: the end of the log now. ``is_schema_undone``: connections that are
    open now may take the new schema for the one they know (P6): writing stays forbidden until
    `Database.others_connected` is False. ``set_aside``: the old file, if the page size changed.
    """

    pages: int
    from_file: int
    from_frames: int
    from_peers: int
    position: Position
    cursor: Cursor
    is_schema_undone: bool
    set_aside: Path | None = None


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many pages came from where."""

    file: int = 0
    frames: int = 0
    peers: int = 0


class Shortage:
    """The pages that differ, and the images that were found for them so far."""

    def __init__(self, target: Target, pgnos: npt.NDArray[np.uint32], folder: Path) -> None:
        """``pgnos``: ascending. Raises `UnavailableError` if there is no room for their images."""
        self._target = target
        self.pgnos = pgnos
        self._spool = Spool(folder, count=len(pgnos), page_size=target.page_size)
        self._has = np.zeros(len(pgnos), bool)

    def missing(self) -> npt.NDArray[np.uint32]:
        """Return the pages without an image, ascending."""
        return self.pgnos[~self._has]

    def is_missing(self, pgnos: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Return for each of ``pgnos`` whether an image of it is looked for."""
        if not len(self.pgnos):
            return np.zeros(len(pgnos), bool)
        places = np.minimum(np.searchsorted(self.pgnos, pgnos), len(self.pgnos) - 1)
        return np.asarray((self.pgnos[places] == pgnos) & ~self._has[places])

    def offer(self, pgno: int, image: bytes | memoryview) -> bool:
        """Keep ``image`` if it is the page that is looked for; return whether it is."""
        # Of the array's own type: for any other, numpy copies the whole array first.
        place = int(self.pgnos.searchsorted(np.uint32(pgno)))
        if place == len(self.pgnos) or self.pgnos[place] != pgno or self._has[place]:
            return False
        if len(image) != self._target.page_size:
            return False
        if leaf_hash(pgno, image) != self._target.leaf(pgno):
            return False
        self._spool.put(place, image)
        self._has[place] = True
        return True

    def images(self) -> Iterator[tuple[int, bytes]]:
        """Yield (pgno, image) of what was found."""
        for place in np.flatnonzero(self._has).tolist():
            yield int(self.pgnos[place]), self._spool.get(place)

    def as_transaction(self) -> Transaction:
        """Return all pages as one commit; the caller drops it before `close`."""
        assert self._has.all(), "a page is missing"
        return Transaction(
            pieces=[(self.pgnos, self._spool.view())], db_pages=self._target.db_pages
        )

    def close(self) -> None:
        """Give the room back."""
        self._spool.close()


def find_shortage(database: Database, target: Target, folder: Path) -> Shortage:
    """Return what ``database`` lacks of ``target``; none if it is there already.

    Raises `UnavailableError` and `CorruptionError`.
    """
    size = target.page_size
    assert size == database.page_size, "another page size needs another file"
    lock = lock_page(size)
    with PageView(database) as view:
        present = min(view.db_pages, target.db_pages)
        found = [np.array(list(_differing(view, target, present)), np.uint32)]
        found.append(np.arange(present + 1, target.db_pages + 1, dtype=np.uint32))
        has_other_size = view.db_pages != target.db_pages
    pgnos = np.concatenate(found)
    pgnos = pgnos[pgnos != lock]
    if not len(pgnos) and has_other_size:
        # A commit needs a page to carry the new size.
        pgnos = np.array([1], np.uint32)
    return Shortage(target, pgnos, folder)


def _differing(view: PageView, target: Target, present: int) -> Iterator[int]:
    """Yield, ascending, which of the first ``present`` pages are other than the target's."""
    lock = lock_page(view.page_size)
    for first, last in _ranges(target.pgnos, present):
        for start, block in view.blocks(first, last):
            hashes = leaf_hashes(start, block, view.page_size)
            for index in range(len(hashes) // HASH_BYTES):
                pgno = start + index
                found = hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
                if pgno != lock and found != target.leaf(pgno):
                    yield pgno


def _ranges(pgnos: Iterable[int] | None, present: int) -> Iterator[tuple[int, int]]:
    """Yield first and last page of each run of consecutive pages up to ``present``."""
    if pgnos is None:
        if present:
            yield 1, present
        return
    wanted = np.unique(np.fromiter(pgnos, np.int64))
    wanted = wanted[(wanted >= 1) & (wanted <= present)]
    for run in np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1):
        if len(run):
            yield int(run[0]), int(run[-1])


def search_file(database: Database, shortage: Shortage) -> int:
    """Look for images in the database file and in all of its log; return how many were found.

    Whatever lies there will do, committed or not, of this generation or an older one: the hash
    decides.
    """
    return _search_pages(database, shortage) + _search_log(database, shortage)


def _search_pages(database: Database, shortage: Shortage) -> int:
    size, count = database.page_size, 0
    end = os.fstat(database.database_fd).st_size // size
    missing = shortage.missing()
    for pgno in missing[missing <= end].tolist():
        image = os.pread(database.database_fd, size, (pgno - 1) * size)
        count += shortage.offer(pgno, image)
    return count


def _search_log(database: Database, shortage: Shortage) -> int:
    codec = FrameCodec(database.page_size)
    step = max(1, _BLOCK_BYTES // codec.frame_bytes) * codec.frame_bytes
    count, offset = 0, HEADER_BYTES
    end = os.fstat(database.wal_fd).st_size
    while offset < end and len(shortage.missing()):
        block = memoryview(os.pread(database.wal_fd, step, offset))
        offset += step
        pgnos = codec.headers(block)[:, 0]
        for row in np.flatnonzero(shortage.is_missing(pgnos)).tolist():
            start = row * codec.frame_bytes + FRAME_HEADER_BYTES
            count += shortage.offer(int(pgnos[row]), block[start : start + database.page_size])
    return count


def search_images(shortage: Shortage, images: Iterable[tuple[int, bytes | memoryview]]) -> int:
    """Look for images in ``images`` until nothing is missing; return how many were found."""
    left, count = len(shortage.missing()), 0
    if left:
        for pgno, image in images:
            count += shortage.offer(pgno, image)
            if count == left:
                break
    return count


async def fetch_all(
    shortage: Shortage, target: Target, sources: PageSources, *, limiter: trio.CapacityLimiter
) -> int:
    """Ask other nodes until nothing is missing; return how many pages came.

    Raises `UnavailableError` when nobody will have the rest.
    """
    count = 0
    step = max(1, min(_FETCH_PAGES_MAX, _FETCH_BYTES // target.page_size))
    while len(missing := shortage.missing()):
        before = count
        for start in range(0, len(missing), step):
            wants = [(pgno, target.leaf(pgno)) for pgno in missing[start : start + step].tolist()]
            found = await sources.fetch(wants)
            count += await trio.to_thread.run_sync(
                search_images, shortage, found.items(), limiter=limiter
            )
        if count == before and not await sources.wait_for_more():
            raise UnavailableError(
                f"{len(missing)} pages, page {missing[0]} among them, are had by no node that is "
                "connected; they are asked for again"
            )
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A shortage that was made good, and from where."""

    shortage: Shortage
    tally: Tally


class Gatherer:
    """Gathers pages for one file; what a failed attempt has found is a source of the next one."""

    def __init__(self, folder: Path, limiter: trio.CapacityLimiter) -> None:
        """Let images wait in ``folder`` when they are many; threads are those of ``limiter``."""
        self._folder = folder
        self._limiter = limiter
        self._left: Shortage | None = None

    async def gather(self, database: Database, target: Target, sources: PageSources) -> Gathered:
        """Return all pages in which ``database`` differs from ``target``; the caller closes them.

        Raises `UnavailableError`, `CorruptionError`.
        """
        shortage = await trio.to_thread.run_sync(
            find_shortage, database, target, self._folder, limiter=self._limiter
        )
        try:
            return await self._fill(database, target, sources, shortage)
        except BaseException:
            self.close()
            self._left = shortage
            raise

    async def _fill(
        self, database: Database, target: Target, sources: PageSources, shortage: Shortage
    ) -> Gathered:
        tally = Tally()
        tally.file = await trio.to_thread.run_sync(
            search_file, database, shortage, limiter=self._limiter
        )
        tally.peers = await trio.to_thread.run_sync(
            self._search_left, shortage, limiter=self._limiter
        )
        tally.frames = await trio.to_thread.run_sync(
            lambda: search_images(shortage, sources.images()), limiter=self._limiter
        )
        tally.peers += await fetch_all(shortage, target, sources, limiter=self._limiter)
        return Gathered(shortage=shortage, tally=tally)

    def _search_left(self, shortage: Shortage) -> int:
        """Look at what an earlier attempt found; it is not needed afterwards."""
        if self._left is None:
            return 0
        count = search_images(shortage, self._left.images())
        self.close()
        return count

    def close(self) -> None:
        """Forget what an earlier attempt found."""
        if self._left is not None:
            self._left.close()
            self._left = None
