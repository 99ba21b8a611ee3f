"""A birth without chance: what happens is what the test says, on the simulator's world."""

from typing import Any

from basenet.engine.birth import Birth
from basenet.engine.birth_events import (
    BirthEffect,
    BirthReceived,
    FileScanned,
    MembersKnown,
    PeerConnected,
    SendBirth,
)
from basenet.engine.birth_record import BirthRecord
from basenet.engine.consent import EMPTY_ROOT
from basenet.engine.cradle import Newborn
from basenet.engine.events import Instant
from basenet.engine.genesis import Genesis, certify, read_genesis, write_genesis
from basenet.engine.placement import Membership, Peer
from basenet.testing.simulator.birth import SHARD, BirthScenario, BirthWorld, Machine
from basenet.testing.simulator.signatures import IdealNotary
from basenet.units import JournalId, Lineage, TimestampNs
from basenet.wire.birth import (
    BirthAnswer,
    BirthMessage,
    FileFacts,
    LineageKnown,
    MemberRole,
    Standing,
)
from basenet.wire.payload import (
    ConfigPayload,
    FaultModel,
    Voter,
    compute_members_hash,
)

NOW = Instant(1_000)
NOTARY = IdealNotary()
QUIET = {"crashes": 0.0, "cuts": 0.0, "lost": 0.0, "doubled": 0.0, "late": 0.0, "lost_disks": 0}


class Stage(BirthWorld):
    """Nothing fails but what the test lets fail."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(BirthScenario(**(QUIET | changes)), seed=0)
        self.is_calm = True
        self.effects: list[tuple[Machine, BirthEffect]] = []
        self.deaths: dict[int, bool] = {}
        self.lost: set[tuple[int, int]] = set()

    def dies_before(self, machine: Machine, effect: BirthEffect) -> bool:
        number = len(self.effects)
        self.effects.append((machine, effect))
        takes_disk = self.deaths.get(number)
        if takes_disk:
            self.lose_disk(machine)
        return takes_disk is not None

    def named(self, name: int) -> Machine:
        return self.machines[name]

    def only(self, *groups: set[int]) -> None:
        """Let nodes reach only those of their own group."""
        self.cut = {
            frozenset((one, two))
            for one in range(len(self.machines))
            for two in range(one)
            if not any({one, two} <= group for group in groups)
        }

    def begin(self, *numbers: int) -> None:
        for machine in self.machines:
            if not numbers or machine.number in numbers:
                self.start(machine)

    def wait(self, steps: int = 100) -> None:
        for _ in range(steps):
            self.pass_time()

    def known(self, number: int) -> Genesis | None:
        known = self.machines[number].disk.record.known
        return read_genesis(known.genesis, SHARD, self.notary.verify) if known else None

    def born(self) -> list[Genesis | None]:
        return [self.known(machine.number) for machine in self.machines]

    def order(self) -> list[int]:
        """The nodes by number, in the order of the shard."""
        return [int(peer.node_id.removeprefix("node-")) for peer in self.members.order(SHARD)]

    def reports(self, number: int) -> list[str]:
        return self.machines[number].reports


def voters_of(genesis: Genesis | None) -> list[int]:
    assert genesis is not None
    return [int(voter.node_id.removeprefix("node-")) for voter in genesis.config.voters]


class Node:
    """One node's birth, driven by hand; its peers exist only in what the test says of them.

    ``order``: the nodes in the order of the shard; this node has the number ``number`` in it.
    """

    def __init__(
        self,
        number: int = 0,
        count: int = 3,
        *,
        replication: int = 3,
        file: FileFacts | None = None,
        record: BirthRecord | None = None,
        writer: str | None = None,
        fault_model: FaultModel = FaultModel.CRASH,
        role: MemberRole = MemberRole.VALIDATOR,
        boots: bool = True,
    ) -> None:
        self.notary = NOTARY
        peers = [Peer(f"node-{n}", self.notary.signer(n).public) for n in range(count)]
        self.members = Membership(peers=tuple(sorted(peers)))
        self.order = self.members.order(SHARD)
        self.me = self.order[number]
        self.signers = {peer.key: self.notary.signer(n) for n, peer in enumerate(peers)}
        self.journals = {peer.key: journal(n) for n, peer in enumerate(self.order)}
        self.newborn = Newborn(
            shard=SHARD,
            me=self.me,
            journal_id=self.journals[self.me.key],
            role=role,
            replication=replication,
            writer=writer,
            fault_model=fault_model,
            signer=self.signers[self.me.key],
            verify=self.notary.verify,
        )
        self.birth = Birth(self.newborn, record or BirthRecord())
        self.now = NOW
        self.said: list[BirthEffect] = []
        if boots:
            self.said += self.birth.boot(self.now)
            self.step(MembersKnown(members=self.members))
            self.step(FileScanned(file=file))

    def step(self, event: Any) -> list[BirthEffect]:
        self.last = self.birth.step(event, self.now)
        self.said += self.last
        return self.last

    def connect(self, *numbers: int) -> None:
        for number in numbers:
            peer = self.order[number]
            self.step(PeerConnected(peer=peer, journal_id=self.journals[peer.key]))

    def hear(self, number: int, message: BirthMessage) -> list[BirthEffect]:
        key = self.order[number].key
        return self.step(BirthReceived(sender=key, journal_id=self.journals[key], message=message))

    def answer(self, number: int, **facts: Any) -> list[BirthEffect]:
        return self.hear(number, BirthAnswer(standing=self.standing(**facts)))

    def standing(self, **facts: Any) -> Standing:
        defaults = {
            "members_hash": self.members.hash,
            "role": MemberRole.VALIDATOR,
            "file": None,
            "writer": None,
            "is_decided": False,
            "promised": None,
        }
        return Standing(**(defaults | facts))

    def genesis(
        self,
        *numbers: int,
        lineage: bytes = b"l" * 16,
        parent: Any = None,
        is_forced: bool = False,
        **changes: Any,
    ) -> Genesis:
        """A genesis by the first of ``numbers`` of the order, with these voters."""
        voters = [self.order[number] for number in numbers]
        members_hash = changes.pop("members_hash", self.members.hash)
        if is_forced:
            members_hash = compute_members_hash([(voters[0].node_id, voters[0].key)])
        config = ConfigPayload(
            lineage=Lineage(lineage),
            parent=parent,
            voters=tuple(
                Voter(
                    node_id=peer.node_id,
                    key=peer.key,
                    journal_id=changes.get("journals", self.journals)[peer.key],
                )
                for peer in voters
            ),
            page_size=changes.get("page_size", 0),
            members_hash=members_hash,
            is_forced=is_forced,
        )
        return write_genesis(
            config,
            shard=SHARD,
            state_root=changes.get("state_root", EMPTY_ROOT),
            timestamp_ns=TimestampNs(5),
            salt=b"s" * 16,
            signer=self.signers[voters[0].key],
        )

    def signature(self, number: int, message: bytes) -> bytes:
        return self.signers[self.order[number].key].sign(message)

    def lineage(self, genesis: Genesis, **changes: Any) -> LineageKnown:
        promises = {key: self.signers[key].sign(genesis.message) for key in genesis.voters}
        certificate = certify(genesis, promises) if len(promises) > 1 else None
        return LineageKnown(genesis=genesis.record, certificate=certificate, **changes)

    @property
    def record(self) -> BirthRecord:
        return self.birth.record


def journal(number: int, life: int = 0) -> JournalId:
    return JournalId(bytes([number + 1, life]) * 8)


def sent(effects: list[BirthEffect], kind: type[Any]) -> list[Any]:
    """The messages of this kind in ``effects``."""
    return [
        effect.message
        for effect in effects
        if isinstance(effect, SendBirth) and isinstance(effect.message, kind)
    ]


def of(effects: list[BirthEffect], kind: type[Any]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def positions(effects: list[BirthEffect], kind: type[Any]) -> list[int]:
    """Where the messages or effects of this kind stand."""
    return [
        place
        for place, effect in enumerate(effects)
        if isinstance(effect, kind)
        or (isinstance(effect, SendBirth) and isinstance(effect.message, kind))
    ]
