"""Who votes in an epoch, how many votes are enough, and what proves that they were given.

How many are enough is computed in `wire.quorum`, which the readers of archives share: nowhere else.
"""

from collections.abc import Mapping

from basenet.units import Epoch, JournalId, PublicKeyBytes, View
from basenet.wire.certificate import COMMIT, PREPARE, Certificate, Verify, is_ascending
from basenet.wire.message import Mark
from basenet.wire.payload import ConfigPayload, FaultModel
from basenet.wire.quorum import fault_limit, quorum_size
from basenet.wire.tuples import Scope


class Electorate:
    """The voters of one epoch, in the order in which they lead.

    ``first_phase``: of the vote that a proposal gets. ``blocking``: so many voters are in every
    quorum's way: what they all refuse never becomes final (Q8).
    """

    __slots__ = (
        "blocking",
        "count",
        "faults",
        "first_phase",
        "is_byzantine",
        "journals",
        "keys",
        "quorum",
    )

    def __init__(self, config: ConfigPayload) -> None:
        voters, model = config.voters, config.fault_model
        self.keys = tuple(voter.key for voter in voters)
        self.journals: dict[PublicKeyBytes, JournalId] = {
            voter.key: voter.journal_id for voter in voters
        }
        self.count = len(voters)
        self.is_byzantine = model == FaultModel.BYZANTINE
        self.faults = fault_limit(self.count, model)
        self.quorum = quorum_size(self.count, model)
        self.blocking = self.count - self.quorum + 1
        self.first_phase = PREPARE if self.is_byzantine else COMMIT

    def leader(self, view: int) -> PublicKeyBytes:
        """Return who leads in ``view``: the CONFIG's order, round and round (P20)."""
        return self.keys[view % self.count]

    def is_voter(self, key: PublicKeyBytes, journal_id: JournalId) -> bool:
        """Return whether the node votes: by its key, and with the journal that CONFIG lists."""
        return self.journals.get(key) == journal_id


def form(
    phase: int, epoch: Epoch, mark: Mark, votes: Mapping[PublicKeyBytes, bytes]
) -> Certificate:
    """Return the certificate of these votes for ``mark``, all of them verified."""
    return Certificate(
        phase=phase,
        epoch=epoch,
        view=View(mark.view),
        height=mark.height,
        hash=mark.hash,
        votes=tuple(sorted(votes.items())),
    )


def is_certified(
    certificate: Certificate, scope: Scope, electorate: Electorate, verify: Verify
) -> bool:
    """Return whether a quorum of ``electorate`` signed, each once, and nobody else.

    The epoch is compared by the caller, who knows whose electorate this is.
    """
    votes = certificate.votes
    if len(votes) < electorate.quorum or not is_ascending(certificate):
        return False
    if any(key not in electorate.journals for key, _ in votes):
        return False
    message = scope.vote(
        certificate.epoch,
        certificate.view,
        certificate.phase,
        certificate.height,
        certificate.hash,
    )
    return all(verify(key, signature, message) for key, signature in votes)


def mark_of(certificate: Certificate) -> Mark:
    """Return the place that ``certificate`` speaks of."""
    return Mark(certificate.view, certificate.height, certificate.hash)
