"""What a running daemon lets itself be asked: the facts, and the Protocol that it satisfies.

Theory of operation
===================

The control room serves a `Surface` and knows nothing of who stands behind it: the daemon in
production, a named fake in tests. Everything that crosses is a frozen fact of one moment; the
server only turns facts into JSON, the collector only into samples, the command only into columns.

The words for a shard's progress, each at or behind the one before it::

    committed    in the application's WAL, told by the wal-index header
    captured     read, verified and numbered by us           captured_local, captured_seq
    final        durable in a quorum of journals (n=1: ours) final_seq
    archived     in the archive, signed                       archived_seq

*Lag* is the distance from captured to archived (to final, when there is no archive): that is what
would be lost with the host, so the loss is spoken of in its terms. *Worst-case loss* adds what was
committed and not yet captured, and the time since the capturer last looked.

Durations are milliseconds, moments are nanoseconds since 1970 as `time.time_ns` gives them, and a
moment or distance that does not exist (yet) is None, never 0. A sentence is for people; programs
read ``state`` and the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from basenet.errors import UnavailableError
from basenet.units import Seq, ShardId


class ShardState(StrEnum):
    """What the daemon is doing with one shard. The value is the word in JSON and in columns."""

    STARTING = "starting"
    """The journal, the archive and the file are being compared; nothing is captured yet."""

    WAITING = "waiting"
    """No database at the configured path yet; it is watched and picked up when it comes."""

    DETACHED = "detached"
    """Captured to the tip and let go, because no application has the database open."""

    CAPTURING = "capturing"
    """Every commit is being captured."""

    STOPPED = "stopped"
    """It gave up and captures nothing; ``error`` says why and what to do."""

    REFUSED = "refused"
    """It was never taken: not SQLite, encrypted, another daemon's, ...; ``error`` says which."""


READY_STATES = frozenset({ShardState.WAITING, ShardState.DETACHED, ShardState.CAPTURING})
"""The states in which a shard is where it should be, so that the node can be ready."""


class Level(StrEnum):
    """How safe a commit must be before a wait returns."""

    ARCHIVED = "archived"
    FINAL = "final"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStatus:
    """One shard at one moment. ``error`` is one sentence, set when the state needs one."""

    shard: ShardId
    path: str
    state: ShardState
    lineage: str | None = None  # hex; None before the genesis
    epoch: int = 0
    view: int = 0
    captured_local: int = 0  # commits captured in this journal's life, the last one's local number
    captured_seq: int = 0  # 0: no frame yet
    final_seq: int = 0
    archived_seq: int = 0
    lag_commits: int = 0  # captured, not archived
    lag_bytes: int = 0
    lag_ms: float = 0.0  # age of the oldest captured commit that is not archived; 0: none
    worst_case_loss_ms: float = 0.0
    wal_bytes: int = 0
    db_pages: int = 0
    page_size: int = 0  # 0: no database yet
    last_captured_ns: int | None = None
    last_archived_ns: int | None = None
    next_snapshot_ns: int | None = None  # None: not scheduled by time
    last_snapshot_seq: int | None = None
    last_restore_point_ns: int | None = None  # capture time of the newest commit a restore reaches
    archive: str = "off"  # a sentence or "off" or "ok"
    archive_epoch: int = 0  # 0: no lease was taken yet
    archive_broken_seq: int | None = None  # the journal's cap dropped unarchived frames at this seq
    recovered: int = 0  # RECOVERED frames written
    lapped: int = 0  # times that the application's WAL overtook the capturer
    regressed: int = 0  # REGRESSED frames written
    journal_bytes: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One node of the cluster as this node knows it. Standalone has exactly one: itself."""

    node_id: str
    role: str  # validator | archive
    endpoint: str | None = None  # HTTP address, where known


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The whole node at one moment. ``reasons`` say why it is not ready, one sentence each."""

    node_id: str
    version: str
    network: str  # standalone | quasar
    role: str
    members: Sequence[Member]
    shards: Sequence[ShardStatus]  # in order of shard id
    ready: bool
    reasons: Sequence[str]
    started_ns: int
    now_ns: int
    uptime_s: float
    archive: str | None  # URL without secrets; None: off
    public_key: str | None = None  # ed25519:<base64>, the key a restore must trust


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramSample:
    """One histogram: ``counts[i]`` observations were <= ``bounds[i]``, not cumulative.

    The last entry of ``counts`` is everything beyond the last bound, so it is one longer.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float  # sum of all observations, in the histogram's unit


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMetrics:
    """What is measured of one shard beyond its status. Counters count since the process began."""

    status: ShardStatus
    capture_lag_commits: int = 0  # committed by the application, not captured
    wal_lag_bytes: int = 0  # bytes of the WAL's committed frames that are not captured
    frames_submitted: int = 0  # frames handed to the engine
    frames_finalized: int = 0
    wal_bytes_captured: int = 0
    capture_errors: int = 0  # polls that failed (base_network_wal_hook_errors_total)
    archive_failures: int = 0  # uploads that failed and were or will be tried again
    backlog_drops: int = 0  # frames lost to the archive at BASE_JOURNAL_MAX_BYTES
    lease_contentions: int = 0  # the archive's lease was somebody else's
    leases_lost: int = 0  # a lease of ours went to somebody else
    archive_losses: int = 0  # objects that we had archived were found deleted
    frames_ingested: int = 0  # the following six need peers: 0 is the truth in standalone
    frames_duplicate: int = 0
    frames_invalid: int = 0
    frames_rejected_shard_mismatch: int = 0
    frames_rejected_seq_gap: int = 0
    apply_errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMetrics:
    """Everything that one scrape needs, taken at one moment."""

    now_ns: int
    shards: Sequence[ShardMetrics]
    shards_opened: int  # since the process began, those that went again included (base_shards)
    membership_size: int
    journal_bytes: int
    ready: bool
    lock_held: dict[str, HistogramSample]  # reason -> seconds that we held SQLite's write lock


class NotCaughtUp(UnavailableError):  # noqa: N818  (the word of the HTTP error body)
    """A wait ended by its time-out, not by its commit; waiting again can help."""

    code = "not_caught_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitResult:
    """A wait that was granted: everything at or below ``seq`` is safe at ``level``."""

    shard: ShardId
    seq: Seq
    lineage: str
    level: Level
    archived_seq: int
    final_seq: int


class Surface(Protocol):
    """What the daemon answers. Calls that are not async return at once and never block."""

    def node_status(self) -> NodeStatus:
        """Return the node and all its shards as they are now."""
        ...

    def shard_status(self, shard: str) -> ShardStatus:
        """Return one shard as it is now; raise `NotFoundError` for an unknown id."""
        ...

    def metrics(self) -> NodeMetrics:
        """Return what a scrape shows now."""
        ...

    async def check_health(self) -> None:
        """Return when the journal answered; raise `UnavailableError` when it cannot."""
        ...

    async def wait(self, shard: str, seq: Seq | None, level: Level, timeout_s: float) -> WaitResult:
        """Return once the shard is archived or final up to ``seq``.

        ``seq`` None means now: what the application has committed at this moment is captured first,
        and the seq of its last frame is waited for.

        Raises `NotFoundError` for an unknown shard, `NotCaughtUp` when ``timeout_s`` passed,
        `UnavailableError` when the shard stopped or has no database, `UsageError` when ``level`` is
        archived and there is no archive. It may be cancelled at any point: the client is gone, or
        the server closes.
        """
        ...
