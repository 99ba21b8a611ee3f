"""Shipping frames: when, in which order, and what happens when the archive does not play along."""

# ruff: noqa: ARG001  (autojump_clock is asked for so that trio's time jumps)

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import trio

from basenet.archive.backlog import Backlog
from basenet.archive.facts import open_log
from basenet.archive.lease import Holder, Lease, LeaseHeld, LeaseLost, read_lease
from basenet.archive.names import LogName, ShardNames
from basenet.archive.seal import Seal, TwoHistories
from basenet.archive.tip import TipWriter, read_tip
from basenet.archive.uploader import ArchiveState, Uploader, UploadSettings
from basenet.errors import BasenetError, CorruptionError
from basenet.units import JournalId, Seq, TimestampNs
from basenet.wire.frame import Flag, encode_frame
from basenet.wire.segment import Role, Segment
from tests.fakes.chain import Chain, ChainSource, signer
from tests.fakes.clock import BEGIN_NS, trio_clock
from tests.fakes.memory_store import Fault, MemoryStore, always, first


def log_objects(store: MemoryStore, names: ShardNames) -> list[tuple[int, int]]:
    """Return (start, end) of the log objects, after verifying each."""
    found = []
    for name in store.names("/log/"):
        parsed = names.parse(name)
        assert isinstance(parsed, LogName)
        open_log(store.objects[name].data, name, parsed, names)
        found.append((int(parsed.start), int(parsed.end)))
    return found


@dataclass
class Bench:
    """One shard's chain, its store and its uploader."""

    store: MemoryStore = field(default_factory=MemoryStore)
    chain: Chain = field(default_factory=Chain)
    settings: UploadSettings = field(default_factory=UploadSettings)
    archived_seq: int = 0
    cache_bytes_max: int = 64 << 20
    journal_id: bytes = b"j" * 16
    archived: list[tuple[int, float]] = field(default_factory=list)
    failure: BasenetError | None = None

    def __post_init__(self) -> None:
        self.names = ShardNames(service="default", shard=self.chain.shard)
        self.seal = Seal(names=self.names, lineage=self.chain.lineage, signer=self.chain.signer)
        self.source = ChainSource(self.chain)
        self.trusted = frozenset({self.chain.signer.public})
        holder = Holder(
            node="a",
            key=self.chain.signer.public,
            journal_id=JournalId(self.journal_id),
            lineage=self.chain.lineage,
        )
        self.lease = Lease(store=self.store, names=self.names, holder=holder, clock=trio_clock())
        self.backlog = Backlog(archived_seq=Seq(self.archived_seq), bytes_max=self.cache_bytes_max)
        self.uploader = Uploader(
            store=self.store,
            seal=self.seal,
            lease=self.lease,
            tip=TipWriter(store=self.store, seal=self.seal, lease=self.lease, trusted=self.trusted),
            backlog=self.backlog,
            source=self.source,
            on_archived=self._on_archived,
            trusted=self.trusted,
            settings=self.settings,
            clock=trio_clock(),
        )

    async def _on_archived(self, seq: Seq, now_ns: int) -> None:
        assert now_ns >= BEGIN_NS
        self.archived.append((seq, trio.current_time()))

    def append(self, *seqs: int) -> None:
        for seq in seqs:
            frame = self.chain.frame(seq)
            self.uploader.append(frame.head, encode_frame(frame))

    def commit(self, count: int = 1, grow: int = 1) -> None:
        """Commit and hand over: the path of a live shard."""
        for _ in range(count):
            frame = self.chain.random_commit(grow=grow)
            self.uploader.append(frame.head, encode_frame(frame))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async def run() -> None:
            try:
                await self.uploader.run()
            except BasenetError as error:
                self.failure = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield
            nursery.cancel_scope.cancel()

    def logs(self) -> list[tuple[int, int]]:
        return log_objects(self.store, self.names)

    def segment(self, index: int) -> Segment:
        name = self.store.names("/log/")[index]
        parsed = self.names.parse(name)
        assert isinstance(parsed, LogName)
        return open_log(self.store.objects[name].data, name, parsed, self.names)


async def test_a_lone_commit_goes_at_once_and_a_burst_goes_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The leading edge: nothing waits on an idle archive; then one object per flush interval."""
    bench = Bench()
    async with bench.running():
        bench.append(1)
        await trio.sleep(0.001)
        assert bench.archived == [(1, 0.0)]
        for _ in range(5):
            bench.commit()
            await trio.sleep(0.1)
        assert bench.logs() == [(1, 1)]
        await trio.sleep(0.6)
        assert bench.logs() == [(1, 1), (2, 6)]
        assert bench.archived[-1] == (6, 1.0)
        await trio.sleep(60)
        bench.commit()
        await trio.sleep(0.001)
        assert bench.logs() == [(1, 1), (2, 6), (7, 7)]


async def test_an_object_begins_with_its_epoch_and_is_named_by_its_first_frame(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """EPOCH(role LOG, lineage, writer, service, archive epoch), then the frames, signed."""
    bench = Bench()
    async with bench.running():
        bench.append(1)
        bench.commit(3)
        await trio.sleep(2)
    segment = bench.segment(0)
    assert segment.epoch is not None
    assert (segment.epoch.role, segment.epoch.archive_epoch) == (Role.LOG, 1)
    assert segment.epoch.lineage == bench.chain.lineage
    assert segment.public == segment.epoch.writer == bench.chain.signer.public
    assert [frame.head.seq for frame in segment.frames] == [1, 2, 3, 4]
    (name,) = bench.store.names("/log/")
    assert name == (
        f"default/app/{bench.chain.lineage.hex()}/log/0000000000000000/"
        f"{1:020d}-{4:020d}-{bench.chain.frame(1).head.timestamp_ns:020d}.lbn"
    )


async def test_the_number_of_writes_is_bounded_and_an_idle_shard_makes_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """30 s of commits at 20 per second: one log object per interval; then silence."""
    bench = Bench()
    async with bench.running():
        bench.append(1)
        for _ in range(600):
            bench.commit(grow=0)
            await trio.sleep(0.05)
        await trio.sleep(20)
        assert bench.archived[-1][0] == 601
        assert bench.store.count("put_if_absent") <= 32
        assert bench.store.count("replace_if", "TIP") <= 5
        assert bench.store.count("replace_if", "LEASE") <= 4
        bench.store.calls.clear()
        await trio.sleep(36_000)
        assert bench.store.calls == []


async def test_no_more_than_the_bound_waits_for_the_end_of_the_interval(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Past it objects follow one another without regard to the interval."""
    settings = UploadSettings(
        segment_target_bytes=4000, flush_interval_seconds=60, waiting_bytes_max=4000
    )
    bench = Bench(settings=settings)
    async with bench.running():
        bench.append(1)
        await trio.sleep(1)
        bench.commit(40)
        await trio.sleep(0.001)
        facts = bench.uploader.facts()
        assert facts.lag_bytes < 4000
        assert len(bench.logs()) > 4
        sizes = [len(bench.store.objects[name].data) for name in bench.store.names("/log/")]
        assert max(sizes) < 4000 + 500
        await trio.sleep(60)
        assert bench.uploader.facts().lag_frames == 0
    ends = bench.logs()
    assert all(before[1] + 1 == after[0] for before, after in pairwise(ends))


async def test_full_segments_go_together_at_the_end_of_the_interval(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A burst is left alone while it lasts; what it wrote is then cut into segments."""
    bench = Bench(settings=UploadSettings(segment_target_bytes=4000, flush_interval_seconds=1))
    async with bench.running():
        bench.append(1)
        await trio.sleep(0.5)
        bench.commit(40)
        await trio.sleep(0.499)
        assert bench.logs() == [(1, 1)]
        await trio.sleep(0.002)
        assert bench.uploader.facts().lag_frames == 0
    ends = bench.logs()
    assert len(ends) > 4
    assert all(before[1] + 1 == after[0] for before, after in pairwise(ends))


async def test_the_archive_away_for_a_day_loses_and_reorders_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Retries without end; memory stays bounded; afterwards the log is whole, from the journal."""
    settings = UploadSettings(segment_target_bytes=5000)
    bench = Bench(settings=settings, cache_bytes_max=3000)
    bench.store.fate = always(Fault.FAIL)
    async with bench.running():
        bench.append(1)
        for _ in range(24):
            bench.commit(5)
            await trio.sleep(3600)
        facts = bench.uploader.facts()
        assert facts.state is ArchiveState.RETRYING
        assert (facts.archived_seq, facts.lag_frames) == (0, 121)
        assert facts.lag_bytes == sum(map(len, bench.chain.encoded(1, 121)))
        assert facts.lag_oldest_ns == bench.chain.frame(1).head.timestamp_ns
        assert facts.failures > 100
        assert "failed" in (facts.last_error or "")
        assert bench.backlog.cached_bytes <= 3000
        bench.store.fate = lambda _method, _name: None
        await trio.sleep(40)
        facts = bench.uploader.facts()
        assert (facts.state, facts.last_error) == (ArchiveState.IDLE, None)
        assert (facts.archived_seq, facts.lag_frames, facts.lag_bytes) == (121, 0, 0)
        assert facts.lag_oldest_ns is None
        assert facts.last_success_ns is not None
    logs = bench.logs()
    assert logs[0][0] == 1
    assert all(before[1] + 1 == after[0] for before, after in pairwise(logs))
    assert logs[-1][1] == 121


async def test_attempts_back_off_to_half_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Pauses double from 250 ms to 30 s, so an hour's outage costs some hundred requests."""
    bench = Bench()
    bench.store.fate = always(Fault.FAIL)
    async with bench.running():
        bench.append(1)
        await trio.sleep(3600)
    assert 120 <= len(bench.store.calls) <= 300


async def test_a_refusal_is_shown_with_its_sentence_and_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """403 or a missing bucket is the operator's to mend; when it is, shipping goes on by itself."""
    bench = Bench()
    bench.store.fate = always(Fault.REFUSE, method="put")
    async with bench.running():
        bench.append(1)
        await trio.sleep(100)
        facts = bench.uploader.facts()
        assert facts.state is ArchiveState.REFUSED
        assert "permission denied" in (facts.last_error or "")
        bench.store.fate = lambda _method, _name: None
        await trio.sleep(31)
        assert bench.uploader.facts().state is ArchiveState.IDLE
    assert bench.failure is None
    assert bench.logs() == [(1, 1)]


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.HANG_AFTER, Fault.HANG, Fault.FAIL])
async def test_an_undecided_object_is_the_same_object_the_next_time(
    fault: Fault, autojump_clock: trio.testing.MockClock
) -> None:
    """Frames that came meanwhile wait for the next one, also when a whole cycle failed."""
    for times in (1, 3, 60):
        bench = Bench()
        bench.store.fate = first(times, fault, method="put_if_absent")
        async with bench.running():
            bench.append(1)
            await trio.sleep(0.001)
            bench.commit(5)
            await trio.sleep(4000)
            assert bench.uploader.facts().archived_seq == 6
            assert not bench.uploader.is_undecided
        assert bench.logs() == [(1, 1), (2, 6)]
        assert bench.failure is None


async def test_a_write_that_hangs_does_not_hang_the_shard(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Half a minute and a sentence; then it is tried again."""
    bench = Bench()
    bench.store.fate = first(1, Fault.HANG, method="put_if_absent")
    async with bench.running():
        bench.append(1)
        await trio.sleep(29)
        assert bench.uploader.facts().failures == 0
        await trio.sleep(1.01)
        assert "did not answer within 30 s" in (bench.uploader.facts().last_error or "")
        await trio.sleep(2)
        assert bench.logs() == [(1, 1)]


async def test_a_renewal_that_hangs_is_told_as_soon_as_a_write(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The patience with another's lease is none with a store that does not answer about ours."""
    bench = Bench()
    async with bench.running():
        bench.append(1)
        await trio.sleep(20)
        bench.store.fate = always(Fault.HANG)
        bench.commit()
        await trio.sleep(30.01)
        assert "did not answer within 30 s" in (bench.uploader.facts().last_error or "")


async def test_a_slow_shard_blocks_no_other(autojump_clock: trio.testing.MockClock) -> None:
    """Each shard has its own task and nothing in common but the store."""
    slow, quick = Bench(), Bench(chain=Chain(number=2))
    slow.store.fate = always(Fault.HANG)
    async with slow.running(), quick.running():
        slow.append(1)
        quick.append(1)
        for _ in range(50):
            quick.commit()
            await trio.sleep(1)
        await trio.sleep(1)
        assert quick.uploader.facts().lag_frames == 0
        assert slow.uploader.facts().archived_seq == 0


async def test_equal_frames_under_our_name_count_as_archived(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Frames are compared by seq: another archive epoch makes other bytes of the same frames."""
    before = Bench()
    before.lease.raise_epoch_floor(4)
    async with before.running():
        before.append(1)
        await trio.sleep(5)
    store = before.store
    (name,) = store.names("/log/")
    stored = store.objects[name].data
    bench = Bench(store=store)
    async with bench.running():
        bench.append(1)
        await trio.sleep(5)
        assert bench.uploader.facts().archived_seq == 1
    assert store.objects[name].data == stored
    assert (bench.uploader.facts().puts, bench.failure) == (0, None)


async def test_other_frames_under_our_name_end_the_shards_archive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Two histories: nothing is overwritten, nothing more is written, one sentence says it."""
    ours, theirs = Chain(seed=1), Chain(seed=2)
    other = Bench(chain=theirs)
    async with other.running():
        other.append(1)
        await trio.sleep(5)
    (name,) = other.store.names("/log/")
    stored = other.store.objects[name].data
    bench = Bench(store=other.store, chain=ours)
    async with bench.running():
        bench.append(1)
        await trio.sleep(5)
        bench.commit()
        await trio.sleep(5)
    assert isinstance(bench.failure, TwoHistories)
    assert "two histories: object default/app/" in str(bench.failure)
    facts = bench.uploader.facts()
    assert (facts.state, facts.archived_seq) == (ArchiveState.STOPPED, 0)
    assert facts.last_error == str(bench.failure)
    assert bench.store.names("/log/") == [name]
    assert bench.store.objects[name].data == stored


async def test_an_object_that_nobody_can_read_ends_it_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Garbage or a foreign key's object where ours belongs is never taken for ours."""
    foreign = Chain(key=9)
    for garbage in (b"garbage", None):
        data = garbage
        bench = Bench()
        name = LogName(
            lineage=bench.chain.lineage,
            start=Seq(1),
            end=Seq(1),
            nanos=bench.chain.frame(1).head.timestamp_ns,
        )
        if data is None:
            other = Bench(chain=foreign)
            async with other.running():
                other.append(1)
                await trio.sleep(1)
            data = next(iter(other.store.objects.values())).data
        bench.store.put(bench.names.log(name), data)
        async with bench.running():
            bench.append(1)
            await trio.sleep(5)
        assert isinstance(bench.failure, TwoHistories)
        assert "find out who wrote it" in str(bench.failure)


async def test_a_lost_lease_ends_the_shards_archive_before_it_writes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """P24: a writer that was paused beyond its lease does not fork the log."""
    bench = Bench()
    async with bench.running():
        bench.append(1)
        await trio.sleep(50)
        holder = Holder(
            node="b",
            key=signer(2).public,
            journal_id=JournalId(b"k" * 16),
            lineage=bench.chain.lineage,
        )
        other = Lease(store=bench.store, names=bench.names, holder=holder, clock=trio_clock())
        await other.acquire()
        bench.commit()
        await trio.sleep(0.1)
    assert isinstance(bench.failure, LeaseLost)
    assert bench.logs() == [(1, 1)]


async def test_a_second_daemon_on_the_shard_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Two data directories, one shard of one archive: the second one is told who has it."""
    one = Bench()
    two = Bench(store=one.store, chain=Chain(key=2, number=2), journal_id=b"k" * 16)
    async with one.running(), two.running():
        one.append(1)
        await trio.sleep(0.5)
        two.append(1)
        for _ in range(40):
            one.commit()
            await trio.sleep(1)
    assert isinstance(two.failure, LeaseHeld)
    assert "archived by node a" in str(two.failure)
    assert one.failure is None
    assert one.uploader.facts().lag_frames == 0


async def test_tip_follows_and_a_stop_covers_everything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`close` ships what waits at once, writes TIP, and frees the lease for a successor."""
    bench = Bench(settings=UploadSettings(flush_interval_seconds=3600))
    async with bench.running():
        bench.append(1)
        await trio.sleep(1)
        bench.commit(7)
        begun_at = trio.current_time()
        assert await bench.uploader.close(10)
        assert trio.current_time() - begun_at < 0.1
    tip = await read_tip(bench.store, bench.names, bench.trusted)
    assert tip is not None
    assert tip.facts.head.seq == 8
    seen = await read_lease(bench.store, bench.names)
    assert seen is not None
    assert seen.body.is_released


async def test_a_flush_retries_at_once_and_gives_up_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A stop does not sit out a pause of half a minute, and does not wait longer than it may."""
    bench = Bench()
    bench.store.fate = always(Fault.FAIL)
    async with bench.running():
        bench.append(1)
        await trio.sleep(300)
        begun_at = trio.current_time()
        assert not await bench.uploader.close(7)
        assert trio.current_time() - begun_at == pytest.approx(7, abs=0.01)
        assert bench.uploader.is_undecided
        bench.store.fate = first(2, Fault.FAIL)
        assert await bench.uploader.flush(7)
        assert trio.current_time() - begun_at < 9
    seen = await read_lease(bench.store, bench.names)
    assert seen is not None
    assert not seen.body.is_released


async def test_tip_never_lies_within_a_run(autojump_clock: trio.testing.MockClock) -> None:
    """Log objects may end inside a PARTIAL run; TIP waits for its end."""
    bench = Bench()
    run = bench.chain.commit({pgno: bench.chain.page() for pgno in range(1, 9)}, run=4)
    assert [bool(frame.head.flags & Flag.PARTIAL) for frame in run] == [True] * 3 + [False]
    async with bench.running():
        bench.append(1)
        await trio.sleep(20)
        bench.append(2, 3)
        await trio.sleep(20)
        assert bench.logs() == [(1, 1), (2, 3)]
        assert bench.uploader.facts().tip_seq == 1
        bench.append(4, 5)
        await trio.sleep(20)
        assert bench.uploader.facts().tip_seq == 5


async def test_a_restart_ships_what_the_journal_still_holds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Only the sums of the waiting frames are known at first; they are read when they go."""
    chain = Chain()
    for _ in range(20):
        chain.random_commit(grow=1)
    bench = Bench(chain=chain, archived_seq=6, settings=UploadSettings(segment_target_bytes=2000))
    size = sum(map(len, chain.encoded(7, 21)))
    bench.backlog.adopt(
        end=Seq(21), size=size, oldest_ns=TimestampNs(chain.frame(7).head.timestamp_ns)
    )
    assert bench.uploader.facts().lag_bytes == size
    async with bench.running():
        bench.commit()
        await trio.sleep(3)
    logs = bench.logs()
    assert (logs[0][0], logs[-1][1]) == (7, 22)
    assert bench.source.reads[0][0] == 7


async def test_frames_that_the_journal_dropped_are_skipped_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """P27: at its limit the journal drops the oldest; shipping goes on behind the gap."""
    settings = UploadSettings(segment_target_bytes=1200)
    bench = Bench(cache_bytes_max=0, settings=settings)
    bench.store.fate = always(Fault.FAIL)
    async with bench.running():
        bench.append(1)
        bench.commit(9)
        await trio.sleep(1000)
        assert bench.uploader.skip(Seq(6)) == 6
        bench.store.fate = lambda _method, _name: None
        await trio.sleep(60)
        facts = bench.uploader.facts()
        assert (facts.archived_seq, facts.lag_frames, facts.lag_bytes) == (10, 0, 0)
    assert bench.failure is None
    shipped = {seq for start, end in bench.logs() for seq in range(start, end + 1)}
    assert shipped >= {7, 8, 9, 10}
    assert 6 not in shipped


async def test_a_damaged_journal_ends_the_archive_with_its_sentence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Bytes that are not the frame that was asked for are never signed."""
    bench = Bench(archived_seq=1)
    frame, other = bench.chain.random_commit(), bench.chain.random_commit()
    async with bench.running():
        bench.uploader.append(frame.head, encode_frame(other))
        await trio.sleep(1)
    assert isinstance(bench.failure, CorruptionError)
    assert "journal is damaged" in str(bench.failure)
    assert bench.logs() == []


async def test_chance_faults_never_break_the_log(autojump_clock: trio.testing.MockClock) -> None:
    """Whatever goes wrong at whatever call: the archived log is whole, in order and verified."""
    for seed in range(25):
        rng = random.Random(seed)
        bench = Bench(
            chain=Chain(seed=seed),
            settings=UploadSettings(segment_target_bytes=3000, retry_deadline_seconds=20),
            cache_bytes_max=rng.choice([0, 2000, 1 << 20]),
        )
        faults = [Fault.FAIL, Fault.LOSE_ANSWER, Fault.REFUSE, Fault.HANG, Fault.HANG_AFTER]

        def fate(_method: str, _name: str, rng: random.Random = rng) -> Fault | None:
            return rng.choice(faults) if rng.random() < 0.4 else None  # noqa: B023

        bench.store.fate = fate
        async with bench.running():
            bench.append(1)
            for _ in range(60):
                bench.commit(rng.randint(0, 3), grow=rng.choice([-1, 0, 1]))
                await trio.sleep(rng.expovariate(1))
            bench.store.fate = lambda _method, _name: None
            await trio.sleep(100)
            assert bench.failure is None, bench.failure
            assert await bench.uploader.close(30)
        logs = bench.logs()
        assert logs[0][0] == 1
        assert all(before[1] + 1 == after[0] for before, after in pairwise(logs))
        assert logs[-1][1] == bench.chain.tip.head.seq
        assert [seq for seq, _ in bench.archived] == [end for _, end in logs]
        tip = await read_tip(bench.store, bench.names, bench.trusted)
        assert tip is not None
        assert tip.facts.head.seq == bench.chain.tip.head.seq
