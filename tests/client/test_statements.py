import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from basenet.client.statements import get_first_word, has_committed, is_reader


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("SELECT 1", "select"),
        ("  \n\t; insert into t values (1)", "insert"),
        ("-- a comment\n/* and\nanother */ Update t set a = 1", "update"),
        ("--only a comment", ""),
        ("/* never closed", ""),
        ("", ""),
        ("(select 1)", ""),
    ],
)
def test_the_first_word_is_found_behind_comments(sql: str, word: str) -> None:
    """As SQLite's own tokenizer passes over them."""
    assert get_first_word(sql) == word


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        ("select * from t", True),
        ("with x as (select 1) select * from x", True),
        ("pragma table_info(t)", True),
        ("pragma busy_timeout = 100", True),
        ("pragma main.user_version = 5", False),
        ("PRAGMA user_version=5", False),
        ("create table t (a)", False),
        ("insert into t values (1)", False),
        ("vacuum", False),
        ("what is this", False),
    ],
)
def test_a_statement_that_is_not_known_to_read_is_taken_to_write(sql: str, reads: bool) -> None:  # noqa: FBT001
    """To wait without need costs a moment; not to wait would be a lie."""
    assert is_reader(sql) is reads


STATEMENTS = [
    "create table if not exists t (a)",
    "insert into t values (1)",
    "insert into t values (2) returning a",
    "with x(n) as (values (7)) insert into t select n from x",
    "replace into t values (3)",
    "update t set a = 9",
    "delete from t where a = 9",
    "pragma user_version = 4",
    "alter table t add column b",
    "create index i on t (a)",
    "analyze",
    "vacuum",
    "select * from t",
    "pragma journal_mode",
    "explain delete from t",
    "savepoint s",
    "insert into t (a) values (5)",
    "release s",
    "begin",
    "insert into t (a) values (6)",
    "rollback",
    "begin immediate",
    "insert into t (a) values (8)",
    "commit",
    "drop table t",
]


def test_no_commit_of_sqlite_is_overlooked(tmp_path: Path) -> None:
    """Whenever the file's content changed, by SQLite's own word, it is said to have committed."""
    path = tmp_path / "a.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as database,
        closing(sqlite3.connect(path, isolation_level=None)) as observer,
    ):
        version = observer.execute("pragma data_version").fetchone()
        silent = []
        for sql in STATEMENTS:
            before = database.in_transaction, database.total_changes
            database.execute(sql).fetchall()
            said = has_committed(
                sql,
                was_open=before[0],
                is_open=database.in_transaction,
                has_changed_rows=database.total_changes != before[1],
            )
            now = observer.execute("pragma data_version").fetchone()
            if now != version:
                assert said, sql
            elif not said:
                silent.append(sql)
            version = now
    assert {"select * from t", "rollback", "begin", "savepoint s"} <= set(silent)
