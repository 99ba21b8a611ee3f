"""Applying frames to a database that others are reading: appending to its log as SQLite does.

Theory of operation
===================

SQLite has no way to hand a connection a set of pages, and a replica's file is open in applications
that read it. So a final frame is applied the way in which SQLite's own writer commits
(sqlite3WalFrames, walIndexAppend, walIndexWriteHdr in wal.c), from outside:

1. The *fence*: byte 120 of -shm, the write lock, is held while anything here runs, by whoever the
   caller says (in a cluster the guardian, for good). Nobody else can begin to write.
2. The index header must be exactly what we left: else somebody committed here (`ForeignCommit`).
3. Frames are appended behind mxFrame, with this log's salts and running checksum. A transaction of
   any size is appended in blocks; only its last frame carries the size of the database.
4. In durable mode the log is synced.
5. The hash tables in -shm learn which frame holds which page. Readers ignore entries beyond the
   mxFrame that they have seen, so nothing changes for anybody yet.
6. Header copy 2, barrier, copy 1: one commit, iChange + 1. Readers that begin now see it; readers
   that are in a transaction keep what they had.

A crash before 6 changes nothing: the next writer overwrites the frames and clears the entries. A
crash between the two copies leaves a torn header, which would keep every reader waiting for ten
seconds: `repair` rolls it forward, since what copy 2 speaks of was written before it.

A crash after 3 leaves whole frames behind the end. While the index lives they are nothing; where it
is lost too (a power failure), SQLite's recovery takes them for a commit. That is the batch that was
announced, unless another one was begun over them: so `forget_tail` spoils them first.

The log begins anew only by `restart`, when all of it is in the database file, that file is synced,
and nobody can be reading from it or checkpointing: bytes 121 and 124..127 are *held* meanwhile, not
looked at (a checkpointer with an old header would otherwise copy frames of the new generation).
Where the next generation begins follows from where this one ended (`salts_after_restart`), so that
a restart which nobody journalled is known for ours.

Page 1 is written as `page1.first_page` gives it: its bytes 18 and 19 are no part of the state, and
`is_read_only` decides whether they say that applications may not write.

-shm is mapped, because readers need each hash slot to change at once; it is allocated before it is
mapped, or a full disk would end us by SIGBUS. What we store is ordered for readers on other
processors by `_barrier`.

Closing *any* descriptor of a file drops every POSIX lock that this process has on it (fcntl(2)),
and a Python mapping holds a descriptor of its own. Then the next opener thinks that it is alone and
truncates -shm under everybody. So maps and descriptors here are kept until `close`, and `close` is
called only after the last SQLite connection of this process to the file is closed.
"""

import mmap
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from basenet import failpoints
from basenet.errors import ConflictError, UnavailableError
from basenet.sqlite import locks
from basenet.sqlite.page1 import first_page
from basenet.sqlite.signals import SHM_SUFFIX, WAL_SUFFIX
from basenet.sqlite.walformat import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    Checksum,
    FrameCodec,
    checksum_words,
    encode_header,
    frame_offset,
)
from basenet.sqlite.walformat import decode_header as decode_log_header
from basenet.sqlite.walindex import INDEX_BYTES, READ_MARK_UNUSED, IndexHeader, decode_header
from basenet.units import MIB

_COPY_BYTES: Final = 48
_COPY_BODY: Final = Struct("=IIIBBHIIII8s")
_TWO_WORDS: Final = Struct("=II")
_TWO_WORDS_BIG: Final = Struct(">II")
_THREE_WORDS: Final = Struct(">III")
_CHECKPOINT_INFO: Final = Struct("=I5I")
_BACKFILL_OFFSET: Final = 96
_ATTEMPTED_OFFSET: Final = 128
_INDEX_VERSION: Final = 3_007_000
_BLOCK_BYTES: Final = 32768
_SLOTS: Final = 8192
_FRAMES_PER_BLOCK: Final = 4096
# The first block also holds the header, so it indexes 34 frames less.
_FRAMES_IN_FIRST: Final = _FRAMES_PER_BLOCK - INDEX_BYTES // 4
_HASH_PRIME: Final = 383
_RESERVED_READ_BYTE: Final = locks.WAL_READ_BYTE + 1
_RESERVED_READ_BYTES: Final = locks.WAL_READ_MARKS - 1
_WRITE_BYTES: Final = 4 * MIB
_PREPARED_BYTES_MAX: Final = 16 * MIB
_MASK: Final = 0xFFFFFFFF


class ForeignCommit(ConflictError):  # noqa: N818  (states a fact; the kind is in the base)
    """The log is not as this node left it: somebody else wrote to the replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The end of the log as the index tells it; two are equal only if nobody committed between.

    What is journalled before a batch as its intent, and compared at the next start (Q13).
    """

    salts: bytes
    frame_max: int
    checksum: Checksum
    change: int
    db_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One commit: pages in ascending order, in one piece or, when it is large, in several.

    ``pieces``: (pgnos, pages) as in a COMMIT payload, ``pages`` being whole pages one after the
    other. ``db_pages``: the size of the database after it.
    """

    pieces: Sequence[tuple[npt.NDArray[np.uint32], bytes | memoryview]]
    db_pages: int

    @property
    def page_count(self) -> int:
        """How many pages it writes."""
        return sum(len(pgnos) for pgnos, _ in self.pieces)


class Injector:
    """Appends transactions to one database's log. The caller holds the fence throughout."""

    def __init__(self, path: Path, *, page_size: int) -> None:
        """Open the log and its index beside the database at ``path``.

        The caller keeps an SQLite connection open that has read, so that both exist and are
        recovered. Raises `UnavailableError` if they cannot be opened.
        """
        self._path = path
        self._page_size = page_size
        self.is_read_only = False
        """What page 1 says wherever it is written from now on."""
        self._database = self._log = self._shm = -1
        try:
            self._database = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._log = os.open(f"{path}{WAL_SUFFIX}", os.O_RDWR | os.O_CLOEXEC)
            self._shm = os.open(f"{path}{SHM_SUFFIX}", os.O_RDWR | os.O_CLOEXEC)
            self._maps = [self._make_map(max(_BLOCK_BYTES, os.fstat(self._shm).st_size))]
        except OSError as error:
            self._close_descriptors()
            raise UnavailableError(
                f"the log of {path} cannot be opened for applying ({error.strerror})"
            ) from error
        self._known: Position | None = None

    def close(self) -> None:
        """Let go of the files: only once this process has no SQLite connection to them."""
        for each in self._maps:
            each.close()
        self._close_descriptors()

    @property
    def _map(self) -> mmap.mmap:
        return self._maps[-1]

    def _close_descriptors(self) -> None:
        for descriptor in (self._shm, self._log, self._database):
            if descriptor >= 0:
                os.close(descriptor)

    def position(self) -> Position:
        """Return where the log ends now; raises `ForeignCommit` while the header is torn."""
        header = self._header()
        return Position(
            salts=header.salts,
            frame_max=header.frame_max,
            checksum=header.checksum,
            change=header.change,
            db_pages=header.db_pages,
        )

    def repair(self) -> bool:
        """Make the two copies of the header equal again; return whether they were not.

        Copy 2 is written first: if its own checksum is right it is the newer one.
        """
        copies = bytes(self._map[: 2 * _COPY_BYTES])
        first, second = copies[:_COPY_BYTES], copies[_COPY_BYTES:]
        if first == second:
            return False
        if decode_header(second + second) is not None:
            self._map[:_COPY_BYTES] = second
        elif decode_header(first + first) is not None:
            self._map[_COPY_BYTES : 2 * _COPY_BYTES] = first
        else:
            raise ForeignCommit(
                f"both copies of the header in {self._path}{SHM_SUFFIX} are damaged; stop every "
                "process that has the database open and start them again"
            )
        self._barrier()
        return True

    def prepare(self, before: Position, transactions: Sequence[Transaction]) -> "Prepared":
        """Return ``transactions`` (each with a page at least) as the frames that follow ``before``.

        Writes nothing: where the log will end is known before anything is changed, so that the
        caller can journal it. ``before``: by `begin` or of the batch before this one.
        """
        blocks: list[_Block] = []
        size = 0
        checksum = before.checksum
        for block in self._encode(before, transactions):
            checksum = block.checksum
            size += len(block.data)
            if size <= _PREPARED_BYTES_MAX:
                blocks.append(block)
        return Prepared(
            before=before,
            after=Position(
                salts=before.salts,
                frame_max=before.frame_max + sum(each.page_count for each in transactions),
                checksum=checksum,
                change=(before.change + 1) & _MASK,
                db_pages=transactions[-1].db_pages,
            ),
            transactions=transactions,
            # What is too large to be kept is encoded again when it is written.
            blocks=tuple(blocks) if size <= _PREPARED_BYTES_MAX else None,
        )

    def begin(self, *, durable: bool) -> Position:
        """Write the log's header if this generation has no frame yet; return the position.

        Changes nothing that a reader sees, and twice the same if it is called twice: the salts are
        those that the index has, which whoever restarted the log has drawn for it.
        """
        before = self.position()
        if before.frame_max:
            return before
        header = self._header()
        salts = before.salts if any(before.salts) else secrets.token_bytes(8)
        raw = encode_header(
            page_size=self._page_size, salts=salts, is_big_endian=header.is_big_endian
        )
        os.pwrite(self._log, raw, 0)
        if durable:
            _sync(self._log)
        checksum = _TWO_WORDS_BIG.unpack_from(raw, 24)
        after = Position(
            salts=salts,
            frame_max=0,
            checksum=(checksum[0], checksum[1]),
            change=before.change,
            db_pages=before.db_pages,
        )
        self._write_header(after)
        return after

    def apply(self, batch: "Prepared", *, durable: bool) -> None:
        """Append ``batch`` as one commit.

        ``durable``: everything is on the disk when this returns. Raises `ForeignCommit` if the log
        does not end where the batch begins, and `UnavailableError` if the disk is full; nothing is
        visible to readers then.
        """
        before, after = batch.before, batch.after
        if self.position() != before:
            raise ForeignCommit(
                f"{self._path} was written to by another program than basenet while it was a "
                "replica here"
            )
        offset = frame_offset(before.frame_max, self._page_size)
        blocks = self._encode(before, batch.transactions) if batch.blocks is None else batch.blocks
        pgnos: list[npt.NDArray[np.uint32]] = []
        try:
            for block in blocks:
                _write_all(self._log, block.data, offset)
                offset += len(block.data)
                pgnos.append(block.pgnos)
            if durable:
                _sync(self._log)
            self._index(before, np.concatenate(pgnos))
        except OSError as error:
            self._known = None
            with suppress(OSError):
                self.forget_tail()
            raise UnavailableError(
                f"frames cannot be applied to {self._path} ({error.strerror}); free space on its "
                "disk"
            ) from error
        self._write_header(after)
        self._known = after

    def restart(self) -> bool:
        """Begin the log anew if all of it is in the database file and nobody uses it.

        Return whether it was done. The file is synced first: whoever copied the last frames into it
        may have done so without (P28).
        """
        before = self.position()
        backfilled, *_ = _CHECKPOINT_INFO.unpack_from(self._map, _BACKFILL_OFFSET)
        if not before.frame_max or backfilled != before.frame_max:
            return False
        with _Held(self._shm) as held:
            if not held or self.position() != before:
                return False
            _sync(self._database)
            after = Position(
                salts=salts_after_restart(before.salts, before.frame_max, before.checksum),
                frame_max=0,
                checksum=before.checksum,
                change=before.change,
                db_pages=before.db_pages,
            )
            self._write_header(after)
            marks = (0, 0, *[READ_MARK_UNUSED] * (locks.WAL_READ_MARKS - 2))
            _CHECKPOINT_INFO.pack_into(self._map, _BACKFILL_OFFSET, 0, *marks)
            self._map[_ATTEMPTED_OFFSET : _ATTEMPTED_OFFSET + 4] = bytes(4)
            self._barrier()
        return True

    def forget_tail(self) -> None:
        """Spoil, durably, whatever frame lies behind the end of the log; raises `OSError`.

        A recovery stops there, so it cannot bring back a batch that was given up.
        """
        end = self.position()
        header = decode_log_header(os.pread(self._log, HEADER_BYTES, 0))
        if header is None or header.salts != end.salts:
            return  # frames of another generation: all of them are in the file
        offset = frame_offset(end.frame_max, self._page_size)
        if os.fstat(self._log).st_size > offset:
            _write_all(self._log, bytes(FRAME_HEADER_BYTES), offset)
            os.fdatasync(self._log)

    def sync(self) -> None:
        """Make everything that was applied durable."""
        _sync(self._log)

    def _header(self) -> IndexHeader:
        header = decode_header(bytes(self._map[: 2 * _COPY_BYTES]))
        if header is None:
            raise ForeignCommit(
                f"the header in {self._path}{SHM_SUFFIX} is torn or not there yet; it is repaired "
                "when this shard starts again"
            )
        return header

    def _encode(self, before: Position, transactions: Sequence[Transaction]) -> Iterator["_Block"]:
        """Yield the frames of ``transactions`` in blocks of a few MiB."""
        codec = FrameCodec(self._page_size, is_big_endian=self._header().is_big_endian)
        checksum = before.checksum
        for transaction in transactions:
            for numbers, pages, is_last in _slices(transaction, self._page_size):
                data, checksum = codec.encode(
                    [
                        (pgno, self._image(pgno, pages, index))
                        for index, pgno in enumerate(numbers.tolist())
                    ],
                    db_pages=transaction.db_pages if is_last else 0,
                    salts=before.salts,
                    start=checksum,
                )
                yield _Block(data=data, checksum=checksum, pgnos=numbers)

    def _image(self, pgno: int, pages: memoryview, index: int) -> bytes | memoryview:
        """Return the page in place ``index``; what page 1 says of itself nobody has proven."""
        page = pages[index * self._page_size : (index + 1) * self._page_size]
        return first_page(page, is_read_only=self.is_read_only) if pgno == 1 else page

    # -- the index

    def _make_map(self, size: int) -> mmap.mmap:
        os.posix_fallocate(self._shm, 0, size)
        return mmap.mmap(self._shm, size)

    def _reach(self, block: int) -> None:
        """Map the index up to and including ``block``, allocated."""
        size = (block + 1) * _BLOCK_BYTES
        if len(self._map) < size:
            # Twice as large, so that there are few of them: the old one may not be closed.
            self._maps.append(self._make_map(max(size, 2 * len(self._map))))

    def _index(self, before: Position, pgnos: npt.NDArray[np.uint32]) -> None:
        """Enter the frames after ``before`` into the hash tables."""
        if before != self._known:
            self._forget_beyond(before.frame_max)
        frame = before.frame_max + 1
        done = 0
        while done < len(pgnos):
            block, first = _block_of(frame)
            room = _frames_in(block) - (frame - first)
            part = pgnos[done : done + room]
            self._reach(block)
            self._enter(block, frame - first, part)
            done += len(part)
            frame += len(part)

    def _enter(self, block: int, index: int, pgnos: npt.NDArray[np.uint32]) -> None:
        """Enter consecutive frames of one block, the first of which is its ``index``-th from 0."""
        start, table = _places(block)
        if index == 0:
            # The block may have served another generation.
            self._map[start : (block + 1) * _BLOCK_BYTES] = bytes(
                (block + 1) * _BLOCK_BYTES - start
            )
        view = memoryview(self._map)
        try:
            numbers = view[start : start + 4 * _frames_in(block)].cast("I")
            slots = view[table : table + 2 * _SLOTS].cast("H")
            try:
                for place, pgno in enumerate(pgnos.tolist(), start=index):
                    numbers[place] = pgno
                    key = (pgno * _HASH_PRIME) & (_SLOTS - 1)
                    while slots[key]:
                        key = (key + 1) & (_SLOTS - 1)
                    slots[key] = place + 1
            finally:
                numbers.release()
                slots.release()
        finally:
            view.release()

    def _forget_beyond(self, frame_max: int) -> None:
        """Clear entries of frames that were never committed (walCleanupHash)."""
        if frame_max == 0:
            return
        block, first = _block_of(frame_max)
        self._reach(block)
        start, table = _places(block)
        limit = frame_max - first + 1
        slots = np.frombuffer(self._map, np.uint16, _SLOTS, table).copy()
        slots[slots > limit] = 0
        self._map[table : table + 2 * _SLOTS] = slots.tobytes()
        self._map[start + 4 * limit : table] = bytes(table - start - 4 * limit)

    def _write_header(self, position: Position) -> None:
        """Publish ``position``: copy 2, barrier, copy 1 (walIndexWriteHdr)."""
        header = self._header()
        size = 1 if self._page_size == 1 << 16 else self._page_size
        body = _COPY_BODY.pack(
            _INDEX_VERSION,
            0,
            position.change,
            1,
            header.is_big_endian,
            size,
            position.frame_max,
            position.db_pages,
            *position.checksum,
            position.salts,
        )
        # The index is in the machine's own byte order, and so is its checksum.
        is_big = sys.byteorder == "big"
        copy = body + _TWO_WORDS.pack(*checksum_words(body, (0, 0), is_big_endian=is_big))
        self._barrier()
        self._map[_COPY_BYTES : 2 * _COPY_BYTES] = copy
        self._barrier()
        self._map[:_COPY_BYTES] = copy
        self._barrier()

    def _barrier(self) -> None:
        """Let other processors see what was stored so far before what is stored next.

        The kernel looks for locks under a spinlock of this file, which orders memory on every
        machine; SQLite itself calls __sync_synchronize here, which Python does not offer.
        """
        locks.anyone(self._shm, locks.WAL_WRITE_BYTE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Encoded frames, the checksum after them, and their page numbers."""

    data: bytes
    checksum: Checksum
    pgnos: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """Transactions as frames, ready to be written between two positions of the log."""

    before: Position
    after: Position
    transactions: Sequence[Transaction]
    blocks: tuple[_Block, ...] | None


class _Held:
    """The checkpoint lock and the read marks 1..4, all of them or none."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._has_checkpoint = False
        self._has_marks = False

    def __enter__(self) -> bool:
        descriptor = self._descriptor
        self._has_checkpoint = locks.try_lock(descriptor, locks.WAL_CHECKPOINT_BYTE)
        self._has_marks = self._has_checkpoint and locks.try_lock(
            descriptor, _RESERVED_READ_BYTE, length=_RESERVED_READ_BYTES
        )
        return self._has_marks

    def __exit__(self, *_: object) -> None:
        if self._has_marks:
            locks.unlock(self._descriptor, _RESERVED_READ_BYTE, length=_RESERVED_READ_BYTES)
        if self._has_checkpoint:
            locks.unlock(self._descriptor, locks.WAL_CHECKPOINT_BYTE)


def _block_of(frame: int) -> tuple[int, int]:
    """Return the index block of a frame (from 1) and the block's first frame."""
    if frame <= _FRAMES_IN_FIRST:
        return 0, 1
    block = (frame - _FRAMES_IN_FIRST - 1) // _FRAMES_PER_BLOCK + 1
    return block, _FRAMES_IN_FIRST + (block - 1) * _FRAMES_PER_BLOCK + 1


def _frames_in(block: int) -> int:
    return _FRAMES_PER_BLOCK if block else _FRAMES_IN_FIRST


def _places(block: int) -> tuple[int, int]:
    """Return where a block's page numbers and where its hash table begin."""
    start = block * _BLOCK_BYTES
    return start if block else INDEX_BYTES, start + _BLOCK_BYTES - 2 * _SLOTS


def salts_after_restart(salts: bytes, frame_max: int, checksum: Checksum) -> bytes:
    """Return the salts of the generation that `Injector.restart` begins behind this end of a log.

    The first grows by one, as in walRestartHdr; the second has no rule in SQLite but to be another.
    """
    first = (int.from_bytes(salts[:4], "big") + 1) & _MASK
    end = salts + _THREE_WORDS.pack(frame_max, *checksum)
    return first.to_bytes(4, "big") + sha256(b"basenet/restart/1\0" + end).digest()[:4]


def _slices(
    transaction: Transaction, page_size: int
) -> Iterable[tuple[npt.NDArray[np.uint32], memoryview, bool]]:
    """Yield (pgnos, pages, whether the transaction ends here), a few MiB at a time."""
    step = max(1, _WRITE_BYTES // page_size)
    left = transaction.page_count
    for pgnos, pages in transaction.pieces:
        view = memoryview(pages)
        for start in range(0, len(pgnos), step):
            part = pgnos[start : start + step]
            left -= len(part)
            yield part, view[start * page_size : (start + len(part)) * page_size], left == 0


def _sync(descriptor: int) -> None:
    failpoints.reach(failpoints.SYNC)
    os.fdatasync(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
