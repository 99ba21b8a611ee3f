"""One shard's replica at work: events in, effects to the performer, alarms in between.

Everything here runs in the event loop, so steps never overlap. After each step three things may
have changed, and are looked at: when the replica wants to be woken, what the lane of heartbeats
must send, and whether the application may write (`Steered`).
"""

from collections.abc import Callable
from typing import Final

import trio

from basenet.daemon.cluster.perform import Performer
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.framer import instant
from basenet.engine.effects import Effect
from basenet.engine.events import Event, FramesCaptured, Instant, Ticked
from basenet.engine.replica import Replica

_NS_PER_S: Final = 1_000_000_000


class Driver:
    """Steps one replica."""

    def __init__(
        self,
        *,
        replica: Replica,
        performer: Performer,
        peers: Peers,
        on_step: Callable[[], None],
    ) -> None:
        """``on_step`` is called after every step: what the shard may do could have changed."""
        self.replica = replica
        self.performer = performer
        self._peers = peers
        self._on_step = on_step
        self._alarm: Instant | None = None
        self._alarm_moved = trio.Event()

    def boot(self) -> None:
        """Go on from what the journal holds; once, before the first event."""
        self.performer.put(self.replica.boot(instant()))
        self._look()

    def step(self, event: Event) -> list[Effect]:
        """Give ``event`` to the replica; return what follows, which is queued already."""
        effects = self.replica.step(event, instant())
        self.performer.put(effects)
        self._look()
        return effects

    def seal(
        self, event: FramesCaptured, *, cursor: bytes | None, sync: Callable[[], None] | None
    ) -> list[Effect]:
        """Have captured commits sealed; return the effects, which are queued already."""
        effects = self.replica.step(event, instant())
        self.performer.put(effects, cursor=cursor, sync=sync)
        self._look()
        return effects

    @property
    def can_seal(self) -> bool:
        """Whether captured commits become frames now."""
        return self.replica.can_seal(instant()) and not self.performer.is_undoing

    def _look(self) -> None:
        self._peers.settle()
        wake_at = self.replica.wake_at
        if wake_at is not None and (self._alarm is None or wake_at < self._alarm):
            self._alarm = wake_at
            self._alarm_moved.set()
        self._on_step()

    async def run_alarms(self) -> None:
        """Wake the replica when it wants to be, for ever. An idle shard sleeps."""
        while True:
            self._alarm_moved = trio.Event()
            self._alarm = self.replica.wake_at
            if self._alarm is None:
                await self._alarm_moved.wait()
                continue
            left_ns = self._alarm - instant()
            if left_ns <= 0:
                self.step(Ticked())
                await trio.lowlevel.checkpoint()
                continue
            with trio.move_on_after(left_ns / _NS_PER_S):
                await self._alarm_moved.wait()
