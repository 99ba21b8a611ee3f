"""What proofs found outlives the process, and a failure stands until it is proven to be mended."""

from pathlib import Path

from basenet.control.surface import ShardState, ShardStatus
from basenet.daemon.ledger import LEDGER_NAME, Ledger
from basenet.daemon.prover import Answer, Outcome
from basenet.units import ShardId

APP = ShardId("app")
PROVEN = Answer(outcome=Outcome.PROVEN, seq=7, timestamp_ns=5, seconds=0.5)
FAILED = Answer(outcome=Outcome.FAILED, seq=3, sentence="seq 3 cannot be restored")
AWAY = Answer(outcome=Outcome.UNAVAILABLE, sentence="the store does not answer")


def loaded(folder: Path) -> Ledger:
    ledger = Ledger()
    ledger.load(folder)
    return ledger


def test_what_was_proven_is_known_after_a_restart(tmp_path: Path) -> None:
    ledger = loaded(tmp_path)
    assert ledger.describe(APP) == "none yet"
    ledger.take(APP, PROVEN, 100)
    ledger.next_ns = 1_000
    ledger.save()
    assert (tmp_path / LEDGER_NAME).stat().st_mode & 0o777 == 0o600
    again = loaded(tmp_path)
    assert (again.next_ns, again.of(APP).verified_ns, again.of(APP).seq) == (1_000, 100, 7)
    assert again.describe(APP) == "ok: seq 7 was restored"
    (tmp_path / LEDGER_NAME).write_text("{ nonsense")
    assert loaded(tmp_path).describe(APP) == "none yet"
    assert Ledger().describe(APP) == "off"


def test_a_failure_stands_until_a_proof_succeeds(tmp_path: Path) -> None:
    """A store that is away neither hides it nor makes one."""
    ledger = loaded(tmp_path)
    ledger.take(APP, PROVEN, 100)
    ledger.take(APP, FAILED, 200)
    ledger.take(APP, AWAY, 300)
    assert ledger.describe(APP) == "failed: seq 3 cannot be restored"
    assert ledger.of(APP).failed_seq == 3
    assert ledger.of(APP).verified_ns == 100
    assert ledger.failures == {APP: 1}
    status = ShardStatus(shard=APP, path="/x", state=ShardState.CAPTURING, **ledger.told(APP))
    assert (status.is_proof_failed, status.proof_verified_ns, status.proof_seq) == (True, 100, 7)
    ledger.take(APP, PROVEN, 400)
    assert ledger.describe(APP) == "ok: seq 7 was restored"
    ledger.take(APP, AWAY, 500)
    assert ledger.describe(APP) == "skipped: the store does not answer"
    assert not ledger.of(APP).failure
