"""What goes into the journal comes out of it, and nothing else."""

import copy
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from basenet.errors import CorruptionError, UsageError
from basenet.journal import schema
from basenet.journal.journal import Journal
from basenet.journal.records import Batch, PastRoot, ShardRecord
from basenet.units import LocalNumber, Seq, ShardId, TimestampNs
from basenet.wire.frame import Flag, Kind, seal
from tests.fakes.chain import Chain, signer
from tests.journal.story import SHARD, Story, begin, check_whole, cursor_at

OTHER = ShardId("other")


def execute(journal: Journal, statement: str, *values: object) -> list[Any]:
    """Run ``statement`` behind the journal's back, on a closed one."""
    connection = sqlite3.connect(journal.path)
    with connection:
        rows = list(connection.execute(statement, values))
    connection.close()
    return rows


# Shards


def test_an_unknown_shard_is_not_there(tmp_path: Path) -> None:
    """Before its genesis is stored nothing is known of it."""
    journal = Journal(tmp_path)
    assert journal.load(SHARD) is None
    assert journal.count_bytes() == 0
    journal.close()


def test_a_birth_is_remembered(tmp_path: Path) -> None:
    """Every fact of it, by this process and by the next one."""
    story = Story()
    journal = begin(tmp_path, story)
    expected = ShardRecord(
        shard=SHARD,
        path="/data/app.db",
        lineage=story.chain.lineage,
        config=story.chain.frames[0].payload,
        page_size=512,
        db_pages=20,
        cursor=cursor_at(1),
        detached=None,
        tip=story.chain.tip.head,
        local_last=LocalNumber(0),
        archived_seq=Seq(0),
        broken_seq=None,
        snapshot_seq=Seq(0),
        snapshot_ns=TimestampNs(0),
    )
    assert journal.load(SHARD) == expected
    journal.close()
    journal = Journal(tmp_path)
    assert journal.load(SHARD) == expected
    assert check_whole(journal) == 1
    assert journal.frames(SHARD, 1, 1, 0) == story.records(1, 1)
    journal.close()


def test_a_birth_without_a_database_is_remembered(tmp_path: Path) -> None:
    """No page size, no pages, no leaf hashes."""
    story = Story(Chain(page_size=512, pages={}), pages=0)
    journal = begin(tmp_path, story)
    assert journal.leaves(SHARD) == b""
    assert check_whole(journal) == 1
    journal.close()


def test_a_birth_ends_what_was_before(tmp_path: Path) -> None:
    """No frame, leaf hash, cursor or watermark of an older lineage stays; another shard's do."""
    story, other = Story(pages=40), Story(Chain(number=3, pages={1: bytes(512)}), shard=OTHER)
    journal = begin(tmp_path, story)
    journal.begin_lineage(**other.birth())
    journal.store([story.commits(5), other.commits(2)])
    journal.set_archived(SHARD, 3)
    journal.set_broken(SHARD, 2)
    journal.set_snapshot(SHARD, 3, 99)
    journal.store([story.batch([], detached=b"detached")])

    child = Story(Chain(number=2, parent=story.chain, parent_seq=4), pages=40)
    journal.begin_lineage(**child.birth())
    for _ in range(2):
        record = journal.load(SHARD)
        assert record is not None
        assert record.lineage == child.chain.lineage
        assert (record.tip.seq, record.archived_seq) == (5, 4)
        assert (record.broken_seq, record.snapshot_seq, record.detached) == (None, 0, None)
        assert check_whole(journal) == 5
        assert journal.frame_sizes(SHARD, 0) == [(5, len(child.rows[0].record))]
        assert journal.frames(OTHER, 1, 9, 1 << 20) == other.records(1, 3)
        assert check_whole(journal, OTHER) == 3
        journal.close()
        journal = Journal(tmp_path)
    journal.store([child.commit()])
    assert check_whole(journal) == 6
    journal.close()


def test_a_child_is_born_with_what_lies_beyond_its_parent(tmp_path: Path) -> None:
    """Genesis and RECOVERED frames in one transaction; also a run."""
    parent = Story()
    parent.commits(3)
    child = Story(Chain(number=2, parent=parent.chain, parent_seq=3))
    child.chain.commit({1: child.chain.page()}, flags=Flag.RECOVERED, run=1)
    child.chain.commit({2: child.chain.page(), 9: child.chain.page()}, flags=Flag.RECOVERED, run=2)
    rows = [child._row(frame) for frame in child.chain.frames]
    journal = Journal(tmp_path)
    birth = child.birth()
    batch = Batch(
        shard=SHARD,
        frames=tuple(rows),
        page_size=512,
        db_pages=20,
        cursor=cursor_at(7),
        groups=child.groups(),
    )
    journal.begin_lineage(**{**birth, "batch": batch})
    assert check_whole(journal) == 7
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [4, 5, 6, 7]
    journal.close()


def test_forgetting_the_cursor_forgets_only_where_capture_stood(tmp_path: Path) -> None:
    """The next attach then compares the whole file with the leaf hashes, which stay."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.batch([], detached=b"detached")])
    journal.forget_cursor(SHARD)
    record = journal.load(SHARD)
    assert record is not None
    assert (record.cursor, record.detached) == (None, None)
    assert record.tip == story.chain.tip.head
    assert len(journal.leaves(SHARD)) == 20 * 32
    journal.close()


def test_a_journal_keeps_its_name(tmp_path: Path) -> None:
    """16 random bytes, the same at every start, others in another directory."""
    first, other = Journal(tmp_path / "a"), Journal(tmp_path / "b")
    assert len(first.journal_id) == 16
    assert first.journal_id != other.journal_id
    first.close()
    again = Journal(tmp_path / "a")
    assert again.journal_id == first.journal_id
    again.close()
    other.close()


def test_every_transaction_is_counted(tmp_path: Path) -> None:
    """Q9: a journal that came back from a backup has a lower count."""
    story = Story()
    journal = begin(tmp_path, story)
    acts: list[Callable[[], None]] = [
        lambda: journal.store([story.commit()]),
        lambda: journal.store([story.commits(3), story.commits(2)]),
        lambda: journal.set_archived(SHARD, 2),
        lambda: journal.set_broken(SHARD, 1),
        lambda: journal.set_snapshot(SHARD, 1, 1),
        lambda: journal.drop_below(SHARD, 2),
        lambda: journal.forget_cursor(SHARD),
    ]
    for act in acts:
        act()
    journal.load(SHARD)  # there is nothing to drop
    journal.close()
    assert execute(journal, "SELECT value FROM meta WHERE key = 'jcount'") == [(1 + len(acts),)]


# Frames


def test_stored_frames_come_back(tmp_path: Path) -> None:
    """Byte for byte, in order, from any place, at least one, up to a size."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(9)])
    sizes = [len(row.record) for row in story.rows]
    assert journal.frames(SHARD, 1, 10, 1 << 30) == story.records(1, 10)
    assert journal.frames(SHARD, 4, 6, 1 << 30) == story.records(4, 6)
    assert journal.frames(SHARD, 4, 99, 0) == story.records(4, 4)
    assert journal.frames(SHARD, 4, 99, sum(sizes[3:6])) == story.records(4, 6)
    assert journal.frames(SHARD, 4, 99, sum(sizes[3:6]) - 1) == story.records(4, 5)
    assert journal.frame_sizes(SHARD, 0) == list(enumerate(sizes, 1))
    assert journal.frame_sizes(SHARD, 7) == list(enumerate(sizes, 1))[7:]
    assert journal.frame_sizes(SHARD, 10) == []
    assert journal.count_bytes() == journal.count_bytes(SHARD) == sum(sizes)
    journal.close()


def test_frames_that_are_gone_are_not_replaced_by_later_ones(tmp_path: Path) -> None:
    """Whoever asks from a dropped frame on gets nothing, and so notices."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(9)])
    journal.set_archived(SHARD, 5)
    assert journal.frames(SHARD, 5, 10, 1 << 30) == []
    assert journal.frames(SHARD, 6, 10, 1 << 30) == story.records(6, 10)
    assert journal.frames(SHARD, 11, 12, 1 << 30) == []
    assert journal.frames(SHARD, 1 << 70, 1 << 71, 1 << 30) == []
    journal.close()


def test_shards_share_a_transaction_and_nothing_else(tmp_path: Path) -> None:
    """Two batches of one shard may be among them."""
    story, other = Story(), Story(Chain(number=3, pages={1: bytes(512)}), shard=OTHER)
    journal = begin(tmp_path, story)
    journal.begin_lineage(**other.birth())
    journal.store([story.commit(), other.commits(2), story.commits(2), story.batch([])])
    assert check_whole(journal) == 4
    assert check_whole(journal, OTHER) == 3
    total = sum(len(row.record) for row in story.rows + other.rows)
    assert journal.count_bytes() == total
    journal.close()


def test_a_gap_is_never_stored(tmp_path: Path) -> None:
    """Neither in seq nor in local numbers (Q14); the transaction is undone."""
    story = Story()
    journal = begin(tmp_path, story)
    first, second = story.commit(), story.commit()
    with pytest.raises(AssertionError, match="a gap"):
        journal.store([second])
    misnumbered = Batch(
        shard=SHARD,
        frames=(replace(story._row(story.chain.random_commit()), local_first=LocalNumber(4)),),
    )
    with pytest.raises(AssertionError, match="twice or not at all"):
        journal.store([first, second, misnumbered])
    assert journal.frame_sizes(SHARD, 1) == []
    journal.store([first, second])
    with pytest.raises(AssertionError, match="a gap"):
        journal.store([second])
    assert check_whole(journal) == 3
    journal.close()


def test_a_seq_beyond_a_row_id_is_refused(tmp_path: Path) -> None:
    """It would name a frame of another shard; a parent in the archive may claim any seq."""
    story = Story()
    journal = begin(tmp_path, story)
    genesis = story.chain.frames[0]
    frame = seal(
        shard=SHARD,
        seq=Seq(schema.SEQ_MAX + 1),
        timestamp_ns=genesis.head.timestamp_ns,
        salt=bytes(16),
        payload=genesis.payload,
        kind=Kind.CONFIG,
        flags=Flag.NONE,
        epoch=genesis.head.epoch,
        view=genesis.head.view,
        prev_hash=genesis.head.prev_hash,
        state_root=genesis.head.state_root,
        signer=signer(),
    )
    birth = story.birth()
    batch = Batch(shard=SHARD, frames=(story._row(frame),), page_size=512, db_pages=0)
    with pytest.raises(UsageError, match="another shard id"):
        journal.begin_lineage(**{**birth, "batch": batch})
    assert check_whole(journal) == 1
    journal.close()


def test_a_journal_that_has_seen_too_many_shards_refuses_one_more(tmp_path: Path) -> None:
    """19 bits number them; those that are known go on."""
    journal = begin(tmp_path, Story())
    journal.close()
    execute(journal, "UPDATE shard SET number = ?", schema.SHARD_NUMBER_MAX)
    execute(journal, "UPDATE frame SET id = id + ((? - 1) << 44)", schema.SHARD_NUMBER_MAX)
    execute(journal, "UPDATE leaf SET id = id + ((? - 1) << 32)", schema.SHARD_NUMBER_MAX)
    journal = Journal(tmp_path)
    assert check_whole(journal) == 1
    with pytest.raises(UsageError, match="new directory"):
        journal.begin_lineage(**Story(shard=OTHER).birth())
    assert journal.load(OTHER) is None
    journal.begin_lineage(**Story().birth())
    assert check_whole(journal) == 1
    journal.close()


# Runs


def test_a_run_moves_nothing_before_its_end(tmp_path: Path) -> None:
    """Tip, cursor, leaf hashes and local number stand in front of it until it is whole."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commit()])
    before = journal.leaves(SHARD)
    *pieces, last = story.run(4)
    for piece in pieces:
        journal.store([piece])
    assert journal.leaves(SHARD) == before
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [1, 2, 3, 4, 5]
    journal.store([last])
    assert check_whole(journal) == 6
    record = journal.load(SHARD)
    assert record is not None
    assert record.local_last == 2
    journal.close()


def test_whoever_asks_for_the_record_leaves_a_run_that_is_being_written_alone(
    tmp_path: Path,
) -> None:
    """The archive asks while commits are captured, and a large one comes in several pieces."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commit()])
    expected = journal.load(SHARD)
    *pieces, last = story.run(4)
    for piece in pieces:
        journal.store([piece])
        assert journal.record(SHARD) == expected
    journal.store([last])
    assert check_whole(journal) == 6
    assert journal.record(SHARD) == journal.load(SHARD) != expected
    journal.close()


@pytest.mark.parametrize("reopens", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_an_open_run_is_dropped_at_load(tmp_path: Path, pieces: int, reopens: bool) -> None:  # noqa: FBT001  (a parameter of the test)
    """A crash cut it off; it is captured again from its cursor, on the same seqs and numbers."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commit()])
    expected = journal.load(SHARD)
    bytes_before = journal.count_bytes()
    again = story.run(5)
    for piece in again[:pieces]:
        journal.store([piece])
    if reopens:
        journal.close()
        journal = Journal(tmp_path)
        assert journal.count_bytes() > bytes_before
    assert journal.load(SHARD) == expected
    assert check_whole(journal) == 2
    assert journal.count_bytes() == bytes_before
    for piece in again:
        journal.store([piece])
    assert check_whole(journal) == 7
    journal.close()


def test_an_open_run_is_dropped_when_everything_before_it_is_gone(tmp_path: Path) -> None:
    """The tip's own row need not be there."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commit()])
    journal.set_archived(SHARD, 2)
    pieces = story.run(3)
    for piece in pieces[:2]:
        journal.store([piece])
    for _ in range(2):
        assert journal.load(SHARD) is not None
        assert journal.frame_sizes(SHARD, 0) == []
        assert journal.count_bytes() == 0
        journal.close()
        journal = Journal(tmp_path)
    for piece in pieces:
        journal.store([piece])
    assert check_whole(journal) == 5
    journal.close()


# Cursor and leaf hashes


def test_a_note_without_frames_moves_only_the_place(tmp_path: Path) -> None:
    """Letting go of a file keeps the cursor; going on forgets that it was let go."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.batch([], detached=b"detached")])
    record = journal.load(SHARD)
    assert record is not None
    assert (record.cursor, record.detached) == (cursor_at(1), b"detached")
    journal.store([story.commit()])
    record = journal.load(SHARD)
    assert record is not None
    assert (record.cursor, record.detached) == (cursor_at(2), None)
    journal.close()


def test_leaf_hashes_follow_the_database(tmp_path: Path) -> None:
    """Also when it grows and shrinks: what is beyond its end is gone."""
    story = Story(pages=40)
    journal = begin(tmp_path, story)
    for grow in (0, 30, -60, 1, 16, -16, -1, 40):
        journal.store([story.commit(grow=grow)])
        assert journal.leaves(SHARD) == bytes(story.chain.tree.leaves)
        check_whole(journal)
    journal.close()
    assert execute(journal, "SELECT count(*) FROM leaf") == [(-(-story.chain.db_pages // 16),)]


def test_past_roots_are_those_of_whole_frames_newest_first(tmp_path: Path) -> None:
    """As far back as frames are held, over any number of them."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(3)])
    for batch in story.run(3):
        journal.store([batch])
    journal.store([story.commits(300)])
    journal.set_archived(SHARD, 1)
    expected = [
        PastRoot(seq=row.head.seq, state_root=row.head.state_root)
        for row in reversed(story.rows[1:])
        if not row.head.flags & Flag.PARTIAL
    ]
    assert list(journal.past_roots(SHARD)) == expected
    assert next(journal.past_roots(SHARD)) == expected[0]
    journal.close()


# Watermarks


def test_archived_frames_go(tmp_path: Path) -> None:
    """Those at or below the watermark, which never moves back."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(9)])
    journal.set_archived(SHARD, 4)
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [5, 6, 7, 8, 9, 10]
    journal.set_archived(SHARD, 3)
    record = journal.load(SHARD)
    assert record is not None
    assert (record.archived_seq, record.broken_seq) == (4, None)
    journal.set_archived(SHARD, 10)
    assert journal.frame_sizes(SHARD, 0) == []
    assert journal.count_bytes() == 0
    journal.store([story.commit()])
    assert check_whole(journal) == 11
    journal.close()
    journal = Journal(tmp_path)
    assert check_whole(journal) == 11
    journal.close()


def test_the_newest_archived_frames_stay_up_to_a_size(tmp_path: Path) -> None:
    """To recognise and mend a file that fell behind; one that does not fit goes."""
    story = Story()
    sizes = [len(row.record) for row in story.rows]
    journal = begin(tmp_path, story)
    journal.store([story.commits(9)])
    sizes = [len(row.record) for row in story.rows]
    for keep_bytes, first in (
        (1 << 30, 1),
        (sum(sizes[:7]), 1),
        (sum(sizes[:7]) - 1, 2),
        (sum(sizes[4:7]), 5),
        (sum(sizes[4:7]) - 1, 6),
        (sizes[6], 7),
        (sizes[6] - 1, 8),
        (0, 8),
    ):
        journal.set_archived(SHARD, 7, keep_bytes=keep_bytes)
        assert journal.frame_sizes(SHARD, 0)[0][0] == first
        assert journal.count_bytes() == sum(sizes[first - 1 :])
    journal.close()


def test_frames_for_a_snapshot_stay(tmp_path: Path) -> None:
    """From ``keep_from`` on, however old; then they may go."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(9)])
    journal.set_archived(SHARD, 8, keep_from=4)
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [4, 5, 6, 7, 8, 9, 10]
    journal.set_archived(SHARD, 8, keep_from=10)
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [9, 10]
    journal.close()


def test_what_is_dropped_unarchived_breaks_the_archive_in_one_step(tmp_path: Path) -> None:
    """P27: no crash can leave a gap that nobody knows of."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(9)])
    journal.set_archived(SHARD, 4, keep_bytes=1 << 30)

    def broken() -> int | None:
        record = journal.load(SHARD)
        assert record is not None
        return record.broken_seq

    journal.drop_below(SHARD, 5)
    assert broken() is None
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [5, 6, 7, 8, 9, 10]
    journal.drop_below(SHARD, 7)
    assert broken() == 6
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [7, 8, 9, 10]
    journal.drop_below(SHARD, 6)
    assert broken() == 6
    journal.set_broken(SHARD, None)
    assert broken() is None
    journal.set_broken(SHARD, 3)
    assert broken() == 3
    assert check_whole(journal) == 10
    journal.close()


def test_dropping_leaves_an_unfinished_run_alone(tmp_path: Path) -> None:
    """Its pieces are no frames that anybody could archive or miss."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commit()])
    pieces = story.run(4)
    for piece in pieces[:2]:
        journal.store([piece])
    journal.drop_below(SHARD, 99)
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [3, 4]
    for piece in pieces[2:]:
        journal.store([piece])
    record = journal.load(SHARD)
    assert record is not None
    assert (record.broken_seq, record.tip.seq) == (2, 6)
    assert check_whole(journal) == 6
    journal.close()


def test_the_newest_snapshot_is_remembered(tmp_path: Path) -> None:
    """Its seq and its time."""
    journal = begin(tmp_path, Story())
    journal.set_snapshot(SHARD, 7, 1_700_000_000_000_000_000)
    record = journal.load(SHARD)
    assert record is not None
    assert (record.snapshot_seq, record.snapshot_ns) == (7, 1_700_000_000_000_000_000)
    journal.close()


def test_a_snapshot_above_a_gap_mends_it(tmp_path: Path) -> None:
    """One below it does not: the gap is still between it and the log."""
    journal = begin(tmp_path, Story())
    journal.set_broken(SHARD, 7)
    for seq, expected in ((6, 7), (7, None)):
        journal.set_snapshot(SHARD, seq, 1)
        record = journal.load(SHARD)
        assert record is not None
        assert (record.snapshot_seq, record.broken_seq) == (seq, expected)
    journal.close()


def test_it_is_known_what_to_drop_for_some_room(tmp_path: Path) -> None:
    """Without a look at every frame; the tip always stays."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(9)])
    journal.set_archived(SHARD, 2)
    sizes = [len(row.record) for row in story.rows]
    assert journal.first_seq(SHARD) == 3
    for bytes_min, below in (
        (0, 3),
        (1, 4),
        (sizes[2], 4),
        (sizes[2] + 1, 5),
        (sum(sizes[2:6]), 7),
        (sum(sizes[2:9]), 10),
        (1 << 40, 10),
    ):
        assert journal.first_behind_oldest(SHARD, bytes_min) == below
    journal.store([story.run(3)[0]])
    assert journal.first_behind_oldest(SHARD, 1 << 40) == 10
    journal.set_archived(SHARD, 10)
    assert journal.first_seq(SHARD) == 11
    assert journal.first_behind_oldest(SHARD, 1) == 11
    journal.close()


# What is missing


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM leaf WHERE id = (SELECT min(id) FROM leaf)",
        "DELETE FROM leaf WHERE id = (SELECT min(id) + 1 FROM leaf)",
        "UPDATE leaf SET hashes = substr(hashes, 1, 480) WHERE id = (SELECT min(id) FROM leaf)",
        "UPDATE leaf SET hashes = substr(hashes, 1, 31) WHERE id = (SELECT max(id) FROM leaf)",
    ],
)
def test_missing_leaf_hashes_are_found(tmp_path: Path, damage: str) -> None:
    """Before anything is computed from the rest."""
    journal = begin(tmp_path, Story(pages=60))
    journal.close()
    execute(journal, damage)
    journal = Journal(tmp_path)
    with pytest.raises(CorruptionError, match="page hashes are missing"):
        journal.leaves(SHARD)
    journal.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE frame SET id = id + 100 WHERE id = (SELECT max(id) - 3 FROM frame)",
        "UPDATE frame SET crc = crc + 1 WHERE id = (SELECT max(id) - 3 FROM frame)",
        "UPDATE frame SET record = x'00' WHERE id = (SELECT max(id) - 3 FROM frame)",
    ],
)
def test_missing_and_changed_frames_are_found(tmp_path: Path, damage: str) -> None:
    """They are not handed out, and nobody is told that they were none."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(6)])
    journal.close()
    execute(journal, damage)
    journal = Journal(tmp_path)
    with pytest.raises(CorruptionError, match="frame 4 in the journal"):
        journal.frames(SHARD, 1, 7, 1 << 20)
    journal.close()


def test_a_cut_needs_the_row_it_cuts_at(tmp_path: Path) -> None:
    """A missing one is damage and no reason to forget where the bytes stood."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(6)])
    journal.close()
    execute(journal, "DELETE FROM frame WHERE id = (SELECT max(id) - 3 FROM frame)")
    journal = Journal(tmp_path)
    with pytest.raises(CorruptionError, match=r"frame 4 in the journal .* is missing"):
        journal.set_archived(SHARD, 4)
    journal.close()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("UPDATE shard SET tip = substr(tip, 1, 50)", "is damaged"),
        ("DELETE FROM meta WHERE key = 'journal_id'", "is damaged"),
        ("UPDATE meta SET key = 'name' WHERE key = 'journal_id'", "is damaged"),
        ("DROP TABLE leaf", "its tables are not those of version 2"),
        ("ALTER TABLE leaf ADD COLUMN more BLOB", "its tables are not those of version 2"),
    ],
)
def test_a_damaged_journal_is_named(tmp_path: Path, damage: str, reason: str) -> None:
    """With the way out, whoever finds it: the start, or the shard that is loaded."""
    journal = begin(tmp_path, Story())
    journal.close()
    execute(journal, damage)
    with pytest.raises(CorruptionError, match=rf"{reason}.*move .* aside"):
        load_anew(tmp_path)


def test_a_tip_that_nobody_signed_is_found(tmp_path: Path) -> None:
    """A rotten bit in it would be built on by every later frame."""
    journal = begin(tmp_path, Story())
    journal.close()
    ((tip,),) = execute(journal, "SELECT tip FROM shard")
    at = len(tip) - 70  # the author's key and the signature end a head
    execute(journal, "UPDATE shard SET tip = ?", tip[:at] + bytes([tip[at] ^ 1]) + tip[at + 1 :])
    with pytest.raises(CorruptionError, match="nobody signed its tip"):
        load_anew(tmp_path)


def test_a_row_that_is_spoiled_while_we_run_is_found(tmp_path: Path) -> None:
    """A shard that is loaded again reads it again, and says which shard it is."""
    journal = begin(tmp_path, Story())
    journal._file._writer.execute("UPDATE shard SET tip = x'06'")
    with pytest.raises(CorruptionError, match="shard app: a HEAD record"):
        journal.load(SHARD)
    journal._file._writer.execute("DELETE FROM shard")
    with pytest.raises(CorruptionError, match="shard app: "):
        journal.load(SHARD)
    journal.close()


def load_anew(folder: Path) -> None:
    journal = Journal(folder)
    try:
        journal.load(SHARD)
        journal.leaves(SHARD)
        assert journal.frames(SHARD, 1, 1, 0), "the genesis is held"
    finally:
        journal.close()


# Everything at once


class LifeOfAJournal(RuleBasedStateMachine):
    """Births, commits, runs, cuts and restarts in any order, against a list of what must be there.

    ``held``: the (seq, record) of every frame that the journal must give back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.journal = Journal(Path(self._folder.name))

    @initialize(pages=st.integers(0, 40))
    def birth(self, *, pages: int) -> None:
        self.story = Story(Chain(pages={pgno: bytes(512) for pgno in range(1, pages + 1)}))
        self.lineages = 1
        self._be_born()

    def _be_born(self) -> None:
        self.journal.begin_lineage(**self.story.birth())
        self.held = self.story.records(0, 1 << 40)
        self.whole = self.held[-1][0]
        self.archived_seq = self.whole - 1
        self.broken_seq: int | None = None

    @precondition(lambda self: self.whole == self.story.rows[-1].head.seq)
    @rule()
    def child(self) -> None:
        self.lineages += 1
        chain = Chain(number=self.lineages % 250 + 1, parent=self.story.chain)
        self.story = Story(chain)
        self._be_born()

    @rule(count=st.integers(1, 4))
    def commits(self, *, count: int) -> None:
        self._drop_open_run()
        self.journal.store([self.story.commits(count)])
        self._end_whole()

    @rule(grow=st.integers(-40, 40))
    def resize(self, *, grow: int) -> None:
        self._drop_open_run()
        self.journal.store([self.story.commit(grow=grow)])
        self._end_whole()

    @rule(pieces=st.integers(2, 4), stored=st.integers(1, 4))
    def run(self, *, pieces: int, stored: int) -> None:
        """A run, of which perhaps not all pieces are stored."""
        self._drop_open_run()
        story = copy.deepcopy(self.story, {id(self.story.chain.signer): self.story.chain.signer})
        batches = self.story.run(pieces)
        for batch in batches[:stored]:
            self.journal.store([batch])
        if stored >= pieces:
            self._end_whole()
            return
        tip = self.story.rows[-pieces].head.seq
        self.held += self.story.records(tip, tip + stored - 1)
        self.story = story  # that transaction never happened

    def _drop_open_run(self) -> None:
        """A session that stopped inside a run begins with `load`."""
        if self.held and self.held[-1][0] > self.whole:
            self.load()

    def _end_whole(self) -> None:
        self.held += self.story.records(self.whole + 1, 1 << 40)
        self.whole = self.held[-1][0]

    @rule()
    def load(self) -> None:
        record = self.journal.load(SHARD)
        assert record is not None
        self.held = [(seq, encoded) for seq, encoded in self.held if seq <= self.whole]
        head = self.story.rows[-1].head
        assert (record.tip, record.lineage) == (head, self.story.chain.lineage)
        assert record.cursor == cursor_at(head.seq)
        assert (record.archived_seq, record.broken_seq) == (self.archived_seq, self.broken_seq)
        assert record.local_last == self.story.local_last
        assert record.db_pages == self.story.chain.db_pages

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal(Path(self._folder.name))

    @rule(back=st.integers(0, 6), keep=st.integers(0, 3_000), kept_from=st.integers(-1, 8))
    def archived(self, *, back: int, keep: int, kept_from: int) -> None:
        seq = max(self.whole - back, 0)
        keep_from = None if kept_from < 0 else self.whole - kept_from
        self.journal.set_archived(SHARD, seq, keep_bytes=keep, keep_from=keep_from)
        self.archived_seq = max(self.archived_seq, seq)
        first, size = seq + 1, 0
        for held, encoded in reversed([row for row in self.held if row[0] <= seq]):
            size += len(encoded)
            if size > keep:
                break
            first = held
        first = first if keep_from is None else min(first, keep_from)
        self.held = [row for row in self.held if row[0] >= first]

    @rule(back=st.integers(-2, 6))
    def dropped(self, *, back: int) -> None:
        below = self.whole - back
        self.journal.drop_below(SHARD, below)
        dropped = min(below - 1, self.whole)
        if dropped > self.archived_seq:
            self.broken_seq = max(self.broken_seq or 0, dropped)
        self.held = [row for row in self.held if row[0] > dropped]

    @rule(seq=st.none() | st.integers(1, 9))
    def broke(self, *, seq: int | None) -> None:
        self.journal.set_broken(SHARD, seq)
        self.broken_seq = seq

    @invariant()
    def frames_are_those_that_were_stored(self) -> None:
        sizes = [(seq, len(encoded)) for seq, encoded in self.held]
        assert self.journal.frame_sizes(SHARD, 0) == sizes
        assert self.journal.count_bytes() == sum(size for _, size in sizes)
        if self.held:
            start = self.held[0][0]
            assert self.journal.frames(SHARD, start, 1 << 40, 1 << 40) == self.held
            assert self.journal.frames(SHARD, start - 1, 1 << 40, 1 << 40) == []

    @invariant()
    def leaf_hashes_are_those_of_the_tip(self) -> None:
        assert self.journal.leaves(SHARD) == bytes(self.story.chain.tree.leaves)

    def teardown(self) -> None:
        self.journal.close()
        self._folder.cleanup()


TestLifeOfAJournal = LifeOfAJournal.TestCase
TestLifeOfAJournal.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
