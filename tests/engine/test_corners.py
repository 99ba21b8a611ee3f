"""What seldom happens: late, doubled, malformed and hostile input, at every door of the engine."""

from dataclasses import replace as with_changes
from typing import Any

import pytest
from msgspec.structs import replace

from basenet.engine import justification
from basenet.engine.effects import SendFrames, ServeFinal
from basenet.engine.events import (
    Applied,
    FinalReceived,
    Instant,
    Judged,
    ReadWanted,
    TransferWanted,
)
from basenet.engine.justification import Missing
from basenet.engine.limits import HEADS_MAX, LEARNERS_MAX, REFUSALS_MAX, VIEW_BYTES_MAX, Timing
from basenet.engine.quorum import form
from basenet.engine.tree import Tree
from basenet.errors import UsageError
from basenet.units import Epoch, FrameHash, PublicKeyBytes, Seq, TimestampNs, View
from basenet.wire.certificate import COMMIT, PREPARE
from basenet.wire.message import (
    Certified,
    Justification,
    Mark,
    Need,
    NewView,
    Propose,
    Pull,
    ReadIndex,
    ReadIndexRequest,
    SyncRequest,
    Vote,
    Wish,
)
from tests.engine.cluster import (
    BEGIN_NS,
    SCOPE,
    Cluster,
    IdealSigner,
    config_of,
    key_of,
    received,
    voter_of,
)
from tests.engine.test_finality import certificate_for, refuse
from tests.engine.test_views import genesis_mark, new_view, start_of, views, wish
from tests.engine.test_voting import hand, make_frame, make_proposal, quiet_cluster, votes_of


@pytest.mark.parametrize("facts", [{}, {"voters": 1}, {"voters": 4, "byzantine": True}])
def test_without_a_trace_everything_is_the_same(facts: dict[str, Any]) -> None:
    """The trace tells what is done and changes nothing of it."""
    lives = []
    for traced in (True, False):
        cluster = Cluster(traced=traced, **facts)
        cluster.commit(0, 2)
        if len(cluster.nodes) > 1:
            one = make_frame(cluster.genesis)
            cluster.elect(1)
            cluster.commit(1)
            cluster.configure(1, with_changes(cluster.config, voters=_author_first(cluster, 1)))
            cluster.wrong.add(one.head.hash)
        lives.append([[head.hash for head in node.finals] for node in cluster.nodes])
        assert traced == bool(cluster.nodes[0].trace)
    assert lives[0] == lives[1]
    names = {"Restart", "Start", "Final", "Frame"}
    assert names <= {str(one["ev"]) for one in Cluster(**facts).nodes[0].trace} | {"Frame"}


def _author_first(cluster: Cluster, author: int) -> Any:
    voters = cluster.config.voters
    return (voters[author], *(one for one in voters if one != voters[author]))


def test_times_must_fit_together() -> None:
    """A lease as long as an election, or shorter than a heartbeat, is refused with its name."""
    with pytest.raises(UsageError, match="BASE_LEASE_MS"):
        Timing(lease=2_000_000_000)
    with pytest.raises(UsageError, match="too short"):
        Timing(lease=100_000_000)


def test_a_tree_keeps_only_its_root_of_what_is_settled() -> None:
    """At or below the root nothing is held but the root's own head, however often it is given."""
    cluster = Cluster(voters=1)
    one = make_frame(cluster.genesis)
    other = make_frame(cluster.genesis, salt=b"o" * 16)
    tree = Tree((one.head.seq, one.head.hash), [one.head, one.head, other.head])
    tree.add(cluster.genesis.head)
    assert list(tree.heads) == [one.head.hash]
    two = make_frame(one)
    headless = Tree((one.head.seq, one.head.hash), [two.head])
    assert two.head.hash in headless.linked
    headless.follow(two.head.hash)
    assert headless.advance(two.head.hash) == []
    late = Tree((1, cluster.genesis.head.hash), [])  # type: ignore[arg-type]
    bad = make_frame(one, seq=Seq(5))
    for head in (two.head, bad.head, one.head):
        late.add(head)
    assert two.head.hash in late.linked
    assert bad.head.hash not in late.linked


def test_bounds_on_frames_hold() -> None:
    """Too far ahead, too many bytes of a view, too many heads: dropped (protocol 3.2)."""
    cluster = quiet_cluster()
    node = cluster.nodes[1]
    state = node.replica._state
    one = make_frame(cluster.genesis)
    hand(cluster, 1, make_frame(cluster.genesis, seq=Seq(HEADS_MAX + 2)))
    state.view_bytes[0] = VIEW_BYTES_MAX
    hand(cluster, 1, one)
    assert node.persists == []
    state.view_bytes.clear()
    heads = state.tree.heads
    state.tree.heads = dict.fromkeys(range(HEADS_MAX))
    hand(cluster, 1, one)
    state.tree.heads = heads
    assert node.persists == []
    hand(cluster, 1, one)
    assert len(node.persists) == 1
    cluster.commit(0)
    assert state.view_bytes[0] <= one.head.payload_len


def test_learners_and_answers_are_bounded() -> None:
    """The one that was silent longest is forgotten."""
    cluster = quiet_cluster()
    state = cluster.nodes[0].replica._state
    for number in range(LEARNERS_MAX + 3):
        key = PublicKeyBytes(number.to_bytes(32, "little"))
        event = received(9, SyncRequest(epoch=Epoch(1), above_height=Seq(1)))
        cluster.give(0, with_changes(event, sender=key))
        old = received(9, Wish(epoch=Epoch(0), view=View(1), signature=bytes(64)))
        cluster.give(0, with_changes(old, sender=key))
        cluster.advance(1)
    assert len(state.reported) == len(state.answered) == LEARNERS_MAX


def test_final_history_must_hang_together() -> None:
    """A piece with a foreign frame in it, or one that is settled, changes nothing."""
    cluster = quiet_cluster(spares=1)
    cluster.commit(0, 3)
    (whole,) = cluster.history(cluster.nodes[0], 1)
    spare = cluster.nodes[3]
    first, second, third = whole.frames
    for frames in (
        (first, make_frame(first, salt=b"x" * 16), third),
        (first, make_frame(first, epoch=Epoch(2)), third),
        (make_frame(first, seq=Seq(2), prev_hash=first.head.hash), second, third),
    ):
        cluster.give(3, with_changes(whole, frames=frames))
        assert spare.final == 1
    cluster.give(3, whole)
    cluster.give(3, whole)
    assert spare.final == 4
    # Without the head of what is final the hash alone is the link.
    late = cluster.nodes[2]
    cluster.isolate(2)
    cluster.commit(0)
    del late.frames[late.ballot.final.hash]
    cluster.restart(2)
    (more,) = cluster.history(cluster.nodes[0], 4)
    cluster.give(2, more)
    assert late.final == 5


def test_nothing_follows_a_config_in_its_epoch() -> None:
    """Also in history that somebody shows."""
    cluster = quiet_cluster(spares=1)
    cluster.configure(0, config_of(0, 1, 2))
    config_frame = cluster.nodes[0].frames[cluster.nodes[0].finals[-1].hash]
    above = make_frame(config_frame)
    certificate = certificate_for(above, 0, 1)
    spare = cluster.nodes[3]
    before = spare.final
    piece = FinalReceived(sender=key_of(0), frames=(config_frame, above), certificate=certificate)
    cluster.give(3, piece)
    assert spare.final == before


def test_a_goal_is_reached_when_its_frames_come() -> None:
    """Protocol 11.2 and 7.2: a certificate first, then the frames, by whatever way."""
    cluster = quiet_cluster()
    cluster.isolate(2)
    (head,) = cluster.commit(0)
    frame = cluster.nodes[0].frames[head.hash]
    certificate = certificate_for(frame, 0, 1)
    node = cluster.nodes[2]
    cluster.tell(2, 1, Certified(epoch=Epoch(1), certificate=certificate))
    cluster.tell(2, 1, Certified(epoch=Epoch(1), certificate=certificate))
    assert node.final == 1
    hand(cluster, 2, frame, sender=1)
    assert node.final == 2
    same = certificate_for(cluster.genesis, 0, 1)
    cluster.tell(2, 1, Certified(epoch=Epoch(1), certificate=same))
    wrong = replace(certificate_for(frame, 0, 1, view=3), epoch=Epoch(4))
    cluster.tell(2, 1, Certified(epoch=Epoch(1), certificate=wrong))
    assert node.final == 2


def test_peers_far_behind_are_served_from_the_journal() -> None:
    """A Need or a Pull below what is final: history first, then what is above it."""
    cluster = quiet_cluster(voters=5)
    cluster.commit(0, 3)
    cluster.isolate(0)
    (head,) = cluster.commit(0)
    genesis = cluster.genesis.head
    need = Need(epoch=Epoch(1), view=View(0), above_height=genesis.seq, above_hash=genesis.hash)
    kinds = [type(one) for one in cluster.tell(0, 1, need)]
    assert kinds[:2] == [ServeFinal, SendFrames]
    at_tip = replace(need, above_height=head.seq, above_hash=head.hash)
    assert SendFrames not in [type(one) for one in cluster.tell(0, 1, at_tip)]
    assert cluster.tell(0, 1, replace(need, view=View(4))) == []
    pull = Pull(epoch=Epoch(1), height=head.seq, hash=head.hash, above_height=Seq(1))
    serve, send = cluster.tell(0, 1, pull)
    assert isinstance(serve, ServeFinal)
    assert isinstance(send, SendFrames)
    assert send.heads == (head,)
    unknown = replace(pull, hash=FrameHash(b"u" * 32), above_height=Seq(4))
    assert cluster.tell(0, 1, unknown) == []


def test_refusals_are_bounded_and_forgotten_with_their_height() -> None:
    """Protocol 8.3, Q24: 64 of a peer; those of settled heights say nothing."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    state = cluster.nodes[0].replica._state
    frames = [make_frame(cluster.genesis, salt=bytes([n]) * 16) for n in range(REFUSALS_MAX + 3)]
    for frame in frames:
        cluster.tell(0, 1, refuse(1, frame.head))
    assert len(state.refusals) == REFUSALS_MAX
    cluster.tell(0, 1, refuse(1, cluster.genesis.head))
    cluster.heal()
    cluster.commit(0)
    cluster.advance(300)
    assert cluster.nodes[0].final == 2
    assert state.refusals == {}


def test_a_bent_high_needs_its_branch() -> None:
    """Protocol 8.2: who does not hold it asks the leader, and votes when it is there."""
    cluster = quiet_cluster()
    cluster.isolate(1)
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    three = make_frame(two)
    dead = (refuse(0, two.head), refuse(2, two.head))
    high = Mark(0, three.head.seq, three.head.hash)
    bent = Mark(0, one.head.seq, one.head.hash)
    why = Justification(
        new_views=(new_view(0, 2, high), new_view(2, 2, genesis_mark(cluster))), refusals=dead
    )
    proposal = make_proposal(cluster, one, view=2, leader=2, anchor=bent, justification=why)
    node = cluster.nodes[1]
    cluster.tell(1, 2, proposal)
    (pull,) = node.sent(Pull)
    assert (pull.height, pull.hash) == (3 + 1, three.head.hash)
    assert node.ballot.view == 0
    hand(cluster, 1, one, two, three)
    lying = replace(proposal, justification=replace(why, refusals=(dead[0], dead[0])))
    cluster.tell(1, 2, lying)
    forged = replace(dead[1], signature=bytes(64))
    cluster.tell(1, 2, replace(proposal, justification=replace(why, refusals=(dead[0], forged))))
    assert node.ballot.view == 0
    cluster.tell(1, 2, proposal)
    cluster.run()
    assert votes_of(node) == [(COMMIT, 2)]


def test_a_leader_asks_for_a_branch_that_it_must_bend() -> None:
    """Protocol 5.7, 8.2: at most once every 250 ms."""
    cluster = quiet_cluster(voters=5)
    cluster.isolate(1)
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    state = cluster.nodes[1].replica._state
    for sender in (2, 3, 4):
        cluster.tell(1, sender, refuse(sender, two.head))
    high = Mark(0, two.head.seq, two.head.hash)
    for sender in (2, 3, 0):
        cluster.tell(1, sender, new_view(sender, 1, high))
    assert len(cluster.nodes[1].sent(Pull)) == 1
    cluster.tell(1, 4, wish(4, 1))
    assert len(cluster.nodes[1].sent(Pull)) == 1
    hand(cluster, 1, one, two)
    cluster.run()
    assert cluster.nodes[1].replica.is_leader
    assert state.voted == Mark(1, one.head.seq, one.head.hash)
    assert isinstance(justification.bend(state, high, {b"x"}), Missing | Mark)  # type: ignore[arg-type]


def test_byzantine_views_take_no_refusals_and_no_bare_claims() -> None:
    """Protocol 8.5, 5.4: refusals in a justification make it void; proofs must fit exactly."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.isolate(3)
    one = make_frame(cluster.genesis)
    low = genesis_mark(cluster)
    chosen = tuple(new_view(sender, 1, low) for sender in (0, 1, 2))
    for why in (
        Justification(new_views=chosen, refusals=(refuse(0, one.head),)),
        Justification(new_views=(*chosen[:2], new_view(2, 1, replace(low, height=Seq(9))))),
    ):
        proposal = make_proposal(
            cluster, cluster.genesis, view=1, leader=1, anchor=low, justification=why
        )
        cluster.tell(3, 1, proposal)
        assert cluster.nodes[3].ballot.view == 0
    cluster.tell(3, 0, refuse(0, one.head))
    mark = Mark(0, one.head.seq, one.head.hash)
    data = SCOPE.vote(Epoch(1), View(0), PREPARE, mark.height, mark.hash)
    votes = {key_of(number): IdealSigner(number).sign(data) for number in (0, 1, 2)}
    proof = form(PREPARE, Epoch(1), mark, votes)
    crooked = replace(proof, votes=tuple(reversed(proof.votes)))
    message = replace(new_view(0, 3, mark), proof=crooked)
    cluster.tell(3, 0, message)
    assert cluster.nodes[3].replica._state.new_views == {}
    stale = Certified(epoch=Epoch(1), certificate=replace(proof, epoch=Epoch(2)))
    cluster.tell(3, 0, stale)
    assert cluster.nodes[3].ballot.view == 0


def test_a_crash_mode_voter_ignores_prepare_certificates() -> None:
    """Protocol 6.9: that phase is not of its mode."""
    cluster = quiet_cluster()
    one = make_frame(cluster.genesis)
    mark = Mark(5, one.head.seq, one.head.hash)
    data = SCOPE.vote(Epoch(1), View(5), PREPARE, mark.height, mark.hash)
    votes = {key_of(number): IdealSigner(number).sign(data) for number in (0, 1)}
    shown = Certified(epoch=Epoch(1), certificate=form(PREPARE, Epoch(1), mark, votes))
    assert cluster.tell(1, 0, shown) == []
    assert views(cluster) == [0, 0, 0]


def test_late_and_foreign_messages_change_nothing() -> None:
    """Old NewViews, forged wishes, answers nobody asked for, verdicts of a branch that lost."""
    cluster = quiet_cluster()
    cluster.elect(1)
    cluster.commit(1)
    for node in cluster.nodes:
        node.effects.clear()
    low = genesis_mark(cluster)
    cluster.tell(1, 2, new_view(0, 4, low))
    cluster.tell(1, 2, new_view(2, 2, low))
    cluster.tell(1, 2, new_view(2, 0, low))
    cluster.tell(1, 2, replace(new_view(2, 4, low), signature=bytes(64)))
    cluster.tell(1, 2, new_view(2, 4, low))
    cluster.tell(1, 2, new_view(2, 4, low))
    answer = ReadIndex(
        epoch=Epoch(1), view=View(0), height=Seq(9), nonce=b"x" * 16, signature=bytes(64)
    )
    cluster.tell(0, 1, answer)
    cluster.tell(2, 1, ReadIndexRequest(epoch=Epoch(1), nonce=b"x" * 16))
    cluster.tell(2, 1, Need(epoch=Epoch(1), view=View(1), above_height=Seq(1), above_hash=low.hash))
    cluster.tell(2, 0, replace(wish(0, 9), signature=bytes(64)))
    gone = Judged(epoch=Epoch(1), view=View(1), hash=FrameHash(b"g" * 32), wrong=None)
    cluster.nodes[2].replica._state.turn.judging = gone.hash
    cluster.give(2, gone)
    assert all(node.persists == [] for node in cluster.nodes)
    assert views(cluster) == [1, 1, 1]


def test_a_verdict_that_names_a_stranger_is_no_refusal() -> None:
    """Protocol 8.1: only a frame of the path can be wrong."""
    cluster = quiet_cluster()
    cluster.judges = False
    one = make_frame(cluster.genesis)
    hand(cluster, 1, one)
    cluster.tell(1, 0, make_proposal(cluster, one))
    stranger = FrameHash(b"s" * 32)
    cluster.give(1, Judged(epoch=Epoch(1), view=View(0), hash=one.head.hash, wrong=stranger))
    assert cluster.nodes[1].ballot.refused == ()


def test_a_vote_is_never_taken_back() -> None:
    """Protocol 8.1: what I voted for was right then; a later verdict promises nothing."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    hand(cluster, 1, one, two)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    node = cluster.nodes[1]
    node.replica._state.judged.clear()
    cluster.wrong.add(one.head.hash)
    cluster.judges = False
    cluster.tell(1, 0, make_proposal(cluster, two))
    node.replica._state.turn.judging = two.head.hash
    verdict = Judged(epoch=Epoch(1), view=View(0), hash=two.head.hash, wrong=one.head.hash)
    cluster.give(1, verdict)
    assert node.ballot.refused == ()


def test_frames_of_an_earlier_view_above_my_vote_are_refused() -> None:
    """Protocol 6.4: salvage is for a view's first proposal only."""
    cluster = quiet_cluster()
    cluster.isolate(1)
    one, old = make_frame(cluster.genesis), None
    old = make_frame(one)
    end = make_frame(old, view=2, author=2)
    anchor = Mark(0, one.head.seq, one.head.hash)
    hand(cluster, 1, one, old, end)
    cluster.tell(1, 2, start_of(cluster, one, anchor, genesis_mark(cluster)))
    cluster.run()
    node = cluster.nodes[1]
    assert [vote.height for vote in node.sent(Vote)] == [2]
    again = make_proposal(cluster, end, view=2, leader=2, anchor=anchor)
    cluster.tell(1, 2, again)
    cluster.run()
    assert [vote.height for vote in node.sent(Vote)] == [2]
    assert "frames of another view above my vote" in node.whats()


def test_an_anchor_beside_what_is_final_is_refused() -> None:
    """Protocol 6.2: whoever justified it."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.isolate(1)
    other = make_frame(cluster.genesis, salt=b"o" * 16)
    beside = Mark(1, other.head.seq, other.head.hash)
    end = make_frame(cluster.nodes[1].frames[cluster.nodes[1].finals[-1].hash], view=2, author=2)
    hand(cluster, 1, end)
    cluster.tell(1, 2, start_of(cluster, end, beside, genesis_mark(cluster)))
    cluster.run()
    assert "an anchor beside what is final" in cluster.nodes[1].whats()


def test_a_database_far_behind_loses_nothing() -> None:
    """Protocol 7.3: what is being applied is on the only chain there is."""
    cluster = quiet_cluster()
    cluster.commit(0, 2)
    node = cluster.nodes[2]
    cluster.crash(2)
    node.database = (Seq(1), cluster.genesis.head.hash)
    cluster.boot(node)
    cluster.commit(0)
    assert [one for one in node.orphans if one.heads] == []
    assert node.final == 4


def test_a_config_without_its_content_is_our_own_mistake() -> None:
    """Heads alone do not say who votes."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    cluster.configure(0, config_of(0, 1, 2))
    node = cluster.nodes[0]
    state = node.replica._state
    frame = node.frames[state.tree.tip[1]]
    hand(cluster, 1, frame)
    cluster.nodes[1].replica._state.configs.clear()
    cluster.tell(1, 0, make_proposal(cluster, frame))
    cluster.run()
    assert "a CONFIG that cannot be read" in cluster.nodes[1].whats()
    assert node.replica.place == state.tree.tip
    assert node.replica.leader == key_of(0)
    assert node.replica.database == node.database
    stranger: Any = object()
    with pytest.raises(AssertionError):
        node.replica.step(stranger, cluster.now)


def test_what_is_wanted_waits_for_the_database() -> None:
    """Protocol 10.2: a CONFIG is sealed onto the tip that the database holds, not inside a run."""
    cluster = quiet_cluster(voters=1)
    node = cluster.nodes[0]
    state = node.replica._state
    state.database = (Seq(0), FrameHash(b"b" * 32))
    cluster.configure(0, with_changes(config_of(0), page_size=8192))
    assert node.final == 1
    state.database = state.tree.tip
    cluster.rouse(0)
    assert node.final == 2
    assert state.epoch == 2
    cluster.give(0, TransferWanted(target=key_of(0)))
    assert any("the transfer is refused" in what for what in node.whats())
    assert voter_of(0).key == key_of(0)
    assert TimestampNs(BEGIN_NS) == BEGIN_NS


def test_a_repeated_prepare_vote_gets_the_lock_again() -> None:
    """Protocol 11.5: in the Byzantine mode either certificate may have been lost."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.filter = lambda sender, _, event: (
        not (sender == 0 and isinstance(getattr(event, "message", None), Certified))
    )
    cluster.commit(0)
    leader = cluster.nodes[0]
    assert leader.ballot.prepared is not None
    assert leader.ballot.prepared.height == 2
    leader.effects.clear()
    vote = next(one for one in cluster.nodes[1].sent(Vote) if one.height == 2)
    cluster.tell(0, 1, vote)
    (shown,) = leader.sent(Certified)
    assert shown.certificate == leader.ballot.prepared
    cluster.heal()
    cluster.advance(600)
    assert [node.final for node in cluster.nodes] == [2, 2, 2, 2]
    assert [one for one in cluster.nodes[0].sent(Propose) if one.prepared is not None]


def test_a_gap_asks_once_and_a_sole_voter_asks_nobody() -> None:
    """Protocol 11.2: a further piece with a gap is no reason to ask again at once."""
    cluster = quiet_cluster(spares=1)
    cluster.commit(0)
    cluster.commit(0)
    cluster.isolate(3)
    (gap,) = cluster.history(cluster.nodes[0], 2)
    spare = cluster.nodes[3]
    spare.replica._state.sync_at = 0
    spare.effects.clear()
    cluster.give(3, gap)
    cluster.give(3, gap)
    assert len(spare.sent(SyncRequest)) == 1
    alone = quiet_cluster(voters=1)
    assert alone.give(0, gap) == []


def test_a_need_starts_from_the_final_frame_when_nothing_else_is_held() -> None:
    """Protocol 11.1: the proposal's own beginning may be missing, too."""
    cluster = quiet_cluster()
    cluster.cut((0, 2))
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    three = make_frame(two)
    proposal = make_proposal(cluster, three, prev_height=two.head.seq, prev_hash=two.head.hash)
    cluster.tell(1, 0, proposal)
    cluster.advance(51)
    (need,) = cluster.nodes[1].sent(Need)
    assert need.above_hash == cluster.genesis.head.hash


def test_views_never_go_back_along_a_chain() -> None:
    """Protocol 3.3: a frame of a lower view than the one below it is not linked."""
    cluster = quiet_cluster()
    one = make_frame(cluster.genesis, view=3)
    two = make_frame(one, view=0)
    hand(cluster, 1, one, two)
    linked = cluster.nodes[1].replica._state.tree.linked
    assert one.head.hash in linked
    assert two.head.hash not in linked


def test_a_follower_grants_when_its_old_promise_is_over() -> None:
    """Protocol 4.9: not before; the lane is asked then."""
    cluster = Cluster(boots=False)
    node = cluster.nodes[1]
    node.lane.promised = Instant(cluster.now + 300_000_000)
    for one in cluster.nodes:
        cluster.boot(one)
    cluster.run()
    assert node.lane.followed is None
    cluster.advance(301)
    assert node.lane.followed == (1, 0, key_of(0))
    node.lane.leader_heard = None
    cluster.rouse(1)
    assert not node.sent(Wish)


def test_a_restart_with_a_lock_tells_of_it() -> None:
    """The trace shows all marks of the ballot."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.commit(0)
    cluster.restart(1)
    (told,) = [one for one in cluster.nodes[1].trace if one["ev"] == "Restart"][1:]
    assert told["final"] == [0, 2, cluster.nodes[1].finals[-1].hash.hex()]


def test_a_lock_of_another_branch_is_followed_only_by_finality() -> None:
    """Protocol 5.2: at an epoch's very beginning the highest thing is its genesis."""
    for byzantine in (False, True):
        cluster = Cluster(voters=4, byzantine=byzantine, boots=False)
        for node in cluster.nodes[1:]:
            cluster.boot(node)
        cluster.advance(1_400)
        cluster.advance(2_000)
        assert cluster.nodes[1].replica.is_leader
        (message, *_) = cluster.nodes[2].sent(NewView)
        assert (message.high.view, message.proof) == (-1, None)


def test_a_proposal_may_carry_the_end_of_its_epoch() -> None:
    """Protocol 10.1: what it proposes is then of an epoch that is over."""
    cluster = quiet_cluster()
    cluster.cut((0, 2))
    cluster.configure(0, config_of(0, 1, 2))
    frame = cluster.nodes[1].frames[cluster.nodes[1].finals[-1].hash]
    hand(cluster, 2, frame)
    certificate = certificate_for(frame, 0, 1)
    proposal = make_proposal(cluster, frame, final=certificate)
    cluster.tell(2, 0, proposal)
    node = cluster.nodes[2]
    assert (node.ballot.epoch, node.sent(Vote)) == (2, [])


def test_a_leader_that_lags_behind_its_own_view_is_told() -> None:
    """Protocol 12.3: or, of a lower view with nothing final above it, is not."""
    cluster = quiet_cluster()
    cluster.commit(0, 2)
    one = make_frame(cluster.genesis, salt=b"z" * 16)
    hand(cluster, 1, one)
    node = cluster.nodes[1]
    node.effects.clear()
    cluster.tell(1, 0, make_proposal(cluster, one))
    (shown,) = node.sent(Certified)
    assert shown.certificate == node.ballot.certificate
    cluster = quiet_cluster()
    cluster.isolate(1)
    cluster.tell(1, 2, wish(2, 3))
    cluster.tell(1, 0, wish(0, 3))
    assert cluster.nodes[1].ballot.view == 3
    cluster.nodes[1].effects.clear()
    cluster.tell(1, 0, make_proposal(cluster, cluster.genesis))
    cluster.tell(1, 0, make_proposal(cluster, cluster.genesis, prev_height=Seq(0)))
    assert cluster.nodes[1].sent(Certified) == []


def test_a_byzantine_leader_that_lies_is_reported_and_stays_until_the_clock_says() -> None:
    """Protocol 12.2: leaving at once is for the crash mode."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.isolate(1)
    one, other = make_frame(cluster.genesis), make_frame(cluster.genesis, salt=b"o" * 16)
    hand(cluster, 1, one, other)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    cluster.tell(1, 0, make_proposal(cluster, other))
    node = cluster.nodes[1]
    assert "two proposals in one view" in node.whats()
    cluster.advance(300)
    assert not node.sent(Wish)


def test_a_second_proposal_waits_for_the_verdict_on_the_first() -> None:
    """Protocol 6.1: one judgement at a time, and the lower vote is not held up by the higher."""
    cluster = quiet_cluster()
    cluster.judges = False
    one = make_frame(cluster.genesis)
    two = make_frame(one)
    three = make_frame(two)
    node = cluster.nodes[1]
    hand(cluster, 1, one, two)
    cluster.tell(1, 0, make_proposal(cluster, two))
    hand(cluster, 1, three)
    cluster.tell(1, 0, make_proposal(cluster, three))
    cluster.tell(1, 0, make_proposal(cluster, one))
    right = Judged(epoch=Epoch(1), view=View(0), hash=two.head.hash, wrong=None)
    cluster.give(1, right)
    assert votes_of(node) == [(COMMIT, 3)]
    cluster.give(1, with_changes(right, hash=three.head.hash))
    assert votes_of(node) == [(COMMIT, 3), (COMMIT, 4)]


def test_votes_that_come_late_are_not_counted_again() -> None:
    """Protocol 7.1: a lower one after a higher one says nothing new."""
    cluster = quiet_cluster(voters=5)
    cluster.isolate(0)
    heads = [*cluster.commit(0), *cluster.commit(0)]
    for head in reversed(heads):
        data = SCOPE.vote(Epoch(1), View(0), COMMIT, head.seq, head.hash)
        message = Vote(
            epoch=Epoch(1),
            view=View(0),
            phase=COMMIT,
            height=head.seq,
            hash=head.hash,
            signature=IdealSigner(1).sign(data),
        )
        cluster.tell(0, 1, message)
    tallies = cluster.nodes[0].replica._state.turn.tallies
    assert [len(tallies[COMMIT, head.seq, head.hash]) for head in heads] == [1, 2]


def test_a_quiet_leader_does_not_answer_wishes() -> None:
    """Protocol 4.10: it wishes itself; whoever reads there asks again."""
    cluster = quiet_cluster()
    leader = cluster.nodes[0]
    cluster.isolate(0)
    leader.lane.quorum_heard = cluster.now
    cluster.advance(400)
    cluster.rouse(0)
    cluster.advance(2_300)
    leader.effects.clear()
    cluster.tell(0, 1, wish(1, 0))
    assert leader.sent(Propose) == []
    cluster.give(0, ReadWanted(nonce=b"q" * 16))
    assert leader.reads == []
    cluster.rouse(0)
    assert not leader.replica.is_writable(cluster.now)


def test_learners_answer_no_reads_and_read_by_asking_all() -> None:
    """Protocol 9.4: only voters know, and of them only the leader."""
    cluster = quiet_cluster(spares=1)
    cluster.commit(0)
    request = ReadIndexRequest(epoch=Epoch(1), nonce=b"l" * 16)
    assert cluster.tell(3, 0, request) == []
    cluster.give(3, ReadWanted(nonce=b"r" * 16))
    cluster.run()
    assert cluster.nodes[3].reads[0].height == 2
    cluster.give(3, ReadWanted(nonce=b"s" * 16))
    data = SCOPE.read_index(Epoch(1), View(0), Seq(7), b"s" * 16)
    lie = ReadIndex(
        epoch=Epoch(1),
        view=View(0),
        height=Seq(7),
        nonce=b"s" * 16,
        signature=IdealSigner(2).sign(data),
    )
    cluster.tell(3, 2, lie)
    assert len(cluster.nodes[3].reads) == 1
    # While a CONFIG waits its successor epoch may be further than this leader knows.
    cluster.isolate(0)
    cluster.configure(0, config_of(0, 1, 2))
    cluster.give(0, ReadWanted(nonce=b"t" * 16))
    assert cluster.nodes[0].reads == []


def test_a_start_below_what_is_final_waits_for_a_better_one() -> None:
    """Protocol 5.3: somebody's NewView shows what is final; until then nothing is started."""
    cluster = quiet_cluster(voters=5)
    cluster.commit(0)
    cluster.isolate(1)
    low = genesis_mark(cluster)
    for sender in (0, 2, 3):
        cluster.tell(1, sender, new_view(sender, 1, low))
    cluster.advance(101)
    node = cluster.nodes[1]
    assert not node.replica.is_leader
    cluster.advance(200)
    assert node.replica.is_leader
    assert "a NewView below a vote that is certified" in node.whats()


def test_no_leader_starts_through_what_it_refused() -> None:
    """Protocol 8.1: it waits until enough others refuse, too."""
    cluster = quiet_cluster(voters=5)
    cluster.isolate(1)
    one = make_frame(cluster.genesis)
    cluster.wrong.add(one.head.hash)
    hand(cluster, 1, one)
    high = Mark(0, one.head.seq, one.head.hash)
    for sender in (0, 2, 3):
        cluster.tell(1, sender, new_view(sender, 1, high))
    cluster.queue.extend(one for one in cluster.lost if one[0] == one[1])
    cluster.run()
    node = cluster.nodes[1]
    assert node.ballot.refused
    assert not node.replica.is_leader
    for sender in (2, 3):
        cluster.tell(1, sender, refuse(sender, one.head))
    assert node.replica.is_leader
    assert node.ballot.voted == Mark(1, 1, cluster.genesis.head.hash)


def test_without_the_final_frames_head_the_clock_is_taken_as_it_is() -> None:
    """Protocol 3.7: after a snapshot there may be no head to be later than."""
    cluster = quiet_cluster(voters=1)
    node = cluster.nodes[0]
    node.frames.clear()
    cluster.restart(0)
    assert node.replica.clamp(TimestampNs(5)) == 5


def test_a_database_on_a_strangers_branch_is_not_the_tip() -> None:
    """Protocol 2.3: only my own unfinished run goes on after a restart."""
    cluster = quiet_cluster()
    node = cluster.nodes[0]
    one = make_frame(cluster.genesis)
    node.frames[one.head.hash] = one
    node.database = (one.head.seq, one.head.hash)
    cluster.restart(0)
    assert node.replica.place.seq == 1


def test_byzantine_voters_answer_reads() -> None:
    """Protocol 9.4: each says how high it voted COMMIT, whoever leads."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.commit(0)
    for number in (0, 2):
        cluster.give(number, ReadWanted(nonce=bytes([number]) * 16))
        cluster.run()
        assert cluster.nodes[number].reads[0].height == 2


def test_a_proposal_below_what_is_final_gets_nothing() -> None:
    """Protocol 6.1: of a view that has not made anything final itself."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.isolate(1)
    low = genesis_mark(cluster)
    cluster.tell(1, 2, start_of(cluster, cluster.genesis, low, low))
    node = cluster.nodes[1]
    assert node.ballot.view == 2
    assert [one.view for one in node.sent(Vote)] == [0]


def test_a_leader_is_shown_its_own_lock() -> None:
    """Protocol 6.9: it has voted COMMIT already."""
    cluster = quiet_cluster(voters=4, byzantine=True)
    cluster.isolate(3)
    cluster.commit(0)
    leader = cluster.nodes[0]
    lock = leader.ballot.prepared
    assert lock is not None
    assert cluster.tell(0, 1, Certified(epoch=Epoch(1), certificate=lock)) == []


def test_a_refusal_needs_no_trace() -> None:
    """Protocol 8.1: with the trace off."""
    cluster = Cluster(traced=False)
    one = make_frame(cluster.genesis)
    cluster.wrong.add(one.head.hash)
    hand(cluster, 1, one)
    cluster.tell(1, 0, make_proposal(cluster, one))
    cluster.run()
    assert cluster.nodes[1].ballot.refused


def test_a_late_report_of_the_database_is_no_step_back() -> None:
    """Protocol 9.1: what was sealed since is in the database, too."""
    cluster = quiet_cluster()
    cluster.commit(0)
    cluster.give(0, Applied(seq=Seq(1)))
    assert cluster.nodes[0].replica.database.seq == 2
    assert cluster.nodes[0].replica.can_seal(cluster.now)
