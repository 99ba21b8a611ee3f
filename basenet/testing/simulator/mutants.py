"""Mutants of the engine: what must not be left out, left out, so that it is known to be missed.

Each mutant replaces one function, method or constant for the time of its runs. Some weaken two
places at once, where the engine checks the same thing twice: a proposal that breaks a rule is never
made, and never voted for. A mutant that nobody notices says that a check is needless, or that the
simulator cannot see what it is for.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from basenet.engine import (
    adoption,
    catchup,
    elections,
    finality,
    justification,
    lease,
    promise,
    proposing,
    quorum,
    reads,
    tree,
    views,
    voting,
)
from basenet.engine.effects import Effect, Persist, Send
from basenet.engine.limits import Timing
from basenet.engine.quorum import Electorate
from basenet.engine.state import State
from basenet.testing.simulator import adopting
from basenet.testing.simulator.clock import SECOND
from basenet.testing.simulator.node import Node
from basenet.testing.simulator.scenario import Scenario
from basenet.units import Seq, View
from basenet.wire.certificate import COMMIT
from basenet.wire.payload import FaultModel

Patches = Iterator[None]
Patcher = Callable[[], AbstractContextManager[None]]

# What has not come right by then never will.
_PATIENCE: Final = 60 * SECOND

CRASH_2: Final = Scenario(nodes=2, patience=_PATIENCE)
CRASH_3: Final = Scenario(nodes=3, patience=_PATIENCE)
CONFIG_3: Final = Scenario(nodes=3, has_config_changes=True, patience=_PATIENCE)
ROLL_BACK_3: Final = replace(CONFIG_3, has_roll_backs=True)
PRUNED_3: Final = replace(ROLL_BACK_3, has_pruning=True)
BYZANTINE_4: Final = Scenario(mode=FaultModel.BYZANTINE, nodes=4, byzantine=1, patience=_PATIENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A change of the engine; ``seeds`` of ``scenario`` must be enough to notice it.

    ``test``: where chance meets it too seldom, the test of a checkout that must fail under it.
    """

    what: str
    scenario: Scenario
    seeds: int
    apply: Patcher
    test: str | None = None


MUTANTS: Final[dict[str, Mutant]] = {}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """Let the engine be the mutant ``name`` for a while; None: as it is."""
    if name is None:
        yield
        return
    with MUTANTS[name].apply():
        yield


def _mutant(
    scenario: Scenario, seeds: int, what: str, test: str | None = None
) -> Callable[[Callable[[], Patches]], Patcher]:
    """Register a mutant under its function's name."""

    def register(function: Callable[[], Patches]) -> Patcher:
        name = function.__name__.strip("_").replace("_", "-")
        apply = contextmanager(function)
        MUTANTS[name] = Mutant(what=what, scenario=scenario, seeds=seeds, apply=apply, test=test)
        return apply

    return register


@contextmanager
def _replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Replace these attributes for a while."""
    with ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(patch.object(owner, name, value))
        yield


# What is durable.


@_mutant(CRASH_3, 200, "No vote is ever persisted.")
def _forgotten_votes() -> Patches:
    original = State.ballot

    def ballot(self: State) -> Any:
        return replace(original(self), voted=None, vstart=None)

    with _replaced((State, "ballot", ballot)):
        yield


@_mutant(CRASH_3, 200, "A view is persisted only with the first vote in it.")
def _forgotten_view() -> Patches:
    original = State.ballot

    def ballot(self: State) -> Any:
        kept = original(self)
        if kept.voted is not None and kept.voted.view == kept.view:
            return kept
        view = View(max(0, kept.final.view, kept.voted.view if kept.voted else 0))
        return replace(kept, view=view, anchor=None, justification=None)

    with _replaced((State, "ballot", ballot)):
        yield


@_mutant(CRASH_3, 200, "Messages leave before the Persist of their step.")
def _vote_persisted_after_it_is_sent() -> Patches:
    original = State.collect

    def collect(self: State) -> list[Effect]:
        effects = original(self)
        sends = [one for one in effects if isinstance(one, Send)]
        others = [one for one in effects if not isinstance(one, Send)]
        has_persist = any(isinstance(one, Persist) for one in others)
        return sends + others if has_persist else effects

    with _replaced((State, "collect", collect)):
        yield


@_mutant(
    BYZANTINE_4,
    100,
    "The PREPARE certificate is not persisted before the COMMIT vote.",
    "tests/engine/test_voting.py::test_the_lock_is_durable_before_the_commit_vote",
)
def _forgotten_lock() -> Patches:
    original = State.ballot

    def ballot(self: State) -> Any:
        return replace(original(self), prepared=None)

    with _replaced((State, "ballot", ballot)):
        yield


# Quorums, phases and certificates.


@_mutant(CRASH_3, 20, "One vote less than a quorum is enough.")
def _quorum_minus_one() -> Patches:

    def fewer(voters: int, model: FaultModel = FaultModel.CRASH) -> int:
        del model
        return max(1, voters // 2)

    with _replaced((quorum, "quorum_size", fewer)):
        yield


@_mutant(BYZANTINE_4, 400, "The Byzantine mode votes COMMIT at once.")
def _one_phase() -> Patches:
    original = Electorate.__init__

    def init(self: Electorate, config: Any) -> None:
        original(self, config)
        self.first_phase = COMMIT

    with _replaced((Electorate, "__init__", init)):
        yield


@_mutant(BYZANTINE_4, 200, "The signatures of a certificate are not verified.")
def _certificates_unchecked() -> Patches:

    def believe(*_: object) -> bool:
        return True

    with _replaced(
        (finality, "is_certified", believe),
        (voting, "is_certified", believe),
        (justification, "is_certified", believe),
    ):
        yield


@_mutant(BYZANTINE_4, 400, "A replica votes for another branch than it voted for in this view.")
def _two_branches_in_one_view() -> Patches:
    original = voting.objection

    def objection(state: State, message: Any, path: Any) -> str | None:
        problem = original(state, message, path)
        return None if problem == voting.BRANCH else problem

    with _replaced((voting, "objection", objection)):
        yield


@_mutant(CONFIG_3, 200, "A CONFIG is final by a quorum of the voters that it names.")
def _config_by_the_new_quorum() -> Patches:
    original = voting.tally

    def tally(state: State, key: Any, message: Any, now: Any) -> None:
        config = state.configs.get(message.hash)
        if config is None or message.height <= state.final.height:
            original(state, key, message, now)
            return
        old, state.electorate = state.electorate, Electorate(config)
        try:
            original(state, key, message, now)
        finally:
            if state.electorate.count == len(config.voters) and state.config is not config:
                state.electorate = old

    with _replaced((voting, "tally", tally)):
        yield


@_mutant(
    ROLL_BACK_3,
    300,
    "Whoever has a voter's key votes, with whichever journal.",
    "tests/engine/test_quorum.py::test_a_voter_is_a_key_with_a_journal",
)
def _journal_id_ignored() -> Patches:

    def is_voter(self: Electorate, key: Any, journal_id: Any) -> bool:
        del journal_id
        return key in self.journals

    with _replaced((Electorate, "is_voter", is_voter)):
        yield


@_mutant(
    ROLL_BACK_3,
    100,
    "A node with an old disk votes on, since nobody compares the count of its journal (Q9).",
    "tests/testing/test_simulator.py::test_an_old_disk_is_noticed_by_who_remembers",
)
def _old_disk_unnoticed() -> Patches:

    def greet(self: Node) -> bool:
        del self
        return True

    with _replaced((Node, "_greet", greet)):
        yield


# Where a view starts.


@_mutant(CRASH_3, 200, "A new leader starts at the lowest of what its NewViews say.")
def _lowest_anchor() -> Patches:

    def lowest(state: State, new_views: Any, refusals: Any) -> Any:
        del state, refusals
        return min((one.high for one in new_views), key=lambda mark: (mark.view, mark.height))

    with _replaced((proposing, "highest", lowest), (justification, "highest", lowest)):
        yield


@_mutant(CRASH_3, 200, "A NewView says nothing of what its sender voted for.")
def _under_reported_high() -> Patches:

    def high(state: State) -> Any:
        return state.genesis

    with _replaced((views, "high", high)):
        yield


@_mutant(
    CRASH_3,
    100,
    "A new leader keeps what it holds above the anchor, of whatever view.",
    "tests/engine/test_views.py::test_frames_that_an_earlier_view_left_behind_stay_behind",
)
def _older_views_salvaged() -> Patches:

    def is_salvageable(state: State, anchor: Any) -> bool:
        held = state.tree
        return held.is_on_chain(anchor.height, anchor.hash) and not proposing.is_run_open(state)

    original = voting.strays

    def strays(state: State, message: Any, path: Any) -> str | None:
        problem = original(state, message, path)
        return None if problem == "frames that an earlier view left behind" else problem

    with _replaced((proposing, "is_salvageable", is_salvageable), (voting, "strays", strays)):
        yield


@_mutant(
    BYZANTINE_4,
    100,
    "A replica votes below its first vote in a view.",
    "tests/engine/test_voting.py::test_nobody_votes_below_its_first_vote_in_a_view",
)
def _no_vstart() -> Patches:
    original = voting.vote

    def vote(state: State, message: Any, now: Any) -> None:
        original(state, message, now)
        state.vstart = Seq(0)

    with _replaced((voting, "vote", vote)):
        yield


@_mutant(
    CRASH_3, 100, "Frames beside the chain that is followed are forgotten at once (mistake 8)."
)
def _branches_dropped() -> Patches:
    original = tree.Tree.follow

    def follow(self: tree.Tree, end: Any) -> None:
        original(self, end)
        kept = set(self.chain.values())
        for digest in [one for one in self.heads if one not in kept]:
            head = self.heads.pop(digest)
            self.linked.discard(digest)
            self._heights[head.seq].remove(head)
            self._children[head.prev_hash].remove(head)

    with _replaced((tree.Tree, "follow", follow)):
        yield


@_mutant(CONFIG_3, 300, "Views are compared without their epochs (mistake 11).")
def _view_without_epoch() -> Patches:
    original = tree.may_follow

    def may_follow(before: Any, after: Any) -> bool:
        return original(before, after) and after.view >= before.view

    with _replaced((tree, "may_follow", may_follow), (catchup, "may_follow", may_follow)):
        yield


@_mutant(
    CRASH_2, 100, "A leader that resumes does not vote again for what it voted for (mistake 2)."
)
def _own_vote_not_issued_again() -> Patches:
    original = proposing.resume

    def resume(state: State, now: Any) -> None:
        with _replaced((voting, "cast", _nothing)):
            original(state, now)

    with _replaced((proposing, "resume", resume)):
        yield


def _nothing(*_: object) -> None:
    """Do nothing."""


# Frames.


@_mutant(CRASH_3, 100, "A replica votes before the roots are judged.")
def _vote_before_the_verdict() -> Patches:

    class Everything(set[Any]):
        def __contains__(self, _: object) -> bool:
            return True

    original = State.__init__

    def init(self: State, **facts: Any) -> None:
        original(self, **facts)
        self.judged = Everything()

    with _replaced((State, "__init__", init)):
        yield


@_mutant(CRASH_3, 100, "Proposals and votes end inside PARTIAL runs (P22).")
def _vote_inside_a_run() -> Patches:

    def proposal_end(state: State) -> Any:
        return state.tree.tip

    def end_of(heads: Any) -> Any:
        return heads[-1]

    original = voting.objection

    def objection(state: State, message: Any, path: Any) -> str | None:
        problem = original(state, message, path)
        return None if problem == "a proposal that ends inside a PARTIAL run" else problem

    with _replaced(
        (proposing, "proposal_end", proposal_end),
        (proposing, "end_of", end_of),
        (voting, "objection", objection),
    ):
        yield


@_mutant(
    CRASH_3,
    600,
    "A frame that nobody will ever vote for stays the highest (Q8).",
    "tests/engine/test_finality.py::test_what_a_blocking_set_refuses_bends_the_next_start",
)
def _refusals_without_effect() -> Patches:

    def dead_hashes(*_: object) -> set[Any]:
        return set()

    with _replaced(
        (justification, "dead_hashes", dead_hashes), (proposing, "dead_hashes", dead_hashes)
    ):
        yield


@_mutant(CRASH_3, 100, "What lost stays in the database.")
def _orphans_kept() -> Patches:
    with _replaced((finality, "drop_orphans", _nothing)):
        yield


# The lease.


@_mutant(CRASH_3, 100, "A leader writes as long as it believes to lead.")
def _no_lease() -> Patches:

    def lease_until(self: lease.Leases, lineage: Any) -> Any:
        return lease.FOREVER if lineage in self._led else lease.LONG_AGO

    with _replaced((lease.Leases, "lease_until", lease_until)):
        yield


@_mutant(CRASH_3, 600, "A view is entered although its entrant promised not to yet.")
def _promise_ignored() -> Patches:

    def promised_until(self: promise.Promises, lineage: Any) -> Any:
        del self, lineage
        return promise.NEVER

    with _replaced((promise.Promises, "promised_until", promised_until)):
        yield


@_mutant(CRASH_3, 600, "A node that restarted does not count as having promised anything.")
def _no_wait_after_boot() -> Patches:

    def booted_until(self: promise.Promises) -> Any:
        del self
        return promise.NEVER

    with _replaced((promise.Promises, "booted_until", property(booted_until))):
        yield


@_mutant(CRASH_3, 300, "Acknowledgements name nothing that they do not grant (Q7).")
def _negative_grants() -> Patches:
    original = promise.Promises.answer

    def answer(self: promise.Promises, sender: Any, heartbeat: Any) -> Any:
        original(self, sender, heartbeat)
        return heartbeat.list_version, heartbeat.list_hash, True, ()

    with _replaced((promise.Promises, "answer", answer)):
        yield


@_mutant(CRASH_3, 400, "A leader answers reads without knowing that it still leads.")
def _reads_without_lease() -> Patches:

    def is_serving(state: State, now: Any) -> bool:
        del now
        return state.is_leading

    with _replaced((reads, "is_serving", is_serving)):
        yield


@_mutant(CRASH_3, 100, "A silent leader is waited for.")
def _views_never_left() -> Patches:

    def is_expired(*_: object) -> bool:
        return False

    with _replaced((elections, "is_expired", is_expired)):
        yield


@_mutant(
    CONFIG_3,
    100,
    "A leader goes on sealing above a CONFIG that is not final, and its followers vote for it.",
)
def _frames_above_a_config() -> Patches:
    original = voting.objection

    def objection(state: State, message: Any, path: Any) -> str | None:
        problem = original(state, message, path)
        return None if problem == "frames above a CONFIG that is not final" else problem

    with _replaced(
        (State, "is_config_pending", property(lambda _: False)), (voting, "objection", objection)
    ):
        yield


@_mutant(CRASH_3, 200, "A lease lasts longer than the promises that it rests on.")
def _lease_outlives_its_promises() -> Patches:
    def lease_from(self: Timing, sent_at: Any) -> Any:
        return sent_at + 2 * self.lease

    with _replaced((Timing, "lease_from", lease_from)):
        yield


@_mutant(
    CRASH_3,
    100,
    "Heartbeats of two runs of a node cannot be told apart (mistake 12).",
    "tests/engine/test_pulse.py::test_an_answer_before_a_crash_never_counts",
)
def _no_boot_nonce() -> Patches:
    original = lease.Leases.__init__

    def init(self: lease.Leases, **facts: Any) -> None:
        original(self, **(facts | {"boot_nonce": bytes(8)}))

    with _replaced((lease.Leases, "__init__", init)):
        yield


# States instead of frames.


@_mutant(PRUNED_3, 300, "Who takes a state over forgets what it promised.")
def _promises_not_adopted() -> Patches:
    original = adoption.adopt

    def adopt(ballot: Any, **facts: Any) -> Any:
        after = original(ballot, **facts)
        return replace(
            after, view=View(max(after.final.view, 0)), voted=None, vstart=None, prepared=None
        )

    with _replaced((adopting, "adopt", adopt)):
        yield


@_mutant(PRUNED_3, 100, "Any state that is final is taken over, also an older one.")
def _older_states_adopted() -> Patches:

    def is_news(*_: object) -> bool:
        return True

    with _replaced((adoption, "is_news", is_news), (adopting, "is_news", is_news)):
        yield


@_mutant(PRUNED_3, 100, "What an adoption leaves undecided is not kept.")
def _undecided_lost() -> Patches:

    def undecided(*_: object) -> tuple[Any, ...]:
        return ()

    with _replaced((adopting, "undecided", undecided)):
        yield


@_mutant(
    PRUNED_3,
    100,
    "An old copy of a leader's journal goes on in the view that it led.",
    "tests/engine/test_adoption.py::test_an_old_copy_of_a_leader_does_not_write_another_history",
)
def _own_view_adopted() -> Patches:

    def may_have_led(*_: object) -> bool:
        return False

    with _replaced((adoption, "_may_have_led", may_have_led)):
        yield


@_mutant(
    PRUNED_3,
    100,
    "The frames above an adopted state are dropped.",
    "tests/engine/test_adoption.py::test_frames_above_the_state_are_kept",
)
def _branches_not_adopted() -> Patches:

    def kept_heads(*_: object) -> tuple[Any, ...]:
        return ()

    with _replaced((adoption, "kept_heads", kept_heads), (adopting, "kept_heads", kept_heads)):
        yield
