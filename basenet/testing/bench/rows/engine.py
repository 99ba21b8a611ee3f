"""The engine alone: frames made final per second, and what idle shards take.

All nodes of a cluster run in this one thread, with real Ed25519 and without any I/O: a `Persist` is
a line in a table, a message is handed over at once. So the rate is that of one core that does the
work of all nodes; a node of its own core does the work of one. Seconds are CPU time, so that other
programs do not count; a node's part of them is its part of the time that passed (asking for CPU
time at each step would cost more than the step). The time of the protocol is virtual.
"""

import gc
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from basenet.engine.ballot import FIRST_EPOCH, GENESIS_VIEW, begin_epoch
from basenet.engine.effects import Effect, Finalize, Judge, Persist, Send, SendFrames
from basenet.engine.events import (
    Applied,
    Event,
    FrameCaptured,
    FramesCaptured,
    FramesReceived,
    Instant,
    Judged,
    Received,
    Ticked,
)
from basenet.engine.genesis import Genesis, certify, write_genesis
from basenet.engine.limits import MILLISECOND, SECOND, Timing
from basenet.engine.pulse import Pulse, PulseEffect, SendPulse
from basenet.engine.replica import Replica
from basenet.testing.bench.contenders import BASENET
from basenet.testing.bench.context import Context
from basenet.testing.bench.report import Line, median, megabytes
from basenet.testing.simulator.signatures import IdealNotary, Notary, RealNotary
from basenet.units import (
    FrameHash,
    JournalId,
    Lineage,
    LocalNumber,
    PublicKeyBytes,
    ShardId,
    StateRoot,
    TimestampNs,
)
from basenet.wire.finality import Electors, found, verify_final
from basenet.wire.frame import Flag, Frame
from basenet.wire.message import Heartbeat, HeartbeatAck, Mark
from basenet.wire.payload import CommitPayload, ConfigPayload, FaultModel, Voter, encode_commit
from basenet.wire.tuples import Scope

_PAGE_BYTES: Final = 4096
_STEP: Final = MILLISECOND // 10
_IDLE_SHARDS: Final = 10_000
_IDLE_SECONDS: Final = 60


class _Node:
    """One node: its replicas by lineage, its lane of heartbeats, the time that it took."""

    def __init__(self, number: int, notary: Notary, now: Instant) -> None:
        self.signer = notary.signer(number)
        self.verify = notary.verify
        self.me = (self.signer.public, JournalId(bytes([number + 1]) * 16))
        self.replicas: dict[Lineage, Replica] = {}
        self.finals = 0
        self.finalized: list[Finalize] = []
        self.seconds = 0.0
        self.pulse = Pulse(
            me=self.me,
            signer=self.signer,
            verify=notary.verify,
            boot_nonce=bytes([number]) * 8,
            timing=Timing(),
            now=now,
        )

    def spend(self, work: Callable[[], Any]) -> Any:
        """Do ``work`` on this node's account."""
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds += time.perf_counter() - began


class _Cluster:
    """Nodes that hand everything over at once; ``now`` is virtual."""

    def __init__(self, count: int, model: FaultModel, notary: Notary) -> None:
        self.now = Instant(10 * SECOND)
        self.model = model
        self.nodes = [_Node(number, notary, self.now) for number in range(count)]
        # What may have been promised before a restart is over.
        self.now = Instant(self.now + 2 * SECOND)
        self.by_key = {node.signer.public: node for node in self.nodes}
        self.frames: dict[FrameHash, Frame] = {}
        self.queue: deque[tuple[_Node, Lineage, Event]] = deque()

    def found(self, number: int) -> Genesis:
        """Bring a shard to life, whose first leader is one node after the other."""
        lineage = Lineage((number + 1).to_bytes(16, "big"))
        order = self.nodes[number % len(self.nodes) :] + self.nodes[: number % len(self.nodes)]
        config = ConfigPayload(
            lineage=lineage,
            parent=None,
            voters=tuple(
                Voter(node_id=f"node-{index}", key=node.me[0], journal_id=node.me[1])
                for index, node in enumerate(order)
            ),
            page_size=_PAGE_BYTES,
            members_hash=bytes(32),
            fault_model=self.model,
        )
        genesis = write_genesis(
            config,
            shard=ShardId(f"s{number}"),
            state_root=StateRoot(b"r" * 32),
            timestamp_ns=TimestampNs(1),
            salt=bytes(16),
            signer=order[0].signer,
        )
        for node in self.nodes:
            self._begin(node, genesis)
        self.settle()
        return genesis

    def electors(self, genesis: Genesis) -> Electors:
        """Return who decides in a shard, for a third party that has public keys alone."""
        signatures = {node.me[0]: node.signer.sign(genesis.message) for node in self.nodes}
        return found(genesis.head, genesis.config, certify(genesis, signatures))

    def _begin(self, node: _Node, genesis: Genesis) -> None:
        head = genesis.head
        replica = Replica(
            scope=Scope(genesis.lineage, head.shard),
            me=node.me,
            signer=node.signer,
            verify=node.verify,
            ballot=begin_epoch(
                genesis.config, FIRST_EPOCH, Mark(GENESIS_VIEW, head.seq, head.hash)
            ),
            heads=[head],
            database=(head.seq, head.hash),
            local_last=LocalNumber(0),
            liveness=node.pulse,
            timing=Timing(),
            now=self.now,
            draw=lambda low, _: low,
            configs={head.hash: genesis.config},
        )
        node.replicas[genesis.lineage] = replica
        self.perform(node, genesis.lineage, replica.boot(self.now))

    def settle(self) -> None:
        """Hand over what is under way, until nothing is."""
        while self.queue:
            node, lineage, event = self.queue.popleft()
            self.step(node, lineage, event)

    def step(self, node: _Node, lineage: Lineage, event: Event) -> None:
        """Give an event to a replica and perform what follows."""
        replica = node.replicas[lineage]
        self.perform(node, lineage, node.spend(partial(replica.step, event, self.now)))

    def perform(self, node: _Node, lineage: Lineage, effects: list[Effect]) -> None:
        """Do what a replica wants, as a driver without a disk would."""
        for effect in effects:
            match effect:
                case Persist():
                    self.frames.update((own.frame.head.hash, own.frame) for own in effect.own)
                case Send():
                    event = Received(
                        sender=node.me[0],
                        journal_id=node.me[1],
                        lineage=lineage,
                        message=effect.message,
                    )
                    self.queue.extend((self.by_key[key], lineage, event) for key in effect.to)
                case SendFrames():
                    frames = tuple(self.frames[head.hash] for head in effect.heads)
                    sent = FramesReceived(sender=node.me[0], frames=frames)
                    self.queue.extend((self.by_key[key], lineage, sent) for key in effect.to)
                case Judge():
                    verdict = Judged(
                        epoch=effect.epoch,
                        view=effect.view,
                        hash=effect.heads[-1].hash,
                        wrong=None,
                    )
                    self.queue.append((node, lineage, verdict))
                case Finalize():
                    node.finals += len(effect.heads)
                    node.finalized.append(effect)
                    if not effect.is_own:
                        applied = Applied(seq=effect.heads[-1].seq)
                        self.queue.append((node, lineage, applied))
                case _:
                    pass

    def pass_time(self, duration: int) -> None:
        """Let time pass: heartbeats, and whatever replicas wanted to be woken for."""
        self.now = Instant(self.now + duration)
        for node in self.nodes:
            if (node.pulse.wake_at or self.now + 1) <= self.now:
                self.pulse(node, node.spend(partial(node.pulse.tick, self.now)))

    def pulse(self, node: _Node, effects: list[PulseEffect]) -> None:
        """Hand heartbeats and their answers over; wake the replicas that are named."""
        for effect in effects:
            if isinstance(effect, SendPulse):
                self._hand_over(node, effect.to, effect.message)
                continue
            for lineage in effect.lineages:
                self.step(node, lineage, Ticked())
        self.settle()

    def _hand_over(
        self, sender: _Node, to: PublicKeyBytes, message: Heartbeat | HeartbeatAck
    ) -> None:
        target = self.by_key[to]
        work = partial(target.pulse.received, *sender.me, message, self.now)
        self.pulse(target, target.spend(work))

    def wake(self) -> int:
        """Tick every replica that wants it now; return how many did."""
        due = [
            (node, lineage)
            for node in self.nodes
            for lineage, replica in node.replicas.items()
            if replica.wake_at is not None and replica.wake_at <= self.now
        ]
        for node, lineage in due:
            self.step(node, lineage, Ticked())
        self.settle()
        return len(due)


def engine(context: Context) -> list[Line]:
    """Frames a second in both fault models, in batches of 1 and 64; then idle shards."""
    lines = []
    for count, model in ((3, FaultModel.CRASH), (4, FaultModel.BYZANTINE)):
        for batch in (1, 64):
            frames = context.few(20_000 if batch > 1 else 4_000, 256)
            rounds = [
                _measure_rate(count, model, batch, frames)
                for _ in range(min(context.pairs, context.few(3, 1)))
            ]
            lines.append(_rate_line(context, f"{model.name.lower()}, n={count}", batch, rounds))
    return [*lines, *_idle(context)]


def _measure_rate(count: int, model: FaultModel, batch: int, frames: int) -> dict[str, float]:
    """Return frames per second of one core, and the CPU of leader and follower per frame."""
    cluster = _Cluster(count, model, RealNotary())
    genesis = cluster.found(0)
    leader, lineage = cluster.nodes[0], genesis.lineage
    payload = encode_commit(
        CommitPayload(
            page_size=_PAGE_BYTES,
            db_pages=1,
            commits=1,
            pgnos=np.array([1], dtype=np.uint32),
            pages=os.urandom(_PAGE_BYTES),
        )
    )
    for node in cluster.nodes:
        node.seconds, node.finals = 0.0, 0
        node.finalized.clear()
    captured = 0
    began, began_at = time.process_time(), time.perf_counter()
    while captured < frames:
        cluster.pass_time(_STEP)
        cluster.wake()
        replica = leader.replicas[lineage]
        assert replica.can_seal(cluster.now), "the leader is stuck"
        now = cluster.now
        event = FramesCaptured(
            frames=tuple(
                FrameCaptured(
                    payload=payload,
                    flags=Flag.NONE,
                    state_root=StateRoot(b"r" * 32),
                    timestamp_ns=TimestampNs(now + index),
                    salt=bytes(16),
                    local_first=LocalNumber(captured + index + 1),
                    local_last=LocalNumber(captured + index + 1),
                )
                for index in range(batch)
            )
        )
        captured += batch
        cluster.step(leader, lineage, event)
        cluster.settle()
    seconds = time.process_time() - began
    passed = time.perf_counter() - began_at
    assert leader.finals >= captured, "not everything that was captured became final"
    electors = cluster.electors(genesis)
    began = time.process_time()
    for one in leader.finalized:
        verify_final(electors, one.heads, one.certificate)
    verifying = time.process_time() - began
    parts = [node.seconds / passed * seconds for node in cluster.nodes]
    return {
        "frames_per_second": leader.finals / seconds,
        "leader_us_per_frame": 1e6 * parts[0] / leader.finals,
        "follower_us_per_frame": 1e6 * median(parts[1:]) / leader.finals,
        "verify_us_per_frame": 1e6 * verifying / leader.finals,
    }


def _rate_line(context: Context, what: str, batch: int, rounds: list[dict[str, float]]) -> Line:
    medians = {name: round(median([one[name] for one in rounds]), 1) for name in rounds[0]}
    context.say(f"engine {what}, batch {batch}: {medians}")
    return Line(
        what=f"engine, {what}, proposals of {batch}: all nodes on one core",
        aim="",
        answers={
            BASENET: f"{medians['frames_per_second']:,.0f} frames/s; a frame takes the leader "
            f"{medians['leader_us_per_frame']:.0f} µs, a follower "
            f"{medians['follower_us_per_frame']:.0f} µs, who verifies it from public keys "
            f"{medians['verify_us_per_frame']:.0f} µs"
        },
        is_met=None,
        facts={"rounds": rounds},
    )


def _idle(context: Context) -> list[Line]:
    """Found many shards of three nodes in this process, and let a minute pass without a commit."""
    shards = context.few(_IDLE_SHARDS, 100)
    cluster = _Cluster(3, FaultModel.CRASH, IdealNotary())
    gc.collect()
    before = _resident_bytes()
    for number in range(shards):
        cluster.found(number)
    while cluster.wake():
        cluster.pass_time(_STEP)
    gc.collect()
    size = (_resident_bytes() - before) / shards / len(cluster.nodes)
    for _ in range(40):
        cluster.pass_time(100 * MILLISECOND)
        cluster.wake()
    waiting = sum(
        replica.wake_at is not None for node in cluster.nodes for replica in node.replicas.values()
    )
    for node in cluster.nodes:
        node.seconds = 0.0
    began = time.process_time()
    for _ in range(_IDLE_SECONDS * 20):
        cluster.pass_time(50 * MILLISECOND)
    cpu = time.process_time() - began
    leases = sum(
        node.pulse.lease_until(lineage, cluster.now) > cluster.now
        for node in cluster.nodes
        for lineage in node.replicas
    )
    percent = 100 * cpu / _IDLE_SECONDS / len(cluster.nodes)
    context.say(
        f"idle: {shards} shards, {size:.0f} B each, {percent:.3f} % a node, {waiting} with a "
        f"timer, {leases} leases"
    )
    return [
        Line(
            what=f"engine, {shards:,} idle shards of 3 nodes: memory a shard and node, CPU a node",
            aim="",
            answers={
                BASENET: f"{size:,.0f} B ({megabytes(size * shards)} a node), {percent:.2f} % of a "
                f"core; {waiting} timers, {leases:,} leases held"
            },
            is_met=None,
            facts={"bytes": size, "cpu_percent": percent, "waiting": waiting, "leases": leases},
        )
    ]


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
