"""How many voters make a frame final."""

from collections.abc import Mapping

from basenet.units import PublicKeyBytes, Seq


def quorum_size(voters: int) -> int:
    """Return how many of ``voters`` must hold a frame (crash faults): a majority, both of two."""
    assert voters >= 1, "a shard without voters has no quorum"
    return voters // 2 + 1


def finalized_seq(stored: Mapping[PublicKeyBytes, Seq]) -> Seq:
    """Return the highest seq that a quorum holds.

    ``stored`` names every voter, those that hold nothing included: a voter left out would shrink
    the quorum and let a minority finalise.
    """
    descending = sorted(stored.values(), reverse=True)
    return descending[quorum_size(len(descending)) - 1]
