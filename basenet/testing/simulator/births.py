"""The suite of births and of the way out: many seeds of each; `basenet-sim --birth` runs it."""

from collections.abc import Callable
from time import perf_counter
from typing import Final

from basenet.errors import CorruptionError
from basenet.testing.simulator.birth import BirthScenario, BirthWorld, BirthWrong, database
from basenet.testing.simulator.checkers import Violation
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.simulator.wayout import WayOut
from basenet.testing.simulator.world import World
from basenet.wire.payload import FaultModel

_ROWS: Final = database(b"rows")

Say = Callable[[str], object]


def _rough(
    nodes: int,
    replication: int = 3,
    *,
    rows: tuple[int, ...] = (),
    writers: tuple[tuple[int, int], ...] = (),
    is_counted: bool = False,
    standalone: int | None = None,
) -> BirthScenario:
    """Return a world with much trouble; where one disk is the shard, none is lost."""
    return BirthScenario(
        nodes=nodes,
        replication=replication,
        files=tuple((number, _ROWS) for number in rows),
        writers=writers,
        is_counted=is_counted,
        standalone=standalone,
        lost_disks=0 if min(nodes, replication) == 1 or standalone is not None else 1,
        crashes=0.05,
        cuts=0.05,
        lost=0.2,
        late=0.3,
    )


CONFIGURATIONS: Final = {
    "1": _rough(1),
    "2": _rough(2),
    "3": _rough(3),
    "3 counted": _rough(3, is_counted=True),
    "3, one voter, rows": _rough(3, 1, rows=(2,)),
    "3, rows": _rough(3, rows=(2,)),
    "3, standalone": _rough(3, rows=(1,), standalone=1),
    "4, two voters, a writer and rows": _rough(4, 2, rows=(3,), writers=((0, 0),)),
    "6": _rough(6),
    "6, rows twice": _rough(6, rows=(0, 4)),
}

WAY_OUT: Final = (
    Scenario(nodes=3),
    Scenario(nodes=3, has_config_changes=True, has_roll_backs=True),
    Scenario(mode=FaultModel.BYZANTINE, nodes=4, byzantine=1),
)


def check_births(seeds: int, first: int, say: Say) -> bool:
    """Run ``seeds`` of every configuration; return whether none of them failed."""
    is_right = True
    for name, scenario in CONFIGURATIONS.items():
        started, effects, crashes = perf_counter(), 0, 0
        for seed in range(first, first + seeds):
            world = BirthWorld(scenario, seed)
            try:
                world.run()
            except (BirthWrong, CorruptionError) as wrong:
                say(f"birth of {name}: seed {seed} fails: {wrong}\n")
                is_right = False
            effects += world.tally.effects
            crashes += world.tally.crashes
        seconds = perf_counter() - started
        told = f"{seeds} seeds, {effects} effects, {crashes} crashes, {seconds:.1f} s"
        say(f"birth of {name}: {told}\n")
    return check_way_out(seeds, first, say) and is_right


def check_way_out(seeds: int, first: int, say: Say) -> bool:
    """Run ``seeds`` of `WAY_OUT`, force a lineage at many moments; return whether it held."""
    started, looks, is_right = perf_counter(), 0, True
    for scenario in WAY_OUT:
        for seed in range(first, first + seeds):
            world = World(scenario, seed)
            way_out = WayOut(world)
            try:
                world.run()
            except Violation as violation:
                say(f"way out of {scenario.name}: seed {seed} fails: {violation}\n")
                is_right = False
            looks += way_out.looks
    say(f"way out: {seeds} seeds, {looks} survivors, {perf_counter() - started:.1f} s\n")
    return is_right
