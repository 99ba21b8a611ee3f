"""Snapshots: copied while commits go on, exact, proven, and whole or not there (P26)."""

# ruff: noqa: ARG002, ASYNC240  (sources ignore what they are asked; tmp_path is looked into)

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basenet.archive.backlog import Batch
from basenet.archive.catalog import read_catalog
from basenet.archive.facts import open_set
from basenet.archive.lease import Holder, Lease, LeaseLost
from basenet.archive.names import ShardNames
from basenet.archive.pageset import Progress as DraftProgress
from basenet.archive.pageset import SnapshotRejected, draft_snapshot
from basenet.archive.place import Place
from basenet.archive.plan import Wish
from basenet.archive.port import StoreRefused, StoreUnavailable
from basenet.archive.publish import Published, Publisher, read_newest_set
from basenet.archive.restore import restore
from basenet.archive.seal import Seal, TwoHistories, seal_log
from basenet.archive.setreader import SetReader
from basenet.archive.snapshot import Snapshots
from basenet.errors import BasenetError, UnavailableError
from basenet.units import JournalId, Seq, lock_page
from basenet.wire.frame import Head, encode_frame
from tests.fakes.chain import JOURNAL_ID, Chain, signer
from tests.fakes.clock import trio_clock
from tests.fakes.live_database import LiveDatabase, grown
from tests.fakes.memory_store import Fault, MemoryStore, always, first


@dataclass
class Bench:
    """A shard's archive and what writes snapshots to it."""

    chain: Chain
    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    retry_deadline_seconds: float = 1.0

    def __post_init__(self) -> None:
        self.names = ShardNames(service="default", shard=self.chain.shard)
        self.seal = Seal(names=self.names, lineage=self.chain.lineage, signer=self.chain.signer)
        self.trusted = frozenset({self.chain.signer.public})
        holder = Holder(
            node="a",
            key=self.chain.signer.public,
            journal_id=JOURNAL_ID,
            lineage=self.chain.lineage,
        )
        self.lease = Lease(store=self.store, names=self.names, holder=holder, clock=trio_clock())
        self.publisher = Publisher(
            store=self.store,
            seal=self.seal,
            lease=self.lease,
            trusted=self.trusted,
            retry_deadline_seconds=self.retry_deadline_seconds,
        )
        self.snapshots = Snapshots(publisher=self.publisher, folder=self.folder, duty=1.0)

    async def take(self, source: LiveDatabase | None = None) -> Published:
        return await self.snapshots.take(source or LiveDatabase(self.chain))

    def manifests(self) -> list[str]:
        return self.store.names("set/L9/0") and [
            name for name in self.store.names("set/L9/0") if name.endswith(".lbn")
        ]

    async def pages(self, which: int = -1, parts: slice = slice(None)) -> dict[int, bytes]:
        """Return the pages of a stored snapshot, verified as a reader does."""
        catalog = await read_catalog(self.store, self.names)
        item = catalog.items(self.chain.lineage).sets[which]
        facts = open_set(self.store.objects[item.name].data, item.name, item.set, self.names)
        index = None if item.index is None else self.store.objects[item.index.name].data
        reader = SetReader(facts, index, item.name)
        found: dict[int, bytes] = {}
        for number, part in list(enumerate(facts.pages.parts))[parts]:
            if facts.pages.inline is not None:
                data: bytes | memoryview = reader.inline_part(number)
            else:
                entry = catalog.items(self.chain.lineage).parts[part.name]
                data = self.store.objects[entry.name].data
            size = facts.pages.page_size
            for block in reader.read_part(number, data, f"part {number}"):
                for index_in in range(0, len(block.pages), size):
                    pgno = block.first_pgno + index_in // size
                    found[pgno] = block.pages[index_in : index_in + size]
        return found


def stored_form(pages: dict[int, bytes], page_size: int) -> dict[int, bytes]:
    """Return ``pages`` as a snapshot holds them: bytes 18 and 19 are 2, the lock page is zeros."""
    out = dict(pages)
    out[1] = out[1][:18] + b"\x02\x02" + out[1][20:]
    lock = lock_page(page_size)
    if lock in out:
        out[lock] = bytes(page_size)
    return out


async def test_a_quiet_database_is_stored_page_for_page(tmp_path: Path) -> None:
    """Small: one object. It stands at the head of the last frame and holds exactly its pages."""
    bench = Bench(grown(40), tmp_path)
    published = await bench.take()
    assert published.seq == bench.chain.tip.head.seq
    assert (published.db_pages, published.parts) == (40, 1)
    assert await bench.pages() == stored_form(bench.chain.pages, 512)
    assert bench.store.count("put_if_absent") == 1
    (name,) = bench.manifests()
    assert name.endswith(f"set/L9/{0:020d}-{published.seq:020d}.lbn")
    assert list(tmp_path.iterdir()) == []


async def test_parts_index_and_manifest_are_written_in_this_order(tmp_path: Path) -> None:
    """Above 1 MiB: content-addressed parts of 4,096 pages, then the index, the manifest last."""
    bench = Bench(grown(9000), tmp_path)
    gate: list[int] = []

    async def before_manifest(seq: Seq) -> None:
        assert bench.manifests() == []
        gate.append(seq)

    await bench.snapshots.take(LiveDatabase(bench.chain), before_manifest=before_manifest)
    written = [name for method, name in bench.store.calls if method == "put_if_absent"]
    assert ["/part/" in name for name in written] == [True] * 3 + [False] * 2
    assert written[-2].endswith(".idx")
    assert written[-1].endswith(".lbn")
    assert gate == [bench.chain.tip.head.seq]
    assert await bench.pages() == stored_form(bench.chain.pages, 512)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pages=st.sampled_from([1, 2, 15, 16, 17, 100, 300, 700]),
    page_size=st.sampled_from([512, 1024, 65536]),
    commits=st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_a_database_under_commits_is_stored_as_of_one_frame(
    tmp_path: Path, pages: int, page_size: int, commits: int, seed: int
) -> None:
    """Whatever is committed, grown and cut off while it is read: root and pages are those at s."""
    if page_size == 65536:
        pages = min(pages, 40)

    async def scenario() -> None:
        bench = Bench(grown(pages, page_size=page_size, seed=seed), tmp_path)
        source = LiveDatabase(bench.chain, commits=commits, seed=seed)
        published = await bench.take(source)
        image = bench.chain.image(published.seq)
        assert published.db_pages == len(image)
        assert await bench.pages() == stored_form(image, page_size)

    trio.run(scenario)


async def test_what_does_not_fit_into_memory_lies_in_a_nameless_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spools roll over into the data directory, and leave nothing there."""
    monkeypatch.setattr("basenet.archive.spool.MEMORY_BYTES_MAX", 10_000)
    bench = Bench(grown(3000), tmp_path)
    source = LiveDatabase(bench.chain, commits=3)
    published = await bench.take(source)
    assert await bench.pages() == stored_form(bench.chain.image(published.seq), 512)
    assert list(tmp_path.iterdir()) == []


async def test_the_lock_page_is_stored_as_zeros(tmp_path: Path) -> None:
    """At 1 GiB SQLite leaves a page out; growing past it while it is copied is no gap."""
    lock = lock_page(65536)
    chain = Chain(page_size=65536, pages=dict.fromkeys(range(1, lock), b"\x01" * 65536))

    class Growing(LiveDatabase):
        async def finish(self) -> Head:
            self.chain.commit({lock + 1: b"x" * 65536, lock + 2: b"y" * 65536})
            return self.chain.tip.head

    bench = Bench(chain, tmp_path)
    for source in (Growing(chain), LiveDatabase(chain)):
        assert (await bench.take(source)).db_pages == lock + 2
        found = await bench.pages(parts=slice(-1, None))
        assert found[lock] == bytes(65536)
        assert found[lock + 2] == b"y" * 65536
        chain.random_commit()


@pytest.mark.parametrize("fault", ["missed commit", "wrong page", "page of the future"])
async def test_a_copy_that_is_not_the_frames_state_is_never_published(
    fault: str, tmp_path: Path
) -> None:
    """The root is computed from the bytes to be stored; if it differs nothing is written."""
    bench = Bench(grown(200), tmp_path)

    class Faulty(LiveDatabase):
        async def read_pages(self, first_pgno: int, count: int) -> bytes:
            if fault == "missed commit":
                self.chain.pages[5] = self.chain.page()  # and no frame says so
            if fault == "page of the future":
                self.stale = self.chain.tip.head
                self.chain.random_commit()
            data = await super().read_pages(first_pgno, count)
            return data[:-1] + b"!" if fault == "wrong page" else data

        async def finish(self) -> Head:
            return self.stale if fault == "page of the future" else await super().finish()

    with pytest.raises(SnapshotRejected, match="nothing was stored; run `basenet doctor`"):
        await bench.take(Faulty(bench.chain))
    facts = bench.snapshots.facts()
    assert (facts.rejected, facts.failures, facts.written) == (1, 1, 0)
    assert "nothing was stored" in (facts.last_error or "")
    assert bench.store.objects == {}
    assert list(tmp_path.iterdir()) == []


async def test_a_page_size_that_changes_while_it_is_copied_means_again(tmp_path: Path) -> None:
    """It comes with a RECOVERED frame of all pages; the snapshot is not wrong, only too early."""
    bench = Bench(grown(50), tmp_path)

    class Changing(LiveDatabase):
        async def finish(self) -> Head:
            other = Chain(page_size=1024, number=1)
            frame = other.commit({1: other.page()})[0]
            self.encoded = [encode_frame(frame)]
            return frame.head

        async def frames(self, start: Seq, end: Seq, bytes_max: int) -> list[bytes]:
            return self.encoded

    source = Changing(Chain())
    source.chain.commit({1: source.chain.page()})
    source.chain.frames.pop()
    with pytest.raises(UnavailableError, match="page size of app changed from 512 to 1024"):
        await bench.take(source)
    assert bench.snapshots.facts().rejected == 0


async def test_frames_that_the_journal_no_longer_has_mean_again(tmp_path: Path) -> None:
    """The hold was broken (the journal was full): nothing is published without them."""
    bench = Bench(grown(50), tmp_path)

    class Forgetful(LiveDatabase):
        async def finish(self) -> Head:
            return self.chain.random_commit().head

        async def frames(self, start: Seq, end: Seq, bytes_max: int) -> list[bytes]:
            return []

    with pytest.raises(UnavailableError, match="no longer has frame 3"):
        await bench.take(Forgetful(bench.chain))
    assert bench.store.objects == {}


async def test_a_second_snapshot_stores_only_the_blocks_that_changed(tmp_path: Path) -> None:
    """One page changed, so one block of a thousand is stored again, in a part of its own."""
    bench = Bench(grown(16_000), tmp_path)
    before = await bench.take()
    bench.chain.commit({5000: bench.chain.page()})
    after = await bench.take()
    assert (before.parts, before.parts_shared) == (4, 0)
    assert (after.parts, after.parts_shared) == (5, 4)
    sizes = sorted(len(bench.store.objects[name].data) for name in bench.store.names("/part/"))
    assert sizes[0] < sizes[1] / 100
    assert after.new_bytes < 0.1 * before.new_bytes
    assert abs(after.stored_bytes - before.stored_bytes) < 10_000
    assert len(bench.store.names("/part/")) == 5
    assert await bench.pages(-1) == stored_form(bench.chain.pages, 512)
    assert await bench.pages(0) == stored_form(bench.chain.image(before.seq), 512)
    newest = await read_newest_set(bench.store, bench.seal, bench.trusted)
    assert newest is not None
    assert (newest.facts.head.seq, newest.stored_bytes) == (after.seq, after.stored_bytes)


async def test_a_database_that_grew_shares_what_it_had(tmp_path: Path) -> None:
    """Appending stores the new blocks, and the last one of before."""
    bench = Bench(grown(9000), tmp_path)
    await bench.take()
    bench.chain.commit({pgno: bench.chain.page() for pgno in range(9001, 13_001)})
    after = await bench.take()
    assert (after.parts, after.parts_shared) == (4, 3)
    assert await bench.pages() == stored_form(bench.chain.pages, 512)


async def test_an_unusable_older_snapshot_only_costs_its_parts(tmp_path: Path) -> None:
    """Sharing is an economy: a damaged index or a foreign signer means storing everything."""
    bench = Bench(grown(9000), tmp_path)
    before = await bench.take()
    index = next(name for name in bench.store.names(".idx"))
    data = bench.store.objects[index].data
    bench.store.put(index, data[:50] + bytes([data[50] ^ 1]) + data[51:])
    bench.chain.commit({5000: bench.chain.page()})
    after = await bench.take()
    assert (after.parts, after.parts_shared) == (3, 0)
    assert len(bench.store.names("/part/")) == 4, "equal parts were found under their names"
    assert await bench.pages() == stored_form(bench.chain.pages, 512)
    assert before.seq < after.seq


async def test_a_part_that_was_deleted_is_stored_again(tmp_path: Path) -> None:
    """Only what is listed is shared: else every snapshot to come would lack it."""
    bench = Bench(grown(9000), tmp_path)
    await bench.take()
    part = bench.store.names("/part/")[0]
    del bench.store.objects[part]
    bench.chain.commit({5000: bench.chain.page()})
    after = await bench.take()
    assert after.parts_shared == 2
    assert await bench.pages() == stored_form(bench.chain.pages, 512)


async def test_many_snapshots_stay_few_parts_and_each_restores(tmp_path: Path) -> None:
    """Growing, changing here and there, shrinking: parts are bounded, and every state is whole."""
    bench = Bench(grown(9000), tmp_path)
    published = [await bench.take()]
    for number in range(1, 24):
        rng, chain = bench.chain.rng, bench.chain
        size = chain.db_pages - 2000 if number == 12 else chain.db_pages + 90
        changes = {pgno: chain.page() for pgno in range(chain.db_pages + 1, size + 1)}
        changes |= {rng.randint(1, min(size, 8000)): chain.page() for _ in range(number % 5)}
        chain.commit(changes, db_pages=size)
        published.append(await bench.take())
        whole = -(-chain.db_pages // 4096)
        assert published[-1].parts <= 2 * whole + 8
        assert await bench.pages() == stored_form(chain.pages, 512)
    grew = [found for found in published[1:] if found.parts_shared]
    assert len(grew) == 23
    assert sum(found.new_bytes for found in grew) < 23 * 0.2 * published[0].new_bytes
    for which in range(0, 24, 6):
        seq = published[which].seq
        assert await bench.pages(which) == stored_form(bench.chain.image(seq), 512)


async def test_a_damaged_part_is_written_again_and_reported(tmp_path: Path) -> None:
    """We hold the bytes that its name speaks of: so all snapshots that name it are whole again."""
    bench = Bench(grown(9000), tmp_path)
    await bench.take()
    part = bench.store.names("/part/")[0]
    good = bench.store.objects[part].data
    for name in [*bench.manifests(), *bench.store.names(".idx")]:
        del bench.store.objects[name]
    bench.store.put(part, good[:-1] + bytes([good[-1] ^ 1]))
    published = await bench.take()
    assert published.repaired == (part,)
    assert bench.store.objects[part].data == good
    assert await bench.pages() == stored_form(bench.chain.pages, 512)


@pytest.mark.parametrize("part", ["/part/", ".idx", ".lbn"])
@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.REFUSE, Fault.LOSE_ANSWER])
async def test_nothing_of_a_failed_snapshot_counts_and_the_next_one_goes_on(
    part: str, fault: Fault, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever write fails for good: no manifest (or a whole set), and the next attempt works."""
    bench = Bench(grown(9000), tmp_path)
    bench.store.fate = always(fault, method="put_if_absent", part=part)
    with pytest.raises((StoreUnavailable, StoreRefused)):
        await bench.take()
    if fault is Fault.LOSE_ANSWER and part == ".lbn":
        assert await bench.pages() == stored_form(bench.chain.pages, 512)
    else:
        assert bench.manifests() == []
    bench.store.fate = lambda _method, _name: None
    bench.chain.random_commit()
    await bench.take()
    assert await bench.pages() == stored_form(bench.chain.pages, 512)
    assert bench.snapshots.facts().last_error is None
    assert autojump_clock.current_time() >= 1


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.LOSE_ANSWER, Fault.REFUSE])
async def test_short_failures_are_ridden_out(
    fault: Fault, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Each write is tried again for as long as the deadline says."""
    # Virtual time also jumps while a thread works, so the deadline is out of reach.
    bench = Bench(grown(9000), tmp_path, retry_deadline_seconds=100_000)
    bench.store.fate = first(12, fault, method="put_if_absent")
    await bench.take()
    assert await bench.pages() == stored_form(bench.chain.pages, 512)
    assert autojump_clock.current_time() > 1


async def test_an_index_that_a_crash_left_behind_is_replaced(tmp_path: Path) -> None:
    """Without its manifest it says nothing; with it, the snapshot exists already."""
    bench = Bench(grown(9000), tmp_path)
    seq = bench.chain.tip.head.seq
    index = f"{bench.names.lineage(bench.chain.lineage)}set/L9/{0:020d}-{seq:020d}.idx"
    bench.store.put(index, b"of another zstd")
    await bench.take()
    assert await bench.pages() == stored_form(bench.chain.pages, 512)
    objects = {name: stored.data for name, stored in bench.store.objects.items()}
    again = Bench(bench.chain, tmp_path, store=bench.store)
    assert (await again.take()).seq == seq
    assert {
        name: stored.data for name, stored in bench.store.objects.items() if "LEASE" not in name
    } == {name: data for name, data in objects.items() if "LEASE" not in name}


async def test_a_snapshot_of_another_history_is_a_conflict(tmp_path: Path) -> None:
    """Under the manifest's name stands another frame of that number."""
    bench = Bench(grown(40, seed=1), tmp_path)
    await bench.take()
    other = Bench(grown(40, seed=2), tmp_path, store=bench.store)
    with pytest.raises(TwoHistories, match="stands at another frame 2 than ours"):
        await other.take()


async def test_a_lost_lease_ends_a_snapshot_before_its_manifest(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A deposed writer publishes nothing."""
    bench = Bench(grown(9000), tmp_path)

    async def depose(_seq: Seq) -> None:
        holder = Holder(
            node="b",
            key=signer(2).public,
            journal_id=JournalId(b"k" * 16),
            lineage=bench.chain.lineage,
        )
        other = Lease(store=bench.store, names=bench.names, holder=holder, clock=trio_clock())
        await other.acquire()

    with pytest.raises(LeaseLost):
        await bench.snapshots.take(LiveDatabase(bench.chain), before_manifest=depose)
    assert bench.manifests() == []
    assert autojump_clock.current_time() >= 30


async def test_a_cancelled_snapshot_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """A stop in the middle of an upload frees the spool and names nothing."""
    bench = Bench(grown(9000), tmp_path)
    hangs = trio.Event()

    def fate(method: str, _name: str) -> Fault | None:
        if method != "put_if_absent":
            return None
        hangs.set()
        return Fault.HANG

    bench.store.fate = fate
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.snapshots.take, LiveDatabase(bench.chain))
            await hangs.wait()
            progress = bench.snapshots.facts().progress
            assert progress is not None
            assert (progress.phase.value, progress.pages_done) == ("uploading", 9000)
            assert 0 == progress.bytes_done < progress.bytes_total
            scope.cancel()
    assert bench.manifests() == []
    assert bench.snapshots.facts().progress is None
    bench.store.fate = lambda _method, _name: None
    await bench.take()


async def test_a_database_without_pages_has_nothing_to_store(tmp_path: Path) -> None:
    """Its genesis says so already."""
    with pytest.raises(UnavailableError, match="has no pages yet"):
        await Bench(Chain(), tmp_path).take()


async def test_a_draft_is_the_state_of_its_frame(tmp_path: Path) -> None:
    """The part that proves is usable without an archive."""
    chain = grown(33)
    draft = await draft_snapshot(
        LiveDatabase(chain, commits=2), folder=tmp_path, progress=DraftProgress(), duty=1.0
    )
    try:
        assert draft.head == chain.tip.head
        assert draft.db_pages == chain.db_pages
        assert len(draft.sizes) == draft.group_count
    finally:
        draft.close()


async def test_a_restore_from_snapshot_and_log_gives_the_database(tmp_path: Path) -> None:
    """A database that existed before basenet: snapshot at its birth, log after it, both needed."""
    pages = {pgno: Chain(seed=pgno).page() for pgno in range(1, 60)}
    bench = Bench(Chain(pages=pages), tmp_path)
    chain = bench.chain
    published = await bench.take()
    assert published.seq == 1
    for _ in range(30):
        chain.random_commit(grow=1)
    await bench.take(LiveDatabase(chain, commits=2))
    for first_seq in range(1, chain.tip.head.seq + 1, 4):
        last_seq = min(first_seq + 3, chain.tip.head.seq)
        batch = Batch(start=Seq(first_seq), frames=tuple(chain.encoded(first_seq, last_seq)))
        sealed = seal_log(batch, bench.seal, 1)
        bench.store.put(sealed.name, sealed.data)
    for seq in (1, 5, 17, 31, chain.tip.head.seq):
        out = tmp_path / f"{seq}.db"
        await restore(
            bench.store,
            bench.names,
            Place(out),
            trusted=frozenset(bench.trusted),
            wish=Wish(to_seq=Seq(seq)),
        )
        image = stored_form(chain.image(seq), 512)
        assert out.read_bytes() == b"".join(image[pgno] for pgno in sorted(image))


def test_errors_of_a_snapshot_are_of_the_four_kinds() -> None:
    """The supervisor decides by kind alone."""
    assert issubclass(SnapshotRejected, BasenetError)
