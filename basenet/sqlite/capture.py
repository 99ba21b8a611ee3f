"""Follows one database's log and hands over every commit, once, in order.

Theory of operation
===================

Three places in the log, each at or behind the next::

    cursor        everything before it was handed over and taken
    read cursor   everything before it is in memory, waiting to be handed over
    the tip       where the wal-index says the log ends

`Capture.poll` yields changes; one counts as *taken* when the next one is asked for, so a consumer
that fails in between is given it again. A `Gap` says that commits cannot be followed one by one
from here; `Capture.recover` then bridges it, or `Capture.restart_at` sets another place.

Whether the log is pinned meanwhile is decided by `policy` and done by `rotation`. Correctness never
depends on it: `tail` proves completeness by counting, pinned or not.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from basenet.errors import UnavailableError
from basenet.sqlite.attach import Database, DetachedState
from basenet.sqlite.captured import Captured, CaptureFlag, Cursor
from basenet.sqlite.changes import changes_of, pieces_of
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.pages import PageView, cursor_at
from basenet.sqlite.policy import CapturePolicy, PinPolicy
from basenet.sqlite.recover import Scan, diff, scan
from basenet.sqlite.resume import Resumption, find_place
from basenet.sqlite.rotation import Rotation
from basenet.sqlite.tail import Gap, HugeTransaction, LogReader, News, growth
from basenet.sqlite.walformat import frame_bytes
from basenet.sqlite.walindex import Index, read_header_bytes

__all__ = [
    "Capture",
    "CaptureFlag",
    "CapturePolicy",
    "Captured",
    "Cursor",
    "Gap",
    "Rest",
    "RestReason",
    "cursor_at",
]

POLL_PAUSE_S: Final = 0.001
POLL_PAUSE_S_MAX: Final = 0.008
ACTIVE_S: Final = 0.060
# A header that stays torn this long was left so by a writer that died.
_TORN_S: Final = 0.5
# Each reads a megabyte.
_TIP_ROUNDS: Final = 12
_PIN_ATTEMPTS_MAX: Final = 50


class RestReason(Enum):
    """Why `Capture.run_active` came back."""

    IDLE = "idle"
    BACK_PRESSURE = "back-pressure"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """``next_call_s``: steer again after so many seconds even if the log does not change."""

    reason: RestReason
    next_call_s: float | None


@dataclass(slots=True)
class CaptureCounters:
    """Since the capture began."""

    commits: int = 0
    frames: int = 0
    wal_bytes: int = 0
    polls: int = 0
    resets: int = 0
    laps: int = 0
    gaps: int = 0
    recovered: int = 0


Sink = Callable[[list[Captured]], bool]


class Capture:
    """The commits of one attached database. One thread at a time."""

    def __init__(
        self,
        database: Database,
        *,
        policy: CapturePolicy = CapturePolicy.ADAPTIVE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        nap: Callable[[float], bool | None] | None = None,
        pause_s_max: float = POLL_PAUSE_S_MAX,
        active_s: float = ACTIVE_S,
        steer_s: float = 0.0,
    ) -> None:
        """``clock``: monotonic seconds. The caller gives ``database`` away: `close` closes it.

        ``nap``: sleeps between two looks of `run_active`, may be cut short, and returns whether
        somebody waits for what comes then; ``pause_s_max``: how rarely it looks for the next commit
        of a database in use, for ``active_s`` after one; ``steer_s``: how rarely it does more than
        that, for the pin and for who wants it to stop, while no commit comes.
        """
        self.database = database
        self.counters = CaptureCounters()
        self._clock = clock
        self._sleep = sleep
        self._nap = nap or sleep
        self._pause_s_max = pause_s_max
        self._active_s = active_s
        self._steer_s = steer_s
        self._reader = LogReader(database)
        self._policy = PinPolicy(policy, clock())
        self.rotation = Rotation(
            database, self._policy, reach_tip=self._reach_tip, clock=clock, sleep=sleep
        )
        self._cursor: Cursor | None = None
        self._read_cursor: Cursor | None = None
        # Each entry is one change: a single piece, or all pieces of a run that fits memory.
        self._waiting: deque[list[Captured]] = deque()
        self._huge: HugeTransaction | None = None
        # The wal-index header up to which everything was read.
        self._seen = b""
        self._index: Index | None = None
        self._torn_since: float | None = None

    @property
    def cursor(self) -> Cursor:
        """Everything before this place was handed over and taken."""
        assert self._cursor is not None, "restart_at comes before the first poll"
        return self._cursor

    @property
    def is_pinned(self) -> bool:
        """Whether a read transaction keeps the log from being reset."""
        return self.rotation.pin.is_held

    @property
    def wal_bytes(self) -> int:
        """The present size of the -wal file in bytes."""
        return self.database.wal_bytes

    @property
    def lock_held_s(self) -> list[tuple[str, float]]:
        """How long we held the write lock, (reason, seconds) each time; the reader empties it."""
        return self.rotation.lock_held_s

    @lock_held_s.setter
    def lock_held_s(self, samples: list[tuple[str, float]]) -> None:
        self.rotation.lock_held_s = samples

    def restart_at(self, cursor: Cursor) -> None:
        """Go on behind ``cursor``, forgetting whatever was read but not taken."""
        self._cursor = self._read_cursor = cursor
        self._waiting.clear()
        self._huge = None
        self._seen = b""

    def has_news(self) -> bool:
        """Return whether a poll would find something; costs one read of 48 bytes."""
        return self._has_waiting or read_header_bytes(self.database.shm_fd) != self._seen

    @property
    def _has_waiting(self) -> bool:
        return bool(self._waiting) or self._huge is not None

    # -- reading ---------------------------------------------------------------------------------

    def poll(self) -> Iterator[Captured]:
        """Yield every change up to the tip.

        A change counts as taken when the next one is asked for; a run counts with its last piece
        and starts anew if it is left before. Raises `Gap`, `CorruptionError`.
        """
        while True:
            yield from self._hand_over()
            if not self._advance():
                break
        yield from self._hand_over()

    def _hand_over(self) -> Iterator[Captured]:
        while self._waiting:
            yield from self._waiting[0]
            self._take(self._waiting.popleft())
        if self._huge is not None:
            yield from self._hand_over_huge(self._huge)
        self._cursor = self._read_cursor

    def _hand_over_huge(self, huge: HugeTransaction) -> Iterator[Captured]:
        assert self._index is not None, "a transaction was found without an index"
        try:
            yield from pieces_of(huge, self._reader, self._index.header)
        except Gap as gap:
            self._huge = None
            self._on_gap(gap)
            raise
        self._huge = None
        self.counters.commits += 1
        self._count_frames(len(huge.pgnos))

    def _take(self, change: list[Captured]) -> None:
        self._cursor = change[-1].cursor
        self.counters.commits += change[-1].commits

    def _count_frames(self, frames: int) -> None:
        self.counters.frames += frames
        self.counters.wal_bytes += frames * frame_bytes(self.database.page_size)

    def _advance(self) -> bool:
        """Read one block of news into memory; return whether to come again at once."""
        assert self._huge is None, "what is read now would overtake a transaction that waits"
        self.counters.polls += 1
        if read_header_bytes(self.database.shm_fd) == self._seen:
            self._policy.on_poll(self._clock(), 0)
            return False
        index = self._read_index()
        if index is None:
            return False
        news = self._read_news(index)
        if news is None:
            self._seen = index.raw
            return False
        self._read_cursor = news.end
        if isinstance(news, HugeTransaction):
            # Its images are read a second time: nothing may overwrite them meanwhile.
            self.rotation.engage()
            self._huge = news
            return True
        self._keep(news)
        if (news.end.salts, news.end.frame) == (index.header.salts, index.header.frame_max):
            self._seen = index.raw
        return news.has_more

    def _read_news(self, index: Index) -> News | HugeTransaction | None:
        cursor = self._read_cursor
        assert cursor is not None, "restart_at comes before the first poll"
        frames = index.header.frame_max
        if cursor.salts == index.header.salts:
            frames -= cursor.frame
        self._policy.on_poll(self._clock(), max(frames, 0))
        if frames > self._reader.block_frames:
            self.rotation.engage()
        try:
            return self._reader.read(cursor, index)
        except Gap as gap:
            self._on_gap(gap)
            raise

    def _keep(self, news: News) -> None:
        if news.start.salts != news.end.salts:
            self.counters.resets += 1
        self._count_frames(len(news.frames))
        self._waiting.extend(changes_of(news))
        if not self._waiting:
            self._cursor = news.end

    def _read_index(self) -> Index | None:
        """Return the wal-index; let SQLite repair it if a writer died while changing it."""
        index = self.database.read_index()
        if index is not None:
            self._index = index
            self._torn_since = None
            return index
        now = self._clock()
        if self._torn_since is None:
            self._torn_since = now
        elif now - self._torn_since > _TORN_S:
            self._torn_since = now
            self.database.heal_index(self.rotation.pin.free_connection)
        return None

    def _on_gap(self, gap: Gap) -> None:
        self.counters.gaps += 1
        if gap.is_lap:
            self.counters.laps += 1
            self._policy.on_lap(self._clock())
        if gap.is_unsealed and self._index is not None:
            self.rotation.on_unsealed(self._index.header.salts)
        self.rotation.engage()

    def _reach_tip(self) -> bool:
        """Read on to the tip; return False if there is more than fits memory."""
        for _ in range(_TIP_ROUNDS):
            if self._huge is not None:
                return False
            if not self._advance():
                return True
        return False

    # -- the daemon's loop -----------------------------------------------------------------------

    def steer(self) -> float | None:
        """Do about the pin what is due now; return when to steer again, or None: never.

        For a log at rest, between two calls of `run_active`. Raises `Gap`, `DatabaseReplaced`.
        """
        return self.rotation.steer(has_news=False)

    def run_active(self, sink: Sink, should_stop: Callable[[], bool]) -> Rest:
        """Follow the log until it has been quiet for a while; pinned when it returns.

        ``sink`` takes what was captured, in order; False: taken, but no more for now. If it raises,
        what it was given is given again. Raises `Gap`, `DatabaseReplaced`, `CorruptionError`.
        """
        pause_s = POLL_PAUSE_S
        while not should_stop():
            has_news, wants_more = self._poll_into(sink)
            if not wants_more:
                self.rotation.lift()
                self.rotation.hold_back()
                return self._rest(RestReason.BACK_PRESSURE)
            next_call_s = self.rotation.steer(has_news=has_news)
            if has_news:
                pause_s = POLL_PAUSE_S
            elif self._policy.idle_s(self._clock()) >= self._active_s and self.rotation.engage():
                return Rest(reason=RestReason.IDLE, next_call_s=next_call_s)
            else:
                pause_s = min(2 * pause_s, self._pause_s_max)
            self._pause(pause_s)
        return self._rest(RestReason.STOPPED)

    def _pause(self, pause_s: float) -> None:
        """Sleep, look, and sleep again, until there is something to do or it is time to steer."""
        until_s = self._clock() + self._steer_s
        while not self._nap(pause_s):
            if self._clock() >= until_s or read_header_bytes(self.database.shm_fd) != self._seen:
                return

    def _rest(self, reason: RestReason) -> Rest:
        self.rotation.engage()
        return Rest(reason=reason, next_call_s=self.rotation.next_call_s())

    def _poll_into(self, sink: Sink) -> tuple[bool, bool]:
        """Read to the tip and hand over; return (was there anything, does the sink want more)."""
        has_news = False
        is_at_tip = False
        while not is_at_tip:
            # One that the rotation found comes before anything behind it.
            is_at_tip = self._huge is None and not self._advance()
            if self._has_waiting:
                has_news = True
                if not self._give(sink):
                    return True, False
        return has_news, True

    def _give(self, sink: Sink) -> bool:
        """Hand over what waits; return whether the consumer wants more."""
        wants_more = True
        if self._waiting:
            wants_more = sink([piece for change in self._waiting for piece in change])
            for change in self._waiting:
                self._take(change)
            self._waiting.clear()
        for piece in self._hand_over():
            wants_more = sink([piece]) and wants_more
        return wants_more

    def sync_wal(self) -> None:
        """Make every frame captured so far survive a power loss (fdatasync of the -wal)."""
        self.database.sync_wal()

    # -- begin and end ---------------------------------------------------------------------------

    def examine_log(self) -> int:
        """Look for frames without a checksum in a log that was there before us; get rid of it.

        Once, before a place is set: what comes later is verified as it is read. Returns how many
        commits behind its end SQLite did not take up when it recovered the log. Raises
        `DatabaseReplaced`.
        """
        index = self.database.read_index()
        if index is None:
            return 0
        if index.header.frame_max and self._reader.find_unsealed(index.header) is not None:
            again = self.database.read_index()
            if again is not None and again.header.salts == index.header.salts:
                self.rotation.on_unsealed(index.header.salts)
        return self._reader.count_cut_off(index.header)

    def pin(self) -> None:
        """Pin the log now; raises `UnavailableError` if SQLite stays busy."""
        for _ in range(_PIN_ATTEMPTS_MAX):
            if self.rotation.engage():
                return
            self._sleep(POLL_PAUSE_S)
        raise UnavailableError(
            f"{self.database.path} is busy: no read transaction can be opened now; trying again."
        )

    def resume(self, cursor: Cursor | None, detached: DetachedState | None = None) -> Resumption:
        """Pin the log and go on where an earlier life stopped, if that can be proven.

        ``cursor``, ``detached``: what the journal has, None for none. If the outcome needs a scan
        no place is set: call `recover`, or `adopt` for a file never seen before. Raises
        `UnavailableError`.
        """
        self.examine_log()
        self.pin()
        index = self.database.read_index()
        if index is None:
            raise UnavailableError(f"{self.database.path}-shm is being changed; trying again.")
        found = find_place(self.database, index, cursor, detached)
        if found.place is not None:
            self.restart_at(found.place)
        return found

    def adopt(self) -> Scan:
        """Hash a database that is new to us and go on from there; raises as `recover`."""
        self.examine_log()
        self.pin()
        found = scan(self.database)
        self.restart_at(found.cursor)
        return found

    def recover(self, leaves: bytes | bytearray | memoryview) -> Iterator[Captured]:
        """Yield, as one RECOVERED change, what differs from ``leaves``, and go on behind it.

        Iterate to the end: only then is the place set. Nothing is yielded if nothing differs.
        Raises `UnavailableError` if SQLite is busy, `CorruptionError` if the file is damaged.
        """
        self.pin()
        before = self._cursor
        with PageView(self.database) as view:
            commits = 0 if before is None else max(0, growth(view.cursor.change, before.change))
            for piece in diff(view, leaves, before=before, commits=commits):
                yield piece
                self.counters.commits += piece.commits
            self.counters.recovered += 1
            self.restart_at(view.cursor)

    def detach(self) -> DetachedState | None:
        """Let go of a file that nobody else uses, as SQLite's last close does.

        Poll to the end first. Returns None, still attached, if there are newer commits or somebody
        came; raises `DatabaseReplaced`, closed, if the path is no longer ours.
        """
        if self._has_waiting or not self._seen:
            return None
        self.rotation.pin.release()
        state = self.database.detach(self._seen)
        if state is None:
            self.rotation.engage()
        return state

    def close(self) -> None:
        """End our transactions and let go of the file, leaving its log as it is.

        Except one that the next recovery would cut: it is copied into the file, if that goes now.
        """
        if self.database.is_open:
            self.rotation.pin.release()
            if self.rotation.is_unsealed:
                with contextlib.suppress(DatabaseReplaced):
                    self.rotation.cut_off()
                self.rotation.pin.release()
        self.database.close()
