"""Snapshots, retention and compaction of one shard: one task, one after the other.

Retention must not delete a part that a snapshot has just found, nor a log object that is being
merged, so all are done here in turn. When a snapshot is due is `archive.schedule`'s decision; what
retention deletes is `archive.retention`'s, what is merged `archive.compaction`'s. A failed one
leaves nothing behind and is tried again.

Here is also noted, in the data directory, for how long the archive has been watched: what retention
deletes must be older than that allows (`archive.watch`). A wall clock that was years ahead and went
back must not put off what is due: a moment in the future counts as the present one.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol, TypeVar
from zlib import crc32

import structlog
import trio

from basenet.archive.clock import SECOND_NS
from basenet.archive.compact import Compactor
from basenet.archive.cutoff import Witness
from basenet.archive.lease import Lease
from basenet.archive.names import ShardNames
from basenet.archive.pageset import SnapshotSource
from basenet.archive.port import Store
from basenet.archive.prune import Pruner
from basenet.archive.publish import Prove, Published, Publisher
from basenet.archive.schedule import Reason, SnapshotNeed, SnapshotPlan, plan_snapshot
from basenet.archive.seal import Seal
from basenet.archive.snapshot import Snapshots
from basenet.archive.uploader import Uploader
from basenet.archive.watch import FOLDER_NAME, Watch
from basenet.daemon.host import Host
from basenet.daemon.node import Node
from basenet.daemon.snapshots import SnapshotReader
from basenet.errors import BasenetError, ConflictError, UnavailableError
from basenet.units import Lineage, PublicKeyBytes, Seq

log = structlog.get_logger()

_NO_SEQ: Final = Seq(0)
_LOOK_S: Final = 1.0
# A shard where nothing moves is looked at this rarely: a hundred of them are one process.
_IDLE_LOOK_S: Final = 15.0
# So long after the last commit a shard is quiet.
_CALM_S: Final = 2.0
_PRUNE_S_MIN: Final = 5.0
_PRUNE_S_MAX: Final = 3600.0
# The archive is watched from so long after the start on: many shards start at once.
_WATCH_S: Final = 60.0
# A compaction that failed is tried again after that long: nothing is lost meanwhile.
_COMPACT_AGAIN_S: Final = 30.0


class Reader(SnapshotSource, Protocol):
    """What a snapshot reads; ``keep_from``: the first frame that the journal must keep for it."""

    keep_from: Seq | None


@dataclass(slots=True, kw_only=True)
class History:
    """What the archive holds of a shard to restore from.

    ``base_seq``: the newest snapshot, or the genesis of a database that was born empty; 0: none
    yet. ``base_name``: of the snapshot's manifest. ``log_bytes``: log objects since.
    ``is_broken``: frames since the base never arrived, or are gone.
    """

    base_seq: Seq = _NO_SEQ
    base_name: str | None = None
    base_ns: int = 0
    stored_bytes: int = 0
    log_bytes: int = 0
    is_broken: bool = False


class Upkeep:
    """Takes the snapshots that are due and deletes what no kept moment needs."""

    def __init__(
        self,
        *,
        node: Node,
        shard: Host,
        snapshots: Snapshots,
        pruner: Pruner,
        compactor: Compactor,
        history: History,
        watch: Watch,
        lineage: Lineage,
        is_archive_there: Callable[[], bool],
    ) -> None:
        """``is_archive_there`` says whether the archive took the last object."""
        self.watch = watch
        self.history = history
        self.reader: Reader | None = None
        self.error: str | None = None
        self.watched_s: float | None = None
        """For how long the archive has been watched, when that was last noted."""
        self._node = node
        self._shard = shard
        self._snapshots = snapshots
        self._pruner = pruner
        self._compactor = compactor
        self._compact_at_s = float("-inf")
        self._is_archive_there = is_archive_there
        self._log = log.bind(shard=shard.shard)
        self._failures = 0
        self._failed_ns = 0
        self._seen_seq = _NO_SEQ
        self._seen_s = float("-inf")
        # Shards that were born together take their snapshots one after the other.
        self._phase = (crc32(shard.shard.encode()) % 1_000) / 1_000
        self._prune_at_s = trio.current_time() + self._prune_pause_s
        self._lineage = lineage
        self._is_watching = False
        self._witness = Witness.NOBODY
        self._note_at_s = trio.current_time() + min(
            self._prune_pause_s, _WATCH_S * (1 + self._phase)
        )

    @property
    def keep_from(self) -> Seq | None:
        """The first frame that the journal must keep for a snapshot that is being made."""
        return self.reader.keep_from if self.reader is not None else None

    @property
    def _prune_pause_s(self) -> float:
        half_s = self._node.config.retention_seconds / 2
        return min(max(half_s, _PRUNE_S_MIN), _PRUNE_S_MAX)

    def plan(self) -> SnapshotPlan:
        """Return when the next snapshot is due, and why."""
        history, now_ns = self.history, time.time_ns()
        history.base_ns = min(history.base_ns, now_ns)
        self._failed_ns = min(self._failed_ns, now_ns)
        need = SnapshotNeed(
            db_pages=self.count_pages(),
            has_base=history.base_seq > 0,
            base_ns=history.base_ns,
            base_stored_bytes=history.stored_bytes,
            log_bytes=history.log_bytes,
            is_log_broken=history.is_broken,
            is_busy=self._is_busy(),
            failures=self._failures,
            failed_ns=self._failed_ns,
        )
        interval_s = self._node.config.snapshot_interval_seconds
        return plan_snapshot(need, interval_seconds=interval_s, phase=self._phase)

    def describe_retention(self) -> str:
        """Return by which witness history expires, or why none does, in a sentence."""
        if self._witness is Witness.WATCH:
            return "ok"
        if self._witness is Witness.STORE:
            return "ok, by the clock of the store"
        watched, kept = (
            f"{timedelta(seconds=round(seconds))}"
            for seconds in (self.watched_s or 0, self._node.config.retention_seconds)
        )
        return f"nothing expires yet: the archive was watched for {watched} of {kept}"

    def count_pages(self) -> int:
        """Return how large the database is."""
        session = self._shard.session
        return session.framer.tree.db_pages if session else self._shard.db_pages

    def is_attached(self) -> bool:
        """Return whether the file can be read now."""
        return self._shard.session is not None

    def make_reader(self) -> Reader:
        """Return what a snapshot reads."""
        return SnapshotReader(self._node, self._shard)

    def _is_busy(self) -> bool:
        """Return whether commits came a moment ago, as far as anybody looked."""
        seq, now_s = self._shard.progress.final_seq, trio.current_time()
        if seq != self._seen_seq:
            self._seen_seq, self._seen_s = seq, now_s
        return now_s - self._seen_s < _CALM_S

    async def run(self) -> None:
        """Keep the archive in order for ever; only a conflict (a lost lease) ends it."""
        while True:
            self._node.wall_clock.look()
            # While the archive is away an attempt could only fail, and make the next one wait.
            if not self._is_archive_there():
                await trio.sleep(_LOOK_S)
            elif self.plan().is_due(time.time_ns()):
                await self._snapshot_or_wait()
            elif trio.current_time() >= self._note_at_s:
                self._note_at_s = trio.current_time() + self._prune_pause_s
                await self._tried("retention_failed", self._note)
            elif trio.current_time() >= self._prune_at_s:
                self._prune_at_s = trio.current_time() + self._prune_pause_s
                await self._tried("retention_failed", self._prune)
            elif self._compactor.is_due and trio.current_time() >= self._compact_at_s:
                await self._compact()
            else:
                await self._rest()

    async def _rest(self) -> None:
        """Return when something may be due: by the time, or since something moved."""
        plan = self.plan()
        next_s = min(self._prune_at_s, self._note_at_s)
        waits = [_IDLE_LOOK_S, next_s - trio.current_time()]
        if plan.due_ns is not None:
            waits.append((plan.due_ns - time.time_ns()) / SECOND_NS)
        if plan.reason is Reason.LOG_SIZE:
            waits.append(_CALM_S)  # it is due as soon as no more commits come
        with trio.move_on_after(max(min(waits), _LOOK_S)):
            await self._shard.progress.moved()
            # Each commit moves something.
            await trio.sleep(_LOOK_S)

    async def _snapshot_or_wait(self) -> None:
        if not self.is_attached():
            self._shard.want_attached()
            await trio.sleep(_LOOK_S)
        elif await self._tried("snapshot_failed", self._take_snapshot):
            self._failures = 0
        else:
            self._failures += 1
            self._failed_ns = time.time_ns()

    async def _tried(self, event: str, act: Callable[[], Awaitable[None]]) -> bool:
        """Return whether ``act`` succeeded; tell why not."""
        try:
            await act()
        except ConflictError:
            raise
        except BasenetError as error:
            if str(error) != self.error:
                self._log.warning(event, error=str(error))
            self.error = str(error)
            return False
        self.error = None
        return True

    async def _take_snapshot(self) -> None:
        self.reader = reader = self.make_reader()
        started_s = trio.current_time()
        try:
            published = await self._snapshots.take(reader, before_manifest=self._wait_archived)
        finally:
            self.reader = None
        await self._remember(published)
        self._prune_at_s = trio.current_time()
        self._log.info(
            "snapshot",
            seq=published.seq,
            pages=published.db_pages,
            bytes=published.stored_bytes,
            new_bytes=published.new_bytes,
            seconds=round(trio.current_time() - started_s, 2),
        )

    async def _wait_archived(self, seq: Seq) -> None:
        progress = self._shard.progress
        await progress.wait_until(lambda: progress.archived_seq >= seq)

    async def _remember(self, published: Published) -> None:
        shard, now_ns = self._shard.shard, time.time_ns()
        history = self.history
        history.base_seq, history.base_ns = published.seq, now_ns
        history.base_name = published.name
        history.stored_bytes = published.stored_bytes
        history.log_bytes = 0
        history.is_broken = False
        await self._node.journalist.perform(
            lambda journal: journal.set_snapshot(shard, published.seq, now_ns)
        )
        self._shard.progress.wake()

    async def _compact(self) -> None:
        async def step() -> None:
            await self._compactor.step()

        if not await self._tried("compaction_failed", step):
            self._compact_at_s = trio.current_time() + _COMPACT_AGAIN_S

    async def _note(self) -> None:
        """Note what the archive holds now, so that it is known later how old that is."""
        if not self._is_watching:
            await trio.to_thread.run_sync(self.watch.load)
            self._is_watching = True
        archived = self._shard.progress.marks.archived
        if archived is not None:
            self.watch.note(self._lineage, archived.timestamp_ns)
            await trio.to_thread.run_sync(self.watch.save)
        self.watched_s = self.watch.oldest_ns / SECOND_NS

    async def _prune(self) -> None:
        # On a full disk, which this may be about to relieve, the marks are kept in memory.
        with suppress(UnavailableError):
            await self._note()
        report = await self._pruner.run()
        self._witness = report.cutoff.witness
        if not report.is_whole:
            self._prune_at_s = trio.current_time() + _PRUNE_S_MIN
        if report.deleted:
            self._log.info(
                "retention",
                deleted=report.deleted,
                bytes=report.deleted_bytes,
                witness=str(report.cutoff.witness),
            )


def describe_retention(upkeep: Upkeep | None) -> str:
    """Return what `status` says of retention; None: nothing is archived from here now."""
    return "off" if upkeep is None else upkeep.describe_retention()


def find_next_snapshot_ns(upkeep: Upkeep | None) -> int | None:
    """Return when the next snapshot is due, as far as that is known."""
    return None if upkeep is None else upkeep.plan().due_ns


_Kind = TypeVar("_Kind", bound=Upkeep)


def make_upkeep(
    kind: type[_Kind],
    *,
    node: Node,
    shard: Host,
    store: Store,
    names: ShardNames,
    seal: Seal,
    lease: Lease,
    trusted: frozenset[PublicKeyBytes],
    uploader: Uploader,
    compactor: Compactor,
    history: History,
    prove: Prove | None = None,
) -> _Kind:
    """Return the upkeep of ``shard`` beside ``uploader``; ``prove``: see `Publisher`."""
    publisher = Publisher(store=store, seal=seal, lease=lease, trusted=trusted, prove=prove)
    watch = Watch(node.config.data_dir / FOLDER_NAME / f"{shard.shard}.json")
    return kind(
        node=node,
        shard=shard,
        snapshots=Snapshots(publisher=publisher, folder=node.config.data_dir),
        pruner=Pruner(
            store=store,
            names=names,
            lease=lease,
            lineage=seal.lineage,
            trusted=trusted,
            retention_seconds=node.config.retention_seconds,
            list_merged_ns=compactor.list_ages_ns,
            watch=watch,
        ),
        compactor=compactor,
        history=history,
        watch=watch,
        lineage=seal.lineage,
        is_archive_there=lambda: uploader.facts().last_error is None,
    )
