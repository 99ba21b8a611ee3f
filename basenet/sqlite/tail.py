"""What the log holds beyond the cursor, across at most one reset, and proof that it is all.

Theory of operation
===================

The wal-index says where the log ends and, by iChange, how many commits there were. So what is read
can be *counted*::

    delta = iChange now - iChange at the cursor                          (mod 2^32)

*Same salts*: the frames from the cursor to mxFrame are the news. They never change while the
generation lives, and hold exactly ``delta`` commits.

*Other salts*: the log was reset, maybe while we read. The new generation writes from frame 1 on, so
what the old one wrote behind our cursor still lies there until it is overwritten::

    file    | 1 2 3 4 | 5 6 7 8 9 10 11 12 | 13 14 |
              new gen    old generation       maybe a dead writer's unfinished
              up to      cursor at 8          or uncounted frames ("phantom")
              mxFrame    9..12 wanted

``new`` = commits of the new generation up to mxFrame. The old tail owes exactly ``delta - new``
commits. Those and no more are taken: fewer there means that we were lapped (`Gap`), more is a
phantom that never counted. If the first salt moved by anything but 1 there may have been a
generation in between, and only "owes nothing" can be proven.

An application with psow=0 repeats the commit frame up to the end of a sector. Equal consecutive
commit frames are folded when, and only as far as, the equation asks for it.

Everything read is verified (salts and checksum chain). What does not verify was being overwritten,
so the wal-index is read again; if it still says the same, the bytes are bad: `CorruptionError`, or
`Gap` where it is SQLite itself that left them without a checksum (`unsealed`).
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from basenet.errors import CorruptionError
from basenet.sqlite.attach import Database
from basenet.sqlite.captured import Cursor
from basenet.sqlite.unsealed import blank_rows, count_cut_off, find_unsealed, is_unsealed
from basenet.sqlite.walformat import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    Checksum,
    FrameCodec,
    Frames,
    WalHeader,
    Words,
    decode_header,
    frame_bytes,
    frame_offset,
)
from basenet.sqlite.walindex import Index, IndexHeader
from basenet.units import MIB

BLOCK_BYTES_MAX: Final = 4 * MIB
# Read at once, unless a transaction is longer: what was read is in memory twice, and fits a cache.
_STEP_BYTES: Final = MIB
# What an unread old generation may hold in memory before we call ourselves lapped.
TAIL_BYTES_MAX: Final = 8 * BLOCK_BYTES_MAX
_ATTEMPTS_MAX: Final = 5
_HALF_RANGE: Final = 1 << 31
_MASK: Final = 0xFFFFFFFF


class Gap(Exception):  # noqa: N818  (a fact about the log, not a fault; it is always handled)
    """Commits cannot be followed one by one from the cursor; a page diff must bridge them.

    ``is_lap``: the log was overwritten before it was read (capture was too slow for it).
    ``is_unsealed``: SQLite committed frames without a checksum (see `unsealed`).
    """

    def __init__(self, reason: str, *, is_lap: bool = False, is_unsealed: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_lap = is_lap
        self.is_unsealed = is_unsealed


class _Unstable(Exception):  # noqa: N818  (internal: read the index again)
    """What the index announced was not there; probably it changed meanwhile.

    ``is_unsealed``: if it did not, the frame is there, but without a checksum.
    """

    def __init__(self, reason: str, *, is_unsealed: bool = False) -> None:
        super().__init__(reason)
        self.is_unsealed = is_unsealed


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Whole commits that follow the cursor.

    ``frames``: in order, ending with a commit frame; repeated commit frames are folded away. May be
    empty after a reset. ``positions``: for each, its number in its generation. ``start``, ``end``:
    the cursors around all of them; after a reset ``end`` is the new generation's beginning.
    ``has_more``: read again at once.
    """

    frames: Frames
    positions: npt.NDArray[np.int64]
    start: Cursor
    end: Cursor
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HugeTransaction:
    """A transaction too large for memory, verified from end to end; images are read again.

    ``pgnos``: of every frame, shape (n,). ``sums``: stored checksums with the one before the first
    frame in front, shape (2, n + 1).
    """

    pgnos: Words
    sums: Words
    db_pages: int
    start: Cursor
    end: Cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All frames of a log without their pages.

    ``pgnos``, ``is_sealed`` (whether its checksum speaks for it): shape (n,). ``sums``: stored
    checksums with the one before the first frame in front, shape (2, n + 1).
    """

    pgnos: Words
    sums: Words
    is_sealed: npt.NDArray[np.bool_]


class LogReader:
    """Reads one database's log. Holds no position: cursors come in and go out."""

    __slots__ = ("_codecs", "_database", "_step_frames", "block_frames", "is_padded")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._codecs: dict[bool, FrameCodec] = {}
        self.block_frames = BLOCK_BYTES_MAX // frame_bytes(database.page_size)
        self._step_frames = max(_STEP_BYTES // frame_bytes(database.page_size), 1)
        self.is_padded = False
        """Whether a commit frame was ever seen repeated (psow=0)."""

    def codec(self, header: IndexHeader) -> FrameCodec:
        """Return the codec for the byte order that ``header`` names."""
        codec = self._codecs.get(header.is_big_endian)
        if codec is None:
            codec = FrameCodec(self._database.page_size, is_big_endian=header.is_big_endian)
            self._codecs[header.is_big_endian] = codec
        return codec

    def log_header(self) -> WalHeader | None:
        """Return the log's own header, or None if there is none."""
        return decode_header(os.pread(self._database.wal_fd, HEADER_BYTES, 0))

    def read(self, cursor: Cursor, index: Index) -> News | HugeTransaction | None:
        """Return what follows ``cursor`` as of ``index``, or None if there is nothing yet.

        Raises `Gap` if commits are missing and `CorruptionError` if committed frames are damaged.
        """
        for _ in range(_ATTEMPTS_MAX):
            try:
                if index.header.salts == cursor.salts:
                    return self._read_generation(cursor, index.header)
                return self._read_across_reset(cursor, index.header)
            except _Unstable as error:
                problem = error
                again = self._database.read_index()
                if again is None:
                    return None
                index = again
        if problem.is_unsealed:
            raise Gap(f"SQLite committed without a checksum: {problem}", is_unsealed=True)
        raise self._damaged(problem) from problem

    def _start_checksum(self, salts: bytes, frame: int, checksum: Checksum) -> Checksum:
        """Return the checksum that the frame behind ``frame`` frames continues."""
        if frame:
            return checksum
        header = self.log_header()
        if header is None or header.salts != salts:
            raise _Unstable("its header does not carry the generation's salts")
        return header.checksum

    def _read_frames(
        self, codec: FrameCodec, salts: bytes, first: int, count: int, start: Checksum
    ) -> Frames:
        """Return the verified ones of ``count`` frames behind ``first`` frames."""
        offset = frame_offset(first, codec.page_size)
        block = os.pread(self._database.wal_fd, count * codec.frame_bytes, offset)
        return codec.verify(block, salts, start)

    def _read_generation(
        self, cursor: Cursor, header: IndexHeader
    ) -> News | HugeTransaction | None:
        """Return the news inside the cursor's generation."""
        delta = growth(header.change, cursor.change)
        count = header.frame_max - cursor.frame
        if count == 0 and delta == 0:
            return None
        if count <= 0 or delta <= 0:
            raise Gap(
                f"the log has {header.frame_max} frames and {delta} new commits where "
                f"{cursor.frame} frames were captured: SQLite recovered it"
            )
        codec = self.codec(header)
        start = self._start_checksum(header.salts, cursor.frame, cursor.checksum)
        for most in (min(self._step_frames, self.block_frames), self.block_frames):
            take = min(count, most)
            frames = self._read_frames(codec, header.salts, cursor.frame, take, start)
            if len(frames) < take:
                raise self._unverified(cursor.frame + len(frames) + 1)
            if take == count and (frames.last_checksum != header.checksum or not frames.sizes[-1]):
                raise _Unstable(f"frame {header.frame_max} is not the last commit")
            ends = np.flatnonzero(frames.sizes)
            if len(ends):
                frames = _head(frames, int(ends[-1]) + 1)
                return self._in_generation(cursor, frames, delta, is_whole=take == count)
        return self._scan_transaction(cursor, header, start)

    def _in_generation(self, cursor: Cursor, frames: Frames, delta: int, *, is_whole: bool) -> News:
        """Check the equation for ``frames`` of the cursor's generation."""
        taken = len(frames)
        checksum = frames.last_checksum
        positions = np.arange(cursor.frame + 1, cursor.frame + taken + 1)
        commits = int(np.count_nonzero(frames.sizes))
        if commits > delta or (self.is_padded and not is_whole):
            excess = commits - delta if is_whole else commits
            frames, positions, folded = self._fold(frames, positions, excess)
            commits -= folded
        if commits > delta or (is_whole and commits < delta):
            raise Gap(f"the log holds {commits} commits where iChange counts {delta}")
        end = Cursor(
            device=cursor.device,
            inode=cursor.inode,
            page_size=cursor.page_size,
            salts=cursor.salts,
            frame=cursor.frame + taken,
            checksum=checksum,
            change=(cursor.change + commits) & _MASK,
        )
        return News(
            frames=frames, positions=positions, start=cursor, end=end, has_more=not is_whole
        )

    def _fold(
        self, frames: Frames, positions: npt.NDArray[np.int64], excess: int
    ) -> tuple[Frames, npt.NDArray[np.int64], int]:
        """Drop up to ``excess`` commit frames that repeat the one before (psow=0)."""
        repeats = _repeated_commits(frames)[:excess]
        if not len(repeats):
            return frames, positions, 0
        self.is_padded = True
        # Of two equal frames the later stays: the cursor goes on behind it.
        keep = np.ones(len(frames), bool)
        keep[repeats - 1] = False
        return _select(frames, keep), positions[keep], len(repeats)

    def _read_across_reset(self, cursor: Cursor, header: IndexHeader) -> News:
        """Return what the old generation still owes, and go on at the new one's beginning."""
        delta = growth(header.change, cursor.change)
        if delta < 0:
            raise Gap("iChange went backwards: SQLite recovered the log")
        # The old tail is being overwritten as we speak: read it first, count afterwards.
        tail = self._read_tail(cursor, header, delta)
        new = self._count_commits(header, delta)
        owed = delta - new
        if owed < 0:
            raise Gap(f"the new log holds {new} commits where iChange counts {delta}")
        if owed and _reset_steps(cursor.salts, header.salts) != 1:
            raise Gap(f"{owed} commits went by in logs that are gone", is_lap=True)
        positions = np.arange(cursor.frame + 1, cursor.frame + len(tail) + 1)
        if self.is_padded and owed:
            tail, positions, _ = self._fold(tail, positions, len(tail))
        ends = np.flatnonzero(tail.sizes)
        if len(ends) < owed:
            raise Gap(
                f"{owed - len(ends)} commits of the old log were overwritten before they were read",
                is_lap=True,
            )
        kept = int(ends[owed - 1]) + 1 if owed else 0
        end = Cursor(
            device=cursor.device,
            inode=cursor.inode,
            page_size=cursor.page_size,
            salts=header.salts,
            frame=0,
            checksum=(0, 0),
            change=(cursor.change + owed) & _MASK,
        )
        return News(
            frames=_head(tail, kept), positions=positions[:kept], start=cursor, end=end,
            has_more=True,
        )  # fmt: skip

    def _read_tail(self, cursor: Cursor, header: IndexHeader, delta: int) -> Frames:
        """Return the old generation's frames behind ``cursor`` that still verify.

        Stops after ``delta`` commits, as it cannot owe more, and at `TAIL_BYTES_MAX`.
        """
        codec = self.codec(header)
        blocks: list[Frames] = []
        checksum, position, commits = cursor.checksum, cursor.frame, 0
        # Most tails are short; the read grows as the tail does.
        count = min(64, self.block_frames)
        frames_max = TAIL_BYTES_MAX // codec.frame_bytes
        # A cursor before the first frame has no checksum to go on from: nothing of that generation
        # was there when we last looked, and its header is gone now.
        while delta and cursor.frame and position - cursor.frame < frames_max:
            frames = self._read_frames(codec, cursor.salts, position, count, checksum)
            if not len(frames):
                break
            blocks.append(frames)
            position += len(frames)
            checksum = frames.last_checksum
            commits += int(np.count_nonzero(frames.sizes))
            if len(frames) < count or (commits >= delta and not self.is_padded):
                break
            count = min(4 * count, self.block_frames)
        return _join(blocks, codec.page_size)

    def _count_commits(self, header: IndexHeader, delta: int) -> int:
        """Return how many commits the new generation holds up to mxFrame, verifying them."""
        if not header.frame_max:
            return 0
        checksum = self._start_checksum(header.salts, 0, (0, 0))
        commits = folded = 0
        for frames in self._verified(header, 0, checksum):
            checksum = frames.last_checksum
            commits += int(np.count_nonzero(frames.sizes))
            if commits > delta or self.is_padded:
                folded += len(_repeated_commits(frames))
        if checksum != header.checksum:
            raise _Unstable(f"frame {header.frame_max} is not the last commit")
        if folded:
            self.is_padded = True
            commits -= folded
        return commits

    def commits_behind(self, cursor: Cursor, header: IndexHeader) -> int | None:
        """Return how many commits follow ``cursor`` in its generation, all verified.

        None if the log does not hold the cursor's frame as it was, or does not go on from it.
        """
        if cursor.frame > header.frame_max or not self._holds(cursor):
            return None
        if header.frame_max == cursor.frame:
            return 0
        try:
            checksum = self._start_checksum(header.salts, cursor.frame, cursor.checksum)
            commits = 0
            for frames in self._verified(header, cursor.frame, checksum):
                commits += int(np.count_nonzero(frames.sizes))
        except _Unstable:
            return None
        return commits if frames.last_checksum == header.checksum else None

    def _holds(self, cursor: Cursor) -> bool:
        """Return whether the frame before ``cursor`` stores the checksum that it had."""
        if not cursor.frame:
            return True
        offset = frame_offset(cursor.frame - 1, cursor.page_size) + FRAME_HEADER_BYTES - 8
        stored = os.pread(self._database.wal_fd, 8, offset)
        return stored == struct.pack(">II", *cursor.checksum)

    def _verified(self, header: IndexHeader, position: int, checksum: Checksum) -> Iterator[Frames]:
        """Yield the frames from ``position`` to mxFrame block by block; raise `_Unstable`."""
        codec = self.codec(header)
        while position < header.frame_max:
            take = min(self.block_frames, header.frame_max - position)
            frames = self._read_frames(codec, header.salts, position, take, checksum)
            if len(frames) < take:
                raise self._unverified(position + len(frames) + 1)
            yield frames
            position += take
            checksum = frames.last_checksum

    def _scan_transaction(
        self, cursor: Cursor, header: IndexHeader, start: Checksum
    ) -> HugeTransaction:
        """Verify the one transaction behind ``cursor``, keeping page numbers and checksums only."""
        codec = self.codec(header)
        pgnos: list[Words] = []
        sums = [np.array(start, np.uint32).reshape(2, 1)]
        position, checksum, db_pages = cursor.frame, start, 0
        while not db_pages:
            take = min(self.block_frames, header.frame_max - position)
            frames = self._read_frames(codec, header.salts, position, take, checksum)
            if len(frames) < take or not take:
                raise self._unverified(position + len(frames) + 1)
            ends = np.flatnonzero(frames.sizes)
            if len(ends):
                frames = _head(frames, int(ends[0]) + 1)
                db_pages = int(frames.sizes[-1])
            pgnos.append(frames.pgnos.copy())
            sums.append(frames.sums.copy())
            position += len(frames)
            checksum = frames.last_checksum
        end = Cursor(
            device=cursor.device,
            inode=cursor.inode,
            page_size=cursor.page_size,
            salts=cursor.salts,
            frame=position,
            checksum=checksum,
            change=(cursor.change + 1) & _MASK,
        )
        return HugeTransaction(
            pgnos=np.concatenate(pgnos),
            sums=np.concatenate(sums, axis=1),
            db_pages=db_pages,
            start=cursor,
            end=end,
        )

    def _unverified(self, frame: int) -> _Unstable:
        return _Unstable(
            f"frame {frame} does not verify",
            is_unsealed=is_unsealed(self._database.wal_fd, frame, self._database.page_size),
        )

    def find_unsealed(self, header: IndexHeader) -> int | None:
        """Return the first frame up to mxFrame that has no checksum, None if all have one."""
        return find_unsealed(self._database.wal_fd, self.codec(header), header.frame_max)

    def count_cut_off(self, header: IndexHeader) -> int:
        """Return how many commits a recovery lost behind frames without a checksum."""
        return count_cut_off(
            self._database.wal_fd, self.codec(header), header.salts, header.frame_max
        )

    def _trusted(
        self, header: IndexHeader, checksum: Checksum
    ) -> Iterator[tuple[Frames, npt.NDArray[np.bool_]]]:
        """Yield the whole log block by block, with what is sealed of it; raise `_Unstable`."""
        codec = self.codec(header)
        position, was_blank = 0, False
        while position < header.frame_max:
            take = min(self.block_frames, header.frame_max - position)
            offset = frame_offset(position, codec.page_size)
            block = os.pread(self._database.wal_fd, take * codec.frame_bytes, offset)
            frames, is_sealed = codec.examine(block, header.salts, checksum)
            if len(frames) < take:
                raise self._unverified(position + len(frames) + 1)
            is_blank = blank_rows(codec.headers(block))
            # What follows an unsealed frame continues a checksum that is not there.
            follows = np.concatenate(([was_blank], is_blank[:-1]))
            bad = np.flatnonzero(~(is_sealed | is_blank | follows))
            if len(bad):
                raise self._unverified(position + int(bad[0]) + 1)
            yield frames, is_sealed
            was_blank = bool(is_blank[-1])
            position += take
            checksum = frames.last_checksum

    def list_frames(self, header: IndexHeader) -> Listing:
        """Verify the whole log up to ``header`` without keeping images.

        Frames that SQLite left unsealed count as they are. The log must be pinned: raises
        `CorruptionError`.
        """
        pgnos: list[Words] = [np.empty(0, np.uint32)]
        sealed = [np.empty(0, bool)]
        try:
            checksum = self._start_checksum(header.salts, 0, (0, 0))
            sums = [np.array(checksum, np.uint32).reshape(2, 1)]
            for frames, is_sealed in self._trusted(header, checksum):
                pgnos.append(frames.pgnos.copy())
                sums.append(frames.sums.copy())
                sealed.append(is_sealed)
        except _Unstable as problem:
            raise self._damaged(problem) from problem
        return Listing(
            pgnos=np.concatenate(pgnos),
            sums=np.concatenate(sums, axis=1),
            is_sealed=np.concatenate(sealed),
        )

    def _damaged(self, problem: _Unstable) -> CorruptionError:
        return CorruptionError(
            f"{self._database.path}-wal is damaged: {problem}, although the wal-index announces "
            "it; check the disk and restore the database if the application reports errors too."
        )

    def read_images(
        self, huge: HugeTransaction, rows: npt.NDArray[np.intp], header: IndexHeader
    ) -> memoryview:
        """Return the images in ``rows`` of ``huge``, end to end, each verified once more.

        Raises `Gap` if one was overwritten since the transaction was verified, in log and file.
        """
        codec = self.codec(header)
        out = bytearray(len(rows) * codec.page_size)
        images = np.frombuffer(out, np.uint8).reshape(len(rows), codec.page_size)
        # Neighbouring rows are read with one call; a spilled transaction has few long runs.
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        done = 0
        for run in np.split(rows, breaks):
            first, count = int(run[0]), len(run)
            offset = frame_offset(huge.start.frame + first, codec.page_size)
            block = os.pread(self._database.wal_fd, count * codec.frame_bytes, offset)
            previous = huge.sums[:, first : first + count]
            sums = huge.sums[:, first + 1 : first + count + 1]
            found = codec.verify_each(block, previous, sums)
            if found is None:
                found = codec.verify_each(self._backfilled(huge, run), previous, sums)
            if found is None:
                raise Gap("a large transaction was overwritten while it was read", is_lap=True)
            images[done : done + count] = found
            done += count
        return memoryview(out)

    def _backfilled(self, huge: HugeTransaction, run: npt.NDArray[np.intp]) -> bytes:
        """Return the frames in ``run`` as they were, with the pages that the database file has.

        A log that was reset while we read it under a pin on mark 0 is in the file, and nothing is
        copied over it as long as that pin lasts. Their checksums decide whether it is so.
        """
        parts = []
        size = huge.start.page_size
        for row in run.tolist():
            pgno = int(huge.pgnos[row])
            db_pages = huge.db_pages if row == len(huge.pgnos) - 1 else 0
            sum0, sum1 = huge.sums[:, row + 1].tolist()
            parts.append(struct.pack(">II8sII", pgno, db_pages, b"", sum0, sum1))
            parts.append(os.pread(self._database.database_fd, size, (pgno - 1) * size))
        return b"".join(parts)


def growth(now: int, before: int) -> int:
    """Return by how much iChange grew; negative if it went backwards."""
    delta = (now - before) & _MASK
    return delta if delta < _HALF_RANGE else delta - _MASK - 1


def _reset_steps(before: bytes, after: bytes) -> int:
    """Return by how much the first salt moved: 1 for exactly one ordinary reset."""
    return (int.from_bytes(after[:4], "big") - int.from_bytes(before[:4], "big")) & _MASK


def _repeated_commits(frames: Frames) -> npt.NDArray[np.intp]:
    """Return the rows that are commit frames equal to the commit frame just before them."""
    sizes, pgnos = frames.sizes, frames.pgnos
    candidates = np.flatnonzero(
        (sizes[1:] != 0) & (sizes[1:] == sizes[:-1]) & (pgnos[1:] == pgnos[:-1])
    )
    equal = [row + 1 for row in candidates if (frames.images[row] == frames.images[row + 1]).all()]
    return np.array(equal, np.intp)


def _head(frames: Frames, count: int) -> Frames:
    return Frames(
        pgnos=frames.pgnos[:count],
        sizes=frames.sizes[:count],
        sums=frames.sums[:, :count],
        images=frames.images[:count],
    )


def _select(frames: Frames, keep: npt.NDArray[np.bool_]) -> Frames:
    return Frames(
        pgnos=frames.pgnos[keep],
        sizes=frames.sizes[keep],
        sums=frames.sums[:, keep],
        images=frames.images[keep],
    )


def _join(blocks: list[Frames], page_size: int) -> Frames:
    if len(blocks) == 1:
        return blocks[0]
    empty = Frames(
        pgnos=np.empty(0, np.uint32),
        sizes=np.empty(0, np.uint32),
        sums=np.empty((2, 0), np.uint32),
        images=np.empty((0, page_size), np.uint8),
    )
    blocks = [empty, *blocks]
    return Frames(
        pgnos=np.concatenate([block.pgnos for block in blocks]),
        sizes=np.concatenate([block.sizes for block in blocks]),
        sums=np.concatenate([block.sums for block in blocks], axis=1),
        images=np.concatenate([block.images for block in blocks]),
    )
