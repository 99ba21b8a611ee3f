"""The answers to what the control room asks: `control.surface.Surface` over the running node."""

import time
from typing import Final

import trio
from msgspec import structs

from basenet import __version__
from basenet.archive.uploader import ArchiveFacts
from basenet.control.members import MembersCommand
from basenet.control.reset import ResetCommand
from basenet.control.surface import (
    Level,
    Member,
    NodeMetrics,
    NodeStatus,
    NotCaughtUp,
    Orphaned,
    ShardMetrics,
    ShardStatus,
    WaitResult,
)
from basenet.daemon.keeper import Keeper
from basenet.daemon.node import Node
from basenet.daemon.progress import Watermark
from basenet.daemon.shard import Shard
from basenet.daemon.supervisor import Supervisor
from basenet.daemon.troubles import require_going_on, sick_shards
from basenet.daemon.upkeep import describe_retention, find_next_snapshot_ns
from basenet.errors import NotFoundError, UsageError
from basenet.keys.trust import format_public
from basenet.units import Seq, ShardId

_OK: Final = "ok"
_NS_PER_MS: Final = 1_000_000


class Facts:
    """A node's facts; satisfies `Surface`."""

    def __init__(self, node: Node, supervisor: Supervisor, keeper: Keeper) -> None:
        self._node = node
        self._supervisor = supervisor
        self._keeper = keeper
        self._started_ns = time.time_ns()
        self.is_stopping = False
        self.is_restoring = False

    def node_status(self) -> NodeStatus:
        """Return the node as it is now, without its shards."""
        now_ns = time.time_ns()
        reasons = self._reasons()
        config, author = self._node.config, self._node.author
        return NodeStatus(
            node_id=author.node_id,
            version=__version__,
            network=config.network.value,
            role="validator",
            members=[
                Member(node_id=author.node_id, role="validator", key=author.signer.public.hex())
            ],
            ready=not reasons,
            reasons=reasons,
            started_ns=self._started_ns,
            now_ns=now_ns,
            uptime_s=(now_ns - self._started_ns) / 1e9,
            archive=self._node.store.url if self._node.store is not None else None,
            public_key=format_public(author.signer.public),
            clock_step_s=self._node.wall_clock.step_seconds,
        )

    def _reasons(self) -> list[str]:
        reasons = sick_shards(self._supervisor.shards, lambda shard: shard.error)
        reasons += self._supervisor.refused
        if self._node.journalist.error is not None:
            reasons.append(self._node.journalist.error)
        if self.is_restoring:
            reasons.append("missing databases are being restored from the archive")
        if self.is_stopping:
            reasons.append("basenet is shutting down")
        return reasons

    def shard_ids(self) -> list[ShardId]:
        """Return the shards that there are now, in order."""
        return sorted(self._supervisor.shards)

    def shard_status(self, shard: str) -> ShardStatus:
        """Return one shard as it is now; raise `NotFoundError` for an unknown id."""
        found = self._find(shard)
        archive = found.archiver.facts()
        return structs.replace(
            self._count(found, archive),
            now_ns=time.time_ns(),
            next_snapshot_ns=find_next_snapshot_ns(found.archiver.upkeep),
            archive=self._archive_sentence(found, archive),
            retention=describe_retention(found.archiver.upkeep),
        )

    def _find(self, shard: str) -> Shard:
        try:
            return self._supervisor.shards[ShardId(shard)]
        except KeyError as error:
            raise NotFoundError(
                f"there is no shard {shard!r} on this node; `basenet shards` lists them."
            ) from error

    def _count(self, shard: Shard, archive: ArchiveFacts | None) -> ShardStatus:
        """Return the status of ``shard`` without what no scrape shows and takes long."""
        record, session, progress = shard.record, shard.session, shard.progress
        has_archive = self._node.store is not None
        tree = session.framer.tree if session else None
        tip = session.framer.tip if session else (record.tip if record else None)
        waiting = session.pump.waiting if session else None
        oldest_ns = _oldest(
            waiting.oldest_ns if waiting else None,
            progress.marks.oldest_ns if has_archive else None,
        )
        lag_ms = max(time.time_ns() - oldest_ns, 0) / _NS_PER_MS if oldest_ns else 0.0
        local_last = session.framer.local_last if session else (record.local_last if record else 0)
        return ShardStatus(
            shard=shard.shard,
            path=str(shard.path),
            state=shard.state,
            lineage=record.lineage.hex() if record else None,
            epoch=tip.epoch if tip else 0,
            view=tip.view if tip else 0,
            captured_local=local_last + (waiting.commits if waiting else 0),
            captured_seq=max(tip.seq if tip else 0, progress.final_seq),
            final_seq=progress.final_seq,
            archived_seq=progress.archived_seq if has_archive else 0,
            lag_commits=shard.count_unarchived_commits(),
            lag_bytes=progress.marks.waiting_bytes if has_archive else 0,
            lag_ms=lag_ms,
            worst_case_loss_ms=self._worst_case_loss_ms(shard, lag_ms),
            wal_bytes=session.capture.wal_bytes if session and session.is_live else 0,
            db_pages=tree.db_pages if tree else (record.db_pages if record else 0),
            page_size=tree.page_size if tree else (record.page_size if record else 0),
            last_captured_ns=tip.timestamp_ns if tip else None,
            last_archived_ns=progress.archived_ns,
            last_snapshot_seq=shard.archiver.history.base_seq or None,
            last_restore_point_ns=progress.marks.archived.timestamp_ns
            if progress.marks.archived
            else None,
            archive_epoch=(archive.archive_epoch or 0) if archive else 0,
            archive_broken_seq=shard.archiver.open_gap_seq,
            recovered=shard.recovered,
            lapped=shard.lapped + (session.capture.counters.laps if session else 0),
            regressed=shard.regressed,
            journal_bytes=progress.marks.waiting_bytes,
            error=shard.error,
            writer=self._node.author.node_id,
            applied_seq=progress.final_seq,
            **self._node.proofs.told(shard.shard),
        )

    def _worst_case_loss_ms(self, shard: Shard, lag_ms: float) -> float:
        """Return how much would be lost with the host now: the lag, and what may come unseen."""
        session = shard.session
        if session is None or not session.is_live or not session.capture.has_news():
            return lag_ms
        return max(lag_ms, (time.monotonic() - session.follower.polled_s) * 1_000)

    def _archive_sentence(self, shard: Shard, archive: ArchiveFacts | None) -> str:
        """Return what is wrong with the shard's archive, or what it waits for."""
        if self._node.store is None:
            return "off"
        archiver = shard.archiver
        upkeep = archiver.upkeep
        error = archiver.error or (archive.last_error if archive is not None else None)
        sentence = error or _OK
        if error is not None:
            pass
        elif (holder := archive.waits_for if archive else archiver.waits_for) is not None:
            sentence = f"waits until the lease of {holder} has stood still for 30 s"
        elif archive is None or not archiver.is_compared:
            sentence = "not compared with the journal yet"
        elif not archiver.is_restorable and shard.progress.archived_seq:
            why = upkeep.error if upkeep is not None else None
            sentence = "waits for a snapshot, and cannot be restored before"
            sentence += f": {why}" if why else ""
        return sentence

    def node_metrics(self) -> NodeMetrics:
        """Return what a scrape shows of the node now."""
        for shard in self._supervisor.shards.values():
            if shard.session is not None:
                shard.session.note_lock_held()
        return NodeMetrics(
            now_ns=time.time_ns(),
            shards_opened=self._supervisor.opened,
            membership_size=1,
            journal_bytes=self._keeper.journal_bytes,
            ready=not self._reasons(),
            lock_held={name: held.get_sample() for name, held in self._node.lock_held.items()},
            store_calls=self._node.store_usage.calls,
            store_written_bytes=self._node.store_usage.written_bytes,
            store_read_bytes=self._node.store_usage.read_bytes,
            clock_step_s=self._node.wall_clock.step_seconds,
        )

    def shard_metrics(self, shard: str) -> ShardMetrics:
        """Return what a scrape shows of one shard now; raise `NotFoundError` for an unknown id."""
        return self._measure(self._find(shard))

    def _measure(self, shard: Shard) -> ShardMetrics:
        session, archive = shard.session, shard.archiver.facts()
        totals, troubles = shard.totals(), shard.archiver.troubles
        lag_commits, lag_bytes = session.measure_lag() if session is not None else (0, 0)
        return ShardMetrics(
            status=self._count(shard, archive),
            frames_submitted=totals["submitted"],
            frames_finalized=totals["finalized"],
            wal_bytes_captured=totals["wal_bytes"],
            capture_errors=totals["capture_errors"],
            capture_lag_commits=lag_commits,
            wal_lag_bytes=lag_bytes,
            archive_failures=(archive.failures if archive else 0) + troubles.failures,
            backlog_drops=shard.archiver.dropped,
            lease_contentions=troubles.lease_contentions,
            leases_lost=troubles.leases_lost,
            archive_losses=troubles.archive_losses,
            retention_watched_s=shard.archiver.upkeep.watched_s if shard.archiver.upkeep else None,
            proof_failures=self._node.proofs.failures.get(shard.shard, 0),
            proof_seconds=self._node.proofs.of(shard.shard).seconds or None,
        )

    async def command(self, shard: str, command: MembersCommand) -> str:
        """Refuse: a standalone node has no members to change; see `Surface`."""
        self._find(shard)
        raise UsageError(
            f"this node is standalone, so there is nothing for members {command.verb} to change: "
            "set BASE_NETWORK=quasar on every node first."
        )

    async def reset(self, shard: str, command: ResetCommand) -> str:
        """Refuse: what counts in standalone is the file; see `Surface`."""
        self._find(shard)
        raise UsageError(
            f"this node is standalone, so the file counts, and what differs is captured: to keep "
            f"{command.keep} is a question of clusters. To go back, stop the application and "
            "basenet, and use `basenet restore`."
        )

    async def check_health(self) -> None:
        """Return when the journal answered; raise `UnavailableError` when it cannot."""
        await self._node.journalist.check_health()

    async def wait(
        self,
        shard: str,
        seq: Seq | None,
        level: Level,
        timeout_s: float,
        generation: str | None = None,
    ) -> WaitResult:
        """Return once the shard is archived or final up to ``seq``; see `Surface`."""
        found = self._find(shard)
        if generation is not None:
            raise Orphaned(
                f"shard {shard} has no generations, since this node is alone now: whether what was "
                f"committed in {generation[:64]} is still there only the database tells."
            )
        if level is Level.ARCHIVED and self._node.store is None:
            raise UsageError(
                "BASE_ARCHIVE is off, so nothing is archived: wait with --level final."
            )
        progress = found.progress
        reached, target = Seq(0), seq or Seq(0)
        with trio.move_on_after(timeout_s):
            while True:
                target = Seq(await found.capture_now()) if seq is None else seq
                lineage = _lineage_of(found)
                await self._reach(found, target, level)
                # A child lineage that began meanwhile may bring more: what differs from its parent.
                if seq is not None or _lineage_of(found) == lineage:
                    break
            reached = target
        if not reached and seq != 0:
            at = progress.archived_seq if level is Level.ARCHIVED else progress.final_seq
            facts = found.archiver.facts()
            archive = self._archive_sentence(found, facts) if level is Level.ARCHIVED else _OK
            raise NotCaughtUp(
                f"shard {shard} is {level.value} up to seq {at} after {timeout_s:g} s, not up to "
                f"{seq if seq is not None else 'the present commit'}"
                + (f": {archive.rstrip('.')}." if archive != _OK else "."),
                target_seq=target or None,
            )
        return WaitResult(
            shard=found.shard,
            seq=reached,
            lineage=_lineage_of(found),
            level=level,
            archived_seq=progress.archived_seq,
            final_seq=progress.final_seq,
        )

    async def _reach(self, shard: Shard, target: Seq, level: Level) -> None:
        """Return once ``target`` is reached; if archived, once it was seen in the archive."""
        progress = shard.progress
        if level is not Level.ARCHIVED:
            await progress.wait_for(
                Watermark.FINAL, target, lambda: self._is_reached(shard, target, level)
            )
            return
        while True:
            # Not for the watermark alone: the archive must have been looked at, too.
            await progress.wait_until(lambda: self._is_reached(shard, target, level))
            if not target or await shard.archiver.confirm():
                return

    def _is_reached(self, shard: Shard, target: Seq, level: Level) -> bool:
        progress = shard.progress
        # What is final here came out of the file, so the file holds it.
        if level is not Level.ARCHIVED and progress.final_seq >= target:
            return True
        # What lies in the archive is safe once a restore can begin there; and what the journal
        # remembers of it counts once the archive was asked.
        is_restorable = shard.archiver.is_compared and shard.archiver.is_restorable
        if progress.archived_seq >= target and (is_restorable or not target):
            return True
        require_going_on(shard, is_stopping=self.is_stopping)
        return False


def _lineage_of(shard: Shard) -> str:
    return shard.record.lineage.hex() if shard.record else ""


def _oldest(*moments_ns: int | None) -> int | None:
    return min((moment for moment in moments_ns if moment is not None), default=None)
