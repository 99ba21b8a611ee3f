"""``BASE_ARCHIVE_UNCONDITIONAL=1``: a store that cannot keep conditions, for a single writer (Q18).

A condition is checked by reading before the write, and the write by reading after it. Between the
two another writer can slip in: two writers are *not excluded*. They are told apart only at
restore, by archive epoch and lineage. Whoever needs more (the lease: write, wait 2 s, read the
own token) looks at `Store.is_conditional` and reads again later.
"""

from collections.abc import AsyncIterator

from basenet.archive.port import (
    Entry,
    Object,
    Store,
    StoreConflict,
    StoreNotFound,
    Token,
    WrappedStore,
)


class UnconditionalStore(WrappedStore):
    """The port on a store of which only plain writes can be trusted."""

    def __init__(self, store: Store) -> None:
        """Take over ``store``, which `aclose` closes."""
        super().__init__(store)
        self.is_conditional = False

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        """Read, write if there is nothing, read back."""
        try:
            found = await self._store.get(name)
        except StoreNotFound:
            return await self._put_and_check(name, data)
        if found.data == data:
            return found.token
        raise StoreConflict(f"object {name} in {self.url} exists with other content")

    async def replace_if(self, name: str, data: bytes, expected: Token | None) -> Token:
        """Read, write if the version is the expected one, read back."""
        if expected is None:
            return await self.put_if_absent(name, data)
        try:
            found = await self._store.get(name)
        except StoreNotFound as error:
            raise StoreConflict(f"object {name} in {self.url} is gone") from error
        if found.data == data:
            return found.token
        if found.token != expected:
            raise StoreConflict(f"object {name} in {self.url} is not the version that was read")
        return await self._put_and_check(name, data)

    async def put_unconditional(self, name: str, data: bytes) -> Token:
        """Write, and say that it is there."""
        return await self._store.put_unconditional(name, data)

    async def get(self, name: str) -> Object:
        """Return the object."""
        return await self._store.get(name)

    async def get_data(self, name: str) -> bytes:
        """Return the object's bytes."""
        return await self._store.get_data(name)

    async def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return a part of the object."""
        return await self._store.get_range(name, start, length)

    def list(self, prefix: str, start_after: str | None = None) -> AsyncIterator[Entry]:
        """Iterate over the objects."""
        return self._store.list(prefix, start_after)

    async def delete(self, name: str) -> None:
        """Delete the object."""
        await self._store.delete(name)

    async def _put_and_check(self, name: str, data: bytes) -> Token:
        await self._store.put_unconditional(name, data)
        found = await self._store.get(name)
        if found.data != data:
            raise StoreConflict(
                f"object {name} in {self.url} was overwritten at once: stop the other writer, "
                "because BASE_ARCHIVE_UNCONDITIONAL=1 is for one"
            )
        return found.token
