"""Taking over a state instead of frames that nobody has any more."""

from dataclasses import replace

import pytest

from basenet.engine.adoption import NOWHERE, adopt, kept_heads, undecided
from basenet.engine.ballot import FIRST_EPOCH, Ballot, begin_epoch
from basenet.engine.events import Applied, Instant, Ticked
from basenet.engine.quorum import mark_of
from basenet.errors import ConflictError, PeerError
from basenet.units import Epoch, FrameHash, JournalId, PublicKeyBytes, Seq, View
from basenet.wire.certificate import Certificate
from basenet.wire.finality import Electors, Succession, verify_final, verify_line
from basenet.wire.frame import Flag, Head, Kind
from basenet.wire.message import Justification, Mark, NewView, Refuse, Vote, Wish
from basenet.wire.payload import decode_config
from tests.engine.cluster import (
    SCOPE,
    Cluster,
    config_of,
    is_signed_ideally,
    journal_of,
    key_of,
)

State = tuple[Electors, Head, Certificate | None]


def me_of(number: int) -> tuple[PublicKeyBytes, JournalId]:
    return (key_of(number), journal_of(number))


def quiet_cluster(*, byzantine: bool = False) -> Cluster:
    cluster = Cluster(4 if byzantine else 3, byzantine=byzantine)
    cluster.commit(0)
    return cluster


def electors_of(cluster: Cluster, number: int) -> Electors:
    """Return who decides in the node's epoch, proven from the genesis and the CONFIGs it holds."""
    node = cluster.nodes[number]
    genesis = cluster.genesis
    first = Electors(scope=SCOPE, epoch=FIRST_EPOCH, config=cluster.config, head=genesis.head)
    chain, digest = [], node.ballot.final.hash
    while digest in node.frames:
        chain.append(node.frames[digest])
        digest = chain[-1].head.prev_hash
    line = [
        Succession(
            head=one.head,
            config=decode_config(one.payload),
            certificate=node.certificates[one.head.seq],
        )
        for one in reversed(chain)
        if one.head.kind == Kind.CONFIG and one.head.seq > 1
    ]
    return verify_line(first, line, verify=is_signed_ideally)


def state_of(cluster: Cluster, number: int) -> State:
    """Return the newest final state of a node, verified as whoever adopts it would."""
    node = cluster.nodes[number]
    electors = electors_of(cluster, number)
    head = node.frames[node.ballot.final.hash].head
    certificate = node.ballot.certificate
    if head.hash != electors.head.hash:
        verify_final(electors, [head], certificate, verify=is_signed_ideally)
    return electors, head, certificate


def take_over(cluster: Cluster, number: int, state: State, *, blank: bool = False) -> Ballot:
    """Do to a node what its driver does, from the ballot to the new replica."""
    node = cluster.nodes[number]
    electors, head, certificate = state
    ballot = adopt(
        None if blank else node.ballot,
        me=(node.key, node.journal_id),
        electors=electors,
        head=head,
        certificate=certificate,
    )
    kept = kept_heads(ballot, head, [one.head for one in node.frames.values()])
    source = next(one for one in cluster.nodes if head.hash in one.frames)
    frames = {one.hash: node.frames[one.hash] for one in kept}
    frames[head.hash] = source.frames[head.hash]
    cluster.boot(node, ballot=ballot, frames=frames, database=NOWHERE)
    return ballot


def lag(cluster: Cluster, number: int, count: int = 3, leader: int = 0) -> State:
    """Let the others go on without a node; return what they can show it."""
    cluster.isolate(number)
    for _ in range(count):
        cluster.commit(leader)
    state = state_of(cluster, leader)
    cluster.heal()
    cluster.lost.clear()
    return state


@pytest.mark.parametrize("byzantine", [False, True])
def test_a_voter_that_lags_takes_over_a_state_and_votes_on(*, byzantine: bool) -> None:
    """Protocol 11.6: without a single frame below the state it votes for what follows."""
    cluster = quiet_cluster(byzantine=byzantine)
    state = lag(cluster, 2)
    ballot = take_over(cluster, 2, state)
    assert state[2] is not None
    assert ballot.final == mark_of(state[2])
    node = cluster.nodes[2]
    assert {one.head.seq for one in node.frames.values()} == {ballot.final.height}
    before = len(node.sent(Vote))
    cluster.commit(0)
    cluster.run()
    assert len(node.sent(Vote)) > before
    assert node.final == cluster.nodes[0].final == ballot.final.height + 1


def test_what_is_final_moves_up_and_never_down() -> None:
    """Protocol 11.7: an older state, or the same place again, changes nothing at all."""
    cluster = quiet_cluster()
    old = state_of(cluster, 0)
    cluster.commit(0, 2)
    ballot = cluster.nodes[2].ballot
    for electors, head, certificate in (old, electors_and_final(cluster, 2)):
        after = adopt(ballot, me=me_of(2), electors=electors, head=head, certificate=certificate)
        assert after is ballot
    electors, head, certificate = lag(cluster, 2)
    newer = adopt(ballot, me=me_of(2), electors=electors, head=head, certificate=certificate)
    assert newer.final.height == ballot.final.height + 3


def electors_and_final(cluster: Cluster, number: int) -> State:
    """Return the state that a node has adopted or reached itself, for itself."""
    node = cluster.nodes[number]
    head = node.frames[node.ballot.final.hash].head
    return electors_of(cluster, number), head, node.ballot.certificate


def test_two_final_frames_at_one_height_are_an_error() -> None:
    """More voters failed than the CONFIG allows for: nothing is adopted over what is final."""
    cluster = quiet_cluster()
    electors, head, certificate = state_of(cluster, 0)
    assert certificate is not None
    other = replace(cluster.nodes[2].ballot, final=Mark(0, head.seq, FrameHash(b"x" * 32)))
    with pytest.raises(ConflictError, match="two final frames at height 2"):
        adopt(other, me=me_of(2), electors=electors, head=head, certificate=certificate)


def test_a_frame_that_is_no_state_is_the_peers_mistake() -> None:
    """Of another epoch than its electors, inside a run, or a CONFIG in the epoch that it ends."""
    cluster = quiet_cluster()
    electors, head, certificate = state_of(cluster, 0)
    cluster.configure(0, config_of(0, 1, 2))
    later = electors_of(cluster, 0)
    for decided, offered in (
        (later, head),
        (electors, later.head),
        (electors, replace(head, flags=Flag.PARTIAL)),
    ):
        with pytest.raises(PeerError, match="is no state of epoch"):
            adopt(None, me=me_of(7), electors=decided, head=offered, certificate=certificate)


def test_promises_of_the_epoch_stay() -> None:
    """Protocol 11.8: view, votes, lock and refusals above the state are as they were."""
    cluster = quiet_cluster(byzantine=True)
    cluster.elect(1)
    state = lag(cluster, 2, leader=1)
    electors, head, certificate = state
    before = cluster.nodes[2].ballot
    assert None not in {before.voted, before.prepared, before.anchor, before.justification}
    assert before.vstart is not None
    below, above = (refuse(2, height) for height in (head.seq, head.seq + 1))
    before = replace(before, refused=(below, above))
    after = adopt(before, me=me_of(2), electors=electors, head=head, certificate=certificate)
    assert after.final.height == before.final.height + 3
    assert after == replace(before, final=after.final, certificate=certificate, refused=(above,))
    later = replace(before, view=View(6), voted=replace_view(before, 6))
    after = adopt(later, me=me_of(3), electors=electors, head=head, certificate=certificate)
    assert (after.view, after.voted) == (6, later.voted)


def refuse(sender: int, height: int) -> Refuse:
    digest = FrameHash(bytes([height]) * 32)
    return Refuse(
        epoch=FIRST_EPOCH,
        sender=key_of(sender),
        height=Seq(height),
        hash=digest,
        signature=bytes(64),
    )


def replace_view(ballot: Ballot, view: int) -> Mark:
    assert ballot.voted is not None
    return Mark(view, ballot.voted.height, ballot.voted.hash)


def test_a_state_of_a_later_view_moves_the_view_without_a_vote() -> None:
    """Protocol 11.8: the anchor and the first vote of the lower view are of no use there."""
    cluster = quiet_cluster()
    cluster.isolate(2)
    cluster.commit(0)
    cluster.elect(1)
    electors, head, certificate = state_of(cluster, 1)
    cluster.heal()
    why = Justification(new_views=(), refusals=())
    before = replace(cluster.nodes[2].ballot, justification=why)
    assert before.anchor is not None
    # The view that made it final counts, not the one in which it was first proposed.
    assert head.view == 0
    after = adopt(before, me=me_of(2), electors=electors, head=head, certificate=certificate)
    assert (after.view, after.final.view) == (1, 1)
    assert (after.anchor, after.vstart, after.justification) == (None, None, None)
    assert after.voted == before.voted


def test_its_next_promise_is_at_least_the_state() -> None:
    """Protocol 11.8: the NewView of a voter that took a state over shows it (5.2)."""
    cluster = quiet_cluster()
    state = lag(cluster, 2)
    ballot = take_over(cluster, 2, state)
    cluster.isolate(0)
    cluster.elect(1)
    high = cluster.nodes[2].sent(NewView)[-1].high
    assert (high.view, high.height) >= (ballot.final.view, ballot.final.height)
    assert cluster.nodes[1].replica is not None
    assert cluster.nodes[1].replica.is_leader


def test_a_state_of_a_later_epoch_begins_it_with_nothing_voted() -> None:
    """Protocol 11.9: what was voted, locked or refused in the old epoch is gone."""
    cluster = Cluster(3, spares=1)
    cluster.commit(0)
    cluster.isolate(2)
    cluster.configure(0, config_of(0, 1, 2))
    cluster.commit(0)
    electors, head, certificate = state_of(cluster, 0)
    assert electors.epoch == 2
    cluster.heal()
    before = cluster.nodes[2].ballot
    assert before.voted is not None
    after = adopt(before, me=me_of(2), electors=electors, head=head, certificate=certificate)
    assert (after.epoch, after.voted, after.prepared, after.refused) == (2, None, None, ())
    assert after.genesis == Mark(-1, electors.head.seq, electors.head.hash)
    assert adopt(after, me=me_of(2), electors=electors, head=head, certificate=certificate) is after
    older = replace(after, epoch=Epoch(3))
    assert adopt(older, me=me_of(2), electors=electors, head=head, certificate=certificate) is older


def test_a_config_is_taken_over_as_the_start_of_its_epoch() -> None:
    """Protocol 11.9: its certificate is of the epoch before and stays with the ballot (2.6)."""
    cluster = quiet_cluster()
    cluster.isolate(2)
    cluster.configure(0, config_of(0, 1, 2))
    electors, head, certificate = state_of(cluster, 0)
    cluster.heal()
    assert head == electors.head
    ballot = take_over(cluster, 2, (electors, head, certificate))
    assert (ballot.epoch, ballot.final) == (2, Mark(-1, head.seq, head.hash))
    assert ballot.certificate == certificate
    cluster.run()
    cluster.commit(0)
    assert cluster.nodes[2].final == head.seq + 1


def test_a_node_without_a_ballot_begins_where_the_state_is() -> None:
    """Protocol 11.10: the same as from a ballot in which nothing has happened."""
    cluster = quiet_cluster()
    electors, head, certificate = state_of(cluster, 0)
    fresh = begin_epoch(cluster.config, FIRST_EPOCH, cluster.nodes[2].ballot.genesis)
    blank, told = (
        adopt(one, me=me_of(7), electors=electors, head=head, certificate=certificate)
        for one in (None, fresh)
    )
    assert blank == told
    assert blank.final.height == head.seq
    assert blank.voted is None


def test_a_new_voter_takes_over_a_state_and_votes() -> None:
    """Protocol 11.10: a disk that was lost, listed again by a CONFIG, and no frame below."""
    cluster = Cluster(3, spares=1)
    cluster.commit(0, 2)
    cluster.isolate(3)
    learner = cluster.nodes[3]
    state = state_of(cluster, 0)
    cluster.heal()
    take_over(cluster, 3, state, blank=True)
    assert learner.final == 3
    cluster.configure(0, config_of(0, 1, 3))
    cluster.run()
    cluster.advance(400)
    cluster.commit(0)
    cluster.run()
    assert learner.ballot.voted is not None
    assert learner.final == cluster.nodes[0].final


def test_frames_above_the_state_are_kept() -> None:
    """Protocol 11.11: a vote above the state stays reachable, and its branch can be asked for."""
    cluster = quiet_cluster()
    cluster.isolate(2)
    cluster.commit(0, 3)
    state = state_of(cluster, 0)
    cluster.heal()
    cluster.queue.clear()
    cluster.cut((1, 0))
    # Node 2 gets the frame, and never the vote of node 1 that makes it final.
    cluster.commit(0, run=False)
    cluster.run()
    node = cluster.nodes[2]
    top = max(node.frames.values(), key=lambda one: one.head.seq).head
    assert top.seq > state[1].seq
    ballot = take_over(cluster, 2, state)
    assert top.hash in node.frames
    assert [head.seq for head in kept_heads(ballot, state[1], [top, cluster.genesis.head])] == [
        top.seq
    ]
    other_epoch = replace(ballot, epoch=Epoch(9))
    assert kept_heads(other_epoch, state[1], [top]) == ()


@pytest.mark.parametrize("has_voted", [False, True])
def test_a_leader_that_lacks_what_its_view_made_final_goes_to_the_next_view(
    *,
    has_voted: bool,
) -> None:
    """Protocol 11.12: an old copy of a leader's journal neither starts nor resumes its view."""
    cluster = quiet_cluster()
    old = cluster.nodes[0].ballot
    assert old.voted is not None
    cluster.commit(0)
    electors, head, certificate = state_of(cluster, 0)
    if not has_voted:
        old = replace(old, voted=None, vstart=None, anchor=None)
    after = adopt(old, me=me_of(0), electors=electors, head=head, certificate=certificate)
    assert (after.view, after.anchor, after.vstart) == (1, None, None)
    assert after.final.height == head.seq
    other = adopt(old, me=me_of(2), electors=electors, head=head, certificate=certificate)
    assert other.view == 0
    renewed = (key_of(0), journal_of(0, life=1))
    other = adopt(old, me=renewed, electors=electors, head=head, certificate=certificate)
    assert other.view == 0
    again = replace(old, view=View(3), voted=Mark(3, Seq(2), head.prev_hash))
    after = adopt(again, me=me_of(0), electors=electors, head=head, certificate=certificate)
    assert after.view == 4


def test_an_old_copy_of_a_leader_does_not_write_another_history() -> None:
    """Protocol 11.12: put back to an old disk, it takes a state over and follows the others."""
    cluster = quiet_cluster()
    old = cluster.nodes[0].ballot
    cluster.commit(0, 2)
    state = state_of(cluster, 1)
    cluster.crash(0)
    cluster.nodes[0].ballot = old
    take_over(cluster, 0, state)
    replica = cluster.nodes[0].replica
    assert replica is not None
    assert not replica.is_leader
    assert not replica.can_seal(cluster.now)


def test_an_only_voter_takes_over_nothing() -> None:
    """Protocol 11.12: its own history goes on nowhere else, so its journal is an old copy."""
    cluster = Cluster(1)
    cluster.commit(0)
    old = cluster.nodes[0].ballot
    cluster.commit(0)
    electors, head, certificate = state_of(cluster, 0)
    assert certificate is None
    with pytest.raises(ConflictError, match="beyond the journal of its only voter"):
        adopt(old, me=me_of(0), electors=electors, head=head, certificate=None)
    learner = adopt(None, me=me_of(1), electors=electors, head=head, certificate=None)
    assert learner.final == Mark(0, head.seq, head.hash)


def test_what_the_application_committed_above_what_was_final_is_undecided() -> None:
    """Protocol 11.13: from the last frame known to be final up to what the database holds."""
    cluster = quiet_cluster()
    cluster.isolate(0)
    cluster.commit(0, 3, run=False)
    node = cluster.nodes[0]
    heads = undecided(node.ballot, node.database, lambda digest: node.frames[digest].head)
    assert [head.seq for head in heads] == [3, 4, 5]
    assert heads[0].prev_hash == node.ballot.final.hash
    done = cluster.nodes[1]
    assert undecided(done.ballot, done.database, lambda digest: done.frames[digest].head) == ()
    assert undecided(None, node.database, NOTHING.__getitem__) == ()


NOTHING: dict[FrameHash, Head] = {}


def test_a_replica_made_anew_takes_back_what_its_lane_grants() -> None:
    """Protocol 11.14: the old leader gets no grant from whoever is in a later view by now."""
    cluster = quiet_cluster()
    cluster.isolate(2)
    cluster.elect(1)
    cluster.commit(1)
    state = state_of(cluster, 1)
    lane = cluster.nodes[2].lane
    lane.promised = Instant(cluster.now + 500)
    assert lane.followed == (1, 0, key_of(0))
    take_over(cluster, 2, state)
    assert lane.followed is None
    assert lane.promised > cluster.now


def test_a_leader_made_anew_leads_only_what_its_ballot_says() -> None:
    """Protocol 11.14: it leads on in the view of its vote, but not from an old copy."""
    cluster = quiet_cluster()
    leader, old = cluster.nodes[0], cluster.nodes[0].ballot
    cluster.commit(0)
    state = state_of(cluster, 1)
    cluster.boot(leader)
    assert leader.lane.led == (1, 0)
    leader.ballot = old
    take_over(cluster, 0, state)
    assert leader.lane.led is None


def test_the_application_waits_until_the_state_is_in_the_file() -> None:
    """Protocol 11.13: a leader whose file is still being mended is not open for writes."""
    cluster = quiet_cluster()
    state = lag(cluster, 1)
    take_over(cluster, 1, state)
    cluster.isolate(0)
    cluster.elect(1)
    replica = cluster.nodes[1].replica
    assert replica is not None
    assert replica.is_leader
    assert not replica.is_writable(cluster.now)
    assert not replica.can_seal(cluster.now)
    cluster.give(1, Applied(seq=replica.final.height))
    cluster.give(1, Ticked())
    assert replica.can_seal(cluster.now)


def test_a_voter_that_joins_an_idle_view_is_shown_that_it_has_begun() -> None:
    """Protocol 4.13: it took over the start of the epoch, and nobody commits any more."""
    cluster = quiet_cluster()
    cluster.isolate(2)
    cluster.configure(0, config_of(0, 1, 2))
    state = state_of(cluster, 0)
    cluster.commit(0, 3)
    cluster.heal()
    cluster.queue.clear()
    take_over(cluster, 2, state)
    late = cluster.nodes[2]
    assert late.final < cluster.nodes[0].final
    cluster.advance(4_000)
    assert late.final == cluster.nodes[0].final
    assert late.ballot.voted is not None
    late.effects.clear()
    cluster.advance(4_000)
    assert not late.sent(Wish)
    assert {node.ballot.view for node in cluster.nodes} == {0}
