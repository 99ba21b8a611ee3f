"""Moving the pin and emptying the log, without ever leaving a commit unprotected for long.

Theory of operation
===================

*Engage* and *release* are the pin's own. The two movements:

*Settle*, without a lock, for a log at rest: checkpoint, begin a second read, capture to the tip,
end the first; again until the pin is on mark 0 and everything is in the file. It is also what frees
an application's TRUNCATE, which holds the write lock and waits for our mark: we must not wait for
the write lock in turn (P13), and the re-pinned mark 0 is in nobody's way.

*Rotate*, for a log that never comes to rest: once the same to copy the bulk, then try, never wait,
for the write lock; under it capture the rest, drop the pin, one checkpoint, pin again. Every reset
needs the write lock, so nothing is unprotected in between, and the next writer starts the log anew.

A pin on mark 0 is left only after a checkpoint of ours went through in the same generation, or for
one that holds the write lock: nobody with an older view of the log can then be copying frames that
are not what it thinks (P11).

*Lift*, for a log that grows while we have no room for what we read: off mark 0, which lets nothing
of the log be copied, so that every commit past its threshold would look through the whole log in
vain. Nothing needs to be captured for that: as long as something is not copied a read begins on a
mark above 0, and such a one keeps the log from being reset.

*Hold back*, for a log that grew beyond all bounds because it is written faster than we can take it
in: the write lock for a moment, again and again. A disk that is full would be worse.

*Cut off*, for a log that SQLite left unsealed (`unsealed`): whoever opens the database next must
not find it. Copied into the file and truncated at once, and again until that is done or the log
was reset by somebody; meanwhile there may be a moment of no pin, which costs a page comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from basenet.sqlite import locks
from basenet.sqlite.attach import Database
from basenet.sqlite.pin import Pin
from basenet.sqlite.policy import LONG_FRAMES, ROTATE_FRAMES, Action, LogFacts, PinPolicy
from basenet.sqlite.walindex import READ_MARK_UNUSED
from basenet.units import MIB

LOCK_TRY_S: Final = 0.005
# Not longer: a TRUNCATE holds the checkpoint lock while it waits for the write lock, ours.
CHECKPOINT_TRY_S: Final = 0.020
# SQLite's busy handler sleeps for at most 100 ms between two attempts.
ASIDE_S: Final = 0.150
# Copying so many frames takes 30 ms, and in that time fewer than `LONG_FRAMES` come.
BULK_FRAMES: Final = 8_000
# What a burst of a second writes at most; litestream lets a log grow to twice that.
HELD_BACK_BYTES: Final = 256 * MIB
HOLD_BACK_S: Final = 0.030
HOLD_BACK_S_MAX: Final = 0.100
_ASIDE_PAUSE_S: Final = 0.001
_PAUSE_S: Final = 0.000_2
_SETTLE_ROUNDS: Final = 3
_UNREADABLE_RETRY_S: Final = 0.010
_CUT_RETRY_S: Final = 0.050
_CUT_RETRY_S_MAX: Final = 1.0


@dataclass(slots=True)
class RotationCounters:
    """Since the capture began. ``lock_held_s``: each time; the reader empties it."""

    rotations: int = 0
    settlings: int = 0
    checkpoints: int = 0
    unsealed: int = 0
    """How many logs had committed frames without a checksum."""
    problem: str | None = None
    """What the last checkpoint complained of (disk full), None if it did not."""


class Rotation:
    """The pin of one database and what is done with it."""

    __slots__ = (
        "_clock",
        "_cut_at_s",
        "_cut_retry_s",
        "_database",
        "_reach_tip",
        "_sleep",
        "_unsealed_salts",
        "counters",
        "lock_held_s",
        "pin",
        "policy",
    )

    def __init__(
        self,
        database: Database,
        policy: PinPolicy,
        *,
        reach_tip: Callable[[], bool],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        """``reach_tip`` captures to the tip; False if there is more than fits memory."""
        self.pin = Pin(database)
        self.policy = policy
        self.counters = RotationCounters()
        self.lock_held_s: list[tuple[str, float]] = []
        self._database = database
        self._reach_tip = reach_tip
        self._clock = clock
        self._sleep = sleep
        self._unsealed_salts: bytes | None = None
        self._cut_at_s = 0.0
        self._cut_retry_s = _CUT_RETRY_S

    @property
    def is_unsealed(self) -> bool:
        """Whether the log has, as far as we know, frames that a recovery would stop at."""
        return self._unsealed_salts is not None

    def on_unsealed(self, salts: bytes) -> None:
        """Note that the log with ``salts`` has unsealed frames; try at once to be rid of it."""
        if self._unsealed_salts != salts:
            self._unsealed_salts = salts
            self._cut_retry_s = _CUT_RETRY_S
            self.counters.unsealed += 1
        self.cut_off()

    def cut_off(self) -> bool:
        """Copy an unsealed log into the file and truncate it; return whether it is gone.

        Raises `DatabaseReplaced`.
        """
        began_s = self._clock()
        self.pin.release()
        result = self._database.truncate(self.pin.free_connection)
        self.counters.problem = result.problem
        self.engage()
        now_s = self._clock()
        self.lock_held_s.append(("truncate", now_s - began_s))
        facts = self.facts()
        is_gone = facts is not None and (facts.salts != self._unsealed_salts or not facts.frame_max)
        if is_gone:
            self._unsealed_salts = None
        else:
            self._cut_at_s = now_s + self._cut_retry_s
            self._cut_retry_s = min(2 * self._cut_retry_s, _CUT_RETRY_S_MAX)
        return is_gone

    def engage(self) -> bool:
        """Pin the log where it ends now; False if SQLite is busy (the next poll tries again).

        A pin on mark 0 does not protect the present generation: read on at once.
        """
        if self.pin.is_held:
            return True
        if not self.pin.engage():
            return False
        self.policy.on_pinned()
        return True

    def lift(self) -> None:
        """Move a pin on mark 0 to where the log ends, if that is long and cannot be emptied now.

        [m] 10 k transactions of 10 kB: 0.9 -> 0.6 s of the application's CPU.
        """
        if self.pin.mark != 0:
            return
        facts = self.facts()
        if facts is None or facts.is_backfilled or facts.frame_max < ROTATE_FRAMES:
            return
        if self._checkpoint() and self.pin.begin_next():
            self.pin.complete_move()

    def hold_back(self) -> None:
        """Keep the application from committing for a moment if its log is far too long."""
        facts = self.facts()
        size = facts.frame_max * self._database.page_size if facts is not None else 0
        if size >= HELD_BACK_BYTES and self._try_write_lock():
            began_s = self._clock()
            self._sleep(min(HOLD_BACK_S * size / HELD_BACK_BYTES, HOLD_BACK_S_MAX))
            locks.unlock(self._database.shm_fd, locks.WAL_WRITE_BYTE)
            self.lock_held_s.append(("hold back", self._clock() - began_s))

    def facts(self) -> LogFacts | None:
        """Return what the policy decides by, or None while the wal-index is being changed."""
        index = self._database.read_index()
        if index is None:
            return None
        return LogFacts(
            is_pinned=self.pin.is_held,
            mark=self.pin.mark,
            mark_frame=index.read_marks[self.pin.mark] if self.pin.mark else None,
            salts=index.header.salts,
            frame_max=index.header.frame_max,
            is_backfilled=index.is_backfilled,
        )

    def steer(self, *, has_news: bool) -> float | None:
        """Do what the policy asks for; return when to be called again at the latest, or None.

        ``has_news``: the poll before found commits. Raises `Gap`, `DatabaseReplaced`.
        """
        now = self._clock()
        facts = self.facts()
        if facts is None:
            return _UNREADABLE_RETRY_S
        if self.is_unsealed and now >= self._cut_at_s:
            self.cut_off()
            return self.next_call_s()
        action = self.policy.decide(now, facts)
        if action is Action.ENGAGE:
            self.engage()
        elif action is Action.RELEASE:
            self.pin.release()
        elif action is Action.ROTATE:
            self._rotate()
        elif not has_news and self._is_waited_for(facts):
            self._make_way(facts)
        elif action is Action.SETTLE:
            self._settle()
        else:
            return self._next_call_s(facts)
        return self.next_call_s()

    def next_call_s(self) -> float | None:
        """Return when to steer again although nothing happens, or None: never."""
        facts = self.facts()
        return _UNREADABLE_RETRY_S if facts is None else self._next_call_s(facts)

    def _next_call_s(self, facts: LogFacts) -> float | None:
        now = self._clock()
        due_s = self.policy.next_call_s(now, facts)
        if self.is_unsealed:
            cut_s = max(self._cut_at_s - now, 0.001)
            due_s = cut_s if due_s is None else min(due_s, cut_s)
        return due_s

    def _is_waited_for(self, facts: LogFacts) -> bool:
        """Return whether a checkpoint that wants the log empty may be waiting for our mark.

        Such a one holds the write lock as well, so no commit comes while it waits. Any mark of ours
        can be in its way: 1..4 keep it from resetting the log, 0 from copying it.
        """
        if not facts.is_pinned or facts.is_settled:
            return False
        shm_fd = self._database.shm_fd
        checkpointer = locks.anyone(shm_fd, locks.WAL_CHECKPOINT_BYTE)
        if checkpointer is None:
            return False
        writer = locks.anyone(shm_fd, locks.WAL_WRITE_BYTE)
        return writer is not None and writer.pid == checkpointer.pid

    def _make_way(self, facts: LogFacts) -> None:
        """Let a waiting checkpoint through; it holds the write lock, so no commit comes."""
        if facts.mark_frame != facts.frame_max or facts.is_backfilled:
            self._settle(is_waited_for=True)
        else:
            self._step_aside()

    def _step_aside(self) -> None:
        """Leave a mark that is at the tip already, and come back when the copying is done.

        A checkpoint that looked at the mark just before we moved it there waits for the mark, not
        for what it says, and SQLite would give us the same one again and again. A lock of our own
        on an unused mark keeps the log from being reset meanwhile; it is in no copier's way.
        """
        shm_fd = self._database.shm_fd
        guard = self._lock_unused_mark()
        self.pin.release()
        self._try_for(ASIDE_S, self._is_copied, pause_s=_ASIDE_PAUSE_S)
        self.engage()
        if guard is not None:
            locks.unlock(shm_fd, guard)

    def _lock_unused_mark(self) -> int | None:
        index = self._database.read_index()
        if index is None:
            return None
        for mark in range(locks.WAL_READ_MARKS - 1, 0, -1):
            byte = locks.WAL_READ_BYTE + mark
            is_unused = index.read_marks[mark] == READ_MARK_UNUSED
            if is_unused and locks.try_lock(self._database.shm_fd, byte, is_shared=True):
                return byte
        return None

    def _is_copied(self) -> bool:
        facts = self.facts()
        is_held = locks.anyone(self._database.shm_fd, locks.WAL_CHECKPOINT_BYTE) is not None
        return not is_held or (facts is not None and facts.is_backfilled)

    def _checkpoint(self) -> bool:
        """Checkpoint once; return whether nobody else was at it."""
        self.counters.checkpoints += 1
        result = self._database.checkpoint(self.pin.free_connection)
        self.counters.problem = result.problem
        return not result.is_busy

    def _checkpoint_soon(self) -> bool:
        """Checkpoint as soon as somebody else's checkpoint ends; give up after 20 ms."""
        return self._try_for(CHECKPOINT_TRY_S, self._checkpoint)

    def _try_write_lock(self) -> bool:
        """Try for the write lock for at most 5 ms; never wait for it."""
        shm_fd = self._database.shm_fd
        return self._try_for(LOCK_TRY_S, lambda: locks.try_lock(shm_fd, locks.WAL_WRITE_BYTE))

    def _try_for(
        self, seconds: float, attempt: Callable[[], bool], pause_s: float = _PAUSE_S
    ) -> bool:
        deadline = self._clock() + seconds
        while not attempt():
            if self._clock() >= deadline:
                return False
            self._sleep(pause_s)
        return True

    def _move_pin(self) -> bool:
        """Move the pin to the tip without a moment of no pin."""
        if not self.pin.begin_next():
            return False
        try:
            is_at_tip = self._reach_tip()
        except BaseException:
            self.pin.abandon_next()
            raise
        if not is_at_tip:
            self.pin.abandon_next()
            return False
        self.pin.complete_move()
        return True

    def _settle(self, *, is_waited_for: bool = False) -> None:
        self.counters.settlings += 1
        for _ in range(_SETTLE_ROUNDS):
            # A checkpointer that also holds the write lock has read the log's state since it has
            # it, so it cannot have an older view (P11); of any other one we do not know.
            if not (self._checkpoint() or is_waited_for or self.pin.mark not in {0, None}):
                break
            if not self._move_pin():
                break
            facts = self.facts()
            if facts is not None and facts.is_settled:
                break
        self.policy.on_rotated(self._clock(), self.facts())

    def _rotate(self) -> None:
        # The bulk goes first, without a lock. If the application is checkpointing itself that can
        # fail; then all of it is done under the lock, where the application comes to rest. So it
        # is, too, when the log grew long: on a busy machine each step may last long enough for the
        # application to write another few thousand frames. One much longer than that would keep
        # the lock for longer than the application can bear.
        frames = self._count_frames()
        is_long = LONG_FRAMES <= frames < BULK_FRAMES
        is_moved = not is_long and self._checkpoint() and self._move_pin()
        if is_moved and (self._count_frames() < LONG_FRAMES or frames >= BULK_FRAMES):
            self._checkpoint()
        facts = None
        if self._try_write_lock():
            began = self._clock()
            try:
                if self._empty_log():
                    facts = self.facts()
            finally:
                locks.unlock(self._database.shm_fd, locks.WAL_WRITE_BYTE)
                self.lock_held_s.append(("rotate", self._clock() - began))
            self.counters.rotations += 1
        self.policy.on_rotated(self._clock(), facts)

    def _count_frames(self) -> int:
        """Return how long the log is now; from `LONG_FRAMES` on it should not grow any more."""
        facts = self.facts()
        return 0 if facts is None else facts.frame_max

    def _empty_log(self) -> bool:
        """Under the write lock: capture the rest, copy it into the file, pin on mark 0.

        Returns False if somebody else's checkpoint did not end soon.
        """
        # Nobody can commit now. The first checkpoint is the proof of P11, still under the pin.
        if not (self._reach_tip() and self._checkpoint_soon()):
            return False
        self.pin.release()
        self._checkpoint_soon()
        self.engage()
        return True
