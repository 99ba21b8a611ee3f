"""Mutants of the birth: what must not be left out, left out; and where that must be noticed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from basenet.engine import author, unborn
from basenet.engine.birth import Birth
from basenet.engine.birth_events import KeepBirth, NewJournalNeeded, SendBirth
from basenet.engine.consent import find_missing
from basenet.engine.knowing import Knowing
from basenet.engine.placement import Membership, Peer
from basenet.engine.unborn import Unborn
from basenet.testing.simulator import birth as world
from basenet.testing.simulator.birth import BirthScenario, database

ROUGH = {"crashes": 0.05, "cuts": 0.05, "lost": 0.2, "late": 0.3}
ONE_ROW = ((5, database(b"rows")),)


@dataclass(frozen=True, kw_only=True)
class BirthMutant:
    """``scenario`` None: a test notices it that says what must happen instead."""

    what: str
    apply: Callable[[], AbstractContextManager[Any]]
    scenario: BirthScenario | None = None
    seeds: int = 0


def rough(**changes: Any) -> BirthScenario:
    return BirthScenario(**(ROUGH | changes))


def wrapped(owner: type, name: str, change: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Replace the method: ``change(original, self, *arguments)`` is what it does now."""
    original = getattr(owner, name)

    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return change(original, self, *arguments, **options)

    return patch.object(owner, name, method)


def promise_not_persisted() -> AbstractContextManager[Any]:
    def consider(original: Any, self: Any) -> Any:
        return [effect for effect in original(self) if not isinstance(effect, KeepBirth)]

    return wrapped(Unborn, "_consider", consider)


def promise_sent_first() -> AbstractContextManager[Any]:
    return wrapped(Unborn, "_consider", lambda original, self: original(self)[::-1])


def genesis_sent_first() -> AbstractContextManager[Any]:
    def write(original: Any, self: Any, *arguments: Any) -> Any:
        effects = original(self, *arguments)
        sent = [effect for effect in effects if isinstance(effect, SendBirth)]
        return [*sent, *(effect for effect in effects if effect not in sent)]

    return wrapped(Unborn, "_write", write)


def promise_replaced_freely() -> AbstractContextManager[Any]:
    return patch.object(unborn, "may_replace", lambda *_: True)


@contextmanager
def one_promise_less() -> Iterator[None]:
    """One signature less is enough, for the author and for whoever is told."""

    def missing(offer: Any, order: Any, promises: Any) -> Any:
        found = sorted(find_missing(offer, order, promises))
        return frozenset(found[1:]) if len(found) < len(offer.voters) else frozenset(found)

    def certify(genesis: Any, promises: Any) -> Any:
        known = {key: promises.get(key, bytes(64)) for key in genesis.voters}
        return original(genesis, known)

    original = unborn.certify
    with (
        patch.object(unborn, "find_missing", missing),
        patch.object(unborn, "certify", certify),
        patch.object(unborn, "check_complete", lambda *_: None),
    ):
        yield


def members_who_are_up() -> AbstractContextManager[Any]:
    def expected(me: Peer, greeted: set[Peer], expected: int | None) -> Membership | str:
        assert expected
        return Membership(peers=tuple(sorted({me, *greeted})))

    return patch.object(world, "compute_expected_membership", expected)


def only_voters_sign() -> AbstractContextManager[Any]:
    return patch.object(author, "_COMMON_SIGNERS", 0)


def withdrawn_in_memory_only() -> AbstractContextManager[Any]:
    def withdraw(original: Any, self: Any) -> Any:
        record = self._cradle.record
        effects = original(self)
        if effects:
            self._cradle.record = replace(record, promise=None)
        return effects[1:]

    return wrapped(Unborn, "_withdraw", withdraw)


def answers_outlive_connections() -> AbstractContextManager[Any]:
    def connected(original: Any, self: Any, event: Any) -> Any:
        kept = dict(self._answers)
        effects = original(self, event)
        self._answers.update(kept)
        return effects

    return wrapped(Unborn, "on_connected", connected)


def rows_do_not_count() -> AbstractContextManager[Any]:
    return patch.object(author, "_has_rows", lambda *_: False)


def told_before_settled() -> AbstractContextManager[Any]:
    return patch.object(Knowing, "is_settled", property(lambda _: True))


def released_without_asking() -> AbstractContextManager[Any]:
    """A new journal of the author takes back what the lost one wrote, whoever may know of it."""

    def standing(original: Any, self: Any, event: Any, said: Any) -> Any:
        if said.promised is not None:
            held = replace_struct(said.promised, voters=(said.promised.author,))
            said = replace_struct(said, promised=held)
        return original(self, event, said)

    return wrapped(Unborn, "_on_standing", standing)


def knower_signs_again() -> AbstractContextManager[Any]:
    """Whoever knows a lineage does not say so to others than its author."""
    return wrapped(Knowing, "_tell", lambda _original, _self, _key: [])


def forgetting_unnoticed() -> AbstractContextManager[Any]:
    def standing(original: Any, self: Any, event: Any, said: Any) -> Any:
        effects = original(self, event, said)
        self._has_forgotten = False
        return [effect for effect in effects if not isinstance(effect, NewJournalNeeded)]

    return wrapped(Unborn, "_on_standing", standing)


def late_journals_heard() -> AbstractContextManager[Any]:
    def received(original: Any, self: Any, event: Any) -> Any:
        there = self._cradle.connected.get(event.sender)
        if there is not None:
            event = replace(event, journal_id=there.journal_id)
        return original(self, event)

    return wrapped(Birth, "_on_received", received)


def replace_struct(struct: Any, **changes: Any) -> Any:
    fields = {name: getattr(struct, name) for name in struct.__struct_fields__}
    return type(struct)(**(fields | changes))


MUTANTS = {
    mutant.apply.__name__: mutant
    for mutant in (
        BirthMutant(
            what="the promise is not persisted",
            scenario=rough(),
            seeds=5,
            apply=promise_not_persisted,
        ),
        BirthMutant(
            what="the promise is sent before it is persisted",
            scenario=rough(),
            seeds=5,
            apply=promise_sent_first,
        ),
        BirthMutant(
            what="a promise is replaced by any other genesis",
            apply=promise_replaced_freely,
        ),
        BirthMutant(
            what="n - 1 signatures are enough",
            scenario=rough(),
            seeds=20,
            apply=one_promise_less,
        ),
        BirthMutant(
            what="M is who is up",
            scenario=rough(nodes=6, is_counted=True, cuts=0.3),
            seeds=20,
            apply=members_who_are_up,
        ),
        BirthMutant(
            what="only the voters of a genesis sign it",
            scenario=rough(nodes=3, replication=1, lost_disks=0, files=((2, database(b"rows")),)),
            seeds=100,
            apply=only_voters_sign,
        ),
        BirthMutant(
            what="a file with rows counts as empty",
            scenario=rough(files=((2, database(b"rows")),)),
            seeds=5,
            apply=rows_do_not_count,
        ),
        BirthMutant(
            what="others than voters are told before a quorum knows",
            apply=told_before_settled,
        ),
        BirthMutant(
            what="a lost journal's genesis is taken back without asking its voters",
            apply=released_without_asking,
        ),
        BirthMutant(
            what="who knows a lineage does not answer with it",
            scenario=rough(),
            seeds=20,
            apply=knower_signs_again,
        ),
        BirthMutant(
            what="a withdrawal is not persisted",
            scenario=rough(nodes=4, replication=2, files=((3, database(b"rows")),)),
            seeds=300,
            apply=withdrawn_in_memory_only,
        ),
        BirthMutant(
            what="an answer outlives its connection",
            apply=answers_outlive_connections,
        ),
        BirthMutant(
            what="an author whose journal forgot its genesis goes on with that journal",
            scenario=rough(files=((2, database(b"rows")),)),
            seeds=100,
            apply=forgetting_unnoticed,
        ),
        BirthMutant(
            what="messages of a peer's older journal are heard",
            apply=late_journals_heard,
        ),
        BirthMutant(
            what="the genesis is offered before it is persisted",
            scenario=rough(),
            seeds=300,
            apply=genesis_sent_first,
        ),
    )
}
