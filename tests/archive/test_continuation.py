"""How a journal continues an archive: never two histories under one lineage (P9, Q4)."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from basenet.archive.continuation import (
    Birth,
    Child,
    Continuation,
    JournalFacts,
    Refuse,
    Resume,
    decide_continuation,
)
from basenet.archive.place import Place
from basenet.archive.port import StoreUnavailable
from basenet.archive.restore import restore
from basenet.errors import ConflictError, CorruptionError, UntrustedKey
from basenet.units import HASH_BYTES, JournalId, PublicKeyBytes, Seq
from basenet.wire.frame import Flag
from basenet.wire.merkle import StateTree, leaf_hash
from tests.archive.builder import History
from tests.fakes.chain import Chain, signer
from tests.fakes.journal import journal_of
from tests.fakes.memory_store import Fault, MemoryStore, always
from tests.fakes.shipping import NAMES, put_tip, ship, snapshot

OTHER_JOURNAL = JournalId(b"k" * 16)


async def decide(
    store: MemoryStore,
    journal: JournalFacts | None,
    *,
    key: int = 1,
    trusted: Sequence[int] = (1,),
) -> Continuation:
    return await decide_continuation(
        store,
        NAMES,
        journal=journal,
        key=signer(key).public,
        trusted=frozenset(PublicKeyBytes(signer(number).public) for number in trusted),
    )


def make_chain(commits: int = 20, **more: object) -> Chain:
    chain = Chain(**more)  # type: ignore[arg-type]
    for _ in range(commits):
        chain.random_commit(grow=1)
    return chain


async def test_nothing_anywhere_is_a_birth() -> None:
    """No journal, no archive: a genesis begins the shard."""
    assert await decide(MemoryStore(), None) == Birth()


async def test_our_journal_goes_on_where_the_archive_ends() -> None:
    """Same journal, at or above the archive's end, with the same frame there: same lineage."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain, end=12, archive_epoch=3)
    put_tip(store, chain, 9, archive_epoch=3)
    for tip in (21, 13, 12):
        assert await decide(store, journal_of(chain, tip=tip)) == Resume(
            archived_seq=Seq(12), needs_snapshot=False, archive_epoch=3, has_tip=True
        )


async def test_a_pruned_journal_goes_on_by_its_own_record() -> None:
    """Archived frames are not kept; that we archived them is."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain, end=12)
    decision = await decide(store, journal_of(chain, first=13, archived=12))
    assert decision == Resume(archived_seq=Seq(12), needs_snapshot=False, archive_epoch=1)


async def test_an_undecided_object_that_arrived_counts_as_archived() -> None:
    """The process before us did not hear of it; the archive's end is what counts."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain, end=16)
    decision = await decide(store, journal_of(chain, first=9, archived=8))
    assert isinstance(decision, Resume)
    assert decision.archived_seq == 16


async def test_a_new_archive_gets_the_whole_log_while_the_journal_has_it() -> None:
    """An archive that was configured later, or emptied, is filled from the genesis on."""
    chain = make_chain()
    decision = await decide(MemoryStore(), journal_of(chain))
    assert decision == Resume(archived_seq=Seq(0), needs_snapshot=False, archive_epoch=0)


async def test_a_new_archive_and_a_pruned_journal_make_a_child_of_ourselves() -> None:
    """Without its genesis a lineage cannot be placed; its state is in the journal's leaves."""
    chain = make_chain()
    decision = await decide(MemoryStore(), journal_of(chain, first=10))
    assert isinstance(decision, Child)
    assert (decision.parent, decision.seq) == (chain.lineage, 21)
    assert decision.hash == chain.tip.head.hash
    assert (decision.state, decision.is_forced) == (None, False)


@pytest.mark.parametrize("how", ["empty", "older", "copied", "other"])
async def test_a_journal_that_is_not_the_archives_tip_never_continues_its_lineage(
    how: str,
) -> None:
    """Empty, older, a copy with its own id, or another frame at the tip: a child of the tip."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain)
    put_tip(store, chain, 21)
    other = make_chain(25, seed=99)
    journal = {
        "empty": None,
        "older": journal_of(chain, tip=20),
        "copied": journal_of(chain, journal_id=OTHER_JOURNAL),
        "other": journal_of(other),
    }[how]
    decision = await decide(store, journal)
    assert isinstance(decision, Child)
    assert (decision.parent, decision.seq) == (chain.lineage, 21)
    assert decision.hash == chain.tip.head.hash
    assert (decision.is_forced, decision.archive_epoch) == (False, 1)
    assert decision.state is not None
    assert decision.state.state_root == chain.tip.head.state_root
    assert (decision.state.page_size, decision.state.db_pages) == (512, chain.db_pages)


async def test_a_lineage_that_somebody_continued_is_not_ours_any_more() -> None:
    """The node that comes back after it was replaced begins a child of the replacement's."""
    store = MemoryStore()
    chain = make_chain(10)
    ship(store, chain)
    child = Chain(number=2, parent=chain, journal_id=OTHER_JOURNAL)
    child.random_commit(grow=1)
    ship(store, child)
    chain.random_commit(grow=1)
    decision = await decide(store, journal_of(chain))
    assert isinstance(decision, Child)
    assert (decision.parent, decision.seq) == (child.lineage, child.tip.head.seq)


async def test_a_child_resumes_as_any_other_lineage() -> None:
    """Its genesis seq is the parent's plus one, and its log begins there."""
    store = MemoryStore()
    chain = make_chain(10)
    ship(store, chain)
    child = Chain(number=2, parent=chain, parent_seq=9)
    for _ in range(6):
        child.random_commit(grow=1)
    assert child.start == 10
    ship(store, child, end=13)
    decision = await decide(store, journal_of(child))
    assert decision == Resume(archived_seq=Seq(13), needs_snapshot=False, archive_epoch=1)


async def test_a_key_that_is_no_voter_makes_a_forced_child() -> None:
    """The archive is believed (its key is trusted), but we never voted in it."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain)
    decision = await decide(store, None, key=2, trusted=(1, 2))
    assert isinstance(decision, Child)
    assert decision.is_forced


async def test_an_archive_of_an_unknown_key_is_refused_with_a_way_on() -> None:
    """Deleted with the data directory: the sentence has the fingerprint and what to do."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain)
    decision = await decide(store, None, key=2, trusted=(2,))
    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, UntrustedKey)
    assert "SHA256:" in str(decision.error)
    assert "basenet keys show" in str(decision.error)


async def test_a_state_that_cannot_be_told_makes_a_child_that_brings_every_page() -> None:
    """The first snapshot never finished, and the journal is lost: no database is stopped by it."""
    chain = make_chain(pages={pgno: bytes([pgno]) * 512 for pgno in range(1, 20)})
    store = MemoryStore()
    ship(store, chain)
    decision = await decide(store, None)
    assert isinstance(decision, Child)
    assert (decision.parent, decision.seq) == (chain.lineage, chain.tip.head.seq)
    assert (decision.needs_snapshot, decision.is_forced) == (True, False)
    state = decision.state
    assert state is not None
    assert state.state_root == chain.tip.head.state_root
    groups = groups_of(chain.pages)
    assert state.find_differing(groups, page_size=512) == list(range(len(groups) // HASH_BYTES))
    put_tip(store, chain, chain.tip.head.seq)
    assert isinstance(await decide(store, None, key=2, trusted=(1, 2)), Child)
    unknown = await decide(store, None, key=2, trusted=(2,))
    assert isinstance(unknown, Refuse)


async def test_a_tip_that_proves_more_than_is_there_is_never_passed_over() -> None:
    """Not for want of a base either: what was archived is given up by a person alone."""
    chain = make_chain(pages={1: bytes(512)})
    store = MemoryStore()
    ship(store, chain, end=12)
    put_tip(store, chain, 15)
    assert isinstance(await decide(store, None), Refuse)


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_lineage_that_lost_its_genesis_gets_it_back_or_a_child(
    tmp_path: Path, *, is_held: bool
) -> None:
    """Without a genesis a lineage cannot be placed: no restore would find it again."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain)
    put_tip(store, chain, chain.tip.head.seq)
    await snapshot(store, chain, tmp_path)
    del store.objects[store.names("/log/")[0]]
    decision = await decide(store, journal_of(chain, first=1 if is_held else 6, archived=21))
    if is_held:
        assert isinstance(decision, Resume)
        assert (decision.archived_seq, decision.has_tip) == (0, True)
        return
    assert isinstance(decision, Child)
    assert (decision.parent, decision.seq, decision.state) == (chain.lineage, 21, None)
    assert decision.needs_snapshot
    child = Chain(number=2, parent=chain)
    child.random_commit(grow=1)
    ship(store, child)
    put_tip(store, child, child.tip.head.seq)
    await snapshot(store, child, tmp_path)
    out = tmp_path / "out.db"
    await restore(store, NAMES, Place(out), trusted=frozenset({child.signer.public}))
    assert out.read_bytes()[512:] == b"".join(child.pages[n] for n in sorted(child.pages))[512:]
    assert isinstance(await decide(store, journal_of(child)), Resume)


@pytest.mark.parametrize("how", ["older", "empty"])
async def test_only_a_journal_that_was_put_back_has_regressed(how: str) -> None:
    """An empty one lost its directory, which is another accident."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain)
    put_tip(store, chain, 21)
    decision = await decide(store, journal_of(chain, tip=20) if how == "older" else None)
    assert isinstance(decision, Child)
    assert decision.has_regressed is (how == "older")


async def test_two_leaves_are_refused_by_name() -> None:
    """Which of two histories is meant only the operator can say."""
    store = MemoryStore()
    chain = make_chain(5)
    ship(store, chain)
    for number in (2, 3):
        child = Chain(number=number, parent=chain)
        child.random_commit(grow=1)
        ship(store, child)
    decision = await decide(store, None)
    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, ConflictError)
    assert "0202" in str(decision.error)
    assert "0303" in str(decision.error)


async def test_a_tip_without_its_log_is_refused() -> None:
    """P25: somebody deleted objects, or the listing is stale; nothing is begun over that."""
    chain, store = make_chain(), MemoryStore()
    put_tip(store, chain, 15)
    for journal in (None, journal_of(make_chain(number=2))):
        decision = await decide(store, journal)
        assert isinstance(decision, Refuse)
        assert "proves that frame 15" in str(decision.error)
    ship(store, chain, end=12)
    decision = await decide(store, None)
    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, CorruptionError)
    decision = await decide(store, journal_of(chain, tip=13))
    assert isinstance(decision, Refuse)
    assert "bring the objects back, or delete that TIP" in str(decision.error)


async def test_objects_deleted_below_our_own_tip_are_shipped_again() -> None:
    """The journal still holds them; if it does not, a snapshot ends the gap, and a note says so."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain, end=8)
    put_tip(store, chain, 15)
    decision = await decide(store, journal_of(chain, archived=15))
    assert isinstance(decision, Resume)
    assert (decision.archived_seq, decision.needs_snapshot) == (8, False)
    assert "proves that frame 15" in decision.notes[0]
    decision = await decide(store, journal_of(chain, first=16, archived=15))
    assert isinstance(decision, Resume)
    assert (decision.archived_seq, decision.needs_snapshot) == (15, True)


async def test_a_gap_in_the_log_is_filled_or_bridged() -> None:
    """An object in the middle is gone: shipped again from there, or ended by a snapshot."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain)
    gone = next(name for name in store.names("/log/") if f"{9:020d}-{12:020d}" in name)
    del store.objects[gone]
    decision = await decide(store, journal_of(chain))
    assert isinstance(decision, Resume)
    assert (decision.archived_seq, decision.needs_snapshot) == (8, False)
    assert decision.notes == ("the archive lacks the frames 9..12",)
    decision = await decide(store, journal_of(chain, first=20, archived=21))
    assert isinstance(decision, Resume)
    assert (decision.archived_seq, decision.needs_snapshot) == (19, True)


async def test_a_gap_below_a_snapshot_is_none(tmp_path: Path) -> None:
    """Retention deletes what a snapshot replaces, except the object with the genesis."""
    chain, store = make_chain(12), MemoryStore()
    ship(store, chain)
    await snapshot(store, chain, tmp_path)
    for name in store.names("/log/")[1:-1]:
        del store.objects[name]
    chain.random_commit()
    decision = await decide(store, journal_of(chain, first=13, archived=13))
    assert decision == Resume(archived_seq=Seq(13), needs_snapshot=False, archive_epoch=1)


async def test_a_damaged_end_is_believed_only_by_who_wrote_it() -> None:
    """Our record says that we archived it, so we go on and say so; others are refused."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain, end=12)
    last = store.names("/log/")[-1]
    data = store.objects[last].data
    store.put(last, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    decision = await decide(store, journal_of(chain, archived=12))
    assert isinstance(decision, Resume)
    assert decision.archived_seq == 12
    assert last in decision.notes[0]
    for journal in (journal_of(chain, archived=8), None):
        decision = await decide(store, journal)
        assert isinstance(decision, Refuse)
        assert last in str(decision.error)


async def test_a_damaged_or_foreign_tip_does_not_stop_our_own_journal() -> None:
    """TIP protects readers; the writer knows where it stands, and writes it anew."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain)
    store.put(NAMES.tip, b"not a TIP at all " * 20)
    decision = await decide(store, journal_of(chain))
    assert isinstance(decision, Resume)
    foreign = make_chain(key=9)
    put_tip(store, foreign, 21, archive_epoch=99)
    decision = await decide(store, journal_of(chain))
    assert isinstance(decision, Resume)
    assert decision.archive_epoch == 1, "an epoch counts only from a key that is believed"


async def test_an_archive_out_of_reach_is_no_decision() -> None:
    """Nothing is begun on a guess; the daemon tries again."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain)
    store.fate = always(Fault.FAIL, method="list")
    with pytest.raises(StoreUnavailable):
        await decide(store, journal_of(chain))


def groups_of(pages: dict[int, bytes], page_size: int = 512) -> bytes:
    leaves = b"".join(leaf_hash(pgno, pages[pgno]) for pgno in sorted(pages))
    return bytes(StateTree(page_size, leaves).groups)


async def test_the_parents_state_is_known_without_its_pages(tmp_path: Path) -> None:
    """From the snapshot's index and the log since: known groups are right, others are unknown."""
    store = MemoryStore()
    chain = make_chain(40)
    chain.commit({pgno: chain.page() for pgno in range(41, 3000)})
    ship(store, chain)
    await snapshot(store, chain, tmp_path)
    begun = chain.tip.head.seq + 1
    chain.commit({5: chain.page(), 100: chain.page()})
    chain.commit({pgno: chain.page() for pgno in range(17, 33)})
    chain.random_commit(grow=50, touch=0)
    chain.random_commit(grow=-3, touch=0)
    ship(store, chain, start=begun)
    decision = await decide(store, None)
    assert isinstance(decision, Child)
    assert decision.state is not None
    state, truth = decision.state, groups_of(chain.pages)
    assert len(state.known) * HASH_BYTES == len(state.groups) == len(truth)
    unknown = [group for group in range(len(state.known)) if not state.known[group]]
    assert unknown == [0, 6, 2998 // 16]
    for group in range(len(state.known)):
        if state.known[group]:
            part = slice(group * HASH_BYTES, (group + 1) * HASH_BYTES)
            assert state.groups[part] == truth[part], group
    assert state.find_differing(truth, page_size=512) == unknown
    assert state.find_differing(truth, page_size=1024) == list(range(len(state.known)))
    changed = dict(chain.pages)
    changed[1000] = bytes(512)
    differing = state.find_differing(groups_of(changed), page_size=512)
    assert differing == sorted([*unknown, 999 // 16])
    parts = [name for name in store.names("/part/") if ("get_data", name) in store.calls]
    assert parts == []


async def test_a_database_born_empty_is_known_whole_from_its_log() -> None:
    """Without any snapshot: the log carries every page, so every group is known."""
    store = MemoryStore()
    chain = make_chain(60)
    for grow in (-20, 7, -30, 50, 0):
        chain.random_commit(grow=grow)
    chain.commit({pgno: chain.page() for pgno in range(1, 30)}, run=3)
    ship(store, chain, step=7)
    decision = await decide(store, None)
    assert isinstance(decision, Child)
    assert decision.state is not None
    assert all(decision.state.known)
    assert decision.state.groups == groups_of(chain.pages)


async def test_a_log_that_ends_inside_a_run_has_its_last_commit_before_it() -> None:
    """The host was lost in the middle of a big transaction: the parent is the commit before."""
    store = MemoryStore()
    chain = make_chain(6)
    chain.commit({pgno: chain.page() for pgno in range(1, 7)}, run=4)
    ship(store, chain, end=9)
    decision = await decide(store, None)
    assert isinstance(decision, Child)
    assert decision.seq == 7
    assert decision.state is not None
    assert decision.state.state_root == chain.frame(7).head.state_root
    assert isinstance(await decide(store, journal_of(chain)), Resume)


async def test_a_file_that_went_on_is_restored_through_its_child(tmp_path: Path) -> None:
    """Data directory deleted: the child brings only what differs, and a restore is exact."""
    store = MemoryStore()
    chain = make_chain(30)
    chain.commit({pgno: chain.page() for pgno in range(31, 400)})
    ship(store, chain)
    await snapshot(store, chain, tmp_path)
    chain.random_commit(grow=2)
    ship(store, chain, start=33)
    file = dict(chain.pages)  # the application went on while no basenet ran
    for pgno in (3, 20):
        file[pgno] = chain.page()
    file[len(file) + 1] = chain.page()
    decision = await decide(store, None)
    assert isinstance(decision, Child)
    assert decision.state is not None
    child = Chain(number=2, parent=chain, journal_id=OTHER_JOURNAL, seed=5)
    assert child.frames[0].head.state_root == decision.state.state_root
    groups = decision.state.find_differing(groups_of(file), page_size=512)
    pages = {
        pgno: file[pgno]
        for group in groups
        for pgno in range(group * 16 + 1, min(group * 16 + 17, len(file) + 1))
    }
    assert len(pages) < len(file) / 2
    child.commit(pages, db_pages=len(file), flags=Flag.RECOVERED)
    ship(store, child)
    out = tmp_path / "out.db"
    await restore(store, NAMES, Place(out), trusted=frozenset({chain.signer.public}))
    expected = b"".join(file[pgno] for pgno in sorted(file))
    assert out.read_bytes() == expected[:18] + b"\x02\x02" + expected[20:]


async def test_equal_objects_that_overlap_are_one_history() -> None:
    """A writer that lost an answer cut its frames anew; the archive's end is what both reach."""
    chain, store = make_chain(), MemoryStore()
    ship(store, chain, end=12)
    ship(store, chain, start=9, end=16, step=3, archive_epoch=2)
    decision = await decide(store, journal_of(chain))
    assert isinstance(decision, Resume)
    assert (decision.archived_seq, decision.archive_epoch) == (16, 2)


async def test_a_writer_that_was_forked_off_begins_a_child() -> None:
    """P24: a copy of our data directory took over with a higher epoch; our frames are orphans."""
    chain, other, store = make_chain(seed=1), make_chain(seed=1), MemoryStore()
    for one in (chain, other):
        one.rng.seed(id(one))
        for _ in range(5):
            one.random_commit(grow=1)
    ship(store, chain, end=24)
    ship(store, other, start=22, end=25, archive_epoch=2)
    decision = await decide(store, journal_of(other))
    assert isinstance(decision, Resume)
    assert decision.archived_seq == 25
    decision = await decide(store, journal_of(chain))
    assert isinstance(decision, Child)
    assert (decision.seq, decision.hash) == (25, other.frame(25).head.hash)


async def test_a_change_of_keys_is_followed_to_the_tip() -> None:
    """Q22: the voter at the tip is the successor; the key before it would have to force."""
    chain, store = History(), MemoryStore()
    chain.random_commit(grow=5)
    ship(store, chain)
    chain.hand_over(2)
    begun = chain.tip.head.seq
    chain.random_commit(grow=5)
    ship(store, chain, start=begun, step=1)
    for key, is_forced in ((2, False), (1, True)):
        decision = await decide(store, None, key=key, trusted=(1,))
        assert isinstance(decision, Child), decision
        assert (decision.seq, decision.is_forced) == (chain.tip.head.seq, is_forced)
