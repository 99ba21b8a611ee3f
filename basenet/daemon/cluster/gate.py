"""When the applications of this node may write: their fences, opened and held open.

Theory of operation
===================

A fence is open until an instant that is renewed several times within a lease, and only while all of
this is true of its shard; otherwise nothing is done, and the guardian closes it when its time is
over::

    the replica leads, with a lease from a quorum                (`Replica.writable_until`)
    the file holds everything that is settled, nothing is mended
    capture has begun, so that no commit precedes it
    not too much is captured and not final                       (BASE_MAX_UNFINALIZED_*)

The last one bounds what a deposed writer loses. When it does not hold, the fence is closed at once,
and opened again as soon as the quorum has caught up: the application sees SQLITE_BUSY meanwhile.

*One task for all shards*, since a thousand of them are idle and their leases end all the same. Each
shard's `Gate` is in one of three sets, and a shard that does not lead is in none and costs nothing
until its replica makes a step::

    waiting    leads and may not write yet: a lease comes with an acknowledgement, which is no step
    open       looked at and renewed, `_RENEWALS` times within a lease
    at rest    open, and nothing has happened to it between two looks: renewed as often, without a
               look, with all others whose lease is the same (`Rest`); one packet to the guardian

With a limit set none is at rest, and what is not final is looked at between renewals, too.

*Why no look is needed at rest.* All that a look asks changes by one of five things, and each of
them ends the rest before the next renewal::

    the replica makes a step         who leads, the tip, what is wanted            `Gate.stepped`
    an effect of a step is done      settled, applied, orphaned     none is at rest before all are
    the fence is closed, or asked    the file is mended, marked, given to another hand, replaced
      for, or dropped                                                         `guard.FenceGroup`
    the term ends                                                                   `Gate.leave`
    the lease is over, or may be     an answer of a voter, a lead that ends: `lease.SharedLease` is
      another one than the others'   over for all who share it, and each of them is looked at

Whoever writes to the file asks for the fence first, and whoever holds applying back does so because
a step told to, or before the gate is there. Should something be missed all the same, it is noticed:
each gate at rest is looked at once in `_TURN_S`.

What takes time, the beginning of capture, is done in a task of the shard's own term: one slow disk
holds up no other shard's renewal.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from math import ceil, inf
from typing import Final, Protocol

import structlog
import trio

from basenet.config.model import ClusterConfig
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.guard import FenceGroup, Guard
from basenet.daemon.cluster.writing import Unfinal
from basenet.daemon.framer import instant
from basenet.engine.events import Instant
from basenet.engine.lease import SharedLease
from basenet.units import ShardId

log = structlog.get_logger()

NEVER: Final = Instant(0)
# A renewal that comes late by half a lease still comes in time.
_RENEWALS: Final = 10 / 3
_LOOK_S: Final = 0.05
_TURN_S: Final = 10.0
# So many fences are renewed before everything else has a turn.
_AT_ONCE: Final = 256
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


class Gated(Protocol):
    """What a gate looks at; `term.Term` satisfies it."""

    shard: ShardId
    file: ReplicaFile

    @property
    def leads(self) -> bool:
        """Whether this node leads, so that a lease may come without a step."""
        ...

    @property
    def is_writing(self) -> bool:
        """Whether capture has begun."""
        ...

    def writable_until(self) -> Instant:
        """Return until when the application may write; `NEVER` when it may not."""
        ...

    def lease_until(self) -> Instant:
        """Return until when a quorum gave its lease; the past without one."""
        ...

    def shared_lease(self) -> SharedLease | None:
        """Return the lease that it shares with other shards; None while anything is under way."""
        ...

    def unfinal(self) -> Unfinal:
        """Return what this node would lose if it were deposed now."""
        ...

    async def begin_writing(self) -> None:
        """Begin to capture, unless that has begun or is not right any more."""
        ...

    def close_fence(self) -> None:
        """Lock the application out; returns at once."""
        ...

    def moved(self) -> None:
        """Let whoever waits for a fact of this shard look again."""
        ...


Start = Callable[[Callable[[], Awaitable[None]]], None]
"""Runs something beside the term; what it raises ends the term."""


class Gate:
    """The fence of one term, kept open while that is right. Made by `Gates.enter`."""

    __slots__ = (
        "_gates",
        "_has_looked",
        "_is_beginning",
        "_is_stirred",
        "_oldest",
        "_start",
        "_until",
        "has_left",
        "is_held_back",
        "is_open",
        "rest",
        "term",
    )

    def __init__(self, gates: "Gates", term: Gated, start: Start) -> None:
        self.term = term
        self.is_open = False
        """Whether the application may write, as far as the last look told."""
        self.is_held_back = False
        """Whether the application waits for the quorum."""
        self.has_left = False
        self.rest: Rest | None = None
        """With whom it is renewed without a look."""
        self._gates = gates
        self._start = start
        self._has_looked = self._is_beginning = False
        self._is_stirred = True  # since the last look but one
        # The oldest commit that is not final, and how far ahead the wall clock was at that sight.
        self._oldest: tuple[int, int] | None = None
        self._until: Instant | None = None  # of the lease under which it is or was open

    def stepped(self) -> None:
        """Take note of a step of the replica: an open gate's shard is looked at in time anyway."""
        self.stir()
        if not (self.is_open and self.term.leads):
            self._gates.look_soon(self)

    def stir(self) -> None:
        """Be looked at before the next renewal: something has happened."""
        self._is_stirred = True
        if self.rest is not None:
            self._gates.wake(self)

    def find_lease(self) -> SharedLease | None:
        """Return the lease under which it may rest now; None: nothing rests that stirred.

        Asked after each look that found it open.
        """
        was_stirred, self._is_stirred = self._is_stirred, False
        return None if was_stirred else self.term.shared_lease()

    def wake(self, until: Instant) -> None:
        """Be at rest no longer; the last renewal was until ``until``."""
        self.rest = None
        self._until = max(until, self._until or until)

    def look(self) -> None:
        """Open the fence or hold it open if that is right; `Gates` sends the renewal."""
        term = self.term
        if self._gates.has_limits:
            self.weigh()
        until = NEVER if self.is_held_back else term.writable_until()
        is_open = until > NEVER and term.is_writing
        if is_open:
            self._until = until
            if term.file.fence is not None:
                term.file.fence.renew(until)
        elif until > NEVER and not self._is_beginning:
            self._is_beginning = True
            self._start(self._begin)
        if not is_open:
            self._watch_lease()
        has_turned = is_open is not self.is_open
        self.is_open = is_open
        if has_turned or not is_open or not self._has_looked:
            self._has_looked = True
            term.moved()

    async def _begin(self) -> None:
        """Begin to capture, and look again: the lease may be over by then.

        Where it could not begin, it is tried again with the next look at those who wait.
        """
        try:
            await self.term.begin_writing()
        finally:
            self._is_beginning = False
        if self.term.is_writing:
            self._gates.look_soon(self)

    def _watch_lease(self) -> None:
        """Find out whether the lease under which the fence was open has run out.

        Who hands the lead over gives it up before its end, and that is no loss.
        """
        if self._until is None:
            return
        now, lease = self._gates.clock(), self.term.lease_until()
        if lease > now:
            self._until = lease
        elif self._until <= now:
            self._gates.leases_lost[self.term.shard] += 1
            log.warning("lease_lost", shard=self.term.shard)
            self._until = None
        elif not self.term.leads:
            self._until = None

    def weigh(self) -> None:
        """Find out whether too much is not final; close the fence when that begins."""
        unfinal = self.term.unfinal()
        age_ms = self._age_ms(unfinal)
        is_too_much = self._gates.is_too_much(unfinal, age_ms)
        if is_too_much and not self.is_held_back:
            log.warning(
                "application_held_back",
                shard=self.term.shard,
                commits=unfinal.commits,
                ms=round(age_ms),
            )
            self.term.close_fence()
        elif self.is_held_back and not is_too_much:
            log.info("application_released", shard=self.term.shard)
        self.is_held_back = is_too_much

    def _age_ms(self, unfinal: Unfinal) -> float:
        """Return for how long the oldest commit has waited to become final; 0 without one.

        Commits carry the wall clock's time, and that may be stepped while they wait.
        """
        if unfinal.oldest_ns is None:
            self._oldest = None
            return 0.0
        now = self._gates.clock()
        if self._oldest is None or self._oldest[0] != unfinal.oldest_ns:
            self._oldest = (unfinal.oldest_ns, time.time_ns() - now)
        oldest_ns, ahead = self._oldest
        return max(0, now + ahead - oldest_ns) / _NS_PER_MS

    def leave(self) -> None:
        """Keep it open no longer: the term ends."""
        self.has_left, self.is_open = True, False
        self._gates.forget(self)


class Rest:
    """Open gates to which nothing happens, and which all have the same lease."""

    def __init__(self, fences: FenceGroup) -> None:
        self._fences = fences
        self._gates: dict[Gate, None] = {}
        self._turn: list[Gate] = []
        self._turn_step = 0

    def __len__(self) -> int:
        return len(self._gates)

    def add(self, gate: Gate) -> bool:
        """Renew ``gate``, which was just looked at, with the others; False if that cannot be."""
        fence = gate.term.file.fence
        if fence is None or not fence.join(self._fences, gate.stir):
            return False
        self._gates[gate] = None
        gate.rest = self
        return True

    def remove(self, gate: Gate) -> None:
        """Renew ``gate`` no more."""
        del self._gates[gate]
        if gate.term.file.fence is not None:
            gate.term.file.fence.part()
        gate.wake(self._fences.until)

    def renew(self, until: Instant) -> None:
        """Hold all of them open until ``until``."""
        self._fences.renew(until)

    def end(self) -> list[Gate]:
        """Wake all of them; return who they were."""
        gates = list(self._gates)
        for gate in gates:
            self.remove(gate)
        self._fences.disband()
        return gates

    def next_in_turn(self, share: float) -> list[Gate]:
        """Return the next ``share`` of them."""
        if not self._turn:
            self._turn = list(self._gates)
            self._turn_step = ceil(share * len(self._turn))
        chosen, self._turn = self._turn[: self._turn_step], self._turn[self._turn_step :]
        return [gate for gate in chosen if gate.rest is self]


class Gates:
    """Keeps the fences of all shards of a node."""

    def __init__(
        self,
        config: ClusterConfig,
        guard: Guard,
        *,
        lease: int,
        clock: Callable[[], Instant] = instant,
    ) -> None:
        """``lease``: how long one lasts, in nanoseconds."""
        self.clock = clock
        self.leases_lost: Counter[ShardId] = Counter()
        """How often a lease ran out under which an application could write."""
        self._guard = guard
        self._limits = (
            config.unfinalized_commits_max,
            config.unfinalized_bytes_max,
            config.unfinalized_ms_max,
        )
        self.has_limits = self._limits != (None, None, None)
        self._renew_s = lease / _NS_PER_S / _RENEWALS
        self._renew_at_s = -inf
        self._look_at_s = -inf
        self._open: dict[Gate, None] = {}
        self._rests: dict[SharedLease, Rest] = {}
        self._waiting: dict[Gate, None] = {}
        self._soon: dict[Gate, None] = {}
        self._news = trio.Event()

    def enter(self, term: Gated, start: Start) -> Gate:
        """Return the gate of ``term``, looked at soon; ``start`` runs tasks of the term."""
        gate = Gate(self, term, start)
        self.look_soon(gate)
        return gate

    def look_soon(self, gate: Gate) -> None:
        """Look at ``gate`` as soon as everything that is under way now has been said."""
        self._soon[gate] = None
        self._news.set()

    def forget(self, gate: Gate) -> None:
        """Look at ``gate`` no more."""
        if gate.rest is not None:
            gate.rest.remove(gate)
        for gates in (self._open, self._waiting, self._soon):
            gates.pop(gate, None)

    def wake(self, gate: Gate) -> None:
        """Look at ``gate``, which was at rest, before its next renewal."""
        if gate.rest is not None:
            gate.rest.remove(gate)
            self._open[gate] = None

    def is_too_much(self, unfinal: Unfinal, age_ms: float) -> bool:
        """Return whether the application has to wait for the quorum."""
        values = (unfinal.commits, unfinal.bytes, age_ms)
        return any(
            limit is not None and value > limit
            for value, limit in zip(values, self._limits, strict=True)
        )

    async def run(self) -> None:
        """Look for ever; sleep while this node leads nothing."""
        while True:
            with trio.move_on_at(self._due_s()):
                await self._news.wait()
            self._news = trio.Event()
            now_s = trio.current_time()
            soon, self._soon = self._soon, {}
            await self._look_at(soon)
            if self._look_at_s <= now_s:
                self._look_at_s = now_s + _LOOK_S
                await self._look_at(dict(self._waiting))
                self._weigh()
            if self._renew_at_s <= now_s:
                self._renew_at_s = now_s + self._renew_s
                self._renew_rests()
                await self._look_at(dict(self._open))
            self._guard.flush()

    def _due_s(self) -> float:
        """Return when to look again though nothing happens."""
        must_look = self._waiting or (self.has_limits and self._open)
        return min(
            self._look_at_s if must_look else inf,
            self._renew_at_s if self._open or self._rests else inf,
        )

    async def _look_at(self, gates: Iterable[Gate]) -> None:
        for count, gate in enumerate(gates, 1):
            if gate.has_left:
                continue
            gate.look()
            self._sort(gate)
            if not count % _AT_ONCE:
                await trio.lowlevel.checkpoint()

    def _renew_rests(self) -> None:
        """Renew those who rest, and look at some; who has lost the common lease is looked at."""
        now = self.clock()
        for lease, rest in list(self._rests.items()):
            until = lease.until
            if until <= now or not rest:
                del self._rests[lease]
                self._open |= dict.fromkeys(rest.end())
                continue
            rest.renew(until)
            for gate in rest.next_in_turn(self._renew_s / _TURN_S):
                self._look_again(gate, lease)

    def _look_again(self, gate: Gate, lease: SharedLease) -> None:
        """See that a gate at rest would be open all the same."""
        gate.look()
        if not gate.is_open or gate.find_lease() is not lease:
            self.wake(gate)
        self._sort(gate)

    def _sort(self, gate: Gate) -> None:
        """Put ``gate`` where it is looked at as often as it needs."""
        if gate.is_open:
            self._waiting.pop(gate, None)
            if gate.rest is None and not self._may_rest(gate):
                self._open[gate] = None
            else:
                self._open.pop(gate, None)
            return
        self.wake(gate)
        self._open.pop(gate, None)
        if gate.term.leads:
            self._waiting[gate] = None
        else:
            self._waiting.pop(gate, None)

    def _may_rest(self, gate: Gate) -> bool:
        """Let ``gate``, which is open, rest if it may."""
        lease = gate.find_lease()
        if lease is None or self.has_limits:
            return False
        rest = self._rests.get(lease)
        if rest is None:
            rest = self._rests[lease] = Rest(self._guard.group())
        return rest.add(gate)

    def _weigh(self) -> None:
        """Close what has fallen behind too far, between two renewals."""
        if not self.has_limits:
            return
        for gate in list(self._open):
            gate.weigh()
            if gate.is_held_back:
                gate.look()
                self._sort(gate)
