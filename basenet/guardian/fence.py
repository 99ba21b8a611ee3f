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
from typing import Final

from basenet.errors import ConflictError, UnavailableError
from basenet.guardian.header import repair_header
from basenet.sqlite import locks

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

    def __init__(self, path: Path, *, database_inode: tuple[int, int]) -> None:
        """Take the locks that always stand, on the file at ``path``.

        ``database_inode``: (st_dev, st_ino) of the file that the daemon means. The daemon has an
        SQLite connection open that has read, so -shm exists. The fence itself is still open.

        Raises `ConflictError` if another file is at ``path`` or another owner has it, and
        `UnavailableError` if it cannot be opened or its log is not there.
        """
        self.path = path
        self.state = FenceState.OPEN
        self.open_until = 0
        self._database = self._shm = -1
        try:
            self._database = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._shm = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
            self._inodes = tuple(_inode(each) for each in (self._database, self._shm))
            self._take_standing_locks(database_inode)
        except OSError as error:
            self.drop()
            raise UnavailableError(
                f"the fence of {path} cannot be set up ({error.strerror}); see that the database "
                "is in WAL mode and that this user may write to it"
            ) from error
        except ConflictError:
            self.drop()
            raise

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
            raise ConflictError(
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

    def open(self, until: int) -> None:
        """Release the write lock until the instant ``until``."""
        locks.unlock(self._shm, locks.WAL_WRITE_BYTE)
        self.state = FenceState.OPEN
        self.open_until = until

    def is_in_place(self) -> bool:
        """Return whether the files at the path are still those that are locked."""
        try:
            found = tuple(
                (each.st_dev, each.st_ino)
                for each in (self.path.stat(), Path(f"{self.path}-shm").stat())
            )
        except OSError:
            return False
        return found == self._inodes

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
