"""The way of a shard with peers into the archive: its writer's task, and whoever is that next.

Theory of operation
===================

Only what is final and in the journal's log is archived, and by the writer. Each time this node
comes to write, a *stint* begins, and it ends when this node writes no more::

    lease of an earlier view: replaced at once                       (`archive.lease`)
    what lies above our watermark: compared with our frames, by seq  (`archive.takeover`)
    CONFIGs that are neither there nor to come: each as an object
    uploads without end, snapshots, retention                        (as in standalone)

Two writers of one lineage can only archive equal frames, so the lease is economy; a certificate
beside the frames proves them to anybody (`cluster.proving`). Other frames under our numbers are the
alarm that must never come: nothing is overwritten, and this shard archives no more until a restart.

*The watermark.* What is archived goes into the journal, and to the peers (`ArchivedUpTo`), so that
they need not keep it and the next writer goes on from there. In the Byzantine fault model a peer's
word lets nobody drop anything.

*The archivist.* A node of the role ``archive`` never writes and has a stint when something final
lies unarchived and nobody says that it archives: at once where no voter ever did (they have no
archive of their own), else after the time in which a lease would run out. It ends when a voter has
archived more. Its lease is of no view, so that any writer that archives takes it back at once.

Many shards that move at once look into the archive spread over a few seconds.
"""

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from basenet.archive.backlog import Backlog, Batch
from basenet.archive.baseline import read_baseline
from basenet.archive.compact import Compactor
from basenet.archive.fetch import Fetcher
from basenet.archive.lease import LEASE_TTL_SECONDS, Holder, Lease, LeaseHeld
from basenet.archive.names import ShardNames
from basenet.archive.port import Store, StoreConflict
from basenet.archive.probe import probe
from basenet.archive.seal import Seal, TwoHistories, check_same_frames, seal_log
from basenet.archive.takeover import Own, Reached, find_reached
from basenet.archive.tip import TipWriter
from basenet.archive.uploader import WAITING_BYTES_MAX, ArchiveFacts, Uploader, UploadSettings
from basenet.config.model import NodeRole
from basenet.daemon.archiving import JournalSource
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.cluster.proving import KeptConfig, genesis_seq, prove, read_configs
from basenet.daemon.cluster.settling import SettledFrame
from basenet.daemon.cluster.snapshots import Archived, ArchivedHost, ClusterUpkeep
from basenet.daemon.failures import only_error
from basenet.daemon.framer import instant
from basenet.daemon.node import Node
from basenet.daemon.presence import ArchiveLost, Presence
from basenet.daemon.troubles import Troubles
from basenet.daemon.upkeep import History, Upkeep, make_upkeep
from basenet.engine.ballot import Ballot
from basenet.errors import BasenetError, UnavailableError
from basenet.journal.records import ReplicaRecord
from basenet.units import MIB, FrameHash, PublicKeyBytes, Seq, TimestampNs
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Head, decode_head_of
from basenet.wire.hello import Hello
from basenet.wire.payload import FaultModel
from basenet.wire.transfer import ArchivedUpTo

log = structlog.get_logger()

KEPT_BYTES: Final = 64 * MIB
KEPT_SHARE: Final = 64
"""Of the journal's cap a shard keeps at most this part for peers that were away shortly."""
_WAITING_SHARE: Final = 8
_RETRY_S: Final = 1.0
_RETRY_S_MAX: Final = 10.0
_FINAL_S: Final = 10.0
_CLOSE_S: Final = 3.0
_SILENT_S: Final = float(LEASE_TTL_SECONDS)
"""An archivist waits this long for a voter that archived before."""
_UNTOLD_S: Final = 3.0
"""And this long where none ever did."""
_MANY_SHARDS: Final = 50
_SPREAD_S: Final = 5.0


def kept_bytes(journal_bytes_max: int) -> int:
    """Return how many bytes of frames a shard keeps for peers, of a journal of this size."""
    return min(KEPT_BYTES, journal_bytes_max // KEPT_SHARE)


@dataclass(slots=True)
class Arrivals:
    """How many shards came to write here lately."""

    _times: deque[float] = field(default_factory=deque)

    def pause_s(self) -> float:
        """Note one more; return for how long it should wait before it looks into the archive."""
        now = trio.current_time()
        self._times.append(now)
        while self._times[0] < now - _SPREAD_S:
            self._times.popleft()
        return random.uniform(0, _SPREAD_S) if len(self._times) > _MANY_SHARDS else 0.0  # noqa: S311


class ClusterArchiver:
    """Archives one shard while this node writes it."""

    def __init__(self, *, node: Node, shard: Archived, peers: Peers, arrivals: Arrivals) -> None:
        self.error: str | None = None
        self.uploader: Uploader | None = None
        self.upkeep: Upkeep | None = None
        self.history = History()
        self.troubles = Troubles()
        self.told_seq = Seq(0)
        """What the writer says is archived."""
        self._node = node
        self._shard = shard
        self._peers = peers
        self._arrivals = arrivals
        self._names = ShardNames(service=node.config.service, shard=shard.shard)
        self._log = log.bind(shard=shard.shard)
        self._collected: list[SettledFrame] | None = None
        self._tip_seq = Seq(0)
        # Of this uploader's, what is in the history.
        self._put_bytes = 0
        self._is_doubtful = False
        self._record: ReplicaRecord | None = None

    # What the shard tells.

    def on_settled(self, frames: Sequence[SettledFrame]) -> None:
        """Take in frames that are final in the journal."""
        if self.uploader is None:
            if self._collected is not None:
                self._collected += frames
            return
        for frame in frames:
            if frame.head.seq <= self._tip_seq:
                continue
            self._tip_seq = frame.head.seq
            if frame.record is None:
                self.uploader.append_stored(frame.head, frame.size)
            else:
                self.uploader.append(frame.head, frame.record)

    def on_lineage(self) -> None:
        """Forget what was said of another lineage."""
        self.told_seq = Seq(0)

    def on_told(self, peer: Hello, seq: Seq) -> None:
        """Take in what the writer says is archived; `cluster.keeping` makes it durable."""
        term = self._shard.term
        if term is None or not term.is_at_work or self._node.store is None:
            return
        config = term.driver.replica.ballot.config
        is_voter = peer.key in {voter.key for voter in config.voters}
        if is_voter and config.fault_model is FaultModel.CRASH:
            self.told_seq = Seq(max(self.told_seq, seq))
            self._shard.progress.wake()

    def on_connected(self, peer: Hello) -> None:
        """Tell a peer what is archived, if this node writes."""
        if self.uploader is not None:
            self._tell((peer.key,))

    def on_dropped(self, seq: Seq) -> None:
        """Take in that the journal dropped the frames up to ``seq`` at its cap."""
        self.history.is_broken = True
        if self.uploader is not None:
            self.uploader.skip(seq)

    def facts(self) -> ArchiveFacts | None:
        """Return where the archive stands; None while this node does not write it."""
        return self.uploader.facts() if self.uploader is not None else None

    # The life.

    async def run(self) -> None:
        """Archive whenever this node writes, or as the archivist is needed, for ever."""
        if self._node.store is None:
            await trio.sleep_forever()
        retry_s = _RETRY_S
        while True:
            await self._called()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_when_relieved, nursery.cancel_scope)
                    await self._stint(self._node.store)
            except* BasenetError as group:
                error = only_error(group)
                retry_s = min(2 * retry_s, _RETRY_S_MAX) if self.error else _RETRY_S
                await self._fail(error)
                await trio.sleep(retry_s)
            finally:
                self.uploader = self.upkeep = self._collected = None

    @property
    def _is_archivist(self) -> bool:
        return self._node.config.cluster.node_role is NodeRole.ARCHIVE

    async def _called(self) -> None:
        """Return when it is for this node to archive."""
        progress = self._shard.progress
        while not self._is_archivist:
            if self._writes():
                return
            await progress.moved()
        while True:
            while not self._is_unarchived():
                await progress.moved()
            told = self.told_seq
            with trio.move_on_after(_SILENT_S if told else _UNTOLD_S) as patience:
                while self.told_seq == told and self._is_unarchived():
                    await progress.moved()
            if patience.cancelled_caught:
                return

    def _is_unarchived(self) -> bool:
        """Whether something is final here that nobody said to be archived."""
        term, progress = self._shard.term, self._shard.progress
        if term is None or not term.is_at_work:
            return False
        return term.settler.settled[0] > max(self.told_seq, progress.archived_seq)

    def _writes(self) -> bool:
        term = self._shard.term
        if term is None or not term.is_at_work:
            return False
        replica, now = term.driver.replica, instant()
        return replica.is_leader and replica.writable_until(now) > now

    async def _end_when_relieved(self, scope: trio.CancelScope) -> None:
        """End the stint when this node does not lead any more, or its term is another.

        The archivist's ends when somebody else archives.
        """
        term, progress = self._shard.term, self._shard.progress
        while term is not None and term is self._shard.term and term.is_at_work:
            if not (term.leads or self._is_archivist):
                break
            if self._is_archivist and self.told_seq > progress.archived_seq:
                break
            await progress.moved()
        scope.cancel()

    async def _fail(self, error: BasenetError) -> None:
        self.uploader = self.upkeep = self._collected = None
        self.troubles.note(error)
        if isinstance(error, TwoHistories):
            self._log.error("two_final_histories", error=str(error))
            self.error = str(error)
            await trio.sleep_forever()
        if isinstance(error, ArchiveLost):
            self._log.error("archive_lost", error=str(error))
            self._is_doubtful = True
        elif str(error) != self.error and not isinstance(error, LeaseHeld):
            self._log.warning("archive_stopped", error=str(error))
        self.error = str(error)

    async def _stint(self, store: Store) -> None:
        await trio.sleep(self._arrivals.pause_s())
        async with self._node.probe_lock:
            await probe(store, self._node.config.data_dir)
        shard, journalist = self._shard.shard, self._node.journalist
        record = await journalist.perform(lambda journal: journal.load_replica(shard))
        configs = await journalist.read(lambda journal: read_configs(journal, shard))
        if record is None:
            raise UnavailableError(f"the journal does not hold shard {shard} yet")
        term = self._shard.term
        if term is None or not term.is_at_work:
            return
        ballot = term.driver.replica.ballot
        lease = self._make_lease(store, record, ballot)
        await lease.observe()
        reached = await self._find_reached(store, record, configs)
        self._record = record
        lease.raise_epoch_floor(reached.archive_epoch)
        seal = Seal(names=self._names, lineage=record.lineage, signer=self._node.author.signer)
        trusted = self._node.trusted | _keys_of(configs)
        first = await self._ship_configs(store, seal, lease, reached, configs)
        await self._measure(store, record, trusted, is_gap=first > reached.archived_seq + 1)
        compactor = Compactor(
            store=store,
            seal=seal,
            lease=lease,
            source=JournalSource(self._node, shard),
            trusted=trusted,
            after=lambda: self.history.base_seq,
            prove=self._prove,
        )
        uploader = await self._make_uploader(
            store, seal, lease, Seq(first - 1), trusted, compactor=compactor
        )
        upkeep = self._make_upkeep(store, seal, lease, uploader, trusted, compactor=compactor)
        presence = Presence(
            store=store,
            names=self._names,
            lineage=record.lineage,
            genesis_seq=genesis_seq(configs),
            history=self.history,
            facts=uploader.facts,
            has_tip=reached.has_tip,
        )
        await self._on_archived(Seq(first - 1), 0)
        self._log.info("archiving", from_seq=first, archive_epoch=reached.archive_epoch + 1)
        self.error, self.upkeep, self._is_doubtful = None, upkeep, False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(uploader.run)
            nursery.start_soon(upkeep.run)
            nursery.start_soon(presence.run)

    # What it begins with.

    def _make_lease(self, store: Store, record: ReplicaRecord, ballot: Ballot) -> Lease:
        author = self._node.author
        return Lease(
            store=store,
            names=self._names,
            holder=Holder(
                node=author.node_id,
                key=author.signer.public,
                journal_id=author.journal_id,
                lineage=record.lineage,
                epoch=0 if self._is_archivist else ballot.epoch,
                view=0 if self._is_archivist else ballot.view,
                is_established=not self._is_archivist,
            ),
        )

    async def _find_reached(
        self, store: Store, record: ReplicaRecord, configs: Sequence[KeptConfig]
    ) -> Reached:
        begins = genesis_seq(configs)
        parent = configs[0].config.parent
        known = max(record.archived_seq, begins - 1, min(self.told_seq, record.tip.seq))
        return await find_reached(
            store,
            self._names,
            Own(
                lineage=record.lineage,
                parent=parent[0] if parent is not None else None,
                genesis_seq=begins,
                archived_seq=Seq(begins - 1 if self._is_doubtful else known),
                hashes=self._hashes,
            ),
            Fetcher(store, retry_seconds=self._node.config.retry_deadline_seconds),
        )

    async def _hashes(self, first: Seq, last: Seq) -> Mapping[Seq, FrameHash]:
        """Return the hashes of final frames, as far as they are held, once the last is settled."""
        term, shard = self._shard.term, self._shard.shard
        if term is None:
            raise UnavailableError(f"shard {shard} is not at work")
        with trio.move_on_after(_FINAL_S):
            await term.settler.reached(last)
        if term.settler.settled[0] < last:
            raise UnavailableError(
                f"the archive holds shard {shard} up to frame {last}, and here "
                f"{term.settler.settled[0]} is final"
            )

        def read() -> dict[Seq, FrameHash]:
            journal = self._node.journalist.journal
            found: dict[Seq, FrameHash] = {}
            seq = Seq(max(first, journal.first_seq(shard)))
            while seq <= last:
                rows = journal.frames(shard, seq, last, MIB)
                if not rows:
                    break
                found |= {seq: decode_head_of(one).hash for seq, one in rows}
                seq = Seq(rows[-1][0] + 1)
            return found

        return await trio.to_thread.run_sync(read)

    async def _ship_configs(
        self,
        store: Store,
        seal: Seal,
        lease: Lease,
        reached: Reached,
        configs: Sequence[KeptConfig],
    ) -> Seq:
        """Archive the CONFIGs among frames that are gone; return the first frame to ship.

        Without them nobody could tell who decides afterwards.
        """
        shard, trusted = self._shard.shard, self._node.trusted | _keys_of(configs)
        first = await self._node.journalist.read(lambda journal: journal.first_seq(shard))
        for one in configs:
            if not reached.archived_seq < one.seq < first:
                continue
            proofs = (one.proof,) if one.proof is not None else ()
            batch = Batch(start=one.seq, frames=(one.record,), proofs=proofs)
            sealed = seal_log(batch, seal, await lease.ensure())
            try:
                await store.put_if_absent(sealed.name, sealed.data)
            except StoreConflict:
                check_same_frames(batch, sealed, await store.get_data(sealed.name), trusted)
        return Seq(max(first, reached.archived_seq + 1))

    async def _measure(
        self,
        store: Store,
        record: ReplicaRecord,
        trusted: frozenset[PublicKeyBytes],
        *,
        is_gap: bool,
    ) -> None:
        """Find out what a restore of the newest state would begin with."""
        found = await read_baseline(store, self._names, record.lineage, trusted)
        self.history = History(
            base_seq=found.seq,
            base_name=found.name,
            base_ns=found.timestamp_ns,
            stored_bytes=found.stored_bytes,
            log_bytes=found.log_bytes,
            is_broken=is_gap or (record.broken_seq is not None and found.seq < record.broken_seq),
        )

    async def _make_uploader(
        self,
        store: Store,
        seal: Seal,
        lease: Lease,
        archived_seq: Seq,
        trusted: frozenset[PublicKeyBytes],
        *,
        compactor: Compactor,
    ) -> Uploader:
        config, shard = self._node.config, self._shard.shard
        collected: list[SettledFrame] = []
        self._collected = collected
        sizes = await self._node.journalist.read(
            lambda journal: journal.frame_sizes(shard, archived_seq)
        )
        backlog = Backlog(
            archived_seq=archived_seq,
            bytes_max=config.shard_backlog_bytes_max,
            entries_max=config.shard_backlog_segments_max,
        )
        if sizes:
            backlog.adopt(
                end=sizes[-1][0],
                size=sum(size for _, size in sizes),
                oldest_ns=TimestampNs(await self._timestamp_of(sizes[0][0])),
            )
        uploader = Uploader(
            store=store,
            seal=seal,
            lease=lease,
            tip=TipWriter(store=store, seal=seal, lease=lease, trusted=trusted),
            backlog=backlog,
            source=JournalSource(self._node, shard),
            on_archived=self._on_archived,
            trusted=trusted,
            settings=UploadSettings(
                flush_interval_seconds=config.flush_interval_seconds,
                waiting_bytes_max=min(
                    WAITING_BYTES_MAX, config.journal_bytes_max // _WAITING_SHARE
                ),
                retry_deadline_seconds=config.retry_deadline_seconds,
            ),
            prove=self._prove,
            on_stored=compactor.on_stored,
            turns=self._node.turns,
        )
        self._tip_seq = backlog.tip_seq
        self.uploader, self._put_bytes, self._collected = uploader, 0, None
        self.on_settled(collected)
        return uploader

    async def _timestamp_of(self, seq: Seq) -> int:
        rows = await self._node.journalist.read(
            lambda journal: journal.frames(self._shard.shard, seq, seq, 0)
        )
        return decode_head_of(rows[0][1]).timestamp_ns if rows else 0

    async def _prove(self, batch: Batch) -> Batch:
        return await self._node.journalist.read(
            lambda journal: prove(journal, self._shard.shard, batch)
        )

    async def _prove_head(self, head: Head) -> Certificate | None:
        found = await self._node.journalist.read(
            lambda journal: journal.certificate_for(self._shard.shard, head.seq)
        )
        return found if found is not None and found.hash == head.hash else None

    def _make_upkeep(
        self,
        store: Store,
        seal: Seal,
        lease: Lease,
        uploader: Uploader,
        trusted: frozenset[PublicKeyBytes],
        *,
        compactor: Compactor,
    ) -> Upkeep:
        upkeep = make_upkeep(
            ClusterUpkeep,
            node=self._node,
            shard=ArchivedHost(self._shard),
            store=store,
            names=self._names,
            seal=seal,
            lease=lease,
            trusted=trusted,
            uploader=uploader,
            compactor=compactor,
            history=self.history,
            prove=self._prove_head,
        )
        upkeep.archived = self._shard
        return upkeep

    # What follows.

    async def _on_archived(self, seq: Seq, at_ns: int) -> None:
        shard = self._shard.shard
        keep_from = self.upkeep.keep_from if self.upkeep is not None else None
        term = self._shard.term
        place = term.settler.place[0] if term is not None else Seq(0)
        keep_bytes = kept_bytes(self._node.config.journal_bytes_max)
        await self._node.journalist.perform(
            lambda journal: journal.set_archived(
                shard, seq, keep_bytes=keep_bytes, keep_from=min(keep_from or place, place)
            )
        )
        self._shard.progress.set_archived(seq, at_ns or None)
        if self.uploader is not None:
            put_bytes = self.uploader.facts().put_bytes
            self.history.log_bytes += put_bytes - self._put_bytes
            self._put_bytes = put_bytes
        self._tell(tuple(self._peers.connected))

    def _tell(self, keys: Sequence[PublicKeyBytes]) -> None:
        record, seq = self._record, self._shard.progress.archived_seq
        if record is None:
            return
        for key in keys:
            message = ArchivedUpTo(number=0, seq=seq)
            self._peers.send_transfer(key, self._shard.shard, record.lineage, message)

    async def close(self) -> None:
        """Ship what is final and release the lease, within bounds."""
        if self.uploader is not None:
            await self.uploader.close(_CLOSE_S)


def _keys_of(configs: Sequence[KeptConfig]) -> frozenset[PublicKeyBytes]:
    return frozenset(voter.key for one in configs for voter in one.config.voters)
