"""The state of a database, for those who lack it: who joins, was away too long, or is damaged.

Theory of operation
===================

::

    asks:    a state above ours    leaves, 4,096 at a time    pages by leaf hash, 256 at a time
    proof:   certificates          the state root             the leaf hash
    answers: `serving`             `serving`                  `serving`
    fetched: `fetching`            `fetching`                 `gathering`

Joining, catching up beyond what the journals hold, repair and roll-back are one thing: target
leaves that are known and certified; the pages whose leaves differ; contents by their hash, from
wherever. Fetching knows nothing of the file, and serving believes nothing of it: a page that has
changed meanwhile is not sent.

`StateTransfer` is what one shard holds of all this, for one lineage.
"""

from collections.abc import Callable

import trio

from basenet.daemon.cluster.asking import Sender
from basenet.daemon.cluster.fetching import FetchedState, FetchProgress, StateClient
from basenet.daemon.cluster.offer import FinalState
from basenet.daemon.cluster.serving import ServingBudget, StateServer, StateSource
from basenet.errors import PeerError
from basenet.units import Lineage, PublicKeyBytes, ShardId
from basenet.wire.transfer import ArchivedUpTo, LeavesAsk, PagesAsk, StateAsk, TransferMessage

__all__ = [
    "FetchProgress",
    "FetchedState",
    "FinalState",
    "Sender",
    "ServingBudget",
    "StateClient",
    "StateServer",
    "StateSource",
    "StateTransfer",
]


class StateTransfer:
    """A shard's server and client, in one lineage."""

    def __init__(
        self,
        *,
        shard: ShardId,
        lineage: Lineage,
        source: StateSource,
        sender: Sender,
        budget: ServingBudget,
        tasks: trio.Nursery,
        on_fault: Callable[[PublicKeyBytes, PeerError], None],
        turns: trio.CapacityLimiter | None = None,
    ) -> None:
        """Serve from ``source`` in ``tasks``; the rest as in `StateServer` and `StateClient`."""
        self.server = StateServer(
            shard=shard,
            lineage=lineage,
            source=source,
            sender=sender,
            budget=budget,
            tasks=tasks,
        )
        self.client = StateClient(
            shard=shard, lineage=lineage, sender=sender, on_fault=on_fault, turns=turns
        )

    def on_message(self, peer: PublicKeyBytes, message: TransferMessage) -> None:
        """Take a message of the authenticated ``peer``; returns at once."""
        if isinstance(message, StateAsk | LeavesAsk | PagesAsk):
            self.server.on_ask(peer, message)
        elif not isinstance(message, ArchivedUpTo):
            self.client.on_answer(peer, message)

    def on_connected(self, peer: PublicKeyBytes) -> None:
        """Learn that ``peer`` can be asked, and answered."""
        self.server.on_connected(peer)
        self.client.on_connected(peer)

    def on_lost(self, peer: PublicKeyBytes) -> None:
        """Learn that the connection to ``peer`` has ended."""
        self.server.on_lost(peer)
        self.client.on_lost(peer)

    def close(self) -> None:
        """Give back what the budget lent, after the tasks have ended."""
        self.server.close()
