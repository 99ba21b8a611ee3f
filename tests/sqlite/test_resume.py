"""A second life: what can be proven from the log alone, and what needs a scan."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from basenet.errors import CorruptionError
from basenet.sqlite.attach import DetachedState, attach
from basenet.sqlite.capture import Capture, Cursor
from basenet.sqlite.resume import Outcome, Resumption
from tests.sqlite.conftest import Scene


def reborn(scene: Scene, detached: DetachedState | None = None) -> Resumption:
    """Close the capture and begin a new one with the cursor (through its bytes) of the old."""
    cursor = Cursor.decode(scene.capture.cursor.encode())
    scene.capture.close()
    return begin(scene, cursor, detached)


def begin(scene: Scene, cursor: Cursor | None, detached: DetachedState | None) -> Resumption:
    scene.capture = Capture(attach(scene.path))
    scene._stack.callback(scene.capture.close)
    scene.mirror.capture = scene.capture
    return scene.capture.resume(cursor, detached)


def detach(scene: Scene) -> DetachedState:
    """Let go of the file once it has been quiet for a moment."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        scene.mirror.poll()
        state = scene.capture.detach()
        if state is not None:
            return DetachedState.decode(state.encode())
    raise AssertionError("the database could not be detached")


@pytest.mark.parametrize("commits", [0, 1, 40])
def test_the_same_generation_is_resumed(scene: Scene, commits: int) -> None:
    """Commits made while we were away wait behind the cursor."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    cursor = scene.capture.cursor
    scene.capture.close()
    for number in range(commits):
        scene.application.sql(f"insert into t values({number}, 2)")
    found = begin(scene, cursor, None)
    assert found.outcome is Outcome.RESUMED
    assert str(commits) in found.reason
    scene.check(commits=1 + commits)


def test_a_resumed_log_without_our_connection_is_recovered_by_sqlite(scene: Scene) -> None:
    """Everybody died: the wal-index is born anew, the log's generation stays."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    scene.application.sql("insert into t values(2, 2)")
    cursor = scene.capture.cursor
    scene.capture.rotation.pin.release()
    scene.application.kill()
    scene.capture.close()
    Path(f"{scene.path}-shm").unlink()
    found = begin(scene, cursor, None)
    assert found.outcome is Outcome.RESUMED
    scene.check(commits=2)


def test_a_log_that_was_reset_meanwhile_needs_a_scan(scene: Scene) -> None:
    """Equal iChange would prove nothing: salts changed, so every page is compared."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    cursor = scene.capture.cursor
    scene.capture.close()
    scene.application.sql("insert into t values(2, 2)", "pragma wal_checkpoint(truncate)")
    scene.application.sql("insert into t values(3, 3)")
    found = begin(scene, cursor, None)
    assert (found.outcome, found.place) == (Outcome.AHEAD, None)
    assert found.outcome.needs_scan
    scene.mirror.restart(scene.capture.recover(scene.mirror.tree.leaves))
    scene.check()


def test_a_log_that_lost_its_end_needs_a_scan(scene: Scene) -> None:
    """A power failure with synchronous=NORMAL: the file fell behind what was captured (P7)."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    shutil.copy(f"{scene.path}-wal", scene.folder / "older-wal")
    scene.application.sql("insert into t values(2, 2)")
    scene.mirror.poll()
    cursor = scene.capture.cursor
    scene.capture.close()
    scene.application.kill()
    shutil.copy(scene.folder / "older-wal", f"{scene.path}-wal")
    Path(f"{scene.path}-shm").unlink()
    found = begin(scene, cursor, None)
    assert found.outcome is Outcome.BEHIND
    scene.mirror.restart(scene.capture.recover(scene.mirror.tree.leaves))
    scene.check()


def test_a_log_that_went_on_otherwise_needs_a_scan(scene: Scene) -> None:
    """Same salts, same length, another last frame: a fork, not a continuation."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.mirror.poll()
    cursor = scene.capture.cursor
    scene.capture.close()
    forked = replace(cursor, checksum=(cursor.checksum[0] ^ 1, cursor.checksum[1]))
    assert begin(scene, forked, None).outcome is Outcome.BEHIND


def test_another_file_or_page_size_needs_a_scan(scene: Scene) -> None:
    """A cursor speaks of one inode and one page size; none at all speaks of nothing."""
    scene.open()
    cursor = scene.capture.cursor
    scene.capture.close()
    assert begin(scene, None, None).outcome is Outcome.UNKNOWN
    scene.capture.close()
    assert begin(scene, replace(cursor, inode=1), None).outcome is Outcome.REPLACED
    scene.capture.close()
    wrong_size = replace(cursor, page_size=512)
    assert begin(scene, wrong_size, None).outcome is Outcome.PAGE_SIZE_CHANGED


@pytest.mark.parametrize("commits", [0, 1, 30])
def test_an_untouched_file_is_followed_from_the_first_frame(scene: Scene, commits: int) -> None:
    """Detached, the application came back: its log holds every commit since (P5)."""
    scene.open()
    scene.application.sql("insert into t values(1, 1)")
    scene.application.close()
    detached = detach(scene)
    cursor = scene.capture.cursor
    assert not scene.capture.database.is_open
    scene.application = scene.start()
    scene.application.sql("select * from t")
    for number in range(commits):
        scene.application.sql(f"insert into t values({number}, 2)")
    found = begin(scene, cursor, detached)
    assert found.outcome is Outcome.UNCHANGED
    scene.check(commits=1 + commits)


def test_a_visit_while_detached_needs_a_scan(scene: Scene) -> None:
    """Open, commit, close before we attach: the commits are in the file and not in a log."""
    scene.open()
    scene.application.close()
    detached = detach(scene)
    cursor = scene.capture.cursor
    with scene.start() as visitor:
        visitor.sql("insert into t values(5, 5)")
    found = begin(scene, cursor, detached)
    assert found.outcome is Outcome.AHEAD
    scene.mirror.restart(scene.capture.recover(scene.mirror.tree.leaves))
    scene.check()


def test_a_checkpoint_while_detached_needs_a_scan(scene: Scene) -> None:
    """The application is back and has checkpointed already."""
    scene.open()
    scene.application.close()
    detached = detach(scene)
    cursor = scene.capture.cursor
    scene.application = scene.start()
    scene.application.sql("insert into t values(5, 5)", "pragma wal_checkpoint(passive)")
    scene.application.sql("insert into t values(6, 6)")
    assert begin(scene, cursor, detached).outcome is Outcome.AHEAD


def test_a_clean_stop_beside_a_running_application_is_resumed(scene: Scene) -> None:
    """The daemon restarts; the application does not notice and nothing is scanned."""
    scene.open()
    for round_ in range(5):
        scene.application.sql(f"insert into t values({round_}, 1)")
        scene.mirror.poll()
        scene.application.sql(f"insert into t values({round_}, 2)")
        assert reborn(scene).outcome is Outcome.RESUMED
    scene.check(commits=10)


def test_a_damaged_cursor_is_refused(scene: Scene) -> None:
    """Bytes from the journal are checked like any others."""
    scene.open()
    raw = scene.capture.cursor.encode()
    for damaged in (raw[:-1], raw + b"x", b"\x09" + raw[1:], b""):
        with pytest.raises(CorruptionError):
            Cursor.decode(damaged)
