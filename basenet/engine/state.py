"""What a shard's replica knows between two events, and the effects that a step has gathered.

Three kinds of knowledge, by what a crash does to them:

*The ballot* (`engine.ballot`) is durable. Its fields live here one by one; whoever changes one says
so with ``is_dirty``, and the step then ends with one `Persist` in front of all that depends on it.

*The turn* is what is known of the present view, and is forgotten with it.

*The rest* is volatile: what a peer said, when to try again.

The tree holds heads only. Payloads stay in the journal, but for CONFIGs, which are decoded here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from basenet.engine.ballot import FIRST_VIEW, GENESIS_VIEW, Ballot
from basenet.engine.effects import Effect, Orphan, OwnFrame, Persist, Report, Send
from basenet.engine.events import ConfigWanted, Instant
from basenet.engine.evidence import Evidence
from basenet.engine.limits import Timing
from basenet.engine.liveness import Liveness, Member
from basenet.engine.quorum import Electorate
from basenet.engine.trace import Tracer
from basenet.engine.tree import Tree
from basenet.units import Epoch, FrameHash, LocalNumber, PublicKeyBytes, Seq, View
from basenet.wire.certificate import Certificate, Verify
from basenet.wire.frame import Frame, Head, Kind
from basenet.wire.message import (
    Mark,
    Message,
    NewView,
    Propose,
    Refuse,
    Vote,
)
from basenet.wire.payload import ConfigPayload
from basenet.wire.signature import AnySigner
from basenet.wire.tuples import Scope

NEVER: Final = Instant(2**63 - 1)
LONG_AGO: Final = Instant(0)
FIRST_SEQ: Final = Seq(0)

Draw = Callable[[int, int], int]
"""Chance: a number of an inclusive range."""

Slot = tuple[int, Seq, FrameHash]
"""What votes are counted for: phase, height, hash."""


@dataclass(slots=True, kw_only=True)
class Turn:
    """What is known of the present view and forgotten with it.

    ``is_established``: its leader has begun and I voted (or I am that leader). ``start_height``: of
    the leader's first proposal; a FINAL at or above it opens the view. ``is_quiet``: I led and no
    quorum answered. ``proposals``: ascending, not voted on yet. ``judging``: the end of the frames
    that the driver judges, since ``judging_at``. ``tallies``: the votes counted. ``voted_by``: the
    last height of each voter's vote, by phase. ``accepted``: the last proposal voted on, for
    evidence. ``suffix``: what I had un-final when I was deposed (Q15). Times: when to do a thing
    again; 0: not wanted.
    """

    entered_at: Instant
    timeout: int
    is_established: bool = False
    is_following: bool = False
    is_quiet: bool = False
    is_spoiled: bool = False
    start_height: Seq = FIRST_SEQ
    proposals: list[Propose] = field(default_factory=list)
    judging: FrameHash | None = None
    judging_at: Instant = LONG_AGO
    tallies: dict[Slot, dict[PublicKeyBytes, bytes]] = field(default_factory=dict)
    voted_by: dict[tuple[int, PublicKeyBytes], Vote] = field(default_factory=dict)
    accepted: Propose | None = None
    suffix: tuple[Head, ...] = ()
    progress_at: Instant
    bytes_until: Instant
    need_at: Instant = LONG_AGO
    resend_at: Instant = LONG_AGO
    new_view_at: Instant = LONG_AGO
    patience_until: Instant = LONG_AGO
    pull_at: Instant = LONG_AGO


@dataclass(slots=True, kw_only=True)
class Reported:
    """How far a peer said that it has come, and when."""

    height: Seq
    at: Instant


@dataclass(slots=True, kw_only=True)
class Wanted:
    """A CONFIG or a transfer that waits until it may happen, at most until ``until``."""

    config: ConfigWanted | None = None
    target: PublicKeyBytes | None = None
    until: Instant


@dataclass(slots=True, kw_only=True)
class Read:
    """A read that waits: answers of peers, and when to ask again and to give up."""

    nonce: bytes
    view: View
    until: Instant
    again_at: Instant
    heights: dict[PublicKeyBytes, Seq] = field(default_factory=dict)


class State:
    """One shard's replica, between two events.

    ``database``: the frame that the application's database stands at. ``judged``: un-final frames
    whose roots are right. ``configs``: the content of the CONFIG frames in the tree. ``exposed``:
    since the last `Orphan` the application may have committed what the chain does not know.
    ``has_lost``: since the last capture an `Orphan` may have taken commits that waited.
    """

    def __init__(
        self,
        *,
        scope: Scope,
        me: Member,
        signer: AnySigner,
        verify: Verify,
        liveness: Liveness,
        timing: Timing,
        draw: Draw,
        tracer: Tracer | None,
        ballot: Ballot,
        tree: Tree,
        configs: Mapping[FrameHash, ConfigPayload],
        database: tuple[Seq, FrameHash],
        local_last: LocalNumber,
        now: Instant,
    ) -> None:
        self.scope = scope
        self.lineage = scope.lineage
        self.me = me
        self.key = me[0]
        self.signer = signer
        self.verify = verify
        self.liveness = liveness
        self.timing = timing
        self.draw = draw
        self.tracer = tracer

        self.is_dirty = False
        self.voted = ballot.voted
        self.vstart = ballot.vstart
        self.anchor = ballot.anchor
        self.justification = ballot.justification
        self.prepared = ballot.prepared
        self.final = ballot.final
        self.certificate = ballot.certificate
        self.refused = {one.hash: one for one in ballot.refused}
        self.begin_electorate(ballot.config, ballot.epoch, ballot.genesis)
        self.set_view(ballot.view)

        self.tree = tree
        self.configs = dict(configs)
        self.judged: set[FrameHash] = set()
        self.view_bytes: dict[View, int] = {}
        self.database = database
        self.local_last = local_last
        self.exposed = True
        self.has_lost = False

        self.heard_at = now
        self.failures = 0
        self.turn = self.new_turn(now)
        self.wishes: dict[PublicKeyBytes, tuple[View, Instant]] = {}
        self.wish_at = LONG_AGO
        self.new_views: dict[PublicKeyBytes, NewView] = {}
        self.refusals: dict[FrameHash, dict[PublicKeyBytes, Refuse]] = {
            digest: {self.key: one} for digest, one in self.refused.items()
        }
        self.evidence = Evidence()
        self.lost: set[PublicKeyBytes] = set()
        self.goal: Certificate | None = None
        self.sync_at = LONG_AGO
        self.sync_turn = 0
        self.answered: dict[PublicKeyBytes, Instant] = {}
        self.reported: dict[PublicKeyBytes, Reported] = {}
        self.wanted: Wanted | None = None
        self.reads: dict[bytes, Read] = {}

        self.orphans: list[Orphan] = []
        self.own: list[OwnFrame] = []
        self.frames: list[Frame] = []
        self.effects: list[Effect] = []

    def begin_electorate(self, config: ConfigPayload, epoch: Epoch, genesis: Mark) -> None:
        """Take in who votes from now."""
        self.config = config
        self.epoch = epoch
        self.genesis = genesis
        self.electorate = Electorate(config)
        self.is_voter = self.electorate.is_voter(*self.me)
        self.others = tuple(key for key in self.electorate.keys if key != self.key)

    def set_view(self, view: View) -> None:
        """Be in ``view``. Who leads it is asked in every step, so it is worked out only here."""
        self.view = view
        self.leader = self.electorate.leader(view)
        self.is_leader = self.is_voter and self.leader == self.key

    def begin_epoch(self, config: ConfigPayload, now: Instant) -> None:
        """Start the epoch that the final frame, a CONFIG, begins: nothing of the old one counts.

        Promises of the lane of heartbeats stay: they are per lineage (cluster rules, 27).
        """
        genesis = Mark(GENESIS_VIEW, self.final.height, self.final.hash)
        self.begin_electorate(config, Epoch(self.epoch + 1), genesis)
        self.is_dirty = True
        self.set_view(FIRST_VIEW)
        self.voted = None
        self.vstart = None
        self.anchor = None
        self.justification = None
        self.prepared = None
        self.final = genesis
        self.refused = {}
        self.tree.cut()
        self.configs = {}
        self.judged = set()
        self.view_bytes = {}
        self.heard_at = now
        self.failures = 0
        self.turn = self.new_turn(now)
        self.wishes = {}
        self.wish_at = LONG_AGO
        self.new_views = {}
        self.refusals = {}
        self.evidence = Evidence()
        self.lost = set()
        self.goal = None
        self.answered = {}
        self.wanted = None

    def new_turn(self, now: Instant) -> Turn:
        """Return what is known of a view that begins now."""
        timing = self.timing
        return Turn(
            entered_at=now,
            timeout=self.draw(timing.election_min, timing.election_max),
            progress_at=now,
            bytes_until=Instant(now + timing.run_progress),
        )

    # What follows from it.

    @property
    def is_leading(self) -> bool:
        """Whether I lead and have begun to."""
        return self.is_leader and self.turn.is_established

    @property
    def is_final_in_view(self) -> bool:
        """Whether the present view has made something final at or above its start."""
        return self.final.view == self.view and self.final.height >= self.turn.start_height

    @property
    def is_config_pending(self) -> bool:
        """Whether a CONFIG on the chain waits for finality: nothing may follow it."""
        tip = self.tree.heads.get(self.tree.tip[1])
        is_above = self.tree.tip[0] > self.final.height
        return is_above and tip is not None and tip.kind == Kind.CONFIG

    @property
    def is_voted_here(self) -> bool:
        """Whether I have voted in the present view."""
        return self.voted is not None and self.voted.view == self.view

    @property
    def is_pending(self) -> bool:
        """Whether something that I know of is not final, or this view has not made anything so."""
        turn, final = self.turn, self.final
        if turn.proposals or not turn.is_established:
            return bool(turn.proposals)
        return final.view < self.view or self.tree.tip[0] > final.height

    def sign(self, message: bytes) -> bytes:
        """Sign with this node's key."""
        return self.signer.sign(message)

    # What a step gathers.

    def send(self, to: tuple[PublicKeyBytes, ...], message: Message) -> None:
        """Send a message, after all that this step persists."""
        if to:
            self.effects.append(Send(to=to, message=message))

    def accuse(self, what: str, peer: PublicKeyBytes, *proof: Message) -> None:
        """Report what a peer did, within bounds."""
        report = self.evidence.take(what, peer, proof)
        if report is not None:
            self.effects.append(report)

    def report(self, what: str) -> None:
        """Tell the operator."""
        self.effects.append(Report(what=what, peer=None))

    def ballot(self) -> Ballot:
        """Return the durable state as it is now."""
        return Ballot(
            config=self.config,
            epoch=self.epoch,
            genesis=self.genesis,
            view=self.view,
            voted=self.voted,
            vstart=self.vstart,
            anchor=self.anchor,
            justification=self.justification,
            prepared=self.prepared,
            final=self.final,
            certificate=self.certificate,
            refused=tuple(self.refused.values()),
        )

    def collect(self) -> list[Effect]:
        """Return the effects of the step in their order: the safety argument is here.

        First what must have happened before a decision is known, then everything durable at once,
        then all that speaks of it.
        """
        effects: list[Effect] = []
        if self.orphans:
            effects += self.orphans
            self.orphans = []
        if self.is_dirty or self.own or self.frames:
            effects.append(
                Persist(
                    own=tuple(self.own),
                    frames=tuple(self.frames),
                    ballot=self.ballot() if self.is_dirty else None,
                )
            )
            self.is_dirty = False
            self.own = []
            self.frames = []
        if self.effects:
            effects += self.effects
            self.effects = []
        if self.tracer is not None:
            self.tracer.flush()
        return effects
