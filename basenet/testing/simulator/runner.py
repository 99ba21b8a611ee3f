"""Many runs: seed after seed, on one core or several."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from time import perf_counter

from basenet.testing.simulator.checkers import Violation
from basenet.testing.simulator.faults import Schedule
from basenet.testing.simulator.mutants import mutated
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.simulator.world import Figures, World

_CHUNK_SEEDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one seed went: its figures, or what it violated."""

    seed: int
    figures: Figures | None
    violation: str | None


def run_seed(scenario: Scenario, seed: int, schedule: Schedule | None = None) -> Outcome:
    """Run one seed, with another schedule than its own if one is given."""
    # A run makes many objects and few cycles: one collection at its end is enough.
    gc.disable()
    try:
        figures = World(scenario, seed, schedule=schedule).run()
    except Violation as violation:
        return Outcome(seed=seed, figures=None, violation=str(violation))
    finally:
        gc.enable()
    return Outcome(seed=seed, figures=figures, violation=None)


def run_seeds(
    scenario: Scenario, seeds: range, *, jobs: int = 1, mutant: str | None = None
) -> Iterator[Outcome]:
    """Yield how each seed went, ascending; ``mutant`` names a change of the engine."""
    tasks = [
        (scenario, seeds[start : start + _CHUNK_SEEDS], mutant)
        for start in range(0, len(seeds), _CHUNK_SEEDS)
    ]
    if jobs == 1:
        for task in tasks:
            yield from _run_chunk(task)
        return
    with get_context("fork").Pool(jobs) as pool:
        for outcomes in pool.imap(_run_chunk, tasks):
            yield from outcomes


def _run_chunk(task: tuple[Scenario, range, str | None]) -> list[Outcome]:
    scenario, seeds, mutant = task
    with mutated(mutant):
        return [run_seed(scenario, seed) for seed in seeds]


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a series of seeds did in all."""

    scenario: str
    seeds: int = 0
    events: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    final: int = 0
    orphaned: int = 0
    crashes: int = 0
    views: int = 0
    epochs: int = 0
    reads: int = 0
    adoptions: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one seed."""
        self.seeds += 1
        figures = outcome.figures
        if figures is None:
            return
        self.events += figures.events
        self.cpu_seconds += figures.seconds
        self.final += figures.final
        self.orphaned += figures.orphaned
        self.crashes += figures.crashes
        self.views += figures.view_max
        self.epochs += figures.epoch - 1
        self.reads += figures.reads
        self.adoptions += figures.adoptions

    @property
    def events_per_second(self) -> float:
        """Simulated events in a second of one core."""
        return self.events / self.cpu_seconds if self.cpu_seconds else 0.0


def summarise(
    scenario: Scenario, seeds: range, *, jobs: int = 1, mutant: str | None = None, stop: int = 1
) -> tuple[Summary, list[Outcome]]:
    """Run ``seeds`` until ``stop`` of them failed; return the sums and those that failed."""
    summary, failed = Summary(scenario=scenario.name), []
    started = perf_counter()
    for outcome in run_seeds(scenario, seeds, jobs=jobs, mutant=mutant):
        summary.add(outcome)
        if outcome.violation is not None:
            failed.append(outcome)
            if len(failed) >= stop:
                break
    summary.wall_seconds = perf_counter() - started
    return summary, failed
