"""A shard that stands still here must not be led from here.

Theory of operation
===================

Heartbeats are the node's, not the shard's: they name every shard that this node leads, and renew
its lease, also while the term that led it has ended by an error. A term that is made anew within a
moment goes on leading; but one whose file was replaced, or that is damaged, may stand still for
days, and so would the shard, on all nodes. So the lead is given up: the next heartbeat does not
name the shard, which ends the promises of the followers (`Liveness.unlead`), and they elect another
leader when they have not heard of one for the time of an election (`ClusterShard.rouse`).

The fence is closed first, where that is still possible: the next writer may begin at once.
"""

from contextlib import suppress
from typing import Final

import trio

from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.node import ClusterNode
from basenet.daemon.framer import instant
from basenet.errors import BasenetError
from basenet.units import Lineage

LEADING_PAUSE_S_MAX: Final = 2.0
"""A leader whose term failed may begin another one within this; else somebody else leads."""


async def leave_lead(cluster: ClusterNode, file: ReplicaFile | None, lineage: Lineage) -> None:
    """Stop leading ``lineage``, whose term has ended here; ``file`` is what it has open."""
    with trio.move_on_after(LEADING_PAUSE_S_MAX):
        if file is not None:
            with suppress(BasenetError):
                await file.held()
    cluster.liveness.unlead(lineage, instant())
    cluster.settle()
