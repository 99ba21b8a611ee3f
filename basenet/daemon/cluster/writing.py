"""While the application of this node may write: its commits are captured and sealed.

Theory of operation
===================

A term of writing begins when this node leads, its database is at the tip of the chain and the lane
of heartbeats has a lease; it ends when somebody else's frames become final (an `Orphan` is listed
in front of them, often of nothing). Between the two the lease may lapse and come back: the fence
closes and opens again, and what was committed meanwhile waits::

    capture thread ──▶ Waiting ──frame: hash, encode──▶ framed ──seal──▶ the replica
                       commits                          events           FramesCaptured

*Group commit.* What waits is sealed as soon as no transaction of the journal is under way, and in
the same breath in which the next one is made (`Performer.on_turn`); so a lone commit is sealed at
once, and under load everything that came during one fsync shares the next. A few commits become a
frame each, many become few frames. Framing them is CPU work: a few pages are framed where they are
sealed, since a thread and back take longer, and more in a thread.

A transaction's pages are taken to the branch's tip before it is sealed (`Branch.take`), because the
state root is part of the frame. What is framed and cannot be sealed yet waits in `_framed`.
"""

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from basenet.daemon.cluster.branch import Branch, Change
from basenet.daemon.cluster.frames import Frames, Getter
from basenet.daemon.cluster.replica import Driver
from basenet.daemon.cluster.resuming import Resumed
from basenet.daemon.follow import Follower, Nap
from basenet.daemon.framer import payload_of
from basenet.daemon.node import Node
from basenet.daemon.pump import coalesce
from basenet.daemon.session import flagged, require_ours
from basenet.daemon.waiting import TAKEN_BYTES_MAX, Waiting
from basenet.engine.effects import Persist
from basenet.engine.events import FrameCaptured, FramesCaptured
from basenet.errors import UnavailableError
from basenet.sqlite import recover
from basenet.sqlite.attach import Database
from basenet.sqlite.capture import Capture, CapturePolicy, Gap
from basenet.sqlite.captured import Captured, CaptureFlag, Cursor
from basenet.sqlite.pages import PageView
from basenet.units import KIB, SALT_BYTES, FrameHash, LocalNumber, ShardId, TimestampNs
from basenet.wire.frame import Flag
from basenet.wire.payload import encode_commit

log = structlog.get_logger()

# So many commits that wait become a frame each; more are merged.
_SINGLE_FRAMES_MAX: Final = 8
# So much is framed without a thread.
_INLINE_BYTES: Final = 64 * KIB
# Of a database in use: a look costs 30 us, and a commit waits half of this for one. A wake-up by
# inotify, thread and pin included, costs as much as ten looks.
_LOOK_S: Final = 0.001
_ACTIVE_S: Final = 0.015
# What is to be done beside looking, for the pin, costs as much as ten looks; in standalone it is
# done as rarely.
_STEER_S: Final = 0.004


@dataclass(frozen=True, slots=True)
class _Framed:
    """A captured piece on its way into the chain."""

    event: FrameCaptured
    change: Change | None
    item: Captured


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    """A frame of this term, until it is final."""

    seq: int
    commits: int
    size: int
    captured_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinal:
    """What would be orphaned if this node were deposed now; ``oldest_ns``: wall clock."""

    commits: int = 0
    bytes: int = 0
    oldest_ns: int | None = None


class Writer:
    """One term of writing; `run` ends by `finish` or an error."""

    def __init__(
        self,
        *,
        node: Node,
        shard: ShardId,
        database: Database,
        cursor: Cursor,
        branch: Branch,
        frames: Frames,
        driver: Driver,
        local_last: LocalNumber,
    ) -> None:
        """Begin behind ``cursor``; ``local_last`` is the last commit that has a number."""
        self._node = node
        self._shard = shard
        self._database = database
        self._branch = branch
        self._frames = frames
        self._driver = driver
        self.local_last = local_last
        nap = Nap()
        self.capture = Capture(
            database,
            policy=CapturePolicy(node.config.capture.value),
            nap=nap.sleep,
            pause_s_max=_LOOK_S,
            active_s=_ACTIVE_S,
            steer_s=_STEER_S,
        )
        self.capture.restart_at(cursor)
        self.waiting = Waiting(self._notify)
        self._token = trio.lowlevel.current_trio_token()
        self._news = trio.Event()
        self._arrived = trio.Event()
        self._taken = trio.Event()
        self._moved = trio.Event()
        self._framed: list[_Framed] = []
        self._sealed: deque[_Sealed] = deque()
        self._taken_count = self._sealed_count = 0
        self._must_frame = self._is_framing = False
        self._is_finishing = self._has_ended = False
        # A run that a crash cut off is captured again from its beginning.
        self._resumed: Resumed | None = None
        self.sealed_frames = 0
        self.file_lock = trio.Lock()
        self.follower = Follower(
            key=shard,
            capture=self.capture,
            pump=self,
            waker=node.waker,
            limiter=node.capture_limiter,
            bridge=self._bridge,
            file_lock=self.file_lock,
            sink=self._take,
            nap=nap,
        )

    # What capture asks.

    def _notify(self) -> None:
        self._token.run_sync_soon(self._on_arrival, idempotent=True)

    def _on_arrival(self) -> None:
        self._arrived.set()
        self.look_again()

    def look_again(self) -> None:
        """See whether something can be sealed now: commits came, or the replica moved."""
        if self._framed or not self.waiting.is_empty:
            self._news.set()

    @property
    def is_at_rest(self) -> bool:
        """Whether all that was captured is in frames, durable or not."""
        return self.waiting.is_empty and not self._framed and not self._is_framing

    async def room(self) -> None:
        """Return when capture may go on reading."""
        while not self.waiting.has_room:
            await self._taken.wait()

    async def drained(self) -> bool:
        """Return True when all that was captured before this call is sealed; False: it ended."""
        target = self.waiting.put_count
        while self._sealed_count < target and not self._has_ended:
            await self._moved.wait()
        return self._sealed_count >= target

    def _take(self, batch: list[Captured]) -> bool:
        require_ours(self._database)
        if self._node.config.sync_wal and not batch[-1].is_run_last:
            # A huge transaction may have left gigabytes that nobody has synced: were that left to
            # the journal's thread, all shards of the node and its heartbeats would wait for it.
            self._database.sync_wal()
        return self.waiting.put(batch)

    # The life of a term.

    async def run(self) -> None:
        """Capture and seal until `finish`."""
        performer, wake = self._driver.performer, self._node.waker.wake
        performer.on_turn = self._on_turn
        wake.resume(self._shard)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._seal_forever)
                await self.follower.run()
                nursery.cancel_scope.cancel()
        finally:
            performer.on_turn = None
            wake.pause(self._shard)
            self._has_ended = True
            self.follower.end()
            self.waiting.close()
            self._wake_drained()

    async def finish(self) -> list[Captured]:
        """Capture what is left, end the term; return what was captured and is in no frame.

        The fence is held, so nothing is committed any more. What waits is taken meanwhile, since
        nothing is sealed any more that would make room for the rest.
        """
        self._is_finishing = True
        # What is being framed in a thread comes first.
        while self._is_framing:
            await self._taken.wait()
        left = self.leftovers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._collect, left)
            if not self._has_ended:
                await self.follower.look()
            self.follower.stop()
            while not self._has_ended:
                await self._moved.wait()
            nursery.cancel_scope.cancel()
        left += self.waiting_items()
        await self.end()
        return left

    async def _collect(self, left: list[Captured]) -> None:
        while True:
            self._arrived = trio.Event()
            left += self.waiting_items()
            self._wake_takers()
            await self._arrived.wait()

    async def end(self) -> None:
        """Let go of the log; `run` has ended."""
        await trio.to_thread.run_sync(
            self.capture.rotation.pin.release, limiter=self._node.capture_limiter
        )

    def unfinal(self, final_seq: int) -> Unfinal:
        """Return what of this term is captured here and not final, ``final_seq`` being so."""
        sealed = self._sealed
        while sealed and sealed[0].seq <= final_seq:
            sealed.popleft()
        if not sealed and self.waiting.is_empty:
            return Unfinal()
        waiting_ns = self.waiting.oldest_ns
        oldest = [
            *(one.captured_ns for one in list(sealed)[:1]),
            *([waiting_ns] if waiting_ns else []),
        ]
        return Unfinal(
            commits=sum(one.commits for one in sealed) + self.waiting.commits,
            bytes=sum(one.size for one in sealed),
            oldest_ns=min(oldest, default=None),
        )

    def leftovers(self) -> list[Captured]:
        """Return and forget what is framed and not sealed; its local numbers are given anew."""
        framed, self._framed = self._framed, []
        if framed:
            self.local_last = LocalNumber(framed[0].event.local_first - 1)
        return [each.item for each in framed]

    def waiting_items(self) -> list[Captured]:
        """Return and forget what waits to be framed."""
        items: list[Captured] = []
        while taken := self.waiting.take():
            items += taken
        return items

    def give(self, items: Sequence[Captured]) -> None:
        """Put captured pieces in front: what the file held beyond the chain at the start."""
        if items:
            self.waiting.put(list(items))

    # Sealing.

    async def _seal_forever(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            # What comes while a transaction is made is sealed when it is durable.
            if not self._driver.performer.is_persisting or self._must_frame:
                await self._seal_some()

    def _on_turn(self) -> None:
        """Seal what may share the next transaction."""
        if not self._seal_at_once():
            self.look_again()

    def _seal_at_once(self) -> bool:
        """Seal what is framed, or what waits if framing it is little work; return whether it was.

        For little work nothing is waited for: neither a thread nor whoever has the trees.
        """
        if self._is_finishing or self._is_framing or not self._driver.can_seal:
            return False
        if not self._framed:
            base = self._base()
            is_little = 0 < self.waiting.raw_bytes <= _INLINE_BYTES
            if not is_little or self._branch.lock.locked() or not self._branch.is_at(base, 0):
                return False
            pieces = self._take_pieces(_INLINE_BYTES)
            self._framed = self._frame_all(pieces, base, self._getter())
        if self._framed:
            framed, self._framed = self._framed, []
            self._seal(framed)
        return True

    async def _seal_some(self) -> None:
        """Frame and seal what can be."""
        if self._seal_at_once() or self._is_finishing:
            return
        if not self._framed and (self._driver.can_seal or self._must_frame):
            await self._frame()
            self._seal_at_once()

    async def _frame(self) -> None:
        """Take pages to the branch's tip, and make events of them, in a thread."""
        self._is_framing = True
        try:
            pieces = self._take_pieces(TAKEN_BYTES_MAX)
            if not pieces:
                return
            async with self._branch.lock:
                self._framed += await trio.to_thread.run_sync(
                    self._frame_all,
                    pieces,
                    self._base(),
                    self._getter(),
                    limiter=self._node.work_limiter,
                )
        finally:
            self._is_framing = False
            self._wake_takers()

    def _take_pieces(self, bytes_max: int) -> Sequence[Captured]:
        items = self.waiting.take(bytes_max)
        self._taken_count += len(items)
        self._wake_takers()
        if len(items) > _SINGLE_FRAMES_MAX:
            return coalesce(items, is_run_open=self._driver.replica.is_run_open)
        return items

    def _getter(self) -> Getter:
        # A CONFIG that was sealed just now is on its way into the journal.
        tip = self._driver.replica.tip
        return self._frames.getter(self._node.journalist.journal, (tip,))

    def _base(self) -> FrameHash:
        """Return the frame at which the file stands but for what is framed; under the lock.

        It is the tip while something can be sealed; another leader's frames are none of ours.
        """
        place, final = self._driver.replica.database, self._branch.final_place
        return place.hash if place.seq > final[0] else final[1]

    def _wake_takers(self) -> None:
        taken, self._taken = self._taken, trio.Event()
        taken.set()

    def _frame_all(self, pieces: Sequence[Captured], base: FrameHash, get: Getter) -> list[_Framed]:
        self._branch.come_to(base, [each.change for each in self._framed], get)
        if self._resumed is None:
            self._resumed = Resumed(*self._branch.open_run)
        last = self.local_last
        out: list[_Framed] = []
        for item in self._resumed.unseen(pieces):
            payload = encode_commit(payload_of(item))
            root = self._branch.take(item)
            event = FrameCaptured(
                payload=payload,
                flags=Flag(item.flags),
                state_root=root,
                timestamp_ns=TimestampNs(item.captured_ns),
                salt=secrets.token_bytes(SALT_BYTES),
                local_first=LocalNumber(last + 1),
                local_last=LocalNumber(last + item.commits),
            )
            last = event.local_last
            out.append(_Framed(event, self._branch.last_change(), item))
        self.local_last = last
        return out

    def _seal(self, framed: Sequence[_Framed]) -> None:
        last = framed[-1].item
        effects = self._driver.seal(
            FramesCaptured(frames=tuple(each.event for each in framed)),
            cursor=last.cursor.encode() if last.is_run_last else None,
            sync=self._database.sync_wal if self._node.config.sync_wal else None,
        )
        persist = next(effect for effect in effects if isinstance(effect, Persist))
        heads = [own.frame.head for own in persist.own]
        self._branch.sealed(heads, [each.change for each in framed])
        self.sealed_frames += len(framed)
        self._sealed.extend(
            _Sealed(
                seq=head.seq,
                commits=each.item.commits,
                size=head.payload_len,
                captured_ns=each.item.captured_ns,
            )
            for head, each in zip(heads, framed, strict=True)
        )
        self._sealed_count = self._taken_count
        self._wake_drained()

    def _wake_drained(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    # Gaps.

    async def _bridge(self, gap: Gap) -> None:
        """Hand over what differs between file and chain as one change; go on behind it."""
        log.warning("capture_gap", shard=self._shard, reason=str(gap))
        self._must_frame = True
        self.look_again()
        try:
            while self.waiting.commits or self._is_framing:
                await self._taken.wait()
            leaves = await self._captured_leaves()
        finally:
            self._must_frame = False
        if self._driver.replica.is_run_open:
            raise UnavailableError(f"a large transaction could not be read to its end: {gap}")
        await trio.to_thread.run_sync(
            self._hand_over_difference, leaves, limiter=self._node.capture_limiter
        )

    async def _captured_leaves(self) -> bytes:
        """Return the leaf hashes of the state after all that was captured; empty: compare all."""
        changes = [each.change for each in self._framed]

        def read(base: FrameHash, get: Getter) -> bytes:
            # Whoever judged another branch meanwhile has moved the tip.
            self._branch.come_to(base, changes, get)
            tree = self._branch.tip
            return bytes(tree.leaves) if tree.page_size == self._database.page_size else b""

        async with self._branch.lock:
            return await trio.to_thread.run_sync(
                read, self._base(), self._getter(), limiter=self._node.work_limiter
            )

    def _hand_over_difference(self, leaves: bytes) -> Cursor:
        self.capture.pin()
        with PageView(self._database) as view:
            for piece in recover.diff(view, leaves):
                self._take([flagged(piece, CaptureFlag.RECOVERED)])
            self.capture.restart_at(view.cursor)
            return view.cursor
