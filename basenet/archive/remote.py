"""What a store behind a network needs beside its own SDK: threads, trying again, lost answers.

Theory of operation
===================

A `Backend` is one SDK made to speak the port's words: it blocks, tries once, and raises only the
store's errors. `RemoteStore` turns it into a `Store`.

*Lost answers.* A conditional write is sent once: an SDK that retried it would meet its own first
write as a conflict. When the answer is a conflict, a failure or none at all, the object is read
back, and the bytes decide::

    the object now     after a conflict     after a failure or silence
    our bytes          success              success
    other bytes        StoreConflict        StoreConflict, but the failure if still as expected
    none               StoreConflict        the failure
    unreadable         the answer           the failure

*Cancellation.* The thread of a cancelled call is left behind until the SDK's own time limit ends
it; until then it occupies one of the store's `concurrent_calls_max` places.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from basenet.archive.port import (
    Entry,
    Listing,
    Object,
    Store,
    StoreConflict,
    StoreNotFound,
    StoreUnavailable,
    Token,
    check_name,
)

CONNECT_TIMEOUT_SECONDS: Final = 5.0
READ_TIMEOUT_SECONDS: Final = 30.0
CONCURRENT_CALLS_MAX: Final = 16
PAGE_ENTRIES: Final = 1000  # the most that S3 and GCS give
READ_ATTEMPTS_MAX: Final = 3
PAUSE_SECONDS_FIRST: Final = 0.1
PAUSE_GROWTH: Final = 4

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long to wait for an endpoint, and how much to ask of it at once."""

    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS
    concurrent_calls_max: int = CONCURRENT_CALLS_MAX
    page_entries: int = PAGE_ENTRIES


@dataclass(frozen=True, slots=True)
class Absent:
    """Write only if there is no object of that name."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Write only if the object is the version that ``token`` names."""

    token: Token


@dataclass(frozen=True, slots=True)
class Always:
    """Write whatever is there."""


Condition = Absent | Matches | Always


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One answer to a listing; ``next_page`` asks for the one after it, None: it was the last."""

    entries: tuple[Entry, ...]
    next_page: str | None


class Backend(ABC):
    """One SDK in the port's words. Blocking, used from several threads, one attempt a call.

    Names are below the store's prefix. Every method raises only the errors of `port`.
    """

    url: str
    endpoint: str

    @abstractmethod
    def put(self, name: str, data: bytes, condition: Condition) -> Token:
        """Write an object; raise `StoreConflict` when the store says that the condition fails."""

    @abstractmethod
    def get(self, name: str) -> Object:
        """Return the object; raise `StoreNotFound` if there is none."""

    @abstractmethod
    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return at most ``length`` >= 1 bytes from ``start``, none from beyond the end."""

    @abstractmethod
    def list_page(self, prefix: str, start_after: str | None, page: str | None) -> Page:
        """Return the page that ``page`` names, or the first one."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete the object, if there is one."""

    @abstractmethod
    def close(self) -> None:
        """Close idle connections, without waiting."""


class RemoteStore(Store):
    """The port on a `Backend`."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        """Take over ``backend``, which `aclose` closes."""
        self._backend = backend
        self._limiter = trio.CapacityLimiter(limits.concurrent_calls_max)

    @property
    def url(self) -> str:
        """Return the backend's URL."""
        return self._backend.url

    @property
    def endpoint(self) -> str:
        """Return the backend's server and bucket."""
        return self._backend.endpoint

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        """Send one conditional write, and read back if its answer leaves a doubt."""
        return await self._put(name, data, Absent())

    async def replace_if(self, name: str, data: bytes, expected: Token | None) -> Token:
        """Send one conditional write, and read back if its answer leaves a doubt."""
        return await self._put(name, data, Absent() if expected is None else Matches(expected))

    async def put_unconditional(self, name: str, data: bytes) -> Token:
        """Send one write."""
        check_name(name)
        return await self._in_thread(lambda: self._backend.put(name, data, Always()))

    async def get(self, name: str) -> Object:
        """Read the whole object."""
        check_name(name)
        return await self._tried(lambda: self._backend.get(name))

    async def get_range(self, name: str, start: int, length: int) -> bytes:
        """Read a part of the object."""
        check_name(name)
        if length == 0:
            return b""
        return await self._tried(lambda: self._backend.get_range(name, start, length))

    def list(self, prefix: str, start_after: str | None = None) -> Listing:
        """Ask for a page at a time as the entries are consumed."""
        page: str | None = None
        is_over = False

        async def next_page() -> tuple[Entry, ...] | None:
            nonlocal page, is_over
            if is_over:
                return None
            found = await self._tried(lambda: self._backend.list_page(prefix, start_after, page))
            page, is_over = found.next_page, found.next_page is None
            # GCS begins at the name itself, and some S3 servers ignore where to begin.
            return tuple(entry for entry in found.entries if entry.name > (start_after or ""))

        return Listing(next_page)

    async def delete(self, name: str) -> None:
        """Delete the object."""
        check_name(name)
        await self._tried(lambda: self._backend.delete(name))

    async def aclose(self) -> None:
        """Close idle connections; calls that still hang end by their own time limits."""
        self._backend.close()
        await trio.lowlevel.checkpoint()

    async def _put(self, name: str, data: bytes, condition: Absent | Matches) -> Token:
        check_name(name)
        try:
            return await self._in_thread(lambda: self._backend.put(name, data, condition))
        except (StoreConflict, StoreUnavailable) as answer:
            return await self._settle(name, data, condition, answer)

    async def _settle(
        self,
        name: str,
        data: bytes,
        condition: Absent | Matches,
        answer: StoreConflict | StoreUnavailable,
    ) -> Token:
        """Find out what became of a write that was not simply accepted: see the table above."""
        try:
            found = await self.get(name)
        except (StoreNotFound, StoreUnavailable):
            raise answer from None
        if found.data == data:
            return found.token
        is_untouched = isinstance(condition, Matches) and found.token == condition.token
        if is_untouched and isinstance(answer, StoreUnavailable):
            raise answer
        raise StoreConflict(
            f"object {name} in {self.url} is not what was expected: another writer was first"
        ) from answer

    async def _tried(self, call: Callable[[], _Result]) -> _Result:
        """Do what does no harm when done twice, a few times while the store is unavailable."""
        pause_seconds = PAUSE_SECONDS_FIRST
        for _ in range(READ_ATTEMPTS_MAX - 1):
            try:
                return await self._in_thread(call)
            except StoreUnavailable:
                # Half of it is chance, so that many who failed together do not return together.
                await trio.sleep(pause_seconds * random.uniform(0.5, 1.5))  # noqa: S311  (jitter)
                pause_seconds *= PAUSE_GROWTH
        return await self._in_thread(call)

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
