"""Our checkpoints: PASSIVE but for one case, and never into a file that is no longer the path's.

A PASSIVE checkpoint copies what no reader needs any more from the log to the database file and
waits for nobody. SQLite does not test whether the file was moved away (sqlite3PagerCheckpoint), and
the new file's application shares our -wal and -shm by name: its commits would be copied into the
*old* file and marked as done. So each call first compares the paths with our descriptors.

The one case is a log that the next recovery would cut (`unsealed`): it is truncated. That one takes
the write lock and waits for readers while it holds it, for `TRUNCATE_TRY_MS` at most.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import apsw

from basenet.errors import ConflictError

TRUNCATE_TRY_MS: Final = 20


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
    return _checkpoint(file, connection, apsw.SQLITE_CHECKPOINT_PASSIVE)


def checkpoint_truncate(file: Guarded, connection: apsw.Connection) -> CheckpointResult:
    """Copy the log to the database file and cut it off, or come as far as in `TRUNCATE_TRY_MS`.

    ``connection`` must be in no transaction, and no mark above 0 be held by us. `is_complete` says
    whether the log is empty now. Raises `DatabaseReplaced` as `checkpoint_passive`.
    """
    connection.set_busy_timeout(TRUNCATE_TRY_MS)
    try:
        return _checkpoint(file, connection, apsw.SQLITE_CHECKPOINT_TRUNCATE)
    finally:
        connection.set_busy_timeout(0)


def _checkpoint(file: Guarded, connection: apsw.Connection, mode: int) -> CheckpointResult:
    foreign = file.why_foreign()
    if foreign is not None:
        raise DatabaseReplaced(foreign)
    try:
        frames, backfilled = connection.wal_checkpoint(mode=mode)
    except apsw.BusyError:
        return CheckpointResult(is_busy=True)
    except apsw.Error as error:
        return CheckpointResult(is_busy=False, problem=str(error))
    return CheckpointResult(is_busy=False, frames=frames, backfilled=backfilled)
