# ruff: noqa: ARG001  (the clock of a test is virtual because it is asked for)
"""How often the journal of a cluster node is looked at: idle shards cost next to nothing."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from basenet.daemon.cluster.keeping import ClusterKeeper
from basenet.daemon.node import Node
from basenet.units import GIB

Clock = trio.testing.MockClock


class Journalist:
    """A journal that others write to; ``looks``: when it was asked how much it holds."""

    def __init__(self) -> None:
        self.asked_bytes = 0
        self.looks: list[float] = []

    async def read(self, _question: Callable[[Any], int]) -> int:
        self.looks.append(trio.current_time())
        return 0

    def looks_within(self, seconds: float) -> int:
        """How often it was asked within the last seconds."""
        return sum(at > trio.current_time() - seconds for at in self.looks)


async def test_what_is_written_is_looked_after_and_an_idle_node_rarely(
    autojump_clock: Clock,
) -> None:
    """Twice in a minute where nobody writes; within two seconds once somebody does."""
    journalist = Journalist()
    node = SimpleNamespace(
        journalist=journalist, config=SimpleNamespace(journal_bytes_max=GIB), store=None
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ClusterKeeper(cast("Node", node), {}).run)
        for _ in range(30):
            journalist.asked_bytes += 100
            await trio.sleep(2)
        assert journalist.looks_within(60) >= 29
        await trio.sleep(60)
        assert journalist.looks_within(50) >= 24
        await trio.sleep(600)
        assert 18 <= journalist.looks_within(570) <= 20
        await trio.sleep(11)
        journalist.asked_bytes += 1
        await trio.sleep(2.1)
        assert journalist.looks_within(2.1) == 1
        nursery.cancel_scope.cancel()
