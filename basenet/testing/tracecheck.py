"""docs/specs/TraceShard.tla in Python: a recorded run, held to the specification event by event.

The events are those of `basenet.engine.trace`, behind one event that says what the run began with::

    Genesis   hash, height, voters, is_byzantine, liars
    Renewed   before a Restart: the node comes back with another journal than it had

Each event must be the action of its name in the state that the events before it led to, with the
content that the specification gives its message. Unlike the specification alone, a message counts
here only if the trace tells that it was sent: a NewView before a leader starts by it, a proposal
before anybody follows it. What liars say is not in a trace; they may have said anything that they
could sign.

Traces that several nodes wrote by themselves have no common order. `check_together` finds one: what
a step needs of other nodes is that something was said, and nothing that was said is ever unsaid. So
a step that is allowed once is allowed later, too, and whichever order is tried, either all traces
come to their ends or none of them could have.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from basenet.testing.shardspec import (
    COMMIT,
    Ballot,
    Electorate,
    Frame,
    Mark,
    NotAllowed,
    Promise,
    Shard,
    Vote,
    require,
    subsets,
)

Event = Mapping[str, Any]


class TraceError(Exception):
    """An event that the specification does not explain; ``index`` counts from 0."""

    def __init__(self, index: int, event: Event, reason: str) -> None:
        super().__init__(f"event {index} {dict(event)}: {reason}")
        self.index = index
        self.event = event
        self.reason = reason


def check_trace(events: Iterable[Event]) -> int:
    """Return how many events were checked; raise `TraceError` at the first that may not be."""
    checker: Checker | None = None
    count = 0
    for index, event in enumerate(events):
        try:
            if checker is None:
                require(event["ev"] == "Genesis", "a trace begins with its genesis")
                checker = Checker(event)
            else:
                checker.take(event)
        except NotAllowed as error:
            raise TraceError(index, event, str(error)) from error
        count += 1
    return count


def check_together(traces: Sequence[Sequence[Event]]) -> int:
    """Return how many events of several nodes' traces were checked; none of the nodes lies.

    Raises `TraceError` for a step that the specification explains in no order of theirs; its index
    is that in the node's own trace. Where several nodes wait for one another, the first is told.
    """
    merged = _merge(traces)
    # From the beginning: a step that was tried in vain may have left something behind.
    return check_trace(merged)


def _merge(traces: Sequence[Sequence[Event]]) -> list[Event]:
    """Return the events in an order that the specification allows."""
    genesis = traces[0][0]
    for events in traces:
        if events[0]["ev"] != "Genesis":
            raise TraceError(0, events[0], "a trace begins with its genesis")
        if events[0] != genesis:
            raise TraceError(0, events[0], "another genesis than that of the first trace")
    checker, merged = Checker(genesis), [genesis]
    places = [1] * len(traces)
    waiting: dict[int, TraceError] = {}
    is_moving = True
    while is_moving:
        is_moving = False
        for number, events in enumerate(traces):
            waiting.pop(number, None)
            while places[number] < len(events):
                event = events[places[number]]
                # A birth that a crash cut off is told again.
                if event != genesis:
                    try:
                        checker.take(event)
                    except NotAllowed as error:
                        waiting[number] = TraceError(places[number], event, str(error))
                        break
                    merged.append(event)
                places[number] += 1
                is_moving = True
    if waiting:
        raise waiting[min(waiting)]
    return merged


def mark_of(values: Sequence[Any]) -> Mark:
    """Return the mark that a trace writes as view, height, hash."""
    view, _, name = values
    return Mark(view, name)


class Checker:
    """The state of the specification, and what was said so far."""

    def __init__(self, genesis: Event) -> None:
        """Begin with the first event of a trace."""
        name: str = genesis["hash"]
        self._is_byzantine: bool = genesis["is_byzantine"]
        self.shard = Shard(
            genesis=Frame(
                name=name,
                parent=name,
                height=genesis["height"],
                epoch=0,
                view=0,
                is_config=True,
            ),
            electorates={name: self._electorate(genesis["voters"])},
            byzantine=frozenset(genesis["liars"]),
        )
        self._sent_new_views: set[Promise] = set()
        self._sent_proposals: set[tuple[int, int, str]] = set()
        self._held: dict[str, set[str]] = {}
        self._renewing: set[str] = set()
        self._barred_until: dict[str, int] = {}

    def _electorate(self, voters: Sequence[str]) -> Electorate:
        return Electorate(voters=tuple(voters), is_two_phase=self._is_byzantine)

    def take(self, event: Event) -> None:
        """Do the step of an event; raise `NotAllowed` if it is none."""
        node: str = event["node"]
        action = _ACTIONS.get(event["ev"])
        require(action is not None, "an event of no known name")
        assert action is not None, "checked just now"
        require(node not in self.shard.byzantine, "an event of a liar")
        if event["ev"] in _OF_VOTERS:
            self._require_voter(node)
        if event["ev"] not in {"Epoch", "Restart", "Renewed"}:
            is_now = self.shard.ballot(node).epoch == event["epoch"]
            require(is_now, "an event of another epoch than the node's")
        action(self, node, event)

    def _require_place(self, name: str, height: int) -> None:
        """Require that a frame is known, at this height."""
        require(name in self.shard.frames, "a frame that no event told of")
        require(self.shard.height(name) == height, "a frame with another height")

    def _require_mark(self, values: Sequence[Any]) -> Mark:
        _, height, name = values
        self._require_place(name, height)
        return mark_of(values)

    def _require_held(self, node: str, name: str) -> None:
        """Require that the node holds what it speaks of, down to what is final for it."""
        shard, held = self.shard, self._held.get(node, set())
        floor = shard.height(shard.ballot(node).final.frame)
        for frame in shard.line(name):
            if frame.height <= floor:
                break
            require(frame.name in held, "a node speaks of frames that it does not hold")

    def _on_frame(self, node: str, event: Event) -> None:
        shard = self.shard
        name, parent = event["hash"], event["prev"]
        frame = Frame(
            name=name,
            parent=parent,
            height=event["height"],
            epoch=event["fepoch"],
            view=event["fview"],
            is_config=event["kind"] == "CONFIG",
        )
        if name not in shard.frames:
            self._require_author(node, frame)
        known = shard.frames.setdefault(name, frame)
        require(known == frame, "one hash, two frames")
        self._held.setdefault(node, set()).add(name)

    def _require_author(self, node: str, frame: Frame) -> None:
        """Require that the first who holds a frame is who may seal it, if that one is honest."""
        shard = self.shard
        try:
            require(frame.height == shard.height(frame.parent) + 1, "heights have no gaps")
            base = shard.base(frame.epoch, frame.parent)
        except KeyError:
            base = None
        if base is None:
            # Frames come in any order; only a liar's can come before their parents' authors tell.
            require(bool(shard.byzantine), "a frame that its author never sealed")
            return
        author = shard.electorates[base].leader(frame.view)
        if author not in shard.byzantine:
            ballot = shard.ballot(author)
            require(author == node, "a frame that its author never sealed")
            require(ballot.has_voted, "a frame before its view was started")
            place = (ballot.epoch, ballot.view)
            require(place == (frame.epoch, frame.view), "a frame of another view than its author's")

    def _on_enter(self, node: str, event: Event) -> None:
        self.shard.enter(node, event["view"])

    def _on_new_view(self, node: str, event: Event) -> None:
        shard = self.shard
        high = self._require_mark(event["high"])
        ballot = shard.ballot(node)
        require(ballot.view == event["view"], "a NewView of another view than the node's")
        require(high == shard.high(ballot), f"a NewView must tell {shard.high(ballot)}")
        is_two_phase = shard.electorate(ballot).is_two_phase
        proof = event["proof"]
        if is_two_phase and high.view >= 0:
            require(proof is not None and mark_of(proof) == high, "a high without its proof")
        else:
            require(proof is None, "a proof of what needs none")
        # Whoever knows that something is final in this view asks its leader for a proposal; to
        # one that has not started, this promises nothing.
        if high.view < ballot.view:
            self._sent_new_views.add(shard.new_view(node))

    def _on_start(self, node: str, event: Event) -> None:
        shard = self.shard
        ballot = shard.ballot(node)
        require(ballot.view == event["view"], "a start of another view than the node's")
        anchor = self._require_mark(event["anchor"])
        height, end = event["end"]
        self._require_place(end, height)
        self._require_held(node, end)
        if ballot.view > 0:
            self._require_justified(node, anchor, event["new_views"])
        else:
            require(anchor == Mark(-1, ballot.genesis), "view 0 starts at the genesis")
        shard.start(node, anchor, end)

    def _require_justified(
        self, node: str, anchor: Mark, new_views: Sequence[tuple[str, Sequence[Any]]]
    ) -> None:
        """Require that these NewViews were sent, are a quorum, and give the anchor."""
        shard = self.shard
        ballot = shard.ballot(node)
        electorate = shard.electorate(ballot)
        senders = {sender for sender, _ in new_views}
        require(len(senders) == len(new_views), "two NewViews of one node")
        require(senders <= set(electorate.voters), "a NewView of a node that is no voter")
        require(len(senders) >= electorate.quorum, "a start without a quorum")
        highs = []
        for sender, values in new_views:
            high = self._require_mark(values)
            if sender in shard.byzantine:
                could = high == Mark(-1, ballot.genesis) or high in shard.provable(
                    electorate, ballot.epoch, ballot.view
                )
                require(could, "a liar's high that nothing proves")
            else:
                promise = Promise(sender, ballot.epoch, ballot.view, high)
                require(promise in self._sent_new_views, "a NewView that was not sent")
            highs.append(high)
        dead = shard.refused(electorate, ballot.epoch)
        may_be = {shard.anchor_of(highs, some) for some in subsets(dead)}
        require(anchor in may_be, f"the anchor is none of {sorted(may_be)}")

    def _on_propose(self, node: str, event: Event) -> None:
        shard = self.shard
        ballot = shard.ballot(node)
        require(ballot.view == event["view"], "a proposal of another view than the node's")
        (height, end), (prev_height, prev) = event["end"], event["prev"]
        self._require_place(end, height)
        if not (ballot.has_voted and ballot.voted == Mark(ballot.view, end)):
            self._require_held(node, end)
            shard.seal(node, end)
        ballot = shard.ballot(node)
        require(shard.electorate(ballot).leader(ballot.view) == node, "only the leader proposes")
        require(ballot.anchor == mark_of(event["anchor"]), "a proposal with another anchor")
        self._require_place(prev, prev_height)
        require(shard.is_below(prev, end), "a proposal from beside its end")
        self._sent_proposals.add((ballot.epoch, ballot.view, end))

    def _on_vote(self, node: str, event: Event) -> None:
        shard = self.shard
        ballot = shard.ballot(node)
        name, view, phase = event["hash"], event["view"], event["phase"]
        electorate = shard.electorate(ballot)
        self._require_place(name, event["height"])
        is_again = Vote(node, ballot.epoch, view, phase, name) in shard.votes
        if is_again:
            kept = ballot.voted if phase == electorate.first_phase else ballot.prepared
            is_kept = kept is not None and view == kept.view == ballot.view
            require(is_kept, "a vote in a view that was left")
            return
        require(phase == electorate.first_phase, "a COMMIT vote without the lock before it")
        require(view == ballot.view, "a vote in another view than the node's")
        self._require_held(node, name)
        leader = electorate.leader(view)
        if leader not in shard.byzantine:
            is_asked = (ballot.epoch, view, name) in self._sent_proposals
            require(is_asked, "a vote for no proposal")
        voted = ballot.voted
        if ballot.has_voted and voted and shard.height(name) <= shard.height(voted.frame):
            shard.follow_below(node, name)
            return
        if leader in shard.byzantine:
            anchor = self._anchor_for(node, view, name)
        else:
            anchor = shard.starts[ballot.epoch, view]
        shard.follow(node, view, anchor, name)

    def _anchor_for(self, node: str, view: int, name: str) -> Mark:
        """Return the highest anchor by which a liar may have proposed this."""
        shard = self.shard
        ballot = shard.ballot(node)
        if ballot.anchor is not None:
            return ballot.anchor
        possible = []
        for anchor in shard.anchors(ballot, view):
            try:
                shard.require_acceptable(node, ballot, anchor, name)
            except NotAllowed:
                continue
            possible.append(anchor)
        require(bool(possible), "a vote for what no justified anchor allows")
        return max(possible, key=shard.order)

    def _on_prepared(self, node: str, event: Event) -> None:
        view = self.shard.ballot(node).view
        require(event["cview"] == view, "a lock of another view than the node's")
        self._require_place(event["hash"], event["height"])
        self._require_held(node, event["hash"])
        self.shard.prepare(node, event["hash"])

    def _on_final(self, node: str, event: Event) -> None:
        shard = self.shard
        ballot = shard.ballot(node)
        name, view = event["hash"], event["cview"]
        electorate = shard.electorate(ballot)
        self._require_place(name, event["height"])
        self._require_held(node, name)
        if electorate.voters == (node,) and name != ballot.final.frame:
            # A sole voter's signature on the frame is its proposal and its vote.
            shard.seal(node, name)
        signers = event["signers"]
        is_quorum = len(set(signers)) == len(signers) >= electorate.quorum
        require(is_quorum, "a FINAL certificate of less than a quorum")
        for signer in signers:
            cast = Vote(signer, ballot.epoch, view, COMMIT, name) in shard.votes
            require(signer in electorate.voters, "a FINAL certificate of no voters")
            require(cast or signer in shard.byzantine, "a signature under a vote that was not cast")
        shard.learn(node, view, name)

    def _on_refuse(self, node: str, event: Event) -> None:
        self._require_place(event["hash"], event["height"])
        self.shard.refuse(node, event["hash"])

    def _on_epoch(self, node: str, event: Event) -> None:
        shard = self.shard
        shard.next_epoch(node)
        ballot = shard.ballot(node)
        require(ballot.epoch == event["epoch"], "an epoch was left out")
        electorate = self._electorate(event["voters"])
        known = shard.electorates.setdefault(ballot.genesis, electorate)
        require(known == electorate, "one CONFIG, two sets of voters")

    def _on_restart(self, node: str, event: Event) -> None:
        voted, prepared = (
            None if event[name] is None else mark_of(event[name]) for name in ("voted", "prepared")
        )
        if node in self._renewing:
            self._renewing.discard(node)
            self._begin_anew(node, event, voted, prepared)
        ballot = self.shard.ballot(node)
        require(ballot.epoch == event["epoch"], f"a restart forgot epoch {ballot.epoch}")
        require(ballot.view == event["view"], f"a restart forgot view {ballot.view}")
        require(ballot.voted == voted, f"a restart forgot the vote {ballot.voted}")
        require(ballot.prepared == prepared, f"a restart forgot the lock {ballot.prepared}")
        final = mark_of(event["final"])
        require(ballot.final == final, f"a restart forgot what is final: {ballot.final}")

    def _on_renewed(self, node: str, event: Event) -> None:  # noqa: ARG002  (an action's form)
        """Note that the node lost its journal, and with it its place among the voters (P23)."""
        shard = self.shard
        self._renewing.add(node)
        epochs = (shard.frames[name].epoch + 1 for name in shard.electorates)
        self._barred_until[node] = max(epochs)

    def _begin_anew(
        self, node: str, event: Event, voted: Mark | None, prepared: Mark | None
    ) -> None:
        """Take the ballot of a node with another journal as it is: it is nobody's promise."""
        shard, final = self.shard, self._require_mark(event["final"])
        shard.ballots[node] = Ballot(
            epoch=event["epoch"],
            genesis=shard.base(event["epoch"], final.frame),
            view=event["view"],
            voted=voted,
            prepared=prepared,
            final=final,
        )

    def _require_voter(self, node: str) -> None:
        """Require that the node may vote, or be asked for a vote, with the journal that it has."""
        barred = self._barred_until.get(node, 0)
        require(self.shard.ballot(node).epoch > barred, "a voter with another journal")


_OF_VOTERS: Final = {"NewView", "Start", "Propose", "Vote", "Prepared", "Refuse"}

_ACTIONS: Final[dict[str, Callable[[Checker, str, Event], None]]] = {
    "Frame": Checker._on_frame,  # noqa: SLF001  (the table of the class's own methods)
    "Enter": Checker._on_enter,  # noqa: SLF001  (the same)
    "NewView": Checker._on_new_view,  # noqa: SLF001  (the same)
    "Start": Checker._on_start,  # noqa: SLF001  (the same)
    "Propose": Checker._on_propose,  # noqa: SLF001  (the same)
    "Vote": Checker._on_vote,  # noqa: SLF001  (the same)
    "Prepared": Checker._on_prepared,  # noqa: SLF001  (the same)
    "Final": Checker._on_final,  # noqa: SLF001  (the same)
    "Refuse": Checker._on_refuse,  # noqa: SLF001  (the same)
    "Epoch": Checker._on_epoch,  # noqa: SLF001  (the same)
    "Restart": Checker._on_restart,  # noqa: SLF001  (the same)
    "Renewed": Checker._on_renewed,  # noqa: SLF001  (the same)
}
