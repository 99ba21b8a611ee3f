"""Encryption at rest, between the archive's code and a store."""

from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.archive.encrypted import EncryptedStore
from basenet.archive.keyring import Keyring, make_writing_keyring
from basenet.archive.place import Place
from basenet.archive.port import Store, StoreConflict, StoreRefused
from basenet.archive.publish import StoredSet, read_newest_set
from basenet.archive.restore import restore
from basenet.archive.seal import Seal
from basenet.archive.tip import read_tip
from basenet.archive.verify import VerifyReport, verify
from basenet.errors import CorruptionError, EncryptionCorrupt, UsageError
from basenet.keys import age
from basenet.wire.encryption import BLOCK_BYTES, HEADER_BYTES, is_encrypted, stored_bytes
from tests.archive.builder import Archive, History
from tests.fakes.chain import FIRST_NS, signer
from tests.fakes.keyrings import SIGNER, make_identity, make_keyring, make_reader
from tests.fakes.memory_store import Fault, MemoryStore, first

PART = f"default/app/{'ab' * 16}/part/{'cd' * 16}.pg"
TRUSTED = frozenset({signer(1).public})


def make_archive() -> tuple[Archive, History]:
    """Return an archive in clear: a log, a page set of parts, a TIP."""
    history = History()
    history.commit({pgno: history.page() for pgno in range(1, 40)})
    for _ in range(6):
        history.random_commit(grow=3)
    archive = Archive()
    archive.put_logs(history)
    archive.put_set(history, 4)
    archive.put_tip(history)
    archive.store.put("default/app/LEASE", b"a lease")
    return archive, history


async def encrypt(archive: Archive, keyring: Keyring) -> MemoryStore:
    """Return a store with the same objects, encrypted."""
    inner = MemoryStore()
    store = EncryptedStore(inner, keyring)
    for name in archive.store.names():
        await store.put_if_absent(name, archive.store.objects[name].data)
    return inner


def list_folder(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def check(store: Store) -> VerifyReport:
    return await verify(store, trusted=TRUSTED, now_ns=FIRST_NS)


async def restored(store: Store, history: History, folder: Path) -> bytes:
    out = folder / "out.db"
    out.unlink(missing_ok=True)
    names = Archive().names(history)
    await restore(store, names, Place(out), trusted=TRUSTED)
    return out.read_bytes()


async def test_an_encrypted_archive_verifies_and_restores(tmp_path: Path) -> None:
    """By every recipient; only the lease is in clear, and no page of it shows."""
    archive, history = make_archive()
    inner = await encrypt(archive, make_keyring("one", "two"))
    for name, stored in inner.objects.items():
        assert is_encrypted(stored.data) == (not name.endswith("/LEASE"))
    for identity in ("one", "two"):
        store = EncryptedStore(inner, make_reader(identity))
        assert (await check(store)).problems == []
        assert await restored(store, history, tmp_path) == history.contents()


async def test_a_damaged_object_is_a_problem_of_that_object(tmp_path: Path) -> None:
    """Each object, at several places: verify names it and goes on, a restore refuses it."""
    archive, history = make_archive()
    whole = await encrypt(archive, make_keyring())
    for name in whole.names("/log/") + whole.names("/set/") + whole.names("TIP"):
        for position in (0, 5, 30, 80, 110, HEADER_BYTES - 1, HEADER_BYTES, -1):
            inner = MemoryStore()
            for other, stored in whole.objects.items():
                data = bytearray(stored.data)
                if other == name:
                    data[position] ^= 4
                inner.put(other, bytes(data))
            store = EncryptedStore(inner, make_reader("one"))
            problems = (await check(store)).problems
            assert name in [problem.object for problem in problems], (name, position)
    assert await restored(EncryptedStore(whole, make_reader("one")), history, tmp_path)


@pytest.mark.parametrize("kind", ["/log/", ".idx", ".pg", "TIP"])
async def test_a_damaged_object_that_is_needed_ends_a_restore(tmp_path: Path, kind: str) -> None:
    """With its name, and without a file."""
    archive, history = make_archive()
    inner = await encrypt(archive, make_keyring())
    name = inner.names(kind)[-1]
    data = inner.objects[name].data
    for damaged in (data[:-1], data[: HEADER_BYTES + 3], data[:100], b"", data + b"x"):
        inner.put(name, damaged)
        with pytest.raises(CorruptionError, match=name):
            await restored(EncryptedStore(inner, make_reader("one")), history, tmp_path)
        assert list_folder(tmp_path) == []


async def test_objects_that_changed_places_are_refused() -> None:
    """Any two of an archive: the bytes are true, the names are not."""
    archive, _ = make_archive()
    whole = await encrypt(archive, make_keyring())
    names = [name for name in whole.names() if not name.endswith("LEASE")]
    for one, other in pairwise(names):
        inner = MemoryStore()
        for name, stored in whole.objects.items():
            inner.put(name, stored.data)
        inner.put(one, whole.objects[other].data)
        store = EncryptedStore(inner, make_reader("one"))
        with pytest.raises(EncryptionCorrupt, match=one):
            await store.get(one)
        with pytest.raises(EncryptionCorrupt, match=one):
            await store.get_range(one, 0, 10)


async def test_without_an_identity_one_sentence_names_the_variable(tmp_path: Path) -> None:
    """Whoever reads it, whatever is read first; nothing is taken for damaged."""
    archive, history = make_archive()
    inner = await encrypt(archive, make_keyring())
    for keyring in (Keyring(), Keyring(recipients=(make_identity().recipient,), signer=SIGNER)):
        store = EncryptedStore(inner, keyring)
        for act in (
            lambda store=store: check(store),
            lambda store=store: restored(store, history, tmp_path),
            lambda store=store: read_tip(store, Archive().names(history), TRUSTED),
        ):
            with pytest.raises(StoreRefused, match=r"is encrypted: .*BASE_ARCHIVE_IDENTITY"):
                await act()


async def test_a_wrong_identity_is_one_sentence(tmp_path: Path) -> None:
    """It says that the objects are not for it, and not that they are damaged."""
    archive, history = make_archive()
    inner = await encrypt(archive, make_keyring("one", "two"))
    store = EncryptedStore(inner, make_reader("stranger"))
    with pytest.raises(StoreRefused, match=r"for the key ids \w{16}, \w{16}, and no") as caught:
        await check(store)
    for name in ("one", "two", "stranger"):
        assert make_identity(name).recipient.key_id.hex() in str(caught.value)
    with pytest.raises(StoreRefused, match="no identity in BASE_ARCHIVE_IDENTITY"):
        await restored(store, history, tmp_path)


async def test_a_rotated_recipient_counts_for_new_objects(tmp_path: Path) -> None:
    """Whoever holds both identities restores; one of them alone is refused."""
    archive, history = make_archive()
    inner = await encrypt(archive, make_keyring("old"))
    for name in inner.names("/log/")[1:] + inner.names("TIP"):
        inner.objects.pop(name)
        store = EncryptedStore(inner, make_keyring("new", "old"))
        await store.put_if_absent(name, archive.store.objects[name].data)
    both = EncryptedStore(inner, make_reader("new", "old"))
    assert (await check(both)).problems == []
    assert await restored(both, history, tmp_path) == history.contents()
    with pytest.raises(StoreRefused, match="keep older identities"):
        await restored(EncryptedStore(inner, make_reader("new")), history, tmp_path)


async def test_a_snapshot_that_a_new_recipient_cannot_read_is_not_built_upon() -> None:
    """Its parts would be shared, and the new snapshot would not be his to read."""
    archive, history = make_archive()
    inner = await encrypt(archive, make_keyring("old", "older"))
    seal = Seal(names=Archive().names(history), lineage=history.lineage, signer=signer(1))

    async def newest(keyring: Keyring) -> StoredSet | None:
        return await read_newest_set(EncryptedStore(inner, keyring), seal, TRUSTED)

    found = await newest(make_keyring("old", "older"))
    assert found is not None
    assert found.facts.pages.parts
    assert all(map(found.has_part, found.facts.pages.parts))  # by the sizes that are listed
    assert await newest(make_keyring("older")) is not None
    assert await newest(make_keyring("new", "old", identity="old")) is None


async def test_clear_objects_are_never_put_beside_encrypted_ones() -> None:
    """Nor the other way round: the first object of the lineage decides, and nothing is written."""
    archive, _ = make_archive()
    name = archive.store.names("/log/")[-1]
    data = archive.store.objects[name].data
    encrypted = await encrypt(archive, make_keyring())
    for inner, keyring, was in (
        (archive.store, make_keyring(), "in clear"),
        (encrypted, make_reader("one"), "encrypted"),
    ):
        inner.objects.pop(name)
        lineage = name.partition("log/")[0]
        with pytest.raises(StoreRefused, match=f"is written {was}"):
            await EncryptedStore(inner, keyring).check_writable(lineage)
        with pytest.raises(StoreRefused, match=f"is written {was}, .*BASE_ARCHIVE_RECIPIENTS"):
            await EncryptedStore(inner, keyring).put_if_absent(name, data)
        assert name not in inner.objects
        child = name.replace(name.split("/")[2], "ee" * 16)
        await EncryptedStore(inner, keyring).put_if_absent(child, data)


async def test_a_lineage_that_is_mixed_is_refused_in_reading(tmp_path: Path) -> None:
    """A clear object among encrypted ones and an encrypted one among clear ones, by name."""
    archive, history = make_archive()
    encrypted = await encrypt(archive, make_keyring())
    name = archive.store.names("/log/")[1]
    clear, sealed = archive.store.objects[name].data, encrypted.objects[name].data
    for inner, alien in ((encrypted, clear), (archive.store, sealed)):
        inner.put(name, alien)
        store = EncryptedStore(inner, make_reader("one"))
        assert name in [problem.object for problem in (await check(store)).problems]
        with pytest.raises(EncryptionCorrupt, match=f"{name} .*never mixed"):
            await restored(store, history, tmp_path)


async def test_a_clear_archive_is_read_by_who_holds_an_identity(tmp_path: Path) -> None:
    """A parent lineage from before the encryption can still be restored."""
    archive, history = make_archive()
    sizes = {name: len(stored.data) for name, stored in archive.store.objects.items()}
    assert all(sizes[name] > HEADER_BYTES for name in archive.store.names(".pg"))
    store = EncryptedStore(archive.store, make_reader("one"))
    assert {entry.name: entry.size async for entry in store.list("")} == sizes
    assert (await check(store)).problems == []
    assert await restored(store, history, tmp_path) == history.contents()


async def test_what_says_nothing_of_its_lineage_is_passed_over() -> None:
    """The first object is damaged, or gone when it is looked at: the next one tells."""
    archive, _ = make_archive()
    name, *_ = archive.store.names("/log/")
    part, *_ = archive.store.names(".pg")
    archive.store.put(name, b"neither")
    store = EncryptedStore(archive.store, make_reader("one"))
    sizes = {entry.name: entry.size async for entry in store.list("")}
    assert sizes[part] == len(archive.store.objects[part].data)


async def test_without_keys_nothing_is_changed_or_asked() -> None:
    """The same bytes and the same requests, one for one."""
    archive, _ = make_archive()
    inner = MemoryStore()
    store = EncryptedStore(inner, Keyring())
    name = archive.store.names("/log/")[0]
    await store.put_if_absent(name, archive.store.objects[name].data)
    assert await store.get_range(name, 2, 3) == archive.store.objects[name].data[2:5]
    assert [entry.size async for entry in store.list("")] == [len(inner.objects[name].data)]
    methods = ["put_if_absent", "get_range", "list"]
    assert [method for method, _ in inner.calls] == methods
    assert inner.objects[name].data == archive.store.objects[name].data


async def test_a_write_whose_answer_was_lost_is_found_equal() -> None:
    """The same plaintext encrypted again has other bytes: what is there is read and compared."""
    inner = MemoryStore()
    store = EncryptedStore(inner, make_keyring())
    inner.fate = first(1, Fault.LOSE_ANSWER, method="put")
    with pytest.raises(Exception, match="no answer"):
        await store.put_if_absent("a/b", b"data")
    token = await store.put_if_absent("a/b", b"data")
    assert token == (await store.get("a/b")).token == await store.get_token("a/b")
    with pytest.raises(StoreConflict):
        await store.put_if_absent("a/b", b"other")


async def test_a_damaged_tip_has_a_token_all_the_same() -> None:
    """So that it can be replaced."""
    inner = MemoryStore()
    store = EncryptedStore(inner, make_keyring())
    await store.put_if_absent("s/app/TIP", b"a tip")
    token = inner.put("s/app/TIP", inner.objects["s/app/TIP"].data[:-1])
    with pytest.raises(EncryptionCorrupt):
        await store.get("s/app/TIP")
    await store.replace_if("s/app/TIP", b"another", await store.get_token("s/app/TIP"))
    assert await store.get_token("s/app/TIP") != token
    assert await store.get_data("s/app/TIP") == b"another"


@given(
    st.integers(0, 3 * BLOCK_BYTES + 100),
    st.lists(
        st.tuples(st.integers(0, 4 * BLOCK_BYTES), st.integers(0, 4 * BLOCK_BYTES)), min_size=1
    ),
)
@settings(deadline=None, max_examples=60)
def test_any_range_reads_what_lies_there(size: int, ranges: list[tuple[int, int]]) -> None:
    """Any start and length, over the ends of blocks and past the end, with and without a header."""
    plain = bytes(number % 253 for number in range(size))

    async def read() -> None:
        inner = MemoryStore()
        store = EncryptedStore(inner, make_keyring())
        await store.put_if_absent(PART, plain)
        for start, length in ranges:
            assert await store.get_range(PART, start, length) == plain[start : start + length]
        assert inner.count("get_range") <= 1 + len(ranges)

    trio.run(read)


async def test_a_range_costs_the_blocks_that_it_touches() -> None:
    """The header once, and then 16 KiB blocks; never the whole part."""
    inner = MemoryStore()
    store = EncryptedStore(inner, make_keyring())
    await store.put_if_absent(PART, bytes(100 * BLOCK_BYTES))
    lengths: list[int] = []
    get_range = inner.get_range

    async def counted(name: str, start: int, length: int) -> bytes:
        lengths.append(length)
        return await get_range(name, start, length)

    inner.get_range = counted  # type: ignore[method-assign]
    await store.get_range(PART, 50 * BLOCK_BYTES + 100, 1000)
    await store.get_range(PART, 51 * BLOCK_BYTES - 1, 2)
    assert lengths == [HEADER_BYTES, BLOCK_BYTES + 16, 2 * (BLOCK_BYTES + 16)]


async def test_a_range_of_a_damaged_part_is_refused() -> None:
    """Flipped where it is read, cut off behind the header, and replaced while it is read."""
    inner = MemoryStore()
    store = EncryptedStore(inner, make_keyring())
    await store.put_if_absent(PART, bytes(3 * BLOCK_BYTES))
    data = inner.objects[PART].data
    assert await store.get_range(PART, 0, 5) == bytes(5)
    damaged = bytearray(data)
    damaged[HEADER_BYTES + BLOCK_BYTES + 16] ^= 1
    inner.put(PART, bytes(damaged))
    assert await store.get_range(PART, 0, 5) == bytes(5)
    with pytest.raises(EncryptionCorrupt, match=f"{PART} .*block 1"):
        await store.get_range(PART, BLOCK_BYTES, 5)
    inner.put(PART, data[: stored_bytes(BLOCK_BYTES)])
    with pytest.raises(EncryptionCorrupt, match=f"{PART} .*cut off"):
        await store.get_range(PART, BLOCK_BYTES, 5)
    await EncryptedStore(MemoryStore(), make_keyring()).put_if_absent(PART, b"x")
    inner.objects.pop(PART)
    await EncryptedStore(inner, make_keyring()).put_if_absent(PART, b"repaired")
    assert await store.get_range(PART, 0, 5) == b"repai"


async def test_the_listing_tells_the_sizes_of_the_plaintext() -> None:
    """As the manifest tells them."""
    inner = MemoryStore()
    store = EncryptedStore(inner, make_keyring())
    sizes = {f"a/{size}": size for size in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1)}
    for name, size in sizes.items():
        await store.put_if_absent(name, bytes(size))
    await store.put_if_absent("a/LEASE", b"lease")
    listed = {entry.name: entry.size async for entry in store.list("")}
    assert listed == sizes | {"a/LEASE": 5}


def test_a_writer_must_be_able_to_read_what_it_writes(tmp_path: Path) -> None:
    """Else its next start would not know its own archive; and an identity alone is a mistake."""
    path = tmp_path / "key"
    recipient = age.generate(path)
    keyring = make_writing_keyring([recipient], str(path), SIGNER)
    assert keyring.recipients == (recipient,)
    assert make_writing_keyring([], None, SIGNER).is_empty
    with pytest.raises(UsageError, match="add the recipient of its identity"):
        make_writing_keyring([make_identity().recipient], str(path), SIGNER)
    with pytest.raises(UsageError, match="would be written in clear"):
        make_writing_keyring([], str(path), SIGNER)


def test_no_repr_shows_a_key() -> None:
    """Of the keyring, an identity, and what is made of them."""
    secret = make_identity().private
    shown = repr(make_keyring())
    assert secret.hex() not in shown
    assert repr(secret) not in shown
    assert age.format_identity(make_identity()) not in shown
