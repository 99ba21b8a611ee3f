"""One shard's replica: takes events, returns effects. Nothing is decided here, only passed on.

Theory of operation
===================

A step passes its event to the room that it concerns, lets every room go on with what has become
possible, and returns the effects in their order (`engine.state.State.collect`). What the rooms do,
and why it is safe, stands in docs/protocol.md and at the top of each:

========================  ======================================================================
`engine.proposing`        the leader: where a view starts, what is sealed, asking for votes
`engine.voting`           everybody: what to vote for, counting votes, locks
`engine.finality`         what a certificate makes final, and what lost against it
`engine.elections`        silence, wishes, promises
`engine.views`            coming into a view; `engine.justification`: where it may start
`engine.membership`       CONFIG and transfer; `engine.configuration`: which CONFIG may follow
`engine.catchup`          frames by hash, final history
`engine.reads`            how far a read must wait
========================  ======================================================================

One voter is the same protocol with a quorum of one: nothing is signed but the frames, and what is
captured is final in the same step.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, assert_never

from basenet.engine import (
    catchup,
    elections,
    finality,
    membership,
    proposing,
    reads,
    views,
    voting,
)
from basenet.engine.ballot import FIRST_VIEW, Ballot
from basenet.engine.effects import Effect
from basenet.engine.events import (
    Applied,
    ConfigWanted,
    Event,
    FinalReceived,
    FrameCaptured,
    FramesCaptured,
    FramesReceived,
    Instant,
    Judged,
    PeerLost,
    ReadWanted,
    Received,
    SurveyWanted,
    Ticked,
    TransferWanted,
)
from basenet.engine.limits import Timing
from basenet.engine.liveness import Liveness, Member
from basenet.engine.quorum import mark_of
from basenet.engine.state import LONG_AGO, Draw, State
from basenet.engine.trace import Trace, Tracer
from basenet.engine.tree import Place, Tree
from basenet.units import FrameHash, LocalNumber, PublicKeyBytes, Seq, TimestampNs
from basenet.wire.certificate import Verify
from basenet.wire.frame import Head, Kind
from basenet.wire.message import (
    Certified,
    Mark,
    Need,
    NewView,
    Propose,
    Pull,
    ReadIndex,
    ReadIndexRequest,
    Refuse,
    Release,
    SyncRequest,
    Vote,
    Wish,
)
from basenet.wire.payload import ConfigPayload, Voter
from basenet.wire.signature import AnySigner
from basenet.wire.tuples import Scope

_PUBLIC: Final = (SyncRequest, ReadIndexRequest, Certified)
"""What a node that is no voter may say or be told; everything else needs a voter."""


class Replica:
    """Steps one shard's state by events.

    ``heads``: all that are held from the final frame (its own head, if any) upwards; those above it
    that are of another epoch do not count.
    ``configs``: the content of every CONFIG frame among them. ``database``: the place that the
    SQLite file holds, at or above ``ballot.final`` in this tree, or below it on the final chain
    (`engine.adoption.NOWHERE` while a state is being mended into it).
    ``draw``: chance, for an inclusive range. A new replica must be given `boot` before any event.
    """

    __slots__ = ("_state", "wake_at")

    def __init__(
        self,
        *,
        scope: Scope,
        me: Member,
        signer: AnySigner,
        verify: Verify,
        ballot: Ballot,
        heads: Iterable[Head],
        database: tuple[Seq, FrameHash],
        local_last: LocalNumber,
        liveness: Liveness,
        timing: Timing,
        now: Instant,
        draw: Draw,
        configs: Mapping[FrameHash, ConfigPayload] | None = None,
        trace: Trace | None = None,
    ) -> None:
        final, epoch = ballot.final, ballot.epoch
        # What an epoch left above the CONFIG that ended it is dead, and must not be linked there.
        held = [head for head in heads if head.seq <= final.height or head.epoch == epoch]
        tree = Tree((final.height, final.hash), held)
        known = configs or {}
        assert all(
            head.hash in known or head.kind != Kind.CONFIG or head.seq <= final.height
            for head in tree.heads.values()
        ), "a CONFIG frame without its content: pass it in `configs`"
        self._state = State(
            scope=scope,
            me=me,
            signer=signer,
            verify=verify,
            liveness=liveness,
            timing=timing,
            draw=draw,
            tracer=None if trace is None else Tracer(trace, me[0]),
            ballot=ballot,
            tree=tree,
            configs=known,
            database=database,
            local_last=local_last,
            now=now,
        )
        self.wake_at: Instant | None = now
        restore_chain(self._state)

    # What happens.

    def boot(self, now: Instant) -> list[Effect]:
        """Go on from the ballot; to be called once, before the first event."""
        state = self._state
        # The lane may have served another replica of this shard before, in another view.
        state.liveness.unlead(state.lineage, now)
        state.liveness.refuse(state.lineage, now)
        if state.tracer is not None:
            state.tracer.restart(state.epoch, state.view, state.voted, state.prepared, state.final)
        finality.reconcile(state, now)
        if state.is_voted_here:
            if state.is_leader:
                proposing.resume(state, now)
            else:
                state.turn.is_established = True
        elif state.view > FIRST_VIEW:
            state.turn.new_view_at = now
        return self._end(now)

    def step(self, event: Event, now: Instant) -> list[Effect]:  # noqa: C901, PLR0912 (dispatch)
        """Take in one event and return what must now be done, in order."""
        state = self._state
        match event:
            case Received():
                self._on_received(event, now)
            case FramesReceived():
                catchup.on_frames(state, event, now)
            case Judged():
                voting.on_judged(state, event, now)
            case Applied():
                on_applied(state, event)
            case Ticked():
                elections.on_tick(state, now)
            case FramesCaptured():
                proposing.capture(state, event.frames, now)
            case FrameCaptured():
                proposing.capture(state, (event,), now)
            case FinalReceived():
                catchup.on_final(state, event, now)
            case ReadWanted():
                reads.on_read_wanted(state, event, now)
            case ConfigWanted():
                membership.on_config_wanted(state, event, now)
            case TransferWanted():
                membership.on_transfer_wanted(state, event, now)
            case SurveyWanted():
                membership.on_survey_wanted(state, now)
            case PeerLost():
                state.lost.add(event.peer)
            case _:
                assert_never(event)
        return self._end(now)

    def _on_received(self, event: Received, now: Instant) -> None:
        """Pass a message on, if its sender may say it and it is of this epoch."""
        state, message = self._state, event.message
        if event.lineage != state.lineage:
            return
        sender = event.sender
        state.lost.discard(sender)
        if type(message) is SyncRequest:
            catchup.on_sync_request(state, sender, message, now)
            return
        if message.epoch != state.epoch:
            catchup.on_other_epoch(state, sender, message, now)
            return
        is_voter = state.electorate.is_voter(sender, event.journal_id)
        if is_voter or isinstance(message, _PUBLIC):
            _HANDLERS[type(message)](state, sender, message, now)

    def _end(self, now: Instant) -> list[Effect]:
        """Let every room go on, and return what the step has gathered."""
        state = self._state
        settle(state, now)
        self.wake_at = wake_at(state, now)
        return state.collect()

    # What it says of itself.

    def can_seal(self, now: Instant) -> bool:  # noqa: ARG002 (part of the contract)
        """Return whether captured commits can be framed; until then they wait with the driver."""
        return proposing.can_seal(self._state)

    def is_writable(self, now: Instant) -> bool:
        """Return whether the application may write."""
        return now < self.writable_until(now)

    def writable_until(self, now: Instant) -> Instant:
        """Return until when the application may write; the past when it may not."""
        state = self._state
        if (
            not state.is_leading
            or state.turn.is_quiet
            or not state.is_final_in_view
            or state.database != state.tree.tip
            or state.is_config_pending
            or (state.wanted is not None and state.wanted.target is not None)
        ):
            return LONG_AGO
        return state.liveness.lease_until(state.lineage, now)

    def clamp(self, timestamp_ns: TimestampNs) -> TimestampNs:
        """Return the timestamp of the next frame: never at or before the tip's (P33)."""
        return proposing.clamp(self._state, timestamp_ns)

    @property
    def is_run_open(self) -> bool:
        """Whether the tip is a PARTIAL, whose run only further frames can end."""
        return proposing.is_run_open(self._state)

    @property
    def ballot(self) -> Ballot:
        """The durable state as it is now."""
        return self._state.ballot()

    @property
    def final(self) -> Mark:
        """The highest final place, and the view that made it final."""
        return self._state.final

    @property
    def tip(self) -> Head:
        """The end of the chain that this node follows; its head must be among those given."""
        tree = self._state.tree
        return tree.heads[tree.tip[1]]

    @property
    def place(self) -> Place:
        """Where the chain ends that this node follows."""
        return Place(*self._state.tree.tip)

    @property
    def database(self) -> Place:
        """What the database holds, as far as this replica was told."""
        return Place(*self._state.database)

    @property
    def leader(self) -> PublicKeyBytes:
        """Who leads the present view."""
        return self._state.leader

    @property
    def is_leader(self) -> bool:
        """Whether this node leads and has begun to."""
        return self._state.is_leading

    @property
    def is_voter(self) -> bool:
        """Whether this node votes in the present epoch."""
        return self._state.is_voter

    def is_open(self, now: Instant) -> bool:
        """Return whether this node leads and could propose a CONFIG or hand over."""
        return membership.is_open(self._state, now)

    def is_caught_up(self, voter: Voter, now: Instant) -> bool:
        """Return whether a voter-to-be was heard of lately and is close to what is final (Q5)."""
        return membership.is_caught_up(self._state, voter, now)

    @property
    def learners(self) -> Mapping[PublicKeyBytes, Seq]:
        """How far the nodes that are no voters and asked this one said that they are."""
        return {key: one.height for key, one in self._state.reported.items()}

    @property
    def local_last(self) -> LocalNumber:
        """The last commit of this node's application that is in a frame."""
        return self._state.local_last


def restore_chain(state: State) -> None:
    """Follow what I voted for if it extends what is final, else what is final (mistake 1)."""
    tree, voted = state.tree, state.voted
    if voted is not None and voted.height > state.final.height and voted.hash in tree.linked:
        tree.follow(voted.hash)
        # I judged it before I voted for it.
        state.judged.update(head.hash for head in tree.path(voted.hash))
    # A run that I had begun goes on, if the view does.
    height, digest = state.database
    if height > tree.tip[0] and digest in tree.linked and state.is_leader:
        above = tree.path(digest, tree.tip[0])
        is_mine = all(
            one.author == state.key and one.view == state.view and one.flags for one in above
        )
        if above[0].prev_hash == tree.tip[1] and is_mine:
            tree.follow(digest)
            state.judged.update(head.hash for head in above)


def on_applied(state: State, event: Applied) -> None:
    """Note what the database holds."""
    height, tree = event.seq, state.tree
    if height < state.database[0] and tree.is_on_chain(*state.database):
        # It was applied before I sealed what the database holds now.
        return
    digest = tree.chain.get(height)
    # Below the final frame only one chain exists, so the height alone says it all.
    state.database = (height, FrameHash(b"") if digest is None else digest)


def settle(state: State, now: Instant) -> None:
    """Let every room go on with what has become possible."""
    goal = state.goal
    if goal is not None and goal.hash in state.tree.linked:
        finality.finalize(state, mark_of(goal), goal, now)
    if state.reads:
        reads.settle(state, now)
    if not state.is_voter:
        return
    turn = state.turn
    if turn.proposals and turn.judging is None:
        voting.consider(state, now)
    if state.wishes:
        elections.check_wishes(state, now)
    if not state.turn.is_established and elections.is_new_view_due(state, now):
        elections.send_new_view(state, now)
    if state.wanted is not None:
        membership.settle(state, state.wanted, now)
    turn = state.turn
    if not turn.is_established:
        proposing.try_start(state, now)
    elif not (turn.is_following or state.is_leader):
        views.follow(state, now)


def wake_at(state: State, now: Instant) -> Instant | None:
    """Return when something is due; None when nothing is, however long nothing happens."""
    times: list[Instant] = []
    for read in state.reads.values():
        times += (read.until, read.again_at)
    if not state.is_voter:
        times.append(state.sync_at)
        return min(times)
    if state.electorate.count == 1:
        times += [] if state.wanted is None else [state.wanted.until]
        return min(times, default=None)
    if state.goal is not None:
        times.append(state.sync_at)
    if state.is_leading and not state.turn.is_quiet:
        elections.add_leader_times(state, now, times)
    else:
        elections.add_follower_times(state, now, times)
    return min(times) if times else None


def _on_certified(state: State, sender: PublicKeyBytes, message: Certified, now: Instant) -> None:
    if state.is_voter:
        voting.on_certified(state, sender, message, now)
    else:
        catchup.on_certified_learner(state, sender, message, now)


def _on_need(state: State, sender: PublicKeyBytes, message: Need, now: Instant) -> None:  # noqa: ARG001
    proposing.on_need(state, sender, message)


def _on_pull(state: State, sender: PublicKeyBytes, message: Pull, now: Instant) -> None:  # noqa: ARG001
    proposing.on_pull(state, sender, message)


def _on_refuse(state: State, sender: PublicKeyBytes, message: Refuse, now: Instant) -> None:  # noqa: ARG001
    elections.on_refuse(state, sender, message)


def _on_read_index(
    state: State,
    sender: PublicKeyBytes,
    message: ReadIndex,
    now: Instant,  # noqa: ARG001
) -> None:
    reads.on_answer(state, sender, message)


_HANDLERS: Final[dict[type, Callable[..., None]]] = {
    Propose: voting.on_propose,
    Vote: voting.on_vote,
    Certified: _on_certified,
    NewView: elections.on_new_view,
    Wish: elections.on_wish,
    Release: membership.on_release,
    Refuse: _on_refuse,
    Need: _on_need,
    Pull: _on_pull,
    ReadIndexRequest: reads.on_request,
    ReadIndex: _on_read_index,
}
