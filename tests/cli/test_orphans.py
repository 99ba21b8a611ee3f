import contextlib
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from basenet.cli.main import run
from basenet.daemon.cluster.orphans import Reason
from basenet.journal.journal import Journal
from basenet.journal.records import OrphanRow
from basenet.keys.trust import format_public
from basenet.units import LocalNumber, Seq, TimestampNs
from tests.archive.builder import Archive
from tests.fakes.lost import LostHistory, contents_of, rows_of, run_sql

SHARED = (
    "create table note (id integer primary key, text)",
    "insert into note values (1, 'a'), (2, 'b')",
)
LOST = ("insert into note values (3, 'lost')", "update note set text = 'B' where id = 2")


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LostHistory:
    made = LostHistory(tmp_path, SHARED, LOST)
    monkeypatch.setenv("BASE_DATA_DIR", str(made.data_dir))
    return made


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """Run the command with --json and return its document."""
    capsys.readouterr()
    assert run(["orphans", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_bundles_are_listed(history: LostHistory, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each for people, a document for programs, and it needs no daemon."""
    history.write()
    history.write(created_ns=TimestampNs(1), reason=Reason.FORCED)
    assert run(["orphans", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ID", "WHEN", "REASON", "FRAMES", "COMMITS", "PAGES", "SIZE"]
    assert lines[1].split()[:3] == ["app/1-1", "1970-01-01T00:00:00.000Z", "was"]
    assert "deposed" in lines[2]
    assert "2..3" in lines[2]
    listed = ask(capsys, "list")["orphans"]
    assert [bundle["id"] for bundle in listed] == ["app/1-1", "app/1795000000000000000-1"]
    assert listed[0]["commits"] == 2
    assert ask(capsys, "list", "--shard", "other") == {
        "orphans": [],
        "damaged": {},
        "missing": {},
        "copies": {},
    }


def test_a_node_without_orphans_says_so(
    history: LostHistory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is the good news, and no failure."""
    assert run(["orphans", "list"]) == 0
    assert f"there are no orphan bundles in {history.data_dir}" in capsys.readouterr().err


def test_a_damaged_bundle_is_named_beside_the_others(
    history: LostHistory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and the others are listed all the same."""
    history.write()
    broken = history.write(created_ns=TimestampNs(1))
    data = bytearray(broken.read_bytes())
    data[200] ^= 1
    broken.write_bytes(data)
    document = ask(capsys, "list", code=1)
    assert len(document["orphans"]) == 1
    assert "signature" in document["damaged"]["app/1-1"]


@pytest.mark.parametrize("is_running", [True, False])
def test_a_bundle_whose_file_is_gone_is_missed(
    history: LostHistory,
    *,
    is_running: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The journal knows it; whether or not a daemon has that open, it is only read."""
    path = history.write()
    gone = history.write(created_ns=TimestampNs(1))
    with contextlib.ExitStack() as stack:
        journal = Journal(history.data_dir)
        for each in (path, gone):
            journal.add_orphan(row_of(history, each))
        if is_running:
            stack.callback(journal.close)
        else:
            journal.close()
        before = sorted(item.name for item in history.data_dir.iterdir())
        assert ask(capsys, "list")["missing"] == {}
        gone.unlink()
        document = ask(capsys, "list", "--shard", "app")
        assert list(document["missing"]) == ["app/1-1"]
        assert "2 commits" in document["missing"]["app/1-1"]
        assert len(document["orphans"]) == 1
        assert ask(capsys, "list", "--shard", "other")["missing"] == {}
        assert document["copies"] == {}
        assert run(["orphans", "list"]) == 0
        assert "! app/1-1: the journal knows" in capsys.readouterr().err
        assert sorted(item.name for item in history.data_dir.iterdir()) == before


def row_of(history: LostHistory, path: Path) -> OrphanRow:
    return OrphanRow(
        id=f"app/{path.stem}",
        shard=history.chain.shard,
        lineage=history.chain.lineage,
        path=str(path),
        kept_seq=history.kept_head.seq,
        first_local=LocalNumber(1),
        last_local=LocalNumber(2),
        commits=2,
        created_ns=TimestampNs(1),
        state="kept",
        reason="deposed",
    )


def test_a_bundle_is_shown(history: LostHistory, capsys: pytest.CaptureFixture[str]) -> None:
    """Reason, place, commits, pages, times; the tables only where they can be told."""
    history.write(unproposed_seq=Seq(3))
    assert run(["orphans", "show", "1795000000000000000-1"]) == 0
    said = capsys.readouterr().out
    assert "deposed: node-b became the writer" in said
    assert "never proposed  from seq 3" in said
    assert "is told with --base" in said
    document = ask(capsys, "show", "app/1795000000000000000-1", "--base", str(history.kept))
    assert document["tables"] == [
        {"table": "note", "key": ["id"], "inserted": 1, "updated": 1, "deleted": 0}
    ]
    assert [frame["proposed"] for frame in document["frames"]] == [True, False]


def test_a_bundle_becomes_the_database_that_was_lost(
    history: LostHistory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its base: every row and page; and nothing that exists is overwritten."""
    history.write()
    out = tmp_path / "out.db"
    words = ["1795000000000000000-1", str(out), "--base", str(history.kept)]
    assert ask(capsys, "export", *words)["seq"] == 3
    assert contents_of(out) == contents_of(history.lost)
    assert run(["orphans", "export", *words]) == 4
    assert "is not overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_bundle_alone_becomes_its_pages(
    history: LostHistory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a base there is no database to be made, but nothing is hidden."""
    history.write()
    out = tmp_path / "out.db"
    assert run(["orphans", "export", "1795000000000000000-1", str(out)]) == 0
    assert "in table pages" in capsys.readouterr().out
    pages = rows_of(out, "select seq, pgno, data from pages order by seq, pgno")
    assert [row[:2] for row in pages] == [(2, 2), (3, 2)]
    assert pages[1][2] == history.chain.pages[2]
    assert rows_of(out, "select seq, kind from frame") == [(2, "COMMIT"), (3, "COMMIT")]


def test_another_state_is_refused_as_a_base(
    history: LostHistory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4, one sentence that says what to give, and no file."""
    history.write()
    run_sql(history.kept, "insert into note values (9, 'of the other history')")
    out = tmp_path / "out.db"
    words = ["export", "1795000000000000000-1", str(out), "--base", str(history.kept)]
    assert run(["orphans", *words]) == 4
    assert "archive's URL" in capsys.readouterr().err
    assert not out.exists()


def test_the_statements_redo_what_was_lost(
    history: LostHistory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the present database, beside what happened since, and only where nothing else did."""
    history.write()
    script = tmp_path / "redo.sql"
    words = ["reapply", "1795000000000000000-1", "--base", str(history.kept)]
    assert run(["orphans", *words, "--sql", str(script)]) == 0
    assert "read it before you run it" in capsys.readouterr().out
    text = script.read_text()
    assert "no record of what the application did" in text
    assert script.stat().st_mode & 0o777 == 0o600
    present = tmp_path / "present.db"
    present.write_bytes(history.kept.read_bytes())
    run_sql(present, "insert into note values (7, 'since')")
    with closing(sqlite3.connect(present, isolation_level=None)) as database:
        database.executescript(text)
    rows = rows_of(present, "select id, text from note order by id")
    assert rows == [(1, "a"), (2, "B"), (3, "lost"), (7, "since")]
    assert run(["orphans", *words]) == 0
    assert capsys.readouterr().out == text
    assert len(ask(capsys, *words)["statements"]) == 2
    assert run(["orphans", *words, "--sql", str(script)]) == 4
    assert script.read_text() == text


def test_a_table_that_cannot_be_told_refuses_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence names it; told to leave it out, the rest is given and says so."""
    made = LostHistory(
        tmp_path, SHARED, (*LOST, "alter table note add column more", "create table t (x)")
    )
    monkeypatch.setenv("BASE_DATA_DIR", str(made.data_dir))
    made.write()
    words = ["orphans", "reapply", "1795000000000000000-1", "--base", str(made.kept)]
    assert run(words) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert "table note cannot be told by rows" in said.err
    assert said.err.count("\n") == 1
    assert run([*words, "--skip", "note"]) == 0
    said = capsys.readouterr()
    assert "Left out, as told: 'note'" in said.out
    assert "create table t (x);" in said.out.lower()
    assert "INSERT" not in said.out.split("BEGIN")[1]


def test_the_base_can_be_an_archive(history: LostHistory, tmp_path: Path) -> None:
    """It is restored to the place where the histories part, and proven like any base."""
    history.write()
    archive = Archive()
    archive.put_set(history.chain, 1)
    for name in archive.store.names():
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.store.objects[name].data)
    keys = history.data_dir / "trusted.keys"
    keys.write_text(f"{keys.read_text()}{format_public(history.chain.signer.public)}\n")
    out, url = tmp_path / "out.db", f"file://{tmp_path / 'archive'}"
    assert run(["orphans", "export", "1795000000000000000-1", str(out), "--base", url]) == 0
    assert contents_of(out) == contents_of(history.lost)


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["show", "nope"], 3, "basenet orphans list"),
        (["export", "nope", "out.db"], 3, "basenet orphans list"),
        (["reapply", "nope"], 2, "--base"),
        (["show", "1795000000000000000-1", "--base", "none.db"], 3, "none.db"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    history: LostHistory,
    words: list[str],
    code: int,
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the exit code of its kind."""
    history.write()
    assert run(["orphans", *words]) == code
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1


def test_without_a_key_nothing_is_believed(
    history: LostHistory, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle is not its own proof."""
    history.write()
    (history.data_dir / "trusted.keys").unlink()
    assert run(["orphans", "show", "1795000000000000000-1"]) == 2
    assert "--trusted-keys" in capsys.readouterr().err


def test_a_database_that_was_put_aside_as_a_whole_is_shown(
    history: LostHistory, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no bundle, and nothing is missing as long as the copy is there."""
    copy = history.data_dir / "app.db.before-0011"
    row = replace(row_of(history, copy), id="app/app.db.before-0011", commits=0)
    with closing(Journal(history.data_dir)) as journal:
        journal.add_orphan(row)
    copy.write_bytes(b"pages")
    assert ask(capsys, "list")["copies"] == {row.id: str(copy)}
    assert run(["orphans", "list"]) == 0
    shown = capsys.readouterr()
    assert str(copy) in shown.out + shown.err
    copy.unlink()
    assert list(ask(capsys, "list")["missing"]) == [row.id]
