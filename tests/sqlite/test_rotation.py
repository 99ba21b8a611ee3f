"""The pin and the application's own locks: nobody waits for us, nothing is lost."""

import os
import resource
import time
from collections.abc import Callable

import pytest

from basenet.sqlite import locks, rotation
from basenet.sqlite.capture import Captured, CapturePolicy, Gap, RestReason
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.policy import LONG_FRAMES
from tests.sqlite.conftest import Scene


def facts(scene: Scene) -> tuple[int | None, int, bool]:
    """Our mark, the frames in the log, and whether the file has them all."""
    found = scene.capture.rotation.facts()
    assert found is not None
    return found.mark, found.frame_max, found.is_backfilled


def run_until(scene: Scene, should_stop: Callable[[], bool]) -> None:
    """The daemon's loop, bridging gaps."""
    while not should_stop():
        try:
            scene.capture.run_active(scene.mirror.sink, should_stop)
        except Gap as gap:
            scene.mirror.recover(gap)


def test_the_pin_keeps_the_log_from_being_reset(scene: Scene) -> None:
    """On mark 1..4 the application's checkpoints cannot pass us; released, they can."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.capture.rotation.pin.release()
    assert scene.capture.rotation.engage()
    assert scene.capture.rotation.pin.mark in {1, 2, 3, 4}
    frames = facts(scene)[1]
    scene.application.sql("insert into t values(2, 1)")
    assert scene.application.sql("pragma wal_checkpoint(passive)") == [[0, frames + 1, frames]]
    scene.capture.rotation.pin.release()
    assert scene.capture.rotation.pin.mark is None
    assert scene.application.sql("pragma wal_checkpoint(passive)") == [[0, frames + 1, frames + 1]]


def test_the_mark_is_told_beside_other_readers(scene: Scene) -> None:
    """A lock query names one holder only: certain when it is us, or when one byte is left."""
    scene.open()
    reader = scene.start()
    for number in range(4):
        scene.application.sql(f"insert into t values({number}, 1)")
        reader.sql("begin", "select count(*) from t")
        scene.capture.rotation.pin.release()
        assert scene.capture.rotation.engage()
        assert scene.capture.rotation.pin.mark in {1, 2, 3, 4, None}
        reader.sql("commit")
        scene.mirror.poll()
    scene.check(commits=4)


def test_settling_ends_on_mark_zero(scene: Scene) -> None:
    """All in the file, the pin in nobody's way, the next commit starts the log anew."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.capture.rotation._settle()
    assert facts(scene)[0] == 0
    assert facts(scene)[2]
    scene.application.sql("insert into t values(2, 1)")
    assert facts(scene)[1] < 4
    scene.check(commits=2)


def test_settling_beside_a_long_reader_gives_up_and_comes_again(scene: Scene) -> None:
    """Another reader's mark is not ours to move."""
    scene.open()
    reader = scene.start()
    reader.sql("begin", "select * from t")
    scene.application.sql("insert into t values(1, 1)")
    scene.capture.rotation._settle()
    assert not facts(scene)[2]
    assert scene.capture.is_pinned
    assert scene.capture.rotation.next_call_s() is not None
    reader.sql("commit")
    scene.capture.rotation._settle()
    assert facts(scene)[0] == 0
    scene.check(commits=1)


def test_rotating_makes_the_next_writer_start_anew(scene: Scene) -> None:
    """Also while the application never pauses; the lock is held for a moment only."""
    scene.open(policy=CapturePolicy.STRICT)
    scene.application.run("for n in range(900): c.execute('insert into t values(?, 1)', (n,))")
    scene.capture.rotation._rotate()
    assert facts(scene)[0] == 0
    assert facts(scene)[2]
    assert locks.anyone(scene.capture.database.shm_fd, locks.WAL_WRITE_BYTE) is None
    ((reason, held_s),) = scene.capture.lock_held_s
    assert reason == "rotate"
    assert 0 < held_s < 5
    scene.application.sql("insert into t values(2, 1)")
    assert facts(scene)[1] < 4
    scene.check(commits=901)


def test_a_long_log_is_emptied_in_one_go(scene: Scene) -> None:
    """All of it under the lock: what is copied before lets the application write on meanwhile."""
    scene.open("pragma wal_autocheckpoint=0", policy=CapturePolicy.STRICT)
    scene.application.run(
        f"for n in range({LONG_FRAMES}): c.execute('insert into t values(?, 1)', (n,))"
    )
    begun = scene.capture.rotation.counters.checkpoints
    scene.capture.rotation._rotate()
    assert facts(scene)[2]
    under_the_lock = 2
    assert scene.capture.rotation.counters.checkpoints - begun == under_the_lock
    scene.check(commits=LONG_FRAMES)


def test_a_very_long_log_is_copied_before_the_lock_is_taken(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying it under the lock would keep the application waiting for too long."""
    monkeypatch.setattr(rotation, "BULK_FRAMES", LONG_FRAMES)
    scene.open("pragma wal_autocheckpoint=0", policy=CapturePolicy.STRICT)
    scene.application.run(
        f"for n in range({LONG_FRAMES}): c.execute('insert into t values(?, 1)', (n,))"
    )
    begun = scene.capture.rotation.counters.checkpoints
    scene.capture.rotation._rotate()
    assert facts(scene)[2]
    before_and_under_the_lock = 4
    assert scene.capture.rotation.counters.checkpoints - begun == before_and_under_the_lock
    scene.check(commits=LONG_FRAMES)


def test_a_pin_that_cannot_follow_leaves_mark_zero(scene: Scene) -> None:
    """There each of the application's commits would look through the whole log in vain."""
    scene.open()
    scene.capture.rotation._settle()
    assert facts(scene)[0] == 0
    scene.application.run("for n in range(700): c.execute('insert into t values(?, 1)', (n,))")
    scene.capture.rotation.lift()
    assert facts(scene)[0] == 0
    scene.application.run("for n in range(700): c.execute('insert into t values(?, 1)', (n,))")
    # Nothing is copied while we hold it, and nothing was read by us: all of it is to be kept.
    frames = facts(scene)[1]
    assert frames >= 1400
    assert not facts(scene)[2]
    scene.capture.rotation.lift()
    assert facts(scene)[0] in {1, 2, 3, 4}
    scene.application.sql("insert into t values('copies up to the mark', 1)")
    assert scene.application.sql("pragma wal_checkpoint(passive)") == [[0, frames + 1, frames]]
    scene.application.run("for n in range(700): c.execute('insert into t values(?, 1)', (n,))")
    assert facts(scene)[1] > frames + 700  # no commit began the log anew
    scene.check(commits=2101)


def test_a_log_without_bounds_is_held_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's commits wait for moments, so that the log cannot fill the disk."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.capture.rotation.hold_back()
    assert scene.capture.lock_held_s == []
    monkeypatch.setattr(rotation, "HELD_BACK_BYTES", scene.capture.database.page_size)
    monkeypatch.setattr(rotation, "HOLD_BACK_S", 0.001)
    scene.capture.rotation.hold_back()
    ((reason, held_s),) = scene.capture.lock_held_s
    assert reason == "hold back"
    assert held_s >= 0.001
    assert locks.anyone(scene.capture.database.shm_fd, locks.WAL_WRITE_BYTE) is None
    scene.check(commits=1)


def test_a_writer_at_work_refuses_the_rotation_without_a_wait(scene: Scene) -> None:
    """An open write transaction: tried for 5 ms, nothing lost, pinned as before."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)", "begin immediate")
    scene.application.sql("insert into t values(2, 1)")
    began = time.monotonic()
    scene.capture.rotation._rotate()
    assert time.monotonic() - began < 2
    assert scene.capture.lock_held_s == []
    assert scene.capture.is_pinned
    scene.application.sql("commit")
    scene.check(commits=2)


def test_a_waiting_truncate_is_let_through(scene: Scene) -> None:
    """It holds the write lock and waits for our mark; we move the pin to mark 0 (P13)."""
    scene.open(policy=CapturePolicy.STRICT)
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.capture.rotation.pin.release()
    scene.capture.rotation.engage()
    assert scene.capture.rotation.pin.mark != 0
    scene.application.start(
        "began = time.monotonic()\n"
        "row = c.execute('pragma wal_checkpoint(truncate)').fetchone()\n"
        "result = [row, time.monotonic() - began]"
    )
    run_until(scene, scene.application.is_finished)
    row, took_s = scene.application.finish()
    assert row == [0, 0, 0]
    assert took_s < 5
    scene.check(commits=1)


def test_a_checkpoint_that_waits_for_a_mark_at_the_tip_is_let_through(scene: Scene) -> None:
    """It looked at our mark just before we moved it: SQLite would give us that mark for ever."""
    scene.open(policy=CapturePolicy.STRICT)
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.capture.rotation.pin.release()
    scene.capture.rotation.engage()
    mark = scene.capture.rotation.pin.mark
    assert mark
    byte = locks.WAL_READ_BYTE + mark
    waiting = scene.start()
    waiting.run(
        "import fcntl\n"
        "shm = open(db + '-shm', 'r+b')\n"
        f"fcntl.lockf(shm, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, {locks.WAL_WRITE_BYTE})"
    )
    # As walCheckpoint does behind walBusyLock: again and again, with pauses, for that one byte.
    waiting.start(
        "result = None\n"
        "for attempt in range(1000):\n"
        "    try:\n"
        f"        fcntl.lockf(shm, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {byte})\n"
        "        result = attempt; break\n"
        "    except OSError: time.sleep(0.02)\n"
        "shm.close()"
    )
    run_until(scene, waiting.is_finished)
    assert waiting.finish() < 100
    assert scene.capture.is_pinned
    scene.application.sql("insert into t values(2, 1)")
    scene.check(commits=2)


@pytest.mark.parametrize("policy", list(CapturePolicy))
@pytest.mark.parametrize("mode", ["truncate", "restart", "full"])
def test_a_loop_of_checkpoints_and_commits_is_followed(
    scene: Scene, policy: CapturePolicy, mode: str
) -> None:
    """Commits between blocking checkpoints, as fast as they go."""
    scene.open("pragma synchronous=off", policy=policy)
    scene.application.start(
        "worst = 0\n"
        "for n in range(60):\n"
        "    for m in range(5): c.execute('insert into t values(?, ?)', (n, m))\n"
        "    began = time.monotonic()\n"
        f"    c.execute('pragma wal_checkpoint({mode})').fetchall()\n"
        "    worst = max(worst, time.monotonic() - began)\n"
        "result = worst"
    )
    run_until(scene, scene.application.is_finished)
    assert scene.application.finish() < 2
    scene.check(commits=None if scene.mirror.gaps else 300)
    if policy is CapturePolicy.STRICT:
        assert scene.mirror.gaps == []


def test_a_replaced_file_stops_the_rotation(scene: Scene) -> None:
    """Raised before anything is written, and no lock stays behind."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.path.rename(scene.folder / "moved.db")
    with pytest.raises(DatabaseReplaced, match="deleted or moved"):
        scene.capture.rotation._settle()
    with pytest.raises(DatabaseReplaced):
        scene.capture.rotation._rotate()
    assert locks.anyone(scene.capture.database.shm_fd, locks.WAL_WRITE_BYTE) is None
    scene.capture.close()
    assert scene.capture.database.connections == []


def test_back_pressure_keeps_the_pin(scene: Scene) -> None:
    """A consumer that wants no more: what it took is taken, the rest stays safe in the log."""
    scene.open()
    scene.capture.rotation.pin.release()
    scene.application.sql("insert into t values(1, 1)")
    taken: list[Captured] = []

    def sink(pieces: list[Captured]) -> bool:
        taken.extend(pieces)
        return False

    rest = scene.capture.run_active(sink, lambda: False)
    assert rest.reason is RestReason.BACK_PRESSURE
    assert len(taken) == 1
    assert scene.capture.is_pinned
    for piece in taken:
        scene.mirror.take(piece)
    scene.application.sql("insert into t values(2, 1)")
    scene.check(commits=2)


def test_a_failing_consumer_is_given_the_same_again(scene: Scene) -> None:
    """It raised, so nothing counts as taken."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")

    def fail(_: object) -> bool:
        raise OSError("journal")

    with pytest.raises(OSError, match="journal"):
        scene.capture.run_active(fail, lambda: False)
    assert scene.capture.has_news()
    scene.check(commits=1)


def test_an_idle_capture_comes_back_pinned_and_asks_for_one_more_call(scene: Scene) -> None:
    """Then the log is settled and nothing needs a timer."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    rest = scene.capture.run_active(scene.mirror.sink, lambda: False)
    assert rest.reason is RestReason.IDLE
    assert rest.next_call_s is not None
    assert scene.capture.is_pinned
    now = time.monotonic() + 1
    scene.capture.rotation._clock = lambda: now
    assert scene.capture.steer() is None
    assert facts(scene)[0] == 0
    assert not scene.capture.has_news()
    scene.check(commits=1)


def test_a_torn_index_is_repaired_after_a_while(scene: Scene) -> None:
    """No application is there to do it, so one of our connections reads (P3)."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.application.close()
    scene.capture.rotation.pin.release()
    os.pwrite(scene.capture.database.shm_fd, b"\xff" * 48, 0)
    now = 1000.0
    scene.capture._clock = lambda: now
    scene.mirror.poll()
    assert scene.capture.rotation.facts() is None
    assert scene.capture.rotation.next_call_s() is not None
    now += 1
    scene.mirror.poll()
    assert scene.capture.rotation.facts() is not None


def test_the_log_can_be_synced(scene: Scene) -> None:
    """Fdatasync through our own descriptor (P7)."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.capture.sync_wal()
    scene.check(commits=1)


def test_detaching_needs_an_empty_desk(scene: Scene) -> None:
    """Commits that were not handed over, or an application: None, and still pinned."""
    scene.open()
    assert scene.capture.detach() is None
    scene.application.sql("insert into t values(1, 1)")
    scene.application.close()
    assert scene.capture.has_news()
    assert scene.capture.detach() is None
    scene.mirror.poll()
    assert not scene.capture.has_news()
    deadline = time.monotonic() + 5
    while (state := scene.capture.detach()) is None:
        assert scene.capture.is_pinned
        assert time.monotonic() < deadline
    assert state.size == scene.path.stat().st_size
    assert list(scene.folder.iterdir()) == [scene.path]


def test_a_full_disk_harms_nobody(scene: Scene) -> None:
    """Our checkpoint cannot write: said, tried again later, and complete once there is room."""
    scene.open()
    scene.application.sql("insert into t values(1, randomblob(200000))")
    scene.mirror.poll()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        scene.capture.rotation._settle()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert scene.capture.rotation.counters.problem is not None
    assert scene.capture.is_pinned
    scene.application.sql("insert into t values(2, 2)")
    scene.capture.rotation._settle()
    assert scene.capture.rotation.counters.problem is None
    assert facts(scene)[0] == 0
    scene.check(commits=2)
