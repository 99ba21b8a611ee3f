"""What is wrong with shards, as a node tells it: the same words and counts alone and with peers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from basenet.archive.lease import LeaseHeld, LeaseLost
from basenet.control.surface import READY_STATES, ShardState, ShardStatus
from basenet.daemon.presence import ArchiveLost
from basenet.errors import BasenetError, UnavailableError
from basenet.units import ShardId


@dataclass(slots=True)
class Troubles:
    """Stints at the archive that ended by an error; the others count some of them by kind."""

    failures: int = 0
    lease_contentions: int = 0
    leases_lost: int = 0
    archive_losses: int = 0

    def note(self, error: BasenetError) -> None:
        """Count ``error``, which ended a stint."""
        self.failures += 1
        self.lease_contentions += isinstance(error, LeaseHeld)
        self.leases_lost += isinstance(error, LeaseLost)
        self.archive_losses += isinstance(error, ArchiveLost)


class Lasting(Protocol):
    """A shard that somebody waits for."""

    shard: ShardId
    state: ShardState
    error: str | None


def sick_shards(shards: Iterable[ShardStatus]) -> list[str]:
    """Return a sentence for each shard that keeps its node from being ready."""
    return [
        f"shard {shard.shard} is {shard.state.value}" + (f": {shard.error}" if shard.error else "")
        for shard in shards
        if shard.state not in READY_STATES
    ]


def require_going_on(shard: Lasting, *, is_stopping: bool) -> None:
    """Raise `UnavailableError` where waiting for ``shard`` is in vain."""
    if is_stopping:
        raise UnavailableError("basenet is shutting down.")
    if shard.state in (ShardState.STOPPED, ShardState.REFUSED):
        raise UnavailableError(f"shard {shard.shard} is {shard.state.value}: {shard.error}")
