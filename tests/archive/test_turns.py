"""Turns: how many shards ship much at once, for how long one waits, and when memory goes back."""

# ruff: noqa: ARG001  (autojump_clock is asked for so that trio's time jumps)

import random

import pytest
import trio
import trio.testing

from basenet.archive.backlog import Backlog
from basenet.archive.lease import Holder, Lease
from basenet.archive.names import ShardNames
from basenet.archive.port import StoreUnavailable, Token
from basenet.archive.seal import Seal
from basenet.archive.tip import TipWriter
from basenet.archive.turns import LARGE_BYTES_MIN, PATIENCE_SECONDS, Turns, give_back_memory
from basenet.archive.uploader import Uploader
from basenet.units import JournalId, Seq, ShardId
from basenet.wire.frame import encode_frame
from tests.fakes.chain import Chain, ChainSource, signer
from tests.fakes.clock import trio_clock
from tests.fakes.memory_store import MemoryStore

_SECONDS_EACH = 2.0


class SlowStore(MemoryStore):
    """Takes its time with what is large, and counts how much of it is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.largest = 0
        self.refused: set[str] = set()
        self.has_refused = trio.Event()

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        if len(data) < LARGE_BYTES_MIN:
            return await super().put_if_absent(name, data)
        self.under_way += 1
        self.largest = max(self.largest, self.under_way)
        try:
            await trio.sleep(_SECONDS_EACH)
            if any(name.startswith(service) for service in self.refused):
                self.has_refused.set()
                raise StoreUnavailable("a store in trouble")
            return await super().put_if_absent(name, data)
        finally:
            self.under_way -= 1


def make_uploader(store: MemoryStore, number: int, turns: Turns, size: int) -> Uploader:
    """Return the uploader of a shard with ``size`` bytes and more that wait in its journal."""
    chain = Chain(seed=number)
    while (count := sum(len(encode_frame(frame)) for frame in chain.frames)) < size:
        chain.random_commit(grow=max(1, min(400, (size - count) // 512)))
    names = ShardNames(service=f"s{number}", shard=chain.shard)
    seal = Seal(names=names, lineage=chain.lineage, signer=chain.signer)
    holder = Holder(
        node="a",
        key=chain.signer.public,
        journal_id=JournalId(b"j" * 16),
        lineage=chain.lineage,
    )
    lease = Lease(store=store, names=names, holder=holder, clock=trio_clock())
    trusted = frozenset({chain.signer.public})
    backlog = Backlog(archived_seq=Seq(0))
    last = chain.frames[-1].head
    backlog.adopt(end=last.seq, size=count, oldest_ns=chain.frames[0].head.timestamp_ns)

    async def on_archived(seq: Seq, now_ns: int) -> None:
        del seq, now_ns

    return Uploader(
        store=store,
        seal=seal,
        lease=lease,
        tip=TipWriter(store=store, seal=seal, lease=lease, trusted=trusted),
        backlog=backlog,
        source=ChainSource(chain),
        on_archived=on_archived,
        trusted=trusted,
        clock=trio_clock(),
        turns=turns,
    )


async def test_after_an_outage_few_shards_ship_much_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Ten shards have megabytes that wait: all arrive, and never more than three are in memory."""
    store, turns = SlowStore(), Turns(turns_max=3)
    uploaders = [make_uploader(store, number, turns, 2 * LARGE_BYTES_MIN) for number in range(10)]
    async with trio.open_nursery() as nursery:
        for uploader in uploaders:
            nursery.start_soon(uploader.run)
        for uploader in uploaders:
            assert await uploader.flush(600)
        nursery.cancel_scope.cancel()
    assert store.largest == 3


async def test_what_is_small_waits_for_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """A lone commit is archived while every turn is taken."""
    store, turns = MemoryStore(), Turns(turns_max=1)
    uploader = make_uploader(store, 1, turns, 4096)
    async with turns.turn(), trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(uploader.run)
        assert await uploader.flush(600)
        assert trio.current_time() - began < PATIENCE_SECONDS / 2
        nursery.cancel_scope.cancel()


async def test_a_shard_that_fails_does_not_keep_its_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One attempt a turn: the others go on, and it comes through when its trouble is over."""
    store, turns = SlowStore(), Turns(turns_max=1)
    store.refused = {"s0/"}
    uploaders = [make_uploader(store, number, turns, 2 * LARGE_BYTES_MIN) for number in range(3)]
    async with trio.open_nursery() as nursery:
        for uploader in uploaders:
            nursery.start_soon(uploader.run)
        began = trio.current_time()
        for uploader in uploaders[1:]:
            assert await uploader.flush(600)
        assert trio.current_time() - began < PATIENCE_SECONDS
        await store.has_refused.wait()
        store.refused = set()
        assert await uploaders[0].flush(600)
        nursery.cancel_scope.cancel()


async def test_whoever_waits_for_a_lease_holds_no_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After a takeover every shard waits for its own lease, and all of them at once."""
    store, turns = SlowStore(), Turns(turns_max=1)
    names = ShardNames(service="s0", shard=ShardId("app"))
    other = Holder(
        node="b",
        key=signer(2).public,
        journal_id=JournalId(b"k" * 16),
        lineage=Chain(seed=0).lineage,
    )
    await Lease(store=store, names=names, holder=other, clock=trio_clock()).ensure()
    uploaders = [make_uploader(store, number, turns, 2 * LARGE_BYTES_MIN) for number in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploaders[0].run)
        await trio.sleep(1)
        for uploader in uploaders[1:]:
            nursery.start_soon(uploader.run)
        began = trio.current_time()
        for uploader in uploaders[1:]:
            assert await uploader.flush(600)
        assert trio.current_time() - began < PATIENCE_SECONDS / 2
        assert uploaders[0].facts().waits_for is not None
        assert await uploaders[0].flush(600)
        nursery.cancel_scope.cancel()


async def test_whoever_waited_long_enough_goes_without_a_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Turns save memory; they never stop a shard."""
    turns = Turns(turns_max=1)
    async with turns.turn():
        began = trio.current_time()
        async with turns.turn():
            assert trio.current_time() - began == pytest.approx(PATIENCE_SECONDS)
        async with turns.turn():  # and it gave back nothing that it did not have
            assert trio.current_time() - began == pytest.approx(2 * PATIENCE_SECONDS)


async def test_memory_goes_back_when_the_last_turn_ends_and_not_all_the_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once after a burst, and every few seconds while one goes on."""
    given: list[float] = []
    turns = Turns(turns_max=2, give_back=lambda: given.append(trio.current_time()))
    began = trio.current_time()
    async with turns.turn():
        async with turns.turn():
            pass
        assert given == []
    assert len(given) == 1
    for _ in range(30):
        async with turns.turn():
            await trio.sleep(random.uniform(0.5, 1.5))
    assert 2 <= len(given) <= 1 + (trio.current_time() - began) / 5
    give_back_memory()
