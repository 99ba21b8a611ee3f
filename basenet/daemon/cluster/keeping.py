"""How long a node with peers keeps final frames in its journal.

Theory of operation
===================

A final frame is needed by the archive, by this node's own file as long as that is behind, and by
peers that were away. So it goes once nobody waits for it::

    with an archive       it is archived, by this node or by the one that writes, which tells
    without               this node's own file holds it
    always                the newest `kept_bytes` of a shard stay for peers that were away shortly

While nothing is written to the journal there is nothing to look at; but what the archive has may be
told a while after it was written.

Whoever needs older ones is told that they are gone, and takes over a state (`cluster.adopting`).
Above BASE_JOURNAL_MAX_BYTES, the branches counted, the oldest of the largest shard go whatever the
archive has; it then has a gap, which a snapshot mends. What the file needs never goes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import structlog
import trio

from basenet.daemon.cluster.archiving import kept_bytes
from basenet.daemon.node import Node
from basenet.units import Seq, ShardId

if TYPE_CHECKING:
    from basenet.daemon.cluster.shard import ClusterShard

log = structlog.get_logger()

_LOOK_S: Final = 2.0
_ACTIVE_S: Final = 60.0
_IDLE_S: Final = 30.0
_TARGET_SHARE: Final = 0.9
_SLACK: Final = 1.25
"""So much more than is kept may lie there, since to drop a little costs a transaction each time."""


class ClusterKeeper:
    """Keeps the journal of a cluster node short."""

    def __init__(self, node: Node, shards: Mapping[ShardId, "ClusterShard"]) -> None:
        self._node = node
        self._shards = shards
        self._kept = kept_bytes(node.config.journal_bytes_max)

    async def run(self) -> None:
        """Look for ever, every two seconds while frames are written or were a minute ago.

        What else is written once a minute, how far the journals of others are, is none. Else once
        in half a minute: an archive that comes back lets go of what waits here for it.
        """
        seen, written_s, looked_s = -1, trio.current_time(), trio.current_time()
        while True:
            await trio.sleep(_LOOK_S)
            now_s, count = trio.current_time(), self._node.journalist.asked_bytes
            if count != seen:
                seen, written_s = count, now_s
            elif now_s - written_s > _ACTIVE_S and now_s - looked_s < _IDLE_S:
                continue
            looked_s = now_s
            shards = [shard for shard in self._shards.values() if _place(shard) is not None]
            for shard in shards:
                await self._trim(shard)
            limit = self._node.config.journal_bytes_max
            held = await self._node.journalist.read(
                lambda journal: journal.count_bytes() + journal.count_branch_bytes()
            )
            if held > limit and shards:
                await self._drop(shards, held - int(limit * _TARGET_SHARE))

    async def _trim(self, shard: "ClusterShard") -> None:
        """Drop what nobody waits for."""
        journalist, place = self._node.journalist, _place(shard)
        archived = shard.archiver.told_seq
        if self._node.store is not None and shard.progress.archived_seq < archived:
            seq = Seq(min(archived, shard.progress.final_seq, place or 0))
            if seq > shard.progress.archived_seq:
                await journalist.perform(
                    lambda journal: journal.set_archived(
                        shard.shard, seq, keep_bytes=self._kept, keep_from=place
                    )
                )
                shard.progress.set_archived(seq, None)
        elif self._node.store is None and place is not None:
            size = journalist.journal.count_bytes(shard.shard)
            if size > self._kept * _SLACK:
                await journalist.perform(
                    lambda journal: journal.trim(shard.shard, place, keep_bytes=self._kept)
                )

    async def _drop(self, shards: "list[ClusterShard]", bytes_wanted: int) -> None:
        """Drop the oldest frames of the shard that holds most."""
        journalist = self._node.journalist
        largest = max(shards, key=lambda shard: journalist.journal.count_bytes(shard.shard))
        place = _place(largest)
        behind = await journalist.read(
            lambda journal: journal.first_behind_oldest(largest.shard, bytes_wanted)
        )
        first = Seq(min(behind, place or 0))
        if first <= journalist.journal.first_seq(largest.shard):
            return
        if self._node.store is None:
            await journalist.perform(
                lambda journal: journal.trim(largest.shard, first, keep_bytes=0)
            )
            return
        is_gap = first - 1 > largest.progress.archived_seq
        await journalist.perform(lambda journal: journal.drop_below(largest.shard, first))
        if is_gap:
            largest.archiver.on_dropped(Seq(first - 1))
            log.error(
                "journal_full",
                shard=largest.shard,
                dropped_to_seq=first - 1,
                hint="these commits lost their own restore points unless another node archives "
                "them; raise BASE_JOURNAL_MAX_BYTES or mend the archive",
            )


def _place(shard: "ClusterShard") -> Seq | None:
    """Return what the file holds; None while nothing may be dropped."""
    term = shard.term
    if term is None or not term.is_at_work or not term.settler.is_file_ready:
        return None
    return Seq(min(term.settler.place[0], term.settler.settled[0]))
