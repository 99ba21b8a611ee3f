"""`basenet members` on one shard: what the operator asks, judged and begun.

Theory of operation
===================

::

    init      the birth is told that this node's file counts            (any node: its own file)
    transfer  the replica hands over                                    (on the leader)
    add       newcomers answer how far they are ── CONFIG               (on the leader)
    remove    CONFIG                                                    (on the leader)
    force     term ends ── genesis over the highest vote ── new lineage (on a survivor)
    accept    term ends ── bundle of what is beyond ── new lineage      (on each other node)

Who is to vote or to lead has to be within a few frames of what is final (`Replica.is_caught_up`),
and an application that commits fast makes more of them in the time in which a message travels. So
where a node stays a little behind, the application is locked out for a moment.

A command is refused with one sentence as long as nothing has happened. Once the replica or the
birth has it, the answer waits a while for the outcome and says what was reached. A command that is
cancelled (the operator's connection ended) goes on.

What the replica and the birth have to say about it comes as their reports, which `Hearing` keeps
for a moment.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final, Protocol

import trio

from basenet.config.model import FaultModel, NodeRole
from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import ShardState
from basenet.daemon.cluster.birth import BirthDriver
from basenet.daemon.cluster.changing import (
    Present,
    Scene,
    is_present,
    plan_addition,
    plan_removal,
)
from basenet.daemon.cluster.forcing import plan_forced
from basenet.daemon.cluster.heirs import is_near
from basenet.daemon.cluster.leaving import locked_out, yield_to
from basenet.daemon.cluster.node import ClusterNode
from basenet.daemon.cluster.roles import role_of
from basenet.daemon.cluster.term import Term
from basenet.daemon.framer import instant
from basenet.daemon.node import Node
from basenet.engine.events import ConfigWanted, SurveyWanted
from basenet.engine.forced import Survivor, force_lineage, refuse_force
from basenet.engine.placement import Membership
from basenet.errors import ConflictError, NotFoundError, UnavailableError
from basenet.journal.records import ReplicaRecord
from basenet.units import LINEAGE_BYTES, SALT_BYTES, Lineage, ShardId, TimestampNs
from basenet.wire.message import Certified
from basenet.wire.payload import ConfigPayload, Voter, VoterRole

_HEARD_MAX: Final = 64
_LOOK_S: Final = 0.05
_ASK_AGAIN_S: Final = 0.5
_CAUGHT_UP_S: Final = 15.0
"""A learner asks every 10 s by itself where the leader has no certificate to show to it."""
_CLOSE_S: Final = 5.0
_FREE_S: Final = 1.5
"""So long the application goes on while somebody catches up."""
_LEADING_S: Final = 3.0
_OUTCOME_S: Final = 15.0
_BIRTH_S: Final = 5.0
_BUNDLE_S: Final = 300.0


class Hearing:
    """What was reported lately, for whoever waits for an answer."""

    def __init__(self) -> None:
        self._said: deque[tuple[int, str]] = deque(maxlen=_HEARD_MAX)
        self.count = 0
        """How many sentences there were; to be given to `since`."""

    def hear(self, sentence: str) -> None:
        """Take note of a sentence."""
        self.count += 1
        self._said.append((self.count, sentence))

    def since(self, count: int) -> list[str]:
        """Return the sentences after the first ``count``, as far as they are kept."""
        return [sentence for number, sentence in self._said if number > count]


class Commanded(Protocol):
    """A shard, as far as commands concern it."""

    shard: ShardId
    state: ShardState
    error: str | None
    term: Term | None
    hearing: Hearing
    birth: BirthDriver
    orphaned: int

    @property
    def lineage(self) -> Lineage | None:
        """The lineage that is known here."""
        ...

    async def suspend(self) -> None:
        """End the term and begin none before `resume` or another lineage; returns when it ended."""
        ...

    def resume(self) -> None:
        """Begin terms again."""
        ...


class Operator:
    """Performs commands on one shard."""

    def __init__(self, shard: Commanded, *, node: Node, cluster: ClusterNode) -> None:
        self._shard = shard
        self._node = node
        self._cluster = cluster
        self._turn = trio.Lock()

    async def perform(self, command: MembersCommand) -> str:
        """Do what ``command`` says; return what was done or begun. See `Surface.command`."""
        async with self._turn:
            match command.verb:
                case MembersVerb.INIT:
                    return await self._init(command.nodes[0])
                case MembersVerb.TRANSFER:
                    return await self._transfer(command.nodes[0])
                case MembersVerb.ADD:
                    return await self._add(command.nodes)
                case MembersVerb.REMOVE:
                    return await self._remove(command.nodes)
                case MembersVerb.FORCE:
                    return await self._force(command.nodes[0])
                case MembersVerb.ACCEPT:
                    assert command.lineage is not None, "an accept without a lineage"
                    return await self._accept(Lineage(bytes.fromhex(command.lineage)))

    # Before there is a lineage.

    async def _init(self, name: str) -> str:
        self._require_me(name)
        shard = self._shard
        if shard.lineage is not None:
            raise ConflictError(
                f"shard {shard.shard} has its lineage already ({shard.lineage.hex()}): there is "
                "nothing to decide any more."
            )
        before = shard.hearing.count
        shard.birth.decided()
        await self._until(
            lambda: shard.birth.record.is_decided or shard.lineage is not None,
            lambda: _first(shard.hearing.since(before), "`members init`"),
            _BIRTH_S,
        )
        return (
            f"{name} decides with its file what shard {shard.shard} begins with; it begins once "
            "all members have answered."
        )

    # While there is a leader: this node.

    async def _leading(self) -> Term:
        """Return the term at work; raise unless this node leads, after a moment of patience."""
        deadline = trio.current_time() + _LEADING_S
        while True:
            try:
                return self._find_leading()
            except UnavailableError:
                if trio.current_time() > deadline:
                    raise
            await trio.sleep(_LOOK_S)

    def _find_leading(self) -> Term:
        shard, term = self._shard, self._shard.term
        if term is None or not term.is_at_work:
            why = shard.error or shard.birth.status
            raise UnavailableError(f"shard {shard.shard} is {shard.state.value} here: {why}")
        replica = term.driver.replica
        if not replica.is_leader or replica.writable_until(instant()) <= instant():
            names = {voter.key: voter.node_id for voter in replica.ballot.config.voters}
            leader = names.get(replica.leader)
            if replica.leader == self._cluster.me.key or leader is None:
                raise UnavailableError(
                    f"shard {shard.shard} has no writer now: no quorum of its voters "
                    f"({', '.join(names.values())}) answers, or one is being chosen; try again."
                )
            raise ConflictError(
                f"{leader} leads shard {shard.shard}: give the command on its host."
            )
        return term

    def _scene(self, config: ConfigPayload) -> Scene:
        members = self._cluster.members
        return Scene(
            config=config,
            author=self._cluster.me.key,
            present=self._present(),
            members_hash=members.hash if isinstance(members, Membership) else None,
            wants_byzantine=self._node.config.cluster.fault_model is FaultModel.BYZANTINE,
        )

    def _present(self) -> dict[str, Present]:
        cluster = self._cluster
        present = {
            hello.node_id: Present(key=hello.key, journal_id=hello.journal_id, role=role_of(hello))
            for hello in cluster.connected.values()
        }
        present[cluster.me.node_id] = Present(
            key=cluster.me.key,
            journal_id=cluster.journal_id,
            role=self._node.config.cluster.node_role,
        )
        return present

    async def _add(self, nodes: Sequence[str]) -> str:
        term = await self._leading()
        before = term.driver.replica.ballot.config
        config = plan_addition(self._scene(before), nodes)
        newcomers = [voter for voter in config.voters if voter not in before.voters]
        with ExitStack() as held:
            await self._caught_up(term, newcomers, held, _CAUGHT_UP_S)
            return await self._change(await self._leading(), config)

    async def _remove(self, nodes: Sequence[str]) -> str:
        term = await self._leading()
        if self._cluster.me.node_id in nodes:
            raise ConflictError(
                f"{self._cluster.me.node_id} writes shard {self._shard.shard}: move the writer "
                "first (`basenet members transfer`), then remove it there, so that nothing that "
                "its application commits meanwhile is lost."
            )
        config = plan_removal(self._scene(term.driver.replica.ballot.config), nodes)
        return await self._change(term, config)

    async def _caught_up(
        self, term: Term, newcomers: Sequence[Voter], held: ExitStack, patience_s: float
    ) -> None:
        """Return when all newcomers are close to what is final; raise `ConflictError` if not.

        Where it takes that, the application is locked out until ``held`` is closed.
        """
        replica = term.driver.replica
        began_s, is_held = trio.current_time(), False
        deadline = began_s + patience_s
        while True:
            late = [one for one in newcomers if not replica.is_caught_up(one, instant())]
            if not late:
                return
            if trio.current_time() > deadline or self._shard.term is not term:
                break
            is_long = trio.current_time() > began_s + _FREE_S
            if is_long and not is_held and self._are_near(term, late):
                is_held = True
                held.enter_context(locked_out(term))
            certificate = replica.ballot.certificate
            if certificate is not None:
                # They answer how far they are.
                message = Certified(epoch=replica.ballot.epoch, certificate=certificate)
                keys = tuple(one.key for one in late)
                self._cluster.send(keys, term.shard, replica.ballot.config.lineage, message)
            term.driver.step(SurveyWanted())
            with trio.move_on_after(_ASK_AGAIN_S):
                await trio.sleep(_LOOK_S)
                await term.stepped()
        heights = replica.learners
        told = ", ".join(
            f"{one.node_id} (at seq {heights[one.key]})"
            if one.key in heights
            else f"{one.node_id} (which has not said how far it is)"
            for one in late
        )
        raise ConflictError(
            f"{told} has not caught up with seq {replica.final.height}: wait until `basenet "
            "members` shows that it has, then try again. Nothing was changed."
        )

    def _are_near(self, term: Term, voters: Sequence[Voter]) -> bool:
        replica = term.driver.replica
        told = self._cluster.heights.find(term.shard, replica.ballot.config.lineage)
        return all(is_near(replica, one, told) for one in voters)

    async def _change(self, term: Term, config: ConfigPayload) -> str:
        """Have the CONFIG proposed; return once it is final."""
        shard, replica = self._shard, term.driver.replica
        before, epoch = shard.hearing.count, replica.ballot.epoch
        names = ", ".join(voter.node_id for voter in config.voters)
        wanted = ConfigWanted(
            config=config,
            state_root=replica.tip.state_root,
            timestamp_ns=TimestampNs(time.time_ns()),
            salt=secrets.token_bytes(SALT_BYTES),
        )
        term.driver.step(wanted)
        is_done = await self._until(
            lambda: replica.ballot.epoch > epoch,
            lambda: _first(shard.hearing.since(before), "the CONFIG"),
            _OUTCOME_S,
        )
        if not is_done or replica.ballot.config != config:
            return (
                f"the CONFIG of shard {shard.shard} with the voters {names} was begun and is not "
                "final yet: `basenet members` shows when it is."
            )
        return f"shard {shard.shard} has the voters {names} (epoch {replica.ballot.epoch})."

    async def _transfer(self, name: str) -> str:
        term = await self._leading()
        shard, replica = self._shard, term.driver.replica
        target = self._target(replica.ballot.config, name)
        with ExitStack() as held:
            await self._caught_up(term, [target], held, _CLOSE_S)
            before = shard.hearing.count
            await yield_to(term, target)
        is_done = await self._until(
            lambda: replica.leader == target.key,
            lambda: _first(shard.hearing.since(before), "the transfer"),
            _OUTCOME_S,
        )
        if not is_done:
            return f"the transfer of shard {shard.shard} to {name} was begun."
        return (
            f"this node has handed shard {shard.shard} over: {name} leads from view "
            f"{replica.ballot.view} on."
        )

    def _target(self, config: ConfigPayload, name: str) -> Voter:
        shard = self._shard.shard
        found = [voter for voter in config.voters if voter.node_id == name]
        if not found:
            names = ", ".join(voter.node_id for voter in config.voters)
            raise NotFoundError(f"{name} is no voter of shard {shard}: they are {names}.")
        (target,) = found
        if target.key == self._cluster.me.key:
            raise ConflictError(f"{name} writes shard {shard} already.")
        if target.role is VoterRole.WITNESS:
            raise ConflictError(f"{name} is a witness, which has no database to write.")
        if not is_present(self._present(), target):
            raise UnavailableError(f"{name} is not connected with this node.")
        return target

    # When the quorum is gone.

    async def _force(self, name: str) -> str:
        self._require_me(name)
        shard = self._shard
        role = self._node.config.cluster.node_role
        if role is not NodeRole.VALIDATOR:
            raise ConflictError(
                f"{name} is of the role {role.value}, which cannot be the only voter: force the "
                "lineage on a validator."
            )
        record = await self._record()
        answering = {(one.key, one.journal_id) for one in self._present().values()}
        problem = refuse_force(record.ballot.config, frozenset(answering))
        if problem is not None:
            raise ConflictError(f"shard {shard.shard} is not forced: {problem}.")
        try:
            await shard.suspend()
            record = await self._record()
            parent = plan_forced(record).parent
            genesis = force_lineage(
                Survivor(
                    peer=self._cluster.me,
                    journal_id=self._cluster.journal_id,
                    signer=self._cluster.signer,
                ),
                shard.shard,
                record.ballot.config,
                parent,
                lineage=Lineage(secrets.token_bytes(LINEAGE_BYTES)),
                salt=secrets.token_bytes(SALT_BYTES),
                timestamp_ns=TimestampNs(time.time_ns()),
            )
        except BaseException:  # the operator's connection may have ended, too
            shard.resume()
            raise
        shard.birth.forced(genesis)
        await self._until(lambda: shard.lineage == genesis.lineage, lambda: None, _BIRTH_S)
        return (
            f"shard {shard.shard} goes on behind seq {parent.seq} as the forced lineage "
            f"{genesis.lineage.hex()}, with {name} as its only voter. On each other node: `basenet "
            f"members accept {genesis.lineage.hex()} --shard {shard.shard}`, then `basenet members "
            "add` here."
        )

    async def _accept(self, lineage: Lineage) -> str:
        shard = self._shard
        if shard.lineage == lineage:
            raise ConflictError(f"this node follows {lineage.hex()} already.")
        before = shard.hearing.count
        bundles = shard.orphaned
        shard.birth.accepted(lineage)
        is_done = await self._until(
            lambda: shard.lineage == lineage,
            lambda: _first(shard.hearing.since(before), "no node has announced"),
            _BUNDLE_S,
        )
        if not is_done:
            return f"lineage {lineage.hex()} is accepted; what it lacks is being kept first."
        kept = "what this node held beyond it is an orphan bundle (`basenet orphans list`)"
        if shard.orphaned == bundles:
            kept = "this node held nothing beyond it"
        return f"shard {shard.shard} follows the forced lineage {lineage.hex()} here; {kept}."

    async def _record(self) -> ReplicaRecord:
        shard = self._shard.shard
        record = await self._node.journalist.perform(lambda journal: journal.load_replica(shard))
        if record is None:
            raise ConflictError(
                f"this node knows no history of shard {shard} that could go on; "
                f"{self._shard.birth.status}."
            )
        return record

    # Inside.

    def _require_me(self, name: str) -> None:
        if name != self._cluster.me.node_id:
            raise ConflictError(
                f"this is {self._cluster.me.node_id}: give the command on the host of {name}."
            )

    async def _until(
        self, is_done: Callable[[], bool], refused: Callable[[], str | None], seconds: float
    ) -> bool:
        """Return whether ``is_done`` within a time; raise `ConflictError` when it is refused."""
        deadline = trio.current_time() + seconds
        while not is_done():
            why = refused()
            if why is not None:
                if self._shard.error == why:
                    self._shard.error = None  # it is the answer, not the state of the shard
                raise ConflictError(f"{why}.")
            if trio.current_time() > deadline:
                return False
            await trio.sleep(_LOOK_S)
        return True


def _first(sentences: Sequence[str], beginning: str) -> str | None:
    """Return the first sentence that begins so."""
    return next((one for one in sentences if one.startswith(beginning)), None)
