"""One attachment of a database: everything that lives between attach and letting go.

Made by `Shard`; when anything in it fails the whole session is dropped, and the next one begins
from the journal.
"""

from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from basenet.control.histogram import Histogram
from basenet.daemon.follow import Follower
from basenet.daemon.framer import Framer
from basenet.daemon.node import Node
from basenet.daemon.pump import FinalFrame, Pump
from basenet.errors import UnavailableError
from basenet.journal.records import Batch
from basenet.sqlite import recover
from basenet.sqlite.attach import Database, DetachedState
from basenet.sqlite.capture import Capture, Gap
from basenet.sqlite.captured import Captured, CaptureFlag, Cursor
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.pages import PageView
from basenet.sqlite.walformat import frame_bytes
from basenet.units import ShardId

log = structlog.get_logger()

OnFinal = Callable[[Sequence[FinalFrame]], None]
_STOP_GRACE_S: Final = 30.0


class Session:
    """An attached database with its capture, pump and chain."""

    def __init__(
        self,
        *,
        node: Node,
        shard: ShardId,
        database: Database,
        capture: Capture,
        framer: Framer,
        on_final: OnFinal,
    ) -> None:
        self.database = database
        self.capture = capture
        self.framer = framer
        # Whoever reads pages with a connection of its own; the file is not let go meanwhile.
        self.file_lock = trio.Lock()
        self._node = node
        self._shard = shard
        self.pump = Pump(
            framer=framer,
            journalist=node.journalist,
            sync_wal=self._sync_wal if node.config.sync_wal else None,
            on_final=on_final,
            limiter=node.work_limiter,
        )
        self.follower = Follower(
            key=shard,
            capture=capture,
            pump=self.pump,
            waker=node.waker,
            limiter=node.capture_limiter,
            bridge=self._bridge_gap,
            file_lock=self.file_lock,
            sink=self._take,
        )

    async def run(self, *, differs_from: CaptureFlag | None) -> DetachedState | None:
        """Follow until the file is let go (returns its state) or `Follower.stop` (None).

        ``differs_from``: the file may differ from the chain's tip: compare it first, and flag what
        differs so (RECOVERED, or REGRESSED too).
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pump.run)
            try:
                if differs_from is not None:
                    await self.bridge(differs_from)
                state = await self.follower.run()
                with trio.move_on_after(_STOP_GRACE_S):
                    await self.pump.drained()
                    state = state or await self.follower.let_go()
            finally:
                self.follower.end()
                self.pump.waiting.close()
            nursery.cancel_scope.cancel()
        if state is not None:
            await self._note(detached=state.encode())
        return state

    def _sync_wal(self) -> None:
        """Make what was captured survive a power loss; a file that is let go is synced already."""
        if self.database.is_open:
            self.capture.sync_wal()

    def note_lock_held(self) -> None:
        """Move the times of the write lock into the node's histograms; they must not pile up."""
        samples, self.capture.lock_held_s = self.capture.lock_held_s, []
        for reason, seconds in samples:
            self._node.lock_held.setdefault(reason, Histogram()).observe(seconds)

    @property
    def is_live(self) -> bool:
        """Whether the file's descriptors may be used by another task than the follower."""
        return self.database.is_open and not self.follower.is_letting_go

    def measure_lag(self) -> tuple[int, int]:
        """Return how many commits, and bytes of the log, are committed and not captured."""
        if not (self.is_live and self.capture.has_news()):
            return 0, 0
        index = self.database.read_index()
        if index is None:
            return 0, 0
        cursor, header = self.capture.cursor, index.header
        commits = (header.change - cursor.change) & 0xFFFFFFFF
        behind = cursor.frame if cursor.salts == header.salts else 0
        return commits, max(header.frame_max - behind, 0) * frame_bytes(self.database.page_size)

    async def capture_now(self) -> bool:
        """Capture and finalise what is committed now; False if the session ended before."""
        return await self.follower.look() and await self.pump.drained()

    async def _bridge_gap(self, gap: Gap) -> None:
        if gap.is_unsealed:
            log.warning("log_unsealed", shard=self._shard, reason=gap.reason)
        await self.pump.drained()
        if self.framer.is_run_open:
            # The journal drops the pieces of a run that never ended; begin again from it.
            raise UnavailableError(f"a large transaction could not be read to its end: {gap}")
        await self.bridge(CaptureFlag.RECOVERED)

    async def bridge(self, flag: CaptureFlag) -> None:
        """Hand over what differs between file and chain as one change; go on behind it."""
        leaves = bytes(self.framer.tree.leaves)
        if self.framer.tree.page_size != self.database.page_size:
            leaves = b""
        cursor = await trio.to_thread.run_sync(
            self._hand_over_difference, leaves, flag, limiter=self._node.capture_limiter
        )
        await self.pump.drained()
        # If nothing differed no frame carried the new place into the journal.
        await self._note(cursor=cursor.encode())

    def _hand_over_difference(self, leaves: bytes, flag: CaptureFlag) -> Cursor:
        self.capture.pin()
        with PageView(self.database) as view:
            for piece in recover.diff(view, leaves):
                self._take([flagged(piece, flag)])
            self.capture.restart_at(view.cursor)
            return view.cursor

    def _take(self, batch: list[Captured]) -> bool:
        """Hand captured changes to the pump; return whether there is room for more.

        Whoever opens another file at our path writes to the log that we read, as long as it lies
        there. So what was read counts only if the path led to our file afterwards, too; raises
        `DatabaseReplaced` otherwise.
        """
        require_ours(self.database)
        if self._node.config.sync_wal and not batch[-1].is_run_last:
            # A huge transaction may have left gigabytes that nobody has synced: were that left to
            # the journal's thread, all shards of the node and its heartbeats would wait for it.
            self.capture.sync_wal()
        return self.pump.waiting.put(batch)

    async def _note(self, *, cursor: bytes | None = None, detached: bytes | None = None) -> None:
        tree = self.framer.tree
        await self._node.journalist.persist(
            Batch(
                shard=self._shard,
                frames=(),
                page_size=tree.page_size,
                db_pages=tree.db_pages,
                cursor=cursor,
                detached=detached,
            ),
            None,
        )


def require_ours(database: Database) -> None:
    """Raise `DatabaseReplaced` when the path does not lead to the file that is attached."""
    foreign = database.why_foreign()
    if foreign is not None:
        raise DatabaseReplaced(foreign)


def flagged(piece: Captured, flag: CaptureFlag) -> Captured:
    """Return ``piece`` with ``flag`` in addition."""
    if piece.flags & flag == flag:
        return piece
    return Captured(
        page_size=piece.page_size,
        db_pages=piece.db_pages,
        commits=piece.commits,
        pgnos=piece.pgnos,
        pages=piece.pages,
        flags=piece.flags | flag,
        cursor=piece.cursor,
        captured_ns=piece.captured_ns,
    )
