import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from basenet.sqlite.rowdiff import RowDiff
from tests.fakes.lost import contents_of, run_sql

SCHEMA = """
create table note (id integer primary key, text, weight real, data blob);
create table tag (name text collate nocase, lang text, uses int, primary key (name, lang));
create table pair (a text, b text, primary key (a, b)) without rowid;
create table plain (x, y);
create table item (id integer primary key autoincrement, label text unique);
create table half (id integer primary key, a int, twice int generated always as (a * 2) stored);
create index by_text on note (text);
create view heavy as select * from note where weight > 1;
insert into note values (1, 'one', 1.5, x'00ff'), (2, 'two', null, null), (3, 'three', 0.1, 'x');
insert into tag values ('Red', 'en', 1), ('rot', 'de', 2);
insert into pair values ('a', 'b'), ('c', 'd');
insert into plain values (1, 2), (1, 2), (null, 'z');
insert into item (label) values ('first'), ('second');
insert into half (id, a) values (1, 10);
"""
CHANGES = [
    "insert into note values (9, 'nine''s', 1e-7, x'')",
    "update note set text = 'TWO', weight = 3 where id = 2; delete from note where id = 1",
    "update note set data = cast('x' as blob) where id = 3",
    "update note set weight = 1.5000000000000002 where id = 1",
    "insert into note (id, text) values (10, 'a' || char(0) || 'b' || char(10) || 'ü')",
    "update tag set name = 'RED', uses = 5 where name = 'red'",
    "insert into tag values ('red', 'fr', 9)",
    "delete from pair where a = 'a'; insert into pair values ('e', 'f')",
    "insert into plain values (7, 8); delete from plain where rowid = 1",
    "update plain set y = 'zz' where x is null",
    "insert into item (label) values ('third'); delete from item where id = 1",
    "update half set a = 11; insert into half (id, a) values (2, 5)",
    "create table fresh (k text primary key, v); insert into fresh values ('a', 1), ('b', null)",
    "drop table pair",
    "drop index by_text; create index by_text on note (text, weight); drop view heavy",
    "insert into note values (5, 9223372036854775807, -0.5, 12)",
    "insert into note values (6, 9e999, 1, 1)",
]


def make(tmp_path: Path, change: str, schema: str = SCHEMA) -> tuple[Path, Path]:
    kept, lost = tmp_path / "kept.db", tmp_path / "lost.db"
    run_sql(kept, schema)
    lost.write_bytes(kept.read_bytes())
    run_sql(lost, change)
    return kept, lost


def apply(path: Path, statements: list[str]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript("begin;" + "\n".join(statements) + "\ncommit;")


@pytest.mark.parametrize("change", [*CHANGES, "; ".join(CHANGES[:13])])
def test_the_statements_lead_from_the_kept_to_the_lost_state(tmp_path: Path, change: str) -> None:
    """Run on the kept state they make every row and the schema of the lost one, types included."""
    kept, lost = make(tmp_path, change)
    with RowDiff(kept, lost) as diff:
        assert diff.untold == {}
        statements = list(diff.statements())
    assert statements
    apply(kept, statements)
    assert contents_of(kept) == contents_of(lost)
    types = "select id, typeof(text), typeof(weight), typeof(data), hex(data) from note"
    with closing(sqlite3.connect(kept)) as one, closing(sqlite3.connect(lost)) as other:
        assert one.execute(types).fetchall() == other.execute(types).fetchall()


def test_equal_states_need_no_statement(tmp_path: Path) -> None:
    """Nothing differs, so nothing is said, of rows and of tables."""
    kept, lost = make(tmp_path, "select 1")
    with RowDiff(kept, lost) as diff:
        assert (diff.tables(), list(diff.statements()), diff.untold) == ([], [], {})


def test_rows_are_counted_by_table_and_kind(tmp_path: Path) -> None:
    """The count is what `basenet orphans show` tells, with the key by which a row is known."""
    kept, lost = make(tmp_path, CHANGES[1] + "; insert into plain values (0, 0)")
    with RowDiff(kept, lost) as diff:
        found = {table.table: table for table in diff.tables()}
    assert set(found) == {"note", "plain"}
    note = found["note"]
    assert (note.inserted, note.updated, note.deleted, note.key) == (0, 1, 1, ("id",))
    assert (found["plain"].inserted, found["plain"].key) == (1, ("rowid",))


def test_a_row_that_changed_since_is_left_alone(tmp_path: Path) -> None:
    """The present history's row wins over an UPDATE and a DELETE of the lost one."""
    kept, lost = make(tmp_path, CHANGES[1])
    with RowDiff(kept, lost) as diff:
        statements = list(diff.statements())
    run_sql(kept, "update note set text = 'present'")
    apply(kept, statements)
    with closing(sqlite3.connect(kept)) as database:
        rows = database.execute("select id, text from note order by id").fetchall()
    assert rows == [(1, "present"), (2, "present"), (3, "present")]


def test_a_key_that_was_given_away_since_is_an_error(tmp_path: Path) -> None:
    """An INSERT never replaces: the script ends there, and its transaction with it."""
    kept, lost = make(tmp_path, "insert into note (id, text) values (9, 'lost')")
    with RowDiff(kept, lost) as diff:
        statements = list(diff.statements())
    run_sql(kept, "insert into note (id, text) values (9, 'present')")
    with pytest.raises(sqlite3.IntegrityError):
        apply(kept, statements)
    assert ("present",) in _texts(kept)
    assert ("lost",) not in _texts(kept)


def _texts(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("select text from note").fetchall()


@pytest.mark.parametrize(
    ("schema", "change", "table", "why"),
    [
        ("create table t (a)", "alter table t add column b", "t", "altered"),
        (
            "create table t (rowid, _rowid_, oid)",
            "insert into t values (1, 2, 3)",
            "t",
            "hide the rowid",
        ),
        (
            "create virtual table t using fts5(text); insert into t values ('one')",
            "insert into t values ('two')",
            "t",
            "virtual",
        ),
        ("select 1", "create virtual table t using fts5(text)", "t", "virtual"),
    ],
)
def test_a_table_that_cannot_be_told_is_named(
    tmp_path: Path, schema: str, change: str, table: str, why: str
) -> None:
    """Never guessed: it is named with the reason, and no statement speaks of it."""
    kept, lost = make(tmp_path, change, SCHEMA + ";" + schema)
    with RowDiff(kept, lost) as diff:
        assert list(diff.untold) == [table]
        assert why in diff.untold[table]
        assert not [line for line in diff.statements([table]) if '"t' in line or " t " in line]


def test_a_virtual_table_that_did_not_change_is_no_obstacle(tmp_path: Path) -> None:
    """An application with a search index can still redo its rows elsewhere."""
    schema = SCHEMA + "create virtual table t using fts5(text); insert into t values ('one');"
    kept, lost = make(tmp_path, CHANGES[0], schema)
    with RowDiff(kept, lost) as diff:
        assert diff.untold == {}
        statements = list(diff.statements())
    assert len(statements) == 1
    assert statements[0].startswith('INSERT INTO "note"')


def test_a_key_with_a_null_in_it_is_no_key(tmp_path: Path) -> None:
    """SQLite allows them in a declared key; such rows are known by their rowid."""
    schema = SCHEMA + "create table t (k text primary key, v); insert into t values (null, 1);"
    kept, lost = make(tmp_path, "insert into t values (null, 2)", schema)
    with RowDiff(kept, lost) as diff:
        (found,) = diff.tables()
        statements = list(diff.statements())
    assert (found.key, found.inserted) == (("rowid",), 1)
    apply(kept, statements)
    assert contents_of(kept) == contents_of(lost)


def test_a_table_that_is_left_out_is_not_spoken_of(tmp_path: Path) -> None:
    """Neither its rows nor its schema."""
    kept, lost = make(tmp_path, f"{CHANGES[0]}; {CHANGES[12]}")
    with RowDiff(kept, lost) as diff:
        statements = list(diff.statements(["fresh"]))
    assert len(statements) == 1
    assert "note" in statements[0]


@pytest.mark.parametrize("changed", ["own", "note", "fresh"])
def test_a_table_that_only_the_application_can_read_is_named_and_the_others_are_told(
    tmp_path: Path, changed: str
) -> None:
    """A collation or a function of the application's own: here SQLite has neither."""
    kept, lost = tmp_path / "kept.db", tmp_path / "lost.db"
    own = (
        "create table own (name text primary key collate theirs, n);"
        "create table made (a, b generated always as (theirs(a)) virtual unique);"
    )
    change = {
        "own": "insert into own values ('b', 2)",
        "note": "delete from note where id = 1",
        "fresh": "create table fresh (name text primary key collate theirs)",
    }
    for path, sql in ((kept, SCHEMA + own), (lost, SCHEMA + own + change[changed])):
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.create_collation("theirs", lambda a, b: (a > b) - (a < b))
            database.create_function("theirs", 1, str, deterministic=True)
            database.executescript(sql)
    with RowDiff(kept, lost) as diff:
        assert list(diff.untold) == ([] if changed == "note" else [changed])
        assert [table.table for table in diff.tables()] == (["note"] if changed == "note" else [])
        assert all("theirs" in reason for reason in diff.untold.values())
        list(diff.statements(diff.untold))
