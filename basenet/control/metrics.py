"""The daemon's facts as Prometheus samples.

Theory of operation
===================

The names are a promise: dashboards and autoscalers of the system that basenet follows must read
ours unchanged. So no name is made by a library. Each *family* below is one row with its literal
name, and a test scrapes and compares letters.

Two of the promised counters, ``base_shards`` and ``base_lease_contentions``, do not end in
``_total``. OpenMetrics has no such counter, and readers of the older text format (the parser of
prometheus_client among them) append the suffix to whatever is announced as one. So these two are
announced without a type; ``rate()`` takes them all the same.

Every number is taken at the moment of the scrape out of the `Surface`: there is no second
bookkeeping that could differ from ``status``, and nothing is registered with the library's default
registry, which belongs to the whole process. The shards are asked a slice at a time, each once
(`control.slices`), and a scrape holds no more of them than the lines or the folded numbers.

From `SHARDS_LABELLED_MAX` shards on a label per shard would cost the monitoring more than it tells,
so the shards are folded into one sample: amounts are added, the worst age is shown, and the oldest
moment. A fold over shards, one of which goes away, can move a counter down; Prometheus takes that
for a restart, which it is for that shard.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio
from prometheus_client.exposition import choose_encoder

from basenet.control.slices import SHARDS_AT_ONCE, Shared, visit
from basenet.control.surface import (
    HistogramSample,
    NodeMetrics,
    ShardMetrics,
    ShardRole,
    ShardState,
    Surface,
)
from basenet.control.textformat import (
    OPENMETRICS_END,
    Kind,
    format_head,
    format_histogram,
    format_labels,
    format_sample,
)
from basenet.units import ShardId

SHARDS_LABELLED_MAX: Final = 199
HOT_NS: Final = 10_000_000_000  # a shard is hot while its newest commit is younger than this

_OPENMETRICS: Final = "application/openmetrics-text"
_MS: Final = 1e3
_NS: Final = 1e9

_Fold = Callable[[Iterable[float]], float]


@dataclass(frozen=True, slots=True)
class ShardFamily:
    """One metric of which each shard has a value. ``read`` returns None where there is none."""

    name: str
    help: str
    read: Callable[[ShardMetrics], float | None]
    fold: _Fold = sum
    is_counter: bool = False


@dataclass(slots=True)
class ShardCounts:
    """What of a scrape is counted over all shards."""

    states: list[ShardState] = field(default_factory=list)  # one for each shard
    writers: int = 0
    hot: int = 0

    def add(self, shard: ShardMetrics, now_ns: int) -> None:
        """Count ``shard``."""
        status = shard.status
        self.states.append(status.state)
        self.writers += status.role is ShardRole.WRITER
        captured_ns = status.last_captured_ns
        self.hot += captured_ns is not None and now_ns - captured_ns < HOT_NS


@dataclass(frozen=True, slots=True)
class NodeFamily:
    """One metric of the whole node."""

    name: str
    help: str
    read: Callable[[NodeMetrics, ShardCounts], float]
    is_counter: bool = False


def _seconds(moment_ns: int | None) -> float | None:
    return None if moment_ns is None else moment_ns / _NS


NODE_FAMILIES: Final = (
    NodeFamily(
        "base_shards",
        "Shards opened since the process began, those that went again included.",
        lambda node, _: node.shards_opened,
        is_counter=True,
    ),
    NodeFamily(
        "base_active_shards",
        "Shards whose commits are being captured.",
        lambda _, shards: shards.states.count(ShardState.CAPTURING),
    ),
    NodeFamily(
        "base_hot_shards",
        "Shards with a commit in the last 10 seconds.",
        lambda _, shards: shards.hot,
    ),
    NodeFamily(
        "base_network_membership_size",
        "Members that this node knows, itself included.",
        lambda node, _: node.membership_size,
    ),
    NodeFamily(
        "base_journal_bytes",
        "Bytes of the journal on disk.",
        lambda node, _: node.journal_bytes,
    ),
    NodeFamily("base_ready", "1 while /readyz answers 200.", lambda node, _: node.ready),
    NodeFamily(
        "base_writer_shards",
        "Shards of which this node is the writer.",
        lambda _, shards: shards.writers,
    ),
    NodeFamily(
        "base_journal_rollbacks_total",
        "Greetings of peers that were refused because their journal had gone back.",
        lambda node, _: node.journal_rollbacks,
        is_counter=True,
    ),
    NodeFamily(
        "base_store_written_bytes_total",
        "Bytes written to the archive's store.",
        lambda node, _: node.store_written_bytes,
        is_counter=True,
    ),
    NodeFamily(
        "base_store_read_bytes_total",
        "Bytes read from the archive's store.",
        lambda node, _: node.store_read_bytes,
        is_counter=True,
    ),
    NodeFamily(
        "base_clock_step_seconds",
        "By how much the wall clock was set since the process began; 0 when it agrees again.",
        lambda node, _: node.clock_step_s,
    ),
)

SHARD_FAMILIES: Final = (
    ShardFamily(
        "base_wal_lag_bytes",
        "Bytes of commits in the WAL that are not captured yet.",
        lambda s: s.wal_lag_bytes,
    ),
    ShardFamily("base_wal_bytes", "Size of the WAL file.", lambda s: s.status.wal_bytes),
    ShardFamily(
        "base_capture_lag_commits",
        "Commits of the application that are not captured yet.",
        lambda s: s.capture_lag_commits,
    ),
    ShardFamily(
        "base_archive_lag_bytes",
        "Captured bytes that are not archived yet.",
        lambda s: s.status.lag_bytes,
    ),
    ShardFamily(
        "base_archive_lag_commits",
        "Captured commits that are not archived yet.",
        lambda s: s.status.lag_commits,
    ),
    ShardFamily(
        "base_unarchived_seconds",
        "Age of the oldest captured commit that is not archived; 0 when all are.",
        lambda s: s.status.lag_ms / _MS,
        max,
    ),
    ShardFamily(
        "base_worst_case_loss_seconds",
        "How much of the past would be lost if this host vanished now.",
        lambda s: s.status.worst_case_loss_ms / _MS,
        max,
    ),
    ShardFamily(
        "base_archive_last_timestamp_seconds",
        "When the archive last took something of this shard.",
        lambda s: _seconds(s.status.last_archived_ns),
        min,
    ),
    ShardFamily(
        "base_restore_point_timestamp_seconds",
        "Capture time of the newest commit that a restore can reach.",
        lambda s: _seconds(s.status.last_restore_point_ns),
        min,
    ),
    ShardFamily(
        "base_archive_broken",
        "1 when the journal's cap cost the archive frames: no restore passes that point.",
        lambda s: s.status.archive_broken_seq is not None,
    ),
    ShardFamily(
        "base_captured_commits_total",
        "Commits captured in the life of this journal.",
        lambda s: s.status.captured_local,
        is_counter=True,
    ),
    ShardFamily(
        "base_recovered_frames_total",
        "Frames made by comparing pages, because commits could not be told apart.",
        lambda s: s.status.recovered,
        is_counter=True,
    ),
    ShardFamily(
        "base_regressed_frames_total",
        "Frames that follow a database to an older state.",
        lambda s: s.status.regressed,
        is_counter=True,
    ),
    ShardFamily(
        "base_capture_lapped_total",
        "Times that the application's WAL overtook the capturer.",
        lambda s: s.status.lapped,
        is_counter=True,
    ),
    ShardFamily(
        "base_archive_failures_total",
        "Uploads that failed and were tried again.",
        lambda s: s.archive_failures,
        is_counter=True,
    ),
    ShardFamily(
        "base_shard_backlog_drops_total",
        "Frames that the archive lost at BASE_JOURNAL_MAX_BYTES.",
        lambda s: s.backlog_drops,
        is_counter=True,
    ),
    ShardFamily(
        "base_lease_contentions",
        "Times that the archive's lease was held by somebody else.",
        lambda s: s.lease_contentions,
        is_counter=True,
    ),
    ShardFamily(
        "base_leases_lost_total",
        "Leases of ours that went to somebody else.",
        lambda s: s.leases_lost,
        is_counter=True,
    ),
    ShardFamily(
        "base_archive_losses_total",
        "Times that objects which were archived were found deleted.",
        lambda s: s.archive_losses,
        is_counter=True,
    ),
    ShardFamily(
        "base_retention_watched_seconds",
        "For how long the archive has been watched: what is younger cannot expire.",
        lambda s: s.retention_watched_s,
        min,
    ),
    ShardFamily(
        "base_restore_verified_timestamp_seconds",
        "When a kept moment was last restored from the archive and found sound.",
        lambda s: _seconds(s.status.proof_verified_ns),
        min,
    ),
    ShardFamily(
        "base_restore_verify_duration_seconds",
        "How long the last restore that proved the archive took.",
        lambda s: s.proof_seconds,
        max,
    ),
    ShardFamily(
        "base_restore_verify_failures_total",
        "Proofs of the archive that failed: a kept moment could not be restored.",
        lambda s: s.proof_failures,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_frames_submitted_total",
        "Frames handed to the engine by this node.",
        lambda s: s.frames_submitted,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_frames_ingested_total",
        "Frames taken from peers.",
        lambda s: s.frames_ingested,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_frames_finalized_total",
        "Frames that became final.",
        lambda s: s.frames_finalized,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_frames_duplicate_total",
        "Frames that were here already.",
        lambda s: s.frames_duplicate,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_frames_invalid_total",
        "Frames refused because their bytes, chain or signature were wrong.",
        lambda s: s.frames_invalid,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_frames_rejected_shard_mismatch_total",
        "Frames refused because they name another shard than their envelope.",
        lambda s: s.frames_rejected_shard_mismatch,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_frames_rejected_seq_gap_total",
        "Frames refused because their seq was too far ahead.",
        lambda s: s.frames_rejected_seq_gap,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_signatures_invalid_total",
        "Signatures that proved wrong, of frames, votes, certificates that peers sent.",
        lambda s: s.signatures_invalid,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_apply_errors_total",
        "Final frames that could not be applied to the database.",
        lambda s: s.apply_errors,
        is_counter=True,
    ),
    ShardFamily(
        "base_apply_lag_frames",
        "Final frames that the database file here does not hold yet.",
        lambda s: s.status.apply_lag,
    ),
    ShardFamily(
        "base_unfinalized_commits",
        "Commits captured by this node as the writer that are not final yet.",
        lambda s: s.status.unfinal_commits,
    ),
    ShardFamily(
        "base_unfinalized_bytes",
        "Bytes of the commits captured by this node as the writer that are not final yet.",
        lambda s: s.status.unfinal_bytes,
    ),
    ShardFamily(
        "base_unfinalized_seconds",
        "Age of the oldest commit captured by this node as the writer that is not final yet.",
        lambda s: s.status.unfinal_ms / _MS,
        max,
    ),
    ShardFamily(
        "base_orphans_total",
        "Orphan bundles in the data directory: commits that lost against another history.",
        lambda s: s.status.orphans,
        is_counter=True,
    ),
    ShardFamily(
        "base_write_leases_lost_total",
        "Times that this node, as the writer, could not renew its lease in time.",
        lambda s: s.write_leases_lost,
        is_counter=True,
    ),
    ShardFamily(
        "base_root_self_repairs_total",
        "Times that this node's own page hashes were wrong and were mended.",
        lambda s: s.root_self_repairs,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_wal_hook_errors_total",
        "Looks at the WAL that failed.",
        lambda s: s.capture_errors,
        is_counter=True,
    ),
    ShardFamily(
        "base_network_wal_bytes_total",
        "Bytes of WAL frames captured.",
        lambda s: s.wal_bytes_captured,
        is_counter=True,
    ),
)

DROPPED_NAME: Final = "base_network_dropped_total"
STORE_CALLS_NAME: Final = "base_store_calls_total"
STATE_NAME: Final = "base_shards_by_state"
LOCK_HELD_NAME: Final = "base_lock_held_seconds"
FENCE_WAIT_NAME: Final = "base_fence_wait_seconds"
LOOP_STALL_NAME: Final = "base_loop_stall_seconds"
HISTOGRAM_NAMES: Final = (LOCK_HELD_NAME, FENCE_WAIT_NAME, LOOP_STALL_NAME)

METRIC_NAMES: Final = frozenset(
    {family.name for family in (*NODE_FAMILIES, *SHARD_FAMILIES)}
    | {DROPPED_NAME, STORE_CALLS_NAME, STATE_NAME, *HISTOGRAM_NAMES}
)
"""Every name that a scrape shows; a histogram's stands for its _bucket, _count and _sum."""


class _Labelled:
    """A line for each shard and family."""

    def __init__(self) -> None:
        self._lines: list[list[str]] = [[] for _ in SHARD_FAMILIES]

    def add(self, shard: ShardMetrics) -> None:
        """Take in what ``shard`` has now."""
        labels = format_labels(shard=shard.status.shard)
        for family, lines in zip(SHARD_FAMILIES, self._lines, strict=True):
            value = family.read(shard)
            if value is not None:
                lines.append(format_sample(family.name, labels, value))

    def samples(self) -> Iterator[str]:
        """Yield the lines of each family, in the order of `SHARD_FAMILIES`."""
        for lines in self._lines:
            yield "".join(lines)


class _Folded:
    """One value for each family, of all shards together."""

    def __init__(self) -> None:
        self._values: list[float | None] = [None] * len(SHARD_FAMILIES)
        self._rows: list[list[float | None]] = []

    def add(self, shard: ShardMetrics) -> None:
        """Take in what ``shard`` has now."""
        self._rows.append([family.read(shard) for family in SHARD_FAMILIES])
        if len(self._rows) == SHARDS_AT_ONCE:
            self._fold()

    def _fold(self) -> None:
        """Let go of the rows: a column at a time is folded faster than a value."""
        rows = [*self._rows, self._values]
        self._rows = []
        for index, column in enumerate(zip(*rows, strict=True)):
            known = [value for value in column if value is not None]
            if known:
                self._values[index] = SHARD_FAMILIES[index].fold(known)

    def samples(self) -> Iterator[str]:
        """Yield the line of each family, in the order of `SHARD_FAMILIES`; nothing for no value."""
        self._fold()
        for family, value in zip(SHARD_FAMILIES, self._values, strict=True):
            yield "" if value is None else format_sample(family.name, "", value)


class Exposition:
    """What ``/metrics`` answers, in whichever of the formats the scraper asks for."""

    def __init__(self, surface: Surface, turn: trio.Lock) -> None:
        """``turn``: see `slices.Shared`."""
        self._surface = surface
        self._shared = {
            is_openmetrics: Shared(turn, partial(self._render, is_openmetrics=is_openmetrics))
            for is_openmetrics in (False, True)
        }

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return body and content type for a request whose Accept header is ``accept``."""
        _, content_type = choose_encoder(accept)
        is_openmetrics = content_type.startswith(_OPENMETRICS)
        return await self._shared[is_openmetrics].get(), content_type

    async def _render(self, *, is_openmetrics: bool) -> bytes:
        node, names = self._surface.node_metrics(), self._surface.shard_ids()
        counts = ShardCounts()
        shards = _Labelled() if len(names) <= SHARDS_LABELLED_MAX else _Folded()

        def look(name: ShardId) -> None:
            shard = self._surface.shard_metrics(name)
            counts.add(shard, node.now_ns)
            shards.add(shard)

        await visit(names, look)
        families = (
            *zip(_NODE_HEADS, _node_samples(node, counts), strict=True),
            *zip(_SHARD_HEADS, shards.samples(), strict=True),
            *zip(_OTHER_HEADS, _other_samples(node, counts), strict=True),
        )
        text = "".join(f"{head[is_openmetrics]}{samples}" for head, samples in families)
        return (text + (OPENMETRICS_END if is_openmetrics else "")).encode()


def _make_heads(name: str, documentation: str, kind: Kind) -> tuple[str, str]:
    """Return the head of a family in the text format and in OpenMetrics."""
    text, openmetrics = (
        format_head(name, documentation, kind, is_openmetrics=each) for each in (False, True)
    )
    return text, openmetrics


def _kind_of(family: ShardFamily | NodeFamily) -> Kind:
    if not family.is_counter:
        return Kind.GAUGE
    return Kind.COUNTER if family.name.endswith("_total") else Kind.UNKNOWN


# Each family is announced, also one without a sample.
_NODE_HEADS: Final = [_make_heads(each.name, each.help, _kind_of(each)) for each in NODE_FAMILIES]
_SHARD_HEADS: Final = [_make_heads(each.name, each.help, _kind_of(each)) for each in SHARD_FAMILIES]
_OTHER_HEADS: Final = [
    _make_heads(
        DROPPED_NAME,
        "Connections and messages of peers that were refused or dropped, by reason.",
        Kind.COUNTER,
    ),
    _make_heads(STORE_CALLS_NAME, "Requests to the archive's store, by kind.", Kind.COUNTER),
    _make_heads(STATE_NAME, "Shards in each state.", Kind.GAUGE),
    _make_heads(
        LOCK_HELD_NAME,
        "How long basenet held SQLite's write lock, by the reason for it.",
        Kind.HISTOGRAM,
    ),
    _make_heads(
        FENCE_WAIT_NAME,
        "How long it took from asking for a database's fence to holding it.",
        Kind.HISTOGRAM,
    ),
    _make_heads(LOOP_STALL_NAME, "By how much a timer of the event loop was late.", Kind.HISTOGRAM),
]


def _node_samples(node: NodeMetrics, counts: ShardCounts) -> Iterator[str]:
    """Yield the line of each family, in the order of `NODE_FAMILIES`."""
    for family in NODE_FAMILIES:
        yield format_sample(family.name, "", family.read(node, counts))


def _other_samples(node: NodeMetrics, counts: ShardCounts) -> Iterator[str]:
    """Yield the lines of each of the families with labels of their own, and of the histograms."""
    yield "".join(
        format_sample(DROPPED_NAME, format_labels(reason=reason), count)
        for reason, count in sorted(node.network_dropped.items())
    )
    yield "".join(
        format_sample(STORE_CALLS_NAME, format_labels(call=call), count)
        for call, count in sorted(node.store_calls.items())
    )
    yield "".join(
        format_sample(STATE_NAME, format_labels(state=state), counts.states.count(state))
        for state in ShardState
    )
    yield "".join(_lock_held_lines(node.lock_held))
    yield "".join(format_histogram(FENCE_WAIT_NAME, node.fence_wait))
    yield "".join(format_histogram(LOOP_STALL_NAME, node.loop_stall))


def _lock_held_lines(held: Mapping[str, HistogramSample]) -> Iterator[str]:
    for reason, sample in sorted(held.items()):
        yield from format_histogram(LOCK_HELD_NAME, sample, reason=reason)
