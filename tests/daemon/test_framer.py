"""Captured commits become frames of one chain, and a batch that makes them durable."""

from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path

import pytest

from basenet.daemon.framer import Framer
from basenet.errors import ChainBroken
from basenet.sqlite.captured import CaptureFlag
from basenet.units import GROUP_PAGES, HASH_BYTES, ZERO_HASH
from basenet.wire.frame import Flag, check_link
from basenet.wire.payload import decode_commit
from tests.daemon.model import SHARD, Model, born, frames_of, loaded


def salts_from(start: int) -> Callable[[int], bytes]:
    numbers = count(start)
    return lambda size: next(numbers).to_bytes(size, "big")


def test_each_commit_becomes_a_signed_frame_of_its_state(tmp_path: Path) -> None:
    """Linked, with the pages, the root after it and the next number of a commit."""
    model = Model()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    roots, items = [], []
    for pgnos in ((1, 2), (3,), (21, 22)):
        items.append(model.commit(*pgnos))
        roots.append(model.root)
    batch = framer.frame(items)
    journal.store([batch])
    frames = frames_of(journal)
    assert [frame.head.state_root for frame in frames[1:]] == roots
    assert [(row.local_first, row.local_last) for row in batch.frames] == [(1, 1), (2, 2), (3, 3)]
    for before, after in pairwise(frames):
        check_link(before.head, after.head)
        assert after.head.is_signed_by_author()
    for frame, item in zip(frames[1:], items, strict=True):
        payload = decode_commit(frame.payload)
        assert payload.pgnos.tolist() == item.pgnos.tolist()
        assert bytes(payload.pages) == bytes(item.pages)
        assert (payload.db_pages, payload.commits) == (item.db_pages, 1)
    journal.close()


def test_a_batch_brings_the_journal_to_the_state_of_its_tip(tmp_path: Path) -> None:
    """Cursor, size and changed groups are enough: leaves read back give the tip's root."""
    model = Model(pages=40)
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    batch = framer.frame([model.commit(1), model.commit(18, 41), model.commit(2)])
    assert set(batch.groups) == {0, 1, 2}
    journal.store([batch])
    record, again = loaded(journal)
    assert journal.leaves(record.shard) == model.leaves
    assert record.cursor == model.cursor.encode()
    assert (record.db_pages, record.local_last) == (41, 3)
    assert again.tree.root() == model.root
    journal.close()


def test_a_run_is_one_change_of_the_state(tmp_path: Path) -> None:
    """Its pieces are PARTIAL, without root or number; the last has both, and the cursor."""
    model = Model()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    batch = framer.frame([model.commit(1), *model.three_pieces()])
    assert [row.head.flags for row in batch.frames] == [0, Flag.PARTIAL, Flag.PARTIAL, 0]
    assert [row.head.state_root for row in batch.frames[1:3]] == [ZERO_HASH, ZERO_HASH]
    assert batch.frames[3].head.state_root == model.root
    assert [(row.local_first, row.local_last) for row in batch.frames[1:]] == [
        (2, 1),
        (2, 1),
        (2, 2),
    ]
    assert batch.cursor == model.cursor.encode()
    journal.close()


def test_inside_a_run_neither_cursor_nor_leaves_move(tmp_path: Path) -> None:
    """A crash there takes the journal back to the state before the run, whole."""
    model = Model()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    commit, commit_cursor = model.commit(20), model.cursor
    leaves, root = model.leaves, model.root
    first, second, last = model.three_pieces()
    batch = framer.frame([commit, first])
    assert batch.cursor == commit_cursor.encode()
    assert set(batch.groups) == {1}
    assert framer.tree.root() == root
    inside = framer.frame([second])
    assert (inside.cursor, inside.groups) == (None, {})
    journal.store([batch])
    journal.store([inside])
    assert journal.leaves(batch.shard) == leaves
    ending = framer.frame([last])
    assert ending.frames[0].head.state_root == model.root
    assert set(ending.groups) == {0, 1}
    journal.store([ending])
    assert journal.leaves(batch.shard) == model.leaves
    journal.close()


def test_a_run_that_a_restart_cut_off_is_captured_anew(tmp_path: Path) -> None:
    """The journal forgets its pieces, and the same run follows once more, from its beginning."""
    model = Model()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    run = model.three_pieces()
    journal.store([framer.frame(run[:2])])
    _, framer = loaded(journal)
    assert framer.tip.seq == 1
    journal.store([framer.frame(run)])
    record, _ = loaded(journal)
    assert (record.tip.seq, record.tip.state_root) == (4, model.root)
    journal.close()


def test_a_smaller_database_drops_its_leaves(tmp_path: Path) -> None:
    """Groups that are gone are in no batch, and not in the journal after it."""
    model = Model(pages=50)
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    batch = framer.frame([model.commit(49), model.commit(1, db_pages=17)])
    assert max(batch.groups) == 1
    assert len(batch.groups[1]) == HASH_BYTES
    journal.store([batch])
    assert journal.leaves(batch.shard) == model.leaves
    assert len(model.leaves) == (GROUP_PAGES + 1) * HASH_BYTES
    journal.close()


def test_another_page_size_begins_a_new_tree(tmp_path: Path) -> None:
    """VACUUM may change it: all groups are stored anew, in the same batch as commits before."""
    model = Model(pages=60)
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    before = model.commit(60)
    model.page_size, model.pages = 1024, {}
    after = model.commit(*range(1, 31))
    batch = framer.frame([before, after])
    assert (batch.page_size, batch.db_pages, set(batch.groups)) == (1024, 30, {0, 1})
    assert batch.frames[-1].head.state_root == model.root
    journal.store([batch])
    record, again = loaded(journal)
    assert (record.page_size, record.tip.state_root) == (1024, again.tree.root())
    journal.close()


def test_growth_without_the_new_pages_breaks_the_chain(tmp_path: Path) -> None:
    """Nothing is stored of it, and from the journal the right change can still follow."""
    model = Model()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    journal.store([framer.frame([model.commit(5)])])
    with pytest.raises(ChainBroken, match="grows from 20 to 25"):
        framer.frame([Model().commit(25)])
    record, framer = loaded(journal)
    assert record.tip.seq == 2
    journal.store([framer.frame([model.commit(21, 22, 23, 24, 25)])])
    record, _ = loaded(journal)
    assert record.tip.state_root == model.root
    journal.close()


def test_a_recovered_change_keeps_its_flag_and_has_no_number(tmp_path: Path) -> None:
    """Nobody counted its commits, so the numbers of the others stay without a gap."""
    model = Model()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    batch = framer.frame(
        [model.commit(1), model.commit(2, flags=CaptureFlag.RECOVERED), model.commit(3)]
    )
    assert [row.head.flags for row in batch.frames] == [0, Flag.RECOVERED, 0]
    assert [row.local_last for row in batch.frames] == [1, 1, 2]
    journal.close()


def test_equal_commits_become_equal_frames_but_for_their_salts(tmp_path: Path) -> None:
    """Chance enters by the salt alone."""
    model = Model()
    journal = born(tmp_path, model)
    item = model.commit(1)
    records = []
    for start in (0, 0, 1):
        _, framer = loaded(journal)
        salted = Framer(
            framer.replica,
            framer.tree,
            shard=SHARD,
            make_salt=salts_from(start),
        )
        records.append(salted.frame([item]).frames[0].record)
    assert records[0] == records[1] != records[2]
    journal.close()
