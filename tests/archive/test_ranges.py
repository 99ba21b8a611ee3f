"""What the list of moments says is what a restore of each of them finds."""

from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.archive.ranges import Outlook, look_ahead
from basenet.errors import BasenetError, CorruptionError, NotFoundError, UntrustedKey, UsageError
from basenet.wire.frame import Flag
from tests.archive.builder import Archive, History
from tests.fakes.chain import signer


async def look(archive: Archive, history: History, *, key: int = 1) -> Outlook:
    return await look_ahead(
        archive.store, archive.names(history), trusted=frozenset([signer(key).public])
    )


def ends(found: Outlook) -> list[tuple[int, int]]:
    return [(one.first_seq, one.last_seq) for one in found.ranges]


async def test_one_range_from_the_genesis_or_the_first_page_set() -> None:
    """A database that was there before needs its first snapshot."""
    born = History()
    born.commit({1: born.page()})
    old = History(pages={1: b"x" * 512})
    for history in (born, old):
        for _ in range(6):
            history.random_commit(grow=2)
    archive = Archive()
    archive.put_logs(born)
    archive.put_tip(born)
    found = await look(archive, born)
    assert ends(found) == [(1, 8)]
    assert found.ranges[0].first_ns == born.frame(1).head.timestamp_ns
    assert found.ranges[0].last_ns == born.tip.head.timestamp_ns
    archive = Archive()
    archive.put_logs(old)
    archive.put_set(old, 4)
    archive.put_tip(old)
    found = await look(archive, old)
    assert (ends(found), found.snapshots, found.troubles) == ([(4, 7)], (4,), ())


async def test_a_child_goes_on_where_its_parent_was_left() -> None:
    """One range over both; what the parent wrote beyond is abandoned."""
    parent = History()
    parent.commit({pgno: parent.page() for pgno in range(1, 9)})
    for _ in range(5):
        parent.random_commit()
    child = History(number=2, parent=parent, parent_seq=4)
    child.random_commit()
    archive = Archive()
    for history in (parent, child):
        archive.put_logs(history, 2)
    archive.put_tip(child)
    found = await look(archive, child)
    assert ends(found) == [(1, 6)]
    assert found.lineage == child.lineage


async def test_a_part_that_is_missing_is_a_trouble() -> None:
    """Names promised the range; the plan of its first moment says why not."""
    history = History(pages={1: b"x" * 512})
    for _ in range(4):
        history.random_commit(grow=2)
    archive = Archive()
    archive.put_logs(history)
    archive.put_set(history, 2)
    archive.put_tip(history)
    archive.delete(archive.store.names(".pg")[0])
    with pytest.raises(CorruptionError, match=r"part/.* is missing"):
        await look(archive, history)
    archive.put_set(history, 4)
    archive.delete(archive.store.names(".idx")[0])
    found = await look(archive, history)
    assert ends(found) == []
    assert "is missing" in found.troubles[0]


async def test_strange_keys_and_empty_archives() -> None:
    """Nothing is listed that nobody vouches for."""
    history = History()
    history.commit({1: history.page()})
    archive = Archive()
    with pytest.raises(NotFoundError):
        await look(archive, history)
    archive.put_logs(history)
    archive.put_tip(history)
    archive.put_set(history, 2)
    with pytest.raises(UntrustedKey):
        await look(archive, history, key=2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_ranges_are_what_can_be_planned(data: st.DataObject) -> None:
    """Whatever was deleted: a seq is in a range if, and only if, a restore of it has a plan."""
    history = History(pages=data.draw(st.sampled_from([{}, {1: b"x" * 512}])))
    for _ in range(data.draw(st.integers(2, 9))):
        if data.draw(st.booleans()):
            history.random_commit(grow=2)
        else:
            pages = {pgno: history.page() for pgno in range(1, 8)}
            history.commit(pages, run=data.draw(st.integers(1, 3)))
    whole = [f.head.seq for f in history.frames if not f.head.flags & Flag.PARTIAL]
    archive = Archive()
    logs = archive.put_logs(history, data.draw(st.integers(1, 3)))
    for seq in data.draw(st.sets(st.sampled_from(whole), max_size=3)):
        if history.image(seq):
            archive.put_set(history, seq)
    if data.draw(st.booleans()):
        archive.put_tip(history, whole[-1])
    for name in data.draw(st.sets(st.sampled_from(logs[1:] or logs), max_size=3)):
        if name != logs[0]:
            archive.delete(name)

    async def check() -> None:
        try:
            found = await look(archive, history)
        except CorruptionError:
            return
        held = {seq for one in found.ranges for seq in range(one.first_seq, one.last_seq + 1)}
        for frame in history.frames:
            seq = frame.head.seq
            try:
                await archive.restore(history, Path("/nowhere"), to_seq=seq, dry_run=True)
            except UsageError:
                continue  # inside a run
            except BasenetError:
                assert seq not in held
            else:
                assert seq in held

    trio.run(check)
