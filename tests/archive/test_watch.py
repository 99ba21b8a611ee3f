"""Watched time is never more than the time that went by, and marks are never younger than told."""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from basenet.archive.clock import SECOND_NS, SYSTEM_CLOCK, Clock, Reading, read_steady
from basenet.archive.watch import Watch
from basenet.units import Lineage, TimestampNs

LINEAGE = Lineage(bytes(16))
OTHER = Lineage(bytes([1]) * 16)
HOUR_NS = 3600 * SECOND_NS


@dataclass
class World:
    """True time, and what the clocks of a machine say of it."""

    true_ns: int = 0
    course: str = "boot 1"
    booted_ns: int = 0
    asleep_ns: int = 0
    faked_ns: int = 0

    def steady(self) -> Reading:
        up_ns = self.true_ns - self.booted_ns
        return Reading(
            course=self.course,
            monotonic_ns=up_ns - self.asleep_ns + self.faked_ns,
            uptime_ns=up_ns,
        )

    def watch(self, path: Path | None = None) -> Watch:
        watch = Watch(path, Clock(steady=self.steady))
        watch.load()
        return watch


def test_time_that_was_watched_counts_also_over_restarts_of_the_process(tmp_path: Path) -> None:
    """In one boot the clocks go on between two processes."""
    world, path = World(), tmp_path / "watched" / "app.json"
    watch = world.watch(path)
    watch.note(LINEAGE, TimestampNs(5))
    watch.save()
    world.true_ns += 3 * HOUR_NS
    again = world.watch(path)
    assert again.watched_ns == 3 * HOUR_NS
    assert [mark.timestamp_ns for mark in again.find_older(3 * HOUR_NS)] == [5]
    assert again.find_older(3 * HOUR_NS + 1) == []
    assert again.oldest_ns == 3 * HOUR_NS
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_reboot_a_sleep_and_a_faked_clock_are_not_counted(tmp_path: Path) -> None:
    """Whatever the clocks say of it: nobody watched."""
    world, path = World(), tmp_path / "app.json"
    watch = world.watch(path)
    watch.note(LINEAGE, TimestampNs(5))
    world.true_ns += HOUR_NS
    watch.save()

    world.true_ns += 1000 * HOUR_NS
    world.course, world.booted_ns = "boot 2", world.true_ns - 500 * HOUR_NS
    rebooted = world.watch(path)
    assert rebooted.watched_ns == HOUR_NS
    world.true_ns += HOUR_NS
    assert rebooted.watched_ns == 2 * HOUR_NS

    world.true_ns += 100 * HOUR_NS
    world.asleep_ns += 100 * HOUR_NS
    assert rebooted.watched_ns == 2 * HOUR_NS
    rebooted.save()

    world.faked_ns = 100_000 * HOUR_NS  # faketime: CLOCK_MONOTONIC is ahead in this process
    assert world.watch(path).watched_ns <= 102 * HOUR_NS  # the sleep, which uptime knows of
    world.faked_ns = -100_000 * HOUR_NS
    assert world.watch(path).watched_ns == 2 * HOUR_NS


def test_what_cannot_be_read_was_not_watched(tmp_path: Path) -> None:
    """Damage makes retention wait, and nothing else."""
    world, path = World(), tmp_path / "app.json"
    watch = world.watch(path)
    watch.note(LINEAGE, TimestampNs(5))
    world.true_ns += HOUR_NS
    watch.save()
    good = path.read_bytes()
    document = msgspec.json.decode(good)
    document["marks"][0]["watched_ns"] = 10**30
    for content in (b"", b"{}", good[:-1], msgspec.json.encode(document), b"\xff" * 40):
        path.write_bytes(content)
        damaged = world.watch(path)
        assert damaged.watched_ns == 0
        assert damaged.find_older(0) == []
        assert damaged.oldest_ns == 0
    document["marks"][0]["watched_ns"] = 2 * HOUR_NS  # later than anything that was watched
    path.write_bytes(msgspec.json.encode(document))
    assert world.watch(path).find_older(0) == []


def test_marks_are_few_and_near_enough() -> None:
    """A year of hourly marks: every age is met within a sixteenth, and one more hour."""
    world = World()
    watch = world.watch()
    for hour in range(365 * 24):
        watch.note(LINEAGE, TimestampNs(hour + 1))
        world.true_ns += HOUR_NS
    for hours in (1, 5, 24, 7 * 24, 30 * 24, 300 * 24):
        mark = watch.find_older(hours * HOUR_NS)[0]
        age_ns = world.true_ns - mark.watched_ns
        assert hours * HOUR_NS <= age_ns <= hours * HOUR_NS * 17 // 16 + HOUR_NS
    assert len(watch.find_older(0)) < 200


def test_timestamps_that_go_back_are_not_believed_before() -> None:
    """They never do within a lineage; if they did, the marks before would say too much."""
    world = World()
    watch = world.watch()
    watch.note(LINEAGE, TimestampNs(10))
    watch.note(OTHER, TimestampNs(50))
    world.true_ns += HOUR_NS
    watch.note(LINEAGE, TimestampNs(7))
    world.true_ns += HOUR_NS
    assert [(mark.lineage, mark.timestamp_ns) for mark in watch.find_older(HOUR_NS)] == [
        (LINEAGE, 7), (OTHER, 50),
    ]  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["note", "pass", "restart", "reboot", "sleep", "fake"]),
            st.integers(0, 10**6),
        ),
        max_size=60,
    )
)
def test_no_mark_is_younger_than_it_is_told(steps: list[tuple[str, int]]) -> None:
    """Whatever happens to the machine and its clocks, in any order."""
    world = World()
    watch = world.watch()
    noted: dict[int, int] = {}
    stamp = 0
    for what, seconds in steps:
        world.true_ns += seconds * SECOND_NS
        if what == "note":
            stamp += 1
            watch.note(LINEAGE, TimestampNs(stamp))
            noted[stamp] = world.true_ns
        elif what == "reboot":
            world.course, world.booted_ns = f"boot at {world.true_ns}", world.true_ns - seconds
            world.asleep_ns = world.faked_ns = 0
        elif what == "sleep":
            world.asleep_ns += seconds * SECOND_NS
        elif what == "fake":
            world.faked_ns = (seconds - 500_000) * SECOND_NS
        for age in (0, 1, 3600, 10**5, 10**6):
            for mark in watch.find_older(age * SECOND_NS):
                assert world.true_ns - noted[mark.timestamp_ns] >= age * SECOND_NS


def test_the_machines_own_clocks_compare_within_a_boot() -> None:
    """What is read here and now goes forward, and of another boot says nothing."""
    before = read_steady()
    after = SYSTEM_CLOCK.steady()
    assert after.course == before.course
    assert after.elapsed_ns(before) >= 0
    assert before.elapsed_ns(replace(after, uptime_ns=after.uptime_ns + SECOND_NS)) == 0
    assert after.elapsed_ns(replace(before, course="another", monotonic_ns=0)) == 0
