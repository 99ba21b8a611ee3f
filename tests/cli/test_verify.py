"""``basenet verify``: its verdict, in words, as JSON and as an exit code."""

import json
import os
import time
from pathlib import Path

import pytest

from basenet.cli.main import run
from basenet.keys.trust import format_public
from tests.archive.builder import Archive, History
from tests.fakes.chain import signer


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a directory whose keys trust the writer."""
    for name in [name for name in os.environ if name.startswith("BASE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".basenet").mkdir()
    (tmp_path / ".basenet/trusted.keys").write_text(f"{format_public(signer(1).public)}\n")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    history = History()
    for _ in range(5):
        history.random_commit(grow=3)
    made = Archive()
    made.put_logs(history, 2)
    made.put_tip(history)
    for name, stored in made.store.objects.items():
        (tmp_path / "archive" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "archive" / name).write_bytes(stored.data)
    return tmp_path / "archive"


def test_a_sound_archive_ends_with_0(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says what can be restored."""
    assert run(["verify", str(archive)]) == 0
    out = capsys.readouterr().out
    assert "default/app: 4 objects" in out
    assert "restorable  1..6 of" in out
    assert ": sound (" in out


def test_a_problem_ends_with_1_and_names_the_object(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive may also come from the environment or an option."""
    log = next(archive.rglob("*3-*.lbn"))
    data = bytearray(log.read_bytes())
    data[100] ^= 4
    log.write_bytes(data)
    assert run(["verify", "--archive", str(archive)]) == 1
    out = capsys.readouterr().out
    assert f"PROBLEM     {log.relative_to(archive)}: " in out
    assert "1 problem (" in out
    monkeypatch.setenv("BASE_ARCHIVE", str(archive))
    assert run(["verify", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["sound"] is False
    shard = document["shards"][0]
    assert shard["problems"][0]["object"] == str(log.relative_to(archive))
    assert [(r["first_seq"], r["last_seq"]) for r in shard["restorable"]] == [(1, 2)]


def test_a_shard_that_is_not_there_is_not_found(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty answer would look like a sound archive."""
    assert run(["verify", str(archive), "--shard", "app"]) == 0
    assert run(["verify", str(archive), "--shard", "no"]) == 3
    assert run(["verify", str(archive), "--service", "no"]) == 3
    assert "holds no shard" in capsys.readouterr().err


def test_without_keys_nothing_is_judged(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that lies in the archive proves nothing about it."""
    (tmp_path / ".basenet/trusted.keys").unlink()
    assert run(["verify", str(archive)]) == 2
    assert "no trusted key is known" in capsys.readouterr().err


def test_the_writers_retention_can_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it may have deleted is no problem; with a longer one it is missing."""
    history = History(begin_ns=time.time_ns() - 3 * 24 * 3600 * 10**9)
    for _ in range(8):
        history.random_commit(grow=3)
    made = Archive()
    made.put_log(history, 1)
    made.put_set(history, 5)
    made.put_logs(history, 2, start=6)
    made.put_tip(history)
    for name, stored in made.store.objects.items():
        (tmp_path / "pruned" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pruned" / name).write_bytes(stored.data)
    assert run(["verify", str(tmp_path / "pruned"), "--retention", "2d"]) == 0
    assert "as retention leaves it" in capsys.readouterr().out
    assert run(["verify", str(tmp_path / "pruned")]) == 1
    assert "frames 2..5 are missing" in capsys.readouterr().out
    assert run(["verify", str(tmp_path / "pruned"), "--retention", "soon"]) == 2
