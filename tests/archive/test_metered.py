"""What is asked of a store is counted, and nothing else changes."""

from pathlib import Path

import pytest

from basenet.archive.directory import DirectoryStore
from basenet.archive.metered import MeteredStore, StoreUsage
from basenet.archive.port import StoreConflict, StoreNotFound
from basenet.archive.remote import PAGE_ENTRIES
from basenet.archive.store import open_store
from basenet.archive.unconditional import UnconditionalStore


async def test_calls_and_bytes_are_counted(tmp_path: Path) -> None:
    """Whether they succeed or not: the store charges for both."""
    usage = StoreUsage()
    store = MeteredStore(DirectoryStore(tmp_path), usage)
    token = await store.put_if_absent("a/one", b"12345")
    with pytest.raises(StoreConflict):
        await store.put_if_absent("a/one", b"1")
    await store.replace_if("a/one", b"123456", token)
    await store.put_unconditional("a/two", b"1234567")
    assert dict(usage.calls) == {"put": 4}
    assert (usage.written_bytes, usage.read_bytes) == (19, 0)
    assert (await store.get("a/one")).data == b"123456"
    assert await store.get_data("a/two") == b"1234567"
    assert await store.get_range("a/one", 1, 2) == b"23"
    assert await store.get_token("a/one")
    with pytest.raises(StoreNotFound):
        await store.get("a/three")
    assert [entry.name async for entry in store.list("a/")] == ["a/one", "a/two"]
    await store.delete("a/one")
    assert dict(usage.calls) == {"put": 4, "get": 5, "list": 1, "delete": 1}
    assert (usage.written_bytes, usage.read_bytes) == (19, 15)
    await store.aclose()


async def test_a_listing_counts_its_pages(tmp_path: Path) -> None:
    """Stores give a thousand names at a time; one left half read has cost what it has read."""
    usage = StoreUsage()
    store = MeteredStore(DirectoryStore(tmp_path), usage)
    for number in range(PAGE_ENTRIES + 1):
        (tmp_path / f"{number:05}").write_bytes(b"")
    async for _ in store.list(""):
        break
    assert usage.calls["list"] == 1
    assert len([entry async for entry in store.list("")]) == PAGE_ENTRIES + 1
    assert usage.calls["list"] == 3


async def test_every_store_that_is_opened_by_its_url_can_be_counted(tmp_path: Path) -> None:
    """Below encryption and the checks of a store without conditions, which read more."""
    usage = StoreUsage()
    environment = {"BASE_ARCHIVE_UNCONDITIONAL": "1"}
    store = open_store(f"file://{tmp_path}", environment=environment, usage=usage)
    assert store.url == f"file://{tmp_path}"
    await store.put_if_absent("one", b"12345")
    assert usage.calls["put"] == 1
    assert usage.calls["get"] == 2
    wrapped = UnconditionalStore(DirectoryStore(tmp_path))
    assert not MeteredStore(wrapped, usage).is_conditional
    assert MeteredStore(wrapped, usage).endpoint == wrapped.endpoint
    await store.aclose()
