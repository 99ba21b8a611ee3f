"""One application's database file, held by the daemon without being in its way.

Theory of operation
===================

To *attach* is to hold, in this order: our own descriptor of the database with the owner lock on it,
two SQLite connections (one may keep a read transaction while the other checkpoints), and
our own descriptors of -wal and -shm, opened after SQLite made them. To let go is the same order
backwards: SQLite closes first, because closing any descriptor of ours drops the POSIX locks that
SQLite's connections in this process hold. Eight descriptors in all.

While we are attached SQLite cannot remove -wal and -shm when the application closes, and whoever
then moves another file into place gets a stranger's log replayed onto it. Therefore

* `Database.others_connected` lets the daemon *detach* when the application is gone;
* `Database.why_foreign` compares path and descriptor before anything is written, by inode;
* closing never checkpoints by accident: connections are opened with NO_CKPT_ON_CLOSE, and only
  `Database.detach` closes as SQLite's last close does, after proving under the write lock that
  everything is captured, copied into the file and on a file that is ours.

`DetachedState` then says what the file looked like at that moment. A file that still looks so was
not checkpointed into since, hence every commit since lies in its present log from frame 1 on.
"""

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Final

import apsw

from basenet import failpoints
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from basenet.sqlite import locks
from basenet.sqlite.checkpoint import (
    CheckpointResult,
    DatabaseReplaced,
    checkpoint_passive,
    checkpoint_truncate,
)
from basenet.sqlite.walindex import Index, read_header_bytes, read_index
from basenet.units import is_page_size

MAGIC: Final = b"SQLite format 3\0"
HEADER_BYTES: Final = 100
_WAL_VERSION: Final = 2
_ROLLBACK_VERSION: Final = 1
# Long enough for another process's recovery or last close, short enough for a start-up.
_ATTACH_BUSY_MS: Final = 500
# File times may stand still for one tick of the kernel's clock (at most 10 ms): a file younger than
# this could be written again without showing it.
_SETTLED_NS: Final = 20_000_000

_DETACHED: Final = Struct(">BQQQqq32s")
_DETACHED_VERSION: Final = 1

# Inodes attached in this process. Opening and closing one of them a second time would drop the
# locks of the first (POSIX), so that is refused before any descriptor is opened.
_attached: set[tuple[int, int]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachedState:
    """What a database file without a log looked like when we let it go."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    header_hash: bytes

    def encode(self) -> bytes:
        """Return the state as bytes for the journal."""
        return _DETACHED.pack(
            _DETACHED_VERSION,
            self.device,
            self.inode,
            self.size,
            self.modified_ns,
            self.changed_ns,
            self.header_hash,
        )

    @classmethod
    def decode(cls, data: bytes) -> "DetachedState":
        """Return the state that `encode` wrote; raise `CorruptionError` for anything else."""
        if len(data) != _DETACHED.size or data[0] != _DETACHED_VERSION:
            raise CorruptionError(
                f"a detached state of {len(data)} bytes in the journal is not readable; "
                "move journal.db and what begins with its name out of the data directory"
            )
        _, device, inode, size, modified_ns, changed_ns, header_hash = _DETACHED.unpack(data)
        return cls(
            device=device,
            inode=inode,
            size=size,
            modified_ns=modified_ns,
            changed_ns=changed_ns,
            header_hash=header_hash,
        )


def state_of(descriptor: int) -> DetachedState:
    """Return what the database file behind ``descriptor`` looks like now."""
    facts = os.fstat(descriptor)
    return DetachedState(
        device=facts.st_dev,
        inode=facts.st_ino,
        size=facts.st_size,
        modified_ns=facts.st_mtime_ns,
        changed_ns=facts.st_ctime_ns,
        header_hash=sha256(os.pread(descriptor, HEADER_BYTES, 0)).digest(),
    )


class Database:
    """A WAL-mode database file, attached. Made by `attach`; let go by `close` or `detach`."""

    __slots__ = (
        "_real_path",
        "connections",
        "database_fd",
        "device",
        "inode",
        "page_size",
        "path",
        "shm_fd",
        "wal_fd",
    )

    def __init__(self, path: Path, real_path: str, database_fd: int, page_size: int) -> None:
        facts = os.fstat(database_fd)
        self.path = path
        self._real_path = real_path
        self.device = facts.st_dev
        self.inode = facts.st_ino
        self.page_size = page_size
        self.database_fd = database_fd
        self.connections: list[apsw.Connection] = []
        self.wal_fd = -1
        self.shm_fd = -1

    @property
    def is_open(self) -> bool:
        """Whether the database is still attached."""
        return self.database_fd >= 0

    @property
    def wal_bytes(self) -> int:
        """The present size of the -wal file in bytes."""
        return os.fstat(self.wal_fd).st_size

    def connect(self) -> apsw.Connection:
        """Return a further connection to the file, configured as ours are; the caller closes it.

        Raises an error of ours if SQLite refuses.
        """
        try:
            return _connect(self._real_path)
        except apsw.Error as error:
            raise translated(error, self.path) from error

    def read_index(self) -> Index | None:
        """Return one consistent look at the wal-index, or None while its header is torn."""
        return read_index(self.shm_fd)

    def others_connected(self) -> bool:
        """Return whether another process has the database open.

        SQLite's connections share all bytes of the range; a guardian holds the last one alone.
        """
        holder = locks.other_process(
            self.database_fd, locks.SHARED_FIRST_BYTE, length=locks.SHARED_BYTES - 1
        )
        return holder is not None

    def why_foreign(self) -> str | None:
        """Return in one sentence why the path is no longer our file, or None if it is."""
        pairs = (
            (str(self.path), self.database_fd),
            (self._real_path + "-wal", self.wal_fd),
            (self._real_path + "-shm", self.shm_fd),
        )
        for name, descriptor in pairs:
            ours = os.fstat(descriptor)
            try:
                theirs = os.stat(name)  # noqa: PTH116  (every poll asks, and a Path costs more)
            except FileNotFoundError:
                return f"{name} was deleted or moved away while basenet was attached to it."
            if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
                return f"{name} was replaced by another file while basenet was attached to it."
        return None

    def is_elsewhere(self) -> bool:
        """Return whether the path leads to another file than ours; not when it leads to none."""
        ours = os.fstat(self.database_fd)
        try:
            theirs = self.path.stat()
        except FileNotFoundError:
            return False
        return (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)

    def sync_wal(self) -> None:
        """Make every frame that is in the -wal now survive a power loss."""
        failpoints.reach(failpoints.SYNC)
        os.fdatasync(self.wal_fd)

    def heal_index(self, connection: apsw.Connection) -> None:
        """Let SQLite repair a torn wal-index header by reading once; no wonder if it is busy."""
        with contextlib.suppress(apsw.BusyError, apsw.ProtocolError, apsw.LockedError):
            connection.execute("pragma schema_version").fetchall()

    def close(self) -> None:
        """Let go of the file and leave -wal and -shm as they are. Harmless when repeated."""
        while self.connections:
            self.connections.pop().close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for descriptor in (self.shm_fd, self.wal_fd, self.database_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self.shm_fd = self.wal_fd = self.database_fd = -1
        _attached.discard((self.device, self.inode))

    def detach(self, header_bytes: bytes) -> DetachedState | None:
        """Close as SQLite's last connection, which removes -wal and -shm.

        ``header_bytes``: the wal-index header up to which the caller captured. No read
        transaction of ours may be open. Returns None, still attached, if there are newer commits,
        a reader or a writer is at work, or the file was written within the last 20 ms: try again.
        Raises `DatabaseReplaced`, closed, if the path is no longer ours.
        """
        foreign = self.why_foreign()
        if foreign is not None:
            self.close()
            raise DatabaseReplaced(foreign)
        if self.others_connected() or not locks.try_lock(self.shm_fd, locks.WAL_WRITE_BYTE):
            return None
        # Nobody can commit now. All is in the file after this, so the close below writes nothing,
        # and what the file looks like here is what it looks like until a later commit is copied.
        state = self._settled_state(header_bytes)
        if state is None:
            locks.unlock(self.shm_fd, locks.WAL_WRITE_BYTE)
            return None
        last = self.connections.pop()
        self.close_connections()
        last.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        last.close()
        self._close_descriptors()
        return state

    def close_connections(self) -> None:
        """Close the connections that are left, without a checkpoint."""
        while self.connections:
            self.connections.pop().close()

    def _settled_state(self, header_bytes: bytes) -> DetachedState | None:
        if read_header_bytes(self.shm_fd) != header_bytes:
            return None
        if not self.checkpoint(self.connections[0]).is_complete:
            return None
        state = state_of(self.database_fd)
        if abs(time.time_ns() - state.modified_ns) < _SETTLED_NS:
            return None
        return state

    def checkpoint(self, connection: apsw.Connection) -> CheckpointResult:
        """Run one PASSIVE checkpoint; raises `DatabaseReplaced` if the path is no longer ours."""
        return checkpoint_passive(self, connection)

    def truncate(self, connection: apsw.Connection) -> CheckpointResult:
        """Copy the log to the file and cut it off if that goes soon; raises `DatabaseReplaced`."""
        return checkpoint_truncate(self, connection)


def is_attached(device: int, inode: int) -> bool:
    """Return whether this process has the file attached: then no descriptor of it may be closed."""
    return (device, inode) in _attached


def attach(path: Path, *, is_guarded: bool = False) -> Database:
    """Attach to the database file at ``path``.

    A rollback-journal database that nobody uses is converted to WAL. ``is_guarded``: the guardian
    is the file's owner, or will be before anything is written.

    Raises `NotFoundError` (no file yet), `UnavailableError` (empty, in use in another mode, held
    exclusively, hot journal: try again), `UsageError` (not SQLite, not writable), `ConflictError`
    (another daemon, or this one, has it), `CorruptionError`.
    """
    facts = _examine(path)
    key = (facts.st_dev, facts.st_ino)
    if key in _attached:
        raise ConflictError(
            f"{path} is the same file as another database of this daemon; list it only once."
        )
    _attached.add(key)
    try:
        return _attach_examined(path, key, is_guarded=is_guarded)
    except BaseException:
        _attached.discard(key)
        raise


def _examine(path: Path) -> os.stat_result:
    try:
        facts = path.stat()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist (yet); start the application.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UsageError(f"{path} is not a file; name the database file itself.")
    if facts.st_size == 0:
        raise UnavailableError(f"{path} is empty, not a database yet; waiting for its first table.")
    return facts


def _attach_examined(path: Path, key: tuple[int, int], *, is_guarded: bool) -> Database:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be opened for writing ({error.strerror}); basenet needs the rights "
            "that the application has, because SQLite's readers lock the file."
        ) from error
    try:
        page_size = _page_size(path, descriptor)
        _own(path, descriptor, key, is_guarded=is_guarded)
    except BaseException:
        os.close(descriptor)
        raise
    database = Database(path, os.path.realpath(path), descriptor, page_size)
    try:
        _open_sqlite(database)
    except BaseException:
        database.close()
        raise
    return database


def _own(path: Path, descriptor: int, key: tuple[int, int], *, is_guarded: bool) -> None:
    """Take the owner lock on the file that was examined, unless the guardian does."""
    facts = os.fstat(descriptor)
    if (facts.st_dev, facts.st_ino) != key:
        raise UnavailableError(f"{path} was replaced while it was being opened; trying again.")
    if not is_guarded and not locks.try_lock(descriptor, locks.OWNER_BYTE):
        raise ConflictError(
            f"{path} is already captured by another basenet process; stop one of the two."
        )


def _page_size(path: Path, descriptor: int) -> int:
    header = os.pread(descriptor, HEADER_BYTES, 0)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise UsageError(
            f"{path} is not an SQLite database, or it is encrypted; basenet reads plain SQLite."
        )
    stored = int.from_bytes(header[16:18], "big")
    page_size = 65536 if stored == 1 else stored
    if not is_page_size(page_size):
        raise CorruptionError(f"{path} claims a page size of {page_size} bytes; restore it.")
    return page_size


def _open_sqlite(database: Database) -> None:
    path = database.path
    versions = os.pread(database.database_fd, 3, 18)
    if versions[1] == _ROLLBACK_VERSION:
        _refuse_reserved(path, versions[2])
        _refuse_rollback_in_use(database)
    first = database.connect()
    database.connections.append(first)
    try:
        if versions[1] == _ROLLBACK_VERSION:
            _convert(database, first)
        # The first read makes SQLite create, or recover, -wal and -shm.
        first.execute("pragma schema_version").fetchall()
        second = database.connect()
        database.connections.append(second)
        second.execute("pragma schema_version").fetchall()
        real = os.path.realpath(path)
        database.wal_fd = os.open(real + "-wal", os.O_RDWR | os.O_CLOEXEC)
        database.shm_fd = os.open(real + "-shm", os.O_RDWR | os.O_CLOEXEC)
    except apsw.Error as error:
        raise translated(error, path) from error
    except OSError as error:
        raise UnavailableError(
            f"{path}-wal or -shm cannot be opened: {error.strerror}; basenet needs shared memory "
            "beside the database (not NFS, not locking_mode=EXCLUSIVE)."
        ) from error
    for connection in database.connections:
        # From here on a lock is had at once or not at all.
        connection.set_busy_timeout(0)


def _connect(real_path: str) -> apsw.Connection:
    connection = apsw.Connection(real_path, flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(_ATTACH_BUSY_MS)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    # Nothing else needs to be set, and nothing that would make SQLite parse the schema: our
    # connections begin reads and checkpoint, no more.
    connection.execute("pragma wal_autocheckpoint=0").fetchall()
    return connection


def _refuse_reserved(path: Path, reserved_bytes: int) -> None:
    """Leave the conversion to a VFS that keeps bytes of its own, such as checksums, in each page.

    Our SQLite would write page 1 without it, and the application could not read the page again.
    """
    if reserved_bytes:
        raise UnavailableError(
            f"{path} is in rollback-journal mode and reserves {reserved_bytes} bytes a page, as "
            "the checksum VFS does; run `pragma journal_mode=wal` in the application: only its own "
            "VFS can convert the file."
        )


def _refuse_rollback_in_use(database: Database) -> None:
    path = database.path
    if _has_hot_journal(Path(os.path.realpath(path) + "-journal")):
        raise UnavailableError(
            f"{path} has a rollback journal beside it: a transaction is open or died; let the "
            "application finish or start it once, then basenet converts the file to WAL."
        )
    length = locks.SHARED_FIRST_BYTE + locks.SHARED_BYTES - locks.PENDING_BYTE
    if locks.other_process(database.database_fd, locks.PENDING_BYTE, length=length):
        raise _rollback_in_use(path)


def _has_hot_journal(journal: Path) -> bool:
    """Return whether an unfinished rollback journal lies there: its first byte is set."""
    try:
        with journal.open("rb") as file:
            return file.read(1) not in (b"", b"\0")
    except FileNotFoundError:
        return False


def _rollback_in_use(path: Path) -> UnavailableError:
    return UnavailableError(
        f"{path} is in rollback-journal mode and in use; run `pragma journal_mode=wal` in the "
        "application, or stop it once so that basenet can convert the file."
    )


def _convert(database: Database, connection: apsw.Connection) -> None:
    connection.set_busy_timeout(0)
    try:
        mode = connection.execute("pragma journal_mode=wal").get
    except apsw.BusyError as error:
        raise _rollback_in_use(database.path) from error
    if mode != "wal":
        raise UnavailableError(
            f"{database.path} cannot be put into WAL mode (it stays in {mode!r}); basenet needs "
            "a file system with shared memory and a writable directory."
        )
    connection.set_busy_timeout(_ATTACH_BUSY_MS)


def translated(error: apsw.Error, path: Path) -> BasenetError:
    """Return the error of ours that says what SQLite's ``error`` means for ``path``."""
    if isinstance(error, (apsw.BusyError, apsw.LockedError, apsw.ProtocolError)):
        return UnavailableError(
            f"{path} is locked as a whole by another process (locking_mode=EXCLUSIVE, or a long "
            "recovery); basenet attaches as soon as the lock is free."
        )
    if isinstance(error, apsw.NotADBError):
        return UsageError(
            f"{path} is not an SQLite database, or it is encrypted; basenet reads plain SQLite."
        )
    if isinstance(error, apsw.CorruptError):
        return CorruptionError(f"{path} is damaged: SQLite says {error}; restore it.")
    if isinstance(error, (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError)):
        return UsageError(
            f"{path} cannot be attached: SQLite says {error}; basenet needs to write the file and "
            "to create -wal and -shm in its directory."
        )
    return UnavailableError(f"{path} cannot be attached now: SQLite says {error}.")
