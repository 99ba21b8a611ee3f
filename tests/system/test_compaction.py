"""SIGKILL of the daemon while it merges, takes snapshots and deletes: every kept moment restores.

By hand, for as long as wanted: ``python -m tests.system.test_compaction ROUNDS [SEED]``.
"""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from basenet.archive.retention import MERGE_GRACE_NS
from tests.system.harness import Daemon, Restored, Scene, Writer, read_acknowledged, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

# Objects of a commit or two, a snapshot a second, and retention after each.
SETTINGS = {"BASE_FLUSH_INTERVAL": "5ms", "BASE_SNAPSHOT_INTERVAL": "1s"}


# Small commits with pauses, and now and then a large one, which ends a stretch of small objects.
_TRICKLE = """
import random, sqlite3, sys, time
path, log, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(seed)
c = sqlite3.connect(path, isolation_level=None, timeout=60)
c.execute("PRAGMA journal_mode=WAL")
c.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, body BLOB)")
number = 0
with open(log, "ab", buffering=0) as acknowledged:
    while True:
        number += 1
        size = 700_000 if chance.random() < 0.005 else 100
        c.execute("INSERT INTO note VALUES (?, ?)", (number, chance.randbytes(size)))
        acknowledged.write(b"%d %d\\n" % (number, time.time_ns()))
        time.sleep(chance.choice((0.003, 0.006, 0.012)))
"""


class Trickle(Writer):
    """An application that commits a little at a time."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._acknowledged = scene.acknowledged
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TRICKLE, scene.database, scene.acknowledged, str(seed)]
        )


def list_logs(archive: Path, pattern: str) -> list[Path]:
    return sorted(archive.glob(f"default/app/*/log/*/*{pattern}.lbn"))


def list_covered(archive: Path) -> list[Path]:
    """Return the log objects that lie within a merged one."""

    def span(path: Path) -> tuple[str, str]:
        first, last, _ = path.stem.split("-", 2)
        return first, last

    merged = [(path.parent, *span(path)) for path in list_logs(archive, "-L?")]
    return [
        path
        for path in list_logs(archive, "")
        if any(
            path.parent == folder and first <= span(path)[0] and span(path)[1] <= last
            for folder, first, last in merged
            if (first, last) != span(path)
        )
    ]


def grow_old(archive: Path) -> None:
    """Make merged objects so old that what they cover may go."""
    then = time.time() - 2 * MERGE_GRACE_NS / 1e9
    for path in list_logs(archive, "-L?"):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (then, then))


def count_rows(restored: Restored) -> int:
    """Return how many of the writer's rows came back: the first ones, without a hole."""
    if not restored.query("SELECT 1 FROM sqlite_schema WHERE name = 'note'"):
        return 0
    numbers = [row[0] for row in restored.query("SELECT id FROM note ORDER BY id")]
    assert numbers == list(range(1, len(numbers) + 1))
    return len(numbers)


def play(scene: Scene, *, rounds: int, seed: int, moments: int) -> dict[str, int]:
    """Kill and start again ``rounds`` times under load, then restore ``moments`` drawn by lot."""
    chance = random.Random(seed)
    merged = 0

    def serve() -> Daemon:
        daemon = scene.serve(**SETTINGS)
        daemon.wait_answering()
        return daemon

    daemon = serve()
    with Trickle(scene, seed) as writer:
        for _ in range(rounds):
            enough = merged + 3
            until(
                lambda enough=enough: len(list_logs(scene.archive, "-L?")) >= enough,
                "objects are merged",
                120,
            )
            time.sleep(chance.uniform(0, 0.5))  # the moment of the kill, drawn by lot
            daemon.kill()
            grow_old(scene.archive)
            merged = len(list_logs(scene.archive, "-L?"))
            daemon = serve()
        daemon.wait_archived(patience_s=120)
        writer.kill()
        daemon.wait_archived(patience_s=120)
    end = scene.check_restore()
    assert count_rows(end) >= read_acknowledged(scene.acknowledged)[-1].number
    assert daemon.stop() == 0
    grow_old(scene.archive)
    code, out, errors = scene.run("archive", "prune", f"file://{scene.archive}")
    assert code == 0, out + errors
    code, out, errors = scene.run("verify", f"file://{scene.archive}")
    assert code == 0, out + errors
    rows: dict[int, int] = {}
    for _ in range(moments):
        wanted = chance.randint(end.report.seq // 10, end.report.seq)
        try:
            restored = scene.restore(to_seq=wanted)
        except Exception as error:  # inside a transaction of several frames
            if "inside a transaction" not in str(error):
                raise
            continue
        rows[wanted] = count_rows(restored)
        restored.path.unlink()
    assert [rows[seq] for seq in sorted(rows)] == sorted(rows.values())
    assert scene.check_restore().report.seq == end.report.seq
    return {
        "frames": end.report.seq,
        "log objects": len(list_logs(scene.archive, "")),
        "covered": len(list_covered(scene.archive)),
        "merged": len(list_logs(scene.archive, "-L?")),
        "page sets": len(list(scene.archive.glob("default/app/*/set/L9/*.lbn"))),
        "parts": len(list(scene.archive.glob("default/app/*/part/*.pg"))),
        "moments restored": len(rows),
    }


def test_kills_while_it_merges_and_takes_snapshots(scene: Scene) -> None:
    """Merged objects cover hundreds of others then, which are gone; nothing else is."""
    found = play(scene, rounds=3, seed=1, moments=6)
    assert found["merged"] > 0
    assert found["covered"] == 0
    assert found["log objects"] < found["frames"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        count = int(sys.argv[1])
        number = int(sys.argv[2]) if len(sys.argv) > 2 else 1
        here = Scene(Path(folder), stack)
        print(play(here, rounds=count, seed=number, moments=40))  # noqa: T201
