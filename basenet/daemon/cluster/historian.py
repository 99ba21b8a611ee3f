"""Tells the final history to peers that are behind, from the journal.

One stretch at a time to each peer; whoever needs more asks again when it has that. It asks several
times a second, also while a long stretch is still on its way: that one is not told again.
"""

from collections.abc import Hashable, Iterable
from typing import Final

import trio

from basenet.daemon.cluster.adopting import WHY_GONE
from basenet.daemon.cluster.history import Piece, final_pieces
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.cluster.settling import Settler
from basenet.daemon.journalist import Journalist
from basenet.engine.effects import ServeFinal
from basenet.units import Lineage, PublicKeyBytes, ShardId

_SEND_S: Final = 30.0
_ROOM_S: Final = 0.02


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
        self._news = trio.Event()

    def put(self, effect: ServeFinal) -> None:
        """Serve a peer soon, unless it is being served, or what it asks for is on its way."""
        is_coming = self._peers.is_coming(effect.to, self._name(effect))
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
                await self._send(effect, pieces)

    def _name(self, effect: ServeFinal) -> Hashable:
        """Return what names the stretch that is asked for, while it is on its way."""
        return self._lineage, effect.above_height

    async def _send_gone(self, to: PublicKeyBytes) -> None:
        """Say that the frames are gone, as soon as the bulk connection to the peer is there."""
        while not self._peers.send_transfer(to, self._shard, self._lineage, WHY_GONE):
            if to not in self._peers.connected:
                return
            await trio.sleep(_ROOM_S)

    async def _send(self, effect: ServeFinal, pieces: Iterable[Piece]) -> None:
        """Send pieces, as soon as the bulk connection to the peer is there and has room."""
        to, name = effect.to, self._name(effect)
        for records, certificate in pieces:
            while not self._peers.send_final(
                to, self._shard, self._lineage, records, certificate, name=name
            ):
                if to not in self._peers.connected:
                    return
                await trio.sleep(_ROOM_S)
