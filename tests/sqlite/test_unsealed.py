"""Commits that SQLite 3.40.1 leaves without a checksum are captured, and never lost because of us.

The applications here are the standard library's SQLite. A newer one does not have the bug; then the
log is given the same wounds by hand, of which the wal-index knows nothing either.
"""

import os
import sqlite3
from pathlib import Path

import pytest

from basenet.sqlite.attach import attach
from basenet.sqlite.capture import Capture, Gap
from basenet.sqlite.resume import Outcome
from basenet.sqlite.unsealed import is_unsealed
from basenet.sqlite.walformat import FRAME_HEADER_BYTES, frame_bytes, frame_offset
from tests.sqlite.application import Application
from tests.sqlite.conftest import Scene

ROWS = 300
FILL = """
with n(i) as (values(1) union all select i + 1 from n where i < 300)
insert into t select i, randomblob(3000) from n
"""
PREPARE = ("pragma wal_autocheckpoint=0", FILL, "pragma cache_size=5")
UNSEAL = (
    "begin",
    *(f"update t set y = randomblob(3000) where rowid = {row}" for row in range(1, 10)),
    "savepoint a",
    *(
        f"update t set y = randomblob(3000) where rowid = {row}"
        for row in [*range(20, 120), 110, 111, *range(120, 140)]
    ),
    "rollback to a",
    *(f"update t set y = randomblob(3000) where rowid = {row}" for row in range(150, 170)),
    "commit",
    "insert into t values ('after', 1)",
)
COUNT = "select count(*) from t"


def frames_in(path: Path) -> int:
    wal = Path(f"{path}-wal")
    return (wal.stat().st_size - 32) // frame_bytes(4096) if wal.exists() else 0


def unsealed_in(path: Path) -> list[int]:
    descriptor = os.open(f"{path}-wal", os.O_RDONLY)
    try:
        frames = range(1, frames_in(path) + 1)
        return [frame for frame in frames if is_unsealed(descriptor, frame, 4096)]
    finally:
        os.close(descriptor)


def wound(path: Path, first: int, last: int) -> None:
    """Take salts and checksums from the frames ``first`` to ``last``."""
    with Path(f"{path}-wal").open("r+b") as wal:
        for frame in range(first, last + 1):
            wal.seek(frame_offset(frame - 1, 4096) + 8)
            wal.write(bytes(FRAME_HEADER_BYTES - 8))


def unseal(path: Path, application: Application) -> None:
    """Let ``application`` commit so that its log has frames without a checksum."""
    before = frames_in(path)
    application.sql(*UNSEAL)
    if not unsealed_in(path):
        wound(path, before + 3, before + 12)
    assert unsealed_in(path)


def follow(scene: Scene) -> None:
    """Poll as the daemon does: a gap is bridged."""
    try:
        scene.mirror.poll()
    except Gap as gap:
        if not gap.is_unsealed:
            raise
        scene.mirror.recover(gap)
        scene.mirror.poll()


def check_rows(scene: Scene) -> None:
    """What was captured are the rows that the application sees, whatever a recovery would see."""
    copy = scene.folder / "captured.db"
    copy.write_bytes(scene.mirror.image())
    connection = sqlite3.connect(copy)
    question = "select x, hex(y) from t order by rowid"
    try:
        captured = [list(row) for row in connection.execute(question)]
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()
    copy.unlink()
    assert captured == scene.application.sql(question)


def has_lost(path: Path) -> int:
    """Return how many of the rows are gone for who opens the database now."""
    connection = sqlite3.connect(path)
    try:
        ((count,),) = connection.execute(COUNT).fetchall()
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        return ROWS + 1 - int(count)
    finally:
        connection.close()


def test_unsealed_commits_are_bridged_and_their_log_is_cut_off(scene: Scene) -> None:
    """A gap, never corruption; the next connection finds every commit, and an empty log."""
    scene.open(*PREPARE)
    scene.mirror.poll()
    unseal(scene.path, scene.application)
    follow(scene)
    scene.check()
    assert Path(f"{scene.path}-wal").stat().st_size == 0
    assert not scene.capture.rotation.is_unsealed
    scene.application.sql("insert into t values ('later', 1)", "delete from t where x = 'later'")
    scene.check()
    assert len(scene.mirror.gaps) == 1
    scene.application.close()
    scene.capture.close()
    assert has_lost(scene.path) == 0


def test_a_reader_in_the_way_is_waited_for_without_a_stop(scene: Scene) -> None:
    """Unsealed frames are captured as the wal-index has them, and cut off when the reader goes."""
    scene.open(*PREPARE)
    scene.mirror.poll()
    reader = scene.start()
    reader.sql("begin", COUNT)
    unseal(scene.path, scene.application)
    follow(scene)
    check_rows(scene)
    assert scene.capture.rotation.is_unsealed
    assert unsealed_in(scene.path)
    scene.application.sql("insert into t values ('later', 1)")
    scene.mirror.poll()
    check_rows(scene)
    assert scene.capture.steer() is not None
    reader.sql("commit")
    while scene.capture.rotation.is_unsealed:
        scene.capture.steer()
    assert Path(f"{scene.path}-wal").stat().st_size == 0
    scene.check()
    assert len(scene.mirror.gaps) == 1


@pytest.mark.parametrize("end", ["closes", "dies"])
def test_who_leaves_last_loses_nothing(scene: Scene, end: str) -> None:
    """Whether the application ends or dies while we are attached, its rows are in the file."""
    scene.open(*PREPARE)
    scene.mirror.poll()
    unseal(scene.path, scene.application)
    follow(scene)
    if end == "dies":
        scene.application.kill()
    else:
        scene.application.close()
    scene.capture.close()
    assert has_lost(scene.path) == 0


def test_closing_in_between_cuts_the_log_off(scene: Scene) -> None:
    """A capture that ends before it could cut the log off tries once more as it closes."""
    scene.open(*PREPARE)
    scene.mirror.poll()
    reader = scene.start()
    reader.sql("begin", COUNT)
    unseal(scene.path, scene.application)
    follow(scene)
    assert scene.capture.rotation.is_unsealed
    reader.close()
    scene.application.kill()
    scene.capture.close()
    assert has_lost(scene.path) == 0


def test_an_unsealed_log_is_met_at_attach(scene: Scene) -> None:
    """A log that was unsealed before we came is cut off, and no loss is claimed."""
    scene.open(*PREPARE)
    scene.mirror.poll()
    cursor = scene.capture.cursor
    scene.capture.close()
    unseal(scene.path, scene.application)
    capture = Capture(attach(scene.path))
    try:
        found = capture.resume(cursor)
        assert found.outcome is Outcome.AHEAD
        assert capture.rotation.counters.unsealed == 1
        assert not capture.rotation.is_unsealed
    finally:
        capture.close()
    scene.application.kill()
    assert has_lost(scene.path) == 0


def test_what_a_recovery_cut_off_is_told(scene: Scene) -> None:
    """After a crash of everybody SQLite itself loses the commits; their number is known."""
    scene.open(*PREPARE)
    scene.capture.close()
    unseal(scene.path, scene.application)
    scene.application.kill()
    capture = Capture(attach(scene.path))
    try:
        assert capture.examine_log() == len(("the transaction", "the one after it"))
    finally:
        capture.close()


def test_a_wrong_checksum_is_still_corruption(scene: Scene) -> None:
    """Only frames that SQLite left blank are forgiven: other damage stops the shard."""
    scene.open(*PREPARE)
    scene.mirror.poll()
    before = frames_in(scene.path)
    scene.application.sql(*["insert into t values (1, randomblob(9000))"] * 3)
    with Path(f"{scene.path}-wal").open("r+b") as wal:
        wal.seek(frame_offset(before + 1, 4096) + 200)
        wal.write(b"damaged")
    with pytest.raises(Exception, match="is damaged") as caught:
        scene.mirror.poll()
    assert not isinstance(caught.value, Gap)
