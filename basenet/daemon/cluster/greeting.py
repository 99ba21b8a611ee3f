"""HELLOs compared with what is remembered of the journals behind them (Q9; B46 to B51).

Theory of operation
===================

`engine.roster` decides; this file gives it facts and makes them durable::

    HELLO of a peer ── lower count than remembered ──▶ refused; where we dialled: ROLLED_BACK
                    └─ else ──▶ admitted, count remembered ──▶ journal ──▶ COMPARED to the peer

*COMPARED* is the first message on a connection that this node dialled, and it waits for the journal
that remembers the peer's count: who was told so can rely on it (B50). It carries this node's own
count, too, and is repeated while that grows, at most once a second. So a journal that is restored
to a moment after its last HELLO is recognised as well.

*One run, one comparison.* HELLOs of both lanes and both directions are under way at the same time,
and an older one may be looked at after a newer. Within one run of a peer (one boot nonce) its count
only grows, so a lower one is late and says nothing; a journal comes back from a backup only between
two runs.

*An older run is over.* Once a run of a peer was admitted, what a former one left in its sockets is
not processed any more: it may be from before that node lost its disk (B38).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import structlog
import trio

from basenet.daemon.cluster.tally import Tally
from basenet.engine.events import Instant
from basenet.engine.liveness import Member
from basenet.engine.roster import (
    KeepRoster,
    RefuseRolledBack,
    Roster,
    RosterEffect,
    TakeNewJournalId,
)
from basenet.errors import PeerError
from basenet.transport.link import Unwelcome
from basenet.units import JournalId, PublicKeyBytes
from basenet.wire.envelope import BetweenNodes, encode_envelope
from basenet.wire.hello import Hello
from basenet.wire.payload import ConfigPayload
from basenet.wire.rollback import Compared, RolledBack

log = structlog.get_logger()

TELL_S: Final = 1.0
"""How often this node's own count is told while it grows."""


class PeersJournal(Protocol):
    """The part of `journal.journal.Journal` that is needed here."""

    @property
    def journal_id(self) -> JournalId:
        """Its id."""
        ...

    @property
    def jcount(self) -> int:
        """How many transactions are durable in it."""
        ...

    def peers(self) -> Mapping[Member, int]:
        """Return the highest count that is remembered of each journal of others."""
        ...

    def remember_peers(self, counts: Iterable[tuple[Member, int]], /) -> None:
        """Remember exactly these counts; durable on return."""
        ...


class PeersJournalist(Protocol):
    """The part of `daemon.journalist.Journalist` that is needed here."""

    @property
    def journal(self) -> PeersJournal:
        """The journal; only its attributes may be read outside of `perform`."""
        ...

    async def perform(self, act: Callable[[PeersJournal], None]) -> None:
        """Run ``act`` on the journal between two transactions."""
        ...


class Greeter:
    """Admits peers, remembers their counts, and tells them ours."""

    def __init__(
        self,
        *,
        me: Member,
        journalist: PeersJournalist,
        doubters_needed: int,
        tally: Tally,
        clock: Callable[[], Instant],
        send: Callable[[PublicKeyBytes, bytes], object],
        on_compared: Callable[[], None],
        on_rolled_back: Callable[[str], None],
    ) -> None:
        """Begin with what the journal remembers.

        ``send`` a message to a peer. ``on_compared``: one more peer has compared our HELLO.
        ``on_rolled_back`` is told once, in a sentence, that this journal must take a new id; what
        it raises ends `run`.
        """
        self._journalist = journalist
        self._tally = tally
        self._clock = clock
        self._send = send
        self._on_compared = on_compared
        self._on_rolled_back = on_rolled_back
        # What every HELLO of this run says at least.
        self._boot_count = journalist.journal.jcount
        self._kept = self._wanted = dict(journalist.journal.peers())
        self._roster = Roster(me, self._kept, doubters_needed=doubters_needed)
        self._runs: dict[PublicKeyBytes, tuple[JournalId, bytes]] = {}
        self._compared_by: set[Member] = set()
        self._connected: dict[PublicKeyBytes, JournalId] = {}
        self._untold: set[PublicKeyBytes] = set()
        self._told_count = self._boot_count
        self._verdict: str | None = None
        self._news = trio.Event()

    def may_vote(self, config: ConfigPayload) -> bool:
        """Return whether enough voters of ``config`` have compared our HELLO (B50)."""
        return self._roster.may_vote(config)

    def admit(self, peer: Hello) -> None:
        """Compare a peer's HELLO; raise `PeerError` if its journal has forgotten something."""
        run = (peer.journal_id, peer.boot_nonce)
        member = (peer.key, peer.journal_id)
        is_late = peer.journal_count < self._roster.remembered(member)
        if self._runs.get(peer.key) == run and is_late:
            return
        effects = self._roster.on_hello(member, peer.journal_count, self._clock())
        for effect in effects:
            if isinstance(effect, RefuseRolledBack):
                raise self._refuse(peer, effect.message)
        self._runs[peer.key] = run
        self._perform(effects)

    def _refuse(self, peer: Hello, message: RolledBack) -> Unwelcome:
        self._tally.rollbacks += 1
        return Unwelcome(
            f"the journal of {peer.node_id} has made {peer.journal_count} transactions, and "
            f"{message.count} are remembered of it: it came back from a backup, and does not vote "
            "until it has taken a new id",
            encode_envelope(BetweenNodes(body=message)),
        )

    def check_run(self, peer: Hello) -> None:
        """Raise `PeerError` when a newer run of the peer was admitted since."""
        if self._runs.get(peer.key) != (peer.journal_id, peer.boot_nonce):
            raise PeerError(f"this connection of {peer.node_id} is from before its last start")

    def on_connected(self, peer: Hello) -> None:
        """Take note that this node can send to ``peer``, which is told that it was compared."""
        self._connected[peer.key] = peer.journal_id
        self._untold.add(peer.key)
        self._news.set()

    def on_lost(self, peer: Hello) -> None:
        """Take note that it cannot any more."""
        self._connected.pop(peer.key, None)
        self._untold.discard(peer.key)

    def on_compared(self, peer: Hello, message: Compared) -> None:
        """Take in that a peer has compared our HELLO, and how far its own journal is."""
        member = (peer.key, peer.journal_id)
        if message.journal_id == self._journalist.journal.journal_id:
            self._roster.on_greeted(member)
            if member not in self._compared_by:
                self._compared_by.add(member)
                self._on_compared()
        self._perform(self._roster.on_acknowledged(member, message.count, self._clock()))

    def on_rolled_back(self, peer: Hello, message: RolledBack) -> None:
        """Take in that a peer refuses this node, since our journal is older than it knows."""
        log.warning(
            "told_rolled_back", peer=peer.node_id, remembered=message.count, mine=self._boot_count
        )
        self._perform(self._roster.on_rolled_back(peer.key, message, self._boot_count))

    def _perform(self, effects: list[RosterEffect]) -> None:
        for effect in effects:
            if isinstance(effect, KeepRoster):
                self._wanted = dict(effect.counts)
                self._news.set()
            elif isinstance(effect, TakeNewJournalId):
                self._verdict = (
                    f"other nodes remember {effect.remembered} transactions of this journal, which "
                    f"began this run with {effect.mine}: it came back from a backup"
                )
                self._news.set()

    async def run(self) -> None:
        """Make counts durable and tell them, for ever; raises what ``on_rolled_back`` raises."""
        while True:
            with trio.move_on_after(TELL_S):
                await self._news.wait()
            self._news = trio.Event()
            if self._verdict is not None:
                why, self._verdict = self._verdict, None
                self._on_rolled_back(why)
            self._perform(self._roster.tick(self._clock()))
            untold, self._untold = self._untold, set()
            await self._keep()
            self._tell(untold)

    async def _keep(self) -> None:
        """Write what is to be remembered, if it is not yet."""
        wanted = self._wanted
        if wanted != self._kept:
            counts = tuple(wanted.items())
            await self._journalist.perform(lambda journal: journal.remember_peers(counts))
            self._kept = wanted

    def _tell(self, untold: set[PublicKeyBytes]) -> None:
        """Tell ``untold`` that they were compared, and everybody our count if it has grown."""
        count = self._journalist.journal.jcount
        to = untold if count == self._told_count else untold | set(self._connected)
        self._told_count = count
        for key in sorted(to):
            journal_id = self._connected.get(key)
            if journal_id is not None:
                body = Compared(journal_id=journal_id, count=count)
                self._send(key, encode_envelope(BetweenNodes(body=body)))
