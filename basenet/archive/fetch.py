"""Many objects at once, decoded, in order, within a bound on memory.

Theory of operation
===================

A restore from a remote store waits for round trips, not for bytes, so many GETs run at once; what
arrives is decoded in `DECODERS_MAX` threads. The consumer gets the results in the order in which it
asked for the objects, because log objects must be applied in order. So that the first of many does
not make the others pile up, a GET starts only when its bytes fit under `IN_FLIGHT_BYTES_MAX`,
counted from its start until the consumer says that it is done with the result. Starts are in order,
so the object that the consumer waits for is always among those that were let in: nothing can lock
up. An object bigger than the bound is let in alone.

Two decoders: hashing a page of 4 KiB does not scale over threads in Python, and with four the
threads spend more on handing over than they win (reference: 391, 390 and 333 MB/s for 1, 2, 4 on a
busy machine, 601 and 849 for 1 and 2 on a quiet one).

A read that fails for now is tried again, longer and longer apart, until `RETRY_SECONDS` have gone
by without success. An object that is not there, or that the store refuses, fails at once.
Everything is cancelled promptly, except that a decoder at work is waited for: what it writes must
not appear after the caller has cleaned up.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import trio

from basenet.archive.backoff import Backoff
from basenet.archive.port import Store
from basenet.errors import BasenetError, UnavailableError
from basenet.units import MIB

IN_FLIGHT_BYTES_MAX: Final = 64 * MIB
CONNECTIONS_MAX: Final = 16
DECODERS_MAX: Final = 2
RETRY_SECONDS: Final = 300.0
PAUSE_SECONDS_MAX: Final = 5.0

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An object to fetch, and its size in bytes as it was listed."""

    name: str
    size: int


class _ByteBudget:
    """Lets tasks take bytes as long as some are left."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._changed = trio.Condition()

    async def take(self, size: int) -> None:
        async with self._changed:
            while self._taken and self._taken + size > self._limit:
                await self._changed.wait()
            self._taken += size

    async def give_back(self, size: int) -> None:
        async with self._changed:
            self._taken -= size
            self._changed.notify_all()


class _Slot(Generic[_Result]):
    """Where one result arrives, or the reason why there is none."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.result: _Result | None = None
        self.error: BasenetError | None = None

    def take(self) -> _Result:
        if self.error is not None:
            raise self.error
        result, self.result = self.result, None
        assert result is not None, "decoders return what is not None"
        return result


class Stream(Generic[_Result]):
    """The results of `Fetcher.stream`, in order: iterate over it, and call `done` after each."""

    def __init__(
        self, requests: Sequence[Request], slots: Sequence[_Slot[_Result]], budget: _ByteBudget
    ) -> None:
        self._requests = requests
        self._slots = slots
        self._budget = budget
        self._next = 0

    def __aiter__(self) -> "Stream[_Result]":
        return self

    async def __anext__(self) -> tuple[int, _Result]:
        """Return the number of the next request and its result, or raise why there is none."""
        if self._next == len(self._requests):
            raise StopAsyncIteration
        number = self._next
        self._next += 1
        await self._slots[number].arrived.wait()
        return number, self._slots[number].take()

    async def done(self, number: int) -> None:
        """Say that the result of the request ``number`` is no longer held."""
        await self._budget.give_back(self._requests[number].size)


class Fetcher:
    """Reads and decodes objects of one store."""

    def __init__(
        self,
        store: Store,
        *,
        connections_max: int = CONNECTIONS_MAX,
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
        decoders_max: int = DECODERS_MAX,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._store = store
        self._connections = trio.CapacityLimiter(connections_max)
        self._in_flight_bytes_max = in_flight_bytes_max
        self._decoders = trio.CapacityLimiter(decoders_max)
        self._retry_seconds = retry_seconds
        self.requests = 0
        self.bytes_read = 0

    async def get(self, name: str) -> bytes:
        """Return the object ``name``.

        Raises `UnavailableError` when the store did not answer for `RETRY_SECONDS`, and at once
        what trying again cannot mend: `StoreNotFound`, `StoreRefused`.
        """
        return await self._tried(lambda: self._store.get_data(name))

    async def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes of the object ``name`` from ``start``; fewer at its end.

        Raises what `get` raises.
        """
        return await self._tried(lambda: self._store.get_range(name, start, length))

    async def _tried(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        backoff = Backoff(max_seconds=PAUSE_SECONDS_MAX)
        deadline = trio.current_time() + self._retry_seconds
        while True:
            try:
                data = await read()
            except UnavailableError:
                pause_seconds = backoff.next_seconds()
                if trio.current_time() + pause_seconds > deadline:
                    raise
                await trio.sleep(pause_seconds)
            else:
                self.requests += 1
                self.bytes_read += len(data)
                return data

    @asynccontextmanager
    async def stream(
        self, requests: Sequence[Request], decode: Callable[[int, bytes], _Result]
    ) -> AsyncIterator[Stream[_Result]]:
        """Fetch ``requests`` while the body runs, and give it what ``decode`` makes of them.

        ``decode`` gets the number of the request and the bytes; it runs in a thread, several at a
        time, and returns anything but None. A `BasenetError` that it, the store or the body raises
        leaves the stream as itself, not in a group.
        """
        budget = _ByteBudget(self._in_flight_bytes_max)
        slots: list[_Slot[_Result]] = [_Slot() for _ in requests]
        failure: BasenetError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._start_all, nursery, requests, slots, budget, decode)
            try:
                yield Stream(requests, slots, budget)
            except BasenetError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _start_all(
        self,
        nursery: trio.Nursery,
        requests: Sequence[Request],
        slots: Sequence[_Slot[_Result]],
        budget: _ByteBudget,
        decode: Callable[[int, bytes], _Result],
    ) -> None:
        for number, (request, slot) in enumerate(zip(requests, slots, strict=True)):
            await budget.take(request.size)
            await self._connections.acquire_on_behalf_of(slot)
            nursery.start_soon(self._fill, number, request, slot, decode)

    async def _fill(
        self,
        number: int,
        request: Request,
        slot: _Slot[_Result],
        decode: Callable[[int, bytes], _Result],
    ) -> None:
        # A failure is the consumer's news, in its place in the order, and not the end of the rest.
        try:
            try:
                data = await self.get(request.name)
            finally:
                self._connections.release_on_behalf_of(slot)
            slot.result = await trio.to_thread.run_sync(
                decode, number, data, limiter=self._decoders
            )
        except BasenetError as error:
            slot.error = error
        slot.arrived.set()
