"""What a replica votes for, and what it never votes for."""

from dataclasses import replace as with_changes

from msgspec.structs import replace

from basenet.engine.effects import Judge, Persist, Send, SendFrames
from basenet.engine.events import FramesCaptured, FramesReceived, Judged
from basenet.engine.limits import WINDOW_FRAMES
from basenet.engine.quorum import form
from basenet.units import Epoch, FrameHash, Seq, ShardId, TimestampNs, View
from basenet.wire.certificate import COMMIT, PREPARE
from basenet.wire.frame import Flag, Frame, Kind, seal
from basenet.wire.message import Certified, Mark, Propose, Vote
from tests.engine.cluster import (
    BEGIN_NS,
    LINEAGE,
    ROOT,
    SCOPE,
    SHARD,
    Cluster,
    IdealSigner,
    Node,
    captured,
    key_of,
    piece,
    received,
)


def make_frame(prev: Frame, *, view: int = 0, author: int = 0, **changes: object) -> Frame:
    """A frame on ``prev`` that ``author`` sealed in ``view``."""
    facts = {
        "shard": SHARD,
        "seq": Seq(prev.head.seq + 1),
        "timestamp_ns": TimestampNs(prev.head.timestamp_ns + 1),
        "salt": b"m" * 16,
        "payload": b"made",
        "kind": Kind.COMMIT,
        "flags": Flag.NONE,
        "epoch": Epoch(1),
        "view": View(view),
        "prev_hash": prev.head.hash,
        "state_root": ROOT,
        "signer": IdealSigner(author),
    }
    return seal(**(facts | changes))  # type: ignore[arg-type]


def make_proposal(
    cluster: Cluster, end: Frame, *, view: int = 0, leader: int = 0, **changes: object
) -> Propose:
    """A proposal of everything above the genesis up to ``end``."""
    genesis = cluster.genesis.head
    facts = {
        "prev_height": genesis.seq,
        "prev_hash": genesis.hash,
        "end_height": end.head.seq,
        "end_hash": end.head.hash,
        "anchor": Mark(-1, genesis.seq, genesis.hash),
    } | changes
    anchor = facts["anchor"]
    assert isinstance(anchor, Mark)
    data = SCOPE.propose(  # type: ignore[call-overload]
        Epoch(1),
        View(view),
        facts["prev_height"],
        facts["prev_hash"],
        facts["end_height"],
        facts["end_hash"],
        anchor.view,
        anchor.height,
        anchor.hash,
    )
    blank = {"justification": None, "prepared": None, "final": None}
    return Propose(
        epoch=Epoch(1),
        view=View(view),
        signature=IdealSigner(leader).sign(data),
        **(blank | facts),  # type: ignore[arg-type]
    )


def hand(cluster: Cluster, number: int, *frames: Frame, sender: int = 0) -> None:
    cluster.give(number, FramesReceived(sender=key_of(sender), frames=frames))


def votes_of(node: Node) -> list[tuple[int, int]]:
    return [(vote.phase, vote.height) for vote in node.sent(Vote)]


def quiet_cluster(**facts: object) -> Cluster:
    """A cluster whose view 0 has started, with nothing of it remembered."""
    cluster = Cluster(**facts)  # type: ignore[arg-type]
    for node in cluster.nodes:
        node.effects.clear()
    return cluster


# What a vote needs.


def test_frames_alone_are_never_a_reason_to_vote() -> None:
    """Protocol 3.1, Q6: they are stored by hash, in any order, and nothing else happens."""
    cluster = quiet_cluster()
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    hand(cluster, 1, two)
    hand(cluster, 1, one)
    node = cluster.nodes[1]
    assert [[frame.head.seq for frame in one.frames] for one in node.persists] == [[3], [2]]
    assert all(one.ballot is None for one in node.persists)
    assert not node.sent(Vote)
    cluster.tell(1, 0, make_proposal(cluster, two))
    cluster.run()
    assert votes_of(node) == [(COMMIT, 3)]


def test_frames_that_may_not_be_are_dropped() -> None:
    """Protocol 3.2: other shard, epoch, author, signature or a height that is settled."""
    cluster = quiet_cluster()
    good = make_frame(cluster.genesis)
    bad = [
        make_frame(cluster.genesis, shard=ShardId("other")),
        make_frame(cluster.genesis, epoch=Epoch(2)),
        make_frame(cluster.genesis, author=1),
        make_frame(cluster.genesis, seq=Seq(1)),
        make_frame(cluster.genesis, kind=Kind.CONFIG),
        with_changes(good, head=with_changes(good.head, signature=bytes(64))),
    ]
    hand(cluster, 1, *bad)
    hand(cluster, 1, good, sender=7)
    assert cluster.nodes[1].persists == []
    hand(cluster, 1, good, good)
    hand(cluster, 1, good)
    (persist,) = cluster.nodes[1].persists
    assert persist.frames == (good,)


def test_only_what_may_follow_is_linked() -> None:
    """Protocol 3.3, P22, P33: no vote for a chain with a wrong step in it."""
    partial = {"flags": Flag.PARTIAL, "state_root": bytes(32)}
    for wrong in (
        {"timestamp_ns": TimestampNs(BEGIN_NS)},
        {"seq": Seq(4)},
        {"kind": Kind.CONFIG, "state_root": b"x" * 32},
    ):
        cluster = quiet_cluster()
        one = make_frame(cluster.genesis)
        two = make_frame(one, **wrong)
        hand(cluster, 1, one, two)
        cluster.tell(1, 0, make_proposal(cluster, two))
        cluster.run()
        assert not cluster.nodes[1].sent(Vote), wrong
    cluster = quiet_cluster()
    begun = make_frame(cluster.genesis, **partial)
    foreign = make_frame(begun, flags=Flag.REGRESSED)
    hand(cluster, 1, begun, foreign)
    cluster.tell(1, 0, make_proposal(cluster, foreign))
    cluster.run()
    assert not cluster.nodes[1].sent(Vote)


def test_nobody_votes_inside_a_run() -> None:
    """Protocol 3.5, P22: its frames travel early, and the vote comes with its end."""
    cluster = quiet_cluster()
    effects = cluster.give(0, piece(1))
    assert [type(one) for one in effects] == [Persist, SendFrames]
    inside = cluster.nodes[0].frames[cluster.nodes[0].replica.tip.hash]
    cluster.run()
    cluster.tell(1, 0, make_proposal(cluster, inside))
    cluster.run()
    assert not cluster.nodes[1].sent(Vote)
    cluster.give(0, captured(1))
    cluster.run()
    assert votes_of(cluster.nodes[1]) == [(COMMIT, 3)]


def test_the_window_closes_and_a_run_may_pass_it() -> None:
    """Protocol 3.6: what cannot be sealed waits; the application may still write."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    for _ in range(WINDOW_FRAMES):
        assert cluster.nodes[0].replica.can_seal(cluster.now)
        cluster.commit(0)
    replica = cluster.nodes[0].replica
    assert not replica.can_seal(cluster.now)
    assert replica.is_writable(cluster.now)
    cluster = quiet_cluster()
    cluster.isolate(0)
    for _ in range(WINDOW_FRAMES + 2):
        cluster.give(0, piece(1))
    assert cluster.nodes[0].replica.can_seal(cluster.now)


def test_a_vote_needs_the_leaders_signature_all_frames_and_right_roots() -> None:
    """Protocol 6.1: roots are judged before, in one go, and the verdict precedes the vote."""
    cluster = quiet_cluster()
    cluster.judges = False
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    proposal = make_proposal(cluster, two)
    hand(cluster, 1, two)
    node = cluster.nodes[1]
    cluster.tell(1, 0, replace(proposal, signature=bytes(64)))
    cluster.tell(1, 2, proposal)
    cluster.tell(1, 0, proposal)
    assert [type(one) for one in node.effects] == [Persist]
    hand(cluster, 1, one)
    (judge,) = [one for one in node.effects if isinstance(one, Judge)]
    assert [head.seq for head in judge.heads] == [2, 3]
    assert not node.sent(Vote)
    cluster.give(1, cluster.verdict(judge))
    assert votes_of(node) == [(COMMIT, 3)]
    assert isinstance(node.effects[-2], Persist)
    assert isinstance(node.effects[-1], Send)


def test_a_verdict_of_a_view_that_is_over_is_void() -> None:
    """Protocol 6.8, P19: it names epoch and view, and the roots are judged again."""
    cluster = quiet_cluster()
    cluster.judges = False
    one = make_frame(cluster.genesis)
    hand(cluster, 1, one)
    cluster.tell(1, 0, make_proposal(cluster, one))
    node = cluster.nodes[1]
    verdict = Judged(epoch=Epoch(1), view=View(0), hash=one.head.hash, wrong=None)
    for stale in (
        with_changes(verdict, view=View(1)),
        with_changes(verdict, epoch=Epoch(2)),
        with_changes(verdict, hash=FrameHash(b"o" * 32)),
    ):
        cluster.give(1, stale)
        assert not node.sent(Vote)
    cluster.give(1, verdict)
    assert votes_of(node) == [(COMMIT, 2)]


def test_a_further_vote_extends_the_one_before() -> None:
    """Protocol 6.4: by frames of this view; another branch is evidence."""
    cluster = quiet_cluster()
    one, other = make_frame(cluster.genesis), make_frame(cluster.genesis, salt=b"o" * 16)
    two = make_frame(other)
    hand(cluster, 1, one, other, two)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    node = cluster.nodes[1]
    cluster.tell(1, 0, make_proposal(cluster, other))
    cluster.tell(1, 0, make_proposal(cluster, two))
    cluster.run()
    assert votes_of(node)[0] == (COMMIT, 2)
    assert node.ballot.voted == Mark(0, one.head.seq, one.head.hash)
    assert any("two" in what for what in node.whats())


def test_the_same_proposal_gets_the_same_vote_and_persists_nothing() -> None:
    """Protocol 6.7: mistake 14; also for an end below the vote."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    hand(cluster, 1, one, two)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    cluster.tell(1, 0, make_proposal(cluster, two))
    cluster.run()
    node = cluster.nodes[1]
    before = len(node.persists)
    cluster.tell(1, 0, make_proposal(cluster, two))
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    assert votes_of(node) == [(COMMIT, 2), (COMMIT, 3), (COMMIT, 3), (COMMIT, 2)]
    assert len(node.persists) == before


def test_nobody_votes_below_its_first_vote_in_a_view() -> None:
    """Protocol 6.5, mistake 10: a leader that starts twice gets one start."""
    cluster = Cluster(boots=False)
    cluster.boot(cluster.nodes[1])
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    hand(cluster, 1, one, two)
    cluster.tell(1, 0, make_proposal(cluster, two))
    cluster.run()
    node = cluster.nodes[1]
    assert (votes_of(node), node.ballot.vstart) == ([(COMMIT, 3)], 3)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.tell(1, 0, make_proposal(cluster, cluster.genesis))
    cluster.run()
    assert votes_of(node) == [(COMMIT, 3)]


def test_a_proposal_must_fit_its_frames() -> None:
    """Protocol 6.1: a signed lie about height or anchor gets no vote."""
    cluster = Cluster(boots=False)
    cluster.boot(cluster.nodes[1])
    one = make_frame(cluster.genesis)
    hand(cluster, 1, one)
    node = cluster.nodes[1]
    cluster.tell(1, 0, make_proposal(cluster, one, end_height=Seq(3)))
    cluster.run()
    assert not node.sent(Vote)
    beside = Mark(-1, cluster.genesis.head.seq, FrameHash(b"b" * 32))
    cluster.tell(1, 0, make_proposal(cluster, one, anchor=beside))
    cluster.run()
    assert not node.sent(Vote)
    assert "a proposal that contradicts its frames" in node.whats()


# The Byzantine mode.


def test_the_lock_is_durable_before_the_commit_vote() -> None:
    """Protocol 6.9: PREPARE first, COMMIT on a quorum of those; what is not mine is not locked."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.isolate(0)
    one = make_frame(cluster.genesis)
    hand(cluster, 1, one)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    node = cluster.nodes[1]
    assert votes_of(node) == [(PREPARE, 2)]
    mark = Mark(0, one.head.seq, one.head.hash)
    data = SCOPE.vote(Epoch(1), View(0), PREPARE, mark.height, mark.hash)
    votes = {key_of(number): IdealSigner(number).sign(data) for number in (0, 2, 3)}
    short = form(PREPARE, Epoch(1), mark, {key_of(0): votes[key_of(0)]})
    whole = form(PREPARE, Epoch(1), mark, votes)
    cluster.tell(1, 0, Certified(epoch=Epoch(1), certificate=short))
    assert node.ballot.prepared is None or node.ballot.prepared.height == 1
    effects = cluster.tell(1, 0, Certified(epoch=Epoch(1), certificate=whole))
    assert [type(one) for one in effects] == [Persist, Send]
    assert node.ballot.prepared == whole
    assert votes_of(node)[-1] == (COMMIT, 2)
    # Another node that has not voted for it locks nothing.
    cluster.tell(2, 0, Certified(epoch=Epoch(1), certificate=whole))
    assert cluster.nodes[2].ballot.prepared != whole


def test_commits_become_final_in_two_phases() -> None:
    """Protocol 6.9 and 7.1: with everybody there and with one silent node."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.isolate(3)
    cluster.commit(0, 2)
    assert [node.final for node in cluster.nodes] == [3, 3, 3, 1]
    certificate = cluster.nodes[1].ballot.certificate
    assert certificate is not None
    assert (certificate.phase, len(certificate.votes)) == (COMMIT, 3)
    cluster.isolate(2)
    cluster.commit(0)
    assert cluster.nodes[0].final == 3


# Counting.


def test_a_vote_counts_once_and_only_with_its_signature() -> None:
    """Protocol 7.1: for what was proposed, in this view."""
    cluster = quiet_cluster(voters=5)
    cluster.isolate(0)
    (head,) = cluster.commit(0)

    def vote(number: int, *, view: int = 0, digest: FrameHash = head.hash) -> Vote:
        data = SCOPE.vote(Epoch(1), View(view), COMMIT, head.seq, digest)
        signature = IdealSigner(number).sign(data)
        return Vote(
            epoch=Epoch(1),
            view=View(view),
            phase=COMMIT,
            height=head.seq,
            hash=digest,
            signature=signature,
        )

    leader = cluster.nodes[0]
    cluster.tell(0, 1, vote(1))
    cluster.tell(0, 1, vote(1))
    cluster.tell(0, 2, replace(vote(2), signature=bytes(64)))
    cluster.tell(0, 2, vote(2, view=1))
    cluster.tell(0, 3, vote(2))
    cluster.tell(0, 4, replace(vote(4), phase=7))
    cluster.tell(0, 3, vote(3), life=1)
    assert leader.final == 1
    cluster.tell(0, 2, vote(2))
    assert leader.final == 2


def test_a_message_of_another_lineage_is_not_processed() -> None:
    """Protocol 1.5: nothing of another history counts here."""
    cluster = quiet_cluster()
    event = received(0, make_proposal(cluster, make_frame(cluster.genesis)))
    assert event.lineage == LINEAGE
    assert cluster.give(1, with_changes(event, lineage=b"x" * 16)) == []


def test_several_commits_are_one_proposal_and_one_vote() -> None:
    """Protocol 6.1: a batch has one signature of the leader and one vote of each follower."""
    cluster = quiet_cluster()
    cluster.give(0, FramesCaptured(frames=tuple(captured(number) for number in range(1, 9))))
    cluster.run()
    assert len(cluster.nodes[0].sent(Propose)) == 1
    assert votes_of(cluster.nodes[1]) == [(COMMIT, 9)]
    assert [node.final for node in cluster.nodes] == [9, 9, 9]
