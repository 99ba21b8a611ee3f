"""Every page of every moment is the one that a restore would write, or there is an error."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.archive.encrypted import EncryptedStore
from basenet.archive.fetch import Fetcher
from basenet.archive.past import Past, open_past
from basenet.archive.plan import Wish
from basenet.archive.port import StoreNotFound
from basenet.errors import (
    BasenetError,
    ChainBroken,
    CorruptionError,
    NotFoundError,
    PageSetCorrupt,
    UnavailableError,
    UntrustedKey,
)
from basenet.units import LOCK_BYTE_OFFSET, Seq, StateRoot
from basenet.wire.frame import Flag, Kind
from basenet.wire.merkle import StateTree, leaf_hash
from tests.archive.builder import Archive, History
from tests.fakes.chain import signer
from tests.fakes.keyrings import make_keyring, make_reader
from tests.fakes.memory_store import Fault


def grown(commits: int = 12, **options: Any) -> History:
    """Return a history that begins empty, grows and shrinks."""
    history = History(**options)
    history.commit({pgno: history.page() for pgno in range(1, 60)})
    for number in range(commits):
        history.random_commit(grow=-25 if number % 4 == 3 else 9)
    return history


def archived(history: History, *, base: int | None = None, **options: Any) -> Archive:
    archive = Archive()
    archive.put_logs(history)
    if base is not None:
        archive.put_set(history, base, **options)
    archive.put_tip(history)
    return archive


async def look(
    archive: Archive,
    history: History,
    act: Callable[[Past], Any],
    *,
    to_seq: int | None = None,
    fetcher: Fetcher | None = None,
    key: int = 1,
    **options: Any,
) -> Any:
    async with open_past(
        archive.store,
        fetcher or Fetcher(archive.store, retry_seconds=0),
        archive.names(history),
        Wish(to_seq=None if to_seq is None else Seq(to_seq)),
        trusted=frozenset([signer(key).public]),
        folder=Path(tempfile.gettempdir()),
        **options,
    ) as past:
        return await trio.to_thread.run_sync(act, past)


def whole(past: Past) -> bytes:
    return b"".join(past.read_page(pgno) for pgno in range(1, past.db_pages + 1))


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize(
    ("base", "inline"), [(None, False), (3, False), (7, False), (7, True), (9, False)]
)
async def test_every_moment_reads_as_it_was(
    page_size: int, base: int | None, *, inline: bool
) -> None:
    """Whatever the page size, before, at and after the page set, over growth and shrinking."""
    history = grown(page_size=page_size, commits=9)
    archive = archived(history, base=base, **({"inline": inline} if base else {}))
    for seq in range(1, history.tip.head.seq + 1):
        assert await look(archive, history, whole, to_seq=seq) == history.contents(seq)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(-40, 40), st.integers(0, 6)), min_size=1, max_size=12),
    data=st.data(),
)
def test_any_history_reads_as_it_was(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    """Page sets and targets anywhere, log objects cut anywhere, whatever grows or shrinks."""
    history = History(pages={pgno: bytes([pgno]) * 512 for pgno in range(1, 41)})
    for grow, touch in steps:
        history.random_commit(grow=grow, touch=touch)
    last = history.tip.head.seq
    archive = Archive()
    archive.put_logs(history, data.draw(st.integers(1, 5)))
    base = data.draw(st.integers(1, last))
    archive.put_set(history, base)
    archive.put_tip(history)
    seq = data.draw(st.integers(base, last))
    order = data.draw(st.permutations(range(1, len(history.image(seq)) + 1)))

    def read(past: Past) -> dict[int, bytes]:
        return {pgno: past.read_page(pgno) for pgno in order}

    pages = trio.run(lambda: look(archive, history, read, to_seq=seq, cache_bytes_max=1))
    assert b"".join(pages[pgno] for pgno in sorted(pages)) == history.contents(seq)


async def test_another_page_size_leaves_nothing_of_the_page_set() -> None:
    """A RECOVERED frame that changes the page size carries every page."""
    history = grown(commits=4)
    base = history.tip.head.seq
    history.repage(1024, 20)
    history.random_commit(grow=3)
    archive = Archive()
    archive.put_logs(history)
    archive.put_set(history, base, page_size=512)
    archive.put_tip(history)
    assert await look(archive, history, whole) == history.contents()
    assert await look(archive, history, whole, to_seq=base) == history.contents(base)


async def test_a_run_of_partial_frames_counts_whole() -> None:
    """A transaction in several frames and log objects."""
    history = grown(commits=3)
    base = history.tip.head.seq
    history.commit({pgno: history.page() for pgno in range(1, 60)}, run=5)
    archive = archived(history, base=base)
    assert await look(archive, history, whole) == history.contents()


async def test_one_page_costs_one_block() -> None:
    """Parts are not read whole, nor twice, and what is fetched is counted."""
    pages = {pgno: pgno.to_bytes(2) * 256 for pgno in range(1, 8001)}
    history = History(pages=pages)
    archive = archived(history, base=1)
    fetcher = Fetcher(archive.store)
    sizes: list[int] = []

    def read(past: Past) -> bytes:
        sizes.append(fetcher.bytes_read)
        first = past.read_page(5000)
        assert past.read_page(5001) == pages[5001]
        sizes.append(fetcher.bytes_read)
        return first

    assert await look(archive, history, read, fetcher=fetcher) == pages[5000]
    assert archive.store.count("get_range") == 1
    assert not [c for c in archive.store.calls if c[0] == "get" and ".pg" in c[1]]
    assert 0 < sizes[1] - sizes[0] < 16 * 512


async def test_a_scan_reads_ahead_and_the_cache_is_bounded() -> None:
    """Blocks in a row come in few reads, also when the cache holds only a few of them."""
    history = History(pages={pgno: pgno.to_bytes(2) * 256 for pgno in range(1, 4001)})
    archive = archived(history, base=1)

    def read(past: Past) -> int:
        assert whole(past) == history.contents()
        return len(past._cache)

    assert await look(archive, history, read, cache_bytes_max=1) <= 128
    assert archive.store.count("get_range") <= 12


async def test_only_what_a_log_object_touches_is_read_at_the_beginning() -> None:
    """Far pages of the set are not fetched to open a moment after it."""
    history = History(pages={pgno: history_page(pgno) for pgno in range(1, 8001)})
    history.commit({17: b"n" * 512, 7000: b"m" * 512})
    archive = archived(history, base=1)
    fetcher = Fetcher(archive.store)
    pages = await look(
        archive, history, lambda past: [past.read_page(17), past.read_page(7000)], fetcher=fetcher
    )
    assert pages == [b"n" * 512, b"m" * 512]
    assert archive.store.count("get_range") == 2


def history_page(pgno: int) -> bytes:
    return pgno.to_bytes(2) * 256


async def test_the_lock_page_is_zeros() -> None:
    """A database that grows over 1 GiB: its lock page is in no frame."""
    size = 65536
    lock = LOCK_BYTE_OFFSET // size + 1
    blank = bytes(size)
    history = History(page_size=size, pages=dict.fromkeys(range(1, lock - 2), blank))
    history.commit({pgno: b"x" * size for pgno in range(lock - 2, lock + 4) if pgno != lock})
    archive = archived(history, base=1)

    def read(past: Past) -> list[bytes]:
        return [past.read_page(pgno)[:1] for pgno in range(lock - 3, lock + 4)]

    assert await look(archive, history, read) == [b"\0", b"x", b"x", b"\0", b"x", b"x", b"x"]


# What is not as signed.


async def test_a_page_that_no_frame_carries_is_found_at_the_target() -> None:
    """The author signed a state to which a changed page belongs that is in no log object."""
    history = History(pages={pgno: history_page(pgno) for pgno in range(1, 100)})
    tree = StateTree(512, history._leaves())
    tree.update([40], [leaf_hash(40, b"z" * 512)], 99)
    # Frame 2 carries page 3 alone, and its root counts page 40, too.
    history.tree = tree
    history.commit({3: b"y" * 512})
    archive = archived(history, base=1)
    with pytest.raises(ChainBroken, match="do not give the state root of frame 2"):
        await look(archive, history, lambda past: past.read_page(1))


async def test_a_false_root_in_a_signed_frame_is_found() -> None:
    """Whatever page is asked for, nothing is read from a state that cannot be proven."""
    history = grown(commits=3)
    history._append(
        history.tip.payload,
        Kind.COMMIT,
        Flag.NONE,
        seq=Seq(history.tip.head.seq + 1),
        prev_hash=history.tip.head.hash,
        state_root=StateRoot(b"r" * 32),
    )
    archive = archived(history, base=3)
    with pytest.raises(ChainBroken, match="state root"):
        await look(archive, history, lambda past: past.read_page(1))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_changed_byte_is_ever_shown(data: st.DataObject) -> None:
    """One flipped bit anywhere: the pages are the right ones, or an error names the object."""
    history = grown(commits=6)
    archive = archived(history, base=4, inline=data.draw(st.booleans()))
    name = data.draw(st.sampled_from(sorted(archive.store.objects)))
    archive.flip(
        name,
        data.draw(st.integers(0, len(archive.store.objects[name].data) - 1)),
        1 << data.draw(st.integers(0, 7)),
    )
    with contextlib.suppress(CorruptionError):
        assert trio.run(lambda: look(archive, history, whole)) == history.contents()


async def test_blocks_that_change_places_are_refused() -> None:
    """A true block in another's place has another group hash."""
    history = History(pages={pgno: history_page(pgno) for pgno in range(1, 65)})
    archive = archived(history, base=1)
    name = archive.store.names(".pg")[0]
    data = archive.store.objects[name].data
    archive.store.put(name, data[::-1])
    with pytest.raises(PageSetCorrupt, match=name):
        await look(archive, history, whole)


async def test_a_part_that_is_cut_is_named() -> None:
    """The listing's size was right when the plan was made."""
    history = History(pages={pgno: history_page(pgno) for pgno in range(1, 65)})
    archive = archived(history, base=1)
    name = archive.store.names(".pg")[0]

    def cut(past: Past) -> bytes:
        archive.store.put(name, archive.store.objects[name].data[:-10])
        return whole(past)

    with pytest.raises(PageSetCorrupt, match=f"{name} ends before"):
        await look(archive, history, cut)


async def test_strange_keys_and_missing_moments() -> None:
    """As in a restore."""
    history = grown()
    archive = archived(history, base=4)
    with pytest.raises(UntrustedKey):
        await look(archive, history, whole, key=2)
    with pytest.raises(NotFoundError, match="seq 99 was asked for"):
        await look(archive, history, whole, to_seq=99)
    archive.delete(archive.store.names("/log/")[-1])
    with pytest.raises(CorruptionError, match="TIP"):
        await look(archive, history, whole)


async def test_what_retention_deletes_meanwhile() -> None:
    """What a plan counted on is planned anew; later there is a sentence that says what to do."""
    history = History(pages={pgno: history_page(pgno) for pgno in range(1, 6401)})
    history.random_commit()
    history.random_commit()
    archive = archived(history, base=1)
    archive.put_set(history, 2)

    def fate(method: str, name: str) -> Fault | None:
        if method == "get" and "02.idx" in name:
            for gone in archive.store.names(f"{2:020d}."):
                if "/set/" in gone:
                    archive.delete(gone)
        return None

    archive.store.fate = fate
    assert await look(archive, history, whole) == history.contents()

    def delete(past: Past) -> bytes:
        for name in archive.store.names(".pg"):
            archive.delete(name)
        return whole(past)

    with pytest.raises(UnavailableError, match="run the command again"):
        await look(archive, history, delete)


async def test_a_store_that_fails_at_the_beginning_is_an_error_as_itself() -> None:
    """Not in a group of several: the touched groups are read in parallel."""
    history = History(pages={pgno: history_page(pgno) for pgno in range(1, 8001)})
    history.commit(dict.fromkeys(range(5, 8000, 900), b"n" * 512))
    archive = archived(history, base=1)
    archive.store.fate = lambda method, _: Fault.FAIL if method == "get_range" else None
    with pytest.raises(BasenetError, match="the store failed") as caught:
        await look(archive, history, whole)
    assert not isinstance(caught.value, StoreNotFound)


async def test_an_encrypted_archive_is_read_by_ranges_too() -> None:
    """The store decrypts the blocks that a range touches."""
    history = History(pages={pgno: history_page(pgno) for pgno in range(1, 8001)})
    history.commit({17: b"n" * 512})
    clear = archived(history, base=1)
    archive = Archive()
    writer = EncryptedStore(archive.store, make_keyring("one"))
    for name in clear.store.names():
        await writer.put_if_absent(name, clear.store.objects[name].data)
    async with open_past(
        EncryptedStore(archive.store, make_reader("one")),
        Fetcher(EncryptedStore(archive.store, make_reader("one")), retry_seconds=0),
        archive.names(history),
        Wish(),
        trusted=frozenset([signer().public]),
        folder=Path(tempfile.gettempdir()),
    ) as past:
        assert await trio.to_thread.run_sync(past.read_page, 5000) == history_page(5000)
        assert await trio.to_thread.run_sync(past.read_page, 17) == b"n" * 512
    assert not [c for c in archive.store.calls if c[0].startswith("get_d") and ".pg" in c[1]]
