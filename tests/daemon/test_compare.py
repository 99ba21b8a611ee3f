"""What the journal says of itself when it is compared with the archive."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from basenet.archive.continuation import Child
from basenet.archive.parentstate import ParentState
from basenet.daemon.chain import groups_to_send
from basenet.daemon.compare import make_parent, read_journal_facts
from basenet.daemon.journalist import Journalist
from basenet.journal.journal import Journal
from basenet.units import Lineage, Seq
from basenet.wire.merkle import StateTree
from tests.daemon.model import SHARD, Model, born, frames_of, loaded
from tests.fakes.chain import Chain, lineage


@asynccontextmanager
async def reading(journal: Journal) -> AsyncIterator[Journalist]:
    try:
        async with trio.open_nursery() as nursery:
            journalist = Journalist(journal)
            nursery.start_soon(journalist.run)
            yield journalist
            nursery.cancel_scope.cancel()
    finally:
        journal.close()


def with_commits(folder: Path, model: Model, count: int) -> Journal:
    journal = born(folder, model)
    _, framer = loaded(journal)
    journal.store([framer.frame([model.commit() for _ in range(count)])])
    return journal


async def test_the_facts_are_those_of_what_is_held(tmp_path: Path) -> None:
    """With the hash of each frame, and None for what is not held (any more)."""
    journal = with_commits(tmp_path, Model(), 5)
    frames = frames_of(journal)
    journal.set_archived(SHARD, 3)
    record, _ = loaded(journal)
    async with reading(journal) as journalist:
        facts = await read_journal_facts(journalist, record, journal.journal_id)
        assert (facts.genesis_seq, facts.first_seq, facts.tip_seq) == (1, 4, 6)
        assert (facts.archived_seq, facts.tip_hash) == (3, frames[-1].head.hash)
        hashes = [await facts.hash_at(Seq(seq)) for seq in range(1, 8)]
        assert hashes == [None] * 3 + [frame.head.hash for frame in frames[3:]] + [None]
        assert facts.is_written_by(frames[0].head.author)


async def test_a_journal_that_shipped_all_still_knows_its_tip(tmp_path: Path) -> None:
    """Its frames are gone, and the hash of the tip is in its record."""
    journal = with_commits(tmp_path, Model(), 2)
    journal.set_archived(SHARD, 3)
    record, _ = loaded(journal)
    async with reading(journal) as journalist:
        facts = await read_journal_facts(journalist, record, journal.journal_id)
        assert facts.first_seq == 4
        assert await facts.hash_at(Seq(3)) == record.tip.hash
        assert await facts.hash_at(Seq(2)) is None


async def test_the_journals_own_history_may_be_the_parent(tmp_path: Path) -> None:
    """Its leaves are the parent's state: an unchanged file sends nothing."""
    model = Model(pages=40)
    journal = with_commits(tmp_path, model, 2)
    record, _ = loaded(journal)
    child = Child(
        parent=record.lineage,
        seq=record.tip.seq,
        hash=record.tip.hash,
        state=None,
        is_forced=False,
        archive_epoch=0,
    )
    async with reading(journal) as journalist:
        parent = await make_parent(journalist, SHARD, child, record)
    assert not parent.is_archived
    assert (parent.seq, parent.state_root) == (record.tip.seq, model.root)
    assert groups_to_send(model.leaves, parent, 512) == set()
    model.commit(33)
    assert groups_to_send(model.leaves, parent, 512) == {2}


async def test_an_archived_parent_sends_what_is_not_known_of_it(tmp_path: Path) -> None:
    """A group whose hash the archive's log does not tell counts as differing."""
    model, other = Model(pages=40), Chain(number=9)
    head = other.random_commit(grow=3).head
    state = ParentState(
        head=head,
        page_size=512,
        db_pages=40,
        groups=bytes(StateTree(512, model.leaves).groups),
        known=b"\x01\x00\x01",
    )
    child = Child(
        parent=Lineage(lineage(9)),
        seq=head.seq,
        hash=head.hash,
        state=state,
        is_forced=True,
        archive_epoch=3,
    )
    async with reading(born(tmp_path, model)) as journalist:
        parent = await make_parent(journalist, SHARD, child, None)
    assert (parent.is_archived, parent.is_forced) == (True, True)
    assert (parent.seq, parent.hash, parent.state_root) == (head.seq, head.hash, head.state_root)
    assert parent.timestamp_ns == head.timestamp_ns
    assert groups_to_send(model.leaves, parent, 512) == {1}
