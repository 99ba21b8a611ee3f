# ruff: noqa: ARG001  (the clock of a test is virtual because it is asked for)
"""When the applications may write: only while all is true, renewed in time, and all at once."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import pytest
import trio
import trio.testing

from basenet.config.model import ClusterConfig
from basenet.daemon.cluster.gate import NEVER, Gate, Gates
from basenet.daemon.cluster.guard import Guard
from basenet.daemon.cluster.writing import Unfinal
from basenet.engine.events import Instant
from basenet.units import ShardId

Clock = trio.testing.MockClock

SECOND = 1_000_000_000
LEASE = 1 * SECOND
FAR = Instant(10**15)


@dataclass
class Limits:
    """The part of the configuration that the gates read."""

    unfinalized_commits_max: int | None = None
    unfinalized_bytes_max: int | None = None
    unfinalized_ms_max: int | None = None


@dataclass
class Desk:
    """The guardian: how many fences each packet renewed, and when."""

    packets: list[tuple[float, int]] = field(default_factory=list)
    renewed: int = 0
    began_s: float = 0.0

    def flush(self) -> None:
        if self.renewed:
            self.packets.append((round(trio.current_time() - self.began_s, 3), self.renewed))
        self.renewed = 0


@dataclass
class World:
    """A term, its file and its fence in one; ``told``: what was done, and when."""

    desk: Desk
    shard: ShardId = field(default=ShardId("app"))
    leads: bool = True
    until: Instant = FAR
    lease: Instant = FAR
    lost: Unfinal = field(default_factory=Unfinal)
    told: list[tuple[float, str]] = field(default_factory=list)
    is_writing: bool = False
    deposed_by_beginning: bool = False
    begins_in_vain: bool = False
    looks: int = 0

    @property
    def file(self) -> "World":
        return self

    @property
    def fence(self) -> "World":
        return self

    def _tell(self, what: str) -> None:
        self.told.append((round(trio.current_time() - self.desk.began_s, 3), what))

    def writable_until(self) -> Instant:
        self.looks += 1
        return self.until

    def lease_until(self) -> Instant:
        return self.lease

    def shared_lease(self) -> None:
        """It has its own; tests/daemon/cluster/test_rest.py has the others."""

    def unfinal(self) -> Unfinal:
        return self.lost

    async def begin_writing(self) -> None:
        self._tell("begin")
        await trio.sleep(0.01)
        if self.deposed_by_beginning:
            self.until = NEVER
        self.is_writing = not self.deposed_by_beginning and not self.begins_in_vain

    def close_fence(self) -> None:
        self._tell("close")

    def moved(self) -> None:
        self._tell("moved")

    def renew(self, until: Instant) -> None:
        assert until == self.until, "opened for another time"
        assert self.is_writing, "opened before capture has begun"
        self.desk.renewed += 1
        self._tell("renew")

    def when(self, wanted: str) -> list[float]:
        return [when for when, what in self.told if what == wanted]


class Run:
    """Gates at work over some worlds."""

    def __init__(self, desk: Desk, limits: Limits | None) -> None:
        self.desk = desk
        self.gates = Gates(
            cast("ClusterConfig", limits or Limits()),
            cast("Guard", desk),
            lease=LEASE,
            clock=lambda: Instant(int(trio.current_time() * SECOND)),
        )
        self.nursery: trio.Nursery

    def enter(self, world: World) -> Gate:
        def start(task: Callable[[], Awaitable[None]]) -> None:
            self.nursery.start_soon(task)

        return self.gates.enter(world, start)  # type: ignore[arg-type]


@asynccontextmanager
async def running(desk: Desk, limits: Limits | None = None) -> AsyncIterator[Run]:
    run = Run(desk, limits)
    async with trio.open_nursery() as nursery:
        run.nursery = nursery
        desk.began_s = trio.current_time()
        nursery.start_soon(run.gates.run)
        yield run
        nursery.cancel_scope.cancel()


def now() -> Instant:
    return Instant(int(trio.current_time() * SECOND))


async def test_a_fence_opens_once_capture_has_begun_and_is_renewed_in_time(
    autojump_clock: Clock,
) -> None:
    """Three times within a lease."""
    desk = Desk()
    world = World(desk)
    async with running(desk) as run:
        run.enter(world)
        await trio.sleep(2)
    assert world.when("begin") == [0]
    times = world.when("renew")
    assert times[0] == 0.01
    assert max(later - earlier for earlier, later in pairwise(times)) <= LEASE / SECOND / 3
    assert len(times) <= 9


async def test_all_shards_of_a_node_are_renewed_in_one_packet(autojump_clock: Clock) -> None:
    """However many, and whenever they were opened."""
    desk = Desk()
    worlds = [World(desk, is_writing=True) for _ in range(700)]
    async with running(desk) as run:
        for world in worlds:
            run.enter(world)
            await trio.sleep(0.001)
        await trio.sleep(0.31)
        desk.packets.clear()
        await trio.sleep(3)
    assert len(desk.packets) == 10
    assert {count for _, count in desk.packets} == {700}


async def test_a_shard_that_does_not_lead_costs_nothing_until_a_step(
    autojump_clock: Clock,
) -> None:
    """Neither a look nor a wake of the task."""
    desk = Desk()
    world = World(desk, leads=False, until=NEVER)
    async with running(desk) as run:
        gate = run.enter(world)
        await trio.sleep(3600)
        assert world.looks == 1
        world.leads, world.until = True, FAR
        gate.stepped()
        await trio.sleep(0.02)
        assert world.when("renew") == [3600.01]


async def test_a_leader_without_a_lease_is_looked_at_soon(autojump_clock: Clock) -> None:
    """Its lease comes with an acknowledgement, which is no step."""
    desk = Desk()
    world = World(desk, until=NEVER)
    async with running(desk) as run:
        run.enter(world)
        await trio.sleep(0.99)
        assert world.looks == 21
        world.until = FAR
        await trio.sleep(0.07)
    assert world.when("renew")


async def test_a_step_of_an_open_shard_wakes_nobody(autojump_clock: Clock) -> None:
    """A busy writer makes thousands a second."""
    desk = Desk()
    world = World(desk, is_writing=True)
    async with running(desk) as run:
        gate = run.enter(world)
        await trio.sleep(0.65)
        before = world.looks
        for _ in range(1_000):
            gate.stepped()
        await trio.sleep(0.2)
        assert world.looks == before
        # One that ends its lead is told at once.
        world.leads, world.until = False, NEVER
        gate.stepped()
        await trio.sleep(0.001)
        assert world.looks == before + 1


async def test_who_was_deposed_while_capture_began_does_not_open(autojump_clock: Clock) -> None:
    """It takes a moment to begin."""
    desk = Desk()
    world = World(desk, deposed_by_beginning=True, leads=False)
    async with running(desk) as run:
        run.enter(world)
        await trio.sleep(1)
    assert not world.when("renew")


async def test_it_never_opens_before_capture_has_begun(autojump_clock: Clock) -> None:
    """Where something was injected meanwhile, beginning is tried again, not very often."""
    desk = Desk()
    world = World(desk, begins_in_vain=True)
    async with running(desk) as run:
        run.enter(world)
        await trio.sleep(1)
        assert not world.when("renew")
        assert 10 <= len(world.when("begin")) <= 21
        world.begins_in_vain = False
        await trio.sleep(0.1)
    assert world.when("renew")


async def test_a_slow_beginning_holds_up_no_other_shard(autojump_clock: Clock) -> None:
    """It is a task of its own term."""
    desk = Desk()
    slow, quick = World(desk), World(desk, is_writing=True)

    async def begin() -> None:
        await trio.sleep_forever()

    slow.begin_writing = begin  # type: ignore[method-assign]
    async with running(desk) as run:
        run.enter(slow)
        run.enter(quick)
        await trio.sleep(3)
        run.nursery.cancel_scope.cancel()
    assert len(quick.when("renew")) >= 10
    assert not slow.when("renew")


async def test_who_left_is_looked_at_no_more(autojump_clock: Clock) -> None:
    """The term closes the fence; nothing opens it after that."""
    desk = Desk()
    world = World(desk, is_writing=True)
    async with running(desk) as run:
        gate = run.enter(world)
        await trio.sleep(0.5)
        before = world.looks
        gate.stepped()
        gate.leave()
        await trio.sleep(5)
    assert world.looks == before


async def test_those_who_wait_are_told_when_something_turns_and_not_else(
    autojump_clock: Clock,
) -> None:
    """An archiver waits for the node to be the writer, and must not be woken for nothing."""
    desk = Desk()
    world = World(desk, is_writing=True)
    async with running(desk) as run:
        gate = run.enter(world)
        await trio.sleep(60)
        assert world.when("moved") == [0]
        world.leads, world.until = False, NEVER
        gate.stepped()
        await trio.sleep(60)
    assert world.when("moved") == [0, 60]


@pytest.mark.parametrize(
    ("leads", "lease_s", "lost"),
    [
        pytest.param(True, 0.0, 1, id="no quorum answers"),
        pytest.param(False, 0.0, 1, id="deposed after its lease"),
        pytest.param(True, 10**6, 0, id="a CONFIG is on its way"),
    ],
)
async def test_leases_that_run_out_are_counted(
    autojump_clock: Clock, *, leads: bool, lease_s: float, lost: int
) -> None:
    """Each once; what ends the writing for another reason is none."""
    desk = Desk()
    world = World(desk, is_writing=True)
    async with running(desk) as run:
        gate = run.enter(world)
        world.until = Instant(now() + SECOND)
        await trio.sleep(0.1)
        world.until, world.lease = NEVER, Instant(int(lease_s * SECOND))
        await trio.sleep(3)
        world.leads = leads
        gate.stepped()
        await trio.sleep(3)
        assert run.gates.leases_lost[world.shard] == lost


async def test_a_lead_that_is_handed_over_is_no_lost_lease(autojump_clock: Clock) -> None:
    """It is given up before its end."""
    desk = Desk()
    world = World(desk, is_writing=True)
    async with running(desk) as run:
        gate = run.enter(world)
        world.until = Instant(now() + SECOND)
        await trio.sleep(0.1)
        world.leads, world.until, world.lease = False, NEVER, NEVER
        gate.stepped()
        await trio.sleep(5)
        gate.stepped()
        await trio.sleep(1)
        assert not run.gates.leases_lost


@pytest.mark.parametrize(
    ("limits", "lost"),
    [
        (Limits(unfinalized_commits_max=3), Unfinal(commits=4)),
        (Limits(unfinalized_bytes_max=100), Unfinal(bytes=101)),
        (Limits(unfinalized_ms_max=500), Unfinal(oldest_ns=time.time_ns() - 10**10)),
    ],
)
async def test_too_much_that_is_not_final_closes_it_until_the_quorum_catches_up(
    autojump_clock: Clock, limits: Limits, lost: Unfinal
) -> None:
    """At once and once; it opens again by itself."""
    desk = Desk()
    world = World(desk, is_writing=True)
    async with running(desk, limits) as run:
        gate = run.enter(world)
        await trio.sleep(0.32)
        world.lost = lost
        await trio.sleep(1)
        world.lost = Unfinal(commits=3, bytes=100)
        await trio.sleep(1)
        assert not gate.is_held_back
        assert not run.gates.leases_lost
    closed, renewals = world.when("close"), world.when("renew")
    assert len(closed) == 1
    assert 0.3 <= closed[0] <= 0.4
    assert not [when for when in renewals if closed[0] < when < 1.32]
    assert [when for when in renewals if 1.32 <= when <= 1.4]


@pytest.mark.parametrize("step_s", [3_600, -3_600])
async def test_a_step_of_the_wall_clock_neither_holds_back_nor_lets_go(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    """How long a commit waits is counted by the clock that nobody sets."""
    desk = Desk()
    world = World(desk, is_writing=True)
    wall = [0]
    monkeypatch.setattr(time, "time_ns", lambda: wall[0] + now())
    async with running(desk, Limits(unfinalized_ms_max=500)) as run:
        gate = run.enter(world)
        await trio.sleep(0.32)
        world.lost = Unfinal(commits=1, oldest_ns=now())
        await trio.sleep(0.2)
        wall[0] = step_s * SECOND
        await trio.sleep(0.2)
        assert not gate.is_held_back
        await trio.sleep(0.2)
        assert gate.is_held_back


async def test_without_limits_nothing_holds_the_application_back(autojump_clock: Clock) -> None:
    """They are the operator's choice."""
    desk = Desk()
    world = World(desk, lost=Unfinal(commits=10**6, bytes=10**12, oldest_ns=0), is_writing=True)
    async with running(desk) as run:
        run.enter(world)
        await trio.sleep(1)
    assert not world.when("close")
