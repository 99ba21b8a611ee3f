"""Who may write a shard's archive (P24, Q17 standalone, Q18)."""

# ruff: noqa: ARG001  (autojump_clock is asked for so that trio's time jumps)

import json
import os
from pathlib import Path

import pytest
import trio

from basenet.archive.directory import DirectoryStore
from basenet.archive.lease import Holder, Lease, LeaseHeld, LeaseLost, read_lease
from basenet.archive.names import ShardNames
from basenet.archive.port import Object, Store, StoreUnavailable, Token
from basenet.archive.unconditional import UnconditionalStore
from basenet.errors import ConflictError, UnavailableError
from basenet.units import JournalId, ShardId
from tests.fakes.chain import lineage, signer
from tests.fakes.clock import trio_clock, wall_ns
from tests.fakes.memory_store import Fault, MemoryStore, first

NAMES = ShardNames(service="default", shard=ShardId("app"))


def make(store: Store, node: str = "a", journal: bytes = b"j" * 16) -> Lease:
    holder = Holder(
        node=node,
        key=signer(ord(node)).public,
        journal_id=JournalId(journal),
        lineage=lineage(),
    )
    return Lease(store=store, names=NAMES, holder=holder, clock=trio_clock())


def stored(store: MemoryStore) -> dict[str, object]:
    fields = json.loads(store.objects[NAMES.lease].data)
    assert isinstance(fields, dict)
    return fields


async def test_the_first_write_takes_the_lease_under_archive_epoch_1(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """LEASE says who holds it: node, key, journal, epoch, lineage, (epoch, view), token, expiry."""
    store = MemoryStore()
    lease = make(store)
    assert not lease.is_held
    assert await lease.ensure() == 1
    assert lease.is_held
    fields = stored(store)
    assert fields["node"] == "a"
    assert fields["key"] == signer(ord("a")).public.hex()
    assert fields["journal_id"] == (b"j" * 16).hex()
    assert (fields["archive_epoch"], fields["lineage"]) == (1, lineage().hex())
    assert (fields["epoch"], fields["view"], fields["is_released"]) == (1, 0, False)
    assert fields["expires"] == "2027-01-15T08:00:30Z"


async def test_a_held_lease_costs_nothing_until_it_is_due(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No request within TTL/3 of the last proof; a read after it; a renewal below TTL/2."""
    store = MemoryStore()
    lease = make(store)
    await lease.ensure()
    store.calls.clear()
    await trio.sleep(9.9)
    await lease.ensure()
    assert store.calls == []
    await trio.sleep(0.2)
    await lease.ensure()
    assert store.calls == [("get", NAMES.lease)]
    await trio.sleep(5)
    store.calls.clear()
    await lease.ensure()
    assert store.calls == [("replace_if", NAMES.lease)]


async def test_an_idle_holder_makes_no_requests_and_renews_late_if_nobody_came(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An hour later the token is still ours, which proves that nobody wrote in between."""
    store = MemoryStore()
    lease = make(store)
    await lease.ensure()
    store.calls.clear()
    await trio.sleep(3600)
    assert store.calls == []
    assert await lease.ensure() == 1
    assert store.calls == [("replace_if", NAMES.lease)]


async def test_a_second_node_is_refused_while_the_first_one_lives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`LeaseHeld` names the node; it comes as soon as the holder renews."""
    store = MemoryStore()
    holder = make(store, "a")

    async def keep_writing() -> None:
        while True:
            await holder.ensure()
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_writing)
        await trio.sleep(0.5)
        with pytest.raises(LeaseHeld, match=r"archived by node a .*archive epoch 1"):
            await make(store, "b", b"k" * 16).acquire()
        assert stored(store)["node"] == "a"
        nursery.cancel_scope.cancel()
    assert trio.current_time() < 20


async def test_a_foreign_lease_that_stands_still_for_a_ttl_is_taken_with_the_next_epoch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """By our own CLOCK_BOOTTIME, not by the expiry that the other wrote."""
    store = MemoryStore()
    await make(store, "a").ensure()
    begun_at = trio.current_time()
    assert await make(store, "b", b"k" * 16).acquire() == 2
    assert 30 <= trio.current_time() - begun_at < 31
    assert stored(store)["node"] == "b"


async def test_who_waits_says_for_whom(autojump_clock: trio.testing.MockClock) -> None:
    """While it waits for a foreign lease to run out, and not afterwards."""
    store = MemoryStore()
    await make(store).acquire()
    second = make(store, "b", b"k" * 16)
    assert second.waits_for is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.acquire)
        await trio.sleep(5)
        assert second.waits_for == "node a (archive epoch 1)"
    assert second.waits_for is None
    assert autojump_clock.current_time() >= 5


async def test_a_wait_that_was_cut_short_goes_on_where_it_was(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever gives up waiting and comes back does not begin the TTL anew."""
    store = MemoryStore()
    await make(store, "a").ensure()
    lease = make(store, "b", b"k" * 16)
    with trio.move_on_after(20):
        await lease.acquire()
    assert not lease.is_held
    begun_at = trio.current_time()
    await lease.acquire()
    assert trio.current_time() - begun_at < 11


async def test_the_stores_own_clock_spares_the_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The answer's date minus the object's: no clock of ours can falsify that age."""
    store = MemoryStore(now_ns=wall_ns)
    await make(store, "a").ensure()
    await trio.sleep(33)
    begun_at = trio.current_time()
    assert await make(store, "b", b"k" * 16).acquire() == 2
    assert trio.current_time() - begun_at < 0.1


async def test_a_clock_that_is_ahead_steals_no_lease_in_a_directory(tmp_path: Path) -> None:
    """The file's time is years before ours: that is no age, so it has to stand still for a TTL."""
    store = DirectoryStore(tmp_path)
    holder, other = make(store), make(store, node="b", journal=b"k" * 16)
    await holder.acquire()
    os.utime(tmp_path / NAMES.lease, (0, 0))
    seen = await read_lease(store, NAMES)
    assert seen is not None
    assert seen.age_ns is None
    with trio.move_on_after(0.1) as scope:
        await other.acquire()
    assert scope.cancelled_caught
    assert not other.is_held
    holder.doubt()
    assert await holder.ensure() == 1


async def test_our_own_lease_is_retaken_at_once_but_with_another_epoch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A restarted daemon does not lock itself out; a copied data directory gets its own epoch."""
    store = MemoryStore()
    before = make(store)
    await before.ensure()
    begun_at = trio.current_time()
    after = make(store)
    assert await after.ensure() == 2
    assert trio.current_time() - begun_at < 0.1
    await trio.sleep(11)
    with pytest.raises(LeaseLost, match=r"taken over by node a .archive epoch 2."):
        await before.ensure()
    assert await after.ensure() == 2


async def test_a_deposed_holder_finds_out_before_it_writes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A process that was asleep for more than TTL/3 reads, or renews, and is told: for good."""
    store = MemoryStore()
    sleeper = make(store, "a")
    await sleeper.ensure()
    await trio.sleep(1)
    await make(store, "b", b"k" * 16).acquire()
    for _ in range(2):
        with pytest.raises(LeaseLost, match="node b"):
            await sleeper.ensure()
    assert not sleeper.is_held
    assert stored(store)["node"] == "b"


async def test_a_lease_that_changed_since_the_archive_was_looked_at_is_not_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The lineage decision was made on an archive that has moved: start again."""
    store = MemoryStore()
    late = make(store, "a")
    assert await late.observe() is None
    other = make(store, "b", b"k" * 16)
    await other.ensure()
    await other.release()
    with pytest.raises(LeaseHeld, match="node b"):
        await late.ensure()
    assert await make(store, "a").ensure() == 2


async def test_a_released_lease_is_taken_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A clean stop spares the successor the wait, and keeps the epoch counting."""
    store = MemoryStore()
    lease = make(store, "a")
    await lease.ensure()
    assert await lease.release()
    assert not lease.is_held
    begun_at = trio.current_time()
    assert await make(store, "b", b"k" * 16).acquire() == 2
    assert trio.current_time() - begun_at < 0.1
    assert not await lease.release(), "it is not ours any more"


async def test_a_release_never_touches_anothers_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A holder that was deposed while idle releases nothing."""
    store = MemoryStore()
    lease = make(store, "a")
    await lease.ensure()
    await make(store, "b", b"k" * 16).acquire()
    assert not await lease.release()
    assert (stored(store)["node"], stored(store)["is_released"]) == ("b", False)


async def test_lost_answers_never_cost_the_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A write of ours that did happen is known by its token, at taking and at each renewal."""
    store = MemoryStore()
    lease = make(store)
    store.fate = first(1, Fault.LOSE_ANSWER, method="replace_if")
    with pytest.raises(StoreUnavailable):
        await lease.ensure()
    assert await lease.ensure() == 1
    for fault in (Fault.LOSE_ANSWER, Fault.FAIL):
        await trio.sleep(20)
        store.fate = first(1, fault, method="replace_if")
        with pytest.raises(StoreUnavailable):
            await lease.ensure()
        assert await lease.ensure() == 1
    await trio.sleep(12)
    assert await lease.ensure() == 1


class CachedStore(MemoryStore):
    """A store behind a cache that may answer with the LEASE of before."""

    cached: Object | None = None

    async def get(self, name: str) -> Object:
        found = await super().get(name)
        return self.cached if self.cached is not None and name == NAMES.lease else found


async def test_a_cache_that_answers_with_our_own_older_lease_takes_nothing_from_us(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nobody else was there: it is tried again, and held on once the cache has caught up."""
    store = CachedStore()
    lease = make(store)
    await lease.ensure()
    before = await store.get(NAMES.lease)
    await trio.sleep(16)
    await lease.ensure()  # renewed: the one before is out of date
    store.cached = before
    await trio.sleep(11)
    await lease.ensure()  # read, and answered by the cache
    await trio.sleep(5)
    with pytest.raises(UnavailableError, match="older version"):
        await lease.ensure()
    assert lease.is_held
    store.cached = None
    assert await lease.ensure() == 1
    assert stored(store)["archive_epoch"] == 1


async def test_a_cache_that_answers_with_the_lease_before_ours_takes_nothing_from_us(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A lease of an earlier epoch cannot have been taken from us: the next read shows ours."""
    store = CachedStore()
    earlier = make(store)
    await earlier.ensure()
    store.cached = await store.get(NAMES.lease)
    cached, store.cached = store.cached, None
    lease = make(store)
    assert await lease.ensure() == 2
    store.cached = cached
    await trio.sleep(11)
    with pytest.raises(UnavailableError, match="older version"):
        await lease.ensure()
    assert lease.is_held
    store.cached = None
    assert await lease.ensure() == 2
    with pytest.raises(LeaseLost, match="epoch 2"):
        await earlier.ensure()


async def test_a_deleted_lease_is_written_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nobody else holds what does not exist; the epoch goes on."""
    store = MemoryStore()
    lease = make(store)
    await lease.ensure()
    for pause in (11, 20):
        await trio.sleep(pause)
        del store.objects[NAMES.lease]
        assert await lease.ensure() == 1
        assert stored(store)["node"] == "a"


async def test_the_epoch_rises_above_what_the_archive_holds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A lost LEASE object must not let old epochs win over new ones."""
    store = MemoryStore()
    lease = make(store)
    lease.raise_epoch_floor(7)
    assert await lease.ensure() == 8


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"node": "a"}', b"\xff\xfe", b'"text"', b"17"]
)
async def test_a_lease_that_is_not_readable_is_a_conflict(data: bytes) -> None:
    """What we cannot read we do not overwrite; the sentence says what to do."""
    store = MemoryStore()
    store.put(NAMES.lease, data)
    with pytest.raises(ConflictError, match=r"default/app/LEASE is not readable: make sure"):
        await make(store).ensure()
    assert store.objects[NAMES.lease].data == data


async def test_twelve_starters_make_one_holder(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of many that start at once exactly one archives."""
    store = MemoryStore()
    store.latency_seconds = 0.01
    outcomes: list[str] = []

    async def start(number: int) -> None:
        try:
            await make(store, chr(ord("a") + number), bytes([number]) * 16).ensure()
        except LeaseHeld:
            outcomes.append("refused")
        else:
            outcomes.append("holds")

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(start, number)
    assert sorted(outcomes) == ["holds", *["refused"] * 11]


async def test_without_conditions_a_writer_waits_and_reads_its_own_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Q18: write, wait 2 s, read: whoever wrote last holds it, and the other one knows."""
    inner = MemoryStore()
    store = UnconditionalStore(inner)
    lease, other = make(store, "a"), make(store, "b", b"k" * 16)
    refused: list[str] = []

    async def start(lease: Lease, delay: float) -> None:
        await trio.sleep(delay)
        try:
            await lease.ensure()
        except LeaseHeld as error:
            refused.append(str(error))

    begun_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, lease, 0)
        await trio.sleep(0.001)
        inner.objects.clear()  # the other did not see the first write
        nursery.start_soon(start, other, 0)
    assert trio.current_time() - begun_at >= 2
    assert not lease.is_held
    assert other.is_held
    assert len(refused) == 1


async def test_reading_a_lease_tells_its_age_by_the_stores_clock() -> None:
    """`status` and `doctor` show who holds a shard."""
    store = MemoryStore(now_ns=lambda: 5)
    assert await read_lease(store, NAMES) is None
    await make(store).ensure()
    seen = await read_lease(store, NAMES)
    assert seen is not None
    assert (seen.body.node, seen.age_ns, seen.token) == ("a", 0, Token("1"))


def established(store: Store, node: str, view: int, *, epoch: int = 1) -> Lease:
    """A lease of the node that a quorum follows in (epoch, view)."""
    holder = Holder(
        node=node,
        key=signer(ord(node)).public,
        journal_id=JournalId(node.encode() * 16),
        lineage=lineage(),
        epoch=epoch,
        view=view,
        is_established=True,
    )
    return Lease(store=store, names=NAMES, holder=holder, clock=trio_clock())


async def test_a_later_view_takes_over_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Archive epoch + 1, without a wait; the one before finds out with its next write."""
    store = MemoryStore()
    before, after = established(store, "a", 3), established(store, "b", 4)
    assert await before.ensure() == 1
    started = trio.current_time()
    await after.observe()
    assert await after.ensure() == 2
    assert trio.current_time() == started
    before.doubt()
    with pytest.raises(LeaseLost, match="node b"):
        await before.ensure()
    assert await established(store, "c", 0, epoch=2).ensure() == 3


async def test_an_earlier_view_waits_as_anybody(autojump_clock: trio.testing.MockClock) -> None:
    """So does a node that nobody follows, whatever it says of its view."""
    store = MemoryStore()
    assert await established(store, "b", 4).ensure() == 1
    started = trio.current_time()
    assert await established(store, "a", 3).ensure() == 2
    assert trio.current_time() - started >= 30
