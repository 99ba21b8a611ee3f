"""The leader's part: where its view starts, what it seals, and how it asks for votes.

Theory of operation
===================

A leader fixes once where its view starts, persists that, and never picks again, also after a crash
(a restarted leader goes on where its last vote is and counts that vote anew; mistake 2). View 0 of
an epoch starts at the genesis. Any other view starts at the anchor that a quorum of NewViews gives;
with a quorum in hand the leader waits up to 100 ms for the others, the deposed leader first, since
that one may hold acknowledged commits that nobody else has (Q15).

In the crash mode the chain starts at the anchor and nothing else is kept. In the Byzantine mode the
leader may keep what it holds above the anchor, when all of it is of the anchor's view or a later
one (mistake 9).

What the application committed is sealed onto the tip, kept, proposed and voted for in one step. A
proposal never ends inside a PARTIAL run; the frames of a run travel before it is whole (Q6).
"""

from collections.abc import Sequence

from msgspec.structs import replace

from basenet.engine import finality, views, voting
from basenet.engine.ballot import FIRST_VIEW, GENESIS_VIEW
from basenet.engine.effects import Judge, OwnFrame, SendFrames, ServeFinal
from basenet.engine.events import FrameCaptured, Instant
from basenet.engine.justification import Missing, dead_hashes, highest
from basenet.engine.limits import SEND_HEADS_MAX, WINDOW_FRAMES
from basenet.engine.state import State
from basenet.units import FrameHash, LocalNumber, PublicKeyBytes, Seq, TimestampNs
from basenet.wire.certificate import COMMIT
from basenet.wire.frame import Flag, Frame, Head, Kind, seal
from basenet.wire.message import Justification, Mark, Need, NewView, Propose, Pull, Refuse

# Where a view starts.


def try_start(state: State, now: Instant) -> None:
    """Begin to lead the present view, if it is mine and everything for it is there."""
    turn = state.turn
    if turn.is_established or not state.is_leader or turn.judging is not None:
        return
    if state.view == FIRST_VIEW:
        is_fresh = state.voted is None and state.final.view == GENESIS_VIEW
        # A sole voter promised nobody anything.
        is_free = state.electorate.count == 1 or now >= state.liveness.promised_until(state.lineage)
        if is_fresh and is_free:
            start(state, state.genesis, None, now)
        return
    new_views = [one for one in state.new_views.values() if one.view == state.view]
    if len(new_views) < state.electorate.quorum or is_worth_waiting(state, new_views, now):
        return
    refusals = used_refusals(state)
    anchor = highest(state, new_views, refusals)
    if isinstance(anchor, Missing):
        pull(state, anchor.height, anchor.hash, new_views, now)
    elif anchor.height < state.final.height:
        # What is final is below every anchor; the NewView that shows it is still to come.
        return
    elif anchor.hash not in state.tree.linked:
        pull(state, anchor.height, anchor.hash, new_views, now)
    elif is_right(state, anchor, now):
        why = Justification(new_views=tuple(new_views), refusals=tuple(refusals))
        start(state, anchor, why, now)


def is_worth_waiting(state: State, new_views: Sequence[NewView], now: Instant) -> bool:
    """Return whether a NewView may still come that saves commits (Q15)."""
    turn = state.turn
    heard = {one.sender for one in new_views}
    deposed = state.electorate.leader(state.view - 1)
    missing = set(state.others) - heard - state.lost
    if not missing or deposed in heard:
        return False
    if not turn.patience_until:
        turn.patience_until = Instant(now + state.timing.new_view_patience)
    return now < turn.patience_until


def used_refusals(state: State) -> list[Refuse]:
    """Return the refusals that leave no quorum for a frame."""
    if not state.refusals or state.electorate.is_byzantine:
        return []
    known = [one for voters in state.refusals.values() for one in voters.values()]
    dead = dead_hashes(state, known)
    return [one for one in known if one.hash in dead]


def pull(
    state: State, height: Seq, digest: FrameHash, new_views: Sequence[NewView], now: Instant
) -> None:
    """Ask for a branch whoever said that it is the highest."""
    turn = state.turn
    if now < turn.pull_at:
        return
    turn.pull_at = Instant(now + state.timing.retry)
    holders = tuple(
        one.sender for one in new_views if one.high.hash == digest and one.sender != state.key
    )
    message = Pull(epoch=state.epoch, height=height, hash=digest, above_height=state.final.height)
    state.send(holders or state.others, message)


def is_right(state: State, anchor: Mark, now: Instant) -> bool:
    """Return whether the roots up to the anchor are right; have them judged if nobody has."""
    path = state.tree.path(anchor.hash)
    if any(head.hash in state.refused for head in path):
        return False
    unjudged = tuple(head for head in path if head.hash not in state.judged)
    if unjudged:
        state.turn.judging, state.turn.judging_at = unjudged[-1].hash, now
        state.effects.append(Judge(epoch=state.epoch, view=state.view, heads=unjudged))
    return not unjudged


def start(state: State, anchor: Mark, why: Justification | None, now: Instant) -> None:
    """Fix where the view starts, vote for it, and ask for votes."""
    tree, turn = state.tree, state.turn
    if not is_salvageable(state, anchor):
        tree.follow(anchor.hash)
    state.anchor = anchor
    state.justification = why
    state.voted = Mark(state.view, *tree.tip)
    state.vstart = tree.tip[0]
    state.is_dirty = True
    turn.is_established = True
    turn.is_quiet = False
    turn.start_height = tree.tip[0]
    state.exposed = True
    views.begin_leading(state, now)
    if state.tracer is not None:
        new_views = why.new_views if why is not None else ()
        state.tracer.start(state.epoch, state.view, anchor, new_views, tree.tip)
    propose(state, anchor.height, anchor.hash, now)


def is_salvageable(state: State, anchor: Mark) -> bool:
    """Return whether what I hold above the anchor may stay (Byzantine mode only)."""
    tree = state.tree
    if not state.electorate.is_byzantine or not tree.is_on_chain(anchor.height, anchor.hash):
        return False
    above = tree.path(tree.tip[1], anchor.height)
    return all(
        head.view >= anchor.view and head.hash in state.judged and head.kind != Kind.CONFIG
        for head in above
    ) and not (above and above[-1].is_partial)


def resume(state: State, now: Instant) -> None:
    """Go on leading after a restart, where my last vote in this view is (mistake 2)."""
    turn = state.turn
    turn.is_established = True
    turn.start_height = state.tree.tip[0]
    views.begin_leading(state, now)
    propose(state, state.final.height, state.final.hash, now)


# What is proposed.


def can_seal(state: State) -> bool:
    """Return whether captured commits can become frames now."""
    turn, tree = state.turn, state.tree
    if not state.is_leading or turn.is_quiet or state.database != tree.tip:
        return False
    if is_run_open(state):
        return True
    if state.wanted is not None and state.wanted.target is not None:
        return False
    return tree.tip[0] - state.final.height < WINDOW_FRAMES and not state.is_config_pending


def is_run_open(state: State) -> bool:
    """Return whether the tip is a PARTIAL, whose run only further frames can end."""
    tip = state.tree.heads.get(state.tree.tip[1])
    return tip is not None and tip.is_partial


def capture(state: State, events: Sequence[FrameCaptured], now: Instant) -> None:
    """Seal what was captured onto the tip, and propose what of it is whole."""
    assert can_seal(state), "captured commits wait while nothing can be sealed"
    prev = state.tree.tip
    check(state, events)
    state.has_lost = False
    heads = [seal_commit(state, event) for event in events]
    if state.others:
        state.effects.append(SendFrames(to=state.others, heads=tuple(heads)))
    if end_of(heads) is not None:
        propose(state, *prev, now)


def end_of(heads: Sequence[Head]) -> Head | None:
    """Return the last head that ends a transaction."""
    return next((head for head in reversed(heads) if not head.is_partial), None)


def check(state: State, events: Sequence[FrameCaptured]) -> None:
    """Assert that these commits are the next ones, before anything changes (Q14, P22)."""
    assert events, "a batch of nothing"
    tip = state.tree.heads.get(state.tree.tip[1])
    before = tip.flags if tip is not None else Flag.NONE
    last = state.local_last
    if state.has_lost:
        # What waited when an `Orphan` was decided keeps its numbers and is in no frame.
        last = LocalNumber(max(last, events[0].local_first - 1))
    for event in events:
        count = event.local_last - event.local_first + 1
        assert event.local_first == last + 1, "a commit captured twice or not at all"
        assert count >= 0, "local numbers moved backwards"
        if event.flags & Flag.PARTIAL:
            assert count == 0, "a commit that ends inside its own run"
        else:
            assert count > 0 or event.flags, "a frame without a commit, and no flag says why"
        if before & Flag.PARTIAL:
            is_same = event.flags | Flag.PARTIAL == before
            assert is_same, "a frame of something else inside a PARTIAL run"
        before = event.flags
        last = event.local_last


def clamp(state: State, timestamp_ns: TimestampNs) -> TimestampNs:
    """Return the timestamp of the next frame: never at or before the tip's (P33)."""
    tip = state.tree.heads.get(state.tree.tip[1])
    if tip is None:
        return timestamp_ns
    return TimestampNs(max(timestamp_ns, tip.timestamp_ns + 1))


def seal_commit(state: State, event: FrameCaptured) -> Head:
    """Seal one COMMIT onto the tip."""
    height, digest = state.tree.tip
    frame = seal(
        shard=state.scope.shard,
        seq=Seq(height + 1),
        timestamp_ns=clamp(state, event.timestamp_ns),
        salt=event.salt,
        payload=event.payload,
        kind=Kind.COMMIT,
        flags=event.flags,
        epoch=state.epoch,
        view=state.view,
        prev_hash=digest,
        state_root=event.state_root,
        signer=state.signer,
    )
    keep_own(state, frame, event.local_first, event.local_last)
    state.local_last = event.local_last
    return frame.head


def keep_own(state: State, frame: Frame, first: LocalNumber, last: LocalNumber) -> None:
    """Hold a frame that was sealed here: its root is right, and the database holds it."""
    head = frame.head
    state.tree.append(head)
    state.judged.add(head.hash)
    state.database = (head.seq, head.hash)
    state.own.append(OwnFrame(frame=frame, local_first=first, local_last=last))
    if state.tracer is not None:
        state.tracer.frame(state.epoch, state.view, head)


def proposal_end(state: State) -> tuple[Seq, FrameHash]:
    """Return the last place of the chain that is not inside a PARTIAL run."""
    height, digest = state.tree.tip
    heads = state.tree.heads
    while (head := heads.get(digest)) is not None and head.is_partial:
        height, digest = Seq(height - 1), head.prev_hash
    return height, digest


def propose(state: State, prev_height: Seq, prev_hash: FrameHash, now: Instant) -> None:
    """Vote for the chain up to its last whole transaction, and ask the others to."""
    height, digest = proposal_end(state)
    mark = Mark(state.view, height, digest)
    if state.voted != mark:
        state.voted = mark
        state.is_dirty = True
    if state.electorate.count == 1:
        # The only voter's signature on the frame is the vote.
        finality.finalize(state, mark, None, now)
        return
    state.turn.resend_at = Instant(now + state.timing.retry)
    send_proposal(state, make_proposal(state, prev_height, prev_hash))
    voting.cast(state, state.electorate.first_phase, mark, now)


def make_proposal(state: State, prev_height: Seq, prev_hash: FrameHash) -> Propose:
    """Return the signed proposal of what is above a frame, up to my vote."""
    voted, anchor = state.voted, state.anchor
    assert voted is not None, "a proposal without the leader's own vote"
    assert anchor is not None, "a proposal in a view without a start"
    certificate = state.certificate
    if certificate is not None and certificate.epoch != state.epoch:
        certificate = None
    data = state.scope.propose(
        state.epoch,
        state.view,
        prev_height,
        prev_hash,
        voted.height,
        voted.hash,
        anchor.view,
        anchor.height,
        anchor.hash,
    )
    message = Propose(
        epoch=state.epoch,
        view=state.view,
        prev_height=prev_height,
        prev_hash=prev_hash,
        end_height=voted.height,
        end_hash=voted.hash,
        anchor=anchor,
        justification=state.justification,
        prepared=state.prepared,
        final=certificate,
        signature=state.sign(data),
    )
    if state.tracer is not None:
        state.tracer.propose(message)
    return message


def send_proposal(state: State, message: Propose) -> None:
    """Send a proposal to all; why the view starts where it does only to whom it is news."""
    if message.justification is None:
        state.send(state.others, message)
        return
    voted_by, phase = state.turn.voted_by, state.electorate.first_phase
    known = tuple(key for key in state.others if (phase, key) in voted_by)
    state.send(tuple(key for key in state.others if key not in known), message)
    if known:
        # They know why the view starts where it does.
        state.send(known, replace(message, justification=None))


def repeat(state: State, now: Instant) -> None:
    """Ask again for votes that have not come."""
    turn = state.turn
    turn.resend_at = Instant(now + state.timing.retry)
    voted = state.voted
    assert voted is not None, "nothing to propose again"
    late = tuple(
        key
        for key in state.others
        if (vote := turn.voted_by.get((COMMIT, key))) is None or vote.height < voted.height
    )
    if late:
        message = make_proposal(state, state.final.height, state.final.hash)
        state.send(late, message)


# What others ask of it.


def on_need(state: State, sender: PublicKeyBytes, message: Need) -> None:
    """Send what the peer lacks of my chain, and the proposal again."""
    if message.view != state.view or not state.is_leading:
        return
    final = state.final
    if message.above_height < final.height:
        state.effects.append(ServeFinal(to=sender, above_height=message.above_height))
    floor = final.height
    if state.tree.is_on_chain(message.above_height, message.above_hash):
        floor = message.above_height
    heads = tuple(state.tree.path(state.tree.tip[1], floor)[:SEND_HEADS_MAX])
    if heads:
        state.effects.append(SendFrames(to=(sender,), heads=heads))
    state.send((sender,), make_proposal(state, final.height, final.hash))


def on_pull(state: State, sender: PublicKeyBytes, message: Pull) -> None:
    """Send a branch that I hold, to whoever has to start a view from it."""
    heads: list[Head] = []
    digest: FrameHash = message.hash
    while (head := state.tree.heads.get(digest)) is not None:
        if head.seq <= max(message.above_height, state.final.height):
            break
        heads.append(head)
        digest = head.prev_hash
    heads.reverse()
    if message.above_height < state.final.height:
        state.effects.append(ServeFinal(to=sender, above_height=message.above_height))
    if heads:
        state.effects.append(SendFrames(to=(sender,), heads=tuple(heads[:SEND_HEADS_MAX])))
