"""The suite: every configuration, and every mutant with where it must be caught."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

from basenet.testing.simulator.mutants import MUTANTS, Mutant
from basenet.testing.simulator.runner import Summary, summarise
from basenet.testing.simulator.scenario import DRIFT_ALLOWED_PPM, Scenario
from basenet.wire.payload import FaultModel

CONFIGURATIONS: Final = {
    "crash-1": Scenario(nodes=1),
    "crash-2": Scenario(nodes=2),
    "crash-3": Scenario(nodes=3),
    "crash-5": Scenario(nodes=5),
    "crash-3-drift": Scenario(nodes=3, drift_ppm=DRIFT_ALLOWED_PPM),
    "crash-1-config": Scenario(nodes=1, has_config_changes=True),
    "crash-3-config": Scenario(nodes=3, has_config_changes=True),
    "crash-3-rollback": Scenario(nodes=3, has_roll_backs=True, has_config_changes=True),
    "byzantine-4": Scenario(mode=FaultModel.BYZANTINE, nodes=4, byzantine=1),
    "byzantine-7": Scenario(mode=FaultModel.BYZANTINE, nodes=7, byzantine=2),
    "byzantine-4-config": Scenario(
        mode=FaultModel.BYZANTINE, nodes=4, byzantine=1, has_config_changes=True
    ),
    "crash-3-pruned": Scenario(
        nodes=3, has_pruning=True, has_config_changes=True, has_roll_backs=True
    ),
    "byzantine-4-pruned": Scenario(
        mode=FaultModel.BYZANTINE,
        nodes=4,
        byzantine=1,
        has_pruning=True,
        has_config_changes=True,
        has_roll_backs=True,
    ),
}

Say = Callable[[str], object]


def check_suite(names: Sequence[str], seeds: int, first: int, jobs: int, say: Say) -> bool:
    """Run ``seeds`` of these configurations; return whether none of them failed."""
    is_right = True
    for name in names:
        scenario = CONFIGURATIONS[name]
        summary, failed = summarise(scenario, range(first, first + seeds), jobs=jobs, stop=5)
        say(f"{name}: {tell(summary)}\n")
        for outcome in failed:
            say(f"{name}: seed {outcome.seed} fails: {outcome.violation}\n")
        is_right = is_right and not failed
    return is_right


def check_mutants(names: Sequence[str], jobs: int, say: Say) -> bool:
    """Run these mutants in their configurations; return whether each is caught in its budget."""
    caught = [is_caught(name, MUTANTS[name], jobs, say) for name in names]
    say(f"{sum(caught)} of {len(caught)} mutants are caught\n")
    return all(caught)


def is_caught(name: str, mutant: Mutant, jobs: int, say: Say) -> bool:
    """Return whether the mutant is noticed: by its test, or within its budget of seeds."""
    if mutant.test is not None:
        return _fails_its_test(name, mutant.test, say)
    summary, failed = summarise(mutant.scenario, range(mutant.seeds), jobs=jobs, mutant=name)
    if failed:
        say(f"{name}: caught at seed {failed[0].seed}: {failed[0].violation}\n")
    else:
        say(f"{name}: NOT caught in {summary.seeds} seeds of {mutant.scenario.name}\n")
    return bool(failed)


_RUN_TEST: Final = """
import sys
import pytest
from basenet.testing.simulator.mutants import mutated
with mutated(sys.argv[1]):
    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", sys.argv[2]]))
"""
# What pytest ends with when a test failed; 0 is that all passed, more that it could not run them.
_TEST_FAILED: Final = 1


def _fails_its_test(name: str, test: str, say: Say) -> bool:
    """Return whether the test, which passes otherwise, fails in an engine that is the mutant."""
    status = subprocess.run(
        [sys.executable, "-c", _RUN_TEST, name, test], capture_output=True, check=False
    ).returncode
    is_failed = status == _TEST_FAILED
    say(f"{name}: {'caught by' if is_failed else 'NOT caught by'} {test}\n")
    return is_failed


def tell(summary: Summary) -> str:
    """Return the sums in one line."""
    return (
        f"{summary.seeds} seeds, {summary.events} events, "
        f"{summary.events_per_second:,.0f} events/s of one core, {summary.final} final, "
        f"{summary.orphaned} orphaned, {summary.crashes} crashes, {summary.views} views, "
        f"{summary.epochs} epochs, {summary.reads} reads, {summary.adoptions} adoptions, "
        f"{summary.wall_seconds:.1f} s"
    )
