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

Every number is taken at the moment of the scrape out of one `NodeMetrics`: there is no second
bookkeeping that could differ from ``status``, and nothing is registered with the library's default
registry, which belongs to the whole process.

From `SHARDS_LABELLED_MAX` shards on a label per shard would cost the monitoring more than it tells,
so the shards are folded into one sample: amounts are added, the worst age is shown, and the oldest
moment. A fold over shards, one of which goes away, can move a counter down; Prometheus takes that
for a restart, which it is for that shard.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from basenet.control.surface import (
    HistogramSample,
    NodeMetrics,
    ShardMetrics,
    ShardRole,
    ShardState,
)

SHARDS_LABELLED_MAX: Final = 199
HOT_NS: Final = 10_000_000_000  # a shard is hot while its newest commit is younger than this

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


@dataclass(frozen=True, slots=True)
class NodeFamily:
    """One metric of the whole node."""

    name: str
    help: str
    read: Callable[[NodeMetrics], float]
    is_counter: bool = False


def _seconds(moment_ns: int | None) -> float | None:
    return None if moment_ns is None else moment_ns / _NS


NODE_FAMILIES: Final = (
    NodeFamily(
        "base_shards",
        "Shards opened since the process began, those that went again included.",
        lambda node: node.shards_opened,
        is_counter=True,
    ),
    NodeFamily(
        "base_active_shards",
        "Shards whose commits are being captured.",
        lambda node: sum(s.status.state is ShardState.CAPTURING for s in node.shards),
    ),
    NodeFamily(
        "base_hot_shards",
        "Shards with a commit in the last 10 seconds.",
        lambda node: sum(_is_hot(shard, node.now_ns) for shard in node.shards),
    ),
    NodeFamily(
        "base_network_membership_size",
        "Members that this node knows, itself included.",
        lambda node: node.membership_size,
    ),
    NodeFamily(
        "base_journal_bytes",
        "Bytes of the journal on disk.",
        lambda node: node.journal_bytes,
    ),
    NodeFamily("base_ready", "1 while /readyz answers 200.", lambda node: node.ready),
    NodeFamily(
        "base_writer_shards",
        "Shards of which this node is the writer.",
        lambda node: sum(s.status.role is ShardRole.WRITER for s in node.shards),
    ),
    NodeFamily(
        "base_journal_rollbacks_total",
        "Greetings of peers that were refused because their journal had gone back.",
        lambda node: node.journal_rollbacks,
        is_counter=True,
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
STATE_NAME: Final = "base_shards_by_state"
LOCK_HELD_NAME: Final = "base_lock_held_seconds"
FENCE_WAIT_NAME: Final = "base_fence_wait_seconds"
LOOP_STALL_NAME: Final = "base_loop_stall_seconds"
HISTOGRAM_NAMES: Final = (LOCK_HELD_NAME, FENCE_WAIT_NAME, LOOP_STALL_NAME)

METRIC_NAMES: Final = frozenset(
    {family.name for family in (*NODE_FAMILIES, *SHARD_FAMILIES)}
    | {DROPPED_NAME, STATE_NAME, *HISTOGRAM_NAMES}
)
"""Every name that a scrape shows; a histogram's stands for its _bucket, _count and _sum."""


class NodeCollector(Collector):
    """Turns one `NodeMetrics` per scrape into the families above."""

    def __init__(self, read: Callable[[], NodeMetrics]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the names are known only to be ours, and no daemon may be asked yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every family, those without a sample included, so that each name is announced."""
        node = self._read()
        for node_family in NODE_FAMILIES:
            yield _collect_node(node_family, node)
        for shard_family in SHARD_FAMILIES:
            yield _collect_shards(shard_family, node.shards)
        yield _collect_dropped(node.network_dropped)
        yield _collect_states(node.shards)
        yield _collect_lock_held(node.lock_held)
        yield _collect_histogram(
            FENCE_WAIT_NAME,
            "How long it took from asking for a database's fence to holding it.",
            node.fence_wait,
        )
        yield _collect_histogram(
            LOOP_STALL_NAME,
            "By how much a timer of the event loop was late.",
            node.loop_stall,
        )


class Exposition:
    """What ``/metrics`` answers, in whichever of the formats the scraper asks for."""

    def __init__(self, read: Callable[[], NodeMetrics]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(NodeCollector(read))

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return body and content type for a request whose Accept header is ``accept``."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _make_family(
    name: str, documentation: str, *, is_counter: bool, labels: Sequence[str]
) -> CounterMetricFamily | GaugeMetricFamily | UnknownMetricFamily:
    if not is_counter:
        return GaugeMetricFamily(name, documentation, labels=labels)
    if name.endswith("_total"):
        return CounterMetricFamily(name, documentation, labels=labels)
    return UnknownMetricFamily(name, documentation, labels=labels)


def _collect_node(family: NodeFamily, node: NodeMetrics) -> Metric:
    metric = _make_family(family.name, family.help, is_counter=family.is_counter, labels=())
    metric.add_metric([], float(family.read(node)))
    return metric


def _collect_shards(family: ShardFamily, shards: Sequence[ShardMetrics]) -> Metric:
    is_labelled = len(shards) <= SHARDS_LABELLED_MAX
    labels = ("shard",) if is_labelled else ()
    metric = _make_family(family.name, family.help, is_counter=family.is_counter, labels=labels)
    values = [(shard.status.shard, family.read(shard)) for shard in shards]
    known = [(shard, float(value)) for shard, value in values if value is not None]
    if is_labelled:
        for shard, value in known:
            metric.add_metric([shard], value)
    elif known:
        metric.add_metric([], family.fold(value for _, value in known))
    return metric


def _collect_dropped(dropped: Mapping[str, int]) -> Metric:
    metric = CounterMetricFamily(
        DROPPED_NAME,
        "Connections and messages of peers that were refused or dropped, by reason.",
        labels=("reason",),
    )
    for reason, count in sorted(dropped.items()):
        metric.add_metric([reason], count)
    return metric


def _collect_states(shards: Sequence[ShardMetrics]) -> Metric:
    metric = GaugeMetricFamily(STATE_NAME, "Shards in each state.", labels=("state",))
    for state in ShardState:
        metric.add_metric([state], sum(shard.status.state is state for shard in shards))
    return metric


def _collect_lock_held(held: dict[str, HistogramSample]) -> Metric:
    metric = HistogramMetricFamily(
        LOCK_HELD_NAME,
        "How long basenet held SQLite's write lock, by the reason for it.",
        labels=("reason",),
    )
    for reason, sample in sorted(held.items()):
        metric.add_metric([reason], _make_buckets(sample), sample.total)
    return metric


def _collect_histogram(name: str, documentation: str, sample: HistogramSample) -> Metric:
    metric = HistogramMetricFamily(name, documentation)
    metric.add_metric([], _make_buckets(sample), sample.total)
    return metric


def _make_buckets(sample: HistogramSample) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus wants them: each holds those below it."""
    assert len(sample.counts) == len(sample.bounds) + 1, "one bucket beyond the last bound"
    count = 0
    buckets: list[tuple[str, float]] = []
    for bound, observed in zip((*sample.bounds, float("inf")), sample.counts, strict=True):
        count += observed
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), count))
    return buckets


def _is_hot(shard: ShardMetrics, now_ns: int) -> bool:
    captured_ns = shard.status.last_captured_ns
    return captured_ns is not None and now_ns - captured_ns < HOT_NS
