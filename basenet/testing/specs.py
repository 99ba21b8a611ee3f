"""Checks docs/specs: the models, with what each must give, and recorded runs against them.

    python -m basenet.testing.specs quick     what the system tests run: under two minutes
    python -m basenet.testing.specs deep      every model
    python -m basenet.testing.specs traces    simulated runs of both modes, and of broken engines

A model that must fail guards against a specification that nothing can break: each leaves out one
rule, and TLC must find out what the rule is for.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from basenet.testing import tlc
from basenet.testing.simulator.mutants import MUTANTS
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.tlatrace import make_module
from basenet.testing.tlc import SPECS, Outcome, Verdict
from basenet.testing.tracecheck import Event, TraceError, check_trace
from basenet.testing.traces import simulate
from basenet.wire.payload import FaultModel

EVENTS_MAX: Final = 600
TRACES_PER_SCENARIO: Final = 20
MUTANT_SEEDS_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A configuration of MCShard.tla, and what TLC must say.

    ``walks``: a model too large to see all its states is walked through at random so many times.
    """

    config: str
    verdict: Verdict = Verdict.RIGHT
    is_quick: bool = False
    walks: int | None = None


def _fails(config: str, *, is_quick: bool = False) -> Model:
    return Model(config=config, verdict=Verdict.VIOLATION, is_quick=is_quick)


def _walked(config: str, walks: int, *, is_quick: bool = False) -> Model:
    return Model(config=config, is_quick=is_quick, walks=walks)


MODELS: Final = (
    Model(config="MCCrash3", is_quick=True),
    _fails("MCCrash3ForgetVote", is_quick=True),
    _fails("MCCrash3LowestAnchor", is_quick=True),
    _fails("MCCrash3RefuseFew", is_quick=True),
    _fails("MCBft4OnePhase", is_quick=True),
    _fails("MCBft4NoFirstVote", is_quick=True),
    _walked("MCBft4Deep", 200, is_quick=True),
    _fails("MCCrash3ForgetView"),
    _fails("MCBft4OldSalvage"),
    Model(config="MCCrash3Full"),
    Model(config="MCCrash3Live"),
    Model(config="MCCrash3NoQuorum", verdict=Verdict.LIVENESS, is_quick=True),
    Model(config="MCCrash3Views"),
    Model(config="MCCrash3Refuse"),
    _walked("MCEpoch3", 10_000),
    Model(config="MCBft4"),
    _walked("MCCrash3Deep", 10_000),
    _walked("MCBft4Deep", 20_000),
)
QUICK: Final = tuple(model for model in MODELS if model.is_quick)
DEEP: Final = tuple(model for model in MODELS if not (model.is_quick and model.walks))

SCENARIOS: Final = (
    Scenario(nodes=3),
    Scenario(mode=FaultModel.BYZANTINE, nodes=4, byzantine=1),
    Scenario(nodes=3, has_config_changes=True),
    Scenario(mode=FaultModel.BYZANTINE, nodes=4, byzantine=1, has_config_changes=True),
)


def check_model(model: Model, *, workers: int) -> tuple[bool, Outcome]:
    """Return whether TLC says of the model what it must, and what it says."""
    outcome = tlc.run(
        SPECS / "MCShard.tla",
        SPECS / f"{model.config}.cfg",
        workers=workers,
        walks=model.walks,
    )
    return outcome.verdict == model.verdict, outcome


def check_with_tlc(events: Sequence[Event]) -> int | None:
    """Return the index of the event at which TLC rejects a trace, None if it accepts it.

    A trace that breaks a property only as a whole is rejected at its last event.
    """
    with tempfile.TemporaryDirectory(prefix="basenet-trace-") as name:
        data = Path(name) / "TraceData.tla"
        data.write_text(make_module(events), encoding="ascii")
        outcome = tlc.run(
            SPECS / "TraceShard.tla",
            SPECS / "TraceShard.cfg",
            extra=[data],
            checks_deadlock=True,
        )
    if outcome.verdict == Verdict.RIGHT:
        return None
    # The genesis is no event of the module, so that its event i has the index i here.
    reached = re.findall(r"^/\\ i = (\d+)", outcome.output, re.MULTILINE)
    return min(int(reached[-1]), len(events) - 1)


def rejected_at(events: Sequence[Event]) -> int | None:
    """Return the index of the event at which `tracecheck` rejects a trace, None if it accepts."""
    try:
        check_trace(events)
    except TraceError as error:
        return error.index
    return None


def eventful_traces(scenario: Scenario, count: int) -> Iterator[tuple[int, list[Event]]]:
    """Yield seeds and the beginnings of their runs, of such as change view or epoch early."""
    seed = found = 0
    while found < count:
        events = simulate(scenario, seed)[:EVENTS_MAX]
        if is_eventful(scenario, events):
            found += 1
            yield seed, events
        seed += 1


def is_eventful(scenario: Scenario, events: Sequence[Event]) -> bool:
    """Return whether a trace shows what its scenario is for; TraceShard knows no new journals."""
    names = {event["ev"] for event in events}
    if "Renewed" in names:
        return False
    if scenario.has_config_changes:
        return "Epoch" in names
    return any(event.get("view", 0) > 0 for event in events)


def rejected_mutants() -> Iterator[tuple[str, int, list[Event]]]:
    """Yield every mutant with the first seed and the beginning of a run that `tracecheck` rejects.

    Mutants of what the specification does not speak of (leases, reads, rollback of databases) leave
    no trace of it, and those of rare occasions need more seeds than are tried here.
    """
    for name, mutant in MUTANTS.items():
        if mutant.scenario.has_config_changes or mutant.scenario.has_roll_backs:
            continue
        for seed in range(min(mutant.seeds, MUTANT_SEEDS_MAX)):
            events = simulate(mutant.scenario, seed, mutant=name)[:EVENTS_MAX]
            if rejected_at(events) is not None:
                yield name, seed, events
                break


def _judge_trace(name: str, events: Sequence[Event], *, must_reject: bool) -> bool:
    expected, found = rejected_at(events), check_with_tlc(events)
    is_right = found == expected and (found is not None) == must_reject
    verdict = "accepted" if found is None else f"rejected at event {found}, {events[found]['ev']}"
    if found != expected:
        verdict += f", but tracecheck: {expected}"
    _say(f"{'ok' if is_right else 'WRONG':6}{name}: {len(events)} events, {verdict}")
    return is_right


def _check_traces() -> bool:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(_judge_trace, f"{scenario.name}, seed {seed}", events, must_reject=False)
            for scenario in SCENARIOS
            for seed, events in eventful_traces(scenario, TRACES_PER_SCENARIO)
        ]
        jobs += [
            pool.submit(_judge_trace, f"mutant {name}, seed {seed}", events, must_reject=True)
            for name, seed, events in rejected_mutants()
        ]
        # All of them, so that one run tells all.
        results = [job.result() for job in jobs]
    return all(results)


def _check_models(models: Sequence[Model]) -> bool:
    is_right = True
    for model in models:
        is_expected, outcome = check_model(model, workers=os.cpu_count() or 1)
        is_right &= is_expected
        found = outcome.verdict.name.lower()
        steps = f", counterexample of {outcome.steps} states" if outcome.steps else ""
        _say(
            f"{'ok' if is_expected else 'WRONG':6}{model.config}: {found} in "
            f"{outcome.seconds:.0f} s, {outcome.states} states, {outcome.distinct} distinct, "
            f"depth {outcome.depth}{steps}"
        )
    return is_right


def _say(sentence: str) -> None:
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()


_CHECKS: Final[dict[str, Callable[[], bool]]] = {
    "quick": lambda: _check_models(QUICK),
    "deep": lambda: _check_models(DEEP),
    "traces": _check_traces,
}


def main() -> int:
    """Run one of the checks; return 0 if everything is as it must be, 1 if not."""
    parser = argparse.ArgumentParser(description="Check docs/specs with TLC.")
    parser.add_argument("what", choices=_CHECKS)
    try:
        return 0 if _CHECKS[parser.parse_args().what]() else 1
    except tlc.ToolError as error:
        _say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
