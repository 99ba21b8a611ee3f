"""Tells the final history to peers that are behind, from the journal.

One stretch at a time to each peer; whoever needs more asks again when it has that. It asks several
times a second, also while a long stretch is still on its way: that one is not told again at once.
"""

from collections.abc import Iterable
from typing import Final

import trio

from basenet.daemon.cluster.adopting import WHY_GONE
from basenet.daemon.cluster.history import Piece, final_pieces
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.cluster.settling import Settler
from basenet.daemon.journalist import Journalist
from basenet.engine.effects import ServeFinal
from basenet.units import KIB, Lineage, PublicKeyBytes, Seq, ShardId

_SEND_S: Final = 30.0
_ROOM_S: Final = 0.02
# A stretch of so many bytes may take a while to arrive after it was sent; and how long.
_LONG_BYTES: Final = 256 * KIB
_ARRIVES_S: Final = 2.0


class Historian:
    """Serves the `ServeFinal` effects of one shard, while `run` runs."""

    def __init__(
        self,
        *,
        journalist: Journalist,
        peers: Peers,
        shard: ShardId,
        lineage: Lineage,
        settler: Settler,
    ) -> None:
        self._journalist = journalist
        self._peers = peers
        self._shard = shard
        self._lineage = lineage
        self._settler = settler
        self._asked: dict[PublicKeyBytes, ServeFinal] = {}
        self._serving: set[PublicKeyBytes] = set()
        # From where the last long stretch was told, and from when on it may be told again.
        self._told: dict[PublicKeyBytes, tuple[Seq, float]] = {}
        self._news = trio.Event()

    def put(self, effect: ServeFinal) -> None:
        """Serve a peer soon, unless it is being served, or what it asks for is on its way."""
        above, until_s = self._told.get(effect.to, (None, 0.0))
        is_coming = above == effect.above_height and trio.current_time() < until_s
        if effect.to not in self._serving and not is_coming:
            self._asked[effect.to] = effect
            self._news.set()

    async def run(self) -> None:
        """Serve for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                while self._asked:
                    _, effect = self._asked.popitem()
                    self._serving.add(effect.to)
                    nursery.start_soon(self._serve, effect)

    async def _serve(self, effect: ServeFinal) -> None:
        try:
            await self._tell(effect)
        finally:
            self._serving.discard(effect.to)

    async def _tell(self, effect: ServeFinal) -> None:
        # What is final a moment ago is still on its way into the log.
        await self._settler.settled_up_to(effect.above_height + 1)
        pieces = await self._journalist.read(
            lambda journal: final_pieces(journal, self._shard, effect.above_height)
        )
        with trio.move_on_after(_SEND_S):
            if pieces is None:
                await self._send_gone(effect.to)
            else:
                await self._send(effect.to, pieces)
                self._note(effect, pieces)

    def _note(self, effect: ServeFinal, pieces: Iterable[Piece]) -> None:
        """Remember what was told, if it is long, for as long as it may take to arrive."""
        self._told.pop(effect.to, None)
        if sum(len(record) for records, _ in pieces for record in records) >= _LONG_BYTES:
            self._told[effect.to] = (effect.above_height, trio.current_time() + _ARRIVES_S)

    async def _send_gone(self, to: PublicKeyBytes) -> None:
        """Say that the frames are gone, as soon as the bulk connection to the peer is there."""
        while not self._peers.send_transfer(to, self._shard, self._lineage, WHY_GONE):
            if to not in self._peers.connected:
                return
            await trio.sleep(_ROOM_S)

    async def _send(self, to: PublicKeyBytes, pieces: Iterable[Piece]) -> None:
        """Send pieces, as soon as the bulk connection to the peer is there and has room."""
        for records, certificate in pieces:
            while not self._peers.send_final(to, self._shard, self._lineage, records, certificate):
                if to not in self._peers.connected:
                    return
                await trio.sleep(_ROOM_S)
