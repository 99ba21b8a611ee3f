"""What came after a frame is found cheaply, proven, and leads to the state of the last one."""

from pathlib import Path

import pytest
import trio

from basenet.archive.plan import Start, StartLeft
from basenet.archive.pursuit import ACTIVE_SECONDS, Advance, Pursuit
from basenet.errors import CorruptionError, UntrustedKey
from basenet.units import PublicKeyBytes
from tests.archive.builder import Archive, History
from tests.archive.test_restore import grown
from tests.fakes.chain import signer


class Reader:
    """A reader of one archive: where it stands, and the pages that it has."""

    def __init__(self, archive: Archive, history: History, folder: Path, seq: int) -> None:
        self.archive = archive
        self.pages = dict(history.image(seq))
        self.page_size = history.page_size
        self.start = Start(lineage=history.lineage, head=history.frame(seq).head)
        trusted: frozenset[PublicKeyBytes] = frozenset([signer(1).public])
        self.pursuit = Pursuit(
            archive.store, archive.names(history), trusted=trusted, folder=folder
        )

    async def go(self) -> Advance | None:
        """Advance once, and take the pages over."""
        advance = await self.pursuit.advance(
            self.start, page_size=self.page_size, db_pages=len(self.pages)
        )
        if advance is None:
            return None
        overlay = advance.overlay
        self.start = advance.start
        self.pages = {p: page for p, page in self.pages.items() if p <= overlay.base_pages}
        for pgno in overlay.pgnos():
            page = overlay.get(pgno)
            assert page is not None
            self.pages[pgno] = page
        self.page_size = overlay.page_size
        overlay.close()
        return advance


async def test_each_advance_leads_to_the_state_of_the_last_frame(tmp_path: Path) -> None:
    """Growing and shrinking, over objects of several frames, from any frame."""
    history = grown()
    archive = Archive()
    archive.put_logs(history, 3)
    archive.put_tip(history)
    for seq in range(2, history.tip.head.seq):
        reader = Reader(archive, history, tmp_path, seq)
        advance = await reader.go()
        assert advance is not None
        assert advance.frames == history.tip.head.seq - seq
        assert reader.start.head.hash == history.tip.head.hash
        assert reader.pages == history.pages
        assert await reader.go() is None


async def test_news_are_found_by_a_listing_that_begins_at_the_end(tmp_path: Path) -> None:
    """The first look lists the shard; later ones only what is new, and read only that."""
    history = grown(commits=30)
    archive = Archive()
    archive.put_logs(history, 1)
    archive.put_tip(history)
    reader = Reader(archive, history, tmp_path, history.tip.head.seq)
    assert await reader.go() is None
    for _ in range(5):
        history.random_commit(grow=2)
        name = archive.put_log(history, history.tip.head.seq)
        archive.put_tip(history)
        archive.store.calls.clear()
        assert await reader.go() is not None
        assert reader.pages == history.pages
        assert [call for call in archive.store.calls if call[0] == "list"] == [
            ("list", f"{archive.names(history).lineage(history.lineage)}log/")
        ]
        read = [asked for method, asked in archive.store.calls if method == "get"]
        assert name in read
        # TIP, the genesis, the new one.
        assert len(read) == 3


@pytest.mark.usefixtures("autojump_clock")
async def test_an_idle_archive_costs_one_small_object_a_look(tmp_path: Path) -> None:
    """While TIP stands still; a while after it moved the log is listed, too."""
    history = grown()
    archive = Archive()
    archive.put_logs(history, 3)
    archive.put_tip(history)
    reader = Reader(archive, history, tmp_path, history.tip.head.seq)
    await reader.go()
    # TIP is behind: the log alone says that there is something new.
    history.random_commit()
    archive.put_log(history, history.tip.head.seq)
    assert await reader.go() is not None
    await trio.sleep(ACTIVE_SECONDS + 1)
    archive.store.calls.clear()
    assert await reader.go() is None
    assert archive.store.calls == [("get", archive.names(history).tip)]


async def test_objects_that_were_merged_under_another_name_are_found(tmp_path: Path) -> None:
    """A name that begins before where we stand sorts before it: then all is listed."""
    history = grown()
    archive = Archive()
    names = archive.put_logs(history, 1)
    archive.put_tip(history)
    reader = Reader(archive, history, tmp_path, history.tip.head.seq)
    await reader.go()
    first = history.tip.head.seq - 2
    history.random_commit()
    for name in names[-3:]:
        archive.delete(name)
    archive.put_log(history, first, history.tip.head.seq)
    archive.put_tip(history)
    assert await reader.go() is not None
    assert reader.pages == history.pages


async def test_a_child_lineage_that_goes_on_from_here_is_followed(tmp_path: Path) -> None:
    history = grown()
    archive = Archive()
    archive.put_logs(history, 3)
    archive.put_tip(history)
    reader = Reader(archive, history, tmp_path, history.tip.head.seq - 2)
    await reader.go()
    child = History(number=2, parent=history)
    child.random_commit(grow=3)
    archive.put_logs(child, 2)
    archive.put_tip(child)
    advance = await reader.go()
    assert advance is not None
    assert advance.start.lineage == child.lineage
    assert reader.pages == child.pages
    child.random_commit(grow=3)
    archive.put_log(child, child.tip.head.seq)
    archive.put_tip(child)
    assert await reader.go() is not None
    assert reader.pages == child.pages


async def test_a_child_lineage_that_left_before_here_is_said(tmp_path: Path) -> None:
    history = grown()
    archive = Archive()
    archive.put_logs(history, 3)
    reader = Reader(archive, history, tmp_path, history.tip.head.seq)
    child = History(number=2, parent=history, parent_seq=history.tip.head.seq - 2)
    child.random_commit(grow=3)
    archive.put_logs(child, 2)
    archive.put_tip(child)
    with pytest.raises(StartLeft, match="another lineage continues from an earlier frame"):
        await reader.go()


async def test_a_child_lineage_of_a_strange_key_is_not_followed(tmp_path: Path) -> None:
    history = grown()
    archive = Archive()
    archive.put_logs(history, 3)
    reader = Reader(archive, history, tmp_path, history.tip.head.seq)
    child = History(number=2, parent=history, key=2, is_forced=True)
    child.random_commit(grow=3)
    archive.put_logs(child, 2)
    with pytest.raises(UntrustedKey):
        await reader.go()


async def test_frames_that_retention_deleted_are_missed(tmp_path: Path) -> None:
    history = grown()
    archive = Archive()
    names = archive.put_logs(history, 1)
    archive.put_set(history, 9)
    archive.put_tip(history)
    for name in names[1:8]:
        archive.delete(name)
    reader = Reader(archive, history, tmp_path, 4)
    with pytest.raises(CorruptionError, match="are missing"):
        await reader.go()
    later = Reader(archive, history, tmp_path, 9)
    await later.go()
    assert later.pages == history.pages


async def test_a_flipped_byte_stops_before_anything_is_handed_on(tmp_path: Path) -> None:
    history = grown()
    archive = Archive()
    names = archive.put_logs(history, 2)
    archive.put_tip(history)
    for position in range(0, 900, 37):
        archive.flip(names[-2], position, 0x10)
        reader = Reader(archive, history, tmp_path, 5)
        with pytest.raises(CorruptionError):
            await reader.go()
        archive.flip(names[-2], position, 0x10)
    assert await Reader(archive, history, tmp_path, 5).go() is not None


async def test_another_history_under_our_numbers_does_not_link(tmp_path: Path) -> None:
    """Frames of the same lineage and seqs that were made by somebody else with the same key."""
    history, other = grown(seed=7), grown(seed=8)
    archive = Archive()
    archive.put_logs(other, 3)
    archive.put_tip(other)
    reader = Reader(archive, history, tmp_path, 6)
    with pytest.raises(CorruptionError):
        await reader.go()
