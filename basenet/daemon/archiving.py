"""One shard's way into the archive: the comparison at the start, then uploads without end.

Theory of operation
===================

Capture never waits for the archive: while it is out of reach the journal keeps the frames. Once it
answers, and before anything is written, journal and archive are compared (Q4). Either the journal
continues the archive's history, or the shard gives birth to a child lineage, or a person must
decide, and the status says so. Objects that were deleted under us begin the comparison anew.

A final frame is handed to the uploader in memory; a piece of a run, and everything that was final
before the uploader existed, it reads back from the journal.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog
import trio

from basenet.archive.backlog import Backlog
from basenet.archive.baseline import read_baseline
from basenet.archive.compact import Compactor
from basenet.archive.continuation import (
    Child,
    Continuation,
    Refuse,
    Resume,
    decide_continuation,
)
from basenet.archive.lease import Holder, Lease, LeaseLost
from basenet.archive.names import ShardNames
from basenet.archive.port import Store
from basenet.archive.probe import probe
from basenet.archive.seal import Seal, TwoHistories
from basenet.archive.tip import TipWriter
from basenet.archive.uploader import (
    WAITING_BYTES_MAX,
    ArchiveFacts,
    Uploader,
    UploadSettings,
)
from basenet.daemon.chain import Parent
from basenet.daemon.compare import make_parent, read_journal_facts
from basenet.daemon.failures import only_error
from basenet.daemon.host import Host
from basenet.daemon.marks import Mark
from basenet.daemon.node import Node
from basenet.daemon.presence import ArchiveLost, Presence
from basenet.daemon.pump import FinalFrame
from basenet.daemon.troubles import Troubles
from basenet.daemon.upkeep import History, Upkeep, make_upkeep
from basenet.errors import BasenetError, UntrustedKey
from basenet.journal.records import ShardRecord
from basenet.units import MIB, Lineage, Seq, ShardId, TimestampNs
from basenet.wire.frame import Flag
from basenet.wire.payload import decode_config

log = structlog.get_logger()

# Frames that stay in the journal after they are archived, to mend a file that fell behind (P7).
KEPT_BYTES: Final = 16 * MIB
# At most this part of the journal's cap for each shard, since there may be hundreds of them.
KEPT_SHARE: Final = 1_024
# At most this part of it may wait for the end of a flush interval.
_WAITING_SHARE: Final = 8
_RETRY_S: Final = 1.0
_RETRY_S_MAX: Final = 10.0
_CLOSE_S: Final = 20.0
_BIRTH_S: Final = 10.0
# Without an archive a final frame has done its work; dropping them one by one would cost a
# transaction each.
_DISCARD_EVERY_S: Final = 5.0


class JournalSource:
    """Gives a shard's frames back from the journal."""

    def __init__(self, node: Node, shard: ShardId) -> None:
        self._node = node
        self._shard = shard

    async def frames(self, start: Seq, end: Seq, bytes_max: int) -> Sequence[bytes]:
        """Return the encoded frames ``start`` .. ``end``, at least one, up to ``bytes_max``."""
        rows = await self._node.journalist.read(
            lambda journal: journal.frames(self._shard, start, end, bytes_max)
        )
        return [record for _, record in rows]


class Archiver:
    """Archives one shard for as long as it lives."""

    def __init__(self, *, node: Node, shard: Host) -> None:
        self.error: str | None = None
        self.uploader: Uploader | None = None
        self._node = node
        self._shard = shard
        self._log = log.bind(shard=shard.shard)
        self._names = ShardNames(service=node.config.service, shard=shard.shard)
        self._record: ShardRecord | None = None
        self._lineage_came = trio.Event()
        self._scope = trio.CancelScope()
        self._tip_seq = Seq(0)
        # Only while an uploader is being made; at any other time the journal remembers for us.
        self._collected: list[FinalFrame] | None = None
        self.upkeep: Upkeep | None = None
        self.history = History()
        self.broken_seq: Seq | None = None
        # Until then what the journal says is archived may be in another archive, or gone.
        self.is_compared = False
        self.dropped = 0
        self._presence: Presence | None = None
        self._lease: Lease | None = None  # while what it waits for decides what comes next
        self.troubles = Troubles()
        self._put_bytes = 0

    # What the shard tells

    def on_lineage(self, record: ShardRecord) -> None:
        """Take in that the shard goes on from ``record``; frames of it may be unknown here."""
        before, self._record = self._record, record
        is_known = before is not None and before.lineage == record.lineage
        if not is_known:
            self.is_compared = False
            self.broken_seq = record.broken_seq
            self.history = History(
                base_seq=record.snapshot_seq,
                base_ns=record.snapshot_ns,
                is_broken=record.broken_seq is not None,
            )
        has_unknown_frames = self.uploader is not None and record.tip.seq > self._tip_seq
        if before is not None and (not is_known or has_unknown_frames):
            self._scope.cancel()
        self._lineage_came.set()

    def on_final(self, frames: Sequence[FinalFrame]) -> None:
        """Take in frames that became final."""
        if self._node.store is None:
            return
        for frame in frames:
            self._take(frame)

    def _take(self, frame: FinalFrame) -> None:
        if self.uploader is None:
            if self._collected is not None:
                self._collected.append(replace(frame, record=None))
            return
        if frame.head.seq <= self._tip_seq:
            return
        self._tip_seq = frame.head.seq
        if frame.record is None:
            self.uploader.append_stored(frame.head, frame.size)
        else:
            self.uploader.append(frame.head, frame.record)

    @property
    def _parent(self) -> Lineage | None:
        """The lineage that the present one continues."""
        parent = decode_config(self._record.config).parent if self._record is not None else None
        return parent[0] if parent is not None else None

    @property
    def has_genesis(self) -> bool:
        """Whether the first frame of the present lineage is archived."""
        record = self._record
        if record is None:
            return False
        parent = decode_config(record.config).parent
        return self._shard.progress.archived_seq > (parent[1] if parent else 0)

    @property
    def is_restorable(self) -> bool:
        """Whether a restore of the newest archived frame has a base, and no gap behind it."""
        return self.history.base_seq > 0 and not self.history.is_broken

    @property
    def open_gap_seq(self) -> Seq | None:
        """The last frame that the journal dropped unarchived, until a snapshot mends that."""
        return self.broken_seq if self.history.is_broken else None

    @property
    def is_taking_snapshot(self) -> bool:
        """Whether a snapshot is reading the file."""
        return self.upkeep is not None and self.upkeep.reader is not None

    @property
    def awaits_base(self) -> bool:
        """Whether the first snapshot is still to come, and nothing speaks against it."""
        facts = self.facts()
        is_failing = facts is not None and facts.last_error is not None
        return not (self.history.base_seq or self.error is not None or is_failing)

    def on_dropped(self, seq: Seq) -> int:
        """Take in that the journal dropped the frames up to ``seq``; return how many waited."""
        # What an earlier drop took is not counted again.
        self.dropped += seq - max(self._shard.progress.archived_seq, self.broken_seq or 0)
        self.broken_seq = seq
        self.history.is_broken = True
        self._shard.progress.wake()
        return self.uploader.skip(seq) if self.uploader is not None else 0

    async def confirm(self) -> bool:
        """Return whether what is archived is still there, as far as the archive answers."""
        presence = self._presence
        if presence is None or await presence.confirm():
            return self.is_compared
        self.is_compared = False
        return False

    @property
    def waits_for(self) -> str | None:
        """Whose lease has to run out before anything else happens, as a part of a sentence."""
        facts = self.facts()
        if facts is not None:
            return facts.waits_for
        return self._lease.waits_for if self._lease is not None else None

    def facts(self) -> ArchiveFacts | None:
        """Return where the archive stands; None while nothing is being shipped."""
        return self.uploader.facts() if self.uploader is not None else None

    # The life

    async def run(self) -> None:
        """Archive for ever."""
        if self._node.store is None:
            await self._discard_forever()
        retry_s = _RETRY_S
        while True:
            await self._lineage_came.wait()
            self._lineage_came = trio.Event()
            try:
                with trio.CancelScope() as self._scope:
                    await self._archive_lineage()
            except* BasenetError as group:
                error = only_error(group)
                retry_s = min(2 * retry_s, _RETRY_S_MAX) if self.error else _RETRY_S
                if isinstance(error, ArchiveLost):
                    self._log.error("archive_lost", error=str(error))
                    self.is_compared = False
                    self._shard.progress.wake()
                elif _explain(error) != self.error:
                    self._log.warning("archive_stopped", error=_explain(error))
                self.error = _explain(error)
                self.troubles.note(error)
                if isinstance(error, LeaseLost | TwoHistories):
                    # Somebody else writes this history. To go on as a child of his would let two
                    # databases take turns in one line; only a restart asks again.
                    await trio.sleep_forever()
                with trio.move_on_after(retry_s):
                    await self._lineage_came.wait()
            finally:
                self.uploader = self._collected = self._presence = self._lease = None
            self._lineage_came.set()

    async def _discard_forever(self) -> None:
        while True:
            await trio.sleep(_DISCARD_EVERY_S)
            seq = self._shard.progress.final_seq
            if self._record is not None and seq > self._shard.progress.archived_seq:
                await self._on_archived(seq, 0)

    async def _archive_lineage(self) -> None:
        record = await self._read_record()
        store = self._node.store
        assert store is not None, "without a store there is no archive"
        await self._probe(store)
        lease = self._make_lease(store, record)
        await lease.observe()
        decision = await self._decide(store, record)
        if isinstance(decision, Child):
            # As long as another writes there, what a child would continue moves on.
            self._lease = lease
            await lease.wait_until_free()
            decision = await self._decide(store, record)
        if isinstance(decision, Refuse):
            raise decision.error
        if not isinstance(decision, Resume):
            assert isinstance(decision, Child), "a journal with a lineage is not born"
            self._log.warning("child_lineage", parent=decision.parent.hex(), seq=decision.seq)
            for note in decision.notes:
                self._log.warning("archive_note", note=note)
            parent = await make_parent(self._node.journalist, self._shard.shard, decision, record)
            self._shard.become_child_of(parent)
            await trio.sleep_forever()  # until the child's record comes
            return
        self._take_decision(decision, record)
        lease.raise_epoch_floor(decision.archive_epoch)
        seal = Seal(
            names=self._names, lineage=Lineage(record.lineage), signer=self._node.author.signer
        )
        compactor = self._make_compactor(store, seal, lease)
        uploader = await self._make_uploader(store, seal, lease, record, compactor)
        self.upkeep = self._make_upkeep(store, seal, lease, uploader, compactor)
        await self._measure(store, seal.lineage)
        presence = self._presence = self._make_presence(store, uploader, decision, record)
        self.error = None
        self.is_compared = True
        self._shard.progress.wake()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(uploader.run)
            nursery.start_soon(self.upkeep.run)
            nursery.start_soon(presence.run)

    async def _read_record(self) -> ShardRecord:
        """Return the present lineage's record as it is now: capture has gone on meanwhile."""
        assert self._record is not None, "an archive is told of a lineage before it begins"
        shard = self._shard.shard
        record = await self._node.journalist.read(lambda journal: journal.record(shard))
        is_same = record is not None and record.lineage == self._record.lineage
        return record if record is not None and is_same else self._record

    def _take_decision(self, decision: Resume, record: ShardRecord) -> None:
        """Take in where the journal's lineage stands in the archive."""
        for note in decision.notes:
            self._log.warning("archive_note", note=note)
        progress = self._shard.progress
        if decision.archived_seq < progress.archived_seq:
            # It was there, and is not any more: what the journal has of it waits again.
            waiting = Mark(
                seq=progress.final_seq,
                size=0,
                local_last=record.local_last,
                timestamp_ns=record.tip.timestamp_ns,
            )
            progress.marks.reset(waiting, decision.archived_seq)
        progress.set_archived(decision.archived_seq, None)
        if decision.needs_snapshot:
            self.history.is_broken = True

    def _make_presence(
        self, store: Store, uploader: Uploader, decision: Resume, record: ShardRecord
    ) -> Presence:
        tip = record.tip
        if not (decision.has_tip or decision.archived_seq < tip.seq or tip.flags & Flag.PARTIAL):
            uploader.offer_tip(tip)  # else there would be none before the next frame
        parent = decode_config(record.config).parent
        return Presence(
            store=store,
            names=self._names,
            lineage=record.lineage,
            genesis_seq=Seq(parent[1] + 1 if parent else 1),
            history=self.history,
            facts=uploader.facts,
            has_tip=decision.has_tip,
        )

    async def _probe(self, store: Store) -> None:
        async with self._node.probe_lock:
            await probe(store, self._node.config.data_dir)

    def _make_lease(self, store: Store, record: ShardRecord) -> Lease:
        author = self._node.author
        return Lease(
            store=store,
            names=self._names,
            holder=Holder(
                node=author.node_id,
                key=author.signer.public,
                journal_id=author.journal_id,
                lineage=record.lineage,
            ),
        )

    async def _decide(self, store: Store, record: ShardRecord | None) -> Continuation:
        author, journalist = self._node.author, self._node.journalist
        journal = (
            await read_journal_facts(journalist, record, author.journal_id) if record else None
        )
        return await decide_continuation(
            store,
            self._names,
            journal=journal,
            key=author.signer.public,
            trusted=self._node.trusted,
        )

    async def find_parent(self) -> Parent | None:
        """Return what a shard without a journal is to be born from; None: nothing, or not known.

        When the archive does not answer soon the shard is born without it, and compared later.
        """
        store = self._node.store
        if store is None:
            return None
        with trio.move_on_after(_BIRTH_S):
            try:
                await self._probe(store)
                decision = await self._decide(store, None)
            except BasenetError as error:
                self._log.warning("archive_not_asked", error=_explain(error))
                return None
            if isinstance(decision, Refuse):
                # Capture goes on into the journal, and the comparison that follows says why.
                self._log.warning("archive_not_asked", error=_explain(decision.error))
            if isinstance(decision, Child):
                return await make_parent(self._node.journalist, self._shard.shard, decision, None)
        return None

    def _make_compactor(self, store: Store, seal: Seal, lease: Lease) -> Compactor:
        return Compactor(
            store=store,
            seal=seal,
            lease=lease,
            source=JournalSource(self._node, self._shard.shard),
            trusted=self._node.trusted,
            after=lambda: self.history.base_seq,
        )

    def _make_upkeep(
        self,
        store: Store,
        seal: Seal,
        lease: Lease,
        uploader: Uploader,
        compactor: Compactor,
    ) -> Upkeep:
        return make_upkeep(
            Upkeep,
            node=self._node,
            shard=self._shard,
            store=store,
            names=self._names,
            seal=seal,
            lease=lease,
            trusted=self._node.trusted,
            uploader=uploader,
            compactor=compactor,
            history=self.history,
        )

    async def _measure(self, store: Store, lineage: Lineage) -> None:
        """Find out what a restore of the newest state would begin with and read."""
        history = self.history
        if not self.has_genesis:
            # Nothing of this lineage is there, so the snapshot that the journal remembers is an
            # ancestor's, or lies in another archive.
            parent = self._parent
            if parent is not None:
                found = await read_baseline(store, self._names, parent, self._node.trusted)
            if parent is None or not found.has_base:
                history.base_seq, history.base_ns, history.base_name = Seq(0), 0, None
            return
        found = await read_baseline(store, self._names, lineage, self._node.trusted)
        history.base_seq, history.base_ns = found.seq, found.timestamp_ns
        history.base_name = found.name
        history.stored_bytes, history.log_bytes = found.stored_bytes, found.log_bytes
        if found.problem is not None:
            self._log.warning("no_base", reason=found.problem)

    async def _make_uploader(
        self,
        store: Store,
        seal: Seal,
        lease: Lease,
        record: ShardRecord,
        compactor: Compactor,
    ) -> Uploader:
        config = self._node.config
        collected: list[FinalFrame] = []
        self._collected = collected
        # What the journal dropped at its cap never comes: the archive goes on behind the gap.
        archived_seq = Seq(max(self._shard.progress.archived_seq, self.broken_seq or 0))
        sizes = await self._node.journalist.read(
            lambda journal: journal.frame_sizes(self._shard.shard, archived_seq)
        )
        backlog = Backlog(
            archived_seq=archived_seq,
            bytes_max=config.shard_backlog_bytes_max,
            entries_max=config.shard_backlog_segments_max,
        )
        final_seq = self._shard.progress.final_seq
        waiting = [(seq, size) for seq, size in sizes if seq <= final_seq]
        if waiting:
            backlog.adopt(
                end=waiting[-1][0],
                size=sum(size for _, size in waiting),
                oldest_ns=TimestampNs(record.tip.timestamp_ns),
            )
        tip = TipWriter(store=store, seal=seal, lease=lease, trusted=self._node.trusted)
        uploader = Uploader(
            store=store,
            seal=seal,
            lease=lease,
            tip=tip,
            backlog=backlog,
            source=JournalSource(self._node, self._shard.shard),
            on_archived=self._on_archived,
            trusted=self._node.trusted,
            settings=UploadSettings(
                flush_interval_seconds=config.flush_interval_seconds,
                waiting_bytes_max=min(
                    WAITING_BYTES_MAX, config.journal_bytes_max // _WAITING_SHARE
                ),
                retry_deadline_seconds=config.retry_deadline_seconds,
            ),
            on_stored=compactor.on_stored,
            turns=self._node.turns,
        )
        self._tip_seq = backlog.tip_seq
        self.uploader, self._put_bytes = uploader, 0
        self._collected = None
        for frame in collected:
            self._take(frame)
        return uploader

    async def _on_archived(self, seq: Seq, at_ns: int) -> None:
        shard = self._shard.shard
        keep_from = self.upkeep.keep_from if self.upkeep is not None else None
        keep_bytes = min(KEPT_BYTES, self._node.config.journal_bytes_max // KEPT_SHARE)
        await self._node.journalist.perform(
            lambda journal: journal.set_archived(
                shard, seq, keep_bytes=keep_bytes, keep_from=keep_from
            )
        )
        self._shard.progress.set_archived(seq, at_ns)
        if self.uploader is not None:
            put_bytes = self.uploader.facts().put_bytes
            self.history.log_bytes += put_bytes - self._put_bytes
            self._put_bytes = put_bytes

    async def close(self) -> None:
        """Ship what is final and release the lease, within bounds."""
        if self.uploader is not None:
            await self.uploader.close(_CLOSE_S)


def _explain(error: BasenetError) -> str:
    """Return the sentence of ``error``, and what to do where the archive is another database's."""
    if isinstance(error, UntrustedKey):
        return (
            f"{error}; if it is another database's archive, give this one another BASE_ARCHIVE, "
            "BASE_SERVICE or shard id"
        )
    return str(error)
