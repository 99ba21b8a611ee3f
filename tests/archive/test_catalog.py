"""What a listing says of a shard, by names alone."""

from collections.abc import AsyncIterator

import pytest

from basenet.archive.catalog import find_shard, list_services, list_shards, read_catalog
from basenet.archive.names import ShardNames
from basenet.archive.port import Entry
from basenet.errors import NotFoundError, UsageError
from basenet.units import Seq, ShardId
from tests.archive.builder import Archive, History
from tests.fakes.memory_store import MemoryStore


def history_with_everything() -> tuple[History, Archive]:
    history = History()
    for _ in range(9):
        history.random_commit(grow=2)
    archive = Archive()
    archive.put_logs(history, 2)
    archive.put_set(history, 4)
    archive.put_set(history, 6, inline=True)
    archive.put_tip(history)
    archive.store.put("default/app/LEASE", b"{}")
    return history, archive


async def test_objects_are_grouped_by_lineage_and_kind() -> None:
    """Logs and sets ascend, an index belongs to its manifest, LEASE and TIP are known."""
    history, archive = history_with_everything()
    child = History(number=2, parent=history)
    archive.put_log(child, child.start)
    catalog = await read_catalog(archive.store, archive.names(history))
    assert list(catalog.lineages) == [history.lineage, child.lineage]
    items = catalog.items(history.lineage)
    assert [item.log.start for item in items.logs] == [1, 3, 5, 7, 9]
    assert [(item.set.to_seq, item.index is None) for item in items.sets] == [(4, False), (6, True)]
    assert len(items.parts) == 1
    assert catalog.tip is not None
    assert catalog.lease is not None
    assert catalog.unknown == ()
    assert len(catalog.entries) == len(archive.store.objects)


async def test_an_index_without_a_manifest_is_a_stray() -> None:
    """Without a manifest a page set does not exist."""
    history, archive = history_with_everything()
    manifest = next(n for n in archive.store.objects if n.endswith("00004.lbn") and "/set/" in n)
    archive.delete(manifest)
    catalog = await read_catalog(archive.store, archive.names(history))
    items = catalog.items(history.lineage)
    assert [item.set.to_seq for item in items.sets] == [6]
    assert [entry.name for entry in items.stray_indexes] == [manifest[:-3] + "idx"]


@pytest.mark.parametrize(
    "name",
    [
        "what",
        f"{'0' * 32}/log/{0:016d}/{9:020d}-{3:020d}-{1:020d}.lbn",  # ends before it starts
        f"{'0' * 32}/log/{1:016d}/{3:020d}-{9:020d}-{1:020d}.lbn",  # in the wrong folder
        f"{'0' * 31}g/log/{0:016d}/{3:020d}-{9:020d}-{1:020d}.lbn",
        f"{'0' * 32}/part/{'0' * 63}.pg",
    ],
)
async def test_what_is_no_object_is_kept_apart(name: str) -> None:
    """By name and size, to be reported; it is never read."""
    names = ShardNames(service="default", shard=ShardId("app"))
    store = MemoryStore()
    store.put(names.prefix + name, b"123")
    catalog = await read_catalog(store, names)
    assert catalog.unknown == (Entry(name=names.prefix + name, size=3),)
    assert catalog.lineages == {}


async def test_the_log_of_the_followed_system_is_recognised() -> None:
    """It has no lineage, no chain and no proof, so it stands apart."""
    names = ShardNames(service="default", shard=ShardId("app"))
    store = MemoryStore()
    store.put(f"{names.prefix}{0:016d}/{1:020d}-{5:020d}.lbn", b"123")
    catalog = await read_catalog(store, names)
    assert len(catalog.old_logs) == 1
    assert catalog.unknown == ()


class Counting(MemoryStore):
    """Lists three entries a page."""

    def list(self, prefix: str, start_after: str | None = None) -> AsyncIterator[Entry]:  # type: ignore[override]
        self.calls.append(("page", prefix))
        return super().list(prefix, start_after)


async def test_shards_are_found_by_jumping_over_their_objects() -> None:
    """One listing a shard, whatever lies between the names of two shards."""
    store = Counting()
    for shard in ("a", "a-b", "a.b", "a0", "b", "Upper", "b_c"):
        for number in range(20):
            store.put(f"default/{shard}/{number:03d}", b"")
    store.put("default/readme", b"")
    store.put("second/z/TIP", b"")
    store.calls.clear()
    assert await list_shards(store, "default") == ["a", "a-b", "a.b", "a0", "b", "b_c"]
    assert store.count("page") == 8
    assert await list_shards(store, "second") == ["z"]
    assert await list_services(store) == ["default", "second"]
    assert await list_services(MemoryStore()) == []


async def test_the_only_shard_needs_no_name() -> None:
    """Several do, and the answer lists them."""
    store = MemoryStore()
    store.put("default/a/TIP", b"")
    assert await find_shard(store, "default", None) == "a"
    assert await find_shard(store, "default", ShardId("a")) == "a"
    store.put("default/b/TIP", b"")
    with pytest.raises(UsageError, match="a, b with --shard"):
        await find_shard(store, "default", None)
    with pytest.raises(NotFoundError, match="it has a, b"):
        await find_shard(store, "default", ShardId("c"))
    with pytest.raises(NotFoundError, match="the services in it are default"):
        await find_shard(store, "other", None)
    with pytest.raises(NotFoundError, match="nothing in it"):
        await find_shard(MemoryStore(), "default", None)


async def test_a_lineage_without_objects_is_empty() -> None:
    """Asking for it is no error."""
    history, archive = history_with_everything()
    catalog = await read_catalog(archive.store, archive.names(history))
    assert catalog.items(History(number=9).lineage).logs == ()
    assert catalog.shard == "app"
    assert catalog.items(history.lineage).logs[0].log.end == Seq(2)
