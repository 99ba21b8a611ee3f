"""Which shards there are: starts those that appear, drops those that go.

BASE_SHARDS may name directories and patterns, so the set of shards is looked up again whenever a
watched directory says that its listing changed, and now and then in any case. A shard is a task
of its own: what fails in one does not touch the others, but a broken journal ends the process.
"""

from typing import TYPE_CHECKING, Final

import structlog
import trio

from basenet.config.model import Config
from basenet.daemon.listing import Listing, find_databases, watched_directories
from basenet.daemon.node import Node
from basenet.daemon.shard import Shard
from basenet.errors import UsageError

if TYPE_CHECKING:
    from basenet.units import ShardId

log = structlog.get_logger()

_LOOK_S: Final = 10.0
_JANITOR_S: Final = 1.0
_LOOKS_AT_ONCE: Final = 25  # a look asks for a file's locks; a thousand would hold others up
# Two connections with a database, a log and an index each, our own three, and some to spare.
DESCRIPTORS_PER_SHARD: Final = 12
_KEY: Final = "//listing/"


def check_configured(config: Config) -> None:
    """Raise `UsageError` when no database is configured."""
    if not config.shards:
        raise UsageError("no database is given: name one, or set BASE_SHARDS.")


class Supervisor:
    """Runs a `Shard` for each database that is there."""

    def __init__(self, node: Node) -> None:
        self.shards: dict[ShardId, Shard] = {}
        self.refused: tuple[str, ...] = ()
        self.opened = 0
        self._node = node
        self._is_stopping = False
        self._listed = trio.Event()
        self._doorbell = node.waker.doorbell(_KEY)

    async def run(self, nursery: trio.Nursery) -> None:
        """Keep the shards as configured until `stop`; their tasks live in ``nursery``."""
        directories = watched_directories(self._node.config.shards)
        for directory in directories:
            key = _KEY + str(directory)
            self._node.waker.share(key, self._doorbell)
            self._node.waker.wake.watch_directory(key, directory)
        nursery.start_soon(self._run_janitor)
        while not self._is_stopping:
            listing = await trio.to_thread.run_sync(self._look)
            self._apply(listing, nursery)
            self._listed.set()
            await self._doorbell.wait(_LOOK_S if directories else None)

    async def settled(self) -> None:
        """Return when every database that is there is captured, or said why it is not."""
        await self._listed.wait()
        for shard in list(self.shards.values()):
            await shard.progress.wait_until(shard.has_settled)

    async def restorable(self) -> None:
        """Return when every shard that is captured has its first snapshot, if it can have one."""
        if self._node.store is None:
            return
        for shard in list(self.shards.values()):
            await shard.progress.wait_until(shard.has_base)

    def list_restorable(self) -> list["ShardId"]:
        """Return the shards whose archive was compared and can be restored."""
        return [
            name
            for name, shard in self.shards.items()
            if shard.archiver.is_compared
            and shard.archiver.is_restorable
            and shard.progress.archived_seq
        ]

    def _look(self) -> Listing:
        served = {shard.path for shard in self.shards.values()}
        return find_databases(self._node.config.shards, served)

    def _apply(self, listing: Listing, nursery: trio.Nursery) -> None:
        for sentence in listing.refused:
            if sentence not in self.refused:
                log.warning("database_refused", error=sentence)
        self.refused = listing.refused
        for shard_id in [name for name in self.shards if name not in listing.databases]:
            log.info("shard_gone", shard=shard_id)
            self.shards[shard_id].stop()
        for shard_id, path in listing.databases.items():
            if shard_id not in self.shards and not self._is_stopping:
                self.opened += 1
                shard = Shard(node=self._node, shard=shard_id, path=path)
                self.shards[shard_id] = shard
                nursery.start_soon(self._run_shard, shard)

    async def _run_shard(self, shard: Shard) -> None:
        try:
            await shard.run()
        finally:
            if self.shards.get(shard.shard) is shard and not self._is_stopping:
                del self.shards[shard.shard]

    async def _run_janitor(self) -> None:
        while not self._is_stopping:
            await trio.sleep(_JANITOR_S)
            now_s = trio.current_time()
            for count, shard in enumerate(list(self.shards.values()), start=1):
                shard.check_connected(now_s)
                if count % _LOOKS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()

    def stop(self) -> None:
        """Stop all shards at a commit boundary."""
        self._is_stopping = True
        self._doorbell.ring()
        for shard in self.shards.values():
            shard.stop()
