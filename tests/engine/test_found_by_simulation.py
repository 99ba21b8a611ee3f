"""Mistakes of the real engine that only the simulator showed; each with how it was found."""

import pytest

from basenet.engine.effects import Orphan
from basenet.engine.events import (
    FinalReceived,
    FramesCaptured,
    FramesReceived,
    PeerLost,
    Ticked,
)
from basenet.engine.limits import SECOND
from basenet.units import Epoch, Seq
from basenet.wire.message import Need, SyncRequest, Wish
from tests.engine.cluster import Cluster, captured, piece


def ticks_in(cluster: Cluster, number: int, milliseconds: int) -> int:
    """Return how often a node is woken while time passes."""
    node, woken = cluster.nodes[number], 0
    step = node.replica.step

    class Counted:
        """The replica, with its ticks counted."""

        def __getattr__(self, name: str) -> object:
            return getattr(replica, name)

        def step(self, event: object, now: object) -> object:
            nonlocal woken
            woken += type(event).__name__ == "Ticked"
            return step(event, now)

    replica, node.replica = node.replica, Counted()
    cluster.advance(milliseconds)
    node.replica = replica
    return woken


def test_a_voter_that_waits_for_a_view_sleeps_in_between() -> None:
    """Its leader has been silent for long, and nobody joins its wish (crash n=3, seed 0).

    The deadline that had passed was named again and again as the time to be woken.
    """
    cluster = Cluster()
    cluster.commit(0)
    cluster.isolate(1)
    cluster.silence(0)
    cluster.nodes[2].lane.leader_heard = cluster.now + 3_600 * SECOND
    assert 10 <= ticks_in(cluster, 1, 10_000) <= 100
    assert cluster.nodes[1].sent(Wish)


def test_a_leader_that_nobody_answers_sleeps_in_between() -> None:
    """What is pending is not proposed again by a leader that is quiet (crash n=3, seed 3)."""
    cluster = Cluster()
    cluster.isolate(0)
    cluster.nodes[0].lane.quorum_heard = cluster.now
    cluster.commit(0)
    cluster.advance(3_000)
    assert cluster.nodes[0].fences == 1
    assert ticks_in(cluster, 0, 10_000) <= 100


def test_a_follower_that_wished_a_moment_ago_sleeps_until_it_may_wish_again() -> None:
    """The leader was lost, was there again, and then fell silent (crash n=2, seed 40823)."""
    cluster = Cluster()
    cluster.commit(0)
    follower = cluster.nodes[1]
    follower.lane.leader_heard = cluster.now
    cluster.isolate(0)
    cluster.advance(1_200)
    cluster.give(1, PeerLost(peer=cluster.nodes[0].key))
    cluster.give(1, Ticked())
    assert follower.sent(Wish)
    cluster.tell(1, 0, SyncRequest(epoch=Epoch(1), above_height=Seq(2)))
    cluster.give(1, Ticked())
    assert ticks_in(cluster, 1, 400) <= 20


def test_an_orphan_leaves_a_gap_in_the_numbers() -> None:
    """What waited when it was decided is in no frame, and keeps its numbers (crash n=3, seed 6)."""
    cluster = Cluster()
    cluster.commit(0)
    cluster.elect(1)
    cluster.commit(1)
    cluster.elect(0)
    assert any(isinstance(one, Orphan) for one in cluster.nodes[0].effects)
    # Numbers 2 and 3 waited, and went into the bundle.
    cluster.give(0, FramesCaptured(frames=(captured(4),)))
    cluster.run()
    assert cluster.nodes[0].replica.local_last == 4
    with pytest.raises(AssertionError, match="captured twice or not at all"):
        cluster.give(0, FramesCaptured(frames=(captured(6),)))


def test_what_a_leader_applied_at_its_start_does_not_hide_what_its_application_writes() -> None:
    """Else others wrote over commits that waited (crash n=3, seed 30).

    A new leader makes final what its predecessor wrote, and takes it in; what its own application
    commits after that, in the same view, waits like any other.
    """
    cluster = Cluster()
    cluster.elect(1)
    cluster.filter = lambda sender, to, _: sender == to or to != 1
    cluster.commit(1)
    cluster.heal()
    cluster.isolate(1)
    cluster.silence(1)
    cluster.advance(3_000)
    leader = next(node for node in cluster.nodes if node.number != 1 and node.replica.is_leader)
    assert leader.final == 2
    assert [one.heads for one in leader.orphans] == [()]
    leader.orphans.clear()
    cluster.heal()
    cluster.elect(1)
    assert leader.orphans == []
    cluster.commit(1)
    assert [one.heads for one in leader.orphans] == [()]


def test_the_frames_of_a_held_proposal_are_asked_for() -> None:
    """Although everything voted on is final, and the leader is well (crash n=3, seed 36).

    A follower at its ease held proposals without their frames, and never woke to say so.
    """
    cluster = Cluster()
    cluster.commit(0)
    cluster.filter = lambda _, to, event: to == 0 or not isinstance(event, FramesReceived)
    cluster.commit(0)
    assert [node.final for node in cluster.nodes] == [2, 2, 2]
    cluster.heal()
    cluster.advance(1_000)
    assert any(node.sent(Need) for node in cluster.nodes[1:])
    assert [node.final for node in cluster.nodes] == [3, 3, 3]


def test_frames_that_belong_to_no_run_keep_no_leader() -> None:
    """Q6: one that sends new frames for ever and certifies none (byzantine n=4, seed 40).

    Any new frame counted as progress, so that it could stay for `run_progress` instead of seconds.
    """
    cluster = Cluster(4, byzantine=True)
    cluster.commit(0)
    cluster.filter = lambda sender, to, _: sender == to or to != 0
    follower = cluster.nodes[1].replica
    view = follower.ballot.view
    for _ in range(20):
        cluster.commit(0)
        cluster.advance(400)
    assert any(one.view > view for one in cluster.nodes[1].sent(Wish))


def test_a_run_that_still_arrives_keeps_its_leader() -> None:
    """Q6: its bytes are progress."""
    cluster = Cluster(4, byzantine=True)
    cluster.commit(0)
    cluster.filter = lambda sender, to, _: sender == to or to != 0
    cluster.commit(0)
    for _ in range(20):
        cluster.give(0, FramesCaptured(frames=(piece(3),)))
        cluster.run()
        cluster.advance(400)
    assert not any(node.sent(Wish) for node in cluster.nodes)
    cluster.heal()
    cluster.give(0, FramesCaptured(frames=(captured(3),)))
    cluster.run()
    assert [node.final for node in cluster.nodes] == [24] * 4


def test_a_piece_of_history_that_ends_inside_a_run_is_not_taken() -> None:
    """P22: where one voter needs no certificate, nothing else says it (crash n=1 growing, seed 16).

    The same piece up to the end of the run is taken.
    """
    cluster = Cluster(1, spares=1)
    events = (piece(1), piece(1), captured(1))
    cluster.give(0, FramesCaptured(frames=events))
    whole = cluster.history(cluster.nodes[0], 1)[0]
    assert len(whole.frames) == 3
    for end in (1, 2):
        cut = FinalReceived(sender=whole.sender, frames=whole.frames[:end], certificate=None)
        cluster.give(1, cut)
        assert cluster.nodes[1].final == 1
    cluster.give(1, whole)
    assert cluster.nodes[1].final == 4
