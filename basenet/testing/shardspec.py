"""docs/specs/Shard.tla in Python: the same ballots, the same actions under the same names.

Checks recorded runs where no Java is at hand (`basenet.testing.tracecheck`). Nothing of the engine
is used here, so that a mistake there is not made again. An action that the specification does not
allow raises `NotAllowed` with the conjunct that is false; an allowed one changes the state like the
action of that name. A comment of Shard.tla holds for its namesake here.

Nodes and frames are named by any string: in recorded runs the hexadecimal key and hash.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Final, NamedTuple, TypeVar

PREPARE: Final = 1
COMMIT: Final = 2

_T = TypeVar("_T")


class NotAllowed(Exception):  # noqa: N818  (a verdict about somebody else, no error of this program)
    """A step that no action of the specification explains."""


class Mark(NamedTuple):
    """A place on a chain, and the view in which a vote or a certificate reached it."""

    view: int
    frame: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A sealed frame; ``epoch`` is 0 for the genesis. ``parent`` of the genesis is itself."""

    name: str
    parent: str
    height: int
    epoch: int
    view: int
    is_config: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Electorate:
    """Who votes in an epoch, in the order of leading, and in which mode."""

    voters: tuple[str, ...]
    is_two_phase: bool

    @property
    def quorum(self) -> int:
        """How many voters any two of which sets share one that can be trusted."""
        size = len(self.voters)
        return (size + (size - 1) // 3) // 2 + 1 if self.is_two_phase else size // 2 + 1

    @property
    def first_phase(self) -> int:
        """The phase of the votes for proposals."""
        return PREPARE if self.is_two_phase else COMMIT

    def leader(self, view: int) -> str:
        """Return who leads a view."""
        return self.voters[view % len(self.voters)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """The durable facts of a node."""

    epoch: int
    genesis: str
    view: int = 0
    voted: Mark | None = None
    vstart: int = -1
    anchor: Mark | None = None
    prepared: Mark | None = None
    final: Mark

    @property
    def has_voted(self) -> bool:
        """Whether the node has voted in its present view."""
        return self.voted is not None and self.voted.view == self.view


def begin_epoch(epoch: int, genesis: str) -> Ballot:
    """Return the ballot of an epoch in which nothing has happened."""
    return Ballot(epoch=epoch, genesis=genesis, final=Mark(-1, genesis))


def entered(ballot: Ballot, view: int) -> Ballot:
    """Return the ballot after entering a view."""
    return replace(ballot, view=view, vstart=-1, anchor=None)


class Vote(NamedTuple):
    """A vote that was cast."""

    node: str
    epoch: int
    view: int
    phase: int
    frame: str


class Promise(NamedTuple):
    """A NewView: no vote below ``view`` any more, and the highest that was accepted."""

    node: str
    epoch: int
    view: int
    high: Mark


class Finality(NamedTuple):
    """What a quorum of COMMIT votes made final."""

    epoch: int
    view: int
    frame: str


def require(condition: bool, sentence: str) -> None:  # noqa: FBT001  (reads as a conjunct)
    """Raise `NotAllowed` unless the conjunct holds."""
    if not condition:
        raise NotAllowed(sentence)


@dataclass(slots=True)
class Shard:
    """The state of the specification, and its actions."""

    genesis: Frame
    electorates: dict[str, Electorate]  # by the CONFIG that begins the epoch
    byzantine: frozenset[str]
    frames: dict[str, Frame] = field(default_factory=dict)
    ballots: dict[str, Ballot] = field(default_factory=dict)
    votes: set[Vote] = field(default_factory=set)
    promises: set[Promise] = field(default_factory=set)
    starts: dict[tuple[int, int], Mark] = field(default_factory=dict)
    refusals: set[tuple[str, int, str]] = field(default_factory=set)
    finals: set[Finality] = field(default_factory=set)
    _bases: dict[tuple[int, str], str] = field(default_factory=dict)
    _tops: dict[tuple[str, int, int, int], str] = field(default_factory=dict)
    _final: str = ""  # the highest frame that any certificate made final
    _floor: tuple[int, int] = (0, 0)  # the highest epoch and view of any certificate

    def __post_init__(self) -> None:
        """Begin with the genesis."""
        self.frames[self.genesis.name] = self.genesis
        self._final = self.genesis.name

    # Frames.

    def ballot(self, node: str) -> Ballot:
        """Return a node's ballot; every node begins in epoch 1 at the genesis."""
        return self.ballots.setdefault(node, begin_epoch(1, self.genesis.name))

    def height(self, name: str) -> int:
        """Return a frame's height."""
        return self.frames[name].height

    def line(self, name: str) -> Iterator[Frame]:
        """Yield the frames at and below one, from the top."""
        frame = self.frames[name]
        while True:
            yield frame
            if frame.name == self.genesis.name:
                return
            frame = self.frames[frame.parent]

    def is_below(self, low: str, high: str) -> bool:
        """Return whether ``low`` is ``high`` or below it."""
        height = self.height(low)
        for frame in self.line(high):
            if frame.height <= height:
                return frame.name == low
        return False

    def above(self, low: str, high: str) -> list[Frame]:
        """Return the frames above ``low`` up to ``high``, from the top; ``low`` is below."""
        found = []
        for frame in self.line(high):
            if frame.name == low:
                break
            found.append(frame)
        return found

    def order(self, mark: Mark) -> tuple[int, int]:
        """Return what marks are compared by."""
        return mark.view, self.height(mark.frame)

    def base(self, epoch: int, name: str) -> str:
        """Return where an epoch began on the line of a frame."""
        found = self._bases.get((epoch, name))
        if found is None:
            for frame in self.line(name):
                known = self._bases.get((epoch, frame.name))
                if known is not None or (frame.is_config and frame.epoch == epoch - 1):
                    found = self._bases[epoch, name] = known or frame.name
                    break
        require(found is not None, f"frame {name} is not above the beginning of epoch {epoch}")
        assert found is not None, "checked just now"
        return found

    # Certificates and justifications.

    def electorate(self, ballot: Ballot) -> Electorate:
        """Return who votes in the epoch of a ballot."""
        return self.electorates[ballot.genesis]

    def liars(self, electorate: Electorate) -> set[str]:
        """Return the voters that may have said anything."""
        return set(electorate.voters) & self.byzantine

    def is_certified(
        self, electorate: Electorate, epoch: int, view: int, phase: int, name: str
    ) -> bool:
        """Return whether a quorum voted for exactly this."""
        count = sum(
            node in self.byzantine or Vote(node, epoch, view, phase, name) in self.votes
            for node in electorate.voters
        )
        return count >= electorate.quorum

    def provable(self, electorate: Electorate, epoch: int, view: int) -> set[Mark]:
        """Return what a liar can prove to have accepted below ``view``."""
        return {
            Mark(vote.view, vote.frame)
            for vote in self.votes
            if vote.epoch == epoch
            and vote.view < view
            and self.is_certified(electorate, epoch, vote.view, vote.phase, vote.frame)
        }

    def is_sealed(self, name: str) -> bool:
        """Return whether a frame's author has sealed it: an honest one voted for it."""
        frame = self.frames[name]
        if name == self.genesis.name:
            return True
        electorate = self.electorates[self.base(frame.epoch, name)]
        author = electorate.leader(frame.view)
        if author in self.byzantine:
            return True
        # The leader's votes of a view are on one chain.
        top = self._tops.get((author, frame.epoch, frame.view, electorate.first_phase))
        return top is not None and self.is_below(name, top)

    def high(self, ballot: Ballot) -> Mark:
        """Return the highest thing that the node accepted."""
        two_phase = self.electorate(ballot).is_two_phase
        accepted = ballot.prepared if two_phase else ballot.voted
        return max([ballot.final] + ([accepted] if accepted else []), key=self.order)

    def refused(self, electorate: Electorate, epoch: int) -> list[str]:
        """Return the frames for which no quorum is left."""
        if electorate.is_two_phase:
            return []
        blocking = len(electorate.voters) - electorate.quorum + 1
        names = sorted({name for _, at, name in self.refusals if at == epoch})
        return [
            name
            for name in names
            if sum((node, epoch, name) in self.refusals for node in electorate.voters) >= blocking
        ]

    def bend(self, mark: Mark, dead: Collection[str]) -> Mark:
        """Return what a high counts as when the frames of ``dead`` never become final."""
        through = [frame for frame in self.line(mark.frame) if frame.name in dead]
        return Mark(mark.view, through[-1].parent) if through else mark

    def anchor_of(self, highs: Iterable[Mark], dead: Collection[str]) -> Mark:
        """Return the anchor that promises, together with refusals, give."""
        return max((self.bend(high, dead) for high in highs), key=self.order)

    def anchors(self, ballot: Ballot, view: int) -> set[Mark]:
        """Return all anchors that can be justified for a view."""
        if view == 0:
            return {Mark(-1, ballot.genesis)}
        electorate = self.electorate(ballot)
        liars = self.liars(electorate)
        told = [
            promise
            for promise in self.promises
            if (promise.epoch, promise.view) == (ballot.epoch, view)
            and promise.node in electorate.voters
        ]
        lies = self.provable(electorate, ballot.epoch, view) if liars else set()
        found = set()
        for dead in subsets(self.refused(electorate, ballot.epoch)):
            bent = [(promise.node, self.bend(promise.high, dead)) for promise in told]
            for mark in {mark for _, mark in bent} | lies:
                # The highest of some quorum: of all who told nothing higher, and the liars.
                order = self.order(mark)
                humble = {node for node, high in bent if self.order(high) <= order}
                if len(humble | liars) >= electorate.quorum:
                    found.add(mark)
        return found

    # Actions.

    def enter(self, node: str, view: int) -> None:
        """Enter: a node turns to a higher view and promises."""
        ballot = self.ballot(node)
        require(view > ballot.view, "a view is entered only from a lower one")
        ballot = self.ballots[node] = entered(ballot, view)
        if self.high(ballot).view < view:
            self.promises.add(Promise(node, ballot.epoch, view, self.high(ballot)))

    def new_view(self, node: str) -> Promise:
        """NewView: a node repeats its promise; return what it must say."""
        ballot = self.ballot(node)
        high = self.high(ballot)
        require(ballot.view > 0, "view 0 needs no NewView")
        require(not ballot.has_voted, "whoever voted in a view has nothing to promise in it")
        require(high.view < ballot.view, "a NewView of a view tells of lower ones")
        promise = Promise(node, ballot.epoch, ballot.view, high)
        self.promises.add(promise)
        return promise

    def require_acceptable(self, node: str, ballot: Ballot, anchor: Mark, name: str) -> None:
        """IsAcceptable: require that the node may vote for this in its present view."""
        require(node in self.electorate(ballot).voters, "only voters vote")
        require(ballot.anchor in (None, anchor), "a view has one anchor")
        require(self.is_below(anchor.frame, name), "a vote is for a chain through the anchor")
        require(
            self.is_below(ballot.final.frame, name), "a vote is for a chain through the final one"
        )
        # Below what is final nothing can be wrong any more.
        news = self.above(ballot.final.frame, name)
        parents = {frame.parent for frame in news}
        for parent in map(self.frames.__getitem__, parents):
            is_last = parent.is_config and parent.epoch == ballot.epoch
            require(not is_last, "nothing of an epoch stands above its last CONFIG")
        for frame in self.above(anchor.frame, name):
            require(frame.epoch == ballot.epoch, "a vote is for frames of its epoch")
            require(frame.view <= ballot.view, "a frame of a view to come")
            require(frame.view >= anchor.view, "an older frame than the anchor above it")
        for frame in news:
            is_refused = (node, ballot.epoch, frame.name) in self.refusals
            require(not is_refused, "a vote for what was refused")
        voted = ballot.voted
        if voted is None or voted.view != ballot.view:
            return
        require(name != voted.frame, "a new vote is for something new")
        is_overtaken = self.height(ballot.final.frame) > self.height(voted.frame)
        is_further = is_overtaken or self.is_below(voted.frame, name)
        require(is_further, "the votes of a view are on one chain")
        for frame in news if is_overtaken else self.above(voted.frame, name):
            require(frame.view == ballot.view, "an older frame above a vote of this view")

    def cast(self, node: str, ballot: Ballot, anchor: Mark, name: str) -> None:
        """Cast: keep the first-phase vote in the ballot, then speak."""
        self.ballots[node] = replace(
            ballot,
            voted=Mark(ballot.view, name),
            anchor=anchor,
            vstart=ballot.vstart if ballot.has_voted else self.height(name),
        )
        self.add_vote(node, ballot.epoch, ballot.view, self.electorate(ballot).first_phase, name)

    def add_vote(self, node: str, epoch: int, view: int, phase: int, name: str) -> None:
        """Count a vote, and check what it makes final (Agreement, OrphansStayDead)."""
        vote = Vote(node, epoch, view, phase, name)
        if vote in self.votes:
            return
        self.votes.add(vote)
        slot = (node, epoch, view, phase)
        if slot not in self._tops or self.height(self._tops[slot]) < self.height(name):
            self._tops[slot] = name
        if phase != COMMIT or Finality(epoch, view, name) in self.finals:
            return
        electorate = self.electorates[self.base(epoch, name)]
        if self.is_certified(electorate, epoch, view, COMMIT, name):
            self.finalize(Finality(epoch, view, name))

    def finalize(self, one: Finality) -> None:
        """Check a new FINAL certificate against all others; those are on one chain already."""
        if self.height(one.frame) > self.height(self._final):
            require(self.is_below(self._final, one.frame), "two branches are final")
            for frame in self.above(self._final, one.frame):
                require((frame.epoch, frame.view) >= self._floor, "an orphan became final")
            self._final = one.frame
        else:
            require(self.is_below(one.frame, self._final), "two branches are final")
            for frame in self.above(one.frame, self._final):
                is_young = (frame.epoch, frame.view) >= (one.epoch, one.view)
                require(is_young, "an orphan became final")
        self._floor = max(self._floor, (one.epoch, one.view))
        self.finals.add(one)

    def start(self, node: str, anchor: Mark, name: str) -> None:
        """Start: the leader fixes where its view starts and votes for the first end."""
        ballot = self.ballot(node)
        electorate = self.electorate(ballot)
        require(electorate.leader(ballot.view) == node, "only the leader starts a view")
        require(not ballot.has_voted and ballot.anchor is None, "a view is started once")
        if ballot.view == 0:
            is_fresh = ballot.voted is None and ballot.final == Mark(-1, ballot.genesis)
            require(is_fresh, "view 0 starts an epoch")
        if name != anchor.frame:
            require(electorate.is_two_phase, "in the crash mode a view starts at its anchor")
            own = ballot.voted is not None and self.is_below(name, ballot.voted.frame)
            require(own, "a leader salvages only what it voted for")
        self.require_acceptable(node, ballot, anchor, name)
        self.cast(node, ballot, anchor, name)
        self.starts[ballot.epoch, ballot.view] = anchor

    def seal(self, node: str, name: str) -> None:
        """Seal: the leader votes for new frames on its chain, and by that proposes them."""
        ballot = self.ballot(node)
        require(self.electorate(ballot).leader(ballot.view) == node, "only the leader seals")
        require(ballot.has_voted and ballot.anchor is not None, "a leader seals after its start")
        assert ballot.anchor is not None, "checked just now"
        self.require_acceptable(node, ballot, ballot.anchor, name)
        self.cast(node, ballot, ballot.anchor, name)

    def is_proposed(self, ballot: Ballot, view: int, anchor: Mark, name: str) -> bool:
        """IsProposed: return whether the leader of the view asked for this."""
        electorate = self.electorate(ballot)
        leader = electorate.leader(view)
        if leader in self.byzantine:
            return anchor in self.anchors(ballot, view) and all(
                self.is_sealed(frame.name) for frame in self.above(anchor.frame, name)
            )
        vote = Vote(leader, ballot.epoch, view, electorate.first_phase, name)
        return self.starts.get((ballot.epoch, view)) == anchor and vote in self.votes

    def follow(self, node: str, view: int, anchor: Mark, name: str) -> None:
        """Follow: a node votes for a proposal of the leader of its view or a higher one."""
        ballot = self.ballot(node)
        require(view >= ballot.view, "no vote in a view that was left")
        if view > ballot.view:
            ballot = entered(ballot, view)
        require(self.electorate(ballot).leader(view) != node, "a leader follows nobody")
        self.require_acceptable(node, ballot, anchor, name)
        require(self.is_proposed(ballot, view, anchor, name), "a vote for what was not proposed")
        self.cast(node, ballot, anchor, name)

    def is_on_chain(self, ballot: Ballot, name: str) -> bool:
        """IsOnChain: return whether this is part of what the node voted for, or final."""
        assert ballot.voted is not None, "asked of those that voted"
        places = (ballot.final.frame, ballot.voted.frame)
        return any(self.is_below(name, place) for place in places)

    def follow_below(self, node: str, name: str) -> None:
        """FollowBelow: a node votes for a proposal that ends below its vote of this view."""
        ballot = self.ballot(node)
        electorate = self.electorate(ballot)
        require(electorate.leader(ballot.view) != node, "a leader follows nobody")
        require(node in electorate.voters, "only voters vote")
        require(ballot.has_voted and ballot.anchor is not None, "a lower vote without a vote")
        assert ballot.voted is not None, "checked just now"
        assert ballot.anchor is not None, "checked just now"
        is_lower = self.height(name) <= self.height(ballot.voted.frame)
        require(is_lower and self.is_on_chain(ballot, name), "the votes of a view are on one chain")
        require(self.height(name) >= ballot.vstart, "a vote below the first one of the view")
        is_proposed = self.is_proposed(ballot, ballot.view, ballot.anchor, name)
        require(is_proposed, "a vote for what was not proposed")
        self.add_vote(node, ballot.epoch, ballot.view, electorate.first_phase, name)

    def prepare(self, node: str, name: str) -> None:
        """Prepare: a node locks on what a quorum prepared, and votes COMMIT for it."""
        ballot = self.ballot(node)
        electorate = self.electorate(ballot)
        require(electorate.is_two_phase, "the crash mode has no PREPARE certificates")
        require(node in electorate.voters, "only voters lock")
        require(ballot.has_voted, "a lock without a vote")
        require(self.is_on_chain(ballot, name), "a lock beside the vote")
        require(self.height(name) >= ballot.vstart, "a lock below the first vote of the view")
        certified = self.is_certified(electorate, ballot.epoch, ballot.view, PREPARE, name)
        require(certified, "a lock without a PREPARE certificate")
        mark = Mark(ballot.view, name)
        before = ballot.prepared
        require(before is None or self.order(mark) >= self.order(before), "a lower lock")
        self.ballots[node] = replace(ballot, prepared=mark)
        self.add_vote(node, ballot.epoch, ballot.view, COMMIT, name)

    def learn(self, node: str, view: int, name: str) -> None:
        """Learn: a node takes in a FINAL certificate."""
        ballot = self.ballot(node)
        certified = self.is_certified(self.electorate(ballot), ballot.epoch, view, COMMIT, name)
        require(certified, "finality without a quorum of COMMIT votes")
        height, before = self.height(name), self.height(ballot.final.frame)
        is_news = height > before or (height == before and view > ballot.final.view)
        require(is_news, "finality that was known already")
        require(self.is_below(ballot.final.frame, name), "finality beside what was final")
        if view > ballot.view:
            ballot = entered(ballot, view)
        self.ballots[node] = replace(ballot, final=Mark(view, name))

    def next_epoch(self, node: str) -> None:
        """NextEpoch: the final frame is a CONFIG, and its voters vote."""
        ballot = self.ballot(node)
        frame = self.frames[ballot.final.frame]
        require(frame.is_config and frame.epoch == ballot.epoch, "an epoch ends with its CONFIG")
        self.ballots[node] = begin_epoch(ballot.epoch + 1, frame.name)

    def refuse(self, node: str, name: str) -> None:
        """Refuse: a node promises never to vote for a frame with a wrong root."""
        ballot = self.ballot(node)
        electorate = self.electorate(ballot)
        require(not electorate.is_two_phase, "the Byzantine mode has no refusals")
        require(node in electorate.voters, "only voters refuse")
        require(self.frames[name].epoch == ballot.epoch, "a refusal is of the present epoch")
        require(self.is_sealed(name), "a refusal of a frame that nobody sealed")
        require(not self.is_below(name, ballot.final.frame), "a refusal of what is final")
        voted = any(vote.node == node and self.is_below(name, vote.frame) for vote in self.votes)
        require(not voted, "a refusal of what was voted for")
        self.refusals.add((node, ballot.epoch, name))


def subsets(items: Collection[_T]) -> Iterator[tuple[_T, ...]]:
    """Yield every subset, the empty one first."""
    return chain.from_iterable(combinations(items, size) for size in range(len(items) + 1))
