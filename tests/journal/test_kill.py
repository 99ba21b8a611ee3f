"""kill -9 at any moment: what was reported is there, and what is there fits together."""

import random
import signal
import subprocess
import sys
from pathlib import Path

from basenet.journal.journal import Journal
from tests.journal.story import SHARD, check_whole

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 10


def store_until_killed(folder: Path, seed: int) -> dict[str, int]:
    """Let a process store and kill it somewhere; return the last seq that it reported of each."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.journal.storing", str(folder), str(seed)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(random.Random(seed).randint(1, 150))]
        child.kill()
        # What it wrote into the pipe before it died was reported, too.
        lines += child.stdout.read().splitlines(keepends=True)
        assert child.wait() == -signal.SIGKILL
    reports = [line.split() for line in lines if line.endswith("\n")]
    return {what: int(seq) for what, seq in reports}


def test_nothing_that_was_reported_is_lost_to_kill_9(tmp_path: Path) -> None:
    """Ten times over one journal; what is there fits together.

    The tip is at or behind the last report, the chain has no gap, the leaf hashes give the tip's
    root, the cursor is the tip's, and no piece of a run that was cut off is left.
    """
    whole = 0
    for seed in range(ROUNDS):
        reported = store_until_killed(tmp_path, seed)
        journal = Journal(tmp_path)
        tip = check_whole(journal)
        record = journal.load(SHARD)
        assert record is not None
        assert tip >= max(reported.get("stored", 0), whole)
        assert record.archived_seq >= reported.get("archived", 0)
        journal.close()
        whole = tip
    assert whole > ROUNDS
