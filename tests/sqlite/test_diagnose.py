"""What is wrong with a database, found from its bytes and locks while its application runs."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from basenet.errors import UnavailableError
from basenet.sqlite import diagnose, filesystem, locks
from basenet.sqlite.diagnose import Finding, Level, diagnose_database
from basenet.sqlite.filesystem import LockVisibility

APPLICATION = """
import sqlite3, sys
app = sqlite3.connect(sys.argv[1], isolation_level=None, uri=True)
for statement in sys.argv[2].split("; "):
    app.execute(statement).fetchall()
print("ready", flush=True)
for line in sys.stdin:
    app.execute(line).fetchall()
    print("done", flush=True)
"""


class Application:
    """A process that has the database open."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, statement: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@contextmanager
def application(
    path: Path, statements: str = "select * from t", query: str = ""
) -> Iterator[Application]:
    process = subprocess.Popen(
        [sys.executable, "-c", APPLICATION, f"file:{path}{query}", statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Application(process)
        process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small WAL database, closed."""
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as app:
        app.execute("pragma journal_mode=wal")
        app.execute("create table t(x)")
    return path


def bad(findings: list[Finding]) -> dict[str, Finding]:
    """Return what is not ok, by check."""
    return {finding.check: finding for finding in findings if finding.level is not Level.OK}


def only(findings: list[Finding], check: str, level: Level) -> Finding:
    """Return the one finding that is not ok, and check that it is whole."""
    found = bad(findings)
    assert set(found) == {check}, found
    assert found[check].level is level
    assert found[check].message
    assert found[check].remedy
    return found[check]


def test_a_sound_database_gives_no_complaint(path: Path) -> None:
    """Nothing to mend, and every check that applies says so."""
    findings = diagnose_database(path)
    assert bad(findings) == {}
    assert {finding.check for finding in findings} >= {
        "filesystem", "locks", "file", "header", "connections", "journal mode",
    }  # fmt: skip


def test_a_running_application_is_seen_and_neither_changed_nor_blocked(path: Path) -> None:
    """Mid-transaction: its process is named; it commits; no byte of its files has changed."""
    with application(path, "insert into t values (1); begin immediate") as app:
        app.run("insert into t values (2)")
        before = {name.name: name.read_bytes() for name in path.parent.iterdir()}
        findings = diagnose_database(path)
        assert {name.name: name.read_bytes() for name in path.parent.iterdir()} == before
        app.run("commit")
    assert bad(findings) == {}
    assert any(f"process {app.process.pid} has the database open" == f.message for f in findings)
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("select count(*) from t").fetchone() == (2,)


@pytest.mark.parametrize(
    ("statements", "query", "words"),
    [
        ("pragma locking_mode=exclusive; select * from t", "", "locking_mode=EXCLUSIVE"),
        ("select * from t; pragma locking_mode=exclusive; insert into t values (1)", "",
         "locking_mode=EXCLUSIVE"),
        ("select * from t", "?vfs=unix-excl", "unix-excl VFS"),
    ],
)  # fmt: skip
def test_an_application_that_keeps_everybody_out_is_a_failure(
    path: Path, statements: str, query: str, words: str
) -> None:
    """Exclusive locking and the unix-excl VFS are told apart by the PENDING byte."""
    with application(path, statements, query) as app:
        finding = only(diagnose_database(path), "connections", Level.FAIL)
    assert words in finding.message
    assert f"process {app.process.pid}" in finding.message


def test_a_database_without_locks_beside_a_log_without_an_index_is_suspicious(path: Path) -> None:
    """The unix-none VFS takes no locks at all."""
    statements = "pragma locking_mode=exclusive; insert into t values (1)"
    with application(path, statements, "?vfs=unix-none"):
        finding = only(diagnose_database(path), "connections", Level.WARN)
    assert "no lock is seen" in finding.message


def test_the_dotfile_vfs_is_named(path: Path) -> None:
    """Its lock is a directory beside the database."""
    statements = "pragma locking_mode=exclusive; insert into t values (1)"
    with application(path, statements, "?vfs=unix-dotfile"):
        finding = only(diagnose_database(path), "connections", Level.FAIL)
    assert "unix-dotfile" in finding.message


def test_a_rollback_database_is_a_warning_while_free_and_a_failure_in_use(tmp_path: Path) -> None:
    """Free, basenet converts it; in use, the application has to."""
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as app:
        app.execute("create table t(x)")
    finding = only(diagnose_database(path), "journal mode", Level.WARN)
    assert "pragma journal_mode=wal" in finding.remedy
    with application(path, "begin; select * from t"):
        only(diagnose_database(path), "journal mode", Level.FAIL)


def test_a_hot_journal_is_a_failure_and_one_of_a_live_transaction_is_not(tmp_path: Path) -> None:
    """The writer's RESERVED lock tells them apart."""
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as setup:
        setup.execute("create table t(x)")
    statements = "pragma cache_size=1; begin immediate; insert into t values (randomblob(100000))"
    with application(path, statements):
        assert Path(f"{path}-journal").exists()
        assert "hot journal" not in bad(diagnose_database(path))
    found = bad(diagnose_database(path))
    assert found["hot journal"].level is Level.FAIL
    assert "never delete" in found["hot journal"].remedy


def test_files_that_are_no_database_are_told_apart(tmp_path: Path) -> None:
    """Absent, empty, a directory, text, encrypted, a damaged page size."""
    path = tmp_path / "a.db"
    assert "waits" in only(diagnose_database(path), "file", Level.WARN).remedy
    path.touch()
    assert "empty" in only(diagnose_database(path), "file", Level.WARN).message
    path.write_text("hello " * 100)
    assert "encrypted" not in only(diagnose_database(path), "header", Level.FAIL).message
    path.write_bytes(b"short")
    only(diagnose_database(path), "header", Level.FAIL)
    path.write_bytes(bytes((number * 73 + 41) % 256 for number in range(4096)))
    assert "encrypted" in only(diagnose_database(path), "header", Level.FAIL).message
    path.write_bytes(b"SQLite format 3\0" + b"\x07\x07" + bytes(494))
    assert "page size of 1799" in only(diagnose_database(path), "header", Level.FAIL).message
    path.unlink()
    path.mkdir()
    only(diagnose_database(path), "file", Level.FAIL)
    only(diagnose_database(tmp_path / "missing" / "a.db"), "directory", Level.FAIL)


def test_reserved_bytes_and_a_torn_size_are_remarked(path: Path) -> None:
    """8 reserved bytes are the checksum VFS; more are usually encryption; half a page is odd."""
    data = bytearray(path.read_bytes())
    data[20] = 8
    path.write_bytes(data)
    assert bad(diagnose_database(path)) == {}
    data[20] = 48
    path.write_bytes(data)
    assert "48 bytes" in only(diagnose_database(path), "header", Level.WARN).message
    data[20] = 0
    path.write_bytes(data + b"x" * 100)
    assert "multiple" in only(diagnose_database(path), "header", Level.WARN).message


def test_a_fenced_replica_and_nonsense_versions(path: Path) -> None:
    """Byte 18 is the fence; anything else unknown is damage."""
    data = bytearray(path.read_bytes())
    data[18] = 3
    path.write_bytes(data)
    assert "read-only" in only(diagnose_database(path), "journal mode", Level.WARN).message
    data[18:20] = b"\x02\x09"
    path.write_bytes(data)
    only(diagnose_database(path), "journal mode", Level.FAIL)


def killed_with_a_log(path: Path) -> None:
    """Leave a -wal as an application that was killed does."""
    with application(path, "create table if not exists u(y); insert into t values (1)") as app:
        app.run("insert into t values (2)")


def test_a_log_that_a_killed_application_left_is_no_fault(path: Path) -> None:
    """It belongs to the file, copied back or not."""
    killed_with_a_log(path)
    assert bad(diagnose_database(path)) == {}
    with application(path) as app:
        app.run("insert into t values (3)")
        app.run("pragma wal_checkpoint(passive)")
    assert bad(diagnose_database(path)) == {}


def test_a_log_beside_a_file_that_was_put_there_is_found(path: Path) -> None:
    """A restored or copied file with an old log beside it would be ruined in silence (P8)."""
    killed_with_a_log(path)
    wal = Path(f"{path}-wal")
    newer = path.with_name("newer.db")
    with closing(sqlite3.connect(newer, isolation_level=None)) as app:
        app.execute("pragma journal_mode=wal")
        for number in range(9):
            app.execute(f"create table n{number}(x)")
    shutil.copy(newer, path)
    finding = only(diagnose_database(path), "stale wal", Level.FAIL)
    assert "counts more changes" in finding.message
    assert "remove -wal" in finding.remedy

    other = path.with_name("other.db")
    with closing(sqlite3.connect(other, isolation_level=None)) as app:
        app.execute("pragma journal_mode=wal")
        app.execute("create table o(x)")
    shutil.copy(other, path)
    os.utime(wal, ns=(1, 1))
    finding = only(diagnose_database(path), "stale wal", Level.WARN)
    assert "holds none of the log's pages" in finding.message

    with closing(sqlite3.connect(path.with_name("big.db"), isolation_level=None)) as app:
        app.execute("pragma page_size=8192")
        app.execute("pragma journal_mode=wal")
        app.execute("create table b(x)")
    shutil.copy(path.with_name("big.db"), path)
    finding = only(diagnose_database(path), "stale wal", Level.FAIL)
    assert "another file" in finding.message


def test_a_log_without_a_header_counts_for_nothing(path: Path) -> None:
    """SQLite ignores it; somebody should look at the disk."""
    Path(f"{path}-wal").write_bytes(b"\0" * 5000)
    Path(f"{path}-shm").touch()
    only(diagnose_database(path), "wal", Level.WARN)


def test_a_log_that_nobody_copies_back_is_explained(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wal_autocheckpoint=0, or a reader that never ends; and a large log that is empty again."""
    monkeypatch.setattr(diagnose, "_FRAMES_WAITING_MAX", 50)
    monkeypatch.setattr(diagnose, "_WAL_LARGE_BYTES", 100_000)
    with application(path, "pragma wal_autocheckpoint=0; select * from t") as app:
        app.run("insert into t values (randomblob(400000))")
        finding = only(diagnose_database(path), "wal", Level.WARN)
        assert "wal_autocheckpoint" in finding.remedy
        app.run("pragma wal_checkpoint(passive)")
        finding = only(diagnose_database(path), "wal", Level.WARN)
        assert "journal_size_limit" in finding.remedy


def test_a_torn_index_header_is_named(path: Path) -> None:
    """A writer was stopped between the two copies."""
    with application(path):
        with Path(f"{path}-shm").open("r+b") as shm:
            shm.seek(8)
            shm.write(b"\xff\xff\xff\xff")
        finding = only(diagnose_database(path), "shm", Level.WARN)
    assert "torn" in finding.message


def test_an_index_of_another_user_is_a_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon ran as root once and made -shm: the application cannot write it (P42)."""
    look = os.fstat

    def as_if_given_away(descriptor: int) -> os.stat_result:
        facts = look(descriptor)
        if facts.st_ino != Path(f"{path}-shm").stat().st_ino:
            return facts
        return os.stat_result((*facts[:4], 12345, *facts[5:]))

    with application(path):
        monkeypatch.setattr(os, "fstat", as_if_given_away)
        finding = only(diagnose_database(path), "shm owner", Level.FAIL)
    assert "12345" in finding.message


def test_a_second_name_of_the_file_is_a_warning(path: Path) -> None:
    """A hard link has a -wal of its own name: SQLite's documented way to corruption."""
    path.with_name("b.db").hardlink_to(path)
    only(diagnose_database(path), "links", Level.WARN)


def test_a_database_that_is_being_captured_is_said_to_be(path: Path) -> None:
    """By the owner's byte, whoever holds it."""
    descriptor = os.open(path, os.O_RDWR)
    assert locks.try_lock(descriptor, locks.OWNER_BYTE)
    findings = diagnose_database(path)
    os.close(descriptor)
    assert any(f.check == "capture" and f.level is Level.OK for f in findings)


def test_locks_that_are_hidden_are_a_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gVisor, Docker Desktop, NFS without locks: the missing kind is named (P40)."""
    seen = LockVisibility(posix=False, ofd=True, shared_memory=False)
    monkeypatch.setattr(filesystem, "locks_visible_across_processes", lambda _: seen)
    finding = only(diagnose_database(path), "locks", Level.FAIL)
    assert "POSIX locks and shared memory" in finding.message

    def refuse(_directory: Path) -> LockVisibility:
        raise UnavailableError("locks cannot be tried")

    monkeypatch.setattr(filesystem, "locks_visible_across_processes", refuse)
    only(diagnose_database(path), "locks", Level.FAIL)


@pytest.mark.parametrize(
    ("kind", "level"), [("nfs4", Level.FAIL), ("9p", Level.FAIL), ("tmpfs", Level.WARN)]
)
def test_the_file_system_is_judged(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, level: Level
) -> None:
    """A network file system is a failure, a memory disk a warning."""
    mounts = path.with_name("mountinfo")
    mounts.write_text(f"1 0 0:1 / / rw - {kind} source rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTINFO", mounts)
    only(diagnose_database(path), "filesystem", level)
