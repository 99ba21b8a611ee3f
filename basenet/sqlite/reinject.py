"""Giving a database back the commits that a power loss took from it.

Theory of operation
===================

With synchronous=NORMAL a commit is in the log but not yet on the disk when the application is told
so. Capture read it from memory, journalled and shipped it; then the power went. The file now stands
at an older state k of its own chain: it is *behind*. It is not for us to say that k+1..tip never
happened, so they are put back, as SQLite itself would find them after a crash: as a log beside the
file, whole commits with right salts and checksums, which the next connection recovers.

This is only right while nobody looks at the file, and that is not asked but *made*: we take, as
open-file-description locks, the bytes that every SQLite connection shares (``SHARED``) and those
of -shm, exclusively. Who holds one of them makes us refuse; who comes later finds the database
locked for the moment that a rename takes. The frames are written and synced beforehand, under a
name that SQLite does not know.

The disk may have kept some of the log: then file *and* log are at state k. What the log holds is
copied to the front of the new one, frame by frame as it stands, and the missing commits follow on
its salts and checksum. Without such a log, salts are drawn.

::

    1  check, without a lock       file and log as expected, no hot journal, our header, our inode
    2  write and sync              <db>-wal.basenet
    3  lock, check again           the file may have been opened in between
    4  rename to <db>-wal, sync the directory, unlock

A crash before the rename changes nothing but leaves the draft, which the next attempt overwrites;
a crash after it leaves a log that is recovered whole. A torn one cannot be: it was synced first.

An *empty* database file is a special case: SQLite removes a log beside one. So after the rename
page 1 is written into the file as well; the log overrides it, whatever becomes of that write.

Two things the caller owes. This process has no SQLite connection to the file: opening and closing
a descriptor here would drop its locks (POSIX). And the database *is* at state k: ``expected`` and
``log`` bind that proof, made by reading it, to what is found here. Otherwise somebody could come,
commit, copy the commit into the file and leave, all between the proof and the rename.
"""

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BufferedWriter
from pathlib import Path
from typing import Final

import numpy as np

from basenet.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from basenet.sqlite import locks
from basenet.sqlite.attach import HEADER_BYTES, MAGIC, DetachedState, state_of
from basenet.sqlite.captured import Cursor
from basenet.sqlite.signals import JOURNAL_SUFFIX, SHM_SUFFIX, WAL_SUFFIX
from basenet.sqlite.walformat import HEADER_BYTES as WAL_HEADER_BYTES
from basenet.sqlite.walformat import (
    SALTS_BYTES,
    Checksum,
    FrameCodec,
    Frames,
    decode_header,
    encode_header,
    frame_offset,
)
from basenet.units import MIB
from basenet.wire.merkle import normalised_first_page
from basenet.wire.payload import CommitPayload

DRAFT_SUFFIX: Final = "-wal.basenet"
# PENDING, RESERVED and SHARED but its last byte, which a quasar's guardian holds for good.
_BUSY_BYTE_FIRST: Final = locks.PENDING_BYTE
_BUSY_BYTES: Final = locks.SHARED_FIRST_BYTE + locks.SHARED_BYTES - 1 - locks.PENDING_BYTE
# WRITE .. READ(4), and 128, the dead man's switch that each connection holds.
_SHM_BYTE_FIRST: Final = locks.WAL_WRITE_BYTE
_SHM_BYTES: Final = 9
_WAL_VERSIONS: Final = b"\x02\x02"
_BLOCK_BYTES: Final = 4 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One change that the file lacks; ``is_partial``: the same commit goes on in the next."""

    payload: CommitPayload
    is_partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reinjected:
    """What was put back. ``commits``: transactions; ``wal_bytes``: the whole log as it is now."""

    commits: int
    frames: int
    wal_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What the caller knows of the database: the file, and the end of its log."""

    file: DetachedState | None
    log: Cursor | None


def reinject(
    path: Path,
    changes: Iterable[Missing],
    *,
    expected: DetachedState | None = None,
    log: Cursor | None = None,
) -> Reinjected:
    """Put ``changes``, which follow on the state of the database at ``path``, into its log.

    ``expected``: what the file looked like when its state was established; None: not checked.
    ``log``: where its log ended then, as a scan's cursor has it; None: there was no commit in it.

    Raises `ConflictError` if any process has the file open, if file, log or journal are not as
    said; `NotFoundError` (no file), `UsageError` (not a WAL-mode database of that page size, or not
    ours to write beside), `UnavailableError` (disk full, failed sync: try again). The database is
    then as it was.
    """
    real_path = Path(os.path.realpath(path))
    stream = iter(changes)
    first = next(stream, None)
    if first is None:
        return Reinjected(commits=0, frames=0, wal_bytes=0)
    page_size = first.payload.page_size
    known = _State(file=expected, log=log)
    with _opened(real_path) as database:
        _check_free(database, real_path)
        _check_state(database, real_path, page_size, known)
        writer = _LogWriter(database, real_path, page_size)
        try:
            writer.write(_chain(first, stream))
            _put_in_place(database, real_path, writer, known)
        except OSError as error:
            raise UnavailableError(
                f"the missing commits of {real_path} cannot be written beside it "
                f"({error.strerror}): make room, or mend the disk; basenet tries again"
            ) from error
        finally:
            writer.discard()
        return writer.facts()


def _chain(first: Missing, rest: Iterator[Missing]) -> Iterator[Missing]:
    yield first
    yield from rest


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Give a descriptor of the database with the owner's lock; both go with the block."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist: restore it from the archive") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be opened for writing ({error.strerror}): run basenet as the user "
            "that the application runs as"
        ) from error
    try:
        if not locks.try_lock(descriptor, locks.OWNER_BYTE):
            raise ConflictError(f"{path} belongs to another basenet process: stop one of the two")
        yield descriptor
    finally:
        os.close(descriptor)


def _check_free(database: int, path: Path) -> None:
    """Refuse early what `_all_locked` would refuse after the work."""
    holder = locks.anyone(database, _BUSY_BYTE_FIRST, length=_BUSY_BYTES)
    if holder is not None:
        raise _in_use(path, holder)


def _in_use(path: Path, holder: locks.Holder | None) -> ConflictError:
    who = f"process {holder.pid}" if holder is not None and holder.pid > 0 else "a process"
    return ConflictError(
        f"{path} lacks commits that were captured before a power loss, and {who} has it open: "
        "stop the application, so that basenet can put them back"
    )


def _check_state(database: int, path: Path, page_size: int, known: _State) -> None:
    """Refuse a file that is not the one, not as it was, or has something pending beside it."""
    facts = os.fstat(database)
    try:
        is_same = os.path.samestat(facts, path.stat())
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise ConflictError(f"{path} was replaced while basenet worked on it; basenet looks again")
    if known.file is not None and state_of(database) != known.file:
        raise ConflictError(f"{path} was changed while basenet worked on it; basenet looks again")
    header = os.pread(database, HEADER_BYTES, 0)
    if header and not _is_wal_database(header, page_size):
        raise UsageError(
            f"{path} is not the WAL-mode database with pages of {page_size} bytes that was "
            "captured; restore it, or let basenet take it as a new one"
        )
    _check_side_files(path, known.log)


def _is_wal_database(header: bytes, page_size: int) -> bool:
    stored = int.from_bytes(header[16:18], "big")
    return (
        header.startswith(MAGIC)
        and (65536 if stored == 1 else stored) == page_size
        and header[18:20] == _WAL_VERSIONS
    )


def _check_side_files(path: Path, log: Cursor | None) -> None:
    journal = Path(f"{path}{JOURNAL_SUFFIX}")
    if _first_bytes(journal, 1) not in (b"", b"\0"):
        raise ConflictError(
            f"{journal} holds a transaction that was not finished: start the application once, "
            "so that SQLite rolls it back"
        )
    found = _read_log(path)
    is_known = (
        found.frames == 0
        if log is None or log.frame == 0
        else (found.frames, found.salts, found.checksum) == (log.frame, log.salts, log.checksum)
    )
    if not is_known:
        raise ConflictError(
            f"{path}{WAL_SUFFIX} holds other commits than basenet has seen: they must be captured "
            "before anything is put in their place"
        )


def _first_bytes(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except FileNotFoundError:
        return b""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """What SQLite would recover from a log: ``frames`` up to the last commit, 0 for nothing.

    ``checksum``: of the last of them. ``first_page``: the newest page 1 in them, if any.
    """

    frames: int
    salts: bytes
    checksum: Checksum
    is_big_endian: bool
    first_page: bytes | None


_NO_LOG: Final = _Log(frames=0, salts=b"", checksum=(0, 0), is_big_endian=False, first_page=None)


def _read_log(path: Path) -> _Log:
    """Return what lies in the log beside the database ``path``, by SQLite's own rule."""
    try:
        file = Path(f"{path}{WAL_SUFFIX}").open("rb")  # noqa: SIM115  (closed by the next with)
    except FileNotFoundError:
        return _NO_LOG
    with file:
        header = decode_header(file.read(WAL_HEADER_BYTES))
        if header is None:
            return _NO_LOG
        codec = FrameCodec(header.page_size, is_big_endian=header.is_big_endian)
        count = max(1, _BLOCK_BYTES // codec.frame_bytes)
        log = replace(_NO_LOG, salts=header.salts, is_big_endian=header.is_big_endian)
        open_page: bytes | None = None  # page 1 in a transaction whose commit is still to come
        read, checksum = 0, header.checksum
        while True:
            frames = codec.verify(file.read(count * codec.frame_bytes), header.salts, checksum)
            log, open_page = _extend(log, frames, read, open_page)
            if len(frames) < count:
                return log
            read, checksum = read + len(frames), frames.last_checksum


def _extend(
    log: _Log, frames: Frames, read: int, open_page: bytes | None
) -> tuple[_Log, bytes | None]:
    """Return ``log`` with what the next ``frames``, after ``read`` others, commit."""
    ends = np.flatnonzero(frames.sizes)
    last = int(ends[-1]) if len(ends) else -1
    first_page = log.first_page
    if len(ends) and open_page is not None:
        first_page, open_page = open_page, None
    for row in np.flatnonzero(frames.pgnos == 1).tolist():
        image = frames.images[row].tobytes()
        if row <= last:
            first_page = image
        else:
            open_page = image
    if not len(ends):
        return log, open_page
    sums = (int(frames.sums[0, last]), int(frames.sums[1, last]))
    log = replace(log, frames=read + last + 1, checksum=sums, first_page=first_page)
    return log, open_page


class _LogWriter:
    """A new log under its draft's name; `discard` removes it unless it was put in place."""

    def __init__(self, database: int, path: Path, page_size: int) -> None:
        self._database = database
        self._path = path
        self._draft = Path(f"{path}{DRAFT_SUFFIX}")
        self.page_size = page_size
        self._kept = _read_log(path)
        self._codec = FrameCodec(page_size, is_big_endian=self._kept.is_big_endian)
        self._salts = self._kept.salts if self._kept.frames else secrets.token_bytes(SALTS_BYTES)
        self._commits = self._frames = 0
        self.first_page = self._kept.first_page
        """The last image of page 1 in the log, if it has one."""

    def write(self, changes: Iterable[Missing]) -> None:
        """Write and sync what is kept and all ``changes``; raises `OSError`, `UsageError`."""
        with self._create() as file:
            checksum = self._begin(file)
            is_open = False
            for change in changes:
                block, checksum = self._encode(change, checksum)
                file.write(block)
                is_open = change.is_partial
            assert not is_open, "a run without its last change"
            if self.first_page is None and not os.fstat(self._database).st_size:
                raise self._no_first_page()
            file.flush()
            os.fsync(file.fileno())

    def _begin(self, file: BufferedWriter) -> Checksum:
        """Write the header, or header and commits of the log that is there."""
        if self._kept.frames:
            with Path(f"{self._path}{WAL_SUFFIX}").open("rb") as old:
                left = frame_offset(self._kept.frames, self.page_size)
                while left:
                    block = old.read(min(left, _BLOCK_BYTES))
                    if not block:
                        raise OSError(errno.EIO, "the log became shorter")
                    file.write(block)
                    left -= len(block)
            return self._kept.checksum
        header = encode_header(
            page_size=self.page_size, salts=self._salts, is_big_endian=self._codec.is_big_endian
        )
        file.write(header)
        decoded = decode_header(header)
        assert decoded is not None, "a header of ours that does not decode"
        return decoded.checksum

    def _create(self) -> BufferedWriter:
        """Create the draft as SQLite creates a log: with the database's owner and mode."""
        facts = os.fstat(self._database)
        self._draft.unlink(missing_ok=True)
        descriptor = os.open(
            self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        file = os.fdopen(descriptor, "wb")
        try:
            ours = os.fstat(descriptor)
            if (ours.st_uid, ours.st_gid) != (facts.st_uid, facts.st_gid):
                os.fchown(descriptor, facts.st_uid, facts.st_gid)
            os.fchmod(descriptor, facts.st_mode & 0o777)
        except OSError as error:
            file.close()
            raise UsageError(
                f"a log for user {facts.st_uid} cannot be made ({error.strerror}), and the "
                "application could not write to another's: run basenet as that user"
            ) from error
        return file

    def _encode(self, change: Missing, checksum: Checksum) -> tuple[bytes, Checksum]:
        payload = change.payload
        if payload.page_size != self.page_size:
            raise UsageError(
                f"the missing commits change the page size from {self.page_size} to "
                f"{payload.page_size} bytes, which no log can: restore the database"
            )
        pages: list[tuple[int, bytes | memoryview]] = [
            (int(pgno), payload.page(index)) for index, pgno in enumerate(payload.pgnos)
        ]
        if pages and pages[0][0] == 1:
            # The fence of a replica may stand in the versions; here the database is nobody's.
            self.first_page = normalised_first_page(pages[0][1])
            pages[0] = (1, self.first_page)
        if not pages and not change.is_partial:
            pages = [(1, self._current_first_page())]  # a commit is at least one frame
        if not change.is_partial:
            self._commits += 1
        self._frames += len(pages)
        return self._codec.encode(
            pages,
            db_pages=0 if change.is_partial else payload.db_pages,
            salts=self._salts,
            start=checksum,
        )

    def _current_first_page(self) -> bytes:
        if self.first_page is None:
            self.first_page = os.pread(self._database, self.page_size, 0)
            if len(self.first_page) < self.page_size:
                raise self._no_first_page()
        return self.first_page

    def _no_first_page(self) -> UsageError:
        return UsageError(
            f"the missing commits of {self._path} do not bring page 1, which the file lacks: "
            "restore the database"
        )

    def move_to(self, wal: Path) -> None:
        """Give the draft its real name."""
        self._draft.replace(wal)

    def discard(self) -> None:
        """Remove the draft if it is still one."""
        self._draft.unlink(missing_ok=True)

    def facts(self) -> Reinjected:
        """Return what was written."""
        return Reinjected(
            commits=self._commits,
            frames=self._frames,
            wal_bytes=frame_offset(self._kept.frames + self._frames, self.page_size),
        )


def _put_in_place(database: int, path: Path, writer: _LogWriter, known: _State) -> None:
    """Make the draft the database's log while nobody can have the database open."""
    with _all_locked(database, path):
        _check_state(database, path, writer.page_size, known)
        writer.move_to(Path(f"{path}{WAL_SUFFIX}"))
        _sync_directory(path.parent)
        if not os.fstat(database).st_size:
            assert writer.first_page is not None, "an empty file and no page 1"
            os.pwrite(database, writer.first_page, 0)
            os.fsync(database)


@contextmanager
def _all_locked(database: int, path: Path) -> Iterator[None]:
    """Keep every SQLite connection out of the database; raise `ConflictError` if one is in."""
    with ExitStack() as stack:
        if not locks.try_lock(database, _BUSY_BYTE_FIRST, length=_BUSY_BYTES):
            raise _in_use(path, locks.anyone(database, _BUSY_BYTE_FIRST, length=_BUSY_BYTES))
        stack.callback(locks.unlock, database, _BUSY_BYTE_FIRST, length=_BUSY_BYTES)
        try:
            shm = os.open(f"{path}{SHM_SUFFIX}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield  # nobody is attached, and nobody can attach now
            return
        stack.callback(os.close, shm)
        if not locks.try_lock(shm, _SHM_BYTE_FIRST, length=_SHM_BYTES):
            raise _in_use(path, locks.anyone(shm, _SHM_BYTE_FIRST, length=_SHM_BYTES))
        yield


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
