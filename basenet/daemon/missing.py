"""Databases that are not there and were archived: brought back before anybody looks for them.

With BASE_RESTORE_IF_MISSING a container that starts with an empty disk goes on where the last one
stopped. It is done before capture begins and before the application of ``--exec`` starts, since
either would take the missing file for an empty database. What fails here ends the start: an archive
that does not answer, or that we do not trust, must never look like one that is empty.

Only databases that BASE_SHARDS names one by one: of a directory nobody knows what is missing in it.
"""

import structlog

from basenet.archive.catalog import read_catalog
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import list_lineages
from basenet.archive.restore import restore
from basenet.archive.store import Store
from basenet.daemon.node import Node
from basenet.units import ShardId

log = structlog.get_logger()


async def restore_missing(node: Node) -> None:
    """Restore every configured database that is missing and has a history in the archive.

    Raises what `archive.restore.restore` raises.
    """
    if node.store is None:
        return
    for spec in node.config.shards:
        if spec.shard is None:
            continue
        place = Place(spec.path)
        if not place.is_taken:
            await _restore(node, node.store, spec.shard, place)


async def _restore(node: Node, store: Store, shard: ShardId, place: Place) -> None:
    names = ShardNames(service=node.config.service, shard=shard)
    if not list_lineages(await read_catalog(store, names)):
        log.info("nothing_to_restore", shard=shard, path=str(place.path))
        return
    log.info("restoring", shard=shard, path=str(place.path))
    report = await restore(
        store,
        names,
        place,
        trusted=node.trusted,
        is_resumable=True,
        fetcher=Fetcher(store, retry_seconds=node.config.retry_deadline_seconds),
    )
    log.info(
        "restored",
        shard=shard,
        path=str(place.path),
        seq=report.seq,
        lineage=report.lineage.hex(),
        bytes=report.database_bytes,
        seconds=round(report.seconds, 2),
    )
