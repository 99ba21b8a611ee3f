"""Changing who votes, and who leads: CONFIG and transfer.

Theory of operation
===================

A CONFIG is a frame like any other and becomes final under the old voters and the old fault model;
nothing is proposed above it before that, and with it the epoch ends. Each epoch is a fresh instance
that starts from a final frame, so any change is safe; whether it is *wise* is asked here: a quorum
of the new voters must be connected and caught up, or the new epoch could not begin (Q5).

A transfer hands the lead over without an election's wait. The leader lets everything become final,
leaves its view for good (persisted, so that it can never lead it again, not even after a restart),
and only then tells the others that its lease is over; they need not keep their promises.
"""

from basenet.engine import elections, proposing, views
from basenet.engine.configuration import contradiction
from basenet.engine.effects import SendFrames
from basenet.engine.events import ConfigWanted, Instant, TransferWanted
from basenet.engine.limits import WINDOW_FRAMES
from basenet.engine.quorum import Electorate
from basenet.engine.state import State, Wanted
from basenet.units import LocalNumber, PublicKeyBytes, Seq, View
from basenet.wire.certificate import COMMIT
from basenet.wire.frame import Flag, Kind, seal
from basenet.wire.message import Certified, Release
from basenet.wire.payload import ConfigPayload, Voter, encode_config
from basenet.wire.quorum import quorum_size


def is_open(state: State, now: Instant) -> bool:
    """Return whether this node leads with a valid lease, a view that made something final."""
    return (
        state.is_leading
        and not state.turn.is_quiet
        and state.is_final_in_view
        and not state.is_config_pending
        and now < state.liveness.lease_until(state.lineage, now)
    )


# CONFIG.


def on_config_wanted(state: State, event: ConfigWanted, now: Instant) -> None:
    """Remember a CONFIG that the operator wants, if it may follow the present one."""
    problem = contradiction(state.config, event.config, state.key)
    if problem is None and not is_open(state, now):
        problem = "this node does not lead"
    if problem is None and state.wanted is not None:
        problem = "another change is under way"
    if problem is not None:
        state.report(f"the CONFIG is refused: {problem}")
        return
    state.wanted = Wanted(config=event, until=Instant(now + state.timing.patience))
    if not is_ready(state, event, now):
        # Whoever is there answers with its vote, or with how far it has come.
        state.turn.voted_by.clear()
        proposing.repeat(state, now)
        ask_newcomers(state, event.config)


def ask_newcomers(state: State, config: ConfigPayload) -> None:
    """Show the nodes that are no voters yet what is final; they answer how far they are."""
    certificate = state.certificate
    if certificate is not None:
        known = state.electorate.journals
        newcomers = tuple(one.key for one in config.voters if one.key not in known)
        state.send(newcomers, Certified(epoch=state.epoch, certificate=certificate))


def is_ready(state: State, event: ConfigWanted, now: Instant) -> bool:
    """Return whether a quorum of the new voters is connected and caught up (Q5)."""
    voters = event.config.voters
    ready = sum(is_caught_up(state, voter, now) for voter in voters)
    return ready >= quorum_size(len(voters), event.config.fault_model)


def is_caught_up(state: State, voter: Voter, now: Instant) -> bool:
    """Return whether a voter-to-be was heard of lately and is close to what is final."""
    if voter.journal_id == state.me[1]:
        return True
    key, floor = voter.key, state.final.height - WINDOW_FRAMES
    if key in state.lost:
        return False
    vote = state.turn.voted_by.get((COMMIT, key))
    if vote is not None and state.electorate.is_voter(key, voter.journal_id):
        return vote.height >= floor
    report = state.reported.get(key)
    freshness = state.timing.learner_poll + state.timing.patience
    return report is not None and report.height >= floor and now < report.at + freshness


def try_config(state: State, wanted: Wanted, event: ConfigWanted, now: Instant) -> None:
    """Propose the CONFIG if it is time to."""
    if now >= wanted.until or not is_open(state, now):
        state.wanted = None
        state.report("the CONFIG is refused: no quorum of its voters is connected and caught up")
        return
    if state.database != state.tree.tip or proposing.is_run_open(state):
        return
    if is_ready(state, event, now):
        state.wanted = None
        seal_config(state, event, now)


def seal_config(state: State, event: ConfigWanted, now: Instant) -> None:
    """Seal a CONFIG onto the tip and propose it."""
    height, digest = state.tree.tip
    tip = state.tree.heads.get(digest)
    frame = seal(
        shard=state.scope.shard,
        seq=Seq(height + 1),
        timestamp_ns=proposing.clamp(state, event.timestamp_ns),
        salt=event.salt,
        payload=encode_config(event.config),
        kind=Kind.CONFIG,
        flags=Flag.NONE,
        epoch=state.epoch,
        view=state.view,
        prev_hash=digest,
        state_root=event.state_root if tip is None else tip.state_root,
        signer=state.signer,
    )
    state.configs[frame.head.hash] = event.config
    first = LocalNumber(state.local_last + 1)
    proposing.keep_own(state, frame, first, state.local_last)
    if state.others:
        state.effects.append(SendFrames(to=state.others, heads=(frame.head,)))
    proposing.propose(state, height, digest, now)


# Transfer.


def on_transfer_wanted(state: State, event: TransferWanted, now: Instant) -> None:
    """Remember to hand over, if this node leads and the target votes."""
    if not is_open(state, now) or event.target not in state.others:
        state.report("the transfer is refused: this node does not lead, or the target cannot")
        return
    if state.wanted is not None:
        state.report("the transfer is refused: another change is under way")
        return
    state.wanted = Wanted(target=event.target, until=Instant(now + state.timing.patience))


def on_survey_wanted(state: State, now: Instant) -> None:
    """Ask for the votes that are unknown here: a leader that began again has heard none.

    They answer with the vote that they gave; on a shard where nothing happens nobody else asks.
    """
    if not state.is_leading:
        return
    for key in state.lost:
        state.turn.voted_by.pop((COMMIT, key), None)
    proposing.repeat(state, now)


def try_transfer(state: State, wanted: Wanted, target: PublicKeyBytes, now: Instant) -> None:
    """Hand over if everything is final; nothing is sealed meanwhile."""
    if now >= wanted.until or not state.is_leading:
        state.wanted = None
        state.report("the transfer is given up: not everything became final in time")
        return
    if state.tree.tip[0] == state.final.height and state.is_final_in_view:
        hand_over(state, target, now)


def hand_over(state: State, target: PublicKeyBytes, now: Instant) -> None:
    """Leave this view for the next one that ``target`` leads, then release the others."""
    old = state.view
    view = target_view(state.electorate, old, target)
    views.enter(state, view, now, is_silent=True)
    state.turn.new_view_at = now
    message = Release(
        epoch=state.epoch,
        view=old,
        target=view,
        signature=state.sign(state.scope.release(state.epoch, old, view)),
    )
    state.send(state.others, message)


def target_view(electorate: Electorate, view: View, target: PublicKeyBytes) -> View:
    """Return the first view after ``view`` that ``target`` leads."""
    return next(
        View(later)
        for later in range(view + 1, view + electorate.count + 1)
        if electorate.leader(later) == target
    )


def on_release(state: State, sender: PublicKeyBytes, message: Release, now: Instant) -> None:
    """Forget the promise to a leader that gave its lease back; wish for the view it names."""
    if message.view != state.view or sender != state.leader:
        return
    if not state.view < message.target <= state.view + state.electorate.count:
        return
    data = state.scope.release(message.epoch, message.view, message.target)
    if not state.verify(sender, message.signature, data):
        return
    state.liveness.release(state.lineage)
    state.wishes[sender] = (message.target, now)
    elections.wish(state, message.target, now)


def settle(state: State, wanted: Wanted, now: Instant) -> None:
    """Go on with what is wanted."""
    if wanted.config is not None:
        try_config(state, wanted, wanted.config, now)
    if wanted.target is not None:
        try_transfer(state, wanted, wanted.target, now)
