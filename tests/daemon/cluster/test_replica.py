"""A replica between two events: when it is woken, and who looks at what a step changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from basenet.daemon.cluster import replica as driving
from basenet.daemon.cluster.perform import Performer
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.cluster.replica import Driver
from basenet.engine.effects import Effect, Judge, Send
from basenet.engine.events import FramesCaptured, Instant, PeerLost, Ticked
from basenet.wire.message import Need, Vote, Wish
from tests.engine.cluster import Cluster, captured, key_of, received
from tests.engine.test_voting import hand, make_frame, make_proposal, quiet_cluster

_NS = 1_000_000_000


@dataclass
class Told:
    """The performer, the peers and the shard in one: notes what a step leads to, and when."""

    at_s: float = 0.0
    put_at: list[tuple[float, list[Effect]]] = field(default_factory=list)
    given: list[tuple[bytes | None, Callable[[], None] | None]] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    is_undoing: bool = False

    def put(
        self,
        effects: Sequence[Effect],
        *,
        cursor: bytes | None = None,
        sync: Callable[[], None] | None = None,
    ) -> None:
        self.looks.append("put")
        self.put_at.append((trio.current_time() - self.at_s, list(effects)))
        self.given.append((cursor, sync))

    def settle(self) -> None:
        self.looks.append("settle")

    def on_step(self) -> None:
        self.looks.append("step")

    def times_of(self, kind: type) -> list[float]:
        """When messages of a kind were sent, in seconds."""
        return [
            round(at_s, 3)
            for at_s, effects in self.put_at
            if any(isinstance(one, Send) and isinstance(one.message, kind) for one in effects)
        ]


def drive(cluster: Cluster, number: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Driver, Told]:
    """Drive a node of ``cluster`` in the time of trio's clock, from the cluster's time on."""
    begin_s = trio.current_time()
    told = Told(at_s=begin_s)

    def instant() -> Instant:
        return Instant(cluster.now + round((trio.current_time() - begin_s) * _NS))

    monkeypatch.setattr(driving, "instant", instant)
    driver = Driver(
        replica=cluster.nodes[number].replica,
        performer=cast("Performer", told),
        peers=cast("Peers", told),
        on_step=told.on_step,
    )
    return driver, told


async def test_a_replica_is_woken_when_something_is_due(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vote that came to nothing is repeated, and after 5 s another view is wished for."""
    del autojump_clock
    cluster = quiet_cluster()
    frame = make_frame(cluster.genesis)
    hand(cluster, 1, frame)
    cluster.tell(1, 0, make_proposal(cluster, frame))
    (question,) = [one for one in cluster.nodes[1].effects if isinstance(one, Judge)]
    cluster.give(1, cluster.verdict(question))
    driver, told = drive(cluster, 1, monkeypatch)
    with trio.move_on_after(5.6):
        await driver.run_alarms()
    assert told.times_of(Vote)[:5] == [0.25, 0.5, 0.75, 1.0, 1.25]
    assert told.times_of(Wish) == [5.0, 5.25, 5.5]
    assert len(told.put_at) <= 30


async def test_a_step_may_move_the_alarm_forward(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sleeps until the silence is over is woken for what has come in between."""
    del autojump_clock
    cluster = quiet_cluster()
    cluster.nodes[1].lane.leader_heard = cluster.now
    driver, told = drive(cluster, 1, monkeypatch)
    driver.step(Ticked())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run_alarms)
        await trio.sleep(0.1)
        driver.step(PeerLost(peer=key_of(0)))
        await trio.sleep(0.6)
        nursery.cancel_scope.cancel()
    assert told.times_of(Wish) == [0.1, 0.35, 0.6]


async def test_an_alarm_that_is_set_gives_way_to_an_earlier_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a vote waits to be repeated, a proposal comes whose frames do not: 50 ms later."""
    del autojump_clock
    cluster = quiet_cluster()
    first = make_frame(cluster.genesis)
    hand(cluster, 1, first)
    cluster.tell(1, 0, make_proposal(cluster, first))
    driver, told = drive(cluster, 1, monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run_alarms)
        await trio.sleep(0.1)
        driver.step(received(0, make_proposal(cluster, make_frame(first))))
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert told.times_of(Need) == [0.15]


async def test_who_has_nothing_to_wait_for_sleeps(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle shard of one voter is never woken, and one step more wakes nobody."""
    del autojump_clock
    cluster = quiet_cluster(voters=1)
    driver, told = drive(cluster, 0, monkeypatch)
    assert driver.replica.wake_at is None
    with trio.move_on_after(3_600):
        await driver.run_alarms()
    assert told.put_at == []


async def test_after_each_step_everybody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The effects are queued first; then the lane is read again, and the shard may do more."""
    cluster = Cluster(boots=False)
    cluster.boot(cluster.nodes[0])
    driver, told = drive(cluster, 0, monkeypatch)
    driver.boot()
    assert told.looks == ["put", "settle", "step"]
    assert told.put_at[0][1]
    driver.step(Ticked())
    assert told.looks == ["put", "settle", "step"] * 2


async def test_what_is_sealed_goes_with_the_end_of_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cursor and sync go with the effects; nothing is sealed while something is undone."""
    cluster = quiet_cluster()
    driver, told = drive(cluster, 0, monkeypatch)
    assert driver.can_seal
    told.is_undoing = True
    assert not driver.can_seal
    told.is_undoing = False
    follower, _ = drive(cluster, 1, monkeypatch)
    assert not follower.can_seal
    event = FramesCaptured(frames=(captured(1),))

    def sync() -> None:
        pass

    effects = driver.seal(event, cursor=b"here", sync=sync)
    assert effects
    assert told.given == [(b"here", sync)]
    assert told.put_at[0][1] == effects
    assert told.looks == ["put", "settle", "step"]
    assert driver.replica.place.seq == 2
