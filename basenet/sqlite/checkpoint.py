"""Our checkpoints: always PASSIVE, and never into a file that is no longer the path's.

A PASSIVE checkpoint copies what no reader needs any more from the log to the database file and
waits for nobody. SQLite does not test whether the file was moved away (sqlite3PagerCheckpoint), and
the new file's application shares our -wal and -shm by name: its commits would be copied into the
*old* file and marked as done. So each call first compares the paths with our descriptors.
"""

from dataclasses import dataclass
from typing import Protocol

import apsw

from basenet.errors import ConflictError


class DatabaseReplaced(ConflictError):  # noqa: N818  (states a fact; the kind is in the base)
    """The database's path, or that of its -wal or -shm, leads to another file than ours."""


class Guarded(Protocol):
    """What a checkpoint needs to know about the file."""

    def why_foreign(self) -> str | None:
        """Return why the path is no longer ours, or None if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointResult:
    """How far a checkpoint came.

    ``is_busy``: another checkpoint was running, nothing was done. ``problem``: the disk's or the
    file's complaint (disk full), nothing is lost by it.
    """

    is_busy: bool
    frames: int = 0
    backfilled: int = 0
    problem: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the database file now holds everything that the log held."""
        return not self.is_busy and self.problem is None and self.frames == self.backfilled


def checkpoint_passive(file: Guarded, connection: apsw.Connection) -> CheckpointResult:
    """Copy what can be copied from the log to the database file, waiting for nobody.

    ``connection`` must be in no transaction. Raises `DatabaseReplaced` instead of touching a file
    that is not the path's.
    """
    foreign = file.why_foreign()
    if foreign is not None:
        raise DatabaseReplaced(foreign)
    try:
        frames, backfilled = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    except apsw.BusyError:
        return CheckpointResult(is_busy=True)
    except apsw.Error as error:
        return CheckpointResult(is_busy=False, problem=str(error))
    return CheckpointResult(is_busy=False, frames=frames, backfilled=backfilled)
