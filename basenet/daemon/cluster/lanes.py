"""The lane of heartbeats: what `engine.pulse` says, sent and received at once (Q7, Q16).

Theory of operation
===================

One task sleeps until the lane has something to do, and everything that may change that moment
wakes it: a replica was stepped (`settle`), a heartbeat came. Nothing here waits for a journal, a
thread or a shard. A heartbeat goes out before everything else that waits for the peer, and a newer
one takes the place of an older.

*An answer that says nothing new* goes with this node's own next heartbeat to that peer, so that two
idle nodes write once a beat to each other, and not twice. For the peer it is an answer that took up
to a beat longer: a grant counts from when its heartbeat was sent, and a promise from when that was
heard, so nothing is granted for longer. What is new goes at once: another list, other exceptions, a
refusal, and the first answer after two beats without one, since a lease may wait for it; and so
does every answer to a peer that gets no heartbeats from here.

A node whose journal does not answer sends neither heartbeats nor answers: it could not keep what
its shards decide, so somebody else must be free to lead. It is noticed by asking, at each beat.
"""

from collections.abc import Callable, Iterable
from typing import Final

import structlog
import trio

from basenet.engine.events import Instant
from basenet.engine.pulse import Pulse, PulseEffect, Rouse, SendPulse
from basenet.units import Lineage, PublicKeyBytes
from basenet.wire.envelope import BetweenNodes, encode_envelope
from basenet.wire.hello import Hello
from basenet.wire.message import Heartbeat, HeartbeatAck

log = structlog.get_logger()

_NS_PER_SECOND: Final = 1_000_000_000
# A lane that is due again and again must leave room for everything else.
_PAUSE_S: Final = 0.001


class HeartbeatLane:
    """Drives the `Pulse` of this node."""

    def __init__(
        self,
        pulse: Pulse,
        *,
        beat: int,
        send: Callable[[PublicKeyBytes, str, bytes], object],
        rouse: Callable[[Iterable[Lineage]], None],
        journal_is_alive: Callable[[], bool],
        clock: Callable[[], Instant],
        late: Callable[[float], None],
    ) -> None:
        """``send`` a message to a peer in a slot, in which it replaces an older one.

        ``beat``: how far apart heartbeats to a peer are, in nanoseconds.
        ``late`` is told, each time, by how many seconds the lane's timer was.
        """
        self.pulse = pulse
        self._beat = beat
        self._send = send
        self._rouse = rouse
        self._journal_is_alive = journal_is_alive
        self._clock = clock
        self._late = late
        self._is_silent = False
        # What each peer was answered last, and when; answers that wait for a heartbeat.
        self._answered: dict[PublicKeyBytes, tuple[HeartbeatAck, Instant]] = {}
        self._held: dict[PublicKeyBytes, SendPulse] = {}
        self._sleeps_until: Instant | None = None
        self._news = trio.Event()

    @property
    def is_silent(self) -> bool:
        """Whether heartbeats are held back because the journal does not answer."""
        return self._is_silent

    def settle(self) -> None:
        """Read `Pulse.wake_at` again."""
        at = self.pulse.wake_at
        if at is not None and (self._sleeps_until is None or at < self._sleeps_until):
            self._news.set()

    def received(self, peer: Hello, message: Heartbeat | HeartbeatAck) -> None:
        """Take in what a peer said, and answer."""
        now = self._clock()
        self._perform(self.pulse.received(peer.key, peer.journal_id, message, now))
        # Nothing that is said is too late sooner than that.
        if self._sleeps_until is None or self._sleeps_until > now + self._beat:
            self.settle()

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            self._news = trio.Event()
            now = self._clock()
            self._look_at_journal()
            self._perform(self.pulse.tick(now))
            self._let_go()
            self._sleeps_until = self.pulse.wake_at
            pause_s = float("inf")
            if self._sleeps_until is not None:
                pause_s = max((self._sleeps_until - self._clock()) / _NS_PER_SECOND, _PAUSE_S)
            due_s = trio.current_time() + pause_s
            with trio.move_on_at(due_s) as scope:
                await self._news.wait()
            if scope.cancelled_caught:
                self._late(max(0.0, trio.current_time() - due_s))

    def _look_at_journal(self) -> None:
        is_silent = not self._journal_is_alive()
        if is_silent != self._is_silent:
            self._is_silent = is_silent
            if is_silent:
                log.warning("heartbeats_held_back", why="the journal does not answer")
            else:
                log.info("heartbeats_resumed")

    def _perform(self, effects: list[PulseEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Rouse):
                self._rouse(effect.lineages)
            else:
                self._send_pulse(effect)

    def _send_pulse(self, effect: SendPulse) -> None:
        if self._is_silent or not self._journal_is_alive():
            self._held.clear()
            return
        held = self._held.pop(effect.to, None)
        if isinstance(effect.message, HeartbeatAck):
            if self._may_wait(effect.to, effect.message):
                self._held[effect.to] = effect
                return
        elif held is not None:
            self._put(held)
        self._put(effect)

    def _may_wait(self, to: PublicKeyBytes, ack: HeartbeatAck) -> bool:
        """Return whether an answer may wait for the next heartbeat to the same peer."""
        now, before = self._clock(), self._answered.get(to)
        self._answered[to] = (ack, now)
        if before is None or self.pulse.due_at(to) is None:
            return False
        return now - before[1] <= 2 * self._beat and _says_the_same(before[0], ack)

    def _let_go(self) -> None:
        """Send the answers to those who get no heartbeat any more with which they could go."""
        for key in [key for key in self._held if self.pulse.due_at(key) is None]:
            self._put(self._held.pop(key))

    def _put(self, effect: SendPulse) -> None:
        slot = type(effect.message).__name__
        self._send(effect.to, slot, encode_envelope(BetweenNodes(body=effect.message)))


def _says_the_same(one: HeartbeatAck, other: HeartbeatAck) -> bool:
    """Return whether two answers of one run grant the same."""
    return (
        one.boot_nonce == other.boot_nonce
        and one.held_version == other.held_version
        and one.list_hash == other.list_hash
        and one.is_granting
        and other.is_granting
        and one.exceptions == other.exceptions
    )
