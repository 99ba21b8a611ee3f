"""Many objects at once, in order, within a bound."""

import pytest
import trio
import trio.testing

from basenet.archive.fetch import Fetcher, Request
from basenet.archive.port import StoreNotFound, StoreUnavailable
from basenet.errors import CorruptionError
from tests.fakes.memory_store import Fault, MemoryStore, always, first


def stocked(count: int, size: int = 10) -> tuple[MemoryStore, list[Request]]:
    store = MemoryStore()
    requests = []
    for number in range(count):
        store.put(f"{number:03d}", bytes([number]) * size)
        requests.append(Request(name=f"{number:03d}", size=size))
    return store, requests


class Gauge(MemoryStore):
    """Counts how many reads run at once; later ones are faster, to disturb the order."""

    running = 0
    most = 0

    async def get_data(self, name: str) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        await trio.sleep(1 - int(name) / 1000)
        self.running -= 1
        return (await self.get(name)).data


async def collect(fetcher: Fetcher, requests: list[Request]) -> list[bytes]:
    found = []
    async with fetcher.stream(requests, lambda _, data: data) as stream:
        async for number, data in stream:
            found.append(data)
            await stream.done(number)
    return found


async def test_results_come_in_the_order_of_the_requests(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Although many are under way, and the last answer comes first."""
    del autojump_clock
    store, requests = stocked(40)
    gauge = Gauge()
    gauge.objects = store.objects
    begun = trio.current_time()
    found = await collect(Fetcher(gauge, connections_max=8), requests)
    assert [data[0] for data in found] == list(range(40))
    assert gauge.most == 8
    assert trio.current_time() - begun < 6


@pytest.mark.parametrize(("limit", "most"), [(35, 3), (10, 1), (1, 1)])
async def test_bytes_in_flight_are_bounded(
    autojump_clock: trio.testing.MockClock, limit: int, most: int
) -> None:
    """Until the consumer is done with them; an object beyond the bound goes alone."""
    del autojump_clock
    store, requests = stocked(12)
    gauge = Gauge()
    gauge.objects = store.objects
    held = held_most = 0
    fetcher = Fetcher(gauge, in_flight_bytes_max=limit)
    async with fetcher.stream(requests, lambda _, data: data) as stream:
        async for number, _ in stream:
            held += 1
            held_most = max(held_most, held + gauge.running)
            await trio.sleep(3)
            await stream.done(number)
            held -= 1
    assert gauge.most == most
    assert held_most <= most


async def test_what_fails_for_now_is_tried_until_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And then the store's own error is told."""
    del autojump_clock
    store, requests = stocked(3)
    store.fate = first(6, Fault.FAIL, method="get")
    assert len(await collect(Fetcher(store), requests)) == 3
    store.fate = always(Fault.FAIL, method="get", part="001")
    begun = trio.current_time()
    with pytest.raises(StoreUnavailable, match="get 001"):
        await collect(Fetcher(store, retry_seconds=60), requests)
    assert 50 < trio.current_time() - begun <= 60


async def test_what_is_not_there_fails_at_once() -> None:
    """In its place in the order: what came before it is still delivered."""
    store, requests = stocked(5)
    del store.objects["003"]
    async with Fetcher(store).stream(requests, lambda _, data: data) as stream:
        for number in range(3):
            assert (await anext(stream))[1][0] == number
        with pytest.raises(StoreNotFound, match="003"):
            await anext(stream)


async def test_a_decoders_error_is_the_consumers() -> None:
    """As itself, not in a group; the consumer may go on with the next."""
    store, requests = stocked(4)

    def decode(number: int, data: bytes) -> bytes:
        if number == 1:
            raise CorruptionError("object 001 is damaged")
        return data

    found = []
    async with Fetcher(store).stream(requests, decode) as stream:
        for number in range(4):
            try:
                found.append((await anext(stream))[1][0])
            except CorruptionError:
                found.append(-1)
            await stream.done(number)
    assert found == [0, -1, 2, 3]
    with pytest.raises(CorruptionError):
        await collect_with(Fetcher(store), requests, decode)


async def collect_with(fetcher: Fetcher, requests: list[Request], decode: object) -> None:
    assert callable(decode)
    async with fetcher.stream(requests, decode) as stream:
        async for number, _ in stream:
            await stream.done(number)


async def test_leaving_early_cancels_the_rest() -> None:
    """At once, also reads that hang."""
    store, requests = stocked(9)
    store.fate = always(Fault.HANG, method="get", part="005")
    with trio.fail_after(5):
        async with Fetcher(store).stream(requests, lambda _, data: data) as stream:
            assert (await anext(stream))[1][0] == 0
