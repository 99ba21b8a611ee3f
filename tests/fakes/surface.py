"""`FakeSurface`: a daemon's answers without a daemon. Facts are set, waits are granted by hand."""

import threading
from typing import Any

import msgspec
import trio

from basenet.control.members import MembersCommand
from basenet.control.reset import ResetCommand
from basenet.control.surface import (
    HistogramSample,
    Level,
    Member,
    NodeMetrics,
    NodeStatus,
    NotCaughtUp,
    Orphaned,
    ShardMetrics,
    ShardState,
    ShardStatus,
    WaitResult,
)
from basenet.errors import NotFoundError
from basenet.units import Seq, ShardId

NOW_NS = 1_795_000_000_000_000_000
LINEAGE = "00112233445566778899aabbccddeeff"


def make_shard(shard: str = "app", **changes: Any) -> ShardStatus:
    """Return a shard that captures, with ten commits of which eight are archived."""
    status = ShardStatus(
        shard=ShardId(shard),
        path=f"/data/{shard}.db",
        state=ShardState.CAPTURING,
        lineage=LINEAGE,
        epoch=1,
        captured_local=10,
        captured_seq=11,
        final_seq=11,
        archived_seq=9,
        lag_commits=2,
        lag_bytes=8192,
        lag_ms=350.0,
        worst_case_loss_ms=360.0,
        wal_bytes=123_456,
        db_pages=100,
        page_size=4096,
        last_captured_ns=NOW_NS - 1_000_000,
        last_archived_ns=NOW_NS - 400_000_000,
        next_snapshot_ns=NOW_NS + 3_600_000_000_000,
        last_snapshot_seq=1,
        last_restore_point_ns=NOW_NS - 500_000_000,
        archive="ok",
        archive_epoch=3,
        proof="ok: seq 5 was restored",
        proof_verified_ns=NOW_NS - 7_200_000_000_000,
        proof_seq=5,
        recovered=1,
        lapped=2,
        journal_bytes=65_536,
        now_ns=NOW_NS,
    )
    return msgspec.structs.replace(status, **changes)


class FakeSurface:
    """Answers from attributes that a test sets.

    A wait is recorded in ``waits`` (its generation in ``generations``) and granted at once when its
    seq is archived or final already; else it ends with `grant`, with its time-out, or by being
    cancelled (``cancelled_waits``).
    """

    def __init__(self, *shards: ShardStatus) -> None:
        self.shards = list(shards)
        self._places: dict[str, int] = {}
        self.ready = True
        self.reasons: tuple[str, ...] = ()
        self.archive: str | None = "file:///archive"
        self.network = "standalone"
        self.clock_step_s = 0.0
        self.health_error: Exception | None = None
        self.health_hangs = False
        self.metrics_error: Exception | None = None
        self.lock_held: dict[str, HistogramSample] = {}
        self.network_dropped = {"refused": 2, "wrong": 1}
        self.shard_counters: dict[str, Any] = {}
        self.waits: list[tuple[str, int | None, Level, float]] = []
        self.generations: list[str | None] = []
        self.wait_error: Exception | None = None
        self.commands: list[tuple[str, MembersCommand]] = []
        self.command_error: Exception | None = None
        self.resets: list[tuple[str, ResetCommand]] = []
        self.histograms: dict[str, HistogramSample] = {}
        self.members: tuple[Member, ...] = (
            Member(node_id="node-a", role="validator", endpoint="127.0.0.1:8090"),
        )
        self.cancelled_waits = 0
        self.wait_began = trio.Event()
        self.wait_cancelled = trio.Event()
        self.wait_began_for_threads = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._granted = trio.Event()

    def node_status(self) -> NodeStatus:
        return NodeStatus(
            node_id="node-a",
            version="0.1.0",
            network=self.network,
            role="validator",
            members=self.members,
            ready=self.ready,
            reasons=self.reasons,
            started_ns=NOW_NS - 60_000_000_000,
            now_ns=NOW_NS,
            uptime_s=60.0,
            archive=self.archive,
            clock_step_s=self.clock_step_s,
        )

    def shard_status(self, shard: str) -> ShardStatus:
        place = self._places.get(shard, -1)
        if not 0 <= place < len(self.shards) or self.shards[place].shard != shard:
            self._places = {status.shard: place for place, status in enumerate(self.shards)}
            place = self._places.get(shard, -1)
        if place >= 0:
            return self.shards[place]
        raise NotFoundError(f"there is no shard {shard!r} here: `basenet shards` lists them")

    def shard_ids(self) -> list[ShardId]:
        return [status.shard for status in self.shards]

    def shard_metrics(self, shard: str) -> ShardMetrics:
        return ShardMetrics(status=self.shard_status(shard), **self.shard_counters)

    def node_metrics(self) -> NodeMetrics:
        if self.metrics_error is not None:
            raise self.metrics_error
        return NodeMetrics(
            now_ns=NOW_NS,
            shards_opened=len(self.shards),
            membership_size=1,
            journal_bytes=131_072,
            ready=self.ready,
            lock_held=self.lock_held,
            network_dropped=self.network_dropped,
            store_calls={"put": 7, "list": 1},
            store_written_bytes=700,
            store_read_bytes=30,
            **self.histograms,
        )

    async def check_health(self) -> None:
        if self.health_hangs:
            await trio.sleep_forever()
        if self.health_error is not None:
            raise self.health_error

    def grant(self) -> None:
        """Let every wait that is pending end well."""
        self._granted.set()

    def grant_from_thread(self) -> None:
        """Do what `grant` does, from another thread than the server's, while a wait is pending."""
        assert self._token is not None, "nobody waits"
        self._token.run_sync_soon(self.grant)

    async def wait(
        self,
        shard: str,
        seq: Seq | None,
        level: Level,
        timeout_s: float,
        generation: str | None = None,
    ) -> WaitResult:
        status = self.shard_status(shard)
        self.waits.append((shard, seq, level, timeout_s))
        self.generations.append(generation)
        if generation not in (None, status.generation):
            raise Orphaned(f"generation {generation} has passed", bundles=["app/9-8"])
        if self.wait_error is not None:
            raise self.wait_error
        target = status.captured_seq if seq is None else seq
        reached = {
            Level.ARCHIVED: status.archived_seq,
            Level.FINAL: status.final_seq,
            Level.APPLIED: status.applied_seq,
        }[level]
        if target > reached:
            await self._wait_for_grant(shard, target, level, timeout_s)
            status = self.shard_status(shard)
        return WaitResult(
            shard=status.shard,
            seq=Seq(target),
            lineage=LINEAGE,
            level=level,
            archived_seq=max(status.archived_seq, target),
            final_seq=status.final_seq,
            generation=status.generation,
        )

    async def _wait_for_grant(
        self, shard: str, target: int, level: Level, timeout_s: float
    ) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.wait_began.set()
        self.wait_began_for_threads.set()
        try:
            with trio.fail_after(timeout_s):
                await self._granted.wait()
        except trio.TooSlowError as error:
            raise NotCaughtUp(
                f"shard {shard} was not {level} up to {target} within {timeout_s:g} s",
                target_seq=target,
            ) from error
        except trio.Cancelled:
            self.cancelled_waits += 1
            self.wait_cancelled.set()
            raise

    async def reset(self, shard: str, command: ResetCommand) -> str:
        self.shard_status(shard)
        self.resets.append((shard, command))
        if self.command_error is not None:
            raise self.command_error
        return f"{command.keep} counts for {shard}"

    async def command(self, shard: str, command: MembersCommand) -> str:
        self.shard_status(shard)
        self.commands.append((shard, command))
        if self.command_error is not None:
            raise self.command_error
        return f"{command.verb} was done to {shard}"
