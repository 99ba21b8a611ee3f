"""A node: the driver of one shard's replica, as the daemon is, on a disk that survives it.

Theory of operation
===================

The node performs effects in their order. With a slow disk a `Persist` takes time: what follows it,
also the effects of later steps, waits in a queue, and dies with the node. An armed crash lets only
some of the next effects happen. So every cut through the order of effects is tried.

Two things are given to the scheduler, so that nothing is called from inside a step: what the
network brings, and what the node asks itself (roots to judge, frames to apply, commits to capture).
Each carries the number of the node's present run; what belongs to an older run is dropped.

The application's side of a node stands in `simulator.application`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from basenet.engine.effects import (
    Effect,
    EpochBegan,
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
    Event,
    FinalReceived,
    FramesReceived,
    Instant,
    Judged,
    PeerLost,
    Received,
    Ticked,
)
from basenet.engine.pulse import PulseEffect, Rouse, SendPulse
from basenet.engine.replica import Replica
from basenet.engine.voting import REFUSED
from basenet.testing.simulator.adopting import Adopting, StateOffered
from basenet.testing.simulator.application import Application
from basenet.testing.simulator.chance import stream
from basenet.testing.simulator.checkers import NodeRecord, Violation
from basenet.testing.simulator.clock import MILLISECOND, LocalClock
from basenet.testing.simulator.disk import Disk
from basenet.testing.simulator.faults import Crash
from basenet.testing.simulator.network import BULK, HEARTBEATS, ORDINARY
from basenet.testing.simulator.serving import final_pieces
from basenet.testing.simulator.state import commits_of, expected_root
from basenet.testing.simulator.watched import WatchedPulse
from basenet.units import FrameHash, JournalId, PublicKeyBytes, Seq, StateRoot
from basenet.wire.frame import Head, Kind
from basenet.wire.message import Heartbeat, HeartbeatAck, Message
from basenet.wire.payload import decode_config
from basenet.wire.signature import AnySigner

if TYPE_CHECKING:
    from basenet.testing.simulator.byzantine import Liar
    from basenet.testing.simulator.world import World

_GREETING_EVERY = 50 * MILLISECOND
_TICKS_MAX = 20
# Written out, a union would be made anew for each message.
_PULSES = (Heartbeat, HeartbeatAck)
_EVENTS = (FramesReceived, FinalReceived)
_CRASH_PATIENCE = 600 * MILLISECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldPersist(Persist):
    """A `Persist`, and what the engine told of the step that it makes durable.

    The trace is that of a step which happened: a crash before the `Persist` takes both.
    """

    told: tuple[dict[str, object], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the engine told of a step that changed nothing durable."""

    told: tuple[dict[str, object], ...]


class Envelope(NamedTuple):
    """What a connection brings: who is at its other end, and what came."""

    key: PublicKeyBytes
    journal_id: JournalId
    jcount: int
    what: Any


class Node:
    """One machine with its disk, its clock, its application and, while it is up, its replica."""

    def __init__(
        self, world: "World", place: int, name: str, signer: AnySigner, disk: Disk
    ) -> None:
        self.world = world
        self.place = place
        self.name = name
        self.signer = signer
        self.key = signer.public
        self.disk = disk
        self.record = NodeRecord(name, world.truth, disk.ballot.final.height)
        self.chance = stream(world.seed, "node", place)
        drift = world.scenario.drift_ppm
        self.clock = LocalClock(self._draw_uptime(), self.chance.randint(-drift, drift))
        self.replica: Replica | None = None
        self.pulse: WatchedPulse | None = None
        self.application = Application(self)
        self.adopting = Adopting(self)
        self.run = 0
        self.is_powered = False
        self.is_honest = True
        self.is_twin = False
        self.liar: Liar | None = None
        self.paused_until = 0
        self.disk_latency = 0
        self.false_verdicts = 0
        self.writable_until = 0
        self.crash: Crash | None = None
        self._queue: deque[Effect | Told] = deque()
        self._told: list[dict[str, object]] = []
        self._to_apply: list[Head] = []
        self._ticks = 0
        self._ticked_at = 0
        self._tick_due: Instant | None = None
        self._pulse_due: Instant | None = None
        self._do: dict[type[Any], Callable[[Any], object]] = {
            Persist: self._persist,
            ToldPersist: self._persist_told,
            Told: self._tell,
            Send: self._send,
            SendFrames: self._send_frames,
            ServeFinal: self._serve_final,
            Judge: self._judge,
            Finalize: self._finalize,
            Orphan: self._orphan,
            Fence: self._fence,
            EpochBegan: self._epoch_began,
            ReadReady: self._read_ready,
            Report: self._report,
            SendPulse: self._send_pulse,
            Rouse: self._rouse,
        }

    @property
    def now(self) -> Instant:
        """What this node's clock shows."""
        return self.clock.read(self.world.scheduler.now)

    def _draw_uptime(self) -> int:
        return self.chance.randrange(1_000 * MILLISECOND, 10**15)

    # Life and death.

    def boot(self, _: object = None) -> None:
        """Start on what the disk holds, once enough voters know that it is not an old one."""
        if self.replica is not None:
            return
        self.is_powered = True
        if self.world.scenario.has_roll_backs and not self._greet():
            scheduler = self.world.scheduler
            scheduler.at(scheduler.now + _GREETING_EVERY, self.boot)
            return
        self._start()

    def _greet(self) -> bool:
        """Say HELLO to the voters; return whether enough have compared the journal's count (Q9)."""
        return self.world.mishaps.greets(self)

    def _start(self) -> None:
        self.begin(None)

    def begin(self, pulse: WatchedPulse | None) -> None:
        """Make the replica from the disk; ``pulse``: the lane that goes on, None: another one."""
        self.run += 1
        disk, now = self.disk, self.now
        self._queue.clear()
        self._to_apply = []
        self._tick_due = self._pulse_due = None
        self.paused_until = 0
        me = (self.key, disk.journal_id)
        self.pulse = pulse or WatchedPulse(
            me=me,
            signer=self.signer,
            verify=self.world.notary.verify,
            boot_nonce=self.chance.randbytes(8),
            timing=self.world.timing,
            now=now,
        )
        final = disk.ballot.final
        self.replica = Replica(
            scope=self.world.scope,
            me=me,
            signer=self.signer,
            verify=self.world.notary.verify,
            ballot=disk.ballot,
            heads=[
                frame.head
                for frame in disk.frames.values()
                if frame.head.seq > final.height or frame.head.hash == final.hash
            ],
            configs={
                digest: decode_config(frame.payload)
                for digest, frame in disk.frames.items()
                if frame.head.kind == Kind.CONFIG
            },
            database=disk.place,
            local_last=disk.local_framed,
            liveness=self.pulse,
            timing=self.world.timing,
            now=now,
            draw=self.chance.randint,
            trace=None if self.world.tracer(self) is None else self._told.append,
        )
        self.application.restart()
        self.world.note(self, "boots", disk.place)
        self._perform(self.replica.boot(now))
        if self.replica is not None:
            self._catch_up()
        self._settle()

    def die(self, down: int, *, is_machine: bool) -> None:
        """Lose everything that is not on the disk, for a while."""
        self.world.note(self, "dies", None)
        self.world.crashes += 1
        self.run += 1
        self.replica = self.pulse = None
        self._told.clear()
        self.crash = None
        self.writable_until = 0
        self._queue.clear()
        if is_machine:
            self.clock.restart(self.world.scheduler.now, self._draw_uptime())
        self.world.tell_loss(self)
        self.world.scheduler.at(self.world.scheduler.now + down, self.boot)

    def recover(self) -> None:
        """End all that is bad for this node: the chaos is over."""
        self.crash = None
        self.paused_until = 0
        self.disk_latency = 0
        self.false_verdicts = 0
        self.application.calm()
        if not self.is_twin or (self.liar is not None and self.liar.has_twin):
            self.boot()

    def describe(self) -> str:
        """Return where this node stands."""
        ballot, replica = self.disk.ballot, self.replica
        if replica is None:
            return f"{self.name} down"
        return (
            f"{self.name}{'' if self.is_honest else ' lies'} epoch {ballot.epoch} "
            f"view {ballot.view} final {ballot.final.height} tip {replica.tip.seq} "
            f"database {self.disk.place[0]}"
        )

    def arm_crash(self, fault: Crash) -> None:
        """Die at the next effects, after a share of them; soon in any case."""
        if self.replica is None:
            return
        self.crash = fault
        self.later(_CRASH_PATIENCE, self._die_idle, fault)

    def _die_idle(self, fault: Crash) -> None:
        if self.crash is fault:
            self.die(fault.down, is_machine=fault.is_machine)

    def later(self, delay: int, action: Callable[[Any], object], argument: object) -> None:
        """Let ``action(argument)`` happen after ``delay``, unless this run has ended by then."""
        scheduler = self.world.scheduler
        scheduler.at(scheduler.now + delay, self._run_later, (self.run, action, argument))

    def _run_later(self, what: tuple[int, Callable[[Any], object], object]) -> None:
        run, action, argument = what
        if run != self.run or self.replica is None:
            return
        if self.paused_until > self.world.scheduler.now:
            self.world.scheduler.at(self.paused_until, self._run_later, what)
            return
        action(argument)

    # What the network brings.

    def deliver(self, envelope: Envelope) -> None:
        """Take in a message, frames or a heartbeat from a connection."""
        pulse, world = self.pulse, self.world
        if pulse is None:
            return
        if self.paused_until > world.scheduler.now:
            world.scheduler.at(self.paused_until, self.deliver, envelope)
            return
        what = envelope.what
        if world.scenario.has_roll_backs:
            name = (envelope.key, envelope.journal_id)
            self.disk.known[name] = max(self.disk.known.get(name, 0), envelope.jcount)
        if self.liar is not None:
            self.liar.hears(self, envelope.key, what)
        if isinstance(what, _PULSES):
            pulse.is_changed = True
            self._perform_now(pulse.received(envelope.key, envelope.journal_id, what, self.now))
            self._settle()
        elif isinstance(what, _EVENTS):
            self.step(what)
        elif isinstance(what, StateOffered):
            self.adopting.offered(envelope.key, what)
        else:
            self.step(
                Received(
                    sender=envelope.key,
                    journal_id=envelope.journal_id,
                    lineage=self.world.scope.lineage,
                    message=what,
                )
            )

    def lose(self, peer: PublicKeyBytes) -> None:
        """See all connections to ``peer`` end, and a redial refused (Q16)."""
        self.step(PeerLost(peer=peer))

    def step(self, event: Event) -> None:
        """Give an event to the replica and do what follows."""
        assert self.replica is not None, "a step of a node that is down"
        world = self.world
        if world.transcript is not None:
            world.note(self, "gets", event)
        self._perform(self.replica.step(event, self.clock.read(world.scheduler.now)))
        self._settle()

    def _settle(self) -> None:
        """See what has changed: when to wake, whether the application may write, what to seal."""
        replica, pulse = self.replica, self.pulse
        if replica is None or pulse is None:
            return
        now = self.clock.read(self.world.scheduler.now)
        wake = replica.wake_at
        if wake is not None and (self._tick_due is None or wake < self._tick_due):
            self._tick_due = wake
            self._at_local(wake, self._tick, wake)
        if pulse.is_changed:
            pulse.is_changed = False
            wake = pulse.wake_at
            if wake is not None and (self._pulse_due is None or wake < self._pulse_due):
                self._pulse_due = wake
                self._at_local(wake, self._beat, wake)
        self._note_writable(replica.writable_until(now), now)
        if self.disk.waiting:
            self.application.seal(now)

    def _note_writable(self, until: Instant, now: Instant) -> None:
        """Tell the world until when, in true time, the application may write."""
        world = self.world
        if until <= now:
            self.writable_until = 0
            return
        self.writable_until = min(self.clock.true_time(until), world.horizon)
        if self.is_honest:
            world.check_alone(self)

    def _at_local(self, when: Instant, action: Callable[[Any], object], argument: object) -> None:
        scheduler = self.world.scheduler
        at = max(self.clock.true_time(when), scheduler.now)
        scheduler.at(at, self._run_later, (self.run, action, argument))

    def _tick(self, due: Instant) -> None:
        if self._tick_due == due:
            self._tick_due = None
        assert self.replica is not None, "a tick of a node that is down"
        wake = self.replica.wake_at
        if wake is not None and wake <= self.now:
            self._check_rest(wake)
            self.step(Ticked())
        else:
            self._settle()

    def _check_rest(self, wake: Instant) -> None:
        """Refuse a replica that wants to be woken again and again without an end."""
        now = self.world.scheduler.now
        self._ticks = self._ticks + 1 if now == self._ticked_at else 0
        self._ticked_at = now
        if self._ticks > _TICKS_MAX:
            raise self.fail(f"rest: is woken for {wake} again and again; {self.describe()}")

    def _beat(self, due: Instant) -> None:
        if self._pulse_due == due:
            self._pulse_due = None
        assert self.pulse is not None, "a heartbeat of a node that is down"
        self.pulse.is_changed = True
        self._perform_now(self.pulse.tick(self.now))
        self._settle()

    # Effects.

    def _bind(self, effects: Sequence[Effect | Told]) -> list[Effect | Told]:
        """Tie what the engine told of this step to what makes the step durable."""
        told = tuple(self._told)
        self._told.clear()
        for index, effect in enumerate(effects):
            if isinstance(effect, Persist):
                bound = ToldPersist(
                    own=effect.own, frames=effect.frames, ballot=effect.ballot, told=told
                )
                return [*effects[:index], bound, *effects[index + 1 :]]
        return [Told(told=told), *effects]

    def _perform(self, effects: Sequence[Effect | Told]) -> None:
        """Do ``effects`` in order, behind what still waits for the disk."""
        if self._told:
            effects = self._bind(effects)
        if self.crash is not None and _is_struck(self.crash, effects):
            self._perform_cut(effects, self.crash)
        elif self._queue:
            self._queue.extend(effects)
        elif self.disk_latency:
            self._queue.extend(effects)
            self._drain()
        else:
            do = self._do
            for effect in effects:
                do[type(effect)](effect)

    def _perform_now(self, effects: list[PulseEffect]) -> None:
        """Do what the lane of heartbeats wants, which never waits."""
        for effect in effects:
            self._do[type(effect)](effect)

    def _perform_cut(self, effects: Sequence[Effect | Told], crash: Crash) -> None:
        """Do some of the effects and die; in the middle of an `Orphan`, too."""
        done = int(crash.cut * (len(effects) + 1))
        self.world.note(self, "is cut", f"after {done} of {len(effects)} effects")
        if not self._queue:
            for effect in effects[:done]:
                self._do[type(effect)](effect)
            following = effects[done] if done < len(effects) else None
            if isinstance(following, Orphan):
                self._bundle(following.heads, following.kept_height)
        self.die(crash.down, is_machine=crash.is_machine)

    def _drain(self, _: object = None) -> None:
        """Do what waits, up to and without the next `Persist` that takes time."""
        queue = self._queue
        while queue:
            if isinstance(queue[0], Persist) and self.disk_latency:
                delay = 1 + int(self.chance.random() * self.disk_latency)
                self.later(delay, self._persist_queued, None)
                return
            effect = queue.popleft()
            self._do[type(effect)](effect)

    def _persist_queued(self, _: object) -> None:
        """Do the `Persist` that waited for the disk, and what it held up."""
        effect = self._queue.popleft()
        self._do[type(effect)](effect)
        self._drain()
        self._settle()

    @property
    def is_behind(self) -> bool:
        """Whether effects still wait for the disk."""
        return bool(self._queue)

    @property
    def is_up(self) -> bool:
        """Whether a replica runs, paused or not."""
        return self.replica is not None

    @property
    def is_writable(self) -> bool:
        """Whether the application may write at this instant."""
        return (
            self.replica is not None
            and self.paused_until <= self.world.scheduler.now
            and self.replica.is_writable(self.now)
            and not self._is_undoing()
        )

    def can_seal(self, now: Instant) -> bool:
        """Whether the replica takes frames, and nothing is about to be undone first."""
        return self.replica is not None and self.replica.can_seal(now) and not self._is_undoing()

    def _is_undoing(self) -> bool:
        return bool(self._queue) and any(isinstance(effect, Orphan) for effect in self._queue)

    def _persist(self, effect: Persist) -> None:
        if self.is_honest:
            self.record.on_persist(effect)
        self.application.check_own(effect)
        self.disk.persist(effect)
        if self.world.transcript is not None:
            self.world.note(self, "persists", effect)

    def _persist_told(self, effect: ToldPersist) -> None:
        self._persist(effect)
        self._tell(effect)

    def _tell(self, effect: ToldPersist | Told) -> None:
        trace = self.world.tracer(self)
        assert trace is not None, "an untraced node has nothing to tell"
        for event in effect.told:
            trace(event)

    def _send(self, effect: Send) -> None:
        self.post(effect.to, ORDINARY, effect.message)

    def _send_frames(self, effect: SendFrames) -> None:
        frames = self.disk.frames
        heads = effect.heads
        # Any cut is as good as another.
        piece = self.chance.choice((1, 3, 64)) if len(heads) > 1 else 1
        for start in range(0, len(heads), piece):
            cut = tuple(frames[head.hash] for head in heads[start : start + piece])
            self.post(effect.to, BULK, FramesReceived(sender=self.key, frames=cut))

    def _serve_final(self, effect: ServeFinal) -> None:
        if self.disk.is_pruned(effect.above_height):
            self.adopting.offer(effect.to, effect.above_height)
            return
        for piece in final_pieces(self.disk, self.key, effect.above_height):
            self.post((effect.to,), BULK, piece)

    def post(
        self,
        to: tuple[PublicKeyBytes, ...],
        lane: int,
        what: Message | Heartbeat | HeartbeatAck | FramesReceived | FinalReceived | StateOffered,
    ) -> None:
        """Send something to the nodes with these keys, if this node is honest."""
        if self.liar is not None:
            self.liar.sends(self, to, lane, what)
        else:
            self.transmit(to, lane, what)

    def transmit(self, to: tuple[PublicKeyBytes, ...], lane: int, what: object) -> None:
        """Give something to the network."""
        world = self.world
        if world.transcript is not None:
            world.note(self, f"sends to {world.names(to)}", what)
        envelope = Envelope(self.key, self.disk.journal_id, self.disk.jcount, what)
        for key in to:
            for node in world.by_key[key]:
                if node is not self:
                    world.network.send(self.place, node.place, lane, node.deliver, envelope)

    def _send_pulse(self, effect: SendPulse) -> None:
        self.post((effect.to,), HEARTBEATS, effect.message)

    def _rouse(self, _: Rouse) -> None:
        self.later(0, self._step_later, Ticked())

    def _step_later(self, event: Event) -> None:
        self.step(event)

    def _judge(self, effect: Judge) -> None:
        """Compute the roots; the answer comes after a while."""
        wrong: FrameHash | None = None
        root = self.root_below(effect.heads[0])
        for head in effect.heads:
            frame = self.disk.frames[head.hash]
            expected = expected_root(root, frame)
            if head.state_root != expected:
                wrong = head.hash
                break
            root = root if head.is_partial else expected
        if wrong is None and self.false_verdicts:
            self.false_verdicts -= 1
            wrong = effect.heads[0].hash
        verdict = Judged(
            epoch=effect.epoch, view=effect.view, hash=effect.heads[-1].hash, wrong=wrong
        )
        self.later(self.world.judging_time(self.chance), self._step_later, verdict)

    def root_below(self, head: Head) -> StateRoot:
        """Return the state root of the last whole transaction below ``head``."""
        below = self.disk.frames[head.prev_hash].head
        while below.is_partial:
            below = self.disk.frames[below.prev_hash].head
        return below.state_root

    def _finalize(self, effect: Finalize) -> None:
        world = self.world
        if self.is_honest:
            self.record.on_final(effect.heads, effect.certificate, self.disk)
            world.finals = max(world.finals, self.record.final)
        if effect.certificate is not None:
            self.disk.certificates[effect.certificate.height] = effect.certificate
        if world.transcript is not None:
            world.note(self, "calls final", effect)
        if effect.is_own:
            self.application.check_held(effect.heads)
            return
        if not self._to_apply:
            self.later(world.applying_time(self.chance), self.apply, None)
        self._to_apply += effect.heads

    def _catch_up(self) -> None:
        """After a crash: what the journal knows to be final and was not told, or not applied."""
        disk, final = self.disk, self.disk.ballot.final
        told = self.record.final if self.is_honest else final.height
        if untold := disk.heads_between(told, final.height):
            self.record.on_final(untold, disk.certificates.get(final.height), disk)
            self.world.finals = max(self.world.finals, self.record.final)
        mended = disk.place[0] if disk.mending is None else disk.mending.head.seq
        self._to_apply = list(disk.heads_between(mended, final.height))
        if disk.mending is not None:
            self.adopting.mend_later()
        elif self._to_apply:
            self.later(self.world.applying_time(self.chance), self.apply, None)

    def apply(self, _: object) -> None:
        """Give the database what is final and not there yet, once it is mended."""
        if self.disk.mending is not None:
            return
        heads, self._to_apply = self._to_apply, []
        if not heads:
            return
        self.application.check_held([head for head in heads if head.seq <= self.disk.place[0]])
        for head in heads:
            if head.seq <= self.disk.place[0]:
                continue
            frame = self.disk.frames[head.hash]
            self.application.check_free()
            if self.is_honest:
                self.record.on_apply(frame, self.disk.place)
            self.disk.apply(frame)
        self.step(Applied(seq=heads[-1].seq))

    def _orphan(self, effect: Orphan) -> None:
        self._bundle(effect.heads, effect.kept_height)
        self._undo(effect.heads, effect.kept_height)

    def _bundle(self, heads: tuple[Head, ...], kept_height: Seq) -> None:
        """Keep what is lost, before anything is undone."""
        self.application.slip()
        self.disk.capture()
        kept = self.disk.bundle(heads)
        if self.is_honest:
            self.record.on_orphans(kept, kept_height, self.world.orphans)
        if self.world.transcript is not None:
            self.world.note(self, f"orphans {sorted(kept.values())} above {kept_height}", None)

    def _undo(self, heads: tuple[Head, ...], kept_height: Seq) -> None:
        lost = sum(len(commits_of(self.disk.frames[head.hash])) for head in heads)
        below = heads[0].prev_hash if heads else self.disk.place[1]
        self.disk.roll_back((kept_height, below), self.disk.place_commits - lost)
        self.application.forget()

    def _fence(self, _: Fence) -> None:
        self.application.slip()

    def _epoch_began(self, effect: EpochBegan) -> None:
        self.world.epoch = max(self.world.epoch, effect.epoch)

    def _read_ready(self, effect: ReadReady) -> None:
        self.world.readers.answered(self, effect)

    def _report(self, effect: Report) -> None:
        self.world.reports[effect.what] += 1
        if self.world.transcript is not None:
            self.world.note(self, "reports", effect.what)
        if self._is_slander(effect):
            raise self.fail(f"honesty: accuses an honest voter of {effect.what}")

    def _is_slander(self, effect: Report) -> bool:
        """Return whether an honest node accuses one that did nothing wrong.

        Who lost its disk has forgotten what it voted for, and whoever leads may go on proposing
        above a frame that a voter refuses.
        """
        excused = self.world.liars | self.world.forgetful
        is_accusation = bool(effect.proof) and effect.what != REFUSED
        return is_accusation and self.is_honest and effect.peer not in excused

    def fail(self, why: str) -> Violation:
        """Return a violation that names this node."""
        sort, _, text = why.partition(": ")
        return Violation(f"{sort}: {self.name} {text}")


def _is_struck(crash: Crash, effects: Sequence[Effect | Told]) -> bool:
    """Return whether these are effects that an armed crash waits for."""
    if not crash.is_at_promise:
        return bool(effects)
    has_ballot = any(isinstance(one, Persist) and one.ballot is not None for one in effects)
    return has_ballot and any(isinstance(one, Send) for one in effects)
