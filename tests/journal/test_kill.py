"""kill -9 at any moment: what was reported is there, and what is there fits together."""

import random
import signal
import subprocess
import sys
from pathlib import Path

from basenet.journal.journal import Journal
from tests.journal.replicas import check_ballot, check_replica
from tests.journal.story import SHARD, check_whole

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 10


def run_until_killed(program: str, folder: Path, seed: int) -> list[list[str]]:
    """Let a process write and kill it somewhere; return what it reported."""
    with subprocess.Popen(
        [sys.executable, "-m", program, str(folder), str(seed)],
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
    return [line.split() for line in lines if line.endswith("\n")]


def store_until_killed(folder: Path, seed: int) -> dict[str, int]:
    """Let a process store and kill it somewhere; return the last seq that it reported of each."""
    reports = run_until_killed("tests.journal.storing", folder, seed)
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


def test_no_step_with_peers_is_lost_or_half_there_after_kill_9(tmp_path: Path) -> None:
    """Ten times over one journal: keep, settle, set_place and add_orphan are whole or not at all.

    The log is contiguous and ends at the tip, the leaf hashes give its root, the branch lies above
    it, the ballot is never behind, each local number is in one frame or one orphan bundle, and what
    was reported is there.
    """
    final = 0
    for seed in range(ROUNDS):
        reports = run_until_killed("tests.journal.keeping", tmp_path, seed)
        journal = Journal(tmp_path)
        record = check_replica(journal)
        check_ballot(record)
        told = {what: (int(seq), digest) for what, seq, digest in reports}
        assert record.tip.seq >= max(told.get("settled", (0, ""))[0], final)
        assert record.ballot.final.height >= told.get("decided", (0, ""))[0]
        if "placed" in told and told["placed"][0] >= record.place[0]:
            assert (record.place[0], record.place[1].hex()) == told["placed"]
        held = {head.hash.hex() for head in record.heads}
        for what, seq, digest in reports:
            assert what != "kept" or int(seq) <= record.tip.seq or digest in held
        if record.intent is not None:
            assert record.intent == b"up to %d" % record.tip.seq
        final = record.tip.seq
        journal.close()
    assert final > ROUNDS
