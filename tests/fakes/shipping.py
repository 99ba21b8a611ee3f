"""Puts a chain's frames, snapshots and TIPs into a store, as its writer would."""

from pathlib import Path

from basenet.archive.backlog import Batch
from basenet.archive.lease import Holder, Lease
from basenet.archive.names import ShardNames
from basenet.archive.publish import Publisher
from basenet.archive.seal import Seal, seal_log
from basenet.archive.snapshot import Snapshots
from basenet.archive.tip import encode_tip
from basenet.units import Seq, ShardId
from tests.fakes.chain import JOURNAL_ID, Chain
from tests.fakes.clock import trio_clock
from tests.fakes.live_database import LiveDatabase
from tests.fakes.memory_store import MemoryStore

NAMES = ShardNames(service="default", shard=ShardId("app"))


def seal_of(chain: Chain) -> Seal:
    return Seal(names=NAMES, lineage=chain.lineage, signer=chain.signer)


def ship(
    store: MemoryStore,
    chain: Chain,
    *,
    start: int | None = None,
    end: int | None = None,
    step: int = 4,
    archive_epoch: int = 1,
) -> None:
    """Archive the chain's frames ``start`` .. ``end``, a few to an object."""
    last = end or chain.tip.head.seq
    for first in range(start or chain.start, last + 1, step):
        frames = chain.encoded(first, min(first + step - 1, last))
        batch = Batch(start=Seq(first), frames=tuple(frames))
        sealed = seal_log(batch, seal_of(chain), archive_epoch)
        store.put(sealed.name, sealed.data)


def put_tip(store: MemoryStore, chain: Chain, seq: int, archive_epoch: int = 1) -> None:
    store.put(NAMES.tip, encode_tip(chain.frame(seq).head, seal_of(chain), archive_epoch))


async def snapshot(store: MemoryStore, chain: Chain, folder: Path) -> int:
    holder = Holder(node="a", key=chain.signer.public, journal_id=JOURNAL_ID, lineage=chain.lineage)
    lease = Lease(store=store, names=NAMES, holder=holder, clock=trio_clock())
    publisher = Publisher(
        store=store, seal=seal_of(chain), lease=lease, trusted=frozenset({chain.signer.public})
    )
    taken = await Snapshots(publisher=publisher, folder=folder, duty=1.0).take(LiveDatabase(chain))
    return taken.seq
