"""Leaving a view: silence, wishes, promises, and the clocks behind them.

Theory of operation
===================

A *wish* is a pre-vote: it promises nothing, so a node that is cut off disturbs nobody. Whoever
hears nothing of the leader, or sees something pending that gets nowhere, wishes for the next view,
again and again; wishes expire. With a quorum of wishes, and only once the promise to the old leader
is over, a voter *enters*: it persists the view and sends its NewView to the new leader.

Two clocks run (Q16, mistake 7). *Silence*: nothing from the leader in either lane for 1.25 to 1.5
s.
*Progress*: something is pending and nothing becomes final, for 5 s, however loud the leader is; new
bytes of a long run put that off, but not for ever (Q6). While nothing is pending heartbeats are all
there is, in both fault models. A leader that no quorum answers stops, and wishes, too.

*Join early*: who gets a wish and has itself heard nothing for the lower bound wishes at once.
*Hint*: all connections to the leader are gone: wish at once. Neither moves a promise.
"""

from basenet.engine import catchup, proposing, views, voting
from basenet.engine.ballot import FIRST_VIEW
from basenet.engine.effects import Fence, SendFrames
from basenet.engine.events import Instant
from basenet.engine.justification import is_new_view_valid, is_refusal_valid
from basenet.engine.lease import FOREVER
from basenet.engine.limits import BACK_OFF_MAX, REFUSALS_MAX
from basenet.engine.state import LONG_AGO, State
from basenet.units import PublicKeyBytes, View
from basenet.wire.certificate import COMMIT
from basenet.wire.message import Mark, NewView, Refuse, Wish

# The clocks.


def silence_deadline(state: State) -> Instant:
    """Return until when the leader may be silent."""
    turn = state.turn
    if turn.is_established:
        return Instant(views.heard_at(state) + turn.timeout)
    patience = turn.timeout << min(state.failures, BACK_OFF_MAX)
    return Instant(max(turn.entered_at, state.heard_at) + patience)


def over_at(state: State) -> Instant:
    """Return when this view should end, if nothing happens until then; the past: now."""
    turn = state.turn
    if turn.is_spoiled or turn.is_quiet:
        return LONG_AGO
    if state.is_leading:
        return FOREVER
    if state.lost and state.leader in state.lost and state.leader != state.key:
        return LONG_AGO
    over = silence_deadline(state)
    if state.is_pending:
        over = min(over, progress_deadline(state))
    return over


def progress_deadline(state: State) -> Instant:
    """Return until when something must become final; later while this node judges (4.3).

    To judge a transaction of gigabytes takes longer than the clock allows a leader.
    """
    turn = state.turn
    deadline = Instant(turn.progress_at + state.timing.progress)
    return deadline if turn.judging is None else max(deadline, turn.bytes_until)


def is_expired(state: State, now: Instant) -> bool:
    """Return whether this view should end."""
    return now >= over_at(state)


def on_tick(state: State, now: Instant) -> None:
    """Do what is due."""
    if state.electorate.count == 1 and state.is_voter:
        return
    catchup.poll(state, now)
    if not state.is_voter:
        return
    forget_wishes(state, now)
    turn = state.turn
    if state.is_leading:
        lead_on(state, now)
    else:
        follow_on(state, now)
    if is_expired(state, now):
        if now >= state.wish_at:
            wish(state, next_view(state, now), now)
    else:
        state.wishes.pop(state.key, None)
    if turn is state.turn and is_new_view_due(state, now):
        send_new_view(state, now)


def lead_on(state: State, now: Instant) -> None:
    """Repeat what is pending; stop when nobody answers."""
    turn = state.turn
    if turn.is_quiet:
        return
    heard = state.liveness.quorum_heard_at(state.lineage, now)
    if turn.is_spoiled or now >= quorum_deadline(state, heard):
        turn.is_quiet = True
        state.liveness.unlead(state.lineage, now)
        state.effects.append(Fence(epoch=state.epoch, view=state.view))
    elif state.is_pending and now >= turn.resend_at:
        proposing.repeat(state, now)


def quorum_deadline(state: State, heard: Instant) -> Instant:
    """Return until when a leader goes on that last heard a quorum at ``heard``."""
    return Instant(max(heard, state.turn.entered_at) + state.timing.check_quorum)


def follow_on(state: State, now: Instant) -> None:
    """Ask for what is missing, and repeat a vote that came to nothing."""
    turn = state.turn
    if catchup.is_lacking(state) and now >= turn.need_at:
        catchup.ask_missing(state, now)
    if not turn.is_established or not state.is_pending or now < turn.resend_at:
        return
    turn.resend_at = Instant(now + state.timing.retry)
    assert state.voted is not None, "a view that is established here without my vote"
    voting.cast(state, state.electorate.first_phase, state.voted, now)


# Wishes.


def forget_wishes(state: State, now: Instant) -> None:
    """Forget what others wished for and do no more.

    It counts for nothing; but whoever knows of a wish is not at ease, and wakes again and again.
    """
    oldest = now - 2 * state.timing.retry
    for key, (_, at) in list(state.wishes.items()):
        if at < oldest and key != state.key:
            del state.wishes[key]


def live_wishes(state: State, now: Instant) -> list[View]:
    """Return the wishes that have not expired, the highest first."""
    oldest = now - 2 * state.timing.retry
    return sorted((view for view, at in state.wishes.values() if at >= oldest), reverse=True)


def next_view(state: State, now: Instant) -> View:
    """Return which view to wish for: the next, or the one that others wish for already."""
    view = state.view + 1
    if state.electorate.is_byzantine:
        mine = state.wishes.get(state.key)
        return View(max(view, mine[0]) if mine is not None else view)
    return View(max([view, *live_wishes(state, now)]))


def wish(state: State, view: View, now: Instant) -> None:
    """Wish for ``view``, and tell everybody."""
    state.wishes[state.key] = (view, now)
    state.wish_at = Instant(now + state.timing.retry)
    signature = state.sign(state.scope.wish(state.epoch, view))
    state.send(state.others, Wish(epoch=state.epoch, view=view, signature=signature))
    # What makes a view start below its highest vote must reach whoever starts it.
    for refusal in state.refused.values():
        state.send(state.others, refusal)


def on_wish(state: State, sender: PublicKeyBytes, message: Wish, now: Instant) -> None:
    """Take in a wish; join it, or help its sender back into this view."""
    data = state.scope.wish(message.epoch, message.view)
    if not state.verify(sender, message.signature, data):
        return
    is_here = (state.electorate.first_phase, sender) in state.turn.voted_by
    if state.is_leading and not state.turn.is_quiet and (message.view <= state.view or not is_here):
        # Who never voted in this view may not know that it has begun, however idle it is by now.
        final = state.final
        state.send((sender,), proposing.make_proposal(state, final.height, final.hash))
    if message.view <= state.view:
        return
    state.wishes[sender] = (message.view, now)
    mine = state.wishes.get(state.key)
    wished = mine[0] if mine is not None else state.view
    if state.electorate.is_byzantine:
        wishes, faults = live_wishes(state, now), state.electorate.faults
        # One of f + 1 is honest, so the wish is worth joining.
        if len(wishes) > faults and wishes[faults] > max(state.view, wished):
            wish(state, wishes[faults], now)
            return
    if mine is None and not state.is_leading and is_silent(state, now):
        wish(state, next_view(state, now), now)


def is_silent(state: State, now: Instant) -> bool:
    """Return whether the leader was not heard for the lower bound of ELECTION."""
    heard = max(views.heard_at(state), state.turn.entered_at)
    return now - heard >= state.timing.election_min


def check_wishes(state: State, now: Instant) -> None:
    """Enter the view that a quorum wishes for, once no promise stands against it."""
    wishes, quorum = live_wishes(state, now), state.electorate.quorum
    if len(wishes) < quorum or wishes[quorum - 1] <= state.view:
        return
    if now >= state.liveness.promised_until(state.lineage):
        views.enter(state, wishes[quorum - 1], now, is_silent=False)


# Promises.


def is_new_view_due(state: State, now: Instant) -> bool:
    """Return whether the promise for this view should be sent (again)."""
    turn = state.turn
    return (
        not turn.is_established
        and state.view > FIRST_VIEW
        and LONG_AGO < turn.new_view_at <= now
        and now >= state.liveness.promised_until(state.lineage)
    )


def send_new_view(state: State, now: Instant) -> None:
    """Send the NewView to the view's leader, after the frames that only I may hold (Q15)."""
    turn = state.turn
    turn.new_view_at = Instant(now + state.timing.retry)
    message = views.make_new_view(state)
    leader = state.leader
    if leader == state.key:
        state.new_views[state.key] = message
        return
    suffix = tuple(head for head in turn.suffix if head.hash in state.tree.heads)
    if suffix:
        state.effects.append(SendFrames(to=(leader,), heads=suffix))
        turn.suffix = ()
    for refusal in state.refused.values():
        # The new leader may have forgotten it, or never have heard of it (Q8).
        state.send((leader,), refusal)
    state.send((leader,), message)


def on_new_view(state: State, sender: PublicKeyBytes, message: NewView, now: Instant) -> None:
    """Take in a promise for a view that I lead."""
    if message.sender != sender or message.view < state.view:
        return
    if state.electorate.leader(message.view) != state.key:
        return
    if message.view == state.view and state.is_leading:
        final = state.final
        state.send((sender,), proposing.make_proposal(state, final.height, final.hash))
        return
    known = state.new_views.get(sender)
    if known is not None and (known.view, known.high) >= (message.view, message.high):
        return
    if not is_new_view_valid(state, message):
        return
    remind(state, message)
    state.new_views[sender] = message
    count = sum(one.view == message.view for one in state.new_views.values())
    if message.view > state.view and count >= state.electorate.quorum:
        views.enter(state, message.view, now, is_silent=True)


def remind(state: State, message: NewView) -> None:
    """Report a voter that forgot what it voted for: a restored or cloned disk."""
    certificate = state.certificate
    # The consent to a genesis is no vote: the ballot of a first epoch begins with it (Q2).
    if certificate is None or (certificate.epoch, certificate.phase) != (state.epoch, COMMIT):
        return
    known = Mark(certificate.view, certificate.height, certificate.hash)
    voted = {key for key, _ in certificate.votes}
    if message.sender in voted and message.view > known.view and message.high < known:
        state.accuse("a NewView below a vote that is certified", message.sender, message)


def on_refuse(state: State, sender: PublicKeyBytes, message: Refuse) -> None:
    """Keep a refusal; a leader whose own frame lost its quorum must find another root (P19)."""
    if message.sender != sender or state.electorate.is_byzantine:
        return
    if message.height <= state.final.height:
        return
    held = sum(sender in voters for voters in state.refusals.values())
    voters = state.refusals.get(message.hash, {})
    if sender in voters or held >= REFUSALS_MAX or not is_refusal_valid(state, message):
        return
    state.refusals.setdefault(message.hash, voters)[sender] = message
    is_mine = state.tree.is_on_chain(message.height, message.hash) and state.is_leading
    if is_mine and len(voters) >= state.electorate.blocking:
        state.report(f"a quorum refuses the state root of my frame {message.height}")
        state.turn.is_spoiled = True


# When to look again.


def add_leader_times(state: State, now: Instant, times: list[Instant]) -> None:
    """Add when a leader has something to do; nothing while all is final and all is well."""
    if state.wanted is not None:
        times.append(state.wanted.until)
    if state.turn.is_spoiled:
        times.append(now)
    is_pending = state.is_pending
    if is_pending:
        times.append(state.turn.resend_at)
    heard = state.liveness.quorum_heard_at(state.lineage, now)
    if is_pending or now - heard >= state.timing.suspicion:
        times.append(quorum_deadline(state, heard))


def add_follower_times(state: State, now: Instant, times: list[Instant]) -> None:
    """Add when a follower has something to do; nothing while all is final and the leader there."""
    turn = state.turn
    is_pending = state.is_pending
    is_at_ease = turn.is_established and turn.is_following and not turn.is_spoiled
    if is_at_ease and not is_pending and not state.wishes and not state.lost:
        if now - views.heard_at(state) >= state.timing.suspicion:
            # A wish that came to nothing may be so new that the next one has to wait.
            times.append(max(silence_deadline(state), state.wish_at))
        return
    over = over_at(state)
    times.append(over if now < over else state.wish_at)
    if state.key in state.wishes:
        times.append(state.wish_at)
    if is_pending and turn.is_established and not turn.is_quiet:
        times.append(turn.resend_at)
    if catchup.is_lacking(state):
        times.append(turn.need_at)
    if turn.is_following and not state.wishes:
        return
    promised = state.liveness.promised_until(state.lineage)
    times += [promised] if promised > now else []
    if not turn.is_established:
        times += start_times(state, now, promised)


def start_times(state: State, now: Instant, promised: Instant) -> list[Instant]:
    """Return when something is due in a view that has not started here."""
    turn = state.turn
    times = [one for one in (turn.patience_until, turn.pull_at) if one > now]
    if state.view > FIRST_VIEW and turn.new_view_at:
        times.append(max(turn.new_view_at, promised))
    return times
