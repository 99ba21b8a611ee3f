"""Views: which one this replica is in, how it comes into a higher one, and whom it follows there.

Theory of operation
===================

A replica never goes back to a lower view and never votes in one. It comes into a higher one

* *by wish*: a quorum wishes to leave, and the promise to the leader is over (`elections`);
* *silently*: others have gone before, shown by a justified proposal of the new view's leader, by a
  quorum of NewViews, or by a certificate of a higher view (mistakes 5, 6). These are no failures of
  the view that was left, so they do not lengthen anybody's patience (mistake 13).

The first valid message of a view's leader fixes the view's anchor. Another one later is a lie.
"""

from basenet.engine.ballot import GENESIS_VIEW
from basenet.engine.effects import Fence
from basenet.engine.events import Instant
from basenet.engine.justification import Missing, judge, new_view_bytes
from basenet.engine.quorum import mark_of
from basenet.engine.state import State
from basenet.units import View
from basenet.wire.frame import Head
from basenet.wire.message import Mark, NewView, Propose, Pull


def enter(state: State, view: View, now: Instant, *, is_silent: bool) -> None:
    """Go into a higher view; what was known of the lower one is forgotten."""
    assert view > state.view, "a view below the present one"
    suffix = stop_leading(state, now)
    state.set_view(view)
    state.vstart = None
    state.anchor = None
    state.justification = None
    state.is_dirty = True
    state.failures += not is_silent
    state.heard_at = now
    state.turn = turn = state.new_turn(now)
    turn.suffix = suffix
    turn.new_view_at = Instant(now + state.timing.retry) if is_silent else now
    state.wishes = {key: wish for key, wish in state.wishes.items() if wish[0] > view}
    state.wanted = None
    state.liveness.refuse(state.lineage, now)
    if state.tracer is not None:
        state.tracer.enter(state.epoch, view)


def stop_leading(state: State, now: Instant) -> tuple[Head, ...]:
    """Give the lease back, if I lead; return the un-final heads that I led."""
    if not state.is_leading:
        return ()
    state.liveness.unlead(state.lineage, now)
    state.effects.append(Fence(epoch=state.epoch, view=state.view))
    return tuple(state.tree.path(state.tree.tip[1]))


def adopt(state: State, message: Propose, now: Instant) -> bool:
    """Return whether a proposal of its view's leader counts: its view is, or becomes, mine.

    Its view is not below the present one.
    """
    if message.view == state.view and state.anchor is not None:
        if message.anchor == state.anchor:
            return True
        state.accuse("two anchors in one view", state.leader, message)
        return False
    found = judge(state, message.view, message.anchor, message.justification)
    if isinstance(found, Missing):
        pull = Pull(
            epoch=state.epoch,
            height=found.height,
            hash=found.hash,
            above_height=state.final.height,
        )
        state.send((state.electorate.leader(message.view),), pull)
        return False
    if not found:
        return False
    if message.view > state.view:
        enter(state, message.view, now, is_silent=True)
    state.anchor = message.anchor
    state.justification = message.justification
    state.is_dirty = True
    return True


def high(state: State) -> Mark:
    """Return the highest thing that this replica accepted, which may be final somewhere.

    The genesis; in the crash mode the last vote, in the Byzantine mode the last lock; and what is
    final, which may be of a higher view than either (mistake 6).
    """
    marks = [state.genesis]
    if state.final.view != GENESIS_VIEW:
        marks.append(state.final)
    if state.electorate.is_byzantine:
        if state.prepared is not None:
            marks.append(mark_of(state.prepared))
    elif state.voted is not None:
        marks.append(state.voted)
    return max(marks, key=lambda mark: (mark.view, mark.height))


def make_new_view(state: State) -> NewView:
    """Return this replica's promise for the present view."""
    mark = high(state)
    proof = None
    if state.electorate.is_byzantine and mark.view != GENESIS_VIEW:
        known = (state.prepared, state.certificate)
        proof = next(one for one in known if one is not None and mark_of(one) == mark)
    message = NewView(
        epoch=state.epoch,
        view=state.view,
        sender=state.key,
        high=mark,
        proof=proof,
        signature=state.sign(new_view_bytes(state, state.view, mark, proof)),
    )
    if state.tracer is not None:
        state.tracer.new_view(message)
    return message


def follow(state: State, now: Instant) -> None:
    """Grant the lease to the leader of the established view, once no older promise stands."""
    if now < state.liveness.promised_until(state.lineage):
        return
    state.turn.is_following = True
    leader = state.leader
    member = (leader, state.electorate.journals[leader])
    state.liveness.follow(state.lineage, state.epoch, state.view, member, now)


def begin_leading(state: State, now: Instant) -> None:
    """Ask the other voters for the lease of the present view."""
    journals = state.electorate.journals
    followers = tuple((key, journals[key]) for key in state.others)
    state.liveness.lead(
        state.lineage, state.epoch, state.view, followers, state.electorate.quorum, now
    )


def heard_at(state: State) -> Instant:
    """Return when the leader of the present view was last heard, in either lane."""
    turn = state.turn
    if turn.is_following:
        beat = state.liveness.leader_heard_at(state.lineage)
        if beat is not None:
            return max(beat, state.heard_at)
    return state.heard_at
