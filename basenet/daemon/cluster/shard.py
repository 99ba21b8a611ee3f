"""One shard of this node among its peers: born, at work, and at work again after a failure.

Theory of operation
===================

::

    birth ──Born──▶ begin (journal) ──▶ term ──error──▶ pause ──▶ term ──▶ ...
      │                                  │
      └── answers peers for ever         └── everything of a replica (`cluster.term`)

The birth's driver runs as long as the shard, since peers may ask for the lineage at any time. The
database file belongs to the shard and not to the term: between two terms it stays fenced, and so
does an application that must not write.

What an error means is said by its kind, as in standalone: what is unavailable is tried again soon;
what is refused or damaged is shown with its sentence and tried again rarely.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio

from basenet.config.model import Fence, NodeRole
from basenet.control.members import MembersCommand
from basenet.control.surface import ShardState
from basenet.daemon.cluster.accepting import Leaver
from basenet.daemon.cluster.adopting import StateWanted, is_gone, read_electors
from basenet.daemon.cluster.archiving import Arrivals, ClusterArchiver
from basenet.daemon.cluster.beginning import Beginning
from basenet.daemon.cluster.birth import BirthDriver, make_newborn
from basenet.daemon.cluster.commands import Hearing, Operator
from basenet.daemon.cluster.exchange import StateExchange
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.gate import Gates
from basenet.daemon.cluster.generation import Generations
from basenet.daemon.cluster.guard import Guard
from basenet.daemon.cluster.intake import Intake
from basenet.daemon.cluster.node import ClusterNode
from basenet.daemon.cluster.pacing import Births
from basenet.daemon.cluster.pausing import REFUSED_RETRY_S, RETRY_S, pause_after
from basenet.daemon.cluster.resetting import Resetter
from basenet.daemon.cluster.resigning import LEADING_PAUSE_S_MAX, leave_lead
from basenet.daemon.cluster.settling import SettledFrame
from basenet.daemon.cluster.standalone import Heritage
from basenet.daemon.cluster.surveying import make_surveyor, survey_archive
from basenet.daemon.cluster.term import Term, Told
from basenet.daemon.cluster.transfer import (
    FetchedState,
    ServingBudget,
)
from basenet.daemon.cluster.witness import NoFile, WitnessTerm
from basenet.daemon.failures import only_error
from basenet.daemon.framer import instant
from basenet.daemon.marks import Mark
from basenet.daemon.node import Node
from basenet.daemon.progress import Progress, Watermark
from basenet.engine.birth_events import ArchiveSurveyed, Born, KeepOrphans
from basenet.engine.effects import EpochBegan, ReadReady, Report
from basenet.engine.placement import Membership
from basenet.errors import (
    BasenetError,
    CorruptionError,
    UnavailableError,
)
from basenet.journal.journal import JournalBroken
from basenet.journal.records import ReplicaRecord
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.inject import ForeignCommit
from basenet.units import Epoch, Lineage, LocalNumber, PublicKeyBytes, Seq, ShardId, View
from basenet.wire.birth import BirthMessage, FileFacts
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Head
from basenet.wire.hello import Hello
from basenet.wire.message import Message, Release
from basenet.wire.transfer import ArchivedUpTo, TransferMessage

log = structlog.get_logger()

_RETRY_S_MAX: Final = 10.0
_GREETING_LOOK_S: Final = 0.2
_ADOPTION_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRoom:
    """What all shards of a cluster node share beyond `Node`."""

    cluster: ClusterNode
    guard: Guard
    gates: Gates
    budget: ServingBudget
    turns: trio.CapacityLimiter
    arrivals: Arrivals = field(default_factory=Arrivals)
    births: Births = field(default_factory=Births)


class ClusterShard:
    """A shard with peers; a `ports.ShardPort` and a `birth.BirthHost`."""

    def __init__(self, *, node: Node, room: ClusterRoom, shard: ShardId, path: Path) -> None:
        self.shard = shard
        self.path = path
        self.state = ShardState.STARTING
        self.error: str | None = None
        self.progress = Progress()
        self.applied_seq = Seq(0)
        self.record: ReplicaRecord | None = None
        self.term: Term | None = None
        self.ended = trio.Event()
        self.orphaned = 0
        self.finalized = self._submitted_before = 0
        self.kept_seq = Seq(0)
        self.generations = Generations(self, node.journalist, room.cluster.journal_id)
        self.intake = Intake(shard)
        self.hearing = Hearing()
        self.operator = Operator(self, node=node, cluster=room.cluster)
        self.resetter = Resetter(
            self,
            node=node,
            cluster=room.cluster,
            file=lambda: self._file,
            close_file=self._close_file,
        )
        self.adopts_file = False
        self._node = node
        self._room = room
        self._log = log.bind(shard=shard)
        self._real_path = Path(os.path.realpath(path))
        self._file: ReplicaFile | None = None
        self._born: Born | None = None
        self._news = trio.Event()
        self._is_stopping = self._is_catching_up = self._is_suspended = False
        self._scope = trio.CancelScope()
        self._attempt: trio.CancelScope | None = None
        self._released: tuple[tuple[Epoch, View] | None, float] = (None, 0.0)
        self._nursery: trio.Nursery | None = None
        cluster = room.cluster
        self._exchange = StateExchange(
            shard=shard,
            journalist=node.journalist,
            cluster=cluster,
            budget=room.budget,
            turns=room.turns,
            term=lambda: self.term,
            file=lambda: self._file,
        )
        self.archiver = ClusterArchiver(
            node=node, shard=self, peers=cluster, arrivals=room.arrivals
        )
        self._beginning = Beginning(
            shard=shard,
            path=str(path),
            me=(cluster.signer.public, cluster.journal_id),
            journalist=node.journalist,
            limiter=node.work_limiter,
            traces=node.traces,
        )
        self.birth = BirthDriver(
            make_newborn(
                shard,
                node.config,
                me=cluster.me,
                journal_id=cluster.journal_id,
                signer=cluster.signer,
            ),
            peers=cluster,
            journalist=node.journalist,
            host=self,
        )

    # The life.

    async def run(self) -> None:
        """Live until `stop`; raises only `JournalBroken` and bugs."""
        waker, cluster = self._node.waker, self._room.cluster
        waker.wake.watch(self.shard, self._real_path)
        # What is applied to a replica's file is no news; a term of writing listens.
        waker.wake.pause(self.shard)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.generations.begin(nursery)
                cluster.register(self)
                with self._scope:
                    await self._take_over()
                    nursery.start_soon(self.birth.run)
                    nursery.start_soon(self.archiver.run)
                    await self._live()
                cluster.unregister(self)
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self.generations.end()
            self._exchange.close()
            with trio.CancelScope(shield=True):
                await self._close_file()
            waker.wake.unwatch(self.shard)
            waker.forget(self.shard)
            self.ended.set()

    async def _take_over(self) -> None:
        """Go on with a standalone history of this journal, if there is one (Q22)."""
        heritage = Heritage(
            journalist=self._node.journalist,
            shard=self.shard,
            heir=self._room.cluster.me,
            signer=self._room.cluster.signer,
            data_dir=self._node.config.data_dir,
        )
        while (error := await heritage.accept()) is not None:
            self._show(error)
            await trio.sleep(REFUSED_RETRY_S)

    def stop(self) -> None:
        """End at a commit boundary."""
        self._is_stopping = True
        if self.term is not None and self.term.is_at_work:
            self.term.stop()
        else:
            self._scope.cancel()
        self._look()

    def has_settled(self) -> bool:
        """Return whether the file is fenced or guarded by a lease, or why it is not is said."""
        is_at_work = self.term is not None and self.term.is_at_work
        return is_at_work or self.error is not None or self._is_stopping

    async def capture_now(self, since: str | None = None) -> Seq:
        """Capture what is committed here at this moment; return the seq that holds it.

        ``since``: the generation that was read before the commit (`cluster.generation`).
        """
        return await self.generations.capture_now(since)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopping

    async def command(self, command: MembersCommand) -> str:
        """Do what the operator asks; return what was begun."""
        return await self.operator.perform(command)

    async def suspend(self) -> None:
        """End the term and begin none before `resume` or another lineage; returns when it ended."""
        self._is_suspended = True
        while self._attempt is not None:
            self._end_attempt()
            with trio.move_on_after(_GREETING_LOOK_S):
                await self.progress.moved()

    def resume(self) -> None:
        """Begin terms again."""
        self._is_suspended = False
        self._look()

    def _end_attempt(self) -> None:
        """End the term soon, at a commit boundary, or what comes before it at once."""
        if self.term is not None:
            self.term.stop()
        elif self._attempt is not None:
            self._attempt.cancel()

    def _look(self) -> None:
        self._news.set()
        self._news = trio.Event()
        self.progress.wake()

    async def _live(self) -> None:
        pause_s = RETRY_S
        while not self._is_stopping:
            if self._born is None or self._is_suspended:
                await self._news.wait()
                continue
            error = await self._try_term(self._born)
            if error is None:
                continue
            self._show(error)
            if not isinstance(error, UnavailableError) or pause_s >= LEADING_PAUSE_S_MAX:
                await leave_lead(self._room.cluster, self._file, self._born.genesis.lineage)
            with trio.move_on_after(pause_after(error, pause_s)):
                await self._news.wait()
            pause_s = min(2 * pause_s, _RETRY_S_MAX)

    async def _try_term(self, born: Born) -> BasenetError | None:
        try:
            with trio.CancelScope() as self._attempt:
                await self._run_term(born)
        except BaseExceptionGroup as group:
            error = only_error(group)
        except JournalBroken:
            raise
        except BasenetError as found:
            error = found
        else:
            return None
        finally:
            self._attempt = None
            self.progress.wake()
        if isinstance(error, ForeignCommit):
            await self._close_file()
        return error

    async def _require_ours(self) -> None:
        """Raise `DatabaseReplaced` while another file lies where ours did; keep ours fenced (Q11).

        Nothing is injected into the other one, and it is not adopted. Where there is none any more,
        ours is made anew.
        """
        if self._file is None or not self._file.is_open or self._is_witness:
            return
        database = self._file.database
        if database.why_foreign() is None:
            return
        if database.is_elsewhere():
            raise DatabaseReplaced(
                f"{self.path} was replaced by another file while basenet had it open: move the new "
                "file away and basenet brings the shard's own back from its journal and peers"
            )
        await self._close_file()

    def _on_replaced(self) -> None:
        """Learn from the guardian that another file lies at the path: the term ends."""
        if self._attempt is not None:
            self._attempt.cancel()

    async def _run_term(self, born: Born) -> None:
        assert self._nursery is not None, "a shard that does not run"
        self._exchange.begin(born, self._nursery)
        await self._require_ours()
        record = await self._beginning.load(born)
        if record is None or not self._beginning.is_begun(record):
            state = await self._beginning.find_state(born, await self._open_existing())
            await self._beginning.begin(born, state or await self._exchange.fetch(born))
            self._log.info("lineage_begun", lineage=born.genesis.lineage.hex())
            record = await self._beginning.load(born)
            assert record is not None, "a lineage was begun and is not in the journal"
        self.record = record
        self._adopt(record)
        await self._greeted(record)
        if self._file is None:
            self._file = self._make_file()
        is_new = False
        if not self._file.is_open:
            is_new = await self._file.open(page_size=record.page_size)
        if self._file.fence is not None:
            self._file.fence.on_replaced = self._on_replaced
        kind = WitnessTerm if self._is_witness else Term
        self.term = kind(
            node=self._node,
            peers=self._room.cluster,
            gates=self._room.gates,
            file=self._file,
            record=record,
            timing=self._room.cluster.timing,
            told=self._told(),
            fetch=self._exchange.fetch_pages,
            intake=self.intake,
            is_file_new=is_new,
        )
        if self._is_stopping:
            return
        self._turn(ShardState.CAPTURING)
        self.error = None
        try:
            await self.term.run()
        except StateWanted as wanted:
            await self._adopt_state(wanted.state)
        finally:
            self._submitted_before += self.term.sealed_frames
            self.term = None

    @property
    def submitted(self) -> int:
        """How many frames this node sealed since the process began."""
        return self._submitted_before + (self.term.sealed_frames if self.term else 0)

    async def _adopt_state(self, state: FetchedState) -> None:
        """Let the journal jump to ``state``; the next term mends the file."""
        self._log.warning("state_adopted", seq=state.head.seq)
        assert self._born is not None, "a state of no lineage"
        record = await self._beginning.load(self._born)
        assert record is not None, "a term without a record"
        await self._beginning.jump(record, state)

    async def _catch_up_by_state(self) -> None:
        """Fetch a state, since a peer has not the frames any more; let the term adopt it."""
        term, record = self.term, self.record
        if term is None or record is None or not self._exchange.is_open:
            return
        self._log.warning("frames_gone", seq=term.driver.replica.final.height)
        electors = await self._node.journalist.read(lambda journal: read_electors(journal, record))
        with trio.move_on_after(_ADOPTION_S):
            state = await self._exchange.fetch_above(electors, term.driver.replica.final.height)
            if self.term is term and term.is_at_work:
                term.adopt(state)

    async def _catch_up_once(self) -> None:
        try:
            await self._catch_up_by_state()
        finally:
            self._is_catching_up = False

    def _told(self) -> Told:
        return Told(
            final=self._on_final,
            settled=self._on_settled,
            applied=self._on_applied,
            orphaned=self._on_orphaned,
            epoch=self._on_epoch,
            read=self._on_read,
            reported=self._on_reported,
            moved=self._on_moved,
        )

    @property
    def _is_witness(self) -> bool:
        return self._node.config.cluster.node_role is NodeRole.WITNESS

    def _make_file(self) -> ReplicaFile:
        if self._is_witness:
            return NoFile(shard=self.shard, path=self.path, limiter=self._node.capture_limiter)
        file = ReplicaFile(
            shard=self.shard,
            path=self.path,
            guard=self._room.guard,
            limiter=self._node.capture_limiter,
            marks_mended=self._node.config.cluster.fence is Fence.READONLY,
            on_unapplied=self.intake.on_unapplied,
        )
        file.is_adopted, self.adopts_file = self.adopts_file, False
        return file

    async def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.close()

    async def _greeted(self, record: ReplicaRecord) -> None:
        """Wait until enough voters have compared this journal's count (Q9)."""
        while not self._room.cluster.may_vote(record.ballot.config) and not self._is_stopping:
            with trio.move_on_after(_GREETING_LOOK_S):
                await self._news.wait()

    def _turn(self, state: ShardState) -> None:
        self.state = state
        self.progress.wake()

    def _show(self, error: BasenetError) -> None:
        sentence = str(error)
        if isinstance(error, UnavailableError):
            self._turn(ShardState.STARTING)
        elif isinstance(error, DatabaseReplaced | CorruptionError):
            self._turn(ShardState.STOPPED)
        else:
            self._turn(ShardState.REFUSED)
        if sentence != self.error:
            self._log.warning("shard_" + self.state.value, error=sentence)
        self.error = sentence

    def _adopt(self, record: ReplicaRecord) -> None:
        self.progress.begin(
            Mark(
                seq=record.tip.seq,
                size=0,
                local_last=record.local_last,
                timestamp_ns=record.tip.timestamp_ns,
            ),
            record.archived_seq,
        )

    # What the term tells.

    def _on_final(self, heads: Sequence[Head]) -> None:
        self.finalized += len(heads)
        if heads:
            self.progress.set_final(heads[-1].seq)

    def _on_settled(self, frames: Sequence[SettledFrame]) -> None:
        self.archiver.on_settled(frames)
        for frame in frames:
            if not frame.head.flags & Flag.PARTIAL:
                self.progress.marks.add(
                    Mark(
                        seq=frame.head.seq,
                        size=frame.size,
                        local_last=LocalNumber(0),
                        timestamp_ns=frame.head.timestamp_ns,
                    )
                )
        self._advance_applied()

    def _on_moved(self) -> None:
        self.generations.look()
        self.progress.wake()

    def _on_applied(self, seq: Seq) -> None:
        self.applied_seq = seq
        self._advance_applied()

    def _advance_applied(self) -> None:
        seq = self.term.settler.applied_seq if self.term is not None else self.applied_seq
        self.progress.advance(Watermark.APPLIED, seq)

    def _on_orphaned(self, kept_seq: Seq) -> None:
        self.orphaned += 1
        self.kept_seq = kept_seq
        self.progress.wake()

    def _on_epoch(self, effect: EpochBegan) -> None:
        names = [voter.node_id for voter in effect.config.voters]
        self._log.info("epoch_began", epoch=effect.epoch, voters=names)
        if not self._room.cluster.may_vote(effect.config):
            # Who votes from now on has not compared this journal yet (B50): begin again with that.
            self._end_attempt()

    def _on_read(self, effect: ReadReady) -> None:
        del effect

    def _on_reported(self, effect: Report) -> None:
        self.hearing.hear(effect.what)
        peer = effect.peer.hex() if effect.peer is not None else None
        self._log.error("engine_report", what=effect.what, peer=peer)

    # What peers bring (`ports.ShardPort`).

    @property
    def lineage(self) -> Lineage | None:
        """The lineage that is known here."""
        return self._born.genesis.lineage if self._born is not None else None

    def on_message(self, peer: Hello, message: Message) -> None:
        """Take a message of the protocol."""
        if self.term is not None and self.term.is_at_work:
            if isinstance(message, Release) and peer.key == self.term.driver.replica.leader:
                self._released = (message.epoch, message.target), trio.current_time()
            self.term.on_message(peer, message)

    def take_frames(self, peer: Hello, records: tuple[bytes, ...]) -> bool:
        """Take encoded frames if that is done at once; False: `on_frames` is needed."""
        term = self.term
        return term is not None and term.is_at_work and term.take_frames(peer, records)

    async def on_frames(self, peer: Hello, records: tuple[bytes, ...]) -> None:
        """Take encoded frames."""
        if self.term is not None and self.term.is_at_work:
            await self.term.on_frames(peer, records)

    async def on_final(
        self, peer: Hello, records: tuple[bytes, ...], certificate: Certificate | None
    ) -> None:
        """Take a piece of the final history."""
        if self.term is not None and self.term.is_at_work:
            await self.term.on_final(peer, records, certificate)

    async def on_transfer(self, peer: Hello, message: TransferMessage) -> None:
        """Take a question for, or a piece of, the state."""
        if isinstance(message, ArchivedUpTo):
            self.archiver.on_told(peer, message.seq)
            return
        if not is_gone(message):
            self._exchange.on_message(peer.key, message)
        elif not self._is_catching_up and self.term is not None and self._nursery is not None:
            self._is_catching_up = True
            self._nursery.start_soon(self._catch_up_once)

    def released_at(self, epoch: Epoch, view: View) -> float | None:
        """Return when the lead was given up for ``view``; None: it was not, that is known here."""
        return self._released[1] if self._released[0] == (epoch, view) else None

    def on_birth(self, peer: Hello, message: BirthMessage) -> None:
        """Take a message of the birth."""
        self.birth.on_birth(peer, message)

    def on_other_lineage(self, peer: Hello) -> None:
        """Answer who speaks of another lineage."""
        self.birth.on_other_lineage(peer)

    def on_connected(self, peer: Hello) -> None:
        """Learn of a connection."""
        self.birth.on_connected(peer)
        self.archiver.on_connected(peer)
        self._exchange.on_connected(peer.key)
        if self.term is not None and self.term.is_at_work:
            self.term.ask_history(peer)
        self._news.set()
        self._news = trio.Event()

    def on_lost(self, peer: Hello) -> None:
        """Learn that a connection has ended."""
        self.birth.on_lost(peer)
        self._exchange.on_lost(peer.key)

    def on_unreachable(self, peer: Hello) -> None:
        """Learn that a peer's process is gone."""
        if self.term is not None and self.term.is_at_work:
            self.term.on_unreachable(peer)

    def on_members(self, members: Membership | str) -> None:
        """Learn the membership."""
        self.birth.on_members(members)

    def rouse(self) -> None:
        """Look at the time."""
        if self.term is not None and self.term.is_at_work:
            self.term.rouse()

    # What the birth asks (`birth.BirthHost`).

    async def fence_and_scan(self) -> FileFacts | None:
        """Lock the application out, then read the file; None without one."""
        file = await self._open_existing()
        return await file.facts() if file is not None else None

    async def _open_existing(self) -> ReplicaFile | None:
        """Return the database file, fenced; None where there is none."""
        with suppress(FileNotFoundError):
            if self._is_witness or not self.path.stat().st_size:
                return None
            if self._file is None:
                self._file = self._make_file()
            if not self._file.is_open:
                await self._file.open()
            await self._file.held()
            return self._file
        return None

    async def survey(self) -> ArchiveSurveyed:
        """Look into the archive, when it is this shard's turn to be born."""
        assert self._nursery is not None, "a birth of a shard that does not run"
        await self._room.births.turn(self._nursery, self._until_writing)
        surveyor = make_surveyor(self._node, self.shard, self.path, self.fence_and_scan)
        return await survey_archive(surveyor, await self.fence_and_scan())

    async def _until_writing(self) -> None:
        await self.progress.wait_until(lambda: self.term is not None and self.term.is_writing)

    async def keep_orphans(self, orphans: KeepOrphans) -> None:
        """Keep what a forced lineage may not contain; durable on return."""
        await self.suspend()
        leaver = Leaver(
            node=self._node,
            signer=self._room.cluster.signer,
            shard=self.shard,
            open_file=self._open_existing,
            report=self.report,
        )
        left = await leaver.leave(orphans)
        if left is not None:
            self._on_orphaned(left.kept_seq)

    def born(self, born: Born) -> None:
        """Begin the lineage that is known; a term of another one ends."""
        left = self.lineage
        self._born = born
        self._is_suspended = False
        if left is not None and left != born.genesis.lineage:
            liveness, now = self._room.cluster.liveness, instant()
            liveness.unlead(left, now)
            liveness.refuse(left, now)
            self.record = None
            self.archiver.on_lineage()
            self._end_attempt()
        self._look()

    def new_journal_needed(self, why: str) -> None:
        """Take a new journal id and begin again."""
        self._log.error("journal_forgot", why=why)
        raise UnavailableError(f"this journal forgot what it signed: {why}")

    def report(self, what: str, peer: PublicKeyBytes | None) -> None:
        """Tell the operator."""
        self.hearing.hear(what)
        if what != self.error:
            self._log.warning(
                "birth_waits", what=what, peer=peer.hex() if peer is not None else None
            )
        self.error = what
        self.progress.wake()
