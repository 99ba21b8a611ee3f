"""A shard's birth at one node: what it says, keeps and waits for, step by step."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from basenet.engine.author import Answer
from basenet.engine.birth import ASK_PAUSE, ASK_PAUSE_MAX
from basenet.engine.birth_events import (
    ArchivedParent,
    ArchiveSurveyed,
    AuthorDecided,
    BirthReceived,
    BirthTicked,
    Born,
    FenceFile,
    FileScanned,
    ForcedAccepted,
    KeepBirth,
    KeepOrphans,
    MembersKnown,
    NewJournalNeeded,
    PeerConnected,
    PeerGone,
    ReportBirth,
    SendBirth,
    SurveyArchive,
)
from basenet.engine.birth_record import WITHDRAWN_MAX, BirthRecord, FileFate
from basenet.engine.consent import EMPTY_ROOT, Situation, find_objection
from basenet.engine.events import Instant
from basenet.engine.genesis import Genesis, check_complete, read_genesis
from basenet.engine.knowing import OTHER_LINEAGES_MAX
from basenet.engine.unborn import SURVEY_PAUSE
from basenet.errors import CertificateInvalid, ChainBroken, CorruptionError
from basenet.testing.simulator.birth import SHARD, database
from basenet.units import (
    Epoch,
    FrameHash,
    Lineage,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.birth import (
    BirthAnswer,
    BirthAsk,
    BirthMessage,
    FileFacts,
    GenesisOffer,
    GenesisPromise,
    HeldPromise,
    LineageKnown,
    MemberRole,
    Withdraw,
)
from basenet.wire.certificate import decode_certificate, encode_certificate
from basenet.wire.frame import Kind, encode_frame, genesis_prev_hash, seal
from basenet.wire.payload import FaultModel, VoterRole, encode_config
from basenet.wire.tuples import Scope
from tests.engine.birth_story import Node, journal, of, positions, sent

ROWS, OTHER_ROWS = database(b"rows"), database(b"other", 20)
SCHEMA = database(b"schema", 2, has_rows=False)
PARENT = ArchivedParent(
    lineage=Lineage(b"p" * 16),
    seq=Seq(41),
    hash=FrameHash(b"h" * 32),
    state_root=StateRoot(b"r" * 32),
    page_size=8192,
    timestamp_ns=TimestampNs(900),
    is_forced=False,
)


def surveyed(**changes: Any) -> ArchiveSurveyed:
    facts: dict[str, Any] = {
        "parent": None,
        "problem": None,
        "file": None,
        "lineage": Lineage(b"L" * 16),
        "salt": b"s" * 16,
        "timestamp_ns": TimestampNs(77),
    }
    return ArchiveSurveyed(**(facts | changes))


def author(count: int = 3, *, survey: ArchiveSurveyed | None = None, **options: Any) -> Node:
    """The first of the order, that has written its genesis."""
    node = Node(0, count, **options)
    node.connect(*range(1, count))
    for number in range(1, count):
        node.answer(number)
    node.step(survey or surveyed(file=options.get("file")))
    return node


def own_genesis(node: Node) -> Genesis:
    assert node.record.promise is not None
    return read_genesis(node.record.promise.genesis, SHARD, node.notary.verify)


def promise(node: Node, number: int, genesis: Genesis) -> Any:
    return node.hear(
        number,
        GenesisPromise(
            lineage=genesis.lineage,
            frame_hash=genesis.hash,
            signature=node.signature(number, genesis.message),
        ),
    )


def held(node: Node, number: int, genesis: Genesis, journal_id: Any = None) -> HeldPromise:
    key = node.order[number].key
    return HeldPromise(
        author=key,
        journal_id=journal_id or node.journals[key],
        lineage=genesis.lineage,
        frame_hash=genesis.hash,
        voters=genesis.voters,
    )


def offer(node: Node, number: int, genesis: Genesis, **facts: Any) -> Any:
    message = GenesisOffer(genesis=genesis.record, standing=node.standing(**facts))
    return node.hear(number, message)


def voter(number: int = 1, count: int = 3, **options: Any) -> Node:
    """A node that is connected to all others, which have answered that they have nothing."""
    node = Node(number, count, **options)
    for other in range(count):
        if other != number:
            node.connect(other)
            node.answer(other)
    return node


# The first steps.


def test_nothing_is_said_before_the_file_is_fenced_and_read() -> None:
    """Sentence B10 of docs/protocol/birth.md.

    B10. A node without a lineage fences its file before anything else and says of it: none, or
    state root, size and whether any table has a row.
    """
    node = Node(boots=False)
    assert node.birth.boot(node.now) == [FenceFile()]
    assert "being read" in node.birth.status
    node.step(MembersKnown(members=node.members))
    node.connect(1)
    assert node.answer(1) == []
    assert node.hear(1, BirthAsk(standing=node.standing())) == []
    assert node.birth.wake_at is None
    (asked,) = sent(node.step(FileScanned(file=ROWS)), BirthAsk)
    assert asked.standing == node.standing(file=ROWS)
    (answered,) = sent(node.hear(1, BirthAsk(standing=node.standing())), BirthAnswer)
    assert answered.standing.file == FileFacts(ROWS.state_root, 4096, 10, True)
    assert sent(node.step(FileScanned(file=ROWS)), BirthAnswer) == []
    assert sent(node.step(FileScanned(file=None)), BirthAnswer) != []


def test_a_new_connection_is_asked_at_once_and_everybody_again_and_again() -> None:
    """The pause doubles up to its bound, and a new connection begins anew."""
    node = Node()
    assert node.birth.wake_at == node.now + ASK_PAUSE
    node.now = Instant(node.now + 5)
    node.connect(1)
    assert len(sent(node.last, BirthAsk)) == 1
    assert node.birth.wake_at == node.now + ASK_PAUSE
    assert node.step(BirthTicked()) == []
    pauses = []
    for _ in range(8):
        assert node.birth.wake_at is not None
        node.now = node.birth.wake_at
        (ask,) = of(node.step(BirthTicked()), SendBirth)
        assert ask.to == (node.order[1].key,)
        assert node.birth.wake_at is not None
        pauses.append(node.birth.wake_at - node.now)
    assert pauses[0] == 2 * ASK_PAUSE
    assert pauses[-1] == ASK_PAUSE_MAX
    node.connect(2)
    assert node.birth.wake_at == node.now + ASK_PAUSE


def test_the_membership_may_become_known_later() -> None:
    """Sentence B1 of docs/protocol/birth.md.

    B1. The membership M is fixed by configuration and never by who is up.
    """
    node = Node(boots=False)
    node.birth.boot(node.now)
    node.step(FileScanned(file=None))
    node.step(MembersKnown(members="2 of 3 nodes have said HELLO"))
    node.connect(1, 2)
    node.answer(1)
    assert node.answer(2) == []
    assert node.birth.status == "2 of 3 nodes have said HELLO"
    assert of(node.step(MembersKnown(members=node.members)), SurveyArchive) == [SurveyArchive()]


def test_a_missing_voter_delays_the_birth() -> None:
    """Sentence B9 of docs/protocol/birth.md.

    B9. A missing voter delays the birth and does nothing else.
    """
    node = Node()
    node.connect(1)
    node.answer(1)
    for _ in range(50):
        assert node.birth.wake_at is not None
        node.now = node.birth.wake_at
        assert {type(effect) for effect in node.step(BirthTicked())} <= {SendBirth}
    assert node.birth.problem is None
    assert node.birth.status == f"waiting for the answer of {node.order[2].node_id}"
    node.connect(2)
    assert of(node.answer(2), SurveyArchive) == [SurveyArchive()]


def test_every_connected_member_must_answer() -> None:
    """Sentence B19 of docs/protocol/birth.md.

    B19. The answers of all signers and of every connected member are needed before a genesis is
    written.
    """
    node = Node(0, 4)
    node.connect(1, 2, 3)
    node.answer(1)
    assert node.answer(2) == []
    assert node.birth.status == f"waiting for the answer of {node.order[3].node_id}"
    assert of(node.step(PeerGone(key=node.order[3].key)), SurveyArchive) == [SurveyArchive()]


def test_who_counts_other_members_has_not_answered() -> None:
    """Sentence B8 of docs/protocol/birth.md.

    B8. CONFIG carries SHA-256(M), and a node signs only what carries its own.
    """
    node = Node()
    node.connect(1, 2)
    node.answer(1)
    (report,) = node.answer(2, members_hash=b"x" * 32)
    assert f"{node.order[2].node_id} and this node count different members" in report.what
    assert node.answer(2, members_hash=b"y" * 32) == []
    assert node.answer(2, members_hash=bytes(32)) == []
    assert node.birth.problem is None
    assert of(node.answer(2), SurveyArchive) == [SurveyArchive()]
    other = voter()
    assert (
        sent(offer(other, 0, other.genesis(0, 1, 2, members_hash=b"x" * 32)), GenesisPromise) == []
    )
    assert "its author counts other members" in other.birth.status
    assert own_genesis(author()).config.members_hash == author().members.hash


# The author.


def test_the_genesis_is_persisted_before_it_is_offered() -> None:
    """Sentence B27 of docs/protocol/birth.md.

    B27. The author persists its genesis before it offers it, and offers the same bytes after a
    crash.
    """
    node = author()
    (kept,), (offered,) = positions(node.last, KeepBirth), positions(node.last, GenesisOffer)
    assert kept < offered
    genesis = own_genesis(node)
    assert node.last[kept].record.promise.genesis == genesis.record
    again = Node(record=node.record)
    again.connect(1, 2)
    offers = sent(again.said, GenesisOffer)
    assert [message.genesis for message in offers] == [genesis.record] * 2
    again.answer(1)
    again.answer(2)
    assert again.record == node.record
    assert of(again.said, SurveyArchive) == []


def test_the_genesis_says_what_was_decided() -> None:
    """Voters in order with their journals and roles, the file's root and page size, seq 1."""
    node = Node(file=ROWS)
    node.connect(1, 2)
    node.answer(1, role=MemberRole.WITNESS)
    node.answer(2)
    node.step(surveyed(file=ROWS))
    genesis = own_genesis(node)
    config, head = genesis.config, genesis.head
    assert [(v.key, v.journal_id) for v in config.voters] == [
        (peer.key, journal(number)) for number, peer in enumerate(node.order)
    ]
    assert [v.role for v in config.voters] == [
        VoterRole.VALIDATOR,
        VoterRole.WITNESS,
        VoterRole.VALIDATOR,
    ]
    assert (config.page_size, head.state_root) == (4096, ROWS.state_root)
    assert (head.seq, head.epoch, head.view, head.timestamp_ns) == (1, 1, 0, 77)
    assert (config.parent, config.is_forced) == (None, False)
    assert config.fault_model == FaultModel.CRASH
    nothing = own_genesis(author())
    assert (nothing.config.page_size, nothing.head.state_root) == (0, EMPTY_ROOT)


@pytest.mark.parametrize(
    ("replication", "model"), [(3, FaultModel.CRASH), (4, FaultModel.BYZANTINE)]
)
def test_byzantine_is_asked_for_and_needs_four(replication: int, model: FaultModel) -> None:
    """With fewer voters nobody can tell who lies."""
    node = author(4, replication=replication, fault_model=FaultModel.BYZANTINE)
    assert own_genesis(node).config.fault_model == model


def test_it_is_known_when_all_have_promised() -> None:
    """Sentence B34 of docs/protocol/birth.md.

    B34. A lineage is known only with the signatures of all its voters, persisted.
    """
    node = author(4, replication=4)
    genesis = own_genesis(node)
    assert promise(node, 1, genesis) == []
    assert promise(node, 2, genesis) == []
    assert node.birth.genesis is None
    assert node.birth.status == f"waiting for the promise of {node.order[3].node_id}"
    effects = promise(node, 3, genesis)
    assert [type(effect) for effect in effects] == [KeepBirth, Born, SendBirth]
    known = effects[0].record.known
    assert known.genesis == genesis.record
    certificate = known.certificate
    assert (certificate.phase, certificate.height, certificate.hash) == (0, 1, genesis.hash)
    assert [key for key, _ in certificate.votes] == sorted(genesis.voters)
    check_complete(genesis, certificate, node.notary.verify)
    assert decode_certificate(encode_certificate(certificate)) == certificate
    assert (effects[1].is_author, effects[1].certificate) == (True, certificate)
    assert effects[2].message == LineageKnown(
        genesis=genesis.record, certificate=certificate, is_asking=True
    )


def test_a_certificate_lacking_anything_is_none() -> None:
    """A voter's signature, a right one, this frame's, this phase's: nothing less."""
    node = author()
    genesis = own_genesis(node)
    right = node.lineage(genesis).certificate
    assert right is not None
    first, *others = right.votes
    fields = {name: getattr(right, name) for name in right.__struct_fields__}
    for wrong in (
        None,
        type(right)(**(fields | {"votes": tuple(others)})),
        type(right)(**(fields | {"votes": ((first[0], b"x" * 64), *others)})),
        type(right)(**(fields | {"phase": 1})),
        type(right)(**(fields | {"height": 2})),
        type(right)(**(fields | {"view": 1})),
        type(right)(**(fields | {"votes": (*others, first)})),
    ):
        with pytest.raises(CertificateInvalid):
            check_complete(genesis, wrong, node.notary.verify)


def test_only_right_promises_count() -> None:
    """For this genesis, with this signature, by a node that must sign it with that journal."""
    node = author()
    genesis = own_genesis(node)
    message = GenesisPromise(lineage=genesis.lineage, frame_hash=genesis.hash, signature=b"x" * 64)
    (report,) = node.hear(1, message)
    assert report == ReportBirth(what="a promise with a wrong signature", peer=node.order[1].key)
    other = node.genesis(0, 1, 2)
    assert promise(node, 1, other) == []
    promise(node, 1, genesis)
    node.journals[node.order[2].key] = journal(2, 1)
    node.step(PeerConnected(peer=node.order[2], journal_id=journal(2, 1)))
    promise(node, 2, genesis)
    assert node.birth.genesis is None
    assert promise(voter(), 0, genesis) == []


def test_one_voter_needs_the_promises_of_the_first_two() -> None:
    """With replication 1 the second of the order signs, too, and is told when it is born."""
    node = author(2, replication=1)
    genesis = own_genesis(node)
    assert genesis.voters == (node.me.key,)
    effects = promise(node, 1, genesis)
    assert [type(effect) for effect in effects] == [KeepBirth, Born]
    assert node.record.known is not None
    assert node.record.known.is_settled
    assert node.birth.wake_at is None
    alone = author(1)
    assert alone.birth.genesis is not None


def test_the_archive_comes_first() -> None:
    """Sentences B22 and B23 of docs/protocol/birth.md.

    B22. Before it writes a genesis the author looks into the archive, and a lineage there makes the
    birth a child of its leaf.

    B23. A child's genesis stands at the parent's seq + 1 and starts from the parent's state root.
    """
    node = author(survey=surveyed(parent=PARENT, file=ROWS))
    assert positions(node.said, SurveyArchive) < positions(node.said, GenesisOffer)
    genesis = own_genesis(node)
    assert genesis.config.parent == (PARENT.lineage, PARENT.seq, PARENT.hash)
    assert (genesis.head.seq, genesis.head.state_root) == (42, PARENT.state_root)
    assert (genesis.config.page_size, genesis.config.is_forced) == (8192, False)
    assert genesis.head.timestamp_ns == 901
    for number in (1, 2):
        promise(node, number, genesis)
    assert node.birth.genesis is not None
    parent = replace(PARENT, is_forced=True)
    assert own_genesis(author(survey=surveyed(parent=parent))).config.is_forced


def test_what_a_restore_brought_is_told_with_the_genesis() -> None:
    """The file's facts are new by then, so the offer carries them."""
    node = author(survey=surveyed(parent=PARENT, file=ROWS))
    (message,) = sent(node.last, GenesisOffer)
    assert message.standing.file == ROWS


def test_an_archive_of_no_use_is_no_birth() -> None:
    """Sentence B24 of docs/protocol/birth.md.

    B24. An archive that cannot be used, or a missing file that may not be restored, is no birth.
    """
    why = "the archive has lineage 70.., and BASE_RESTORE_IF_MISSING is off: set it to on"
    node = author(survey=surveyed(problem=why))
    assert of(node.said, ReportBirth) == [ReportBirth(what=why)]
    assert node.birth.problem is None or node.birth.problem == why
    assert node.record.promise is None
    assert of(node.step(BirthTicked()), SurveyArchive) == []
    node.now = Instant(node.now + SURVEY_PAUSE)
    assert of(node.step(BirthTicked()), SurveyArchive) == [SurveyArchive()]
    node.step(surveyed())
    assert node.record.promise is not None


def test_a_survey_outlives_no_change_of_mind() -> None:
    """What the archive had is asked anew when the author was not sure in between."""
    node = Node()
    node.connect(1, 2)
    node.answer(1)
    node.answer(2)
    node.step(PeerConnected(peer=node.order[2], journal_id=node.journals[node.order[2].key]))
    assert of(node.step(surveyed()), KeepBirth) == []
    assert of(node.answer(2), SurveyArchive) == [SurveyArchive()]


@pytest.mark.parametrize(
    "change",
    [
        "another author",
        "another journal of a voter",
        "another file",
        "another membership",
        "a fork",
    ],
)
def test_a_genesis_that_is_not_current_is_withdrawn(change: str) -> None:
    """Sentence B32 of docs/protocol/birth.md.

    B32. An author withdraws a genesis that is no longer the one it would write.
    """
    node = author()
    genesis = own_genesis(node)
    key = node.order[2].key
    if change == "another author":
        node.answer(2, file=ROWS)
    elif change == "another journal of a voter":
        node.journals[key] = journal(2, 1)
        node.connect(2)
        node.answer(2)
    elif change == "another file":
        node.step(FileScanned(file=SCHEMA))
    elif change == "a fork":
        node.answer(1, file=ROWS)
        assert node.record.promise is None
        node.answer(2, file=OTHER_ROWS)
        assert node.birth.problem is not None
    else:
        members = replace(node.members, peers=node.members.peers[:2])
        node.step(MembersKnown(members=members))
        for number, peer in enumerate(node.order):
            if peer in members.peers and peer != node.me:
                node.answer(number, members_hash=members.hash)
    withdraws = sent(node.said, Withdraw)
    assert [message.frame_hash for message in withdraws] == [genesis.hash]
    assert node.notary.verify(node.me.key, withdraws[0].signature, genesis.withdrawal)
    assert node.record.withdrawn == (withdraws[0],)
    assert positions(node.said, Withdraw)[0] > positions(node.said, KeepBirth)[1]
    assert node.record.promise is None or node.record.promise.genesis != genesis.record
    for number in (1, 2):
        promise(node, number, genesis)
    assert node.birth.genesis is None


def test_the_own_signature_stays_until_the_others_are_there() -> None:
    """Sentence B31 of docs/protocol/birth.md.

    B31. The author's own signature never leaves it before all others are there, so it may withdraw
    at any time until then.
    """
    node = author(survey=surveyed(lineage=Lineage(b"signed by no-one")))
    genesis = own_genesis(node)
    promise(node, 1, genesis)
    nothing = (node.me.key, node.signature(0, b"anything"), genesis.message)
    assert not node.notary.verify(*nothing)
    node.step(FileScanned(file=SCHEMA))
    node.step(surveyed(file=SCHEMA, lineage=Lineage(b"M" * 16)))
    again = own_genesis(node)
    assert again.hash != genesis.hash
    promise(node, 1, again)
    promise(node, 2, again)
    assert node.birth.genesis is not None
    assert node.birth.genesis.hash == again.hash


def test_a_voter_that_holds_a_withdrawn_genesis_is_told_again() -> None:
    """The first WITHDRAW may have been lost; the newest ones are remembered."""
    node = author()
    genesis = own_genesis(node)
    node.step(FileScanned(file=SCHEMA))
    (message,) = sent(node.answer(1, promised=held(node, 0, genesis)), Withdraw)
    assert message == node.record.withdrawn[0]
    other = node.genesis(0, 1, 2, lineage=Lineage(b"F" * 16))
    assert len(of(node.answer(2, promised=held(node, 0, other)), NewJournalNeeded)) == 1


def test_no_more_withdrawals_are_remembered_than_may_be() -> None:
    """The oldest one is forgotten first."""
    node = author()
    genesis = own_genesis(node)
    node.step(FileScanned(file=SCHEMA))
    (message,) = sent(node.answer(1, promised=held(node, 0, genesis)), Withdraw)
    for number in range(WITHDRAWN_MAX):
        file = None if number % 2 else SCHEMA
        node.step(surveyed(file=file, lineage=Lineage(b"N" + number.to_bytes(15, "big"))))
        node.step(FileScanned(file=SCHEMA if number % 2 else None))
    assert len(node.record.withdrawn) == WITHDRAWN_MAX
    assert message not in node.record.withdrawn


def test_an_author_whose_journal_forgot_takes_a_new_one() -> None:
    """Sentence B40 of docs/protocol/birth.md.

    B40. An author whose journal forgot a genesis takes a new journal id.
    """
    node = Node()
    node.connect(1, 2)
    genesis = node.genesis(0, 1, 2)
    effects = node.answer(1, promised=held(node, 0, genesis))
    assert len(of(effects, NewJournalNeeded)) == 1
    assert node.answer(2) == []
    assert node.hear(2, node.lineage(genesis)) == []
    assert "forgotten" in node.birth.status


def test_a_lost_journals_genesis_is_taken_back_only_after_asking_its_voters() -> None:
    """Sentence B39 of docs/protocol/birth.md.

    B39. An author that lost its disk before the birth was complete takes back what it wrote only
    when all voters of it have answered that they know nothing.
    """
    node = Node(0, 4)
    node.connect(1, 2, 3)
    genesis = node.genesis(0, 1, 2)
    node.answer(3)
    effects = node.answer(1, promised=held(node, 0, genesis, journal(0, 9)))
    assert sent(effects, Withdraw) == []
    (message,) = sent(node.answer(2), Withdraw)
    assert message.frame_hash == genesis.hash
    assert node.notary.verify(node.me.key, message.signature, genesis.withdrawal)


# The voter.


def test_a_promise_is_persisted_before_it_is_sent() -> None:
    """Sentence B26 of docs/protocol/birth.md.

    B26. A promise is persisted before it is sent.
    """
    node = voter()
    genesis = node.genesis(0, 1, 2)
    effects = offer(node, 0, genesis)
    (kept,), (promised,) = positions(effects, KeepBirth), positions(effects, GenesisPromise)
    assert kept < promised
    record = effects[kept].record
    assert (record.promise.author, record.promise.genesis) == (node.order[0].key, genesis.record)
    assert record.promise.journal_id == journal(0)
    (message,) = sent(effects, GenesisPromise)
    assert node.notary.verify(node.me.key, message.signature, genesis.message)
    (ask,) = sent(node.hear(2, BirthAsk(standing=node.standing())), BirthAnswer)
    assert ask.standing.promised == held(node, 0, genesis)
    again = Node(1, record=node.record)
    again.connect(0)
    assert [type(m) for m in sent(offer(again, 0, genesis), object)] == [GenesisPromise]
    assert again.record == node.record


def test_one_promise_is_kept_and_shown_to_others() -> None:
    """Sentence B28 of docs/protocol/birth.md.

    B28. A node keeps one promise, and answers other candidates with the one that it keeps.
    """
    node = voter()
    first = node.genesis(0, 1, 2)
    offer(node, 0, first)
    second = node.genesis(2, 0, 1, state_root=ROWS.state_root, page_size=4096)
    effects = offer(node, 2, second, file=ROWS)
    assert sent(effects, GenesisPromise) == []
    (answer,) = sent(effects, BirthAnswer)
    assert answer.standing.promised == held(node, 0, first)
    same_author = node.genesis(0, 1, 2, lineage=b"n" * 16)
    assert sent(offer(node, 0, same_author), GenesisPromise) == []
    assert own_genesis(node).hash == first.hash


def test_a_promise_is_replaced_only_by_the_same_key_with_another_journal() -> None:
    """Sentence B29 of docs/protocol/birth.md.

    B29. A promise is replaced only by the same author's key with another journal, whose genesis
    names all voters of the first.
    """
    node = voter(1, 4)
    offer(node, 0, node.genesis(0, 1, 2))
    node.journals[node.order[0].key] = journal(0, 1)
    node.connect(0)
    fewer = node.genesis(0, 1, 3, lineage=b"n" * 16)
    assert sent(offer(node, 0, fewer), GenesisPromise) == []
    again = node.genesis(0, 1, 2, lineage=b"n" * 16)
    assert len(sent(offer(node, 0, again), GenesisPromise)) == 1
    assert own_genesis(node).hash == again.hash
    assert node.record.promise is not None
    assert node.record.promise.journal_id == journal(0, 1)


def test_a_withdrawal_ends_a_promise() -> None:
    """Sentence B30 of docs/protocol/birth.md.

    B30. A promise ends with the author's signed WITHDRAW.
    """
    node = voter()
    genesis = node.genesis(0, 1, 2)
    offer(node, 0, genesis)
    fields = {"lineage": genesis.lineage, "frame_hash": genesis.hash}
    right = Withdraw(**fields, signature=node.signature(0, genesis.withdrawal))
    wrong = Withdraw(**fields, signature=b"x" * 64)
    other = Withdraw(
        lineage=genesis.lineage, frame_hash=FrameHash(b"o" * 32), signature=right.signature
    )
    assert node.hear(2, right) == []
    assert [type(effect) for effect in node.hear(0, wrong)] == [ReportBirth]
    assert node.hear(0, other) == []
    assert own_genesis(node).hash == genesis.hash
    effects = node.hear(0, right)
    assert isinstance(effects[0], KeepBirth)
    assert node.record.promise is None
    assert node.hear(0, right) == []
    again = node.genesis(0, 1, 2, lineage=b"n" * 16)
    assert len(sent(offer(node, 0, again), GenesisPromise)) == 1


def test_a_withdrawal_ends_an_offer_that_waits() -> None:
    """It is not signed later, when the last answer comes."""
    node = Node(1)
    node.connect(0, 2)
    genesis = node.genesis(0, 1, 2)
    assert sent(offer(node, 0, genesis), GenesisPromise) == []
    signature = node.signature(0, genesis.withdrawal)
    node.hear(0, Withdraw(lineage=genesis.lineage, frame_hash=genesis.hash, signature=signature))
    assert sent(node.answer(2), GenesisPromise) == []
    offer(node, 0, genesis)
    assert node.record.promise is not None


def test_an_offer_waits_for_the_answers_that_it_needs() -> None:
    """And for nothing else: it is signed when the last connected member has answered."""
    node = Node(1)
    node.connect(0, 2)
    genesis = node.genesis(0, 1, 2)
    assert sent(offer(node, 0, genesis), GenesisPromise) == []
    assert f"{node.order[2].node_id} must answer first" in node.birth.status
    assert len(sent(node.answer(2), GenesisPromise)) == 1
    lost = Node(1)
    lost.connect(0, 2)
    offer(lost, 0, genesis)
    lost.step(PeerGone(key=lost.order[0].key))
    assert sent(lost.answer(2), GenesisPromise) == []
    assert lost.record.promise is None


def test_a_member_with_rows_promises_to_no_other_content() -> None:
    """Sentence B18 of docs/protocol/birth.md.

    B18. A member with rows promises to nobody who starts from other content, unless the operator
    decided for him.
    """
    node = voter(file=ROWS)
    assert sent(offer(node, 0, node.genesis(0, 1, 2)), GenesisPromise) == []
    waiting = Node(1, file=ROWS)
    waiting.connect(0)
    assert sent(offer(waiting, 0, node.genesis(0, 1, 2)), GenesisPromise) == []
    assert f"{node.me.node_id} should be the author" in waiting.birth.status
    same = {"state_root": ROWS.state_root, "page_size": 4096}
    equal = voter(file=ROWS)
    assert (
        len(sent(offer(equal, 0, equal.genesis(0, 1, 2, **same), file=ROWS), GenesisPromise)) == 1
    )
    facts = {"file": OTHER_ROWS, "is_decided": True}
    decided = voter(file=ROWS)
    other = decided.genesis(0, 1, 2, state_root=OTHER_ROWS.state_root, page_size=4096)
    assert sent(offer(decided, 0, other, file=OTHER_ROWS), GenesisPromise) == []
    assert decided.birth.problem is not None
    assert len(sent(offer(decided, 0, other, **facts), GenesisPromise)) == 1


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("file", "it does not start from the file of"),
        ("voters", "where this node expects"),
        ("my journal", "it names another journal of"),
        ("role", "another role than its own"),
        ("author", "should be the author"),
        ("stranger", "its author counts other members"),
    ],
)
def test_what_is_not_signed(what: str, why: str) -> None:
    """Each objection has its sentence, which `status` shows."""
    node = voter(1, 4)
    genesis = node.genesis(0, 1, 2)
    if what == "file":
        genesis = node.genesis(0, 1, 2, state_root=ROWS.state_root, page_size=4096)
    elif what == "voters":
        genesis = node.genesis(0, 2, 1)
    elif what == "my journal":
        genesis = node.genesis(0, 1, 2, journals=node.journals | {node.me.key: journal(1, 9)})
    elif what == "role":
        node.answer(2, role=MemberRole.WITNESS)
    elif what == "author":
        genesis = node.genesis(2, 0, 1)
    number = 2 if what == "author" else 0
    if what == "stranger":
        number = 3
        node.step(MembersKnown(members=replace(node.members, peers=node.members.peers)))
        genesis = node.genesis(3, 0, 1, members_hash=b"z" * 32)
    assert sent(offer(node, number, genesis), GenesisPromise) == []
    assert why in node.birth.status


def test_a_promise_names_key_and_journal() -> None:
    """Sentence B33 of docs/protocol/birth.md.

    B33. A genesis names a voter by key and journal, and a voter signs only its present journal.
    """
    node = voter()
    stale = node.genesis(0, 1, 2, journals=node.journals | {node.me.key: journal(1, 9)})
    assert sent(offer(node, 0, stale), GenesisPromise) == []
    old_author = node.genesis(0, 1, 2, journals=node.journals | {node.order[0].key: journal(0, 9)})
    assert sent(offer(node, 0, old_author), GenesisPromise) == []
    assert "another journal" in node.birth.status


def test_who_need_not_sign_does_not() -> None:
    """A member that is neither a voter nor one of the first two."""
    node = voter(3, 4)
    assert sent(offer(node, 0, node.genesis(0, 1, 2)), GenesisPromise) == []
    assert "this node is not asked to sign it" in node.birth.status
    displaced = voter(1, 4, replication=1)
    assert len(sent(offer(displaced, 0, displaced.genesis(0)), GenesisPromise)) == 1


def test_a_candidate_that_promised_writes_no_genesis() -> None:
    """It waits until the other takes his back."""
    node = voter(1)
    genesis = node.genesis(0, 1, 2)
    offer(node, 0, genesis)
    node.step(FileScanned(file=ROWS))
    assert of(node.said, SurveyArchive) == []
    assert f"waiting for {node.order[0].node_id} to withdraw" in node.birth.status
    signature = node.signature(0, genesis.withdrawal)
    message = Withdraw(lineage=genesis.lineage, frame_hash=genesis.hash, signature=signature)
    assert of(node.hear(0, message), SurveyArchive) == [SurveyArchive()]


def test_a_child_is_signed_whatever_its_state() -> None:
    """It starts from the archive's state, which the voter cannot know; its file says nothing."""
    node = voter()
    child = node.genesis(0, 1, 2, parent=(PARENT.lineage, 41, PARENT.hash), state_root=b"r" * 32)
    assert child.head.seq == 42
    assert len(sent(offer(node, 0, child, file=ROWS), GenesisPromise)) == 1


def test_an_offer_waits_behind_the_own_genesis() -> None:
    """Until this node has withdrawn it."""
    node = Node(1, file=ROWS)
    node.connect(0, 2)
    offer(node, 0, node.genesis(0, 1, 2))
    node.answer(2)
    node.step(surveyed(file=ROWS))
    mine = own_genesis(node)
    assert mine.author == node.me.key
    node.connect(2)
    assert own_genesis(node).hash == mine.hash
    assert f"waiting for the answer of {node.order[2].node_id}" in node.birth.status
    effects = node.step(FileScanned(file=None))
    assert sent(effects, Withdraw) == []
    effects = node.answer(2)
    assert (len(sent(effects, Withdraw)), len(sent(effects, GenesisPromise))) == (1, 1)


def test_nobody_signs_where_nobody_can_be_the_author() -> None:
    """The reason is that of the choice."""
    node = voter()
    standing = node.standing(file=ROWS)
    answers = {
        peer.key: Answer(journal_id=journal(number), standing=standing)
        for number, peer in enumerate(node.order)
    }
    answers[node.order[2].key] = Answer(
        journal_id=journal(2), standing=node.standing(file=OTHER_ROWS)
    )
    situation = Situation(
        me=node.me,
        journal_id=journal(1),
        members=node.members,
        order=node.order,
        replication=3,
        answers=answers,
        connected=frozenset(),
    )
    objection = find_objection(situation, node.genesis(0, 1, 2), journal(0))
    assert objection is not None
    assert "different databases with rows" in objection
    silent = replace(situation, answers={})
    said = find_objection(silent, node.genesis(0, 1, 2), journal(0))
    assert said == f"{node.order[0].node_id} has not said how it stands"


def reseal(genesis: Genesis, node: Node, **changes: Any) -> bytes:
    """The record of a frame like ``genesis``, but for the changes."""
    head = genesis.head
    fields: dict[str, Any] = {
        name: getattr(head, name)
        for name in (
            *("shard", "seq", "timestamp_ns", "salt", "kind", "flags"),
            *("epoch", "view", "prev_hash", "state_root"),
        )
    }
    fields |= {"payload": genesis.frame.payload, "signer": node.signers[genesis.author]}
    return encode_frame(seal(**(fields | changes)))


def test_a_frame_that_is_no_genesis_is_refused() -> None:
    """Another epoch, another author, FORCED without a parent, the old layout, a COMMIT."""
    node = Node()
    genesis = node.genesis(0, 1, 2)
    payload = encode_config(replace(genesis.config, is_forced=True))
    forced_only = reseal(genesis, node, payload=payload, prev_hash=genesis_prev_hash(payload))
    payload_end = 1 + 2 + 3 + 8 + 8 + 8 + 16 + 4 + len(genesis.frame.payload) + 32
    old = b"\x01" + genesis.record[1:payload_end]
    for record, why in (
        (reseal(genesis, node, epoch=Epoch(2)), "is of epoch 2"),
        (reseal(genesis, node, view=View(1)), "view 1"),
        (reseal(genesis, node, signer=node.signers[node.order[1].key]), "not its first voter"),
        (reseal(genesis, node, kind=Kind.COMMIT), "no genesis of"),
        (forced_only, "FORCED but continues no lineage"),
        (old, "this one is older"),
    ):
        with pytest.raises(CorruptionError, match=why):
            read_genesis(record, SHARD, node.notary.verify)


def test_a_forged_genesis_is_reported() -> None:
    """Malformed, of another shard, another's, unsigned: none is judged any further."""
    node = voter()
    genesis = node.genesis(0, 1, 2)
    head = len(genesis.record) - 64
    for number, record in (
        (0, b"\x02nonsense"),
        (0, genesis.record[:head] + b"x" * 64),
        (2, genesis.record),
    ):
        message = GenesisOffer(genesis=record, standing=node.standing())
        (report,) = of(node.hear(number, message), ReportBirth)
        assert report.peer == node.order[number].key
    with pytest.raises(ChainBroken, match="no genesis of 'other'"):
        read_genesis(genesis.record, ShardId("other"), node.notary.verify)


# Connections.


def test_a_new_connection_voids_the_answer_of_the_old_one() -> None:
    """Sentence B38 of docs/protocol/birth.md.

    B38. A new connection voids the answer of the old one, and a message of an older journal is
    dropped.
    """
    node = Node()
    node.connect(1, 2)
    node.answer(1)
    node.step(PeerConnected(peer=node.order[1], journal_id=journal(1, 1)))
    assert node.answer(2) == []
    assert node.birth.status == f"waiting for the answer of {node.order[1].node_id}"
    answer = BirthAnswer(standing=node.standing())
    key = node.order[1].key
    old = BirthReceived(sender=key, journal_id=journal(1), message=answer)
    assert node.step(old) == []
    new = BirthReceived(sender=key, journal_id=journal(1, 1), message=answer)
    assert of(node.step(new), SurveyArchive) == [SurveyArchive()]
    node.step(PeerGone(key=key))
    assert node.step(new) == []


def test_a_promise_ends_with_the_connection_that_brought_it() -> None:
    """Who comes back may have another journal, so it is asked again."""
    node = author()
    genesis = own_genesis(node)
    promise(node, 1, genesis)
    node.connect(1)
    assert len(sent(node.last, GenesisOffer)) == 1
    promise(node, 2, genesis)
    assert node.birth.genesis is None
    node.answer(1)
    promise(node, 1, genesis)
    assert node.birth.genesis is not None


# Known.


def test_nothing_is_born_before_it_is_known() -> None:
    """Sentence B35 of docs/protocol/birth.md.

    B35. Nothing is born before the lineage is known: no vote, no lease, no capture as the writer.
    """
    node = author()
    genesis = own_genesis(node)
    promise(node, 1, genesis)
    assert of(node.said, Born) == []
    effects = promise(node, 2, genesis)
    (kept,), (born,) = positions(effects, KeepBirth), positions(effects, Born)
    assert kept < born
    again = Node(record=node.record, boots=False)
    (effect,) = again.birth.boot(again.now)
    assert effect == effects[born]


def test_who_knows_answers_and_everybody_joins() -> None:
    """Sentence B36 of docs/protocol/birth.md.

    B36. Who knows a lineage answers with its genesis and certificate, and everybody joins that one.
    """
    first = author()
    genesis = own_genesis(first)
    for number in (1, 2):
        promise(first, number, genesis)
    ask = BirthAsk(standing=first.standing())
    (told,) = sent(first.hear(2, ask), LineageKnown)
    (again,) = sent(
        first.hear(2, GenesisOffer(genesis=b"", standing=first.standing())), LineageKnown
    )
    assert told == again == first.lineage(genesis)
    node = voter()
    node.hear(0, told)
    assert node.birth.genesis is not None
    assert node.birth.genesis.hash == genesis.hash
    assert [type(effect) for effect in node.last][:2] == [KeepBirth, Born]
    assert not node.last[1].is_author
    busy = voter()
    offer(busy, 0, busy.genesis(0, 1, 2, lineage=b"n" * 16))
    busy.hear(0, told)
    assert busy.record.promise is None
    assert busy.birth.genesis is not None


def test_a_lineage_that_not_all_signed_is_not_joined() -> None:
    """It is reported."""
    node = voter()
    genesis = node.genesis(0, 1, 2)
    (report,) = node.hear(2, LineageKnown(genesis=genesis.record, certificate=None))
    assert "has no certificate" in report.what
    assert node.birth.genesis is None


def test_others_than_voters_are_told_when_it_is_settled() -> None:
    """Sentence B37 of docs/protocol/birth.md.

    B37. Others than voters are told only when a quorum of the voters know.
    """
    node = author(5, replication=3)
    genesis = own_genesis(node)
    promise(node, 1, genesis)
    effects = promise(node, 2, genesis)
    (told,) = of(effects, SendBirth)
    assert set(told.to) == {node.order[1].key, node.order[2].key}
    ask = BirthAsk(standing=node.standing())
    assert node.hear(3, ask) == []
    assert node.birth.wake_at is not None
    node.now = node.birth.wake_at
    (again,) = of(node.step(BirthTicked()), SendBirth)
    assert set(again.to) == set(told.to)
    effects = node.hear(1, node.lineage(genesis))
    assert isinstance(effects[0], KeepBirth)
    assert effects[0].record.known.is_settled
    assert {node.order[3].key, node.order[4].key} < set(effects[1].to)
    assert len(sent(node.hear(3, ask), LineageKnown)) == 1
    assert node.birth.wake_at is None
    node.connect(4)
    assert node.last == []


def test_a_voter_that_knows_says_so_when_it_is_asked() -> None:
    """So that the lineage is settled; and an unsettled node tells voters that come."""
    node = voter(1)
    genesis = node.genesis(0, 1, 2)
    effects = node.hear(0, node.lineage(genesis, is_asking=True))
    assert isinstance(effects[0], KeepBirth)
    told = of(effects, SendBirth)
    assert {key for effect in told for key in effect.to} == {peer.key for peer in node.order} - {
        node.me.key
    }
    node.connect(2)
    (message,) = sent(node.last, LineageKnown)
    assert message.is_asking
    assert len(sent(node.hear(2, node.lineage(genesis, is_asking=True)), LineageKnown)) >= 1
    late = Node(3, 4)
    late.connect(0)
    late.hear(0, late.lineage(late.genesis(0, 1, 2), is_asking=True))
    assert late.record.known is not None
    assert late.record.known.is_settled


def test_what_belongs_to_the_birth_is_no_news_after_it() -> None:
    """A late promise or withdrawal changes nothing, nor does a scan, a survey or a tick."""
    node = author(1)
    record = node.record
    genesis = node.birth.genesis
    assert genesis is not None
    other = author(2, replication=1)
    promise(other, 1, own_genesis(other))
    known = other.birth.genesis
    assert known is not None
    assert promise(other, 1, known) == []
    for event in (FileScanned(file=None), surveyed(), BirthTicked(), MembersKnown(members="none")):
        assert node.step(event) == []
    assert node.step(PeerGone(key=node.me.key)) == []
    assert node.record == record
    (report,) = node.step(AuthorDecided())
    assert "comes too late" in report.what


# Files.


@pytest.mark.parametrize(
    ("file", "facts", "fate"),
    [
        (None, {}, FileFate.NONE),
        (SCHEMA, {}, FileFate.KEPT_ASIDE),
        (ROWS, {"file": ROWS}, FileFate.ADOPTED),
        (OTHER_ROWS, {"file": ROWS}, FileFate.REFUSED),
        (OTHER_ROWS, {"file": ROWS, "is_decided": True}, FileFate.KEPT_ASIDE),
    ],
)
def test_what_becomes_of_a_file(file: Any, facts: Any, fate: FileFate) -> None:
    """Sentence B17 of docs/protocol/birth.md.

    B17. A file without rows counts as empty: it is kept aside and its node repaired to the chain.
    """
    node = Node(3, 4, file=file)
    node.connect(0)
    node.answer(0, **facts)
    genesis = node.genesis(0, 1, 2, state_root=ROWS.state_root, page_size=4096)
    (born,) = of(node.hear(0, node.lineage(genesis)), Born)
    assert born.file == fate
    again = Node(3, 4, record=node.record, boots=False)
    assert again.birth.boot(again.now) == [born]


def test_the_operator_decides_once() -> None:
    """Sentence B16 of docs/protocol/birth.md.

    B16. The operator's `members init` on one node decides for it, once.
    """
    node = Node(1, file=ROWS)
    node.connect(0, 2)
    node.answer(0, file=OTHER_ROWS)
    node.answer(2)
    assert node.birth.problem is not None
    effects = node.step(AuthorDecided())
    assert isinstance(effects[0], KeepBirth)
    assert effects[0].record.is_decided
    assert sent(effects, BirthAnswer)[0].standing.is_decided
    assert of(effects, SurveyArchive) == [SurveyArchive()]
    again = Node(1, file=ROWS, record=node.record)
    again.connect(0, 2)
    again.answer(0, file=OTHER_ROWS)
    assert of(again.answer(2), SurveyArchive) == [SurveyArchive()]


# Lineages from before.


def test_a_standalone_lineage_is_joined() -> None:
    """Sentence B20 of docs/protocol/birth.md.

    B20. A member with a standalone lineage is the author already: the others join it as learners,
    and no genesis is written.
    """
    node = voter(0)
    standalone = node.genesis(2, members_hash=b"2" * 32, state_root=ROWS.state_root)
    effects = node.hear(2, node.lineage(standalone))
    assert [type(effect) for effect in effects] == [KeepBirth, Born]
    assert node.birth.genesis is not None
    assert node.birth.genesis.lineage == standalone.lineage
    assert node.record.promise is None
    owner = Node(2, record=node.record)
    owner.connect(0)
    assert len(sent(owner.hear(0, BirthAsk(standing=owner.standing())), LineageKnown)) == 1


def test_an_author_withdraws_for_a_lineage_from_before() -> None:
    """In the same step; whoever promised waits until it is told."""
    node = author()
    genesis = own_genesis(node)
    standalone = node.genesis(2, members_hash=b"2" * 32)
    effects = node.hear(2, node.lineage(standalone))
    assert [type(effect) for effect in effects] == [KeepBirth, SendBirth, KeepBirth, Born]
    assert [message.frame_hash for message in sent(effects, Withdraw)] == [genesis.hash]
    other = voter(1)
    offer(other, 0, genesis)
    assert other.hear(2, other.lineage(standalone)) == []
    assert "must be withdrawn first" in other.birth.status
    signature = other.signature(0, genesis.withdrawal)
    withdraw = Withdraw(lineage=genesis.lineage, frame_hash=genesis.hash, signature=signature)
    assert len(of(other.hear(0, withdraw), Born)) == 1


def test_a_lineage_from_before_is_joined_when_all_connected_have_answered() -> None:
    """A second one might exist."""
    node = Node(0)
    node.connect(1, 2)
    standalone = node.genesis(2, members_hash=b"2" * 32)
    assert node.hear(2, node.lineage(standalone)) == []
    assert f"waiting for the answer of {node.order[1].node_id}" in node.birth.status
    assert len(of(node.answer(1), Born)) == 1


def test_two_lineages_are_joined_by_nobody() -> None:
    """Sentence B21 of docs/protocol/birth.md.

    B21. Peers that follow different lineages are reported, and none is joined.
    """
    node = Node(0)
    node.connect(1, 2)
    one = node.genesis(1, members_hash=b"1" * 32, lineage=b"1" * 16)
    two = node.genesis(2, members_hash=b"2" * 32, lineage=b"2" * 16)
    node.hear(1, node.lineage(one))
    node_2 = node.hear(2, node.lineage(two))
    (report,) = [effect for effect in node_2 if isinstance(effect, ReportBirth)]
    assert one.lineage.hex() in report.what
    assert two.lineage.hex() in report.what
    assert node.hear(2, node.lineage(two)) == []


# Forced lineages, at a node that follows another one or none.


def forced(node: Node, number: int, parent: Any, lineage: bytes = b"f" * 16) -> Genesis:
    return node.genesis(number, lineage=lineage, parent=parent, is_forced=True)


def settled() -> tuple[Node, Genesis]:
    """A learner that follows the lineage of the others."""
    node = Node(3, 4)
    node.connect(0, 1, 2)
    genesis = node.genesis(0, 1, 2)
    node.hear(0, node.lineage(genesis))
    return node, genesis


def test_nobody_follows_a_forced_lineage_by_itself() -> None:
    """Sentence B43 of docs/protocol/birth.md.

    B43. Nobody follows a forced lineage by itself: it is reported, and followed after `members
    accept`.
    """
    node, genesis = settled()
    parent = (genesis.lineage, 9, b"p" * 32)
    new = forced(node, 1, parent)
    (report,) = node.hear(1, node.lineage(new))
    assert report.what.startswith(f"forced lineage {new.lineage.hex()} by {node.order[1].node_id}")
    assert node.hear(1, node.lineage(new)) == []
    assert node.birth.genesis == genesis
    (refusal,) = node.step(ForcedAccepted(lineage=Lineage(b"?" * 16)))
    assert "nothing accepted" in refusal.what
    effects = node.step(ForcedAccepted(lineage=new.lineage))
    assert [type(effect) for effect in effects] == [KeepOrphans, KeepBirth, Born]
    assert effects[2].file == FileFate.REPAIRED
    assert node.record.left == (genesis.lineage,)
    assert node.birth.genesis == new
    assert node.hear(0, node.lineage(genesis)) == []
    assert len(sent(node.hear(0, BirthAsk(standing=node.standing())), LineageKnown)) == 1


def test_what_an_accepting_node_holds_beyond_is_kept_first() -> None:
    """Sentence B44 of docs/protocol/birth.md.

    B44. Who accepts keeps everything it holds beyond the parent's frame as an orphan bundle, what
    was final marked so, before it follows.
    """
    node, genesis = settled()
    new = forced(node, 1, (genesis.lineage, 9, b"p" * 32))
    node.hear(1, node.lineage(new))
    keep, *others = node.step(ForcedAccepted(lineage=new.lineage))
    assert keep == KeepOrphans(
        lineage=genesis.lineage, parent_seq=Seq(9), parent_hash=FrameHash(b"p" * 32)
    )
    assert positions(others, KeepBirth) == [0]


def test_an_emptied_node_joins_a_forced_lineage() -> None:
    """Sentence B45 of docs/protocol/birth.md.

    B45. A node with an emptied data directory joins a forced lineage like any other.
    """
    node = Node(0, 3)
    node.connect(1)
    new = forced(node, 1, (Lineage(b"o" * 16), 9, b"p" * 32))
    (born,) = of(node.hear(1, node.lineage(new)), Born)
    assert born.genesis == new


def test_another_lineage_is_a_fork_and_never_accepted() -> None:
    """It is reported once, and `members accept` does not take it."""
    node, genesis = settled()
    other = node.genesis(0, 1, 2, lineage=b"z" * 16)
    (report,) = node.hear(0, node.lineage(other))
    assert genesis.lineage.hex() in report.what
    assert other.lineage.hex() in report.what
    assert node.hear(0, node.lineage(other)) == []
    (refusal,) = node.step(ForcedAccepted(lineage=other.lineage))
    assert "nothing accepted" in refusal.what
    (wrong,) = node.hear(0, LineageKnown(genesis=other.record[:-1], certificate=None))
    assert wrong.peer == node.order[0].key
    for number in range(OTHER_LINEAGES_MAX):
        node.hear(0, node.lineage(node.genesis(0, 1, 2, lineage=bytes([number + 1]) * 16)))
    assert node.hear(0, node.lineage(node.genesis(0, 1, 2, lineage=b"y" * 16))) == []


def test_commands_about_forced_lineages_need_a_lineage() -> None:
    """A node that knows none has nothing to leave."""
    node = Node()
    (report,) = node.step(ForcedAccepted(lineage=Lineage(b"f" * 16)))
    assert "knows no lineage" in report.what


# Bytes.


def test_messages_survive_the_wire() -> None:
    """Every kind, through msgspec and back; what is too long or too short is refused."""
    node = author()
    genesis = own_genesis(node)
    standing = node.standing(file=ROWS, writer="a.b", promised=held(node, 0, genesis))
    signature = b"s" * 64
    for message in (
        BirthAsk(standing=standing),
        BirthAnswer(standing=standing),
        GenesisOffer(genesis=genesis.record, standing=standing),
        GenesisPromise(lineage=genesis.lineage, frame_hash=genesis.hash, signature=signature),
        Withdraw(lineage=genesis.lineage, frame_hash=genesis.hash, signature=signature),
        node.lineage(genesis),
    ):
        encoded = msgspec.msgpack.encode(message)
        assert msgspec.msgpack.decode(encoded, type=BirthMessage) == message
    short = msgspec.msgpack.encode(
        Withdraw(lineage=Lineage(b"x"), frame_hash=genesis.hash, signature=signature)
    )
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(short, type=BirthMessage)


def test_the_record_survives_the_journal() -> None:
    """It is plain facts and bytes."""
    node = author()
    node.step(FileScanned(file=SCHEMA))
    node.step(surveyed(file=SCHEMA))
    genesis = own_genesis(node)
    for number in (1, 2):
        promise(node, number, genesis)
    encoded = msgspec.msgpack.encode(node.record)
    assert msgspec.msgpack.decode(encoded, type=BirthRecord) == node.record


def test_signatures_of_a_genesis_are_of_its_own_kind() -> None:
    """Under a genesis, for a withdrawal and under the frame: three different messages."""
    genesis = own_genesis(author())
    scope = Scope(genesis.lineage, SHARD)
    messages = {
        genesis.message,
        genesis.withdrawal,
        genesis.head.signed_message,
        scope.genesis(FrameHash(b"o" * 32)),
    }
    assert len(messages) == 4
