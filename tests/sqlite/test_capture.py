"""Real applications in their own processes; the mirror must equal their checkpointed file."""

import os
import random
import time
import tracemalloc

import numpy as np
import pytest

from basenet.sqlite.attach import attach
from basenet.sqlite.capture import Capture, Captured, CapturePolicy, Gap, RestReason
from basenet.sqlite.recover import scan
from basenet.units import MIB, lock_page
from basenet.wire.merkle import StateTree, leaf_hash
from tests.sqlite.conftest import Scene

FULL_SPEED = (
    "result = 0\n"
    "while time.monotonic() < end:\n"
    "    c.execute('insert into t values(?, zeroblob(60))', (result,)); result += 1"
)


def test_every_commit_is_one_change(scene: Scene) -> None:
    """Sixteen commits found at once stay sixteen restore points."""
    scene.open()
    for number in range(16):
        scene.application.sql(f"insert into t values({number}, 'a')")
    scene.check(commits=16)
    assert scene.mirror.changes == 16 + 1


def test_many_commits_found_at_once_become_fewer_changes(scene: Scene) -> None:
    """More than sixteen commits are merged, and all are counted."""
    scene.open()
    scene.application.run("for n in range(200): c.execute('insert into t values(?, 1)', (n,))")
    scene.check(commits=200)
    assert scene.mirror.changes < 10


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
def test_every_page_size_is_followed(scene: Scene, page_size: int) -> None:
    """The log's frames have the database's page size, 512 to 65536 bytes."""
    scene.open(page_size=page_size)
    for number in range(20):
        scene.application.sql(f"insert into t values({number}, zeroblob({number * 400}))")
        scene.mirror.poll()
    scene.application.sql("delete from t where x % 3 = 0", "vacuum")
    scene.check(commits=22)


def test_vacuum_and_shrink_drop_pages(scene: Scene) -> None:
    """A database that gets smaller loses pages; they must not linger in the mirror."""
    scene.open()
    scene.application.run(
        "c.execute('begin')\n"
        "for n in range(3000): c.execute('insert into t values(?, zeroblob(500))', (n,))\n"
        "c.execute('commit')"
    )
    scene.check(commits=1)
    before = scene.mirror.tree.db_pages
    scene.application.sql("delete from t where x > 100", "vacuum")
    scene.check(commits=3)
    assert scene.mirror.tree.db_pages < before / 5


def test_auto_vacuum_moves_pages(scene: Scene) -> None:
    """auto_vacuum shrinks inside ordinary commits."""
    scene.application = scene.start()
    scene.application.sql(
        "pragma auto_vacuum=full", "pragma journal_mode=wal", "create table t(x,y)"
    )
    scene.attach()
    scene.application.run(
        "for n in range(50): c.execute('insert into t values(?, zeroblob(9000))', (n,))"
    )
    scene.mirror.poll()
    scene.application.run("for n in range(49): c.execute('delete from t where x=?', (n,))")
    scene.check(commits=99)


@pytest.mark.parametrize("mode", ["passive", "full", "restart", "truncate"])
def test_checkpoints_of_the_application_lose_nothing(scene: Scene, mode: str) -> None:
    """Commit, checkpoint, commit: also when it happens between two polls."""
    scene.open()
    scene.capture.rotation.pin.release()
    for number in range(30):
        scene.application.sql(f"insert into t values({number}, zeroblob(3000))")
        scene.mirror.poll()
        scene.application.sql(f"pragma wal_checkpoint({mode})")
    scene.check(commits=30)


def test_a_loop_of_truncating_checkpoints_is_followed_or_repaired(scene: Scene) -> None:
    """Unpinned, TRUNCATE takes the uncaptured tail away; that is noticed and mended."""
    scene.open()
    scene.capture.rotation.pin.release()
    scene.application.run(
        "for n in range(40):\n"
        "    c.execute('insert into t values(?, 1)', (n,))\n"
        "    c.execute('pragma wal_checkpoint(truncate)').fetchall()"
    )
    with pytest.raises(Gap) as caught:
        scene.mirror.poll()
    assert caught.value.is_lap
    scene.mirror.recover(caught.value)
    scene.check()
    assert scene.mirror.commits == 40 + 0
    scene.application.sql("insert into t values(1, 1)")
    scene.check()


def test_a_transaction_that_does_not_fit_memory_is_a_run(scene: Scene) -> None:
    """40 MB in one commit: pieces of at most 4 MiB, one commit, the cursor moves at the end."""
    scene.open()
    scene.application.sql("insert into t values(0, 0)")
    scene.application.run(
        "c.execute('pragma cache_size=100')\n"
        "c.execute('begin')\n"
        "for n in range(10000): c.execute('insert into t values(?, randomblob(4000))', (n,))\n"
        "c.execute('update t set y = zeroblob(10) where x % 50 = 1')\n"
        "c.execute('commit')\n"
        "c.execute('insert into t values(1, 1)')"
    )
    scene.check(commits=3)
    assert scene.mirror.runs == 1


def test_rolled_back_and_spilled_transactions_are_not_seen(scene: Scene) -> None:
    """Frames beyond mxFrame are nobody's commit, also when they were spilled before a rollback."""
    scene.open()
    scene.application.sql("pragma cache_size=5")
    for number in range(5):
        scene.application.sql(f"insert into t values({number}, 1)", "begin")
        scene.application.run(
            "for n in range(100): c.execute('insert into t values(?, zeroblob(3000))', (n,))"
        )
        scene.mirror.poll()
        scene.application.sql("rollback")
        scene.mirror.poll()
    scene.application.sql("begin", "savepoint s", "insert into t values(77, zeroblob(90000))")
    scene.application.sql("rollback to s", "insert into t values(78, 1)", "commit")
    scene.check(commits=6)


def test_repeated_commit_frames_are_one_commit(scene: Scene) -> None:
    """psow=0 pads a commit to the sector by repeating its last frame."""
    scene.open(page_size=512, suffix="?psow=0")
    scene.application.sql("pragma synchronous=full")
    for number in range(10):
        scene.application.sql(f"insert into t values({number}, 1)")
    scene.mirror.poll()
    scene.application.run("for n in range(100): c.execute('insert into t values(?, 1)', (n,))")
    scene.check(commits=110)
    assert scene.capture._reader.is_padded


def test_an_application_killed_in_a_transaction_leaves_nothing_behind(scene: Scene) -> None:
    """SIGKILL in mid-transaction: the next one continues where the last commit ended."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)", "pragma cache_size=5", "begin")
    scene.application.run(
        "for n in range(200): c.execute('insert into t values(?, zeroblob(3000))', (n,))"
    )
    scene.application.kill()
    scene.mirror.poll()
    second = scene.start()
    second.sql("insert into t values(2, 1)", "insert into t values(3, 1)")
    scene.check(commits=3)


def test_a_recovered_wal_index_is_bridged(scene: Scene) -> None:
    """IChange starts at 0 after a recovery: unknown, so a page diff, and nothing is lost."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.capture.rotation.pin.release()
    # A torn header, as a writer leaves it that dies between the copies.
    os.pwrite(scene.capture.database.shm_fd, b"\xff" * 48, 0)
    scene.application.sql("insert into t values(2, 1)")
    with pytest.raises(Gap) as caught:
        scene.mirror.poll()
    assert not caught.value.is_lap
    scene.mirror.recover(caught.value)
    scene.application.sql("insert into t values(3, 1)")
    scene.check()


def test_autocheckpoint_off_gets_checkpoints_from_us(scene: Scene) -> None:
    """wal_autocheckpoint=0 (P36): the log must not grow for ever."""
    scene.open("pragma wal_autocheckpoint=0", "pragma synchronous=normal")
    largest = 0
    for _ in range(15):
        scene.application.start(
            "for n in range(1000): c.execute('insert into t values(?, zeroblob(100))', (n,))"
        )
        while not scene.application.is_finished():
            scene.capture.run_active(scene.mirror.sink, scene.application.is_finished)
        scene.application.finish()
        largest = max(largest, scene.capture.wal_bytes)
    scene.check(commits=15_000)
    assert largest < 40_000_000


@pytest.mark.parametrize("policy", list(CapturePolicy))
def test_a_writer_at_full_speed_is_followed(scene: Scene, policy: CapturePolicy) -> None:
    """Two seconds of one-row commits; laps may happen and must be repaired."""
    scene.open("pragma synchronous=normal", policy=policy)
    scene.application.start("end = time.monotonic() + 1.5\n" + FULL_SPEED)
    while not scene.application.is_finished():
        try:
            rest = scene.capture.run_active(scene.mirror.sink, scene.application.is_finished)
        except Gap as gap:
            scene.mirror.recover(gap)
        else:
            assert rest.reason in {RestReason.IDLE, RestReason.STOPPED}
    commits = scene.application.finish()
    scene.check(commits=None if scene.mirror.gaps else commits)
    if policy is CapturePolicy.STRICT:
        assert scene.mirror.gaps == []


def test_a_pause_ends_with_a_commit_or_with_who_waits_for_one(scene: Scene) -> None:
    """However rarely the pin is looked after; nobody is asked whether to stop meanwhile."""
    scene.application = scene.start()
    scene.application.sql("pragma journal_mode=wal", "create table t(x, y)")
    naps: list[float] = []
    asked: list[int] = []

    def nap(seconds: float) -> bool:
        naps.append(seconds)
        if len(naps) == 3:
            scene.application.sql("insert into t values(1, 1)")
        return len(naps) == 7

    def should_stop() -> bool:
        asked.append(len(naps))
        return len(asked) == 3

    capture = Capture(attach(scene.path), nap=nap, steer_s=600.0, active_s=600.0)
    scene._stack.callback(capture.close)
    capture.adopt()
    batches: list[int] = []

    def sink(batch: list[Captured]) -> bool:
        batches.append(sum(item.commits for item in batch))
        return True

    assert capture.run_active(sink, should_stop).reason is RestReason.STOPPED
    assert (asked, batches) == ([0, 3, 7], [1])


def test_a_failing_consumer_gets_the_same_change_again(scene: Scene) -> None:
    """A change counts as taken when the next is asked for."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)", "insert into t values(2, 1)")
    before = scene.capture.cursor
    first = next(scene.capture.poll())
    assert scene.capture.cursor == before
    again = next(scene.capture.poll())
    assert again.cursor == first.cursor
    scene.check(commits=2)


def test_an_idle_application_truncates_without_waiting(scene: Scene) -> None:
    """After a second of quiet our pin is on mark 0, where it is in nobody's way (P13)."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    now = time.monotonic() + 10
    scene.capture.rotation._clock = lambda: now
    scene.capture.steer()
    began = time.monotonic()
    assert scene.application.sql("pragma wal_checkpoint(truncate)") == [[0, 0, 0]]
    assert time.monotonic() - began < 2
    scene.check(commits=1)


@pytest.mark.parametrize("policy", list(CapturePolicy))
def test_applications_killed_at_full_speed_lose_nothing_that_was_committed(
    scene: Scene, policy: CapturePolicy
) -> None:
    """SIGKILL at random moments, the next one goes on at once; what SQLite kept, we have."""
    scene.open("pragma synchronous=normal", policy=policy)
    for _ in range(6):
        scene.application.start("end = time.monotonic() + 60\n" + FULL_SPEED)
        end = time.monotonic() + random.uniform(0.02, 0.2)

        def is_over(end: float = end) -> bool:
            return time.monotonic() >= end

        while not is_over():
            try:
                scene.capture.run_active(scene.mirror.sink, is_over)
            except Gap as gap:
                scene.mirror.recover(gap)
        scene.application.kill()
        scene.application = scene.start()
    # A commit that was written but never announced counts for nobody while the wal-index lives,
    # and would for the recovery that our comparison runs on a copy: the next writer overwrites it.
    scene.application.sql("insert into t values('last', 0)")
    try:
        scene.check()
    except Gap as gap:
        scene.mirror.recover(gap)
        scene.check()
    assert scene.application.sql("pragma integrity_check") == [["ok"]]


def test_a_scan_beside_a_writer_is_one_moment(scene: Scene) -> None:
    """Hashes read at full speed, followed from the scan's own place, end in the true state."""
    scene.open("pragma synchronous=normal", policy=CapturePolicy.STRICT)
    scene.application.start("end = time.monotonic() + 1.5\n" + FULL_SPEED)
    tree = StateTree(4096)

    def sink(pieces: list[Captured]) -> bool:
        for piece in pieces:
            numbers = piece.pgnos.tolist()
            pages = memoryview(piece.pages)
            hashes = [
                leaf_hash(number, pages[row * 4096 : (row + 1) * 4096])
                for row, number in enumerate(numbers)
            ]
            tree.update(numbers, hashes, piece.db_pages)
        return True

    scans = 0
    while not scene.application.is_finished():
        found = scene.capture.adopt()
        scans += 1
        tree = StateTree(4096, found.leaves)
        end = time.monotonic() + 0.1
        scene.capture.run_active(sink, lambda: time.monotonic() >= end)  # noqa: B023  (this round's)
    scene.application.finish()
    for piece in scene.capture.poll():
        sink([piece])
    assert scans > 3
    assert tree.root() == StateTree(4096, scan(scene.capture.database).leaves).root()


def test_a_run_goes_to_the_sink_piece_by_piece(scene: Scene) -> None:
    """The daemon's loop hands a large transaction over in pieces and then goes on."""
    scene.open()
    scene.application.run(
        "c.execute('begin')\n"
        "for n in range(4000): c.execute('insert into t values(?, randomblob(4000))', (n,))\n"
        "c.execute('commit')"
    )
    sizes = []

    def sink(pieces: list[Captured]) -> bool:
        sizes.append(len(pieces))
        return scene.mirror.sink(pieces)

    rest = scene.capture.run_active(sink, lambda: False)
    assert rest.reason is RestReason.IDLE
    assert scene.mirror.runs == 1
    assert len(sizes) >= 4
    assert set(sizes) == {1}
    scene.check(commits=1)


def test_memory_stays_bounded_in_a_large_transaction(scene: Scene) -> None:
    """60 MB in one commit need a block, a piece and 12 bytes a frame, not 60 MB."""
    scene.open()
    scene.application.run(
        "c.execute('begin')\n"
        "for n in range(15000): c.execute('insert into t values(?, randomblob(4000))', (n,))\n"
        "c.execute('commit')"
    )
    tracemalloc.start()
    commits = sum(piece.commits for piece in scene.capture.poll())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert commits == 1
    assert peak < 40 * MIB


@pytest.mark.system
def test_a_database_beyond_one_gibibyte_has_no_lock_page(scene: Scene) -> None:
    """The page that covers SQLite's lock bytes is skipped by SQLite and by us."""
    page_size = 65536
    lock = lock_page(page_size)
    scene.application = scene.start()
    scene.application.sql(f"pragma page_size={page_size}", "create table t(x, y)")
    scene.application.close()
    # A sparse file of that size, as a database in which nearly all pages were freed.
    with scene.path.open("r+b") as file:
        file.seek(28)
        file.write((lock - 5).to_bytes(4, "big"))
        file.truncate((lock - 5) * page_size)
    scene.application = scene.start()
    scene.application.sql("pragma journal_mode=wal", "pragma wal_autocheckpoint=0")
    scene.capture = Capture(attach(scene.path))
    scene._stack.callback(scene.capture.close)
    tree = StateTree(page_size, scene.capture.adopt().leaves)
    scene.application.sql("insert into t values(1, zeroblob(700000))")
    for piece in scene.capture.poll():
        numbers = piece.pgnos.tolist()
        assert lock not in numbers
        assert {lock - 1, lock + 1} <= set(numbers)
        pages = np.frombuffer(piece.pages, np.uint8).reshape(-1, page_size)
        hashes = [leaf_hash(number, pages[row].data) for row, number in enumerate(numbers)]
        tree.update(numbers, hashes, piece.db_pages)
    assert tree.root() == StateTree(page_size, scan(scene.capture.database).leaves).root()
    assert list(scene.capture.recover(tree.leaves)) == []


def test_a_huge_transaction_that_the_rotation_found_is_not_overtaken(scene: Scene) -> None:
    """What comes behind it, read by the next poll, is handed over behind it."""
    scene.open(policy=CapturePolicy.STRICT)
    scene.mirror.poll()
    scene.application.sql("insert into t values(1, randomblob(12000000))")
    assert not scene.capture._reach_tip()
    scene.application.sql("insert into t values(2, randomblob(12000000))", "delete from t")
    ends = iter([False, True])
    scene.capture.run_active(scene.mirror.sink, lambda: next(ends))
    scene.check(commits=3)
