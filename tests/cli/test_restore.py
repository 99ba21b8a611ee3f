"""``basenet restore``: its two forms, whom it trusts, and what it says."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from basenet.cli.listing import format_moment
from basenet.cli.main import run
from basenet.cli.restore import parse_moment
from basenet.errors import UsageError
from basenet.keys.trust import format_public, get_fingerprint
from tests.archive.builder import Archive, History
from tests.fakes.chain import signer


def make_history(**options: Any) -> History:
    history = History(**options)
    history.commit({pgno: history.page() for pgno in range(1, 30)})
    for _ in range(6):
        history.random_commit(grow=1)
    return history


def write(archive: Archive, folder: Path) -> Path:
    for name, stored in archive.store.objects.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored.data)
    return folder


@pytest.fixture
def history() -> History:
    return make_history()


@pytest.fixture
def archive(tmp_path: Path, history: History) -> Path:
    archive = Archive()
    archive.put_logs(history)
    archive.put_set(history, 4)
    archive.put_tip(history)
    return write(archive, tmp_path / "archive")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in an empty directory, with an empty environment."""
    for name in [name for name in os.environ if name.startswith("BASE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "their.keys"
    path.write_text(f"{format_public(signer(1).public)} node\n")
    return path


def test_the_long_form(
    archive: Path, keys: Path, history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every part is named by its option, and the answer says what was restored."""
    arguments = ["restore", "--archive", archive.as_uri(), "--shard", "app", "--out", "o.db"]
    assert run([*arguments, "--trusted-keys", str(keys), "--to-seq", "5"]) == 0
    assert Path("o.db").read_bytes() == history.contents(5)
    captured = capsys.readouterr()
    assert "seq      5, captured 2023-11-14T22:13:" in captured.out
    assert history.lineage.hex() in captured.out
    assert captured.err == ""


def test_the_short_form(archive: Path, keys: Path, history: History) -> None:
    """The archive holds one shard, so nobody needs to name it."""
    assert run(["restore", str(archive), "o.db", "--trusted-keys", str(keys)]) == 0
    assert Path("o.db").read_bytes() == history.contents()


def test_the_forms_mix(
    archive: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an option or the environment names is not expected among the arguments."""
    monkeypatch.setenv("BASE_TRUSTED_KEYS", str(keys))
    assert run(["restore", "--archive", str(archive), "a.db"]) == 0
    assert run(["restore", "--out", "b.db", str(archive)]) == 0
    monkeypatch.setenv("BASE_ARCHIVE", str(archive))
    assert run(["restore", "--out", "c.db"]) == 0
    capsys.readouterr()
    assert run(["restore", str(archive), "d.db", "e.db"]) == 2
    assert "'e.db' is one argument too many" in capsys.readouterr().err
    assert run(["restore"]) == 2
    assert "no file to restore to" in capsys.readouterr().err
    monkeypatch.delenv("BASE_ARCHIVE")
    assert run(["restore", "--out", "f.db"]) == 2
    assert "no archive is named" in capsys.readouterr().err


def test_several_shards_are_listed(
    archive: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --shard a choice is needed; a name that does not exist is answered with what does."""
    other = make_history(shard="other")
    more = Archive()
    more.put_logs(other)
    more.put_tip(other)
    write(more, archive)
    common = [str(archive), "o.db", "--trusted-keys", str(keys)]
    assert run(["restore", *common]) == 2
    assert "choose one of app, other with --shard" in capsys.readouterr().err
    assert run(["restore", *common, "--shard", "no"]) == 3
    assert "no shard 'no' of service 'default'; it has app, other" in capsys.readouterr().err
    assert run(["restore", *common, "--service", "two"]) == 3
    assert "the services in it are default" in capsys.readouterr().err
    assert run(["restore", *common, "--shard", "other"]) == 0
    assert Path("o.db").read_bytes() == other.contents()


def test_an_empty_archive_is_not_found(
    tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, and the sentence says where nothing was found."""
    (tmp_path / "empty").mkdir()
    assert run(["restore", str(tmp_path / "empty"), "o.db", "--trusted-keys", str(keys)]) == 3
    assert "there is nothing in it" in capsys.readouterr().err


def test_without_keys_it_refuses_with_the_fingerprint(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no trust on first use; the operator compares and decides."""
    assert run(["restore", str(archive), "o.db"]) == 2
    sentence = capsys.readouterr().err
    assert get_fingerprint(signer(1).public) in sentence
    assert "basenet keys show" in sentence
    assert not Path("o.db").exists()


def test_the_first_place_that_is_named_decides(
    archive: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--trusted-keys, BASE_TRUSTED_KEYS, BASE_DATA_DIR, beside OUT, here; never their union."""
    wrong = tmp_path / "wrong.keys"
    wrong.write_text(f"{format_public(signer(9).public)}\n")
    out = tmp_path / "data" / "o.db"
    for folder in (out.parent / ".basenet", Path(".basenet"), tmp_path / "own"):
        folder.mkdir(parents=True)
    command = ["restore", str(archive), str(out), "--force"]

    Path(".basenet/trusted.keys").write_text(keys.read_text())
    assert run(command) == 0
    (out.parent / ".basenet" / "trusted.keys").write_text(wrong.read_text())
    assert run(command) == 1
    (tmp_path / "own" / "trusted.keys").write_text(keys.read_text())
    monkeypatch.setenv("BASE_DATA_DIR", str(tmp_path / "own"))
    assert run(command) == 0
    monkeypatch.setenv("BASE_TRUSTED_KEYS", str(wrong))
    assert run(command) == 1
    assert run([*command, "--trusted-keys", str(keys)]) == 0
    assert run([*command, "--trusted-keys", str(tmp_path / "missing.keys")]) == 3


@pytest.mark.parametrize("mode", ["folder", "file"])
def test_keys_that_somebody_else_could_have_left_are_not_believed(
    archive: Path, keys: Path, mode: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Found beside OUT and not named, in a place that others can write: as in /tmp."""
    found = tmp_path / "out" / ".basenet" / "trusted.keys"
    found.parent.mkdir(parents=True)
    found.write_bytes(keys.read_bytes())
    out = found.parent.parent / "app.db"
    open_to_all = found if mode == "file" else found.parent
    before = open_to_all.stat().st_mode
    open_to_all.chmod(0o777)
    assert run(["restore", str(archive), str(out), "--shard", "app"]) == 2
    assert str(open_to_all) in capsys.readouterr().err
    assert not out.exists()
    open_to_all.chmod(before)
    assert run(["restore", str(archive), str(out), "--shard", "app"]) == 0


def test_nothing_is_overwritten(
    archive: Path, keys: Path, history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4; --if-not-exists makes it a success that does nothing; --force replaces."""
    Path("o.db").write_bytes(b"mine")
    Path("o.db-wal").write_bytes(b"their log")
    command = ["restore", str(archive), "o.db", "--trusted-keys", str(keys)]
    assert run(command) == 4
    assert "--force" in capsys.readouterr().err
    assert run([*command, "--if-not-exists"]) == 0
    assert Path("o.db").read_bytes() == b"mine"
    capsys.readouterr()
    assert run([*command, "--force"]) == 0
    captured = capsys.readouterr()
    assert Path("o.db").read_bytes() == history.contents()
    aside = next(path for path in Path().iterdir() if "before-restore" in path.name)
    assert aside.read_bytes() == b"their log"
    assert aside.name in captured.err


def test_if_not_exists_does_not_overlook_a_dead_wal(
    archive: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People delete the database and leave its log: then the restore must not go on (P8)."""
    Path("o.db-wal").write_bytes(b"their log")
    command = ["restore", str(archive), "o.db", "--trusted-keys", str(keys), "--if-not-exists"]
    assert run(command) == 4
    assert "o.db-wal" in capsys.readouterr().err


def test_if_not_exists_does_not_take_a_directory_for_a_database(
    archive: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container runtime makes a directory of a mount point that is not there."""
    Path("app.db").mkdir()
    code = run(["restore", str(archive), "app.db", "--if-not-exists", "--trusted-keys", str(keys)])
    assert code == 2
    assert "is a directory" in capsys.readouterr().err


def test_json_is_one_document(
    archive: Path, keys: Path, history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a dry run, which writes nothing."""
    command = ["restore", str(archive), "o.db", "--trusted-keys", str(keys), "--json"]
    assert run([*command, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["dry_run"] is True
    assert not Path("o.db").exists()
    assert run(command) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["restored"] is True
    assert done["database_bytes"] == len(history.contents())
    for name in ("seq", "lineage", "page_sets", "log_objects", "stored_bytes", "objects"):
        assert done[name] == planned[name]
    assert run([*command, "--if-not-exists"]) == 0
    assert json.loads(capsys.readouterr().out)["restored"] is False


def test_to_time_takes_what_a_report_prints(
    archive: Path, keys: Path, history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine digits, so that it is the very commit and not the one before."""
    command = ["restore", str(archive), "o.db", "--trusted-keys", str(keys), "--json", "--force"]
    assert run([*command, "--to-seq", "6"]) == 0
    moment = json.loads(capsys.readouterr().out)["time"]
    assert run([*command, "--to-time", moment]) == 0
    assert json.loads(capsys.readouterr().out)["seq"] == 6
    assert Path("o.db").read_bytes() == history.contents(6)
    assert run([*command, "--to-time", moment, "--to-seq", "6"]) == 2


@pytest.mark.parametrize(
    ("text", "moment_ns"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("2023-11-14t22:13:20.5z", 1_700_000_000_500_000_000),
        ("2023-11-14 22:13:20-00:30", 1_700_001_800_000_000_000),
    ],
)
def test_moments_are_read_to_the_nanosecond(text: str, moment_ns: int) -> None:
    """In every offset."""
    assert parse_moment(text) == moment_ns
    assert parse_moment(format_moment(moment_ns)) == moment_ns


@pytest.mark.parametrize(
    "text", ["", "now", "2023-11-14", "2023-11-14T22:13:20", "2023-13-14T22:13:20Z", "1e9"]
)
def test_a_moment_without_an_offset_is_refused(text: str) -> None:
    """A local time names another commit elsewhere."""
    with pytest.raises(UsageError, match="is no moment"):
        parse_moment(text)


def test_a_lineage_can_be_chosen(
    archive: Path, keys: Path, history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two leaves end with 4 and name both; a lineage that is none is a usage error."""
    more = Archive()
    for number in (2, 3):
        child = History(number=number, parent=history, seed=number)
        child.random_commit()
        more.put_logs(child)
    write(more, archive)
    command = ["restore", str(archive), "o.db", "--trusted-keys", str(keys)]
    assert run(command) == 4
    sentence = capsys.readouterr().err
    assert "02" * 16 in sentence
    assert "03" * 16 in sentence
    assert run([*command, "--lineage", "02" * 16]) == 0
    assert run([*command, "--lineage", "zz"]) == 2
    assert run([*command, "--force", "--lineage", "07" * 16]) == 3


def test_expect_seq_is_passed_on(archive: Path, keys: Path, history: History) -> None:
    """It ends with 1 when the archive gives less."""
    command = ["restore", str(archive), "o.db", "--trusted-keys", str(keys)]
    assert run([*command, "--expect-seq", str(history.tip.head.seq + 1)]) == 1
    assert not Path("o.db").exists()
    assert run([*command, "--expect-seq", str(history.tip.head.seq)]) == 0


SLOW = """
import sys, trio
from basenet.archive.directory import DirectoryStore
async def get_data(self, name):
    if "0004" in name:
        print("ready", flush=True)
        await trio.sleep_forever()
    return (await self.get(name)).data
DirectoryStore.get_data = get_data
from basenet.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(
    archive: Path, keys: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Stopped in the middle: no draft, no file, one sentence."""
    folder = tmp_path / "out"
    folder.mkdir()
    command = ["restore", str(archive), str(folder / "o.db"), "--trusted-keys", str(keys)]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *command, "--to-seq", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(20) == (130 if number == signal.SIGINT else 1)
        assert "Traceback" not in process.stderr.read()
    assert list(folder.iterdir()) == []


def test_a_restore_from_a_directory_loads_nothing_heavy(archive: Path, keys: Path) -> None:
    """Neither boto3 nor the Google client, nor rich, nor the daemon."""
    probe = (
        "import sys\nfrom basenet.cli.main import run\n"
        "assert run(sys.argv[1:]) == 0\n"
        "heavy = {'boto3', 'botocore', 'google.cloud', 'rich', 'starlette', 'hypercorn', 'apsw',"
        " 'structlog', 'basenet.daemon'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    command = ["restore", str(archive), "o.db", "--json", "--trusted-keys", str(keys)]
    done = subprocess.run(
        [sys.executable, "-c", probe, *command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_moments_are_listed(
    archive: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For people and as JSON, without a file to restore to."""
    common = ["restore", str(archive), "--list", "--trusted-keys", str(keys)]
    assert run(common) == 0
    out = capsys.readouterr().out
    assert "snapshots  4" in out
    assert re.search(r"^1 +8 +2023-11-14T22:13:\S+ +2023-11-14T22:13:\S+$", out, re.MULTILINE)
    assert run([*common, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(one["first_seq"], one["last_seq"]) for one in document["restorable"]] == [(1, 8)]
    assert document["snapshots"] == [4]
    assert run(["restore", str(archive), "o.db", "--list"]) == 2
    assert "--list restores nothing" in capsys.readouterr().err


def test_what_is_left_is_listed(
    archive: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Newest objects are gone: the list says so, and what can still be had."""
    max(archive.rglob("log/*/*.lbn")).unlink()
    assert run(["restore", str(archive), "--list", "--trusted-keys", str(keys), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(one["first_seq"], one["last_seq"]) for one in document["restorable"]] == [(1, 6)]
    assert "the newest objects were deleted" in document["troubles"][0]


def test_nothing_is_done_without_an_archive(
    archive: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first start: nothing there is success; another wish that fails is none."""
    (tmp_path / "empty").mkdir()
    common = ["--if-archive-exists", "--trusted-keys", str(keys)]
    for place in (str(tmp_path / "empty"), str(tmp_path / "none")):
        assert run(["restore", place, "o.db", *common]) == 0
        assert "holds nothing of the shard" in capsys.readouterr().err
    assert run(["restore", str(archive), "o.db", "--shard", "other", *common, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["restored"] is False
    assert not Path("o.db").exists()
    assert run(["restore", str(archive), "o.db", "--to-seq", "99", *common]) == 3
    assert run(["restore", str(archive), "o.db", *common]) == 0
    assert Path("o.db").exists()
