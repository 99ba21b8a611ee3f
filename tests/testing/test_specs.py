"""TLC on docs/specs: what must hold holds, and every rule that is left out is missed."""

import pytest

from basenet.testing.simulator.mutants import MUTANTS
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.specs import (
    DEEP,
    QUICK,
    SCENARIOS,
    Model,
    check_model,
    check_with_tlc,
    eventful_traces,
    rejected_at,
)
from basenet.testing.tlc import SPECS
from basenet.testing.traces import simulate


def test_every_configuration_is_checked() -> None:
    """A model that nobody runs proves nothing."""
    configs = {path.stem for path in SPECS.glob("MC*.cfg")}
    assert configs == {model.config for model in (*QUICK, *DEEP)}


@pytest.mark.system
@pytest.mark.parametrize("model", QUICK, ids=lambda model: model.config)
def test_a_model_gives_what_it_must(model: Model) -> None:
    """Safe in all states, or with the one rule less that it leaves out, not."""
    is_right, outcome = check_model(model, workers=2)
    assert is_right, outcome.output[-4000:]
    assert outcome.states > 100


@pytest.mark.system
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_run_of_the_engine_is_one_of_the_specification(scenario: Scenario) -> None:
    """TLC agrees with the checker in Python about a run with a view change."""
    for _, events in eventful_traces(scenario, 1):
        assert check_with_tlc(events) is None


@pytest.mark.system
def test_a_run_of_a_broken_engine_is_rejected_at_the_same_event() -> None:
    """A leader that starts at the lowest promise is found out where it starts."""
    mutant = MUTANTS["lowest-anchor"]
    events = simulate(mutant.scenario, 0, mutant="lowest-anchor")[:300]
    index = rejected_at(events)
    assert index is not None
    assert events[index]["ev"] == "Start"
    assert check_with_tlc(events) == index
