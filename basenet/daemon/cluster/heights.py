"""How far every member of a shard is: told to peers, and remembered of them.

Theory of operation
===================

Once a second a node tells its peers the shards that moved, so a node that is asked can say of each
member how far it is. While nothing is written to the journal no shard can have moved, and nobody is
looked at. Who connects is told everything.

It is for `members` and `status` alone. What the protocol must know it asks for itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import trio

from basenet.daemon.progress import Progress
from basenet.units import Lineage, PublicKeyBytes, Seq, ShardId
from basenet.wire.heights import ENTRIES_MAX, Height, Heights
from basenet.wire.hello import Hello
from basenet.wire.reachable import READS_FACTS

TELL_S: Final = 1.0
# A peer that names more shards than this node could serve is not listened to any more.
_KEPT_MAX: Final = 100_000


class Told(Protocol):
    """A shard, as far as it is told."""

    shard: ShardId
    progress: Progress

    @property
    def lineage(self) -> Lineage | None:
        """The lineage that is known here."""
        ...


class HeightBook:
    """What peers told; the newest of each shard and peer."""

    def __init__(self) -> None:
        self._told: dict[PublicKeyBytes, dict[ShardId, tuple[Lineage, Seq]]] = {}

    def on_told(self, peer: Hello, message: Heights) -> None:
        """Take in what a peer says of itself."""
        told = self._told.setdefault(peer.key, {})
        for entry in message.entries:
            if entry.shard in told or len(told) < _KEPT_MAX:
                told[entry.shard] = (entry.lineage, entry.seq)

    def find(self, shard: ShardId, lineage: Lineage) -> dict[PublicKeyBytes, Seq]:
        """Return how far ``lineage`` is at the peers that told it."""
        found = ((key, told.get(shard)) for key, told in self._told.items())
        return {key: one[1] for key, one in found if one is not None and one[0] == lineage}


class HeightTeller:
    """Tells peers how far the shards of this node are."""

    def __init__(
        self,
        shards: Mapping[ShardId, Told],
        *,
        connected: Callable[[], Mapping[PublicKeyBytes, Hello]],
        count: Callable[[], int],
        send: Callable[[PublicKeyBytes, Heights], None],
    ) -> None:
        """``count`` grows whenever something was written; ``send`` a message to a peer."""
        self._shards = shards
        self._connected = connected
        self._count = count
        self._send = send
        self._seen_count = -1
        self._told: dict[ShardId, Height] = {}
        self._peers: dict[PublicKeyBytes, Hello] = {}

    async def run(self) -> None:
        """Tell for ever."""
        while True:
            await trio.sleep(TELL_S)
            self.tell()

    def tell(self) -> None:
        """Tell what is new, and those who are new everything."""
        peers = {
            key: hello for key, hello in self._connected().items() if hello.features & READS_FACTS
        }
        count, moved = self._count(), []
        if count != self._seen_count:
            self._seen_count = count
            moved = self._find_moved()
        for key, hello in peers.items():
            is_known = self._peers.get(key) is hello
            self._send_all(key, moved if is_known else list(self._told.values()))
        self._peers = peers

    def _find_moved(self) -> list[Height]:
        moved: list[Height] = []
        for shard in list(self._shards.values()):
            lineage, seq = shard.lineage, shard.progress.final_seq
            before = self._told.get(shard.shard)
            if lineage is None or not seq:
                continue
            if before is None or (before.seq, before.lineage) != (seq, lineage):
                height = Height(shard=shard.shard, lineage=lineage, seq=seq)
                self._told[shard.shard] = height
                moved.append(height)
        return moved

    def _send_all(self, key: PublicKeyBytes, heights: Sequence[Height]) -> None:
        for first in range(0, len(heights), ENTRIES_MAX):
            self._send(key, Heights(entries=tuple(heights[first : first + ENTRIES_MAX])))
