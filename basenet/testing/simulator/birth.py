"""Births in a world where everything fails: nodes of one shard, their disks, and the wire.

Each node runs the real `engine.birth`. The world does what a daemon would do, one effect at a time,
and may kill the node in front of any of them; a `KeepBirth` reaches the disk or does not, a message
is lost, doubled, late or overtaken, a link is cut, a disk is lost (new journal id, no file), a
journal comes back from a backup (same id, an older record).

Checked from outside after every effect:

- *one lineage*: no two disks know different lineages, and one that a quorum of its voters has known
  is the only one for ever (at most one disk is lost in a run);
- *spoken after it was written*: whoever promises, withdraws or tells a lineage has it on its disk;
- *rows*: a node whose file has rows promises nobody whose file is another;
- *whole*: a lineage that is known has the signatures of all its voters.

After the chaos everybody is up and connected, and must know the lineage before patience ends.
"""

from dataclasses import dataclass, field
from typing import Final

from basenet.engine.birth import Birth
from basenet.engine.birth_events import (
    ArchivedParent,
    ArchiveSurveyed,
    BirthEffect,
    BirthEvent,
    BirthReceived,
    BirthTicked,
    Born,
    FenceFile,
    FileScanned,
    KeepBirth,
    MembersKnown,
    NewJournalNeeded,
    PeerConnected,
    PeerGone,
    ReportBirth,
    SendBirth,
    SurveyArchive,
)
from basenet.engine.birth_record import BirthRecord, FileFate, KnownLineage
from basenet.engine.consent import root_of
from basenet.engine.cradle import Newborn
from basenet.engine.events import Instant
from basenet.engine.genesis import Genesis, check_complete, read_genesis, write_genesis
from basenet.engine.placement import (
    Membership,
    Peer,
    compute_expected_membership,
    compute_static_membership,
)
from basenet.testing.simulator.chance import stream
from basenet.testing.simulator.clock import MILLISECOND
from basenet.testing.simulator.signatures import IdealNotary, Notary, RealNotary
from basenet.units import (
    HASH_BYTES,
    JournalId,
    Lineage,
    PublicKeyBytes,
    ShardId,
    StateRoot,
    TimestampNs,
)
from basenet.wire.birth import (
    BirthMessage,
    FileFacts,
    GenesisOffer,
    GenesisPromise,
    LineageKnown,
    MemberRole,
    Withdraw,
)
from basenet.wire.payload import ConfigPayload, FaultModel, Voter, compute_members_hash
from basenet.wire.quorum import quorum_size

SHARD: Final = ShardId("app")
_STEP: Final = 50 * MILLISECOND
# How often a node that is down starts, per step, and which share of crashes takes the disk.
_RESTARTS: Final = 0.3
_LOSSES: Final = 0.3


class BirthWrong(AssertionError):  # noqa: N818  (what is wrong, and not that something is)
    """An outside checker found what must never happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BirthScenario:
    """One configuration of a birth.

    ``nodes``: how many there are. ``files``: what nodes have, by number; others have nothing.
    ``writers``: BASE_WRITER by node number. ``standalone``: the node that has a lineage of its own
    from before. ``is_counted``: M is BASE_BOOTSTRAP_EXPECT nodes that said HELLO, anew after each
    start; else it is a static list. ``lost_disks``: how many may be lost. ``crashes``, ``cuts``:
    how often, per step and node or pair. ``lost``, ``doubled``, ``late``: shares of messages.
    ``chaos``, ``patience``: in steps. ``is_signed_really``: Ed25519 instead of ideal signatures.
    """

    nodes: int = 3
    replication: int = 3
    files: tuple[tuple[int, FileFacts], ...] = ()
    writers: tuple[tuple[int, int], ...] = ()
    standalone: int | None = None
    is_signed_really: bool = False
    is_counted: bool = False
    lost_disks: int = 1
    crashes: float = 0.02
    cuts: float = 0.02
    lost: float = 0.1
    doubled: float = 0.05
    late: float = 0.1
    chaos: int = 200
    patience: int = 6_000


@dataclass(slots=True, kw_only=True)
class Disk:
    """What a node keeps: its record, its journal's id and its database file.

    ``past``: what the record was before, which a backup may bring back.
    """

    record: BirthRecord
    journal_id: JournalId
    file: FileFacts | None
    past: list[BirthRecord] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Machine:
    """One node; ``birth`` is None while it is down. ``run`` counts its starts."""

    number: int
    peer: Peer
    disk: Disk
    birth: Birth | None = None
    run: int = 0
    writer: str | None = None
    greeted: set[Peer] = field(default_factory=set)
    reports: list[str] = field(default_factory=list)
    inbox: list[BirthEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A message under way, from one run of a node to one run of another."""

    sender: int
    sender_journal: JournalId
    to: int
    to_run: int
    message: BirthMessage


@dataclass(slots=True, kw_only=True)
class BirthTally:
    """What happened in a run, for whoever wants to know that something did."""

    effects: int = 0
    crashes: int = 0
    lost_disks: int = 0
    roll_backs: int = 0
    forgotten: int = 0
    geneses: int = 0
    withdrawals: int = 0


class BirthWorld:
    """Nodes, disks and wire of one run; the same seed gives the same run."""

    def __init__(self, scenario: BirthScenario, seed: int) -> None:
        self.scenario = scenario
        self.tally = BirthTally()
        self.now = Instant(0)
        self.is_calm = False
        self.settled: Lineage | None = None
        self.archive: ArchivedParent | None = None
        self._random = stream(seed, "birth")
        self.notary: Notary = RealNotary() if scenario.is_signed_really else IdealNotary()
        self._journals = 0
        self._read: dict[bytes, Genesis] = {}
        self.machines = [self._new_machine(number) for number in range(scenario.nodes)]
        self.members = Membership(peers=tuple(sorted(node.peer for node in self.machines)))
        self.cut: set[frozenset[int]] = set()
        self._linked: dict[tuple[int, int], tuple[int, int]] = {}
        self.wire: list[Flight] = []

    # What can be done to the world.

    def start(self, machine: Machine) -> None:
        """Start a node from its disk."""
        machine.run += 1
        machine.inbox = []
        machine.greeted = set()
        machine.birth = Birth(self._newborn(machine), machine.disk.record)
        self.perform(machine, machine.birth.boot(self.now))
        if machine.birth is not None:
            self.give(machine, MembersKnown(members=self.members_of(machine)))

    def crash(self, machine: Machine) -> None:
        """Let a node die; what is under way from it may still arrive."""
        machine.birth = None
        self.tally.crashes += 1
        self._unlink(machine.number)

    def lose_disk(self, machine: Machine) -> None:
        """Let a node die, and its disk with it."""
        self.crash(machine)
        machine.disk = Disk(record=BirthRecord(), journal_id=self._new_journal(), file=None)
        self.tally.lost_disks += 1

    def roll_back(self, machine: Machine) -> None:
        """Let a node die, and its journal come back as it was: same id, and something forgotten."""
        self.crash(machine)
        disk = machine.disk
        if disk.past:
            disk.record = self._random.choice(disk.past)
            self.tally.lost_disks += 1
            self.tally.roll_backs += 1

    def members_of(self, machine: Machine) -> Membership | str:
        """Return what configuration tells this node: everybody, up or not, or nobody yet."""
        if self.scenario.is_counted:
            return compute_expected_membership(machine.peer, machine.greeted, self.scenario.nodes)
        entries = {peer.node_id: peer for peer in self.members.peers}
        return compute_static_membership(machine.peer, entries)

    def give(self, machine: Machine, event: BirthEvent) -> None:
        """Step a node that is up, and do what it says."""
        if machine.birth is not None:
            self.perform(machine, machine.birth.step(event, self.now))

    def perform(self, machine: Machine, effects: list[BirthEffect]) -> None:
        """Do effects in order; the node may die in front of each."""
        run = machine.run
        for effect in effects:
            if machine.birth is None or machine.run != run:
                return
            if self.dies_before(machine, effect):
                self.crash(machine)
                return
            self.tally.effects += 1
            self._do(machine, effect)
            self.check()

    def dies_before(self, machine: Machine, effect: BirthEffect) -> bool:
        """Return whether the node dies here: by chance, unless a subclass knows better."""
        del machine, effect
        return not self.is_calm and self._random.random() < self.scenario.crashes

    # Time.

    def run(self) -> Genesis:
        """Let chaos and then calm pass; return the genesis that everybody knows at the end."""
        for machine in self.machines:
            self.start(machine)
        for _ in range(self.scenario.chaos):
            self.harm()
            self.pass_time()
        return self.heal()

    def heal(self) -> Genesis:
        """Let everybody be up and connected, and return the genesis that they then know."""
        self.is_calm = True
        self.cut.clear()
        for _ in range(self.scenario.patience):
            for machine in self.machines:
                if machine.birth is None:
                    self.start(machine)
            self.pass_time()
            if all(machine.disk.record.known for machine in self.machines):
                return self._known(self.machines[0])
        said = {m.peer.node_id: m.birth.status if m.birth else "down" for m in self.machines}
        raise BirthWrong(f"no birth after patience: {said}")

    def harm(self) -> None:
        """Let something bad happen, or not."""
        scenario, chance = self.scenario, self._random
        for machine in self.machines:
            if machine.birth is None and chance.random() < _RESTARTS:
                self.start(machine)
            elif machine.birth is not None and chance.random() < scenario.crashes:
                is_loss = self.tally.lost_disks < scenario.lost_disks and chance.random() < _LOSSES
                harms = (self.lose_disk, self.roll_back) if is_loss else (self.crash,)
                chance.choice(harms)(machine)
            for other in range(machine.number):
                if chance.random() < scenario.cuts:
                    self.cut ^= {frozenset((machine.number, other))}
        if chance.random() < scenario.cuts / 4:
            self._halve()

    def pass_time(self) -> None:
        """Let one step of time pass: links, ticks, messages in any order."""
        self.now = Instant(self.now + _STEP)
        self._link()
        flights, self.wire = self.wire, []
        if not self.is_calm:
            self._random.shuffle(flights)
        for flight in flights:
            if not self.is_calm and self._random.random() < self.scenario.late:
                self.wire.append(flight)
            else:
                self._deliver(flight)
        for machine in self.machines:
            inbox, machine.inbox = machine.inbox, []
            for event in inbox:
                self.give(machine, event)
            wake_at = machine.birth.wake_at if machine.birth else None
            if wake_at is not None and wake_at <= self.now:
                self.give(machine, BirthTicked())

    # Inside.

    def _new_machine(self, number: int) -> Machine:
        files, writers = dict(self.scenario.files), dict(self.scenario.writers)
        signer = self.notary.signer(number)
        disk = Disk(record=BirthRecord(), journal_id=self._new_journal(), file=files.get(number))
        machine = Machine(number=number, peer=Peer(f"node-{number}", signer.public), disk=disk)
        if number == self.scenario.standalone:
            disk.record = BirthRecord(known=self._make_standalone(machine))
        if number in writers:
            machine.writer = f"node-{writers[number]}"
        return machine

    def _make_standalone(self, machine: Machine) -> KnownLineage:
        """Return a lineage that the node began alone, before there was a cluster."""
        peer, disk = machine.peer, machine.disk
        root, page_size = root_of(disk.file)
        config = ConfigPayload(
            lineage=Lineage(b"standalone 00000"),
            parent=None,
            voters=(Voter(node_id=peer.node_id, key=peer.key, journal_id=disk.journal_id),),
            page_size=page_size,
            members_hash=compute_members_hash([(peer.node_id, peer.key)]),
        )
        genesis = write_genesis(
            config,
            shard=SHARD,
            state_root=root,
            timestamp_ns=TimestampNs(0),
            salt=bytes(16),
            signer=self.notary.signer(machine.number),
        )
        return KnownLineage(
            genesis=genesis.record, certificate=None, file=FileFate.ADOPTED, is_settled=True
        )

    def _new_journal(self) -> JournalId:
        self._journals += 1
        return JournalId(self._journals.to_bytes(16, "big"))

    def _newborn(self, machine: Machine) -> Newborn:
        return Newborn(
            shard=SHARD,
            me=machine.peer,
            journal_id=machine.disk.journal_id,
            role=MemberRole.VALIDATOR,
            replication=self.scenario.replication,
            writer=machine.writer,
            fault_model=FaultModel.CRASH,
            signer=self.notary.signer(machine.number),
            verify=self.notary.verify,
        )

    def _do(self, machine: Machine, effect: BirthEffect) -> None:
        match effect:
            case FenceFile():
                machine.inbox.append(FileScanned(file=machine.disk.file))
            case KeepBirth():
                self._keep(machine, effect)
            case SendBirth():
                self._check_spoken(machine, effect.message)
                for key in effect.to:
                    self._send(machine, key, effect.message)
            case SurveyArchive():
                machine.inbox.append(self._survey(machine))
            case Born():
                check_complete(effect.genesis, effect.certificate, self.notary.verify)
            case NewJournalNeeded():
                self.crash(machine)
                self.tally.forgotten += 1
                file = machine.disk.file
                machine.disk = Disk(record=BirthRecord(), journal_id=self._new_journal(), file=file)
            case ReportBirth():
                machine.reports.append(effect.what)
            case _:
                raise BirthWrong(f"{effect} in a birth")

    def _keep(self, machine: Machine, effect: KeepBirth) -> None:
        before, after = machine.disk.record, effect.record
        own = after.promise is not None and after.promise.author == machine.peer.key
        if after.promise is not None and not own:
            self._check_rows(machine, after.promise.author)
        self.tally.geneses += own and before.promise != after.promise
        self.tally.withdrawals += before.withdrawn != after.withdrawn
        machine.disk.past.append(before)
        machine.disk.record = after

    def _survey(self, machine: Machine) -> ArchiveSurveyed:
        return ArchiveSurveyed(
            parent=self.archive,
            problem=None,
            file=machine.disk.file,
            lineage=Lineage(self._random.randbytes(16)),
            salt=self._random.randbytes(16),
            timestamp_ns=TimestampNs(self.now),
        )

    def _send(self, machine: Machine, key: PublicKeyBytes, message: BirthMessage) -> None:
        to = next(node for node in self.machines if node.peer.key == key)
        flight = Flight(
            sender=machine.number,
            sender_journal=machine.disk.journal_id,
            to=to.number,
            to_run=to.run,
            message=message,
        )
        chance = 1.0 if self.is_calm else self._random.random()
        if chance >= self.scenario.lost:
            self.wire.append(flight)
        if chance >= 1 - self.scenario.doubled and not self.is_calm:
            self.wire.append(flight)

    def _deliver(self, flight: Flight) -> None:
        to = self.machines[flight.to]
        is_cut = frozenset((flight.sender, flight.to)) in self.cut
        if to.birth is None or to.run != flight.to_run or is_cut:
            return
        event = BirthReceived(
            sender=self.machines[flight.sender].peer.key,
            journal_id=flight.sender_journal,
            message=flight.message,
        )
        self.give(to, event)

    def _link(self) -> None:
        """Connect whoever can reach each other, disconnect whoever cannot."""
        for one in self.machines:
            for two in self.machines[: one.number]:
                pair = (two.number, one.number)
                is_up = one.birth is not None and two.birth is not None
                runs = (two.run, one.run)
                if not is_up or frozenset(pair) in self.cut:
                    if self._linked.pop(pair, None):
                        self.give(one, PeerGone(key=two.peer.key))
                        self.give(two, PeerGone(key=one.peer.key))
                elif self._linked.get(pair) != runs:
                    self._linked[pair] = runs
                    for here, there in ((one, two), (two, one)):
                        self._greet(here, there)

    def _greet(self, here: Machine, there: Machine) -> None:
        """Let ``here`` hear the HELLO of ``there``."""
        journal_id = there.disk.journal_id
        self.give(here, PeerConnected(peer=there.peer, journal_id=journal_id))
        if here.birth is not None and there.peer not in here.greeted:
            here.greeted.add(there.peer)
            self.give(here, MembersKnown(members=self.members_of(here)))

    def _unlink(self, number: int) -> None:
        for pair in [pair for pair in self._linked if number in pair]:
            del self._linked[pair]
            other = self.machines[pair[0] if pair[1] == number else pair[1]]
            self.give(other, PeerGone(key=self.machines[number].peer.key))

    def _halve(self) -> None:
        """Cut the world in two, or make it whole."""
        if self.cut:
            self.cut.clear()
            return
        side = {node.number for node in self.machines if self._random.getrandbits(1)}
        self.cut = {
            frozenset((one.number, two))
            for one in self.machines
            for two in range(one.number)
            if (one.number in side) != (two in side)
        }

    # The checkers.

    def _known(self, machine: Machine) -> Genesis:
        known = machine.disk.record.known
        assert known is not None, "it knows nothing"
        return read_genesis(known.genesis, SHARD, self.notary.verify)

    def check(self) -> None:
        """Raise `BirthWrong` if two lineages exist, or one that not everybody signed."""
        holders = [machine for machine in self.machines if machine.disk.record.known]
        geneses = {machine.number: self._known(machine) for machine in holders}
        if len({genesis.hash for genesis in geneses.values()}) > 1:
            named = {number: genesis.lineage.hex() for number, genesis in geneses.items()}
            raise BirthWrong(f"two lineages: {named}")
        if not holders:
            return
        genesis = geneses[holders[0].number]
        known = holders[0].disk.record.known
        assert known is not None, "a holder"
        check_complete(genesis, known.certificate, self.notary.verify)
        if self.settled not in (None, genesis.lineage):
            raise BirthWrong(f"{genesis.lineage.hex()} after a quorum knew another lineage")
        journals = {machine.disk.journal_id for machine in holders}
        voters = [voter for voter in genesis.config.voters if voter.journal_id in journals]
        if len(voters) >= quorum_size(len(genesis.config.voters)):
            self.settled = genesis.lineage

    def _check_rows(self, machine: Machine, author: PublicKeyBytes) -> None:
        """Raise `BirthWrong` if a node with rows promises to an author with another database."""
        other = next(node for node in self.machines if node.peer.key == author)
        mine = machine.disk.file
        is_lost = mine is not None and mine.has_rows and mine != other.disk.file
        if is_lost and not other.disk.record.is_decided:
            raise BirthWrong(f"{machine.peer.node_id} has rows and promised {other.peer.node_id}")

    def _check_spoken(self, machine: Machine, message: BirthMessage) -> None:
        """Raise `BirthWrong` if the node says what its disk would not remember."""
        record = machine.disk.record
        kept = record.promise.genesis if record.promise else None
        known = record.known.genesis if record.known else None
        promised = read_genesis(kept, SHARD, self.notary.verify).hash if kept else None
        name = machine.peer.node_id
        if isinstance(message, GenesisPromise) and promised != message.frame_hash:
            raise BirthWrong(f"{name} promised what it did not keep")
        if isinstance(message, GenesisOffer) and kept != message.genesis:
            raise BirthWrong(f"{name} offered a genesis that it did not keep")
        if isinstance(message, Withdraw) and promised == message.frame_hash:
            raise BirthWrong(f"{name} withdrew a genesis that it still keeps")
        if isinstance(message, LineageKnown) and known != message.genesis:
            raise BirthWrong(f"{name} told a lineage that it did not keep")


def database(content: bytes, pages: int = 10, *, has_rows: bool = True) -> FileFacts:
    """Return the facts of a database of 4 KiB pages whose state root begins with ``content``."""
    return FileFacts(StateRoot(content.ljust(HASH_BYTES, b"\0")), 4096, pages, has_rows)
