"""What is final goes into the journal's log, and into the database file of a replica.

Theory of operation
===================

`Finalize` effects queue up here, and are taken in batches. One batch is one journal transaction and
at most one injection, in this order (Q13)::

    leaf hashes   the branch's final tree moves                                  (memory)
    prepare       the frames as they will stand in the -wal, and where it will end
    settle        frames join the log, leaf hashes, certificate, and the *intent*  (journal)
    inject        the -wal, synced; readers see it                                 (file)
    place         moves with the next transaction, or after a moment of rest       (journal)

Where batches come one after the other (`Rhythm`), a settle waits a moment to share the transaction
of the next vote or of the next own frames: nobody but readers of a replica waits for it.

A crash between settle and place leaves an intent that tells whether the injection happened. What
the application of this node wrote itself is in the file already: it is only settled.

The file may be behind what is settled: while it is mended, while a reader keeps the log too long,
or after a crash. Then batches are only settled, and `catch_up` brings the file there from the
journal's log.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import structlog
import trio

from basenet.daemon.cluster.branch import Branch, DecodePayload, decode_payload
from basenet.daemon.cluster.file import Prepared, ReplicaFile, encode_intent
from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.offer import FinalState
from basenet.daemon.cluster.quickly import Quickly
from basenet.daemon.cluster.rhythm import BEAT_S, Rhythm
from basenet.daemon.node import Node
from basenet.engine.effects import Finalize
from basenet.journal.journal import Journal
from basenet.journal.records import Settled
from basenet.units import KIB, MIB, FrameHash, Seq, ShardId
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, Head, Kind, decode_frame
from basenet.wire.merkle import StateTree
from basenet.wire.payload import CommitPayload

log = structlog.get_logger()

Place = tuple[Seq, FrameHash]

# A batch has one certificate, and whoever catches up gets what it proves in one message.
_BATCH_BYTES: Final = 8 * MIB
_BATCH_HEADS: Final = 1_024
# Decoding so much takes less than a thread and back.
_INLINE_BYTES: Final = 32 * KIB
_REST_S: Final = 1.0
# The file holds own frames already: settling them may share the transaction of the next ones.
_OWN_PATIENCE_S: Final = 0.005
_WAITING_BYTES_MAX: Final = 64 * MIB
_WAITING_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class SettledFrame:
    """A frame that joined the log; ``record`` is None for a piece of a run."""

    head: Head
    size: int
    record: bytes | None


OnSettled = Callable[[Sequence[SettledFrame]], None]
OnApplied = Callable[[Seq], None]


class Settler:
    """Settles and applies for one shard."""

    def __init__(
        self,
        *,
        node: Node,
        shard: ShardId,
        branch: Branch,
        frames: Frames,
        file: ReplicaFile,
        place: Place,
        final: FinalState,
        on_settled: OnSettled,
        on_applied: OnApplied,
    ) -> None:
        """``place``: what the file holds; ``final``: the last settled frame and its state."""
        self._node = node
        self._shard = shard
        self._branch = branch
        self._frames = frames
        self._file = file
        self.place = place
        self.settled: Place = (final.head.seq, final.head.hash)
        self._final: FinalState | None = final
        self._durable_place = place
        self._on_settled = on_settled
        self._on_applied = on_applied
        self._queue: deque[Finalize] = deque()
        self._news = trio.Event()
        self._moved = trio.Event()
        self.is_file_ready = True
        """Whether final frames are applied as they come; False while the file is mended."""
        self.file_lock = trio.Lock()
        # Held over a batch, so that no batch is under way when applying begins again.
        self._batch_lock = trio.Lock()
        self._rhythm = Rhythm()
        self._bytes = 0
        # Of all that was put: the last seq, how many effects, and how many of them are done.
        self._put_seq = self.settled[0]
        self._put_count = self._done_count = 0
        self.applied_frames = 0
        self.changed_groups: set[int] = set()
        """Groups of pages that were settled and not applied since `hold_back`."""

    def put(self, effect: Finalize) -> None:
        """Queue what became final."""
        self._queue.append(effect)
        self._put_seq = effect.heads[-1].seq
        self._put_count += 1
        self._bytes += _bytes_of(effect)
        self._news.set()

    @property
    def has_room(self) -> bool:
        """Whether what waits to be settled is little enough for more to be taken in."""
        return self._bytes <= _WAITING_BYTES_MAX and len(self._queue) <= _WAITING_MAX

    async def room(self) -> None:
        """Return when there `has_room`."""
        while not self.has_room:
            await self._moved.wait()

    async def drained(self) -> None:
        """Return when all that was put before is settled, and applied if the file is ready.

        What comes meanwhile is not waited for: under a steady load there is always something.
        """
        target = self._put_count
        while self._done_count < target:
            await self._moved.wait()

    async def reached(self, seq: int) -> None:
        """Return when ``seq`` is settled, however long that takes."""
        while self.settled[0] < seq:
            await self._moved.wait()

    async def settled_up_to(self, seq: int) -> None:
        """Return when ``seq`` is settled, or nothing is about to be."""
        while self.settled[0] < seq and not self.is_idle:
            await self._moved.wait()

    @property
    def final(self) -> FinalState | None:
        """What is final, with its proof, to be shown to others; None while it moves.

        It is shown before it is settled, since its certificate proves it. A CONFIG alone has to be
        in the log before: whoever takes a state of its epoch is shown the CONFIG from there.
        """
        final = self._final
        if final is None or (final.head.kind is Kind.CONFIG and final.head.seq > self.settled[0]):
            return None
        return final

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be settled, and nothing is being."""
        return self._done_count == self._put_count

    @property
    def is_caught_up(self) -> bool:
        """Whether the file holds everything that is final, settled or not.

        So a writer's file does, which holds its own frames first, while they are settled in a
        stream; one that applies what others write is hardly ever seen so.
        """
        return self.is_file_ready and self.place[0] >= max(self._put_seq, self.settled[0])

    @property
    def applied_seq(self) -> Seq:
        """The last final frame that the file holds.

        A writer's file is ahead of it by own frames, and those may still lose against others.
        """
        return min(self.place[0], self.settled[0])

    def hold_back(self) -> None:
        """Settle only, from now until `catch_up`: the file is being mended."""
        self.is_file_ready = False
        self.changed_groups = set()

    def moved_to(self, place: Place) -> None:
        """Note that the file holds ``place`` now, durably: own frames, or a roll-back."""
        self.place = self._durable_place = place

    async def run(self) -> None:
        """Settle for ever; any error ends it, and the shard starts again from the journal."""
        while True:
            while not self._queue:
                self._news = trio.Event()
                with trio.move_on_after(_REST_S):
                    await self._news.wait()
                    continue
                await self._rest()
                if not self._queue:
                    await self._news.wait()
            batch = self._take()
            await self._settle_batch(batch)
            self._done_count += len(batch)
            self._announce()

    async def _rest(self) -> None:
        """Make durable where the file stands, and keep its log short."""
        async with self._batch_lock:
            if self.place != self._durable_place and self.is_file_ready:
                await self._note_place(None)
        if self.is_file_ready and self._file.is_fenced:
            async with self.file_lock:
                await self._file.relieve()

    def _take(self) -> list[Finalize]:
        """Return what makes one batch: never across a CONFIG, and of one kind."""
        queue = self._queue
        batch = [queue.popleft()]
        size = _bytes_of(batch[0])
        count = len(batch[0].heads)
        while queue and batch[-1].heads[-1].kind is not Kind.CONFIG:
            following = queue[0]
            size += _bytes_of(following)
            count += len(following.heads)
            is_too_much = size > _BATCH_BYTES or count > _BATCH_HEADS
            if following.is_own != batch[0].is_own or is_too_much:
                break
            batch.append(queue.popleft())
        return batch

    async def _settle_batch(self, batch: Sequence[Finalize]) -> None:
        heads = [head for effect in batch for head in effect.heads]
        patience_s = self._patience_s(is_own=batch[-1].is_own)
        async with Quickly(self._batch_lock):
            records = await self._frames.records(heads)
            tree, groups = await self._take_to_tree(heads, batch[-1].certificate)
            end = (heads[-1].seq, heads[-1].hash)
            settled = Settled(
                shard=self._shard,
                heads=tuple(heads),
                certificate=batch[-1].certificate,
                page_size=tree.page_size,
                db_pages=tree.db_pages,
                groups=groups,
            )
            is_applied = self.is_file_ready and not batch[-1].is_own
            if is_applied:
                async with Quickly(self.file_lock):
                    await self._settle_and_apply(settled, records, end, patience_s)
            else:
                # Whoever mends the file holds its lock for long.
                await self._settle(settled, end, patience_s)
            self._bytes -= sum(map(_bytes_of, batch))
        self._tell(heads, records)
        if is_applied:
            self._on_applied(self.place[0])

    def _patience_s(self, *, is_own: bool) -> float:
        """Return how long the settle that begins now may wait for company."""
        now_s = trio.current_time()
        self._rhythm.beat(now_s)
        if self._rhythm.is_stream(now_s):
            return BEAT_S
        return _OWN_PATIENCE_S if is_own else 0.0

    async def _take_to_tree(
        self, heads: Sequence[Head], certificate: Certificate | None
    ) -> tuple[StateTree, dict[int, bytes]]:
        get = self._frames.getter(self._node.journalist.journal, heads)
        async with Quickly(self._branch.lock):
            self._final = None
            # A thread takes longer than a few pages do.
            if self._branch.is_remembered(heads):
                groups = self._branch.settle(heads, get)
            else:
                groups = await trio.to_thread.run_sync(
                    self._branch.settle, heads, get, limiter=self._node.work_limiter
                )
            if not self.is_file_ready:
                # Before anybody copies the tree: who mends to it must look at these pages, too.
                self.changed_groups.update(groups)
            tree = self._branch.final
            self._final = FinalState(head=heads[-1], certificate=certificate, tree=tree)
            return tree, groups

    async def _settle(self, settled: Settled, end: Place, patience_s: float) -> None:
        place = self.place
        moved = place if place != self._durable_place else None
        await self._node.journalist.settle(replace(settled, place=moved), patience_s)
        if moved is not None and self.place == place:
            self._durable_place = place
        self.settled = end
        self._announce()

    async def _settle_and_apply(
        self, settled: Settled, records: Sequence[bytes], end: Place, patience_s: float
    ) -> None:
        both = zip(settled.heads, records, strict=True)
        above = [(head, record) for head, record in both if head.seq > self.place[0]]
        prepared = await self._prepare(above) if above else None
        if prepared is not None:
            intent = encode_intent(prepared.before, prepared.after, end)
            settled = replace(settled, intent=intent)
        await self._settle(settled, end, patience_s)
        if prepared is not None:
            await self._file.inject(prepared, is_relieved=True)
            self.applied_frames += 1
        if end[0] > self.place[0]:
            self.place = end

    def _announce(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    async def _prepare(self, above: Sequence[tuple[Head, bytes]]) -> Prepared | None:
        """Return the injection of these frames; None when they change no page."""
        records = [record for _, record in above]
        if sum(map(len, records)) <= _INLINE_BYTES:
            frames = [self._frames.decode(*each) for each in above]
            changes = _changes_of_frames(frames, self._frames.payloads)
        else:
            changes = await trio.to_thread.run_sync(
                changes_of, records, limiter=self._node.work_limiter
            )
        if not changes:
            return None
        await self._file.held()
        return await self._file.prepare(changes)

    def _tell(self, heads: Sequence[Head], records: Sequence[bytes]) -> None:
        frames = [
            SettledFrame(head, len(record), None if head.is_partial else record)
            for head, record in zip(heads, records, strict=True)
        ]
        self._on_settled(frames)

    # From the journal's log.

    async def catch_up(self) -> None:
        """Apply what is settled and above the file's place; then applying goes on by itself.

        Under a steady load a batch is settled at any time, so whenever the last one was applied
        there is one more. So all is applied beside them as long as that leaves ever less to be
        done, and the rest while none is settled.
        """
        behind = inf
        async with self.file_lock:
            while 0 < (left := self.settled[0] - self.place[0]) <= behind / 2:
                behind = left
                await self._apply_up_to(self.settled[0])
        async with self._batch_lock, self.file_lock:
            await self._apply_up_to(self.settled[0])
            self.is_file_ready = True
        self._on_applied(self.place[0])

    async def _apply_up_to(self, seq: Seq) -> None:
        while self.place[0] < seq:
            await self._apply_from_log()
            self._on_applied(self.place[0])

    async def _apply_from_log(self) -> None:
        start, last = self.place[0] + 1, self.settled[0]
        rows = await self._node.journalist.read(
            lambda journal: read_whole(journal, self._shard, start, last, _BATCH_BYTES)
        )
        assert rows, "the journal's log lacks what is settled and not applied"
        end = rows[-1].head.seq, rows[-1].head.hash
        changes = await trio.to_thread.run_sync(
            _changes_of_frames, rows, limiter=self._node.work_limiter
        )
        if changes:
            await self._file.held()
            prepared = await self._file.prepare(changes)
            if prepared is not None:
                await self._note_place(encode_intent(prepared.before, prepared.after, end))
                await self._file.inject(prepared, is_relieved=True)
        self.place = end
        await self._note_place(None)

    async def mark(self, *, is_read_only: bool, is_noted: bool) -> bool:
        """Let the file say whether anybody may write to it; return False where it is behind.

        ``is_noted``: the file holds nothing beyond `place`, so the mark is journalled as a batch
        that leads to the same place. Raises what `ReplicaFile.mark` raises.
        """
        async with self._batch_lock, self.file_lock:
            if not self.is_file_ready:
                return False
            if not is_noted:
                await self._file.mark(is_read_only=is_read_only)
                return True
            place = self.place

            async def keep(prepared: Prepared) -> None:
                await self._note_place(encode_intent(prepared.before, prepared.after, place))

            if await self._file.mark(is_read_only=is_read_only, on_ready=keep):
                await self._note_place(None)
            return True

    async def _note_place(self, intent: bytes | None) -> None:
        place = self.place
        cursor = None if intent is not None else await self._file.cursor()
        encoded = cursor.encode() if cursor is not None else None
        await self._node.journalist.perform(
            lambda journal: journal.set_place(
                self._shard, place, cursor=encoded, local_last=None, intent=intent
            )
        )
        self._durable_place = place


def _bytes_of(effect: Finalize) -> int:
    return sum(head.payload_len for head in effect.heads)


def changes_of(records: Sequence[bytes]) -> list[list[CommitPayload]]:
    """Return what encoded frames change, a list of pieces for each transaction."""
    frames = [decode_frame(record) for record in records]
    return _changes_of_frames([frame for frame in frames if isinstance(frame, Frame)])


def _changes_of_frames(
    frames: Sequence[Frame], decode: DecodePayload = decode_payload
) -> list[list[CommitPayload]]:
    changes: list[list[CommitPayload]] = []
    run: list[CommitPayload] = []
    for frame in frames:
        if frame.head.kind is not Kind.COMMIT:
            continue
        run.append(decode(frame))
        if not frame.head.is_partial:
            changes.append(run)
            run = []
    assert not run, "a batch that ends inside a run"
    return changes


def read_whole(
    journal: Journal, shard: ShardId, start: int, last: int, bytes_max: int
) -> list[Frame]:
    """Return the frames of the log from ``start``, whole transactions, at least one of them."""
    frames: list[Frame] = []
    size = 0
    while start <= last and (size < bytes_max or (frames and frames[-1].head.is_partial)):
        rows = journal.frames(shard, start, last, bytes_max)
        if not rows:
            break
        for _, record in rows:
            frame = decode_frame(record)
            assert isinstance(frame, Frame), "the journal holds no frame of version 1"
            frames.append(frame)
            size += len(record)
        start = frames[-1].head.seq + 1
    while frames and frames[-1].head.is_partial:
        frames.pop()
    return frames
