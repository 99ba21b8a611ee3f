"""What is wrong with shards and their archive is told in the same words and counts everywhere."""

from dataclasses import dataclass

import pytest

from basenet.archive.lease import LeaseHeld, LeaseLost
from basenet.control.surface import ShardState
from basenet.daemon.presence import ArchiveLost
from basenet.daemon.troubles import Troubles, require_going_on, sick_shards
from basenet.errors import UnavailableError
from basenet.units import ShardId

APP = ShardId("app")


@dataclass
class Shard:
    shard: ShardId = APP
    state: ShardState = ShardState.CAPTURING
    error: str | None = None


def test_each_kind_of_error_has_its_count() -> None:
    """And all of them are failures."""
    troubles = Troubles()
    errors = UnavailableError("away"), LeaseHeld("held"), LeaseLost("lost"), ArchiveLost("gone")
    for error in errors:
        troubles.note(error)
    assert troubles == Troubles(failures=4, lease_contentions=1, leases_lost=1, archive_losses=1)


def test_only_sick_shards_are_told_in_order() -> None:
    """And nothing is asked of the others: a probe asks every few seconds."""
    asked: list[Shard] = []

    def error_of(shard: Shard) -> str | None:
        asked.append(shard)
        return shard.error

    torn = Shard(ShardId("z"), ShardState.STOPPED, "page 7 is torn")
    late = Shard(ShardId("b"), ShardState.STARTING)
    well = [Shard(ShardId(f"s{number}")) for number in range(3)]
    shards = {shard.shard: shard for shard in [torn, *well, late]}
    assert sick_shards(shards, error_of) == [
        "shard b is starting",
        "shard z is stopped: page 7 is torn",
    ]
    assert asked == [late, torn]


@pytest.mark.parametrize("state", [ShardState.STOPPED, ShardState.REFUSED])
def test_nobody_waits_for_a_shard_that_does_not_go_on(state: ShardState) -> None:
    """The sentence is the shard's own; one that starts is worth waiting for, unless we end."""
    require_going_on(Shard(state=ShardState.STARTING), is_stopping=False)
    with pytest.raises(UnavailableError, match=f"shard app is {state.value}: page 7 is torn"):
        require_going_on(Shard(state=state, error="page 7 is torn"), is_stopping=False)
    with pytest.raises(UnavailableError, match="shutting down"):
        require_going_on(Shard(), is_stopping=True)
