"""How a node learns that one of its databases is worth a look.

Theory of operation
===================

`Wake` serves all shards of a node from one place: by inotify where the kernel gives it, shard by
shard by polling where it does not (another system, no instance, no watch left, a directory that
does not exist yet). Both tell the same signals, so nobody else needs to know which it is. Its
owner waits until `fd` is readable or `seconds_to_poll` have passed, whichever is first, and calls
`read_events`.

A wake can precede the commit: SQLite writes the frames, perhaps syncs them for a long time, and
only then moves the wal-index header, through a mapping that no event betrays. So after a wake the
header is read again and again, each time twice as long after the last, until the slowest
bearable disk has answered: that is `Recheck`. It always runs to its end, because the commit that a
look found may belong to an earlier write than the one that woke us. For the same reason it follows
*every* look that a signal, `watch`, `resume` or `watch_opens` asks for, not only `WRITTEN`: the
write may lie before the watch, and its commit after the look.
"""

import heapq
from pathlib import Path
from typing import Final

from basenet.errors import UnavailableError
from basenet.sqlite.inotify import InotifyWake
from basenet.sqlite.polling import PollingWake
from basenet.sqlite.signals import Events, Probe, Signal

RECHECK_NS_MIN: Final = 500_000
RECHECK_NS_MAX: Final = 64_000_000_000


class Wake:
    """The one waker of a node. Close it with `close`. See `InotifyWake` for who must look when."""

    def __init__(self, *, inotify: InotifyWake | None, polling: PollingWake) -> None:
        """Take the two halves; None: the platform has no inotify, so everything is polled."""
        self._inotify = inotify
        self._polling = polling
        self._probes: dict[str, Probe | None] = {}
        self._paths: dict[str, Path] = {}
        self._listings: dict[str, Path] = {}
        self._opens_wanted: set[str] = set()
        self._paused: set[str] = set()
        self.reasons: dict[str, str] = {}
        """Why a shard or directory is polled, one sentence each; for the log and `status`."""

    @property
    def fd(self) -> int | None:
        """The descriptor to wait on; None: there is none, poll."""
        return self._inotify.fd if self._inotify is not None else None

    def seconds_to_poll(self) -> float | None:
        """Return in how many seconds to call `read_events` at the latest; None: only by `fd`."""
        return self._polling.seconds_to_poll()

    def close(self) -> None:
        """Give up every watch."""
        if self._inotify is not None:
            self._inotify.close()

    def watch(self, key: str, path: Path, probe: Probe | None = None) -> None:
        """Tell of the database at ``path`` (resolved; it need not exist). Look once afterwards.

        Raises `ConflictError` if the file is watched as another shard already.
        """
        assert key not in self._paths, f"shard {key} is watched already"
        self._enter(key, path, probe)
        self._paths[key] = path
        self._probes[key] = probe

    def unwatch(self, key: str) -> None:
        """Tell nothing more of this shard."""
        self._paths.pop(key, None)
        self._probes.pop(key, None)
        self._opens_wanted.discard(key)
        self._paused.discard(key)
        self._leave(key)

    def watch_directory(self, key: str, path: Path) -> None:
        """Tell ``key`` `LISTING_CHANGED` when names in a directory come and go. Look once after."""
        self._listings[key] = path
        try:
            if self._inotify is not None:
                self._inotify.watch_directory(key, path)
                return
        except UnavailableError as error:
            self.reasons[key] = str(error)
        self._polling.watch_directory(key, path)

    def unwatch_directory(self, key: str) -> None:
        """Undo `watch_directory`."""
        self._listings.pop(key, None)
        self.reasons.pop(key, None)
        self._polling.unwatch_directory(key)
        if self._inotify is not None:
            self._inotify.unwatch_directory(key)

    def pause(self, key: str) -> None:
        """Tell nothing of writes: the shard is being captured at full speed anyway."""
        self._paused.add(key)
        self._polling.pause(key)
        if self._inotify is not None:
            self._inotify.pause(key)

    def resume(self, key: str) -> None:
        """Tell of writes again. Look once afterwards."""
        self._paused.discard(key)
        self._polling.resume(key)
        if self._inotify is not None:
            try:
                self._inotify.resume(key)
            except UnavailableError as error:
                self._demote(key, str(error))

    def watch_opens(self, key: str) -> None:
        """Tell when somebody opens the database file. Look once afterwards (locks, -wal)."""
        self._opens_wanted.add(key)
        self._polling.watch_opens(key)
        if self._inotify is not None:
            try:
                self._inotify.watch_opens(key)
            except UnavailableError as error:
                self._demote(key, str(error))

    def ignore_opens(self, key: str) -> None:
        """Tell no longer of opens; call it before opening the database file yourself."""
        self._opens_wanted.discard(key)
        self._polling.ignore_opens(key)
        if self._inotify is not None:
            self._inotify.ignore_opens(key)

    def set_probe(self, key: str, probe: Probe | None) -> None:
        """Give what a poll should ask for this shard; None before what it reads is closed."""
        if key in self._paths:
            self._probes[key] = probe
            self._polling.set_probe(key, probe)

    def read_events(self) -> Events:
        """Return what happened, each (key, signal) once; never blocks."""
        told = self._polling.read_events()
        for key, signal in told:
            if signal in (Signal.DATABASE_APPEARED, Signal.WAL_APPEARED, Signal.LISTING_CHANGED):
                self._promote(key)
        if self._inotify is not None:
            for key, signal in self._inotify.read_events():
                if signal is Signal.UNWATCHED:
                    self._demote(key, f"the directory of {key} was moved or removed")
                told.append((key, signal))
        return told

    def _enter(self, key: str, path: Path, probe: Probe | None) -> None:
        """Watch by inotify if possible, else poll and note why."""
        if self._inotify is None:
            self._polling.watch(key, path, probe)
            return
        try:
            self._inotify.watch(key, path)
            if key in self._opens_wanted:
                self._inotify.watch_opens(key)
            if key in self._paused:
                self._inotify.pause(key)
        except UnavailableError as error:
            self._inotify.unwatch(key)
            self.reasons[key] = str(error)
            self._poll(key, path, probe)

    def _poll(self, key: str, path: Path, probe: Probe | None) -> None:
        self._polling.watch(key, path, probe)
        if key in self._opens_wanted:
            self._polling.watch_opens(key)
        if key in self._paused:
            self._polling.pause(key)

    def _leave(self, key: str) -> None:
        self.reasons.pop(key, None)
        self._polling.unwatch(key)
        if self._inotify is not None:
            self._inotify.unwatch(key)

    def _demote(self, key: str, reason: str) -> None:
        """Poll what inotify watched until now."""
        if key in self._paths:
            self._leave(key)
            self.reasons[key] = reason
            self._poll(key, self._paths[key], self._probes[key])
        elif key in self._listings:
            self.reasons[key] = reason
            self._polling.watch_directory(key, self._listings[key])

    def _promote(self, key: str) -> None:
        """Try inotify again for what is polled and has just come (back) into being.

        A shard that is polled for want of a watch is tried with each of its new -wal files, which
        costs a system call and ends as it was.
        """
        if self._inotify is None:
            return
        if key in self._polling.keys:
            self._leave(key)
            self._enter(key, self._paths[key], self._probes[key])
        elif key in self._listings:
            path = self._listings[key]
            self.unwatch_directory(key)
            self.watch_directory(key, path)


def open_wake(*, poll_only: bool = False) -> Wake:
    """Return the waker of this machine: inotify with polling as its reserve, or polling alone.

    Close it with `Wake.close`.
    """
    if poll_only:
        return Wake(inotify=None, polling=PollingWake())
    try:
        inotify = InotifyWake()
    except UnavailableError as error:
        wake = Wake(inotify=None, polling=PollingWake())
        wake.reasons[""] = str(error)
        return wake
    return Wake(inotify=inotify, polling=PollingWake())


class Recheck:
    """When to read which header again after a wake; time is an argument, monotonic nanoseconds."""

    def __init__(self) -> None:
        """Have nothing to read again."""
        self._steps: dict[str, tuple[int, int]] = {}  # key: (due, step that follows)
        self._heap: list[tuple[int, str]] = []

    def after_wake(self, key: str, now_ns: int) -> None:
        """Begin the series of ``key`` anew: something asked for a look just now."""
        self._schedule(key, now_ns + RECHECK_NS_MIN, 2 * RECHECK_NS_MIN)

    def forget(self, key: str) -> None:
        """End the series of ``key``: it is detached, or polled without pause."""
        self._steps.pop(key, None)

    def due(self, now_ns: int) -> list[str]:
        """Return the keys to look at now, each once."""
        keys = []
        while self._heap and self._heap[0][0] <= now_ns:
            due_ns, key = heapq.heappop(self._heap)
            step = self._steps.get(key)
            if step is None or step[0] != due_ns:
                continue  # overtaken by a later wake
            keys.append(key)
            if step[1] > RECHECK_NS_MAX:
                del self._steps[key]
            else:
                self._schedule(key, now_ns + step[1], 2 * step[1])
        return keys

    def seconds_to_next(self, now_ns: int) -> float | None:
        """Return in how many seconds `due` has something; None: nothing until the next wake."""
        while self._heap:
            due_ns, key = self._heap[0]
            step = self._steps.get(key)
            if step is not None and step[0] == due_ns:
                return max(0, due_ns - now_ns) / 1e9
            heapq.heappop(self._heap)
        return None

    def _schedule(self, key: str, due_ns: int, following_ns: int) -> None:
        self._steps[key] = (due_ns, following_ns)
        heapq.heappush(self._heap, (due_ns, key))
