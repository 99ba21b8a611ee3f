"""`basenet doctor`: each thing that is wrong is named once, with the way to mend it."""

import json
import os
import resource
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import inotify_simple
import pytest
import trio

from basenet.archive.directory import DirectoryStore
from basenet.archive.port import Object
from basenet.archive.store import Store
from basenet.cli import doctor
from basenet.cli.main import run
from basenet.keys import signing
from basenet.sqlite import locks
from basenet.sqlite.diagnose import Level


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests counts."""
    for name in os.environ:
        if name.startswith("BASE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A sound database in a directory of its own."""
    path = tmp_path / "data" / "app.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as app:
        app.execute("pragma journal_mode=wal")
        app.execute("create table t(x)")
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    path.mkdir()
    return path


def complaints(
    capsys: pytest.CaptureFixture[str], *arguments: object, code: int
) -> dict[str, dict[str, Any]]:
    """Run doctor and return what is not ok by check; the same disk is no surprise in tests."""
    assert run(["doctor", "--json", *map(str, arguments)]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] == (code == 0)
    assert document["counts"]["fail"] == sum(f["level"] == "fail" for f in document["findings"])
    found = {}
    for finding in document["findings"]:
        assert set(finding) == {"subject", "check", "level", "message", "remedy"}
        assert (finding["level"] == "ok") == (not finding["remedy"])
        if finding["level"] != "ok" and "lies on the same disk" not in finding["message"]:
            found[finding["check"]] = finding
    return found


def test_a_sound_setup_has_no_complaint_and_nothing_is_left_behind(
    database: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0; no data directory, no probe, no scratch file remains."""
    assert complaints(capsys, database, archive, code=0) == {}
    assert [path.name for path in database.parent.iterdir()] == ["app.db"]
    assert list(archive.iterdir()) == []


def test_for_people_each_finding_is_a_line_and_its_remedy_another(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ok, warn or fail, the check, what is the matter, how to mend it; and a sum at the end."""
    assert run(["doctor", str(database)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "shard app" in lines
    assert any(line.startswith("  ok    journal mode: WAL") for line in lines)
    place = next(number for number, line in enumerate(lines) if line.startswith("  warn  archive"))
    assert lines[place + 1].startswith("        -> set BASE_ARCHIVE")
    assert lines[-1].startswith("0 failed, 1 to look at, ")


def test_every_fault_of_the_configuration_is_told(
    database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, each under the variable's name."""
    monkeypatch.setenv("BASE_SHRDS", "x")
    monkeypatch.setenv("BASE_RETENTION", "soon")
    found = complaints(capsys, database, code=1)
    assert set(found) == {"BASE_SHRDS", "BASE_RETENTION"}
    assert "BASE_SHARDS" in found["BASE_SHRDS"]["message"]


def test_a_database_that_is_not_one_and_an_archive_that_is_full_are_both_told(
    database: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One failure does not hide the other."""
    database.write_text("not a database " * 10)
    archive.rmdir()
    archive.write_text("a file where the directory should be")
    found = complaints(capsys, database, archive, code=1)
    assert found["header"]["subject"] == "shard app"
    assert found["archive"]["level"] == "fail"


def test_all_databases_of_a_directory_are_examined(
    database: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory as DB means what it means to `serve`."""
    with closing(sqlite3.connect(database.parent / "other.db")) as app:
        app.execute("create table t(x)")
    found = complaints(capsys, database.parent, archive, code=0)
    assert found["journal mode"]["subject"] == "shard other"
    (database.parent / "app.sqlite").write_bytes(database.read_bytes())
    found = complaints(capsys, database.parent, archive, code=1)
    assert "id=path" in found["shards"]["remedy"]


def test_nothing_to_examine_and_a_missing_directory_are_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a database there is nothing that basenet could do."""
    monkeypatch.chdir(tmp_path)
    assert complaints(capsys, code=1)["shards"]["message"] == "no database is named"
    found = complaints(capsys, tmp_path / "missing" / "*.db", code=1)
    assert "does not exist" in found["shards"]["message"]


def test_keys_and_the_data_directory_are_for_their_owner_alone(
    database: Path,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An open directory is a warning, an open key a failure, a broken list of keys, too."""
    data = tmp_path / "node"
    monkeypatch.setenv("BASE_DATA_DIR", str(data))
    signing.load_or_create(data)
    assert complaints(capsys, database, archive, code=0) == {}
    data.chmod(0o755)
    found = complaints(capsys, database, archive, code=0)
    assert found["data directory"]["remedy"] == f"run: chmod 700 {data}"
    data.chmod(0o700)
    (data / signing.SIGNING_KEY_NAME).chmod(0o644)
    (data / "trusted.keys").write_text("nonsense\n")
    found = complaints(capsys, database, archive, code=1)
    assert set(found) == {"signing key", "trusted keys"}
    assert "chmod 600" in found["signing key"]["message"]


def test_keys_that_are_named_and_missing_are_failures(
    database: Path,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the operator names is never made by us."""
    monkeypatch.setenv("BASE_SIGNING_KEY", str(tmp_path / "no.key"))
    monkeypatch.setenv("BASE_TRUSTED_KEYS", str(tmp_path / "no.keys"))
    assert set(complaints(capsys, database, archive, code=1)) == {"signing key", "trusted keys"}


def test_limits_of_the_kernel_are_compared_with_the_number_of_databases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """12 open files a database must fit; too few watches only mean polling."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    found = {finding.check: finding for finding in doctor._check_limits(9)}
    assert found["open files"].level is Level.FAIL
    assert "LimitNOFILE" in found["open files"].remedy
    found = {finding.check: finding for finding in doctor._check_limits(8)}
    assert found["open files"].level is Level.OK
    found = {finding.check: finding for finding in doctor._check_limits(10**9)}
    assert found["inotify"].level is Level.WARN
    assert "fs.inotify.max_user_watches=" in found["inotify"].remedy

    def refuse(**_options: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify_simple, "INotify", refuse)
    found = {finding.check: finding for finding in doctor._check_limits(1)}
    assert "max_user_instances" in found["inotify"].message


@pytest.mark.parametrize(
    ("version", "level"), [("3.51.2", Level.FAIL), ("3.51.3", Level.OK), ("3.100.0", Level.OK)]
)
def test_an_sqlite_with_the_reset_bug_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, version: str, level: Level
) -> None:
    """Versions are compared as numbers."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    assert doctor._check_sqlite().level is level


@pytest.fixture
def owned(database: Path) -> Iterator[Path]:
    """The database while some daemon captures it."""
    descriptor = os.open(database, os.O_RDWR)
    assert locks.try_lock(descriptor, locks.OWNER_BYTE)
    yield database
    os.close(descriptor)


def test_a_daemon_of_this_configuration_is_no_complaint_and_a_strange_one_is(
    owned: Path,
    archive: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The owner's lock says that somebody captures; the socket in the data directory says who."""
    monkeypatch.setenv("BASE_DATA_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    found = complaints(capsys, owned, archive, code=0)
    assert "another basenet process" in found["capture"]["message"]
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("basenet.sock")
        server.listen()
        monkeypatch.setenv("BASE_DATA_DIR", ".")
        assert complaints(capsys, owned, archive, code=0) == {}


def test_no_archive_is_worth_a_word_and_so_is_the_same_disk(
    database: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both lose everything with one disk."""
    assert "lost disk" in complaints(capsys, database, code=0)["archive"]["message"]
    assert run(["doctor", str(database), str(archive)]) == 0
    assert "lies on the same disk as" in capsys.readouterr().out


def test_an_archive_that_does_not_exist_is_tried_but_not_made(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt path is told, and is still not there afterwards."""
    found = complaints(capsys, database, tmp_path / "archvie", code=0)
    assert "does not exist yet" in found["archive"]["message"]
    assert not (tmp_path / "archvie").exists()


def test_an_archive_without_conditions_is_a_failure_unless_that_is_chosen(
    database: Path,
    archive: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two writers would destroy each other's work; one writer may be chosen, with a warning."""

    class Careless(DirectoryStore):
        async def put_if_absent(self, name: str, data: bytes) -> Any:
            return await self.put_unconditional(name, data)

    def open_careless(_url: str, **_: object) -> Store:
        return Careless(archive)

    with monkeypatch.context() as patched:
        patched.setattr(doctor, "open_store", open_careless)
        found = complaints(capsys, database, archive, code=1)
        assert "overwrites an object that exists" in found["archive"]["message"]
    monkeypatch.setenv("BASE_ARCHIVE_UNCONDITIONAL", "1")
    found = complaints(capsys, database, archive, code=0)
    assert "without conditional writes" in found["archive"]["message"]


async def test_an_archive_that_does_not_answer_is_a_failure_in_bounded_time(
    archive: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A firewall that swallows packets: half a minute, then a sentence."""
    del autojump_clock

    class Silent(DirectoryStore):
        async def put_if_absent(self, name: str, data: bytes) -> Any:
            del name, data
            await trio.sleep_forever()

        async def delete(self, name: str) -> None:
            del name

    findings = await doctor._try_store(Silent(archive))
    assert [finding.level for finding in findings] == [Level.FAIL]
    assert "did not answer within 30 s" in findings[0].message


@pytest.mark.parametrize("has_clock", [True, False])
@pytest.mark.parametrize(("skew_seconds", "level"), [(0, Level.OK), (60, Level.WARN)])
async def test_clocks_are_compared_by_the_stores_answer(
    archive: Path, skew_seconds: int, level: Level, *, has_clock: bool
) -> None:
    """In either direction; a store that counts whole seconds is no skew.

    A directory of a network file system tells its time by the files that are made in it.
    """

    class Skewed(DirectoryStore):
        direction = 1

        async def get(self, name: str) -> Object:
            found = await super().get(name)
            shifted = time.time_ns() + Skewed.direction * skew_seconds * 10**9
            return Object(
                data=found.data,
                token=found.token,
                modified_ns=found.modified_ns if has_clock else shifted,
                server_now_ns=shifted // 10**9 * 10**9 if has_clock else None,
            )

    for direction in (1, -1):
        Skewed.direction = direction
        finding = await doctor._compare_clocks(Skewed(archive))
        assert finding.level is level
    assert list(await trio.Path(archive).iterdir()) == []
