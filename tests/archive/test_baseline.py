"""What the archive says at a start about snapshots and the log since."""

from pathlib import Path

import pytest

from basenet.archive.baseline import read_baseline
from basenet.archive.names import ShardNames
from basenet.archive.port import StoreUnavailable
from basenet.archive.schedule import Reason, SnapshotNeed, plan_snapshot
from basenet.units import PublicKeyBytes, Seq, ShardId
from tests.fakes.chain import Chain
from tests.fakes.memory_store import Fault, MemoryStore, always
from tests.fakes.shipping import ship, snapshot

NAMES = ShardNames(service="default", shard=ShardId("app"))


def trusted(chain: Chain) -> frozenset[PublicKeyBytes]:
    return frozenset({PublicKeyBytes(chain.signer.public)})


async def test_a_database_born_empty_begins_with_its_genesis() -> None:
    """The log alone gives every state: its whole size counts."""
    chain, store = Chain(), MemoryStore()
    for _ in range(9):
        chain.random_commit(grow=1)
    ship(store, chain)
    base = await read_baseline(store, NAMES, chain.lineage, trusted(chain))
    assert (base.has_base, base.seq, base.stored_bytes, base.problem) == (True, 1, 0, None)
    assert base.timestamp_ns == chain.frame(1).head.timestamp_ns
    assert base.log_bytes == sum(len(store.objects[name].data) for name in store.names("/log/"))


async def test_a_snapshot_and_the_log_since_count_also_for_a_child(tmp_path: Path) -> None:
    """A child lineage stands on its parent's page set."""
    chain, store = Chain(), MemoryStore()
    chain.commit({pgno: chain.page() for pgno in range(1, 40)})
    ship(store, chain)
    taken = await snapshot(store, chain, tmp_path)
    begun = store.names("/log/")
    child = Chain(number=2, parent=chain)
    child.random_commit(grow=1)
    ship(store, child)
    base = await read_baseline(store, NAMES, child.lineage, trusted(chain))
    assert (base.has_base, base.seq) == (True, taken)
    assert base.timestamp_ns == chain.tip.head.timestamp_ns
    (manifest,) = [name for name in store.names("/set/") if name.endswith(".lbn")]
    assert base.stored_bytes == len(store.objects[manifest].data)
    since = [name for name in store.names("/log/") if name not in begun]
    assert base.log_bytes == sum(len(store.objects[name].data) for name in since)


async def test_a_state_that_cannot_be_restored_asks_for_a_snapshot() -> None:
    """No snapshot of a database that was there before, or a hole in the log."""
    old, store = Chain(pages={1: bytes(512)}), MemoryStore()
    ship(store, old)
    base = await read_baseline(store, NAMES, old.lineage, trusted(old))
    assert not base.has_base
    assert "no page set" in (base.problem or "")
    need = SnapshotNeed(
        db_pages=1,
        has_base=base.has_base,
        base_ns=base.timestamp_ns,
        base_stored_bytes=base.stored_bytes,
        log_bytes=base.log_bytes,
    )
    assert plan_snapshot(need).reason is Reason.NO_BASE
    assert base.seq == Seq(0)


async def test_an_archive_out_of_reach_is_no_answer() -> None:
    """Nothing is concluded from silence."""
    chain, store = Chain(), MemoryStore()
    ship(store, chain)
    store.fate = always(Fault.FAIL, method="list")
    with pytest.raises(StoreUnavailable):
        await read_baseline(store, NAMES, chain.lineage, trusted(chain))
