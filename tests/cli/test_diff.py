"""``basenet diff``: what changed between two moments, in tables, rows and statements."""

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

Capsys = pytest.CaptureFixture[str]


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
    """Return an archive of three moments: adopted, rows changed, tables dropped and made."""
    recorder = Recorder(tmp_path / "source.db")
    recorder.run("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT)")
    recorder.run("CREATE TABLE old(x)")
    recorder.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
        "INSERT INTO t SELECT i, printf('name %d', i) FROM n"
    )
    recorder.begin()
    recorder.run("UPDATE t SET name = 'it''s new' WHERE id IN (7, 1007)")
    recorder.run("DELETE FROM t WHERE id = 8")
    recorder.run("INSERT INTO t VALUES (3000, NULL), (3001, 'x'), (3002, 'y')")
    recorder.commit()
    recorder.run("DROP TABLE old")
    recorder.run("CREATE TABLE u(a)")
    recorder.run("INSERT INTO u VALUES (1)")
    recorder.commit()
    made = Archive()
    made.put_logs(recorder.history, 2)
    made.put_set(recorder.history, 1)
    made.put_tip(recorder.history)
    return write(made, tmp_path / "archive")


def ask(capsys: Capsys, *arguments: str) -> tuple[int, str, str]:
    code = run(["diff", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_tables_and_numbers_of_rows(archive: Path, tmp_path: Path, capsys: Capsys) -> None:
    """By table; temporary files are gone afterwards."""
    code, out, err = ask(capsys, str(archive), "--from-seq", "1", "--to-seq", "2")
    assert (code, err) == (0, "")
    assert out.splitlines()[2:] == [
        "TABLE  INSERTED  UPDATED  DELETED",
        "t      3         2        1",
    ]
    assert out.startswith("from  seq 1, 2023-11-14T22:13:")
    _, out, _ = ask(capsys, str(archive), "--from-seq", "2")
    assert out.splitlines()[2:4] == ["dropped table old", "created table u"]
    assert "u      1         0        0" in out
    _, out, _ = ask(capsys, str(archive), "--from-seq", "2", "--to-seq", "2")
    assert "no row" in out
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_statements_lead_from_one_to_the_other(
    archive: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """Run on the restored first state they give the second."""
    _, out, _ = ask(capsys, str(archive), "--from-seq", "1", "--sql")
    for seq in (1, 3):
        assert (
            run(["restore", str(archive), str(tmp_path / f"{seq}.db"), "--to-seq", f"{seq}"]) == 0
        )
    dumps = []
    for seq, script in ((1, out), (3, "")):
        connection = sqlite3.connect(tmp_path / f"{seq}.db")
        connection.executescript(script)
        dumps.append(sorted(connection.iterdump()))
        connection.close()
    assert dumps[0] == dumps[1]


def test_json_and_its_bound(archive: Path, capsys: Capsys) -> None:
    """Statements only when they are asked for, and not more than that."""
    _, out, _ = ask(capsys, str(archive), "--from-seq", "1", "--json")
    document = json.loads(out)
    assert (document["from"]["seq"], document["to"]["seq"]) == (1, 3)
    assert document["tables"][0] == {
        "table": "t",
        "key": ["id"],
        "inserted": 3,
        "updated": 2,
        "deleted": 1,
    }
    assert {"change": "dropped", "kind": "table", "name": "old"} in document["schema"]
    assert "statements" not in document
    bound = ["--json", "--sql", "--limit", "2"]
    document = json.loads(ask(capsys, str(archive), "--from-seq", "1", *bound)[1])
    assert len(document["statements"]) == 2
    assert document["truncated"] is True
    _, out, err = ask(capsys, str(archive), "--from-seq", "1", "--sql", "--limit", "2")
    assert len(out.splitlines()) == 2
    assert "the first 2 statements" in err


def test_what_is_refused(archive: Path, capsys: Capsys) -> None:
    """No beginning, two beginnings, the wrong order, a moment that is not there."""
    assert ask(capsys, str(archive))[0] == 2
    two = ["--from-seq", "1", "--from-time", "2023-11-14T22:13:22Z"]
    assert ask(capsys, str(archive), *two)[0] == 2
    code, _, err = ask(capsys, str(archive), "--from-seq", "3", "--to-seq", "1")
    assert (code, "lies after the second" in err) == (2, True)
    assert ask(capsys, str(archive), "--from-seq", "9")[0] == 3
