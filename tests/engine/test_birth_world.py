"""Births among nodes that crash, lose disks and lose each other: never two lineages."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.engine.birth_events import ArchivedParent, AuthorDecided, KeepBirth
from basenet.errors import CorruptionError
from basenet.testing.simulator.birth import BirthScenario, BirthWorld, database
from basenet.testing.simulator.births import CONFIGURATIONS
from basenet.units import FrameHash, Seq, TimestampNs
from basenet.wire.birth import GenesisOffer, LineageKnown
from tests.engine import test_birth
from tests.engine.birth_mutants import MUTANTS
from tests.engine.birth_story import Stage, voters_of

ROWS, OTHER_ROWS = database(b"rows"), database(b"other", 20)
SEEDS = 10
SMALL = [
    {"nodes": 1, "replication": 1},
    {"nodes": 2},
    {"nodes": 3},
    {"nodes": 3, "files": ((0, ROWS),)},
    {"nodes": 3, "replication": 1, "files": ((2, ROWS),)},
    {"nodes": 4, "files": ((3, ROWS),)},
    {"nodes": 3, "is_counted": True},
    {"nodes": 3, "files": ((1, ROWS),), "standalone": 1},
]


def describe(value: object) -> str:
    """The name of a parameter set."""
    if not isinstance(value, dict):
        return "loses its disk" if value else "crashes"
    rows = [number for number, _ in value.get("files", ())]
    words = [f"{name}={fact}" for name, fact in value.items() if name != "files"]
    return " ".join([*words, *(f"rows at {number}" for number in rows)])


# What must happen.


@pytest.mark.parametrize("changes", SMALL, ids=describe)
def test_a_quiet_birth(changes: dict[str, Any]) -> None:
    """When all are there, everybody knows the same lineage at the end, and then all is silent."""
    stage = Stage(**changes)
    stage.begin()
    genesis = stage.heal()
    assert stage.tally.geneses == (0 if "standalone" in changes else 1)
    rows = dict(changes.get("files", ()))
    order = stage.order()
    expected = next(iter(rows), order[0])
    assert voters_of(genesis)[0] == expected
    stage.wait()
    said = len(stage.effects)
    stage.wait(2_000)
    assert len(stage.effects) == said


def test_a_birth_with_real_signatures() -> None:
    """Ed25519 from the offer to the certificate, in bad weather, too."""
    quiet = Stage(is_signed_really=True)
    quiet.begin()
    quiet.heal()
    BirthWorld(replace(CONFIGURATIONS["3"], is_signed_really=True), 1).run()


def test_halves_give_birth_to_nothing_until_they_meet() -> None:
    """{A} and {B, C}: neither is the cluster, and both know it."""
    for alone in range(3):
        stage = Stage()
        stage.only({0, 1, 2} - {alone})
        stage.begin()
        stage.wait(1_000)
        assert stage.born() == [None] * 3
        assert stage.tally.geneses == 0
        stage.heal()


@pytest.mark.parametrize("is_counted", [False, True])
def test_threes_of_six_give_birth_to_nothing(is_counted: bool) -> None:  # noqa: FBT001
    """With replication 3 each half has enough nodes for a birth, but not the ones."""
    order = Stage(nodes=6).order()
    for others in ({order[3], order[4], order[5]}, {order[0], order[4], order[5]}):
        stage = Stage(nodes=6, is_counted=is_counted)
        stage.only(others, set(order) - others)
        stage.begin()
        stage.wait(500)
        complete = not is_counted and not others & set(order[:3])
        assert sum(genesis is not None for genesis in stage.born()) == (3 if complete else 0)
        genesis = stage.heal()
        assert voters_of(genesis) == order[:3]


def test_voters_that_are_there_suffice() -> None:
    """Sentence B6: up or not. The fourth of four is missing, and nothing waits for it."""
    stage = Stage(nodes=4)
    order = stage.order()
    stage.begin(*order[:3])
    stage.wait(50)
    assert [stage.known(number) is not None for number in order] == [True, True, True, False]
    stage.heal()


def test_the_only_database_gives_birth_wherever_it_lies() -> None:
    """The node with the rows is the author, whatever the order says, and keeps its file."""
    for number in range(6):
        stage = Stage(nodes=6, files=((number, ROWS),))
        stage.begin()
        genesis = stage.heal()
        assert voters_of(genesis)[0] == number
        assert genesis.head.state_root == ROWS.state_root


def test_different_databases_wait_for_the_operator() -> None:
    """Three applications made three files: every node says so, and one command decides."""
    files = ((0, ROWS), (1, OTHER_ROWS), (2, database(b"third", 3)))
    stage = Stage(files=files)
    stage.begin()
    stage.wait()
    assert stage.born() == [None] * 3
    for number, file in files:
        assert all(file.state_root.hex() in stage.reports(other)[-1] for other in range(3)), number
    stage.give(stage.machines[1], AuthorDecided())
    assert voters_of(stage.heal())[0] == 1


def test_two_candidates_are_one_birth() -> None:
    """The first completes its genesis unseen; the second finds its promises and waits for it.

    Node 0 is BASE_WRITER and knows nothing of node 3, which has rows. Its voters promise, it
    completes, and loses everybody before it can tell.
    """
    stage = two_candidates()
    first = stage.known(0)
    assert first is not None
    stage.only({1, 2, 3})
    stage.wait(500)
    assert stage.born() == [first, None, None, None]
    assert stage.heal() == first


def two_candidates() -> Stage:
    stage = Stage(nodes=4, replication=2, files=((3, ROWS),), writers=((0, 0),))
    stage.only({0, 1, 2})
    stage.begin()
    while stage.known(0) is None:
        stage.pass_time()
    return stage


def test_a_candidate_gives_way_to_the_one_with_rows() -> None:
    """Its genesis is not complete, so it is withdrawn and its voters are free for the other."""
    stage = Stage(nodes=4, files=((3, ROWS),))
    order = stage.order()
    assert 3 not in order[:3]
    stage.only(set(order[:3]))
    stage.begin()
    while not stage.tally.geneses:
        stage.pass_time()
    stage.wire.clear()
    genesis = stage.heal()
    assert voters_of(genesis)[0] == 3
    assert (stage.tally.geneses, stage.tally.withdrawals) == (2, 1)


def test_a_learner_is_not_told_what_one_disk_can_forget() -> None:
    """The author completes, can tell only a learner, and loses its disk: the learner knows nothing.

    Else the second genesis, which nobody can know to be the second, would be another lineage.
    """
    stage = Stage(nodes=5)
    author, *voters = stage.order()[:3]
    learner, other = stage.order()[3:]
    stage.begin()
    while stage.known(author) is None:
        stage.pass_time()
    stage.only({author, learner})
    stage.wait(200)
    assert stage.known(learner) is None
    stage.lose_disk(stage.machines[author])
    stage.only({author, *voters, other})
    stage.start(stage.machines[author])
    stage.wait(200)
    assert stage.known(voters[0]) is not None
    stage.heal()


def test_an_author_that_lost_its_disk_asks_all_voters_before_it_takes_back() -> None:
    """One voter knows the first lineage and is away: nothing is born until it is back.

    Node 3 has rows and comes late: it would be the author of the second genesis, and its voters do
    not include the one that knows.
    """
    stage = Stage(nodes=4, files=((3, ROWS),))
    first, second, knower, late = stage.order()
    assert late == 3
    stage.only({first, second, knower})
    stage.begin()
    while stage.known(first) is None:
        stage.pass_time()
    stage.only({first, knower})
    stage.pass_time()
    genesis = stage.known(knower)
    assert genesis is not None
    stage.lose_disk(stage.machines[first])
    stage.only({first, second, late})
    stage.start(stage.machines[first])
    stage.wait(500)
    assert stage.known(late) is None
    assert stage.heal() == genesis


def test_what_a_lost_journal_said_comes_too_late() -> None:
    """The completion of the first genesis is still under way when the second is promised."""
    stage = Stage()
    author, one, two = stage.order()
    stage.begin()
    while stage.known(author) is None:
        stage.pass_time()
    late = [flight for flight in stage.wire if isinstance(flight.message, LineageKnown)]
    assert {flight.to for flight in late} == {one, two}
    stage.wire.clear()
    stage.lose_disk(stage.machines[author])
    stage.start(stage.machines[author])
    while stage.tally.geneses < 2:
        stage.pass_time()
    stage.pass_time()
    stage.wire += late
    stage.heal()


def test_an_offer_of_a_withdrawn_genesis_that_comes_late_is_taken_back_again() -> None:
    """The voter says what it promised, and the author repeats its WITHDRAW."""
    stage = Stage(nodes=4, files=((3, ROWS),))
    order = stage.order()
    stage.only(set(order[:3]))
    stage.begin()
    while not stage.tally.geneses:
        stage.pass_time()
    late = [flight for flight in stage.wire if isinstance(flight.message, GenesisOffer)]
    stage.wire.clear()
    stage.cut.clear()
    while not stage.tally.withdrawals:
        stage.pass_time()
    stage.wire += late
    assert voters_of(stage.heal())[0] == 3


def test_a_standalone_lineage_goes_on_in_the_cluster() -> None:
    """No genesis is written; the others learn the lineage that there is."""
    stage = Stage(files=((1, ROWS),), standalone=1)
    before = stage.known(1)
    stage.only({0, 2})
    stage.begin()
    stage.wait(200)
    assert stage.born() == [None, before, None]
    assert stage.heal() == before
    assert stage.tally.geneses == 0


def test_after_the_loss_of_all_disks_the_archive_has_the_leaf() -> None:
    """The way back: the next birth is its child."""
    stage = Stage()
    stage.begin()
    genesis = stage.heal()
    for machine in stage.machines:
        stage.lose_disk(machine)
    stage.settled = None
    stage.archive = ArchivedParent(
        lineage=genesis.lineage,
        seq=Seq(9),
        hash=FrameHash(b"h" * 32),
        state_root=ROWS.state_root,
        page_size=4096,
        timestamp_ns=TimestampNs(0),
        is_forced=False,
    )
    child = stage.heal()
    assert child.config.parent == (genesis.lineage, 9, b"h" * 32)
    assert (child.head.seq, child.head.state_root) == (10, ROWS.state_root)


# Whatever happens.


@pytest.mark.parametrize(
    ("changes", "takes_disk"),
    [(changes, False) for changes in SMALL]
    # The disk of an only voter is the shard: only an archive can tell that there was one.
    + [(changes, True) for changes in SMALL if not {"replication", "standalone"} & set(changes)],
    ids=describe,
)
def test_a_crash_at_every_arrow(changes: dict[str, Any], takes_disk: bool) -> None:  # noqa: FBT001
    """A node dies in front of each effect of a birth in turn; the others go on, it comes back."""
    stage = Stage(**changes)
    stage.begin()
    stage.heal()
    arrows = len(stage.effects)
    assert any(isinstance(effect, KeepBirth) for _, effect in stage.effects)
    for arrow in range(arrows):
        stage = Stage(**changes)
        stage.deaths = {arrow: takes_disk}
        stage.begin()
        stage.heal()
        assert stage.tally.crashes


def test_two_deaths_at_any_two_arrows() -> None:
    """Of which the second takes the disk with it."""
    stage = Stage()
    stage.begin()
    stage.heal()
    arrows = range(len(stage.effects) + 10)
    for first, second in product(arrows[::4], arrows[::3]):
        stage = Stage()
        stage.deaths = {first: False, second: True}
        stage.begin()
        stage.heal()


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_chaos_of_every_kind(name: str) -> None:
    """Some seeds of each configuration; `basenet-sim --birth` runs many."""
    for seed in range(SEEDS):
        world = BirthWorld(CONFIGURATIONS[name], seed)
        world.run()
        assert world.tally.crashes


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(1, 6),
    replication=st.integers(2, 5),
    rows=st.sets(st.integers(0, 5), max_size=3),
    trouble=st.sampled_from([0.0, 0.02, 0.1]),
    seed=st.integers(0, 2**32),
)
def test_any_world(nodes: int, replication: int, rows: set[int], trouble: float, seed: int) -> None:
    """Any number of nodes, voters and equal files, in any weather."""
    scenario = BirthScenario(
        nodes=nodes,
        replication=replication,
        files=tuple((number, ROWS) for number in sorted(rows) if number < nodes),
        lost_disks=1 if nodes > 1 else 0,
        crashes=trouble,
        cuts=trouble,
        late=3 * trouble,
        chaos=100,
    )
    BirthWorld(scenario, seed).run()


def test_an_author_whose_journal_came_back_from_a_backup_is_found_out() -> None:
    """By a voter that still holds what the journal has forgotten; chaos brings it about."""
    for seed in range(100):
        world = BirthWorld(CONFIGURATIONS["3, rows"], seed)
        world.run()
        if world.tally.forgotten:
            assert world.tally.roll_backs == 1
            return
    pytest.fail("no author forgot in 100 seeds")


def test_the_same_seed_is_the_same_run() -> None:
    """A failing seed can be looked at again."""
    worlds = [BirthWorld(CONFIGURATIONS["3"], 7) for _ in range(2)]
    assert worlds[0].run() == worlds[1].run()
    assert worlds[0].tally == worlds[1].tally


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_every_mutant_is_caught(name: str) -> None:
    """Each rule left out is noticed by the world within its seeds, or by the test it names."""
    with MUTANTS[name].apply(), pytest.raises((AssertionError, CorruptionError)):
        look_for_trouble(name)


def look_for_trouble(name: str) -> None:
    """Do what must show the mutant."""
    mutant = MUTANTS[name]
    if mutant.scenario is None:
        WITNESSES[name]()
        return
    for seed in range(mutant.seeds):
        BirthWorld(mutant.scenario, seed).run()


WITNESSES = {
    "answers_outlive_connections": (
        test_birth.test_a_new_connection_voids_the_answer_of_the_old_one
    ),
    "promise_replaced_freely": test_two_candidates_are_one_birth,
    "told_before_settled": test_a_learner_is_not_told_what_one_disk_can_forget,
    "released_without_asking": (
        test_an_author_that_lost_its_disk_asks_all_voters_before_it_takes_back
    ),
    "late_journals_heard": test_what_a_lost_journal_said_comes_too_late,
}
