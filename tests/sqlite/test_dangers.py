"""What a careless capture would damage or lose, case by case (docs/pitfalls.md)."""

import ast
import os
import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import basenet
from basenet.errors import UnavailableError
from basenet.sqlite import filesystem, locks
from basenet.sqlite.attach import attach
from basenet.sqlite.capture import Gap
from basenet.sqlite.diagnose import Level, diagnose_database
from tests.sqlite.application import Application
from tests.sqlite.conftest import Scene

RESERVED = 8
_HEADER = struct.Struct("=12I")


def forge_commit_count(scene: Scene, step: int) -> None:
    """Make the wal-index say that there were ``step`` more commits than there were."""
    shm_fd = scene.capture.database.shm_fd
    words = list(_HEADER.unpack(os.pread(shm_fd, _HEADER.size, 0)))
    words[2] = (words[2] + step) & 0xFFFFFFFF
    s0 = s1 = 0
    for x0, x1 in zip(words[:10:2], words[1:10:2], strict=True):
        s0 = (s0 + x0 + s1) & 0xFFFFFFFF
        s1 = (s1 + x1 + s0) & 0xFFFFFFFF
    words[10:] = s0, s1
    os.pwrite(shm_fd, 2 * _HEADER.pack(*words), 0)


@pytest.mark.parametrize("step", [1, 3, -1])
def test_within_a_generation_too_the_captured_commits_must_add_up(scene: Scene, step: int) -> None:
    """Every frame verifies, and yet SQLite counted otherwise: a gap, never a silent pass (P1)."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.application.sql("insert into t values(2, 1)", "insert into t values(3, 1)")
    forge_commit_count(scene, step)
    with pytest.raises(Gap, match="commits") as caught:
        scene.mirror.poll()
    assert not caught.value.is_lap
    scene.mirror.recover(caught.value)
    scene.application.sql("insert into t values(4, 1)")
    scene.check()
    assert scene.capture.counters.gaps == 1


def test_a_lap_is_not_risked_again_at_once(scene: Scene) -> None:
    """Each costs a scan of the whole file, so the log stays pinned for minutes (P15)."""
    scene.open()
    scene.mirror.poll()
    rotation = scene.capture.rotation
    rotation.pin.release()
    assert not rotation.policy.is_strict(time.monotonic())
    for _ in range(2):
        scene.application.sql("insert into t values(1, 1)", "pragma wal_checkpoint(passive)")
    scene.application.sql("insert into t values(1, 1)")
    with pytest.raises(Gap) as caught:
        scene.mirror.poll()
    assert caught.value.is_lap
    assert rotation.pin.is_held
    assert rotation.policy.is_strict(time.monotonic() + 60)
    scene.mirror.recover(caught.value)
    scene.check()


def hold_checkpoint_lock(scene: Scene) -> Application:
    """A checkpointer that was stopped after it looked at the log; it holds the lock meanwhile."""
    other = scene.start()
    other.run(
        "import fcntl\n"
        "shm = open(db + '-shm', 'r+b')\n"
        f"fcntl.lockf(shm, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {locks.WAL_CHECKPOINT_BYTE})"
    )
    return other


@pytest.mark.parametrize("way", ["settle", "rotate"])
def test_a_mark_0_pin_stays_while_a_checkpointer_may_have_an_old_view(
    scene: Scene, way: str
) -> None:
    """Only our own checkpoint in this generation proves that nobody is left with one (P11).

    One that looked at the log before its reset would copy by that view as soon as mark 0 is free.
    """
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    rotation = scene.capture.rotation
    rotation._settle()
    assert rotation.pin.mark == 0
    checkpointer = hold_checkpoint_lock(scene)
    scene.application.sql("insert into t values(2, 1)")
    scene.mirror.poll()
    getattr(rotation, f"_{way}")()
    assert rotation.pin.mark == 0
    facts = rotation.facts()
    assert facts is not None
    assert not facts.is_backfilled
    checkpointer.run("shm.close()")
    getattr(rotation, f"_{way}")()
    facts = rotation.facts()
    assert facts is not None
    assert facts.is_settled
    scene.check(commits=2)


def test_a_pin_that_cannot_follow_stays_on_mark_0_beside_a_checkpointer(scene: Scene) -> None:
    """Whoever is copying now may have an older view of the log (P11)."""
    scene.open()
    scene.capture.rotation._settle()
    scene.application.run("for n in range(900): c.execute('insert into t values(?, 1)', (n,))")
    checkpointer = hold_checkpoint_lock(scene)
    scene.capture.rotation.lift()
    assert scene.capture.rotation.pin.mark == 0
    checkpointer.run("shm.close()")
    scene.capture.rotation.lift()
    assert scene.capture.rotation.pin.mark in {1, 2, 3, 4}
    scene.check(commits=900)


def list_mapping_modules() -> set[str]:
    """Return the modules of basenet that could map a file into memory."""
    root = Path(basenet.__file__).parent
    return {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else node.names)
        if (name if isinstance(name, str) else name.name).partition(".")[0] == "mmap"
    }


def test_nothing_of_the_application_is_mapped_into_memory(scene: Scene) -> None:
    """A mapped file that shrinks, or a hole in it on a full disk, ends the process (P34).

    Mapped are only the scratch file by which doctor tries shared memory and, in a cluster, a
    replica's -shm and a nameless file of ours in which pages wait: all are allocated before, and
    the second cannot shrink under the fence.
    """
    scene.open()
    for connection in scene.capture.database.connections:
        assert connection.execute("pragma mmap_size").get in {0, None}
    assert list_mapping_modules() == {
        "daemon/cluster/spool.py",
        "sqlite/filesystem.py",
        "sqlite/inject.py",
    }


def test_the_mapped_scratch_file_has_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of it is on the disk before it is mapped, or there is an error instead (P34)."""
    blocks: list[int] = []

    def look(descriptor: int, *_: object) -> filesystem.LockVisibility:
        blocks.append(os.fstat(descriptor).st_blocks)
        return filesystem.LockVisibility(posix=True, ofd=True, shared_memory=True)

    monkeypatch.setattr(filesystem, "_compare_views", look)
    assert filesystem.locks_visible_across_processes(tmp_path).is_good
    assert blocks == [4096 // 512]


def make_reserving_database(path: Path, *, mode: str) -> None:
    """Make a database whose pages end in 8 bytes of another program's, as the checksum VFS does."""
    connection = apsw.Connection(str(path))
    connection.reserve_bytes("main", RESERVED)
    connection.execute("pragma page_size=4096")
    connection.execute("vacuum")
    connection.execute(f"pragma journal_mode={mode}")
    connection.execute("create table t(x, y)")
    connection.close()
    assert path.read_bytes()[20] == RESERVED


def test_bytes_that_a_vfs_keeps_in_each_page_are_captured_as_they_are(scene: Scene) -> None:
    """We write no page of our own making, so a checksum in it stays right (P41)."""
    make_reserving_database(scene.path, mode="wal")
    scene.application = scene.start()
    scene.attach()
    for number in range(50):
        scene.application.sql(f"insert into t values({number}, randomblob(500))")
    scene.check(commits=50)
    assert scene.mirror.image()[20] == RESERVED


def test_a_database_with_reserved_bytes_is_not_converted_by_us(tmp_path: Path) -> None:
    """Our SQLite would change page 1 and leave its checksum wrong: its own VFS must do it (P41)."""
    path = tmp_path / "app.db"
    make_reserving_database(path, mode="delete")
    before = path.read_bytes()
    with pytest.raises(UnavailableError, match="journal_mode=wal"):
        attach(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    (finding,) = (found for found in diagnose_database(path) if found.check == "journal mode")
    assert finding.level is Level.FAIL
    assert "stop it once" not in finding.remedy


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_log_that_we_create_is_open_to_whom_the_database_is(tmp_path: Path, mode: int) -> None:
    """An application that comes later can write -wal and -shm, whoever made them (P42)."""
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        application.execute("pragma journal_mode=wal")
        application.execute("create table t(x)")
    path.chmod(mode)
    database = attach(path)
    try:
        modes = {
            suffix: Path(f"{path}{suffix}").stat().st_mode & 0o777 for suffix in ("-wal", "-shm")
        }
        owners = {
            (found.st_uid, found.st_gid)
            for found in (Path(f"{path}{suffix}").stat() for suffix in ("", "-wal", "-shm"))
        }
    finally:
        database.close()
    assert modes == {"-wal": mode, "-shm": mode}
    assert len(owners) == 1


@pytest.mark.parametrize("way", ["settle", "rotate"])
@pytest.mark.parametrize("rows", [1, 40])
def test_a_pin_may_be_wanted_while_the_first_one_is_being_moved_in(
    scene: Scene, way: str, rows: int
) -> None:
    """Unpinned and far behind, a rotation reads on, which engages the pin: two of ours then."""
    scene.open()
    scene.mirror.poll()
    scene.capture._reader.block_frames = 2
    rotation = scene.capture.rotation
    rotation.pin.release()
    for number in range(3):
        scene.application.sql(f"insert into t values({number}, zeroblob({rows * 4096}))")
    getattr(rotation, f"_{way}")()
    assert rotation.pin.is_held
    scene.check(commits=3)
    getattr(rotation, f"_{way}")()
    scene.application.sql("insert into t values(9, 9)")
    scene.check(commits=4)


def test_a_lap_in_the_middle_of_a_rotation_is_a_gap_and_no_more(scene: Scene) -> None:
    """The pin that protects the scan is engaged beside the one that was being moved in."""
    scene.open()
    scene.mirror.poll()
    rotation = scene.capture.rotation
    rotation.pin.release()
    for _ in range(2):
        scene.application.sql("insert into t values(1, 1)", "pragma wal_checkpoint(passive)")
    scene.application.sql("insert into t values(1, 1)")
    with pytest.raises(Gap) as caught:
        rotation._rotate()
    assert rotation.pin.is_held
    scene.mirror.recover(caught.value)
    scene.application.sql("insert into t values(1, 1)")
    scene.check()
