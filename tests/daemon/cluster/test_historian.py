"""Telling the final history: in stretches, and a long one once while it is on its way.

What is on its way the outboxes know, so they are real; what is long the node decides.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from basenet.daemon.cluster.historian import Historian
from basenet.daemon.cluster.history import Piece
from basenet.daemon.cluster.node import BULK_FROM_BYTES
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.cluster.settling import Settler
from basenet.daemon.journalist import Journalist
from basenet.engine.effects import ServeFinal
from basenet.transport.outbox import BULK_BYTES_MAX, Outbox
from basenet.units import Lineage, PublicKeyBytes, Seq, ShardId

ONE, TWO = PublicKeyBytes(b"1" * 32), PublicKeyBytes(b"2" * 32)


class World:
    """A journal with one stretch of history, and peers that take everything."""

    def __init__(self, record: bytes) -> None:
        self.pieces: list[Piece] = [((record,), None)]
        self.sent: list[PublicKeyBytes] = []
        self.outboxes: defaultdict[PublicKeyBytes, Outbox] = defaultdict(
            lambda: Outbox(BULK_BYTES_MAX)
        )
        self.historian = Historian(
            journalist=cast("Journalist", SimpleNamespace(read=self.read)),
            peers=cast("Peers", SimpleNamespace(send_final=self.send, is_coming=self.is_coming)),
            shard=ShardId("app"),
            lineage=Lineage(b"l" * 16),
            settler=cast("Settler", SimpleNamespace(settled_up_to=self.settled)),
        )

    async def settled(self, _seq: Seq) -> None:
        await trio.lowlevel.checkpoint()

    async def read(self, _question: Callable[[Any], Any]) -> list[Piece]:
        await trio.lowlevel.checkpoint()
        return self.pieces

    def send(self, to: PublicKeyBytes, *what: Any, name: Hashable) -> bool:
        _, _, records, _ = what
        self.sent.append(to)
        data = b"".join(records)
        return self.outboxes[to].put(data, (name,) if len(data) >= BULK_FROM_BYTES else ())

    def is_coming(self, to: PublicKeyBytes, name: Hashable) -> bool:
        return self.outboxes[to].is_coming(name)

    async def ask(self, to: PublicKeyBytes, above: int) -> None:
        self.historian.put(ServeFinal(to=to, above_height=Seq(above)))
        await trio.testing.wait_all_tasks_blocked()


async def test_a_long_stretch_is_not_told_again_while_it_arrives(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001  (virtual time)
) -> None:
    """Whoever waits for it asks several times a second; what comes after it is told at once."""
    world = World(bytes(1_000_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.historian.run)
        await trio.testing.wait_all_tasks_blocked()
        await world.ask(ONE, 4)
        await world.ask(ONE, 4)
        assert world.sent == [ONE]
        await world.ask(TWO, 4)
        await world.ask(ONE, 5)
        assert world.sent == [ONE, TWO, ONE]
        for _ in range(2):
            await world.outboxes[ONE].take()
        await trio.sleep(2.1)
        await world.ask(ONE, 5)
        assert world.sent == [ONE, TWO, ONE, ONE]
        nursery.cancel_scope.cancel()


async def test_a_short_stretch_is_told_as_often_as_it_is_asked_for() -> None:
    """It may have been lost, and costs nothing."""
    world = World(b"short")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.historian.run)
        await trio.testing.wait_all_tasks_blocked()
        await world.ask(ONE, 4)
        await world.ask(ONE, 4)
        assert world.sent == [ONE, ONE]
        nursery.cancel_scope.cancel()
