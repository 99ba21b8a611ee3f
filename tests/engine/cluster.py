"""A few replicas, a network that does what the test says, and disks that keep what is persisted.

No chance and no drift: for those there is the simulator. Time stands still until `advance`.
Messages wait in one queue until `run` delivers them, except where a link is cut. The lane of
heartbeats is a stand-in whose leases and promises the test sets.
"""

# ruff: noqa: ARG002  (the stand-in takes what `Liveness` takes, and needs little of it)

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from basenet.engine.ballot import FIRST_EPOCH, Ballot, begin_epoch
from basenet.engine.effects import (
    Effect,
    Fence,
    Finalize,
    Judge,
    Orphan,
    Persist,
    ReadReady,
    Report,
    Send,
    SendFrames,
    ServeFinal,
)
from basenet.engine.events import (
    Applied,
    ConfigWanted,
    Event,
    FinalReceived,
    FrameCaptured,
    FramesCaptured,
    FramesReceived,
    Instant,
    Judged,
    Received,
    Ticked,
)
from basenet.engine.genesis import write_genesis
from basenet.engine.limits import MILLISECOND, Timing
from basenet.engine.liveness import Member
from basenet.engine.replica import Replica
from basenet.units import (
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    LocalNumber,
    PublicKeyBytes,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Frame, Head, Kind
from basenet.wire.message import Mark, Message
from basenet.wire.payload import ConfigPayload, FaultModel, Voter, VoterRole, decode_config
from basenet.wire.tuples import Scope

SHARD = ShardId("app")
LINEAGE = Lineage(b"l" * 16)
ROOT = StateRoot(b"r" * 32)
NO_ROOT = StateRoot(bytes(32))
BEGIN_NS = 1_700_000_000_000_000_000
SCOPE = Scope(LINEAGE, SHARD)
FOREVER = Instant(2**62)
NO_COMMIT = LocalNumber(0)
START = Instant(10_000 * MILLISECOND)


class IdealSigner:
    """Signs with a hash that nobody makes who does not hold this object."""

    def __init__(self, number: int) -> None:
        self.public = key_of(number)

    def sign(self, message: bytes) -> bytes:
        return sha256(b"signed" + self.public + message).digest() * 2


def is_signed_ideally(public: bytes, signature: bytes, message: bytes) -> bool:
    return signature == sha256(b"signed" + public + message).digest() * 2


def key_of(number: int) -> PublicKeyBytes:
    return PublicKeyBytes(bytes([number + 1]) * 32)


def journal_of(number: int, life: int = 0) -> JournalId:
    return JournalId(bytes([number + 1, life]) * 8)


def voter_of(number: int, role: VoterRole = VoterRole.VALIDATOR, life: int = 0) -> Voter:
    return Voter(
        node_id=f"node-{number}", key=key_of(number), journal_id=journal_of(number, life), role=role
    )


def config_of(*numbers: int, byzantine: bool = False) -> ConfigPayload:
    return ConfigPayload(
        lineage=LINEAGE,
        parent=None,
        voters=tuple(voter_of(number) for number in numbers),
        page_size=4096,
        members_hash=bytes(32),
        fault_model=FaultModel.BYZANTINE if byzantine else FaultModel.CRASH,
    )


class Lane:
    """Stands in for the lane of heartbeats: the test says what was promised and heard."""

    def __init__(self) -> None:
        self.led: tuple[int, int] | None = None
        self.followed: tuple[int, int, PublicKeyBytes] | None = None
        self.lease = FOREVER
        self.promised = Instant(0)
        self.quorum_heard: Instant | None = None
        self.leader_heard: Instant | None = FOREVER
        self.calls: list[str] = []

    def lead(  # noqa: PLR0917
        self,
        lineage: Lineage,
        epoch: Epoch,
        view: View,
        followers: tuple[Member, ...],
        quorum: int,
        now: Instant,
    ) -> None:
        self.calls.append("lead")
        self.quorum_heard = None
        self.led = (epoch, view)

    def unlead(self, lineage: Lineage, now: Instant) -> None:
        self.calls.append("unlead")
        self.led = None

    def follow(
        self, lineage: Lineage, epoch: Epoch, view: View, leader: Member, now: Instant
    ) -> None:
        assert now >= self.promised
        self.calls.append("follow")
        self.followed = (epoch, view, leader[0])
        self.leader_heard = FOREVER

    def refuse(self, lineage: Lineage, now: Instant) -> None:
        self.calls.append("refuse")
        self.followed = None

    def release(self, lineage: Lineage) -> None:
        self.calls.append("release")
        self.promised = Instant(0)

    def lease_until(self, lineage: Lineage, now: Instant) -> Instant:
        return self.lease if self.led else Instant(0)

    def promised_until(self, lineage: Lineage) -> Instant:
        return self.promised

    def quorum_heard_at(self, lineage: Lineage, now: Instant) -> Instant:
        return now if self.quorum_heard is None else self.quorum_heard

    def leader_heard_at(self, lineage: Lineage) -> Instant | None:
        return self.leader_heard


@dataclass
class Node:
    """One node: its disk, and while it is up its replica."""

    number: int
    journal_id: JournalId
    ballot: Ballot
    frames: dict[FrameHash, Frame]
    database: tuple[Seq, FrameHash]
    local_last: LocalNumber = NO_COMMIT
    replica: Any = None
    lane: Lane = field(default_factory=Lane)
    certificates: dict[int, Certificate] = field(default_factory=dict)
    finals: list[Head] = field(default_factory=list)
    orphans: list[Orphan] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    fences: int = 0
    reads: list[ReadReady] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    trace: list[dict[str, object]] = field(default_factory=list)

    @property
    def key(self) -> PublicKeyBytes:
        return key_of(self.number)

    @property
    def final(self) -> int:
        return int(self.replica.final.height)

    @property
    def persists(self) -> list[Persist]:
        return [one for one in self.effects if isinstance(one, Persist)]

    def sent(self, kind: type) -> list[Any]:
        return [
            one.message
            for one in self.effects
            if isinstance(one, Send) and isinstance(one.message, kind)
        ]

    def whats(self) -> list[str]:
        return [one.what for one in self.reports]


Packet = tuple[int, int, Event]


class Cluster:
    """Replicas ``0 .. voters - 1``, and ``spares`` that are no voters yet."""

    def __init__(
        self,
        voters: int = 3,
        *,
        spares: int = 0,
        byzantine: bool = False,
        boots: bool = True,
        traced: bool = True,
    ) -> None:
        self.now = START
        self.traced = traced
        self.timing = Timing()
        self.config = config_of(*range(voters), byzantine=byzantine)
        genesis = write_genesis(
            self.config,
            shard=SHARD,
            state_root=ROOT,
            timestamp_ns=TimestampNs(BEGIN_NS),
            salt=b"s" * 16,
            signer=IdealSigner(0),
        )
        self.genesis = genesis.frame
        self.queue: deque[Packet] = deque()
        self.lost: list[Packet] = []
        self.cuts: set[tuple[int, int]] = set()
        self.filter: Callable[[int, int, Event], bool] | None = None
        self.wrong: set[FrameHash] = set()
        self.judges = True
        self.nodes = [self._new_node(number) for number in range(voters + spares)]
        if boots:
            for node in self.nodes:
                self.boot(node)
            self.run()

    def _new_node(self, number: int) -> Node:
        head = self.genesis.head
        return Node(
            number=number,
            journal_id=journal_of(number),
            ballot=begin_epoch(self.config, FIRST_EPOCH, Mark(-1, head.seq, head.hash)),
            frames={head.hash: self.genesis},
            database=(head.seq, head.hash),
        )

    # Nodes.

    def boot(self, node: Node, **changes: Any) -> None:
        """Make the node's replica from its disk, with a new lane."""
        for name, value in changes.items():
            setattr(node, name, value)
        final = node.ballot.final
        held = [
            one
            for one in node.frames.values()
            if one.head.seq > final.height or one.head.hash == final.hash
        ]
        node.replica = Replica(
            scope=SCOPE,
            me=(node.key, node.journal_id),
            signer=IdealSigner(node.number),
            verify=is_signed_ideally,
            ballot=node.ballot,
            heads=[one.head for one in held],
            configs={
                one.head.hash: decode_config(one.payload)
                for one in held
                if one.head.kind == Kind.CONFIG
            },
            database=node.database,
            local_last=node.local_last,
            liveness=node.lane,
            timing=self.timing,
            now=self.now,
            draw=lambda low, _: low,
            trace=node.trace.append if self.traced else None,
        )
        self._perform(node, node.replica.boot(self.now))

    def crash(self, *numbers: int) -> None:
        for number in numbers:
            self.nodes[number].replica = None
            self.nodes[number].lane = Lane()

    def restart(self, *numbers: int) -> None:
        for number in numbers:
            self.crash(number)
            self.boot(self.nodes[number])

    def give(self, number: int, event: Event) -> list[Effect]:
        """Give one event to a node and perform what it asks for."""
        node = self.nodes[number]
        effects: list[Effect] = node.replica.step(event, self.now)
        self._perform(node, effects)
        return effects

    def tell(self, number: int, sender: int, message: Message, life: int = 0) -> list[Effect]:
        """Give a message to a node, as if ``sender`` had sent it."""
        return self.give(number, received(sender, message, life))

    def _perform(self, node: Node, effects: Iterable[Effect]) -> None:
        for effect in effects:
            node.effects.append(effect)
            if isinstance(effect, Persist):
                self._persist(node, effect)
            elif isinstance(effect, Send):
                for key in effect.to:
                    self._post(node, key, received(node.number, effect.message))
            elif isinstance(effect, SendFrames):
                frames = tuple(node.frames[head.hash] for head in effect.heads)
                for key in effect.to:
                    self._post(node, key, FramesReceived(sender=node.key, frames=frames))
            else:
                self._perform_other(node, effect)

    def _perform_other(self, node: Node, effect: Effect) -> None:
        if isinstance(effect, Judge):
            if self.judges:
                self.queue.append((node.number, node.number, self.verdict(effect)))
        elif isinstance(effect, Finalize):
            self._finalize(node, effect)
        elif isinstance(effect, Orphan):
            node.orphans.append(effect)
            below = next((h.prev_hash for h in effect.heads), node.database[1])
            node.database = (effect.kept_height, below)
        elif isinstance(effect, ServeFinal):
            for piece in self.history(node, effect.above_height):
                self._post(node, effect.to, piece)
        elif isinstance(effect, Report):
            node.reports.append(effect)
        elif isinstance(effect, Fence):
            node.fences += 1
        elif isinstance(effect, ReadReady):
            node.reads.append(effect)

    def verdict(self, effect: Judge) -> Judged:
        """What an honest judge of this cluster says: ``wrong`` frames are wrong."""
        wrong = next((head.hash for head in effect.heads if head.hash in self.wrong), None)
        return Judged(epoch=effect.epoch, view=effect.view, hash=effect.heads[-1].hash, wrong=wrong)

    def _persist(self, node: Node, effect: Persist) -> None:
        for frame in effect.frames:
            node.frames[frame.head.hash] = frame
        for own in effect.own:
            head = own.frame.head
            node.frames[head.hash] = own.frame
            node.database = (head.seq, head.hash)
            node.local_last = own.local_last
        if effect.ballot is not None:
            node.ballot = effect.ballot
            certificate = effect.ballot.certificate
            if certificate and node.frames[certificate.hash].head.epoch == certificate.epoch:
                node.certificates[certificate.height] = certificate

    def _finalize(self, node: Node, effect: Finalize) -> None:
        node.finals += effect.heads
        last = effect.heads[-1]
        if not effect.is_own:
            node.database = (last.seq, last.hash)
            self.queue.append((node.number, node.number, Applied(seq=last.seq)))

    def history(self, node: Node, above: int) -> list[FinalReceived]:
        """Return the final history of a node in pieces of one epoch each."""
        chain: list[Frame] = []
        digest = node.ballot.final.hash
        while digest in node.frames and node.frames[digest].head.seq > above:
            chain.append(node.frames[digest])
            digest = node.frames[digest].head.prev_hash
        chain.reverse()
        pieces: list[FinalReceived] = []
        run: list[Frame] = []
        for frame in chain:
            run.append(frame)
            is_end = frame.head.kind == Kind.CONFIG and frame.head.seq > 1
            if is_end or frame is chain[-1]:
                certificate = node.certificates.get(frame.head.seq)
                pieces.append(
                    FinalReceived(sender=node.key, frames=tuple(run), certificate=certificate)
                )
                run = []
        return pieces

    # The network.

    def _post(self, node: Node, key: PublicKeyBytes, event: Event) -> None:
        number = next((one.number for one in self.nodes if one.key == key), None)
        if number is not None:
            self.queue.append((node.number, number, event))

    def cut(self, *pairs: tuple[int, int]) -> None:
        """Cut links, both ways."""
        for left, right in pairs:
            self.cuts |= {(left, right), (right, left)}

    def isolate(self, number: int) -> None:
        self.cut(*((number, other.number) for other in self.nodes if other.number != number))

    def heal(self) -> None:
        self.cuts = set()
        self.filter = None

    def run(self, limit: int = 5_000) -> None:
        """Deliver until nothing is on its way."""
        for _ in range(limit):
            if not self.queue:
                return
            sender, to, event = packet = self.queue.popleft()
            is_lost = (sender, to) in self.cuts or self.nodes[to].replica is None
            if is_lost or (self.filter is not None and not self.filter(sender, to, event)):
                self.lost.append(packet)
                continue
            self.give(to, event)
        raise AssertionError("the cluster does not come to rest")

    def advance(self, milliseconds: int) -> None:
        """Let time pass: nodes are woken when they asked for it, and messages arrive at once."""
        until = self.now + milliseconds * MILLISECOND
        for _ in range(20_000):
            wakes = [one.replica.wake_at for one in self.nodes if one.replica is not None]
            due = min((at for at in wakes if at is not None), default=until)
            if due > until:
                break
            self.now = Instant(max(due, self.now))
            for node in self.nodes:
                wake = None if node.replica is None else node.replica.wake_at
                if wake is not None and wake <= self.now:
                    self.give(node.number, Ticked())
            self.run()
            if self.now >= until:
                break
        self.now = Instant(until)

    def rouse(self, *numbers: int) -> None:
        for number in numbers:
            self.give(number, Ticked())

    def silence(self, leader: int) -> None:
        """Let nobody hear the leader's heartbeats from now; the lane notices a little later."""
        for node in self.nodes:
            if node.number != leader:
                node.lane.leader_heard = self.now
        self.advance(400)
        self.rouse(*(n.number for n in self.nodes if n.number != leader and n.replica is not None))

    # The application.

    def commit(self, number: int, count: int = 1, *, run: bool = True) -> list[Head]:
        """Commit ``count`` times on a node, one frame each, one proposal for all."""
        last = self.nodes[number].replica.local_last
        events = tuple(captured(last + index + 1) for index in range(count))
        self.give(number, FramesCaptured(frames=events))
        if run:
            self.run()
        chain: list[Head] = []
        digest = self.nodes[number].replica.tip.hash
        for _ in range(count):
            chain.insert(0, self.nodes[number].frames[digest].head)
            digest = chain[0].prev_hash
        return chain

    def configure(self, number: int, config: ConfigPayload) -> None:
        self.give(
            number,
            ConfigWanted(
                config=config,
                state_root=ROOT,
                timestamp_ns=TimestampNs(BEGIN_NS),
                salt=b"s" * 16,
            ),
        )
        self.run()

    def elect(self, number: int) -> None:
        """Depose whoever leads, with its NewView, until ``number`` leads."""
        for _ in range(2 * len(self.nodes)):
            leader = next(n for n in self.nodes if n.replica and n.replica.is_leader)
            leader.lane.quorum_heard = self.now
            self.silence(leader.number)
            self.rouse(leader.number)
            self.advance(3_000)
            if self.nodes[number].replica.is_leader:
                return
        raise AssertionError(f"node {number} was not elected")


def received(sender: int, message: Message, life: int = 0) -> Received:
    return Received(
        sender=key_of(sender),
        journal_id=journal_of(sender, life),
        lineage=LINEAGE,
        message=message,
    )


def captured(
    first: int, last: int | None = None, *, flags: Flag = Flag.NONE, root: StateRoot = ROOT
) -> FrameCaptured:
    """The commits ``first`` .. ``last``; one commit without ``last``."""
    is_partial = bool(flags & Flag.PARTIAL)
    return FrameCaptured(
        payload=b"pages",
        flags=flags,
        state_root=NO_ROOT if is_partial else root,
        timestamp_ns=TimestampNs(BEGIN_NS),
        salt=b"s" * 16,
        local_first=LocalNumber(first),
        local_last=LocalNumber(first if last is None else last),
    )


def piece(first: int, flags: Flag = Flag.NONE) -> FrameCaptured:
    """A PARTIAL of the run whose first commit will be ``first``."""
    return captured(first, first - 1, flags=flags | Flag.PARTIAL)
