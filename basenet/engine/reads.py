"""The read index: how far a node must have applied before a read that begins now is up to date.

In the crash mode a leader with a lease knows: nobody else made anything final since. In the
Byzantine mode a leader may lie, so a quorum is asked how high each has voted COMMIT: whatever was
final before the read was asked, an honest one of them has voted for. The read then waits for the
highest answer to be final, or for anything that a later view made final.
"""

from basenet.engine.effects import ReadReady
from basenet.engine.events import Instant, ReadWanted
from basenet.engine.limits import READS_MAX
from basenet.engine.state import Read, State
from basenet.units import PublicKeyBytes, Seq
from basenet.wire.message import ReadIndex, ReadIndexRequest


def on_read_wanted(state: State, event: ReadWanted, now: Instant) -> None:
    """Answer at once, or ask."""
    if is_serving(state, now) and not state.electorate.is_byzantine:
        state.effects.append(ReadReady(nonce=event.nonce, height=state.final.height))
        return
    if len(state.reads) >= READS_MAX:
        state.effects.append(ReadReady(nonce=event.nonce, height=None))
        return
    timing = state.timing
    read = Read(
        nonce=event.nonce,
        view=state.view,
        until=Instant(now + timing.patience),
        again_at=Instant(now + timing.retry),
    )
    state.reads[event.nonce] = read
    if state.is_voter and state.electorate.is_byzantine:
        read.heights[state.key] = committed_height(state)
    ask(state, event.nonce)


def is_serving(state: State, now: Instant) -> bool:
    """Return whether this node knows by its lease that nothing newer is final anywhere."""
    if not state.is_leading or state.turn.is_quiet or not state.is_final_in_view:
        return False
    # It may be final already, and the next epoch's leader asks other voters for its lease.
    if state.is_config_pending:
        return False
    return now < state.liveness.lease_until(state.lineage, now)


def ask(state: State, nonce: bytes) -> None:
    """Ask the leader, or in the Byzantine mode everybody."""
    request = ReadIndexRequest(epoch=state.epoch, nonce=nonce)
    if state.electorate.is_byzantine or not state.is_voter:
        state.send(state.others, request)
    elif state.leader != state.key:
        state.send((state.leader,), request)


def committed_height(state: State) -> Seq:
    """Return how high this node has voted COMMIT, or knows to be final."""
    prepared = state.prepared
    final = state.final.height
    return final if prepared is None else max(final, prepared.height)


def on_request(
    state: State, sender: PublicKeyBytes, message: ReadIndexRequest, now: Instant
) -> None:
    """Answer what I know, if I know it."""
    if not state.is_voter:
        return
    if state.electorate.is_byzantine:
        height = committed_height(state)
    elif is_serving(state, now):
        height = state.final.height
    else:
        return
    data = state.scope.read_index(state.epoch, state.view, height, message.nonce)
    answer = ReadIndex(
        epoch=state.epoch,
        view=state.view,
        height=height,
        nonce=message.nonce,
        signature=state.sign(data),
    )
    state.send((sender,), answer)


def on_answer(state: State, sender: PublicKeyBytes, message: ReadIndex) -> None:
    """Take in an answer to a read of mine."""
    read = state.reads.get(message.nonce)
    if read is None:
        return
    data = state.scope.read_index(message.epoch, message.view, message.height, message.nonce)
    if not state.verify(sender, message.signature, data):
        return
    if not state.electorate.is_byzantine:
        if sender == state.electorate.leader(message.view):
            finish(state, read, message.height)
        return
    read.heights[sender] = message.height
    read.view = max(read.view, message.view)


def finish(state: State, read: Read, height: Seq | None) -> None:
    """Tell the reader."""
    del state.reads[read.nonce]
    state.effects.append(ReadReady(nonce=read.nonce, height=height))


def settle(state: State, now: Instant) -> None:
    """Finish reads that can be, ask again for the others, give up the old ones."""
    for read in list(state.reads.values()):
        final = state.final
        if now >= read.until:
            finish(state, read, None)
        elif len(read.heights) >= state.electorate.quorum and (
            final.height >= max(read.heights.values()) or final.view > read.view
        ):
            finish(state, read, final.height)
        elif now >= read.again_at:
            read.again_at = Instant(now + state.timing.retry)
            ask(state, read.nonce)
