"""What came from peers and was of no use, counted by reason; the metrics read it."""

from dataclasses import dataclass, fields
from typing import Final

from basenet.wire.signature import is_signed

_RECEIVED: Final = frozenset(("messages", "frames"))


@dataclass(slots=True)
class Tally:
    """Counts since this process began.

    Counted here: ``messages`` and ``frames`` received; messages about a shard that this node does
    not have (``shard_mismatch``) or in another lineage than it knows (``lineage_mismatch``); those
    that an overrun shard had no room for (``overrun``); connections that never began (``refused``)
    or were ended by an ``oversized`` or ``unreadable`` message, or by one that took too long or
    that a shard found ``wrong``; lane messages with a ``forged`` signature; ``rollbacks``: HELLOs
    of journals that came back from a backup; ``unsent``: messages that were dropped before they
    left. What became of a shard's frames is counted there (`cluster.intake`).
    """

    messages: int = 0
    frames: int = 0
    shard_mismatch: int = 0
    lineage_mismatch: int = 0
    overrun: int = 0
    oversized: int = 0
    unreadable: int = 0
    wrong: int = 0
    forged: int = 0
    refused: int = 0
    rollbacks: int = 0
    unsent: int = 0

    def by_reason(self) -> dict[str, int]:
        """Return all counts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def by_loss(self) -> dict[str, int]:
        """Return what was refused or dropped, by name; not what merely came."""
        return {name: count for name, count in self.by_reason().items() if name not in _RECEIVED}

    def verify(self, key: bytes, signature: bytes, message: bytes) -> bool:
        """Return whether ``key`` signed ``message``; count what it did not sign."""
        is_good = is_signed(key, signature, message)
        self.forged += not is_good
        return is_good
