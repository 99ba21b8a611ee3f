"""Pages from a function are a database to SQLite, and one that nobody can write."""

import sqlite3
from pathlib import Path
from typing import Any

import apsw
import pytest

from basenet.errors import CorruptionError, UnavailableError, UsageError
from basenet.sqlite.pagevfs import PastConnection


class FileSource:
    """The pages of a file that nobody writes."""

    def __init__(self, data: bytes, page_size: int) -> None:
        self._data = data
        self.page_size = page_size
        self.db_pages = len(data) // page_size if page_size else 0
        self.reads: list[int] = []
        self.failure: Exception | None = None

    def read_page(self, pgno: int) -> bytes:
        self.reads.append(pgno)
        if self.failure is not None:
            raise self.failure
        return self._data[(pgno - 1) * self.page_size : pgno * self.page_size]


class Taken:
    """Keeps what a statement gives, up to ``limit`` rows."""

    def __init__(self, limit: int = 10**9) -> None:
        self.columns: list[str] = []
        self.rows: list[tuple[Any, ...]] = []
        self._limit = limit

    def begin(self, columns: Any) -> None:
        self.columns = list(columns)

    def row(self, values: Any) -> bool:
        self.rows.append(tuple(values))
        return len(self.rows) < self._limit


def make(tmp_path: Path, *, page_size: int = 4096, rows: int = 4000) -> FileSource:
    path = tmp_path / "source.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA page_size = {page_size}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    connection.executemany(
        "INSERT INTO t VALUES (?, hex(randomblob(200)))", [(i,) for i in range(rows)]
    )
    connection.execute("COMMIT")
    connection.close()
    data = path.read_bytes()
    assert data[18:20] == b"\x02\x02"
    return FileSource(data, page_size)


def ask(source: FileSource, statement: str, limit: int = 10**9) -> Taken:
    taken = Taken(limit)
    with PastConnection(source) as connection:
        connection.run(statement, taken)
    return taken


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
def test_a_wal_database_reads_as_it_is(tmp_path: Path, page_size: int) -> None:
    """Of every page size, without -wal and -shm, whole and by key."""
    source = make(tmp_path, page_size=page_size)
    assert ask(source, "PRAGMA integrity_check").rows == [("ok",)]
    assert ask(source, "SELECT count(*), max(id) FROM t").rows == [(4000, 3999)]
    source.reads.clear()
    assert ask(source, "SELECT id AS key FROM t WHERE id = 7").columns == ["key"]
    assert len(set(source.reads)) < 10


def test_a_big_sort_uses_temporary_files(tmp_path: Path) -> None:
    """They are the system's, and this one file is not theirs."""
    source = make(tmp_path, rows=20_000)
    taken = Taken()
    with PastConnection(source) as connection:
        connection.run("PRAGMA cache_size = 10", Taken())
        connection.run("SELECT x FROM t ORDER BY x", taken)
    assert [row[0] for row in taken.rows] == sorted(row[0] for row in taken.rows)
    assert len(taken.rows) == 20_000


def test_rows_are_taken_until_enough(tmp_path: Path) -> None:
    """The rest is not computed, and the connection goes on."""
    source = make(tmp_path)
    with PastConnection(source) as connection:
        for _ in range(2):
            taken = Taken(3)
            connection.run("SELECT id FROM t ORDER BY id", taken)
            assert taken.rows == [(0,), (1,), (2,)]
    assert len(set(source.reads)) < source.db_pages / 2


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES (-1, 1)",
        "CREATE TEMP TABLE u(x)",
        "PRAGMA journal_mode = DELETE",
        "VACUUM",
        "CREATE INDEX i ON t(x)",
        "BEGIN IMMEDIATE",
        "ATTACH ':memory:' AS m",
        "ATTACH '/etc/passwd' AS m",
        "SELECT 1; SELECT 2",
        "-- nothing",
        "SELECT",
    ],
)
def test_everything_but_reading_is_refused(tmp_path: Path, statement: str) -> None:
    """By what the statement is, before it runs, or by SQLite."""
    source = make(tmp_path, rows=5)
    with pytest.raises(UsageError):
        ask(source, statement)
    assert ask(source, "SELECT count(*) FROM t").rows == [(5,)]


def test_an_error_of_the_source_is_raised_as_itself(tmp_path: Path) -> None:
    """In the middle of a statement, and when the database is opened; then it works again."""
    source = make(tmp_path)
    with PastConnection(source) as connection:
        connection.run("SELECT 1 FROM t WHERE id = 1", Taken())
        source.failure = UnavailableError("the store is away")
        with pytest.raises(UnavailableError, match="the store is away"):
            connection.run("SELECT sum(length(x)) FROM t", Taken())
        source.failure = None
        taken = Taken()
        connection.run("SELECT count(x) FROM t", taken)
        assert taken.rows == [(4000,)]
    source.failure = CorruptionError("a part is not as signed")
    with pytest.raises(CorruptionError, match="a part is not as signed"):
        ask(source, "SELECT * FROM t")


def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    """Bytes that were archived and were no database, and a database without pages."""
    make(tmp_path, rows=1)
    with pytest.raises(CorruptionError, match="damaged"):
        ask(FileSource(b"no database " * 1024, 4096), "SELECT * FROM sqlite_schema")
    assert ask(FileSource(b"", 0), "SELECT count(*) FROM sqlite_schema").rows == [(0,)]


def test_nothing_stays_registered(tmp_path: Path) -> None:
    """Each connection has a VFS of its own, gone with it."""
    before = len(apsw.vfs_names())
    ask(make(tmp_path, rows=1), "SELECT 1")
    assert len(apsw.vfs_names()) == before


def test_a_sort_without_room_is_no_fault_of_the_statement(tmp_path: Path) -> None:
    """The disk of the temporary files is full: that passes, and the sentence says where."""

    class Full(Taken):
        def row(self, values: Any) -> bool:
            del values
            raise apsw.FullError("database or disk is full")

    with PastConnection(make(tmp_path)) as connection, pytest.raises(UnavailableError) as raised:
        connection.run("SELECT * FROM t", Full())
    assert "TMPDIR" in str(raised.value)
