"""When a node of the role archive archives, and what is counted; the rest is in tests/system/."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from basenet.archive.lease import LEASE_TTL_SECONDS
from basenet.config.model import NodeRole
from basenet.daemon.cluster.archiving import Arrivals, ClusterArchiver
from basenet.daemon.progress import Progress
from basenet.units import Seq, ShardId


class Here:
    """A shard of an archivist; `settle` makes frames final, `told` is what a voter says."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.settler = SimpleNamespace(settled=(0, b""))
        term = SimpleNamespace(is_at_work=True, leads=False, settler=self.settler)
        shard = SimpleNamespace(shard=ShardId("app"), progress=self.progress, term=term)
        cluster = SimpleNamespace(node_role=NodeRole.ARCHIVE)
        node = SimpleNamespace(config=SimpleNamespace(cluster=cluster, service="default"))
        self.archiver = ClusterArchiver(
            node=cast("Any", node),
            shard=cast("Any", shard),
            peers=cast("Any", None),
            arrivals=Arrivals(),
        )
        self.called_s: float | None = None

    def settle(self, seq: int) -> None:
        self.settler.settled = (seq, b"")
        self.progress.wake()

    def told(self, seq: int) -> None:
        self.archiver.told_seq = Seq(seq)
        self.progress.wake()

    async def run(self) -> None:
        await self.archiver._called()
        self.called_s = trio.current_time()


@asynccontextmanager
async def begun() -> AsyncIterator[Here]:
    """Give an archivist that waits to be called."""
    here = Here()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        await trio.testing.wait_all_tasks_blocked()
        yield here
        nursery.cancel_scope.cancel()


async def test_where_no_voter_archives_it_begins_soon(autojump_clock: trio.abc.Clock) -> None:
    """Not before something is final."""
    del autojump_clock
    async with begun() as here:
        await trio.sleep(1000)
        assert here.called_s is None
        began = trio.current_time()
        here.settle(4)
        await trio.sleep(100)
        assert here.called_s is not None
        assert here.called_s - began < LEASE_TTL_SECONDS


async def test_a_writer_that_archives_is_left_alone_until_it_falls_silent(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Each time that it says how far it is its time begins anew; then its lease has run out."""
    del autojump_clock
    async with begun() as here:
        here.settle(4)
        here.told(3)
        for seq in range(5, 20):
            here.settle(seq)
            await trio.sleep(LEASE_TTL_SECONDS - 1)
            here.told(seq - 1)
        assert here.called_s is None
        here.told(19)
        await trio.sleep(1000)
        assert here.called_s is None
        began = trio.current_time()
        here.settle(20)
        await trio.sleep(1000)
        assert here.called_s == pytest.approx(began + LEASE_TTL_SECONDS)


async def test_its_stint_ends_when_a_voter_has_archived_more() -> None:
    """And not for a voter that says what it said before."""
    here = Here()
    here.progress.set_archived(Seq(9), None)
    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        nursery.start_soon(here.archiver._end_when_relieved, scope)
        here.told(9)
        await trio.testing.wait_all_tasks_blocked()
        assert not scope.cancel_called
        here.told(10)
        await trio.testing.wait_all_tasks_blocked()
        assert scope.cancel_called


async def test_what_is_put_there_counts_until_the_next_snapshot() -> None:
    """Or none would be due as long as one node writes, neither by size nor by time."""
    here, put = Here(), SimpleNamespace(put_bytes=0)

    async def perform(_act: object) -> None:
        await trio.lowlevel.checkpoint()

    node = cast("Any", here.archiver._node)
    node.config.journal_bytes_max = 1
    node.journalist = SimpleNamespace(perform=perform)
    cast("Any", here.archiver._shard).term.settler.place = (0, b"")
    here.archiver._peers = cast("Any", SimpleNamespace(connected={}))
    here.archiver.uploader = cast("Any", SimpleNamespace(facts=lambda: put))
    for seq, put_bytes in ((4, 100), (5, 100), (9, 350)):
        put.put_bytes = put_bytes
        await here.archiver._on_archived(Seq(seq), 1)
        assert here.progress.archived_seq == seq
        assert here.archiver.history.log_bytes == put_bytes
    here.archiver.history.log_bytes = 0  # as after a snapshot
    put.put_bytes = 360
    await here.archiver._on_archived(Seq(10), 1)
    assert here.archiver.history.log_bytes == 10
