"""What an operator decides about a shard whose file on this node is not the shard's own (Q11)."""

from dataclasses import dataclass
from enum import StrEnum


class Keep(StrEnum):
    """What counts."""

    CHAIN = "chain"
    """The shard's history: the file is set aside, and made anew from the peers."""

    FILE = "file"
    """The file: what differs is taken for what the application here committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetCommand:
    """One decision. ``is_forced``: also where commits are not final or the file is in use."""

    keep: Keep
    is_forced: bool = False
