"""The lane of heartbeats: what `engine.pulse` says, sent and received at once (Q7, Q16).

Theory of operation
===================

One task sleeps until the lane has something to do, and everything that may change that moment
wakes it: a replica was stepped (`settle`), a heartbeat came. Nothing here waits for a journal, a
thread or a shard. A heartbeat goes out before everything else that waits for the peer, and a newer
one takes the place of an older.

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
        send: Callable[[PublicKeyBytes, str, bytes], object],
        rouse: Callable[[Iterable[Lineage]], None],
        journal_is_alive: Callable[[], bool],
        clock: Callable[[], Instant],
        late: Callable[[float], None],
    ) -> None:
        """``send`` a message to a peer in a slot, in which it replaces an older one.

        ``late`` is told, each time, by how many seconds the lane's timer was.
        """
        self.pulse = pulse
        self._send = send
        self._rouse = rouse
        self._journal_is_alive = journal_is_alive
        self._clock = clock
        self._late = late
        self._is_silent = False
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
        self._perform(self.pulse.received(peer.key, peer.journal_id, message, self._clock()))
        self.settle()

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            self._news = trio.Event()
            now = self._clock()
            self._look_at_journal()
            self._perform(self.pulse.tick(now))
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
            return
        slot = type(effect.message).__name__
        self._send(effect.to, slot, encode_envelope(BetweenNodes(body=effect.message)))
