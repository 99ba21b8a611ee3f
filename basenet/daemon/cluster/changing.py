"""Which CONFIG an operator's `members add` and `members remove` ask for, and when they are refused.

Theory of operation
===================

The names that the operator gives become voters by the HELLOs of the present connections: key and
journal id are never typed. All of it is one CONFIG (Q5), so that one voter becomes three without
passing through two, and its order is that of the rules: the author, the old ones, the newcomers.

A node that came back with another journal is no voter any more, though CONFIG still names its key;
to add it replaces that entry. With fewer than 4 voters Byzantine faults are switched off in the
same frame, and switched on again when there are 4 and the nodes are configured for it.

Whoever asks has looked at the state of the shard; here is only what follows from the facts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from basenet.config.model import NodeRole
from basenet.daemon.cluster.roles import VOTER_ROLES
from basenet.engine.configuration import contradiction, order_voters
from basenet.errors import ConflictError, NotFoundError, UnavailableError
from basenet.units import JournalId, PublicKeyBytes
from basenet.wire.payload import (
    BYZANTINE_VOTERS_MIN,
    VOTERS_MAX,
    ConfigPayload,
    FaultModel,
    Voter,
    compute_members_hash,
)
from basenet.wire.quorum import quorum_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """A node that this one is connected with, or is itself."""

    key: PublicKeyBytes
    journal_id: JournalId
    role: NodeRole


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a change is judged by.

    ``config``: in force. ``author``: this node's key. ``present``: by node id. ``members_hash``:
    SHA256(M) where M is complete. ``wants_byzantine``: BASE_FAULT_MODEL of this node.
    """

    config: ConfigPayload
    author: PublicKeyBytes
    present: Mapping[str, Present]
    members_hash: bytes | None = None
    wants_byzantine: bool = False


def plan_addition(scene: Scene, nodes: Sequence[str]) -> ConfigPayload:
    """Return the CONFIG that makes ``nodes`` voters.

    Raises `UnavailableError` for one that is not connected, `ConflictError` for one that votes
    already or may not vote, and as `_finish`.
    """
    voters = {voter.key: voter for voter in scene.config.voters}
    for name in nodes:
        found = scene.present.get(name)
        if found is None:
            raise UnavailableError(
                f"{name} is not connected with this node: start it, with this node in its "
                "BASE_PEERS and it in ours; `basenet members` shows who is there."
            )
        if found.role not in VOTER_ROLES:
            raise ConflictError(f"{name} is an archive node (BASE_NODE_ROLE), which never votes.")
        voter = Voter(
            node_id=name,
            key=found.key,
            journal_id=found.journal_id,
            role=VOTER_ROLES[found.role],
        )
        if voters.get(found.key) == voter:
            raise ConflictError(f"{name} is a voter already.")
        voters[found.key] = voter
    names = [voter.node_id for voter in voters.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConflictError(
            f"another voter has the id {twice[0]} and another key: remove {twice[0]} first."
        )
    _require_own_journals(list(voters.values()))
    return _finish(scene, list(voters.values()))


def _require_own_journals(voters: Sequence[Voter]) -> None:
    names: dict[JournalId, str] = {}
    for voter in voters:
        other = names.setdefault(voter.journal_id, voter.node_id)
        if other != voter.node_id:
            raise ConflictError(
                f"{other} and {voter.node_id} have the same journal: the data directory of one is "
                "a copy of the other's; empty it first."
            )


def plan_removal(scene: Scene, nodes: Sequence[str]) -> ConfigPayload:
    """Return the CONFIG without ``nodes``.

    Raises `NotFoundError` for one that does not vote, `ConflictError` when nobody is left, and as
    `_finish`.
    """
    names = [voter.node_id for voter in scene.config.voters]
    for name in nodes:
        if name not in names:
            raise NotFoundError(f"{name} is no voter of this shard: they are {', '.join(names)}.")
    left = [voter for voter in scene.config.voters if voter.node_id not in nodes]
    if not left:
        raise ConflictError("a shard without a voter has no writer: leave at least one.")
    return _finish(scene, left)


def _finish(scene: Scene, wanted: list[Voter]) -> ConfigPayload:
    """Return the CONFIG of the voters ``wanted``.

    Raises `ConflictError` where the rules of CONFIG refuse it, `UnavailableError` when no quorum of
    them is connected.
    """
    old = scene.config
    if len(wanted) > VOTERS_MAX:
        raise ConflictError(f"{len(wanted)} voters are too many: at most {VOTERS_MAX}.")
    is_byzantine = len(wanted) >= BYZANTINE_VOTERS_MIN and (
        scene.wants_byzantine or old.fault_model == FaultModel.BYZANTINE
    )
    pairs = [(voter.node_id, voter.key) for voter in wanted]
    config = replace(
        old,
        voters=order_voters(old, scene.author, wanted),
        members_hash=scene.members_hash or compute_members_hash(pairs),
        fault_model=FaultModel.BYZANTINE if is_byzantine else FaultModel.CRASH,
        is_forced=False,
    )
    problem = contradiction(old, config, scene.author)
    if problem is not None:
        raise ConflictError(f"these voters cannot be: {problem}.")
    require_quorum(scene, config)
    return config


def require_quorum(scene: Scene, config: ConfigPayload) -> None:
    """Raise `UnavailableError` unless a quorum of ``config`` is connected."""
    absent = [voter.node_id for voter in config.voters if not is_present(scene.present, voter)]
    count = len(config.voters)
    quorum = quorum_size(count, config.fault_model)
    if count - len(absent) < quorum:
        raise UnavailableError(
            f"{', '.join(absent)} of the {count} new voters cannot be reached, and a quorum of "
            f"{quorum} must be: nothing was changed."
        )


def is_present(present: Mapping[str, Present], voter: Voter) -> bool:
    """Return whether ``voter`` is connected, with the journal by which it votes."""
    return any(
        (one.key, one.journal_id) == (voter.key, voter.journal_id) for one in present.values()
    )
