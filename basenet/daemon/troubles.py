"""What is wrong with shards, as a node tells it: the same words and counts alone and with peers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from basenet.archive.lease import LeaseHeld, LeaseLost
from basenet.control.surface import READY_STATES, ShardState
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


_Shard = TypeVar("_Shard", bound=Lasting)


def sick_shards(
    shards: Mapping[ShardId, _Shard], error_of: Callable[[_Shard], str | None]
) -> list[str]:
    """Return a sentence for each shard that keeps its node from being ready, in order.

    It is asked every few seconds, so nothing more is done for a shard that is well.
    """
    sick = sorted(name for name, shard in shards.items() if shard.state not in READY_STATES)
    told = ((name, shards[name].state.value, error_of(shards[name])) for name in sick)
    return [
        f"shard {name} is {state}" + (f": {error}" if error else "") for name, state, error in told
    ]


def require_going_on(shard: Lasting, *, is_stopping: bool) -> None:
    """Raise `UnavailableError` where waiting for ``shard`` is in vain."""
    if is_stopping:
        raise UnavailableError("basenet is shutting down.")
    if shard.state in (ShardState.STOPPED, ShardState.REFUSED):
        raise UnavailableError(f"shard {shard.shard} is {shard.state.value}: {shard.error}")
