"""Nodes with drifting clocks and a network that loses, repeats, delays and reorders; virtual time.

Each node runs a real `Pulse`. What its replicas would do is modelled as little as can be: a node
persists the view of each shard, enters the next one only after `promised_until`, and follows or
leads only what a quorum entered. One process more, the *clone*, has the key of a voter and another
journal: it follows whatever it likes and is bound by nothing, since it is no voter.

The property, at every true instant: two nodes never hold the lease of one shard in two views. And
whoever once asked for the lease that a shard shares with others knows that shard's lease from it
for as long as it is one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from basenet.engine.events import Instant
from basenet.engine.lease import LONG_AGO, SharedLease
from basenet.engine.limits import MILLISECOND, Timing
from basenet.engine.liveness import Member
from basenet.engine.pulse import Pulse, Rouse, SendPulse
from basenet.units import Epoch, JournalId, Lineage, PublicKeyBytes, View
from basenet.wire.message import Heartbeat, HeartbeatAck

EPOCH = Epoch(1)
# Half of the drift that `Timing` allows between two clocks, to either side.
SENT_MAX = 100
RATES = [995, 1000, 1005]
LINEAGES = [Lineage(bytes([65 + number]) * 16) for number in range(3)]


class IdealSigner:
    """Signs with a hash that only the right key's holder asks for."""

    def __init__(self, public: PublicKeyBytes) -> None:
        self.public = public

    def sign(self, message: bytes) -> bytes:
        return sha256(self.public + message).digest() * 2


def is_signed_ideally(public: bytes, signature: bytes, message: bytes) -> bool:
    return signature == sha256(public + message).digest() * 2


def member_of(number: int) -> Member:
    return PublicKeyBytes(bytes([number + 1]) * 32), JournalId(bytes([number + 1]) * 16)


def make_pulse(me: Member, run: int, timing: Timing, now: Instant) -> Pulse:
    return Pulse(
        me=me,
        signer=IdealSigner(me[0]),
        verify=is_signed_ideally,
        boot_nonce=run.to_bytes(8, "big"),
        timing=timing,
        now=now,
    )


MakePulse = Callable[[Member, int, Timing, Instant], Pulse]


@dataclass(frozen=True)
class Release:
    """The message by which a leader hands over."""

    lineage: Lineage
    view: int


@dataclass
class Packet:
    """Something on its way."""

    sender: Member
    to: PublicKeyBytes
    message: Heartbeat | HeartbeatAck | Release


@dataclass
class Process:
    """One node: its clock, its durable views and its present run."""

    member: Member
    rate: int
    offset: int
    is_voter: bool
    run: int = 0
    pulse: Pulse = field(init=False)
    # What the present run once answered for each shard.
    shared: set[tuple[Lineage, SharedLease]] = field(default_factory=set)
    views: dict[Lineage, int] = field(default_factory=dict)
    leading: dict[Lineage, int] = field(default_factory=dict)


class OverlapError(AssertionError):
    """Two leases of one shard at one true instant."""


class SharedError(AssertionError):
    """A shared lease is another one than that of a shard that shares it."""


class World:
    """``nodes`` voters and a clone of the last one's key."""

    def __init__(
        self,
        rates: list[int],
        *,
        timing: Timing | None = None,
        make: MakePulse = make_pulse,
        leaves_view: bool = True,
        compares_shared: bool = True,
    ) -> None:
        """``leaves_view``: whether a leader that hands over durably leaves its view before.

        ``compares_shared``: whether shared leases are compared with those of their shards.
        """
        self.time = 5_000 * MILLISECOND
        self.timing = timing or Timing()
        self.make = make
        self.leaves_view = leaves_view
        self.compares_shared = compares_shared
        self.net: list[Packet] = []
        self.sent: list[Packet] = []  # what was ever sent, for the replayer
        self.runs = 0
        self.leases_seen = 0
        self.shared_seen = 0
        self.roused: list[tuple[Process, tuple[Lineage, ...]]] = []
        count = len(rates)
        self.voters = [
            Process(
                member=member_of(number),
                rate=rate,
                offset=number * 777 * MILLISECOND,
                is_voter=True,
                views=dict.fromkeys(LINEAGES, 0),
            )
            for number, rate in enumerate(rates)
        ]
        key = member_of(count - 1)[0]
        clone = Process(
            member=(key, JournalId(b"c" * 16)),
            rate=1000,
            offset=0,
            is_voter=False,
            views=dict.fromkeys(LINEAGES, 0),
        )
        self.processes = [*self.voters, clone]
        self.quorum = count // 2 + 1
        self.entered: dict[tuple[Lineage, int], set[int]] = {}
        self.established: set[tuple[Lineage, int]] = set()
        for process in self.processes:
            self._boot(process)

    # Clocks.

    def clock(self, process: Process) -> Instant:
        return Instant(process.offset + self.time * process.rate // 1000)

    def advance(self, duration: int) -> None:
        self.time += duration
        self.check()

    def advance_to(self, process: Process, until: int) -> None:
        """Let time pass until the clock of ``process`` shows ``until``, and not a tick longer."""
        missing = until - self.clock(process)
        if missing > 0:
            self.time += -(-missing * 1000 // process.rate)
            while self.clock(process) < until:
                self.time += 1
            self.check()

    # The network.

    def perform(self, process: Process, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, SendPulse):
                self.send(Packet(process.member, effect.to, effect.message))
            else:
                assert isinstance(effect, Rouse)
                assert effect.lineages
                self.roused.append((process, effect.lineages))

    def send(self, packet: Packet) -> None:
        self.net.append(packet)
        self.sent.append(packet)
        del self.sent[:-SENT_MAX]

    def deliver(self, packet: Packet, *, to_clone: bool = False) -> None:
        targets = [process for process in self.processes if process.member[0] == packet.to]
        process = targets[-1] if to_clone else targets[0]
        now = self.clock(process)
        message = packet.message
        if isinstance(message, Release):
            if process.views[message.lineage] == message.view:
                process.pulse.release(message.lineage)
        else:
            key, journal_id = packet.sender
            self.perform(process, process.pulse.received(key, journal_id, message, now))
        self.check()

    def flush(self, members: list[Process]) -> None:
        """Deliver every pulse between these, in order, until nothing is left."""
        chosen = {process.member for process in members}
        keys = {process.member[0]: process for process in members}
        while True:
            found = next(
                (
                    packet
                    for packet in self.net
                    if packet.sender in chosen
                    and packet.to in keys
                    and not isinstance(packet.message, Release)
                ),
                None,
            )
            if found is None:
                return
            self.net.remove(found)
            self.deliver(found, to_clone=not keys[found.to].is_voter)

    def beat(self, process: Process) -> None:
        """Let the next timer of the lane come, if it comes within a beat."""
        wake_at = process.pulse.wake_at
        if wake_at is None or wake_at > self.clock(process) + self.timing.heartbeat:
            return
        self.advance_to(process, wake_at)
        self.perform(process, process.pulse.tick(self.clock(process)))
        self.check()

    # What replicas do.

    def leader_of(self, view: int) -> Process:
        return self.voters[view % len(self.voters)]

    def enter(self, process: Process, lineage: Lineage, view: int) -> bool:
        """Enter a higher view, if no promise forbids it: first the exception, then the NewView."""
        now = self.clock(process)
        if not process.is_voter or view <= process.views[lineage]:
            return False
        if process.pulse.promised_until(lineage) > now:
            return False
        self._leave(process, lineage, view)
        self.check()
        return True

    def _leave(self, process: Process, lineage: Lineage, view: int) -> None:
        process.pulse.refuse(lineage, self.clock(process))
        self._stop_leading(process, lineage)
        process.views[lineage] = view
        self.entered.setdefault((lineage, view), set()).add(self.voters.index(process))

    def _stop_leading(self, process: Process, lineage: Lineage) -> None:
        if process.leading.pop(lineage, None) is not None:
            process.pulse.unlead(lineage, self.clock(process))

    def establish(self, lineage: Lineage, view: int) -> None:
        """Let the leader of ``view`` begin, if a quorum entered it and it is still there."""
        leader = self.leader_of(view)
        entered = self.entered.get((lineage, view), set())
        if leader.views[lineage] == view and (view == 0 or len(entered) >= self.quorum):
            self.established.add((lineage, view))
            self._lead(leader, lineage, view)

    def _lead(self, process: Process, lineage: Lineage, view: int) -> None:
        followers = tuple(other.member for other in self.voters if other is not process)
        process.leading[lineage] = view
        now = self.clock(process)
        process.pulse.lead(lineage, EPOCH, View(view), followers, self.quorum, now)
        self.check()

    def adopt(self, process: Process, lineage: Lineage) -> None:
        """Follow the highest established view of ``lineage`` that is not below one's own."""
        views = [view for known, view in self.established if known == lineage]
        view = max(views, default=-1)
        leader = self.leader_of(view)
        if view < process.views[lineage] or leader is process:
            return
        self._stop_leading(process, lineage)
        process.views[lineage] = view
        now = self.clock(process)
        process.pulse.follow(lineage, EPOCH, View(view), leader.member, now)
        self.check()

    def elect(self, lineage: Lineage, members: list[Process], *, is_patient: bool) -> None:
        """Let these enter the next view that one of them leads, as early as they may."""
        highest = max(process.views[lineage] for process in self.voters)
        leaders = [self.leader_of(view) for view in range(highest + 1, highest + 9)]
        view = next(
            (highest + 1 + index for index, who in enumerate(leaders) if who in members), None
        )
        if view is None:
            return
        for process in members:
            if is_patient and process.is_voter:
                self.advance_to(process, process.pulse.promised_until(lineage))
            self.enter(process, lineage, view)
        self.establish(lineage, view)

    def release(self, process: Process, lineage: Lineage) -> None:
        """Give the lease back, and say so."""
        view = process.leading.get(lineage)
        if view is not None:
            self._stop_leading(process, lineage)
            if self.leaves_view:
                self._leave(process, lineage, view + 1)
            for other in self.voters:
                if other is not process:
                    release = Release(lineage, view)
                    self.send(Packet(process.member, other.member[0], release))

    def restart(self, process: Process, *, is_slow: bool) -> None:
        """Forget all but the views; lead what it led, follow (unless slow) what it followed."""
        self._boot(process)
        for lineage, view in process.views.items():
            if (lineage, view) not in self.established:
                continue
            if self.leader_of(view) is process:
                self._lead(process, lineage, view)
            elif not is_slow:
                now = self.clock(process)
                leader = self.leader_of(view).member
                process.pulse.follow(lineage, EPOCH, View(view), leader, now)
        self.check()

    def stutter(self, process: Process, pause: int) -> None:
        """Restart twice; what was asked in between is answered late (mistake 12)."""
        self.restart(process, is_slow=False)
        self.beat(process)
        asked = [packet for packet in self.net if packet.sender == process.member]
        for packet in asked:
            self.net.remove(packet)
            if not isinstance(packet.message, Release):
                self.deliver(packet)
        answers = [packet for packet in self.net if packet.to == process.member[0]]
        self.advance(pause)
        self.restart(process, is_slow=False)
        self.beat(process)
        for packet in answers:
            self.net.remove(packet)
            self.deliver(packet)

    def _boot(self, process: Process) -> None:
        self.runs += 1
        process.run = self.runs
        process.leading = {}
        process.shared = set()
        now = self.clock(process)
        process.pulse = self.make(process.member, process.run, self.timing, now)

    # The property.

    def holders(self, lineage: Lineage) -> dict[int, Process]:
        """Return who may write ``lineage`` at this instant, by view."""
        found = {}
        for process in self.voters:
            now = self.clock(process)
            if process.pulse.lease_until(lineage, now) > now:
                found[process.leading[lineage]] = process
        return found

    def check(self) -> None:
        for lineage in LINEAGES:
            holders = self.holders(lineage)
            self.leases_seen += len(holders)
            if len(holders) > 1:
                raise OverlapError(f"{lineage!r} has leases in the views {sorted(holders)}")
        for process in self.voters if self.compares_shared else ():
            self._check_shared(process)

    def _check_shared(self, process: Process) -> None:
        """Compare what is asked of many shards at once with what each of them answers."""
        now = self.clock(process)
        for lineage in LINEAGES:
            shared = process.pulse.shared_lease(lineage)
            if shared is not None:
                process.shared.add((lineage, shared))
        for lineage, shared in list(process.shared):
            until = process.pulse.lease_until(lineage, now)
            if shared.until == LONG_AGO:
                process.shared.discard((lineage, shared))
            elif shared.until != until:
                raise SharedError(f"{lineage!r} has its lease until {until}, not {shared.until}")
            else:
                self.shared_seen += 1


def is_whole_list(message: Heartbeat | HeartbeatAck | Release) -> bool:
    """Return whether it carries a lead list in full."""
    return isinstance(message, Heartbeat) and message.base_version == 0


def step(world: World, draw: Callable[[int], int]) -> None:
    """Do one thing; ``draw(n)`` chooses a number below n."""
    processes, lineage = world.processes, LINEAGES[draw(len(LINEAGES))]
    process = processes[draw(len(processes))]
    group = [other for other in processes if draw(4)]
    kind = draw(16)
    if kind <= 3:
        world.beat(process)
        if draw(2):
            world.flush(group)
    elif kind <= 5:
        world.elect(lineage, group, is_patient=draw(4) > 0)
        if draw(2):
            leader = next((other for other in group if lineage in other.leading), process)
            for other in group:
                world.adopt(other, lineage)
            world.beat(leader)
            world.flush(group)
    elif kind == 6:
        world.adopt(process, lineage)
    elif kind == 7:
        world.flush(group)
    elif kind == 8:
        world.restart(process, is_slow=bool(draw(2)))
        if draw(2):
            world.beat(process)
            world.flush(group)
    elif kind == 9:
        world.release(process, lineage)
        if draw(2):
            world.restart(process, is_slow=False)
            world.beat(process)
            world.flush(group)
        late = [packet for packet in world.net if isinstance(packet.message, Release)]
        if draw(2):
            for packet in late:
                world.deliver(packet)
    elif kind == 10:
        world.advance([1, 50, 300, 900, 1500][draw(5)] * MILLISECOND)
    elif kind == 11:
        world.establish(lineage, 0)
    elif kind == 12:
        world.stutter(process, draw(2) * 300 * MILLISECOND)
    elif kind <= 14 and world.sent:
        # A whole list does most harm when it comes late.
        lists = [packet for packet in world.sent if is_whole_list(packet.message)]
        chosen = lists if lists and kind == 14 else world.sent
        world.deliver(chosen[draw(len(chosen))], to_clone=draw(8) == 0)
    elif world.net:
        packet = world.net.pop(draw(len(world.net)))
        if draw(4):
            world.deliver(packet, to_clone=draw(4) == 0)
    if len(world.net) > 60:
        del world.net[draw(len(world.net))]
