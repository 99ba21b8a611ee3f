"""A shard's final state, shown to those who lack it and fetched where this node lacks it.

One `StateTransfer` lives as long as the lineage does; a forced lineage begins another one. What is
on offer is the last final frame with its certificate, except in the moment in which it moves.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog
import trio

from basenet.daemon.cluster.beginning import electors_of
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.node import ClusterNode
from basenet.daemon.cluster.term import Term
from basenet.daemon.cluster.transfer import (
    FetchedState,
    FinalState,
    ServingBudget,
    StateSource,
    StateTransfer,
)
from basenet.daemon.journalist import Journalist
from basenet.engine.birth_events import Born
from basenet.errors import PeerError
from basenet.sqlite.glance import glance
from basenet.units import Lineage, PublicKeyBytes, Seq, ShardId
from basenet.wire.certificate import Certificate
from basenet.wire.finality import Electors
from basenet.wire.transfer import TransferMessage

log = structlog.get_logger()


class StateExchange:
    """States and pages between one shard of this node and its peers."""

    def __init__(
        self,
        *,
        shard: ShardId,
        journalist: Journalist,
        cluster: ClusterNode,
        budget: ServingBudget,
        turns: trio.CapacityLimiter,
        term: Callable[[], Term | None],
        file: Callable[[], ReplicaFile | None],
    ) -> None:
        """``term``, ``file``: those of this moment."""
        self._shard = shard
        self._journalist = journalist
        self._cluster = cluster
        self._budget = budget
        self._turns = turns
        self._term = term
        self._file = file
        self._transfer: StateTransfer | None = None
        self._lineage: Lineage | None = None
        self._log = log.bind(shard=shard)

    def begin(self, born: Born, tasks: trio.Nursery) -> None:
        """Serve and fetch states of the lineage of ``born``; harmless when repeated."""
        lineage = born.genesis.lineage
        if self._lineage == lineage:
            return
        self.close()
        self._lineage = lineage
        self._transfer = StateTransfer(
            shard=self._shard,
            lineage=lineage,
            source=StateSource(
                final_state=self._final_state,
                config_chain=self._config_chain,
                read_pages=self._read_pages,
            ),
            sender=self._cluster,
            budget=self._budget,
            tasks=tasks,
            on_fault=self._on_fault,
            turns=self._turns,
        )
        for peer in self._cluster.connected:
            self._transfer.on_connected(peer)

    def close(self) -> None:
        """Give back what the budget lent."""
        if self._transfer is not None:
            self._transfer.close()

    # What others ask.

    def _final_state(self) -> FinalState | None:
        term = self._term()
        # A term that has just begun has no settler yet.
        return term.settler.final if term is not None and term.is_at_work else None

    async def _config_chain(self) -> Sequence[tuple[bytes, Certificate | None]]:
        return await self._journalist.read(lambda journal: journal.config_chain(self._shard))

    def _read_pages(self, pgnos: Sequence[int]) -> Mapping[int, bytes]:
        """Return what the file holds of ``pgnos``; for a thread."""
        file = self._file()
        if file is None or not file.is_open:
            return {}
        return glance(file.database, pgnos)

    def _on_fault(self, peer: PublicKeyBytes, error: PeerError) -> None:
        self._cluster.tally.wrong += 1
        self._log.warning("peer_wrong", peer=peer.hex(), error=str(error))

    # What this node asks.

    async def fetch(self, born: Born) -> FetchedState:
        """Return a certified state of the lineage, its genesis at least."""
        self._log.info("state_wanted")
        state = await self.fetch_above(electors_of(born), Seq(born.genesis.head.seq - 1))
        self._log.info("state_fetched", seq=state.head.seq, pages=state.tree.db_pages)
        return state

    async def fetch_above(self, electors: Electors, seq: Seq) -> FetchedState:
        """Return a state above ``seq`` that ``electors`` or who follows them made final."""
        assert self._transfer is not None, "a shard that fetches has a lineage"
        return await self._transfer.client.fetch_state(electors, above_seq=seq)

    async def fetch_pages(
        self, wants: Sequence[tuple[int, bytes]], page_size: int
    ) -> Mapping[int, bytes]:
        """Return what peers have of the pages ``wants``, (pgno, leaf hash)."""
        assert self._transfer is not None, "a shard that fetches has a lineage"
        return await self._transfer.client.fetch_pages(wants, page_size=page_size)

    # What peers bring.

    @property
    def is_open(self) -> bool:
        """Whether a lineage is known."""
        return self._transfer is not None

    def on_message(self, peer: PublicKeyBytes, message: TransferMessage) -> None:
        """Take a message of the authenticated ``peer``."""
        if self._transfer is not None:
            self._transfer.on_message(peer, message)

    def on_connected(self, peer: PublicKeyBytes) -> None:
        """Learn that ``peer`` can be asked."""
        if self._transfer is not None:
            self._transfer.on_connected(peer)

    def on_lost(self, peer: PublicKeyBytes) -> None:
        """Learn that the connection to ``peer`` has ended."""
        if self._transfer is not None:
            self._transfer.on_lost(peer)
