"""What public keys alone prove: whose votes, and enough of them, back to the genesis."""

from dataclasses import replace

import msgspec
import pytest

from basenet.errors import CertificateInvalid, ChainBroken
from basenet.units import Epoch, Lineage, PublicKeyBytes, View
from basenet.wire.certificate import COMMIT, CONSENT, PREPARE, Certificate, verify_certificate
from basenet.wire.finality import Succession, found, succeed, verify_final, verify_line
from basenet.wire.frame import Flag, Head, Kind
from basenet.wire.payload import FaultModel
from tests.wire.cluster import SIGNERS, History, config_of, with_config

BYZANTINE = FaultModel.BYZANTINE


@pytest.fixture
def history() -> History:
    return History(config_of(3))


def verify(history: History, certificate: Certificate, *, phase: int = COMMIT) -> None:
    verify_certificate(
        certificate,
        scope=history.scope,
        epoch=history.epoch,
        config=history.config,
        phase=phase,
    )


# One certificate.


@pytest.mark.parametrize(
    ("count", "model", "quorum"),
    [
        (1, FaultModel.CRASH, 1),
        (2, FaultModel.CRASH, 2),
        (3, FaultModel.CRASH, 2),
        (5, FaultModel.CRASH, 3),
        (4, BYZANTINE, 3),
        (5, BYZANTINE, 4),
    ],
)
def test_a_quorum_of_the_fault_model_is_needed(count: int, model: FaultModel, quorum: int) -> None:
    """Any quorum will do; one vote less will not."""
    history = History(config_of(count, model))
    head = history.add()
    verify(history, history.certify(head, *range(quorum)))
    verify(history, history.certify(head, *range(count - quorum, count)))
    few = history.certify(head, *range(quorum - 1))
    with pytest.raises(CertificateInvalid, match=f"has {quorum - 1} of the {quorum} votes"):
        verify(history, few)


def test_a_stranger_does_not_vote(history: History) -> None:
    """Not even beside a quorum: a certificate holds the voters' votes and nothing else (Q21)."""
    certificate = history.certify(history.add(), 0, 1, 4)
    with pytest.raises(CertificateInvalid, match=f"{SIGNERS[4].public.hex()}, which is no voter"):
        verify(history, certificate)


def test_a_voter_counts_once(history: History) -> None:
    """A message, unlike a record, can name it twice."""
    certificate = history.certify(history.add(), 0)
    doubled = msgspec.structs.replace(certificate, votes=certificate.votes * 2)
    with pytest.raises(CertificateInvalid, match="counts a voter twice"):
        verify(history, doubled)


def test_prepare_votes_are_no_finality() -> None:
    """Phase and epoch are named, and signed."""
    history = History(config_of(4, BYZANTINE))
    certificate = history.certify(history.add(), 0, 1, 2, phase=PREPARE)
    verify(history, certificate, phase=PREPARE)
    with pytest.raises(CertificateInvalid, match="is of phase 1, not of phase 2 in epoch 1"):
        verify(history, certificate)
    with pytest.raises(CertificateInvalid, match="did not sign"):
        verify(history, msgspec.structs.replace(certificate, phase=COMMIT))
    history.epoch = Epoch(2)
    with pytest.raises(CertificateInvalid, match="not of phase 1 in epoch 2"):
        verify(history, certificate, phase=PREPARE)


@pytest.mark.parametrize("field", ["view", "height", "hash"])
def test_every_field_is_signed(history: History, field: str) -> None:
    """A vote for one place in one view is a vote for nothing else."""
    certificate = history.certify(history.add(), 0, 1)
    other = {"view": 1, "height": 9, "hash": b"x" * 32}[field]
    with pytest.raises(CertificateInvalid, match="did not sign"):
        verify(history, msgspec.structs.replace(certificate, **{field: other}))


def test_a_vote_of_another_lineage_or_shard_counts_nowhere(history: History) -> None:
    """The scope is in front of everything that is signed."""
    certificate = history.certify(history.add(), 0, 1)
    history.config = replace(history.config, lineage=Lineage(b"o" * 16))
    with pytest.raises(AssertionError):
        verify(history, certificate)
    history.scope = type(history.scope)(history.config.lineage, history.scope.shard)
    with pytest.raises(CertificateInvalid, match="did not sign"):
        verify(history, certificate)


# A genesis.


def test_a_genesis_has_the_consent_of_all_its_voters(history: History) -> None:
    """Of n voters n, not a quorum (Q2), in a tuple of its own."""
    genesis, config = history.genesis.head, history.config
    assert found(genesis, config, history.consent(0, 1, 2)).epoch == 1
    with pytest.raises(CertificateInvalid, match="has 2 of the 3 votes"):
        found(genesis, config, history.consent(0, 1))
    with pytest.raises(CertificateInvalid, match="3 voters decide"):
        found(genesis, config, None)
    votes = history.certify(genesis, 0, 1, 2)
    with pytest.raises(CertificateInvalid, match="is of phase 2, not of phase 0"):
        found(genesis, config, votes)
    with pytest.raises(CertificateInvalid, match="did not sign"):
        found(genesis, config, msgspec.structs.replace(votes, phase=CONSENT))


def test_a_genesis_of_one_voter_needs_no_consent() -> None:
    """Its author is all of them; the signature of its frame is what counts."""
    history = History(config_of(1))
    assert found(history.genesis.head, history.config, None).config == history.config
    forged = replace(history.genesis.head, signature=bytes(64))
    with pytest.raises(ChainBroken, match="not signed by its author"):
        found(forged, history.config, None)


def test_what_is_no_genesis_founds_nothing(history: History) -> None:
    """Another content, view, epoch or author."""
    config, consent = history.config, history.consent(0, 1, 2)
    with pytest.raises(ChainBroken, match="no genesis"):
        found(history.add(), config, consent)
    genesis = history.genesis.head
    with pytest.raises(ChainBroken, match="is a genesis in view 3"):
        found(replace(genesis, view=View(3)), config, consent)
    with pytest.raises(ChainBroken, match="is of epoch 2"):
        found(replace(genesis, epoch=Epoch(2)), config, consent)
    with pytest.raises(ChainBroken, match="does not lead view 0"):
        found(replace(genesis, author=SIGNERS[1].public), config, consent)
    other = msgspec.structs.replace(consent, hash=b"x" * 32)
    with pytest.raises(CertificateInvalid, match="another frame than frame 1"):
        found(genesis, config, other)


# A stretch of an epoch.


def test_a_certificate_proves_everything_below_it(history: History) -> None:
    """One for the last of a batch, whatever the views that its frames were proposed in."""
    heads = [history.add(), history.add(flags=Flag.PARTIAL), history.add(view=1)]
    certificate = history.certify(heads[-1], 1, 2, view=4)
    verify_final(history.electors(), heads, certificate)
    verify_final(history.electors(), heads[1:], certificate)
    with pytest.raises(CertificateInvalid, match="speaks of another frame"):
        verify_final(history.electors(), heads[:1], certificate)
    with pytest.raises(CertificateInvalid, match="has no certificate, and 3 voters decide"):
        verify_final(history.electors(), heads, None)


def test_an_epoch_of_one_voter_needs_no_certificate() -> None:
    """But the author's signature on every frame."""
    history = History(config_of(1))
    heads = [history.add(), history.add()]
    electors = found(history.genesis.head, history.config, None)
    verify_final(electors, heads, None)
    verify_final(electors, heads, history.certify(heads[-1], 0))
    with pytest.raises(ChainBroken, match="not signed"):
        verify_final(electors, [replace(heads[0], signature=bytes(64)), heads[1]], None)


def test_a_frame_out_of_place_is_final_nowhere(history: History) -> None:
    """Links, epoch, leader and the end of a run."""
    first, second = history.add(), history.add()
    electors = history.electors()
    certificate = history.certify(second, 0, 1)
    with pytest.raises(ChainBroken, match="does not follow"):
        verify_final(electors, [first, first], certificate)
    fork = replace(first, prev_hash=b"x" * 32)
    with pytest.raises(ChainBroken, match="two histories"):
        verify_final(electors, [fork, second], certificate)
    with pytest.raises(ChainBroken, match="does not follow"):
        verify_final(electors, [history.genesis.head], certificate)
    stranger = history.add(author=1)
    with pytest.raises(ChainBroken, match="who does not lead view 0"):
        verify_final(electors, [stranger], history.certify(stranger, 0, 1))
    half = history.add(flags=Flag.PARTIAL)
    with pytest.raises(ChainBroken, match="inside a PARTIAL run"):
        verify_final(electors, [half], history.certify(half, 0, 1))
    with pytest.raises(AssertionError):
        verify_final(electors, [], certificate)


# A line of CONFIGs.


def test_a_line_of_configs_leads_from_the_genesis_to_every_epoch() -> None:
    """1 voter, 3, then 5 with another fault model; each made final by those before it."""
    history = History(config_of(1))
    electors = found(history.genesis.head, history.config, None)
    history.add()
    line = [history.change(config_of(3))]
    history.add()
    line.append(history.change(config_of(5, BYZANTINE), 0, 2))
    heads = [history.add(), history.add(view=3)]
    last = verify_line(electors, line)
    assert (last.epoch, last.config) == (3, config_of(5, BYZANTINE))
    verify_final(last, heads, history.certify(heads[-1], 0, 2, 3, 4))
    with pytest.raises(CertificateInvalid, match="has 3 of the 4 votes"):
        verify_final(last, heads, history.certify(heads[-1], 0, 2, 3))
    with pytest.raises(ChainBroken, match="is of epoch 3, where epoch 2"):
        verify_final(verify_line(electors, line[:1]), heads, history.certify(heads[-1], 0, 1))


def test_newcomers_do_not_vote_themselves_in() -> None:
    """A CONFIG is final by the voters before it, in their fault model."""
    history = History(config_of(3))
    electors = history.electors()
    good = history.change(config_of(5), 0, 1)
    assert succeed(electors, good).epoch == 2
    own = Succession(head=good.head, config=good.config, certificate=None)
    with pytest.raises(CertificateInvalid, match="3 voters decide"):
        succeed(electors, own)
    history.epoch = Epoch(1)
    newcomers = replace(good, certificate=history.certify(good.head, 0, 3, 4))
    with pytest.raises(CertificateInvalid, match="which is no voter"):
        succeed(electors, newcomers)


def test_only_a_config_of_the_lineage_begins_an_epoch(history: History) -> None:
    """No COMMIT, no other lineage, nothing FORCED; and an epoch ends with its CONFIG."""
    electors = history.electors()
    good = history.change(config_of(3), 0, 1)
    for config in (
        replace(config_of(3), lineage=Lineage(b"o" * 16)),
        config_of(3, is_forced=True),
    ):
        with pytest.raises(ChainBroken, match="no CONFIG of this lineage"):
            succeed(electors, with_config(good, config))
    with pytest.raises(ChainBroken, match="is not the CONFIG that is shown with it"):
        succeed(electors, with_config(good, config_of(5)))
    history.epoch = Epoch(1)
    commit = history.add()
    with pytest.raises(ChainBroken, match="no CONFIG of this lineage"):
        succeed(electors, replace(good, head=commit))
    with pytest.raises(ChainBroken, match="follows a CONFIG in its epoch"):
        verify_final(electors, [good.head, commit], history.certify(commit, 0, 1))


def test_ideal_signatures_can_stand_for_real_ones(history: History) -> None:
    """Verification is an argument: what a simulation signs is judged by the same rules."""
    asked: list[bytes] = []

    def agree(public: PublicKeyBytes, signature: bytes, message: bytes) -> bool:
        asked.append(public + signature[:1] + message[:8])
        return True

    head: Head = history.add()
    certificate = history.certify(head, 0, 1)
    electors = found(history.genesis.head, history.config, history.consent(0, 1, 2), verify=agree)
    verify_final(electors, [head], certificate, verify=agree)
    assert len(asked) == 1 + 3 + 1 + 2
    assert head.kind == Kind.COMMIT
