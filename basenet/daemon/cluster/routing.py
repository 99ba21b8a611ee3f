"""Which shard gets a message: by its id, in its lineage, in order, and never at another's expense.

Theory of operation
===================

The messages of one peer come on one connection, one after the other, and some of them make a shard
wait: for its journal, for a thread. Neither the heartbeats behind them nor other shards may wait
for that. So, on the ordinary lane, a message that a shard takes at once is given to it at once;
where the shard is busy with an earlier one of the same peer, it joins a queue of that peer and
shard, and the connection goes on. All such queues of a peer together are bounded: what finds them
full is dropped and counted, and the protocol asks again. The bulk lane has no heartbeats: there the
connection itself waits, which slows down the sender alone.

A message in another lineage than the shard's is never processed. Its sender is told ours, at most
once a second for each shard, so that a node which follows a lineage that lost, or none, learns it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from basenet.daemon.cluster.ports import ShardPort
from basenet.daemon.cluster.tally import Tally
from basenet.errors import PeerError
from basenet.units import MIB, PublicKeyBytes, ShardId
from basenet.wire.envelope import (
    AboutBirth,
    AboutShard,
    AboutState,
    FinalPack,
    FramePack,
)
from basenet.wire.hello import Hello, Lane

WAITING_BYTES_MAX: Final = 16 * MIB
"""Of one peer, for all shards."""
ANSWER_S: Final = 1.0
_ANSWERS_MAX: Final = 4_096

ShardEnvelope = AboutShard | AboutBirth | AboutState | FramePack | FinalPack
_Key = tuple[PublicKeyBytes, ShardId]


@dataclass(slots=True)
class _Queue:
    """What waits for one shard from one peer, with sizes in bytes."""

    waiting: deque[tuple[Hello, ShardEnvelope, int]] = field(default_factory=deque)


class Router:
    """Gives messages to the shards of this node."""

    def __init__(self, tally: Tally, on_wrong: Callable[[Hello, PeerError], None]) -> None:
        """``on_wrong``: a shard found a message wrong that had left its connection already."""
        self.ports: dict[ShardId, ShardPort] = {}
        self._tally = tally
        self._on_wrong = on_wrong
        self._queues: dict[_Key, _Queue] = {}
        self._waiting_bytes: dict[PublicKeyBytes, int] = {}
        self._answered: dict[_Key, float] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks of the queues, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def route(self, peer: Hello, envelope: ShardEnvelope, size: int) -> None:
        """Take a message of ``size`` bytes; return when the next of the connection may come.

        Raises `PeerError` when the shard found it wrong.
        """
        assert self._nursery is not None, "a message before the node runs"
        if peer.lane is Lane.BULK:
            await self._give(peer, envelope)
            return
        key = (peer.key, envelope.shard)
        queue = self._queues.get(key)
        if queue is None and self._give_at_once(peer, envelope):
            return
        held = self._waiting_bytes.get(peer.key, 0)
        if held + size > WAITING_BYTES_MAX:
            self._tally.overrun += 1
            return
        self._waiting_bytes[peer.key] = held + size
        if queue is None:
            queue = self._queues[key] = _Queue()
            self._nursery.start_soon(self._work, key, queue)
        queue.waiting.append((peer, envelope, size))

    async def _work(self, key: _Key, queue: _Queue) -> None:
        """Give what waits in ``queue``, in order, until nothing does."""
        while queue.waiting:
            peer, envelope, size = queue.waiting[0]
            try:
                await self._give(peer, envelope)
            except PeerError as error:
                self._on_wrong(peer, error)
            queue.waiting.popleft()
            self._waiting_bytes[key[0]] -= size
        del self._queues[key]
        if not self._waiting_bytes[key[0]]:
            del self._waiting_bytes[key[0]]

    def _give_at_once(self, peer: Hello, envelope: ShardEnvelope) -> bool:
        """Give a message that its shard takes at once; return whether it is one, or is dropped."""
        port = self._find(peer, envelope)
        if port is None:
            return True
        match envelope:
            case AboutShard():
                port.on_message(peer, envelope.body)
            case AboutBirth():
                port.on_birth(peer, envelope.body)
            case FramePack() if port.take_frames(peer, envelope.records):
                self._tally.frames += len(envelope.records)
            case _:
                return False
        return True

    async def _give(self, peer: Hello, envelope: ShardEnvelope) -> None:
        if self._give_at_once(peer, envelope):
            return
        port = self.ports[envelope.shard]
        match envelope:
            case FramePack():
                self._tally.frames += len(envelope.records)
                await port.on_frames(peer, envelope.records)
            case FinalPack():
                self._tally.frames += len(envelope.records)
                await port.on_final(peer, envelope.records, envelope.certificate)
            case AboutState():
                await port.on_transfer(peer, envelope.body)
            case _:
                raise AssertionError(f"{type(envelope).__name__} was given already")

    def _find(self, peer: Hello, envelope: ShardEnvelope) -> ShardPort | None:
        """Return whom a message is for, None if it must not be processed."""
        port = self.ports.get(envelope.shard)
        if port is None:
            self._tally.shard_mismatch += 1
            return None
        if isinstance(envelope, AboutBirth) or envelope.lineage == port.lineage:
            return port
        self._tally.lineage_mismatch += 1
        key = (peer.key, envelope.shard)
        now_s = trio.current_time()
        if port.lineage is not None and now_s >= self._answered.get(key, now_s):
            if len(self._answered) >= _ANSWERS_MAX:
                self._answered.clear()
            self._answered[key] = now_s + ANSWER_S
            port.on_other_lineage(peer)
        return None
