"""Votes: what a replica votes for, and what its vote is counted for.

Theory of operation
===================

A vote for a frame in (epoch, view) is one for everything below it. A replica votes for the end of a
proposal when it holds every frame down to the final one, the roots of all of them are right, and

1. the path goes through the view's anchor;
2. every frame above the anchor is of the anchor's view or a later one, also those that it held
   before (mistake 9): what an earlier view left behind may already be somebody's orphan;
3. it extends what it voted for in this view, by frames of this view (mistake 10);
4. no CONFIG stands below the end, and the end is not inside a PARTIAL run (P22);
5. it has not promised to refuse a frame of it (Q8).

It never votes below its first vote in a view (``vstart``), and never for two branches in one view.
A proposal that it has voted for already gets the same vote again, and nothing is persisted
(mistake 14). Verdicts on roots come as events; one of a view that is over is void (P19).

In the crash mode this vote is the COMMIT. In the Byzantine mode it is the PREPARE; a quorum of
those is the lock, which is durable before the COMMIT vote leaves.
"""

from typing import Final

from basenet.engine import finality, views
from basenet.engine.configuration import contradiction
from basenet.engine.effects import Judge
from basenet.engine.events import Instant, Judged
from basenet.engine.limits import PROPOSALS_MAX, REFUSALS_MAX
from basenet.engine.quorum import form, is_certified, mark_of
from basenet.engine.state import State
from basenet.units import FrameHash, PublicKeyBytes, Seq
from basenet.wire.certificate import COMMIT, PREPARE, Certificate
from basenet.wire.frame import Head, Kind
from basenet.wire.message import Certified, Mark, Propose, Refuse, SyncRequest, Vote


def on_propose(state: State, sender: PublicKeyBytes, message: Propose, now: Instant) -> None:
    """Take in a proposal of a view's leader."""
    if sender != state.electorate.leader(message.view) or not state.is_voter:
        return
    if sender == state.key or not is_proposal_signed(state, message):
        return
    if message.view < state.view:
        show_later_view(state, sender, message)
        return
    if not views.adopt(state, message, now):
        return
    state.heard_at = now
    if not learn_both(state, sender, message, now):
        return
    if state.is_voted_here and answer_again(state, message, now):
        return
    if message.end_height >= state.final.height:
        keep(state, message, now)
    elif state.is_final_in_view and state.certificate is not None:
        # It has forgotten what its own view made final.
        state.send((sender,), Certified(epoch=state.epoch, certificate=state.certificate))


def learn_both(state: State, sender: PublicKeyBytes, message: Propose, now: Instant) -> bool:
    """Take in the certificates of a proposal; return whether it is still of this view."""
    epoch, view = state.epoch, state.view
    if message.final is not None:
        learn_final(state, sender, message.final, now)
    if message.prepared is not None and state.electorate.is_byzantine:
        learn_prepared(state, message.prepared, now)
    return (state.epoch, state.view) == (epoch, view)


def show_later_view(state: State, sender: PublicKeyBytes, message: Propose) -> None:
    """Tell the leader of a lower view that a later one made something final."""
    certificate = state.certificate
    if certificate is None or certificate.epoch != state.epoch or certificate.view <= message.view:
        return
    state.send((sender,), Certified(epoch=state.epoch, certificate=certificate))


def is_proposal_signed(state: State, message: Propose) -> bool:
    """Return whether the leader signed what it proposes."""
    return state.verify(
        state.electorate.leader(message.view), message.signature, proposal_bytes(state, message)
    )


def proposal_bytes(state: State, message: Propose) -> bytes:
    """Return what a proposal signs."""
    anchor = message.anchor
    return state.scope.propose(
        message.epoch,
        message.view,
        message.prev_height,
        message.prev_hash,
        message.end_height,
        message.end_hash,
        anchor.view,
        anchor.height,
        anchor.hash,
    )


def answer_again(state: State, message: Propose, now: Instant) -> bool:
    """Return whether the proposal ends where I voted, or below: it gets the same vote again."""
    voted = state.voted
    assert voted is not None, "no vote to repeat"
    height, digest = message.end_height, message.end_hash
    if height > voted.height:
        return False
    if state.tree.is_on_chain(height, digest):
        if state.vstart is not None and height >= state.vstart:
            state.turn.is_established = True
            cast(state, state.electorate.first_phase, Mark(state.view, height, digest), now)
    elif height > state.final.height:
        expose(state, message)
    else:
        return False
    return True


def expose(state: State, message: Propose) -> None:
    """Show that the leader proposed two branches in one view; in the crash mode leave it."""
    accepted = state.turn.accepted
    proof = (message,) if accepted is None else (accepted, message)
    state.accuse("two proposals in one view", state.leader, *proof)
    if not state.electorate.is_byzantine:
        # A cloned key or a restored disk: only another view can be trusted.
        state.turn.is_spoiled = True


def keep(state: State, message: Propose, now: Instant) -> None:
    """Remember the proposal until its frames are there."""
    turn = state.turn
    proposals = turn.proposals
    if any(one.end_hash == message.end_hash for one in proposals):
        return
    if not proposals and not state.is_pending:
        turn.progress_at = now
        turn.bytes_until = Instant(now + state.timing.run_progress)
    proposals.append(message)
    proposals.sort(key=lambda one: one.end_height)
    del proposals[:-PROPOSALS_MAX]
    if message.end_hash not in state.tree.linked:
        # Never earlier than the others: what is on its way must not be asked for.
        turn.need_at = max(turn.need_at, Instant(now + state.timing.need_patience))


def consider(state: State, now: Instant) -> None:
    """Vote for the highest proposal that is whole and right; have its roots judged first.

    Nothing is being judged just now.
    """
    turn = state.turn
    linked = state.tree.linked
    for message in reversed(turn.proposals):
        if message.end_hash not in linked:
            continue
        path = new_frames(state, message)
        problem = objection(state, message, path)
        if problem is not None:
            turn.proposals.remove(message)
            state.accuse(problem, state.leader, message)
            if problem == BRANCH:
                expose(state, message)
            elif problem == REFUSED:
                state.turn.is_spoiled = True
            return consider(state, now)
        unjudged = tuple(head for head in path if head.hash not in state.judged)
        if not unjudged:
            return vote(state, message, now)
        turn.judging, turn.judging_at = unjudged[-1].hash, now
        state.effects.append(Judge(epoch=state.epoch, view=state.view, heads=unjudged))
        return None
    return None


BRANCH: Final = "a proposal that leaves what I voted for"
REFUSED: Final = "frames that I promised to refuse"


def new_frames(state: State, message: Propose) -> list[Head]:
    """Return the frames of a linked proposal that a vote for it would speak of anew."""
    voted = state.voted
    if voted is not None and voted.view == state.view:
        return state.tree.path(message.end_hash, max(voted.height, state.final.height))
    return state.tree.path(message.end_hash)


def objection(  # noqa: PLR0911  (one return for each rule)
    state: State, message: Propose, path: list[Head]
) -> str | None:
    """Return which rule a linked proposal breaks, or None."""
    voted = state.voted
    if voted is not None and voted.view == state.view:
        problem = leaves_vote(state, voted, message, path)
    else:
        problem = strays(state, message, path)
    if problem is not None:
        return problem
    if not path:
        return None if message.end_hash == state.tree.root[1] else "a proposal without frames"
    if path[-1].seq != message.end_height or path[-1].view > state.view:
        return "a proposal that contradicts its frames"
    if path[-1].is_partial:
        return "a proposal that ends inside a PARTIAL run"
    if any(head.kind == Kind.CONFIG for head in path[:-1]):
        return "frames above a CONFIG that is not final"
    if path[-1].kind == Kind.CONFIG and (problem := misconfigures(state, path[-1])) is not None:
        return problem
    if state.refused and any(head.hash in state.refused for head in path):
        return REFUSED
    return None


def leaves_vote(state: State, voted: Mark, message: Propose, path: list[Head]) -> str | None:
    """Return why a further proposal of a view does not extend my vote in it, or None."""
    if any(head.view != state.view for head in path):
        return "frames of another view above my vote"
    if voted.height < state.final.height:
        return None
    base = path[0].prev_hash if path else message.end_hash
    if base != voted.hash:
        return BRANCH
    below = state.tree.heads.get(voted.hash)
    if path and below is not None and below.kind == Kind.CONFIG and voted.hash != state.final.hash:
        return "frames above a CONFIG that is not final"
    return None


def misconfigures(state: State, head: Head) -> str | None:
    """Return what is wrong with a CONFIG frame, or None."""
    config = state.configs.get(head.hash)
    if config is None:
        return "a CONFIG that cannot be read"
    problem = contradiction(state.config, config, head.author)
    return None if problem is None else f"a CONFIG that may not be: {problem}"


def strays(state: State, message: Propose, path: list[Head]) -> str | None:
    """Return why the first proposal of a view does not fit its anchor, or None."""
    anchor, final = message.anchor, state.final
    if message.end_height < anchor.height:
        return "a proposal below its anchor"
    if anchor.height > final.height:
        index = anchor.height - final.height - 1
        if index >= len(path) or path[index].hash != anchor.hash:
            return "a proposal beside its anchor"
    elif anchor.height == final.height and anchor.hash != final.hash:
        return "an anchor beside what is final"
    # The whole path above the anchor, also what was held before (mistake 9).
    if any(head.seq > anchor.height and head.view < anchor.view for head in path):
        return "frames that an earlier view left behind"
    return None


def on_judged(state: State, event: Judged, now: Instant) -> None:
    """Take in what the driver found, unless its view is over."""
    turn = state.turn
    if (event.epoch, event.view) != (state.epoch, state.view) or event.hash != turn.judging:
        return
    turn.judging = None
    # The leader's time does not run while this node is at work.
    turn.progress_at = Instant(turn.progress_at + now - turn.judging_at)
    if event.hash not in state.tree.linked:
        return
    path = state.tree.path(event.hash)
    if event.wrong is None:
        state.judged.update(head.hash for head in path)
        for message in turn.proposals:
            if message.end_hash == event.hash and not state.is_leader:
                vote(state, message, now)
                break
        return
    refuse(state, path, event.wrong)


def refuse(state: State, path: list[Head], wrong: FrameHash) -> None:
    """Promise never to vote for a frame whose root is wrong, nor for what follows it (Q8)."""
    head = next((one for one in path if one.hash == wrong), None)
    if head is None:
        return
    # What comes before the wrong one was judged with it, and is right.
    state.judged.update(one.hash for one in path if one.seq < head.seq)
    state.turn.proposals = [one for one in state.turn.proposals if one.end_height < head.seq]
    state.report(f"the state root of frame {head.seq} is wrong")
    # The view cannot go on without this frame.
    state.turn.is_spoiled = True
    if state.electorate.is_byzantine or len(state.refused) >= REFUSALS_MAX:
        return
    if state.voted is not None and head in state.tree.path(state.voted.hash):
        # It was right when I voted for it, so it is this node that is wrong; a vote stands.
        return
    message = Refuse(
        epoch=state.epoch,
        sender=state.key,
        height=head.seq,
        hash=wrong,
        signature=state.sign(state.scope.refuse(state.epoch, head.seq, wrong)),
    )
    state.refused[wrong] = message
    state.refusals.setdefault(wrong, {})[state.key] = message
    state.is_dirty = True
    state.send(state.others, message)
    if state.tracer is not None:
        state.tracer.refuse(state.epoch, state.view, head.seq, wrong)


def vote(state: State, message: Propose, now: Instant) -> None:
    """Accept a proposal: persist the vote, then send it."""
    turn = state.turn
    mark = Mark(state.view, message.end_height, message.end_hash)
    if not state.is_voted_here:
        state.vstart = message.end_height
    state.tree.follow(message.end_hash)
    state.voted = mark
    state.is_dirty = True
    turn.is_established = True
    turn.accepted = message
    turn.proposals = [one for one in turn.proposals if one.end_height > message.end_height]
    state.heard_at = now
    turn.resend_at = Instant(now + state.timing.retry)
    cast(state, state.electorate.first_phase, mark, now)


def cast(state: State, phase: int, mark: Mark, now: Instant) -> None:
    """Send a vote, or count it where I lead."""
    message = Vote(
        epoch=state.epoch,
        view=state.view,
        phase=phase,
        height=mark.height,
        hash=mark.hash,
        signature=state.sign(
            state.scope.vote(state.epoch, state.view, phase, mark.height, mark.hash)
        ),
    )
    if state.tracer is not None:
        state.tracer.vote(state.epoch, mark, phase)
    leader = state.leader
    if leader == state.key:
        tally(state, state.key, message, now)
    else:
        state.send((leader,), message)


def on_vote(state: State, sender: PublicKeyBytes, message: Vote, now: Instant) -> None:
    """Count a vote for what I proposed."""
    if message.view != state.view or not state.is_leading:
        return
    if message.phase not in (PREPARE, COMMIT):
        return
    before = state.turn.voted_by.get((message.phase, sender))
    height = message.height
    if before is not None and before.height > height:
        return
    if before is not None and before.height == height and before.hash == message.hash:
        show_again(state, sender, message)
        return
    data = state.scope.vote(state.epoch, state.view, message.phase, height, message.hash)
    if not state.verify(sender, message.signature, data):
        return
    if before is not None and before.height == height:
        state.accuse("two votes at one height", sender, before, message)
        return
    state.turn.voted_by[message.phase, sender] = message
    tally(state, sender, message, now)


def show_again(state: State, sender: PublicKeyBytes, message: Vote) -> None:
    """Answer a vote that came twice: its sender has missed what came of it."""
    certificate, prepared = state.certificate, state.prepared
    if certificate is not None and state.is_final_in_view and certificate.height >= message.height:
        state.send((sender,), Certified(epoch=state.epoch, certificate=certificate))
    elif message.phase == PREPARE and prepared is not None and is_locked(state, message.height):
        state.send((sender,), Certified(epoch=state.epoch, certificate=prepared))


def tally(state: State, key: PublicKeyBytes, message: Vote, now: Instant) -> None:
    """Count a verified vote; with a quorum make the certificate."""
    height, digest, phase = message.height, message.hash, message.phase
    if not state.tree.is_on_chain(height, digest):
        return
    if height == state.final.height and state.final.view == state.view:
        return
    if phase == PREPARE and is_locked(state, height):
        return
    votes = state.turn.tallies.setdefault((phase, height, digest), {})
    votes[key] = message.signature
    if len(votes) < state.electorate.quorum:
        return
    mark = Mark(state.view, height, digest)
    certificate = form(phase, state.epoch, mark, votes)
    if phase == PREPARE:
        lock(state, certificate, now)
    else:
        epoch, peers = state.epoch, state.others
        finality.finalize(state, mark, certificate, now)
        state.send(peers, Certified(epoch=epoch, certificate=certificate))


def is_locked(state: State, height: Seq) -> bool:
    """Return whether a PREPARE certificate of this view reaches ``height``."""
    prepared = state.prepared
    return prepared is not None and (prepared.view, prepared.height) >= (state.view, height)


def lock(state: State, certificate: Certificate, now: Instant) -> None:
    """Keep the proof that a quorum prepared what I lead, show it, and vote COMMIT."""
    set_prepared(state, certificate, now)
    state.send(state.others, Certified(epoch=state.epoch, certificate=certificate))
    cast(state, COMMIT, mark_of(certificate), now)


def set_prepared(state: State, certificate: Certificate, now: Instant) -> None:
    """Keep a verified PREPARE certificate as the lock."""
    state.prepared = certificate
    state.is_dirty = True
    state.turn.resend_at = Instant(now + state.timing.retry)
    if state.tracer is not None:
        state.tracer.prepared(state.epoch, state.view, certificate)


def on_certified(state: State, sender: PublicKeyBytes, message: Certified, now: Instant) -> None:
    """Take in a certificate that somebody shows."""
    certificate = message.certificate
    if certificate.phase == COMMIT:
        learn_final(state, sender, certificate, now)
    elif state.electorate.is_byzantine:
        learn_prepared(state, certificate, now)


def learn_final(
    state: State, sender: PublicKeyBytes, certificate: Certificate, now: Instant
) -> None:
    """Take in a FINAL certificate; ask for the frames if they are not held."""
    if finality.accept(state, certificate, now) and now >= state.sync_at:
        state.sync_at = Instant(now + state.timing.retry)
        state.send((sender,), SyncRequest(epoch=state.epoch, above_height=state.final.height))


def learn_prepared(state: State, certificate: Certificate, now: Instant) -> None:
    """Take in a PREPARE certificate: what I voted for in this view, a quorum voted for."""
    if certificate.phase != PREPARE or certificate.epoch != state.epoch:
        return
    if certificate.view < state.view or is_beyond(state.prepared, certificate):
        return
    is_news = certificate != state.prepared
    if is_news and not is_certified(certificate, state.scope, state.electorate, state.verify):
        return
    if certificate.view > state.view:
        # A quorum is there already (mistake 5).
        views.enter(state, certificate.view, now, is_silent=True)
    mark = mark_of(certificate)
    if not is_mine_to_lock(state, mark):
        return
    if is_news:
        set_prepared(state, certificate, now)
    if state.leader != state.key:
        cast(state, COMMIT, mark, now)


def is_mine_to_lock(state: State, mark: Mark) -> bool:
    """Return whether I voted in this view for a chain through ``mark``, and not only above it."""
    if not state.is_voted_here or not state.tree.is_on_chain(mark.height, mark.hash):
        return False
    return state.vstart is not None and mark.height >= state.vstart


def is_beyond(prepared: Certificate | None, certificate: Certificate) -> bool:
    """Return whether my lock is higher than this one."""
    if prepared is None:
        return False
    return (prepared.view, prepared.height) > (certificate.view, certificate.height)
