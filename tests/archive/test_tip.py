"""TIP: how far the archive goes, signed (P25)."""

# ruff: noqa: ARG001  (autojump_clock is asked for so that trio's time jumps)

import pytest
import trio

from basenet.archive.lease import Holder, Lease
from basenet.archive.names import ShardNames
from basenet.archive.seal import Seal
from basenet.archive.tip import TipWriter, encode_tip, read_tip
from basenet.errors import SegmentCorrupt, UntrustedKey
from tests.fakes.chain import JOURNAL_ID, Chain, signer
from tests.fakes.clock import trio_clock
from tests.fakes.memory_store import Fault, MemoryStore, always, first

CHAIN = Chain(number=1)
for _ in range(30):
    CHAIN.random_commit(grow=1)
NAMES = ShardNames(service="default", shard=CHAIN.shard)
SEAL = Seal(names=NAMES, lineage=CHAIN.lineage, signer=CHAIN.signer)
TRUSTED = frozenset({CHAIN.signer.public})


def make(store: MemoryStore) -> TipWriter:
    holder = Holder(node="a", key=CHAIN.signer.public, journal_id=JOURNAL_ID, lineage=CHAIN.lineage)
    lease = Lease(store=store, names=NAMES, holder=holder, clock=trio_clock())
    return TipWriter(store=store, seal=SEAL, lease=lease, trusted=TRUSTED)


async def tip_seq(store: MemoryStore) -> int:
    tip = await read_tip(store, NAMES, TRUSTED)
    return tip.facts.head.seq if tip else 0


async def test_a_lone_commit_is_covered_soon_and_an_idle_shard_costs_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One write a second after the commit, then none for hours."""
    store = MemoryStore()
    writer = make(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        await trio.sleep(100)
        assert store.calls == []
        writer.offer(CHAIN.frame(2).head)
        await trio.sleep(1.5)
        assert await tip_seq(store) == 2
        store.calls.clear()
        await trio.sleep(10_000)
        assert store.calls == []
        nursery.cancel_scope.cancel()


async def test_a_busy_shard_writes_tip_once_in_ten_seconds_and_the_last_one_when_idle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """30 objects in 30 s cost 4 TIPs at most, and the newest is covered in the end."""
    store = MemoryStore()
    writer = make(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for seq in range(1, 31):
            writer.offer(CHAIN.frame(seq).head)
            await trio.sleep(1)
        assert writer.puts <= 4
        await trio.sleep(10)
        assert await tip_seq(store) == 30
        assert writer.puts <= 4
        nursery.cancel_scope.cancel()


async def test_a_failed_tip_is_shown_and_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A store that refuses, fails, loses the answer or hangs delays TIP and nothing else."""
    for fault in (Fault.FAIL, Fault.REFUSE, Fault.LOSE_ANSWER, Fault.HANG, Fault.HANG_AFTER):
        store = MemoryStore()
        writer = make(store)
        store.fate = first(1, fault, part="TIP")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            writer.offer(CHAIN.frame(3).head)
            await trio.sleep(62 if "HANG" in fault.name else 2)
            assert writer.last_error
            writer.offer(CHAIN.frame(4).head)
            await trio.sleep(75)
            assert (await tip_seq(store), writer.last_error) == (4, None), fault
            nursery.cancel_scope.cancel()


async def test_writing_at_once_covers_all_that_was_offered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A clean stop leaves no frame uncovered, and says when it could not."""
    store = MemoryStore()
    writer = make(store)
    assert await writer.write()
    writer.offer(CHAIN.frame(5).head)
    assert await writer.write()
    assert await tip_seq(store) == 5
    store.fate = always(Fault.FAIL)
    writer.offer(CHAIN.frame(6).head)
    assert not await writer.write()


async def test_a_tip_of_a_higher_archive_epoch_is_never_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its writer has taken over; our lease is doubted and read before the next write."""
    store = MemoryStore()
    writer = make(store)
    theirs = encode_tip(CHAIN.frame(20).head, SEAL, 9)
    store.put(NAMES.tip, theirs)
    writer.offer(CHAIN.frame(5).head)
    assert not await writer.write()
    assert "archive epoch 9, ours is 1" in (writer.last_error or "")
    assert store.objects[NAMES.tip].data == theirs


async def test_our_own_earlier_tip_and_a_damaged_one_are_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What the process before us left is read for its token; a broken TIP helps nobody."""
    for data in (encode_tip(CHAIN.frame(4).head, SEAL, 1), b"LBN2 but broken " * 20):
        store = MemoryStore()
        store.put(NAMES.tip, data)
        writer = make(store)
        writer.offer(CHAIN.frame(5).head)
        assert await writer.write()
        assert await tip_seq(store) == 5


async def test_a_tip_is_believed_only_from_a_trusted_key_and_at_its_own_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A foreign key, another shard's TIP, and each flipped byte are refused by name."""
    store = MemoryStore()
    data = encode_tip(CHAIN.frame(4).head, SEAL, 1)
    store.put(NAMES.tip, data)
    assert await tip_seq(store) == 4
    with pytest.raises(UntrustedKey, match="default/app/TIP is signed by SHA256"):
        await read_tip(store, NAMES, frozenset({signer(9).public}))
    other = ShardNames(service="other", shard=CHAIN.shard)
    store.put(other.tip, data)
    with pytest.raises(SegmentCorrupt, match="another service"):
        await read_tip(store, other, TRUSTED)
    for index in range(0, len(data), 7):
        store.put(NAMES.tip, data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises((SegmentCorrupt, UntrustedKey), match="default/app/TIP"):
            await read_tip(store, NAMES, TRUSTED)
