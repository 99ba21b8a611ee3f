"""Snapshots: all pages of a database at one final frame, proven before they are published.

Theory of operation
===================

A database is never held still for a snapshot (P26). Its pages are copied while commits go on, so
the copy is *fuzzy*: each page as it was committed at some moment between the start (seq s0) and the
end (seq s) of copying. Every page that changed in between stands in one of the frames s0+1 .. s,
which the journal holds. So the newest image of each page in those frames, laid over the copy,
gives exactly the state at s::

    s0 --- read pages 1 .. n, compress by groups ---> s      fuzzy
    s0 <== newest image of each page in (s0, s] ==    s      exact, if nothing was missed

Nothing is believed: all leaf and group hashes are computed from the bytes that will be stored, and
the root above them must be the state root in the signed head of frame s. If it is not, a commit
was missed or a page was read wrong, and the draft is thrown away (`SnapshotRejected`).

Work on pages happens in threads, at most `duty` of the time, so that the application keeps its
core. Memory is bounded: by 4 MiB of pages on the way in, by a few parts on the way out
(`basenet.archive.publish`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import trio
import zstandard

from basenet.archive.backlog import FrameSource
from basenet.archive.spool import BlockSpool, PageSpool
from basenet.errors import CorruptionError, UnavailableError
from basenet.units import (
    GROUP_PAGES,
    HASH_BYTES,
    MIB,
    SEGMENT_TARGET_BYTES,
    Seq,
    StateRoot,
    lock_page,
)
from basenet.wire.frame import Flag, Frame, Head, Kind, decode_frame
from basenet.wire.merkle import (
    group_count,
    group_hash,
    leaf_hashes,
    normalised_first_page,
    root_of_groups,
)
from basenet.wire.pageset import BLOCK_ZSTD_LEVEL, decode_block
from basenet.wire.payload import decode_commit

CHUNK_BYTES: Final = 2 * MIB
DUTY: Final = 0.5


class SnapshotRejected(CorruptionError):  # noqa: N818  (the field's word; the kind is in the base)
    """The pages that were read do not give the state that the frame was signed for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotStart:
    """Where copying begins: the last captured frame, and the database's shape after it."""

    seq: Seq
    page_size: int
    db_pages: int


class SnapshotSource(FrameSource, Protocol):
    """What a snapshot asks of the database and its journal.

    From `begin` until the caller lets go of the source the journal keeps all frames after s0.
    """

    async def begin(self) -> SnapshotStart:
        """Return s0: every commit up to it is captured. Not within a PARTIAL run."""
        ...

    async def read_pages(self, first_pgno: int, count: int) -> bytes | memoryview:
        """Return pages as they stand now, each of them committed; fewer at the file's end."""
        ...

    async def finish(self) -> Head:
        """Capture all that was committed until now; return the head of the last final frame.

        Its frame ends a commit, and everything that `read_pages` has returned is in it or before.
        """
        ...


class Phase(StrEnum):
    """What a snapshot is doing."""

    READING = "reading"
    OVERLAYING = "overlaying"
    UPLOADING = "uploading"


@dataclass(slots=True)
class Progress:
    """How far a snapshot is, for `status`; written by one task, read by any."""

    phase: Phase = Phase.READING
    pages_done: int = 0
    pages_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0


class Draft:
    """A snapshot that is proven: the state at ``head``, group by group."""

    def __init__(
        self, *, head: Head, page_size: int, db_pages: int, groups: bytearray, blocks: BlockSpool
    ) -> None:
        """Take over ``blocks``, which `close` closes; ``groups`` are hashes laid end to end."""
        self.head = head
        self.page_size = page_size
        self.db_pages = db_pages
        self.groups = groups
        self.blocks = blocks

    @property
    def group_count(self) -> int:
        """How many groups the database has."""
        return len(self.groups) // HASH_BYTES

    @property
    def sizes(self) -> Sequence[int]:
        """The stored size of each group's block."""
        return self.blocks.sizes

    def group_hashes(self, groups: range) -> bytes:
        """Return the hashes of ``groups``, end to end."""
        return bytes(self.groups[groups.start * HASH_BYTES : groups.stop * HASH_BYTES])

    def close(self) -> None:
        """Give up the spool."""
        self.blocks.close()


class _Copy:
    """The fuzzy copy and what is laid over it. Everything here runs in worker threads."""

    def __init__(self, start: SnapshotStart, folder: Path) -> None:
        self.page_size = start.page_size
        self.db_pages = start.db_pages
        self.base_pages = start.db_pages
        self.groups = bytearray()
        self.blocks = BlockSpool(folder)
        self.newest = PageSpool(folder, start.page_size)
        self._lock_page = lock_page(start.page_size)
        self._compressor = zstandard.ZstdCompressor(level=BLOCK_ZSTD_LEVEL)

    def add_chunk(self, first_pgno: int, count: int, data: bytes | memoryview) -> None:
        """Take in ``count`` pages from ``first_pgno``, the first one of a group."""
        size = count * self.page_size
        given = memoryview(data)[:size]
        step = GROUP_PAGES * self.page_size
        for start in range(0, size, step):
            end = min(start + step, size)
            pages = bytearray(given[start:end])
            # Cut off while we read it: whatever stood there is not part of the state at s, or
            # comes with a frame.
            pages.extend(bytes(end - start - len(pages)))
            self._put_group(first_pgno + start // self.page_size, pages)

    def _put_group(self, first_pgno: int, pages: bytearray) -> None:
        """Store the group that begins with ``first_pgno``, in the form that its hash speaks of."""
        page_size, group = self.page_size, (first_pgno - 1) // GROUP_PAGES
        if first_pgno == 1:
            pages[:page_size] = normalised_first_page(memoryview(pages)[:page_size])
        at = (self._lock_page - first_pgno) * page_size
        if 0 <= at < len(pages):
            pages[at : at + page_size] = bytes(page_size)
        digest = group_hash(leaf_hashes(first_pgno, memoryview(pages), page_size))
        self.groups[group * HASH_BYTES : (group + 1) * HASH_BYTES] = digest
        self.blocks.put(group, self._compressor.compress(pages))

    def overlay(self, frames: Sequence[bytes]) -> None:
        """Lay the pages of the next encoded frames over the copy."""
        for encoded in frames:
            frame = decode_frame(encoded)
            assert isinstance(frame, Frame), "the journal holds frames of version 2"
            if frame.head.kind is not Kind.COMMIT:
                continue
            commit = decode_commit(frame.payload)
            if commit.page_size != self.page_size:
                raise UnavailableError(
                    f"the page size of {frame.head.shard} changed from {self.page_size} to "
                    f"{commit.page_size} while a snapshot was taken: it is taken again"
                )
            self.db_pages = commit.db_pages
            for index, pgno in enumerate(commit.pgnos.tolist()):
                self.newest.put(pgno, commit.page(index))

    def settle(self) -> None:
        """Rebuild the groups that changed after they were copied, and the ones at the end."""
        self._cut_to_size()
        changed = {(pgno - 1) // GROUP_PAGES for pgno in self.newest.pgnos(self.db_pages)}
        if self.db_pages != self.base_pages:
            # The groups whose number of pages changed, also when only the lock page was added.
            first = (min(self.base_pages, self.db_pages) - 1) // GROUP_PAGES
            changed |= set(range(max(first, 0), group_count(self.db_pages)))
        for group in sorted(changed):
            first_pgno = group * GROUP_PAGES + 1
            self._put_group(first_pgno, self._newest_pages(group, first_pgno))

    def _cut_to_size(self) -> None:
        groups = group_count(self.db_pages)
        del self.groups[groups * HASH_BYTES :]
        self.blocks.cut(groups)

    def _newest_pages(self, group: int, first_pgno: int) -> bytearray:
        """Return the raw pages of ``group`` at s: those of frames, else those that were copied."""
        page_size = self.page_size
        copied = self._copied_pages(group)
        pages = bytearray()
        for pgno in range(first_pgno, min(first_pgno + GROUP_PAGES, self.db_pages + 1)):
            at = (pgno - first_pgno) * page_size
            # A page that is nowhere is the lock page, or was missed: the root will tell.
            pages += self.newest.get(pgno) or copied[at : at + page_size] or bytes(page_size)
        return pages

    def _copied_pages(self, group: int) -> bytes:
        if group * HASH_BYTES >= len(self.groups):
            return b""
        pages, _ = decode_block(
            self.blocks.get(group),
            group=group,
            page_size=self.page_size,
            db_pages=self.base_pages,
            expected=bytes(self.groups[group * HASH_BYTES : (group + 1) * HASH_BYTES]),
        )
        return pages

    def root(self) -> StateRoot:
        return root_of_groups(self.page_size, self.db_pages, self.groups)

    def close(self) -> None:
        self.newest.close()
        self.blocks.close()


async def draft_snapshot(
    source: SnapshotSource, *, folder: Path, progress: Progress, duty: float = DUTY
) -> Draft:
    """Return the proven state of the database at the frame that ``source.finish`` returns.

    The caller closes the draft. ``folder`` takes what does not fit into memory; ``duty`` is the
    greatest share of the time in which pages are worked on. Raises `SnapshotRejected` when the
    pages do not give the frame's state root, and `UnavailableError` when it is to be tried again.
    """
    start = await source.begin()
    copy = _Copy(start, folder)
    try:
        progress.phase, progress.pages_total = Phase.READING, start.db_pages
        await _copy_pages(source, start, copy, progress, duty)
        progress.phase = Phase.OVERLAYING
        head = await source.finish()
        await _overlay_frames(source, start, head, copy)
        await trio.to_thread.run_sync(copy.settle)
        root = await trio.to_thread.run_sync(copy.root)
        _check(head, root, copy)
    except BaseException:
        copy.close()
        raise
    copy.newest.close()
    return Draft(
        head=head,
        page_size=copy.page_size,
        db_pages=copy.db_pages,
        groups=copy.groups,
        blocks=copy.blocks,
    )


async def _copy_pages(
    source: SnapshotSource, start: SnapshotStart, copy: _Copy, progress: Progress, duty: float
) -> None:
    chunk_pages = max(CHUNK_BYTES // (start.page_size * GROUP_PAGES), 1) * GROUP_PAGES
    for first_pgno in range(1, start.db_pages + 1, chunk_pages):
        begun_at = trio.current_time()
        count = min(chunk_pages, start.db_pages - first_pgno + 1)
        # Without a name for it, so that one chunk is gone before the next one comes.
        await trio.to_thread.run_sync(
            copy.add_chunk, first_pgno, count, await source.read_pages(first_pgno, count)
        )
        progress.pages_done += count
        await trio.sleep((trio.current_time() - begun_at) * (1 / duty - 1))


async def _overlay_frames(
    source: SnapshotSource, start: SnapshotStart, head: Head, copy: _Copy
) -> None:
    seq = Seq(start.seq + 1)
    while seq <= head.seq:
        frames = await source.frames(seq, head.seq, SEGMENT_TARGET_BYTES)
        if not frames:
            raise UnavailableError(
                f"the journal no longer has frame {seq} of {head.shard}, which a snapshot needs: "
                "it is taken again"
            )
        await trio.to_thread.run_sync(copy.overlay, frames)
        seq = Seq(seq + len(frames))


def _check(head: Head, root: StateRoot, copy: _Copy) -> None:
    if head.flags & Flag.PARTIAL:
        raise UnavailableError(f"frame {head.seq} of {head.shard} is inside a run: try again")
    if not copy.db_pages:
        raise UnavailableError(f"the database of {head.shard} has no pages yet: nothing to store")
    if root != head.state_root:
        raise SnapshotRejected(
            f"the pages of {head.shard} give the state {root.hex()}, but frame {head.seq} says "
            f"{head.state_root.hex()}: nothing was stored; run `basenet doctor`, which compares "
            "the database with its frames"
        )
