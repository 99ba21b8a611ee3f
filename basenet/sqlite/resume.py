"""Where to go on in the log after a life without us.

iChange lives in the wal-index, which is born anew when everybody has left the database: across two
lives of the daemon an equal count proves nothing. What does:

* *the same generation*: the log still has the cursor's salts, stores the cursor's checksum at the
  cursor's frame, and goes on from there without a break. Everything behind the cursor is news.
  (An empty log has no salts, and so no generation: it may be another one than it was.)
* *an untouched file*: it looks as it did when we let it go with an empty log (`DetachedState`), so
  nothing was copied into it since, and everything since lies in the present log from frame 1 on.

Anything else is a scan: page by page against the leaf hashes (`recover`), which also tells whether
the file is ahead of what was captured, behind it, or another one.
"""

from dataclasses import dataclass, replace
from enum import Enum

from basenet.sqlite.attach import Database, DetachedState, state_of
from basenet.sqlite.captured import Cursor
from basenet.sqlite.tail import LogReader
from basenet.sqlite.walindex import Index

_MASK = 0xFFFFFFFF


class Outcome(Enum):
    """What was found. The last four need a scan."""

    RESUMED = "resumed"
    UNCHANGED = "unchanged"
    UNKNOWN = "unknown"
    AHEAD = "ahead"
    BEHIND = "behind"
    REPLACED = "replaced"
    PAGE_SIZE_CHANGED = "page size changed"

    @property
    def needs_scan(self) -> bool:
        """Whether the log alone does not tell what happened."""
        return self not in (Outcome.RESUMED, Outcome.UNCHANGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """``place``: where to go on, None if a scan must tell. ``reason``: one sentence for the log."""

    outcome: Outcome
    place: Cursor | None
    reason: str


def find_place(
    database: Database, index: Index, cursor: Cursor | None, detached: DetachedState | None
) -> Resumption:
    """Return where to go on in the log that ``index`` describes; the log should be pinned.

    ``cursor``, ``detached``: what the journal has of the earlier life, None for none.
    """
    path = database.path
    if cursor is None:
        return _scan(Outcome.UNKNOWN, f"{path} was never captured before.")
    if cursor.page_size != database.page_size:
        return _scan(
            Outcome.PAGE_SIZE_CHANGED, f"the page size of {path} changed while basenet was away."
        )
    if (cursor.device, cursor.inode) != (database.device, database.inode):
        return _scan(Outcome.REPLACED, f"{path} is another file than the one captured before.")
    # A log that nobody has written to yet has no salts, whatever became of the one before it.
    if cursor.salts == index.header.salts and any(cursor.salts):
        return _in_generation(database, index, cursor)
    if detached is not None:
        return _after_detach(database, index, cursor, detached)
    return _scan(
        Outcome.AHEAD, f"{path} was written to, or its log restarted, while basenet was away."
    )


def _scan(outcome: Outcome, reason: str) -> Resumption:
    return Resumption(outcome=outcome, place=None, reason=reason)


def _in_generation(database: Database, index: Index, cursor: Cursor) -> Resumption:
    path, header = database.path, index.header
    if header.frame_max < cursor.frame:
        return _scan(
            Outcome.BEHIND,
            f"the log of {path} has {header.frame_max} frames but {cursor.frame} were captured: "
            "its end was lost (a power failure with synchronous=NORMAL?).",
        )
    reader = LogReader(database)
    commits = reader.commits_behind(cursor, header)
    if commits is None and reader.find_unsealed(header) is not None:
        return _scan(
            Outcome.AHEAD, f"the log of {path} has commits that SQLite left without a checksum."
        )
    if commits is None:
        return _scan(Outcome.BEHIND, f"the log of {path} goes on otherwise than it was captured.")
    return Resumption(
        outcome=Outcome.RESUMED,
        # iChange as the present wal-index would have counted it at the cursor.
        place=replace(cursor, change=(header.change - commits) & _MASK),
        reason=f"{path} goes on where capture stopped; {commits} commits wait in its log.",
    )


def _after_detach(
    database: Database, index: Index, cursor: Cursor, detached: DetachedState
) -> Resumption:
    path, header = database.path, index.header
    if state_of(database.database_fd) != detached:
        return _scan(Outcome.AHEAD, f"{path} was changed while basenet was detached from it.")
    place = replace(cursor, salts=header.salts, frame=0, checksum=(0, 0), change=0)
    # The wal-index was born with an empty log, so it must have counted every commit in it.
    if index.backfilled or LogReader(database).commits_behind(place, header) != header.change:
        return _scan(
            Outcome.AHEAD, f"the log of {path} was recovered while basenet was detached from it."
        )
    return Resumption(
        outcome=Outcome.UNCHANGED,
        place=place,
        reason=f"{path} is as we left it; {header.change} commits wait in its log.",
    )
