"""The journal's file: who may open it, its transactions, and what its errors mean.

Theory of operation
===================

The file runs in WAL mode with synchronous=FULL: a transaction that `transact` returned from was
synced, and one that it raised from did not happen. What an error means is decided here, once:

==================================  ==================  ===========================================
what SQLite met                     becomes             and then
==================================  ==================  ===========================================
a full disk, a lock of others       `UnavailableError`  nothing was stored, trying again can help
EIO, a failed fsync, a lost file    `JournalBroken`     the process must end, nothing more is sent
unreadable pages, found by a read   `CorruptionError`   whoever asked stops
==================================  ==================  ===========================================

After a failed fsync Linux forgets that the pages were not written, so trying again would lie (P32):
a broken journal stays broken, and even its log is left as it is for the next start to judge.

Checkpoints are our own. SQLite's automatic one drops its errors, also that of an fsync. A full disk
is no error there: the log goes on growing until a transaction finds no room. While anybody reads
from the log it cannot begin anew, so each read takes all it wants and finishes its statement, and
when reads follow one another too closely a checkpoint waits for those of the moment, and new ones
for it.

The file shrinks again: a row that goes leaves free pages for the next one, and when most of the
file is free its end is given back, little by little, with the transactions that drop frames.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import apsw

from basenet import failpoints
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    FrameCorrupt,
    UnavailableError,
    UsageError,
)
from basenet.journal import identity, migration, schema
from basenet.journal.identity import Identity
from basenet.units import KIB, MIB

Result = TypeVar("Result")

_PAGE_BYTES: Final = 4 * KIB
# A checkpoint costs two fsyncs and writes a page once however often it changed: larger than
# SQLite's 1,000 pages.
_CHECKPOINT_PAGES: Final = 4_000
# From this on the readers of the moment are waited for, so that the log begins anew.
_LOG_PAGES_MAX: Final = 4 * _CHECKPOINT_PAGES
# What the log may keep of the disk after it grew by a huge transaction.
_LOG_BYTES_KEPT: Final = 32 * MIB
_CACHE_BYTES: Final = 2 * MIB
_LOCKED_MS_MAX: Final = 5_000
_READERS_MS_MAX: Final = 1_000
_READER_PAUSE_S: Final = 0.001
# Free pages are worth keeping for the next frames; beyond this, and 3 of 4 of the file, they go.
_FREE_PAGES_KEPT: Final = 64 * MIB // _PAGE_BYTES
# Cutting off 64 free pages takes 0.5 ms, but moving 64 used ones to the front takes 10 ms.
_GIVEN_BACK_PAGES: Final = 64
_GIVING_BACK_S_MAX: Final = 0.02
_GIVING_BACK_PAUSE_S: Final = 0.2

_FULL = (apsw.FullError,)
_LOCKED = (apsw.BusyError, apsw.LockedError)
_UNREADABLE = (apsw.CorruptError, apsw.NotADBError)
_FAILED = (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError)


class JournalBroken(BasenetError):  # noqa: N818  (the state it is in, like its siblings)
    """The journal cannot be trusted any more; the process must end."""


class JournalFile:
    """The file of one data directory; opened by at most one process at a time.

    One thread at a time may call `transact`, with one connection. Any thread may read at any time:
    each read borrows a connection of its own.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create the journal in ``directory`` (created 0700).

        Raises `ConflictError` when another process has it open, `UsageError` when it is no journal
        of ours or the directory cannot be used, `CorruptionError` when it is damaged,
        `UnavailableError` when the disk is full, `JournalBroken` when the disk fails.
        """
        self.path = directory / "journal.db"
        self.jcount = 0
        """How many transactions are durable; known once `identify` was called."""
        self._readers: list[apsw.Connection] = []
        self._is_broken = False
        self._is_closed = False
        self._log_pages = 0
        self._log_pages_max = _LOG_PAGES_MAX
        self._holds_readers = False
        self._gives_back_at = time.monotonic()
        with ExitStack() as opened:
            self._descriptor = _claim(directory, opened)
            with _explaining_start(self.path):
                self._writer = _connect(self.path)
                opened.callback(self._close_connections)
                _set_up(self._writer, self.path, self._descriptor)
                self._writer.set_wal_hook(self._on_log_grown)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the file; idempotent. Nobody may be reading."""
        self._is_closed = True
        self._opened.close()

    def _close_connections(self) -> None:
        if self._is_broken:
            # The log may hold what never reached the disk: it is not copied into the database.
            self._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        while self._readers:
            self._readers.pop().close()
        self._writer.close()

    def identify(self) -> Identity:
        """Return which journal this is; a copy takes a new id, durable on return.

        Raises `ValueError` when the journal does not know itself, and otherwise what `transact`
        raises.
        """
        with self.reading() as connection:
            self.jcount, known, recorded = identity.read(connection)
        found = identity.find_place(self._descriptor)
        told = identity.judge(known, recorded, found)
        if recorded != found:
            self.transact(lambda connection: identity.record(connection, told.journal_id, found))
        return told

    # Transactions

    def transact(self, write: Callable[[apsw.Connection], Result]) -> Result:
        """Return what ``write`` returns, called on the writing connection in one transaction.

        It is durable on return. Raises `UnavailableError` when nothing was stored and trying again
        can help, `JournalBroken` when the journal cannot be trusted any more. What ``write`` raises
        passes through, and nothing was stored.
        """
        self._require_sound()
        with self._explaining():
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                result = write(self._writer)
                self._writer.execute("UPDATE meta SET value = value + 1 WHERE key = 'jcount'")
                failpoints.reach(failpoints.SYNC)
                self._writer.execute("COMMIT")
                self.jcount += 1
            except BaseException:
                # After most of its own errors SQLite has rolled back already.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            if self._log_pages >= _CHECKPOINT_PAGES:
                self._checkpoint()
        return result

    def _on_log_grown(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        # What a full disk or a lock forbids is tried again with the next transaction.
        with suppress(*_FULL, *_LOCKED):
            if self._log_pages < self._log_pages_max:
                self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            else:
                self._checkpoint_and_wait()

    def _checkpoint_and_wait(self) -> None:
        # A stranger's reader may stay for ever, so in vain we wait ever more seldom.
        self._log_pages_max = 2 * self._log_pages
        self._writer.set_busy_timeout(_READERS_MS_MAX)
        self._holds_readers = True
        try:
            self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
            self._log_pages_max = _LOG_PAGES_MAX
        finally:
            self._holds_readers = False
            self._writer.set_busy_timeout(_LOCKED_MS_MAX)

    def give_back(self) -> None:
        """Within a transaction: give free pages back to the disk, for a moment now and then."""
        now = time.monotonic()
        if now < self._gives_back_at:
            return
        while self._is_mostly_free() and time.monotonic() < now + _GIVING_BACK_S_MAX:
            self._writer.execute(f"PRAGMA incremental_vacuum({_GIVEN_BACK_PAGES})")
            self._gives_back_at = now + _GIVING_BACK_PAUSE_S

    def _is_mostly_free(self) -> bool:
        free: int = self._writer.pragma("freelist_count")
        pages: int = self._writer.pragma("page_count")
        return free > _FREE_PAGES_KEPT and 4 * free > 3 * pages

    # Reading

    @contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """Lend a connection to read with, and explain its errors.

        The borrower finishes its statements before it gives the connection back. Raises
        `CorruptionError` when pages are unreadable, `JournalBroken` when the disk fails.
        """
        self._require_sound()
        # Readers that overlap for ever would starve a checkpoint that waits for them.
        while self._holds_readers:
            time.sleep(_READER_PAUSE_S)
        with self._explaining(is_read=True):
            # Another thread may take the last one between a look and the grasp.
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = _connect(self.path)
            try:
                yield connection
            except UnicodeDecodeError as error:
                raise damaged(self.path, str(error)) from error
            finally:
                self._readers.append(connection)

    # Errors

    def _require_sound(self) -> None:
        """Raise `JournalBroken` if it is known that nothing can be made durable any more."""
        assert not self._is_closed, "a journal is used after it was closed"
        if self._is_broken:
            raise JournalBroken(f"the journal {self.path} failed before: start basenet again.")
        if os.fstat(self._descriptor).st_nlink == 0:
            self._is_broken = True
            raise JournalBroken(
                f"the journal {self.path} was deleted while it was in use: basenet ends here, "
                "since nothing that it stores would outlive it; start it again."
            )

    @contextmanager
    def _explaining(self, *, is_read: bool = False) -> Iterator[None]:
        """Turn SQLite's errors into ours; our own mistakes stay as they are."""
        try:
            yield
        except apsw.Error as error:
            if temporary := _temporary(error, self.path):
                raise temporary from error
            if is_read and isinstance(error, _UNREADABLE):
                raise damaged(self.path, str(error)) from error
            if not isinstance(error, _UNREADABLE + _FAILED):
                raise
            self._is_broken = True
            raise JournalBroken(
                f"the journal {self.path} failed ({error}): basenet ends here so that nothing is "
                "said on the strength of it; check the disk, then start it again."
            ) from error


def damaged(path: Path, what: str) -> CorruptionError:
    """Return the error of a journal whose content is not what was written."""
    return CorruptionError(
        f"the journal {path} is damaged ({what}): move {path}* aside; basenet then continues from "
        "the archive as a child lineage."
    )


def _temporary(error: apsw.Error, path: Path) -> UnavailableError | None:
    """Return what to say of an error that can go by itself, else None."""
    # The log's index that cannot grow is reported as an I/O error, but only the disk is full.
    is_index_full = getattr(error, "extendedresult", None) == apsw.SQLITE_IOERR_SHMSIZE
    if isinstance(error, _FULL) or is_index_full:
        return UnavailableError(
            f"the disk of the journal {path} is full: free some space; "
            "nothing that was captured is lost."
        )
    if isinstance(error, _LOCKED):
        return UnavailableError(
            f"another program holds a lock on the journal {path}: end it; nothing that was "
            "captured is lost."
        )
    return None


@contextmanager
def _explaining_start(path: Path) -> Iterator[None]:
    """Turn SQLite's errors at the start into ours."""
    try:
        yield
    except apsw.Error as error:
        if temporary := _temporary(error, path):
            raise temporary from error
        if isinstance(error, apsw.IOError):
            raise JournalBroken(
                f"the journal {path} cannot be read ({error}): check the disk, then start again."
            ) from error
        if isinstance(error, _FAILED):
            raise UsageError(
                f"the journal {path} cannot be opened ({error}): let basenet read and write it, "
                "or set BASE_DATA_DIR to another directory."
            ) from error
        raise damaged(path, str(error)) from error
    except (FrameCorrupt, ValueError) as error:
        raise damaged(path, str(error)) from error


def _claim(directory: Path, opened: ExitStack) -> int:
    """Take the directory for this process; return a descriptor of the journal's file.

    The descriptor stays open as long as the connections: to close any descriptor of a file drops
    all POSIX locks that this process has on it, SQLite's too.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _open_private(directory / "lock", opened)
        _lock(lock, directory)
        return _open_private(directory / "journal.db", opened)
    except OSError as error:
        raise UsageError(
            f"the data directory {directory} cannot be used ({error.strerror}): set BASE_DATA_DIR "
            "to a directory that basenet may write to."
        ) from error


def _open_private(path: Path, opened: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    opened.callback(os.close, descriptor)
    return descriptor


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConflictError(
            f"another basenet uses the data directory {directory}: stop it, or set BASE_DATA_DIR "
            "to another directory."
        ) from error


def _connect(path: Path) -> apsw.Connection:
    # Without SQLITE_OPEN_CREATE: whoever connects, the file is there.
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(_LOCKED_MS_MAX)
    connection.pragma("cache_size", -_CACHE_BYTES // KIB)
    return connection


def _set_up(connection: apsw.Connection, path: Path, descriptor: int) -> None:
    """Make the file a journal if it is empty; raise `UsageError` if it cannot be one."""
    version = schema.read_version(connection, str(path))
    if version == 0:
        connection.pragma("page_size", _PAGE_BYTES)
        # It costs no measurable time per frame, lets the file shrink, and makes the deletion of
        # large records ten times faster: SQLite then knows their pages without reading them.
        connection.pragma("auto_vacuum", "INCREMENTAL")
    if connection.pragma("journal_mode", "wal") != "wal":
        raise UsageError(
            f"the journal {path} cannot use a write-ahead log: set BASE_DATA_DIR to a directory "
            "on a local disk."
        )
    connection.pragma("synchronous", "FULL")
    connection.pragma("journal_size_limit", _LOG_BYTES_KEPT)
    if version == 0:
        schema.create(connection, identity.new_meta(identity.find_place(descriptor)))
    elif version != schema.VERSION:
        migration.migrate(connection, path, identity.find_place(descriptor))
