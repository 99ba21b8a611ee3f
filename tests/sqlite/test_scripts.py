"""Random applications: whatever they do between two polls, the mirror stays equal."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basenet.sqlite.capture import Gap
from tests.sqlite.conftest import Scene

SHRINK = "delete from t where x % 2 = 0"
STATEMENTS = [
    "insert into t values(1, zeroblob(10))",
    "insert into t values(2, randomblob(3000))",
    "insert into t values(3, randomblob(60000))",
    "insert into t select x, randomblob(100) from t limit 50",
    "update t set y = randomblob(200) where rowid in (select rowid from t limit 5)",
    SHRINK,
    "delete from t where rowid in (select rowid from t limit 20)",
    "vacuum",
    "pragma incremental_vacuum",
    "create table if not exists u(a primary key, b)",
    "insert or replace into u values(abs(random()) % 50, randomblob(500))",
    "drop table if exists u",
    "begin",
    "commit",
    "rollback",
    "savepoint s",
    "rollback to s",
    "release s",
    "pragma cache_size=5",
    "pragma cache_size=-2000",
    "pragma journal_size_limit=0",
    "pragma journal_size_limit=-1",
    "pragma wal_autocheckpoint=3",
    "pragma wal_autocheckpoint=1000",
    "pragma wal_checkpoint(passive)",
    "pragma wal_checkpoint(full)",
    "pragma wal_checkpoint(restart)",
    "pragma wal_checkpoint(truncate)",
]
OURS = ["poll", "release", "engage", "settle", "rotate", "reopen", "kill"]


def do_ours(scene: Scene, what: str) -> None:
    """One step of the sidecar, or a life of the application that ends."""
    if what == "release":
        scene.capture.rotation.pin.release()
    elif what == "engage":
        scene.capture.rotation.engage()
    elif what == "settle":
        scene.capture.rotation._settle()
    elif what == "rotate":
        scene.capture.rotation._rotate()
    elif what in {"reopen", "kill"}:
        scene.application.close() if what == "reopen" else scene.application.kill()
        scene.application = scene.start(timeout_s=0.01)
    else:
        scene.mirror.poll()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.sampled_from([*STATEMENTS, *OURS, "poll", "poll"]), max_size=40),
    page_size=st.sampled_from([512, 1024, 4096, 65536]),
    block_frames=st.sampled_from([1, 3, 2000]),
    auto_vacuum=st.sampled_from(["none", "full", "incremental"]),
)
def test_any_script_is_followed_or_bridged(
    steps: list[str], page_size: int, block_frames: int, auto_vacuum: str
) -> None:
    """Equal pages, equal leaf hashes, and as many commits as iChange counts, or a gap said so."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scene = Scene(Path(folder), stack)
        scene.application = scene.start(timeout_s=0.01)
        scene.application.sql(
            f"pragma page_size={page_size}",
            f"pragma auto_vacuum={auto_vacuum}",
            "pragma journal_mode=wal",
            "create table t(x, y)",
        )
        scene.attach()
        scene.capture._reader.block_frames = block_frames
        began = scene.capture.cursor.change
        for step in [*steps, "poll"]:
            try:
                if step in OURS:
                    do_ours(scene, step)
                else:
                    # What SQLite refuses here it would refuse without us, or is busy by design.
                    scene.application.run(
                        "try: c.execute(" + repr(step) + ").fetchall()\n"
                        "except sqlite3.OperationalError as error: result = str(error)"
                    )
            except Gap as gap:
                scene.mirror.recover(gap)
        scene.application.run("c.rollback()")
        try:
            scene.check()
        except Gap as gap:
            scene.mirror.recover(gap)
            scene.check()
        if not scene.mirror.gaps:
            assert scene.mirror.commits == scene.capture.cursor.change - began
