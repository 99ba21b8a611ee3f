"""Merging log objects: every commit stays restorable in every moment of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from basenet.archive.backlog import Batch
from basenet.archive.clock import SECOND_NS, Clock
from basenet.archive.compact import Compactor
from basenet.archive.encrypted import EncryptedStore
from basenet.archive.facts import open_log
from basenet.archive.fetch import Fetcher
from basenet.archive.keyring import Keyring
from basenet.archive.lease import Holder, Lease, LeaseLost
from basenet.archive.names import LogName, ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Wish
from basenet.archive.port import Store, StoreUnavailable
from basenet.archive.prune import Pruner
from basenet.archive.restore import RestoreReport, restore
from basenet.archive.retention import MERGE_GRACE_NS
from basenet.archive.seal import Seal, SealedLog, TwoHistories, seal_log
from basenet.archive.takeover import Own, find_reached
from basenet.archive.verify import verify
from basenet.errors import CorruptionError
from basenet.units import FrameHash, JournalId, PublicKeyBytes, Seq, ShardId
from basenet.wire.certificate import Certificate
from tests.archive.builder import History
from tests.fakes.chain import JOURNAL_ID, Chain, ChainSource, signer
from tests.fakes.clock import boot_ns
from tests.fakes.keyrings import make_keyring
from tests.fakes.memory_store import Fault, MemoryStore

NAMES = ShardNames(service="default", shard=ShardId("app"))
FAN_IN = 4


class NoJournal:
    """A journal that has dropped everything."""

    async def frames(self, _start: Seq, _end: Seq, _bytes_max: int) -> Sequence[bytes]:
        await trio.lowlevel.checkpoint()
        return []


@dataclass
class Bench:
    """A shard that is archived frame by frame, and a compactor beside it."""

    folder: Path
    memory: MemoryStore = field(default_factory=MemoryStore)
    chain: Chain = field(default_factory=History)
    keyring: Keyring = field(default_factory=Keyring)
    archive_epoch: int = 1
    wall_ns: int = SECOND_NS

    def __post_init__(self) -> None:
        self.memory.now_ns = lambda: self.wall_ns
        self.store: Store = EncryptedStore(self.memory, self.keyring)
        self.trusted = frozenset({PublicKeyBytes(self.chain.signer.public)})
        self.compactor = self.make_compactor()
        self.shipped = 0

    def make_lease(self, number: int = 1, *, ttl_seconds: float = 30) -> Lease:
        holder = Holder(
            node=f"n{number}",
            key=self.chain.signer.public,
            journal_id=JOURNAL_ID if number == 1 else JournalId(bytes([number]) * 16),
            lineage=self.chain.lineage,
        )
        return Lease(store=self.store, names=NAMES, holder=holder, ttl_seconds=ttl_seconds)

    def seal(self) -> Seal:
        return Seal(names=NAMES, lineage=self.chain.lineage, signer=self.chain.signer)

    def make_compactor(self, *, has_journal: bool = True, lease: Lease | None = None) -> Compactor:
        return Compactor(
            store=self.store,
            seal=self.seal(),
            lease=lease or self.make_lease(),
            source=ChainSource(self.chain) if has_journal else NoJournal(),
            trusted=self.trusted,
            after=lambda: Seq(0),
            fan_in=FAN_IN,
        )

    async def ship(self, count: int, *, told: bool = True) -> None:
        """Commit and archive ``count`` frames, each in an object of its own."""
        for _ in range(count):
            self.chain.random_commit(grow=1)
            await self.ship_to(self.chain.tip.head.seq, told=told)

    async def ship_to(self, end: int, *, told: bool = True) -> SealedLog:
        """Archive what is not archived yet up to ``end`` as one object."""
        frames = tuple(self.chain.encoded(self.shipped + 1, end))
        batch = Batch(start=Seq(self.shipped + 1), frames=frames)
        sealed = seal_log(batch, self.seal(), self.archive_epoch)
        await self.store.put_if_absent(sealed.name, sealed.data)
        if told:
            self.compactor.on_stored(sealed, batch.size)
        self.shipped = end
        return sealed

    async def compact(self, compactor: Compactor | None = None) -> None:
        found = compactor or self.compactor
        while await found.step():
            pass

    def logs(self) -> list[LogName]:
        parsed = [NAMES.parse(name) for name in self.memory.names("/log/")]
        return [log for log in parsed if isinstance(log, LogName)]

    def levels(self) -> list[tuple[int, int, int]]:
        return [(log.start, log.end, log.level) for log in self.logs() if log.level]

    async def restore(self, seq: int) -> tuple[bytes, RestoreReport]:
        out = self.folder / "out.db"
        wish = Wish(to_seq=Seq(seq))
        report = await restore(self.store, NAMES, Place(out), trusted=self.trusted, wish=wish)
        data = out.read_bytes()
        out.unlink()
        return data, report

    def expected(self, seq: int) -> bytes:
        pages = self.chain.image(seq)
        data = b"".join(pages[pgno] for pgno in sorted(pages))
        return data[:18] + b"\x02\x02" + data[20:] if data else b""

    async def check(self, seqs: Sequence[int] | None = None) -> None:
        """Assert that verify is content and every commit restores as it was."""
        report = await verify(self.store, trusted=self.trusted, now_ns=self.chain.now_ns)
        assert [str(problem) for found in report.shards for problem in found.problems] == []
        for seq in seqs or range(1, self.shipped + 1):
            assert (await self.restore(seq))[0] == self.expected(seq), seq

    def make_pruner(self, *, list_merged_ns: dict[str, int] | None = None) -> Pruner:
        return Pruner(
            store=self.store,
            names=NAMES,
            lease=self.make_lease(),
            lineage=self.chain.lineage,
            trusted=self.trusted,
            retention_seconds=365 * 24 * 3600,
            clock=Clock(boot_ns=boot_ns, wall_ns=lambda: self.chain.now_ns),
            list_merged_ns=None if list_merged_ns is None else lambda: list_merged_ns,
        )


@pytest.mark.parametrize("keyring", [Keyring(), make_keyring()], ids=["clear", "encrypted"])
@pytest.mark.parametrize("has_journal", [True, False], ids=["journal", "fetched"])
async def test_every_commit_restores_before_and_after_the_sources_go(
    tmp_path: Path, keyring: Keyring, *, has_journal: bool
) -> None:
    """Merging adds objects, retention takes the sources away, and no moment is lost by either."""
    bench = Bench(tmp_path, keyring=keyring)
    bench.compactor = bench.make_compactor(has_journal=has_journal)
    await bench.ship_to(1)
    await bench.ship(25)
    assert bench.compactor.is_due
    await bench.compact()
    assert bench.levels() == [
        (2, 5, 1), (2, 17, 2), (6, 9, 1), (10, 13, 1), (14, 17, 1), (18, 21, 1), (22, 25, 1),
    ]  # fmt: skip
    assert not bench.compactor.is_due
    assert (bench.compactor.facts.fetched == 0) == has_journal
    await bench.check()
    _, report = await bench.restore(26)
    assert [name[-7:-4] for name in report.log_objects][1:] == ["-L2", "-L1", "-L1", "000"]

    ages = dict.fromkeys(bench.compactor.list_ages_ns(), MERGE_GRACE_NS)
    assert (await bench.make_pruner(list_merged_ns=ages).run()).deleted == 0
    ages = dict.fromkeys(ages, MERGE_GRACE_NS + 1)
    pruned = await bench.make_pruner(list_merged_ns=ages).run()
    assert pruned.is_whole
    assert pruned.deleted == 24 + 4
    assert [(log.start, log.end) for log in bench.logs()] == [
        (1, 1), (2, 17), (18, 21), (22, 25), (26, 26),
    ]  # fmt: skip
    await bench.check()
    await bench.ship(8)
    await bench.compact()
    await bench.check()


async def test_a_new_process_goes_on_where_the_last_one_was_killed(tmp_path: Path) -> None:
    """It finds by names what was merged; the sources' ages are then the store's to tell."""
    bench = Bench(tmp_path)
    await bench.ship_to(1)
    await bench.ship(10)
    await bench.compact()
    before = bench.memory.names()
    bench.compactor = bench.make_compactor(has_journal=False)
    await bench.ship(8)
    await bench.compact()
    assert set(before) < set(bench.memory.names())
    assert {log.level for log in bench.logs() if log.end == 17} == {0, 1, 2}
    await bench.check()
    assert (await bench.make_pruner().run()).deleted == 0
    bench.wall_ns += MERGE_GRACE_NS + SECOND_NS
    assert (await bench.make_pruner().run()).deleted == 16 + 4
    await bench.check()


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.LOSE_ANSWER])
async def test_a_store_that_fails_at_each_call_in_turn(tmp_path: Path, fault: Fault) -> None:
    """Whatever call it was, the archive is whole, and the next attempt completes the work."""
    for failing in range(1, 8):
        bench = Bench(tmp_path, chain=History())
        bench.compactor = bench.make_compactor(has_journal=False)
        await bench.ship_to(1)
        await bench.ship(9)
        calls = 0

        def fate(method: str, _name: str, failing: int = failing) -> Fault | None:
            nonlocal calls
            calls += 1
            return fault if calls == failing and method != "get" else None

        bench.memory.fate = fate
        for _ in range(3):
            try:
                await bench.compact()
            except StoreUnavailable:
                continue
            break
        bench.memory.fate = lambda _method, _name: None
        await bench.compact()
        assert bench.levels() == [(2, 5, 1), (6, 9, 1)]
        await bench.check()


async def test_a_task_that_is_cancelled_leaves_a_whole_archive(tmp_path: Path) -> None:
    """A kill has no more than that: an object is there or not."""
    for fault in (Fault.HANG, Fault.HANG_AFTER):
        bench = Bench(tmp_path, chain=History())
        await bench.ship_to(1)
        await bench.ship(9)
        bench.memory.fate = lambda _method, name, fault=fault: fault if "-L1" in name else None
        with trio.move_on_after(0.05):
            await bench.compact()
        bench.memory.fate = lambda _method, _name: None
        await bench.check()
        bench.compactor = bench.make_compactor()
        await bench.ship(8)
        await bench.compact()
        assert (2, 5, 1) in bench.levels()
        await bench.check()


async def test_two_archivers_that_merge_at_once(tmp_path: Path) -> None:
    """Under one name the second finds the first one's; across one another readers open both."""
    bench = Bench(tmp_path)
    await bench.ship_to(1)
    await bench.ship(12)
    other = bench.make_compactor()
    await other._load()
    await bench.compact()
    await bench.compact(other)
    assert bench.levels() == [(2, 5, 1), (6, 9, 1)]
    seal = Seal(names=NAMES, lineage=bench.chain.lineage, signer=bench.chain.signer)
    across = seal_log(
        Batch(start=Seq(4), frames=tuple(bench.chain.encoded(4, 7))), seal, 1, level=1
    )
    await bench.store.put_if_absent(across.name, across.data)
    await bench.check()
    # Nothing that overlaps across is touched, neither merged nor deleted.
    bench.wall_ns += 2 * MERGE_GRACE_NS
    assert (await bench.make_pruner().run()).deleted == 0
    late = bench.make_compactor()
    await bench.ship(9)
    bench.compactor = late
    await bench.ship(9)
    await bench.compact()
    assert all(start >= 10 or (start, end) in {(2, 5), (4, 7), (6, 9)}
               for start, end, _ in bench.levels())  # fmt: skip
    await bench.check()


async def test_who_lost_the_lease_stores_nothing_more(tmp_path: Path) -> None:
    """Nor could it do harm: the frames are those of its sources."""
    bench = Bench(tmp_path)
    lease = bench.make_lease(ttl_seconds=0.001)
    await lease.ensure()
    await bench.ship_to(1)
    await bench.ship(9)
    bench.compactor = bench.make_compactor(lease=lease)
    taken = bench.memory.objects[NAMES.lease].data.replace(lease._nonce.encode(), b"2" * 16)
    bench.memory.put(NAMES.lease, taken)
    with pytest.raises(LeaseLost):
        await bench.compact()
    assert bench.levels() == []
    await bench.check()


async def test_a_stale_writers_late_object_is_found_beside_a_merged_one(tmp_path: Path) -> None:
    """Names alone do not decide there: all is opened, and the higher archive epoch wins."""
    bench = Bench(tmp_path)
    await bench.ship_to(1)
    await bench.ship(4)
    bench.archive_epoch = 2
    await bench.ship(8)
    await bench.compact()
    assert (6, 9, 1) in bench.levels()
    assert (2, 5, 1) in bench.levels()
    stale = History()
    for seq in range(2, 9):
        stale.random_commit(grow=1) if seq < 6 else stale.random_commit(grow=2)
    assert stale.frame(5).head.hash == bench.chain.frame(5).head.hash
    assert stale.frame(6).head.hash != bench.chain.frame(6).head.hash
    late = seal_log(Batch(start=Seq(5), frames=tuple(stale.encoded(5, 8))), bench.seal(), 1)
    bench.memory.put(late.name, late.data)
    for seq in range(1, bench.shipped + 1):
        assert (await bench.restore(seq))[0] == bench.expected(seq), seq
    bench.wall_ns += 2 * MERGE_GRACE_NS
    await bench.make_pruner().run()
    for seq in range(1, bench.shipped + 1):
        assert (await bench.restore(seq))[0] == bench.expected(seq), seq


async def test_a_damaged_merged_object_does_not_cost_its_sources(tmp_path: Path) -> None:
    """Verify names it, retention keeps what it covers, and the compactor writes it again."""
    bench = Bench(tmp_path)
    await bench.ship_to(1)
    await bench.ship(5)
    await bench.compact()
    (name,) = bench.memory.names("-L1")
    data = bytearray(bench.memory.objects[name].data)
    data[200] ^= 1
    bench.memory.put(name, bytes(data))
    report = await verify(bench.store, trusted=bench.trusted, now_ns=bench.chain.now_ns)
    assert [problem.object for problem in report.shards[0].problems] == [name]
    bench.wall_ns += 2 * MERGE_GRACE_NS
    assert (await bench.make_pruner().run()).deleted == 0
    with pytest.raises(CorruptionError, match="-L1"):
        await bench.restore(5)
    del bench.memory.objects[name]
    await bench.check()


async def test_under_our_name_damage_is_replaced_and_other_frames_are_two_histories(
    tmp_path: Path,
) -> None:
    """Damage is nobody's history."""
    bench = Bench(tmp_path)
    await bench.ship_to(1)
    await bench.ship(5)
    merged = seal_log(
        Batch(start=Seq(2), frames=tuple(bench.chain.encoded(2, 5))), bench.seal(), 1, level=1
    )
    await bench.compactor._load()
    bench.memory.put(merged.name, merged.data[:-1])
    await bench.compact()
    assert bench.memory.objects[merged.name].data == merged.data
    other = History(seed=8)
    other.now_ns = bench.chain.frame(1).head.timestamp_ns
    for _ in range(4):
        other.random_commit(grow=1)
    bench.compactor = bench.make_compactor()
    forged = seal_log(
        Batch(start=Seq(2), frames=tuple(other.encoded(2, 5))), bench.seal(), 1, level=1
    )
    assert forged.name == merged.name
    for stored in bench.memory.names("-L"):
        del bench.memory.objects[stored]
    bench.memory.put(forged.name, forged.data)
    compactor = bench.make_compactor()
    for seq in range(2, 7):
        frames = (bench.chain.encoded(seq, seq)[0],)
        compactor.on_stored(seal_log(Batch(start=Seq(seq), frames=frames), bench.seal(), 1), 1000)
    compactor._is_loaded = True
    with pytest.raises(TwoHistories):
        await compactor.step()


async def test_the_genesis_and_objects_with_a_config_stay(tmp_path: Path) -> None:
    """Retention keeps them for ever, so they must be small; and keys change there."""
    bench = Bench(tmp_path, chain=History())
    assert isinstance(bench.chain, History)
    await bench.ship_to(1)
    await bench.ship(6)
    bench.chain.hand_over(2)
    await bench.ship_to(bench.chain.tip.head.seq)
    config = bench.shipped
    bench.trusted |= {PublicKeyBytes(signer(2).public)}
    before = bench.compactor
    bench.compactor = bench.make_compactor()
    del before
    await bench.ship(12)
    await bench.compact()
    assert all(not start <= config <= end for start, end, _ in bench.levels())
    # What the key before wrote is not signed by the one after it.
    assert all(start > config for start, _, _ in bench.levels())
    assert bench.levels()
    await bench.check()


async def test_a_merge_ends_before_the_last_object_that_was_planned(tmp_path: Path) -> None:
    """Found by `make soak` (seed 301): what lay there from before had no archive epoch then."""
    bench = Bench(tmp_path, chain=History())
    assert isinstance(bench.chain, History)
    await bench.ship(4, told=False)
    bench.chain.hand_over(1)
    await bench.ship_to(bench.chain.tip.head.seq, told=False)
    await bench.ship(2, told=False)
    await bench.compact(bench.make_compactor())
    assert bench.levels() == [(3, 5, 1)]
    await bench.check()


async def test_a_writer_with_peers_finds_the_end_behind_merged_objects(tmp_path: Path) -> None:
    """Also when its watermark lies within one of them."""
    bench = Bench(tmp_path)
    await bench.ship_to(1)
    await bench.ship(9)
    await bench.compact()
    ages = dict.fromkeys(bench.compactor.list_ages_ns(), 2 * MERGE_GRACE_NS)
    await bench.make_pruner(list_merged_ns=ages).run()

    async def hashes(first: Seq, last: Seq) -> dict[Seq, FrameHash]:
        return {Seq(seq): bench.chain.frame(seq).head.hash for seq in range(first, last + 1)}

    for archived in (0, 1, 3, 5, 7, 10):
        own = Own(
            lineage=bench.chain.lineage,
            parent=None,
            genesis_seq=Seq(1),
            archived_seq=Seq(archived),
            hashes=hashes,
        )
        reached = await find_reached(bench.store, NAMES, own, Fetcher(bench.store))
        assert reached.archived_seq == 10


@pytest.mark.parametrize("source", ["journal", "sources", "another end"])
async def test_certificates_come_along(tmp_path: Path, source: str) -> None:
    """Those of the journal, if they prove the very end; else all that the sources hold."""
    bench = Bench(tmp_path)
    chain = bench.chain

    def certify(seq: int) -> Certificate:
        votes = ((chain.signer.public, bytes(64)),)
        head = chain.frame(seq).head
        return Certificate(phase=2, epoch=1, view=0, height=Seq(seq), hash=head.hash, votes=votes)

    await bench.ship_to(1)
    for seq in range(2, 7):
        chain.random_commit(grow=1)
        batch = Batch(start=Seq(seq), frames=tuple(chain.encoded(seq, seq)), proofs=(certify(seq),))
        sealed = seal_log(batch, bench.seal(), 1)
        await bench.store.put_if_absent(sealed.name, sealed.data)

    async def prove(batch: Batch) -> Batch:
        await trio.lowlevel.checkpoint()
        if source == "another end":
            return Batch(start=batch.start, frames=batch.frames[:-1], proofs=(certify(4),))
        return Batch(start=batch.start, frames=batch.frames, proofs=(certify(batch.end),))

    compactor = Compactor(
        store=bench.store,
        seal=bench.seal(),
        lease=bench.make_lease(),
        source=NoJournal() if source == "sources" else ChainSource(chain),
        trusted=bench.trusted,
        after=lambda: Seq(0),
        prove=prove,
        fan_in=FAN_IN,
    )
    assert await compactor.step()
    (name,) = bench.memory.names("-L1")
    log = NAMES.parse(name)
    assert isinstance(log, LogName)
    segment = open_log(bench.memory.objects[name].data, name, log, NAMES)
    heights = [proof.height for proof in segment.certificates]
    assert heights == ([5] if source == "journal" else [2, 3, 4, 5])
