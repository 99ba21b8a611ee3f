"""A standalone history goes on in a cluster: one CONFIG, the old key's last word."""

import stat
from pathlib import Path

import pytest

from basenet.daemon.cluster import standalone
from basenet.daemon.cluster.standalone import load_old_signer, take_over
from basenet.engine.birth_record import FileFate
from basenet.engine.placement import Peer
from basenet.errors import ConflictError
from basenet.journal.journal import Journal
from basenet.keys import signing
from basenet.units import Lineage
from basenet.wire.finality import Electors, Succession, found, verify_line
from basenet.wire.frame import Frame, decode_frame
from basenet.wire.payload import decode_config
from tests.daemon.model import SHARD, SIGNER, Model, born, loaded
from tests.fakes.chain import signer
from tests.journal.replicas import check_ballot, check_replica

NEW = signer(7)
HEIR = Peer("db-0", NEW.public)


def standalone_journal(folder: Path, commits: int = 3) -> tuple[Journal, Model]:
    """Return a journal as a standalone node leaves it."""
    model = Model()
    journal = born(folder, model)
    for _ in range(commits):
        _, framer = loaded(journal)
        journal.store([framer.frame([model.commit(1, 5)])])
    return journal, model


def line(journal: Journal) -> Electors:
    """Return who decides after the whole line of CONFIGs, as a stranger verifies it."""
    (genesis, certificate), *rest = journal.config_chain(SHARD)
    first = decode_frame(genesis)
    assert isinstance(first, Frame)
    electors = found(first.head, decode_config(first.payload), certificate)
    successions = []
    for record, proof in rest:
        frame = decode_frame(record)
        assert isinstance(frame, Frame)
        successions.append(
            Succession(head=frame.head, config=decode_config(frame.payload), certificate=proof)
        )
    return verify_line(electors, successions)


def check_taken(journal: Journal, lineage: Lineage, seq: int) -> None:
    record = check_replica(journal)
    check_ballot(record)
    assert record.lineage == lineage
    assert record.tip.seq == seq
    assert record.place == (record.tip.seq, record.tip.hash)
    assert [one.key for one in record.ballot.config.voters] == [NEW.public]
    assert record.ballot.config.voters[0].journal_id == journal.journal_id
    assert not record.heads
    electors = line(journal)
    assert electors.epoch == record.ballot.epoch == 2
    assert electors.leader(record.ballot.view) == NEW.public
    known = journal.load_birth(SHARD).known
    assert known is not None
    assert known.genesis == journal.config_chain(SHARD)[0][0]
    assert (known.file, known.is_settled) == (FileFate.ADOPTED, True)


@pytest.mark.parametrize("commits", [0, 3])
def test_the_old_key_names_the_new_one_and_the_history_goes_on(
    tmp_path: Path, commits: int
) -> None:
    """Also when nothing was ever committed; and nothing happens a second time."""
    journal, model = standalone_journal(tmp_path, commits)
    before = journal.load(SHARD)
    assert before is not None
    assert take_over(journal, SHARD, heir=HEIR, signers=(NEW, SIGNER))
    check_taken(journal, before.lineage, before.tip.seq + 1)
    record = check_replica(journal)
    assert record.tip.state_root == model.root
    assert (record.cursor, record.local_last) == (before.cursor, before.local_last)
    assert not take_over(journal, SHARD, heir=HEIR, signers=(NEW, SIGNER))
    check_taken(journal, before.lineage, before.tip.seq + 1)


class Crash(Exception):  # noqa: N818
    """The process ended."""


@pytest.mark.parametrize("step", ["adopt_replica", "keep", "settle", "keep_birth"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_anywhere_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    journal, _ = standalone_journal(tmp_path)
    before = journal.load(SHARD)
    assert before is not None
    act = getattr(Journal, step)

    def crash(*arguments: object, **more: object) -> None:
        if when == "after":
            act(*arguments, **more)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Journal, step, crash)
        with pytest.raises(Crash):
            take_over(journal, SHARD, heir=HEIR, signers=(NEW, SIGNER))
    journal.close()
    journal = Journal(tmp_path)
    take_over(journal, SHARD, heir=HEIR, signers=(NEW, SIGNER))
    check_taken(journal, before.lineage, before.tip.seq + 1)


def test_a_node_that_keeps_its_key_and_name_writes_nothing(tmp_path: Path) -> None:
    journal, _ = standalone_journal(tmp_path)
    before = journal.load(SHARD)
    assert before is not None
    me = Peer("node1", SIGNER.public)
    assert take_over(journal, SHARD, heir=me, signers=(SIGNER,))
    record = check_replica(journal)
    assert (record.tip, record.ballot.epoch) == (before.tip, 1)


def test_a_history_by_a_lost_key_is_refused(tmp_path: Path) -> None:
    journal, _ = standalone_journal(tmp_path)
    with pytest.raises(ConflictError, match=r"put its signing\.key back"):
        take_over(journal, SHARD, heir=HEIR, signers=(NEW,))
    assert journal.load_replica(SHARD) is None


def test_a_copied_journal_is_refused(tmp_path: Path) -> None:
    journal, _ = standalone_journal(tmp_path)
    journal.renew_id()
    with pytest.raises(ConflictError, match="a copy of another one"):
        take_over(journal, SHARD, heir=HEIR, signers=(NEW, SIGNER))
    assert journal.load_replica(SHARD) is None


def test_a_shard_that_never_was_standalone_is_left_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert not take_over(journal, SHARD, heir=HEIR, signers=(NEW,))
    assert journal.load_birth(SHARD).known is None


def test_the_old_key_is_only_read_from_then_on(tmp_path: Path) -> None:
    assert load_old_signer(tmp_path) is None
    key = signing.load_or_create(tmp_path)
    old = load_old_signer(tmp_path)
    assert old is not None
    assert old.public == key.public
    assert key.path is not None
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o400
    assert standalone.load_old_signer(tmp_path) is not None
