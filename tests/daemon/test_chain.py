"""A shard's chain: born over a file, loaded from the journal."""

import sqlite3
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from basenet.daemon.chain import (
    Parent,
    groups_to_send,
    is_voter,
    leaves_without,
    load,
)
from basenet.errors import CorruptionError
from basenet.journal.journal import Journal
from basenet.sqlite.captured import CaptureFlag
from basenet.units import GROUP_PAGES, HASH_BYTES, Lineage, Seq, ShardId, TimestampNs
from basenet.wire.frame import Flag, Kind, check_link, genesis_prev_hash
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_config
from tests.daemon.model import (
    SHARD,
    SIGNER,
    Model,
    author_of,
    born,
    frames_of,
    give_birth,
    loaded,
)
from tests.fakes.chain import JOURNAL_ID, signer

_GROUP_BYTES = GROUP_PAGES * HASH_BYTES


def parent_of(model: Model, *, seq: int = 41, is_archived: bool = True) -> Parent:
    """Return ``model`` as the state of an archived frame of another lineage."""
    groups = bytes(StateTree(model.page_size, model.leaves).groups)
    return Parent(
        lineage=Lineage(b"p" * 16),
        seq=Seq(seq),
        hash=b"h" * 32,
        state_root=model.root,
        page_size=model.page_size,
        timestamp_ns=TimestampNs(4_000_000_000_000_000_000),
        group_hashes=tuple(
            groups[start : start + HASH_BYTES] for start in range(0, len(groups), HASH_BYTES)
        ),
        is_forced=False,
        is_archived=is_archived,
    )


# Birth


def test_a_lineage_begins_with_the_state_of_the_adopted_file(tmp_path: Path) -> None:
    """Frame 1 is a CONFIG that names its author as the one voter and the file's root."""
    model = Model()
    journal = born(tmp_path, model)
    record, framer = loaded(journal)
    (genesis,) = frames_of(journal)
    config = decode_config(genesis.payload)
    assert (genesis.head.seq, genesis.head.kind) == (1, Kind.CONFIG)
    assert genesis.head.prev_hash == genesis_prev_hash(genesis.payload)
    assert genesis.head.state_root == model.root == framer.tree.root()
    assert [voter.key for voter in config.voters] == [SIGNER.public]
    assert config.parent is None
    assert record.cursor == model.cursor.encode()
    assert (record.local_last, record.archived_seq, record.snapshot_seq) == (0, 0, 0)
    assert journal.leaves(SHARD) == model.leaves
    journal.close()


def test_a_child_names_its_parent_and_begins_with_its_root(tmp_path: Path) -> None:
    """Its genesis follows the parent's frame in seq and time; all before counts as archived."""
    model = Model()
    parent = parent_of(model)
    journal = Journal(tmp_path)
    give_birth(journal, model, parent=parent)
    record, _ = loaded(journal)
    (genesis,) = frames_of(journal)
    assert decode_config(genesis.payload).parent == (parent.lineage, parent.seq, parent.hash)
    assert genesis.head.seq == parent.seq + 1
    assert genesis.head.timestamp_ns > parent.timestamp_ns
    assert genesis.head.state_root == parent.state_root
    assert (record.archived_seq, record.snapshot_seq) == (parent.seq, parent.seq)
    journal.close()


def test_what_the_file_has_beyond_its_parent_follows_at_once(tmp_path: Path) -> None:
    """As a RECOVERED frame in the same transaction, so that no half of it can be loaded."""
    model = Model()
    parent = parent_of(model)
    beyond = model.commit(3, 21, flags=CaptureFlag.RECOVERED)
    journal = Journal(tmp_path)
    give_birth(journal, model, parent=parent, beyond=(beyond,))
    record, framer = loaded(journal)
    genesis, recovered = frames_of(journal)
    assert genesis.head.state_root == parent.state_root
    assert recovered.head.flags == Flag.RECOVERED
    assert recovered.head.state_root == model.root == framer.tree.root()
    check_link(genesis.head, recovered.head)
    assert record.cursor == beyond.cursor.encode()
    assert journal.leaves(SHARD) == model.leaves
    journal.close()


def test_a_parent_that_is_not_archived_is_no_snapshot(tmp_path: Path) -> None:
    """A restore cannot walk up to it, so the child needs a snapshot of its own at once."""
    model = Model()
    journal = Journal(tmp_path)
    give_birth(journal, model, parent=parent_of(model, is_archived=False))
    record, _ = loaded(journal)
    assert record.snapshot_seq == 0
    journal.close()


def test_a_forced_child_says_so(tmp_path: Path) -> None:
    """Only an operator who names its key believes it."""
    model = Model()
    journal = Journal(tmp_path)
    give_birth(journal, model, parent=replace(parent_of(model), is_forced=True))
    record, _ = loaded(journal)
    assert decode_config(record.config).is_forced
    journal.close()


def test_each_birth_is_another_lineage(tmp_path: Path) -> None:
    """Two histories of one file are never taken for one, and the older one's frames go."""
    model = Model()
    journal = born(tmp_path, model)
    first, framer = loaded(journal)
    journal.store([framer.frame([model.commit(1), model.commit(2)])])
    give_birth(journal, model)
    second, _ = loaded(journal)
    assert first.lineage != second.lineage
    assert [frame.head.kind for frame in frames_of(journal)] == [Kind.CONFIG]
    journal.close()


def test_commits_are_numbered_on_over_a_birth(tmp_path: Path) -> None:
    """A number stands for one commit that this node captured, in whatever lineage."""
    model = Model()
    journal = Journal(tmp_path)
    give_birth(journal, model, local_last=70, parent=parent_of(model))
    _, framer = loaded(journal)
    batch = framer.frame([model.commit()])
    assert (batch.frames[0].local_first, batch.frames[0].local_last) == (71, 71)
    journal.store([batch])
    assert loaded(journal)[0].local_last == 71
    journal.close()


# Loading


def test_nothing_is_loaded_before_the_genesis(tmp_path: Path) -> None:
    """None says that the shard is to be born."""
    journal = Journal(tmp_path)
    assert load(journal, ShardId("unborn"), SIGNER) is None
    journal.close()


def test_a_loaded_chain_goes_on_where_it_stood(tmp_path: Path) -> None:
    """After a restart the next frame links to the stored tip and everything stored is final."""
    model = Model()
    journal = born(tmp_path, model)
    _, framer = loaded(journal)
    journal.store([framer.frame([model.commit(1), model.commit(2)])])
    journal.close()
    journal = Journal(tmp_path)
    record, framer = loaded(journal)
    assert (framer.tip, framer.local_last, framer.is_run_open) == (record.tip, 2, False)
    batch = framer.frame([model.commit(3)])
    assert framer.final_count == 1
    check_link(record.tip, batch.frames[0].head)
    assert batch.frames[0].local_last == 3
    journal.close()


def test_wrong_leaf_hashes_are_found_at_the_start(tmp_path: Path) -> None:
    """A diff against them would sign a difference that is none; the sentence names the shard."""
    born(tmp_path, Model()).close()
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        ((row, hashes),) = connection.execute("SELECT id, hashes FROM leaf ORDER BY id LIMIT 1")
        wrong = bytes([hashes[0] ^ 1]) + hashes[1:]
        connection.execute("UPDATE leaf SET hashes = ? WHERE id = ?", (wrong, row))
    connection.close()
    journal = Journal(tmp_path)
    with pytest.raises(CorruptionError, match="page hashes of shard app do not give"):
        load(journal, SHARD, SIGNER)
    journal.close()


def test_only_a_voter_may_continue_a_lineage(tmp_path: Path) -> None:
    """Another key than the one that gave birth is none."""
    journal = born(tmp_path, Model())
    record, _ = loaded(journal)
    assert is_voter(record.config, SIGNER)
    assert not is_voter(record.config, signer(2))
    journal.close()


def test_the_membership_of_one_node_is_hashed_as_the_formats_say() -> None:
    """SHA256 of its name's length, its name and its key (Q1)."""
    expected = sha256(b"\x05node1" + SIGNER.public).digest()
    assert author_of(JOURNAL_ID).members_hash() == expected


# What a child must carry


def test_only_groups_that_differ_or_are_not_known_are_sent() -> None:
    """A group that the parent lacks, or whose hash is unknown, counts as differing."""
    model = Model(pages=5 * GROUP_PAGES)
    parent = parent_of(model)
    unknown = tuple(
        None if group == 3 else hash_ for group, hash_ in enumerate(parent.group_hashes)
    )
    parent = replace(parent, group_hashes=unknown)
    assert groups_to_send(model.leaves, parent, 512) == {3}
    model.commit(1, 5 * GROUP_PAGES + 1)
    assert groups_to_send(model.leaves, parent, 512) == {0, 3, 5}


def test_another_page_size_sends_every_group() -> None:
    """Equal group hashes would then be an accident of other pages."""
    model = Model(pages=40)
    assert groups_to_send(model.leaves, parent_of(model), 1024) == {0, 1, 2}


def test_leaves_are_blanked_for_the_groups_to_send_alone() -> None:
    """A diff against them finds all pages of those groups; the last group may be short."""
    leaves = Model(pages=2 * GROUP_PAGES + 3).leaves
    blanked = leaves_without(leaves, {0, 2})
    assert blanked[:_GROUP_BYTES] == bytes(_GROUP_BYTES)
    assert blanked[_GROUP_BYTES : 2 * _GROUP_BYTES] == leaves[_GROUP_BYTES : 2 * _GROUP_BYTES]
    assert blanked[2 * _GROUP_BYTES :] == bytes(3 * HASH_BYTES)
    assert leaves_without(leaves, ()) == leaves
