"""A shard with peers: steps, settling, jumps, and what is read back."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from basenet.engine.ballot import Ballot
from basenet.errors import CorruptionError, NotFoundError, UnavailableError, UsageError
from basenet.journal.certificates import CERTIFICATES_KEPT
from basenet.journal.journal import Journal
from basenet.journal.records import BranchRow, OrphanRow, Step
from basenet.units import FrameHash, JournalId, LocalNumber, PublicKeyBytes, Seq, ShardId
from basenet.wire.certificate import CONSENT
from basenet.wire.frame import encode_frame
from basenet.wire.payload import decode_config, encode_config
from tests.fakes.branching import (
    SHARD,
    Branching,
    ballot_of,
    certify,
    cursor_at,
    groups_of,
)
from tests.fakes.chain import Chain
from tests.journal.faulty_disk import LOG, faulty_disk
from tests.journal.replicas import BIG, begin, check_replica, load
from tests.journal.story import Story, check_whole
from tests.journal.story import begin as begin_alone

OTHER = ShardId("other")


def execute(journal: Journal, statement: str, *values: object) -> list[Any]:
    """Run ``statement`` behind the journal's back, on a closed one."""
    connection = sqlite3.connect(journal.path)
    with connection:
        rows = list(connection.execute(statement, values))
    connection.close()
    return rows


def voted_for(story: Branching, row: BranchRow) -> Ballot:
    return ballot_of(story.config, story.chain.frames[0].head, row.head)


def orphan_of(rows: list[BranchRow], name: str = "o1", **changes: Any) -> OrphanRow:
    values: dict[str, Any] = {
        "id": name,
        "shard": SHARD,
        "lineage": b"l" * 16,
        "path": f"/data/orphans/{name}",
        "kept_seq": Seq(rows[0].head.seq - 1),
        "first_local": rows[0].local_first,
        "last_local": rows[-1].local_last,
        "commits": len(rows),
        "created_ns": 5,
        "state": "kept",
        "reason": "it lost against frame 7",
    }
    return OrphanRow(**(values | changes))


# Birth


def test_a_birth_is_remembered(tmp_path: Path) -> None:
    """Every fact of it, by this process and by the next one."""
    story = Branching()
    journal = begin(tmp_path, story)
    genesis = story.chain.frames[0]
    for _ in range(2):
        record = check_replica(journal)
        assert (record.shard, record.path) == (SHARD, "/data/app.db")
        assert record.lineage == story.chain.lineage
        assert record.config == genesis.payload
        assert record.ballot == ballot_of(story.config, genesis.head)
        assert record.tip == genesis.head
        assert (record.heads, record.configs) == ((), {})
        assert (record.page_size, record.db_pages) == (512, 20)
        assert record.place == (1, genesis.head.hash)
        assert (record.cursor, record.intent, record.local_last) == (cursor_at(1), None, 0)
        assert (record.archived_seq, record.broken_seq, record.snapshot_seq) == (0, None, 0)
        assert journal.config_chain(SHARD) == (
            (encode_frame(genesis), certify(genesis.head, CONSENT)),
        )
        assert journal.certificate_for(SHARD, 1) is None
        assert journal.load_replica(OTHER) is None
        journal.close()
        journal = Journal(tmp_path)
    journal.close()


def test_a_birth_ends_what_was_before(tmp_path: Path) -> None:
    """Branch, certificates, CONFIGs, ballot; orphan bundles, births and other shards stay."""
    story, other = Branching(), Branching(Chain(number=3, pages={1: bytes(512)}), shard=OTHER)
    journal = begin(tmp_path, story)
    journal.begin_replica(**other.birth())
    rows = story.own(3) + story.new_config() + story.others(2)
    kept = other.own(2)
    journal.keep([story.step(rows), other.step(kept)])
    journal.settle([story.settled(rows[:4])])
    journal.add_orphan(orphan_of(rows[:1], "late", first_local=4, last_local=4))

    child = Branching(Chain(number=2, parent=story.chain, parent_seq=4))
    journal.begin_replica(**child.birth() | {"local_last": LocalNumber(4)})
    for _ in range(2):
        record = load(journal)
        assert (record.tip.seq, record.heads, record.archived_seq) == (5, (), 4)
        assert record.lineage == child.chain.lineage
        assert record.local_last == 4
        assert len(journal.config_chain(SHARD)) == 1
        assert journal.certificate_for(SHARD, 2) is None
        assert journal.branch_frame(SHARD, rows[-1].head.hash) is None
        assert len(journal.orphans()) == 1
        assert [head.seq for head in check_replica(journal, OTHER).heads] == [2, 3]
        journal.close()
        journal = Journal(tmp_path)
    # And alone again.
    alone = Story(Chain(number=4, parent=child.chain))
    journal.begin_lineage(**alone.birth())
    assert journal.load_replica(SHARD) is None
    assert check_whole(journal) == 6
    journal.close()


# Steps


def test_a_step_is_all_there(tmp_path: Path) -> None:
    """Frames, ballot, cursor and place; and the next one goes on from it."""
    story = Branching()
    journal = begin(tmp_path, story)
    assert journal.undecided_locals(SHARD) is None
    rows = story.own(2)
    journal.keep([story.step(rows, ballot=voted_for(story, rows[-1]))])
    more = story.own(1, pieces=3)
    journal.keep([story.step(more)])
    for _ in range(2):
        record = check_replica(journal)
        assert journal.undecided_locals(SHARD) == (1, 3)
        assert record.heads == tuple(row.head for row in rows + more)
        assert record.ballot == voted_for(story, rows[-1])
        assert record.cursor == cursor_at(6)
        assert record.place == (6, more[-1].head.hash)
        assert record.local_last == 3
        assert record.tip.seq == 1
        assert [journal.branch_frame(SHARD, row.head.hash) for row in rows + more] == [
            row.record for row in rows + more
        ]
        journal.close()
        journal = Journal(tmp_path)
    journal.close()


def test_branches_lie_side_by_side(tmp_path: Path) -> None:
    """Also a frame whose predecessor is not held, and one that came twice."""
    story = Branching()
    journal = begin(tmp_path, story)
    rival = story.fork()
    rival.chain.rng.seed(99)
    rows, theirs = story.own(3), rival.others(3)
    journal.keep([story.step(rows[:2]), story.step(theirs[1:])])
    journal.keep([story.step(theirs), story.step(rows[:2] + rows[2:]), story.step(rows)])
    record = check_replica(journal)
    assert {head.hash for head in record.heads} == {row.head.hash for row in rows + theirs}
    assert record.local_last == 3
    journal.close()


def test_steps_of_many_shards_share_a_transaction(tmp_path: Path) -> None:
    """With those of shards without peers: one count for all."""
    story, other = Branching(), Branching(Chain(number=3, pages={1: bytes(512)}), shard=OTHER)
    alone = Story(Chain(number=4), shard=ShardId("alone"), pages=0)
    journal = begin(tmp_path, story)
    journal.begin_replica(**other.birth())
    journal.begin_lineage(**alone.birth())
    before = journal.jcount
    mine, theirs = story.own(2), other.others(1)
    journal.write([story.step(mine), other.step(theirs), alone.commit(), story.settled(mine)])
    assert journal.jcount == before + 1
    assert check_replica(journal).tip.seq == 3
    assert len(check_replica(journal, OTHER).heads) == 1
    assert check_whole(journal, ShardId("alone")) == 2
    journal.close()


def test_a_commit_is_framed_once(tmp_path: Path) -> None:
    """Q14: neither twice nor with a gap; only what an orphan bundle has may be missing."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.own(2)
    journal.keep([story.step(rows)])
    rival = story.fork()
    rival.local_last = 1
    with pytest.raises(AssertionError, match="framed twice or not at all"):
        journal.keep([rival.step(rival.own(1))])
    rival.local_last = 3
    with pytest.raises(AssertionError, match="framed twice or not at all"):
        journal.keep([rival.step(rival.own(1))])
    journal.add_orphan(orphan_of(rows, first_local=3, last_local=3, commits=1))
    rival.local_last = 3
    journal.keep([rival.step(rival.own(1))])
    assert check_replica(journal).local_last == 4
    journal.close()


def test_a_shard_without_peers_takes_no_steps(tmp_path: Path) -> None:
    """That would be a mistake of ours; nothing is stored then."""
    story = Story()
    journal = begin_alone(tmp_path, story)
    with pytest.raises(AssertionError, match="without peers"):
        journal.keep([Step(shard=SHARD, local_last=LocalNumber(1))])
    assert journal.load_replica(SHARD) is None
    assert check_whole(journal) == 1
    journal.close()


def test_a_frame_that_nothing_can_reach_is_not_held(tmp_path: Path) -> None:
    """A peer may make up any seq; at or below the final one nothing can become final any more."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.own(2)
    journal.keep([story.step(rows)])
    journal.settle([story.settled(rows)])
    far = Branching(Chain(number=1))
    far.chain.frames[0] = story.chain.frames[0]
    head = rows[0].head
    made_up = [
        BranchRow(
            head=type(head)(
                **{name: getattr(head, name) for name in head.__slots__} | {"seq": seq}
            ),
            record=b"frame",
            local_first=LocalNumber(1),
            local_last=LocalNumber(0),
        )
        for seq in (2**64 - 1, 2**44, 3, 1)
    ]
    journal.keep([story.step(made_up + rows)])
    assert check_replica(journal).heads == ()
    journal.close()


def test_a_place_moves_alone(tmp_path: Path) -> None:
    """With or without the other facts; an intent that is not given is none."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.others(2)
    journal.keep([story.step(rows)])
    journal.settle([story.settled(rows, intent=b"inject 2 and 3")])
    assert load(journal).intent == b"inject 2 and 3"
    assert load(journal).place[0] == 1
    place = (rows[1].head.seq, rows[1].head.hash)
    journal.set_place(SHARD, place, cursor=cursor_at(3), local_last=None, intent=None)
    for _ in range(2):
        record = check_replica(journal)
        assert (record.place, record.cursor) == (place, cursor_at(3))
        assert (record.local_last, record.intent) == (0, None)
        journal.close()
        journal = Journal(tmp_path)
    journal.set_place(SHARD, None, cursor=None, local_last=LocalNumber(4), intent=b"more")
    record = load(journal)
    assert (record.place, record.cursor) == (place, cursor_at(3))
    assert (record.local_last, record.intent) == (4, b"more")
    journal.close()


# Settling


def test_what_is_settled_is_the_log(tmp_path: Path) -> None:
    """Frames of all authors move, what lost against them goes, the rest stays."""
    story = Branching()
    journal = begin(tmp_path, story)
    rival = story.fork()
    rival.chain.rng.seed(99)
    theirs = rival.others(5)
    rows = story.own(2) + story.others(1, pieces=3) + story.own(2)
    journal.keep([story.step(rows), story.step(theirs)])
    journal.settle([story.settled(rows[:5])])
    for _ in range(2):
        record = check_replica(journal)
        assert record.tip == rows[4].head
        assert {head.seq for head in record.heads} == {7, 8}
        assert record.local_last == 4
        frames = journal.final_frames(SHARD, 2, BIG, BIG)
        assert frames == [(row.head.seq, row.record) for row in rows[:5]]
        assert journal.certificate_for(SHARD, 2) == certify(rows[4].head)
        assert journal.certificate_for(SHARD, 6) == certify(rows[4].head)
        assert journal.certificate_for(SHARD, 7) is None
        assert journal.count_bytes(SHARD) == sum(
            len(encoded) for _, encoded in journal.final_frames(SHARD, 1, BIG, BIG)
        )
        journal.close()
        journal = Journal(tmp_path)
    journal.settle([story.settled(rows[5:], place=(rows[6].head.seq, rows[6].head.hash))])
    record = check_replica(journal)
    assert (record.tip, record.heads) == (rows[6].head, ())
    assert record.place == (8, rows[6].head.hash)
    journal.close()


@pytest.mark.parametrize(
    ("cut", "reason"), [((1, 3), "a gap"), ((0, 2), "inside a run"), ((0, 5), "not in the branch")]
)
def test_a_settle_that_does_not_fit_changes_nothing(
    tmp_path: Path, cut: tuple[int, int], reason: str
) -> None:
    """Gaps, ends inside a run and frames that are not held are mistakes of ours."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.own(1) + story.others(1, pieces=3) + story.others(1)
    journal.keep([story.step(rows[:4])])
    with pytest.raises(AssertionError, match=reason):
        journal.settle([story.settled(rows[slice(*cut)])])
    record = check_replica(journal)
    assert (record.tip.seq, len(record.heads)) == (1, 4)
    journal.close()


def test_another_branch_does_not_follow(tmp_path: Path) -> None:
    """Two histories never meet in one log."""
    story = Branching()
    journal = begin(tmp_path, story)
    rival = story.fork()
    rival.chain.rng.seed(99)
    rows, theirs = story.own(2), rival.others(2)
    journal.keep([story.step(rows + theirs)])
    with pytest.raises(AssertionError, match="two histories"):
        journal.settle([story.settled([rows[0], theirs[1]])])
    journal.settle([story.settled(rows[:1])])
    with pytest.raises(AssertionError, match="two histories"):
        journal.settle([rival.settled(theirs[1:])])
    assert check_replica(journal).tip.seq == 2
    journal.close()


def test_numbers_of_orphans_are_missing_in_the_log(tmp_path: Path) -> None:
    """And nothing else is: commits 2 and 3 were lost against another's frames."""
    story = Branching()
    journal = begin(tmp_path, story)
    rival = story.fork()
    first = story.own(1)
    rival = story.fork()
    rival.chain.rng.seed(99)
    lost, theirs = story.own(2), rival.others(1)
    journal.keep([story.step(first + lost)])
    journal.add_orphan(orphan_of(lost))
    journal.add_orphan(orphan_of(lost))
    journal.set_place(
        SHARD, (Seq(2), first[0].head.hash), cursor=cursor_at(2), local_last=None, intent=None
    )
    rival.local_last = 3
    mine = rival.own(1)
    journal.keep([rival.step(theirs + mine)])
    journal.settle([rival.settled(first + theirs + mine)])
    record = check_replica(journal)
    assert (record.tip.seq, record.local_last) == (4, 4)
    assert len(journal.orphans(SHARD)) == 1
    journal.close()


def test_log_watermarks_work_as_without_peers(tmp_path: Path) -> None:
    """Final frames are archived, kept to mend, and dropped."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.own(2) + story.others(3) + story.own(2)
    journal.keep([story.step(rows)])
    journal.settle([story.settled(rows[:5])])
    journal.set_archived(SHARD, 4)
    assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [5, 6]
    journal.settle([story.settled(rows[5:])])
    journal.drop_below(SHARD, 7)
    for _ in range(2):
        record = check_replica(journal)
        assert (record.archived_seq, record.broken_seq) == (4, 6)
        assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [7, 8]
        standalone = journal.load(SHARD)
        assert standalone is not None
        assert (standalone.tip, standalone.local_last) == (rows[-1].head, 4)
        journal.close()
        journal = Journal(tmp_path)
    journal.close()


# Proofs


def test_configs_end_epochs(tmp_path: Path) -> None:
    """Each stays with its certificate; a certificate of a later epoch proves nothing below it."""
    story = Branching()
    journal = begin(tmp_path, story)
    first, config = story.own(2), story.new_config()
    second, again = story.others(2), story.new_config()
    rows = first + config + second + again
    journal.keep([story.step(rows)])
    record = check_replica(journal)
    assert {encode_config(one) for one in record.configs.values()} == {
        story.chain.frames[3].payload,
        story.chain.frames[6].payload,
    }
    assert set(record.configs) == {config[0].head.hash, again[0].head.hash}
    journal.settle([story.settled(first + config, is_certified=False)])
    assert check_replica(journal).config == story.chain.frames[3].payload
    journal.settle([story.settled(second[:1])])
    # One voter needed no certificates in the first epoch, so there is none for it.
    assert journal.certificate_for(SHARD, 2) is None
    assert journal.certificate_for(SHARD, 4) is None
    assert journal.certificate_for(SHARD, 5) == certify(second[0].head)
    journal.settle([story.settled(second[1:] + again)])
    assert journal.certificate_for(SHARD, 6) == certify(again[0].head)
    chain = journal.config_chain(SHARD)
    assert [record for record, _ in chain] == [
        encode_frame(story.chain.frames[0]),
        config[0].record,
        again[0].record,
    ]
    assert [certificate for _, certificate in chain[1:]] == [None, certify(again[0].head)]
    journal.drop_below(SHARD, 8)
    assert journal.config_chain(SHARD) == chain
    journal.close()


def test_a_certificate_of_a_later_epoch_is_not_kept(tmp_path: Path) -> None:
    """What a later epoch says of the CONFIG that it starts from proves nothing to others."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.own(1) + story.new_config()
    journal.keep([story.step(rows)])
    settled = story.settled(rows)
    certificate = certify(rows[-1].head)
    late = type(certificate)(
        **{name: getattr(certificate, name) for name in certificate.__struct_fields__}
        | {"epoch": 2}
    )
    journal.settle([type(settled)(**_fields(settled) | {"certificate": late})])
    assert journal.certificate_for(SHARD, 1) is None
    assert journal.config_chain(SHARD)[-1] == (rows[-1].record, None)
    journal.close()


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__slots__}


def test_old_certificates_are_thinned(tmp_path: Path) -> None:
    """The newest 1,024 and those of CONFIGs stay, of each shard."""
    story = Branching(Chain(pages={1: bytes(512)}))
    other = Branching(Chain(number=3, pages={1: bytes(512)}), shard=OTHER)
    journal = begin(tmp_path, story)
    journal.begin_replica(**other.birth())
    theirs = other.others(1)
    journal.write([other.step(theirs), other.settled(theirs)])
    rows = story.others(20) + story.new_config() + story.others(2 * CERTIFICATES_KEPT)
    journal.keep([story.step(rows)])
    for start in range(0, len(rows), 100):
        journal.settle([story.settled([row]) for row in rows[start : start + 100]])
    # A little later than at once, since to count them costs.
    held = [seq for seq in range(2, 2100) if _has_certificate(journal, seq)]
    assert held[0] == 22
    assert CERTIFICATES_KEPT < len(held) < CERTIFICATES_KEPT + 700
    assert held[1:] == list(range(held[1], rows[-1].head.seq + 1))
    assert journal.certificate_for(SHARD, 2) == certify(rows[20].head)
    assert journal.certificate_for(SHARD, 23) == certify(rows[held[1] - 2].head)
    assert journal.certificate_for(OTHER, 1) == certify(theirs[0].head)
    journal.close()


def _has_certificate(journal: Journal, seq: int) -> bool:
    found = journal.certificate_for(SHARD, seq)
    return found is not None and found.height == seq


# States that came from elsewhere


def test_a_jump_begins_the_log_anew(tmp_path: Path) -> None:
    """What lay below goes, what lies above stays, and the next frames follow."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.own(2) + story.others(3) + story.new_config() + story.others(4)
    journal.keep([story.step(rows[:2] + rows[4:])])
    journal.settle([story.settled(rows[:2])])
    before = load(journal)
    tip = rows[6].head
    tree = story.tree_at(tip.seq)
    configs = (
        (encode_frame(story.chain.frames[0]), certify(story.chain.frames[0].head, CONSENT)),
        (rows[5].record, certify(rows[5].head)),
    )
    journal.jump(
        SHARD,
        tip=tip,
        certificate=certify(tip),
        ballot=ballot_of(decode_config(story.chain.frame(7).payload), tip),
        page_size=512,
        db_pages=tree.db_pages,
        groups=groups_of(tree),
        configs=configs,
    )
    for _ in range(2):
        record = check_replica(journal)
        assert record.tip == tip
        assert [head.seq for head in record.heads] == [9, 10, 11]
        assert (record.place, record.cursor) == (before.place, before.cursor)
        assert record.local_last == 2
        assert journal.frame_sizes(SHARD, 0) == []
        assert journal.first_seq(SHARD) == 9
        assert journal.config_chain(SHARD) == configs
        assert journal.certificate_for(SHARD, 8) == certify(tip)
        assert journal.certificate_for(SHARD, 7) == certify(rows[5].head)
        journal.close()
        journal = Journal(tmp_path)
    journal.settle([story.settled(rows[7:])])
    story.local_last = 2
    mine = story.own(1)
    journal.write([story.step(mine), story.settled(mine)])
    assert check_replica(journal).tip.seq == 12
    journal.close()


def test_a_shard_that_had_no_peers_gets_some(tmp_path: Path) -> None:
    """Q22: its frames, leaf hashes, watermarks and cursor stay; pieces of an open run go."""
    story = Story()
    journal = begin_alone(tmp_path, story)
    journal.store([story.commits(4)])
    journal.set_archived(SHARD, 3)
    tip = story.chain.tip.head
    branching = Branching(story.chain).fork()
    for piece in story.run(3)[:2]:
        journal.store([piece])
    ballot = ballot_of(branching.config, tip)
    journal.adopt_replica(SHARD, ballot=ballot, place=(tip.seq, tip.hash))
    for _ in range(2):
        record = check_replica(journal)
        assert (record.tip, record.ballot, record.local_last) == (tip, ballot, 4)
        assert (record.archived_seq, record.cursor) == (3, cursor_at(5))
        assert [seq for seq, _ in journal.frame_sizes(SHARD, 0)] == [4, 5]
        journal.close()
        journal = Journal(tmp_path)
    branching.local_last = 4
    rows = branching.own(1) + branching.others(1)
    journal.write([branching.step(rows), branching.settled(rows)])
    assert check_replica(journal).tip.seq == 7
    journal.close()


def test_a_shard_without_its_genesis_gets_no_peers(tmp_path: Path) -> None:
    """A journal of the first version may have dropped it; whoever has it can bring it."""
    story = Story()
    journal = begin_alone(tmp_path, story)
    journal.store([story.commits(4)])
    journal.set_archived(SHARD, 3)
    journal.close()
    execute(journal, "DELETE FROM config")
    journal = Journal(tmp_path)
    tip = story.chain.tip.head
    ballot = ballot_of(Branching(story.chain).config, tip)
    adopt: Callable[..., None] = lambda **more: journal.adopt_replica(  # noqa: E731
        SHARD, ballot=ballot, place=(tip.seq, tip.hash), **more
    )
    with pytest.raises(UsageError, match=r"genesis of shard app \(frame 1\)"):
        adopt()
    assert journal.load_replica(SHARD) is None
    adopt(configs=[(encode_frame(story.chain.frames[0]), None)])
    assert check_replica(journal).tip == tip
    journal.close()


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE branch SET record = zeroblob(40) WHERE seq = 3",
        "UPDATE branch SET hash = zeroblob(32)",
        "UPDATE branch SET head = x'00'",
        "UPDATE branch SET seq = 4",
        "UPDATE replica SET ballot = zeroblob(80)",
        "UPDATE replica SET ballot = substr(ballot, 1, 20)",
        "UPDATE config SET record = zeroblob(40)",
        "UPDATE certificate SET record = zeroblob(40)",
        "UPDATE birth SET record = zeroblob(40)",
        "UPDATE shard SET tip = x'06'",
    ],
)
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    """And the way out is named."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.own(1) + story.new_config()
    journal.keep([story.step(rows)])
    journal.settle([story.settled(rows[:1])])
    journal.keep_birth(SHARD, journal.load_birth(SHARD))
    journal.close()
    connection = sqlite3.connect(journal.path)
    connection.executescript(damage)
    connection.close()
    with pytest.raises(CorruptionError, match=r"move .* aside"):
        _read_all(tmp_path, rows)


def _read_all(folder: Path, rows: list[BranchRow]) -> None:
    journal = Journal(folder)
    try:
        journal.load_replica(SHARD)
        journal.branch_frame(SHARD, rows[1].head.hash)
        journal.certificate_for(SHARD, 1)
        journal.config_chain(SHARD)
        journal.load_birth(SHARD)
    finally:
        journal.close()


# What concerns no chain


def test_counts_of_peers_only_rise(tmp_path: Path) -> None:
    """In the order in which they were last heard of; all at once they are replaced."""
    journal = Journal(tmp_path)
    one, two = PublicKeyBytes(b"1" * 32), PublicKeyBytes(b"2" * 32)
    first, second = JournalId(b"a" * 16), JournalId(b"b" * 16)
    for key, journal_id, count in [
        (one, first, 5),
        (two, first, 7),
        (one, second, 2**64 - 1),
        (one, first, 4),
    ]:
        journal.remember_peer(key, journal_id, count)
    expected = [((two, first), 7), ((one, second), 2**63 - 1), ((one, first), 5)]
    assert list(journal.peers().items()) == expected
    journal.close()
    journal = Journal(tmp_path)
    assert list(journal.peers().items()) == expected
    counts = [((one, second), 3), ((two, first), 9)]
    journal.remember_peers(counts)
    assert list(journal.peers().items()) == counts
    journal.close()


def test_orphans_are_listed_oldest_first(tmp_path: Path) -> None:
    """Of one shard or of all; what was decided about one is remembered."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.own(1)
    orphans = [
        orphan_of(rows, "b", created_ns=1),
        orphan_of(rows, "a", created_ns=2, shard=OTHER),
        orphan_of(rows, "c", created_ns=2),
    ]
    for orphan in reversed(orphans):
        journal.add_orphan(orphan)
    journal.set_orphan("c", state="applied")
    with pytest.raises(NotFoundError, match="'d'"):
        journal.set_orphan("d", state="applied")
    orphans[2] = orphan_of(rows, "c", created_ns=2, state="applied")
    for _ in range(2):
        assert journal.orphans() == tuple(orphans)
        assert journal.orphans(SHARD) == (orphans[0], orphans[2])
        assert journal.orphans(ShardId("none")) == ()
        journal.close()
        journal = Journal(tmp_path)
    journal.close()


def test_a_missing_frame_is_none(tmp_path: Path) -> None:
    """Whoever asks may come too late."""
    journal = begin(tmp_path, Branching())
    assert journal.branch_frame(SHARD, FrameHash(bytes(32))) is None
    journal.close()


# All or nothing


@pytest.mark.parametrize("act", ["keep", "settle", "jump"])
def test_an_act_is_all_there_or_not_at_all(tmp_path: Path, act: str) -> None:
    """Whichever write of it meets a full disk first; the next try succeeds."""
    for left in range(0, 1_000, 3):
        if _try_on_full_disk(tmp_path / str(left), act, left):
            assert left >= 1
            return
    raise AssertionError("it never succeeds")


def _try_on_full_disk(folder: Path, act: str, left: int) -> bool:
    """Return whether ``left`` writes into the log were enough for ``act``."""
    with faulty_disk() as disk:
        story = Branching()
        journal = begin(folder, story)
        rows = story.own(4, pieces=2) + story.new_config()
        more = story.own(1)
        journal.keep([story.step(rows)])
        tip, tree = rows[-1].head, story.tree_at(rows[-1].head.seq)
        acts: dict[str, Callable[[], None]] = {
            "keep": lambda: journal.keep([story.step(more, ballot=voted_for(story, more[-1]))]),
            "settle": lambda: journal.settle([story.settled(rows, intent=b"inject")]),
            "jump": lambda: journal.jump(
                SHARD,
                tip=tip,
                certificate=certify(tip),
                ballot=ballot_of(decode_config(story.chain.frame(tip.seq).payload), tip),
                page_size=512,
                db_pages=tree.db_pages,
                groups=groups_of(tree),
                configs=[(rows[-1].record, certify(tip))],
            ),
        }
        before, count = check_replica(journal), journal.jcount
        disk.fail_after(left, "write", LOG, apsw.FullError)
        try:
            acts[act]()
        except UnavailableError:
            disk.heal()
            assert check_replica(journal) == before
            assert journal.jcount == count
            acts[act]()
            is_enough = False
        else:
            disk.heal()
            is_enough = True
        after = check_replica(journal)
        assert after != before
        assert journal.jcount == count + 1
        journal.close()
        journal = Journal(folder)
        assert check_replica(journal) == after
        journal.close()
        return is_enough


# What may go, and what is shown in the archive


def test_frames_that_nobody_waits_for_go(tmp_path: Path) -> None:
    """But the newest bytes and the frame at the file's place; the watermarks stay as they are."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.others(10)
    journal.keep([story.step(rows)])
    assert journal.count_branch_bytes() == sum(len(row.record) for row in rows)
    journal.settle([story.settled(rows)])
    assert journal.count_branch_bytes() == 0
    size = len(rows[-1].record)
    journal.trim(SHARD, 5, keep_bytes=size)
    assert journal.first_seq(SHARD) == 5
    journal.trim(SHARD, 11, keep_bytes=2 * size)
    assert journal.first_seq(SHARD) == 10
    record = check_replica(journal)
    assert (record.archived_seq, record.broken_seq) == (0, None)
    journal.close()


def test_the_last_certificate_of_a_range(tmp_path: Path) -> None:
    """That of the highest frame that has one, as an archived object needs it."""
    story = Branching()
    journal = begin(tmp_path, story)
    rows = story.others(6)
    journal.keep([story.step(rows)])
    journal.settle([story.settled(rows[:2])])
    journal.settle([story.settled(rows[2:5])])
    assert journal.last_certificate(SHARD, 2, 6) == certify(rows[4].head)
    assert journal.last_certificate(SHARD, 2, 5) == certify(rows[1].head)
    assert journal.last_certificate(SHARD, 4, 5) is None
    journal.close()
