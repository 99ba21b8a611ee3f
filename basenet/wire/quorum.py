"""How many voters decide: the one place where the arithmetic of the fault models stands.

With ``n`` voters of whom ``f`` may be faulty at once (docs/protocol.md, 2):

=========  ===============  =====================  ==================================
faults     f                quorum                 any two quorums share
=========  ===============  =====================  ==================================
crash      (n - 1) // 2     n // 2 + 1             a voter
Byzantine  (n - 1) // 3     (n + f) // 2 + 1       a voter that is not faulty
=========  ===============  =====================  ==================================

It stands here and not in `engine`, since a reader of an archive judges certificates, too.
"""

from basenet.wire.payload import FaultModel


def fault_limit(voters: int, model: FaultModel) -> int:
    """Return how many of ``voters`` may be faulty at once."""
    assert voters >= 1, "a shard without voters has no quorum"
    return (voters - 1) // (2 if model == FaultModel.CRASH else 3)


def quorum_size(voters: int, model: FaultModel = FaultModel.CRASH) -> int:
    """Return how many of ``voters`` decide."""
    limit = fault_limit(voters, model)
    if model == FaultModel.CRASH:
        return voters // 2 + 1
    return (voters + limit) // 2 + 1
