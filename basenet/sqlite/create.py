"""An empty database where none is yet: what a replica begins with.

It is made in place, by SQLite, so that an application which opens the path at the same moment meets
SQLite's own locks. A crash in between leaves an empty file, or a database without a table that is
not in WAL mode yet; both are finished by the next call or by `attach`.
"""

import os
from pathlib import Path
from typing import Final

import apsw

from basenet.errors import UnavailableError, UsageError
from basenet.sqlite.attach import translated
from basenet.units import is_page_size

_FILE_MODE: Final = 0o600
_BUSY_MS: Final = 500


def create(path: Path, *, page_size: int = 0) -> bool:
    """Make an empty WAL-mode database at ``path`` if there is no file, or an empty one.

    ``page_size`` in bytes; 0: SQLite's default. The file is this user's alone (and, where we may
    give it away, the directory's owner's) and durable. Returns whether it was made. Must not be
    called while this process has the database open. Raises `UsageError` (not possible there) and
    `UnavailableError` (in use, disk full).
    """
    assert page_size == 0 or is_page_size(page_size), "a page size that SQLite does not have"
    real = Path(os.path.realpath(path))
    try:
        if not _make_file(real):
            return False
        _make_database(path, real, page_size)
        _sync(real)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be created ({error.strerror}); see that its directory exists and that "
            "basenet may write to it"
        ) from error
    return True


def _make_file(real: Path) -> bool:
    """Return whether there is an empty file now, made or found."""
    try:
        descriptor = os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    except FileExistsError:
        return real.stat().st_size == 0
    try:
        folder = real.parent.stat()
        if os.geteuid() == 0 and folder.st_uid != 0:
            # The application has to open it, too, and is whose directory this is.
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
    finally:
        os.close(descriptor)
    return True


def _make_database(path: Path, real: Path, page_size: int) -> None:
    try:
        connection = apsw.Connection(str(real), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(_BUSY_MS)
            if page_size:
                connection.execute(f"pragma page_size={page_size}").fetchall()
            connection.execute("pragma synchronous=full").fetchall()
            mode = connection.execute("pragma journal_mode=wal").get
        finally:
            connection.close()
    except apsw.Error as error:
        raise translated(error, path) from error
    if mode != "wal":
        raise UnavailableError(
            f"{path} cannot be put into WAL mode (it stays in {mode!r}); basenet needs a file "
            "system with shared memory and a writable directory."
        )


def _sync(real: Path) -> None:
    """Make the file and its name durable."""
    for target, flags in ((real, os.O_RDWR), (real.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(target, flags | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
