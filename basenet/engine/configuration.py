"""Which CONFIG may follow which: the rules that every voter checks before it votes (Q5, Q19, P20).

The first voter leads view 0 of the new epoch. So the author stands first if it stays: the
application that runs beside it keeps writing. The others keep their order, newcomers come last.
A voter is a key with a journal id, so a node that comes back with another journal is a newcomer.

A standalone node made its own key; in a cluster its identity is that of its certificate. So the
first cluster start over a standalone lineage writes one CONFIG with the *old* key, which names the
new one (Q22): final at once, since its epoch has one voter, and readers who trust the old key trust
the new one by it. The old key is kept, and only read.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from basenet.engine.placement import Peer
from basenet.units import JournalId, PublicKeyBytes
from basenet.wire.payload import (
    BYZANTINE_VOTERS_MIN,
    ConfigPayload,
    FaultModel,
    Voter,
    VoterRole,
    compute_members_hash,
)
from basenet.wire.quorum import quorum_size

_WITNESS_VOTERS_MIN: Final = 3


def order_voters(
    old: ConfigPayload, author: PublicKeyBytes, wanted: Iterable[Voter]
) -> tuple[Voter, ...]:
    """Return ``wanted`` in the order that the next CONFIG must have when ``author`` writes it."""
    ranks = {(voter.key, voter.journal_id): rank for rank, voter in enumerate(old.voters)}
    newcomer = len(ranks)

    def rank(voter: Voter) -> int:
        known = ranks.get((voter.key, voter.journal_id), newcomer)
        return -1 if voter.key == author and known != newcomer else known

    return tuple(sorted(wanted, key=rank))


def contradiction(old: ConfigPayload, new: ConfigPayload, author: PublicKeyBytes) -> str | None:
    """Return why ``new`` may not follow ``old``, or None."""
    voters = new.voters
    rules = (
        (new.lineage != old.lineage, "it is of another lineage"),
        (new.parent != old.parent, "it names another parent"),
        (new.is_forced, "only a genesis is forced"),
        (new.format < old.format, "its format is older than the one in force"),
        (
            new.fault_model == FaultModel.BYZANTINE and len(voters) < BYZANTINE_VOTERS_MIN,
            "fewer than 4 voters cannot tell who lies: it must switch Byzantine off",
        ),
        (
            voters != order_voters(old, author, voters),
            "its order must be: the author, the old ones in their order, the newcomers",
        ),
        (
            voters[0].role == VoterRole.WITNESS,
            "its first voter is a witness, which has no database to write",
        ),
        (
            not holds_data(new),
            "every quorum must hold a database: it has too few voters with data",
        ),
    )
    return next((problem for is_broken, problem in rules if is_broken), None)


def holds_data(config: ConfigPayload) -> bool:
    """Return whether no quorum is without data: fewer than a quorum of witnesses (Q19).

    From 3 voters on a quorum leaves one out, so that two hold data. Below, one is enough.
    """
    count = len(config.voters)
    witnesses = sum(voter.role == VoterRole.WITNESS for voter in config.voters)
    if count < _WITNESS_VOTERS_MIN:
        return witnesses < count
    return witnesses < quorum_size(count, config.fault_model)


def compute_succession(
    config: ConfigPayload, old_key: PublicKeyBytes, heir: Peer, journal_id: JournalId
) -> ConfigPayload | None:
    """Return the CONFIG that ``old_key`` must write for ``heir``, or None when there is none.

    ``config``: in force. ``heir``: the certificate's identity. There is none to write when the heir
    votes already, or when the shard has more voters than the old key: those change it themselves.
    """
    me = Voter(node_id=heir.node_id, key=heir.key, journal_id=journal_id)
    keys = [voter.key for voter in config.voters]
    if me in config.voters or keys != [old_key] or config.voters[0].journal_id != journal_id:
        return None
    return replace(
        config,
        voters=(me,),
        members_hash=compute_members_hash([(heir.node_id, heir.key)]),
        is_forced=False,
    )
