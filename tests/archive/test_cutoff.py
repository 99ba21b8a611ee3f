"""No wall clock has a say in what retention deletes: what is older is proven, or it stays."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basenet.archive.clock import SECOND_NS, Clock, Reading
from basenet.archive.cutoff import NEVER, Witness, find_newest_old, find_watched
from basenet.archive.prune import Pruner
from basenet.archive.watch import Mark, Watch
from basenet.units import TimestampNs
from tests.archive.test_retention import DAY_NS, HOUR_NS, NAMES, Bench, weeks
from tests.fakes.chain import Chain
from tests.fakes.clock import boot_ns

WEEK_NS = 7 * DAY_NS
YEAR_NS = 365 * DAY_NS


@dataclass
class WatchedBench(Bench):
    """A shard in true time, on a machine whose wall clock may be anywhere.

    ``now_ns`` of `Bench` is the wall clock, by which frames are stamped; `wait` lets true time go
    by, as the steady clocks see it. The store has no clock of its own unless ``has_store_clock``.
    """

    true_ns: int = 0
    is_off: bool = False
    has_store_clock: bool = False
    captured_at: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.steady_ns = 0
        self.store.now_ns = (lambda: self.true_ns + 10**18) if self.has_store_clock else None
        self.watch = Watch(clock=self.clock())
        for frame in self.chain.frames:
            self.captured_at[frame.head.seq] = 0

    def clock(self) -> Clock:
        return Clock(boot_ns=boot_ns, wall_ns=lambda: self.now_ns, steady=self.steady)

    def steady(self) -> Reading:
        return Reading(course="boot", monotonic_ns=self.steady_ns, uptime_ns=self.steady_ns)

    def wait(self, duration_ns: int) -> None:
        """Let time go by for every clock; nobody watches while the machine is off."""
        self.true_ns += duration_ns
        self.now_ns += duration_ns
        self.steady_ns += 0 if self.is_off else duration_ns

    def commit(self, hours: float = 1.0, grow: int = 1) -> None:
        self.wait(int(hours * HOUR_NS))
        # What the daemon's framer does: timestamps of a line only grow.
        tip_ns = self.chain.tip.head.timestamp_ns if self.chain.frames else 0
        wall_ns = self.now_ns
        self.chain.now_ns = max(wall_ns, tip_ns + 1)
        self.chain.random_commit(grow=grow)
        self.now_ns = wall_ns
        self.captured_at[self.chain.tip.head.seq] = self.true_ns

    def note(self) -> None:
        """Note what the archive holds, as `daemon.upkeep` does before each pass."""
        if self.shipped >= self.chain.start:
            frame = next(one for one in self.chain.frames if one.head.seq == self.shipped)
            self.watch.note(self.chain.lineage, TimestampNs(frame.head.timestamp_ns))

    def watching(self, retention_ns: int) -> Pruner:
        return self.pruner(retention_ns, watch=self.watch)

    def kept(self, retention_ns: int) -> list[int]:
        """Return which frames of the line truly belong to the last ``retention_ns``."""
        seqs = [frame.head.seq for frame in self.chain.frames if frame.head.seq <= self.shipped]
        before = [s for s in seqs if self.captured_at[s] <= self.true_ns - retention_ns]
        return before[-1:] + [s for s in seqs if s not in before]

    async def day(self) -> None:
        """A commit every six hours, a snapshot and a pass."""
        for _ in range(4):
            self.commit(hours=6)
            self.ship()
            self.note()
        await self.snapshot()


async def watched_days(bench: WatchedBench, days: int, retention_ns: int = WEEK_NS) -> int:
    """Return how many objects went in ``days`` days with a pass in each."""
    deleted = 0
    for _ in range(days):
        await bench.day()
        kept = bench.kept(retention_ns)
        some = await bench.restorable(bench.store, kept[:2] + kept[len(kept) // 2 :: 8])
        deleted += (await bench.watching(retention_ns).run()).deleted
        assert await bench.restorable(bench.store, some) == some
    return deleted


@pytest.mark.parametrize("ahead_ns", [10 * YEAR_NS, 8 * DAY_NS, -YEAR_NS])
async def test_a_wall_clock_that_steps_deletes_nothing_and_stops_nothing(
    tmp_path: Path, ahead_ns: int
) -> None:
    """However far and for however long: every moment of the true week can be restored."""
    bench = WatchedBench(tmp_path)
    assert await watched_days(bench, 6) == 0
    assert await watched_days(bench, 8) > 0
    before = bench.store.names()
    bench.now_ns += ahead_ns
    assert (await bench.watching(WEEK_NS).run()).deleted == 0
    assert bench.store.names() == before
    assert await watched_days(bench, 3) > 0, "what is truly older goes on going"
    bench.now_ns -= ahead_ns
    assert await watched_days(bench, 12) > 0
    oldest = min(bench.kept(WEEK_NS))
    left = [item for item in bench.store.names() if "/log/" in item]
    assert len(left) <= bench.shipped - oldest + 4 + 4  # a week, a sixteenth, the base's day
    assert await bench.restore(bench.shipped) == bench.expected(bench.shipped)


async def test_the_same_step_by_the_wall_clock_deletes_everything(tmp_path: Path) -> None:
    """What an operator who says --by-clock on a wrong clock gets: only the last base stays."""
    bench = WatchedBench(tmp_path)
    await watched_days(bench, 7)
    bench.now_ns += 10 * YEAR_NS
    kept = bench.kept(WEEK_NS)
    report = await bench.pruner(WEEK_NS).run(dry_run=True)
    assert report.cutoff.witness is Witness.CLOCK
    assert report.deleted > 20
    await bench.pruner(WEEK_NS).run()
    assert len(await bench.restorable(bench.store, kept)) < len(kept) / 2


async def test_after_months_without_power_retention_comes_back_within_one_retention(
    tmp_path: Path,
) -> None:
    """Nobody watched: what was young then stays for a week of watching, and goes then."""
    bench = WatchedBench(tmp_path)
    await watched_days(bench, 14)
    bench.is_off = True
    bench.wait(YEAR_NS // 2)
    bench.is_off = False
    last_week = [seq for seq, at in bench.captured_at.items() if at > 8 * DAY_NS]
    assert (await bench.watching(WEEK_NS).run()).deleted == 0
    assert await bench.restorable(bench.store, last_week) == last_week
    await watched_days(bench, 10)
    old = [seq for seq, at in bench.captured_at.items() if at < 14 * DAY_NS]
    assert await bench.restorable(bench.store, old) == [1, 2]  # the object of the genesis
    bench.wait(HOUR_NS)
    assert await bench.problems(WEEK_NS) == []


async def test_an_application_that_is_idle_for_months_keeps_only_its_last_base(
    tmp_path: Path,
) -> None:
    """One mark is enough, and no commit has to come."""
    bench = WatchedBench(tmp_path)
    await watched_days(bench, 5)
    await bench.snapshot()
    for _ in range(30):
        bench.note()
        bench.wait(DAY_NS)
        await bench.watching(WEEK_NS).run()
    assert len([name for name in bench.store.names() if name.endswith(".lbn")]) == 2
    assert await bench.restore(bench.shipped) == bench.expected(bench.shipped)


async def test_frames_of_the_future_go_when_their_time_has_come(tmp_path: Path) -> None:
    """A clock that was ten years ahead stamps everything after it: order is all that counts."""
    bench = WatchedBench(tmp_path)
    await watched_days(bench, 2)
    bench.now_ns += 10 * YEAR_NS
    await bench.day()
    bench.now_ns -= 10 * YEAR_NS
    await watched_days(bench, 20)
    tip_ns = bench.chain.tip.head.timestamp_ns
    assert tip_ns > bench.now_ns + 9 * YEAR_NS
    assert await bench.problems(WEEK_NS) == [], "verify does not miss them"
    old = [seq for seq, at in bench.captured_at.items() if at < bench.true_ns - 9 * DAY_NS]
    assert await bench.restorable(bench.store, old) == [1, 2]


async def test_a_stores_own_clock_tells_where_nobody_watched(tmp_path: Path) -> None:
    """A new data directory on a bucket: by the age of the page sets, not by our wall clock."""
    bench = WatchedBench(tmp_path, has_store_clock=True)
    for _ in range(14):
        await bench.day()
    bench.watch = Watch(clock=bench.clock())
    for ahead_ns in (0, 10 * YEAR_NS, -YEAR_NS):
        bench.now_ns += ahead_ns
        kept = bench.kept(WEEK_NS)
        report = await bench.watching(WEEK_NS).run(dry_run=bool(ahead_ns))
        assert report.cutoff.witness is Witness.STORE
        assert (report.deleted > 0) == (ahead_ns == 0), "what was old went in the first pass"
        assert await bench.restorable(bench.store, kept) == kept
        bench.now_ns -= ahead_ns


async def test_without_any_witness_nothing_expires(tmp_path: Path) -> None:
    """A new data directory on a directory archive: it is watched from now on."""
    bench = WatchedBench(tmp_path)
    for _ in range(14):
        await bench.day()
    bench.watch = Watch(clock=bench.clock())
    report = await bench.watching(WEEK_NS).run()
    assert (report.deleted, report.cutoff.witness) == (0, Witness.NOBODY)
    assert report.cutoff.moment == NEVER
    await watched_days(bench, 9)
    assert (await bench.watching(WEEK_NS).run(dry_run=True)).cutoff.witness is Witness.WATCH


async def test_a_mark_of_a_left_lineage_says_nothing_of_its_young_child(tmp_path: Path) -> None:
    """The child begins below what the mark names, with timestamps of its own."""
    bench = WatchedBench(tmp_path)
    await bench.day()
    bench.wait(WEEK_NS)
    parent = bench.chain
    bench.now_ns = parent.frames[-3].head.timestamp_ns + HOUR_NS  # the clock stepped back
    bench.begin_child(parent.tip.head.seq - 2)
    bench.captured_at |= {frame.head.seq: bench.true_ns for frame in bench.chain.frames}
    bench.commit(hours=0.1)
    bench.ship()
    kept = [frame.head.seq for frame in bench.chain.frames]
    assert bench.chain.frames[-1].head.timestamp_ns < parent.tip.head.timestamp_ns
    report = await bench.watching(WEEK_NS).run()
    assert report.cutoff.witness is Witness.WATCH
    genesis = bench.chain.frames[0].head
    assert report.cutoff.moment == genesis.timestamp_ns - 1
    assert await bench.restorable(bench.store, kept) == kept


async def test_garbage_in_a_directory_goes_a_day_after_it_was_first_seen(tmp_path: Path) -> None:
    """Its file may have any time, and so may we."""
    bench = WatchedBench(tmp_path)
    await bench.day()
    stray = f"{NAMES.prefix}{bench.chain.lineage.hex()}/part/{'ab' * 32}.pg"
    bench.store.put(stray, b"part")
    pruner = bench.watching(WEEK_NS)
    for hours in (0, 23):
        bench.wait(hours * HOUR_NS)
        bench.now_ns += YEAR_NS
        assert (await pruner.run()).deleted == 0
    bench.wait(2 * HOUR_NS)
    assert (await pruner.run()).deleted == 1
    assert stray not in bench.store.names()


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 100_000), events=st.integers(5, 50), days=st.sampled_from([1, 3, 7]))
def test_whatever_the_wall_clock_does_the_true_retention_is_kept(
    tmp_path: Path, seed: int, events: int, days: int
) -> None:
    """Steps, power cuts, passes and snapshots in any order."""

    async def scenario() -> None:
        rng = random.Random(seed)
        bench = WatchedBench(tmp_path, chain=Chain(seed=seed))
        bench.commit(hours=0)
        await bench.snapshot()
        for _ in range(events):
            event = rng.random()
            if event < 0.4:
                bench.commit(hours=rng.choice([0.01, 1, 10, 30]), grow=rng.choice([0, 1]))
                bench.ship()
            elif event < 0.6:
                await bench.snapshot()
            elif event < 0.75:
                bench.now_ns = max(1, bench.now_ns + rng.choice([-1, 1]) * rng.choice(_STEPS_NS))
            elif event < 0.85:
                bench.is_off = True
                bench.wait(rng.choice([1, 48, 5000]) * HOUR_NS)
                bench.is_off = False
            bench.note()
            some = bench.kept(days * DAY_NS)
            some = some[:2] + rng.sample(some, min(2, len(some)))
            kept = await bench.restorable(bench.store, some)
            await bench.watching(days * DAY_NS).run()
            assert await bench.restorable(bench.store, kept) == kept

    trio.run(scenario)


_STEPS_NS = (60 * SECOND_NS, DAY_NS, WEEK_NS, 10 * YEAR_NS)


@given(st.lists(st.booleans(), max_size=40))
def test_the_set_that_is_found_is_one_of_which_it_is_true(old: list[bool]) -> None:
    """In order it is the newest; out of order it is at least a true one, and few are asked."""
    asked: list[int] = []

    async def is_old(number: int) -> bool:
        asked.append(number)
        return old[number]

    found = trio.run(find_newest_old, len(old), is_old)
    assert found is None or old[found]
    assert len(asked) <= 8
    if old == sorted(old, reverse=True):
        assert found == (sum(old) - 1 if any(old) else None)


def test_marks_of_strange_lineages_say_nothing(tmp_path: Path) -> None:
    """The line decides which marks speak."""
    mark = Mark(watched_ns=0, lineage=bytes(16), timestamp_ns=5)
    assert find_watched([mark], ()) == NEVER
    assert tmp_path.exists()


async def test_the_bench_of_the_other_tests_still_goes_by_its_own_clock(tmp_path: Path) -> None:
    """Both witnesses agree where every clock is right."""
    bench = Bench(tmp_path)
    await weeks(bench, 14)
    by_clock = await bench.pruner(WEEK_NS).run(dry_run=True)
    by_store = await bench.pruner(WEEK_NS, watch=Watch(clock=bench.clock())).run(dry_run=True)
    assert by_store.cutoff.witness is Witness.STORE
    assert 0 < by_store.deleted <= by_clock.deleted
