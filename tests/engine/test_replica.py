"""One shard's replica: each rule of its theory of operation, then all of them at random."""

import copy
import struct
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from basenet.engine.effects import Effect, Finalize, Persist
from basenet.engine.events import Event, Stored
from basenet.engine.quorum import finalized_seq
from basenet.engine.replica import Replica
from basenet.engine.state import ShardState
from basenet.units import FRAME_PAYLOAD_BYTES_MAX, Seq, StateRoot
from basenet.wire.chain import check_genesis
from basenet.wire.frame import Flag, Frame, Head, Kind, check_link, decode_frame, encode_frame
from basenet.wire.payload import decode_config
from tests.engine.story import (
    BEGIN_NS,
    NO_ROOT,
    PARENT,
    ROOT,
    SHARD,
    born,
    captured,
    config,
    new_replica,
    piece,
    sealed,
    signer,
)


def snapshot(state: ShardState) -> dict[str, Any]:
    """All that the state says, so that a later change does not show in it."""
    names = ("shard", "config", "epoch", "view", "tip", "stored", "final_seq", "local_last")
    return {name: copy.copy(getattr(state, name)) for name in names} | {
        "unfinal": list(state.unfinal)
    }


def finals(effects: list[Effect]) -> list[int]:
    """The seqs that ``effects`` make final; nothing else may be among them."""
    assert all(isinstance(effect, Finalize) for effect in effects)
    return [effect.head.seq for effect in effects if isinstance(effect, Finalize)]


def refuses(replica: Replica, event: Event, reason: str) -> None:
    before = snapshot(replica.state)
    with pytest.raises(AssertionError, match=reason):
        replica.step(event)
    assert snapshot(replica.state) == before


# Rule 1: seq, prev_hash, genesis


def test_a_lineage_begins_with_a_signed_genesis_at_seq_1() -> None:
    """A CONFIG without flags that binds itself, carries the adopted root and no commit."""
    replica = Replica(ShardState(shard=SHARD), signer())
    (effect,) = replica.step(born())
    assert isinstance(effect, Persist)
    head = effect.frame.head
    check_genesis(head, config(), None)
    assert (head.seq, head.kind, head.flags, head.state_root) == (1, Kind.CONFIG, Flag.NONE, ROOT)
    assert decode_config(effect.frame.payload) == config()
    assert head.author == signer().public
    assert head.is_signed_by_author()
    assert (effect.local_first, effect.local_last) == (1, 0)
    assert replica.state.tip == head
    assert replica.state.config == config()
    assert replica.state.final_seq == 0


def test_a_child_lineage_begins_behind_its_parents_seq() -> None:
    """Q4: genesis seq = parent seq + 1; the parent's frame counts as final."""
    replica = Replica(ShardState(shard=SHARD), signer())
    genesis = sealed(replica, born(config(parent=PARENT)))
    check_genesis(genesis.head, config(parent=PARENT), None)
    assert genesis.head.seq == 41
    assert replica.state.final_seq == 40
    assert finals(replica.step(Stored(seq=Seq(41)))) == [41]


def test_a_child_lineage_goes_on_with_time_and_local_numbers() -> None:
    """Also when it takes over in the same process: no number twice, no time twice."""
    replica = new_replica()
    sealed(replica, captured(1, 3))
    replica.step(Stored(seq=Seq(2)))
    parent = (config().lineage, 2, replica.state.tip.hash if replica.state.tip else b"")
    event = born(config(parent=parent, lineage=b"c" * 16), timestamp_ns=BEGIN_NS - 5)
    (effect,) = replica.step(event)
    assert isinstance(effect, Persist)
    assert effect.frame.head.timestamp_ns == BEGIN_NS + 2
    assert (effect.local_first, effect.local_last) == (4, 3)
    assert finals(replica.step(Stored(seq=Seq(3)))) == [3]


def test_a_genesis_names_its_author_as_a_voter() -> None:
    """A lineage whose author may not continue it would be dead at birth."""
    replica = Replica(ShardState(shard=SHARD), signer())
    refuses(replica, born(config(2, 3)), "one of its voters")


def test_a_lineage_is_not_born_over_frames_that_are_not_final() -> None:
    """They would belong to neither lineage; an open run never is final."""
    replica = new_replica()
    refuses(replica, born(config(lineage=b"c" * 16)), "over a settled one")
    replica.step(Stored(seq=Seq(1)))
    replica.step(piece(1))
    replica.step(Stored(seq=Seq(2)))
    refuses(replica, born(config(lineage=b"c" * 16)), "over a settled one")


def test_each_frame_continues_the_one_before() -> None:
    """+1, its hash, a later time, the epoch and view of the shard, signed by this node."""
    replica = new_replica()
    assert replica.state.tip is not None
    before = replica.state.tip
    for number in range(1, 6):
        frame = sealed(replica, captured(number, payload=b"commit %d" % number))
        check_link(before, frame.head)
        assert frame.payload == b"commit %d" % number
        assert frame.head.kind == Kind.COMMIT
        assert (frame.head.epoch, frame.head.view) == (1, 0)
        assert frame.head.is_signed_by_author()
        assert decode_frame(encode_frame(frame)) == frame
        before = frame.head


def test_a_frame_waits_for_its_genesis() -> None:
    """A commit before the birth has no chain to stand in."""
    refuses(Replica(ShardState(shard=SHARD), signer()), captured(1), "before the genesis")


def test_flags_and_root_of_what_was_captured_stand_in_the_frame() -> None:
    """Nothing is added and nothing left out."""
    replica = new_replica()
    flags = Flag.RECOVERED | Flag.REGRESSED
    head = sealed(replica, captured(1, 0, flags=flags, state_root=StateRoot(b"x" * 32))).head
    assert (head.flags, head.state_root) == (flags, b"x" * 32)


# Rule 2: runs


def test_nothing_becomes_final_inside_a_run() -> None:
    """However much of it is stored; with its last frame all of it is."""
    replica = new_replica()
    replica.step(Stored(seq=Seq(1)))
    for _ in range(3):
        replica.step(piece(1))
    assert finals(replica.step(Stored(seq=Seq(3)))) == []
    assert finals(replica.step(Stored(seq=Seq(4)))) == []
    assert replica.state.final_seq == 1
    replica.step(captured(1))
    assert finals(replica.step(Stored(seq=Seq(5)))) == [2, 3, 4, 5]


def test_a_commit_before_a_run_does_not_wait_for_it() -> None:
    """Finality goes up to the last whole frame that is stored."""
    replica = new_replica()
    replica.step(captured(1))
    replica.step(piece(2))
    assert finals(replica.step(Stored(seq=Seq(3)))) == [1, 2]


@pytest.mark.parametrize("flags", [Flag.NONE, Flag.RECOVERED, Flag.RECOVERED | Flag.REGRESSED])
def test_a_run_keeps_its_flags_to_its_end(flags: Flag) -> None:
    """A frame with other flags is of something else and may not stand inside."""
    for other in (Flag.NONE, Flag.RECOVERED, Flag.RECOVERED | Flag.REGRESSED):
        replica = new_replica()
        replica.step(piece(1, flags))
        if other == flags:
            replica.step(piece(1, other))
            replica.step(captured(1, flags=other))
            continue
        refuses(replica, piece(1, other), "inside a PARTIAL run")
        refuses(replica, captured(1, flags=other), "inside a PARTIAL run")


# Rule 3: local numbers


def test_every_commit_is_in_exactly_one_frame() -> None:
    """Q14: a range begins behind the one before; the effect repeats it for the journal."""
    replica = new_replica()
    for first, last in ((1, 1), (2, 9), (10, 10)):
        (effect,) = replica.step(captured(first, last))
        assert isinstance(effect, Persist)
        assert (effect.local_first, effect.local_last) == (first, last)
    refuses(replica, captured(10), "twice or not at all")
    refuses(replica, captured(12), "twice or not at all")
    refuses(replica, captured(11, 9), "backwards")


def test_a_run_counts_its_commits_at_its_end() -> None:
    """A PARTIAL carries none: a run that is cut off never happened."""
    replica = new_replica()
    replica.step(piece(1))
    refuses(replica, captured(1, flags=Flag.PARTIAL), "inside its own run")
    (effect,) = replica.step(captured(1, 4))
    assert isinstance(effect, Persist)
    assert (effect.local_first, effect.local_last) == (1, 4)


def test_a_frame_without_a_commit_says_why() -> None:
    """Readers refuse one without RECOVERED or REGRESSED, so none is written."""
    replica = new_replica()
    refuses(replica, captured(1, 0), "no flag says why")
    replica.step(captured(1, 0, flags=Flag.RECOVERED))
    replica.step(captured(1, 0, flags=Flag.REGRESSED))
    replica.step(captured(1))
    assert replica.state.local_last == 1


# Stored and final


def test_with_one_voter_stored_is_final() -> None:
    """In the order of the chain, each frame once."""
    replica = new_replica()
    for number in range(1, 5):
        replica.step(captured(number))
    assert finals(replica.step(Stored(seq=Seq(2)))) == [1, 2]
    assert finals(replica.step(Stored(seq=Seq(5)))) == [3, 4, 5]
    assert not replica.state.unfinal


def test_an_older_report_is_no_news() -> None:
    """Reports may overtake one another."""
    replica = new_replica()
    replica.step(captured(1))
    assert finals(replica.step(Stored(seq=Seq(2)))) == [1, 2]
    before = snapshot(replica.state)
    assert replica.step(Stored(seq=Seq(2))) == []
    assert replica.step(Stored(seq=Seq(1))) == []
    assert snapshot(replica.state) == before


def test_what_was_never_sealed_cannot_be_stored() -> None:
    """A journal that claims it is not this shard's."""
    replica = new_replica()
    refuses(replica, Stored(seq=Seq(2)), "never sealed")


def test_a_node_that_is_no_voter_has_no_vote() -> None:
    """Its journal says nothing about finality."""
    replica = new_replica()
    refuses(Replica(replica.state, signer(2)), Stored(seq=Seq(1)), "no voter")


@pytest.mark.parametrize("others", [(2,), (2, 3), (2, 3, 4)])
def test_with_more_voters_one_journal_makes_nothing_final(others: tuple[int, ...]) -> None:
    """There is one path for every number of voters; the others' votes are not known yet."""
    replica = new_replica(1, *others)
    replica.step(captured(1))
    assert replica.step(Stored(seq=Seq(2))) == []
    assert replica.state.final_seq == 0
    assert replica.state.stored[signer().public] == 2


def test_a_gap_in_front_of_what_waits_for_finality_is_found() -> None:
    """Finality never skips a frame, whoever spoiled the state."""
    replica = new_replica()
    replica.step(captured(1))
    replica.state.unfinal.popleft()
    refuses(replica, Stored(seq=Seq(2)), "skipped a frame")


# A refused event changes nothing


@pytest.mark.parametrize(
    "event",
    [
        captured(1, payload=bytes(FRAME_PAYLOAD_BYTES_MAX + 1)),
        captured(1, state_root=StateRoot(b"short")),
        captured(1, 0, flags=Flag.PARTIAL, state_root=ROOT),
        captured(1, timestamp_ns=1 << 63),
    ],
)
def test_a_frame_that_cannot_be_sealed_changes_nothing(event: Event) -> None:
    """The state moves after the last thing that can fail."""
    replica = new_replica()
    before = snapshot(replica.state)
    with pytest.raises((AssertionError, struct.error)):
        replica.step(event)
    assert snapshot(replica.state) == before
    assert sealed(replica, captured(1)).head.seq == 2


def test_an_unknown_event_is_a_mistake() -> None:
    """Whatever can happen stands in `engine.events`."""
    stranger: Any = object()
    refuses(new_replica(), stranger, "unreachable")


# Everything at once


class LifeOfAShard(RuleBasedStateMachine):
    """Births, commits, runs and reports in any order, right and wrong ones.

    What the machine believes is kept apart from the state: the frames that were sealed, what is
    whole among them, and which commits are where.
    """

    voters: tuple[int, ...] = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.replica = Replica(ShardState(shard=SHARD), signer())
        self.frames: list[Frame] = []
        self.numbers: list[int] = []  # every local number, in the order of the frames
        self.final: list[Head] = []
        self.run: Flag | None = None
        self.floor = 0  # the parent's seq
        self.lineages = 0

    # What may happen

    @initialize(parent=st.booleans())
    def birth(self, *, parent: bool) -> None:
        self.floor = PARENT[1] if parent else 0
        self._be_born(config(*self.voters, parent=PARENT if parent else None))

    def _be_born(self, configuration: Any) -> None:
        self.lineages += 1
        (effect,) = self.replica.step(born(configuration))
        assert isinstance(effect, Persist)
        check_genesis(effect.frame.head, configuration, None)
        self.frames = [effect.frame]
        self.final = []

    @precondition(lambda self: not self.replica.state.unfinal and self.lineages)
    @rule()
    def child(self) -> None:
        tip = self.frames[-1].head
        self.floor = tip.seq
        parent = (config(lineage=self._lineage()).lineage, tip.seq, tip.hash)
        self.lineages += 1
        self._be_born(config(*self.voters, parent=parent, lineage=self._lineage()))

    def _lineage(self) -> bytes:
        return bytes([self.lineages % 250 + 1]) * 16

    @rule(
        commits=st.integers(0, 5),
        ends_run=st.booleans(),
        recovered=st.booleans(),
        now_ns=st.integers(BEGIN_NS - 100, BEGIN_NS + 100),
    )
    def commit(self, *, commits: int, ends_run: bool, recovered: bool, now_ns: int) -> None:
        flags = Flag.RECOVERED if recovered else Flag.NONE
        if self.run is not None:
            flags = self.run
        if not ends_run:
            self._append(captured(self._next(), self._next() - 1, flags=flags | Flag.PARTIAL))
            self.run = flags
            return
        if not commits and not flags:
            return
        last = self._next() + commits - 1
        self._append(captured(self._next(), last, flags=flags, timestamp_ns=now_ns))
        self.numbers += range(self._next(), last + 1)
        self.run = None

    def _next(self) -> int:
        return len(self.numbers) + 1

    def _append(self, event: Event) -> None:
        (effect,) = self.replica.step(event)
        assert isinstance(effect, Persist)
        check_link(self.frames[-1].head, effect.frame.head)
        self.frames.append(effect.frame)

    @rule(back=st.integers(0, 8))
    def stored(self, *, back: int) -> None:
        """Any frame up to the tip is reported, also one that was reported before."""
        tip = self.frames[-1].head.seq
        effects = self.replica.step(Stored(seq=Seq(max(tip - back, self.floor))))
        for effect in effects:
            assert isinstance(effect, Finalize)
            expected = self.frames[len(self.final)].head
            assert effect.head == expected
            self.final.append(effect.head)

    # What may not happen

    @rule(data=st.data())
    def wrong(self, *, data: st.DataObject) -> None:
        tip, number = self.frames[-1].head.seq, self._next()
        other = Flag.REGRESSED
        events: list[Event] = [
            Stored(seq=Seq(tip + data.draw(st.integers(1, 5), label="beyond"))),
            captured(number + 1),
            captured(number - 1),
            captured(number, number - 2),
            captured(number, flags=Flag.PARTIAL),
            captured(number, number - 1, flags=Flag.PARTIAL, state_root=ROOT),
            born(config(7, 8)),
        ]
        if self.run is None:
            events.append(captured(number, number - 1, state_root=NO_ROOT))
        else:
            events += [captured(number, flags=other), piece(number, other)]
        if self.replica.state.unfinal:
            events.append(born(config(*self.voters, lineage=b"z" * 16)))
        before = snapshot(self.replica.state)
        with pytest.raises(AssertionError):
            self.replica.step(data.draw(st.sampled_from(events), label="event"))
        assert snapshot(self.replica.state) == before

    # What always holds

    @invariant()
    def chain_is_whole(self) -> None:
        state = self.replica.state
        if not self.frames:
            return
        heads = [frame.head for frame in self.frames]
        assert state.tip == heads[-1]
        assert [head.seq for head in heads] == list(
            range(self.floor + 1, self.floor + 1 + len(heads))
        )
        assert state.is_run_open == (self.run is not None)

    @invariant()
    def finality_is_a_whole_prefix(self) -> None:
        state = self.replica.state
        if not self.frames:
            return
        assert state.final_seq == self.floor + len(self.final)
        assert list(state.unfinal) == [frame.head for frame in self.frames[len(self.final) :]]
        assert not self.final or not self.final[-1].flags & Flag.PARTIAL
        held = finalized_seq(state.stored)
        whole = [
            head.seq
            for head in (frame.head for frame in self.frames)
            if head.seq <= held and not head.flags & Flag.PARTIAL
        ]
        assert state.final_seq == max(whole, default=self.floor)

    @invariant()
    def numbers_are_contiguous(self) -> None:
        assert self.numbers == list(range(1, len(self.numbers) + 1))
        assert self.replica.state.local_last == len(self.numbers)


class LifeOfASharedShard(LifeOfAShard):
    """The same with three voters of which only this one reports: nothing becomes final."""

    voters: tuple[int, ...] = (1, 2, 3)

    @invariant()
    def nothing_is_final(self) -> None:
        assert not self.final


LIMITS = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestLifeOfAShard = LifeOfAShard.TestCase
TestLifeOfAShard.settings = LIMITS
TestLifeOfASharedShard = LifeOfASharedShard.TestCase
TestLifeOfASharedShard.settings = settings(LIMITS, max_examples=40)
