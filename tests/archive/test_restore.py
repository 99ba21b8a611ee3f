"""A restore gives the source's content at the target, page for page, or nothing."""

import os
import sqlite3
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.archive.fetch import Fetcher
from basenet.errors import (
    CertificateInvalid,
    ChainBroken,
    ConflictError,
    CorruptionError,
    NotFoundError,
    UnavailableError,
    UntrustedKey,
    UsageError,
)
from basenet.units import LOCK_BYTE_OFFSET, lock_page
from basenet.wire.frame import Flag
from tests.archive.builder import Archive, History
from tests.fakes.chain import STEP_NS, signer
from tests.fakes.memory_store import Fault, MemoryStore, always, first


def grown(commits: int = 12, **options: Any) -> History:
    """Return a history that begins empty, grows and shrinks."""
    history = History(**options)
    history.commit({pgno: history.page() for pgno in range(1, 40)})
    for number in range(commits):
        history.random_commit(grow=-5 if number % 4 == 3 else 3)
    return history


def archived(history: History, *, step: int = 3, base: int | None = None) -> Archive:
    archive = Archive()
    archive.put_logs(history, step)
    if base is not None:
        archive.put_set(history, base)
    archive.put_tip(history)
    return archive


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("base", [None, 1, 7])
async def test_every_seq_comes_back_page_for_page(
    tmp_path: Path, page_size: int, base: int | None
) -> None:
    """Whatever the page size, and whether it begins with a page set or with nothing."""
    history = grown(page_size=page_size)
    archive = archived(history, base=None if base == 1 else base)
    for seq in range(1, history.tip.head.seq + 1):
        report = await archive.restore(history, tmp_path / f"{seq}.db", to_seq=seq)
        assert (tmp_path / f"{seq}.db").read_bytes() == history.contents(seq)
        assert (report.seq, report.lineage) == (seq, history.lineage)
        assert report.timestamp_ns == history.frame(seq).head.timestamp_ns
        assert report.database_bytes == len(history.contents(seq))
        assert len(report.page_sets) == (base == 7 and seq >= 7)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("is_named_by_content", [False, True])
async def test_a_page_set_alone_is_enough_for_its_own_seq(
    tmp_path: Path, *, inline: bool, is_named_by_content: bool
) -> None:
    """Retention may have deleted all of the log but the genesis and what follows the set."""
    adopted = {pgno: bytes([pgno]) * 512 for pgno in range(1, 90)}
    history = History(pages=adopted)
    history.random_commit(grow=200)
    history.random_commit()
    archive = Archive()
    archive.put_log(history, 1)
    archive.put_set(history, 2, inline=inline, is_named_by_content=is_named_by_content)
    archive.put_log(history, 3)
    archive.put_tip(history)
    await archive.restore(history, tmp_path / "a.db", to_seq=2)
    await archive.restore(history, tmp_path / "b.db")
    assert (tmp_path / "a.db").read_bytes() == history.contents(2)
    assert (tmp_path / "b.db").read_bytes() == history.contents(3)


async def test_several_parts_are_put_together(tmp_path: Path) -> None:
    """A page set of more than one part: each goes to its own offset."""
    history = History(page_size=512, pages={pgno: pgno.to_bytes(512) for pgno in range(1, 9001)})
    history.commit({5000: history.page(), 8999: history.page()})
    archive = Archive()
    assert len(archive.put_set(history, 1)) == 2 + 3
    archive.put_logs(history)
    archive.put_tip(history)
    await archive.restore(history, tmp_path / "a.db")
    assert (tmp_path / "a.db").read_bytes() == history.contents()


async def test_the_result_is_a_database_in_wal_mode(tmp_path: Path) -> None:
    """Bytes 18 and 19 come out as 2, whatever they were, and SQLite reads it."""
    source = tmp_path / "source.db"
    with sqlite3.connect(source) as connection:
        connection.execute("CREATE TABLE t(x)")
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(500)])
    connection.close()
    data = source.read_bytes()
    assert data[18:20] == b"\x01\x01"
    pages = {1 + at // 4096: data[at : at + 4096] for at in range(0, len(data), 4096)}
    history = History(page_size=4096, pages=pages)
    history.commit({1: pages[1], 2: pages[2]})
    archive = archived(history, base=1)
    await archive.restore(history, tmp_path / "a.db", to_seq=1)
    await archive.restore(history, tmp_path / "b.db")
    for path in (tmp_path / "a.db", tmp_path / "b.db"):
        restored = path.read_bytes()
        assert restored[18:20] == b"\x02\x02"
        assert restored[:18] + restored[20:] == data[:18] + data[20:]
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (500,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


async def test_a_database_of_no_pages_is_an_empty_file(tmp_path: Path) -> None:
    """A genesis without pages is a moment like any other."""
    history = History()
    archive = archived(history)
    await archive.restore(history, tmp_path / "a.db")
    assert (tmp_path / "a.db").read_bytes() == b""


@pytest.mark.system
async def test_growth_beyond_the_lock_page_leaves_it_empty(tmp_path: Path) -> None:
    """The page at 1 GiB is a hole in the file and counts as zeros in the root."""
    page_size = 65536
    lock = lock_page(page_size)
    pages = {pgno: bytes(page_size) for pgno in range(1, lock)}
    history = History(page_size=page_size, pages=pages)
    history.commit({lock + 1: b"\x01" * page_size}, db_pages=lock + 1)
    archive = Archive()
    archive.put_logs(history)
    archive.put_set(history, 1)
    archive.put_tip(history)
    await archive.restore(history, tmp_path / "a.db")
    with (tmp_path / "a.db").open("rb") as file:
        file.seek(LOCK_BYTE_OFFSET)
        assert file.read() == bytes(page_size) + b"\x01" * page_size


async def test_the_page_size_may_change(tmp_path: Path) -> None:
    """A RECOVERED frame with all pages replaces what was there, also within one object."""
    for step in (1, 20):
        history = grown(4, page_size=1024)
        history.repage(4096, 9)
        history.random_commit(grow=2)
        archive = archived(history, step=step)
        for seq in (5, history.tip.head.seq - 1, history.tip.head.seq):
            out = tmp_path / f"{step}-{seq}.db"
            await archive.restore(history, out, to_seq=seq)
            assert out.read_bytes() == history.contents(seq)


@pytest.mark.parametrize("step", [1, 2, 100])
async def test_a_run_is_restored_whole_or_not_at_all(tmp_path: Path, step: int) -> None:
    """A seq inside a run is refused with the one that ends it; latest falls back below it."""
    history = grown(3)
    before = history.tip.head.seq
    history.commit({pgno: history.page() for pgno in range(1, 60)}, run=5)
    archive = archived(history, step=step)
    end = history.tip.head.seq
    await archive.restore(history, tmp_path / "end.db", to_seq=end)
    assert (tmp_path / "end.db").read_bytes() == history.contents(end)
    with pytest.raises(UsageError, match=f"--to-seq {end}"):
        await archive.restore(history, tmp_path / "inside.db", to_seq=before + 2)
    cut = Archive()
    cut.put_log(history, 1, before + 3)
    report = await cut.restore(history, tmp_path / "cut.db")
    assert report.seq == before
    assert (tmp_path / "cut.db").read_bytes() == history.contents(before)
    with pytest.raises(UsageError, match="not archived yet"):
        await cut.restore(history, tmp_path / "never.db", to_seq=before + 1)


async def test_a_moment_means_the_last_commit_at_or_before_it(tmp_path: Path) -> None:
    """Not one that was captured a nanosecond later; frames inside a run do not count."""
    history = grown(3)
    history.commit({pgno: history.page() for pgno in range(1, 60)}, run=3)
    archive = archived(history, step=2)
    last = history.tip.head.seq
    cases = {
        history.frame(4).head.timestamp_ns: 4,
        history.frame(4).head.timestamp_ns - 1: 3,
        history.frame(last).head.timestamp_ns - 1: last - 3,
        history.frame(last).head.timestamp_ns + 10**18: last,
    }
    for moment_ns, seq in cases.items():
        report = await archive.restore(history, tmp_path / f"{seq}.db", to_time_ns=moment_ns)
        assert report.seq == seq
        assert (tmp_path / f"{seq}.db").read_bytes() == history.contents(seq)
    with pytest.raises(NotFoundError, match="at or before"):
        await archive.restore(
            history, tmp_path / "no.db", to_time_ns=history.frame(1).head.timestamp_ns - 1
        )


async def test_a_moment_may_be_that_of_a_page_set_whose_log_is_gone(tmp_path: Path) -> None:
    """Retention leaves the page set; its own frame is the last commit before the moment."""
    history = grown(8)
    archive = Archive()
    archive.put_log(history, 1)
    archive.put_set(history, 6)
    archive.put_logs(history, 2, start=7)
    archive.put_tip(history)
    between_ns = history.frame(6).head.timestamp_ns + STEP_NS // 2
    report = await archive.restore(history, tmp_path / "a.db", to_time_ns=between_ns)
    assert (report.seq, report.log_objects) == (6, ())


# Lineages.


def forked(**options: Any) -> tuple[History, History]:
    """Return a parent that went on to an abandoned end, and the child that left it before."""
    parent = grown(6)
    child = History(number=2, parent=parent, parent_seq=5, seed=8, **options)
    for _ in range(4):
        child.random_commit(grow=2)
    return parent, child


async def test_latest_is_the_leaf_and_older_seqs_are_its_ancestors(tmp_path: Path) -> None:
    """The child's frames count from where it left its parent; the rest of it is abandoned."""
    parent, child = forked()
    archive = archived(parent)
    archive.put_logs(child, 2)
    archive.put_tip(child)
    report = await archive.restore(child, tmp_path / "latest.db")
    assert (tmp_path / "latest.db").read_bytes() == child.contents()
    assert report.line == (parent.lineage, child.lineage)
    assert any("abandoned" in note for note in report.notes)
    for seq in (5, 6, 8):
        out = tmp_path / f"{seq}.db"
        await archive.restore(child, out, to_seq=seq)
        assert out.read_bytes() == (parent if seq == 5 else child).contents(seq)


async def test_a_child_may_begin_with_its_parents_page_set(tmp_path: Path) -> None:
    """No snapshot of its own is needed: the line goes up to the parent's."""
    parent, child = forked()
    archive = Archive()
    archive.put_logs(parent, 2)
    archive.put_set(parent, 4)
    archive.put_logs(child, 2)
    archive.put_tip(child)
    report = await archive.restore(child, tmp_path / "a.db")
    assert (tmp_path / "a.db").read_bytes() == child.contents()
    assert report.page_sets[0].split("/")[2] == parent.lineage.hex()


async def test_a_page_set_of_the_parent_above_the_fork_is_not_used(tmp_path: Path) -> None:
    """It holds abandoned frames."""
    parent, child = forked()
    archive = archived(parent, base=7)
    archive.put_logs(child, 2)
    archive.put_tip(child)
    report = await archive.restore(child, tmp_path / "a.db")
    assert report.page_sets == ()
    assert (tmp_path / "a.db").read_bytes() == child.contents()


async def test_two_leaves_need_a_choice(tmp_path: Path) -> None:
    """Both are named, and either can be restored by name."""
    parent, child = forked()
    other = History(number=3, parent=parent, parent_seq=6, seed=9)
    other.random_commit()
    archive = archived(parent)
    archive.put_logs(child)
    archive.put_logs(other)
    archive.put_tip(child)
    with pytest.raises(ConflictError) as caught:
        await archive.restore(child, tmp_path / "a.db")
    assert child.lineage.hex() in str(caught.value)
    assert other.lineage.hex() in str(caught.value)
    for history in (child, other, parent):
        out = tmp_path / history.lineage.hex()
        await archive.restore(history, out, lineage=history.lineage)
        assert out.read_bytes() == history.contents()


async def test_a_chosen_lineage_needs_nothing_of_the_others(tmp_path: Path) -> None:
    """A damaged genesis elsewhere must not stand in the way of the one that was named."""
    parent, child = forked()
    archive = archived(parent)
    genesis = archive.put_logs(child)[0]
    archive.flip(genesis, 200, 1)
    with pytest.raises(CorruptionError, match=genesis):
        await archive.restore(parent, tmp_path / "a.db")
    await archive.restore(parent, tmp_path / "a.db", lineage=parent.lineage)
    assert (tmp_path / "a.db").read_bytes() == parent.contents()


async def test_a_child_by_a_stranger_is_refused(tmp_path: Path) -> None:
    """Its author was no voter of the parent, and it is not FORCED: whoever trusts both keys."""
    parent, child = forked(key=2)
    archive = archived(parent)
    archive.put_logs(child)
    with pytest.raises(ChainBroken, match="without having been a voter"):
        await archive.restore(child, tmp_path / "a.db", keys=[signer(1), signer(2)])
    assert leftovers(tmp_path) == []


async def test_forced_breaks_the_line_of_trust(tmp_path: Path) -> None:
    """Only the operator's own trust in the new key lets a FORCED child in."""
    parent, child = forked(key=2, is_forced=True)
    archive = archived(parent)
    archive.put_logs(child)
    with pytest.raises(UntrustedKey, match="FORCED"):
        await archive.restore(child, tmp_path / "a.db", keys=[signer(1)])
    with pytest.raises(UntrustedKey):
        await archive.restore(child, tmp_path / "a.db", keys=[signer(1)], lineage=child.lineage)
    await archive.restore(child, tmp_path / "a.db", keys=[signer(1), signer(2)])
    assert (tmp_path / "a.db").read_bytes() == child.contents()


async def test_choosing_a_forced_lineage_admits_a_former_voter(tmp_path: Path) -> None:
    """The survivor of a cluster signs with a key that the parent's line named, not the operator."""
    parent = grown(2)
    parent.hand_over(2)
    parent.random_commit()
    child = History(number=2, parent=parent, key=2, is_forced=True, seed=8)
    child.random_commit()
    archive = archived(parent)
    archive.put_logs(child)
    with pytest.raises(UntrustedKey, match="FORCED"):
        await archive.restore(child, tmp_path / "a.db")
    await archive.restore(child, tmp_path / "a.db", lineage=child.lineage)
    assert (tmp_path / "a.db").read_bytes() == child.contents()


# Trust.


async def test_a_trusted_key_covers_its_successors(tmp_path: Path) -> None:
    """The operator's file names the first key; the line of CONFIGs names the next (Q22)."""
    history = grown(3)
    history.hand_over(2)
    history.random_commit()
    base = history.tip.head.seq
    history.hand_over(3)
    history.random_commit()
    for archive in (archived(history, step=2), archived(history, base=base)):
        out = tmp_path / f"{len(leftovers(tmp_path))}.db"
        await archive.restore(history, out, keys=[signer(1)])
        assert out.read_bytes() == history.contents()


async def test_a_successor_does_not_vouch_for_its_predecessor(tmp_path: Path) -> None:
    """Trust goes forward along the line only."""
    history = grown(3)
    history.hand_over(2)
    history.random_commit()
    archive = archived(history)
    with pytest.raises(UntrustedKey):
        await archive.restore(history, tmp_path / "a.db", keys=[signer(2)])
    assert leftovers(tmp_path) == []


async def test_a_retired_key_signs_nothing_more(tmp_path: Path) -> None:
    """Its frames are refused although the operator trusts it, because it is no voter any more."""
    history = grown(3)
    old = history.signer
    history.hand_over(2)
    history.signer = old
    history.random_commit()
    archive = archived(history)
    with pytest.raises(ChainBroken, match="no voter"):
        await archive.restore(history, tmp_path / "a.db", keys=[signer(1), signer(2)])


async def test_what_three_voters_did_not_certify_is_refused(tmp_path: Path) -> None:
    """Without certificates nothing says which frames are final."""
    history = grown(3)
    history.hand_over(2, voters=3)
    history.epoch += 1
    history.random_commit()
    archive = archived(history)
    with pytest.raises(CertificateInvalid, match="3 voters decide"):
        await archive.restore(history, tmp_path / "a.db")


async def test_an_untrusted_key_restores_nothing(tmp_path: Path) -> None:
    """The key that lies in the archive is no trust."""
    history = grown(3)
    for archive in (archived(history), archived(history, base=3)):
        with pytest.raises(UntrustedKey):
            await archive.restore(history, tmp_path / "a.db", keys=[signer(9)])
    assert leftovers(tmp_path) == []


async def test_an_untrusted_tip_is_refused(tmp_path: Path) -> None:
    """A TIP by anybody else could hide that the newest objects were deleted."""
    history = grown(6)
    archive = archived(history)
    archive.put_tip(history, 3, key=signer(9))
    with pytest.raises(UntrustedKey, match="TIP"):
        await archive.restore(history, tmp_path / "a.db")
    assert leftovers(tmp_path) == []


# Gaps, TIP and expectations.


async def test_a_gap_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    """The missing range stands in the error, and earlier moments can still be restored."""
    history = grown(9)
    archive = Archive()
    names = archive.put_logs(history, 3)
    archive.put_tip(history)
    archive.delete(names[1])
    with pytest.raises(CorruptionError, match=r"frames 4\.\.6 .* missing"):
        await archive.restore(history, tmp_path / "a.db")
    assert not any(call == ("get", names[2]) for call in archive.store.calls)
    await archive.restore(history, tmp_path / "a.db", to_seq=3)
    assert (tmp_path / "a.db").read_bytes() == history.contents(3)


async def test_latest_must_reach_the_tip(tmp_path: Path) -> None:
    """Objects deleted from the end leave no gap, but the TIP knows of them."""
    history = grown(9)
    archive = Archive()
    names = archive.put_logs(history, 3)
    archive.put_tip(history)
    archive.delete(names[-1])
    with pytest.raises(CorruptionError, match=f"TIP proves that seq {history.tip.head.seq}"):
        await archive.restore(history, tmp_path / "a.db")
    with pytest.raises(CorruptionError, match="TIP proves"):
        await archive.restore(history, tmp_path / "a.db", to_seq=history.tip.head.seq)
    with pytest.raises(NotFoundError, match="ends at seq 9"):
        await archive.restore(history, tmp_path / "a.db", to_seq=history.tip.head.seq + 5)
    assert leftovers(tmp_path) == []
    await archive.restore(history, tmp_path / "a.db", to_seq=9)


async def test_the_tip_must_be_of_this_very_history(tmp_path: Path) -> None:
    """A TIP of other frames under the same numbers is two histories."""
    history, other = grown(6), grown(6, seed=99)
    archive = archived(history)
    archive.put_tip(other, 6)
    with pytest.raises(ChainBroken, match="TIP"):
        await archive.restore(history, tmp_path / "a.db")


async def test_expect_seq_makes_sure(tmp_path: Path) -> None:
    """When TIP and newest objects are both gone, only the operator can know."""
    history = grown(9)
    archive = Archive()
    archive.put_logs(history, 3)
    last = history.tip.head.seq
    report = await archive.restore(history, tmp_path / "a.db", expect_seq=last)
    assert any("no TIP" in note for note in report.notes)
    with pytest.raises(CorruptionError, match="--expect-seq"):
        await archive.restore(history, tmp_path / "b.db", expect_seq=last + 1)


async def test_before_the_oldest_page_set_nothing_is_found(tmp_path: Path) -> None:
    """A database that existed before its first frame begins with its first page set."""
    history = History(pages={1: bytes(512), 2: bytes(512)})
    for _ in range(5):
        history.random_commit(grow=1)
    archive = archived(history, base=4)
    with pytest.raises(NotFoundError, match="reaches back to seq 4"):
        await archive.restore(history, tmp_path / "a.db", to_seq=3)
    with pytest.raises(CorruptionError, match="no page set"):
        await archived(history).restore(history, tmp_path / "a.db")


# Archive epochs.


async def test_a_higher_archive_epoch_wins_from_its_first_seq(tmp_path: Path) -> None:
    """What the older epoch wrote there or beyond is orphaned, however far it went (P24)."""
    history = grown(9)
    zombie = grown(9)  # the same frames up to here
    zombie.rng.seed(5)
    for _ in range(9):
        zombie.random_commit()
    for _ in range(2):
        history.random_commit()
    fork = 11
    archive = Archive()
    archive.put_logs(zombie, 4)
    for seq in range(fork + 1, history.tip.head.seq + 1):
        archive.put_log(history, seq, archive_epoch=2)
    archive.put_set(zombie, 16)
    archive.put_tip(history)
    report = await archive.restore(history, tmp_path / "a.db")
    assert report.seq == history.tip.head.seq
    assert (tmp_path / "a.db").read_bytes() == history.contents()
    assert any("orphaned" in note for note in report.notes)


async def test_equal_frames_in_two_objects_are_one_history(tmp_path: Path) -> None:
    """A writer that lost an answer may have cut its frames anew."""
    history = grown(9)
    archive = archived(history, step=3)
    archive.put_log(history, 2, 8)
    archive.put_log(history, 5, 6, archive_epoch=2)
    report = await archive.restore(history, tmp_path / "a.db")
    assert (tmp_path / "a.db").read_bytes() == history.contents()
    assert report.notes == ()


async def test_different_frames_under_one_epoch_are_two_histories(tmp_path: Path) -> None:
    """Nothing says which one is right, so neither is restored."""
    history, other = grown(6), grown(6)
    history.random_commit()
    other.rng.seed(5)
    other.random_commit()
    archive = archived(history, step=1)
    archive.put_log(other, other.tip.head.seq - 1, other.tip.head.seq)
    with pytest.raises(ConflictError, match="two histories"):
        await archive.restore(history, tmp_path / "a.db")


# What may happen while it runs.


async def test_an_object_that_vanishes_is_planned_around_once(tmp_path: Path) -> None:
    """Retention may delete the log below a page set that was published meanwhile (P45)."""
    history = grown(9)
    archive = Archive()
    names = archive.put_logs(history, 3)
    archive.put_tip(history)
    happened = False

    def fate(method: str, name: str) -> Fault | None:
        nonlocal happened
        if method == "get" and name == names[1] and not happened:
            happened = True
            archive.put_set(history, 9)
            archive.delete(names[1])
        return None

    archive.store.fate = fate
    report = await archive.restore(history, tmp_path / "a.db")
    assert len(report.page_sets) == 1
    assert (tmp_path / "a.db").read_bytes() == history.contents()
    assert leftovers(tmp_path) == ["a.db"]


async def test_a_writer_may_go_on_meanwhile(tmp_path: Path) -> None:
    """Its newer TIP does not make the listing look as if objects were missing; nor to verify."""
    history = grown(20)
    archive = Archive()
    archive.put_log(history, 1, 3)
    archive.put_tip(history, 3)
    next_seq = 4

    def fate(method: str, _: str) -> None:
        nonlocal next_seq
        if method == "get":
            archive.put_log(history, next_seq)
            archive.put_tip(history, next_seq)
            next_seq += 1

    archive.store.fate = fate
    report = await archive.restore(history, tmp_path / "a.db")
    assert 3 < report.seq < next_seq
    assert (tmp_path / "a.db").read_bytes() == history.contents(report.seq)
    assert (await archive.verify()).problems == []


async def test_an_object_that_stays_away_is_named(tmp_path: Path) -> None:
    """Planned twice and gone twice: the archive is not what its listing says."""

    class Lying(MemoryStore):
        async def get(self, name: str) -> "object":  # type: ignore[override]
            if "/log/" in name and "0004-" in name:
                name += "-gone"
            return await super().get(name)

    history = grown(9)
    archive = Archive(store=Lying())
    archive.put_logs(history, 3)
    with pytest.raises(CorruptionError, match=r"listed is gone: .*0004-"):
        await archive.restore(history, tmp_path / "a.db")
    assert leftovers(tmp_path) == []


async def test_a_store_that_fails_now_and_then_is_asked_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Until the retry deadline, each object for itself."""
    del autojump_clock
    history = grown(9)
    archive = archived(history)
    archive.store.fate = first(5, Fault.FAIL, method="get")
    await archive.restore(history, tmp_path / "a.db")
    assert (tmp_path / "a.db").read_bytes() == history.contents()
    archive.store.fate = always(Fault.FAIL, method="get", part="0004-")
    with pytest.raises(UnavailableError, match="failed at get"):
        await archive.restore(history, tmp_path / "b.db")
    assert leftovers(tmp_path) == ["a.db"]


async def test_cancelled_it_leaves_nothing(tmp_path: Path) -> None:
    """At once, also while the store does not answer."""
    history = grown(9)
    archive = archived(history, base=3)
    archive.store.fate = always(Fault.HANG, method="get", part="0007-")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(archive.restore, history, tmp_path / "a.db")
        with trio.fail_after(10):
            while not leftovers(tmp_path):
                await trio.lowlevel.checkpoint()
        assert leftovers(tmp_path)[0].endswith(".restore")
        nursery.cancel_scope.cancel()
    assert leftovers(tmp_path) == []


async def test_the_draft_is_closed_to_others(tmp_path: Path) -> None:
    """A database may hold secrets, so nobody else reads it while it grows, or after."""
    history = grown(3)
    old = os.umask(0)
    try:
        await archived(history).restore(history, tmp_path / "a.db")
    finally:
        os.umask(old)
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


async def test_memory_in_flight_is_bounded(tmp_path: Path) -> None:
    """A GET starts only when its bytes fit; the order is kept all the same."""
    history = grown(30)
    archive = archived(history, step=1)
    fetcher = Fetcher(archive.store, in_flight_bytes_max=1, connections_max=4)
    await archive.restore(history, tmp_path / "a.db", fetcher=fetcher)
    assert (tmp_path / "a.db").read_bytes() == history.contents()


async def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It says what would be restored from what, even to a place that is taken."""
    history = grown(9)
    (tmp_path / "a.db").write_bytes(b"mine")
    archive = archived(history, base=4)
    report = await archive.restore(history, tmp_path / "a.db", dry_run=True)
    assert report.is_dry_run
    assert report.seq == history.tip.head.seq
    assert report.objects == len(report.log_objects) + len(report.page_sets) + 2
    assert report.stored_bytes > 0
    assert (tmp_path / "a.db").read_bytes() == b"mine"
    assert leftovers(tmp_path) == ["a.db"]


# What is signed but false.


async def test_pages_that_do_not_give_the_root_are_refused(tmp_path: Path) -> None:
    """A frame that is signed with a root that its pages do not lead to restores nothing."""
    history = grown(4)
    history.tree.leaves[0:32] = bytes(32)
    history.tree._dirty.add(0)
    history.random_commit(touch=0)
    archive = archived(history)
    with pytest.raises(ChainBroken, match="state root"):
        await archive.restore(history, tmp_path / "a.db")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", [1, 50])
async def test_growth_without_the_new_pages_is_refused(tmp_path: Path, step: int) -> None:
    """Pages cut off by a shrink do not come back when the database grows again."""
    history = grown(2)
    history.commit({1: history.page()}, db_pages=5)
    history._commit_part([5], 8, Flag.NONE, is_last=True)
    archive = archived(history, step=step)
    with pytest.raises(ChainBroken, match=r"frame 6 of .app. makes 8 of 5 pages"):
        await archive.restore(history, tmp_path / "a.db")
    assert leftovers(tmp_path) == []


async def test_frames_of_one_object_are_overwritten_by_the_next(tmp_path: Path) -> None:
    """REGRESSED frames take the database back, like any other change."""
    history = grown(5)
    early = dict(history.image(3))
    history.commit(early, db_pages=len(early), flags=Flag.REGRESSED)
    archive = archived(history, step=2)
    await archive.restore(history, tmp_path / "a.db")
    assert (tmp_path / "a.db").read_bytes() == history.contents(3)


# Any history at all.


@st.composite
def made_histories(draw: st.DrawFn) -> tuple[History, Archive]:
    """A history of random steps, cut into random objects, with page sets at random commits."""
    page_size = draw(st.sampled_from([512, 1024, 4096]))
    history = History(page_size=page_size, seed=draw(st.integers(0, 99)))
    steps = st.tuples(st.sampled_from(["touch", "grow", "shrink", "run", "repage", "nothing"]))
    for (step,) in draw(st.lists(steps, min_size=1, max_size=14)):
        if step == "touch":
            history.random_commit()
        elif step == "grow":
            history.random_commit(grow=draw(st.integers(1, 90)))
        elif step == "shrink":
            history.random_commit(grow=-draw(st.integers(1, 60)))
        elif step == "run":
            pages = {pgno: history.page() for pgno in range(1, draw(st.integers(4, 70)))}
            history.commit(pages, run=draw(st.integers(2, 4)))
        elif step == "repage":
            sizes = [size for size in (512, 1024, 4096) if size != history.page_size]
            history.repage(draw(st.sampled_from(sizes)), draw(st.integers(1, 50)))
        else:
            history.commit({}, db_pages=history.db_pages)
    archive = Archive()
    last, start = history.tip.head.seq, 1
    while start <= last:
        end = min(last, start + draw(st.integers(0, 5)))
        archive.put_log(history, start, end)
        start = end + 1
    return history, archive


@settings(max_examples=40, deadline=None)
@given(made_histories(), st.data())
def test_any_history_comes_back(made: tuple[History, Archive], data: st.DataObject) -> None:
    """Every commit of it, from any page sets; and verify finds nothing wrong."""
    history, archive = made
    commits = [f.head.seq for f in history.frames if not f.head.flags & Flag.PARTIAL]
    sizes = {seq: len(history.image(seq)) for seq in commits}
    for seq in data.draw(st.sets(st.sampled_from(commits), max_size=2)):
        if sizes[seq]:
            size = len(next(iter(history.image(seq).values())))
            archive.put_set(history, seq, inline=data.draw(st.booleans()), page_size=size)
    archive.put_tip(history, commits[-1])
    with tempfile.TemporaryDirectory() as folder:
        for seq in data.draw(st.sets(st.sampled_from(commits), min_size=1, max_size=4)):
            out = Path(folder) / f"{seq}.db"
            trio.run(partial(archive.restore, history, out, to_seq=seq))
            assert out.read_bytes() == history.contents(seq)
    report = trio.run(archive.verify)
    assert report.problems == []
    assert report.shards[0].frames == history.tip.head.seq
