"""``basenet query``: rows of a past moment in three forms, and what it refuses."""

import csv
import io
import json
import os
import sqlite3
from pathlib import Path

import pytest

from basenet.cli.main import run
from basenet.keys.trust import format_public
from tests.archive.builder import Archive
from tests.archive.recorder import Recorder, write
from tests.fakes.chain import signer

ROWS = 3000


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in an empty directory, with an empty environment and temporary files of our own."""
    for name in [name for name in os.environ if name.startswith("BASE_")]:
        monkeypatch.delenv(name)
    for name in ("here", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "here")
    keys = tmp_path / "their.keys"
    keys.write_text(f"{format_public(signer(1).public)} node\n")
    monkeypatch.setenv("BASE_TRUSTED_KEYS", str(keys))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return an archive: a page set at seq 1; 2 changes rows; 3 makes a table and deletes."""
    recorder = Recorder(tmp_path / "source.db")
    recorder.run("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, x)")
    recorder.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO t SELECT i, printf('name %d', i), hex(randomblob(100)) FROM n",
        (ROWS,),
    )
    recorder.begin()
    recorder.run("UPDATE t SET name = 'new' WHERE id % 1000 = 7")
    recorder.commit()
    recorder.run("CREATE TABLE u(a, b)")
    recorder.run("INSERT INTO u VALUES (1, x'00ff'), (NULL, 1e999), ('a\x1b[2J', 'ü')")
    recorder.run("DELETE FROM t WHERE id = 8")
    recorder.commit()
    made = Archive()
    made.put_logs(recorder.history, 2)
    made.put_set(recorder.history, 1)
    made.put_tip(recorder.history)
    return write(made, tmp_path / "archive")


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["query", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


Capsys = pytest.CaptureFixture[str]


def test_a_table_of_each_moment(archive: Path, capsys: Capsys) -> None:
    """The same row as it was before and after a commit."""
    statement = "SELECT id, name FROM t WHERE id = 7"
    code, out, err = ask(capsys, str(archive), statement, "--to-seq", "1")
    assert (code, out, err) == (0, "id  name\n7   name 7\n", "")
    for wish in (["--to-seq", "2"], []):
        assert ask(capsys, str(archive), statement, *wish)[1] == "id  name\n7   new\n"
    code, out, _ = ask(capsys, str(archive), "SELECT count(*) n FROM t", "--to-seq", "2")
    assert (code, out) == (0, f"n\n{ROWS}\n")


def test_values_of_every_kind(archive: Path, capsys: Capsys) -> None:
    """A terminal gets no control characters; CSV and JSON are read by their own parsers."""
    statement = "SELECT a, b FROM u"
    _, out, _ = ask(capsys, str(archive), statement)
    assert out == "a         b\n1         x'00ff'\nNULL      inf\na\\x1b[2J  ü\n"
    _, out, _ = ask(capsys, str(archive), statement, "--format", "csv")
    rows = list(csv.reader(io.StringIO(out)))
    assert rows == [["a", "b"], ["1", "00ff"], ["", "inf"], ["a\x1b[2J", "ü"]]
    for form in (["--json"], ["--format", "json"]):
        _, out, _ = ask(capsys, str(archive), statement, *form)
        document = json.loads(out)
        assert document["columns"] == ["a", "b"]
        assert document["rows"] == [[1, "00ff"], [None, "inf"], ["a\x1b[2J", "ü"]]
        assert document["seq"] == 3
        assert 0 < document["fetched_bytes"] < 2 * document["database_bytes"]


def test_a_line_end_of_any_kind_stays_inside_its_field(archive: Path, capsys: Capsys) -> None:
    """A lone CR ends a line for readers of CSV, so it is quoted like any other line end."""
    statement = "SELECT 'a' || char(13) || 'b' AS x, 1 UNION ALL SELECT char(13, 10), 2"
    _, out, _ = ask(capsys, str(archive), statement, "--format", "csv")
    rows = list(csv.reader(io.StringIO(out, newline="")))
    assert rows == [["x", "1"], ["a\rb", "1"], ["\r\n", "2"]]


def test_limits(archive: Path, capsys: Capsys) -> None:
    """A table is cut and says so; what was asked for is given."""
    statement = "SELECT id FROM t ORDER BY id"
    _, out, err = ask(capsys, str(archive), statement, "--to-seq", "1")
    assert len(out.splitlines()) == 1001
    assert "the first 1000 rows" in err
    for form in ("table", "csv"):
        _, out, err = ask(capsys, str(archive), statement, "--limit", "3", "--format", form)
        assert out.splitlines() == ["id", "1", "2", "3"]
        assert err == ""
    _, out, _ = ask(capsys, str(archive), statement, "--limit", "0", "--json")
    assert json.loads(out)["rows"] == []
    _, out, _ = ask(capsys, str(archive), statement, "--format", "csv", "--to-seq", "2")
    assert len(out.splitlines()) == ROWS + 1


def test_the_cost_is_said(archive: Path, capsys: Capsys) -> None:
    """On standard error, so that the rows can be piped."""
    _, out, err = ask(capsys, str(archive), "SELECT 1", "--verbose", "--to-seq", "2")
    assert out == "1\n1\n"
    assert "seq 2, captured 2023-11-14T22:13:" in err
    assert " reads, of a database of " in err


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("DELETE FROM t", "can only be read"),
        ("CREATE TABLE v(x)", "can only be read"),
        ("PRAGMA user_version = 3", "can only be read"),
        ("VACUUM INTO 'other.db'", "can only be read"),
        ("ATTACH 'other.db' AS other", "can only be read"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("SELECT nobody FROM t", "no such column: nobody"),
        ("SELEC 1", "syntax error"),
        ("SELECT load_extension('x')", "refuses the statement"),
        ("SELECT CAST(x'ff' AS TEXT)", "no UTF-8"),
        ("", "no statement"),
    ],
)
def test_what_is_refused(archive: Path, statement: str, sentence: str, capsys: Capsys) -> None:
    """One sentence, the code for usage, and no file anywhere."""
    code, _, err = ask(capsys, str(archive), statement)
    assert code == 2
    assert sentence in err
    assert list(Path.cwd().iterdir()) == []


def test_moments_that_are_not_there(archive: Path, capsys: Capsys) -> None:
    """The sentences of a restore."""
    code, _, err = ask(capsys, str(archive), "SELECT 1", "--to-seq", "9")
    assert (code, "seq 9 was asked for" in err) == (3, True)
    code, _, err = ask(capsys, str(archive), "SELECT 1", "--to-time", "2001-01-01T00:00:00Z")
    assert (code, "nothing that was captured at or before" in err) == (3, True)
    code, _, err = ask(capsys, str(archive), "SELECT 1", "--shard", "other")
    assert (code, "no shard 'other'" in err) == (3, True)
    both = ["--to-seq", "1", "--to-time", "2001-01-01T00:00:00Z"]
    assert ask(capsys, str(archive), "SELECT 1", *both)[0] == 2
    assert ask(capsys, str(archive), "SELECT 1", "more", "again")[0] == 2
    assert ask(capsys)[0] == 2


def test_a_part_that_was_changed_ends_the_statement(archive: Path, capsys: Capsys) -> None:
    """The error is ours, with the object's name, not SQLite's failed read."""
    for part in archive.rglob("*.pg"):
        data = part.read_bytes()
        part.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    code, _, err = ask(capsys, str(archive), "SELECT sum(length(x)) FROM t", "--to-seq", "1")
    assert code == 1
    assert ".pg: " in err


def test_sorting_and_every_index_agree_with_a_restore(
    archive: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """A big sort makes temporary files; integrity_check reads every page."""
    assert run(["restore", str(archive), str(tmp_path / "r.db"), "--to-seq", "2"]) == 0
    statement = "SELECT * FROM t ORDER BY x DESC"
    with sqlite3.connect(tmp_path / "r.db") as connection:
        expected = [[str(value) for value in row] for row in connection.execute(statement)]
    capsys.readouterr()
    _, out, _ = ask(capsys, str(archive), statement, "--to-seq", "2", "--format", "csv")
    assert list(csv.reader(io.StringIO(out)))[1:] == expected
    _, out, _ = ask(capsys, str(archive), "PRAGMA integrity_check", "--to-seq", "2")
    assert out == "integrity_check\nok\n"
