"""What a journal says of itself that holds a chain's frames."""

import trio

from basenet.archive.continuation import JournalFacts
from basenet.units import FrameHash, JournalId, Seq
from basenet.wire.payload import decode_config
from tests.fakes.chain import JOURNAL_ID, Chain


def journal_of(
    chain: Chain,
    *,
    tip: int | None = None,
    first: int | None = None,
    archived: int = 0,
    journal_id: JournalId = JOURNAL_ID,
) -> JournalFacts:
    """Return what a journal says that holds the chain's frames ``first`` .. ``tip``."""
    tip_seq = tip or chain.tip.head.seq
    first_seq = first or chain.start

    async def hash_at(seq: Seq) -> FrameHash | None:
        await trio.lowlevel.checkpoint()
        return chain.frame(seq).head.hash if first_seq <= seq <= tip_seq else None

    return JournalFacts(
        journal_id=journal_id,
        lineage=chain.lineage,
        config=decode_config(chain.frames[0].payload),
        genesis_seq=Seq(chain.start),
        first_seq=Seq(first_seq),
        tip_seq=Seq(tip_seq),
        tip_hash=chain.frame(tip_seq).head.hash,
        archived_seq=Seq(archived),
        hash_at=hash_at,
    )
