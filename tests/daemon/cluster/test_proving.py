"""Which certificates go into the archive beside which frames."""

from pathlib import Path

from basenet.archive.backlog import Batch
from basenet.daemon.cluster.archiving import KEPT_BYTES, kept_bytes
from basenet.daemon.cluster.proving import genesis_seq, prove, read_configs
from basenet.journal.journal import Journal
from basenet.units import GIB, MIB, Seq
from basenet.wire.certificate import CONSENT
from tests.fakes.branching import SHARD, Branching, certify
from tests.journal.replicas import begin


def batch_of(journal: Journal, first: int, end: int) -> Batch:
    rows = journal.frames(SHARD, first, end, MIB)
    return Batch(start=Seq(first), frames=tuple(record for _, record in rows))


def three_voters(tmp_path: Path) -> tuple[Branching, Journal]:
    """A journal with 1 (genesis, one voter), 2, 3 and 4: a CONFIG of three voters."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.others(2) + story.new_config(voters=3)
    journal.keep([story.step(rows)])
    journal.settle([story.settled(rows, is_certified=False)])
    return story, journal


def test_a_batch_ends_where_a_certificate_is(tmp_path: Path) -> None:
    """Cut back to it, or prolonged up to it."""
    story, journal = three_voters(tmp_path)
    rows = story.others(6)
    journal.keep([story.step(rows)])
    journal.settle([story.settled(rows[:3])])
    journal.settle([story.settled(rows[3:])])
    cut = prove(journal, SHARD, batch_of(journal, 5, 9))
    assert (cut.start, cut.end, cut.proofs) == (5, 7, (certify(rows[2].head),))
    longer = prove(journal, SHARD, batch_of(journal, 8, 9))
    assert (longer.start, longer.end, longer.proofs) == (8, 10, (certify(rows[5].head),))
    journal.close()


def test_what_a_config_ends_goes_before_what_waits(tmp_path: Path) -> None:
    """One voter's frames and his CONFIG need nothing; the first frame after it does."""
    story, journal = three_voters(tmp_path)
    rows = story.others(4)
    journal.keep([story.step(rows)])
    journal.settle([story.settled(rows)])
    before = prove(journal, SHARD, batch_of(journal, 1, 6))
    assert (before.start, before.end) == (1, 4)
    assert [proof.phase for proof in before.proofs] == [CONSENT]
    assert prove(journal, SHARD, batch_of(journal, 1, 8)).end == 8
    journal.close()


def test_the_configs_are_known_by_seq(tmp_path: Path) -> None:
    """With who decides after each."""
    _, journal = three_voters(tmp_path)
    configs = read_configs(journal, SHARD)
    assert [(one.seq, len(one.config.voters)) for one in configs] == [(1, 1), (4, 3)]
    assert genesis_seq(configs) == 1
    journal.close()


def test_how_much_is_kept_for_peers() -> None:
    """64 MiB a shard, and a 64th of a small journal."""
    assert kept_bytes(4 * GIB) == KEPT_BYTES == 64 * MIB
    assert kept_bytes(MIB) == 16 * 1024
