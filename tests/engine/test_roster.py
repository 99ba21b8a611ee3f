"""Journals that came back from a backup."""

from dataclasses import replace

import pytest

from basenet.engine.events import Instant
from basenet.engine.limits import SECOND
from basenet.engine.liveness import Member
from basenet.engine.roster import (
    JOURNALS_MAX,
    KEEP_PAUSE,
    JournalPlace,
    KeepRoster,
    RefuseRolledBack,
    Roster,
    TakeNewJournalId,
    Welcome,
    is_same_journal,
)
from basenet.units import JournalId, PublicKeyBytes
from basenet.wire.payload import ConfigPayload, FaultModel
from basenet.wire.rollback import RolledBack
from tests.engine.birth_story import Node

NOW = Instant(0)


def member(number: int, life: int = 0) -> Member:
    return PublicKeyBytes(bytes([number]) * 32), JournalId(bytes([number, life]) * 8)


ME, B, C = member(0), member(1), member(2)


def config(count: int, model: FaultModel = FaultModel.CRASH) -> tuple[ConfigPayload, list[Member]]:
    found = replace(Node(0, count).genesis(*range(count)).config, fault_model=model)
    return found, [(voter.key, voter.journal_id) for voter in found.voters]


def test_the_highest_count_is_remembered() -> None:
    """Sentence B46 of docs/protocol/birth.md.

    B46. A journal counts its transactions, and every node remembers the highest count per key and
    journal id.
    """
    roster = Roster(ME, {})
    roster.on_hello(B, 10, NOW)
    roster.on_acknowledged(B, 15, NOW)
    roster.on_acknowledged(B, 12, NOW)
    assert roster.remembered(B) == 15
    assert roster.remembered(member(1, 1)) == 0
    roster.on_hello(member(1, 1), 1, NOW)
    assert (roster.remembered(B), roster.remembered(member(1, 1))) == (15, 1)


def test_a_hello_that_says_fewer_is_refused() -> None:
    """Sentence B47 of docs/protocol/birth.md.

    B47. A HELLO that says fewer than is remembered is refused and answered ROLLED_BACK; a late
    acknowledgement is not compared.
    """
    roster = Roster(ME, {B: 20})
    message = RolledBack(journal_id=B[1], count=20)
    assert roster.on_hello(B, 19, NOW) == [RefuseRolledBack(member=B, message=message)]
    assert roster.remembered(B) == 20
    assert roster.on_acknowledged(B, 3, NOW) == []
    assert Welcome(member=B) in roster.on_hello(B, 20, NOW)
    assert Welcome(member=B) in roster.on_hello(B, 21, NOW)


def test_counts_are_kept_at_hello_and_else_once_a_minute() -> None:
    """Sentence B48 of docs/protocol/birth.md.

    B48. Counts are made durable at HELLO, and else at most once a minute.
    """
    roster = Roster(ME, {})
    kept, welcome = roster.on_hello(B, 10, NOW)
    assert kept == KeepRoster(counts=((B, 10),))
    assert isinstance(welcome, Welcome)
    for second in range(1, 60):
        assert roster.on_acknowledged(B, 10 + second, Instant(NOW + second * SECOND)) == []
        assert roster.tick(Instant(NOW + second * SECOND)) == []
    assert roster.tick(Instant(NOW + KEEP_PAUSE)) == [KeepRoster(counts=((B, 69),))]
    assert roster.tick(Instant(NOW + 3 * KEEP_PAUSE)) == []
    late = Instant(NOW + 3 * KEEP_PAUSE)
    assert roster.on_acknowledged(B, 70, late) == [KeepRoster(counts=((B, 70),))]
    fresh = Roster(ME, {B: 1})
    assert fresh.on_acknowledged(B, 2, NOW) == [KeepRoster(counts=((B, 2),))]


def test_who_is_told_takes_a_new_journal_id() -> None:
    """Sentence B49 of docs/protocol/birth.md.

    B49. A node that is told ROLLED_BACK votes no more and takes a new journal id.
    """
    found, voters = config(3)
    roster = Roster(voters[0], {})
    roster.on_greeted(voters[1])
    assert roster.may_vote(found)
    message = RolledBack(journal_id=voters[0][1], count=30)
    effects = roster.on_rolled_back(B[0], message, 20)
    assert effects == [TakeNewJournalId(remembered=30, mine=20)]
    roster.on_greeted(voters[2])
    assert roster.is_rolled_back
    assert not roster.may_vote(found)
    assert roster.on_rolled_back(C[0], message, 20) == []


def test_what_is_no_evidence_changes_nothing() -> None:
    """Another journal's count, or one that the HELLO had reached."""
    roster = Roster(ME, {})
    assert roster.on_rolled_back(B[0], RolledBack(journal_id=C[1], count=30), 20) == []
    assert roster.on_rolled_back(B[0], RolledBack(journal_id=ME[1], count=20), 20) == []
    assert not roster.is_rolled_back


def test_where_peers_may_lie_one_is_not_enough() -> None:
    """It takes f + 1 of them, or a liar could make learners of all."""
    roster = Roster(ME, {}, doubters_needed=2)
    message = RolledBack(journal_id=ME[1], count=30)
    assert roster.on_rolled_back(B[0], message, 20) == []
    assert roster.on_rolled_back(B[0], message, 20) == []
    assert len(roster.on_rolled_back(C[0], message, 20)) == 1


@pytest.mark.parametrize(
    ("count", "model", "needed"),
    [
        (1, FaultModel.CRASH, 0),
        (2, FaultModel.CRASH, 1),
        (3, FaultModel.CRASH, 1),
        (5, FaultModel.CRASH, 2),
        (4, FaultModel.BYZANTINE, 2),
        (7, FaultModel.BYZANTINE, 4),
    ],
)
def test_no_vote_before_enough_have_compared(count: int, model: FaultModel, needed: int) -> None:
    """Sentence B50 of docs/protocol/birth.md.

    B50. A voter sends no vote, NewView or lease-giving acknowledgement before q - 1 other voters
    have compared its HELLO.
    """
    found, voters = config(count, model)
    roster = Roster(voters[0], {})
    roster.on_greeted(voters[0])
    roster.on_greeted(member(99))
    roster.on_greeted((voters[-1][0], JournalId(b"?" * 16)))
    for number in range(needed):
        assert not roster.may_vote(found)
        roster.on_greeted(voters[number + 1])
        roster.on_greeted(voters[number + 1])
    assert roster.may_vote(found)


def test_a_copy_of_a_journal_is_another_one() -> None:
    """Sentence B51 of docs/protocol/birth.md.

    B51. A copy or file-level restore of a journal is another journal.
    """
    place = JournalPlace(device=1, inode=2, born_ns=3, machine_id="m")
    assert is_same_journal(place, replace(place))
    for other in (
        replace(place, device=9),
        replace(place, inode=9),
        replace(place, born_ns=9),
        replace(place, machine_id="n"),
    ):
        assert not is_same_journal(place, other)


def test_what_is_remembered_has_a_bound() -> None:
    """The journals not heard of for longest go first."""
    roster = Roster(ME, {B: 5})
    for number in range(JOURNALS_MAX):
        other = (PublicKeyBytes(number.to_bytes(32, "big")), JournalId(b"j" * 16))
        roster.on_hello(other, 1, NOW)
        if number == 10:
            roster.on_hello(B, 6, NOW)
    (kept, _) = roster.on_hello(B, 7, NOW)
    assert isinstance(kept, KeepRoster)
    assert len(kept.counts) == JOURNALS_MAX
    assert kept.counts[-1] == (B, 7)


def test_nobody_is_no_doubter() -> None:
    """Zero would believe in nothing said."""
    with pytest.raises(AssertionError):
        Roster(ME, {}, doubters_needed=0)
