"""Who is rung when."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from basenet.daemon.waker import Doorbell, Waker
from basenet.sqlite.signals import Signal
from basenet.sqlite.wake import open_wake

WAIT_S = 10


@asynccontextmanager
async def waking(*, poll_only: bool = False) -> AsyncIterator[Waker]:
    wake = open_wake(poll_only=poll_only)
    try:
        async with trio.open_nursery() as nursery:
            waker = Waker(wake)
            nursery.start_soon(waker.run)
            yield waker
            nursery.cancel_scope.cancel()
    finally:
        wake.close()


async def heard(doorbell: Doorbell, signal: Signal) -> None:
    """Return when ``signal`` was rung."""
    with trio.fail_after(WAIT_S):
        while signal not in await doorbell.wait(None):
            pass


# Doorbell


async def test_signals_are_kept_until_somebody_looks() -> None:
    """A shard that is busy misses none, hears each once, and hears it only once."""
    doorbell = Doorbell()
    doorbell.ring(Signal.WRITTEN)
    doorbell.ring(Signal.OPENED, Signal.WRITTEN)
    assert await doorbell.wait(None) == {Signal.WRITTEN, Signal.OPENED}
    assert await doorbell.wait(0) == frozenset()


async def test_a_ring_without_a_signal_wakes(autojump_clock: MockClock) -> None:
    """It says no more than: look."""
    assert autojump_clock.autojump_threshold == 0
    doorbell = Doorbell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(doorbell.wait, None)
        await wait_all_tasks_blocked()
        doorbell.ring()
    assert trio.current_time() == 0


async def test_silence_ends_after_the_given_time(autojump_clock: MockClock) -> None:
    """With no signal, and not before."""
    assert autojump_clock.autojump_threshold == 0
    doorbell = Doorbell()
    assert await doorbell.wait(3.5) == frozenset()
    assert trio.current_time() == 3.5


# Waker


async def test_a_write_to_the_log_rings_its_shard_alone(tmp_path: Path) -> None:
    """By inotify; the neighbour in the same directory sleeps on."""
    for name in ("a.db", "b.db", "a.db-wal", "b.db-wal"):
        (tmp_path / name).write_bytes(b"x")
    async with waking() as waker:
        first, second = waker.doorbell("a"), waker.doorbell("b")
        waker.wake.watch("a", tmp_path / "a.db")
        waker.wake.watch("b", tmp_path / "b.db")
        with (tmp_path / "a.db-wal").open("ab") as file:
            file.write(b"more")
        await heard(first, Signal.WRITTEN)
        assert Signal.WRITTEN not in await second.wait(0)


async def test_a_name_that_comes_rings_whoever_shares_the_key(tmp_path: Path) -> None:
    """The supervisor has one doorbell for all directories."""
    async with waking() as waker:
        doorbell = waker.doorbell("listing")
        waker.share("listing of a", doorbell)
        waker.wake.watch_directory("listing of a", tmp_path)
        (tmp_path / "new.db").write_bytes(b"x")
        await heard(doorbell, Signal.LISTING_CHANGED)


async def test_a_look_is_repeated_since_a_wake_can_precede_its_commit() -> None:
    """SQLite moves its header last, by a mapping that no event betrays."""
    async with waking() as waker:
        doorbell = waker.doorbell("a")
        waker.look_again("a")
        with trio.fail_after(WAIT_S):
            for _ in range(3):
                assert await doorbell.wait(None) == frozenset()


async def test_a_forgotten_shard_is_not_rung(tmp_path: Path) -> None:
    """Its repeated looks end with it; a new shard of that name gets a doorbell of its own."""
    (tmp_path / "a.db").write_bytes(b"x")
    async with waking() as waker:
        old = waker.doorbell("a")
        waker.wake.watch("a", tmp_path / "a.db")
        waker.look_again("a")
        waker.forget("a")
        assert waker._recheck.seconds_to_next(time.monotonic_ns()) is None
        new = waker.doorbell("a")
        assert new is not old
        await old.wait(0)
        (tmp_path / "a.db-wal").write_bytes(b"x")
        await heard(new, Signal.WAL_APPEARED)
        assert await old.wait(0) == frozenset()


async def test_without_inotify_the_same_signals_come_by_polling(tmp_path: Path) -> None:
    """Nobody else needs to know which it is."""
    (tmp_path / "a.db").write_bytes(b"x")
    async with waking(poll_only=True) as waker:
        doorbell = waker.doorbell("a")
        waker.wake.watch("a", tmp_path / "a.db")
        waker.look_again("a")
        (tmp_path / "a.db-wal").write_bytes(b"x")
        await heard(doorbell, Signal.WAL_APPEARED)
