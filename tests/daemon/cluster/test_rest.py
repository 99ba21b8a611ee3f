# ruff: noqa: ARG001  (the clock of a test is virtual because it is asked for)
"""Shards to which nothing happens: renewed together without a look, until anything happens."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from basenet.config.model import ClusterConfig
from basenet.daemon.cluster.gate import NEVER, Gate, Gates
from basenet.daemon.cluster.guard import Fence, Guard
from basenet.daemon.cluster.writing import Unfinal
from basenet.engine.events import Instant
from basenet.engine.lease import SharedLease
from basenet.guardian import protocol
from basenet.guardian.process import make_pair
from basenet.guardian.protocol import Close, Drop, Renew, Share
from basenet.units import ShardId

Clock = trio.testing.MockClock

SECOND = 1_000_000_000
LEASE = 1 * SECOND
# Between two renewals, and a little more.
TICK_S = 0.31


def now() -> Instant:
    return Instant(int(trio.current_time() * SECOND))


@dataclass
class Limits:
    """The part of the configuration that the gates read."""

    unfinalized_commits_max: int | None = None
    unfinalized_bytes_max: int | None = None
    unfinalized_ms_max: int | None = None


@dataclass(eq=False)
class Lease:
    """What a quorum grants, until the test says otherwise."""

    ends: Instant | None = None

    @property
    def until(self) -> Instant:
        return Instant(now() + LEASE) if self.ends is None else self.ends


@dataclass(eq=False)
class World:
    """A term and its file in one, with a real fence."""

    fence: Fence
    lease: Lease
    shard: ShardId = field(default=ShardId("app"))
    leads: bool = True
    is_allowed: bool = True
    is_busy: bool = False
    is_writing: bool = True
    looks: int = 0

    @property
    def file(self) -> "World":
        return self

    def writable_until(self) -> Instant:
        self.looks += 1
        until = self.lease.until
        return until if self.leads and self.is_allowed and until > now() else NEVER

    def lease_until(self) -> Instant:
        return self.lease.until if self.leads else NEVER

    def shared_lease(self) -> SharedLease | None:
        return None if self.is_busy else cast("SharedLease", self.lease)

    def unfinal(self) -> Unfinal:
        return Unfinal()

    async def begin_writing(self) -> None:
        self.is_writing = True

    def close_fence(self) -> None:
        self.fence.close()

    def moved(self) -> None:
        pass


class Run:
    """Gates at work over real fences; what the guardian is told is written down."""

    def __init__(self, limits: Limits | None, nursery: trio.Nursery) -> None:
        self.ours, theirs = make_pair()
        self.ours.setblocking(False)
        self.guard = Guard(theirs)
        self.theirs = theirs
        self.nursery = nursery
        self.worlds: list[World] = []
        self.entered: list[Gate] = []
        self.gates = Gates(
            cast("ClusterConfig", limits or Limits()), self.guard, lease=LEASE, clock=now
        )

    def enter(self, count: int, lease: Lease) -> None:
        def start(task: Callable[[], Awaitable[None]]) -> None:
            self.nursery.start_soon(task)

        for _ in range(count):
            number = len(self.worlds)
            fence = Fence(
                self.guard, number=number, path=Path(f"/{number}.db"), database_inode=(0, number)
            )
            fence.on_held(0, ())
            world = World(fence, lease)
            self.worlds.append(world)
            self.entered.append(self.gates.enter(world, start))  # type: ignore[arg-type]

    def heard(self) -> list[protocol.ToGuardian]:
        """What the guardian was told since the last call."""
        messages: list[protocol.ToGuardian] = []
        while True:
            try:
                packet = self.ours.recv(protocol.PACKET_BYTES_MAX)
            except BlockingIOError:
                return messages
            messages.append(cast("protocol.ToGuardian", protocol.decode(packet)))

    async def rest(self) -> None:
        """Let all come to rest, and forget what was told until then."""
        await trio.sleep(2 * TICK_S)
        assert all(gate.rest is not None for gate in self.entered)
        self.heard()
        for world in self.worlds:
            world.looks = 0


@asynccontextmanager
async def running(
    count: int = 3, *, limits: Limits | None = None, lease: Lease | None = None
) -> AsyncIterator[Run]:
    async with trio.open_nursery() as nursery:
        run = Run(limits, nursery)
        with run.ours, run.theirs:
            run.enter(count, lease or Lease())
            nursery.start_soon(run.gates.run)
            nursery.start_soon(run.guard.run)
            yield run
            nursery.cancel_scope.cancel()


def renewed(messages: Iterable[protocol.ToGuardian]) -> set[int]:
    """Return the fences that were renewed, however."""
    found: set[int] = set()
    for message in messages:
        if isinstance(message, Share):
            found |= set(message.numbers())
        elif isinstance(message, Renew):
            found |= {number for number, _ in message.leases}
    return found


def fill(connection: socket.socket) -> int:
    """Send until no more fits; return how many packets did."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            connection.send(protocol.encode(Drop(fence=99)))
            count += 1
    return count


async def test_shards_at_rest_are_renewed_by_one_packet_and_hardly_looked_at(
    autojump_clock: Clock,
) -> None:
    """A thousand of them for a minute: each is looked at some six times, and never closed."""
    async with running(1_000) as run:
        await run.rest()
        for _ in range(20):
            await trio.sleep(0.3)
            (together, *others) = run.heard()
            assert isinstance(together, Share)
            assert set(together.numbers()) == set(range(1_000))
            assert together.until - now() > 0.6 * LEASE
            assert len(renewed(others)) <= 31
        await trio.sleep(60)
        assert all(4 <= world.looks <= 9 for world in run.worlds)
        assert all((world.fence.is_open_until or 0) > now() for world in run.worlds)


async def test_nothing_rests_before_all_that_a_step_led_to_is_done(autojump_clock: Clock) -> None:
    """What is settled, applied or undone after a step may close the fence without another one."""
    async with running() as run:
        run.worlds[0].is_busy = True
        await trio.sleep(3)
        assert [gate.rest is None for gate in run.entered] == [True, False, False]
        assert run.worlds[0].looks >= 9
        run.worlds[0].is_busy = False
        await trio.sleep(TICK_S)
        assert run.entered[0].rest is not None


async def test_who_steps_is_looked_at_before_the_next_renewal(autojump_clock: Clock) -> None:
    """What the step led to may forbid it; it rests again when it has rested for a while."""
    async with running() as run:
        await run.rest()
        run.worlds[0].is_allowed = False
        run.entered[0].stepped()
        await trio.sleep(5)
        assert renewed(run.heard()) == {1, 2}
        assert run.worlds[0].looks > 5
        run.worlds[0].is_allowed = True
        await trio.sleep(0.06)
        assert 0 in renewed(run.heard())
        assert run.entered[0].rest is None
        await trio.sleep(TICK_S)
        assert run.entered[0].rest is not None


async def test_who_steps_again_and_again_never_rests(autojump_clock: Clock) -> None:
    """A busy shard is looked at as often as ever, and costs the others nothing."""
    async with running(30) as run:
        await run.rest()
        for _ in range(100):
            run.entered[0].stepped()
            await trio.sleep(0.05)
        assert run.entered[0].rest is None
        assert 14 <= run.worlds[0].looks <= 18
        assert run.worlds[1].looks <= 1
        assert renewed(run.heard()) == set(range(30))


async def test_who_is_deposed_by_a_step_is_renewed_no_more(autojump_clock: Clock) -> None:
    """And that is no lost lease: it was given up before its end, however old the last look is."""
    async with running() as run:
        await run.rest()
        await trio.sleep(7)
        run.heard()
        run.worlds[0].leads = False
        run.entered[0].stepped()
        await trio.sleep(5)
        assert renewed(run.heard()) == {1, 2}
        assert not run.gates.leases_lost


@pytest.mark.parametrize("how", ["close", "held", "drop", "replaced"])
async def test_who_closes_a_fence_takes_it_out(autojump_clock: Clock, how: str) -> None:
    """Whoever mends or marks the file asks for it; from then on no renewal opens it."""
    async with running() as run:
        await run.rest()
        world, fence = run.worlds[0], run.worlds[0].fence
        world.is_allowed = False
        if how == "close":
            fence.close()
        elif how == "held":
            run.nursery.start_soon(fence.held)
            await trio.testing.wait_all_tasks_blocked()
        elif how == "drop":
            fence.drop()
        else:
            fence.mark_replaced()
        assert run.entered[0].rest is None
        assert (
            run.heard()
            == {
                "close": [Close(fence=0, ticket=1)],
                "held": [Close(fence=0, ticket=1)],
                "drop": [Drop(fence=0)],
                "replaced": [],
            }[how]
        )
        await trio.sleep(5)
        assert renewed(run.heard()) == {1, 2}


async def test_a_fence_that_is_asked_for_stays_out_while_somebody_waits(
    autojump_clock: Clock,
) -> None:
    """Though the replica would let it be open."""
    async with running() as run:
        await run.rest()
        with trio.move_on_after(5):
            await run.worlds[0].fence.held()
        assert renewed(run.heard()) == {1, 2}
        await trio.sleep(2 * TICK_S)
        assert renewed(run.heard()) == {0, 1, 2}


async def test_a_term_that_ends_takes_its_fence_out(autojump_clock: Clock) -> None:
    """Harmless when repeated, and for the last one."""
    async with running() as run:
        await run.rest()
        for gate in run.entered[:2]:
            gate.leave()
            gate.leave()
        await trio.sleep(1)
        assert renewed(run.heard()) == {2}
        run.entered[2].leave()
        await trio.sleep(3600)
        assert renewed(run.heard()) == set()


async def test_a_lease_that_ends_is_looked_for_in_each_shard(autojump_clock: Clock) -> None:
    """No quorum answers: all are closed, and each loss is counted once."""
    lease = Lease()
    async with running(lease=lease) as run:
        await run.rest()
        lease.ends = Instant(now() + LEASE)
        await trio.sleep(4)
        assert all(gate.rest is None and not gate.is_open for gate in run.entered)
        assert max(world.fence.is_open_until or 0 for world in run.worlds) <= lease.ends
        assert sum(run.gates.leases_lost.values()) == 3
        lease.ends = None
        await trio.sleep(3 * TICK_S)
        assert all(gate.rest is not None for gate in run.entered)


async def test_shards_that_part_are_looked_at_each(autojump_clock: Clock) -> None:
    """One of them may have lost what the others still have."""
    lease = Lease()
    async with running(lease=lease) as run:
        await run.rest()
        for world in run.worlds[1:]:
            world.lease = Lease()
        run.worlds[0].lease = Lease(ends=NEVER)
        lease.ends = NEVER
        await trio.sleep(2)
        assert renewed(run.heard()) == {1, 2}
        assert [gate.rest is None for gate in run.entered] == [True, False, False]
        assert run.entered[1].rest is not run.entered[2].rest


async def test_what_was_missed_is_noticed_in_turn(autojump_clock: Clock) -> None:
    """Each is looked at once in ten seconds, though nothing has told of anything."""
    async with running(100) as run:
        await run.rest()
        for world in run.worlds[:50]:
            world.is_allowed = False
        await trio.sleep(12)
        run.heard()
        await trio.sleep(2 * TICK_S)
        assert renewed(run.heard()) == set(range(50, 100))


async def test_with_a_limit_none_rests(autojump_clock: Clock) -> None:
    """What is captured and not final is no step."""
    async with running(limits=Limits(unfinalized_commits_max=10)) as run:
        await trio.sleep(3)
        assert all(gate.rest is None for gate in run.entered)
        assert renewed(run.heard()) == {0, 1, 2}


async def test_what_waits_for_a_deaf_guardian_is_never_of_who_has_left(
    autojump_clock: Clock,
) -> None:
    """A renewal that is made when it can be sent names only those who are at rest then."""
    async with running() as run:
        await run.rest()
        filled = fill(run.theirs)
        await trio.sleep(2 * TICK_S)  # a packet of all three waits now
        run.worlds[0].is_allowed = False
        run.worlds[0].fence.close()
        run.worlds[1].is_allowed = False
        run.entered[1].stepped()
        told = []
        while len(told) < filled + 3:
            told += run.heard()
            await trio.sleep(0.01)
        behind = told[filled:]
        closing = behind.index(Close(fence=0, ticket=1))
        assert renewed(behind[: closing + 1]) <= {0, 1, 2}
        assert renewed(behind[closing + 1 :]) <= {2}
        run.heard()
        await trio.sleep(1)
        assert renewed(run.heard()) == {2}


def test_a_pair_of_sockets_keeps_packets_apart() -> None:
    """What the tests here rely on: one packet is one message."""
    ours, theirs = make_pair()
    with ours, theirs:
        theirs.send(protocol.encode(Share(until=5, fences=protocol.pack_fences([1, 2]))))
        theirs.send(protocol.encode(Drop(fence=3)))
        packet = ours.recv(protocol.PACKET_BYTES_MAX, socket.MSG_PEEK)
        share = protocol.decode(packet)
        assert isinstance(share, Share)
        assert (share.until, share.numbers()) == (5, (1, 2))
