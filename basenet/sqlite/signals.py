"""What a wake says about a shard.

A signal says *look*, never what will be found: the file may have changed again, several events
may have become one, and their order is not kept. Whoever receives one reads the present state.
"""

from collections.abc import Hashable
from enum import Enum, unique
from typing import Protocol

WAL_SUFFIX = "-wal"
SHM_SUFFIX = "-shm"
JOURNAL_SUFFIX = "-journal"
SIDE_SUFFIXES = (WAL_SUFFIX, SHM_SUFFIX, JOURNAL_SUFFIX)


@unique
class Signal(Enum):
    """Why a shard, or a watched directory, is worth a look."""

    WRITTEN = "written"
    """Somebody wrote to the -wal; the commit may follow a moment later (see `Recheck`)."""
    WAL_APPEARED = "wal_appeared"
    WAL_VANISHED = "wal_vanished"
    DATABASE_APPEARED = "database_appeared"
    """The database file was created, or another file was renamed over it."""
    DATABASE_VANISHED = "database_vanished"
    JOURNAL_VANISHED = "journal_vanished"
    """A rollback transaction ended: an empty file may have become a database."""
    OPENED = "opened"
    """Some process opened the database file; only told between `watch_opens` and `ignore_opens`."""
    LISTING_CHANGED = "listing_changed"
    """A watched directory gained or lost a name that is not a side file of a watched shard."""
    OVERFLOW = "overflow"
    """Events were lost, so anything may have happened; everybody gets this one."""
    UNWATCHED = "unwatched"
    """The directory is gone or was moved away, and with it the watch: nothing more will be told."""


class Probe(Protocol):
    """Something cheap that changes with every commit, for shards that have to be polled."""

    def __call__(self) -> Hashable:
        """Return the present value, such as the first 48 bytes of the -shm; must not raise."""


Events = list[tuple[str, Signal]]


def side_file_owner(name: str) -> str:
    """Return the name of the database to which the side file ``name`` belongs, or ``name``."""
    for suffix in SIDE_SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name
