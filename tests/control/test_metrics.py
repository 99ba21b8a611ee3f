from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from prometheus_client import REGISTRY
from prometheus_client.exposition import generate_latest as encode_text
from prometheus_client.openmetrics.exposition import generate_latest as encode_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from basenet.control.histogram import Histogram
from basenet.control.metrics import METRIC_NAMES, SHARDS_LABELLED_MAX, Exposition
from basenet.control.surface import ShardRole, ShardState
from tests.fakes.client import ask
from tests.fakes.served import served
from tests.fakes.surface import NOW_NS, FakeSurface, make_shard

# Written out once more, from the documents and not from the code.
FOLLOWED_NAMES = [
    "base_shards",
    "base_active_shards",
    "base_wal_lag_bytes",
    "base_hot_shards",
    "base_lease_contentions",
    "base_archive_lag_bytes",
    "base_archive_failures_total",
    "base_shard_backlog_drops_total",
    "base_network_frames_submitted_total",
    "base_network_frames_ingested_total",
    "base_network_frames_finalized_total",
    "base_network_frames_duplicate_total",
    "base_network_frames_invalid_total",
    "base_network_frames_rejected_shard_mismatch_total",
    "base_network_frames_rejected_seq_gap_total",
    "base_network_apply_errors_total",
    "base_network_wal_hook_errors_total",
    "base_network_wal_bytes_total",
    "base_network_membership_size",
]
OWN_NAMES = [
    "base_capture_lag_commits",
    "base_unarchived_seconds",
    "base_worst_case_loss_seconds",
    "base_lock_held_seconds_bucket",
    "base_lock_held_seconds_count",
    "base_lock_held_seconds_sum",
    "base_archive_last_timestamp_seconds",
    "base_recovered_frames_total",
    "base_capture_lapped_total",
    "base_leases_lost_total",
    "base_fence_wait_seconds_bucket",
    "base_fence_wait_seconds_count",
    "base_fence_wait_seconds_sum",
    "base_loop_stall_seconds_bucket",
    "base_orphans_total",
    "base_root_self_repairs_total",
    "base_journal_rollbacks_total",
    "base_archive_losses_total",
    "base_restore_verified_timestamp_seconds",
    "base_restore_verify_failures_total",
    "base_journal_bytes",
]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def expose(surface: FakeSurface) -> Exposition:
    return Exposition(surface, trio.Lock())


def scrape(surface: FakeSurface, accept: str = "") -> str:
    return trio.run(expose(surface).render, accept)[0].decode()


def sample_names(text: str) -> set[str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.split("{")[0].split(" ")[0] for line in lines}


def values_of(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
        if sample.name == name
    }


def value_of(text: str, name: str, **labels: str) -> float:
    return values_of(text, name)[tuple(sorted(labels.items()))]


def full_surface(count: int = 1, **changes: Any) -> FakeSurface:
    surface = FakeSurface(*(make_shard(f"shard-{i}", **changes) for i in range(count)))
    held = Histogram()
    held.observe(0.002)
    surface.lock_held = {"checkpoint": held.get_sample()}
    measured = {"proof_seconds": 1.5, "retention_watched_s": 3600.0}
    surface.shard_counters = {**surface.shard_counters, **measured}
    return surface


async def test_a_scrape_shows_every_promised_name_literally(tmp_path: Path) -> None:
    """Letter by letter, in both formats, and nothing gets a suffix that was not promised."""
    async with served(full_surface(), tmp_path) as listeners:
        for accept in ("", "text/plain;version=0.0.4", OPENMETRICS):
            answer = await ask(listeners.address.port, "/metrics", headers={"accept": accept})
            assert answer.status == 200
            names = sample_names(answer.body.decode())
            assert names >= {*FOLLOWED_NAMES, *OWN_NAMES}
            assert not names & {"base_shards_total", "base_lease_contentions_total"}


@pytest.mark.parametrize("count", [0, 1, SHARDS_LABELLED_MAX + 1])
def test_only_declared_names_are_shown(count: int) -> None:
    """`METRIC_NAMES` is what alert rules and dashboards are tested against."""
    shown = {
        name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        for name in sample_names(scrape(full_surface(count)))
    }
    assert shown <= METRIC_NAMES
    if count:
        assert shown == METRIC_NAMES


async def test_the_scraper_chooses_the_format(tmp_path: Path) -> None:
    """Text by default and when asked, OpenMetrics when asked, with its end mark."""
    async with served(full_surface(), tmp_path) as listeners:
        port = listeners.address.port
        plain = await ask(port, "/metrics")
        opened = await ask(port, "/metrics", headers={"accept": f"{OPENMETRICS},text/plain;q=0.1"})
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert opened.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("count", [0, 1, 3, SHARDS_LABELLED_MAX + 1])
def test_both_formats_are_read_by_their_parsers(count: int) -> None:
    """The strict parser of OpenMetrics takes ours, and both tell the same values."""
    surface = full_surface(count)
    text, opened = scrape(surface), scrape(surface, OPENMETRICS)
    plain = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }
    strict = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(opened)  # type: ignore[no-untyped-call]  # (untyped there)
        for sample in family.samples
    }
    assert plain == strict


def written_again(text: str, *, is_openmetrics: bool) -> str:
    """What prometheus_client makes of the families that it reads in ``text``."""
    parse, encode = (
        (parse_openmetrics, encode_openmetrics) if is_openmetrics else (parse_text, encode_text)
    )
    return encode(SimpleNamespace(collect=lambda: list(parse(text)))).decode()


@pytest.mark.parametrize("count", [0, 1, 3, SHARDS_LABELLED_MAX, SHARDS_LABELLED_MAX + 26])
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_library_writes_the_same_letters(count: int, accept: str) -> None:
    """Heads, labels, numbers and their order are those of prometheus_client, odd ones too."""
    surface = full_surface(count, lag_ms=0.1 + 0.2, wal_bytes=123_456_789, lag_bytes=10**15)
    surface.shards += [make_shard('a"b\\c\nd', last_archived_ns=None, archive_broken_seq=4)]
    held = Histogram()
    held.observe(1e9)
    surface.lock_held["a rotation"] = held.get_sample()
    text = scrape(surface, accept)
    assert text == written_again(text, is_openmetrics=bool(accept))


def test_each_name_has_its_true_type() -> None:
    """The two counters without the suffix have none, or readers would append the suffix."""
    lines = scrape(full_surface()).splitlines()
    assert "# TYPE base_shards untyped" in lines
    assert "# TYPE base_lease_contentions untyped" in lines
    assert "# TYPE base_archive_failures_total counter" in lines
    assert "# TYPE base_hot_shards gauge" in lines
    assert "# TYPE base_lock_held_seconds histogram" in lines


def test_values_are_those_of_the_status() -> None:
    """Units are seconds and bytes, moments are seconds since 1970."""
    surface = full_surface()
    surface.shard_counters = {"lease_contentions": 4, "capture_lag_commits": 5}
    text = scrape(surface)
    shard = {"shard": "shard-0"}
    assert value_of(text, "base_unarchived_seconds", **shard) == 0.35
    assert value_of(text, "base_worst_case_loss_seconds", **shard) == 0.36
    assert value_of(text, "base_archive_lag_bytes", **shard) == 8192
    assert value_of(text, "base_capture_lag_commits", **shard) == 5
    assert value_of(text, "base_lease_contentions", **shard) == 4
    assert value_of(text, "base_capture_lapped_total", **shard) == 2
    assert value_of(text, "base_recovered_frames_total", **shard) == 1
    moment = value_of(text, "base_archive_last_timestamp_seconds", **shard)
    assert moment == pytest.approx(NOW_NS / 1e9 - 0.4)
    assert value_of(text, "base_shards") == 1
    assert value_of(text, "base_journal_bytes") == 131_072
    assert value_of(text, "base_hot_shards") == 1
    assert value_of(text, "base_ready") == 1


def test_a_shard_that_was_never_archived_has_no_such_moment() -> None:
    """A zero would be 1970, and an alert."""
    text = scrape(full_surface(last_archived_ns=None, last_restore_point_ns=None))
    assert values_of(text, "base_archive_last_timestamp_seconds") == {}
    assert values_of(text, "base_restore_point_timestamp_seconds") == {}


def test_shards_are_counted_by_state() -> None:
    """Every state is shown, also those with no shard, so that an alert has its zero."""
    surface = FakeSurface(
        make_shard("a"), make_shard("b", state=ShardState.STOPPED), make_shard("c")
    )
    text = scrape(surface)
    assert value_of(text, "base_shards_by_state", state="capturing") == 2
    assert value_of(text, "base_shards_by_state", state="stopped") == 1
    assert value_of(text, "base_shards_by_state", state="refused") == 0
    assert value_of(text, "base_active_shards") == 2


def test_the_shard_label_ends_where_shards_are_many() -> None:
    """199 shards have a sample each; 200 have one together."""
    below = scrape(full_surface(SHARDS_LABELLED_MAX))
    assert len(values_of(below, "base_archive_lag_bytes")) == SHARDS_LABELLED_MAX
    above = scrape(full_surface(SHARDS_LABELLED_MAX + 1))
    assert 'shard="' not in above
    assert list(values_of(above, "base_archive_lag_bytes")) == [()]


def test_many_shards_are_folded_by_what_their_metric_means() -> None:
    """Amounts are added, of ages the worst is shown, of moments the oldest."""
    surface = full_surface(SHARDS_LABELLED_MAX)
    surface.shards.append(
        make_shard("late", lag_ms=9_000.0, last_archived_ns=NOW_NS - 60_000_000_000)
    )
    text = scrape(surface)
    assert value_of(text, "base_archive_lag_bytes") == 200 * 8192
    assert value_of(text, "base_unarchived_seconds") == 9.0
    oldest = value_of(text, "base_archive_last_timestamp_seconds")
    assert oldest == pytest.approx(NOW_NS / 1e9 - 60)


def test_a_lock_histogram_is_cumulative_and_has_its_reason() -> None:
    """Prometheus wants each bucket to hold those below it, and a last one without a bound."""
    surface = full_surface()
    held = Histogram((0.01, 0.1))
    for seconds in (0.001, 0.01, 0.05, 7.0):
        held.observe(seconds)
    surface.lock_held = {"rotate": held.get_sample()}
    text = scrape(surface)
    name = "base_lock_held_seconds"
    assert value_of(text, f"{name}_bucket", reason="rotate", le="0.01") == 2
    assert value_of(text, f"{name}_bucket", reason="rotate", le="0.1") == 3
    assert value_of(text, f"{name}_bucket", reason="rotate", le="+Inf") == 4
    assert value_of(text, f"{name}_count", reason="rotate") == 4
    assert value_of(text, f"{name}_sum", reason="rotate") == pytest.approx(7.061)


def test_nothing_is_registered_for_the_whole_process() -> None:
    """The default registry belongs to whoever embeds us; two expositions do not meet."""
    surface = full_surface()
    first, second = (trio.run(expose(surface).render, "") for _ in range(2))
    assert first == second
    names = {metric.name for metric in REGISTRY.collect()}
    assert not [name for name in names if name.startswith("base_")]


def test_what_needs_peers_is_shown_as_it_is() -> None:
    """Lags of the writer and of a replica, orphans, and the two histograms of a cluster."""
    surface = full_surface(
        role=ShardRole.REPLICA,
        applied_seq=8,
        unfinal_commits=3,
        unfinal_bytes=4096,
        unfinal_ms=1500.0,
        orphans=2,
    )
    surface.shard_counters = {"write_leases_lost": 4, "frames_ingested": 5, "root_self_repairs": 1}
    waited = Histogram((0.01, 0.1))
    waited.observe(0.02)
    surface.histograms = {"fence_wait": waited.get_sample()}
    text = scrape(surface)
    shard = {"shard": "shard-0"}
    assert value_of(text, "base_writer_shards") == 0
    assert value_of(text, "base_apply_lag_frames", **shard) == 3
    assert value_of(text, "base_unfinalized_commits", **shard) == 3
    assert value_of(text, "base_unfinalized_bytes", **shard) == 4096
    assert value_of(text, "base_unfinalized_seconds", **shard) == 1.5
    assert value_of(text, "base_orphans_total", **shard) == 2
    assert value_of(text, "base_write_leases_lost_total", **shard) == 4
    assert value_of(text, "base_network_frames_ingested_total", **shard) == 5
    assert value_of(text, "base_root_self_repairs_total", **shard) == 1
    assert value_of(text, "base_fence_wait_seconds_bucket", le="0.1") == 1
    assert value_of(text, "base_fence_wait_seconds_count") == 1
    assert value_of(text, "base_loop_stall_seconds_bucket", le="+Inf") == 0
