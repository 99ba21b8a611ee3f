"""The way out and the journals that were rolled back, in the whole simulator."""

from typing import Any
from unittest.mock import patch

import pytest

from basenet.engine.forced import Orphans, choose_parent
from basenet.testing.simulator import births, greeting, wayout
from basenet.testing.simulator.births import WAY_OUT, check_births, check_way_out
from basenet.testing.simulator.checkers import Violation
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.simulator.wayout import WayOut
from basenet.testing.simulator.world import World

ROLLED_BACK = Scenario(nodes=3, has_config_changes=True, has_roll_backs=True)


@pytest.mark.parametrize("scenario", WAY_OUT, ids=lambda scenario: scenario.name)
def test_whoever_survives_keeps_what_it_voted_for(scenario: Scenario) -> None:
    """At every second of the chaos, from every disk; and accepting nodes lose nothing final."""
    orphans = 0
    for seed in range(4):
        world = World(scenario, seed)
        way_out = WayOut(world)
        world.run()
        assert way_out.looks
        orphans += way_out.orphans
    assert orphans


@pytest.mark.parametrize("what", ["only what is final", "no bundle", "never refused"])
def test_a_way_out_that_loses_frames_is_noticed(what: str) -> None:
    """Its parent is too low, or what lies above it is not kept."""

    def parent(ballot: Any, head_of: Any) -> Any:
        head = choose_parent(ballot, head_of)
        return head_of(head.prev_hash) or head

    def orphans(lineage: Any, place: Any, chain: Any, final_seq: Any) -> Orphans:
        assert place
        assert chain
        return Orphans(lineage=lineage, heads=(), final_seq=final_seq)

    mutants = {
        "only what is final": ("choose_parent", parent),
        "no bundle": ("compute_orphans", orphans),
        "never refused": ("refuse_force", lambda *_: None),
    }
    with patch.object(wayout, *mutants[what]), pytest.raises(Violation, match="way out"):
        watch(20)


def watch(seeds: int) -> None:
    for seed in range(seeds):
        world = World(WAY_OUT[0], seed)
        WayOut(world)
        world.run()


def test_old_disks_are_found_by_those_who_remember() -> None:
    """Runs with roll-backs hold, and in some of them a node takes another journal id."""
    renamed = 0
    original = greeting.greet

    def counted(*facts: Any) -> greeting.Greeting:
        nonlocal renamed
        found = original(*facts)
        renamed += found == greeting.Greeting.ROLLED_BACK
        return found

    with patch("basenet.testing.simulator.mishaps.greet", counted):
        for seed in range(60):
            World(ROLLED_BACK, seed).run()
            if renamed:
                break
    assert renamed


def test_the_suite_of_births_says_what_it_ran() -> None:
    """One line for each configuration and one for the way out; a failing seed is named."""
    said: list[str] = []
    assert check_births(1, 0, said.append)
    assert len(said) == len(births.CONFIGURATIONS) + 1
    said.clear()
    with patch.object(
        wayout,
        "compute_orphans",
        lambda *facts: Orphans(lineage=facts[0], heads=(), final_seq=facts[3]),
    ):
        assert not check_way_out(6, 0, said.append)
    assert "fails: way out" in said[0]
    with patch("basenet.engine.author._has_rows", lambda *_: False):
        assert not check_births(2, 0, said.append)
