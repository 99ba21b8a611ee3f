"""A page for page copy of a database that others may have open, for whoever is not attached to it.

Theory of operation
===================

SQLite's own ways to copy (backup, VACUUM INTO) change bytes of the header, and what is compared by
its state root must not change. So the files are copied as bytes, while a read transaction of ours
keeps SQLite's promise to a reader: what lies in the database file and in its log up to the reader's
mark stands still. The log is copied before the database: a checkpoint that runs meanwhile moves
into the file only frames which the copy of the log has. What was committed after the transaction
began may be in the copy; it is one state all the same, and SQLite puts it together when it recovers
the copied log.

Without a log the file is all there is. The original is never written to, nor is its log emptied
when we happen to be the last who close it.
"""

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import apsw

from basenet.errors import ConflictError, NotFoundError, UnavailableError
from basenet.sqlite.page1 import clear_copy

_BUSY_MS: Final = 5000
_OWNER_ONLY: Final = 0o600
_BLOCK_BYTES: Final = 1 << 20


def copy_database(source: Path, destination: Path) -> None:
    """Copy ``source``, with what its log holds, to the new file ``destination`` (0600).

    Raises `NotFoundError`, `ConflictError` if ``destination`` exists or a rollback journal is hot,
    and `UnavailableError` if SQLite or the disk refuses.
    """
    if not source.is_file():
        raise NotFoundError(f"there is no database {source}.")
    if _beside(source, "-journal").exists():
        raise ConflictError(
            f"{source} has a rollback journal: let its application finish or recover it first."
        )
    try:
        if _beside(source, "-wal").exists():
            _copy_with_log(source, destination)
        else:
            _copy(source, destination)
        _make_writable(destination)
    except apsw.Error as error:
        raise UnavailableError(f"{source} cannot be read by SQLite: {error}.") from error
    except OSError as error:
        raise UnavailableError(f"{source} cannot be copied: {error.strerror}.") from error


def _make_writable(copy: Path) -> None:
    """Take the read-only mark from a copy, which is no replica; its state root stays."""
    descriptor = os.open(copy, os.O_RDWR | os.O_CLOEXEC)
    try:
        clear_copy(descriptor)
    finally:
        os.close(descriptor)


def _copy_with_log(source: Path, destination: Path) -> None:
    reader = apsw.Connection(os.fspath(source), flags=apsw.SQLITE_OPEN_READWRITE)
    # Descriptors of these files are closed after the connection: closing one drops its locks.
    with closing(_Originals(source)) as originals, closing(reader):
        reader.set_busy_timeout(_BUSY_MS)
        reader.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        reader.execute("begin")
        reader.execute("pragma schema_version").fetchall()
        originals.copy("-wal", _beside(destination, "-wal"))
        originals.copy("", destination)
    try:
        # As the last one to close, SQLite copies the log into the file and removes it.
        with closing(apsw.Connection(os.fspath(destination))) as copy:
            copy.execute("pragma wal_checkpoint(truncate)").fetchall()
    finally:
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                _beside(destination, suffix).unlink()


class _Originals:
    """The files of one database, open for reading until `close`."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._files: list[int] = []

    def copy(self, suffix: str, destination: Path) -> None:
        """Copy the file with this suffix to a new one."""
        descriptor = os.open(_beside(self._source, suffix), os.O_RDONLY | os.O_CLOEXEC)
        self._files.append(descriptor)
        _copy_bytes(descriptor, destination)

    def close(self) -> None:
        """Close what was opened."""
        for descriptor in self._files:
            os.close(descriptor)


def _copy(source: Path, destination: Path) -> None:
    """Copy one file that nobody here has open with SQLite."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _copy_bytes(descriptor, destination)
    finally:
        os.close(descriptor)


def _copy_bytes(descriptor: int, destination: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(destination, flags, _OWNER_ONLY), "wb") as copy:
        offset = 0
        while block := os.pread(descriptor, _BLOCK_BYTES, offset):
            copy.write(block)
            offset += len(block)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
