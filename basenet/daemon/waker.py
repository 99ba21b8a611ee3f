"""From the node's one waker to the shards: who is worth a look, rung at their doorbells.

A doorbell keeps the signals until its shard looks, so none is lost while the shard is busy.
"""

import time
from typing import Final

import trio

from basenet.sqlite.signals import Signal
from basenet.sqlite.wake import Recheck, Wake

_POLL_S_MAX: Final = 30.0


class Doorbell:
    """What one shard, or the supervisor, waits at."""

    def __init__(self) -> None:
        self._signals: set[Signal] = set()
        self._rung = trio.Event()

    def ring(self, *signals: Signal) -> None:
        """Note ``signals``, if any, and wake whoever waits."""
        self._signals.update(signals)
        self._rung.set()

    async def wait(self, seconds_max: float | None) -> frozenset[Signal]:
        """Return the signals since the last call, none after ``seconds_max`` of silence."""
        if seconds_max is None:
            await self._rung.wait()
        else:
            with trio.move_on_after(seconds_max):
                await self._rung.wait()
        signals = frozenset(self._signals)
        self._signals.clear()
        self._rung = trio.Event()
        return signals


class Waker:
    """Owns the node's `Wake` and hands its signals out."""

    def __init__(self, wake: Wake) -> None:
        self.wake = wake
        self._recheck = Recheck()
        self._doorbells: dict[str, Doorbell] = {}
        self._changed = trio.Event()

    def doorbell(self, key: str) -> Doorbell:
        """Return the doorbell of ``key``, made on the first call."""
        return self._doorbells.setdefault(key, Doorbell())

    def share(self, key: str, doorbell: Doorbell) -> None:
        """Ring ``doorbell`` for ``key``, too."""
        self._doorbells[key] = doorbell

    def forget(self, key: str) -> None:
        """Take the doorbell of ``key`` down."""
        self._doorbells.pop(key, None)
        self._recheck.forget(key)

    def look_again(self, key: str) -> None:
        """Look at ``key`` again and again, ever more rarely: a wake can precede its commit."""
        self._recheck.after_wake(key, time.monotonic_ns())
        self._changed.set()

    async def run(self) -> None:
        """Hand out signals for ever."""
        async with trio.open_nursery() as nursery:
            if self.wake.fd is not None:
                nursery.start_soon(self._listen, self.wake.fd)
            nursery.start_soon(self._keep_time)

    async def _listen(self, descriptor: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            self._hand_out()

    def _hand_out(self) -> None:
        for key, signal in self.wake.read_events():
            doorbell = self._doorbells.get(key)
            if doorbell is None:
                continue
            doorbell.ring(signal)
            if signal is not Signal.LISTING_CHANGED:
                self.look_again(key)

    async def _keep_time(self) -> None:
        while True:
            now_ns = time.monotonic_ns()
            for key in self._recheck.due(now_ns):
                doorbell = self._doorbells.get(key)
                if doorbell is not None:
                    doorbell.ring()
            self._hand_out()
            waits = [self._recheck.seconds_to_next(now_ns), self.wake.seconds_to_poll()]
            soonest = min((wait for wait in waits if wait is not None), default=_POLL_S_MAX)
            self._changed = trio.Event()
            with trio.move_on_after(min(soonest, _POLL_S_MAX)):
                await self._changed.wait()
