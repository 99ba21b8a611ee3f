"""Changing who votes and who leads, catching up, reading, and evidence."""

from dataclasses import replace as with_changes

import pytest
from msgspec.structs import replace

from basenet.engine.ballot import begin_epoch
from basenet.engine.configuration import contradiction, order_voters
from basenet.engine.effects import Persist, ServeFinal
from basenet.engine.events import PeerLost, ReadWanted, SurveyWanted, Ticked, TransferWanted
from basenet.engine.evidence import Evidence
from basenet.engine.limits import EVIDENCE_MAX, READS_MAX
from basenet.units import Epoch, FrameHash, Lineage, Seq, View
from basenet.wire.certificate import COMMIT
from basenet.wire.message import (
    Certified,
    Mark,
    Need,
    Propose,
    ReadIndex,
    ReadIndexRequest,
    Release,
    SyncRequest,
    Vote,
    Wish,
)
from basenet.wire.payload import ConfigPayload, FaultModel, VoterRole
from tests.engine.cluster import (
    LINEAGE,
    SCOPE,
    Cluster,
    IdealSigner,
    Instant,
    config_of,
    key_of,
    voter_of,
)
from tests.engine.test_finality import certificate_for
from tests.engine.test_views import new_view, views
from tests.engine.test_voting import hand, make_frame, make_proposal, quiet_cluster, votes_of


def epochs(cluster: Cluster) -> list[int]:
    return [node.replica.ballot.epoch for node in cluster.nodes]


# CONFIG.


def test_a_config_ends_its_epoch_under_the_old_voters() -> None:
    """Protocol 10.1, Q5: final by the old quorum; nothing above it before; view 0 after it."""
    cluster = quiet_cluster(spares=1)
    cluster.commit(0)
    cluster.cut((0, 1), (0, 2))
    cluster.give(3, Ticked())
    cluster.run()
    cluster.configure(0, config_of(0, 1, 2, 3))
    assert not cluster.nodes[0].replica.can_seal(cluster.now)
    assert not cluster.nodes[0].replica.is_writable(cluster.now)
    assert epochs(cluster) == [1, 1, 1, 1]
    cluster.heal()
    cluster.advance(600)
    assert epochs(cluster) == [2, 2, 2, 2]
    config_frame = cluster.nodes[0].finals[-1]
    certificate = cluster.nodes[1].certificates[config_frame.seq]
    assert certificate.epoch == 1
    assert {key for key, _ in certificate.votes} <= {key_of(0), key_of(1), key_of(2)}
    assert cluster.nodes[0].ballot.view == 0
    assert cluster.nodes[0].replica.is_writable(cluster.now)
    cluster.commit(0)
    assert [node.final for node in cluster.nodes] == [4, 4, 4, 4]
    assert cluster.nodes[3].replica.is_voter


def test_from_one_voter_to_three_the_writer_stays() -> None:
    """Protocol 1.4, 10.1, P20: the author leads view 0 of the new epoch, and stays open."""
    cluster = quiet_cluster(voters=1, spares=2)
    cluster.commit(0)
    for spare in (1, 2):
        cluster.give(spare, Ticked())
    cluster.run()
    cluster.advance(10_000)
    cluster.configure(0, config_of(0, 1, 2))
    cluster.advance(1_000)
    assert epochs(cluster) == [2, 2, 2]
    assert cluster.nodes[0].fences == 0
    assert cluster.nodes[0].replica.is_writable(cluster.now)
    cluster.commit(0)
    assert [node.final for node in cluster.nodes] == [4, 4, 4]


def test_new_voters_must_be_there_and_caught_up() -> None:
    """Protocol 10.2, Q5: else it is refused after a while, and the leader goes on."""
    cluster = quiet_cluster(voters=1, spares=2)
    cluster.isolate(1)
    cluster.isolate(2)
    cluster.configure(0, config_of(0, 1, 2))
    cluster.advance(4_000)
    assert epochs(cluster) == [1, 1, 1]
    assert any("connected and caught up" in what for what in cluster.nodes[0].whats())
    cluster.commit(0)
    assert cluster.nodes[0].final == 2
    # Two of three are enough; one who is lost does not count.
    cluster = quiet_cluster(spares=2)
    cluster.commit(0)
    for spare in (3, 4):
        cluster.tell(0, spare, SyncRequest(epoch=Epoch(1), above_height=Seq(2)))
    cluster.isolate(3)
    cluster.give(0, PeerLost(peer=key_of(3)))
    cluster.isolate(4)
    cluster.give(0, PeerLost(peer=key_of(4)))
    cluster.configure(0, config_of(0, 3, 4))
    cluster.advance(4_000)
    assert epochs(cluster)[0] == 1


def test_a_replica_tells_who_could_be_made_a_voter() -> None:
    """Q5: itself; a voter by its votes; a learner that said lately how far it is."""
    cluster = quiet_cluster(spares=2)
    cluster.isolate(4)
    cluster.commit(0)
    cluster.tell(0, 3, SyncRequest(epoch=Epoch(1), above_height=Seq(2)))
    replica = cluster.nodes[0].replica

    def caught_up() -> list[bool]:
        return [replica.is_caught_up(voter_of(number), cluster.now) for number in range(5)]

    assert replica.learners == {key_of(3): 2}
    assert caught_up() == [True, True, True, True, False]
    assert not replica.is_caught_up(voter_of(1, life=1), cluster.now)
    cluster.give(0, PeerLost(peer=key_of(1)))
    cluster.give(0, PeerLost(peer=key_of(3)))
    assert caught_up() == [True, False, True, False, False]


@pytest.mark.parametrize("is_byzantine", [False, True])
def test_a_leader_that_began_again_finds_out_how_far_the_voters_are(*, is_byzantine: bool) -> None:
    """Protocol 10.9: an idle shard's voters answer a survey with the votes that they gave.

    Found by the system tests: all nodes began again, nothing happened, and the leader, who could
    not write, knew of nobody to hand over to.
    """
    cluster = quiet_cluster(voters=4, byzantine=is_byzantine)
    cluster.commit(0)
    cluster.isolate(0)
    cluster.restart(0)
    cluster.run()
    cluster.heal()
    cluster.run()
    replica = cluster.nodes[0].replica
    assert replica.is_leader
    assert not replica.is_caught_up(voter_of(1), cluster.now)
    cluster.give(0, SurveyWanted())
    cluster.give(1, SurveyWanted())
    cluster.run()
    assert replica.is_caught_up(voter_of(1), cluster.now)
    cluster.give(0, PeerLost(peer=key_of(2)))
    assert not replica.is_caught_up(voter_of(2), cluster.now)
    cluster.give(0, SurveyWanted())
    cluster.run()
    assert replica.is_caught_up(voter_of(2), cluster.now)


def test_only_an_open_leader_takes_a_config() -> None:
    """Protocol 10.2, 9.1: a follower says so, and so does a leader with a change under way."""
    cluster = quiet_cluster()
    cluster.configure(1, config_of(1, 0, 2))
    assert any("does not lead" in what for what in cluster.nodes[1].whats())
    cluster.isolate(0)
    cluster.give(0, TransferWanted(target=key_of(1)))
    cluster.give(1, TransferWanted(target=key_of(0)))
    assert any("the transfer is refused" in what for what in cluster.nodes[1].whats())
    cluster.give(0, TransferWanted(target=key_of(9)))
    assert any("the transfer is refused" in what for what in cluster.nodes[0].whats())


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (config_of(0, 2, 1), "order"),
        (config_of(1, 0, 2), "order"),
        (config_of(0, 3, 1), "order"),
        (with_changes(config_of(0, 1), lineage=Lineage(b"x" * 16)), "lineage"),
        (with_changes(config_of(0, 1), parent=(Lineage(b"p" * 16), 1, b"h" * 32)), "parent"),
        (with_changes(config_of(0, 1), is_forced=True), "forced"),
        (with_changes(config_of(0, 1), format=0), "format"),
        (with_changes(config_of(0, 1, 2), fault_model=FaultModel.BYZANTINE), "Byzantine"),
    ],
)
def test_a_config_that_may_not_follow(new: ConfigPayload, problem: str) -> None:
    """Protocol 10.3, 10.4, Q5: the leader refuses it, and so would every voter."""
    old = config_of(0, 1, 2)
    found = contradiction(old, new, key_of(0))
    assert found is not None
    assert problem in found
    assert contradiction(old, config_of(0, 1, 2, 4), key_of(0)) is None
    assert contradiction(old, config_of(2, 4), key_of(2)) is None


def test_the_order_of_a_config() -> None:
    """Protocol 10.3, P20, Q5: author, old ones, newcomers; another journal makes a newcomer."""
    old = config_of(0, 1, 2)
    wanted = [voter_of(7), voter_of(1, life=1), voter_of(0), voter_of(2)]
    ordered = order_voters(old, key_of(2), wanted)
    assert [voter.key for voter in ordered] == [key_of(n) for n in (2, 0, 7, 1)]


def test_every_quorum_holds_a_database() -> None:
    """Protocol 10.5, Q19: two data holders, fewer than a quorum of witnesses, none in front."""
    old = config_of(0, 1, 2)

    def roles(*roles: VoterRole) -> ConfigPayload:
        voters = tuple(voter_of(number, role) for number, role in enumerate(roles))
        return with_changes(config_of(0), voters=voters)

    data, witness = VoterRole.VALIDATOR, VoterRole.WITNESS
    assert contradiction(old, roles(data, data, witness), key_of(0)) is None
    assert contradiction(old, roles(data, witness), key_of(0)) is None
    assert contradiction(old, roles(data, data, witness, data, witness), key_of(0)) is None
    for wrong in (
        roles(data, witness, witness),
        roles(data, data, witness, witness, witness),
        roles(witness, data, data),
        roles(witness),
    ):
        assert contradiction(old, wrong, key_of(0)) is not None


def test_a_config_that_may_not_follow_gets_no_vote() -> None:
    """Protocol 6.6: nor do frames above one that is not final."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    cluster.configure(0, config_of(0, 1, 2))
    node = cluster.nodes[1]
    frame = cluster.nodes[0].frames[cluster.nodes[0].replica.tip.hash]
    above = make_frame(frame)
    hand(cluster, 1, frame, above)
    cluster.tell(1, 0, make_proposal(cluster, above))
    cluster.run()
    assert not node.sent(Vote)
    cluster.tell(1, 0, make_proposal(cluster, frame))
    cluster.run()
    assert votes_of(node) == [(COMMIT, 2)]
    cluster.tell(1, 0, make_proposal(cluster, above))
    cluster.run()
    assert votes_of(node) == [(COMMIT, 2)]
    cluster = quiet_cluster()
    cluster.isolate(0)
    cluster.nodes[0].replica._state.config = config_of(0, 2, 1)
    cluster.configure(0, config_of(0, 2, 1))
    frame = cluster.nodes[0].frames[cluster.nodes[0].replica.tip.hash]
    hand(cluster, 1, frame)
    cluster.tell(1, 0, make_proposal(cluster, frame))
    cluster.run()
    assert not cluster.nodes[1].sent(Vote)
    assert any("may not be" in what for what in cluster.nodes[1].whats())


def test_messages_of_other_epochs_are_answered_and_not_processed() -> None:
    """Protocol 10.6: history for the old, a request to the new, at most once a while."""
    cluster = quiet_cluster()
    cluster.configure(0, config_of(0, 1, 2))
    cluster.advance(300)
    old = Wish(epoch=Epoch(1), view=View(1), signature=bytes(64))
    (serve,) = cluster.tell(0, 2, old)
    assert serve == ServeFinal(to=key_of(2), above_height=Seq(1))
    assert cluster.tell(0, 2, old) == []
    cluster.advance(300)
    cluster.tell(0, 2, replace(old, epoch=Epoch(7)))
    (request,) = cluster.nodes[0].sent(SyncRequest)
    assert request.above_height == 2
    assert epochs(cluster) == [2, 2, 2]


def test_a_voter_that_slept_through_epochs_comes_back() -> None:
    """Protocol 10.6, 11.3: piece by piece, each proven by the voters that the one before named."""
    cluster = quiet_cluster()
    cluster.isolate(2)
    cluster.commit(0)
    for _ in range(2):
        cluster.configure(0, config_of(0, 1, 2))
        cluster.commit(0)
    cluster.heal()
    cluster.commit(0)
    cluster.advance(1_000)
    assert epochs(cluster) == [3, 3, 3]
    assert cluster.nodes[2].final == cluster.nodes[0].final == 7


def test_promises_outlive_an_epoch() -> None:
    """Protocol 10.8, P20: a new first voter waits for its own before it leads."""
    cluster = quiet_cluster()
    cluster.nodes[1].lane.promised = Instant(cluster.now + 700_000_000)
    cluster.configure(0, config_of(1, 2))
    assert epochs(cluster) == [2, 2, 2]
    assert cluster.nodes[0].fences == 1
    assert not cluster.nodes[1].replica.is_leader
    cluster.advance(701)
    assert cluster.nodes[1].replica.is_leader
    cluster.commit(1)
    assert cluster.nodes[2].final == 3


# Transfer.


def test_a_transfer_hands_the_lead_over_for_good() -> None:
    """Protocol 10.7: all final, then the view is left, persisted, and the others are released."""
    cluster = quiet_cluster()
    cluster.commit(0)
    for number in (1, 2):
        cluster.nodes[number].lane.promised = Instant(cluster.now + 900_000_000)
    leader = cluster.nodes[0]
    leader.effects.clear()
    cluster.give(0, TransferWanted(target=key_of(2)))
    persist = next(one for one in leader.effects if isinstance(one, Persist))
    assert persist.ballot is not None
    assert persist.ballot.view == 2
    (release,) = leader.sent(Release)
    assert (release.view, release.target) == (0, 2)
    cluster.run()
    cluster.advance(200)
    assert cluster.nodes[2].replica.is_leader
    assert cluster.nodes[2].replica.is_writable(cluster.now)
    cluster.commit(2)
    assert [node.final for node in cluster.nodes] == [3, 3, 3]
    assert [one for one in leader.orphans if one.heads] == []
    # Whoever did not lead cannot release anybody.
    before = cluster.nodes[1].lane.promised
    cluster.nodes[1].lane.promised = Instant(before + 5)
    cluster.tell(1, 0, replace(release, view=View(2), target=View(3)))
    cluster.tell(1, 2, replace(release, view=View(2), target=View(3)))
    cluster.tell(1, 2, replace(release, view=View(2), target=View(9)))
    assert cluster.nodes[1].lane.promised == before + 5


def test_a_transfer_that_cannot_be_is_given_up() -> None:
    """Protocol 10.7: nothing is sealed meanwhile, and after a while the leader goes on."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    cluster.commit(0)
    cluster.give(0, TransferWanted(target=key_of(1)))
    replica = cluster.nodes[0].replica
    assert not replica.can_seal(cluster.now)
    assert not replica.is_writable(cluster.now)
    cluster.give(0, TransferWanted(target=key_of(1)))
    cluster.configure(0, config_of(0, 1))
    assert sum("another change" in what for what in cluster.nodes[0].whats()) == 2
    cluster.advance(3_100)
    assert replica.can_seal(cluster.now)
    assert any("given up" in what for what in cluster.nodes[0].whats())


# Catching up.


def test_a_proposal_with_holes_asks_its_leader() -> None:
    """Protocol 11.1: after 50 ms without news, for what follows what it has."""
    cluster = quiet_cluster()
    cluster.cut((0, 2))
    cluster.filter = lambda _, __, event: not hasattr(event, "frames")
    cluster.commit(0, 3)
    node = cluster.nodes[1]
    assert not node.sent(Need)
    cluster.advance(49)
    assert not node.sent(Need)
    cluster.filter = None
    first = cluster.nodes[0].frames[cluster.nodes[0].replica._state.tree.chain[2]]
    hand(cluster, 1, first)
    cluster.advance(49)
    assert not node.sent(Need)
    cluster.advance(2)
    (need,) = node.sent(Need)
    assert (need.above_height, need.above_hash) == (2, first.head.hash)
    assert [one.final for one in cluster.nodes] == [4, 4, 1]


def test_missing_history_is_asked_for_in_turn() -> None:
    """Protocol 11.2, mistake 13: the next peer each time, so a dead one costs one turn."""
    cluster = quiet_cluster(voters=5)
    (head,) = cluster.commit(0)
    late = cluster.nodes[4]
    cluster.crash(4)
    late.ballot = begin_epoch(cluster.config, Epoch(1), Mark(-1, Seq(1), cluster.genesis.head.hash))
    late.frames = {cluster.genesis.head.hash: cluster.genesis}
    late.database = (Seq(1), cluster.genesis.head.hash)
    late.finals.clear()
    cluster.boot(late)
    cluster.isolate(4)
    certificate = certificate_for(cluster.nodes[0].frames[head.hash], 0, 1, 2)
    late.effects.clear()
    cluster.tell(4, 3, Certified(epoch=Epoch(1), certificate=certificate))
    cluster.advance(1_100)
    asked = [one.to for one in late.effects if isinstance(getattr(one, "message", 0), SyncRequest)]
    assert asked[0] == (key_of(3),)
    assert len(set(asked[1:5])) == 4
    cluster.heal()
    cluster.advance(600)
    assert late.final == 2


def test_a_learner_is_told_and_says_how_far_it_is() -> None:
    """Protocol 11.4: once it has asked; it needs no promise and casts no vote."""
    cluster = quiet_cluster(spares=1)
    cluster.advance(1)
    spare = cluster.nodes[3]
    assert spare.sent(SyncRequest)
    cluster.commit(0)
    assert spare.final == 2
    assert spare.sent(SyncRequest)[-1].above_height == 2
    cluster.commit(0)
    assert spare.final == 3
    assert not spare.sent(Vote)
    assert not spare.sent(Wish)


def test_lost_messages_are_repeated() -> None:
    """Protocol 11.5: votes, proposals and certificates, every 250 ms while something is pending."""
    for kind in (Vote, Propose, Certified):
        cluster = quiet_cluster()
        lost: list[object] = []

        def drop(
            _: int, __: int, event: object, kind: type = kind, lost: list[object] = lost
        ) -> bool:
            is_kind = isinstance(getattr(event, "message", None), kind)
            if is_kind and len(lost) < 2:
                lost.append(event)
                return False
            return True

        cluster.filter = drop
        cluster.commit(0)
        cluster.advance(600)
        assert len(lost) == 2
        assert [node.final for node in cluster.nodes] == [2, 2, 2], kind
        assert views(cluster) == [0, 0, 0]


def test_unproven_history_is_not_taken() -> None:
    """Protocol 11.3: wrong certificate, none at all, other links, or an author who is no voter."""
    cluster = quiet_cluster(spares=1)
    cluster.commit(0, 2)
    (whole,) = cluster.history(cluster.nodes[0], 1)
    frames = whole.frames
    certificate = whole.certificate
    assert certificate is not None
    wrong = [
        with_changes(whole, certificate=None),
        with_changes(whole, frames=frames[:1]),
        with_changes(whole, frames=(make_frame(cluster.genesis, salt=b"x" * 16), frames[1])),
        with_changes(whole, certificate=replace(certificate, votes=certificate.votes[:1])),
        with_changes(whole, certificate=replace(certificate, phase=1)),
        with_changes(whole, certificate=replace(certificate, epoch=Epoch(2))),
        with_changes(whole, frames=()),
    ]
    for one in wrong:
        cluster.give(3, one)
        assert cluster.nodes[3].final == 1
    cluster.give(3, whole)
    assert cluster.nodes[3].final == 3


def test_the_only_voters_signature_proves_its_epoch() -> None:
    """Protocol 11.3: without a certificate, frame by frame."""
    cluster = quiet_cluster(voters=1, spares=1)
    cluster.commit(0, 2)
    (whole,) = cluster.history(cluster.nodes[0], 1)
    assert whole.certificate is None
    bad = with_changes(
        whole.frames[1], head=with_changes(whole.frames[1].head, signature=bytes(64))
    )
    cluster.give(1, with_changes(whole, frames=(whole.frames[0], bad)))
    assert cluster.nodes[1].final == 1
    cluster.give(1, whole)
    assert cluster.nodes[1].final == 3


# Reads.


def test_a_read_learns_how_high_it_must_wait() -> None:
    """Protocol 9.4: from a leader with a lease; nobody else answers."""
    cluster = quiet_cluster()
    cluster.commit(0)
    for number in (0, 1):
        cluster.give(number, ReadWanted(nonce=bytes([number]) * 16))
        cluster.run()
        (ready,) = cluster.nodes[number].reads
        assert ready.height == 2
    cluster.nodes[0].lane.lease = Instant(0)
    node = cluster.nodes[2]
    cluster.give(2, ReadWanted(nonce=b"n" * 16))
    cluster.advance(600)
    assert node.reads == []
    assert len(node.sent(ReadIndexRequest)) == 3
    cluster.nodes[0].lane.lease = Instant(2**62)
    cluster.advance(300)
    assert node.reads[0].height == 2
    cluster.isolate(2)
    cluster.give(2, ReadWanted(nonce=b"o" * 16))
    cluster.advance(3_100)
    assert node.reads[1].height is None


def test_a_byzantine_read_asks_a_quorum() -> None:
    """Protocol 9.4: the highest answer counts, and one that is forged does not."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.commit(0)
    node = cluster.nodes[1]
    cluster.isolate(1)
    cluster.give(1, ReadWanted(nonce=b"n" * 16))
    cluster.run()

    def answer(sender: int, height: int, *, signed: bool = True) -> ReadIndex:
        data = SCOPE.read_index(Epoch(1), View(0), Seq(height), b"n" * 16)
        return ReadIndex(
            epoch=Epoch(1),
            view=View(0),
            height=Seq(height),
            nonce=b"n" * 16,
            signature=IdealSigner(sender).sign(data) if signed else bytes(64),
        )

    cluster.tell(1, 0, answer(0, 1, signed=False))
    cluster.tell(1, 2, answer(2, 3))
    assert node.reads == []
    cluster.tell(1, 3, answer(3, 2))
    assert node.reads == []
    cluster.heal()
    cluster.commit(0)
    assert node.reads[0].height == 3
    cluster.tell(1, 0, answer(0, 3))


def test_reads_that_wait_are_bounded() -> None:
    """Protocol 9.4: beyond the bound a read is told to ask again."""
    cluster = quiet_cluster()
    cluster.isolate(2)
    for number in range(READS_MAX + 1):
        cluster.give(2, ReadWanted(nonce=number.to_bytes(16, "big")))
    (refused,) = cluster.nodes[2].reads
    assert refused.height is None


# Evidence.


def test_what_contradicts_itself_is_reported_once() -> None:
    """Protocol 12.1, 12.2: with both signed messages; the crash mode leaves such a leader."""
    cluster = quiet_cluster()
    one, other = make_frame(cluster.genesis), make_frame(cluster.genesis, salt=b"o" * 16)
    hand(cluster, 1, one, other)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    node = cluster.nodes[1]
    for _ in range(2):
        cluster.tell(1, 0, make_proposal(cluster, other))
    (report,) = [one for one in node.reports if one.what == "two proposals in one view"]
    assert report.peer == key_of(0)
    assert [one.end_hash for one in report.proof] == [one.head.hash, other.head.hash]  # type: ignore[union-attr]
    cluster.isolate(1)
    cluster.advance(300)
    assert node.sent(Wish)
    assert epochs(cluster) == [1, 1, 1]


def test_two_votes_at_one_height_are_evidence() -> None:
    """Protocol 12.1: counted by the leader, who proposed only one of them."""
    cluster = quiet_cluster(voters=5)
    cluster.isolate(0)
    (head,) = cluster.commit(0)
    for digest in (head.hash, FrameHash(b"o" * 32)):
        data = SCOPE.vote(Epoch(1), View(0), COMMIT, head.seq, digest)
        message = Vote(
            epoch=Epoch(1),
            view=View(0),
            phase=COMMIT,
            height=head.seq,
            hash=digest,
            signature=IdealSigner(3).sign(data),
        )
        cluster.tell(0, 3, message)
    (report,) = cluster.nodes[0].reports
    assert (report.what, len(report.proof)) == ("two votes at one height", 2)


def test_a_voter_that_forgot_its_vote_is_reported() -> None:
    """Protocol 12.1: its NewView is below what it voted for, which is certified."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.elect(1)
    cluster.isolate(1)
    certificate = cluster.nodes[1].ballot.certificate
    assert certificate is not None
    voter = next(n for n in (0, 2) if key_of(n) in {key for key, _ in certificate.votes})
    low = Mark(-1, cluster.genesis.head.seq, cluster.genesis.head.hash)
    cluster.tell(1, voter, new_view(voter, 4, low))
    assert "a NewView below a vote that is certified" in cluster.nodes[1].whats()


def test_evidence_is_bounded() -> None:
    """Protocol 12.1, Q24: once each, and no more than 64 a peer."""
    evidence = Evidence()
    reports = [
        evidence.take(f"what {number}", key_of(1), ())
        for number in range(EVIDENCE_MAX + 5)
        for _ in "12"
    ]
    assert sum(one is not None for one in reports) == EVIDENCE_MAX
    assert evidence.take("what", key_of(2), ()) is not None


def test_a_leader_with_an_old_copy_of_its_journal_stops() -> None:
    """Protocol 12.3, Q9: what its own view made final is not on its chain."""
    cluster = quiet_cluster()
    cluster.commit(0)
    leader = cluster.nodes[0]
    copy = (leader.ballot, dict(leader.frames), leader.database, leader.local_last)
    cluster.commit(0, 2)
    cluster.crash(0)
    leader.ballot, leader.frames, leader.database, leader.local_last = copy
    cluster.boot(leader)
    cluster.commit(0)
    cluster.advance(600)
    assert any("old copy" in what for what in leader.whats())
    cluster.silence(0)
    cluster.advance(4_000)
    assert leader.ballot.view > 0
    assert leader.fences
    assert min(node.final for node in cluster.nodes) >= 4
    assert len({node.finals[-1].hash for node in cluster.nodes if node.final == 4}) <= 1
    assert cluster.config.lineage == LINEAGE
