"""Shipping one shard's frames to the archive, in order and without end.

Theory of operation
===================

*One object at a time.* Log objects of a shard are written strictly one after the other, so what
is archived is always a prefix of the log: an archive whose writer vanished has an end, not holes.
Shards know nothing of each other; each has its own `Uploader` and its own task.

*When.* The first frame after a pause goes at once; frames that follow within the flush interval
wait for its end and go together, cut into segments; more than `waiting_bytes_max` never wait. So a
lone commit is archived in milliseconds, the number of writes is bounded by one per interval and one
per 4 MiB, and an application that writes as fast as it can has the processor for itself for that
long: sealing and storing costs as much of it as all that precedes::

      commit  c1        c2 c3 c4                     c5 (after a pause)
      object  [c1]                [c2 c3 c4]         [c5]
              |<-- flush interval -->|

*Trying again.* An object is sealed from the waiting frames and written with `put_if_absent`. While
the store is out of reach, or refuses us, the same object is tried again after growing pauses. When
`retry_deadline_seconds` have passed, the attempt gives up: it lets go of the memory, and the next
cycle takes the same frames to the same object. A write that was not answered is undecided and may
still happen, hence the same object: it will then be found equal. What is large has one attempt a
cycle, in its turn among the node's shards (`basenet.archive.turns`).

*Who may.* The lease is made sure of before each write. Its loss ends this shard's archive with
`LeaseLost`. Other frames under our numbers end it with `TwoHistories`. Both leave `run` as
errors; everything else is tried again for ever, and shown.

*What follows.* After each object `on_archived` is awaited, so that the daemon can move the
watermark, prune the journal and wake who waits; then TIP is told.
"""

from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

import trio

from basenet.archive.backlog import Backlog, Batch, FrameSource
from basenet.archive.backoff import PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX, Backoff
from basenet.archive.clock import SYSTEM_CLOCK, Clock
from basenet.archive.lease import Lease
from basenet.archive.patience import LEASE_SECONDS, in_time, seconds_for
from basenet.archive.port import Store, StoreConflict, StoreNotFound
from basenet.archive.seal import Seal, SealedLog, check_same_frames, seal_log
from basenet.archive.tip import TipWriter
from basenet.archive.turns import LARGE_BYTES_MIN, Turns
from basenet.errors import BasenetError, NotFoundError, UnavailableError, UsageError
from basenet.units import KIB, SEGMENT_TARGET_BYTES, Seq, TimestampNs
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Head

# Below this, sealing costs less than handing it to a thread.
_INLINE_BYTES_MAX: Final = 64 * KIB

# They lie in the journal meanwhile, not in memory.
WAITING_BYTES_MAX: Final = 32 * SEGMENT_TARGET_BYTES

# A courtesy to the successor, which a store that hangs must not make a stop wait for.
_RELEASE_SECONDS: Final = 5.0
_Result = TypeVar("_Result")


class ArchiveState(StrEnum):
    """What a shard's archive is doing."""

    IDLE = "idle"
    SHIPPING = "shipping"
    RETRYING = "retrying"
    REFUSED = "refused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSettings:
    """How a shard ships: see the top of this file."""

    flush_interval_seconds: float = 1.0
    waiting_bytes_max: int = WAITING_BYTES_MAX
    segment_target_bytes: int = SEGMENT_TARGET_BYTES
    retry_deadline_seconds: float = 300.0
    pause_seconds_first: float = PAUSE_SECONDS_FIRST
    pause_seconds_max: float = PAUSE_SECONDS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFacts:
    """Where a shard's archive stands, for status and metrics. Times are of the day, in ns.

    ``lag_oldest_ns``: the timestamp of the oldest frame that is not archived; None: all are.
    ``last_error``: the sentence of the failure that is being retried or that ended the archive.
    ``puts`` and ``put_bytes`` count log objects that were written, ``tip_puts`` TIPs.
    ``last_name``: the newest log object. ``waits_for``: whose lease has to run out first.
    """

    state: ArchiveState
    archived_seq: Seq
    lag_frames: int
    lag_bytes: int
    lag_oldest_ns: TimestampNs | None
    last_success_ns: int | None
    failures: int
    last_error: str | None
    puts: int
    put_bytes: int
    tip_seq: Seq
    tip_puts: int
    tip_error: str | None
    archive_epoch: int | None
    last_name: str | None = None
    waits_for: str | None = None


OnArchived = Callable[[Seq, int], Awaitable[None]]
"""Awaited with the archived seq and the time of day in ns; what it raises ends the archive."""


OnStored = Callable[[SealedLog, int], None]
"""Called with each log object that is in the archive now, and with the bytes of its frames."""


Prove = Callable[[Batch], Awaitable[Batch]]
"""Returns a batch with what proves it final, longer or shorter so that it ends where a proof is."""


class Uploader:
    """Ships the frames of one shard in one lineage."""

    def __init__(
        self,
        *,
        store: Store,
        seal: Seal,
        lease: Lease,
        tip: TipWriter,
        backlog: Backlog,
        source: FrameSource,
        on_archived: OnArchived,
        trusted: AbstractSet[bytes],
        settings: UploadSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        prove: Prove | None = None,
        on_stored: OnStored | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Take over ``backlog``; ``trusted`` are the keys whose objects are believed."""
        self._turns = turns or Turns()
        self._prove = prove
        self._on_stored = on_stored
        self._store = store
        self._seal = seal
        self._lease = lease
        self._tip = tip
        self._backlog = backlog
        self._source = source
        self._on_archived = on_archived
        self._trusted = trusted
        self._settings = settings or UploadSettings()
        self._clock = clock
        self._backoff = Backoff(
            first_seconds=self._settings.pause_seconds_first,
            max_seconds=self._settings.pause_seconds_max,
        )
        self._archived_seq = Seq(backlog.next_seq - 1)
        self._state = ArchiveState.IDLE
        self._wake = trio.Event()
        self._progress = trio.Event()
        self._flushes = 0  # how many `flush` calls wait
        self._flush_at = float("-inf")  # when the frames may go that wait then
        self._due_to = Seq(0)  # the last of those that may go now
        self._pending_end: Seq | None = None  # the end of an object that is undecided
        self._pending_size = 0  # the bytes of its frames
        self._last_success_ns: int | None = None
        self._failures = 0
        self._last_error: str | None = None
        self._last_name: str | None = None
        self._puts = 0
        self._put_bytes = 0

    @property
    def is_undecided(self) -> bool:
        """Whether a write of ours may still reach the store."""
        return self._pending_end is not None

    def append(self, head: Head, encoded: bytes) -> None:
        """Take in the next final frame."""
        was_empty = not self._backlog.count
        self._backlog.append(seq=head.seq, timestamp_ns=head.timestamp_ns, encoded=encoded)
        if was_empty or self._backlog.size >= self._settings.waiting_bytes_max:
            self._wake.set()

    def append_stored(self, head: Head, size: int) -> None:
        """Take in the next final frame, of ``size`` bytes, which is read from the journal later."""
        self._backlog.adopt(end=head.seq, size=size, oldest_ns=head.timestamp_ns)
        self._wake.set()

    def offer_tip(self, head: Head) -> None:
        """Say that everything up to ``head`` is archived already, and that there is no TIP."""
        self._tip.offer(head)

    def skip(self, to_seq: Seq) -> int:
        """Give up the waiting frames up to ``to_seq``, which the journal dropped; return how many.

        The log then has a gap, and only a snapshot at or above ``to_seq`` ends it (P27).
        """
        count = self._backlog.skip(to_seq)
        if self._pending_end is not None and self._pending_end < self._backlog.next_seq:
            self._pending_end = None
        return count

    def facts(self) -> ArchiveFacts:
        """Return where the archive stands."""
        return ArchiveFacts(
            state=self._state,
            archived_seq=self._archived_seq,
            lag_frames=self._backlog.count,
            lag_bytes=self._backlog.size,
            lag_oldest_ns=self._backlog.oldest_ns,
            last_success_ns=self._last_success_ns,
            failures=self._failures,
            last_error=self._last_error,
            puts=self._puts,
            put_bytes=self._put_bytes,
            tip_seq=self._tip.written_seq,
            tip_puts=self._tip.puts,
            tip_error=self._tip.last_error,
            archive_epoch=self._lease.archive_epoch,
            last_name=self._last_name,
            waits_for=self._lease.waits_for,
        )

    async def run(self) -> None:
        """Ship until cancelled. Raises `ConflictError` or `CorruptionError` when it is over."""
        failure: BasenetError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tip.run)
            try:
                await self._ship_forever()
            except BasenetError as error:
                failure = error
                self._state = ArchiveState.STOPPED
                self._last_error = str(error)
                self._progress.set()
            nursery.cancel_scope.cancel()
        assert failure is not None, "shipping ends only by an error or by cancellation"
        raise failure

    async def flush(self, timeout_seconds: float) -> bool:
        """Ship all that waits now, without regard to intervals and pauses, then write TIP.

        Returns whether everything is archived and covered by TIP. `run` must be running.
        """
        target = self._backlog.tip_seq
        self._flushes += 1
        self._wake.set()
        try:
            with trio.move_on_after(timeout_seconds):
                while self._backlog.next_seq <= target and self._state != ArchiveState.STOPPED:
                    await self._progress.wait()
                return self._backlog.next_seq > target and await self._tip.write()
        finally:
            self._flushes -= 1
        return False

    async def close(self, timeout_seconds: float) -> bool:
        """Flush, then release the lease if nothing of ours can still arrive; never raises."""
        is_whole = await self.flush(timeout_seconds)
        if is_whole and not self.is_undecided:
            with trio.move_on_after(_RELEASE_SECONDS):
                try:
                    await self._lease.release()
                except BasenetError as error:
                    # The lease then runs out by itself: a successor waits, and nothing is lost.
                    self._last_error = str(error)
        return is_whole

    async def _ship_forever(self) -> None:
        while True:
            await self._wait_until_due()
            if trio.current_time() >= self._flush_at or self._flushes:
                self._due_to = self._backlog.tip_seq
                self._flush_at = trio.current_time() + self._settings.flush_interval_seconds
            if self._foresee_size() < LARGE_BYTES_MIN:
                pause_s = await self._ship_next(self._settings.retry_deadline_seconds)
            else:
                pause_s = await self._ship_in_turn()
            if pause_s:  # and a cycle that failed holds no memory while it waits
                await self._pause(pause_s)

    def _foresee_size(self) -> int:
        """Return about how many bytes of frames the next object has."""
        if self._pending_end is not None:
            return self._pending_size
        return min(self._backlog.size, self._settings.segment_target_bytes)

    async def _ship_in_turn(self) -> float:
        """Do as `_ship_next` does, once, when the node's other shards leave room for it."""
        self._state = ArchiveState.SHIPPING if self._state == ArchiveState.IDLE else self._state
        try:
            # Waiting for another's lease to run out takes long, and needs no memory.
            await self._ensure_lease()
        except (UnavailableError, UsageError, NotFoundError) as error:
            self._note_failure(error)
            return self._backoff.next_seconds()
        async with self._turns.turn():
            return await self._ship_next(0)

    async def _ensure_lease(self) -> int:
        """Return the archive epoch of our lease; another's is waited for."""
        # Ours is a request or two.
        lease_s = seconds_for(0) if self._lease.is_held else LEASE_SECONDS
        return await self._in_time(self._lease.ensure, lease_s)

    async def _ship_next(self, patience_s: float) -> float:
        """Ship the first waiting frames; return for how long to pause, 0 if it succeeded."""
        batch = await self._backlog.read_batch(
            self._source,
            bytes_max=self._settings.segment_target_bytes,
            end_max=self._pending_end,
        )
        if batch is None:
            return 0
        if self._prove is not None:
            batch = await self._prove(batch)
        if self._state == ArchiveState.IDLE:
            self._state = ArchiveState.SHIPPING
        if not await self._ship(batch, patience_s):
            return (
                self._settings.pause_seconds_max / 2 if patience_s else self._backoff.next_seconds()
            )
        if not self._backlog.count:
            self._state = ArchiveState.IDLE
        return 0

    async def _wait_until_due(self) -> None:
        while not self._is_due():
            self._wake = trio.Event()
            deadline = self._flush_at if self._backlog.count else float("inf")
            with trio.move_on_at(deadline):
                await self._wake.wait()

    def _is_due(self) -> bool:
        if not self._backlog.count:
            return False
        is_begun = self._backlog.next_seq <= self._due_to
        is_much = self._backlog.size >= self._settings.waiting_bytes_max
        return is_begun or is_much or self._flushes > 0 or trio.current_time() >= self._flush_at

    async def _ship(self, batch: Batch, patience_s: float) -> bool:
        """Try to archive ``batch`` until ``patience_s`` have passed, at least once: one cycle."""
        gives_up_at = trio.current_time() + patience_s
        self._pending_end, self._pending_size = batch.end, batch.size
        sealed: SealedLog | None = None
        while True:
            try:
                archive_epoch = await self._ensure_lease()
                if sealed is None or sealed.archive_epoch != archive_epoch:
                    sealed = await self._seal_log(batch, archive_epoch)
                await self._put(batch, sealed)
            except (UnavailableError, UsageError, NotFoundError) as error:
                self._note_failure(error)
            else:
                await self._note_archived(batch, sealed)
                return True
            if trio.current_time() >= gives_up_at:
                return False
            await self._pause(self._backoff.next_seconds())

    async def _seal_log(self, batch: Batch, archive_epoch: int) -> SealedLog:
        if batch.size <= _INLINE_BYTES_MAX:
            return seal_log(batch, self._seal, archive_epoch)
        return await trio.to_thread.run_sync(seal_log, batch, self._seal, archive_epoch)

    async def _put(self, batch: Batch, sealed: SealedLog) -> None:
        async def put() -> None:
            await self._store.put_if_absent(sealed.name, sealed.data)

        try:
            await self._in_time(put, seconds_for(len(sealed.data)))
        except StoreConflict:
            await self._compare(batch, sealed)
        else:
            self._puts += 1
            self._put_bytes += len(sealed.data)

    async def _compare(self, batch: Batch, sealed: SealedLog) -> None:
        """Look at the object that has our object's name and not its bytes."""

        async def get() -> bytes:
            return await self._store.get_data(sealed.name)

        try:
            stored = await self._in_time(get, seconds_for(len(sealed.data)))
        except StoreNotFound as error:
            raise UnavailableError(
                f"object {sealed.name} was there and then was not: is the archive being deleted?"
            ) from error
        if batch.size <= _INLINE_BYTES_MAX:
            check_same_frames(batch, sealed, stored, self._trusted)
            return
        await trio.to_thread.run_sync(check_same_frames, batch, sealed, stored, self._trusted)

    async def _in_time(self, call: Callable[[], Awaitable[_Result]], seconds: float) -> _Result:
        return await in_time(
            call,
            seconds=min(seconds, self._settings.retry_deadline_seconds),
            url=self._store.url,
        )

    async def _note_archived(self, batch: Batch, sealed: SealedLog) -> None:
        now_ns = self._clock.wall_ns()
        self._backlog.remove(batch, last_ns=sealed.last_ns)
        self._archived_seq = Seq(max(self._archived_seq, batch.end))
        self._pending_end = None
        self._last_success_ns = now_ns
        self._last_error = None
        self._last_name = sealed.name
        self._state = ArchiveState.SHIPPING
        self._backoff.reset()
        if self._on_stored is not None:
            self._on_stored(sealed, batch.size)
        await self._on_archived(self._archived_seq, now_ns)
        if sealed.tip is not None:
            self._tip.offer(sealed.tip, _proof_of(sealed.tip, batch))
        self._progress.set()
        self._progress = trio.Event()

    def _note_failure(self, error: BasenetError) -> None:
        self._failures += 1
        self._last_error = str(error)
        is_refused = isinstance(error, UsageError)
        self._state = ArchiveState.REFUSED if is_refused else ArchiveState.RETRYING

    async def _pause(self, seconds: float) -> None:
        """Wait before trying again; a flush cuts it short, but not to nothing."""
        if self._flushes:
            await trio.sleep(min(seconds, self._settings.pause_seconds_first))
            return
        with trio.move_on_after(seconds):
            self._wake = trio.Event()
            while not self._flushes:
                await self._wake.wait()
                self._wake = trio.Event()


def _proof_of(head: Head, batch: Batch) -> Certificate | None:
    """Return what proves ``head`` final among the proofs of its batch."""
    return next((proof for proof in batch.proofs if proof.hash == head.hash), None)
