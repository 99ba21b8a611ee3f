"""One database's fence: which locks it consists of, and whether it is closed.

Theory of operation
===================

::

    -shm      byte 120            exclusive   SQLite's write lock: the fence itself
    -shm      byte 128            shared      the dead man's switch: nobody truncates -shm
    database  0x40000002 + 509    shared      the last byte that every connection shares: nobody can
                                              take all of them, so no last close deletes the log
    database  0x40001000          exclusive   one owner per database, whatever its data directory

All but the first are held as long as the fence exists. They are open-file-description locks on
descriptors that the guardian opened itself, by path: a descriptor passed by the daemon would be the
same lock owner, and a stale daemon could unlock through it (P4). The shared byte is the last one
only, so that the daemon can ask with ``F_GETLK`` on the other 509 whether an application is
connected (Q10).

`Fence.close` never waits. When somebody holds the write lock, a thread waits for it
(`guardian.waiters`), since polling would be starved by a busy writer for as long as it likes (Q12).
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from basenet.errors import ConflictError, UnavailableError
from basenet.guardian.header import HEADER_BYTES, repair_header
from basenet.sqlite import locks
from basenet.sqlite.walindex import decode_header

_DEAD_MAN_BYTE: Final = 128
_LAST_SHARED_BYTE: Final = locks.SHARED_FIRST_BYTE + locks.SHARED_BYTES - 1


class FenceState(StrEnum):
    """Who may write."""

    CLOSED = "closed"
    CLOSING = "closing"
    OPEN = "open"
    REPLACED = "replaced"


class Fence:
    """The locks of one database."""

    def __init__(
        self, path: Path, *, database: int, shm: int, state: FenceState = FenceState.OPEN
    ) -> None:
        """Keep the locks of ``database`` and ``shm``, open descriptors of what is at ``path``.

        Closes the descriptors when it is dropped. Whether the write lock is among the locks of a
        fence that is not `OPEN` shows when it is closed.
        """
        self.path = path
        # Looked at again and again, by a process that should cost nothing.
        self._paths = (os.fspath(path), f"{path}-shm")
        self.state = state
        self.open_until = 0
        self._database, self._shm = database, shm
        self._inodes = (_inode(database), _inode(shm))

    @classmethod
    def set_up(cls, path: Path, *, database_inode: tuple[int, int]) -> Self:
        """Return a fence, still open, on the file at ``path``, with the locks that always stand.

        ``database_inode``: (st_dev, st_ino) of the file that the daemon means. The daemon has an
        SQLite connection open that has read, so -shm exists.

        Raises `ConflictError` if another file is at ``path`` or another owner has it, and
        `UnavailableError` if it cannot be opened, its log is not there, or somebody is alone with
        it.
        """
        opened: list[int] = []
        try:
            opened.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            opened.append(os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC))
            fence = cls(path, database=opened[0], shm=opened[1])
            fence._take_standing_locks(database_inode)
        except BaseException as error:
            for descriptor in opened:
                os.close(descriptor)
            if not isinstance(error, OSError):
                raise
            raise UnavailableError(
                f"the fence of {path} cannot be set up ({error.strerror}); see that the database "
                "is in WAL mode and that this user may write to it"
            ) from error
        return fence

    @classmethod
    def found(cls, path: Path) -> Self:
        """Return a fence, still open, on whatever database lies at ``path``.

        Raises `UnavailableError` or `ConflictError` while that is none, or one whose log nobody has
        opened yet: SQLite must have recovered it, which needs the lock that a fence takes.
        """
        try:
            found = path.stat()
            with Path(f"{path}-shm").open("rb") as shm:
                header = decode_header(shm.read(HEADER_BYTES))
        except OSError:
            header = None
        if header is None:
            raise UnavailableError(f"{path} is no database that is in use in WAL mode.")
        return cls.set_up(path, database_inode=(found.st_dev, found.st_ino))

    def _take_standing_locks(self, database_inode: tuple[int, int]) -> None:
        if self._inodes[0] != database_inode:
            raise ConflictError(f"{self.path} was replaced by another file while it was fenced")
        if not locks.try_lock(self._database, locks.OWNER_BYTE):
            raise ConflictError(
                f"{self.path} is looked after by another basenet; one database has one"
            )
        # Refused only while somebody is alone with the file for a moment: an opening or closing
        # connection. The daemon has one open, so that is over at once.
        if not (
            locks.try_lock(self._database, _LAST_SHARED_BYTE, is_shared=True)
            and locks.try_lock(self._shm, _DEAD_MAN_BYTE, is_shared=True)
        ):
            raise UnavailableError(
                f"{self.path} is held exclusively by an application (locking_mode=EXCLUSIVE, or a "
                "connection that is just being opened); it is tried again"
            )

    def close(self) -> bool:
        """Take the write lock if nobody has it; return whether the fence is closed."""
        if self.state is FenceState.CLOSED:
            return True
        if not locks.try_lock(self._shm, locks.WAL_WRITE_BYTE):
            self.state = FenceState.CLOSING
            return False
        self.mark_closed()
        return True

    def wait_closed(self) -> None:
        """Take the write lock, however long its holder keeps it; for a thread of its own.

        Touches no state of this object: `mark_closed` or `open` follows in the keeper's thread.
        """
        locks.wait_for_lock(self._shm, locks.WAL_WRITE_BYTE)

    def mark_closed(self) -> None:
        """Note that the write lock is ours, and repair what its last holder left."""
        self.state = FenceState.CLOSED
        self.open_until = 0
        repair_header(self._shm)

    def repair(self) -> None:
        """Repair a header over which the daemon died that applied under the closed fence."""
        if self.state is FenceState.CLOSED:
            repair_header(self._shm)

    def open(self, until: int) -> None:
        """Release the write lock until the instant ``until``."""
        locks.unlock(self._shm, locks.WAL_WRITE_BYTE)
        self.state = FenceState.OPEN
        self.open_until = until

    def is_of(self, database_inode: tuple[int, int]) -> bool:
        """Return whether this fences the database ``database_inode`` and it is in its place."""
        return self._inodes[0] == database_inode and self.is_in_place()

    def is_in_place(self) -> bool:
        """Return whether the files at the path are still those that are locked."""
        try:
            for path, inode in zip(self._paths, self._inodes, strict=True):
                found = os.stat(path)  # noqa: PTH116  (a Path costs three times as much)
                if (found.st_dev, found.st_ino) != inode:
                    return False
        except OSError:
            return False
        return True

    def descriptors(self) -> tuple[int, int]:
        """Return database and -shm, for the daemon to keep the locks alive if the guardian dies."""
        return self._database, self._shm

    def drop(self) -> None:
        """Let go of everything."""
        for descriptor in (self._shm, self._database):
            if descriptor >= 0:
                os.close(descriptor)
        self._database = self._shm = -1


def _inode(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
