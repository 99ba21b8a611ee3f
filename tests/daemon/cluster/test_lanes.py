# ruff: noqa: ARG001  (the clock of a test is virtual because it is asked for)
"""The lane of heartbeats at work: what goes at once, and what goes with the next heartbeat."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
import trio.testing

from basenet.daemon.cluster.lanes import HeartbeatLane
from basenet.engine.events import Instant
from basenet.engine.limits import MILLISECOND, Timing
from basenet.engine.liveness import Member
from basenet.engine.pulse import Pulse
from basenet.units import Epoch, JournalId, Lineage, PublicKeyBytes, View
from basenet.wire.envelope import BetweenNodes, decode_envelope
from basenet.wire.hello import Hello, Lane
from basenet.wire.message import Heartbeat, HeartbeatAck
from basenet.wire.signature import Signer, is_signed

Clock = trio.testing.MockClock

TIMING = Timing()
EPOCH = Epoch(1)
BEAT_S = 0.1
DELAY_S = 0.002


def now() -> Instant:
    return Instant(int((trio.current_time() + 10_000) * 1_000_000_000))


def lineage(number: int) -> Lineage:
    return Lineage(number.to_bytes(16, "big"))


@dataclass
class Node:
    """One node's lane, and what it sent: when, to whom, what."""

    number: int
    world: "World"
    is_alive: bool = True
    writes: list[tuple[float, PublicKeyBytes, tuple[str, ...]]] = field(default_factory=list)
    waiting: dict[PublicKeyBytes, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.signer = Signer(bytes([self.number + 1]) * 32)
        self.member: Member = (self.signer.public, JournalId(bytes([self.number]) * 16))
        self.key = self.member[0]
        self.hello = Hello(
            lane=Lane.ORDINARY,
            software="basenet test",
            node_id=f"n{self.number}",
            key=self.key,
            journal_id=self.member[1],
            journal_count=1,
            boot_nonce=bytes([self.number]) * 8,
            features=0,
            members_hash=bytes(32),
            nonce=bytes(16),
        )
        self.pulse = Pulse(
            me=self.member,
            signer=self.signer,
            verify=is_signed,
            boot_nonce=bytes([self.number]) * 8,
            timing=TIMING,
            now=now(),
        )
        self.lane = HeartbeatLane(
            self.pulse,
            beat=TIMING.heartbeat,
            send=self.send,
            rouse=lambda _: None,
            journal_is_alive=lambda: self.is_alive,
            clock=now,
            late=lambda _: None,
        )

    def send(self, to: PublicKeyBytes, slot: str, data: bytes) -> None:
        """Write what was put into the slots in one go, as a connection does."""
        if to not in self.waiting:
            self.waiting[to] = {}
            self.world.nursery.start_soon(self.write, to)
        self.waiting[to][slot] = data

    async def write(self, to: PublicKeyBytes) -> None:
        await trio.lowlevel.checkpoint()
        parts = self.waiting.pop(to)
        self.writes.append((trio.current_time(), to, tuple(sorted(parts))))
        await trio.sleep(DELAY_S)
        other = self.world.nodes[to]
        for data in parts.values():
            envelope = decode_envelope(data)
            assert isinstance(envelope, BetweenNodes)
            assert isinstance(envelope.body, Heartbeat | HeartbeatAck)
            if {self.number, other.number} not in self.world.cuts:
                other.lane.received(self.hello, envelope.body)

    def lead(self, shard: int, followers: Iterable["Node"]) -> None:
        """Lead a shard that all ``followers`` follow."""
        others = tuple(followers)
        members = tuple(other.member for other in others)
        self.pulse.lead(lineage(shard), EPOCH, View(0), members, 2, now())
        self.lane.settle()
        for other in others:
            other.pulse.follow(lineage(shard), EPOCH, View(0), self.member, now())
            other.lane.settle()

    def left_ms(self, shard: int) -> float:
        """For how long the lease of a shard lasts."""
        return (self.pulse.lease_until(lineage(shard), now()) - now()) / MILLISECOND


class World:
    """Lanes that reach one another within two milliseconds."""

    def __init__(self, nursery: trio.Nursery, count: int) -> None:
        self.nursery = nursery
        self.cuts: list[set[int]] = []
        every = [Node(number, self) for number in range(count)]
        self.nodes = {node.key: node for node in every}
        self.every = every

    def take(self) -> list[tuple[str, ...]]:
        """What was written since the last call."""
        written = [what for node in self.every for _, _, what in node.writes]
        for node in self.every:
            node.writes.clear()
        return written


async def until(is_so: Callable[[], bool]) -> None:
    """Return within a millisecond after it is so."""
    for _ in range(10_000):
        if is_so():
            return
        await trio.sleep(0.001)
    raise AssertionError("it was never so")


@asynccontextmanager
async def running(count: int) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery, count)
        for node in world.every:
            nursery.start_soon(node.lane.run)
            await trio.sleep(0.031)  # nobody's timer is another's
        yield world
        nursery.cancel_scope.cancel()


async def test_idle_nodes_write_once_a_beat_to_each_other(autojump_clock: Clock) -> None:
    """Three that each lead a shard: an answer goes with a heartbeat, and leases hardly age."""
    async with running(3) as world:
        for shard, node in enumerate(world.every):
            node.lead(shard, [other for other in world.every if other is not node])
        await trio.sleep(1)
        world.take()
        least_ms = 10_000.0
        for _ in range(1_000):
            await trio.sleep(0.01)
            left = [node.left_ms(shard) for shard, node in enumerate(world.every)]
            least_ms = min(least_ms, *left)
        written = world.take()
        assert len(written) <= 10 / BEAT_S * 6 + 6
        assert written.count(("Heartbeat", "HeartbeatAck")) >= 0.95 * len(written)
        # Of 1,000: the drift, up to a beat for the answer and another until the next heartbeat.
        assert least_ms >= 1_000 - 15 - 2 * 100 - 30


async def test_what_is_new_is_answered_at_once(autojump_clock: Clock) -> None:
    """A shard that is begun has its lease within two messages, in the middle of a beat."""
    async with running(2) as world:
        one, two = world.every
        one.lead(0, [two])
        two.lead(1, [one])
        await trio.sleep(1.05)
        for shard in range(2, 12):
            one.lead(shard, [two])
            await trio.sleep(0.03)
            assert one.left_ms(shard) > 0
        # So is what is excepted, and what is not any more.
        two.pulse.refuse(lineage(0), now())
        await trio.sleep(0.11)
        assert one.left_ms(0) < one.left_ms(2)


async def test_after_a_silence_the_first_answer_goes_at_once(autojump_clock: Clock) -> None:
    """The lease is over, and somebody waits to write."""
    async with running(2) as world:
        one, two = world.every
        one.lead(0, [two])
        two.lead(1, [one])
        await trio.sleep(1)
        world.cuts.append({0, 1})
        await trio.sleep(3)
        assert one.left_ms(0) < 0
        world.cuts.clear()
        for node in world.every:
            node.writes.clear()
        await until(lambda: one.left_ms(0) > 0)
        asked = [at for at, _, what in one.writes if "Heartbeat" in what]
        assert trio.current_time() - asked[-1] <= 2 * DELAY_S + 0.002


async def test_who_sends_no_heartbeats_answers_at_once(autojump_clock: Clock) -> None:
    """There is nothing with which an answer could go; nothing of a lead that ended is kept back."""
    async with running(2) as world:
        one, two = world.every
        one.lead(0, [two])
        await trio.sleep(2)
        assert set(world.take()) == {("Heartbeat",), ("HeartbeatAck",)}
        assert one.left_ms(0) >= 1_000 - 15 - 100 - 10
        two.lead(1, [one])
        await trio.sleep(1)
        assert ("Heartbeat", "HeartbeatAck") in world.take()
        two.pulse.unlead(lineage(1), now())
        two.lane.settle()
        for _ in range(200):
            await trio.sleep(0.01)
            assert one.left_ms(0) >= 1_000 - 15 - 2 * 100 - 10
        assert not two.lane._held
        assert one.left_ms(0) >= 1_000 - 15 - 100 - 10


async def test_an_answer_that_waits_is_not_sent_once_the_journal_is_dead(
    autojump_clock: Clock,
) -> None:
    """Neither heartbeats nor answers; it goes on at once when the journal does."""
    async with running(2) as world:
        one, two = world.every
        one.lead(0, [two])
        two.lead(1, [one])
        await trio.sleep(1)
        await until(lambda: bool(two.lane._held))
        two.is_alive = False
        two.writes.clear()
        await trio.sleep(2)
        assert not two.writes
        assert two.lane.is_silent
        assert one.left_ms(0) < 0
        two.is_alive = True
        await trio.sleep(2 * BEAT_S)
        assert one.left_ms(0) > 0
