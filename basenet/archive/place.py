"""The place where a restored database goes: what may be there before, and how it gets there.

Theory of operation
===================

A database is never written where it will stand. It grows in a *draft*, a hidden file beside it
that only its owner can read, and is renamed when every byte is proven and on the disk. Whoever
looks sees the old state or the new one, and a draft that is not finished is deleted.

What stands beside a database belongs to it. A ``-wal`` that another database left is replayed
into the restored one at its first opening: the result is wrong and passes integrity_check (P8). So
nothing is put in place while ``-wal``, ``-shm`` or ``-journal`` exist. With ``force``:

1. Take an exclusive lock on all bytes that SQLite and basenet lock in the database, and in -shm.
   That proves that no process has it open, and keeps the next one waiting; otherwise refuse.
2. Move ``-wal`` and ``-journal`` aside (they can hold commits that nobody else has) and delete
   ``-shm``, which holds nothing of its own. Make that durable.
3. Rename the draft, make that durable, unlock.

A connection that was opened and has not read anything yet holds no lock, and cannot be seen.
"""

import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from basenet.errors import ConflictError, UnavailableError, UsageError

DRAFT_MODE: Final = 0o600
_SIDECARS: Final = ("-wal", "-shm", "-journal")
# SQLite: PENDING, RESERVED and SHARED lie here; basenet's owner lock is at 0x40001000.
_LOCK_START: Final = 0x40000000
_LOCK_LENGTH: Final = 0x1001
# SQLite's wal-index locks and the one that says "I have this open" (DMS).
_SHM_LOCK_START: Final = 120
_SHM_LOCK_LENGTH: Final = 9
_FLOCK: Final = struct.Struct("hhqqi4x")  # Linux, 64 bit: type, whence, start, length, pid


class Draft:
    """A file that becomes a database, or disappears. Every method blocks.

    Use it as a context: leaving it without `Place.accept` deletes the file. Raises
    `UnavailableError` when the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        """Make the file ``path``, which must not exist."""
        self.path = path
        with _translating(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(path, flags, DRAFT_MODE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)
        self.path.unlink(missing_ok=True)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``."""
        with _translating(self.path):
            written = os.pwrite(self._file, data, offset)
            while written < len(data):
                written += os.pwrite(self._file, data[written:], offset + written)

    def write_all(self, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Write ``pieces`` end to end from ``offset``, with one call as a rule."""
        size = sum(len(piece) for piece in pieces)
        with _translating(self.path):
            written = os.pwritev(self._file, pieces, offset)
        if written < size:
            self.write(offset + written, b"".join(pieces)[written:])

    def resize(self, size: int) -> None:
        """Cut or extend the file to ``size`` bytes; new bytes are zeros."""
        with _translating(self.path):
            os.ftruncate(self._file, size)

    def sync(self) -> None:
        """Make the content durable."""
        with _translating(self.path):
            os.fsync(self._file)

    def copy_owner(self, path: Path) -> None:
        """Give the draft the mode, and if we may the owner, of the file that it replaces."""
        with _translating(self.path):
            status = path.stat()
            os.fchmod(self._file, status.st_mode & 0o777)
        try:
            os.fchown(self._file, status.st_uid, status.st_gid)
        except PermissionError:
            return


class Place:
    """A path that a database is to be restored to."""

    def __init__(self, path: Path, *, force: bool = False) -> None:
        """Take the path of the database. A symbolic link stands for what it leads to."""
        # SQLite names -wal and -shm after the file that a link leads to.
        self.path = Path(os.path.realpath(path))
        self._force = force

    @property
    def is_taken(self) -> bool:
        """Whether a file stands there."""
        return self.path.exists()

    def check(self) -> None:
        """Raise now what `accept` would raise at the end, as far as that can be known.

        `ConflictError`: something is there. `UsageError`: no database can be there.
        """
        if self.path.is_dir():
            raise UsageError(f"{self.path} is a directory; name the file to restore to")
        if self.path.exists() and not self.path.is_file():
            raise UsageError(f"{self.path} is a device or a pipe; name a file to restore to")
        if not self.path.parent.is_dir():
            raise UsageError(f"{self.path.parent} is no directory; make it first")
        if self._force:
            if self.is_taken:
                with self._locked():
                    pass
            return
        if self.is_taken:
            raise ConflictError(
                f"{self.path} exists and is not overwritten; restore to another file, or use "
                "--force to replace it"
            )
        for sidecar in self._sidecars():
            raise ConflictError(
                f"{sidecar} exists, left by another database; SQLite would replay it into the "
                "restored one; move it away, or use --force to have it moved aside"
            )

    def open_draft(self) -> Draft:
        """Return a new, empty draft beside the place."""
        return Draft(self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.restore"))

    def accept(self, draft: Draft) -> list[Path]:
        """Put the draft in its place, durable; return what was moved aside for it.

        Raises `ConflictError` if somebody came first or has the old database open.
        """
        if not self._force:
            self.check()
            draft.sync()
            self._link(draft)
            self._sync_directory()
            return []
        if not self.is_taken:
            return self._replace(draft)
        draft.copy_owner(self.path)
        with self._locked():
            return self._replace(draft)

    def _replace(self, draft: Draft) -> list[Path]:
        draft.sync()
        moved = self._move_sidecars()
        with _translating(self.path):
            draft.path.replace(self.path)
        self._sync_directory()
        return moved

    def _link(self, draft: Draft) -> None:
        """Give the draft its name, unless the name is taken by now."""
        try:
            self.path.hardlink_to(draft.path)
        except FileExistsError as error:
            raise ConflictError(f"{self.path} appeared during the restore; it is kept") from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise _translate(error, self.path) from error
            # A file system without hard links: the check was a moment ago.
            draft.path.rename(self.path)

    def _sidecars(self) -> Iterator[Path]:
        for suffix in _SIDECARS:
            sidecar = self.path.with_name(self.path.name + suffix)
            if os.path.lexists(sidecar):
                yield sidecar

    def _move_sidecars(self) -> list[Path]:
        moved = []
        stamp = secrets.token_hex(4)
        with _translating(self.path):
            for sidecar in list(self._sidecars()):
                if sidecar.name.endswith("-shm"):
                    sidecar.unlink()
                    continue
                aside = sidecar.with_name(f"{sidecar.name}.before-restore-{stamp}")
                sidecar.rename(aside)
                moved.append(aside)
        self._sync_directory()
        return moved

    def _sync_directory(self) -> None:
        with _translating(self.path.parent):
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the old database alone while the body runs."""
        shm = self.path.with_name(self.path.name + "-shm")
        database = self._open_to_lock(self.path)
        index = None
        try:
            self._lock(database, _LOCK_START, _LOCK_LENGTH)
            if shm.exists():
                index = self._open_to_lock(shm)
                self._lock(index, _SHM_LOCK_START, _SHM_LOCK_LENGTH)
            yield
        finally:
            os.close(database)
            if index is not None:
                os.close(index)

    def _open_to_lock(self, path: Path) -> int:
        with _translating(path):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def _lock(self, file: int, start: int, length: int) -> None:
        try:
            if hasattr(fcntl, "F_OFD_SETLK"):
                request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
            else:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError) as error:
            raise ConflictError(
                f"{self.path} is open in {self._find_holder(file, start, length)}; stop what uses "
                "it, then restore"
            ) from error

    def _find_holder(self, file: int, start: int, length: int) -> str:
        if hasattr(fcntl, "F_OFD_GETLK"):
            request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
            pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, request))[4]
            if pid > 0:
                return f"process {pid}"
        return "another process"


@contextmanager
def _translating(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _translate(error, path) from error


def _translate(error: OSError, path: Path) -> UnavailableError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UnavailableError(
            f"there is no room for {path} ({error.strerror}); make some, or restore elsewhere"
        )
    return UnavailableError(f"{path} cannot be written: {error.strerror}")
