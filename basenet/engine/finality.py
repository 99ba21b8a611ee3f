"""Finality: what a certificate makes final here, and what lost against it.

Theory of operation
===================

A FINAL certificate speaks of one frame and of everything below it. Three things follow, in one step
and one `Persist`: the chain goes through that frame; what the application of this node committed on
another branch is an orphan; and when the frame is a CONFIG, the next epoch begins.

*Orphans.* Once something is final in (epoch, view), no frame that was first proposed in an earlier
view and is not below it can ever become final (docs/protocol.md, 6). So exactly these are orphaned:
frames on another branch, and frames above the certificate's that are of an earlier view. Everything
else that the database holds above it stays, and may still become final.

The `Orphan` stands before the `Persist` of the decision. A crash between the two leaves a node that
undid what is lost and does not know why, which is harmless; the other order would leave a database
on a branch that nobody remembers.
"""

from basenet.engine import views
from basenet.engine.effects import EpochBegan, Fence, Finalize, Orphan, ServeFinal
from basenet.engine.events import Instant
from basenet.engine.quorum import is_certified, mark_of
from basenet.engine.state import State
from basenet.units import FrameHash, Seq, View
from basenet.wire.certificate import COMMIT, Certificate
from basenet.wire.frame import Head, Kind
from basenet.wire.message import Certified, Mark


def accept(state: State, certificate: Certificate, now: Instant) -> bool:
    """Take in a FINAL certificate that somebody showed; return whether its frames are missing."""
    mark = mark_of(certificate)
    if not is_news(state, certificate) or not is_proven(state, certificate):
        return False
    has_forgotten = is_forgotten(state, mark)
    is_missing = mark.hash not in state.tree.linked
    if not is_missing:
        finalize(state, mark, certificate, now)
    elif state.goal is None or certificate.height > state.goal.height:
        state.goal = certificate
    if has_forgotten:
        state.turn.is_spoiled = True
        state.report("my own view made final what I never proposed: this journal is an old copy")
    return is_missing


def is_forgotten(state: State, mark: Mark) -> bool:
    """Return whether I lead the view that did this, and know nothing of it: I must not lead on."""
    is_mine = mark.view == state.view and state.is_leading
    return is_mine and not state.tree.is_on_chain(mark.height, mark.hash)


def is_proven(state: State, certificate: Certificate) -> bool:
    """Return whether a quorum of this epoch's voters voted COMMIT."""
    if certificate.epoch != state.epoch or certificate.phase != COMMIT:
        return False
    return is_certified(certificate, state.scope, state.electorate, state.verify)


def is_news(state: State, certificate: Certificate) -> bool:
    """Return whether the certificate says more than is known, and is of this epoch."""
    if certificate.epoch != state.epoch or certificate.phase != COMMIT:
        return False
    final = state.final
    if certificate.height == final.height:
        return certificate.view > final.view and certificate.hash == final.hash
    return certificate.height > final.height


def finalize(state: State, mark: Mark, certificate: Certificate | None, now: Instant) -> None:
    """Make the linked frame of ``mark`` final; ``certificate`` is verified, or not needed."""
    if mark == state.final:
        return
    if mark.view > state.view:
        views.enter(state, View(mark.view), now, is_silent=True)
    is_same_place = mark.height == state.final.height
    if is_same_place:
        assert mark.hash == state.final.hash, "two final frames at one height"
        heads: list[Head] = []
    else:
        heads = state.tree.path(mark.hash)
        assert heads, "finality without frames"
        assert heads[-1].hash == mark.hash, "finality of a frame that is not held"
    drop_orphans(state, mark, heads, certificate)
    steer(state, mark)
    state.final = mark
    if certificate is not None or not is_same_place:
        state.certificate = certificate
    state.is_dirty = True
    advance(state, mark, heads, certificate, now)
    if heads and heads[-1].kind == Kind.CONFIG:
        begin_epoch(state, heads[-1].hash, now)


def advance(
    state: State, mark: Mark, heads: list[Head], certificate: Certificate | None, now: Instant
) -> None:
    """Forget what is settled, tell of it, and start the clocks of progress anew."""
    if heads:
        forget(state, state.tree.advance(mark.hash))
        height, digest = state.database
        is_own = height > mark.height or (height, digest) == (mark.height, mark.hash)
        effect = Finalize(heads=tuple(heads), certificate=certificate, is_own=is_own)
        state.effects.append(effect)
        if state.reported:
            tell_learners(state, heads, certificate)
    if state.tracer is not None:
        signers = [key for key, _ in certificate.votes] if certificate is not None else [state.key]
        state.tracer.final(state.epoch, state.view, mark, signers)
    turn = state.turn
    turn.is_spoiled = False
    turn.progress_at = now
    turn.bytes_until = Instant(now + state.timing.run_progress)
    state.failures = 0
    if state.goal is not None and state.goal.height <= mark.height:
        state.goal = None


def tell_learners(state: State, heads: list[Head], certificate: Certificate | None) -> None:
    """Tell the nodes that are no voters and asked me lately; what one voter did proves itself."""
    learners = tuple(key for key in state.reported if key not in state.electorate.journals)
    if certificate is not None:
        state.send(learners, Certified(epoch=state.epoch, certificate=certificate))
        return
    above = Seq(heads[0].seq - 1)
    state.effects += [ServeFinal(to=key, above_height=above) for key in learners]


def forget(state: State, gone: list[Head]) -> None:
    """Let go of what is known of frames at or below the final one."""
    height = state.final.height
    key, sizes = state.key, state.view_bytes
    for head in gone:
        state.judged.discard(head.hash)
        if head.author != key:
            sizes[head.view] = max(sizes.get(head.view, 0) - head.payload_len, 0)
    if state.configs:
        for head in gone:
            state.configs.pop(head.hash, None)
    if state.refusals:
        state.refusals = {
            digest: voters
            for digest, voters in state.refusals.items()
            if any(one.height > height for one in voters.values())
        }
    # The promise ends when the frame became final after all: the refuser was wrong (Q8).
    if state.refused:
        state.refused = {key: one for key, one in state.refused.items() if one.height > height}
    turn = state.turn
    # What an earlier view made final is still to be made final by this one: its start is there.
    floor = height + (state.final.view == state.view)
    if turn.tallies:
        turn.tallies = {slot: votes for slot, votes in turn.tallies.items() if slot[1] >= floor}
    if turn.proposals:
        turn.proposals = [one for one in turn.proposals if one.end_height >= floor]


def steer(state: State, mark: Mark) -> None:
    """Let the chain go through ``mark`` and hold nothing above it that can never be final."""
    tree = state.tree
    if not tree.is_on_chain(mark.height, mark.hash):
        tree.follow(mark.hash)
        return
    above = tree.chain.get(mark.height + 1)
    if above is not None and tree.heads[above].view < mark.view:
        tree.follow(mark.hash)


def drop_orphans(
    state: State, mark: Mark, heads: list[Head], certificate: Certificate | None
) -> None:
    """Decide what this node's database holds that ``mark`` rules out."""
    kept = kept_place(state, mark)
    lost: tuple[Head, ...] = ()
    if kept is not None:
        lost = tuple(state.tree.path(state.database[1], kept[0]))
    elif heads and state.exposed and state.tree.root[0] <= state.database[0] < mark.height:
        # Others wrote on: what was captured here and is in no frame cannot follow any more.
        kept = state.database
    else:
        return
    # A leader may soon let its application write again, without another start.
    state.exposed = state.is_leading
    state.has_lost = True
    state.database = kept
    state.orphans.append(Orphan(heads=lost, kept_height=kept[0], certificate=certificate))


def kept_place(state: State, mark: Mark) -> tuple[Seq, FrameHash] | None:
    """Return the last place of the database that ``mark`` leaves; None when it leaves all."""
    tree = state.tree
    height, digest = state.database
    if height <= tree.root[0]:
        return None
    if tree.is_on_chain(height, digest) and tree.is_on_chain(mark.height, mark.hash):
        above = tree.chain.get(mark.height + 1) if height > mark.height else None
        if above is None or tree.heads[above].view >= mark.view:
            return None
        return mark.height, mark.hash
    winners = {mark.hash, tree.root[1]} | {head.hash for head in tree.path(mark.hash)}
    held = tree.path(digest)
    kept = tree.root
    for head in held:
        is_above = head.seq > mark.height and head.view >= mark.view and kept[0] >= mark.height
        if head.hash not in winners and not is_above:
            return kept
        kept = (head.seq, head.hash)
    return None


def begin_epoch(state: State, digest: FrameHash, now: Instant) -> None:
    """Begin the epoch of the CONFIG that became final: its voters vote from now."""
    config = state.configs[digest]
    if state.is_leading:
        state.liveness.unlead(state.lineage, now)
        if config.voters[0].key != state.key:
            state.effects.append(Fence(epoch=state.epoch, view=state.view))
    state.liveness.refuse(state.lineage, now)
    state.begin_epoch(config, now)
    state.effects.append(EpochBegan(epoch=state.epoch, config=config))
    if not state.is_voter:
        state.sync_at = Instant(now + state.timing.learner_poll)
    if state.tracer is not None:
        state.tracer.epoch(state.epoch, state.electorate.keys)


def reconcile(state: State, now: Instant) -> None:
    """Do again what a crash may have cut off: the orphans of what is final, the epoch switch."""
    final = state.final
    kept = kept_place(state, final)
    if kept is not None:
        lost = tuple(state.tree.path(state.database[1], kept[0]))
        state.database = kept
        orphan = Orphan(heads=lost, kept_height=kept[0], certificate=state.certificate)
        state.orphans.append(orphan)
    config = state.configs.get(final.hash)
    head = state.tree.heads.get(final.hash)
    if config is not None and head is not None and final.hash != state.genesis.hash:
        begin_epoch(state, final.hash, now)
