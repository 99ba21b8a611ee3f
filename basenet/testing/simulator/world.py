"""One run: nodes, network, faults and checkers put together, from a scenario and a seed.

::

    0 ............ chaos ends ................ all is right again, or patience ends
    faults, commits   heal: every node up,     commits go on for a while, then none;
                      the network whole        every voter must reach the same final frame

A run either ends with its figures or raises `Violation`. Its only input besides the scenario and
the seed is the schedule, so that it can be tried again with fewer faults.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from time import process_time
from typing import Final

from basenet.engine.ballot import FIRST_EPOCH, FIRST_VIEW, GENESIS_VIEW, begin_epoch
from basenet.engine.genesis import certify, read_genesis
from basenet.engine.limits import Timing
from basenet.testing.simulator.byzantine import Liar
from basenet.testing.simulator.chance import stream
from basenet.testing.simulator.checkers import Truth, Violation
from basenet.testing.simulator.clock import MILLISECOND, SECOND, Scheduler
from basenet.testing.simulator.disk import Disk
from basenet.testing.simulator.faults import Schedule, make_schedule
from basenet.testing.simulator.mishaps import Mishaps
from basenet.testing.simulator.network import ORDINARY, Network
from basenet.testing.simulator.node import Node
from basenet.testing.simulator.operator import Operator, Readers
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.simulator.signatures import IdealNotary, Notary, RealNotary
from basenet.testing.simulator.state import EMPTY_ROOT
from basenet.units import (
    JournalId,
    Lineage,
    PublicKeyBytes,
    Seq,
    ShardId,
    TimestampNs,
)
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Frame, Kind, encode_frame, genesis_prev_hash, seal
from basenet.wire.message import Mark, SyncRequest
from basenet.wire.payload import ConfigPayload, Voter, encode_config
from basenet.wire.tuples import Scope

SHARD: Final = ShardId("sim")
LINEAGE: Final = Lineage(b"one-lineage-only")
BEGIN_NS: Final = 1_700_000_000_000_000_000
_CALM: Final = 3 * SECOND
_STEP: Final = 250 * MILLISECOND
_PACES: Final = (15, 40, 120)
_RUN_PROGRESS: Final = 12 * SECOND
_NOTICED_SHARE: Final = 0.3
_BURSTS: Final = (0, 0, 1, 1, 2, 4)

Transcript = Callable[[int, str, str, object], None]
Trace = Callable[[dict[str, object]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run did, in numbers."""

    events: int
    seconds: float
    final: int
    orphaned: int
    crashes: int
    view_max: int
    epoch: int
    reads: int
    reports: int
    adoptions: int


class World:
    """One run of one scenario."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        schedule: Schedule | None = None,
        transcript: Transcript | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.scenario = scenario
        self.seed = seed
        self.transcript = transcript
        self.trace = trace
        self.scheduler = Scheduler()
        self.horizon = scenario.chaos + scenario.patience + 10 * SECOND
        # A liar may drag a run out for so long, once in each of its views.
        self.timing = Timing(run_progress=_RUN_PROGRESS if scenario.byzantine else 300 * SECOND)
        self.notary: Notary = RealNotary() if scenario.is_signed_really else IdealNotary()
        self.scope = Scope(LINEAGE, SHARD)
        self._chance = stream(seed, "world")
        self.genesis, self.config = self._make_genesis()
        self.consent = self._consent()
        self.truth = Truth(self.genesis, self.scope, self.notary)
        self.finals = self.truth.top
        self.orphans: set[int] = set()
        self.reports: Counter[str] = Counter()
        self.crashes = 0
        self.adoptions = 0
        self.epoch = FIRST_EPOCH
        self.commits = 0
        self.lost: set[int] = set()
        self.forgetful: set[PublicKeyBytes] = set()
        self.nodes: list[Node] = []
        self.by_key: dict[PublicKeyBytes, list[Node]] = {}
        self.liars: set[PublicKeyBytes] = set()
        self._make_nodes()
        places = len(self.nodes)
        self.schedule = make_schedule(scenario, seed, places) if schedule is None else schedule
        self.network = Network(seed, places, self.scheduler)
        self.actors = [Liar(self, key) for key in self.by_key if key in self.liars]
        self.readers = Readers(self)
        self.operator = Operator(self)
        self.mishaps = Mishaps(self)
        self._is_writing = True
        self._pace = self._chance.choice(_PACES) * MILLISECOND
        self._judging = self._chance.choice((0, 0, 5, 100)) * MILLISECOND
        self._applying = self._chance.choice((0, 0, 10, 200)) * MILLISECOND

    def _make_genesis(self) -> tuple[Frame, ConfigPayload]:
        signers = [self.notary.signer(number) for number in range(self.scenario.nodes)]
        config = ConfigPayload(
            lineage=LINEAGE,
            parent=None,
            voters=tuple(
                Voter(
                    node_id=f"n{number}", key=signer.public, journal_id=make_journal_id(number, 0)
                )
                for number, signer in enumerate(signers)
            ),
            page_size=4096,
            members_hash=bytes(32),
            fault_model=self.scenario.mode,
        )
        payload = encode_config(config)
        genesis = seal(
            shard=SHARD,
            seq=Seq(1),
            timestamp_ns=TimestampNs(BEGIN_NS - 1),
            salt=bytes(16),
            payload=payload,
            kind=Kind.CONFIG,
            flags=Flag.NONE,
            epoch=FIRST_EPOCH,
            view=FIRST_VIEW,
            prev_hash=genesis_prev_hash(payload),
            state_root=EMPTY_ROOT,
            signer=signers[0],
        )
        return genesis, config

    def _consent(self) -> Certificate:
        """Return what a birth leaves: the genesis, signed by each of its voters."""
        record = encode_frame(self.genesis)
        genesis = read_genesis(record, shard=SHARD, verify=self.notary.verify)
        message = self.scope.genesis(genesis.hash)
        signers = [self.notary.signer(number) for number in range(self.scenario.nodes)]
        return certify(genesis, {signer.public: signer.sign(message) for signer in signers})

    def _make_nodes(self) -> None:
        scenario = self.scenario
        liars = self._chance.sample(range(scenario.nodes), scenario.byzantine)
        for number in range(scenario.nodes + scenario.spares):
            signer = self.notary.signer(number)
            is_liar = number in liars
            if is_liar:
                self.liars.add(signer.public)
            for twin in range(2 if is_liar else 1):
                name = f"n{number}" + "'" * twin
                disk = self.new_disk(make_journal_id(number, 0))
                node = Node(self, len(self.nodes), name, signer, disk)
                node.is_honest = not is_liar
                node.is_twin = twin > 0
                self.nodes.append(node)
                self.by_key.setdefault(signer.public, []).append(node)

    def new_disk(self, journal_id: JournalId) -> Disk:
        """Return a disk that knows the genesis and nothing else."""
        head = self.genesis.head
        mark = Mark(GENESIS_VIEW, head.seq, head.hash)
        return Disk(
            journal_id=journal_id,
            ballot=begin_epoch(self.config, FIRST_EPOCH, mark, self.consent),
            place=(head.seq, head.hash),
            frames={head.hash: self.genesis},
            history={head.seq: head.hash},
        )

    # The run.

    def run(self) -> Figures:
        """Run to the end; raise `Violation` at the first thing that may not be."""
        started = process_time()
        try:
            self._run()
        except Violation:
            raise
        except Exception as error:
            # Whatever else is raised in a run is a finding, too.
            raise Violation(f"the engine fails: {type(error).__name__} {error}") from error
        return Figures(
            events=self.scheduler.events,
            seconds=process_time() - started,
            final=self.finals,
            orphaned=len(self.orphans),
            crashes=self.crashes,
            view_max=max(node.disk.ballot.view for node in self.nodes),
            epoch=self.epoch,
            reads=self.readers.answers,
            reports=sum(self.reports.values()),
            adoptions=self.adoptions,
        )

    def _run(self) -> None:
        scheduler = self.scheduler
        for actor in self.actors:
            actor.start()
        for node in self.nodes:
            if not node.is_twin or (node.liar is not None and node.liar.has_twin):
                scheduler.at(self._chance.randrange(20 * MILLISECOND), node.boot)
        scheduler.at(self._pace, self._write)
        for fault in self.schedule:
            self.mishaps.plan(fault)
        scheduler.run(self.scenario.chaos)
        self._heal()
        scheduler.run(scheduler.now + _CALM)
        self._converge()

    def _heal(self) -> None:
        """From now nothing bad happens any more, but what liars do."""
        for node in self.nodes:
            node.recover()
            self._introduce(node)
            self.audit(node)
        self._finals_healed = self.finals

    def _introduce(self, node: Node) -> None:
        """Let a node that knows no other member ask everybody, as a driver asks whoever connects.

        A wiped disk knows the genesis alone, and if that has one voter there is nobody to ask.
        """
        ballot = node.disk.ballot
        if node.replica is not None and {one.key for one in ballot.config.voters} == {node.key}:
            asked = SyncRequest(epoch=ballot.epoch, above_height=ballot.final.height)
            node.transmit(tuple(key for key in self.by_key if key != node.key), ORDINARY, asked)

    def _write(self, _: object) -> None:
        """Let every application commit that may."""
        scheduler = self.scheduler
        if self._is_writing:
            scheduler.at(scheduler.now + 1 + self._chance.randrange(2 * self._pace), self._write)
        for node in self.nodes:
            if node.writable_until > scheduler.now and node.is_writable:
                for _ in range(self._chance.choice(_BURSTS)):
                    if node.is_writable:
                        node.application.write()

    def _converge(self) -> None:
        """Wait until there is progress, then stop writing until all agree on everything."""
        scheduler, deadline = self.scheduler, self.scheduler.now + self.scenario.patience
        while not self._has_progress():
            if scheduler.now >= deadline:
                raise Violation(f"liveness: nothing became final after healing; {self._states()}")
            scheduler.run(scheduler.now + _STEP)
        self._is_writing = False
        while not self._is_settled():
            if scheduler.now >= deadline:
                raise Violation(f"liveness: not settled long after healing; {self._states()}")
            scheduler.run(scheduler.now + _STEP)
        for node in self.nodes:
            self.audit(node)
        if self.orphans & self.truth.commits.keys():
            raise Violation("local commits: an orphan became final")

    def _has_progress(self) -> bool:
        """Whether something became final since healing; a lying leader need not let it."""
        return self.finals > self._finals_healed or bool(self.liars)

    def _is_settled(self) -> bool:
        """Whether every honest node has, and its database holds, the same final frame."""
        top = self.truth.top
        return all(
            node.is_up
            and not node.is_behind
            and node.record.final == top
            and node.disk.place[0] >= top
            and node.replica is not None
            and (not node.replica.is_voter or node.replica.tip.seq == top)
            for node in self.nodes
            if node.is_honest
        )

    def _states(self) -> str:
        """Return where each node stands, in one line."""
        return f"top {self.truth.top}; " + "; ".join(node.describe() for node in self.nodes)

    # What nodes and actors ask.

    def new_commit(self) -> int:
        """Return the number of a new commit."""
        self.commits += 1
        return self.commits

    def tell_loss(self, node: Node, *, share: float = _NOTICED_SHARE) -> None:
        """Let a share of the others see that all connections to ``node`` are gone."""
        for other in self.nodes:
            if other is not node and self._chance.random() < share:
                delay = self._chance.randrange(2, 30) * MILLISECOND
                other.later(delay, other.lose, node.key)

    def check_alone(self, node: Node) -> None:
        """Raise `Violation` if another node may write at this instant, as ``node`` may."""
        now = self.scheduler.now
        for other in self.nodes:
            if other.writable_until > now and other is not node and other.is_honest:
                raise Violation(
                    f"fencing: {node.name} and {other.name} may both write at "
                    f"{now / MILLISECOND:.1f} ms"
                )

    def audit(self, node: Node) -> None:
        """Raise `Violation` unless each local commit of the node is in exactly one place."""
        if node.is_honest:
            node.record.audit(node.disk)

    def judging_time(self, chance: Random) -> int:
        """Return how long a verdict takes, in ns."""
        return int(chance.random() * self._judging)

    def applying_time(self, chance: Random) -> int:
        """Return how long final frames take to get into a database, in ns."""
        return int(chance.random() * self._applying)

    def names(self, keys: tuple[PublicKeyBytes, ...]) -> str:
        """Return the names of the nodes with these keys."""
        return ", ".join(self.by_key[key][0].name for key in keys)

    def tracer(self, node: Node) -> Trace | None:
        """Return where the engine of ``node`` tells its steps to."""
        return self.trace if node.is_honest else None

    def note(self, node: Node, what: str, about: object) -> None:
        """Tell the transcript."""
        if self.transcript is not None:
            self.transcript(self.scheduler.now, node.name, what, about)


def make_journal_id(number: int, life: int) -> JournalId:
    """Return the id of the journal that the node ``number`` has in its ``life``-th life."""
    return JournalId(b"journal %02d %05d" % (number, life))
