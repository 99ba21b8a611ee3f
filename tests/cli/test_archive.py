"""``basenet archive``: what lies there, what it costs, and deleting what nobody needs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from basenet.archive.directory import DirectoryStore
from basenet.archive.lease import Holder, Lease, read_lease
from basenet.archive.names import ShardNames
from basenet.cli.main import run
from basenet.keys.trust import format_public
from basenet.units import ShardId
from tests.archive.builder import Archive, History
from tests.fakes.chain import JOURNAL_ID, signer

NAMES = ShardNames(service="default", shard=ShardId("app"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a directory whose keys trust the writer."""
    for name in [name for name in os.environ if name.startswith("BASE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".basenet").mkdir()
    (tmp_path / ".basenet/trusted.keys").write_text(f"{format_public(signer(1).public)}\n")


@pytest.fixture
def history() -> History:
    """Of years ago: a genesis, 20 commits."""
    history = History()
    for _ in range(20):
        history.random_commit(grow=3)
    return history


@pytest.fixture
def archive(tmp_path: Path, history: History) -> Path:
    """Two snapshots, a log object a frame, and TIP."""
    made = Archive()
    made.put_logs(history, 1)
    made.put_set(history, 8)
    made.put_set(history, 15)
    made.put_tip(history)
    for name, stored in made.store.objects.items():
        (tmp_path / "archive" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "archive" / name).write_bytes(stored.data)
    return tmp_path / "archive"


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert run(["archive", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def objects(archive: Path) -> set[str]:
    return {
        str(path.relative_to(archive))
        for path in archive.rglob("*")
        if path.is_file() and path.suffix in {".lbn", ".idx", ".pg"}
    }


def test_ls_names_every_object_and_needs_no_key(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words and as JSON."""
    (tmp_path / ".basenet/trusted.keys").unlink()
    (found,) = ask(capsys, "ls", archive)
    assert (found["service"], found["shard"]) == ("default", "app")
    assert {one["name"] for one in found["objects"]} == objects(archive) | {"default/app/TIP"}
    assert [one["last_seq"] for one in found["objects"] if one["kind"] == "page set"] == [8, 15]
    assert run(["archive", "ls", "--archive", str(archive), "--shard", "app"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["KIND", "FROM", "TO", "SIZE", "NAME"]
    assert len(lines) == 1 + len(found["objects"])


def test_stats_count_by_kind_and_say_what_a_restore_reads(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what page sets share."""
    (found,) = ask(capsys, "stats", archive)
    assert found["kinds"]["log"]["objects"] == 21
    assert found["kinds"]["page set"]["objects"] == 2
    assert found["total"]["objects"] == len(objects(archive)) + 1
    assert found["total"]["bytes"] == sum(tally["bytes"] for tally in found["kinds"].values())
    assert [(one["seq"], one["complete"]) for one in found["page_sets"]] == [(8, True), (15, True)]
    assert found["restore"]["objects"] == 2 + 1 + 6
    part = next(archive.rglob("*.pg"))
    part.unlink()
    assert run(["archive", "stats", str(archive)]) == 0
    out = capsys.readouterr().out
    assert "PARTS ARE MISSING" in out
    assert "a restore of the newest state reads" in out


def test_an_archive_that_is_not_there_is_not_found(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each sentence says what is there instead."""
    for arguments in (["ls"], ["stats"], ["prune", "--dry-run"]):
        assert run(["archive", *arguments, str(archive), "--service", "no"]) == 3
        assert "the services in it are default" in capsys.readouterr().err
        assert run(["archive", *arguments, str(archive), "--shard", "no"]) == 3
        assert "it has app" in capsys.readouterr().err
        assert run(["archive", *arguments, str(tmp_path / "nothing")]) == 3
        assert run(["archive", *arguments]) == 2
        capsys.readouterr()


def test_a_dry_run_shows_what_would_go_and_takes_nothing(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even the lease."""
    before = objects(archive)
    found = ask(capsys, "prune", archive, "--dry-run", "--retention", "1d", "--by-clock")
    assert found["dry_run"]
    assert found["base"].endswith("00015.lbn")
    gone = {one["name"] for one in found["objects"]}
    assert gone < before
    assert found["deleted"] == len(gone) > 14
    assert found["witness"] == "clock"
    assert run(["archive", "prune", str(archive), "--dry-run", "--by-clock"]) == 0
    assert "would be deleted" in capsys.readouterr().out
    assert objects(archive) == before
    assert not (archive / "default/app/LEASE").exists()
    assert run(["archive", "prune", str(archive), "--by-clock"]) == 0
    assert objects(archive) == before - gone


def test_a_directory_is_pruned_only_by_an_operator_who_believes_the_clock(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By it the history is years old, and for that it could be wrong."""
    before = objects(archive)
    assert run(["archive", "prune", str(archive), "--retention", "1s"]) == 0
    told = capsys.readouterr()
    assert "0 objects" in told.out
    assert "if `date` is right on this machine, add --by-clock" in told.err
    assert ask(capsys, "prune", archive, "--retention", "1s")["witness"] == "nobody"
    assert objects(archive) - {"default/app/LEASE"} == before


def test_what_is_kept_restores_and_the_last_snapshot_never_goes(
    archive: Path, history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However old it is; pruning again finds nothing more."""
    found = ask(capsys, "prune", archive, "--retention", "1s", "--by-clock")
    assert found["deleted"]
    assert ask(capsys, "prune", archive, "--retention", "1s", "--by-clock")["deleted"] == 0
    assert run(["verify", str(archive), "--retention", "1s"]) == 0
    for seq in range(15, 22):
        out = tmp_path / f"{seq}.db"
        assert run(["restore", str(archive), str(out), "--to-seq", str(seq)]) == 0
        assert out.read_bytes() == history.contents(seq)
    assert run(["restore", str(archive), str(tmp_path / "no.db"), "--to-seq", "14"]) == 1


def test_what_a_running_basenet_writes_is_not_pruned_beside_it(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would lose its lease and stop archiving; one that stopped has released it."""
    store = DirectoryStore(archive)
    holder = Holder(
        node="db-1", key=signer(1).public, journal_id=JOURNAL_ID, lineage=History().lineage
    )
    lease = Lease(store=store, names=NAMES, holder=holder)
    trio.run(lease.acquire)
    before = objects(archive)
    assert run(["archive", "prune", str(archive)]) == 4
    err = capsys.readouterr().err
    assert "archived by node db-1" in err
    assert "--take-over" in err
    assert objects(archive) == before
    assert run(["archive", "prune", str(archive), "--dry-run"]) == 0
    monkeypatch.setattr("basenet.archive.lease.POLL_SECONDS", 0.01)
    monkeypatch.setattr("basenet.archive.lease.LEASE_TTL_SECONDS", 0)
    trio.run(lease.release)
    assert run(["archive", "prune", str(archive), "--by-clock"]) == 0
    assert objects(archive) < before
    seen = trio.run(read_lease, store, NAMES)
    assert seen is not None
    assert seen.body.is_released
    assert seen.body.archive_epoch == 2


def test_without_keys_nothing_is_deleted(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A forged manifest could else say that nothing is needed."""
    (tmp_path / ".basenet/trusted.keys").unlink()
    assert run(["archive", "prune", str(archive), "--dry-run"]) == 2
    assert "trusted" in capsys.readouterr().err
