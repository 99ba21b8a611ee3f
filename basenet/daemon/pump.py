"""One shard's pump: captured commits in, final frames out.

The only place where an engine effect becomes an act. Its order is the safety argument::

    captured --frame--> Persist --journal is durable--> Finalize --> archive, waiters

While one batch is being synced, further commits gather in `Waiting`. An ordinary application gets
a frame, and with it a restore point, per commit. A backlog beyond `_FRAMES_MAX` pieces is merged,
and so is everything of an application *in a rush*: its commits then gather for longer, because each
journal commit costs two fsyncs, which the application's own I/O waits behind, and each frame costs
a signature, a row and a compression that the capture thread waits behind. [m] 200 k one-row commits
at 70 k/s: 0.9 -> 1.05 of solo speed, 1.7 -> 0.7 s of CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import trio

from basenet.daemon.framer import Framer
from basenet.daemon.journalist import Journalist
from basenet.daemon.waiting import Waiting
from basenet.journal.records import FrameRow
from basenet.sqlite.captured import Captured, CaptureFlag, merge
from basenet.units import MIB, LocalNumber
from basenet.wire.frame import Flag, Head


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalFrame:
    """A final frame; ``record`` is None for a piece of a run, which is read from the journal."""

    head: Head
    local_last: LocalNumber
    size: int
    record: bytes | None


_FRAMES_MAX: Final = 64
# Not as much as a frame may hold: what is merged is in memory several times, as pages, payload and
# record, and below a megabyte it costs no page faults (`daemon.allocator`).
# [m] 100 MB of rows at once: 2.5 -> 1.7 s of CPU, and 20 MB less memory.
MERGED_BYTES_MAX: Final = MIB
# The shortest distance of two journal commits of a busy shard, and of one in a rush.
_BUSY_PAUSE_S: Final = 0.005
_RUSH_PAUSE_S: Final = 0.050
_RUSH_COMMITS_PER_S: Final = 5_000


OnCaptured = Callable[[npt.NDArray[np.uint32], int, int], None]
"""Told of the pages, the size in pages and the page size of everything captured."""


class Pump:
    """Frames, stores and finalises what one shard's capture delivers."""

    def __init__(
        self,
        *,
        framer: Framer,
        journalist: Journalist,
        sync_wal: Callable[[], None] | None,
        on_final: Callable[[Sequence[FinalFrame]], None],
        limiter: trio.CapacityLimiter,
    ) -> None:
        self.framer = framer
        self.waiting = Waiting(self._notify)
        # Held while the chain's tip moves, by whoever needs it to stand still.
        self.chain_lock = trio.Lock()
        self.on_captured: OnCaptured | None = None
        self.submitted = 0
        self.finalized = 0
        self._journalist = journalist
        self._sync_wal = sync_wal
        self._on_final = on_final
        self._limiter = limiter
        self._token = trio.lowlevel.current_trio_token()
        self._wake = trio.Event()
        self._news = trio.Event()
        self._done_count = 0
        self._done = trio.Event()
        self._has_ended = False
        self._taken = trio.Event()
        self._unfinal: list[FinalFrame] = []

    def _notify(self) -> None:
        """Wake the pump from a capture thread."""
        self._token.run_sync_soon(self._wake_up, idempotent=True)

    def _wake_up(self) -> None:
        self._wake.set()
        self._news.set()

    async def room(self) -> None:
        """Return when capture may go on reading."""
        while not self.waiting.has_room:
            await self._taken.wait()

    async def drained(self) -> bool:
        """Return when everything that was captured before this call is final.

        False: the pump ended before it was.
        """
        target = self.waiting.put_count
        while self._done_count < target and not self._has_ended:
            await self._done.wait()
        return self._done_count >= target

    async def run(self) -> None:
        """Pump for ever; any error ends it, and the shard starts again from the journal."""
        try:
            await self._run()
        finally:
            self._has_ended = True
            self._done.set()
            # A capture thread may wait for room in mid-transaction, and nobody makes any now.
            self.waiting.close()

    async def _run(self) -> None:
        taken_at = trio.current_time()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            captured = self.waiting.take()
            taken_before, taken_at = taken_at, trio.current_time()
            self._taken.set()
            self._taken = trio.Event()
            if captured:
                is_rush = is_in_rush(captured, taken_at - taken_before)
                await self.push(captured, is_rush=is_rush)
                self._done_count += len(captured)
                self._done.set()
                self._done = trio.Event()
                if is_rush or len(captured) > 1:
                    await self._let_gather(_RUSH_PAUSE_S if is_rush else _BUSY_PAUSE_S)

    async def _let_gather(self, seconds: float) -> None:
        """Return after ``seconds``, or as soon as as much waits as is taken at once."""
        with trio.move_on_after(seconds):
            while not self.waiting.is_ample:
                self._news = trio.Event()
                await self._news.wait()

    async def push(self, captured: Sequence[Captured], *, is_rush: bool = False) -> None:
        """Frame, store and finalise ``captured``; in a rush as few frames."""
        pieces = captured
        if is_rush or len(captured) > _FRAMES_MAX:
            pieces = coalesce(captured, is_run_open=self.framer.is_run_open)
        async with self.chain_lock:
            if self.on_captured is not None:
                for piece in pieces:
                    self.on_captured(piece.pgnos, piece.db_pages, piece.page_size)
            batch = await trio.to_thread.run_sync(self.framer.frame, pieces, limiter=self._limiter)
            count = self.framer.final_count
        self.submitted += len(batch.frames)
        self._unfinal += [_final_frame(row) for row in batch.frames]
        await self._journalist.persist(batch, self._sync_wal)
        final, self._unfinal = self._unfinal[:count], self._unfinal[count:]
        self.finalized += len(final)
        if final:
            self._on_final(final)


def _final_frame(row: FrameRow) -> FinalFrame:
    # A run may be as large as the database: its bytes do not wait for the end of it in memory.
    is_piece = bool(row.head.flags & Flag.PARTIAL)
    return FinalFrame(
        head=row.head,
        local_last=row.local_last,
        size=len(row.record),
        record=None if is_piece else row.record,
    )


def is_in_rush(captured: Sequence[Captured], seconds: float) -> bool:
    """Return whether what was captured within ``seconds`` are more commits than frames are worth.

    Few commits are never a rush, however quick: a lone commit may follow another at once.
    """
    commits = sum(item.commits for item in captured)
    return commits > _FRAMES_MAX and commits > _RUSH_COMMITS_PER_S * seconds


def coalesce(captured: Sequence[Captured], *, is_run_open: bool) -> Sequence[Captured]:
    """Merge neighbours, up to what one frame may hold.

    Pieces of a PARTIAL run, of which the first may have been taken before (``is_run_open``), and
    pieces with a flag stay as they are.
    """
    out: list[Captured] = []
    group: list[Captured] = []
    raw_bytes = 0
    for item in captured:
        is_plain = item.flags == CaptureFlag.NONE and not is_run_open
        is_run_open = not item.is_run_last
        if not is_plain or raw_bytes + item.raw_bytes > MERGED_BYTES_MAX:
            out += [merge(group)] if group else []
            group, raw_bytes = [], 0
        if is_plain:
            group.append(item)
            raw_bytes += item.raw_bytes
        else:
            out.append(item)
    return out + ([merge(group)] if group else [])
