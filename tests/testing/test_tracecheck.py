"""Recorded runs against the specification in Python: real ones pass, and each lie is noticed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from basenet.testing.simulator.scenario import Scenario
from basenet.testing.simulator.suite import CONFIGURATIONS
from basenet.testing.tracecheck import TraceError, check_together, check_trace
from basenet.testing.traces import simulate
from basenet.wire.payload import FaultModel

Events = list[dict[str, Any]]

CRASH = Scenario(nodes=3)
BYZANTINE = Scenario(mode=FaultModel.BYZANTINE, nodes=4, byzantine=1)

A, B, C = "a", "b", "c"
GENESIS = {
    "ev": "Genesis",
    "hash": "g",
    "height": 1,
    "voters": [A, B, C],
    "is_byzantine": False,
    "liars": [],
}


def event(name: str, node: str, view: int, **facts: object) -> dict[str, object]:
    return {"ev": name, "node": node, "epoch": 1, "view": view, **facts}


def start_of_view_0() -> Events:
    """A leads view 0 and starts it at the genesis."""
    anchor = [-1, 1, "g"]
    return [
        GENESIS,
        event("Start", A, 0, anchor=anchor, new_views=[], end=[1, "g"]),
        event("Propose", A, 0, prev=[1, "g"], end=[1, "g"], anchor=anchor),
        event("Vote", A, 0, phase=2, height=1, hash="g"),
        frame(A, 0, "x", "g", 2),
        event("Propose", A, 0, prev=[1, "g"], end=[2, "x"], anchor=anchor),
        event("Vote", A, 0, phase=2, height=2, hash="x"),
    ]


def frame(node: str, view: int, name: str, prev: str, height: int) -> dict[str, object]:
    return event(
        "Frame", node, view, hash=name, prev=prev, height=height, fepoch=1, fview=0, kind="COMMIT"
    )


def x_is_final() -> Events:
    """A's frame x gets B's vote, too: final in view 0, and C knows nothing of it."""
    return [
        *start_of_view_0(),
        frame(B, 0, "x", "g", 2),
        event("Vote", B, 0, phase=2, height=2, hash="x"),
        event("Final", A, 0, cview=0, height=2, hash="x", signers=[A, B]),
    ]


def promise(node: str, view: int, high: list[object]) -> Events:
    return [event("Enter", node, view), event("NewView", node, view, high=high, proof=None)]


def view_1(new_views: list[list[object]], anchor: list[object], end: list[object]) -> Events:
    """B leads view 1."""
    return [event("Start", B, 1, anchor=anchor, new_views=new_views, end=end)]


def reason_of(events: Events) -> tuple[int, str]:
    with pytest.raises(TraceError) as caught:
        check_trace(events)
    return caught.value.index, caught.value.reason


def test_a_view_that_starts_above_what_is_final_is_right() -> None:
    """B promised its vote for x, C nothing; the anchor is x."""
    told = [[B, [0, 2, "x"]], [C, [-1, 1, "g"]]]
    events = [
        *x_is_final(),
        *promise(B, 1, [0, 2, "x"]),
        *promise(C, 1, [-1, 1, "g"]),
        *view_1(told, [0, 2, "x"], [2, "x"]),
    ]
    assert check_trace(events) == len(events)


def test_a_start_below_the_highest_promise_is_rejected_where_it_happens() -> None:
    """The leader must not choose; otherwise what is final would be left."""
    told = [[B, [0, 2, "x"]], [C, [-1, 1, "g"]]]
    events = [
        *x_is_final(),
        *promise(B, 1, [0, 2, "x"]),
        *promise(C, 1, [-1, 1, "g"]),
        *view_1(told, [-1, 1, "g"], [1, "g"]),
    ]
    index, reason = reason_of(events)
    assert index == len(events) - 1
    assert "the anchor" in reason


def test_a_promise_that_tells_too_little_is_rejected_where_it_happens() -> None:
    """B voted for x and says the genesis: the content of a message counts, not only its being."""
    events = [*x_is_final(), *promise(B, 1, [-1, 1, "g"])]
    index, reason = reason_of(events)
    assert (index, events[index]["ev"]) == (len(events) - 1, "NewView")
    assert "must tell" in reason


def test_a_start_on_a_promise_that_nobody_sent_is_rejected() -> None:
    """A quorum of NewViews is one of NewViews that exist."""
    told = [[B, [0, 2, "x"]], [C, [-1, 1, "g"]]]
    events = [*x_is_final(), *promise(B, 1, [0, 2, "x"]), *view_1(told, [0, 2, "x"], [2, "x"])]
    assert reason_of(events) == (len(events) - 1, "a NewView that was not sent")


def test_a_forgotten_vote_is_rejected_at_the_restart() -> None:
    """What was spoken was durable."""
    last = event("Restart", B, 0, voted=None, prepared=None, final=[-1, 1, "g"])
    index, reason = reason_of([*x_is_final(), last])
    assert index == len(x_is_final())
    assert "forgot the vote" in reason


def test_a_vote_in_a_view_that_was_left_is_rejected() -> None:
    """A NewView is the promise never to do that."""
    events = [
        *start_of_view_0(),
        *promise(C, 1, [-1, 1, "g"]),
        frame(C, 1, "x", "g", 2),
        event("Vote", C, 0, phase=2, height=2, hash="x"),
    ]
    assert reason_of(events) == (len(events) - 1, "a vote in another view than the node's")


def test_a_vote_for_frames_that_are_not_held_is_rejected() -> None:
    """A vote says that the frame is kept."""
    events = [*start_of_view_0(), event("Vote", C, 0, phase=2, height=2, hash="x")]
    assert "does not hold" in reason_of(events)[1]


def test_finality_by_less_than_a_quorum_is_rejected() -> None:
    """One of three is no majority."""
    last = event("Final", A, 0, cview=0, height=2, hash="x", signers=[A])
    assert "less than a quorum" in reason_of([*start_of_view_0(), last])[1]


def test_finality_by_a_vote_that_was_not_cast_is_rejected() -> None:
    """A certificate is made of votes."""
    last = event("Final", A, 0, cview=0, height=2, hash="x", signers=[A, B])
    assert "not cast" in reason_of([*start_of_view_0(), last])[1]


def test_a_frame_of_somebody_else_than_the_leader_is_rejected() -> None:
    """Only the leader seals."""
    events = [*start_of_view_0(), frame(B, 0, "y", "x", 3)]
    assert reason_of(events) == (len(events) - 1, "a frame that its author never sealed")


def test_a_trace_begins_with_its_genesis() -> None:
    """Without it nobody knows who votes."""
    assert reason_of([event("Enter", A, 1)]) == (0, "a trace begins with its genesis")


@pytest.mark.parametrize("name", ["crash-2", "crash-3", "crash-5", "byzantine-4", "crash-3-config"])
def test_runs_of_the_engine_are_runs_of_the_specification(name: str) -> None:
    """Every step of simulated runs with crashes, cuts, view changes and liars is allowed."""
    for seed in range(2):
        events = simulate(CONFIGURATIONS[name], seed)
        assert check_trace(events) == len(events) > 100


Forge = Callable[[dict[str, Any]], None]


def lower_high(told: dict[str, Any]) -> None:
    told["high"] = [told["high"][0] - 1, *told["high"][1:]]


def other_view(told: dict[str, Any]) -> None:
    told["cview"] += 1


def one_signer(told: dict[str, Any]) -> None:
    told["signers"] = told["signers"][:1]


def one_promise(told: dict[str, Any]) -> None:
    told["new_views"] = told["new_views"][:1]


def higher_anchor(told: dict[str, Any]) -> None:
    told["anchor"] = [told["anchor"][0] + 1, *told["anchor"][1:]]


FORGERIES = {
    "NewView": lower_high,
    "Final": one_signer,
    "Prepared": other_view,
    "Start": one_promise,
    "Propose": higher_anchor,
}


@pytest.mark.parametrize("name", sorted(FORGERIES))
def test_a_forged_event_of_a_real_run_is_rejected_there(name: str) -> None:
    """Whatever is changed in the last event of a kind, the trace is wrong at that event."""
    scenario, seed = (BYZANTINE, 3)
    events = copy.deepcopy([dict(told) for told in simulate(scenario, seed)])
    index = max(i for i, told in enumerate(events) if told["ev"] == name and told["view"] > 0)
    FORGERIES[name](events[index])
    assert reason_of(events)[0] == index


@pytest.mark.parametrize(
    ("mutant", "where"),
    [
        ("forgotten-votes", {"Restart"}),
        ("lowest-anchor", {"Start"}),
        ("under-reported-high", {"NewView"}),
        ("quorum-minus-one", {"Final", "Start"}),
    ],
)
def test_broken_engines_leave_traces_that_are_rejected(mutant: str, where: set[str]) -> None:
    """The trace tells what was broken, at the event where it shows first."""
    for seed in range(10):
        try:
            check_trace(simulate(CRASH, seed, mutant=mutant))
        except TraceError as error:
            assert error.event["ev"] in where  # noqa: PT017  (which seed shows it is chance)
            return
    pytest.fail(f"no seed shows {mutant}")


def by_node(events: Events) -> list[Events]:
    """What each node would have written by itself."""
    names = sorted({told["node"] for told in events[1:]})
    return [[events[0], *(told for told in events if told.get("node") == name)] for name in names]


@pytest.mark.parametrize(
    "scenario", [CRASH, Scenario(mode=FaultModel.BYZANTINE, nodes=4)], ids=lambda one: one.name
)
def test_the_traces_of_several_nodes_are_checked_in_an_order_that_is_found(
    scenario: Scenario,
) -> None:
    """Elections, restarts and all; whichever trace comes first, and a birth may be told twice."""
    for seed in range(3):
        events = simulate(scenario, seed)
        traces = by_node(events)
        assert check_together(traces) == len(events)
        traces[0].insert(1, events[0])
        assert check_together(traces[::-1]) == len(events)


def test_what_one_node_never_said_is_missed_in_the_trace_of_another() -> None:
    """A vote left out, and a frame: no order explains the rest; the event that waits is told."""
    a_part, b_part = by_node(x_is_final())
    assert check_together([a_part, b_part]) == len(x_is_final())
    with pytest.raises(TraceError, match="not cast") as caught:
        check_together([a_part, b_part[:-1]])
    assert (caught.value.index, caught.value.event) == (len(a_part) - 1, a_part[-1])
    sealed = next(i for i, told in enumerate(a_part) if told["ev"] == "Frame")
    with pytest.raises(TraceError, match="never sealed"):
        check_together([b_part, a_part[:sealed]])


def test_a_broken_engine_is_noticed_in_whatever_order() -> None:
    """A step that no order allows stays forbidden when it is tried again."""
    for seed in range(20):
        events = simulate(CRASH, seed, mutant="quorum-minus-one")
        try:
            check_together(by_node(events))
        except TraceError:
            return
    pytest.fail("no seed shows it")


def test_traces_of_one_lineage_have_one_genesis() -> None:
    """One that began later, or elsewhere, cannot be put beside the others."""
    other = {**GENESIS, "hash": "h"}
    with pytest.raises(TraceError, match="another genesis"):
        check_together([start_of_view_0(), [other]])
    with pytest.raises(TraceError, match="begins with its genesis"):
        check_together([start_of_view_0(), start_of_view_0()[1:]])
