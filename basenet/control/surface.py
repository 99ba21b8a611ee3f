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
    applied      final, and what this node's file holds      applied_seq
    archived     in the archive, signed                       archived_seq

*Lag* is the distance from captured to archived (to final, when there is no archive): that is what
would be lost with the host, so the loss is spoken of in its terms. *Worst-case loss* adds what was
committed and not yet captured, and the time since the capturer last looked.

Durations are milliseconds, moments are nanoseconds since 1970 as `time.time_ns` gives them, and a
moment or distance that does not exist (yet) is None, never 0. A sentence is for people; programs
read ``state`` and the numbers.

What there is one of for each shard is a struct, which is made in a fifth of a dataclass's time.

The facts say what this node knows. A node alone is the writer of all its shards, and what needs
peers is empty or zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from basenet.control.cookie import format_cookie
from basenet.control.members import MembersCommand
from basenet.control.reset import ResetCommand
from basenet.errors import ConflictError, UnavailableError, UsageError
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

    FOLLOWING = "following"
    """Another node is the writer: its final commits are applied here, writers here are fenced."""

    STOPPED = "stopped"
    """It gave up and captures nothing; ``error`` says why and what to do."""

    REFUSED = "refused"
    """It was never taken: not SQLite, encrypted, another daemon's, ...; ``error`` says which."""


READY_STATES = frozenset(
    {ShardState.WAITING, ShardState.DETACHED, ShardState.CAPTURING, ShardState.FOLLOWING}
)
"""The states in which a shard is where it should be, so that the node can be ready."""


class Level(StrEnum):
    """How safe a commit must be before a wait returns."""

    ARCHIVED = "archived"
    FINAL = "final"
    APPLIED = "applied"
    """In this node's database file, where a reader here sees what was committed elsewhere."""


class ShardRole(StrEnum):
    """What this node is to one shard."""

    WRITER = "writer"
    """Its application may write; standalone nodes are the writers of all their shards."""

    REPLICA = "replica"
    LEARNER = "learner"
    """It applies what is final and does not vote: new, or removed, or of the role archive."""

    WITNESS = "witness"
    """It votes and holds no database."""


class FenceState(StrEnum):
    """What keeps the applications of this node from writing to one database."""

    NONE = "none"
    """There is no fence: standalone, or a witness."""

    OPEN = "open"
    """This node is the writer; the fence closes by itself when its lease is not renewed."""

    CLOSED = "closed"
    """Writers get SQLITE_BUSY."""

    LOST = "lost"
    """It was to be closed and nobody holds it: nothing is applied until it is held again."""


class ShardMember(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One node of one shard, as this node knows it."""

    node_id: str
    key: str  # its public key, hex
    is_voter: bool = True
    role: str = "validator"  # validator | witness | learner
    is_connected: bool = True
    final_seq: int | None = None  # None: it has not said yet


class ShardStatus(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One shard at one moment. ``error`` is one sentence, set when the state needs one."""

    shard: ShardId
    path: str
    state: ShardState
    lineage: str | None = None  # hex; None before the genesis
    # Names the time in which nothing that was committed here was undone; None: not known yet, or
    # this node is alone and never undoes a commit. To be read before a commit and given to `wait`.
    generation: str | None = None
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
    retention: str = "off"  # by which witness history expires, in a sentence
    archive_epoch: int = 0  # 0: no lease was taken yet
    proof: str = "off"  # how the last proof of the archive went, in a sentence
    proof_verified_ns: int | None = None  # when a moment was last restored from the archive
    proof_seq: int | None = None  # which one
    is_proof_failed: bool = False  # a kept moment cannot be restored
    archive_broken_seq: int | None = None  # the journal's cap dropped unarchived frames at this seq
    recovered: int = 0  # RECOVERED frames written
    lapped: int = 0  # times that the application's WAL overtook the capturer
    regressed: int = 0  # REGRESSED frames written
    journal_bytes: int = 0
    error: str | None = None
    role: ShardRole = ShardRole.WRITER
    writer: str | None = None  # node id of the writer; None: not known now
    writer_endpoint: str | None = None  # its HTTP address, where known
    writable_until_ns: int | None = None  # end of the lease by this host's clock; None: no lease
    members: tuple[ShardMember, ...] = ()
    applied_seq: int = 0
    unfinal_commits: int = 0  # captured here as the writer, not final
    unfinal_bytes: int = 0
    unfinal_ms: float = 0.0  # age of the oldest of them; 0: none
    fence: FenceState = FenceState.NONE
    is_read_only: bool = False  # the file carries the mark of BASE_FENCE=readonly
    orphans: int = 0  # orphan bundles of this shard in the data directory
    now_ns: int | None = None  # the moment at which this was told; None: in a scrape

    @property
    def apply_lag(self) -> int:
        """How many final frames this node's file does not hold yet."""
        return max(0, self.final_seq - self.applied_seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One node of the cluster as this node knows it. Standalone has exactly one: itself."""

    node_id: str
    role: str  # validator | archive | witness
    endpoint: str | None = None  # HTTP address, where known
    address: str | None = None  # host:port between nodes, where known
    key: str | None = None  # its public key, hex
    is_connected: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The whole node. ``reasons`` say why it is not ready, one sentence each.

    `Surface.node_status` leaves ``shards`` empty; an answer is completed with what is told of each.
    """

    node_id: str
    version: str
    network: str  # standalone | quasar
    role: str
    members: Sequence[Member]
    shards: Sequence[ShardStatus] = ()  # in order of shard id
    ready: bool
    reasons: Sequence[str]
    started_ns: int
    now_ns: int
    uptime_s: float
    archive: str | None  # URL without secrets; None: off
    public_key: str | None = None  # ed25519:<base64>, the key a restore must trust
    clock_step_s: float = 0.0  # by how much the host's clock was set since the process began


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramSample:
    """One histogram: ``counts[i]`` observations were <= ``bounds[i]``, not cumulative.

    The last entry of ``counts`` is everything beyond the last bound, so it is one longer.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float  # sum of all observations, in the histogram's unit


class ShardMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is measured of one shard beyond its status. Counters count since the process began."""

    status: ShardStatus  # its numbers; what is told in words and its members may be left out
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
    proof_failures: int = 0  # proofs of the archive that failed
    retention_watched_s: float | None = None  # for how long the archive has been watched
    proof_seconds: float | None = None  # how long the last one that succeeded took
    frames_ingested: int = 0  # the following six need peers: 0 is the truth in standalone
    frames_duplicate: int = 0
    frames_invalid: int = 0
    frames_rejected_shard_mismatch: int = 0
    frames_rejected_seq_gap: int = 0
    signatures_invalid: int = 0  # of frames, votes, certificates that peers sent
    apply_errors: int = 0
    write_leases_lost: int = 0  # the writer here could not renew its lease in time
    root_self_repairs: int = 0  # this node's own page hashes were wrong and were mended (Q8)


EMPTY_HISTOGRAM: Final = HistogramSample(bounds=(), counts=(0,), total=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMetrics:
    """Everything that one scrape needs beside the shards, taken at one moment."""

    now_ns: int
    shards_opened: int  # since the process began, those that went again included (base_shards)
    membership_size: int
    journal_bytes: int
    ready: bool
    lock_held: dict[str, HistogramSample]  # reason -> seconds that we held SQLite's write lock
    fence_wait: HistogramSample = EMPTY_HISTOGRAM  # seconds from asking for a fence to holding it
    loop_stall: HistogramSample = EMPTY_HISTOGRAM  # seconds by which the event loop's timer is late
    journal_rollbacks: int = 0  # peers refused because their journal went back (Q9)
    network_dropped: Mapping[str, int] = field(default_factory=dict)  # by reason
    store_calls: Mapping[str, int] = field(default_factory=dict)  # put, get, list, delete
    store_written_bytes: int = 0
    store_read_bytes: int = 0
    clock_step_s: float = 0.0  # by how much the host's clock was set since the process began


class NotCaughtUp(UnavailableError):  # noqa: N818  (the word of the HTTP error body)
    """A wait ended by its time-out, not by its commit; waiting again can help.

    ``target_seq`` is the seq that was waited for, None when it was not known yet.
    """

    code = "not_caught_up"

    def __init__(self, sentence: str, *, target_seq: int | None = None) -> None:
        super().__init__(sentence)
        self.target_seq = target_seq


class LineageMismatch(ConflictError):  # noqa: N818  (the word of the HTTP error body)
    """A cookie names a commit of another lineage than the shard now has."""

    code = "lineage_mismatch"


class Orphaned(ConflictError):  # noqa: N818  (the word of the HTTP error body)
    """The commits that were waited for lost against another history and never become final.

    ``bundles``: where they are kept, as far as that is known (`basenet orphans show`).
    """

    code = "orphaned"

    def __init__(self, sentence: str, *, bundles: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.bundles = tuple(bundles)


class Forbidden(UsageError):  # noqa: N818  (the word of the HTTP error body)
    """What was asked may only be asked from this host, by its operator."""

    code = "forbidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitResult:
    """A wait that was granted: everything at or below ``seq`` is safe at ``level``.

    ``generation``: the present one, for what is committed after this answer; see `ShardStatus`.
    """

    shard: ShardId
    seq: Seq
    lineage: str
    level: Level
    archived_seq: int
    final_seq: int
    generation: str | None = None
    cookie: str = ""  # made from lineage and seq, never given

    def __post_init__(self) -> None:
        object.__setattr__(self, "cookie", format_cookie(self.lineage, self.seq))


class Surface(Protocol):
    """What the daemon answers. Calls that are not async return at once and never block."""

    def node_status(self) -> NodeStatus:
        """Return the node as it is now, without its shards; cheap, however many it has."""
        ...

    def shard_ids(self) -> Sequence[ShardId]:
        """Return the shards that there are now, in order."""
        ...

    def shard_status(self, shard: str) -> ShardStatus:
        """Return one shard as it is now; raise `NotFoundError` for an unknown id."""
        ...

    def node_metrics(self) -> NodeMetrics:
        """Return what a scrape shows of the node now."""
        ...

    def shard_metrics(self, shard: str) -> ShardMetrics:
        """Return what a scrape shows of one shard now; raise `NotFoundError` for an unknown id."""
        ...

    async def check_health(self) -> None:
        """Return when the journal answered; raise `UnavailableError` when it cannot."""
        ...

    async def wait(
        self,
        shard: str,
        seq: Seq | None,
        level: Level,
        timeout_s: float,
        generation: str | None = None,
    ) -> WaitResult:
        """Return once the shard is archived, final or applied here up to ``seq``.

        ``seq`` None means now: what the application has committed at this moment is captured first,
        and then these very commits are waited for, also when another frame gets their seq. With the
        ``generation`` that was read before a commit, that commit is among them, or was orphaned.

        Raises `NotFoundError` for an unknown shard, `NotCaughtUp` when ``timeout_s`` passed,
        `Orphaned` when the present commits, or some since ``generation``, lost and never become
        final, `ConflictError` when now is asked without a generation on a node that is not the
        writer, `UnavailableError` when the shard stopped or has no database, `UsageError` when
        ``level`` is archived and there is no archive. It may be cancelled at any point: the client
        is gone, or the server closes.
        """
        ...

    async def command(self, shard: str, command: MembersCommand) -> str:
        """Do what an operator told about the members of ``shard``; return what was done.

        Returns when it is done or durably begun; which, the sentence says. Raises `NotFoundError`
        for an unknown shard or node, `ConflictError` when the shard's state forbids it,
        `UnavailableError` when it needs nodes that do not answer, `UsageError` in standalone. It
        may be cancelled at any point, which undoes nothing.
        """
        ...

    async def reset(self, shard: str, command: ResetCommand) -> str:
        """Let the file or the chain of ``shard`` count on this node; return what was done.

        Returns when it is durably begun. Raises `NotFoundError` for an unknown shard,
        `ConflictError` when there is nothing to decide or something would be lost, and
        `UnavailableError` when no other node is connected, `UsageError` in standalone. It may be
        cancelled at any point; what has begun then goes on, or can be asked for again.
        """
        ...
