"""Every state in which a database file can be found, and letting go of it again."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from basenet.sqlite.attach import Database, DetachedState, attach, state_of
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.walindex import read_header_bytes
from tests.sqlite.application import Application, ApplicationError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A WAL-mode database with one table, closed."""
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table t(x)")
    connection.close()
    return path


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    found = attach(path)
    yield found
    found.close()


def refusal(path: Path, kind: type[BasenetError]) -> str:
    """Attach, expect an error of exactly this kind, and return its one sentence."""
    with pytest.raises(BasenetError) as caught:
        attach(path)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".")
    return message


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """The daemon waits for it."""
    assert "does not exist" in refusal(tmp_path / "none.db", NotFoundError)


def test_an_empty_file_is_not_yet_a_database(tmp_path: Path) -> None:
    """SQLite creates the file first and writes later."""
    path = tmp_path / "app.db"
    path.touch()
    assert "not a database yet" in refusal(path, UnavailableError)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """Only a regular file can be a database."""
    assert "not a file" in refusal(tmp_path, UsageError)


@pytest.mark.parametrize("content", [b"hello", os.urandom(8192)])
def test_what_is_not_sqlite_is_refused(tmp_path: Path, content: bytes) -> None:
    """Text and encrypted databases look alike: no magic."""
    path = tmp_path / "app.db"
    path.write_bytes(content)
    assert "encrypted" in refusal(path, UsageError)


def test_a_nonsense_page_size_is_corruption(path: Path) -> None:
    """The header is bytes from a disk."""
    raw = bytearray(path.read_bytes())
    raw[16:18] = b"\x12\x34"
    path.write_bytes(raw)
    assert "page size" in refusal(path, CorruptionError)


def test_a_file_that_lies_about_its_header_is_refused(path: Path) -> None:
    """Magic right, rest wrong: SQLite's own words."""
    raw = bytearray(path.read_bytes())
    raw[21] = 0
    path.write_bytes(raw)
    assert "encrypted" in refusal(path, UsageError)


def test_a_read_only_file_is_refused(path: Path) -> None:
    """Readers of SQLite lock the file, so do we; root ignores permissions, not a mount."""
    subprocess.run(["chattr", "+i", str(path)], check=False, capture_output=True)
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        assert "cannot be opened for writing" in refusal(path, UsageError)
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=False, capture_output=True)


def test_an_idle_rollback_database_is_converted(tmp_path: Path) -> None:
    """An application that is not in a transaction goes on in WAL mode without noticing."""
    path = tmp_path / "app.db"
    with Application(path) as application:
        application.sql("create table t(x)", "insert into t values(1)")
        database = attach(path)
        try:
            application.sql("insert into t values(2)")
            index = database.read_index()
            assert index is not None
            assert index.header.change == 1
            assert application.sql("pragma journal_mode") == [["wal"]]
        finally:
            database.close()


def test_a_rollback_database_in_use_is_left_alone(tmp_path: Path) -> None:
    """A reader or a writer at work: one sentence, try again, nothing changed."""
    path = tmp_path / "app.db"
    with Application(path) as application:
        application.sql("create table t(x)", "insert into t values(1)")
        application.run("c.execute('begin'); rows = c.execute('select * from t'); next(rows)")
        assert "in use" in refusal(path, UnavailableError)
        application.run("rows.close(); c.execute('commit')")
        application.sql("begin", "insert into t values(2)")
        assert "in use" in refusal(path, UnavailableError)
        application.sql("commit")
        assert application.sql("select count(*) from t") == [[2]]
        attach(path).close()


def test_a_hot_rollback_journal_is_left_to_the_application(tmp_path: Path) -> None:
    """A transaction died: the application rolls it back when it comes, not we."""
    path = tmp_path / "app.db"
    with Application(path) as application:
        application.sql("create table t(x)", "pragma cache_size=2", "begin")
        application.run("for n in range(500): c.execute('insert into t values(zeroblob(999))')")
        application.kill()
    assert "rollback journal" in refusal(path, UnavailableError)
    with Application(path) as application:
        assert application.sql("select count(*) from t") == [[0]]
    attach(path).close()


def test_an_exclusive_application_is_waited_for(path: Path) -> None:
    """locking_mode=EXCLUSIVE locks the whole file."""
    with Application(path) as application:
        application.sql("select * from t", "pragma locking_mode=exclusive")
        application.sql("insert into t values(1)")
        assert "locking_mode=EXCLUSIVE" in refusal(path, UnavailableError)
        application.sql("pragma locking_mode=normal", "select * from t")
        attach(path).close()


def test_one_daemon_per_database(path: Path, database: Database) -> None:
    """A second process is refused by the owner lock, a second listing by its inode."""
    assert database.is_open
    code = (
        "import sys; from pathlib import Path; from basenet.sqlite.attach import attach\n"
        "try: attach(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert other.stdout.startswith("ConflictError")
    assert str(path) in other.stdout
    link = path.with_name("link.db")
    link.symlink_to(path)
    assert "list it only once" in refusal(link, ConflictError)
    database.close()
    attach(path).close()


def test_a_database_costs_at_most_ten_descriptors(path: Path) -> None:
    """Also after views came and went."""
    before = count_descriptors()
    database = attach(path)
    for _ in range(5):
        connection = database.connect()
        connection.execute("select * from t").fetchall()
        connection.close()
    assert count_descriptors() - before <= 10
    database.close()
    assert count_descriptors() == before


def test_being_attached_does_not_lock_the_application_out(path: Path, database: Database) -> None:
    """Reads, writes and its own checkpoints pass; only exclusive access does not (P37)."""
    assert not database.others_connected()
    with Application(path, timeout_s=0.1) as application:
        application.sql("insert into t values(1)")
        assert database.others_connected()
        assert application.sql("pragma wal_checkpoint(truncate)") == [[0, 0, 0]]
        with pytest.raises(ApplicationError, match="locked"):
            application.sql("pragma journal_mode=delete")
    assert not database.others_connected()


def test_closing_leaves_the_log_to_its_owner(path: Path, database: Database) -> None:
    """A plain close never checkpoints and never removes anything."""
    with Application(path) as application:
        application.sql("insert into t values(1)")
    before = path.read_bytes() if not database.is_open else state_of(database.database_fd)
    size = database.wal_bytes
    database.close()
    database.close()
    assert Path(f"{path}-wal").stat().st_size == size > 0
    number = os.open(path, os.O_RDONLY)
    assert state_of(number) == before
    os.close(number)


def let_go(database: Database) -> DetachedState:
    """Detach at the present tip; the file must have been quiet for a moment."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        state = database.detach(read_header_bytes(database.shm_fd))
        if state is not None:
            return state
    raise AssertionError("the database could not be detached")


def test_detaching_removes_the_log_as_the_last_close_does(path: Path, database: Database) -> None:
    """Everything is in the file, -wal and -shm are gone, the file is as the state says (P5)."""
    with Application(path) as application:
        application.sql("insert into t values(1)")
    state = let_go(database)
    assert not database.is_open
    assert list(path.parent.iterdir()) == [path]
    number = os.open(path, os.O_RDONLY)
    assert state_of(number) == state
    os.close(number)
    assert DetachedState.decode(state.encode()) == state
    connection = sqlite3.connect(path)
    assert connection.execute("select * from t").fetchall() == [(1,)]
    connection.close()
    with pytest.raises(CorruptionError):
        DetachedState.decode(state.encode()[:-1])


def test_detaching_waits_while_somebody_is_there(path: Path, database: Database) -> None:
    """An open connection, or a commit that was not captured: None, and still attached."""
    before = read_header_bytes(database.shm_fd)
    with Application(path) as application:
        application.sql("select * from t")
        assert database.detach(before) is None
        application.sql("insert into t values(1)")
    assert database.detach(before) is None
    assert database.is_open
    let_go(database)


def test_a_file_written_a_moment_ago_is_not_detached(path: Path, database: Database) -> None:
    """Within one tick of the clock a later write would not show in the file's times."""
    with Application(path) as application:
        application.sql("insert into t values(1)")
    os.utime(path)
    assert database.detach(read_header_bytes(database.shm_fd)) is None


@pytest.mark.parametrize("how", ["rename", "delete", "wal"])
def test_a_replaced_file_is_never_checkpointed(path: Path, database: Database, how: str) -> None:
    """The 20 rows of e25b: our checkpoint would have put them into the old inode (P5)."""
    with Application(path) as application:
        application.sql("insert into t values(1)")
    old = os.pread(database.database_fd, 1 << 20, 0)
    if how == "rename":
        other = path.with_name("other.db")
        shutil.copy(path, path.with_name("copy.db"))
        path.with_name("copy.db").rename(other)
        other.rename(path)
    elif how == "delete":
        path.unlink()
    else:
        Path(f"{path}-wal").unlink()
    assert database.why_foreign() is not None
    with pytest.raises(DatabaseReplaced, match=r"replaced|deleted"):
        database.checkpoint(database.connections[0])
    assert os.pread(database.database_fd, 1 << 20, 0) == old
    with pytest.raises(DatabaseReplaced):
        database.detach(read_header_bytes(database.shm_fd))
    assert not database.is_open


def test_stop_replace_start_works_after_a_detach(path: Path, database: Database) -> None:
    """The operator's routine of P5, with basenet there all the time."""
    with Application(path) as application:
        application.sql("insert into t values('old')")
    let_go(database)
    fresh = path.with_name("fresh.db")
    connection = sqlite3.connect(fresh, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table u(x)")
    connection.close()
    fresh.rename(path)
    with Application(path) as application:
        application.sql("insert into u values('new')")
        assert application.sql("pragma integrity_check") == [["ok"]]
        assert application.sql("select * from u") == [["new"]]
