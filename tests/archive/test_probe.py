"""A store that does not keep conditions is found out before the first write (Q18)."""

import json
from pathlib import Path

import pytest

from basenet.archive.directory import DirectoryStore
from basenet.archive.port import (
    Object,
    StoreConflict,
    StoreRefused,
    StoreUnavailable,
    Token,
)
from basenet.archive.probe import CACHE_NAME, CACHE_SECONDS, probe
from basenet.archive.unconditional import UnconditionalStore

NOW_SECONDS = 1_795_000_000.0


class CountingStore(DirectoryStore):
    """A good store that counts how often it was written to."""

    put_count = 0

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        self.put_count += 1
        return await super().put_if_absent(name, data)


class OverwritesAnything(CountingStore):
    """Takes If-None-Match and overwrites all the same, as several S3-compatible servers do."""

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        self.put_count += 1
        return await self.put_unconditional(name, data)


class ReplacesAnything(CountingStore):
    """Takes If-Match and overwrites all the same."""

    async def replace_if(
        self,
        name: str,
        data: bytes,
        expected: Token | None,  # noqa: ARG002  (the port's)
    ) -> Token:
        return await self.put_unconditional(name, data)


class ReplacesNothing(CountingStore):
    """Knows no If-Match and always says that it does not hold."""

    async def replace_if(
        self,
        name: str,
        data: bytes,  # noqa: ARG002  (the port's)
        expected: Token | None,  # noqa: ARG002  (the port's)
    ) -> Token:
        raise StoreConflict(name)


class CreatesNothing(CountingStore):
    """Always says that the object exists."""

    async def put_if_absent(
        self,
        name: str,
        data: bytes,  # noqa: ARG002  (the port's)
    ) -> Token:
        raise StoreConflict(name)


class ReadsOld(CountingStore):
    """Gives back what was there before, as a cache in front of a store can."""

    async def get(self, name: str) -> Object:
        found = await super().get(name)
        return Object(data=b"first", token=found.token, modified_ns=None, server_now_ns=None)

    async def get_data(self, name: str) -> bytes:
        return (await self.get(name)).data


class Down(CountingStore):
    """Does not answer at the second write."""

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        if data != b"first":
            raise StoreUnavailable("down")
        return await super().put_if_absent(name, data)


@pytest.fixture
def data_directory(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


async def names(store: DirectoryStore) -> list[str]:
    return [entry.name async for entry in store.list("")]


async def test_a_store_that_keeps_conditions_passes(tmp_path: Path, data_directory: Path) -> None:
    """And nothing stays in it."""
    store = CountingStore(tmp_path / "archive")
    await probe(store, data_directory)
    assert store.put_count == 2
    assert await names(store) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (OverwritesAnything, "overwrites an object that exists"),
        (ReplacesAnything, "no longer the expected version"),
        (ReplacesNothing, "finds a conflict"),
        (CreatesNothing, "finds a conflict"),
        (ReadsOld, "does not give back"),
    ],
)
async def test_a_store_that_ignores_conditions_is_refused(
    tmp_path: Path, data_directory: Path, kind: type[CountingStore], words: str
) -> None:
    """Each time it is asked, with the way out; and nothing stays in it."""
    store = kind(tmp_path / "archive")
    for _ in range(2):
        with pytest.raises(StoreRefused, match=words) as caught:
            await probe(store, data_directory)
        assert "BASE_ARCHIVE_UNCONDITIONAL=1" in str(caught.value)
    assert await names(store) == []


async def test_who_passed_is_not_asked_again_for_30_days(
    tmp_path: Path, data_directory: Path
) -> None:
    """Not in this process and not in the next; then once more. Another store is asked."""
    store = CountingStore(tmp_path / "archive")
    await probe(store, data_directory, now_seconds=NOW_SECONDS)
    again = CountingStore(tmp_path / "archive")
    await probe(again, data_directory, now_seconds=NOW_SECONDS + CACHE_SECONDS - 1)
    assert again.put_count == 0
    await probe(again, data_directory, now_seconds=NOW_SECONDS + CACHE_SECONDS)
    assert again.put_count == 2
    other = CountingStore(tmp_path / "other")
    await probe(other, data_directory, now_seconds=NOW_SECONDS)
    assert other.put_count == 2


async def test_a_clock_that_was_set_back_asks_again(tmp_path: Path, data_directory: Path) -> None:
    """Else a wrong date could keep the question from being asked for years."""
    store = CountingStore(tmp_path / "archive")
    await probe(store, data_directory, now_seconds=NOW_SECONDS)
    await probe(store, data_directory, now_seconds=NOW_SECONDS - 1)
    assert store.put_count == 4


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"7", b'{"file:///": "x"}', b'{"file:///": null}']
)
async def test_a_damaged_memory_is_forgotten(
    tmp_path: Path, data_directory: Path, content: bytes
) -> None:
    """It is economy only: asked again, and written anew."""
    (data_directory / CACHE_NAME).write_bytes(content)
    store = CountingStore(tmp_path / "archive")
    await probe(store, data_directory, now_seconds=NOW_SECONDS)
    assert store.put_count == 2
    written = json.loads((data_directory / CACHE_NAME).read_bytes())
    assert written == {store.endpoint: NOW_SECONDS}


async def test_a_memory_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    """The next start asks again."""
    await probe(CountingStore(tmp_path / "archive"), tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


async def test_an_outage_is_no_verdict(tmp_path: Path, data_directory: Path) -> None:
    """Neither passed nor refused, and the probe's object is cleaned up when possible."""
    store = Down(tmp_path / "archive")
    with pytest.raises(StoreUnavailable):
        await probe(store, data_directory)
    assert not (data_directory / CACHE_NAME).exists()
    assert await names(store) == []


async def test_an_operator_who_gave_up_conditions_is_not_asked(
    tmp_path: Path, data_directory: Path
) -> None:
    """BASE_ARCHIVE_UNCONDITIONAL=1 is the answer already."""
    store = OverwritesAnything(tmp_path / "archive")
    await probe(UnconditionalStore(store), data_directory)
    assert store.put_count == 0
