"""One suite for the archive's port, run against every store: a directory, S3 and GCS.

S3 is moto, and in the system tests Ceph, which is a real one. And against the store that encrypts:
whoever uses the port must not notice it. docs/stores.md has the table of what is tried here.
"""

import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from basenet.archive.keyring import Keyring
from basenet.archive.probe import probe
from basenet.archive.store import (
    Limits,
    Store,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
    open_store,
)
from basenet.testing.faultproxy import (
    ALL,
    EVER,
    READS,
    Fault,
    FaultKind,
    FaultProxy,
    running_fault_proxy,
)
from basenet.testing.objectstores import SCHEMES, Kind, environment_for
from basenet.units import MIB
from tests.conftest import BUCKET
from tests.fakes.keyrings import make_keyring

CEPH = pytest.param("rgw", marks=pytest.mark.system)
SMALL_PAGES = Limits(page_entries=10)
IMPATIENT = Limits(connect_timeout_seconds=0.2, read_timeout_seconds=0.2)
WRITER_COUNT = 12
_prefix_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a test keeps its objects: fresh and empty."""

    url: str
    kind: Kind | None  # None: a directory
    server_url: str
    keyring: Keyring | None = None  # None: nothing is encrypted

    def open(self, *, through: FaultProxy | None = None, limits: Limits = SMALL_PAGES) -> Store:
        """Open the place, on the way to a server through a proxy."""
        environment = {}
        if self.kind is not None:
            server_url = self.server_url if through is None else through.url
            environment = environment_for(self.kind, server_url)
        return open_store(self.url, environment=environment, limits=limits, keyring=self.keyring)

    @asynccontextmanager
    async def opened_through_proxy(
        self, limits: Limits = SMALL_PAGES
    ) -> AsyncIterator[tuple[Store, FaultProxy]]:
        """Open the place behind a proxy, which only the test makes trouble with."""
        async with running_fault_proxy(self.server_url) as proxy:
            store = self.open(through=proxy, limits=limits)
            try:
                yield store, proxy
            finally:
                await store.aclose()


def make_place(request: pytest.FixtureRequest) -> Place:
    kind, _, encrypted = request.param.partition("-")
    keyring = make_keyring() if encrypted else None
    if kind == "file":
        directory = request.getfixturevalue("tmp_path") / "archive"
        return Place(url=f"file://{directory}", kind=None, server_url="", keyring=keyring)
    server_url = request.getfixturevalue(f"{kind}_server")
    url = f"{SCHEMES[kind]}://{BUCKET}/some/prefix-{next(_prefix_numbers)}"
    return Place(url=url, kind=kind, server_url=server_url, keyring=keyring)


@pytest.fixture(params=["file", "s3", CEPH, "gs", "file-encrypted", "s3-encrypted"])
def place(request: pytest.FixtureRequest) -> Place:
    return make_place(request)


@pytest.fixture(params=["s3", CEPH, "gs", "s3-encrypted"])
def remote(request: pytest.FixtureRequest) -> Place:
    return make_place(request)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    opened = place.open()
    yield opened
    await opened.aclose()


async def names(store: Store, prefix: str = "", start_after: str | None = None) -> list[str]:
    return [entry.name async for entry in store.list(prefix, start_after)]


async def test_an_object_is_read_back_as_it_was_put(store: Store) -> None:
    """Bytes, token and times: what put says and what get says is the same."""
    data = bytes(range(256)) + b"\r\n\r\n--"
    token = await store.put_if_absent("svc/shard/object.lbn", data)
    found = await store.get("svc/shard/object.lbn")
    assert (found.data, found.token) == (data, token)
    assert await store.get_data("svc/shard/object.lbn") == data
    assert found.modified_ns is not None
    if store.url.startswith("file:"):
        assert found.server_now_ns is None, "a directory has no clock but ours"
        return
    assert found.server_now_ns is not None
    assert abs(found.server_now_ns - time.time_ns()) < 60 * 10**9
    assert -(10**9) <= found.server_now_ns - found.modified_ns < 60 * 10**9


async def test_an_empty_object_is_an_object(store: Store) -> None:
    """No bytes are not no object."""
    token = await store.put_if_absent("empty", b"")
    assert (await store.get("empty")).token == token
    assert await store.get_range("empty", 0, 10) == b""
    assert [(e.name, e.size) async for e in store.list("")] == [("empty", 0)]


async def test_an_object_that_exists_is_not_overwritten(store: Store) -> None:
    """put_if_absent raises a conflict, and the first writer's bytes stay."""
    await store.put_if_absent("name", b"first")
    with pytest.raises(StoreConflict, match="name"):
        await store.put_if_absent("name", b"second")
    with pytest.raises(StoreConflict, match="name"):
        await store.replace_if("name", b"second", None)
    assert await store.get_data("name") == b"first"


async def test_putting_the_same_bytes_again_succeeds(store: Store) -> None:
    """The bytes decide: a writer who forgot that he wrote is told the same token."""
    first = await store.put_if_absent("name", b"same")
    assert await store.put_if_absent("name", b"same") == first


async def test_only_the_version_that_was_read_is_replaced(store: Store) -> None:
    """A stale token conflicts and changes nothing; the current one replaces and is then stale."""
    first = await store.put_if_absent("LEASE", b"first")
    second = await store.replace_if("LEASE", b"second", first)
    assert second != first
    with pytest.raises(StoreConflict, match="LEASE"):
        await store.replace_if("LEASE", b"third", first)
    found = await store.get("LEASE")
    assert (found.data, found.token) == (b"second", second)


async def test_an_object_that_is_gone_cannot_be_replaced(store: Store) -> None:
    """replace_if with a token never creates."""
    token = await store.put_if_absent("LEASE", b"first")
    await store.delete("LEASE")
    with pytest.raises(StoreConflict):
        await store.replace_if("LEASE", b"second", token)
    assert await names(store) == []


async def test_without_an_expected_token_replace_creates(store: Store) -> None:
    """None says that the object must not exist."""
    token = await store.replace_if("LEASE", b"first", None)
    assert (await store.get("LEASE")).token == token


async def test_an_unconditional_put_overwrites(store: Store) -> None:
    """It creates and it replaces, and makes older tokens stale."""
    first = await store.put_unconditional("a/name", b"first")
    second = await store.put_unconditional("a/name", b"second")
    assert (await store.get("a/name")).token == second
    with pytest.raises(StoreConflict):
        await store.replace_if("a/name", b"third", first)


async def race(place: Place, expected: Token | None) -> tuple[list[bytes], bytes]:
    """Let many writers write one object at once; return who succeeded, and what it then holds."""
    stores = [place.open(limits=Limits()) for _ in range(3)]
    start = trio.Event()
    won: list[bytes] = []

    async def write(number: int) -> None:
        data = f"writer {number}".encode()
        await start.wait()
        try:
            await stores[number % len(stores)].replace_if("LEASE", data, expected)
        except StoreConflict:
            return
        won.append(data)

    async with trio.open_nursery() as nursery:
        for number in range(WRITER_COUNT):
            nursery.start_soon(write, number)
        await wait_all_tasks_blocked()
        start.set()
    held = await stores[0].get_data("LEASE")
    for store in stores:
        await store.aclose()
    return won, held


async def test_of_many_creators_exactly_one_wins(place: Place) -> None:
    """Whoever was told so is the one whose bytes are there."""
    won, held = await race(place, None)
    assert won == [held]


async def test_of_many_replacers_exactly_one_wins(place: Place, store: Store) -> None:
    """All have read the same version; one replaces it, the others conflict."""
    token = await store.put_if_absent("LEASE", b"before")
    won, held = await race(place, token)
    assert won == [held]


async def test_a_part_of_an_object_is_read(store: Store) -> None:
    """Ranges may reach beyond the end, and begin there; a missing object is still missing."""
    await store.put_if_absent("object", b"0123456789")
    assert await store.get_range("object", 0, 4) == b"0123"
    assert await store.get_range("object", 4, 1) == b"4"
    assert await store.get_range("object", 7, 100) == b"789"
    assert await store.get_range("object", 3, 0) == b""
    assert await store.get_range("object", 10, 5) == b""
    assert await store.get_range("object", 1000, 5) == b""
    with pytest.raises(StoreNotFound, match="missing"):
        await store.get_range("missing", 0, 4)


async def test_reading_what_is_not_there_says_so(store: Store) -> None:
    """The error names the object, and is none of a connection or a permission."""
    with pytest.raises(StoreNotFound, match="svc/shard/nothing"):
        await store.get("svc/shard/nothing")
    await store.put_if_absent("svc/shard/object", b"")
    for name in ("svc/shard/nothing", "svc/shard", "svc/shard/object/below"):
        with pytest.raises(StoreNotFound, match=name):
            await store.get(name)


async def test_a_listing_is_in_the_order_of_the_names(store: Store) -> None:
    """In the order of the whole name's characters, not of its directories: "-" before "/"."""
    wanted = ["a", "b-c/x", "b.d", "b/x", "b/y/1", "b/y/2", "b0", "c"]
    for name in reversed(wanted):
        await store.put_if_absent(name, name.encode())
    assert await names(store) == wanted
    assert [(e.name, e.size) async for e in store.list("b/")] == [
        ("b/x", 3),
        ("b/y/1", 5),
        ("b/y/2", 5),
    ]


async def test_a_prefix_is_text_and_not_a_directory(store: Store) -> None:
    """It may end inside a segment, and needs no object or directory of its name."""
    for name in ("log/0001-x", "log/0002-x", "log/001", "login", "set/1"):
        await store.put_if_absent(name, b"")
    assert await names(store, "log/000") == ["log/0001-x", "log/0002-x"]
    assert await names(store, "log") == ["log/0001-x", "log/0002-x", "log/001", "login"]
    assert await names(store, "lo") == ["log/0001-x", "log/0002-x", "log/001", "login"]
    assert await names(store, "nothing/here") == []
    assert await names(store, "login/") == []


async def test_a_listing_begins_after_a_name(store: Store) -> None:
    """The name itself is left out; it need not exist, and may lie inside a directory."""
    for name in ("a/1", "a/2", "b/1", "b/2", "c"):
        await store.put_if_absent(name, b"")
    assert await names(store, start_after="a/2") == ["b/1", "b/2", "c"]
    assert await names(store, start_after="a/15") == ["a/2", "b/1", "b/2", "c"]
    assert await names(store, start_after="a") == ["a/1", "a/2", "b/1", "b/2", "c"]
    assert await names(store, "b/", start_after="b/1") == ["b/2"]
    assert await names(store, start_after="z") == []


async def test_a_long_listing_comes_in_pages(store: Store) -> None:
    """Nothing is lost or repeated between pages, wherever a page ends."""
    wanted = [f"log/{number:04}" for number in range(30)]
    async with trio.open_nursery() as nursery:
        for name in wanted:
            nursery.start_soon(store.put_if_absent, name, b"x")
    assert await names(store, "log/") == wanted
    assert await names(store, "log/", start_after="log/0009") == wanted[10:]
    assert await names(store, "log/", start_after="log/0014") == wanted[15:]


async def test_a_listing_may_be_left_half_read(store: Store) -> None:
    """Nothing stays open behind it."""
    for number in range(12):
        await store.put_if_absent(str(number), b"")
    async for entry in store.list(""):
        assert entry.name == "0"
        break


async def test_deleting_twice_is_deleting(store: Store) -> None:
    """An object that does not exist, or never did, is deleted already."""
    await store.put_if_absent("a/name", b"data")
    await store.delete("a/name")
    await store.delete("a/name")
    await store.delete("never/was")
    assert await names(store) == []
    await store.put_if_absent("a/name", b"other data")


async def test_a_big_object_goes_in_and_comes_out(store: Store) -> None:
    """More than GCS takes in one request, and more than any socket's buffer."""
    data = random.Random(1).randbytes(8 * MIB + 1)
    await store.put_if_absent("part", data)
    assert await store.get_data("part") == data
    assert await store.get_range("part", 8 * MIB - 10, 11) == data[-11:]


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b"])
async def test_no_name_leads_out_of_the_archive(store: Store, name: str) -> None:
    """Such names are refused before anything is asked of the store."""
    with pytest.raises(StoreRefused, match="not usable"):
        await store.put_if_absent(name, b"")
    with pytest.raises(StoreRefused, match="not usable"):
        await store.get(name)
    with pytest.raises(StoreRefused, match="not usable"):
        await store.delete(name)


async def test_every_store_passes_the_probe(store: Store, tmp_path: Path) -> None:
    """What is asked of a store before its first use, by the program itself."""
    await probe(store, tmp_path)
    assert await names(store) == []


async def test_a_bucket_that_does_not_exist_is_one_sentence(remote: Place) -> None:
    """Whatever is asked of it first; it is no missing object and no outage."""
    store = replace(remote, url=f"{remote.url.partition(':')[0]}://no-such-bucket/prefix").open()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.put_if_absent("name", b"data"),
        lambda: store.replace_if("name", b"data", Token("1")),
        lambda: store.get("name"),
        lambda: store.delete("name"),
        lambda: names(store),
    ]
    for call in calls:
        with pytest.raises(StoreRefused, match=r"no-such-bucket at .* does not exist"):
            await call()
    await store.aclose()


async def test_the_url_and_the_endpoint_are_told(place: Place, store: Store) -> None:
    """As the operator wrote it; the endpoint is the same for two prefixes of a bucket."""
    assert store.url == place.url
    assert store.is_conditional
    other = replace(place, url=place.url + "-other").open()
    assert (other.endpoint == store.endpoint) is (place.kind is not None)
    await other.aclose()


async def test_a_lost_answer_to_a_creation_is_found_out(remote: Place) -> None:
    """The object was written, the answer got lost: success, with the token of what is there."""
    async with remote.opened_through_proxy() as (store, proxy):
        proxy.add(Fault(FaultKind.LOSE_ANSWER))
        token = await store.put_if_absent("log/1", b"my bytes")
        assert proxy.request_counts["PUT"] + proxy.request_counts["POST"] == 1
        assert (await store.get("log/1")).token == token


async def test_a_lost_answer_to_a_replacement_is_found_out(remote: Place) -> None:
    """The same for the lease, which could else be lost to its own holder."""
    async with remote.opened_through_proxy() as (store, proxy):
        first = await store.put_if_absent("LEASE", b"first")
        second = await store.replace_if("LEASE", b"second", first)  # Ceph's kind of ETag is known
        proxy.add(Fault(FaultKind.LOSE_ANSWER))
        third = await store.replace_if("LEASE", b"third", second)
        assert (await store.get("LEASE")).token == third
        assert await store.replace_if("LEASE", b"fourth", third) != third


async def test_a_lost_conflict_is_still_a_conflict(remote: Place) -> None:
    """The answer that gets lost says 412; reading back shows the other's bytes."""
    async with remote.opened_through_proxy() as (store, proxy):
        first = await store.put_if_absent("LEASE", b"first")
        await store.replace_if("LEASE", b"second", first)
        for expected in (None, first):
            proxy.add(Fault(FaultKind.LOSE_ANSWER))
            with pytest.raises(StoreConflict):
                await store.replace_if("LEASE", b"mine", expected)
        assert await store.get_data("LEASE") == b"second"


@pytest.mark.parametrize(
    "kind", [FaultKind.UNAVAILABLE, FaultKind.TOO_MANY, FaultKind.RESET_REQUEST]
)
async def test_a_write_that_did_not_happen_is_unavailable(remote: Place, kind: FaultKind) -> None:
    """Neither success nor a conflict; nothing was written, and the next try succeeds."""
    async with remote.opened_through_proxy() as (store, proxy):
        proxy.add(Fault(kind))
        with pytest.raises(StoreUnavailable):
            await store.put_if_absent("LEASE", b"first")
        assert await names(store) == []
        first = await store.put_if_absent("LEASE", b"first")
        proxy.add(Fault(kind))
        with pytest.raises(StoreUnavailable):
            await store.replace_if("LEASE", b"second", first)
        assert (await store.get("LEASE")).token == first
        await store.replace_if("LEASE", b"second", first)


@pytest.mark.parametrize(
    "kind",
    [
        FaultKind.UNAVAILABLE,
        FaultKind.TOO_MANY,
        FaultKind.TRUNCATE_ANSWER,
        FaultKind.RESET_ANSWER,
    ],
)
async def test_reading_tries_again(remote: Place, kind: FaultKind) -> None:
    """Two bad answers are not noticed; a truncated one is never taken for the object."""
    async with remote.opened_through_proxy() as (store, proxy):
        await store.put_if_absent("log/1", b"0123456789" * 1000)
        proxy.add(Fault(kind, methods=READS, count=2))
        assert await store.get_data("log/1") == b"0123456789" * 1000
        proxy.add(Fault(kind, methods=READS, count=1))
        assert await store.get_range("log/1", 0, 10_000) == b"0123456789" * 1000
        proxy.add(Fault(kind, methods=READS, count=1))
        assert await names(store) == ["log/1"]


async def test_a_stale_answer_costs_no_write_and_gives_none_away(remote: Place) -> None:
    """A cache on the way answers as before: a version that is gone, or that nothing is there."""
    async with remote.opened_through_proxy() as (store, proxy):
        with pytest.raises(StoreNotFound):
            await store.get("LEASE")
        first = await store.put_if_absent("LEASE", b"first")
        proxy.add(Fault(FaultKind.STALE_ANSWER, methods=READS))
        with pytest.raises(StoreConflict):  # that it is there is known from the write
            await store.put_if_absent("LEASE", b"mine")
        assert (await store.get("LEASE")).token == first
        second = await store.replace_if("LEASE", b"second", first)
        proxy.add(Fault(FaultKind.STALE_ANSWER, methods=READS))
        stale = await store.get("LEASE")
        assert (stale.data, stale.token) == (b"first", first)
        with pytest.raises(StoreConflict):
            await store.replace_if("LEASE", b"mine", stale.token)
        assert (await store.get("LEASE")).token == second


async def test_an_endpoint_that_stays_away_is_unavailable(remote: Place) -> None:
    """After a few attempts the caller is told, in one sentence that names the endpoint."""
    async with remote.opened_through_proxy() as (store, proxy):
        proxy.add(Fault(FaultKind.UNAVAILABLE, methods=READS, count=EVER))
        with pytest.raises(StoreUnavailable, match=proxy.url):
            await store.get("name")
        assert proxy.request_counts["GET"] == 3


async def test_an_endpoint_that_never_answers_is_given_up(remote: Place) -> None:
    """The read time-out ends a write; reading back is also swallowed, so it stays undecided."""
    async with remote.opened_through_proxy(IMPATIENT) as (store, proxy):
        proxy.add(Fault(FaultKind.SWALLOW))
        with pytest.raises(StoreUnavailable, match=proxy.url):
            await store.put_if_absent("name", b"data")
        await store.put_if_absent("name", b"data")


async def test_an_endpoint_where_nobody_listens_is_unavailable(remote: Place) -> None:
    """Refused connections are an outage like any other."""
    async with running_fault_proxy(remote.server_url) as proxy:
        pass
    store = remote.open(through=proxy, limits=IMPATIENT)
    with pytest.raises(StoreUnavailable, match=proxy.url):
        await store.put_if_absent("name", b"data")
    await store.aclose()


async def test_cancelling_does_not_wait_for_the_endpoint(remote: Place) -> None:
    """An endpoint swallows a request, with 30 s to go: the cancelled caller is free at once."""
    async with remote.opened_through_proxy(Limits()) as (store, proxy):
        proxy.add(Fault(FaultKind.SWALLOW, methods=ALL, count=EVER))
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.put_if_absent("name", b"data"),
            lambda: store.get("name"),
            lambda: store.delete("name"),
            lambda: names(store),
        ]
        for count, call in enumerate(calls, start=1):
            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call)
                    await proxy.wait_for_requests(count)
                    nursery.cancel_scope.cancel()


async def test_latency_is_added_to_every_request(remote: Place) -> None:
    """What the benchmarks rely on."""
    async with remote.opened_through_proxy() as (store, proxy):
        await store.put_if_absent("name", b"data")
        proxy.latency_seconds = 0.05
        begin = trio.current_time()
        await store.get("name")
        assert trio.current_time() - begin >= 0.05
