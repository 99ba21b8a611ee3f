"""The operator and the readers: who asks for transfers, other voters, and fresh reads."""

from typing import TYPE_CHECKING

from basenet.engine.configuration import order_voters
from basenet.engine.effects import ReadReady
from basenet.engine.events import ConfigWanted, ReadWanted, TransferWanted
from basenet.testing.simulator.checkers import Violation, quorum_of
from basenet.testing.simulator.faults import Change, Read, Transfer
from basenet.units import JournalId, PublicKeyBytes, TimestampNs
from basenet.wire.payload import BYZANTINE_VOTERS_MIN, ConfigPayload, FaultModel, Voter

if TYPE_CHECKING:
    from basenet.testing.simulator.node import Node
    from basenet.testing.simulator.world import World

_BEGIN_NS = 1_700_000_000_000_000_000
_CAUGHT_UP_FRAMES = 70
_VOTERS_MAX = 7


class Readers:
    """Reads in progress: what was final when each was asked, which it must wait for."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._asked: dict[bytes, int] = {}
        self.answers = 0
        self.refusals = 0

    def ask(self, fault: Read) -> None:
        """Let a reader at a node ask how far it must wait."""
        node = self._world.nodes[fault.node]
        if not node.is_up or not node.is_honest:
            return
        nonce = node.chance.randbytes(16)
        self._asked[nonce] = self._world.finals
        node.step(ReadWanted(nonce=nonce))

    def answered(self, node: "Node", effect: ReadReady) -> None:
        """Refuse an answer that is older than its question."""
        asked = self._asked.get(effect.nonce)
        if asked is None:
            raise Violation(f"reads: {node.name} answers what nobody asked")
        if effect.height is None:
            self.refusals += 1
            return
        self.answers += 1
        if effect.height < asked:
            raise Violation(
                f"reads: {node.name} lets a read begin at {effect.height}, but {asked} was final"
            )


class Operator:
    """Carries out the operations of the schedule, on whichever node leads."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.transfers = 0
        self.changes = 0

    def transfer(self, fault: Transfer) -> None:
        """Have the leader hand over to a node."""
        leader = self._find_leader()
        target = self._world.nodes[fault.node]
        if leader is not None and leader is not target:
            self.transfers += 1
            leader.step(TransferWanted(target=target.key))

    def change(self, fault: Change) -> None:
        """Have the leader propose one of the other sets of voters that make sense now."""
        leader = self._find_leader()
        if leader is None or leader.replica is None or leader.is_behind:
            return
        config = leader.replica.ballot.config
        choices = self._choices(leader, config)
        if not choices:
            return
        self.changes += 1
        voters = choices[int(fault.choice * len(choices))]
        leader.step(self._wanted(leader, config, voters))

    def _wanted(
        self, leader: "Node", config: ConfigPayload, voters: tuple[Voter, ...]
    ) -> ConfigWanted:
        assert leader.replica is not None, "a leader that is down"
        ordered = order_voters(config, leader.key, voters)
        wanted = ConfigPayload(
            lineage=config.lineage,
            parent=None,
            voters=ordered,
            page_size=config.page_size,
            members_hash=config.members_hash,
            fault_model=config.fault_model,
        )
        return ConfigWanted(
            config=wanted,
            state_root=leader.application.root_at_tip(),
            timestamp_ns=TimestampNs(_BEGIN_NS + self._world.scheduler.now),
            salt=leader.chance.randbytes(16),
        )

    def _choices(self, leader: "Node", config: ConfigPayload) -> list[tuple[Voter, ...]]:
        """Return the sets of voters that keep a quorum of nodes that are there and caught up."""
        voters = config.voters
        minimum = BYZANTINE_VOTERS_MIN if config.fault_model == FaultModel.BYZANTINE else 2
        ready = self._ready_voters(leader)
        listed = {(voter.key, voter.journal_id) for voter in voters}
        choices: list[tuple[Voter, ...]] = []
        for newcomer in ready:
            if (newcomer.key, newcomer.journal_id) in listed:
                continue
            others = tuple(voter for voter in voters if voter.key != newcomer.key)
            # A node that lost its disk takes its own place again.
            if len(others) < len(voters) or len(voters) < _VOTERS_MAX:
                choices.append((*others, newcomer))
        if len(voters) > minimum:
            choices += [
                tuple(other for other in voters if other is not voter)
                for voter in voters
                if voter.key != leader.key and voter.key not in self._world.liars
            ]
        there = {(voter.key, voter.journal_id) for voter in ready}
        return [choice for choice in choices if self._is_safe(choice, config, there)]

    def _ready_voters(self, leader: "Node") -> list[Voter]:
        """Return the nodes that are up, reachable and hold nearly all that is final."""
        assert leader.replica is not None, "a leader that is down"
        final = leader.disk.ballot.final.height
        return [
            Voter(node_id=node.name, key=node.key, journal_id=node.disk.journal_id)
            for node in self._world.nodes
            if node.is_up
            and not (node.key in self._world.liars and not node.is_honest and node.is_twin)
            and not self._world.network.is_cut(leader.place, node.place)
            and node.disk.ballot.final.height >= final - _CAUGHT_UP_FRAMES
        ]

    def _is_safe(
        self,
        choice: tuple[Voter, ...],
        config: ConfigPayload,
        there: set[tuple[PublicKeyBytes, JournalId]],
    ) -> bool:
        """Return whether a quorum of the new voters is there (Q5)."""
        wanted = ConfigPayload(
            lineage=config.lineage,
            parent=None,
            voters=choice,
            page_size=config.page_size,
            members_hash=config.members_hash,
            fault_model=config.fault_model,
        )
        present = sum((voter.key, voter.journal_id) in there for voter in choice)
        liars = sum(voter.key in self._world.liars for voter in choice)
        return present >= quorum_of(wanted) and liars <= (len(choice) - 1) // 3

    def _find_leader(self) -> "Node | None":
        for node in self._world.nodes:
            if node.is_honest and node.is_writable:
                return node
        return None
