"""An interrupted restore is gone on with: what is proven is not fetched again."""

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from basenet.archive import partial as module
from basenet.archive.fetch import Fetcher
from basenet.archive.partial import Partial, get_partial_path, open_partial
from basenet.archive.place import Place
from basenet.archive.restore import OnProgress, Progress, RestoreReport, restore
from basenet.errors import CorruptionError, UnavailableError
from tests.archive.builder import Archive, History
from tests.archive.test_restore import leftovers
from tests.fakes.chain import signer
from tests.fakes.memory_store import Fault

PAGES = 10_000  # three parts of 4,096 pages of 512 bytes


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES_MIN", 1)


def made() -> tuple[History, Archive, list[str]]:
    """Return a history whose page set has three parts, its archive, and the parts' names."""
    history = History()
    for first in range(1, PAGES, 2_000):
        history.commit({pgno: history.page() for pgno in range(first, first + 2_000)})
    archive = Archive()
    archive.put_logs(history, 1)
    parts = [name for name in archive.put_set(history, history.tip.head.seq) if "/part/" in name]
    history.random_commit(touch=30)
    archive.put_log(history, history.tip.head.seq)
    archive.put_tip(history)
    assert len(parts) == 3
    return history, archive, parts


async def restored(
    archive: Archive, history: History, out: Path, on_progress: OnProgress | None = None
) -> RestoreReport:
    fetcher = Fetcher(archive.store, retry_seconds=0, connections_max=1, decoders_max=1)
    return await restore(
        archive.store,
        archive.names(history),
        Place(out),
        trusted=frozenset([signer(1).public]),
        is_resumable=True,
        on_progress=on_progress,
        fetcher=fetcher,
    )


def fetched(archive: Archive) -> list[str]:
    return [name for method, name in archive.store.calls if method == "get" and "/part/" in name]


@pytest.mark.parametrize("broken", [0, 1, 2])
async def test_parts_that_are_proven_are_not_fetched_again(tmp_path: Path, broken: int) -> None:
    history, archive, parts = made()
    archive.store.fate = lambda _method, name: Fault.FAIL if name == parts[broken] else None
    with pytest.raises(UnavailableError):
        await restored(archive, history, tmp_path / "app.db")
    assert leftovers(tmp_path) == ([".app.db.partial"] if broken else [])
    archive.store.fate = lambda _method, _name: None
    archive.store.calls.clear()
    report = await restored(archive, history, tmp_path / "app.db")
    assert parts[broken] in fetched(archive)
    assert not set(fetched(archive)) & set(parts[:broken])
    assert (report.kept_bytes > 0) == (broken > 0)
    assert (tmp_path / "app.db").read_bytes() == history.contents()
    assert leftovers(tmp_path) == ["app.db"]


async def test_cancelling_keeps_what_is_proven(tmp_path: Path) -> None:
    history, archive, parts = made()
    archive.store.fate = lambda _method, name: Fault.HANG if name == parts[2] else None
    is_one_done, steps = trio.Event(), []

    def note(progress: Progress) -> None:
        steps.append(progress.bytes_done)
        if len(steps) == 3:  # index, manifest, the first part
            is_one_done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(restored, archive, history, tmp_path / "app.db", note))
        await is_one_done.wait()
        nursery.cancel_scope.cancel()
    archive.store.fate = lambda _method, _name: None
    archive.store.calls.clear()
    await restored(archive, history, tmp_path / "app.db")
    assert parts[0] not in fetched(archive)
    assert (tmp_path / "app.db").read_bytes() == history.contents()


async def test_what_is_wrong_in_it_is_fetched(tmp_path: Path) -> None:
    """Garbage, another database, a page that changed: each group proves itself or counts not."""
    history, archive, parts = made()
    whole = bytearray(history.contents(6) + bytes(50_000))
    whole[4_096 * 512 + 77] ^= 1
    left = get_partial_path(Place(tmp_path / "app.db"))
    left.write_bytes(whole)
    left.chmod(0o600)
    report = await restored(archive, history, tmp_path / "app.db")
    assert fetched(archive) == parts[1:2]
    assert report.kept_bytes > 0
    assert (tmp_path / "app.db").read_bytes() == history.contents()


async def test_damage_leaves_nothing_behind(tmp_path: Path) -> None:
    """What is not as signed does not get better by waiting."""
    history, archive, parts = made()
    archive.flip(parts[2], 1000, 1)
    with pytest.raises(CorruptionError):
        await restored(archive, history, tmp_path / "app.db")
    assert leftovers(tmp_path) == []


def test_a_draft_with_a_second_name_is_never_written(tmp_path: Path) -> None:
    """It was linked to its target, which is a database in use by now."""
    place = Place(tmp_path / "app.db")
    with open_partial(place) as draft:
        assert isinstance(draft, Partial)
        draft.write(0, b"a database")
        os.link(draft.path, tmp_path / "app.db")
        # As a kill here leaves it: both names stand.
        os.link(draft.path, tmp_path / "kept")
    os.link(tmp_path / "kept", get_partial_path(place))
    with open_partial(place) as draft:
        draft.write(0, b"XXXXXXXXXX")
    assert (tmp_path / "app.db").read_bytes() == b"a database"


def test_two_restores_to_one_place_do_not_share_a_draft(tmp_path: Path) -> None:
    place = Place(tmp_path / "app.db")
    with open_partial(place) as one, open_partial(place) as two:
        assert one.path != two.path
        assert not isinstance(two, Partial)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("mode", [0o644, 0o666])
def test_a_file_that_others_can_reach_is_not_gone_on_with(tmp_path: Path, mode: int) -> None:
    place = Place(tmp_path / "app.db")
    get_partial_path(place).write_bytes(b"theirs")
    get_partial_path(place).chmod(mode)
    with open_partial(place) as draft:
        assert isinstance(draft, Partial)
        assert not draft.is_found


def test_a_full_disk_is_not_kept_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    place = Place(tmp_path / "app.db")
    draft = open_partial(place)
    assert isinstance(draft, Partial)
    draft.note_proven(1 << 30)
    monkeypatch.setattr(os, "pwritev", refuse)
    with pytest.raises(UnavailableError), draft:
        draft.write_all(0, [b"x"])
    assert leftovers(tmp_path) == []
