from pathlib import Path

import pytest

from basenet.errors import ConflictError, NotFoundError, UnavailableError
from basenet.sqlite.rawcopy import copy_database
from tests.fakes.lost import rows_of, run_sql
from tests.sqlite.application import Application


def test_a_database_in_use_is_copied_with_its_log(tmp_path: Path) -> None:
    """What is committed is in the copy; what is not is not; the original goes on untouched."""
    path, copy = tmp_path / "app.db", tmp_path / "copy.db"
    with Application(path) as app:
        app.sql("pragma journal_mode=wal", "create table t (x)", "insert into t values (1)")
        app.sql("pragma wal_checkpoint", "insert into t values (2)")
        app.sql("begin", "insert into t values (3)")
        before = {name.name: name.read_bytes() for name in tmp_path.glob("app.db*")}
        copy_database(path, copy)
        assert sorted(item.name for item in tmp_path.iterdir()) == [
            "app.db",
            "app.db-shm",
            "app.db-wal",
            "copy.db",
        ]
        assert path.read_bytes() == before["app.db"]
        assert (tmp_path / "app.db-wal").read_bytes() == before["app.db-wal"]
        app.sql("commit")
        assert app.sql("select count(*) from t") == [[3]]
    assert rows_of(copy, "select x from t order by x") == [(1,), (2,)]


def test_a_log_that_nobody_has_open_stays_as_it_is(tmp_path: Path) -> None:
    """To look at a database is no reason to empty its log, even for the last one to leave."""
    path, copy = tmp_path / "app.db", tmp_path / "copy.db"
    app = Application(path)
    app.sql("pragma journal_mode=wal", "create table t (x)", "insert into t values (1)")
    app.kill()
    log = (tmp_path / "app.db-wal").read_bytes()
    assert log
    copy_database(path, copy)
    assert (tmp_path / "app.db-wal").read_bytes() == log
    assert rows_of(copy, "select x from t") == [(1,)]


def test_a_file_without_a_log_is_copied_as_it_is(tmp_path: Path) -> None:
    """Byte for byte, and nothing is left beside it."""
    path, copy = tmp_path / "app.db", tmp_path / "copy.db"
    run_sql(path, "pragma journal_mode=wal", "create table t (x)")
    copy_database(path, copy)
    assert copy.read_bytes() == path.read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["app.db", "copy.db"]


def test_what_cannot_be_copied_is_said(tmp_path: Path) -> None:
    """No file, a hot rollback journal, a place that is taken."""
    with pytest.raises(NotFoundError):
        copy_database(tmp_path / "none.db", tmp_path / "copy.db")
    path = tmp_path / "app.db"
    run_sql(path, "create table t (x)")
    (tmp_path / "copy.db").write_bytes(b"")
    with pytest.raises(UnavailableError):
        copy_database(path, tmp_path / "copy.db")
    (tmp_path / "app.db-journal").write_bytes(b"x")
    with pytest.raises(ConflictError, match="rollback journal"):
        copy_database(path, tmp_path / "other.db")
