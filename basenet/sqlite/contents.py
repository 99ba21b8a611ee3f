"""What a database holds, asked of SQLite or read page by page: rows, schema, a copy of it all.

Each call brings a connection of its own and closes it, since to parse a schema is more than the
connections of `attach` ever do.
"""

import os
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Final

import apsw

from basenet.errors import UnavailableError
from basenet.sqlite.attach import Database, translated
from basenet.sqlite.page1 import first_page
from basenet.sqlite.pages import PageView

_COOKIE: Final = Struct(">I")
_COOKIE_OFFSET: Final = 40
_COPIES_MAX: Final = 100
_NUMBERS: Final = ("schema_version", "user_version", "application_id")


def has_rows(database: Database) -> bool:
    """Return whether any table of the user has a row; a table that cannot be read counts as such.

    SQLite's own tables and those behind a virtual table do not count. Raises an error of ours if
    SQLite cannot read the file.
    """
    with closing(database.connect()) as connection:
        try:
            tables = connection.execute(
                "select name from pragma_table_list where schema = 'main' "
                "and type in ('table', 'virtual') and name not like 'sqlite\\_%' escape '\\'"
            ).fetchall()
            return any(_has_row(connection, str(name)) for (name,) in tables)
        except apsw.Error as error:
            raise translated(error, database.path) from error


def _has_row(connection: apsw.Connection, table: str) -> bool:
    quoted = table.replace('"', '""')
    try:
        return bool(connection.execute(f'select 1 from "{quoted}" limit 1').fetchall())  # noqa: S608
    except apsw.SQLError:
        return True  # a virtual table whose module only the application has


def page_count(database: Database) -> int:
    """Return how many pages the database has; raises an error of ours if it cannot be read."""
    with closing(database.connect()) as connection:
        try:
            return int(connection.pragma("page_count"))
        except apsw.Error as error:
            raise translated(error, database.path) from error


def is_blank(database: Database) -> bool:
    """Return whether nobody has ever stored anything in the database since it was made.

    One page at most, no change of the schema, no number of the application's. Raises an error of
    ours if it cannot be read.
    """
    with closing(database.connect()) as connection:
        try:
            numbers = [int(connection.pragma(name)) for name in _NUMBERS]
            return int(connection.pragma("page_count")) <= 1 and not any(numbers)
        except apsw.Error as error:
            raise translated(error, database.path) from error


class Schema:
    """The schema of a database at one moment, to be compared with that of another."""

    __slots__ = ("cookie", "digest")

    def __init__(self, database: Database) -> None:
        """Read it; raises `UnavailableError` or `CorruptionError` if the file cannot be read."""
        with PageView(database) as view:
            first = next((bytes(block[:100]) for _, block in view.blocks(1, 1)), bytes(100))
        self.cookie = int(_COOKIE.unpack_from(first, _COOKIE_OFFSET)[0])
        self.digest = _digest(database)

    def misleads(self, after: "Schema") -> bool:
        """Return whether a connection that parsed this schema could take ``after`` for it.

        SQLite parses anew when the cookie (bytes 40..43 of page 1) is not the one that it knows. So
        another schema under a greater cookie is safe, as each DDL of the same history gives it. But
        one that was undone leaves a smaller or equal one, which the next DDL can bring to the value
        that an idle connection still has in mind (P6).
        """
        is_same = self.digest is not None and self.digest == after.digest
        if is_same and self.cookie == after.cookie:
            return False
        return after.cookie <= self.cookie


def _digest(database: Database) -> bytes | None:
    """Return a hash of the schema's rows; None if SQLite cannot make sense of them."""
    digest = sha256()
    with closing(database.connect()) as connection:
        try:
            for row in connection.execute(
                "select rowid, type, name, tbl_name, rootpage, sql from sqlite_schema "
                "order by rowid"
            ):
                digest.update(repr(row).encode())
        except apsw.Error:
            return None
    return digest.digest()


def keep_copy(database: Database, destination: Path) -> Path:
    """Copy the whole database, as it is now, to ``destination``; durable when it returns.

    Nothing is ever overwritten: an equal file there is the copy already, beside another one the
    name gets a number. Returns the path of the copy. Raises `UnavailableError` if the disk is full.
    """
    facts = os.fstat(database.database_fd)
    partial = destination.with_name(f"{destination.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                os.fchown(descriptor, facts.st_uid, facts.st_gid)
            os.fchmod(descriptor, facts.st_mode & 0o777)
            digest = _write_copy(database, descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            return _give_name(partial, destination, digest)
        finally:
            partial.unlink()
            _sync_folder(destination.parent)
    except OSError as error:
        raise UnavailableError(
            f"{database.path} cannot be copied to {destination} ({error.strerror}); free space on "
            "its disk"
        ) from error


def _write_copy(database: Database, descriptor: int) -> bytes:
    digest = sha256()
    with PageView(database) as view:
        for first, block in view.blocks():
            if first == 1:
                # Whoever takes the copy may write to it.
                size = view.page_size
                block[:size] = first_page(block[:size], is_read_only=False)
            digest.update(block)
            offset, rest = (first - 1) * view.page_size, block
            while rest:
                done = os.pwrite(descriptor, rest, offset)
                rest, offset = rest[done:], offset + done
    return digest.digest()


def _give_name(partial: Path, destination: Path, digest: bytes) -> Path:
    for number in range(1, _COPIES_MAX + 1):
        suffix = "" if number == 1 else f"-{number}"
        name = destination.with_name(f"{destination.name}{suffix}")
        try:
            os.link(partial, name)
        except FileExistsError:
            if _digest_of(name) != digest:
                continue
        return name
    raise UnavailableError(
        f"{destination} and {_COPIES_MAX - 1} more copies beside it exist; move them away"
    )


def _digest_of(path: Path) -> bytes:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
