"""The journal's cap: what happens when the archive is away for longer than the disk is large.

Frames wait in the journal until they are archived. At `BASE_JOURNAL_MAX_BYTES` the oldest frames of
the shard that holds most of them go, so that the application's disk is not filled by us (P27). The
archive of that shard then has a gap: it is marked broken up to the last dropped frame, the metric
says so loudly, and when the archive answers again a snapshot above the gap mends it. What was
dropped are restore points; the database itself, and everything after the snapshot, is archived.

Without an archive nobody waits for final frames: they are dropped every few seconds anyway, but for
the newest, which may mend a file that fell behind. At the cap they go at once, and that is no gap.
"""

from typing import Final

import structlog
import trio

from basenet.daemon.node import Node
from basenet.daemon.shard import Shard
from basenet.daemon.supervisor import Supervisor
from basenet.units import Seq

log = structlog.get_logger()

_LOOK_S: Final = 1.0
# Dropping a little at each commit would cost a transaction each time.
_TARGET_SHARE: Final = 0.9


class Keeper:
    """Keeps the journal below its cap."""

    def __init__(self, node: Node, supervisor: Supervisor) -> None:
        self._node = node
        self._supervisor = supervisor
        self.journal_bytes = 0

    async def run(self) -> None:
        """Look every second, for ever."""
        limit = self._node.config.journal_bytes_max
        while True:
            # Known without reading: a thread each second would cost more than the question.
            self.journal_bytes = self._node.journalist.journal.count_bytes()
            if self.journal_bytes > limit:
                await self._drop(self.journal_bytes - int(limit * _TARGET_SHARE))
            await trio.sleep(_LOOK_S)

    async def _drop(self, bytes_wanted: int) -> None:
        """Drop the oldest frames of the shard that holds most."""
        shards = [shard for shard in self._supervisor.shards.values() if shard.record is not None]
        held = await self._node.journalist.read(
            lambda journal: [journal.count_bytes(shard.shard) for shard in shards]
        )
        if not held:
            return
        largest = shards[held.index(max(held))]
        behind = await self._node.journalist.read(
            lambda journal: journal.first_behind_oldest(largest.shard, bytes_wanted)
        )
        # The newest frame stays: a restart goes on from it.
        dropped_to = Seq(min(behind, largest.progress.final_seq) - 1)
        if dropped_to:
            await self._drop_to(largest, dropped_to)

    async def _drop_to(self, shard: Shard, seq: Seq) -> None:
        if self._node.store is None:
            await self._node.journalist.perform(
                lambda journal: journal.set_archived(shard.shard, seq)
            )
            if seq > shard.progress.archived_seq:
                shard.progress.set_archived(seq, None)
            return
        is_gap = seq > shard.progress.archived_seq
        if is_gap and not shard.archiver.has_genesis:
            # Nothing of this lineage ever reached the archive: begin anew instead of with a gap.
            log.error("journal_full", shard=shard.shard, hint="the archive was never reached")
            shard.be_born_again()
            return
        await self._node.journalist.perform(
            lambda journal: journal.drop_below(shard.shard, seq + 1)
        )
        if not is_gap:
            return
        count = shard.archiver.on_dropped(seq)
        log.error(
            "journal_full",
            shard=shard.shard,
            dropped_to_seq=seq,
            frames=count,
            hint="these commits lost their own restore points; raise BASE_JOURNAL_MAX_BYTES or "
            "mend the archive, which gets a snapshot when it answers",
        )
