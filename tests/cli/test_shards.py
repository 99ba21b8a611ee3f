import json
from pathlib import Path

import pytest

from basenet.cli.main import run
from basenet.control.reset import Keep, ResetCommand
from basenet.control.surface import ShardState
from basenet.errors import ConflictError
from tests.fakes.served import served_in_thread
from tests.fakes.surface import LINEAGE, FakeSurface, make_shard
from tests.sqlite.application import Application
from tests.sqlite.test_page1 import set_mark


@pytest.fixture
def surface() -> FakeSurface:
    waiting = make_shard("new", state=ShardState.WAITING, lineage=None, db_pages=0, page_size=0)
    return FakeSurface(make_shard("app"), waiting)


def test_shards_are_listed_with_their_files(
    surface: FakeSurface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Id, state, size, lineage and path; what does not exist yet is a dash."""
    with served_in_thread(surface, tmp_path):
        assert run(["shards", "--data-dir", str(tmp_path)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["SHARD", "STATE", "SIZE", "LINEAGE", "PATH"],
        ["app", "capturing", "400", "KiB", LINEAGE, "/data/app.db"],
        ["new", "waiting", "0", "B", "-", "/data/new.db"],
    ]


def test_json_lists_the_same(
    surface: FakeSurface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One document with exact sizes."""
    with served_in_thread(surface, tmp_path):
        assert run(["shards", "--json", "--data-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == [
        {
            "shard": "app",
            "path": "/data/app.db",
            "state": "capturing",
            "lineage": LINEAGE,
            "size_bytes": 409_600,
        },
        {
            "shard": "new",
            "path": "/data/new.db",
            "state": "waiting",
            "lineage": None,
            "size_bytes": 0,
        },
    ]


def test_a_node_without_shards_lists_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The headings alone, and no error."""
    with served_in_thread(FakeSurface(), tmp_path):
        assert run(["shards", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["SHARD", "STATE", "SIZE", "LINEAGE", "PATH"]


def test_a_reset_says_what_was_done(
    surface: FakeSurface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon's sentence; with --json the decision, too. What it refuses ends with 4."""
    place = ["--data-dir", str(tmp_path)]
    with served_in_thread(surface, tmp_path):
        assert run(["shards", "reset", "app", "--keep", "chain", *place]) == 0
        assert capsys.readouterr().out == "chain counts for app\n"
        assert run(["shards", "reset", "app", "--keep", "file", "--force", "--json", *place]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "shard": "app",
            "keep": "file",
            "done": "file counts for app",
        }
        surface.command_error = ConflictError("there is nothing to decide")
        assert run(["shards", "reset", "app", "--keep", "file", *place]) == 4
        assert run(["shards", "reset", "gone", "--keep", "file", *place]) == 3
    assert surface.resets == [
        ("app", ResetCommand(keep=Keep.CHAIN)),
        ("app", ResetCommand(keep=Keep.FILE, is_forced=True)),
        ("app", ResetCommand(keep=Keep.FILE)),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["reset", "app"],
        ["reset", "--keep", "chain"],
        ["reset", "app", "--keep", "both"],
        ["--json", "reset", "app", "--keep", "chain"],
    ],
)
def test_a_reset_that_is_half_said_is_refused(
    surface: FakeSurface, tmp_path: Path, words: list[str]
) -> None:
    """With 2, and nothing is asked of the daemon."""
    with served_in_thread(surface, tmp_path):
        assert run(["shards", *words]) == 2
    assert surface.resets == []


def test_a_file_that_a_cluster_left_is_made_writable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No daemon is asked; a second time there is nothing to do."""
    path = tmp_path / "app.db"
    with Application(path) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (v)")
    set_mark(path)
    assert run(["shards", "writable", str(path)]) == 0
    assert f"{path} is writable" in capsys.readouterr().out
    with Application(path) as app:
        app.sql("INSERT INTO t VALUES (1)")
    assert run(["shards", "writable", str(path)]) == 0
    assert "was not marked" in capsys.readouterr().out
    assert run(["shards", "writable", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(path), "changed": False}
    assert run(["shards", "writable", str(tmp_path / "none.db")]) != 0
    assert "does not exist" in capsys.readouterr().err
