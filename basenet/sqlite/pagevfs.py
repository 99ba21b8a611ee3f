"""A database that is no file: its pages come from a function, and nothing can be written.

A *VFS* is what SQLite opens files with. This one knows one name, hands every read of it to a
`PageSource`, and refuses the rest: it says that the file is immutable, so SQLite takes no locks and
looks for no -wal and no -journal. Bytes 18 and 19 of page 1 are shown as 1: a database in WAL mode
would want shared memory. Temporary files (a big ORDER BY makes one) are the system's own.

An error that the source raises ends the statement, and is raised by `run` as itself: SQLite would
make of it a failed read.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Final, Protocol, Self, cast

import apsw
import apsw.ext

from basenet.errors import BasenetError, CorruptionError, UnavailableError, UsageError

_TEMPORARY: Final = (
    apsw.SQLITE_OPEN_TEMP_DB
    | apsw.SQLITE_OPEN_TRANSIENT_DB
    | apsw.SQLITE_OPEN_SUBJOURNAL
    | apsw.SQLITE_OPEN_TEMP_JOURNAL
)
_NAME: Final = "past.db"
_SECTOR_BYTES: Final = 4096
_VERSIONS: Final = slice(18, 20)


class PageSource(Protocol):
    """Whole pages of one database at one moment, by number from 1."""

    @property
    def page_size(self) -> int:
        """The size of a page in bytes."""
        ...

    @property
    def db_pages(self) -> int:
        """How many pages there are."""
        ...

    def read_page(self, pgno: int) -> bytes:
        """Return a page; may raise a `BasenetError`, which ends the statement."""
        ...


class _File:
    """The one file, as apsw asks for it."""

    def __init__(self, vfs: "_Vfs") -> None:
        self._vfs = vfs
        self._source = vfs.source

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802  (apsw's name)
        size, end = self._source.page_size, self._source.db_pages * self._source.page_size
        stop = min(offset + amount, end)
        if offset >= stop:
            return b""
        try:
            first, last = offset // size, (stop - 1) // size
            data = b"".join(self._read(index + 1) for index in range(first, last + 1))
        except BasenetError as error:
            self._vfs.failure = error
            raise apsw.IOError(str(error)) from error
        return data[offset - first * size : stop - first * size]

    def _read(self, pgno: int) -> bytes:
        page = self._source.read_page(pgno)
        if pgno == 1:
            page = page[: _VERSIONS.start] + b"\x01\x01" + page[_VERSIONS.stop :]
        return page

    def xFileSize(self) -> int:  # noqa: N802
        return self._source.db_pages * self._source.page_size

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_IMMUTABLE

    def xSectorSize(self) -> int:  # noqa: N802
        return _SECTOR_BYTES

    def xFileControl(self, operation: int, pointer: int) -> bool:  # noqa: N802
        del operation, pointer
        return False

    def xLock(self, level: int) -> None:  # noqa: N802
        del level

    def xUnlock(self, level: int) -> None:  # noqa: N802
        del level

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        del data, offset
        raise apsw.ReadOnlyError("a past moment cannot be written")

    def xTruncate(self, size: int) -> None:  # noqa: N802
        del size
        raise apsw.ReadOnlyError("a past moment cannot be written")

    def xSync(self, flags: int) -> None:  # noqa: N802
        del flags

    def xClose(self) -> None:  # noqa: N802
        """Nothing is open."""


class _Vfs(apsw.VFS):
    """Opens `_NAME` from a source, and temporary files from the system."""

    def __init__(self, source: PageSource) -> None:
        self.source = source
        self.failure: BasenetError | None = None
        self.vfs_name = f"basenet-{secrets.token_hex(8)}"
        super().__init__(self.vfs_name, "")

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        del flags
        return pathname == _NAME

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: FBT001, N802
        del filename, syncdir
        raise apsw.ReadOnlyError("a past moment cannot be written")

    def xOpen(  # noqa: N802
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        if flags[0] & _TEMPORARY:
            return apsw.VFSFile("", None, flags)
        shown = name.filename() if isinstance(name, apsw.URIFilename) else name
        if shown != _NAME:
            raise apsw.CantOpenError("there is one file, and it is read only")
        flags[1] = apsw.SQLITE_OPEN_READONLY
        return cast("apsw.VFSFile", _File(self))


class PastConnection:
    """A connection to the pages of a source; a context manager, used by one thread."""

    def __init__(self, source: PageSource) -> None:
        """Open ``source``; raise what it raises, or `CorruptionError` if SQLite cannot."""
        self._vfs = _Vfs(source)
        try:
            self._connection = apsw.Connection(
                _NAME, flags=apsw.SQLITE_OPEN_READONLY, vfs=self._vfs.vfs_name
            )
        except apsw.Error as error:
            self._vfs.unregister()
            raise CorruptionError(f"SQLite cannot read this moment: {error}.") from error
        self._connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        self._connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        self._connection.authorizer = _refuse_attach

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._vfs.unregister()

    def run(self, statement: str, take: "Rows") -> None:
        """Run one statement and hand its columns and rows to ``take`` until it wants no more.

        Raises `UsageError` for what is no single statement that only reads, or what SQLite refuses,
        `CorruptionError` for a database that is damaged, `UnavailableError` when there is no room
        for temporary files, and what the source raises.
        """
        self._vfs.failure = None
        try:
            columns = self._check(statement)
            take.begin(columns)
            for row in self._connection.execute(statement):
                if not take.row(row):
                    break
        except apsw.Error as error:
            raise self._translate(error) from error
        except UnicodeDecodeError as error:
            raise UsageError(
                "a text in the result is no UTF-8: select it as CAST(column AS BLOB)"
            ) from error

    def _check(self, statement: str) -> list[str]:
        """Return the columns; refuse what writes, and more than one statement."""
        found = apsw.ext.query_info(self._connection, statement)
        if not found.is_readonly:
            raise UsageError(
                "a past moment can only be read: give a SELECT; to change what was, restore it to "
                "a file with `basenet restore`"
            )
        if found.query_remaining and found.query_remaining.strip():
            raise UsageError("give one statement at a time")
        if not found.has_vdbe:
            raise UsageError("no statement is given; write a SELECT as the last argument")
        return [str(column[0]) for column in found.description]

    def _translate(self, error: apsw.Error) -> BasenetError:
        if self._vfs.failure is not None:
            return self._vfs.failure
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            return CorruptionError(f"SQLite finds this moment damaged: {error}.")
        if isinstance(error, apsw.FullError):
            return UnavailableError(
                "the statement needs more room for temporary files (a sort, as a rule) than there "
                "is: make room, or name another directory in TMPDIR"
            )
        if isinstance(error, apsw.ReadOnlyError | apsw.AuthError):
            return UsageError(f"a past moment can only be read, and nothing attached: {error}")
        return UsageError(f"SQLite refuses the statement: {error}")


class Rows(Protocol):
    """Takes what a statement gives."""

    def begin(self, columns: Sequence[str]) -> None:
        """Take the names of the columns, once, before the rows."""
        ...

    def row(self, values: Sequence[Any]) -> bool:
        """Take a row; return whether more are wanted."""
        ...


def _refuse_attach(
    operation: int, first: str | None, second: str | None, third: str | None, fourth: str | None
) -> int:
    """Refuse other files: a statement reads this moment and nothing else of this machine."""
    del first, second, third, fourth
    return apsw.SQLITE_DENY if operation == apsw.SQLITE_ATTACH else apsw.SQLITE_OK
