"""Conditions checked from outside, for a store that cannot keep them itself."""

from pathlib import Path

import pytest

from basenet.archive.directory import DirectoryStore
from basenet.archive.port import Store, StoreConflict, Token
from basenet.archive.unconditional import UnconditionalStore


class OverwrittenStore(DirectoryStore):
    """A store in which another writer always comes right after us."""

    async def put_unconditional(self, name: str, data: bytes) -> Token:
        token = await super().put_unconditional(name, data)
        await super().put_unconditional(name, b"the other's")
        return token


class PlainStore(DirectoryStore):
    """A store without conditional writes."""

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        raise AssertionError(f"{name}: {data!r}: no condition is asked of this store")

    async def replace_if(self, name: str, data: bytes, expected: Token | None) -> Token:
        raise AssertionError(f"{name}: {data!r}, {expected}: no condition is asked of this store")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return UnconditionalStore(PlainStore(tmp_path))


async def test_one_writer_gets_the_port_s_meaning(store: Store) -> None:
    """Creation, conflict, replacement, stale token, and the same bytes again."""
    assert not store.is_conditional
    first = await store.put_if_absent("LEASE", b"first")
    assert await store.put_if_absent("LEASE", b"first") == first
    with pytest.raises(StoreConflict):
        await store.put_if_absent("LEASE", b"second")
    second = await store.replace_if("LEASE", b"second", first)
    assert await store.replace_if("LEASE", b"second", first) == second
    for expected in (None, first):
        with pytest.raises(StoreConflict):
            await store.replace_if("LEASE", b"third", expected)
    assert (await store.get("LEASE")).token == second
    await store.delete("LEASE")
    with pytest.raises(StoreConflict):
        await store.replace_if("LEASE", b"third", second)
    await store.replace_if("LEASE", b"fourth", None)
    assert await store.get_range("LEASE", 0, 3) == b"fou"
    assert [entry.name async for entry in store.list("")] == ["LEASE"]
    await store.aclose()


async def test_a_second_writer_is_noticed_when_reading_back(tmp_path: Path) -> None:
    """Not always, but when he writes between our write and our reading."""
    store = UnconditionalStore(OverwrittenStore(tmp_path))
    with pytest.raises(StoreConflict, match="stop the other writer"):
        await store.put_if_absent("LEASE", b"mine")
