"""A restored database never lands on what somebody needs."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from basenet.archive.place import Place
from basenet.errors import ConflictError, UnavailableError, UsageError

APPLICATION = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=wal")
connection.execute("PRAGMA wal_autocheckpoint=0")
connection.execute("CREATE TABLE IF NOT EXISTS t(x)")
connection.execute("INSERT INTO t VALUES (1)")
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def application(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run an app that has ``path`` open, and kill it as a crash would: -wal and -shm stay."""
    process = subprocess.Popen(
        [sys.executable, "-c", APPLICATION, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def fill(place: Place, data: bytes = b"restored") -> list[Path]:
    with place.open_draft() as draft:
        draft.write(0, data)
        return place.accept(draft)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    """Neither one that was there before, nor one that appears meanwhile."""
    out = tmp_path / "app.db"
    place = Place(out)
    with place.open_draft() as draft:
        out.write_bytes(b"mine")
        with pytest.raises(ConflictError, match="--force"):
            place.check()
        with pytest.raises(ConflictError):
            place.accept(draft)
    assert out.read_bytes() == b"mine"
    assert names(tmp_path) == ["app.db"]


def test_a_file_that_appears_at_the_last_moment_is_kept(tmp_path: Path) -> None:
    """The name is taken by a link, which fails when it is taken; there is no moment between."""
    out = tmp_path / "app.db"
    place = Place(out)
    with place.open_draft() as draft:
        out.write_bytes(b"mine")
        with pytest.raises(ConflictError, match="appeared"):
            place._link(draft)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_what_another_database_left_is_refused(tmp_path: Path, suffix: str) -> None:
    """SQLite would replay it into the restored file, and integrity_check would say ok (P8)."""
    stale = tmp_path / f"app.db{suffix}"
    stale.write_bytes(b"stale")
    place = Place(tmp_path / "app.db")
    with pytest.raises(ConflictError, match=stale.name):
        place.check()
    with pytest.raises(ConflictError, match=stale.name):
        fill(place)
    assert names(tmp_path) == [stale.name]


def test_with_force_what_was_left_is_moved_aside(tmp_path: Path) -> None:
    """-wal and -journal are kept under another name, -shm holds nothing of its own."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        (tmp_path / f"app.db{suffix}").write_bytes(f"old{suffix}".encode())
    place = Place(tmp_path / "app.db", force=True)
    place.check()
    moved = fill(place)
    assert (tmp_path / "app.db").read_bytes() == b"restored"
    assert [path.read_bytes() for path in moved] == [b"old-wal", b"old-journal"]
    assert all(".before-restore-" in path.name for path in moved)
    assert names(tmp_path) == sorted(["app.db", *(path.name for path in moved)])


def test_a_dead_wal_is_not_replayed_into_the_restored_file(tmp_path: Path) -> None:
    """The app was killed, its log lies there with commits: the restored rows are the restored."""
    out, source = tmp_path / "app.db", tmp_path / "source.db"
    with sqlite3.connect(source) as connection:
        connection.execute("CREATE TABLE t(x)")
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(500)])
    connection.close()
    with application(out):
        pass
    assert (tmp_path / "app.db-wal").stat().st_size > 0
    fill(Place(out, force=True), source.read_bytes())
    connection = sqlite3.connect(out)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (500,)
    connection.close()


def test_an_open_database_is_not_replaced(tmp_path: Path) -> None:
    """Not even with force; the error names the process that has it open."""
    out = tmp_path / "app.db"
    with application(out) as process:
        place = Place(out, force=True)
        with pytest.raises(ConflictError, match=f"open in process {process.pid}"):
            place.check()
        with pytest.raises(ConflictError):
            fill(place)
        assert out.read_bytes().startswith(b"SQLite format 3")
        assert sorted(names(tmp_path)) == ["app.db", "app.db-shm", "app.db-wal"]
    place.check()
    fill(place)


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    """An app under another user must still be able to open its database."""
    out = tmp_path / "app.db"
    out.write_bytes(b"old")
    out.chmod(0o664)
    fill(Place(out, force=True))
    assert out.stat().st_mode & 0o777 == 0o664


def test_a_new_file_is_closed_to_others(tmp_path: Path) -> None:
    """Nobody said who else may read it."""
    fill(Place(tmp_path / "app.db"))
    assert (tmp_path / "app.db").stat().st_mode & 0o777 == 0o600


def test_a_link_stands_for_what_it_leads_to(tmp_path: Path) -> None:
    """SQLite names -wal after the real file, so that is where a stale one lies."""
    (tmp_path / "data").mkdir()
    (tmp_path / "app.db").symlink_to(tmp_path / "data" / "real.db")
    stale = tmp_path / "data" / "real.db-wal"
    stale.write_bytes(b"stale")
    with pytest.raises(ConflictError, match=r"real\.db-wal"):
        Place(tmp_path / "app.db").check()
    stale.unlink()
    fill(Place(tmp_path / "app.db"))
    assert (tmp_path / "app.db").is_symlink()
    assert (tmp_path / "data" / "real.db").read_bytes() == b"restored"


def test_a_draft_that_is_left_disappears(tmp_path: Path) -> None:
    """Whatever the reason."""
    with Place(tmp_path / "app.db").open_draft() as draft:
        draft.write(0, b"half")
        assert names(tmp_path) == [draft.path.name]
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_is_a_usage_error(tmp_path: Path) -> None:
    """A directory, or a directory that does not exist."""
    with pytest.raises(UsageError, match="is a directory"):
        Place(tmp_path).check()
    with pytest.raises(UsageError, match="make it first"):
        Place(tmp_path / "no" / "app.db").check()


@pytest.mark.parametrize("force", [False, True])
def test_a_device_or_a_pipe_is_never_replaced(tmp_path: Path, *, force: bool) -> None:
    """Not even with --force: whoever is root would replace /dev/null for the whole machine."""
    pipe = tmp_path / "app.db"
    os.mkfifo(pipe)
    for path in (pipe, Path(os.devnull)):
        with pytest.raises(UsageError, match="a device or a pipe"):
            Place(path, force=force).check()
    assert names(tmp_path) == ["app.db"]
    assert Path(os.devnull).is_char_device()


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC."""
    with Place(tmp_path / "app.db").open_draft() as draft:
        file = os.open("/dev/full", os.O_WRONLY)
        os.dup2(file, draft._file)
        os.close(file)
        with pytest.raises(UnavailableError, match="no room"):
            draft.write(0, b"data")
        with pytest.raises(UnavailableError, match="no room"):
            draft.write_all(0, [b"da", b"ta"])
