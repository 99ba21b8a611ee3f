"""When a snapshot is due."""

from dataclasses import replace

from basenet.archive.clock import SECOND_NS
from basenet.archive.schedule import (
    LOG_BYTES_MIN,
    SPACING_SECONDS,
    Reason,
    SnapshotNeed,
    plan_snapshot,
)
from basenet.units import MIB

BASE_NS = 1_700_000_000 * SECOND_NS
DAY_NS = 24 * 3600 * SECOND_NS
QUIET = SnapshotNeed(
    db_pages=10, has_base=True, base_ns=BASE_NS, base_stored_bytes=100 * MIB, log_bytes=0
)


def test_a_database_that_was_there_before_basenet_is_stored_at_once() -> None:
    """Without a base nothing can be restored, so nothing is waited for."""
    plan = plan_snapshot(replace(QUIET, has_base=False))
    assert plan.reason is Reason.NO_BASE
    assert plan.is_due(BASE_NS)


def test_a_log_that_the_journal_broke_off_forces_a_snapshot() -> None:
    """P27: what comes behind the gap can be restored only from a snapshot behind it."""
    plan = plan_snapshot(replace(QUIET, is_log_broken=True, log_bytes=1))
    assert plan.reason is Reason.BROKEN_LOG
    assert plan.is_due(BASE_NS)


def test_a_quiet_database_is_never_stored_again() -> None:
    """The interval counts only when something was committed since."""
    plan = plan_snapshot(QUIET)
    assert plan.reason is None
    assert not plan.is_due(BASE_NS + 1000 * DAY_NS)


def test_the_interval_makes_it_due_once_there_is_log() -> None:
    """A day after the base, not before; `status` can say when."""
    plan = plan_snapshot(replace(QUIET, log_bytes=1))
    assert (plan.reason, plan.due_ns) == (Reason.INTERVAL, BASE_NS + DAY_NS)
    assert not plan.is_due(BASE_NS + DAY_NS - 1)
    assert plan.is_due(BASE_NS + DAY_NS)


def test_a_log_larger_than_the_snapshot_makes_it_due() -> None:
    """Then a restore would read more log than database."""
    assert plan_snapshot(replace(QUIET, log_bytes=100 * MIB)).reason is Reason.INTERVAL
    plan = plan_snapshot(replace(QUIET, log_bytes=100 * MIB + 1))
    assert plan.reason is Reason.LOG_SIZE
    assert plan.is_due(BASE_NS)


def test_a_database_that_grows_fast_is_not_read_again_and_again() -> None:
    """The next one by size comes half a minute after the last, or once it is quiet."""
    need = replace(QUIET, log_bytes=10_000 * MIB, is_busy=True)
    plan = plan_snapshot(need)
    assert plan.due_ns == BASE_NS + int(SPACING_SECONDS) * SECOND_NS
    assert not plan.is_due(plan.due_ns - 1)
    assert plan_snapshot(need, interval_seconds=1).due_ns == BASE_NS + SECOND_NS


def test_a_tiny_database_is_not_stored_all_the_time() -> None:
    """Below a floor of log the size of the snapshot does not count."""
    tiny = replace(QUIET, base_stored_bytes=5000)
    assert plan_snapshot(replace(tiny, log_bytes=LOG_BYTES_MIN)).reason is Reason.INTERVAL
    assert plan_snapshot(replace(tiny, log_bytes=LOG_BYTES_MIN + 1)).reason is Reason.LOG_SIZE


def test_a_database_without_pages_has_nothing_to_store() -> None:
    """Its genesis says so already."""
    need = replace(QUIET, db_pages=0, has_base=False, is_log_broken=True, log_bytes=10**9)
    assert plan_snapshot(need).reason is None


def test_shards_that_were_born_together_do_not_snapshot_together() -> None:
    """A tenth of the interval spreads them; none is later than the interval."""
    need = replace(QUIET, log_bytes=1)
    dues = [plan_snapshot(need, phase=number / 10).due_ns or 0 for number in range(10)]
    assert dues == sorted(dues, reverse=True)
    assert dues[0] - dues[9] > 0.08 * DAY_NS
    assert max(dues) == BASE_NS + DAY_NS


def test_a_failed_snapshot_is_tried_again_less_and_less_often() -> None:
    """A minute, two, four ... an hour at most, also when it is urgent."""
    pauses = []
    for failures in (1, 2, 3, 7, 100):
        need = replace(QUIET, has_base=False, failures=failures, failed_ns=BASE_NS)
        plan = plan_snapshot(need)
        assert plan.due_ns is not None
        pauses.append((plan.due_ns - BASE_NS) // SECOND_NS)
        assert not plan.is_due(plan.due_ns - 1)
    assert pauses == [60, 120, 240, 3600, 3600]
