"""Waking up without inotify: looking at every file again and again, as seldom as is bearable.

Theory of operation
===================

A *look* is two stat calls, or one stat and the shard's own probe (the wal-index header, which is
the better witness: a -wal that is reused keeps its size). What differs from the last look is told
as the same signals that inotify would give.

How soon a shard is looked at again follows what was found: 2 ms after a change, then half as much
longer each time, up to 100 ms; with many shards longer, so that all of them together are looked
at 2,000 times a second at most (4,000 stat calls, about 1 % of a core).

A file's time has the grain of the kernel's clock tick. Two writes within one tick look alike, so
a file that changed within the last 50 ms counts as changed once more at the next look.
"""

import os
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final

from basenet.sqlite.signals import JOURNAL_SUFFIX, WAL_SUFFIX, Events, Probe, Signal

POLL_NS_MIN: Final = 2_000_000
POLL_NS_MAX: Final = 100_000_000
POLLS_PER_SECOND_MAX: Final = 2_000
_GRAIN_NS: Final = 50_000_000
_SECOND_NS: Final = 1_000_000_000


class _Mark:
    """One file as it was at one look."""

    __slots__ = ("identity", "modified_ns", "state")

    def __init__(self, status: os.stat_result) -> None:
        self.identity = (status.st_dev, status.st_ino)
        self.modified_ns = status.st_mtime_ns
        self.state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _mark(path: str) -> _Mark | None:
    """Return what tells two states of a file apart, or None if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116  (a Path costs more than the call)
    except OSError:
        return None  # also when a directory above it is gone or closed to us
    return _Mark(status)


class _Shard:
    """One polled shard: what the last look found and when the next is due."""

    __slots__ = (
        "database",
        "due_ns",
        "had_journal",
        "interval_ns",
        "opens_wanted",
        "path",
        "paused",
        "probe",
        "probed",
        "wal",
    )

    def __init__(self, path: Path, probe: Probe | None, now_ns: int) -> None:
        self.path = path
        self.probe = probe
        self.paused = False
        self.opens_wanted = False
        self.interval_ns = POLL_NS_MIN
        self.due_ns = now_ns + POLL_NS_MIN
        self.database = _mark(os.fspath(path))
        self.wal = _mark(f"{path}{WAL_SUFFIX}")
        self.had_journal = False
        self.probed: Hashable = None


class _Listing:
    """One polled directory."""

    __slots__ = ("due_ns", "mark", "path")

    def __init__(self, path: Path, due_ns: int) -> None:
        self.path = path
        self.mark = _mark(os.fspath(path))
        self.due_ns = due_ns


class PollingWake:
    """Polled shards and directories. It holds nothing open.

    ``clock`` gives monotonic nanoseconds, ``wall_clock`` those of the file system's times.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Watch nothing yet."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._shards: dict[str, _Shard] = {}
        self._listings: dict[str, _Listing] = {}

    @property
    def keys(self) -> frozenset[str]:
        """The shards that are polled."""
        return frozenset(self._shards)

    def seconds_to_poll(self) -> float | None:
        """Return in how many seconds `read_events` is due; None: there is nothing to poll."""
        due = [shard.due_ns for shard in self._shards.values() if not shard.paused]
        due += [listing.due_ns for listing in self._listings.values()]
        if not due:
            return None
        return max(0, min(due) - self._clock()) / _SECOND_NS

    def watch(self, key: str, path: Path, probe: Probe | None = None) -> None:
        """Poll the database at ``path``, which need not exist. Look once afterwards."""
        assert key not in self._shards, f"shard {key} is watched already"
        self._shards[key] = shard = _Shard(path, probe, self._clock())
        if probe is not None:
            shard.probed = probe()

    def unwatch(self, key: str) -> None:
        """Poll this shard no longer; one that is not polled is none the worse."""
        self._shards.pop(key, None)

    def watch_directory(self, key: str, path: Path) -> None:
        """Tell ``key`` when names in the directory come and go. Look once afterwards."""
        self._listings[key] = _Listing(path, self._clock() + POLL_NS_MAX)

    def unwatch_directory(self, key: str) -> None:
        """Undo `watch_directory`."""
        self._listings.pop(key, None)

    def pause(self, key: str) -> None:
        """Do not look at this shard until `resume`."""
        if key in self._shards:
            self._shards[key].paused = True

    def resume(self, key: str) -> None:
        """Look at this shard again, soon."""
        shard = self._shards.get(key)
        if shard is not None:
            shard.paused = False
            self._hurry(shard)

    def set_probe(self, key: str, probe: Probe | None) -> None:
        """Ask ``probe`` instead of the -wal's size and time, or stop asking it (None).

        Call it with None before what the probe reads is closed.
        """
        shard = self._shards.get(key)
        if shard is not None:
            shard.probe = probe
            shard.probed = probe() if probe is not None else None
            self._hurry(shard)

    def watch_opens(self, key: str) -> None:
        """Tell `OPENED` when the -wal appears: a bare open cannot be seen by looking."""
        if key in self._shards:
            self._shards[key].opens_wanted = True

    def ignore_opens(self, key: str) -> None:
        """Undo `watch_opens`."""
        if key in self._shards:
            self._shards[key].opens_wanted = False

    def read_events(self) -> Events:
        """Look at what is due; return what differs, each (key, signal) once; never blocks."""
        now_ns = self._clock()
        told: Events = []
        for key, shard in self._shards.items():
            if not shard.paused and shard.due_ns <= now_ns:
                signals = self._look(shard)
                told += [(key, signal) for signal in signals]
                self._reschedule(shard, now_ns, changed=bool(signals))
        for key, listing in self._listings.items():
            if listing.due_ns <= now_ns:
                if self._is_listing_changed(listing):
                    told.append((key, Signal.LISTING_CHANGED))
                listing.due_ns = now_ns + POLL_NS_MAX
        return told

    def _hurry(self, shard: _Shard) -> None:
        shard.interval_ns = POLL_NS_MIN
        shard.due_ns = self._clock() + POLL_NS_MIN

    def _reschedule(self, shard: _Shard, now_ns: int, *, changed: bool) -> None:
        fair_ns = len(self._shards) * _SECOND_NS // POLLS_PER_SECOND_MAX
        longest_ns = max(POLL_NS_MAX, fair_ns)
        grown_ns = POLL_NS_MIN if changed else shard.interval_ns * 3 // 2
        # Many shards that change at once still share the budget.
        shard.interval_ns = max(min(grown_ns, longest_ns), min(fair_ns, longest_ns))
        shard.due_ns = now_ns + shard.interval_ns

    def _look(self, shard: _Shard) -> list[Signal]:
        signals = self._look_at_database(shard)
        wal = _mark(f"{shard.path}{WAL_SUFFIX}")
        if _is_other_file(shard.wal, wal):
            signals.append(Signal.WAL_APPEARED if wal is not None else Signal.WAL_VANISHED)
            if wal is not None and shard.opens_wanted:
                signals.append(Signal.OPENED)
        elif self._is_written(shard, wal):
            signals.append(Signal.WRITTEN)
        shard.wal = wal
        return signals

    def _look_at_database(self, shard: _Shard) -> list[Signal]:
        before, after = shard.database, _mark(os.fspath(shard.path))
        shard.database = after
        had_journal, shard.had_journal = shard.had_journal, False
        if _is_other_file(before, after):
            return [Signal.DATABASE_VANISHED if after is None else Signal.DATABASE_APPEARED]
        if before is None or after is None or shard.wal is not None:
            return []  # a rollback journal is of interest only until there is a -wal
        shard.had_journal = Path(f"{shard.path}{JOURNAL_SUFFIX}").exists()
        ended = had_journal or before.state != after.state
        return [Signal.JOURNAL_VANISHED] if ended and not shard.had_journal else []

    def _is_written(self, shard: _Shard, wal: _Mark | None) -> bool:
        if shard.probe is not None:
            probed = shard.probe()
            changed = probed != shard.probed
            shard.probed = probed
            return changed
        if wal is None or shard.wal is None:
            return False
        # Within the grain of the clock the next write would look the same.
        is_fresh = -_GRAIN_NS <= self._wall_clock() - wal.modified_ns <= _GRAIN_NS
        return is_fresh or wal.state != shard.wal.state

    def _is_listing_changed(self, listing: _Listing) -> bool:
        before, after = listing.mark, _mark(os.fspath(listing.path))
        listing.mark = after
        if before is None or after is None:
            return before is not after
        is_fresh = -_GRAIN_NS <= self._wall_clock() - after.modified_ns <= _GRAIN_NS
        return is_fresh or (before.identity, before.state) != (after.identity, after.state)


def _is_other_file(before: _Mark | None, after: _Mark | None) -> bool:
    """Return whether a file came, went or was replaced."""
    if before is None or after is None:
        return before is not after
    return before.identity != after.identity
