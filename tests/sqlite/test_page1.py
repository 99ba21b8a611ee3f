"""The read-only mark: what SQLite makes of byte 18, and who takes it away."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from basenet.errors import ConflictError, UnavailableError
from basenet.sqlite import locks
from basenet.sqlite.apply import Applier
from basenet.sqlite.attach import Database, attach
from basenet.sqlite.contents import keep_copy
from basenet.sqlite.diagnose import Level, diagnose_database
from basenet.sqlite.page1 import clear_copy, first_page, is_marked
from basenet.sqlite.rawcopy import copy_database
from basenet.sqlite.recover import scan
from basenet.sqlite.unmark import remove_mark
from basenet.wire.merkle import StateTree
from tests.sqlite.application import Application, ApplicationError

READ_ONLY = "attempt to write a readonly database"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with a row, closed."""
    path = tmp_path / "app.db"
    with Application(path) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (v)", "INSERT INTO t VALUES (1)")
    return path


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = attach(path)
    yield database
    database.close()


def set_mark(path: Path, *, is_read_only: bool = True) -> bytes:
    """Mark a file as a node does, and let go of it; returns its state root."""
    database = attach(path)
    assert locks.try_lock(database.shm_fd, locks.WAL_WRITE_BYTE)
    applier = Applier(database)
    try:
        applier.apply(applier.prepare_mark(is_read_only=is_read_only))
        return root_of(database)
    finally:
        database.close_connections()
        applier.close()
        database.close()


def root_of(database: Database) -> bytes:
    found = scan(database)
    return StateTree(found.page_size, found.leaves).root()


def refused(app: Application, statement: str = "INSERT INTO t VALUES (2)") -> str:
    with pytest.raises(ApplicationError) as caught:
        app.sql(statement)
    return str(caught.value)


def test_page_1_with_and_without_the_mark() -> None:
    """Only bytes 18 and 19 are ours to write."""
    page = bytes(range(256)) * 2
    plain = first_page(page, is_read_only=False)
    marked = first_page(memoryview(plain), is_read_only=True)
    assert (plain[18:20], marked[18:20]) == (b"\x02\x02", b"\x03\x02")
    assert plain[:18] + plain[20:] == marked[:18] + marked[20:] == page[:18] + page[20:]
    assert first_page(marked, is_read_only=False) == plain


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_marked_file_refuses_at_once_and_nobody_need_be_there(
    path: Path, *, is_checkpointed: bool
) -> None:
    """From the log or from the file; readers go on, and the state root is the same."""
    before = attach(path)
    root = root_of(before)
    before.close()
    assert set_mark(path) == root
    if is_checkpointed:
        with Application(path) as app:
            app.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.read_bytes()[18:20] == b"\x03\x02"
    with Application(path, timeout_s=0) as app:
        for statement in (
            "INSERT INTO t VALUES (2)",
            "CREATE TABLE u (x)",
            "VACUUM",
            "PRAGMA user_version=7",
        ):
            assert READ_ONLY in refused(app, statement)
        other = "sqlite3.connect(':memory:').backup(c)"
        with pytest.raises(ApplicationError, match=READ_ONLY):
            app.run(other)
        assert READ_ONLY in refused(app, "PRAGMA journal_mode=DELETE")
        # SQLite begins it as one that reads.
        app.sql("BEGIN IMMEDIATE")
        assert READ_ONLY in refused(app)
        app.sql("ROLLBACK")
        assert app.sql("SELECT v FROM t") == [[1]]
        assert app.sql("PRAGMA integrity_check") == [["ok"]]
        # A connection that met the mark keeps it; a new one does not.
        assert remove_mark(path)
        assert not remove_mark(path)
        assert READ_ONLY in refused(app)
        with Application(path) as other:
            other.sql("INSERT INTO t VALUES (3)")
        assert app.sql("SELECT v FROM t") == [[1], [3]]
    assert path.read_bytes()[18:20] == b"\x02\x02"


def test_connections_that_are_open_meet_the_mark_with_their_next_transaction(path: Path) -> None:
    """One that reads keeps its snapshot, and can write neither in it nor after it."""
    with Application(path, timeout_s=0) as idle, Application(path, timeout_s=0) as reading:
        idle.sql("INSERT INTO t VALUES (2)")
        reading.sql("BEGIN", "SELECT count(*) FROM t")
        set_mark(path)
        assert READ_ONLY in refused(idle)
        assert "locked" in refused(reading, "INSERT INTO t VALUES (9)")
        assert reading.sql("SELECT count(*) FROM t") == [[2]]
        reading.sql("COMMIT")
        assert READ_ONLY in refused(reading)


def test_a_connection_that_slept_through_the_mark_writes(path: Path) -> None:
    """Page 1 is read anew by the next transaction, which finds no mark."""
    with Application(path) as app:
        app.sql("INSERT INTO t VALUES (2)")
        set_mark(path)
        assert remove_mark(path)
        app.sql("INSERT INTO t VALUES (3)")
        assert app.sql("SELECT v FROM t") == [[1], [2], [3]]


def test_our_own_connections_checkpoint_and_close_a_marked_file(path: Path) -> None:
    """The mark is for who writes."""
    set_mark(path)
    database = attach(path)
    try:
        assert is_marked(database)
        assert database.checkpoint(database.connections[0]).is_complete
        assert os.pread(database.database_fd, 2, 18) == b"\x03\x02"
    finally:
        database.close()


def test_a_file_that_is_served_keeps_its_mark(path: Path) -> None:
    """Whoever owns it decides."""
    set_mark(path)
    owner = os.open(path, os.O_RDWR)
    try:
        assert locks.try_lock(owner, locks.OWNER_BYTE)
        with pytest.raises(ConflictError, match="already captured"):
            remove_mark(path)
    finally:
        os.close(owner)
    with path.with_name("app.db-shm").open("r+b") as shm, Application(path) as app:
        app.sql("SELECT v FROM t")
        assert locks.try_lock(shm.fileno(), locks.WAL_WRITE_BYTE)
        with pytest.raises(UnavailableError, match="holds its write lock"):
            remove_mark(path)
    assert remove_mark(path)


def test_copies_are_writable(path: Path, tmp_path: Path) -> None:
    """A copy is no replica, however it was made."""
    set_mark(path)
    raw, closed = tmp_path / "raw.db", tmp_path / "closed.db"
    copy_database(path, raw)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy_database(path, closed)
    database = attach(path)
    try:
        kept = keep_copy(database, tmp_path / "kept.db")
        assert keep_copy(database, tmp_path / "kept.db") == kept  # an equal one is there
    finally:
        database.close()
    for copy in (raw, closed, kept):
        with Application(copy) as app:
            app.sql("INSERT INTO t VALUES (2)")
            assert app.sql("PRAGMA integrity_check") == [["ok"]]
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(18) + b"\x01\x01" + bytes(80))
    with plain.open("r+b") as file:
        clear_copy(file.fileno())
    assert plain.read_bytes()[18:20] == b"\x01\x01"


def test_doctor_tells_of_the_mark_wherever_it_is(path: Path) -> None:
    """The newest page 1 counts, in the log or in the file."""

    def told() -> str:
        (found,) = [one for one in diagnose_database(path) if one.check == "journal mode"]
        assert (found.level is Level.OK) == (found.message == "WAL")
        return f"{found.message}; {found.remedy}"

    assert told().startswith("WAL")
    set_mark(path)
    assert f"basenet shards writable {path}" in told()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert f"basenet shards writable {path}" in told()
    remove_mark(path)
    assert told().startswith("WAL")
