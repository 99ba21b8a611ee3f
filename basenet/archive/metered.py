"""Counting what is asked of a store: requests are what object stores charge for.

The innermost wrapper, so that bytes are those that travel: compressed, and encrypted if they are.
What an SDK or `RemoteStore` tries again is counted once.
"""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from basenet.archive.port import Entry, Object, Store, Token, WrappedStore
from basenet.archive.remote import PAGE_ENTRIES

CALLS: Final = ("put", "get", "list", "delete")
"""What is counted: writes of every kind, reads whole or in part, pages of listings, deletions."""


@dataclass(slots=True)
class StoreUsage:
    """What was asked of a store since the process began; ``calls`` by the names of `CALLS`."""

    calls: Counter[str] = field(default_factory=Counter)
    written_bytes: int = 0
    read_bytes: int = 0


class MeteredStore(WrappedStore):
    """A store whose calls are counted in a `StoreUsage`, whether they succeed or not."""

    def __init__(self, store: Store, usage: StoreUsage) -> None:
        """Take over ``store``, which `aclose` closes."""
        super().__init__(store)
        self._usage = usage

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        """Create the object."""
        self._note_put(data)
        return await self._store.put_if_absent(name, data)

    async def replace_if(self, name: str, data: bytes, expected: Token | None) -> Token:
        """Replace the object."""
        self._note_put(data)
        return await self._store.replace_if(name, data, expected)

    async def put_unconditional(self, name: str, data: bytes) -> Token:
        """Write the object."""
        self._note_put(data)
        return await self._store.put_unconditional(name, data)

    async def get(self, name: str) -> Object:
        """Return the object."""
        self._usage.calls["get"] += 1
        found = await self._store.get(name)
        self._usage.read_bytes += len(found.data)
        return found

    async def get_data(self, name: str) -> bytes:
        """Return the object's bytes."""
        self._usage.calls["get"] += 1
        return self._note_read(await self._store.get_data(name))

    async def get_token(self, name: str) -> Token:
        """Return the object's token."""
        self._usage.calls["get"] += 1
        return await self._store.get_token(name)

    async def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return a part of the object."""
        self._usage.calls["get"] += 1
        return self._note_read(await self._store.get_range(name, start, length))

    def list(self, prefix: str, start_after: str | None = None) -> AsyncIterator[Entry]:
        """Iterate over the objects."""
        return _CountedListing(self._store.list(prefix, start_after), self._usage)

    async def delete(self, name: str) -> None:
        """Delete the object."""
        self._usage.calls["delete"] += 1
        await self._store.delete(name)

    def _note_put(self, data: bytes) -> None:
        self._usage.calls["put"] += 1
        self._usage.written_bytes += len(data)

    def _note_read(self, data: bytes) -> bytes:
        self._usage.read_bytes += len(data)
        return data


class _CountedListing(AsyncIterator[Entry]):
    """A listing that counts its pages; like `Listing` it may be left half read."""

    def __init__(self, entries: AsyncIterator[Entry], usage: StoreUsage) -> None:
        self._entries = entries
        self._usage = usage
        self._seen = 0

    async def __anext__(self) -> Entry:
        if self._seen % PAGE_ENTRIES == 0:
            self._usage.calls["list"] += 1
        self._seen += 1
        return await self._entries.__anext__()
