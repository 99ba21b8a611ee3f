"""Who could lead a shard in place of this node, and write to it.

An heir is a voter with a database, connected, with the journal that the CONFIG lists, and caught up
as far as the leader knows. After a restart a leader knows that of nobody, and on an idle shard
nothing would ever tell it: so it asks, by `SurveyWanted`.

*Caught up* is within a few frames of what is final, and an application that commits fast makes more
of them in the time in which a message travels. So who is *near* is a candidate, too, once the
application is locked out (`leaving.yield_to`).
"""

from collections.abc import Mapping
from typing import Final

from basenet.engine.events import Instant
from basenet.engine.replica import Replica
from basenet.units import PublicKeyBytes, Seq
from basenet.wire.hello import Hello
from basenet.wire.payload import Voter, VoterRole

NEAR_FRAMES: Final = 8_192
"""A few seconds of an application at full speed, and much less than that to catch up with."""


def find_candidates(
    replica: Replica, me: PublicKeyBytes, connected: Mapping[PublicKeyBytes, Hello]
) -> list[Voter]:
    """Return the voters that are here and have a database, in the order in which lead goes round.

    ``me``: the voter behind which the order begins; it is no candidate itself.
    """
    voters = replica.ballot.config.voters
    place = next((place for place, one in enumerate(voters) if one.key == me), 0)
    return [
        one
        for one in (*voters[place:], *voters[:place])
        if one.key != me and one.role is not VoterRole.WITNESS and _is_here(one, connected)
    ]


def _is_here(voter: Voter, connected: Mapping[PublicKeyBytes, Hello]) -> bool:
    hello = connected.get(voter.key)
    return hello is not None and hello.journal_id == voter.journal_id


def find_heirs(replica: Replica, candidates: list[Voter], now: Instant) -> list[Voter]:
    """Return those of ``candidates`` that are known to be caught up, in their order."""
    return [one for one in candidates if replica.is_caught_up(one, now)]


def is_near(replica: Replica, voter: Voter, told: Mapping[PublicKeyBytes, Seq]) -> bool:
    """Return whether ``voter`` said lately that it is not far behind; ``told``: how far peers are.

    It is told once a second (`cluster.heights`).
    """
    return told.get(voter.key, 0) >= replica.final.height - NEAR_FRAMES
