"""Whose signatures count, at each point of a history."""

import pytest

from basenet.archive.facts import Signed
from basenet.archive.trust import (
    Standing,
    begin,
    change,
    check_author,
    check_signer,
    enter,
    read_genesis,
)
from basenet.errors import ChainBroken, UntrustedKey
from tests.archive.builder import History
from tests.fakes.chain import signer

ONE, TWO, THREE = (signer(number).public for number in (1, 2, 3))


def start(history: History, standing: Standing) -> Standing:
    genesis = read_genesis(history.frames[0], history.lineage, "object")
    return enter(standing, genesis, "object")


def test_a_trusted_voter_counts() -> None:
    """As author and as signer; nobody else does."""
    standing = start(History(), begin({ONE}))
    assert standing.accepts(ONE)
    with pytest.raises(UntrustedKey, match="object x is signed by SHA256:"):
        check_signer(standing, Signed(name="object x", archive_epoch=1, signer=TWO))


def test_a_trusted_key_that_is_no_voter_does_not_count() -> None:
    """The operator trusts a key for what it was made for."""
    standing = start(History(), begin({ONE, TWO}))
    history = History(key=2)
    with pytest.raises(ChainBroken, match="no voter there"):
        check_author(standing, history.tip.head, "object")


def test_an_untrusted_genesis_makes_nobody_believed() -> None:
    """Anybody can write a history of his own."""
    standing = start(History(), begin({TWO}))
    assert not standing.accepts(ONE)
    assert standing.voters == {ONE}


def test_trust_follows_the_line_of_configs() -> None:
    """The successor is believed, and from then on only the successor is a voter."""
    history = History()
    frame = history.hand_over(2)
    standing = change(start(history, begin({ONE})), frame, history.lineage, "object")
    assert standing.accepts(TWO)
    assert not standing.accepts(ONE)
    assert standing.believed == {ONE, TWO}


def test_a_config_by_somebody_else_changes_nothing() -> None:
    """Naming a trusted key as voter does not make the author trusted."""
    history = History()
    standing = start(history, begin({TWO}))
    with pytest.raises(UntrustedKey):
        change(standing, history.hand_over(2), history.lineage, "object")


def test_a_config_of_another_lineage_is_refused() -> None:
    """CONFIGs name their lineage."""
    history = History()
    frame = history.hand_over(2)
    other = History(number=2)
    with pytest.raises(ChainBroken, match="another lineage"):
        change(start(other, begin({ONE})), frame, other.lineage, "object")


def test_a_config_of_several_voters_begins_an_epoch_that_is_certified() -> None:
    """The one voter before it makes it final by himself; after it certificates decide."""
    history = History()
    frame = history.hand_over(2, voters=3)
    before = start(history, begin({ONE}))
    after = change(before, frame, history.lineage, "object")
    assert not before.is_certified
    assert after.is_certified
    assert after.believed == {ONE, TWO, THREE, signer(4).public}


def test_a_config_nobody_signed_is_refused() -> None:
    """Its signature is always verified: it decides about all others."""
    history = History()
    frame = history.frames[0]
    object.__setattr__(frame.head, "signature", bytes(64))
    with pytest.raises(ChainBroken, match="did not sign"):
        read_genesis(frame, history.lineage, "object")


def test_a_genesis_is_of_its_own_lineage_and_place() -> None:
    """Served under another lineage it is refused, and so is any other frame."""
    history = History()
    with pytest.raises(ChainBroken, match="is that of lineage 0101"):
        read_genesis(history.frames[0], History(number=2).lineage, "object")
    history.random_commit()
    with pytest.raises(ChainBroken, match="is no genesis"):
        read_genesis(history.tip, history.lineage, "object")


def test_a_child_is_begun_by_a_voter_of_its_parent() -> None:
    """Or it is FORCED, which leaves only the operator's own trust."""
    parent = History()
    before = start(parent, begin({ONE}))
    assert start(History(number=2, parent=parent), before).accepts(ONE)
    with pytest.raises(ChainBroken, match="without having been a voter"):
        start(History(number=2, parent=parent, key=2), before)
    forced = History(number=2, parent=parent, key=2, is_forced=True)
    assert not start(forced, before).accepts(TWO)
    assert start(forced, start(parent, begin({ONE, TWO}))).accepts(TWO)


def test_forced_forgets_what_the_line_vouched_for() -> None:
    """Keys that only a CONFIG named are believed no more."""
    parent = History()
    standing = change(start(parent, begin({ONE})), parent.hand_over(2), parent.lineage, "object")
    forced = History(number=2, parent=parent, key=2, is_forced=True)
    genesis = read_genesis(forced.frames[0], forced.lineage, "object")
    assert not enter(standing, genesis, "object").accepts(TWO)
    assert enter(standing, genesis, "object", chosen=forced.lineage).accepts(TWO)
    stranger = History(number=3, parent=parent, key=3, is_forced=True)
    genesis = read_genesis(stranger.frames[0], stranger.lineage, "object")
    assert not enter(standing, genesis, "object", chosen=stranger.lineage).accepts(THREE)
