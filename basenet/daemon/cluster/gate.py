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

    open       renewed together, `_RENEWALS` times within a lease, in one packet to the guardian
    waiting    leads and may not write yet: a lease comes with an acknowledgement, which is no step
    measured   open, with a limit set: what is not final is looked at between renewals, too

What takes time, the beginning of capture, is done in a task of the shard's own term: one slow disk
holds up no other shard's renewal.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from math import inf
from typing import Final, Protocol

import structlog
import trio

from basenet.config.model import ClusterConfig
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.guard import Guard
from basenet.daemon.cluster.writing import Unfinal
from basenet.daemon.framer import instant
from basenet.engine.events import Instant
from basenet.units import ShardId

log = structlog.get_logger()

NEVER: Final = Instant(0)
# A renewal that comes late by half a lease still comes in time.
_RENEWALS: Final = 10 / 3
_LOOK_S: Final = 0.05
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
        "_oldest",
        "_start",
        "_until",
        "has_left",
        "is_held_back",
        "is_open",
        "term",
    )

    def __init__(self, gates: "Gates", term: Gated, start: Start) -> None:
        self.term = term
        self.is_open = False
        """Whether the application may write, as far as the last look told."""
        self.is_held_back = False
        """Whether the application waits for the quorum."""
        self.has_left = False
        self._gates = gates
        self._start = start
        self._has_looked = self._is_beginning = False
        # The oldest commit that is not final, and how far ahead the wall clock was at that sight.
        self._oldest: tuple[int, int] | None = None
        self._until: Instant | None = None  # of the lease under which it is or was open

    def stepped(self) -> None:
        """Take note of a step of the replica: an open gate's shard is looked at in time anyway."""
        if not (self.is_open and self.term.leads):
            self._gates.look_soon(self)

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
        for gates in (self._open, self._waiting, self._soon):
            gates.pop(gate, None)

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
                await self._look_at(dict(self._open))
            self._guard.flush()

    def _due_s(self) -> float:
        """Return when to look again though nothing happens."""
        must_look = self._waiting or (self.has_limits and self._open)
        return min(
            self._look_at_s if must_look else inf,
            self._renew_at_s if self._open else inf,
        )

    async def _look_at(self, gates: Iterable[Gate]) -> None:
        for count, gate in enumerate(gates, 1):
            if gate.has_left:
                continue
            gate.look()
            self._sort(gate)
            if not count % _AT_ONCE:
                await trio.lowlevel.checkpoint()

    def _sort(self, gate: Gate) -> None:
        """Put ``gate`` where it is looked at as often as it needs."""
        if gate.is_open:
            self._open[gate] = None
            self._waiting.pop(gate, None)
            return
        self._open.pop(gate, None)
        if gate.term.leads:
            self._waiting[gate] = None
        else:
            self._waiting.pop(gate, None)

    def _weigh(self) -> None:
        """Close what has fallen behind too far, between two renewals."""
        if not self.has_limits:
            return
        for gate in list(self._open):
            gate.weigh()
            if gate.is_held_back:
                gate.look()
                self._sort(gate)
