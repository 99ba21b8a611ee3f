"""How far shards are final at a node, told by the node itself to whom it may concern.

For people and clients that ask one node about all of them; no vote and no lease rests on it. Sent
to peers that read it only: they say so by the bit `wire.reachable.READS_FACTS`.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from basenet.units import ShardId
from basenet.wire.fields import LineageField, SeqField

ENTRIES_MAX: Final = 1_000

_ShardField = Annotated[ShardId, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]


class Height(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Every frame of ``lineage`` up to ``seq`` is final here."""

    shard: _ShardField
    lineage: LineageField
    seq: SeqField


class Heights(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, kw_only=True
):
    """The shards that moved since the sender told last."""

    entries: Annotated[tuple[Height, ...], Meta(min_length=1, max_length=ENTRIES_MAX)]
