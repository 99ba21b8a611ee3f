"""Who votes, how many votes are enough, and what a certificate must be."""

import itertools

import pytest
from msgspec.structs import replace

from basenet.engine.quorum import Electorate, form, is_certified
from basenet.units import Epoch, FrameHash, Seq
from basenet.wire.certificate import COMMIT
from basenet.wire.message import Mark
from tests.engine.cluster import (
    SCOPE,
    Cluster,
    IdealSigner,
    config_of,
    is_signed_ideally,
    journal_of,
    key_of,
)

PLACE = Mark(0, Seq(7), FrameHash(b"h" * 32))


def votes(*numbers: int, epoch: int = 1, view: int = 0) -> dict[bytes, bytes]:
    data = SCOPE.vote(Epoch(epoch), view, COMMIT, PLACE.height, PLACE.hash)  # type: ignore[arg-type]
    return {key_of(number): IdealSigner(number).sign(data) for number in numbers}


@pytest.mark.parametrize("count", range(1, 8))
def test_crash_quorums_share_a_voter(count: int) -> None:
    """Protocol 1.1: tried on every pair."""
    electorate = Electorate(config_of(*range(count)))
    assert electorate.quorum == count // 2 + 1
    pairs = itertools.product(itertools.combinations(range(count), electorate.quorum), repeat=2)
    assert all(set(left) & set(right) for left, right in pairs)


@pytest.mark.parametrize(("count", "quorum"), [(4, 3), (5, 4), (6, 4), (7, 5)])
def test_byzantine_quorums_share_an_honest_voter(count: int, quorum: int) -> None:
    """Protocol 1.2: they share more than f, and survive f that say nothing."""
    electorate = Electorate(config_of(*range(count), byzantine=True))
    assert electorate.quorum == quorum
    assert 2 * quorum - count > electorate.faults
    assert count - electorate.faults >= quorum


def test_a_voter_is_a_key_with_a_journal() -> None:
    """Protocol 1.3, P23: the same key with another journal votes no more."""
    electorate = Electorate(config_of(0, 1, 2))
    assert electorate.is_voter(key_of(1), journal_of(1))
    assert not electorate.is_voter(key_of(1), journal_of(1, life=1))
    assert not electorate.is_voter(key_of(5), journal_of(5))
    cluster = Cluster(3)
    wiped = cluster.nodes[2]
    cluster.crash(2)
    cluster.boot(wiped, journal_id=journal_of(2, life=1))
    assert not wiped.replica.is_voter


def test_voters_lead_in_the_order_of_config() -> None:
    """Protocol 1.4, P20: round and round, the first one in view 0."""
    electorate = Electorate(config_of(2, 0, 1))
    assert [electorate.leader(view) for view in range(4)] == [key_of(n) for n in (2, 0, 1, 2)]


def test_a_certificate_needs_a_quorum_of_its_epochs_voters() -> None:
    """Protocol 1.5: each once, nobody else, for these very words."""
    electorate = Electorate(config_of(0, 1, 2))

    def holds(found: dict[bytes, bytes], epoch: int = 1) -> bool:
        certificate = form(COMMIT, Epoch(epoch), PLACE, found)  # type: ignore[arg-type]
        return is_certified(certificate, SCOPE, electorate, is_signed_ideally)

    assert holds(votes(0, 2))
    unsorted = replace(
        form(COMMIT, Epoch(1), PLACE, votes(0, 2)),  # type: ignore[arg-type]
        votes=tuple(sorted(votes(0, 2).items(), reverse=True)),
    )
    # Nobody could write it into a journal or an archive.
    assert not is_certified(unsorted, SCOPE, electorate, is_signed_ideally)
    assert not holds(votes(0))
    assert not holds(votes(0, 7))
    assert not holds(votes(0, 1, 7))
    assert not holds(votes(0, 1, view=1))
    assert not holds(votes(0, 1), epoch=2)
    assert not holds(votes(0) | {key_of(1): votes(0)[key_of(0)]})
