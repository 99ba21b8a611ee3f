"""Across a reset nothing is guessed: exactly what iChange says is owed, or a gap."""

import os
from collections.abc import Callable

import pytest

from basenet.errors import CorruptionError
from basenet.sqlite.capture import Capture, Gap
from basenet.sqlite.walformat import FrameCodec, frame_offset
from tests.sqlite.conftest import Scene

BIG = "for n in range(200): c.execute('insert into t values(7, zeroblob(3000))')"


def open_unpinned(scene: Scene, *prepare: str) -> None:
    """Twenty commits are captured, then the pin is gone: SQLite may reset the log."""
    scene.open(*prepare)
    for number in range(20):
        scene.application.sql(f"insert into t values({number}, 0)")
    scene.mirror.poll()
    scene.capture.rotation.pin.release()


def write_phantom(capture: Capture) -> None:
    """Append a commit as a writer leaves it that dies before it updates the wal-index."""
    database = capture.database
    index = database.read_index()
    assert index is not None
    header = index.header
    codec = FrameCodec(header.page_size, is_big_endian=header.is_big_endian)
    block, _ = codec.encode(
        [(1, b"\xee" * header.page_size)],
        db_pages=1,
        salts=header.salts,
        start=header.checksum,
    )
    os.pwrite(database.wal_fd, block, frame_offset(header.frame_max, header.page_size))


def test_the_old_tail_is_read_after_an_ordinary_reset(scene: Scene) -> None:
    """One commit uncaptured, checkpoint, one commit in the new generation: both are found."""
    open_unpinned(scene)
    changes = scene.mirror.changes
    scene.application.sql("insert into t values('T6', 0)", "pragma wal_checkpoint(passive)")
    scene.application.sql("insert into t values('T7', 0)")
    scene.check(commits=22)
    assert scene.capture.counters.resets == 1
    assert scene.mirror.changes == changes + 2


def cut_by_size_limit(scene: Scene) -> None:
    scene.application.sql("pragma wal_checkpoint(passive)", "insert into t values('T7', 0)")


def cut_by_truncate(scene: Scene) -> None:
    scene.application.sql("pragma wal_checkpoint(truncate)", "insert into t values('T7', 0)")


def cut_by_spill(scene: Scene) -> None:
    scene.application.sql("pragma wal_checkpoint(passive)", "pragma cache_size=10", "begin")
    scene.application.run(BIG)


def cut_by_two_resets(scene: Scene) -> None:
    for _ in range(2):
        scene.application.sql("pragma wal_checkpoint(passive)", "insert into t values('T7', 0)")


@pytest.mark.parametrize(
    ("cut", "prepare"),
    [
        (cut_by_size_limit, "pragma journal_size_limit=0"),
        (cut_by_truncate, "select 1"),
        (cut_by_spill, "select 1"),
        (cut_by_two_resets, "select 1"),
    ],
)
def test_a_cut_tail_is_noticed(scene: Scene, cut: Callable[[Scene], None], prepare: str) -> None:
    """The cases of e4: an acknowledged commit is gone from the log before it was read (P1)."""
    open_unpinned(scene, prepare)
    scene.application.sql("insert into t values('T6', 0)")
    cut(scene)
    with pytest.raises(Gap) as caught:
        scene.mirror.poll()
    assert caught.value.is_lap
    assert scene.capture.is_pinned
    scene.mirror.recover(caught.value)
    scene.application.run("c.execute('commit') if c.in_transaction else None")
    scene.check()
    assert scene.capture.counters.laps == 1


@pytest.mark.parametrize("cut", [cut_by_size_limit, cut_by_truncate, cut_by_two_resets])
def test_a_captured_tail_may_be_cut(scene: Scene, cut: Callable[[Scene], None]) -> None:
    """Nothing is owed: a reset, however it came about, costs nothing (P14)."""
    open_unpinned(scene, "pragma journal_size_limit=0")
    cut(scene)
    if cut is cut_by_two_resets:
        with pytest.raises(Gap):
            scene.mirror.poll()
        return
    scene.check(commits=21)


def test_random_salts_are_not_a_lap(scene: Scene) -> None:
    """TRUNCATE by one connection, commit by another that never reset: both salts random (P14)."""
    open_unpinned(scene)
    other = scene.start()
    other.sql("select * from t")
    for number in range(5):
        scene.application.sql("pragma wal_checkpoint(truncate)")
        other.sql(f"insert into t values({number}, 1)")
        scene.mirror.poll()
    scene.check(commits=25)


@pytest.mark.parametrize("owed", [0, 1, 3])
def test_a_phantom_behind_the_tail_is_dropped(scene: Scene, owed: int) -> None:
    """A dead writer's commit frame verifies, but iChange never counted it (P1)."""
    open_unpinned(scene)
    for number in range(owed):
        scene.application.sql(f"insert into t values('owed', {number})")
    write_phantom(scene.capture)
    scene.application.sql("pragma wal_checkpoint(passive)", "insert into t values('T7', 0)")
    scene.check(commits=20 + owed + 1)


def test_a_phantom_in_the_present_generation_is_not_read(scene: Scene) -> None:
    """Behind mxFrame nothing is a commit; the next writer overwrites it."""
    open_unpinned(scene)
    write_phantom(scene.capture)
    scene.mirror.poll()
    assert scene.mirror.commits == 20
    scene.application.sql("insert into t values('T6', 0)")
    scene.check(commits=21)


def test_repeated_commit_frames_are_folded_across_a_reset(scene: Scene) -> None:
    """psow=0: the tail owes commits, not frames."""
    scene.open(page_size=512, suffix="?psow=0")
    scene.application.sql("pragma synchronous=full")
    scene.application.sql("insert into t values(1, 0)")
    scene.mirror.poll()
    assert scene.capture._reader.is_padded
    scene.capture.rotation.pin.release()
    for number in range(3):
        scene.application.sql(f"insert into t values('owed', {number})")
    scene.application.sql("pragma wal_checkpoint(passive)", "insert into t values('new', 0)")
    scene.application.sql("insert into t values('new', 1)")
    scene.check(commits=6)


def test_a_damaged_committed_frame_is_corruption(scene: Scene) -> None:
    """What the wal-index announces must verify; nothing else is an explanation."""
    open_unpinned(scene)
    scene.application.sql("insert into t values('T6', 0)")
    index = scene.capture.database.read_index()
    assert index is not None
    place = frame_offset(index.header.frame_max - 1, 4096) + 1000
    wal_fd = scene.capture.database.wal_fd
    before = os.pread(wal_fd, 1, place)
    os.pwrite(wal_fd, bytes([before[0] ^ 1]), place)
    with pytest.raises(CorruptionError, match="-wal is damaged"):
        scene.mirror.poll()
    os.pwrite(wal_fd, before, place)
    scene.check(commits=21)


def test_a_shorter_log_is_a_gap(scene: Scene) -> None:
    """The cursor lies behind the end of the present generation: SQLite recovered less."""
    open_unpinned(scene)
    index = scene.capture.database.read_index()
    assert index is not None
    scene.application.sql("insert into t values('T6', 0)")
    scene.mirror.poll()
    with pytest.raises(Gap) as caught:
        scene.capture._reader.read(scene.capture.cursor, index)
    assert not caught.value.is_lap


@pytest.mark.parametrize("block_frames", [1, 2, 7])
def test_a_backlog_is_read_in_blocks(scene: Scene, block_frames: int) -> None:
    """Blocks end at commits; a transaction larger than a block is verified first, then read."""
    open_unpinned(scene)
    scene.capture._reader.block_frames = block_frames
    for number in range(5):
        scene.application.sql(f"insert into t values({number}, 1)")
        scene.application.sql(f"insert into t values({number}, zeroblob(50000))")
    scene.application.sql("pragma wal_checkpoint(passive)")
    scene.application.sql("insert into t values(1, zeroblob(50000))")
    scene.check(commits=31)


def test_a_huge_transaction_is_found_in_the_file_if_its_log_was_reset(scene: Scene) -> None:
    """Under a pin on mark 0 the log may go, but the file then holds it and stands still (P15)."""
    open_unpinned(scene)
    scene.capture._reader.block_frames = 7
    scene.application.sql("insert into t values('big', randomblob(200000))")
    scene.application.sql("pragma wal_checkpoint(passive)")
    pieces = scene.capture.poll()
    assert scene.capture._advance()
    assert scene.capture._huge is not None
    assert scene.capture.rotation.pin.mark == 0
    scene.application.sql("insert into t values('next', randomblob(100000))")
    for piece in pieces:
        scene.mirror.take(piece)
    scene.check(commits=22)
