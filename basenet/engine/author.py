"""Who writes the genesis of a shard, and who signs it: one function of what all members answered.

Theory of operation
===================

The one node whose file has rows must be the author, or else the cluster would be born empty and the
application with the data locked out (Q3). In this order:

1. The operator decided for a node (`members init --from NODE`): that one.
2. One file with rows: its node. Several with one content: the first of the order among them.
   Several that differ: nobody; a human must say which.
3. No rows anywhere: BASE_WRITER, else the first of the order that can hold a database.

The voters are the first min(replication, |M|) of the order, up or not, the author in front; an
author outside them takes the last one's place. Members whose role is `archive` do not count.

    order      D  A  F  B  C  E         replication 3
    voters     D  A  F                  no rows, or rows at D
               F  D  A                  rows at F
               B  D  A                  rows at B

*The first two of the order sign always*, voters or not. Two geneses over one M then need promises
of the same two nodes, whoever their authors are, and a node keeps one promise: so at most one of
them can be completed, even if one of the two loses its disk in between. With three voters or more
this asks nothing of anybody, since only the last voter gives way to an author from outside. With
fewer it is what keeps a shard from being born twice.

A member that has not answered yet counts as one without rows, so the choice is final only when all
of those have answered on whom it depends: the signers and everybody connected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from basenet.engine.placement import Peer
from basenet.units import JournalId, PublicKeyBytes
from basenet.wire.birth import MemberRole, Standing
from basenet.wire.quorum import quorum_size

_COMMON_SIGNERS: Final = 2
_DATA_HOLDERS_MIN: Final = 2
_WITNESS_VOTERS_MIN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a member stands, and with which journal it said so."""

    journal_id: JournalId
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A birth that can go on: ``voters`` in the order of CONFIG, the author first.

    ``signers``: whose promises complete it: the voters and the first two of the order.
    """

    voters: tuple[Peer, ...]
    signers: frozenset[PublicKeyBytes]

    @property
    def author(self) -> Peer:
        """Who writes the genesis."""
        return self.voters[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """These must answer first; ``author`` is who it would be by the answers so far."""

    missing: tuple[Peer, ...]
    author: Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """No birth until a human changes something; ``why`` is one sentence that says what."""

    why: str


Answers = Mapping[PublicKeyBytes, Answer]


def decide(
    order: tuple[Peer, ...],
    replication: int,
    answers: Answers,
    connected: frozenset[PublicKeyBytes],
) -> Plan | Wait | Blocked:
    """Return who gives birth, who must answer first, or why there is no birth.

    ``order``: M in the order of the shard. ``answers``: of members, this node's own included.
    ``connected``: the members that this node is connected to.
    """
    author = choose_author(order, answers)
    if isinstance(author, Blocked):
        return author
    voters = choose_voters(order, replication, answers, author)
    signers = frozenset(peer.key for peer in voters) | common_signers(order)
    wanted = signers | connected
    missing = tuple(peer for peer in order if peer.key in wanted and peer.key not in answers)
    if missing:
        return Wait(missing=missing, author=author)
    if why := _find_too_many_witnesses(voters, answers):
        return Blocked(why=why)
    return Plan(voters=voters, signers=signers)


def common_signers(order: tuple[Peer, ...]) -> frozenset[PublicKeyBytes]:
    """Return who signs every genesis over this membership, whoever its author is."""
    return frozenset(peer.key for peer in order[:_COMMON_SIGNERS])


def choose_author(order: tuple[Peer, ...], answers: Answers) -> Peer | Blocked:
    """Return who is the author by ``answers``; whoever is not among them has no rows."""
    decided = [peer for peer in order if _is_decided(answers, peer)]
    if len(decided) > 1:
        names = ", ".join(peer.node_id for peer in decided)
        return Blocked(
            why=f"the operator decided for each of {names}: empty the data directory of all but one"
        )
    author = decided[0] if decided else _choose_by_content(order, answers)
    if isinstance(author, Peer) and _role_of(answers, author) != MemberRole.VALIDATOR:
        return Blocked(
            why=f"{author.node_id} would have to write the genesis, but its role is "
            f"{_role_of(answers, author).name.lower()}: set BASE_NODE_ROLE=validator there"
        )
    return author


def choose_voters(
    order: tuple[Peer, ...], replication: int, answers: Answers, author: Peer
) -> tuple[Peer, ...]:
    """Return the voters of a genesis by ``author``, who comes first."""
    assert replication >= 1, "a shard without voters"
    eligible = [peer for peer in order if _role_of(answers, peer) != MemberRole.ARCHIVE]
    first = eligible[:replication]
    if author not in first:
        first[-1:] = [author]
    return (author, *(peer for peer in first if peer != author))


def _choose_by_content(order: tuple[Peer, ...], answers: Answers) -> Peer | Blocked:
    with_rows = [peer for peer in order if _has_rows(answers, peer)]
    if len({answers[peer.key].standing.file for peer in with_rows}) > 1:
        return Blocked(why=_describe_difference(with_rows, answers))
    if with_rows:
        return with_rows[0]
    writers = {answers[peer.key].standing.writer for peer in order if peer.key in answers} - {None}
    if len(writers) > 1:
        named = ", ".join(sorted(str(writer) for writer in writers))
        return Blocked(why=f"BASE_WRITER names {named} on different nodes: set the same everywhere")
    if writers:
        return _find_member(order, str(writers.pop()))
    for peer in order:
        if _role_of(answers, peer) == MemberRole.VALIDATOR:
            return peer
    return Blocked(why="no member can hold a database: set BASE_NODE_ROLE=validator on one of them")


def _find_member(order: tuple[Peer, ...], writer: str) -> Peer | Blocked:
    for peer in order:
        if peer.node_id == writer:
            return peer
    return Blocked(why=f"BASE_WRITER names {writer}, which is no member: correct it or unset it")


def _describe_difference(with_rows: list[Peer], answers: Answers) -> str:
    parts = []
    for peer in with_rows:
        file = answers[peer.key].standing.file
        assert file is not None, "a file with rows is a file"
        size = file.page_size * file.db_pages
        parts.append(f"{peer.node_id} ({size} bytes, state root {file.state_root.hex()})")
    return (
        f"{len(parts)} nodes have different databases with rows: {', '.join(parts)}; decide with "
        "`members init --from NODE` on the node whose database shall be the shard's"
    )


def _find_too_many_witnesses(voters: tuple[Peer, ...], answers: Answers) -> str | None:
    """Return why these voters could lose all copies of the data at once, or None (Q19)."""
    witnesses = sum(_role_of(answers, peer) == MemberRole.WITNESS for peer in voters)
    holders = len(voters) - witnesses
    is_thin = len(voters) >= _WITNESS_VOTERS_MIN and holders < _DATA_HOLDERS_MIN
    if witnesses and (is_thin or witnesses >= quorum_size(len(voters))):
        return (
            f"{witnesses} of {len(voters)} voters would be witnesses, so that a quorum could be "
            "without a database: set BASE_NODE_ROLE=validator on one of them"
        )
    return None


def _is_decided(answers: Answers, peer: Peer) -> bool:
    answer = answers.get(peer.key)
    return answer is not None and answer.standing.is_decided


def _has_rows(answers: Answers, peer: Peer) -> bool:
    answer = answers.get(peer.key)
    file = answer.standing.file if answer else None
    return file is not None and file.has_rows


def _role_of(answers: Answers, peer: Peer) -> MemberRole:
    """Return the role of a member; who has not answered can be a voter, so its answer is needed."""
    answer = answers.get(peer.key)
    return answer.standing.role if answer else MemberRole.VALIDATOR
