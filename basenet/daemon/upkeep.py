"""Snapshots and retention of one shard: one task, one after the other.

Retention must not delete a part that a snapshot has just found, so both are done here in turn.
A snapshot is background work: it waits its turn among all shards, and a failed one leaves nothing
behind and is tried again.
"""

import time
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from basenet.archive.publish import Published, Publisher
from basenet.archive.snapshot import Snapshots
from basenet.daemon.host import Host
from basenet.daemon.node import Node
from basenet.daemon.snapshots import SnapshotReader
from basenet.errors import BasenetError, UnavailableError
from basenet.units import Seq

log = structlog.get_logger()

_NO_SEQ: Final = Seq(0)
_LOOK_S: Final = 1.0
_RETRY_S: Final = 5.0
_RETRY_S_MAX: Final = 300.0


@dataclass(slots=True, kw_only=True)
class SnapshotHistory:
    """The newest snapshot of a shard; ``seq`` 0: none yet."""

    seq: Seq = _NO_SEQ
    at_ns: int = 0
    stored_bytes: int = 0


class Upkeep:
    """Takes the snapshots that are due and deletes what no kept moment needs."""

    def __init__(
        self,
        *,
        node: Node,
        shard: Host,
        publisher: Publisher,
        history: SnapshotHistory,
    ) -> None:
        self.error: str | None = None
        self.reader: SnapshotReader | None = None
        self._node = node
        self._shard = shard
        self.snapshots = Snapshots(publisher=publisher, folder=node.config.data_dir)
        self._history = history
        self._log = log.bind(shard=shard.shard)

    @property
    def keep_from(self) -> Seq | None:
        """The first frame that the journal must keep for a snapshot that is being made."""
        return self.reader.keep_from if self.reader is not None else None

    async def run(self) -> None:
        """Keep the archive in order for ever; only the archive's own conflicts end it."""
        retry_s = _RETRY_S
        while True:
            if not self._is_snapshot_due():
                await trio.sleep(_LOOK_S)
                continue
            try:
                await self.take_snapshot()
            except UnavailableError as error:
                self._show(error)
                await trio.sleep(retry_s)
                retry_s = min(2 * retry_s, _RETRY_S_MAX)
            else:
                self.error = None
                retry_s = _RETRY_S

    def _is_snapshot_due(self) -> bool:
        shard = self._shard
        if shard.session is None or shard.session.framer.tree.db_pages == 0:
            return False
        return not self._history.seq

    def _show(self, error: BasenetError) -> None:
        if str(error) != self.error:
            self._log.warning("snapshot_failed", error=str(error))
        self.error = str(error)

    async def take_snapshot(self) -> Published:
        """Take a snapshot now and return what was stored."""
        self.reader = SnapshotReader(self._node, self._shard)
        started_s = trio.current_time()
        try:
            published = await self.snapshots.take(self.reader, before_manifest=self._wait_archived)
        finally:
            self.reader = None
        await self._remember(published)
        self._log.info(
            "snapshot",
            seq=published.seq,
            pages=published.db_pages,
            bytes=published.stored_bytes,
            new_bytes=published.new_bytes,
            seconds=round(trio.current_time() - started_s, 2),
        )
        return published

    async def _wait_archived(self, seq: Seq) -> None:
        progress = self._shard.progress
        await progress.wait_until(lambda: progress.archived_seq >= seq)

    async def _remember(self, published: Published) -> None:
        shard, seq, now_ns = self._shard.shard, published.seq, time.time_ns()
        await self._node.journalist.perform(
            lambda journal: journal.set_snapshot(shard, seq, now_ns)
        )
        self._history.seq, self._history.at_ns = seq, now_ns
        self._history.stored_bytes = published.stored_bytes
