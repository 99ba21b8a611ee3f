"""When heartbeats are held back because the journal does not get on."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from basenet.daemon.cluster.watch import JournalWatch
from basenet.daemon.journalist import Journalist


class Disk:
    """A journal's thread that answers while ``runs`` is set."""

    def __init__(self) -> None:
        self.asked_bytes = 0
        self.runs = trio.Event()
        self.runs.set()

    async def perform(self, act: Callable[[Any], object]) -> None:
        await self.runs.wait()
        act(SimpleNamespace())


async def test_a_journal_has_two_seconds_and_more_for_much_work(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001  (virtual time)
) -> None:
    """Ten megabytes a second; what was handed over before the last answer counts no more."""
    disk = Disk()
    watch = JournalWatch(cast("Journalist", disk), trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(10.1)
        assert watch.is_alive()
        disk.runs = trio.Event()
        await trio.sleep(2.4)
        assert not watch.is_alive()
        disk.asked_bytes += 100_000_000
        assert watch.is_alive()
        await trio.sleep(9.0)
        assert watch.is_alive()
        await trio.sleep(1.2)
        assert not watch.is_alive()
        disk.runs.set()
        await trio.sleep(0.6)
        assert watch.is_alive()
        disk.runs = trio.Event()
        await trio.sleep(2.6)
        assert not watch.is_alive()
        nursery.cancel_scope.cancel()


async def test_a_disk_that_hangs_has_a_minute_at_most(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001  (virtual time)
) -> None:
    disk = Disk()
    watch = JournalWatch(cast("Journalist", disk), trio.current_time)
    disk.asked_bytes += 10_000_000_000
    await trio.sleep(59)
    assert watch.is_alive()
    await trio.sleep(2)
    assert not watch.is_alive()
