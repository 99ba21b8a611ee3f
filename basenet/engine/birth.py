"""How a shard gets its first lineage in a cluster, and no second one.

Theory of operation
===================

Each node runs one of these per shard, from "no lineage known" to "lineage known" (and after that to
answer those who still ask). Nobody votes, leases or captures as the writer before that::

    scanned ── ask everybody ── choose ──┬─ author:  survey archive, write genesis, PERSIST, offer
                    ^                    │           collect all promises, PERSIST as known, tell
                    └──── an answer ─────┤
                                         └─ voter:   judge the offer, PERSIST the promise, sign

What keeps two lineages from being born, whatever crashes, is lost or comes late:

1. *Who is asked* follows from M alone, which is fixed by configuration (`engine.placement`), and
   two nodes of M sign every genesis over it (`engine.author`).
2. *A promise* is persisted before it is sent, and given up only by the rules of `engine.consent`.
3. *Known* is a lineage only with the signatures of all its voters (`engine.genesis`). The author
   puts them together; its own is never sent before. So it can take its genesis back at any time
   until then (WITHDRAW, persisted before it is sent): nobody can complete it without the author.
4. *An author makes a genesis* only when it holds no promise and every signer has answered, on its
   present connection, that it knows no lineage. Whoever knows one answers with it, and everybody
   joins that one. So a birth whose author lost its disk is found by asking its voters; they are
   told first, and others only when a quorum of the voters know (`is_settled`): a lineage that a
   learner knows cannot be forgotten by the loss of one disk.

A lineage that exists already and was not born over this M (a standalone node joins, the membership
has grown since) is joined by whoever holds no promise and has heard of no other. Nothing follows a
FORCED one by itself (`engine.forced`).
"""

from typing import Final

from basenet.engine.birth_events import (
    ArchiveSurveyed,
    AuthorDecided,
    BirthEffect,
    BirthEvent,
    BirthReceived,
    BirthTicked,
    FenceFile,
    FileScanned,
    ForcedAccepted,
    LineageForced,
    MembersKnown,
    PeerConnected,
    PeerGone,
    ReportBirth,
)
from basenet.engine.birth_record import BirthRecord
from basenet.engine.cradle import Cradle, Newborn
from basenet.engine.events import Instant
from basenet.engine.genesis import Genesis
from basenet.engine.knowing import Knowing
from basenet.engine.limits import MILLISECOND, SECOND
from basenet.engine.placement import UNKNOWN, Membership
from basenet.engine.unborn import Unborn

ASK_PAUSE: Final = 500 * MILLISECOND
ASK_PAUSE_MAX: Final = 30 * SECOND
"""Asking is repeated after ASK_PAUSE, then twice as long each time, up to this: 10,000 shards whose
third node is away for a day ask 333 times a second. Any new connection begins anew."""


class Birth:
    """One shard's birth at one node: events in, effects out, in order.

    Its parts: `Newborn` (what and who), `Unborn` and `Knowing` (the two phases).
    """

    def __init__(self, newborn: Newborn, record: BirthRecord) -> None:
        """Go on from ``record``; raises `CorruptionError` when a genesis in it is damaged."""
        self._cradle = Cradle(newborn=newborn, record=record)
        self._members: Membership | str = UNKNOWN
        self._unborn: Unborn | None = None
        self._knowing = Knowing(self._cradle) if record.known else None
        self._pause = ASK_PAUSE
        self.wake_at: Instant | None = None

    @property
    def record(self) -> BirthRecord:
        """The durable state, as of the last `KeepBirth`."""
        return self._cradle.record

    @property
    def genesis(self) -> Genesis | None:
        """The genesis of the shard's lineage; None until it is known."""
        return self._knowing.genesis if self._knowing else None

    @property
    def status(self) -> str:
        """What is waited for, in one sentence."""
        if self._knowing is not None:
            return f"lineage {self._knowing.genesis.lineage.hex()}"
        return self._unborn.status if self._unborn else "the database file is being read"

    @property
    def problem(self) -> str | None:
        """What a human must do first; None while it goes on by itself."""
        return self._unborn.problem if self._unborn else None

    def boot(self, now: Instant) -> list[BirthEffect]:
        """Begin, or go on after a restart."""
        if self._knowing is not None:
            self._arm(now)
            return self._knowing.announce()
        return [FenceFile()]

    def step(self, event: BirthEvent, now: Instant) -> list[BirthEffect]:
        """Take in one event and return what must now be done, in order."""
        effects = self._take_in(event, now)
        if self._unborn is not None and self._knowing is None:
            effects += self._unborn.advance(now)
            if self.record.known is not None:
                self._unborn = None
                self._knowing = Knowing(self._cradle)
                self._pause = ASK_PAUSE
                effects += [*self._knowing.announce(), *self._knowing.tell_voters()]
        self._arm(now)
        return effects

    def _take_in(  # noqa: PLR0911  (one line for each event)
        self, event: BirthEvent, now: Instant
    ) -> list[BirthEffect]:
        match event:
            case MembersKnown():
                self._members = event.members
                return self._unborn.on_members(event.members) if self._unborn else []
            case FileScanned():
                return self._on_scanned(event)
            case PeerConnected():
                return self._on_connected(event)
            case PeerGone():
                self._cradle.connected.pop(event.key, None)
                return self._unborn.on_gone(event.key) if self._unborn else []
            case BirthReceived():
                return self._on_received(event)
            case ArchiveSurveyed():
                return self._unborn.on_surveyed(event, now) if self._unborn else []
            case BirthTicked():
                return self._on_tick(now)
            case _:
                return self._on_command(event)

    def _on_scanned(self, event: FileScanned) -> list[BirthEffect]:
        if self._knowing is not None:
            return []
        if self._unborn is not None:
            return self._unborn.on_file(event.file)
        self._unborn = Unborn(self._cradle, self._members, event.file)
        return self._unborn.ask(self._cradle.connected)

    def _on_connected(self, event: PeerConnected) -> list[BirthEffect]:
        self._cradle.connected[event.peer.key] = event
        self._pause, self.wake_at = ASK_PAUSE, None
        if self._knowing is not None:
            return self._knowing.on_connected(event)
        return self._unborn.on_connected(event) if self._unborn else []

    def _on_received(self, event: BirthReceived) -> list[BirthEffect]:
        """Drop what an older connection of the peer brings, and what comes before the scan."""
        connection = self._cradle.connected.get(event.sender)
        if connection is None or connection.journal_id != event.journal_id:
            return []
        if self._knowing is not None:
            return self._knowing.on_received(event)
        return self._unborn.on_received(event) if self._unborn else []

    def _on_tick(self, now: Instant) -> list[BirthEffect]:
        if self.wake_at is None or now < self.wake_at:
            return []
        self.wake_at = None
        self._pause = min(2 * self._pause, ASK_PAUSE_MAX)
        if self._knowing is not None:
            return self._knowing.tell_voters()
        return self._unborn.ask(self._cradle.connected) if self._unborn else []

    def _on_command(
        self, event: AuthorDecided | LineageForced | ForcedAccepted
    ) -> list[BirthEffect]:
        """Do what the operator asks, or say why not."""
        if isinstance(event, AuthorDecided):
            if self._unborn is not None:
                return self._unborn.on_decided()
            what = f"`members init` comes too late or too early: {self.status}"
            return [ReportBirth(what=what)]
        if self._knowing is None:
            return [ReportBirth(what="this node knows no lineage that a forced one could replace")]
        if isinstance(event, LineageForced):
            return self._knowing.on_forced(event)
        return self._knowing.on_accepted(event)

    def _arm(self, now: Instant) -> None:
        """Set when to ask again; never, once the lineage is settled."""
        if self._knowing is not None and self._knowing.is_settled:
            self.wake_at = None
        elif self.wake_at is None and (self._knowing or self._unborn):
            self.wake_at = Instant(now + self._pause)
