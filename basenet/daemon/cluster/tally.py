"""What came from peers and was of no use, counted by reason; the metrics read it."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Tally:
    """Counts since this process began.

    Counted here: ``messages`` and ``frames`` received; messages about a shard that this node does
    not have (``shard_mismatch``) or in another lineage than it knows (``lineage_mismatch``); those
    that an overrun shard had no room for (``overrun``); connections that never began (``refused``)
    or were ended by an ``oversized`` or ``unreadable`` message; ``rollbacks``: HELLOs of journals
    that came back from a backup; ``unsent``: messages that were dropped before they left.
    Counted by the shards: frames that were there already (``duplicate``) or proved wrong
    (``invalid``).
    """

    messages: int = 0
    frames: int = 0
    duplicate: int = 0
    invalid: int = 0
    shard_mismatch: int = 0
    lineage_mismatch: int = 0
    overrun: int = 0
    oversized: int = 0
    unreadable: int = 0
    refused: int = 0
    rollbacks: int = 0
    unsent: int = 0

    def by_reason(self) -> dict[str, int]:
        """Return all counts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
