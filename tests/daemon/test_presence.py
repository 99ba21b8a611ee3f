"""What was archived and is deleted is found out, and what is only replaced or away is not."""

from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing

from basenet.archive.port import StoreUnavailable
from basenet.archive.uploader import ArchiveFacts, ArchiveState
from basenet.daemon.presence import ArchiveLost, Presence
from basenet.daemon.upkeep import History
from basenet.units import Seq
from tests.fakes.chain import Chain
from tests.fakes.memory_store import Fault, MemoryStore, always
from tests.fakes.shipping import NAMES, put_tip, ship, snapshot

COMMITS: Final = 8


class World:
    """An archive with a page set and a TIP, and its presence."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.chain = Chain(pages={1: bytes(512)})
        for _ in range(COMMITS):
            self.chain.random_commit(grow=1)
        ship(self.store, self.chain)
        self.tip_seq = self.chain.tip.head.seq
        put_tip(self.store, self.chain, self.tip_seq)
        self.archived_seq = self.tip_seq
        self.history = History()

    async def start(self, folder: Path) -> Presence:
        await snapshot(self.store, self.chain, folder)
        (self.base,) = self.store.names("/set/")
        self.history.base_name = self.base
        self.logs = self.store.names("/log/")
        self.store.calls.clear()
        return Presence(
            store=self.store,
            names=NAMES,
            lineage=self.chain.lineage,
            genesis_seq=Seq(1),
            history=self.history,
            facts=self.facts,
            has_tip=True,
        )

    def facts(self) -> ArchiveFacts:
        return ArchiveFacts(
            state=ArchiveState.IDLE,
            archived_seq=Seq(self.archived_seq),
            lag_frames=0,
            lag_bytes=0,
            lag_oldest_ns=None,
            last_success_ns=None,
            failures=0,
            last_error=None,
            puts=0,
            put_bytes=0,
            tip_seq=Seq(self.tip_seq),
            tip_puts=0,
            tip_error=None,
            archive_epoch=1,
            last_name=self.logs[-1],
        )


@pytest.mark.parametrize("what", ["genesis", "base", "newest", "TIP"])
async def test_what_a_restore_needs_is_missed(
    tmp_path: Path, what: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Each of the few objects, within seconds of work and within minutes of idleness."""
    world = World()
    presence = await world.start(tmp_path)
    gone = {
        "genesis": world.logs[0],
        "base": world.base,
        "newest": world.logs[-1],
        "TIP": NAMES.tip,
    }[what]
    del world.store.objects[gone]
    with pytest.raises(ArchiveLost) as raised, trio.fail_after(1_000):
        await presence.run()
    assert gone.startswith(str(raised.value).split(" ", 1)[0].rstrip("*"))
    assert autojump_clock.current_time() > 800
    world = World()
    presence = await world.start(tmp_path)
    del world.store.objects[gone]
    world.archived_seq += 1
    with pytest.raises(ArchiveLost), trio.fail_after(15):
        await presence.run()


async def test_a_wait_asks_before_it_says_archived(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """At most every two seconds; and what it found ends the shard's archiving."""
    world = World()
    presence = await world.start(tmp_path)
    assert await presence.confirm()
    assert world.store.calls == []
    await trio.sleep(3)
    assert await presence.confirm()
    asked = len(world.store.calls)
    assert asked == 4
    assert await presence.confirm()
    assert len(world.store.calls) == asked
    world.store.objects.clear()
    await trio.sleep(3)
    assert not await presence.confirm()
    assert not await presence.confirm()
    with pytest.raises(ArchiveLost), trio.fail_after(1):
        await presence.run()
    assert autojump_clock.current_time() < 20


async def test_what_is_replaced_or_out_of_reach_is_not_lost(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A snapshot that retention took for a newer one, and a store that does not answer."""
    world = World()
    presence = await world.start(tmp_path)
    data = world.store.objects.pop(world.base).data
    await trio.sleep(3)

    async def replace() -> None:
        await trio.sleep(0.5)
        world.store.put(world.base + "2", data)
        world.history.base_name = world.base + "2"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(replace)
        assert await presence.confirm()
    world.store.fate = always(Fault.FAIL)
    with pytest.raises(StoreUnavailable):
        await world.store.get(NAMES.tip)
    await trio.sleep(3)
    assert await presence.confirm()
    with trio.move_on_after(3_000) as scope:
        await presence.run()
    assert scope.cancelled_caught
    assert autojump_clock.current_time() > 3_000


async def test_a_log_that_retention_deleted_is_not_lost(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Found by `make soak` (seed 511): idle, with a snapshot of all that there is, past retention.

    The log was archived anew, deleted again, missed again, without end.
    """
    world = World()
    presence = await world.start(tmp_path)
    world.history.base_seq = world.chain.tip.head.seq
    del world.store.objects[world.logs[-1]]
    await trio.sleep(3)
    assert await presence.confirm()
    world.archived_seq += 1
    await trio.sleep(3)
    assert not await presence.confirm()
    assert autojump_clock.current_time() >= 6


async def test_a_lineage_of_which_nothing_is_archived_yet_misses_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The genesis waits for its upload."""
    world = World()
    presence = await world.start(tmp_path)
    world.archived_seq = 0
    for name in [*world.logs[:-1]]:
        del world.store.objects[name]
    await trio.sleep(3)
    assert await presence.confirm()
    assert autojump_clock.current_time() >= 3
