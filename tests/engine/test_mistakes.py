"""The second half of rules that a first test cannot tell from doing without them.

Each of these fails when the one line of the engine that it is for is taken out; `test_regressions`
knows which tests carry the names.
"""

from dataclasses import replace

from basenet.engine.adoption import NOWHERE
from basenet.engine.effects import Judge
from basenet.engine.events import Judged, TransferWanted
from basenet.engine.quorum import form
from basenet.units import Epoch, View
from basenet.wire.certificate import COMMIT, PREPARE
from basenet.wire.frame import Flag
from basenet.wire.message import Certified, Mark, Propose, Refuse, Vote, Wish
from basenet.wire.payload import ConfigPayload, VoterRole
from tests.engine.cluster import (
    NO_ROOT,
    SCOPE,
    Cluster,
    IdealSigner,
    config_of,
    key_of,
    received,
    voter_of,
)
from tests.engine.test_views import genesis_mark, new_view
from tests.engine.test_voting import hand, make_frame, make_proposal, quiet_cluster, votes_of

VALIDATOR, WITNESS = VoterRole.VALIDATOR, VoterRole.WITNESS


def test_a_byzantine_leader_drops_what_an_earlier_view_left_behind() -> None:
    """Protocol 5.8, mistake 9: its own chain above the anchor goes when it is older than that."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.commit(0)
    cluster.isolate(1)
    cluster.filter = lambda _sender, to, event: (
        not (to == 0 and isinstance(getattr(event, "message", None), Vote))
    )
    (left,) = cluster.commit(0)
    assert cluster.nodes[2].ballot.voted is not None
    assert cluster.nodes[2].ballot.voted.hash == left.hash
    cluster.heal()
    cluster.isolate(2)
    cluster.queue.clear()
    # View 1 starts without the frame, and makes final what it started with.
    cluster.filter = lambda _sender, to, event: not (to == 1 and hasattr(event, "frames"))
    cluster.elect(1)
    assert cluster.nodes[1].replica.final.view == 1
    cluster.heal()
    # Nobody tells it of view 1 before it has to start view 2.
    cluster.isolate(1)
    assert cluster.nodes[2].replica.tip == left
    cluster.elect(2)
    leader = cluster.nodes[2].replica
    assert leader.is_leader
    assert leader.final.view == leader.ballot.view
    assert left.hash not in {head.hash for head in cluster.nodes[2].finals}


def test_nobody_locks_below_its_first_vote_in_a_view() -> None:
    """Protocol 6.5, mistake 10: a certificate of a lower start of the view gets no COMMIT vote."""
    cluster = Cluster(4, byzantine=True, boots=False)
    cluster.boot(cluster.nodes[1])
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    hand(cluster, 1, one, two)
    cluster.tell(1, 0, make_proposal(cluster, two))
    cluster.run()
    node = cluster.nodes[1]
    assert votes_of(node) == [(PREPARE, 3)]
    for frame, votes in ((one, [(PREPARE, 3)]), (two, [(PREPARE, 3), (COMMIT, 3)])):
        mark = Mark(0, frame.head.seq, frame.head.hash)
        data = SCOPE.vote(Epoch(1), View(0), PREPARE, mark.height, mark.hash)
        signed = {key_of(number): IdealSigner(number).sign(data) for number in (0, 2, 3)}
        certificate = form(PREPARE, Epoch(1), mark, signed)
        cluster.tell(1, 0, Certified(epoch=Epoch(1), certificate=certificate))
        assert votes_of(node) == votes


def test_above_a_vote_stand_only_frames_of_its_view() -> None:
    """Protocol 6.4, mistake 10: also when an honest leader of an earlier view sealed them."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.isolate(0)
    cluster.elect(1)
    cluster.heal()
    node = cluster.nodes[2]
    assert node.ballot.view == 1
    old = make_frame(cluster.genesis)
    hand(cluster, 2, old)
    node.effects.clear()
    message = make_proposal(cluster, old, view=1, leader=1, anchor=node.ballot.anchor)
    cluster.tell(2, 1, message)
    cluster.run()
    assert not node.sent(Vote)
    assert "frames of another view above my vote" in node.whats()


def test_a_view_of_an_epoch_that_is_over_says_nothing_in_the_next() -> None:
    """Protocol 10.6, mistake 11: view 4 of epoch 1 is not above view 0 of epoch 2."""
    cluster = Cluster(3)
    cluster.commit(0)
    cluster.elect(1)
    cluster.configure(1, config_of(1, 0, 2))
    replicas = [node.replica for node in cluster.nodes]
    assert [(one.ballot.epoch, one.ballot.view) for one in replicas] == [(2, 0)] * 3
    signed = SCOPE.wish(Epoch(1), View(4))
    for to in range(3):
        for sender in {0, 1, 2} - {to}:
            signature = IdealSigner(sender).sign(signed)
            wish = Wish(epoch=Epoch(1), view=View(4), signature=signature)
            cluster.tell(to, sender, wish)
            cluster.tell(to, sender, new_view(sender, 4, genesis_mark(cluster)))
    cluster.run()
    assert [(one.ballot.epoch, one.ballot.view) for one in replicas] == [(2, 0)] * 3
    cluster.commit(1)
    assert len({node.final for node in cluster.nodes}) == 1


def test_following_others_into_a_view_is_no_failure() -> None:
    """Protocol 4.12, mistake 13: whoever was led along waits no longer than anybody else."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.isolate(1)
    node, head = cluster.nodes[1], cluster.genesis.head
    for view in (2, 3, 6):
        mark = Mark(view, head.seq, head.hash)
        data = SCOPE.vote(Epoch(1), View(view), PREPARE, mark.height, mark.hash)
        signed = {key_of(number): IdealSigner(number).sign(data) for number in (0, 2, 3)}
        certificate = form(PREPARE, Epoch(1), mark, signed)
        cluster.tell(1, 0, Certified(epoch=Epoch(1), certificate=certificate))
        assert node.ballot.view == view
    node.effects.clear()
    cluster.advance(1_300)
    assert node.sent(Wish)


def test_a_frame_of_something_else_inside_a_run_is_not_linked() -> None:
    """Protocol 3.3, P22: a run has one sort of frames, and nobody votes for another end of it."""
    for flags, votes in ((Flag.REGRESSED, []), (Flag.NONE, [(COMMIT, 3)])):
        cluster = quiet_cluster()
        begun = make_frame(cluster.genesis, flags=Flag.PARTIAL, state_root=NO_ROOT)
        end = make_frame(begun, flags=flags)
        hand(cluster, 1, begun, end)
        cluster.tell(1, 0, make_proposal(cluster, end))
        cluster.run()
        assert votes_of(cluster.nodes[1]) == votes


def test_a_refusal_outlives_the_verdict() -> None:
    """Protocol 8.1, Q8: a node that judges otherwise after a restart keeps its promise."""
    cluster = quiet_cluster()
    wrong = make_frame(cluster.genesis)
    cluster.wrong.add(wrong.head.hash)
    hand(cluster, 1, wrong)
    cluster.tell(1, 0, make_proposal(cluster, wrong))
    cluster.run()
    node = cluster.nodes[1]
    assert node.sent(Refuse)
    cluster.wrong.clear()
    cluster.restart(1)
    node.effects.clear()
    hand(cluster, 1, wrong)
    cluster.tell(1, 0, make_proposal(cluster, wrong))
    cluster.run()
    assert not node.sent(Vote)
    for judged in [one for one in node.effects if isinstance(one, Judge)]:
        cluster.give(
            1, Judged(epoch=Epoch(1), view=View(0), hash=judged.heads[-1].hash, wrong=None)
        )
    assert not node.sent(Vote)


def test_a_journal_that_forgot_its_leaders_view_is_no_voter_of_it() -> None:
    """P23: what the same key says from another journal counts for nothing in a running view."""
    cluster = quiet_cluster()
    (head,) = cluster.commit(0, run=False)
    cluster.queue.clear()
    vote = SCOPE.vote(Epoch(1), View(0), COMMIT, head.seq, head.hash)
    message = Vote(
        epoch=Epoch(1),
        view=View(0),
        phase=COMMIT,
        height=head.seq,
        hash=head.hash,
        signature=IdealSigner(1).sign(vote),
    )
    cluster.give(0, received(1, message, life=1))
    assert cluster.nodes[0].final == 1
    cluster.give(0, received(1, message))
    assert cluster.nodes[0].final == head.seq
    assert cluster.nodes[0].sent(Propose)


def test_a_witness_that_leads_writes_nothing_and_can_hand_over() -> None:
    """Q19: its database is nowhere; a transfer to a voter with data is what its driver asks for."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.configure(0, with_roles(VALIDATOR, VALIDATOR, WITNESS))
    cluster.commit(0)
    cluster.crash(2)
    cluster.boot(cluster.nodes[2], database=NOWHERE)
    cluster.elect(2)
    witness = cluster.nodes[2].replica
    assert witness.final.view == witness.ballot.view
    assert not witness.is_writable(cluster.now)
    assert not witness.can_seal(cluster.now)
    cluster.give(2, TransferWanted(target=key_of(1)))
    cluster.run()
    cluster.advance(300)
    assert cluster.nodes[1].replica.is_leader
    assert cluster.nodes[1].replica.is_writable(cluster.now)


def with_roles(*roles: VoterRole) -> ConfigPayload:
    """Return the CONFIG of nodes 0, 1, ... in these roles."""
    voters = tuple(voter_of(number, role) for number, role in enumerate(roles))
    return replace(config_of(0), voters=voters)


def test_frames_of_an_epoch_that_is_over_are_not_held_again_after_a_restart() -> None:
    """Protocol 10.1: what a disk holds above the CONFIG gets no vote in the next epoch."""
    cluster = Cluster(4, byzantine=True)
    cluster.configure(0, config_of(0, 1, 2, 3, byzantine=True))
    node = cluster.nodes[1]
    config = node.frames[node.ballot.final.hash]
    assert (node.ballot.epoch, config.head.seq) == (2, 2)
    left = make_frame(config)
    assert left.head.epoch == 1
    node.frames[left.head.hash] = left
    cluster.restart(1)
    node.effects.clear()
    anchor = Mark(-1, config.head.seq, config.head.hash)
    data = SCOPE.propose(
        Epoch(2),
        View(0),
        anchor.height,
        anchor.hash,
        left.head.seq,
        left.head.hash,
        anchor.view,
        anchor.height,
        anchor.hash,
    )
    message = Propose(
        epoch=Epoch(2),
        view=View(0),
        prev_height=anchor.height,
        prev_hash=anchor.hash,
        end_height=left.head.seq,
        end_hash=left.head.hash,
        anchor=anchor,
        justification=None,
        prepared=None,
        final=None,
        signature=IdealSigner(0).sign(data),
    )
    cluster.tell(1, 0, message)
    cluster.run()
    assert left.head.seq not in {vote.height for vote in node.sent(Vote)}
