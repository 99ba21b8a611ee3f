"""Makes the faults of a schedule happen."""

from typing import TYPE_CHECKING, Final, assert_never

from basenet.testing.simulator.checkers import NodeRecord
from basenet.testing.simulator.clock import SECOND
from basenet.testing.simulator.disk import Disk
from basenet.testing.simulator.faults import (
    Change,
    Crash,
    FalseVerdict,
    Fault,
    Noise,
    OneWayCut,
    Partition,
    Pause,
    Prune,
    Read,
    Reset,
    RollBack,
    Slip,
    SlowDisk,
    Transfer,
    Wipe,
    WrongRoots,
)
from basenet.testing.simulator.greeting import Greeting, greet
from basenet.units import JournalId
from basenet.wire.frame import Kind

# How long wrong roots may lie in un-final frames that nobody has judged yet.
_DECEPTION: Final = 6 * SECOND

if TYPE_CHECKING:
    from basenet.testing.simulator.node import Node
    from basenet.testing.simulator.world import World


class Mishaps:
    """Brings the faults of one run upon its world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._lives: dict[int, int] = {}
        self._old_disks: dict[int, Disk] = {}
        self._deceived_until = 0

    def plan(self, fault: Fault) -> None:
        """Let ``fault`` happen at its time."""
        scheduler = self._world.scheduler
        scheduler.at(fault.at, self._happen, fault)
        if isinstance(fault, RollBack):
            scheduler.at(fault.at - fault.age, self._remember, fault)

    def _happen(self, fault: Fault) -> None:
        world = self._world
        if world.transcript is not None:
            world.transcript(world.scheduler.now, "fault", repr(fault), None)
        match fault:
            case Partition() | OneWayCut() | Noise():
                world.network.begin(fault)
            case Transfer():
                world.operator.transfer(fault)
            case Change():
                world.operator.change(fault)
            case Read():
                world.readers.ask(fault)
            case Prune():
                self._prune(world.nodes[fault.node], fault.keep)
            case Reset():
                world.tell_loss(world.nodes[fault.node], share=1.0)
            case _:
                self._strike(world.nodes[fault.node], fault)

    def _strike(
        self,
        node: "Node",
        fault: Crash | Wipe | RollBack | Pause | SlowDisk | Slip | WrongRoots | FalseVerdict,
    ) -> None:
        now = self._world.scheduler.now
        match fault:
            case Crash():
                node.arm_crash(fault)
            case Wipe():
                self._wipe(node, fault)
            case RollBack():
                self._roll_back(node, fault)
            case Pause():
                node.paused_until = now + fault.lasts
            case SlowDisk():
                node.disk_latency = fault.latency
                self._world.scheduler.at(now + fault.lasts, self._mend_disk, node)
            case Slip():
                node.application.slips = fault.commits
            case WrongRoots() | FalseVerdict():
                self._deceive(node, fault, now)
            case _:
                assert_never(fault)

    def _prune(self, node: "Node", keep: int) -> None:
        """Let a node drop what it said to be final, and what its database holds."""
        told = node.record.final if node.is_honest else node.disk.ballot.final.height
        node.disk.prune(told - keep)

    def _deceive(self, node: "Node", fault: WrongRoots | FalseVerdict, now: int) -> None:
        """Let a node be wrong about roots: it is one of those that may fail, as the lost are."""
        if self._lost_voters() and self._lost_voters() >= self._tolerated():
            return
        self._deceived_until = now + _DECEPTION
        if isinstance(fault, WrongRoots):
            node.application.wrong_roots_until = now + fault.lasts
        else:
            node.false_verdicts = 1

    def _is_deceived(self) -> bool:
        """Whether somebody was wrong about roots, and it may still matter."""
        world = self._world
        return self._deceived_until > world.scheduler.now or any(
            node.disk.ballot.refused or node.false_verdicts for node in world.nodes
        )

    def _can_lose(self, node: "Node") -> bool:
        """Whether a disk can be lost without an end of progress."""
        return (
            node.is_up
            and node.is_honest
            and self._lost_voters() < self._tolerated()
            and not self._is_deceived()
            and not self._is_config_pending()
        )

    def _is_config_pending(self) -> bool:
        """Whether voters are about to change: who may be lost then depends on what comes of it."""
        top = self._world.truth.top
        return any(
            frame.head.kind == Kind.CONFIG and frame.head.seq > top
            for node in self._world.nodes
            for frame in node.disk.frames.values()
        ) or any(
            node.replica is not None
            and node.replica.tip.kind == Kind.CONFIG
            and node.replica.tip.seq > top
            for node in self._world.nodes
        )

    def _mend_disk(self, node: "Node") -> None:
        node.disk_latency = 0

    def _wipe(self, node: "Node", fault: Wipe) -> None:
        """Take a disk for good, as long as a quorum keeps theirs."""
        if not self._can_lose(node):
            return
        self._replace(node, self._world.new_disk(self._next_journal_id(node)), fault.down)

    def _replace(self, node: "Node", disk: Disk, down: int) -> None:
        world = self._world
        node.die(down, is_machine=True)
        node.disk = disk
        world.forgetful.add(node.key)
        node.record = NodeRecord(node.name, world.truth, disk.ballot.final.height)
        world.note(node, "has another disk", disk.journal_id)

    def greets(self, node: "Node") -> bool:
        """Let a node that starts say HELLO; return whether enough voters have compared it (Q9)."""
        disk, world = node.disk, self._world
        others = [
            other
            for other in world.nodes
            if other is not node
            and other.is_powered
            and not world.network.is_apart(node.place, other.place)
        ]
        # A node that was away for long hears of the newest voters before it votes.
        newest = max((one.disk.ballot for one in (node, *others)), key=lambda one: one.epoch)
        config, me = newest.config, (node.key, disk.journal_id)
        if me not in {(voter.key, voter.journal_id) for voter in config.voters}:
            return True
        peers = [((other.key, other.disk.journal_id), other.disk.known) for other in others]
        greeting = greet(me, disk.jcount, config, peers)
        if greeting == Greeting.ROLLED_BACK:
            self.rename(node)
        return greeting != Greeting.MUST_WAIT

    def _is_remembered(self, node: "Node", old: Disk) -> bool:
        """Whether each voter that it may greet knows a higher count, without which Q9 is blind."""
        name = (node.key, old.journal_id)
        return all(
            peer.disk.known.get(name, 0) > old.jcount
            for voter in node.disk.ballot.config.voters
            for peer in self._world.by_key[voter.key]
            if peer is not node
        )

    def rename(self, node: "Node") -> None:
        """Give a node that came back with an old disk another journal id: it is a learner now."""
        disk, world = node.disk, self._world
        disk.journal_id = self._next_journal_id(node)
        node.record = NodeRecord(node.name, world.truth, disk.ballot.final.height)
        world.note(node, "has an old disk, and another journal id", disk.journal_id)

    def _next_journal_id(self, node: "Node") -> JournalId:
        life = self._lives[node.place] = self._lives.get(node.place, 0) + 1
        return JournalId(b"journal %02d %05d" % (node.place, life + 1))

    def _lost_voters(self) -> int:
        """Return how many voters of the newest epoch have lost their journal, or lie."""
        world = self._world
        config = world.truth.configs[max(world.truth.configs)]
        alive = {(node.key, node.disk.journal_id) for node in world.nodes if node.is_honest}
        return sum((voter.key, voter.journal_id) not in alive for voter in config.voters)

    def _tolerated(self) -> int:
        world = self._world
        config = world.truth.configs[max(world.truth.configs)]
        divisor = 2 if config.fault_model == 1 else 3
        return (len(config.voters) - 1) // divisor

    def _remember(self, fault: RollBack) -> None:
        self._old_disks[id(fault)] = self._world.nodes[fault.node].disk.copy()

    def _roll_back(self, node: "Node", fault: RollBack) -> None:
        """Bring an old copy of the disk back, which its peers notice (Q9)."""
        old = self._old_disks.pop(id(fault), None)
        if old is None or old.journal_id != node.disk.journal_id or not self._can_lose(node):
            return
        if fault.is_remembered and not self._is_remembered(node, old):
            return
        self._replace(node, old, fault.down)
