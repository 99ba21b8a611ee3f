"""The command line of the simulator: many seeds, or one of them closely."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from basenet import __version__
from basenet.testing.simulator.births import check_births
from basenet.testing.simulator.checkers import Violation
from basenet.testing.simulator.faults import Schedule, describe
from basenet.testing.simulator.minimise import minimise, sort_of
from basenet.testing.simulator.mutants import MUTANTS, mutated
from basenet.testing.simulator.runner import Outcome, Summary, run_seed, summarise
from basenet.testing.simulator.scenario import DRIFT_ALLOWED_PPM, MODES, Scenario
from basenet.testing.simulator.suite import CONFIGURATIONS, check_mutants, check_suite, tell
from basenet.testing.simulator.transcript import printer
from basenet.testing.simulator.world import World
from basenet.wire.payload import FaultModel


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for; exit with 1 when a run showed what no run may show."""
    options = _parse(arguments)
    say = sys.stdout.write
    if options.suite:
        names = options.only or list(CONFIGURATIONS)
        sys.exit(not check_suite(names, options.seeds, options.first, options.jobs, say))
    if options.birth:
        sys.exit(not check_births(options.seeds, options.first, say))
    if options.mutants:
        sys.exit(not check_mutants(options.only or list(MUTANTS), options.jobs, say))
    scenario = _scenario_of(options)
    if options.replay is not None:
        with mutated(options.mutant):
            sys.exit(_replay(scenario, options.replay))
    if options.minimise is not None:
        with mutated(options.mutant):
            sys.exit(_minimise(scenario, options.minimise))
    seeds = range(options.first, options.first + options.seeds)
    summary, failed = summarise(
        scenario, seeds, jobs=options.jobs, mutant=options.mutant, stop=options.stop
    )
    if options.json:
        facts = dataclasses.asdict(summary) | {
            "events_per_second": summary.events_per_second,
            "failed": [dataclasses.asdict(outcome) for outcome in failed],
        }
        say(json.dumps(facts) + "\n")
    else:
        _report(scenario, summary, failed)
    sys.exit(bool(failed))


def _report(scenario: Scenario, summary: Summary, failed: list[Outcome]) -> None:
    say = sys.stdout.write
    say(f"{summary.scenario}: {tell(summary)}\n")
    for outcome in failed:
        say(f"seed {outcome.seed}: {outcome.violation}\n")
    if failed:
        say(f"the schedule of seed {failed[0].seed}:\n")
        _say_schedule(World(scenario, failed[0].seed).schedule)


def _say_schedule(schedule: Schedule) -> None:
    for fault in schedule:
        sys.stdout.write(f"  {describe(fault)}\n")


def _replay(scenario: Scenario, seed: int) -> bool:
    """Print one run as it happens; return whether it violated something."""
    try:
        figures = World(scenario, seed, transcript=printer(sys.stdout.write)).run()
    except Violation as violation:
        sys.stdout.write(f"violation: {violation}\n")
        return True
    # Without the time that it took, so that the same command prints the same.
    shown = dataclasses.asdict(figures)
    del shown["seconds"]
    sys.stdout.write(", ".join(f"{name} {value}" for name, value in shown.items()) + "\n")
    return False


def _minimise(scenario: Scenario, seed: int) -> bool:
    """Print the shortest schedule found that still violates; return whether there is one."""
    first = run_seed(scenario, seed)
    if first.violation is None:
        sys.stdout.write(f"seed {seed} violates nothing\n")
        return False
    sort = sort_of(first.violation)

    def violates(schedule: Schedule) -> bool:
        violation = run_seed(scenario, seed, schedule).violation
        return violation is not None and sort_of(violation) == sort

    whole = World(scenario, seed).schedule
    short = minimise(whole, violates)
    sys.stdout.write(f"seed {seed}: {len(short)} of {len(whole)} faults are enough\n")
    _say_schedule(short)
    sys.stdout.write(f"{run_seed(scenario, seed, short).violation}\n")
    return True


def _scenario_of(options: argparse.Namespace) -> Scenario:
    mode = MODES[options.mode]
    liars = (options.nodes - 1) // 3 if mode == FaultModel.BYZANTINE else 0
    return Scenario(
        mode=mode,
        nodes=options.nodes,
        byzantine=liars if options.liars is None else options.liars,
        has_config_changes=options.config_changes,
        has_roll_backs=options.roll_backs,
        has_pruning=options.pruning,
        drift_ppm=DRIFT_ALLOWED_PPM if options.drift else 0,
        is_signed_really=options.real_signatures,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="basenet-sim", description="Run the consensus engine through seeds of bad days."
    )
    add = parser.add_argument
    add("--version", action="version", version=f"basenet-sim {__version__}")
    add("--mode", choices=MODES, default="crash", help="the fault model")
    add("--nodes", type=int, default=3, metavar="N", help="voters at the beginning")
    add("--liars", type=int, metavar="N", help="Byzantine voters; default: as many as may be")
    add("--seeds", type=int, default=100, metavar="N", help="how many runs")
    add("--first", type=int, default=0, metavar="SEED", help="the first of them")
    add("--config-changes", action="store_true", help="voters come and go, disks are lost")
    add("--roll-backs", action="store_true", help="disks come back with older content")
    add("--pruning", action="store_true", help="nodes drop frames that are final and applied")
    add("--drift", action="store_true", help="clocks run at different rates")
    add("--real-signatures", action="store_true", help="Ed25519 instead of ideal signatures")
    add("--mutant", choices=sorted(MUTANTS), metavar="NAME", help="break the engine so")
    add("--jobs", type=int, default=1, metavar="N", help="processes")
    add("--stop", type=int, default=1, metavar="N", help="after so many failed seeds")
    add("--json", action="store_true", help="print sums and failures as JSON")
    add("--replay", type=int, metavar="SEED", help="print one run as it happens")
    add("--minimise", type=int, metavar="SEED", help="shorten the schedule of a failing run")
    add("--suite", action="store_true", help="--seeds of every configuration")
    add("--birth", action="store_true", help="--seeds of every configuration of a birth")
    add("--only", nargs="*", metavar="NAME", help="with --suite or --mutants: these")
    add("--mutants", action="store_true", help="check that every mutant is caught")
    return parser.parse_args(arguments)
