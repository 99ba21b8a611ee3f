"""A shard's birth at this node: the effects of `engine.birth`, performed in order.

Theory of operation
===================

::

    ShardPort ── on_birth, on_connected, on_lost, on_members ──┐
    operator ── decided, forced, accepted ─────────────────────┼─▶ events ─▶ Birth.step ─▶ effects
    host ── what the file is, what the archive has ────────────┘      ▲                        │
                                                                      └── timers ──────────────┘

One task steps the birth and performs what it says, one effect after the other: a `KeepBirth` is
durable before the next begins, and no event is looked at before all effects of the one before are
done. Reading the file and looking into the archive take long; they run beside, and their answers
come as events, so that peers are answered meanwhile.

Messages of peers that come faster than they can be taken in are dropped above `MESSAGES_MAX`:
everybody asks again. Facts about connections, the membership and commands are never dropped.

What is answered here outside of `Birth` is one thing: a peer that speaks of another lineage is told
ours, as it was made durable last, and only if a peer may be told it (B37).
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import trio

from basenet.config.model import Config, FaultModel, NodeRole
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.framer import instant
from basenet.engine.birth import Birth
from basenet.engine.birth_events import (
    ArchiveSurveyed,
    AuthorDecided,
    BirthEffect,
    BirthEvent,
    BirthReceived,
    BirthTicked,
    Born,
    FenceFile,
    FileScanned,
    ForcedAccepted,
    KeepBirth,
    KeepOrphans,
    LineageForced,
    MembersKnown,
    NewJournalNeeded,
    PeerConnected,
    PeerGone,
    ReportBirth,
    SendBirth,
    SurveyArchive,
)
from basenet.engine.birth_record import BirthRecord
from basenet.engine.cradle import Newborn
from basenet.engine.events import Instant
from basenet.engine.genesis import Genesis
from basenet.engine.placement import Membership, Peer
from basenet.errors import ConflictError, UnavailableError
from basenet.units import JournalId, Lineage, PublicKeyBytes, ShardId
from basenet.wire import payload
from basenet.wire.birth import BirthMessage, FileFacts, LineageKnown, MemberRole
from basenet.wire.hello import Hello
from basenet.wire.signature import AnySigner, is_signed

MESSAGES_MAX: Final = 128
RETRY_S: Final = 5.0
"""How long a file is left alone that could not be fenced or read."""
_NS_PER_SECOND: Final = 1_000_000_000

_ROLES: Final = {
    NodeRole.VALIDATOR: MemberRole.VALIDATOR,
    NodeRole.WITNESS: MemberRole.WITNESS,
    NodeRole.ARCHIVE: MemberRole.ARCHIVE,
}
_FAULT_MODELS: Final = {
    FaultModel.CRASH: payload.FaultModel.CRASH,
    FaultModel.BYZANTINE: payload.FaultModel.BYZANTINE,
}


class BirthHost(Protocol):
    """What a birth asks of the shard around it."""

    async def fence_and_scan(self) -> FileFacts | None:
        """Lock the application out, then read the file; None without one, or without a page.

        Raises `ConflictError` or `UnavailableError` to be asked again after `RETRY_S`.
        """
        ...

    async def survey(self) -> ArchiveSurveyed:
        """Look into the archive (`cluster.surveying.survey_archive`)."""
        ...

    async def keep_orphans(self, orphans: KeepOrphans) -> None:
        """Keep what a forced lineage may not contain; durable on return."""
        ...

    def born(self, born: Born) -> None:
        """Begin the lineage that is known, unless it was begun already; also after each boot."""
        ...

    def new_journal_needed(self, why: str) -> None:
        """Take a new journal id and begin again (B40)."""
        ...

    def report(self, what: str, peer: PublicKeyBytes | None) -> None:
        """Tell the operator."""
        ...


class BirthJournal(Protocol):
    """The part of `journal.journal.Journal` that is needed here."""

    def keep_birth(self, shard: ShardId, birth: BirthRecord, /) -> None:
        """Make the record durable."""
        ...

    def load_birth(self, shard: ShardId, /) -> BirthRecord:
        """Return the record; an empty one of an unknown shard."""
        ...


class BirthJournalist(Protocol):
    """The part of `daemon.journalist.Journalist` that is needed here."""

    async def perform(self, act: Callable[[BirthJournal], None]) -> None:
        """Run ``act`` on the journal between two transactions."""
        ...

    async def read(self, question: Callable[[BirthJournal], BirthRecord]) -> BirthRecord:
        """Return the answer to ``question``, asked on the reading connection."""
        ...


def make_newborn(
    shard: ShardId, config: Config, *, me: Peer, journal_id: JournalId, signer: AnySigner
) -> Newborn:
    """Return the shard to be born as this node's configuration has it."""
    cluster = config.cluster
    return Newborn(
        shard=shard,
        me=me,
        journal_id=journal_id,
        role=_ROLES[cluster.node_role],
        replication=cluster.replication,
        writer=cluster.writer,
        fault_model=_FAULT_MODELS[cluster.fault_model],
        signer=signer,
        verify=is_signed,
    )


class BirthDriver:
    """Drives one shard's `Birth`, from before its lineage is known until the node ends."""

    def __init__(
        self,
        newborn: Newborn,
        *,
        peers: Peers,
        journalist: BirthJournalist,
        host: BirthHost,
        clock: Callable[[], Instant] = instant,
    ) -> None:
        self._newborn = newborn
        self._peers = peers
        self._journalist = journalist
        self._host = host
        self._clock = clock
        self._birth: Birth | None = None
        self._durable = BirthRecord()
        self._events: deque[BirthEvent] = deque()
        self._messages = 0
        self._news = trio.Event()
        self.dropped = 0
        """How many messages came too fast."""

    # What is known.

    @property
    def record(self) -> BirthRecord:
        """The record as it is in the journal."""
        return self._durable

    @property
    def genesis(self) -> Genesis | None:
        """The genesis of the shard's lineage; None until it is known."""
        return self._birth.genesis if self._birth is not None else None

    @property
    def status(self) -> str:
        """What is waited for, in one sentence."""
        return self._birth.status if self._birth is not None else "the journal is being read"

    @property
    def problem(self) -> str | None:
        """What a human must do first; None while it goes on by itself."""
        return self._birth.problem if self._birth is not None else None

    # What the shard passes on; all of it returns at once.

    def on_birth(self, peer: Hello, message: BirthMessage) -> None:
        """Take a message of a peer."""
        if self._messages >= MESSAGES_MAX:
            self.dropped += 1
            return
        self._messages += 1
        self._give(BirthReceived(sender=peer.key, journal_id=peer.journal_id, message=message))

    def on_connected(self, peer: Hello) -> None:
        """Take note that this node can send to ``peer``."""
        found = Peer(peer.node_id, peer.key)
        self._give(PeerConnected(peer=found, journal_id=peer.journal_id))

    def on_lost(self, peer: Hello) -> None:
        """Take note that it cannot any more."""
        self._give(PeerGone(key=peer.key))

    def on_members(self, members: Membership | str) -> None:
        """Take over the membership."""
        self._give(MembersKnown(members=members))

    def on_other_lineage(self, peer: Hello) -> None:
        """Tell a peer that follows another lineage, or none, which one is known here."""
        known, genesis = self._durable.known, self.genesis
        if known is None or genesis is None or known.genesis != genesis.record:
            return
        if known.is_settled or peer.key in genesis.voters:
            message = LineageKnown(genesis=known.genesis, certificate=known.certificate)
            self._peers.send_birth([peer.key], self._newborn.shard, message)

    def decided(self) -> None:
        """Do what the operator says with `members init --from` this node (B16)."""
        self._give(AuthorDecided())

    def forced(self, genesis: Genesis) -> None:
        """Begin a forced lineage, as `members force` says; of `engine.forced.force_lineage`."""
        self._give(LineageForced(genesis=genesis))

    def accepted(self, lineage: Lineage) -> None:
        """Follow a forced lineage, as `members accept` says (B43)."""
        self._give(ForcedAccepted(lineage=lineage))

    def _give(self, event: BirthEvent) -> None:
        self._events.append(event)
        self._news.set()

    # The task.

    async def run(self) -> None:
        """Drive the birth for ever; raises `CorruptionError` when the record is damaged."""
        shard = self._newborn.shard
        self._durable = await self._journalist.read(lambda journal: journal.load_birth(shard))
        self._birth = birth = Birth(self._newborn, self._durable)
        async with trio.open_nursery() as nursery:
            await self._perform(birth.boot(self._clock()), nursery)
            while True:
                event = await self._next(birth)
                await self._perform(birth.step(event, self._clock()), nursery)

    async def _next(self, birth: Birth) -> BirthEvent:
        """Return what happened next; a tick that is due comes first."""
        while True:
            pause_s = float("inf")
            if birth.wake_at is not None:
                pause_s = (birth.wake_at - self._clock()) / _NS_PER_SECOND
            if pause_s <= 0:
                return BirthTicked()
            if self._events:
                event = self._events.popleft()
                self._messages -= isinstance(event, BirthReceived)
                return event
            self._news = trio.Event()
            with trio.move_on_after(pause_s):
                await self._news.wait()

    async def _perform(self, effects: list[BirthEffect], nursery: trio.Nursery) -> None:
        for effect in effects:
            match effect:
                case KeepBirth():
                    await self._keep(effect.record)
                case SendBirth():
                    self._peers.send_birth(effect.to, self._newborn.shard, effect.message)
                case FenceFile():
                    nursery.start_soon(self._scan)
                case SurveyArchive():
                    nursery.start_soon(self._survey)
                case Born():
                    self._host.born(effect)
                case KeepOrphans():
                    await self._host.keep_orphans(effect)
                case NewJournalNeeded():
                    self._host.new_journal_needed(effect.why)
                case ReportBirth():
                    self._host.report(effect.what, effect.peer)

    async def _keep(self, record: BirthRecord) -> None:
        shard = self._newborn.shard
        await self._journalist.perform(lambda journal: journal.keep_birth(shard, record))
        self._durable = record

    async def _scan(self) -> None:
        while True:
            try:
                file = await self._host.fence_and_scan()
            except (ConflictError, UnavailableError) as error:
                self._host.report(str(error), None)
                await trio.sleep(RETRY_S)
            else:
                self._give(FileScanned(file=file))
                return

    async def _survey(self) -> None:
        self._give(await self._host.survey())
