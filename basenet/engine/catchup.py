"""Catching up: frames by hash, final history from whoever has it, and who lags behind.

Theory of operation
===================

*Frames* come apart from what is said of them, in any cut and order, and are kept by hash. Holding a
frame means nothing: only votes and certificates do. What is kept is bounded, and signed by the one
who may write in its view.

*A proposal with holes* asks its leader (`Need`) once nothing new came for a while. *A
certificate for frames that are not held* becomes the goal, and asks peers in turn
(`SyncRequest`): the next one each time, counted, never computed from the clock, so that no rhythm
can stick to one dead peer (mistake 13). A node that is no voter asks in the same way, rarely,
since whomever it asked also tells it what becomes final later.

*Final history* arrives in pieces, each within one epoch with the certificate of its end, so an
epoch is verified by the voters that the one before made final. What peers no longer hold comes as a
state, by way of the driver, which then makes the replica anew (`engine.adoption`).
"""

from basenet.engine import finality
from basenet.engine.effects import ServeFinal
from basenet.engine.events import FinalReceived, FramesReceived, Instant
from basenet.engine.limits import HEADS_MAX, LEARNERS_MAX, VIEW_BYTES_MAX
from basenet.engine.quorum import mark_of
from basenet.engine.state import Reported, State
from basenet.engine.tree import may_follow
from basenet.errors import FrameCorrupt
from basenet.units import PublicKeyBytes, Seq
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, Head, Kind
from basenet.wire.message import Certified, Mark, Message, Need, SyncRequest
from basenet.wire.payload import decode_config


def on_frames(state: State, event: FramesReceived, now: Instant) -> None:
    """Keep the frames that may be part of the chain."""
    if not state.is_voter or event.sender not in state.electorate.journals:
        return
    linked = state.tree.linked
    new = [
        frame.head
        for frame in event.frames
        if is_wanted(state, frame.head) and hold(state, frame) and frame.head.hash in linked
    ]
    turn = state.turn
    if new:
        turn.need_at = Instant(now + state.timing.need_patience)
        # A run may be long: what arrives of it is progress, for a while. Other frames are none, or
        # a leader that only ever sends new ones would never be left.
        if now < turn.bytes_until and any(head.is_partial for head in new):
            turn.progress_at = now


def is_wanted(state: State, head: Head) -> bool:
    """Return whether a frame is new, may be of this epoch's chain, and there is room for it."""
    if head.hash in state.tree.heads or head.epoch != state.epoch:
        return False
    if head.shard != state.scope.shard or head.author != state.electorate.leader(head.view):
        return False
    if not state.final.height < head.seq <= state.final.height + HEADS_MAX:
        return False
    if len(state.tree) >= HEADS_MAX:
        return False
    return state.view_bytes.get(head.view, 0) + head.payload_len <= VIEW_BYTES_MAX


def hold(state: State, frame: Frame) -> bool:
    """Keep a frame if its author signed it and it can be read; return whether it was kept."""
    head = frame.head
    if not state.verify(head.author, head.signature, head.signed_message):
        return False
    if head.kind == Kind.CONFIG:
        try:
            state.configs[head.hash] = decode_config(frame.payload)
        except FrameCorrupt:
            return False
    state.view_bytes[head.view] = state.view_bytes.get(head.view, 0) + head.payload_len
    state.tree.add(head)
    state.frames.append(frame)
    if state.tracer is not None:
        state.tracer.frame(state.epoch, state.view, head)
    return True


def ask_missing(state: State, now: Instant) -> None:
    """Ask the leader for the frames of the highest proposal with holes."""
    turn = state.turn
    turn.need_at = Instant(now + state.timing.retry)
    last = turn.proposals[-1]
    height, digest = state.final.height, state.final.hash
    known = state.tree.heads.get(last.prev_hash)
    if known is not None and known.hash in state.tree.linked:
        height, digest = known.seq, known.hash
    reached = state.tree.reach(digest)
    if reached is not None:
        height, digest = reached.seq, reached.hash
    message = Need(epoch=state.epoch, view=state.view, above_height=height, above_hash=digest)
    state.send((state.leader,), message)


def is_lacking(state: State) -> bool:
    """Return whether the highest proposal has holes."""
    proposals = state.turn.proposals
    return bool(proposals) and proposals[-1].end_hash not in state.tree.linked


# Final history.


def poll(state: State, now: Instant) -> None:
    """Ask the next peer for what is final, if it is time to."""
    if now < state.sync_at or (state.is_voter and state.goal is None):
        return
    is_behind = state.goal is not None
    timing = state.timing
    state.sync_at = Instant(now + (timing.retry if is_behind else timing.learner_poll))
    ask(state)


def ask(state: State) -> None:
    """Ask the next peer for what is final."""
    if state.others:
        state.sync_turn += 1
        peer = state.others[state.sync_turn % len(state.others)]
        state.send((peer,), SyncRequest(epoch=state.epoch, above_height=state.final.height))


def on_sync_request(
    state: State, sender: PublicKeyBytes, message: SyncRequest, now: Instant
) -> None:
    """Serve final history; remember who is no voter and wants to hear more."""
    if sender not in state.electorate.journals:
        if sender not in state.reported and len(state.reported) >= LEARNERS_MAX:
            oldest = min(state.reported, key=lambda key: state.reported[key].at)
            del state.reported[oldest]
        state.reported[sender] = Reported(height=message.above_height, at=now)
    if state.final.height > message.above_height:
        state.effects.append(ServeFinal(to=sender, above_height=message.above_height))


def on_certified_learner(
    state: State, sender: PublicKeyBytes, message: Certified, now: Instant
) -> None:
    """Take in what is final, as a node that is no voter, and say how far it has come."""
    finality.accept(state, message.certificate, now)
    state.send((sender,), SyncRequest(epoch=state.epoch, above_height=state.final.height))


def on_other_epoch(state: State, sender: PublicKeyBytes, message: Message, now: Instant) -> None:
    """Bring a peer of an older epoch into this one, and follow one of a newer epoch there.

    Whatever the message says is of no use to the other epoch: votes of one never count in another.
    """
    answered = state.answered.get(sender)
    if answered is not None and now < answered + state.timing.retry:
        return
    state.answered[sender] = now
    while len(state.answered) > LEARNERS_MAX:
        del state.answered[next(iter(state.answered))]
    if message.epoch > state.epoch:
        state.send((sender,), SyncRequest(epoch=state.epoch, above_height=state.final.height))
    else:
        above = Seq(max(state.genesis.height - 1, 0))
        state.effects.append(ServeFinal(to=sender, above_height=above))


def on_final(state: State, event: FinalReceived, now: Instant) -> None:
    """Take in a piece of final history of this epoch."""
    frames = [one for one in event.frames if one.head.seq > state.final.height]
    if not frames:
        return
    if frames[0].head.seq > state.final.height + 1 or frames[-1].head.epoch > state.epoch:
        if now >= state.sync_at:
            state.sync_at = Instant(now + state.timing.retry)
            ask(state)
        return
    mark = certified_end(state, frames, event.certificate)
    if mark is None or not is_whole(state, frames):
        return
    for frame in frames:
        if frame.head.hash not in state.tree.heads and not hold(state, frame):
            return
    assert mark.hash in state.tree.linked, "a whole piece that is not linked"
    finality.finalize(state, mark, event.certificate, now)
    if not state.is_voter or state.goal is not None:
        # There may be more where this came from.
        state.sync_at = now
        poll(state, now)


def certified_end(
    state: State, frames: list[Frame], certificate: Certificate | None
) -> Mark | None:
    """Return what the piece makes final, or None when nothing proves it."""
    last = frames[-1].head
    if last.is_partial:
        # A run is final whole or not at all, wherever a peer cuts what it sends (P22).
        return None
    if certificate is None:
        sole = state.electorate.keys[0]
        is_proven = state.electorate.count == 1 and all(one.head.author == sole for one in frames)
        return Mark(last.view, last.seq, last.hash) if is_proven else None
    mark = mark_of(certificate)
    if (mark.height, mark.hash) != (last.seq, last.hash):
        return None
    if not finality.is_proven(state, certificate):
        return None
    return mark


def is_whole(state: State, frames: list[Frame]) -> bool:
    """Return whether the frames follow one another from what is final, in this epoch."""
    before = state.tree.heads.get(state.final.hash)
    if frames[0].head.prev_hash != state.final.hash:
        return False
    for frame in frames:
        head = frame.head
        if head.epoch != state.epoch or head.shard != state.scope.shard:
            return False
        if before is not None:
            if head.prev_hash != before.hash or not may_follow(before, head):
                return False
            if before.kind == Kind.CONFIG and before.hash != state.genesis.hash:
                return False
        before = head
    return True
