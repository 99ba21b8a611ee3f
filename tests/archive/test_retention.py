"""Retention never deletes what a kept moment needs, in whatever moment it is broken off."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basenet.archive.backlog import Batch
from basenet.archive.catalog import make_catalog, read_catalog
from basenet.archive.clock import SECOND_NS, Clock
from basenet.archive.fetch import Fetcher
from basenet.archive.lease import Holder, Lease, LeaseLost
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Plan, Wish
from basenet.archive.port import Entry, StoreRefused, StoreUnavailable
from basenet.archive.prune import Pruner
from basenet.archive.publish import Publisher
from basenet.archive.restore import restore
from basenet.archive.retention import Kind
from basenet.archive.seal import Seal, seal_log
from basenet.archive.snapshot import Snapshots
from basenet.archive.survey import Survey
from basenet.archive.tip import encode_tip
from basenet.archive.verify import verify
from basenet.archive.watch import Watch
from basenet.errors import CorruptionError, NotFoundError
from basenet.units import JournalId, PublicKeyBytes, Seq, ShardId
from tests.archive.builder import History
from tests.fakes.chain import JOURNAL_ID, Chain, signer
from tests.fakes.clock import boot_ns
from tests.fakes.live_database import LiveDatabase
from tests.fakes.memory_store import Fault, MemoryStore, always, first

NAMES = ShardNames(service="default", shard=ShardId("app"))
HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS


@pytest.fixture(autouse=True)
def parts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest snapshot have parts and an index."""
    monkeypatch.setattr("basenet.archive.publish.INLINE_BYTES_MAX", 0)


@dataclass
class Bench:
    """A shard whose archive grows over days, in one lineage after another."""

    folder: Path
    store: MemoryStore = field(default_factory=lambda: MemoryStore(now_ns=lambda: 0))
    chain: Chain = field(default_factory=Chain)

    def __post_init__(self) -> None:
        self.store.now_ns = lambda: self.now_ns
        self.now_ns = self.chain.now_ns
        self.line = [self.chain]
        self.shipped = self.chain.start - 1
        self.trusted = frozenset({PublicKeyBytes(self.chain.signer.public)})

    def clock(self) -> Clock:
        return Clock(boot_ns=boot_ns, wall_ns=lambda: self.now_ns)

    def lease(self) -> Lease:
        holder = Holder(
            node="a",
            key=self.chain.signer.public,
            journal_id=JOURNAL_ID,
            lineage=self.chain.lineage,
        )
        return Lease(store=self.store, names=NAMES, holder=holder, clock=self.clock())

    def seal(self) -> Seal:
        return Seal(names=NAMES, lineage=self.chain.lineage, signer=self.chain.signer)

    def commit(self, hours: float = 1.0, grow: int = 1) -> None:
        self.now_ns += int(hours * HOUR_NS)
        self.chain.now_ns = self.now_ns
        self.chain.random_commit(grow=grow)
        self.now_ns = self.chain.now_ns

    def ship(self) -> None:
        tip = self.chain.tip.head.seq
        if self.shipped < tip:
            batch = Batch(
                start=Seq(self.shipped + 1),
                frames=tuple(self.chain.encoded(self.shipped + 1, tip)),
            )
            sealed = seal_log(batch, self.seal(), 1)
            self.store.put(sealed.name, sealed.data)
            self.shipped = tip

    def put_tip(self) -> None:
        self.store.put(NAMES.tip, encode_tip(self.chain.tip.head, self.seal(), 1))

    async def snapshot(self) -> int:
        self.ship()
        publisher = Publisher(
            store=self.store, seal=self.seal(), lease=self.lease(), trusted=self.trusted
        )
        snapshots = Snapshots(publisher=publisher, folder=self.folder, duty=1.0)
        return (await snapshots.take(LiveDatabase(self.chain))).seq

    def begin_child(self, parent_seq: int | None = None) -> None:
        self.ship()
        self.chain = Chain(
            number=len(self.line) + 1,
            parent=self.chain,
            parent_seq=parent_seq,
            begin_ns=self.now_ns,
        )
        self.now_ns = self.chain.now_ns
        self.line.append(self.chain)
        self.shipped = self.chain.start - 1

    def pruner(
        self, retention_ns: int, lease: Lease | None = None, watch: Watch | None = None
    ) -> Pruner:
        """Return one that goes by ``watch``; without one by the wall clock, which is right here."""
        return Pruner(
            store=self.store,
            names=NAMES,
            lease=lease or self.lease(),
            lineage=self.chain.lineage,
            trusted=self.trusted,
            retention_seconds=retention_ns / SECOND_NS,
            clock=self.clock(),
            watch=watch,
            is_by_clock=watch is None,
        )

    def image(self, seq: int) -> dict[int, bytes]:
        for chain in reversed(self.line):
            if chain.start <= seq:
                return chain.image(seq)
        raise AssertionError(seq)

    def seqs_since(self, cutoff_ns: int) -> list[int]:
        """Return the commits of the line since ``cutoff_ns``, and the last one before it."""
        times: dict[int, int] = {}
        for chain in self.line:
            for frame in chain.frames:
                times[frame.head.seq] = frame.head.timestamp_ns
                for seq in [seq for seq in times if seq > frame.head.seq]:
                    del times[seq]
        times = {seq: time for seq, time in times.items() if seq <= self.shipped}
        before = [seq for seq, time in times.items() if time <= cutoff_ns]
        return before[-1:] + [seq for seq, time in times.items() if time > cutoff_ns]

    async def plan(self, store: MemoryStore, seq: int) -> Plan:
        catalog = await read_catalog(store, NAMES)
        wish = Wish(to_seq=Seq(seq), lineage=self.chain.lineage)
        return await Survey(Fetcher(store), catalog).make_plan(wish, self.trusted)

    async def restorable(self, store: MemoryStore, seqs: list[int]) -> list[int]:
        """Return which of ``seqs`` can be planned."""
        found = []
        for seq in seqs:
            try:
                plan = await self.plan(store, seq)
            except (CorruptionError, NotFoundError):
                continue
            assert plan.target.seq == seq
            found.append(seq)
        return found

    async def problems(self, retention_ns: int) -> list[str]:
        """Return what `basenet verify` finds wrong."""
        report = await verify(
            self.store,
            trusted=self.trusted,
            retention_seconds=retention_ns / SECOND_NS,
            now_ns=self.now_ns,
        )
        return [str(problem) for problem in report.problems]

    async def restore(self, seq: int) -> bytes:
        out = self.folder / f"{seq}.db"
        await restore(
            self.store,
            NAMES,
            Place(out),
            trusted=self.trusted,
            wish=Wish(to_seq=Seq(seq), lineage=self.chain.lineage),
        )
        data = out.read_bytes()
        out.unlink()
        return data

    def expected(self, seq: int) -> bytes:
        pages = self.image(seq)
        data = b"".join(pages[pgno] for pgno in sorted(pages))
        return data[:18] + b"\x02\x02" + data[20:] if data else b""

    def without(self, names: set[str]) -> MemoryStore:
        copy = MemoryStore()
        for name, stored in self.store.objects.items():
            if name not in names:
                copy.put(name, stored.data)
        return copy


async def build(bench: Bench, rng: random.Random, events: int) -> None:
    for _ in range(events):
        event = rng.random()
        if event < 0.6:
            bench.commit(hours=rng.choice([0.01, 1, 10, 30]), grow=rng.choice([0, 1, 20]))
        elif event < 0.8:
            bench.ship()
        elif event < 0.95 and bench.chain.db_pages:
            await bench.snapshot()
        else:
            tip = bench.chain.tip.head.seq
            bench.begin_child(rng.randint(max(bench.chain.start, tip - 3), tip))
    bench.ship()
    bench.now_ns += int(rng.choice([0, 1, 30]) * HOUR_NS)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 100_000), events=st.integers(3, 45), days=st.sampled_from([0, 1, 3, 7]))
def test_every_kept_moment_can_be_restored_wherever_a_pass_is_broken_off(
    tmp_path: Path, seed: int, events: int, days: int
) -> None:
    """For any archive and any prefix of the deletions; and what is restored is exact."""

    async def scenario() -> None:
        rng = random.Random(seed)
        pages = {pgno: bytes([pgno]) * 512 for pgno in range(1, 20)}
        chain = Chain(seed=seed, pages=pages if seed % 2 else None)
        bench = Bench(tmp_path, chain=chain)
        if chain.db_pages:
            await bench.snapshot()  # as at every birth with a file
        await build(bench, rng, events)
        cutoff_ns = bench.now_ns - days * DAY_NS
        kept = bench.seqs_since(cutoff_ns)
        before = await bench.restorable(bench.store, kept)
        dry = await bench.pruner(days * DAY_NS).run(dry_run=True)
        names = [deletion.name for deletion in dry.plan.deletions]
        assert len(set(names)) == len(names)
        for count in {rng.randint(0, len(names)) for _ in range(3)}:
            broken_off = bench.without(set(names[:count]))
            assert await bench.restorable(broken_off, before) == before
        report = await bench.pruner(days * DAY_NS).run()
        assert report.deleted == len(names)
        assert await bench.restorable(bench.store, kept) == before
        for seq in rng.sample(before, min(2, len(before))):
            assert await bench.restore(seq) == bench.expected(seq)
        assert (await bench.pruner(days * DAY_NS).run()).deleted == 0, "a second pass finds nothing"

    trio.run(scenario)


async def weeks(bench: Bench, days: int) -> None:
    """A commit every six hours, a snapshot a day."""
    for _ in range(days):
        for _ in range(4):
            bench.commit(hours=6)
            bench.ship()
        await bench.snapshot()


async def test_a_month_of_days_keeps_a_week_and_its_base(tmp_path: Path) -> None:
    """Eight snapshots (one at or before the cutoff), their parts, the log since, the genesis."""
    bench = Bench(tmp_path)
    await weeks(bench, 30)
    report = await bench.pruner(7 * DAY_NS).run()
    assert report.is_whole
    catalog = await read_catalog(bench.store, NAMES)
    items = catalog.items(bench.chain.lineage)
    assert len(items.sets) == 8
    assert report.plan.base is not None
    assert items.sets[0].name == report.plan.base.name
    assert items.logs[0].log.start == 1
    assert items.logs[1].log.start == items.sets[0].set.to_seq + 1
    assert len(items.parts) <= 8 * 2
    assert items.stray_indexes == ()
    assert await bench.problems(7 * DAY_NS) == []
    assert await bench.restore(bench.chain.tip.head.seq) == bench.expected(bench.chain.tip.head.seq)


async def test_the_order_is_manifests_indexes_log_parts(tmp_path: Path) -> None:
    """Without its manifest a page set does not exist, so nothing ever points at what is gone."""
    bench = Bench(tmp_path)
    await weeks(bench, 12)
    await bench.pruner(3 * DAY_NS).run()
    deleted = [name for method, name in bench.store.calls if method == "delete"]
    kinds = [
        Kind.MANIFEST
        if "/set/" in name and name.endswith(".lbn")
        else Kind.INDEX
        if name.endswith(".idx")
        else Kind.LOG
        if "/log/" in name
        else Kind.PART
        for name in deleted
    ]
    assert set(kinds) == set(Kind)
    assert kinds == sorted(kinds)


async def test_the_last_snapshot_is_never_deleted(tmp_path: Path) -> None:
    """A database that rests for a year keeps its base and the log since."""
    bench = Bench(tmp_path)
    await weeks(bench, 2)
    bench.commit()
    bench.ship()
    bench.now_ns += 365 * DAY_NS
    report = await bench.pruner(DAY_NS).run()
    assert report.plan.base is not None
    assert len([name for name in bench.store.names("/set/") if name.endswith(".lbn")]) == 1
    seq = bench.chain.tip.head.seq
    assert await bench.restore(seq) == bench.expected(seq)
    assert (await bench.pruner(0).run()).deleted == 0


async def test_without_a_snapshot_nothing_goes(tmp_path: Path) -> None:
    """The log from the genesis on is the only way to any moment."""
    bench = Bench(tmp_path)
    for _ in range(20):
        bench.commit(hours=24)
        bench.ship()
    report = await bench.pruner(DAY_NS).run()
    assert (report.plan.base, report.deleted) == (None, 0)


async def test_an_incomplete_snapshot_is_no_base(tmp_path: Path) -> None:
    """A part or an index is missing: the older snapshot stays."""
    for missing in ("/part/", ".idx"):
        bench = Bench(tmp_path)
        first_seq = await _two_snapshots(bench)
        newest = [name for name in bench.store.names(missing) if name not in first_seq]
        del bench.store.objects[newest[0]]
        bench.now_ns += 30 * DAY_NS
        report = await bench.pruner(DAY_NS).run()
        assert report.plan.base is not None
        assert report.plan.base.name in first_seq
        assert not any(deletion.kind is Kind.MANIFEST for deletion in report.plan.deletions)


async def _two_snapshots(bench: Bench) -> list[str]:
    """Return the names of all objects of the first of two snapshots."""
    bench.commit(grow=20)
    await bench.snapshot()
    names = bench.store.names()
    bench.commit(grow=20)
    await bench.snapshot()
    bench.commit()
    bench.ship()
    return names


async def test_shared_parts_stay_as_long_as_a_kept_manifest_names_them(tmp_path: Path) -> None:
    """The manifests are the roots; a part of a deleted snapshot may belong to a kept one."""
    bench = Bench(tmp_path)
    bench.chain.commit({pgno: bench.chain.page() for pgno in range(1, 5000)})
    await bench.snapshot()
    shared = set(bench.store.names("/part/"))
    bench.now_ns += 2 * DAY_NS
    bench.chain.now_ns = bench.now_ns
    bench.chain.commit({4999: bench.chain.page()})
    await bench.snapshot()
    bench.now_ns += 2 * DAY_NS
    report = await bench.pruner(DAY_NS).run()
    assert report.deleted
    left = set(bench.store.names("/part/"))
    assert shared < left
    assert len(left) == len(shared) + 1
    seq = bench.chain.tip.head.seq
    assert await bench.restore(seq) == bench.expected(seq)


async def test_garbage_of_broken_snapshots_goes_after_a_day(tmp_path: Path) -> None:
    """Younger, it may belong to a snapshot that is being written."""
    bench = Bench(tmp_path)
    await weeks(bench, 2)
    lineage = NAMES.lineage(bench.chain.lineage)
    stray_part, stray_index = (
        f"{lineage}part/{'ab' * 32}.pg",
        f"{lineage}set/L9/{0:020d}-{99:020d}.idx",
    )
    bench.store.put(stray_part, b"garbage")
    bench.store.put(stray_index, b"garbage")
    await bench.pruner(7 * DAY_NS).run()
    assert stray_part in bench.store.objects
    bench.now_ns += DAY_NS + HOUR_NS
    await bench.pruner(7 * DAY_NS).run()
    assert stray_part not in bench.store.objects
    assert stray_index not in bench.store.objects


async def test_what_is_not_understood_is_not_touched(tmp_path: Path) -> None:
    """Foreign names, the followed system's log, LEASE, TIP, and a manifest that is damaged."""
    bench = Bench(tmp_path)
    await weeks(bench, 12)
    names = [
        "default/app/notes.txt",
        f"default/app/{0:016d}/{5:020d}-{6:020d}.lbn",
        f"{NAMES.lineage(bench.chain.lineage)}set/L3/{5:020d}-{9:020d}.lbn",
        "default/app/TIP",
        "default/app/LEASE",
        "default/other/LEASE",
    ]
    for name in names[:4] + names[5:]:
        bench.store.put(name, b"something")
    damaged = next(name for name in bench.store.names("/set/L9/") if name.endswith(".lbn"))
    bench.store.put(damaged, bench.store.objects[damaged].data[:-1] + b"!")
    parts = bench.store.names("/part/")
    del bench.store.objects["default/app/TIP"]
    report = await bench.pruner(3 * DAY_NS).run()
    assert report.deleted
    assert damaged in bench.store.objects
    assert bench.store.names("/part/") == parts
    assert any(damaged in note for note in report.plan.notes)
    assert all(name in bench.store.objects for name in names if "TIP" not in name)


async def test_retired_ancestors_keep_only_their_genesis(tmp_path: Path) -> None:
    """A child's base makes its parent's pages and log superfluous, but not who it descends from."""
    bench = Bench(tmp_path)
    await weeks(bench, 5)
    parent = bench.chain
    bench.commit()
    bench.begin_child(parent.tip.head.seq - 1)
    await weeks(bench, 10)
    await bench.pruner(3 * DAY_NS).run()
    left = bench.store.names(NAMES.lineage(parent.lineage))
    assert len(left) == 1
    assert f"/log/{0:016d}/{1:020d}-" in left[0]
    assert await bench.restore(bench.chain.tip.head.seq) == bench.expected(bench.chain.tip.head.seq)


async def test_an_ancestor_that_somebody_else_continues_is_kept_whole(tmp_path: Path) -> None:
    """Two leaves: what the other one needs is not ours to judge."""
    bench = Bench(tmp_path)
    await weeks(bench, 5)
    parent = bench.chain
    sibling = Bench(tmp_path, store=bench.store, chain=Chain(number=9, parent=parent, seed=3))
    sibling.ship()
    before = bench.store.names(NAMES.lineage(parent.lineage))
    bench.begin_child()
    bench.now_ns += HOUR_NS
    await weeks(bench, 10)
    report = await bench.pruner(3 * DAY_NS).run()
    assert bench.store.names(NAMES.lineage(parent.lineage)) == before
    assert any("another lineage than ours" in note for note in report.plan.notes)
    assert report.deleted


async def test_a_change_of_keys_stays_readable_for_who_trusts_the_old_one(tmp_path: Path) -> None:
    """Q22: the log object with the CONFIG that names the new key outlives its neighbours."""
    chain = History()
    bench = Bench(tmp_path, chain=chain)
    await weeks(bench, 3)
    bench.ship()
    chain.hand_over(2)
    bench.now_ns = chain.now_ns
    bench.ship()
    await weeks(bench, 12)
    bench.trusted = frozenset(PublicKeyBytes(signer(number).public) for number in (1, 2))
    report = await bench.pruner(3 * DAY_NS).run()
    assert report.deleted > 20
    catalog = await read_catalog(bench.store, NAMES)
    logs = catalog.items(chain.lineage).logs
    assert report.plan.base is not None
    below = [item.log for item in logs if item.log.end <= report.plan.base.set.to_seq]
    assert [(log.start, log.end) for log in below] == [(1, below[0].end), (14, 14)]
    bench.trusted = frozenset({PublicKeyBytes(signer(1).public)})
    seq = chain.tip.head.seq
    assert await bench.restore(seq) == bench.expected(seq)


async def test_nothing_goes_when_the_rehearsed_restore_fails(tmp_path: Path) -> None:
    """A hole in the log above the base: whatever is left may be needed to mend it."""
    bench = Bench(tmp_path)
    await weeks(bench, 12)
    logs = bench.store.names("/log/")
    del bench.store.objects[logs[-2]]
    del bench.store.objects[next(reversed([n for n in bench.store.names(".lbn") if "/set/" in n]))]
    before = bench.store.names()
    with pytest.raises(CorruptionError, match="nothing of shard app was deleted"):
        await bench.pruner(3 * DAY_NS).run()
    assert [name for name in bench.store.names() if "LEASE" not in name] == [
        name for name in before if "LEASE" not in name
    ]


async def test_a_store_that_refuses_the_rehearsal_is_not_a_damaged_archive(tmp_path: Path) -> None:
    """Found by `make soak` (seed 511): one that was not mounted was called one with a hole."""
    bench = Bench(tmp_path)
    await weeks(bench, 12)
    bench.commit(hours=1)
    bench.ship()
    newest = bench.store.names("/log/")[-1]
    read = bench.store.count("get", newest)

    def refuse_again(method: str, name: str) -> Fault | None:
        is_again = bench.store.count("get", newest) > read + 1
        return Fault.REFUSE if (method, name) == ("get", newest) and is_again else None

    bench.store.fate = refuse_again
    with pytest.raises(StoreRefused):
        await bench.pruner(3 * DAY_NS).run()


async def test_a_log_that_grows_while_a_pass_reads_is_no_fault(tmp_path: Path) -> None:
    """Found by `make soak` (seed 303): the TIP was newer than the listing it was compared with."""
    bench = Bench(tmp_path)
    await weeks(bench, 12)
    bench.put_tip()

    def grow(method: str, name: str) -> None:
        if method == "get" and "/set/" in name and bench.shipped == bench.chain.tip.head.seq:
            bench.commit(hours=0)
            bench.ship()
            bench.put_tip()

    bench.store.fate = grow
    report = await bench.pruner(3 * DAY_NS).run()
    assert report.deleted


async def test_only_the_holder_of_the_lease_deletes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A deposed writer finds out before its first deletion."""
    bench = Bench(tmp_path)
    await weeks(bench, 12)
    mine = bench.lease()
    await mine.ensure()
    holder = Holder(
        node="b",
        key=signer(2).public,
        journal_id=JournalId(b"k" * 16),
        lineage=bench.chain.lineage,
    )
    other = Lease(store=bench.store, names=NAMES, holder=holder, clock=bench.clock())
    await other.acquire()
    with pytest.raises(LeaseLost):
        await bench.pruner(3 * DAY_NS, lease=mine).run()
    assert bench.store.count("delete") == 0
    assert autojump_clock.current_time() > 0


async def test_a_pass_is_bounded_and_a_failed_one_goes_on_later(tmp_path: Path) -> None:
    """So many deletions at a time, in order; a store that fails ends the pass with its error."""
    bench = Bench(tmp_path)
    await weeks(bench, 12)
    report = await bench.pruner(3 * DAY_NS).run(deletes_max=5)
    assert (report.deleted, report.is_whole) == (5, False)
    bench.store.fate = always(Fault.FAIL, method="delete")
    with pytest.raises(StoreUnavailable):
        await bench.pruner(3 * DAY_NS).run()
    bench.store.fate = first(1, Fault.LOSE_ANSWER, method="delete")
    with pytest.raises(StoreUnavailable):
        await bench.pruner(3 * DAY_NS).run()
    report = await bench.pruner(3 * DAY_NS).run()
    assert report.is_whole
    assert (await bench.pruner(3 * DAY_NS).run()).deleted == 0


async def test_a_dry_run_deletes_nothing_and_takes_no_lease(tmp_path: Path) -> None:
    """It says what would go, and how many bytes."""
    bench = Bench(tmp_path)
    await weeks(bench, 12)
    before = bench.store.names()
    report = await bench.pruner(3 * DAY_NS).run(dry_run=True)
    assert bench.store.names() == before
    assert report.deleted == len(report.plan.deletions) > 0
    assert report.plan.size == report.deleted_bytes > 0


async def test_an_archive_without_our_lineage_is_left_alone(tmp_path: Path) -> None:
    """Before the first object there is nothing to prune."""
    report = await Bench(tmp_path).pruner(DAY_NS).run()
    assert report.deleted == 0


def test_a_catalog_of_nothing_has_no_lineages() -> None:
    """The planner is not asked about empty shards."""
    assert make_catalog(NAMES, [Entry(name="default/app/LEASE", size=1)]).lineages == {}
