"""The answers of a cluster node to what the control room asks: `control.surface.Surface`."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

import trio
from msgspec import structs

from basenet import __version__
from basenet.config.model import NodeRole
from basenet.control.members import MembersCommand
from basenet.control.reset import ResetCommand
from basenet.control.surface import (
    FenceState,
    Level,
    Member,
    NodeMetrics,
    NodeStatus,
    NotCaughtUp,
    Orphaned,
    ShardMember,
    ShardMetrics,
    ShardRole,
    ShardStatus,
    WaitResult,
)
from basenet.daemon.cluster.roles import role_of
from basenet.daemon.cluster.shard import ClusterRoom, ClusterShard
from basenet.daemon.framer import instant
from basenet.daemon.node import Node
from basenet.daemon.progress import Watermark
from basenet.daemon.troubles import require_going_on, sick_shards
from basenet.daemon.upkeep import describe_retention, find_next_snapshot_ns
from basenet.engine.placement import Membership, Peer
from basenet.engine.replica import Replica
from basenet.errors import NotFoundError, UsageError
from basenet.keys.trust import format_public
from basenet.units import Lineage, PublicKeyBytes, Seq, ShardId
from basenet.wire.payload import Voter

_WATERMARKS: Final = {
    Level.FINAL: Watermark.FINAL,
    Level.APPLIED: Watermark.APPLIED,
    Level.ARCHIVED: Watermark.ARCHIVED,
}


class ClusterFacts:
    """A cluster node's facts; satisfies `Surface`."""

    def __init__(
        self,
        node: Node,
        room: ClusterRoom,
        shards: Mapping[ShardId, ClusterShard],
    ) -> None:
        self._node = node
        self._room = room
        self._cluster = room.cluster
        self._shards = shards
        self._started_ns = time.time_ns()
        self.is_stopping = False

    # The node.

    def node_status(self) -> NodeStatus:
        """Return the node as it is now, without its shards."""
        now_ns = time.time_ns()
        reasons = self._reasons()
        config = self._node.config
        return NodeStatus(
            node_id=config.node_id,
            version=__version__,
            network=config.network.value,
            role=config.cluster.node_role.value,
            members=self._members(),
            ready=not reasons,
            reasons=reasons,
            started_ns=self._started_ns,
            now_ns=now_ns,
            uptime_s=(now_ns - self._started_ns) / 1e9,
            archive=self._node.store.url if self._node.store is not None else None,
            public_key=format_public(self._node.author.signer.public),
            clock_step_s=self._node.wall_clock.step_seconds,
        )

    def _members(self) -> list[Member]:
        members = self._cluster.members
        connected = self._cluster.connected
        me = self._cluster.me
        there = {Peer(hello.node_id, hello.key) for hello in connected.values()} | {me}
        if isinstance(members, Membership):
            there.update(members.peers)
        peers = sorted(there)
        addresses = {
            facts.peer.key: str(facts.address)
            for facts in self._cluster.status().peers
            if facts.peer is not None
        }
        return [
            Member(
                node_id=peer.node_id,
                role=(
                    self._node.config.cluster.node_role
                    if peer == me
                    else role_of(connected[peer.key])
                    if peer.key in connected
                    else NodeRole.VALIDATOR
                ).value,
                endpoint=self._cluster.find_http(peer.key),
                address=addresses.get(peer.key),
                key=peer.key.hex(),
                is_connected=peer == me or peer.key in connected,
            )
            for peer in peers
        ]

    def _reasons(self) -> list[str]:
        reasons = sick_shards(self._shards, _error_of)
        if self._node.journalist.error is not None:
            reasons.append(self._node.journalist.error)
        if self.is_stopping:
            reasons.append("basenet is shutting down")
        return reasons

    # Shards.

    def shard_ids(self) -> list[ShardId]:
        """Return the shards that there are now, in order."""
        return sorted(self._shards)

    def shard_status(self, shard: str) -> ShardStatus:
        """Return one shard as it is now; raise `NotFoundError` for an unknown id."""
        found = self._find(shard)
        counted, term, record = self._count(found), found.term, found.record
        now_ns = time.time_ns()
        if term is None or not term.is_at_work or record is None:
            return structs.replace(counted, now_ns=now_ns)
        replica = term.driver.replica
        ballot = replica.ballot
        voters = ballot.config.voters
        # Whoever writes takes the snapshots, and alone knows of them.
        upkeep = found.archiver.upkeep
        return structs.replace(
            counted,
            now_ns=now_ns,
            next_snapshot_ns=find_next_snapshot_ns(upkeep),
            last_snapshot_seq=upkeep.history.base_seq or None if upkeep is not None else None,
            epoch=ballot.epoch,
            view=ballot.view,
            generation=found.generations.present,
            archive=self._archive_sentence(found),
            retention=describe_retention(upkeep),
            writer=next((one.node_id for one in voters if one.key == replica.leader), None),
            writer_endpoint=self._find_writer(replica.leader, counted.role),
            members=self._shard_members(found.shard, record.lineage, replica, voters),
        )

    def _find(self, shard: str) -> ClusterShard:
        try:
            return self._shards[ShardId(shard)]
        except KeyError as error:
            raise NotFoundError(
                f"there is no shard {shard!r} on this node; `basenet shards` lists them."
            ) from error

    def _count(self, shard: ClusterShard) -> ShardStatus:
        """Return the status of ``shard`` without what no scrape shows and takes long."""
        term, record = shard.term, shard.record
        if term is None or not term.is_at_work or record is None:
            return ShardStatus(
                shard=shard.shard,
                path=str(shard.path),
                state=shard.state,
                lineage=shard.lineage.hex() if shard.lineage is not None else None,
                final_seq=shard.progress.final_seq,
                applied_seq=shard.applied_seq,
                role=ShardRole.LEARNER,
                fence=FenceState.NONE,
                orphans=shard.orphaned,
                error=_error_of(shard),
                **self._node.proofs.told(shard.shard),
            )
        replica, archive = term.driver.replica, shard.archiver.facts()
        tip, now = replica.tip, instant()
        until = replica.writable_until(now)
        tree = term.branch.final
        writer = term.writer
        unfinal = term.unfinal()
        role = ShardRole.REPLICA
        if replica.is_leader and until > now:
            role = ShardRole.WRITER
        elif not replica.is_voter:
            role = ShardRole.LEARNER
        elif self._node.config.cluster.node_role is NodeRole.WITNESS:
            role = ShardRole.WITNESS
        fence = term.file.fence
        state = FenceState.NONE
        if fence is not None:
            state = FenceState.CLOSED if fence.is_held else FenceState.OPEN
        return ShardStatus(
            shard=shard.shard,
            path=str(shard.path),
            state=shard.state,
            lineage=record.lineage.hex(),
            captured_local=writer.local_last if writer is not None else term.local_last,
            captured_seq=max(tip.seq, shard.progress.final_seq),
            final_seq=replica.final.height,
            archived_seq=shard.progress.archived_seq,
            archive_epoch=(archive.archive_epoch or 0) if archive is not None else 0,
            last_archived_ns=shard.progress.archived_ns,
            wal_bytes=term.file.database.wal_bytes if term.file.is_open else 0,
            db_pages=tree.db_pages,
            page_size=tree.page_size,
            last_captured_ns=tip.timestamp_ns,
            role=role,
            writable_until_ns=time.time_ns() + (until - now) if until > now else None,
            applied_seq=term.settler.applied_seq,
            unfinal_commits=unfinal.commits,
            unfinal_bytes=unfinal.bytes,
            unfinal_ms=max(0.0, (time.time_ns() - unfinal.oldest_ns) / 1e6)
            if unfinal.oldest_ns is not None
            else 0.0,
            fence=state,
            is_read_only=term.file.is_read_only,
            orphans=shard.orphaned,
            error=_error_of(shard),
            **self._node.proofs.told(shard.shard),
        )

    def _find_writer(self, leader: PublicKeyBytes, role: ShardRole) -> str | None:
        """Return the HTTP address of who leads; of this node only while it may write."""
        if leader == self._cluster.me.key and role is not ShardRole.WRITER:
            return None
        return self._cluster.find_http(leader)

    def _archive_sentence(self, shard: ClusterShard) -> str:
        """Return how archiving goes: by this node if it writes, or by the one that does."""
        if self._node.store is None:
            return "off"
        facts = shard.archiver.facts()
        return shard.archiver.error or (facts.last_error if facts is not None else None) or "ok"

    def _shard_members(
        self, shard: ShardId, lineage: Lineage, replica: Replica, voters: Sequence[Voter]
    ) -> tuple[ShardMember, ...]:
        """Return the voters in their order, then who else is there."""
        connected, me = self._cluster.connected, self._cluster.me
        told = self._cluster.heights.find(shard, lineage)
        heights = {**replica.learners, **told, me.key: replica.final.height}
        members = [
            ShardMember(
                node_id=voter.node_id,
                key=voter.key.hex(),
                role=voter.role.name.lower(),
                is_connected=voter.key == me.key or voter.key in connected,
                final_seq=heights.get(voter.key),
            )
            for voter in voters
        ]
        names = {hello.key: hello.node_id for hello in connected.values()} | {me.key: me.node_id}
        keys = {voter.key for voter in voters}
        members += [
            ShardMember(
                node_id=name,
                key=key.hex(),
                is_voter=False,
                role="learner",
                final_seq=heights.get(key),
            )
            for key, name in sorted(names.items(), key=lambda item: item[1])
            if key not in keys
        ]
        return tuple(members)

    def node_metrics(self) -> NodeMetrics:
        """Return what a scrape shows of the node now."""
        members = self._cluster.members
        return NodeMetrics(
            now_ns=time.time_ns(),
            shards_opened=len(self._shards),
            membership_size=len(members.peers) if isinstance(members, Membership) else 0,
            journal_bytes=self._node.journalist.journal.count_bytes(),
            ready=not self._reasons(),
            lock_held={},
            fence_wait=self._room.guard.fence_wait.get_sample(),
            loop_stall=self._cluster.loop_stall.get_sample(),
            journal_rollbacks=self._cluster.tally.rollbacks,
            network_dropped=self._cluster.tally.by_loss(),
            store_calls=self._node.store_usage.calls,
            store_written_bytes=self._node.store_usage.written_bytes,
            store_read_bytes=self._node.store_usage.read_bytes,
            clock_step_s=self._node.wall_clock.step_seconds,
        )

    def shard_metrics(self, shard: str) -> ShardMetrics:
        """Return what a scrape shows of one shard now; raise `NotFoundError` for an unknown id."""
        return self._measure(self._find(shard))

    def _measure(self, shard: ClusterShard) -> ShardMetrics:
        archive, troubles = shard.archiver.facts(), shard.archiver.troubles
        return ShardMetrics(
            status=self._count(shard),
            frames_submitted=shard.submitted,
            frames_finalized=shard.finalized,
            frames_ingested=shard.intake.ingested,
            frames_duplicate=shard.intake.duplicate,
            frames_invalid=shard.intake.invalid,
            frames_rejected_shard_mismatch=shard.intake.shard_mismatch,
            frames_rejected_seq_gap=shard.intake.seq_gap,
            signatures_invalid=shard.intake.forged,
            apply_errors=shard.intake.unapplied,
            write_leases_lost=self._room.gates.leases_lost[shard.shard],
            retention_watched_s=shard.archiver.upkeep.watched_s if shard.archiver.upkeep else None,
            proof_failures=self._node.proofs.failures.get(shard.shard, 0),
            proof_seconds=self._node.proofs.of(shard.shard).seconds or None,
            archive_failures=(archive.failures if archive else 0) + troubles.failures,
            lease_contentions=troubles.lease_contentions,
            leases_lost=troubles.leases_lost,
            archive_losses=troubles.archive_losses,
        )

    async def check_health(self) -> None:
        """Return when the journal answered; raise `UnavailableError` when it cannot."""
        await self._node.journalist.check_health()

    # Waits and commands.

    async def wait(
        self,
        shard: str,
        seq: Seq | None,
        level: Level,
        timeout_s: float,
        generation: str | None = None,
    ) -> WaitResult:
        """Return once the shard is archived, final or applied up to ``seq``; see `Surface`."""
        found = self._find(shard)
        if level is Level.ARCHIVED and self._node.store is None:
            raise UsageError(
                "BASE_ARCHIVE is off, so nothing is archived: wait with --level final."
            )
        target: Seq | None = seq
        with trio.move_on_after(timeout_s):
            if seq is not None:
                # Who names a seq means the chain's, whichever node's commits it holds in the end.
                await found.generations.require(generation)
                mark = _WATERMARKS[level]
                await found.progress.wait_for(
                    mark, seq, lambda: self._is_reached(found, seq, level)
                )
            orphaned, is_reached = found.orphaned, seq is not None
            while not is_reached:
                target = goal = await found.capture_now(generation)
                is_reached = await self._reach(found, goal, level, orphaned)
            assert target is not None, "reached, and not known what"
            return WaitResult(
                shard=found.shard,
                seq=target,
                generation=found.generations.present,
                lineage=found.lineage.hex() if found.lineage else "",
                level=level,
                archived_seq=found.progress.archived_seq,
                final_seq=found.progress.final_seq,
            )
        at = self._reached(found, level)
        raise NotCaughtUp(
            f"shard {shard} is {level.value} up to seq {at} after {timeout_s:g} s, not up to "
            f"{target if target is not None else 'the present commit'}.",
            target_seq=target,
        )

    def _reached(self, shard: ClusterShard, level: Level) -> Seq:
        progress = shard.progress
        if level is Level.ARCHIVED:
            return progress.archived_seq
        if level is Level.APPLIED:
            return shard.term.settler.applied_seq if shard.term is not None else Seq(0)
        return progress.final_seq

    async def _reach(self, shard: ClusterShard, target: Seq, level: Level, orphaned: int) -> bool:
        """Return True once ``target`` is reached; False if what was captured got another seq.

        ``orphaned``: how many bundles there were when what is waited for was captured.
        """
        term, is_reached = shard.term, False

        def look() -> bool:
            nonlocal is_reached
            if shard.orphaned != orphaned and target > shard.kept_seq:
                raise Orphaned(
                    f"commits of shard {shard.shard} above seq {shard.kept_seq} lost against "
                    "another node's: `basenet orphans list` shows them."
                )
            is_reached = self._is_reached(shard, target, level)
            # What was sealed and not yet durable when a term failed is sealed anew.
            return is_reached or shard.term is not term

        await shard.progress.wait_for(_WATERMARKS[level], target, look)
        return is_reached

    def _is_reached(self, shard: ClusterShard, target: Seq, level: Level) -> bool:
        if self._reached(shard, level) >= target:
            return True
        require_going_on(shard, is_stopping=self.is_stopping)
        return False

    async def command(self, shard: str, command: MembersCommand) -> str:
        """Do what the operator asks of a shard's members; return what was begun."""
        return await self._find(shard).command(command)

    async def reset(self, shard: str, command: ResetCommand) -> str:
        """Let a shard's file or its chain count, as the operator says; return what was done."""
        return await self._find(shard).resetter.perform(command)


def _error_of(shard: ClusterShard) -> str | None:
    """Return what is wrong with ``shard``, or what it waits for before it is born."""
    term, record = shard.term, shard.record
    if term is None or not term.is_at_work or record is None:
        return shard.error or (None if record else shard.birth.status)
    return term.repair.problem or shard.error
