"""What a lease says about reads, and where it says nothing."""

from basenet.engine.events import ReadWanted
from basenet.engine.limits import MILLISECOND
from tests.engine.cluster import Cluster, config_of


def is_answered(cluster: Cluster, nonce: bytes) -> bool:
    """Whether the leader answers a read at once."""
    before = len(cluster.nodes[0].reads)
    cluster.give(0, ReadWanted(nonce=nonce))
    return len(cluster.nodes[0].reads) > before


def test_a_leader_with_a_config_pending_answers_no_read_by_its_lease() -> None:
    """The CONFIG may be final, and another epoch's leader open by a lease that others granted.

    The old epoch's voters grant the old leader until they hear of it: its lease is good, and what
    it knows to be final is not all.
    """
    cluster = Cluster(3)
    cluster.commit(0)
    cluster.isolate(0)
    assert is_answered(cluster, b"alone...........")
    cluster.configure(0, config_of(0, 1, 2))
    assert cluster.nodes[0].lane.lease > cluster.now + MILLISECOND
    assert not is_answered(cluster, b"while it waits..")
    cluster.heal()
    cluster.advance(1_000)
    assert cluster.nodes[0].replica.ballot.epoch == 2
