"""The journal's cap: who loses what when the archive is away for too long."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from basenet.daemon.keeper import Keeper
from basenet.daemon.node import Node
from basenet.daemon.supervisor import Supervisor
from basenet.journal.records import ShardRecord
from basenet.units import GIB, KIB
from tests.daemon.model import loaded
from tests.daemon.node import make_shard, running_node
from tests.fakes.memory_store import MemoryStore

WAIT_S = 20


@asynccontextmanager
async def archiving_node(folder: Path, *, journal_bytes_max: int = GIB) -> AsyncIterator[Node]:
    """Run a node that has an archive, to which nothing comes through."""
    async with running_node(
        folder, shards="/data/a.db", journal_bytes_max=journal_bytes_max, store=MemoryStore()
    ) as node:
        yield node


def keeper_of(node: Node, *names: tuple[str, int, int]) -> Keeper:
    """Return a keeper over shards, each given as (name, commits, archived seq)."""
    supervisor = Supervisor(node)
    for name, commits, archived in names:
        shard = make_shard(node, name, commits=commits, archived=archived)
        supervisor.shards[shard.shard] = shard
    return Keeper(node, supervisor)


def record_of(node: Node, keeper: Keeper, index: int) -> ShardRecord:
    shard = list(keeper._supervisor.shards.values())[index]
    return loaded(node.journalist.journal, shard.shard)[0]


async def run_until(keeper: Keeper, is_so: Callable[[], bool]) -> None:
    """Let ``keeper`` look until ``is_so``; it drops within the look that finds the journal full."""
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            while not is_so():  # noqa: ASYNC110  (the journal's thread sets no event)
                await trio.sleep(0.002)
            nursery.cancel_scope.cancel()


async def test_below_the_cap_nothing_is_dropped(tmp_path: Path) -> None:
    """Not even what is archived: it may mend a file that fell behind."""
    async with archiving_node(tmp_path) as node:
        keeper = keeper_of(node, ("a", 9, 9))
        before = node.journalist.journal.count_bytes()
        await run_until(keeper, lambda: keeper.journal_bytes > 0)
        assert keeper.journal_bytes == before == node.journalist.journal.count_bytes()


async def test_the_shard_that_holds_most_loses_its_oldest_frames(tmp_path: Path) -> None:
    """Down to nine tenths of the cap; its archive has a gap then, and the others none."""
    limit = 64 * KIB
    async with archiving_node(tmp_path, journal_bytes_max=limit) as node:
        keeper = keeper_of(node, ("small", 8, 1), ("large", 40, 1))
        journal = node.journalist.journal
        small, large = keeper._supervisor.shards.values()
        await run_until(keeper, lambda: large.archiver.dropped > 0)
        assert len(journal.frame_sizes(small.shard, 0)) == 9
        sizes = journal.frame_sizes(large.shard, 0)
        assert sizes[-1][0] == 41
        first = sizes[0][0]
        assert 1 < first < 41
        assert journal.count_bytes() <= 0.9 * limit < journal.count_bytes() + sizes[0][1]
        assert record_of(node, keeper, 0).broken_seq is None
        assert record_of(node, keeper, 1).broken_seq == first - 1
        assert (small.archiver.dropped, large.archiver.dropped) == (0, first - 2)
        assert large.archiver.history.is_broken


async def test_what_is_archived_goes_without_a_gap(tmp_path: Path) -> None:
    """It was kept for convenience only."""
    async with archiving_node(tmp_path, journal_bytes_max=40 * KIB) as node:
        keeper = keeper_of(node, ("a", 40, 40))
        journal = node.journalist.journal
        (shard,) = keeper._supervisor.shards.values()
        await run_until(keeper, lambda: journal.first_seq(shard.shard) > 1)
        assert journal.count_bytes() <= 36 * KIB
        assert record_of(node, keeper, 0).broken_seq is None
        assert shard.archiver.dropped == 0


async def test_the_newest_frame_stays_whatever_the_cap(tmp_path: Path) -> None:
    """A restart goes on from it."""
    async with archiving_node(tmp_path, journal_bytes_max=1) as node:
        keeper = keeper_of(node, ("a", 5, 6))
        await keeper._drop(1 << 40)
        (shard,) = keeper._supervisor.shards
        sizes = node.journalist.journal.frame_sizes(shard, 0)
        assert [seq for seq, _ in sizes] == [6]


async def test_a_lineage_that_never_reached_the_archive_begins_anew(tmp_path: Path) -> None:
    """Without its genesis it could never be placed, so its frames are not dropped one by one."""
    async with archiving_node(tmp_path, journal_bytes_max=1) as node:
        keeper = keeper_of(node, ("a", 5, 0))
        await keeper._drop(4 * KIB)
        (shard,) = keeper._supervisor.shards.values()
        assert shard._is_reborn
        assert len(node.journalist.journal.frame_sizes(shard.shard, 0)) == 6
        assert record_of(node, keeper, 0).broken_seq is None


async def test_a_node_without_shards_has_nothing_to_drop(tmp_path: Path) -> None:
    """The journal may be large by a shard that is not configured any more."""
    async with archiving_node(tmp_path, journal_bytes_max=1) as node:
        keeper = keeper_of(node)
        make_shard(node, "gone", commits=3, archived=0)
        await keeper._drop(4 * KIB)
        assert node.journalist.journal.count_bytes() > 0


async def test_a_dropped_frame_is_counted_once(tmp_path: Path) -> None:
    """An outage drops again and again, and the metric is the number of lost restore points."""
    async with archiving_node(tmp_path, journal_bytes_max=1) as node:
        keeper = keeper_of(node, ("a", 40, 1))
        (shard,) = keeper._supervisor.shards.values()
        for _ in range(3):
            await keeper._drop(10 * KIB)
        assert shard.archiver.dropped == node.journalist.journal.first_seq(shard.shard) - 2


async def test_without_an_archive_final_frames_go_and_nothing_is_missed(tmp_path: Path) -> None:
    """Nobody waits for them: no gap, no error, and above all no new lineage each time."""
    limit = 40 * KIB
    async with running_node(tmp_path, shards="/data/a.db", journal_bytes_max=limit) as node:
        keeper = keeper_of(node, ("a", 40, 0))
        journal = node.journalist.journal
        (shard,) = keeper._supervisor.shards.values()
        await run_until(keeper, lambda: shard.progress.archived_seq > 0)
        assert journal.count_bytes() <= 0.9 * limit
        assert not shard._is_reborn
        assert shard.archiver.dropped == 0
        assert record_of(node, keeper, 0).broken_seq is None
        assert journal.frame_sizes(shard.shard, 0)[-1][0] == 41
