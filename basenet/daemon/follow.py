"""Following one attached database: when to look, and in which thread.

While commits come, a thread of its own polls the log (`Capture.run_active`); once it is quiet the
thread goes back and the shard waits at its doorbell. The writes of a busy shard are not watched,
since each would wake us; the order *watch again, then look once* leaves no commit unseen.
"""

import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

from basenet.daemon.waker import Waker
from basenet.sqlite.attach import DetachedState
from basenet.sqlite.capture import Capture, Gap, Rest, RestReason
from basenet.sqlite.captured import Captured
from basenet.sqlite.checkpoint import DatabaseReplaced

_LET_GO_TRIES: Final = 8
_LET_GO_PAUSE_S: Final = 0.03
# A turn ends after this when other shards wait for one of the capture threads.
_TURN_S_MAX: Final = 0.2
# Who writes all the time does not keep us from stopping.
_LAST_LOOK_S: Final = 2.0
# Between the two looks that somebody waits for: long enough for other threads to get on.
_BRIEF_S: Final = 0.0002


class Pumping(Protocol):
    """Who takes what is captured."""

    async def room(self) -> None:
        """Return when capture may go on reading."""
        ...

    async def drained(self) -> bool:
        """Return True when all that was captured before is in frames; False: it ended before."""
        ...


class Nap:
    """The pauses of a capture thread, which `Follower.look` cuts short."""

    def __init__(self) -> None:
        self.is_brief = False
        """Whether somebody waits for the thread's next looks."""
        # Free while an `end` was not heard; a thousand times a second an event costs twice as much.
        self._over = threading.Lock()
        self._over.acquire()

    def sleep(self, seconds: float) -> bool:
        """Sleep so long, or until `end`; one that came before counts.

        Returns whether somebody waits for what comes after it.
        """
        is_over = self._over.acquire(timeout=min(seconds, _BRIEF_S) if self.is_brief else seconds)
        return is_over or self.is_brief

    def end(self) -> None:
        """Let the thread look now."""
        with suppress(RuntimeError):  # nobody has heard the one before yet
            self._over.release()


class Follower:
    """Drives the capture of one attached database until it is detached or stopped."""

    def __init__(
        self,
        *,
        key: str,
        capture: Capture,
        pump: Pumping,
        waker: Waker,
        limiter: trio.CapacityLimiter,
        bridge: Callable[[Gap], Awaitable[None]],
        file_lock: trio.Lock,
        sink: Callable[[list[Captured]], bool],
        nap: Nap | None = None,
    ) -> None:
        """Take what else a session consists of.

        ``bridge`` mends a gap and sets the place where capture goes on; ``sink`` takes what was
        captured and says whether there is room for more. ``nap``: how ``capture`` sleeps.
        """
        self._sink = sink
        self._nap = nap
        self._file_lock = file_lock
        self.capture = capture
        self._key = key
        self._pump = pump
        self._waker = waker
        self._limiter = limiter
        self._bridge = bridge
        self._doorbell = waker.doorbell(key)
        self._should_stop = threading.Event()
        # None: poll until told to stop. Else how often the capture thread may still begin to.
        self._polls_left: int | None = None
        self._wants_detach = False
        self.is_letting_go = False
        self._turn_began_s = 0.0
        self._foreign: str | None = None
        # How often the capture thread began to read to the tip; only it writes this.
        self._polls_begun = 0
        self.polled_s = time.monotonic()
        self._is_polling = False
        self._lookers = 0
        # From which poll on its beginning is news to one of them, or may be.
        self._telling_poll = 0
        self._polled = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def stop(self) -> None:
        """End `run` at the next commit boundary."""
        self._should_stop.set()
        self._rouse()

    def request_detach(self) -> None:
        """Let go of the file at the next quiet moment."""
        self._wants_detach = True
        self._ring()

    def give_up(self, reason: str) -> None:
        """End `run` with `DatabaseReplaced`: the path leads to another file, or to none."""
        self._foreign = reason
        self._ring()

    def _rouse(self) -> None:
        """Let the thread look now, and whoever starts it."""
        if self._nap is not None:
            self._nap.end()
        self._ring()

    def _ring(self) -> None:
        self._doorbell.ring()

    async def look(self) -> bool:
        """Return True once everything that is committed now was captured, False if `run` ended.

        It was once a poll that began after this call has ended.
        """
        begun = self._polls_begun
        if not self._lookers:
            # The thread may be in one that began before; the next but one shows that one is over.
            self._telling_poll = begun + 2
        self._look_for(1)
        self._rouse()
        try:
            while not self._has_polled_since(begun) and not self._should_stop.is_set():
                await self._polled.wait()
        finally:
            self._look_for(-1)
        return not self._should_stop.is_set()

    def _look_for(self, more: int) -> None:
        self._lookers += more
        if self._nap is not None:
            self._nap.is_brief = self._lookers > 0

    def _has_polled_since(self, begun: int) -> bool:
        return self._polls_begun > begun + self._is_polling

    def _begin_poll(self) -> bool:
        """Return whether to stop instead; the capture thread asks before each poll."""
        self._polls_begun += 1
        self.polled_s = time.monotonic()
        if self._lookers and self._polls_begun >= self._telling_poll:
            self._token.run_sync_soon(self._wake_lookers, idempotent=True)
        if self._polls_left is not None:
            self._polls_left -= 1
            return self._polls_left < 0
        return self._should_stop.is_set() or self._must_share()

    def _must_share(self) -> bool:
        """Whether this turn has lasted long enough and others wait for their threads."""
        is_long = self.polled_s - self._turn_began_s > _TURN_S_MAX
        return is_long and self._limiter.statistics().tasks_waiting > 0

    def _wake_lookers(self) -> None:
        polled, self._polled = self._polled, trio.Event()
        polled.set()

    async def run(self) -> DetachedState | None:
        """Follow until `stop`, and to the tip then (None), or until the file is let go."""
        next_call_s: float | None = 0.0
        self._waker.look_again(self._key)
        try:
            while not self._should_stop.is_set():
                if self.capture.has_news() or self._lookers:
                    next_call_s = await self._turn()
                if self._foreign is not None:
                    raise DatabaseReplaced(self._foreign)
                if self._wants_detach:
                    state = await self._detach()
                    if state is not None:
                        return state
                await self._wait(next_call_s)
                if next_call_s is not None and not self.capture.has_news():
                    next_call_s = await self._steer()
            with trio.move_on_after(_LAST_LOOK_S):
                await self._look_again()
        finally:
            self.end()
        return None

    async def _look_again(self) -> None:
        """Capture what was committed just before the stop: who commits and stops us relies on it.

        Also a log that SQLite left unsealed is found and cut off, which saves its commits.
        """
        while self.capture.has_news():
            self._polls_left = 1
            rest = await self._poll()
            if rest is not None and rest.reason is RestReason.BACK_PRESSURE:
                await self._pump.room()
            elif rest is not None:
                return

    def end(self) -> None:
        """Tell those who wait for a look that none comes any more; harmless when repeated."""
        self._should_stop.set()
        self._wake_lookers()

    async def _turn(self) -> float | None:
        """Poll in a thread until it is quiet; return when to steer the pin again."""
        self._waker.wake.pause(self._key)
        try:
            while True:
                rest = await self._poll()
                if rest is None:
                    continue
                if rest.reason is not RestReason.BACK_PRESSURE:
                    return rest.next_call_s
                # That poll stopped for want of room and did not reach the tip.
                self._polls_begun -= 1
                await self._pump.room()
        finally:
            self._waker.wake.resume(self._key)
            self._waker.look_again(self._key)

    async def _poll(self) -> Rest | None:
        self._is_polling = True
        self._turn_began_s = time.monotonic()
        try:
            return await trio.to_thread.run_sync(
                self.capture.run_active,
                self._sink,
                self._begin_poll,
                limiter=self._limiter,
            )
        except Gap as gap:
            await self._bridge(gap)
            return None
        finally:
            self._is_polling = False
            self._wake_lookers()

    async def _steer(self) -> float | None:
        try:
            return await trio.to_thread.run_sync(self.capture.steer, limiter=self._limiter)
        except Gap as gap:
            await self._bridge(gap)
            return 0.0

    async def _wait(self, seconds_max: float | None) -> None:
        """Return when there may be something to do; a look costs one read of 48 bytes."""
        deadline = trio.current_time() + (float("inf") if seconds_max is None else seconds_max)
        while not (self.capture.has_news() or self._should_stop.is_set() or self._lookers):
            left = deadline - trio.current_time()
            if left <= 0:
                return
            await self._doorbell.wait(None if left == float("inf") else left)
            if self._wants_detach or self._foreign is not None:
                return

    async def let_go(self) -> DetachedState | None:
        """At the end: if nobody else has the file open, close it as SQLite's last connection.

        A -wal that we leave behind would be replayed onto whatever file comes next (P5).
        """
        for _ in range(_LET_GO_TRIES):
            if not self.capture.database.is_open or self.capture.database.others_connected():
                return None
            state = await self._detach()
            if state is not None:
                return state
            await trio.sleep(_LET_GO_PAUSE_S)
        return None

    async def _detach(self) -> DetachedState | None:
        self._wants_detach = False
        await self._pump.drained()
        async with self._file_lock:
            # From here on its descriptors may close at any moment.
            self.is_letting_go = True
            state = await trio.to_thread.run_sync(self.capture.detach, limiter=self._limiter)
            self.is_letting_go = state is not None
            return state
