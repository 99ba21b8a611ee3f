"""When to pin the log, when to let go, when to rotate: decisions without hands.

Theory of operation
===================

A pin protects commits that are not captured yet, and costs the application: its own checkpoints
cannot complete, and past its threshold (1,000 frames by default) every commit tries one in vain.

*strict*: always pinned; the capture rotates by itself under the write lock at `ROTATE_FRAMES`.

*adaptive*: pinned while idle or behind. Under load that the polls follow with ease the pin is
released, and the application checkpoints and resets by itself; `tail` follows across the reset.
The pin comes back when a poll was late, when one found more than half a generation, or in
the first quiet moment. After a lap the policy is strict for `PENALTY_S`, doubling with each
further one.

Once it is quiet the log is *settled*: copied into the file, our pin on mark 0, so that an
application's TRUNCATE never waits for us and its next commit starts the log anew.

Nothing here reads a clock: time comes in as seconds of any monotonic clock.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

# Half of SQLite's default threshold for automatic checkpoints: at more the next reset is near.
LAG_FRAMES_MAX: Final = 500
RELEASE_FRAMES: Final = 300
SETTLE_FRAMES: Final = 800
# Below the application's threshold, so that our checkpoint is not in a queue with its own.
ROTATE_FRAMES: Final = 800
# A log of so many frames (7 MB at 4 KiB a page) is emptied under the lock, even if a commit waits.
LONG_FRAMES: Final = 1_600
# Above this nobody else resets the log: wal_autocheckpoint=0, or readers in the way.
UNCHECKED_FRAMES: Final = 2_000
# How long such a log may wait for its application before we do it.
UNCHECKED_S: Final = 0.050
LATE_S: Final = 0.020
QUIET_S: Final = 0.020
# A poll that came late has done its work by then: what must be waited for is that the next ones
# come in time. So the pin lasts a few polls, and longer each time it was needed again.
CALM_S: Final = 0.005
CALM_S_MAX: Final = 0.320
SETTLE_S: Final = 1.0
# Until the log is settled a TRUNCATE of the application may wait for our mark, unseen.
WATCH_S: Final = 0.2
PENALTY_S: Final = 120.0
PENALTY_S_MAX: Final = 3_600.0
_REFUSED_S: Final = 0.005
_RETRY_S: Final = 0.005
_RETRY_S_MAX: Final = 1.0


class CapturePolicy(Enum):
    """What ``BASE_CAPTURE`` chooses between."""

    ADAPTIVE = "adaptive"
    STRICT = "strict"


class Action(Enum):
    """What the capture is to do next about its pin."""

    NOTHING = "nothing"
    ENGAGE = "engage"
    RELEASE = "release"
    SETTLE = "settle"
    ROTATE = "rotate"


@dataclass(slots=True, kw_only=True)
class LogFacts:
    """What the policy looks at.

    ``mark``: of the pin, None if unknown. ``mark_frame``: up to where it lets others copy.
    """

    is_pinned: bool
    mark: int | None
    mark_frame: int | None
    salts: bytes
    frame_max: int
    is_backfilled: bool

    @property
    def is_settled(self) -> bool:
        """Whether nothing of ours stands in anybody's way."""
        return self.is_pinned and self.mark == 0 and self.is_backfilled


class PinPolicy:
    """Remembers what the decisions depend on. One per capture."""

    __slots__ = (
        "_base",
        "_base_salts",
        "_calm_after",
        "_calm_s",
        "_is_excused",
        "_is_strict_always",
        "_last_news",
        "_last_poll",
        "_penalty_s",
        "_pinned_frames",
        "_retry_at",
        "_retry_s",
        "_strict_until",
        "_unchecked_since",
        "_wants_pin",
    )

    def __init__(self, policy: CapturePolicy, now: float) -> None:
        self._is_strict_always = policy is CapturePolicy.STRICT
        # The poll after a rotation of our own is late by our own doing.
        self._is_excused = False
        self._strict_until = now
        self._penalty_s = PENALTY_S
        self._last_poll = now
        self._last_news = now
        self._calm_after = now
        self._calm_s = CALM_S
        self._unchecked_since: float | None = None
        self._wants_pin = True
        self._pinned_frames = 0
        self._base_salts = b""
        self._base = 0
        self._retry_at = now
        self._retry_s = _RETRY_S

    def is_strict(self, now: float) -> bool:
        """Return whether the pin must not be released at ``now``."""
        return self._is_strict_always or now < self._strict_until

    def idle_s(self, now: float) -> float:
        """Return for how long no commit was seen."""
        return now - self._last_news

    def on_poll(self, now: float, frames: int) -> None:
        """Note that a poll found ``frames`` new frames (0: none)."""
        if frames:
            self._pinned_frames += frames
            was_late = now - self._last_poll > LATE_S and now - self._last_news < SETTLE_S
            if (was_late or frames > LAG_FRAMES_MAX) and not self._is_excused:
                self._wants_pin = True
                is_again = now - self._calm_after < SETTLE_S
                self._calm_s = min(2 * self._calm_s, CALM_S_MAX) if is_again else CALM_S
                self._calm_after = now + self._calm_s
            self._last_news = now
            self._is_excused = False
        elif now - self._last_news >= QUIET_S:
            self._wants_pin = True
        self._last_poll = now

    def on_lap(self, now: float) -> None:
        """Note that the log was overwritten before it was read: stay pinned for a while."""
        self._strict_until = now + self._penalty_s
        self._penalty_s = min(2 * self._penalty_s, PENALTY_S_MAX)
        self._wants_pin = True

    def on_pinned(self) -> None:
        """Note that the pin was engaged or moved to the tip."""
        self._pinned_frames = 0
        self._wants_pin = False

    def on_rotated(self, now: float, facts: LogFacts | None) -> None:
        """Note that a rotation or settling ended; ``facts``: after it, None if it was refused."""
        self._is_excused = True
        if facts is None:
            # Somebody was quicker; that says nothing about the next time.
            self._retry_at = now + _REFUSED_S
            return
        self.on_pinned()
        if facts.is_settled:
            # The next commit resets the log, unless another reader keeps it from that.
            self._base_salts, self._base = facts.salts, facts.frame_max
            self._retry_s = _RETRY_S
            self._retry_at = now
        else:
            self._retry_at = now + self._retry_s
            self._retry_s = min(2 * self._retry_s, _RETRY_S_MAX)

    def decide(self, now: float, facts: LogFacts) -> Action:
        """Return what to do about the pin."""
        if not facts.is_pinned:
            return self._decide_free(now, facts)
        since = facts.frame_max
        if facts.salts == self._base_salts:
            since -= self._base
        may_retry = now >= self._retry_at
        idle_s = self.idle_s(now)
        if idle_s >= QUIET_S:
            return self._decide_idle(facts, idle_s, since) if may_retry else Action.NOTHING
        is_calm = now >= self._calm_after and not self.is_strict(now)
        if is_calm and self._pinned_frames >= RELEASE_FRAMES:
            self._unchecked_since = None
            return Action.RELEASE
        return Action.ROTATE if since >= ROTATE_FRAMES and may_retry else Action.NOTHING

    def _decide_idle(self, facts: LogFacts, idle_s: float, since: int) -> Action:
        if facts.is_settled:
            return Action.NOTHING
        if idle_s < SETTLE_S and since >= LONG_FRAMES:
            # It may be a writer at full speed that was kept from the processor for a moment: to
            # settle takes no lock, and its log would grow by thousands of frames meanwhile.
            return Action.ROTATE
        return Action.SETTLE if idle_s >= SETTLE_S or since >= SETTLE_FRAMES else Action.NOTHING

    def _decide_free(self, now: float, facts: LogFacts) -> Action:
        if self.is_strict(now) or self._wants_pin:
            return Action.ENGAGE
        if facts.frame_max < UNCHECKED_FRAMES:
            self._unchecked_since = None
        elif self._unchecked_since is None:
            self._unchecked_since = now
        elif now - self._unchecked_since >= UNCHECKED_S and now >= self._retry_at:
            return Action.ROTATE
        return Action.NOTHING

    def next_call_s(self, now: float, facts: LogFacts) -> float | None:
        """Return when to be called again although nothing happens, or None: never."""
        if facts.is_settled or not facts.is_pinned:
            return None
        due_s = max(SETTLE_S - self.idle_s(now), self._retry_at - now, 0.001)
        return min(due_s, WATCH_S)
