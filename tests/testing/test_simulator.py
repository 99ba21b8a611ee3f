"""The simulator: the same seed gives the same run, every configuration holds, faults are seen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from basenet.testing.simulator.checkers import Violation
from basenet.testing.simulator.clock import LocalClock
from basenet.testing.simulator.faults import Crash, Fault, Noise, Partition, RollBack, make_schedule
from basenet.testing.simulator.main import main
from basenet.testing.simulator.minimise import minimise
from basenet.testing.simulator.mutants import MUTANTS, mutated
from basenet.testing.simulator.runner import run_seed, summarise
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.simulator.suite import CONFIGURATIONS, is_caught
from basenet.testing.simulator.transcript import printer
from basenet.testing.simulator.world import World

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 20
# More than half a second a seed: they take part in full by hand, and here with a few.
SLOW = {"byzantine-7", "byzantine-4-config", "byzantine-4-pruned", "byzantine-4"}
QUICK_MUTANTS = (
    "quorum-minus-one",
    "under-reported-high",
    "own-vote-not-issued-again",
    "certificates-unchecked",
    "negative-grants",
    "branches-dropped",
)


def transcript(scenario: Scenario, seed: int) -> str:
    lines: list[str] = []
    World(scenario, seed, transcript=printer(lines.append)).run()
    return "".join(lines)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_holds(name: str) -> None:
    """No run of the first seeds shows what no run may show, and each of them settles."""
    seeds = 4 if name in SLOW else SEEDS
    summary, failed = summarise(CONFIGURATIONS[name], range(seeds))
    assert [(outcome.seed, outcome.violation) for outcome in failed] == []
    assert summary.seeds == seeds
    assert summary.final > 20 * seeds, "next to nothing was committed"
    assert summary.crashes > 0
    assert (summary.adoptions > 0) == CONFIGURATIONS[name].has_pruning


@pytest.mark.system
@pytest.mark.parametrize("name", sorted(SLOW))
def test_a_slow_configuration_holds(name: str) -> None:
    """The same for the configurations that take longer."""
    _, failed = summarise(CONFIGURATIONS[name], range(4, SEEDS))
    assert [(outcome.seed, outcome.violation) for outcome in failed] == []


def test_a_run_with_real_signatures_holds() -> None:
    """Ed25519 in place of ideal signatures: what is signed is what is verified."""
    for mode in ("crash-3", "byzantine-4"):
        base = CONFIGURATIONS[mode]
        scenario = Scenario(
            mode=base.mode,
            nodes=base.nodes,
            byzantine=base.byzantine,
            chaos=2_000_000_000,
            is_signed_really=True,
        )
        outcome = run_seed(scenario, 1)
        assert outcome.violation is None
        assert outcome.figures is not None
        assert outcome.figures.final > 1


def test_the_same_seed_gives_the_same_run() -> None:
    """Two runs tell the same story, event by event."""
    for name in ("crash-3-config", "byzantine-4"):
        assert transcript(CONFIGURATIONS[name], 3) == transcript(CONFIGURATIONS[name], 3)


def test_another_seed_gives_another_run() -> None:
    """Or all seeds would be one."""
    assert transcript(CONFIGURATIONS["crash-2"], 3) != transcript(CONFIGURATIONS["crash-2"], 4)


def test_no_hash_of_the_process_enters_a_run() -> None:
    """Python's random hashes order sets: no run depends on them."""
    told = [
        subprocess.run(
            [sys.executable, "cmd/basenet-sim", "--nodes", "3", "--drift", "--replay", "5"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert "calls final" in told[0]


def test_a_longer_schedule_is_made_of_all_faults() -> None:
    """Each sort of fault that a scenario allows happens in some run."""
    everything = CONFIGURATIONS["crash-3-pruned"]
    seen = {type(fault) for seed in range(60) for fault in make_schedule(everything, seed, 5)}
    assert seen == set(Fault.__args__)


def test_faults_end_with_the_chaos() -> None:
    """What was cut is whole again, and who died is up, when the run must settle."""
    scenario = CONFIGURATIONS["crash-5"]
    for seed in range(60):
        for fault in make_schedule(scenario, seed, 5):
            assert fault.at + getattr(fault, "lasts", 0) <= scenario.chaos
            if isinstance(fault, Crash):
                assert fault.down > 0


def restored_disk(*, is_remembered: bool) -> tuple[Fault, ...]:
    """Two write without the third; one of them comes back with the disk of a second ago.

    ``is_remembered``: whether the other one is there for its HELLO, and only then cut off.
    """
    second, millisecond = 1_000_000_000, 1_000_000
    begin = 7 * second + (6 * millisecond if is_remembered else 0)
    return (
        Partition(at=3 * second, lasts=4 * second, sides=(0, 0, 1)),
        RollBack(at=7 * second, node=1, down=5 * millisecond, age=second, is_remembered=False),
        Partition(at=begin, lasts=6 * second, sides=(1, 0, 0)),
    )


def test_an_old_disk_is_noticed_by_who_remembers() -> None:
    """Q9: it said HELLO to a voter that knows a higher count, so it votes no more."""
    scenario = Scenario(nodes=3, has_roll_backs=True)
    for seed in range(4):
        assert run_seed(scenario, seed, restored_disk(is_remembered=True)).violation is None


def test_an_old_disk_that_nobody_remembers_forks_history() -> None:
    """Q9 states this limit: q - 1 voters that compare need not be among those who heard its votes.

    Of three voters the one that it greets was away, and the one that remembers is away now. Only
    n - q + 1 others always have one among them who counted its vote.
    """
    scenario = Scenario(nodes=3, has_roll_backs=True)
    violation = run_seed(scenario, 0, restored_disk(is_remembered=False)).violation
    assert violation is not None
    assert violation.startswith("agreement: ")


@pytest.mark.parametrize(("drift", "is_broken"), [(4_950, False), (600_000, True)])
def test_clocks_beyond_the_drift_break_the_lease(*, drift: int, is_broken: bool) -> None:
    """Within what the lease allows for they do not: a slow leader, cut off, and fast followers."""
    second = 1_000_000_000
    cut = Partition(at=6 * second, lasts=4 * second, sides=(1, 0, 0))
    world = World(CONFIGURATIONS["crash-3"], 1, schedule=(cut,))

    def change_rates(_: object) -> None:
        for node, rate in zip(world.nodes, (-drift, drift, drift), strict=True):
            shown = node.now
            node.clock = LocalClock(0, rate)
            node.clock.restart(world.scheduler.now, shown)

    world.scheduler.at(5 * second, change_rates)
    if is_broken:
        with pytest.raises(Violation, match="fencing: "):
            world.run()
    else:
        world.run()


@pytest.mark.parametrize("name", QUICK_MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    """The engine with one thing left out shows what no run may show."""
    assert is_caught(name, MUTANTS[name], 1, lambda _: None)


def test_a_mutant_ends_with_its_context() -> None:
    """Afterwards the engine is itself again."""
    scenario = CONFIGURATIONS["crash-3"]
    with mutated("quorum-minus-one"):
        assert run_seed(scenario, 0).violation is not None
    assert run_seed(scenario, 0).violation is None


def test_there_are_enough_mutants_and_each_says_what_it_is() -> None:
    """At least fifteen, with a budget of seeds."""
    assert len(MUTANTS) >= 15
    assert all(mutant.what.endswith(".") and mutant.seeds > 0 for mutant in MUTANTS.values())


def test_a_schedule_is_shortened_to_what_matters() -> None:
    """Delta debugging keeps the two faults that it takes, and no other."""
    schedule = make_schedule(CONFIGURATIONS["crash-3"], 7, 3)
    wanted = [fault for fault in schedule if isinstance(fault, Crash | Noise)][1:3]
    assert len(wanted) == 2
    tries: list[int] = []

    def violates(part: tuple[Fault, ...]) -> bool:
        tries.append(len(part))
        return all(fault in part for fault in wanted)

    assert list(minimise(schedule, violates)) == wanted
    assert len(tries) < 200


def test_a_run_that_needs_no_fault_is_shortened_to_none() -> None:
    """An engine that is wrong without any help needs no schedule."""
    schedule = make_schedule(CONFIGURATIONS["crash-3"], 7, 3)
    assert minimise(schedule, lambda _: True) == ()


def test_the_command_tells_sums_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """What a program reads; a run that holds ends with 0."""
    with pytest.raises(SystemExit) as ended:
        main(["--mode", "crash", "--nodes", "2", "--seeds", "2", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert facts["seeds"] == 2
    assert facts["failed"] == []
    assert facts["events_per_second"] > 0


def test_the_command_shows_the_schedule_of_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Seed, violation and faults are printed, and it ends with 1."""
    with pytest.raises(SystemExit) as ended:
        main(["--nodes", "3", "--seeds", "3", "--mutant", "quorum-minus-one"])
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert "seed 0: certificates: " in out
    assert "Crash: at" in out


def test_the_command_shortens_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """The shortest schedule found violates in the same way."""
    with pytest.raises(SystemExit) as ended:
        main(["--nodes", "3", "--minimise", "0", "--mutant", "quorum-minus-one"])
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert "0 of " in out
    assert "certificates: " in out


def test_the_command_replays_a_failure_up_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line of the story is the violation."""
    with pytest.raises(SystemExit) as ended:
        main(["--nodes", "3", "--replay", "0", "--mutant", "quorum-minus-one"])
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert out.splitlines()[-1].startswith("violation: certificates: ")
