"""The way out when the quorum is gone."""

from dataclasses import replace

import pytest

from basenet.engine.ballot import Ballot, begin_epoch
from basenet.engine.birth_events import Born, ForcedAccepted, KeepBirth, KeepOrphans, LineageForced
from basenet.engine.forced import (
    Survivor,
    choose_parent,
    compute_orphans,
    force_lineage,
    refuse_force,
)
from basenet.engine.genesis import Genesis, check_complete, read_genesis
from basenet.testing.simulator.birth import SHARD
from basenet.units import Epoch, FrameHash, JournalId, Lineage, Seq, StateRoot, TimestampNs, View
from basenet.wire.birth import LineageKnown
from basenet.wire.chain import check_genesis
from basenet.wire.frame import Flag, Head, Kind, seal
from basenet.wire.message import Mark
from basenet.wire.payload import FaultModel
from tests.engine.birth_story import NOTARY, Node, journal, of, sent


def frame(prev: Head, view: int = 0, root: bytes = b"r") -> Head:
    """The next commit after ``prev``."""
    return seal(
        shard=SHARD,
        seq=Seq(prev.seq + 1),
        timestamp_ns=TimestampNs(prev.timestamp_ns + 10),
        salt=b"s" * 16,
        payload=b"pages",
        kind=Kind.COMMIT,
        flags=Flag.NONE,
        epoch=Epoch(1),
        view=View(view),
        prev_hash=prev.hash,
        state_root=StateRoot(root * 32),
        signer=NOTARY.signer(0),
    ).head


def chain(genesis: Head, count: int, view: int = 0) -> list[Head]:
    heads = [genesis]
    for _ in range(count):
        heads.append(frame(heads[-1], view))
    return heads


NODE = Node()
GENESIS = NODE.genesis(0, 1, 2)
HEADS = chain(GENESIS.head, 6)
SURVIVOR = Survivor(
    peer=NODE.order[1], journal_id=journal(1), signer=NODE.signers[NODE.order[1].key]
)


def ballot(final: Head, voted: Head | None, view: int = 0) -> Ballot:
    first = begin_epoch(GENESIS.config, Epoch(1), Mark(-1, Seq(1), GENESIS.hash))
    return replace(
        first,
        final=Mark(0, final.seq, final.hash),
        voted=Mark(view, voted.seq, voted.hash) if voted else None,
    )


def held(*branches: list[Head]) -> dict[FrameHash, Head]:
    return {head.hash: head for branch in branches for head in branch}


def forced(parent: Head = HEADS[5]) -> Genesis:
    genesis = force_lineage(
        SURVIVOR,
        SHARD,
        GENESIS.config,
        parent,
        lineage=Lineage(b"f" * 16),
        salt=b"s" * 16,
        timestamp_ns=TimestampNs(1),
    )
    assert read_genesis(genesis.record, SHARD, NOTARY.verify) == genesis
    return genesis


@pytest.mark.parametrize(
    ("count", "model", "answering", "is_refused"),
    [
        (1, FaultModel.CRASH, 1, True),
        (2, FaultModel.CRASH, 1, False),
        (2, FaultModel.CRASH, 2, True),
        (3, FaultModel.CRASH, 1, False),
        (3, FaultModel.CRASH, 2, True),
        (5, FaultModel.CRASH, 2, False),
        (4, FaultModel.BYZANTINE, 2, False),
        (4, FaultModel.BYZANTINE, 3, True),
    ],
)
def test_force_is_refused_while_a_quorum_answers(
    count: int, model: FaultModel, answering: int, *, is_refused: bool
) -> None:
    """Sentence B41 of docs/protocol/birth.md.

    B41. A lineage is forced only by an operator on one survivor, and never while a quorum of the
    last CONFIG answers.
    """
    node = Node(0, count)
    config = replace(node.genesis(*range(count)).config, fault_model=model)
    members = frozenset((v.key, v.journal_id) for v in config.voters[:answering])
    reason = refuse_force(config, members)
    assert (reason is not None) == is_refused
    assert reason is None or f"{answering} of {count} voters answer" in reason
    strangers = frozenset((v.key, JournalId(b"?" * 16)) for v in config.voters)
    assert refuse_force(config, strangers) is None


def test_the_parent_is_the_highest_vote() -> None:
    """Sentence B42 of docs/protocol/birth.md.

    B42. It continues the highest frame that the survivor voted for, its only voter is the survivor,
    and its genesis is flagged FORCED.
    """
    heads = held(HEADS)
    assert choose_parent(ballot(HEADS[2], HEADS[5]), heads.get) == HEADS[5]
    genesis = forced()
    config = genesis.config
    assert config.is_forced
    assert config.parent == (GENESIS.lineage, HEADS[5].seq, HEADS[5].hash)
    assert [(v.node_id, v.key, v.journal_id) for v in config.voters] == [
        (SURVIVOR.peer.node_id, SURVIVOR.peer.key, SURVIVOR.journal_id)
    ]
    assert config.fault_model == FaultModel.CRASH
    assert (genesis.head.seq, genesis.head.state_root) == (HEADS[5].seq + 1, HEADS[5].state_root)
    assert genesis.head.timestamp_ns > HEADS[5].timestamp_ns
    check_genesis(genesis.head, config, HEADS[5])
    check_complete(genesis, None, NOTARY.verify)


def test_a_vote_that_lost_is_no_parent() -> None:
    """On another branch than what is final, below it, or on frames that are gone: final counts."""
    other = [*HEADS[:2], *chain(frame(HEADS[1], 1, b"o"), 3, 1)]
    heads = held(HEADS, other)
    assert choose_parent(ballot(HEADS[4], other[-1]), heads.get) == HEADS[4]
    assert choose_parent(ballot(HEADS[4], HEADS[3]), heads.get) == HEADS[4]
    assert choose_parent(ballot(HEADS[4], None), heads.get) == HEADS[4]
    del heads[HEADS[5].hash]
    assert choose_parent(ballot(HEADS[3], HEADS[6]), heads.get) == HEADS[3]
    del heads[HEADS[6].hash]
    assert choose_parent(ballot(HEADS[3], HEADS[6]), heads.get) == HEADS[3]


def test_what_an_accepting_node_keeps() -> None:
    """Above the parent's frame; everything, where it has another frame there or none."""
    lineage = GENESIS.lineage
    parent = (HEADS[3].seq, HEADS[3].hash)
    orphans = compute_orphans(lineage, parent, tuple(HEADS), HEADS[5].seq)
    assert orphans.heads == tuple(HEADS[4:])
    assert orphans.final_count == 2
    nothing = compute_orphans(lineage, parent, tuple(HEADS[:4]), HEADS[3].seq)
    assert nothing.heads == ()
    other = (*HEADS[:3], *chain(frame(HEADS[2], 1, b"o"), 2, 1))
    assert compute_orphans(lineage, parent, other, Seq(2)).heads == other
    pruned = tuple(HEADS[5:])
    assert compute_orphans(lineage, parent, pruned, HEADS[6].seq).heads == pruned


def test_the_survivor_begins_and_tells_everybody() -> None:
    """Persisted first; old peers are told at once, and whoever connects later."""
    node = Node(1, 3)
    node.connect(0, 2)
    node.hear(0, node.lineage(GENESIS))
    node.hear(2, node.lineage(GENESIS))
    genesis = forced()
    effects = node.step(LineageForced(genesis=genesis))
    assert [type(effect) for effect in effects][:2] == [KeepBirth, Born]
    assert effects[1].is_author
    assert set(effects[2].to) == {node.order[0].key, node.order[2].key}
    assert node.record.left == (GENESIS.lineage,)
    node.connect(0)
    assert [message.genesis for message in sent(node.last, LineageKnown)] == [genesis.record]
    assert node.hear(0, node.lineage(GENESIS)) == []
    again = Node(1, 3, record=node.record, boots=False)
    assert again.birth.boot(again.now) == [effects[1]]


def test_a_forced_lineage_spreads_by_acceptance_only() -> None:
    """Of two old peers one accepts; the other one stays, and an emptied third joins."""
    survivor = Node(1, 3)
    survivor.connect(0, 2)
    survivor.hear(0, survivor.lineage(GENESIS))
    genesis = forced()
    survivor.step(LineageForced(genesis=genesis))
    told = survivor.lineage(genesis)
    accepting, staying = Node(0), Node(2)
    for node in (accepting, staying):
        node.connect(1)
        node.hear(1, node.lineage(GENESIS))
        assert of(node.hear(1, told), KeepBirth) == []
    effects = accepting.step(ForcedAccepted(lineage=genesis.lineage))
    assert [type(effect) for effect in effects] == [KeepOrphans, KeepBirth, Born]
    assert staying.birth.genesis is not None
    assert staying.birth.genesis.lineage == GENESIS.lineage


def test_a_forced_lineage_continues_the_one_that_is_known() -> None:
    """Anything else is a mistake of the caller."""
    node = Node(1, 3)
    node.connect(0)
    node.hear(0, node.lineage(node.genesis(0, 1, 2, lineage=b"o" * 16)))
    with pytest.raises(AssertionError, match="continues another one"):
        node.step(LineageForced(genesis=forced()))
