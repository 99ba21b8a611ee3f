"""HELLO before the first vote: rolled-back journals as `engine.roster` finds them, in the world.

Each voter that the node reaches compares the count in its HELLO with what its own disk remembers.
One that remembers more says ROLLED_BACK, and the node takes another journal id.
"""

from collections.abc import Iterable, Mapping
from enum import Enum

from basenet.engine.events import Instant
from basenet.engine.liveness import Member
from basenet.engine.roster import RefuseRolledBack, Roster
from basenet.wire.payload import ConfigPayload


class Greeting(Enum):
    """What came of it."""

    MAY_VOTE = 1
    MUST_WAIT = 2
    ROLLED_BACK = 3


def greet(
    me: Member,
    count: int,
    config: ConfigPayload,
    peers: Iterable[tuple[Member, Mapping[Member, int]]],
) -> Greeting:
    """Say HELLO with ``count`` to ``peers``: who they are, and what their disks remember."""
    mine, now = Roster(me, {}), Instant(0)
    for peer, counts in peers:
        for effect in Roster(peer, counts).on_hello(me, count, now):
            if isinstance(effect, RefuseRolledBack):
                mine.on_rolled_back(peer[0], effect.message, count)
        mine.on_greeted(peer)
    if mine.is_rolled_back:
        return Greeting.ROLLED_BACK
    return Greeting.MAY_VOTE if mine.may_vote(config) else Greeting.MUST_WAIT
