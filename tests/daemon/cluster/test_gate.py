# ruff: noqa: ARG001  (the clock of a test is virtual because it is asked for)
"""When the application may write: only while all is true, and renewed in time."""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import pytest
import trio
import trio.testing

from basenet.config.model import ClusterConfig
from basenet.daemon.cluster.gate import NEVER, Gate
from basenet.daemon.cluster.guard import Guard
from basenet.daemon.cluster.writing import Unfinal
from basenet.engine.events import Instant
from basenet.units import ShardId

Clock = trio.testing.MockClock


@dataclass
class World:
    """A term, its file, its fence and the guardian in one; ``told``: what was done, and when."""

    shard: ShardId = field(default=ShardId("app"))
    leads: bool = True
    until: Instant = field(default=Instant(5))
    lost: Unfinal = field(default_factory=Unfinal)
    told: list[tuple[float, str]] = field(default_factory=list)
    deposed_by_beginning: bool = False

    @property
    def file(self) -> "World":
        return self

    @property
    def fence(self) -> "World":
        return self

    def _tell(self, what: str) -> None:
        self.told.append((round(trio.current_time() - self.began_s, 3), what))

    def writable_until(self) -> Instant:
        return self.until

    def unfinal(self) -> Unfinal:
        return self.lost

    async def begin_writing(self) -> None:
        self._tell("begin")
        if self.deposed_by_beginning:
            self.until = NEVER

    async def stepped(self) -> None:
        self._tell("wait")
        await self.step.wait()

    def close_fence(self) -> None:
        self._tell("close")

    def moved(self) -> None:
        pass

    def renew(self, until: Instant) -> None:
        self._tell(f"renew {until}")

    def flush(self) -> None:
        self._tell("flush")

    def __post_init__(self) -> None:
        self.step = trio.Event()
        self.began_s = 0.0

    def acts(self) -> list[str]:
        return [what for _, what in self.told]


@dataclass
class Limits:
    """The part of the configuration that the gate reads."""

    unfinalized_commits_max: int | None = None
    unfinalized_bytes_max: int | None = None
    unfinalized_ms_max: int | None = None


async def run_for(world: World, seconds: float, limits: Limits | None = None) -> Gate:
    """Run a gate over ``world`` for so long."""
    gate = Gate(world, cast("ClusterConfig", limits or Limits()), cast("Guard", world))  # type: ignore[arg-type]
    world.began_s = trio.current_time()
    with trio.move_on_after(seconds):
        await gate.run()
    return gate


async def test_the_fence_is_renewed_well_within_a_lease(autojump_clock: Clock) -> None:
    """Capture has begun each time before it opens."""
    world = World()
    await run_for(world, 1.9)
    assert world.acts() == ["begin", "renew 5", "flush"] * 10
    times = [when for when, what in world.told if what == "flush"]
    assert max(b - a for a, b in pairwise(times)) <= 0.3


async def test_who_may_not_write_waits_for_a_step(autojump_clock: Clock) -> None:
    """A leader looks again soon, since its lease comes without one; others sleep."""
    follower = World(leads=False, until=NEVER)
    limits = cast("ClusterConfig", Limits())
    gate = Gate(follower, limits, cast("Guard", follower))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert follower.acts() == ["wait"]
    leader = World(until=NEVER)
    await run_for(leader, 0.99)
    assert leader.acts() == ["wait"] * 20


async def test_a_step_opens_the_fence(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the replica says so."""
    world = World(leads=False, until=NEVER)

    async def stepped() -> None:
        await trio.sleep(7)
        world.until = Instant(9)

    monkeypatch.setattr(world, "stepped", stepped)
    await run_for(world, 7.1)
    assert world.told == [(7, "begin"), (7, "renew 9"), (7, "flush")]


async def test_who_was_deposed_while_capture_began_does_not_open(autojump_clock: Clock) -> None:
    """It takes a moment to begin."""
    world = World(deposed_by_beginning=True, leads=False)
    await run_for(world, 1)
    assert "flush" not in world.acts()


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
    world = World()

    async def fall_behind() -> None:
        await trio.sleep(0.3)
        world.lost = lost
        await trio.sleep(1)
        world.lost = Unfinal(commits=3, bytes=100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fall_behind)
        gate = await run_for(world, 2, limits)
        nursery.cancel_scope.cancel()
    closed = [when for when, what in world.told if what == "close"]
    renewals = [when for when, what in world.told if what == "flush"]
    assert len(closed) == 1
    assert 0.3 <= closed[0] <= 0.4
    assert not [when for when in renewals if closed[0] < when < 1.3]
    assert [when for when in renewals if 1.3 <= when <= 1.4]
    assert not gate.is_held_back


async def test_without_limits_nothing_holds_the_application_back(autojump_clock: Clock) -> None:
    """They are the operator's choice."""
    world = World(lost=Unfinal(commits=10**6, bytes=10**12, oldest_ns=0))
    await run_for(world, 1)
    assert "close" not in world.acts()
