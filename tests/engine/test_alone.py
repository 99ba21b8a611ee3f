"""One voter: the same protocol with a quorum of one."""

from dataclasses import replace

import pytest

from basenet.engine.alone import Alone
from basenet.engine.ballot import continue_alone
from basenet.engine.effects import Finalize, Persist
from basenet.engine.events import FramesCaptured, Instant
from basenet.units import FRAME_PAYLOAD_BYTES_MAX, Epoch, JournalId, Seq, StateRoot, View
from basenet.wire.frame import Flag, check_link
from tests.engine.cluster import (
    BEGIN_NS,
    LINEAGE,
    ROOT,
    Cluster,
    captured,
    config_of,
    key_of,
    piece,
)


def test_what_is_captured_is_final_in_the_same_step() -> None:
    """Protocol 1.6 and 2.2, mistake 3: one Persist, with the numbers, then one Finalize."""
    cluster = Cluster(1)
    effects = cluster.give(0, FramesCaptured(frames=(captured(1), captured(2))))
    persist, final = effects
    assert isinstance(persist, Persist)
    assert isinstance(final, Finalize)
    assert [own.frame.head.seq for own in persist.own] == [2, 3]
    assert (final.heads, final.is_own, final.certificate) == (
        tuple(own.frame.head for own in persist.own),
        True,
        None,
    )
    assert persist.ballot is not None
    assert persist.ballot.final.height == 3
    assert cluster.nodes[0].replica.is_writable(cluster.now)
    assert cluster.nodes[0].replica.wake_at is None


def test_numbers_of_commits_leave_no_gap() -> None:
    """Protocol 3.4, Q14: ranges of successive frames are contiguous; anything else is our bug."""
    cluster = Cluster(1)
    cluster.give(0, captured(1, 3))
    cluster.give(0, captured(4, 3, flags=Flag.RECOVERED))
    cluster.give(0, captured(4))
    assert cluster.nodes[0].replica.local_last == 4
    for wrong in (captured(4), captured(6), captured(5, 3), captured(5, 4)):
        with pytest.raises(AssertionError):
            cluster.nodes[0].replica.step(wrong, cluster.now)
    with pytest.raises(AssertionError):
        cluster.nodes[0].replica.step(captured(5, flags=Flag.PARTIAL), cluster.now)
    with pytest.raises(AssertionError):
        cluster.nodes[0].replica.step(FramesCaptured(frames=()), cluster.now)


def test_a_run_is_final_with_its_last_frame() -> None:
    """Protocol 3.5 and 7.6, P22: nothing inside it, then all of it at once, in order."""
    cluster = Cluster(1)
    node = cluster.nodes[0]
    cluster.give(0, FramesCaptured(frames=(captured(1), piece(2))))
    cluster.give(0, piece(2))
    assert node.final == 2
    assert node.replica.is_run_open
    with pytest.raises(AssertionError):
        node.replica.step(captured(2, flags=Flag.REGRESSED), cluster.now)
    (_, final) = cluster.give(0, captured(2))
    assert isinstance(final, Finalize)
    assert [head.seq for head in final.heads] == [3, 4, 5]
    assert not node.replica.is_run_open


def test_timestamps_never_go_back() -> None:
    """Protocol 3.7, P33: a clock that was set back is clamped to the tip's, plus one."""
    cluster = Cluster(1)
    cluster.give(0, FramesCaptured(frames=(captured(1), captured(2))))
    heads = cluster.nodes[0].finals
    assert [head.timestamp_ns for head in heads] == [BEGIN_NS + 1, BEGIN_NS + 2]
    check_link(*heads)
    assert cluster.nodes[0].replica.clamp(heads[-1].timestamp_ns + 9) == heads[-1].timestamp_ns + 9


@pytest.mark.parametrize(
    "event",
    [
        replace(captured(1), payload=bytes(FRAME_PAYLOAD_BYTES_MAX + 1)),
        captured(1, root=StateRoot(b"short")),
    ],
)
def test_a_frame_that_cannot_be_sealed_changes_nothing(event: object) -> None:
    """The state moves after the last thing that can fail."""
    cluster = Cluster(1)
    replica = cluster.nodes[0].replica
    before = replica.ballot
    with pytest.raises(AssertionError):
        replica.step(event, cluster.now)
    assert (replica.ballot, replica.tip.seq) == (before, 1)


def test_the_ballot_follows_from_the_last_frame() -> None:
    """Protocol 2.3: with one voter nothing else must be remembered to go on."""
    cluster = Cluster(1)
    node = cluster.nodes[0]
    cluster.commit(0, 3)
    ballot = continue_alone(cluster.config, node.finals[-1])
    assert (ballot.final, ballot.voted) == (node.ballot.final, node.ballot.voted)
    node.effects.clear()
    cluster.boot(node, ballot=ballot)
    assert node.effects == []
    cluster.commit(0)
    assert node.final == 5
    assert node.replica.tip.state_root == ROOT


def test_the_epoch_after_a_last_config_follows_from_it() -> None:
    """A CONFIG that is no genesis has ended its epoch."""
    cluster = Cluster(1)
    node = cluster.nodes[0]
    cluster.configure(0, replace(config_of(0), page_size=8192))
    head = node.finals[-1]
    ballot = continue_alone(node.ballot.config, head)
    assert (ballot.epoch, ballot.final.height) == (Epoch(2), head.seq)
    cluster.boot(node, ballot=ballot)
    cluster.commit(0)
    assert node.finals[-1].epoch == 2


def test_a_node_without_peers_has_its_lease_for_ever() -> None:
    """It follows nobody, promises nothing and is its own quorum."""
    lane, now = Alone(), Instant(5)
    assert lane.lease_until(LINEAGE, now) < now
    lane.lead(LINEAGE, Epoch(1), View(0), (), 1, now)
    assert lane.lease_until(LINEAGE, now) > 2**62
    lane.refuse(LINEAGE, now)
    lane.release(LINEAGE)
    assert lane.promised_until(LINEAGE) < now
    assert lane.quorum_heard_at(LINEAGE, now) == now
    assert lane.leader_heard_at(LINEAGE) is None
    lane.unlead(LINEAGE, now)
    assert lane.lease_until(LINEAGE, now) < now
    with pytest.raises(AssertionError):
        lane.follow(LINEAGE, Epoch(1), View(0), (key_of(1), JournalId(b"j" * 16)), now)
    assert Seq(1) == 1
