"""How long a shard that failed waits until it tries again: the kind of its error says it."""

from typing import Final

from basenet.errors import BasenetError, ConflictError, CorruptionError, UsageError
from basenet.sqlite.checkpoint import DatabaseReplaced

RETRY_S: Final = 0.5
REFUSED_RETRY_S: Final = 15.0


def pause_after(error: BasenetError, pause_s: float) -> float:
    """Return after how many seconds to try again; ``pause_s``: while it may pass by itself."""
    if isinstance(error, DatabaseReplaced):
        return RETRY_S
    if isinstance(error, UsageError | ConflictError | CorruptionError):
        return REFUSED_RETRY_S
    return pause_s
