"""Waking up by inotify: one kernel queue for all shards of a node.

Theory of operation
===================

Watched are, per shard, the -wal file (IN_MODIFY) and while detached the database file (IN_OPEN);
per directory, shared by all shards in it, names that come and go. A watch belongs to an *inode*:
a -wal that SQLite removes and creates again is another one, so the directory's events move the
watch along. The new watch is set before the signal is handed out, and who receives a signal looks
at the file, so no write falls between the two.

The same order makes these calls free of races; each ends with *you look once*:

=================  ===========================================================================
``watch``          then look: what happened before has no event
``resume``         then look: a write while paused has no event
``watch_opens``    then look whether somebody holds the file: an open before it has no event
=================  ===========================================================================

What we do must not wake us for ever. Reading is not watched (no IN_ACCESS), so a look makes no
event. Opening is: whoever is about to open the database file for a shard calls `ignore_opens`
first. At tens of thousands of writes a second every one would wake us, so a shard that is being
polled anyway is *paused*: its -wal watch is taken away.

A queue holds fs.inotify.max_queued_events (16,384). When it overflows events are lost, among them
perhaps the creation of a -wal; every watch is then set anew and everybody is told `OVERFLOW`.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import inotify_simple
from inotify_simple import flags

from basenet.errors import ConflictError, UnavailableError
from basenet.sqlite.signals import (
    JOURNAL_SUFFIX,
    WAL_SUFFIX,
    Events,
    Signal,
    side_file_owner,
)

_DIRECTORY_MASK: Final = int(
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
_WAL_MASK: Final = int(flags.MODIFY)
_OPEN_MASK: Final = int(flags.OPEN)
_GONE: Final = int(flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED)
_CAME: Final = int(flags.CREATE | flags.MOVED_TO)
_WENT: Final = int(flags.DELETE | flags.MOVED_FROM)


class _Shard:
    """What is watched for one shard; ``wal`` and ``opens`` are watch descriptors."""

    __slots__ = ("directory", "key", "opens", "opens_wanted", "path", "paused", "wal")

    def __init__(self, key: str, path: Path, directory: "_Directory") -> None:
        self.key = key
        self.path = path
        self.directory = directory
        self.wal: int | None = None
        self.opens: int | None = None
        self.paused = False
        self.opens_wanted = False

    @property
    def wal_path(self) -> str:
        return f"{self.path}{WAL_SUFFIX}"


class _Directory:
    """One watched directory, the shards in it by file name, and who wants to know of new names."""

    __slots__ = ("listeners", "path", "shards", "watch")

    def __init__(self, path: Path, watch: int) -> None:
        self.path = path
        self.watch = watch
        self.shards: dict[str, _Shard] = {}
        self.listeners: set[str] = set()

    def keys(self) -> list[str]:
        return [shard.key for shard in self.shards.values()] + sorted(self.listeners)


class InotifyWake:
    """All watches of a node on one inotify instance. Close it with `close`."""

    def __init__(self) -> None:
        """Raise `UnavailableError` if the kernel gives no instance."""
        try:
            self._inotify = inotify_simple.INotify(nonblocking=True)
        except OSError as error:
            raise UnavailableError(
                f"inotify gives no instance ({error.strerror}): raise the sysctl "
                "fs.inotify.max_user_instances; until then the databases are polled"
            ) from error
        self._shards: dict[str, _Shard] = {}
        self._directories: dict[int, _Directory] = {}
        self._listened: dict[str, _Directory] = {}
        self._wals: dict[int, _Shard] = {}
        self._opens: dict[int, _Shard] = {}

    @property
    def fd(self) -> int:
        """The descriptor that is readable when `read_events` has something; not for reading."""
        return int(self._inotify.fileno())

    @property
    def watches(self) -> int:
        """How many kernel watches are in use."""
        return len(self._directories) + len(self._wals) + len(self._opens)

    def close(self) -> None:
        """Give up every watch and the descriptor."""
        self._inotify.close()

    # -- what to watch ---------------------------------------------------------------------------

    def watch(self, key: str, path: Path) -> None:
        """Watch the database at ``path`` (resolved, it need not exist) and its -wal.

        Look once afterwards. Raises `UnavailableError` if its directory does not exist or the
        kernel gives no more watches, `ConflictError` if the file is watched as another shard;
        nothing is watched then.
        """
        assert key not in self._shards, f"shard {key} is watched already"
        directory = self._enter_directory(path.parent)
        other = directory.shards.get(path.name)
        if other is not None:
            raise ConflictError(
                f"shards {other.key} and {key} are the same file {path}; "
                "name it once in BASE_SHARDS"
            )
        shard = _Shard(key, path, directory)
        directory.shards[path.name] = shard
        self._shards[key] = shard
        try:
            self._set_wal(shard)
        except UnavailableError:
            self.unwatch(key)
            raise

    def unwatch(self, key: str) -> None:
        """Watch this shard no longer; one that is not watched is none the worse."""
        shard = self._shards.pop(key, None)
        if shard is None:
            return
        self._clear_wal(shard)
        self._clear_opens(shard)
        del shard.directory.shards[shard.path.name]
        self._leave_directory(shard.directory)

    def watch_directory(self, key: str, path: Path) -> None:
        """Tell ``key`` when names in the directory ``path`` come and go. Look once afterwards.

        Raises `UnavailableError` as `watch` does.
        """
        assert key not in self._listened, f"{key} watches a directory already"
        directory = self._enter_directory(path)
        directory.listeners.add(key)
        self._listened[key] = directory

    def unwatch_directory(self, key: str) -> None:
        """Undo `watch_directory`; one that is not watched is none the worse."""
        directory = self._listened.pop(key, None)
        if directory is not None:
            directory.listeners.discard(key)
            self._leave_directory(directory)

    def pause(self, key: str) -> None:
        """Tell nothing about writes to this -wal any more: it is being polled."""
        shard = self._shards.get(key)
        if shard is not None:
            shard.paused = True
            self._clear_wal(shard)

    def resume(self, key: str) -> None:
        """Tell of writes again. Look once afterwards. Raises `UnavailableError`: still paused."""
        shard = self._shards.get(key)
        if shard is not None and shard.paused:
            shard.paused = False
            try:
                self._set_wal(shard)
            except UnavailableError:
                shard.paused = True
                raise

    def watch_opens(self, key: str) -> None:
        """Tell when somebody opens the database file. Look once afterwards.

        Raises `UnavailableError` if the kernel gives no more watches.
        """
        shard = self._shards.get(key)
        if shard is not None:
            shard.opens_wanted = True
            self._set_opens(shard)

    def ignore_opens(self, key: str) -> None:
        """Tell no longer of opens; call it before opening the file yourself."""
        shard = self._shards.get(key)
        if shard is not None:
            shard.opens_wanted = False
            self._clear_opens(shard)

    # -- what happened ---------------------------------------------------------------------------

    def read_events(self) -> Events:
        """Return what happened since the last call, each (key, signal) once; never blocks."""
        # A dictionary keeps the order of first appearance and forgets repetitions.
        seen: dict[tuple[str, Signal], None] = {}
        for event in self._inotify.read(timeout=0):
            for told in self._on_event(event.wd, event.mask, event.name):
                seen[told] = None
        return list(seen)

    def _on_event(self, watch: int, mask: int, name: str) -> Events:
        if mask & flags.Q_OVERFLOW:
            return self._on_overflow()
        if watch in self._wals:
            return self._on_wal(self._wals[watch], mask)
        if watch in self._opens:
            return self._on_opens(self._opens[watch], mask)
        directory = self._directories.get(watch)
        if directory is None:
            return []  # the rest of a watch that we took away
        if mask & _GONE:
            return self._on_directory_gone(directory)
        return self._on_name(directory, mask, name)

    def _on_wal(self, shard: _Shard, mask: int) -> Events:
        if mask & flags.MODIFY:
            return [(shard.key, Signal.WRITTEN)]
        # The inode is gone; its directory's event may come before or after this one.
        return [*self._reset(shard, opens=False), (shard.key, Signal.WAL_VANISHED)]

    def _on_opens(self, shard: _Shard, mask: int) -> Events:
        if mask & flags.OPEN:
            return [(shard.key, Signal.OPENED)]
        return [*self._reset(shard, wal=False), (shard.key, Signal.DATABASE_VANISHED)]

    def _on_directory_gone(self, directory: _Directory) -> Events:
        told = [(key, Signal.UNWATCHED) for key in directory.keys()]  # noqa: SIM118  (not a dict)
        for shard in list(directory.shards.values()):
            self.unwatch(shard.key)
        for key in list(directory.listeners):
            self.unwatch_directory(key)
        return told

    def _on_name(self, directory: _Directory, mask: int, name: str) -> Events:
        """Tell what it means that a name in a watched directory came or went."""
        owner = side_file_owner(name)
        shard = directory.shards.get(name) or directory.shards.get(owner)
        told: Events = []
        if shard is None or shard.path.name == name:
            told += [(key, Signal.LISTING_CHANGED) for key in sorted(directory.listeners)]
        if shard is None:
            return told
        if shard.path.name == name:
            return told + self._on_database_name(shard, mask)
        if name.endswith(WAL_SUFFIX):
            return self._on_wal_name(shard, mask)
        if name.endswith(JOURNAL_SUFFIX) and mask & _WENT:
            return [(shard.key, Signal.JOURNAL_VANISHED)]
        return []

    def _on_wal_name(self, shard: _Shard, mask: int) -> Events:
        # Whatever the event, the name may mean another inode by now.
        signal = Signal.WAL_APPEARED if mask & _CAME else Signal.WAL_VANISHED
        return [*self._reset(shard, opens=False), (shard.key, signal)]

    def _on_database_name(self, shard: _Shard, mask: int) -> Events:
        signal = Signal.DATABASE_APPEARED if mask & _CAME else Signal.DATABASE_VANISHED
        return [*self._reset(shard, wal=False), (shard.key, signal)]

    def _on_overflow(self) -> Events:
        """Set every watch anew, for the event that would have moved it may be lost."""
        told: Events = []
        for directory in list(self._directories.values()):
            told += self._check_directory(directory)
        for shard in list(self._shards.values()):
            told += self._reset(shard)
        told += [(key, Signal.OVERFLOW) for key in self._shards]
        return told + [(key, Signal.OVERFLOW) for key in self._listened]

    def _check_directory(self, directory: _Directory) -> Events:
        """Let go of a directory whose path no longer leads to what is watched."""
        watch: int | None = None
        with suppress(UnavailableError):
            watch = self._add(directory.path, _DIRECTORY_MASK)
        if watch == directory.watch:
            return []
        if watch is not None and watch not in self._directories:
            self._remove(watch)
        return self._on_directory_gone(directory)

    def _reset(self, shard: _Shard, *, wal: bool = True, opens: bool = True) -> Events:
        """Set the watches of a shard anew, in the middle of reading events.

        A watch was just given back, so the kernel refuses only if another process took it in
        between; the shard is then let go as a whole, and told so.
        """
        try:
            if wal:
                self._clear_wal(shard)
                self._set_wal(shard)
            if opens:
                self._clear_opens(shard)
                self._set_opens(shard)
        except UnavailableError:
            self.unwatch(shard.key)
            return [(shard.key, Signal.UNWATCHED)]
        return []

    # -- the kernel's side -----------------------------------------------------------------------

    def _set_wal(self, shard: _Shard) -> None:
        if shard.paused:
            return
        watch = self._add(Path(shard.wal_path), _WAL_MASK)
        if watch is not None:
            shard.wal = watch
            self._wals[watch] = shard

    def _clear_wal(self, shard: _Shard) -> None:
        if shard.wal is not None:
            if self._wals.get(shard.wal) is shard:
                del self._wals[shard.wal]
                self._remove(shard.wal)
            shard.wal = None

    def _set_opens(self, shard: _Shard) -> None:
        if not shard.opens_wanted:
            return
        watch = self._add(shard.path, _OPEN_MASK)
        if watch is not None:
            shard.opens = watch
            self._opens[watch] = shard

    def _clear_opens(self, shard: _Shard) -> None:
        # Two names of one file share the kernel's watch, and whoever asked last has it. Only one
        # of them can be attached; the other one is refused, and misses nothing.
        if shard.opens is not None:
            if self._opens.get(shard.opens) is shard:
                del self._opens[shard.opens]
                self._remove(shard.opens)
            shard.opens = None

    def _enter_directory(self, path: Path) -> _Directory:
        watch = self._add(path, _DIRECTORY_MASK)
        if watch is None:
            raise UnavailableError(
                f"directory {path} cannot be watched, for it does not exist: create it"
            )
        directory = self._directories.get(watch)
        if directory is None:
            directory = self._directories[watch] = _Directory(path, watch)
        return directory

    def _leave_directory(self, directory: _Directory) -> None:
        if not directory.shards and not directory.listeners:
            self._directories.pop(directory.watch, None)
            self._remove(directory.watch)

    def _add(self, path: Path, mask: int) -> int | None:
        """Return the watch descriptor of ``path``, the same for the same inode; None: not there."""
        try:
            return int(self._inotify.add_watch(os.fspath(path), mask))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            if error.errno == errno.ENOSPC:
                raise UnavailableError(
                    f"inotify gives no watch for {path}: raise the sysctl "
                    "fs.inotify.max_user_watches (a shard needs up to 3); until then it is polled"
                ) from error
            raise UnavailableError(
                f"{path} cannot be watched ({error.strerror}): let basenet's user read it; "
                "until then it is polled"
            ) from error

    def _remove(self, watch: int) -> None:
        # EINVAL: the kernel dropped it first, with its inode.
        with suppress(OSError):
            self._inotify.rm_watch(watch)
