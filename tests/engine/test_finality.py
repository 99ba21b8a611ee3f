"""What a certificate makes final, what lost against it, and what a crash must not lose."""

from dataclasses import replace as with_changes
from typing import Any

import pytest
from msgspec.structs import replace

from basenet.engine.effects import EpochBegan, Fence, Finalize, Orphan, Persist, Send
from basenet.engine.events import FinalReceived, Instant, Ticked
from basenet.engine.limits import MILLISECOND
from basenet.engine.quorum import form
from basenet.units import Epoch, View
from basenet.wire.certificate import COMMIT
from basenet.wire.message import Certified, Mark, NewView, Propose, Refuse, Vote
from tests.engine.cluster import (
    ROOT,
    SCOPE,
    Cluster,
    IdealSigner,
    config_of,
    key_of,
    piece,
)
from tests.engine.test_views import views, wish
from tests.engine.test_voting import hand, make_frame, make_proposal, quiet_cluster


def certificate_for(frame: Any, *voters: int, view: int = 0) -> Any:
    head = frame.head
    mark = Mark(view, head.seq, head.hash)
    data = SCOPE.vote(Epoch(1), View(view), COMMIT, mark.height, mark.hash)
    votes = {key_of(number): IdealSigner(number).sign(data) for number in voters}
    return form(COMMIT, Epoch(1), mark, votes)


def deposed_writer() -> tuple[Cluster, list[Any]]:
    """Node 0 wrote three frames that nobody got, then node 1 took over and wrote one."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.isolate(0)
    lost = cluster.commit(0, 3)
    for node in cluster.nodes[1:]:
        node.lane.leader_heard = cluster.now
    cluster.advance(400)
    cluster.rouse(1, 2)
    cluster.advance(2_000)
    assert cluster.nodes[1].replica.is_leader
    cluster.commit(1)
    return cluster, lost


def test_a_deposed_writers_frames_are_orphans() -> None:
    """Protocol 7.2, 7.3, 7.4: kept and rolled back, then persisted, then the others applied."""
    cluster, lost = deposed_writer()
    writer = cluster.nodes[0]
    assert writer.orphans == []
    writer.effects.clear()
    cluster.heal()
    cluster.advance(500)
    (orphan,) = writer.orphans
    assert orphan.heads == tuple(lost)
    assert orphan.kept_height == 2
    kinds = [type(one) for one in writer.effects if isinstance(one, (Orphan, Persist, Finalize))]
    before = kinds.index(Orphan)
    assert kinds[before + 1] is Persist
    assert Finalize not in kinds[:before]
    final = [head.hash for node in cluster.nodes for head in node.finals]
    assert not {head.hash for head in lost} & set(final)
    assert [node.final for node in cluster.nodes] == [3, 3, 3]
    assert writer.database == cluster.nodes[1].database
    assert writer.fences >= 1


def test_commits_without_a_frame_are_orphans_once_others_wrote() -> None:
    """Protocol 7.5: the bundle may have no frames, and says which height is kept."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.nodes[0].orphans.clear()
    cluster.elect(1)
    assert cluster.nodes[0].orphans == []
    cluster.commit(1)
    (orphan,) = cluster.nodes[0].orphans
    assert (orphan.heads, orphan.kept_height) == ((), 2)
    cluster.commit(1)
    assert len(cluster.nodes[0].orphans) == 1


def test_the_same_writer_elected_again_loses_nothing() -> None:
    """Protocol 7.5: as long as nobody else wrote, what waits can still be sealed."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.elect(1)
    cluster.elect(0)
    writer = cluster.nodes[0]
    assert writer.replica.can_seal(cluster.now)
    cluster.commit(0)
    assert [one for one in writer.orphans if one.heads] == []
    assert [node.final for node in cluster.nodes] == [3, 3, 3]


def test_frames_above_a_later_views_finality_are_orphans() -> None:
    """Protocol 7.3: also where the certificate stands below them, on their own chain."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    (first, *rest) = cluster.commit(0, 3)
    writer = cluster.nodes[0]
    frame = writer.frames[first.hash]
    certificate = certificate_for(frame, 1, 2, view=1)
    cluster.tell(0, 1, Certified(epoch=Epoch(1), certificate=certificate))
    (orphan,) = writer.orphans
    assert (orphan.heads, orphan.kept_height) == (tuple(rest), first.seq)
    assert writer.replica.tip.hash == first.hash
    # In the frames' own view they may still follow.
    cluster = quiet_cluster()
    cluster.isolate(0)
    (first, *_) = cluster.commit(0, 3)
    certificate = certificate_for(cluster.nodes[0].frames[first.hash], 1, 2)
    cluster.tell(0, 1, Certified(epoch=Epoch(1), certificate=certificate))
    assert cluster.nodes[0].orphans == []
    assert (cluster.nodes[0].final, cluster.nodes[0].replica.tip.seq) == (2, 4)


def test_a_branch_is_kept_until_its_height_is_final() -> None:
    """Protocol 2.7: mistake 8: a certificate for the other branch finds its frames here."""
    cluster = quiet_cluster()
    one, other = make_frame(cluster.genesis), make_frame(cluster.genesis, salt=b"o" * 16)
    hand(cluster, 1, one, other)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    node = cluster.nodes[1]
    certificate = certificate_for(other, 0, 2, view=1)
    cluster.tell(1, 2, Certified(epoch=Epoch(1), certificate=certificate))
    assert (node.final, node.replica.tip.hash) == (2, other.head.hash)
    assert node.replica._state.tree.heads.keys() == {other.head.hash}


def test_what_is_final_is_told_in_order_and_never_again() -> None:
    """Protocol 7.2, 7.6: none left out, none twice, on every node."""
    cluster = quiet_cluster()
    for count in (1, 5, 2):
        cluster.commit(0, count)
    cluster.elect(1)
    cluster.commit(1, 2)
    for node in cluster.nodes:
        assert [head.seq for head in node.finals] == list(range(2, 12))


def test_a_step_persists_once_before_it_speaks() -> None:
    """Protocol 2.1, 2.2: in every step of a life with elections: Persist, then all the rest."""
    cluster = quiet_cluster()
    steps: list[list[Any]] = []
    perform = cluster._perform

    def spy(node: Any, effects: Any) -> None:
        steps.append(list(effects))
        perform(node, effects)

    cluster._perform = spy  # type: ignore[method-assign]
    cluster.commit(0, 3)
    cluster.elect(1)
    cluster.commit(1)
    for effects in steps:
        rest = [one for one in effects if not isinstance(one, Orphan)]
        assert not any(isinstance(one, Persist) for one in rest[1:])
        speaks = {Vote, NewView, Propose, Refuse}
        if any(isinstance(one, Send) and type(one.message) in speaks for one in effects[:1]):
            # Only what was persisted before is repeated without a Persist.
            assert not any(isinstance(one, Persist) for one in effects)


# Restarts.


def test_a_vote_on_a_branch_that_lost_is_not_followed() -> None:
    """Protocol 2.3: mistake 1: the chain is the vote only if it extends what is final."""
    cluster, _ = deposed_writer()
    writer = cluster.nodes[0]
    voted = writer.ballot.voted
    assert voted is not None
    cluster.heal()
    cluster.advance(500)
    cluster.crash(0)
    writer.ballot = with_changes(writer.ballot, voted=voted)
    cluster.boot(writer)
    assert writer.replica.tip.seq == writer.final == 3
    cluster.commit(1)
    assert [node.final for node in cluster.nodes] == [4, 4, 4]


def test_a_restarted_leader_counts_its_own_vote_anew() -> None:
    """Protocol 2.4, mistake 2: with two nodes nothing becomes final without it."""
    cluster = quiet_cluster(voters=2)
    cluster.isolate(0)
    cluster.commit(0, 2)
    cluster.heal()
    leader = cluster.nodes[0]
    voted = leader.ballot.voted
    leader.effects.clear()
    cluster.restart(0)
    assert leader.replica.is_leader
    assert leader.ballot.voted == voted
    cluster.run()
    cluster.advance(600)
    assert [node.final for node in cluster.nodes] == [3, 3]
    assert views(cluster) == [0, 0]


def test_a_restart_does_again_what_was_cut_off() -> None:
    """Protocol 2.5, mistake 4: orphans of what is final, and the switch of epochs."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    (first, *rest) = cluster.commit(0, 3)
    writer = cluster.nodes[0]
    cluster.crash(0)
    certificate = certificate_for(writer.frames[first.hash], 1, 2, view=1)
    writer.ballot = with_changes(
        writer.ballot,
        view=View(1),
        final=Mark(1, first.seq, first.hash),
        certificate=certificate,
        vstart=None,
        anchor=None,
    )
    cluster.boot(writer)
    (orphan,) = writer.orphans
    assert orphan.heads == tuple(rest)
    assert writer.replica.database.seq == first.seq
    # A final CONFIG of the ballot's own epoch begins the next one.
    cluster = quiet_cluster()
    cluster.configure(0, config_of(0, 1))
    node = cluster.nodes[1]
    old = next(
        one.ballot for one in reversed(node.persists) if one.ballot and one.ballot.epoch == 1
    )
    head = node.finals[-1]
    node.ballot = with_changes(old, final=Mark(0, head.seq, head.hash))
    node.effects.clear()
    cluster.boot(node)
    assert node.ballot.epoch == 2
    assert any(isinstance(one, EpochBegan) for one in node.effects)


def test_the_certificate_of_an_epochs_end_outlives_the_switch() -> None:
    """Protocol 2.6: it is in the very ballot that begins the next epoch."""
    cluster = quiet_cluster()
    cluster.configure(0, config_of(0, 1, 2))
    for node in cluster.nodes:
        (first,) = [one.ballot for one in node.persists if one.ballot and one.ballot.epoch == 2][:1]
        assert first.certificate is not None
        assert first.certificate.epoch == 1
        assert first.certificate.height == first.genesis.height == 2


def test_a_run_cut_by_a_restart_goes_on_in_its_view() -> None:
    """Protocol 3.5, 2.4: its frames are on the disk and in the database, so it only goes on."""
    cluster = quiet_cluster()
    cluster.give(0, piece(1))
    cluster.give(0, piece(1))
    cluster.run()
    cluster.restart(0)
    cluster.run()
    assert cluster.nodes[0].replica.is_run_open
    cluster.commit(0)
    cluster.advance(500)
    assert [node.final for node in cluster.nodes] == [4, 4, 4]


def test_a_run_cut_by_another_view_is_an_orphan() -> None:
    """Protocol 3.5, 7.3: nothing inside it was ever proposed, and its node can write again."""
    cluster = quiet_cluster()
    cluster.give(0, piece(1))
    cluster.run()
    cluster.elect(1)
    cluster.elect(0)
    (orphan,) = [one for one in cluster.nodes[0].orphans if one.heads]
    assert [head.seq for head in orphan.heads] == [2]
    assert cluster.nodes[0].replica.can_seal(cluster.now)
    cluster.commit(0)
    assert [node.final for node in cluster.nodes] == [2, 2, 2]


# Refusals.


def refused_frame(voters: int = 3) -> tuple[Cluster, Any]:
    """The leader committed a frame whose root is wrong; everybody else refuses it."""
    cluster = quiet_cluster(voters=voters)
    cluster.commit(0)
    cluster.filter = lambda _, __, event: not hasattr(event, "frames")
    (head,) = cluster.commit(0)
    cluster.wrong.add(head.hash)
    cluster.heal()
    return cluster, head


def test_a_wrong_root_is_refused_for_good() -> None:
    """Protocol 8.1, Q8: persisted and signed, and never voted for, nor what follows it."""
    cluster, head = refused_frame()
    cluster.cut((0, 2))
    cluster.advance(100)
    node = cluster.nodes[1]
    (message,) = node.sent(Refuse)[:1]
    assert (message.height, message.hash) == (head.seq, head.hash)
    assert message in node.ballot.refused
    assert is_promised_before_sent(node)
    cluster.commit(0)
    cluster.restart(1)
    cluster.advance(300)
    assert all(vote.height < head.seq for vote in node.sent(Vote))


def is_promised_before_sent(node: Any) -> bool:
    kinds = [
        type(getattr(one, "message", one))
        for one in node.effects
        if isinstance(one, Persist) or isinstance(getattr(one, "message", None), Refuse)
    ]
    return kinds[kinds.index(Refuse) - 1] is Persist


def test_what_a_blocking_set_refuses_bends_the_next_start() -> None:
    """Protocol 8.2, Q8, P19: to its parent, with two nodes and with three; the shard goes on."""
    for voters in (2, 3):
        cluster, head = refused_frame(voters)
        cluster.advance(4_000)
        leader = cluster.nodes[1]
        assert leader.replica.is_leader
        assert leader.replica.final.view >= 1
        assert leader.final == head.seq - 1
        cluster.commit(1)
        cluster.advance(600)
        assert {node.final for node in cluster.nodes} == {head.seq}
        (orphan,) = [one for one in cluster.nodes[0].orphans if one.heads]
        assert orphan.heads == (head,)


def test_a_refused_run_bends_to_below_its_beginning() -> None:
    """Protocol 8.2, Q8: only its last frame has a root, and nothing inside it is a start."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.isolate(0)
    cluster.give(0, piece(2))
    cluster.give(0, piece(2))
    (head,) = cluster.commit(0)
    assert head.seq == 5
    cluster.wrong.add(head.hash)
    cluster.heal()
    cluster.advance(4_000)
    assert cluster.nodes[1].replica.is_leader
    assert cluster.nodes[1].final == 2
    cluster.commit(1)
    cluster.advance(600)
    assert {node.final for node in cluster.nodes} == {3}


def test_a_refusal_ends_when_the_frame_is_final() -> None:
    """Protocol 8.3: the refuser was wrong."""
    cluster = quiet_cluster(voters=5)
    cluster.cut((0, 4))
    (head,) = cluster.commit(0)
    node = cluster.nodes[4]
    cluster.wrong.add(head.hash)
    hand(cluster, 4, cluster.nodes[0].frames[head.hash])
    cluster.tell(4, 0, cluster.nodes[0].sent(Propose)[-1])
    cluster.run()
    assert node.ballot.refused
    certificate = cluster.nodes[0].ballot.certificate
    assert certificate is not None
    cluster.tell(4, 1, Certified(epoch=Epoch(1), certificate=certificate))
    assert (node.final, node.ballot.refused) == (2, ())
    cluster.heal()
    cluster.commit(0)
    assert node.final == 3


def refuse(sender: int, head: Any) -> Refuse:
    data = SCOPE.refuse(Epoch(1), head.seq, head.hash)
    return Refuse(
        epoch=Epoch(1),
        sender=key_of(sender),
        height=head.seq,
        hash=head.hash,
        signature=IdealSigner(sender).sign(data),
    )


def test_a_leader_whose_frame_lost_its_quorum_stops() -> None:
    """Protocol 8.4, P19: and tells its operator; what is not signed or of another says nothing."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    (head,) = cluster.commit(0)
    leader = cluster.nodes[0]
    cluster.tell(0, 1, refuse(1, head))
    cluster.tell(0, 1, refuse(1, head))
    cluster.tell(0, 2, refuse(1, head))
    cluster.tell(0, 2, replace(refuse(2, head), signature=bytes(64)))
    assert leader.reports == []
    cluster.tell(0, 2, refuse(2, head))
    cluster.advance(1)
    assert any("refuses the state root" in what for what in leader.whats())
    assert leader.fences
    assert not leader.replica.can_seal(cluster.now)


def test_a_refusal_is_repeated() -> None:
    """Protocol 8.4: whoever starts the next view must know of it."""
    cluster, head = refused_frame()
    cluster.filter = lambda _, to, __: to != 2
    cluster.advance(2_000)
    assert len(cluster.nodes[1].sent(Refuse)) > 3
    assert {one.hash for one in cluster.nodes[1].sent(Refuse)} == {head.hash}


def test_a_byzantine_follower_promises_nothing_and_leaves() -> None:
    """Protocol 8.5: it reports the wrong root, votes not, and wishes."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    one = make_frame(cluster.genesis)
    cluster.wrong.add(one.head.hash)
    for number in (1, 2, 3):
        hand(cluster, number, one)
        cluster.tell(number, 0, make_proposal(cluster, one))
    cluster.run()
    cluster.advance(2_000)
    assert not any(node.sent(Refuse) for node in cluster.nodes)
    assert min(views(cluster)) >= 1
    assert all("the state root of frame 2 is wrong" in node.whats() for node in cluster.nodes[1:])


# Writing.


def test_who_may_write() -> None:
    """Protocol 9.1, 9.2: lease, finality in the view, database at the tip, nothing pending."""
    cluster = Cluster(boots=False)
    node = cluster.nodes[0]
    cluster.boot(node)
    assert node.replica.is_leader
    assert not node.replica.is_writable(cluster.now)
    for other in cluster.nodes[1:]:
        cluster.boot(other)
    cluster.run()
    cluster.advance(600)
    assert node.replica.is_writable(cluster.now)
    node.lane.lease = Instant(cluster.now + 5 * MILLISECOND)
    assert node.replica.writable_until(cluster.now) == node.lane.lease
    assert not node.replica.is_writable(node.lane.lease)
    cluster.elect(1)
    assert node.fences == 1
    assert any(isinstance(one, Fence) for one in node.effects)
    assert not cluster.nodes[2].replica.is_writable(cluster.now)


def test_agreement_needs_no_lease() -> None:
    """Protocol 9.3: with leases and promises that lie there is still one history."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    lost = cluster.commit(0, 2)
    cluster.tell(1, 2, wish(2, 1))
    cluster.tell(1, 0, wish(0, 1))
    cluster.tell(2, 0, wish(0, 1))
    cluster.tell(2, 1, wish(1, 1))
    cluster.advance(500)
    assert cluster.nodes[0].replica.is_writable(cluster.now)
    assert cluster.nodes[1].replica.is_writable(cluster.now)
    cluster.commit(1)
    cluster.heal()
    cluster.advance(6_000)
    histories = [[head.hash for head in node.finals] for node in cluster.nodes]
    assert histories[0] == histories[1] == histories[2]
    assert lost[0].hash not in histories[0]


def test_an_idle_shard_wakes_nobody() -> None:
    """Protocol 9.5: in both modes, and a tick that comes all the same says nothing."""
    for cluster in (quiet_cluster(), quiet_cluster(voters=4, byzantine=True)):
        cluster.commit(0)
        for node in cluster.nodes:
            assert node.replica.wake_at is None
            assert cluster.give(node.number, Ticked()) == []


@pytest.mark.parametrize("is_byzantine", [False, True])
def test_a_wish_that_came_to_nothing_wakes_nobody_for_long(*, is_byzantine: bool) -> None:
    """Protocol 9.5: whoever was cut off for a moment wished, and its wish expires everywhere."""
    cluster = quiet_cluster(voters=4 if is_byzantine else 3, byzantine=is_byzantine)
    cluster.commit(0)
    follower = cluster.nodes[1]
    follower.lane.leader_heard = cluster.now
    cluster.tell(1, 2, wish(2, 1))
    assert follower.replica.wake_at is not None
    for _ in range(30):
        cluster.advance(100)
        follower.lane.leader_heard = cluster.now
    assert follower.replica.ballot.view == 0
    assert follower.replica.wake_at is None


def test_history_with_a_gap_is_not_taken() -> None:
    """Protocol 7.6, 11.3: pieces that do not continue what is final ask again."""
    cluster = quiet_cluster(spares=1)
    cluster.commit(0)
    cluster.commit(0)
    node, spare = cluster.nodes[0], cluster.nodes[3]
    (piece_,) = cluster.history(node, 2)
    cluster.give(3, piece_)
    assert spare.final == 1
    assert isinstance(piece_, FinalReceived)
    assert piece_.frames[0].head.state_root == ROOT
