"""When a node signs a genesis of somebody else's: the safety kernel of a birth.

Theory of operation
===================

1. A node that knows a lineage signs no genesis. (`engine.birth` answers with the lineage.)
2. It keeps one promise. The same genesis is signed again; another one only when rule 3 frees it.
3. A promise is replaced only by the same author's key with another journal id, whose disk was lost
   before the birth was complete, and only by a genesis whose voters include all of the promised
   one's: its author has asked each of them, in person and after the loss, and none knows a lineage.
   It ends with the author's signed WITHDRAW. Nothing else ends it, least of all time.
4. The membership must be the one that this node computes, SHA256(M), and so must the voters, their
   order and their roles.
5. The author must be the one that this node would choose by the answers that it has, its own
   included; every member that it is connected to has answered. So a member with rows never promises
   to an author with other content, unless the operator decided for that author.
6. A genesis without a parent starts from the state that its author says its file has.
7. The genesis names this node by its key *and* its journal, or not at all: a promise is worth as
   much as the journal that keeps it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from basenet.engine.author import Answers, Blocked, choose_author, choose_voters, common_signers
from basenet.engine.birth_record import Promise
from basenet.engine.genesis import Genesis
from basenet.engine.placement import Membership, Peer
from basenet.units import ZERO_HASH, JournalId, PublicKeyBytes, StateRoot
from basenet.wire.birth import FileFacts, MemberRole
from basenet.wire.merkle import state_root
from basenet.wire.payload import Voter, VoterRole

EMPTY_ROOT: Final = state_root(0, 0, ZERO_HASH)
"""The state of a database that does not exist yet."""

_VOTER_ROLES: Final = {
    MemberRole.VALIDATOR: VoterRole.VALIDATOR,
    MemberRole.WITNESS: VoterRole.WITNESS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a node knows when it decides about a genesis.

    ``order``: ``members`` in the order of the shard. ``answers``: of members with the same M, this
    node's own included. ``connected``: the members it is connected to.
    """

    me: Peer
    journal_id: JournalId
    members: Membership
    order: tuple[Peer, ...]
    replication: int
    answers: Answers
    connected: frozenset[PublicKeyBytes]


def root_of(file: FileFacts | None) -> tuple[StateRoot, int]:
    """Return the state root of a file and its page size in bytes; of no file: the empty state."""
    return (file.state_root, file.page_size) if file else (EMPTY_ROOT, 0)


def name_voters(voters: tuple[Peer, ...], answers: Answers) -> tuple[Voter, ...]:
    """Return the voters as CONFIG lists them; all of them have answered."""
    return tuple(
        Voter(
            node_id=peer.node_id,
            key=peer.key,
            journal_id=answers[peer.key].journal_id,
            role=_VOTER_ROLES[answers[peer.key].standing.role],
        )
        for peer in voters
    )


def may_replace(held: Promise, genesis: Genesis, offer: Genesis, journal_id: JournalId) -> bool:
    """Return whether a promise to ``genesis`` gives way to ``offer``, made with ``journal_id``."""
    return (
        held.author == offer.author
        and held.journal_id != journal_id
        and set(genesis.voters) <= set(offer.voters)
    )


def find_objection(  # noqa: PLR0911  (one for each objection)
    situation: Situation, offer: Genesis, journal_id: JournalId
) -> str | None:
    """Return why this node does not sign ``offer`` now (rules 4 to 7), or None.

    ``journal_id``: with which its author is connected. The objections can vanish with an answer.
    """
    config, answers = offer.config, situation.answers
    author = next((peer for peer in situation.order if peer.key == offer.author), None)
    if author is None or config.members_hash != situation.members.hash:
        return "its author counts other members than this node"
    if author.key not in answers:
        return f"{author.node_id} has not said how it stands"
    silent = [
        peer.node_id
        for peer in situation.order
        if peer.key in situation.connected and peer.key not in answers
    ]
    if silent:
        return f"{', '.join(silent)} must answer first"
    choice = choose_author(situation.order, answers)
    if isinstance(choice, Blocked):
        return choice.why
    if choice != author:
        return f"{choice.node_id} should be the author and not {author.node_id}"
    if config.parent is None:
        found = (offer.head.state_root, config.page_size)
        if found != root_of(answers[author.key].standing.file):
            return f"it does not start from the file of {author.node_id}"
    return _find_wrong_voter(situation, offer, author, journal_id)


def _find_wrong_voter(
    situation: Situation, offer: Genesis, author: Peer, journal_id: JournalId
) -> str | None:
    """Return which voter is not the one that this node expects, or None."""
    expected = choose_voters(situation.order, situation.replication, situation.answers, author)
    named = tuple(Peer(voter.node_id, voter.key) for voter in offer.config.voters)
    if named != expected:
        return (
            f"it names the voters {_names(named)}, where this node expects {_names(expected)}: is "
            "BASE_REPLICATION or BASE_NODE_ROLE set differently?"
        )
    journals = {author.key: journal_id, situation.me.key: situation.journal_id}
    for voter in offer.config.voters:
        if journals.get(voter.key, voter.journal_id) != voter.journal_id:
            return f"it names another journal of {voter.node_id} than the present one"
        answer = situation.answers.get(voter.key)
        if answer and _VOTER_ROLES.get(answer.standing.role) != voter.role:
            return f"it gives {voter.node_id} another role than its own"
    if situation.me.key not in {*offer.voters, *common_signers(situation.order)}:
        return "this node is not asked to sign it"
    return None


def find_missing(
    offer: Genesis, order: tuple[Peer, ...], promises: Mapping[PublicKeyBytes, bytes]
) -> frozenset[PublicKeyBytes]:
    """Return whose promises ``offer`` still lacks: of its voters and of those who always sign."""
    return frozenset({*offer.voters, *common_signers(order)} - set(promises))


def _names(peers: tuple[Peer, ...]) -> str:
    return ", ".join(peer.node_id for peer in peers)
