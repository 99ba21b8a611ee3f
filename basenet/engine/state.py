"""What a shard's replica knows between two events."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from basenet.units import Epoch, LocalNumber, PublicKeyBytes, Seq, ShardId, TimestampNs, View
from basenet.wire.frame import Flag, Head
from basenet.wire.payload import ConfigPayload

_FIRST_EPOCH: Final = Epoch(1)
_FIRST_VIEW: Final = View(0)
_NO_SEQ: Final = Seq(0)
_NO_COMMIT: Final = LocalNumber(0)


@dataclass(slots=True, kw_only=True)
class ShardState:
    """The chain's tip and how far it is stored and final.

    ``tip`` is the last frame of the chain, stored or not; None before the genesis. ``unfinal``
    are the heads above ``final_seq``, ascending and without a gap, so the last of them is the tip.
    ``stored`` names every voter, also one that holds nothing.
    """

    shard: ShardId
    config: ConfigPayload | None = None
    epoch: Epoch = _FIRST_EPOCH
    view: View = _FIRST_VIEW
    tip: Head | None = None
    stored: dict[PublicKeyBytes, Seq] = field(default_factory=dict)
    final_seq: Seq = _NO_SEQ
    local_last: LocalNumber = _NO_COMMIT
    unfinal: deque[Head] = field(default_factory=deque)

    @property
    def tip_seq(self) -> Seq:
        """The seq of the tip; 0 before the genesis."""
        return self.tip.seq if self.tip else _NO_SEQ

    @property
    def is_run_open(self) -> bool:
        """Whether the tip is a PARTIAL, whose run only further frames can end."""
        return self.tip is not None and bool(self.tip.flags & Flag.PARTIAL)

    def clamp(self, timestamp_ns: TimestampNs) -> TimestampNs:
        """Return the timestamp of the next frame: never at or before the tip's (P33)."""
        if self.tip is None:
            return timestamp_ns
        return TimestampNs(max(timestamp_ns, self.tip.timestamp_ns + 1))
