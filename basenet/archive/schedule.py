"""When a shard's next snapshot is due: a function of facts, so that `status` can say it, too.

Theory of operation
===================

A restore reads a snapshot and the log since, so a snapshot is worth its bytes once the log since
the last one is as large as the snapshot itself: then no restore reads more than twice the
database, and snapshots never cost more than the log did. Small databases would be stored all the
time by that rule; below `LOG_BYTES_MIN` of log they are not. One that grows fast would be read
again and again while it does, beside the application that writes it; so while commits come, two
that are due by the size of the log are `SPACING_SECONDS` apart. Beyond that one is taken when
`interval_seconds` have passed and something was committed since, so that retention has something
to begin with.

Two needs come before all that: a history without any base (a database that was there before
basenet was), and a log that the journal had to break off (P27). Until their snapshot exists, what
was committed cannot be restored.

A snapshot that failed is tried again after a pause that grows from a minute to an hour.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from basenet.archive.clock import SECOND_NS
from basenet.units import MIB

INTERVAL_SECONDS: Final = 24 * 3600.0
LOG_BYTES_MIN: Final = 16 * MIB
# [m] 100 MB of rows in 0.8 s: a snapshot that begins at 16 MiB of log takes a third of a core.
SPACING_SECONDS: Final = 30.0
RETRY_SECONDS_FIRST: Final = 60.0
RETRY_SECONDS_MAX: Final = 3600.0
# Shards that were born together are spread over this part of the interval.
SPREAD: Final = 0.1


class Reason(StrEnum):
    """Why a snapshot is due."""

    NO_BASE = "no base"
    BROKEN_LOG = "broken log"
    LOG_SIZE = "log size"
    INTERVAL = "interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotNeed:
    """What there is to know of a shard. Times are of the day, in ns.

    ``has_base``: a restore of the present state is possible: from a page set in the lineage or its
    ancestors, or because the database was born empty. ``base_ns``: the time of that page set, or of
    the genesis. ``base_stored_bytes``: its size in the archive, 0 for a genesis.
    ``log_bytes``: the size of the log since. ``is_log_broken``: frames since the base are missing
    in the archive for good. ``is_busy``: commits came a moment ago. ``failures``: attempts in a row
    that failed, the last at ``failed_ns``.
    """

    db_pages: int
    has_base: bool
    base_ns: int
    base_stored_bytes: int
    log_bytes: int
    is_log_broken: bool = False
    is_busy: bool = False
    failures: int = 0
    failed_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPlan:
    """Why a snapshot is due, and from when on: None, if only more commits can make it so."""

    reason: Reason | None
    due_ns: int | None

    def is_due(self, now_ns: int) -> bool:
        """Return whether it is to be taken now."""
        return self.reason is not None and self.due_ns is not None and now_ns >= self.due_ns


def plan_snapshot(
    need: SnapshotNeed, *, interval_seconds: float = INTERVAL_SECONDS, phase: float = 0.0
) -> SnapshotPlan:
    """Return when the next snapshot is due, as far as it is known now.

    ``phase``, in [0, 1), tells shards apart that would else be due at one moment.
    """
    if not need.db_pages:
        return SnapshotPlan(reason=None, due_ns=None)
    not_before_ns = need.failed_ns + _pause_ns(need.failures) if need.failures else 0
    reason, due_ns = _find_reason(need, interval_seconds * (1 - SPREAD * phase))
    if reason is None:
        return SnapshotPlan(reason=None, due_ns=None)
    return SnapshotPlan(reason=reason, due_ns=max(due_ns, not_before_ns))


def _find_reason(need: SnapshotNeed, interval_seconds: float) -> tuple[Reason | None, int]:
    if not need.has_base:
        return Reason.NO_BASE, 0
    if need.is_log_broken:
        return Reason.BROKEN_LOG, 0
    if need.log_bytes > max(need.base_stored_bytes, LOG_BYTES_MIN):
        spacing_seconds = min(SPACING_SECONDS, interval_seconds) if need.is_busy else 0
        return Reason.LOG_SIZE, need.base_ns + int(spacing_seconds * SECOND_NS)
    if need.log_bytes:
        return Reason.INTERVAL, need.base_ns + int(interval_seconds * SECOND_NS)
    return None, 0


def _pause_ns(failures: int) -> int:
    doubled = RETRY_SECONDS_FIRST * 2 ** min(failures - 1, 16)
    return int(min(doubled, RETRY_SECONDS_MAX) * SECOND_NS)
