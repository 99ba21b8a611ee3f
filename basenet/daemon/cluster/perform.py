"""One shard's effects become acts, in the order that its replica listed them.

Theory of operation
===================

The order is the safety argument: a `Persist` is durable before anything behind it begins. While one
is being synced the replica goes on stepping, and what it lists meanwhile queues up here; the
`Persist` of several steps then share one transaction, and everything between and behind them waits
for it. What stands in front of the first one waits for nothing::

    Send a | Persist 1, Send b | Persist 2, Send c | Orphan | Persist 3, ...
    ------   --------------------------------------   ------
    at once  one transaction, then b, c               alone, to its end

An `Orphan` takes its own time, and stands in front of the decision that it follows from.

A disk that is full or slow holds everything up and loses no order. What peers send waits with them
meanwhile (`Performer.room`), so that memory is bounded.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.journalist import Journalist
from basenet.engine.effects import (
    Effect,
    EpochBegan,
    Fence,
    Finalize,
    Judge,
    Orphan,
    OwnFrame,
    Persist,
    ReadReady,
    Report,
    Send,
    SendFrames,
    ServeFinal,
)
from basenet.journal.records import BranchRow, Step
from basenet.units import MIB, Lineage, LocalNumber, ShardId
from basenet.wire.frame import Frame

_WAITING_BYTES_MAX: Final = 64 * MIB


class Acts(Protocol):
    """What the shard itself does about an effect. All but `orphan` return at once."""

    def kept(self, step: Step) -> None:
        """Take in that a step is durable."""
        ...

    async def orphan(self, effect: Orphan) -> None:
        """Keep what is lost, then undo it; both are done on return."""
        ...

    def finalize(self, effect: Finalize) -> None:
        """Settle, show and apply what is final."""
        ...

    def judge(self, effect: Judge) -> None:
        """Compute state roots and answer `Judged`."""
        ...

    def fence(self, effect: Fence) -> None:
        """Lock the application out."""
        ...

    def serve_final(self, effect: ServeFinal) -> None:
        """Send final history from the journal."""
        ...

    def epoch_began(self, effect: EpochBegan) -> None:
        """Take in who votes now."""
        ...

    def read_ready(self, effect: ReadReady) -> None:
        """Answer a read."""
        ...

    def report(self, effect: Report) -> None:
        """Tell the operator."""
        ...


@dataclass(frozen=True, slots=True)
class _Entry:
    """An effect, and for own frames where capture stood behind them."""

    effect: Effect
    cursor: bytes | None
    sync: Callable[[], None] | None


class Performer:
    """Performs the effects of one replica."""

    def __init__(
        self,
        *,
        shard: ShardId,
        lineage: Lineage,
        journalist: Journalist,
        peers: Peers,
        frames: Frames,
        acts: Acts,
    ) -> None:
        self._shard = shard
        self._lineage = lineage
        self._journalist = journalist
        self._peers = peers
        self._frames = frames
        self._acts = acts
        self._queue: deque[_Entry] = deque()
        self._news = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._bytes = 0
        self._made_room = trio.Event()
        self.persisted = 0
        """How many transactions were made."""

    def put(
        self,
        effects: Sequence[Effect],
        *,
        cursor: bytes | None = None,
        sync: Callable[[], None] | None = None,
    ) -> None:
        """Queue the effects of one step.

        ``cursor``: where capture stands after the own frames in it; ``sync``: makes the log that
        they were read from durable, before they are.
        """
        if not effects:
            return
        for effect in effects:
            if isinstance(effect, Persist):
                for own in effect.own:
                    self._frames.add(own.frame)
                for frame in effect.frames:
                    self._frames.add(frame)
                self._bytes += _bytes_of(effect)
            self._queue.append(_Entry(effect, cursor, sync))
        self._news.set()
        if self._idle.is_set():
            self._idle = trio.Event()

    async def idle(self) -> None:
        """Return when nothing waits to be performed."""
        while self._queue or not self._idle.is_set():
            await self._idle.wait()

    async def room(self) -> None:
        """Return when what waits to be durable is little enough for peers to send more."""
        while self._bytes > _WAITING_BYTES_MAX:
            await self._made_room.wait()

    @property
    def is_undoing(self) -> bool:
        """Whether something is about to be undone, so that nothing may be sealed before."""
        return any(isinstance(entry.effect, Orphan) for entry in self._queue)

    async def run(self) -> None:
        """Perform for ever; any error ends it, and the shard starts again from the journal."""
        while True:
            while not self._queue:
                self._idle.set()
                self._news = trio.Event()
                await self._news.wait()
            if isinstance(self._queue[0].effect, Orphan):
                await self._acts.orphan(self._queue[0].effect)
                self._queue.popleft()
                continue
            batch = self._take()
            await self._persist(batch)
            for entry in batch:
                await self._do(entry.effect)

    def _take(self) -> list[_Entry]:
        """Return what may be done now: all in front of a `Persist`, or all that shares one."""
        queue = self._queue
        batch: list[_Entry] = []
        starts_durable = isinstance(queue[0].effect, Persist)
        while queue:
            effect = queue[0].effect
            if isinstance(effect, Orphan) or (isinstance(effect, Persist) and not starts_durable):
                break
            batch.append(queue.popleft())
        return batch

    async def _persist(self, batch: Sequence[_Entry]) -> None:
        step = self._step_of(batch)
        if step is None:
            return
        sync = next((entry.sync for entry in reversed(batch) if entry.sync is not None), None)
        await self._journalist.keep(step, sync)
        self.persisted += 1
        self._bytes -= sum(
            _bytes_of(entry.effect) for entry in batch if isinstance(entry.effect, Persist)
        )
        made_room, self._made_room = self._made_room, trio.Event()
        made_room.set()
        self._acts.kept(step)

    def _step_of(self, batch: Sequence[_Entry]) -> Step | None:
        persists = [(entry, entry.effect) for entry in batch if isinstance(entry.effect, Persist)]
        if not persists:
            return None
        rows: list[BranchRow] = []
        ballot = cursor = last_own = None
        for entry, effect in persists:
            rows += [self._row(frame, None) for frame in effect.frames]
            rows += [self._row(own.frame, own) for own in effect.own]
            if effect.own:
                last_own = effect.own[-1]
                cursor = entry.cursor or cursor
            ballot = effect.ballot or ballot
        return Step(
            shard=self._shard,
            frames=tuple(rows),
            ballot=ballot,
            cursor=cursor,
            place=(last_own.frame.head.seq, last_own.frame.head.hash) if last_own else None,
            local_last=last_own.local_last if last_own else None,
        )

    def _row(self, frame: Frame, own: OwnFrame | None) -> BranchRow:
        first = own.local_first if own is not None else LocalNumber(1)
        last = own.local_last if own is not None else LocalNumber(0)
        return BranchRow(
            head=frame.head,
            record=self._frames.add(frame),
            local_first=first,
            local_last=last,
        )

    async def _do(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._peers.send(effect.to, self._shard, self._lineage, effect.message)
            case SendFrames():
                records = await self._frames.records(effect.heads)
                self._peers.send_frames(effect.to, self._shard, self._lineage, records)
            case Finalize():
                self._acts.finalize(effect)
            case Judge():
                self._acts.judge(effect)
            case Fence():
                self._acts.fence(effect)
            case ServeFinal():
                self._acts.serve_final(effect)
            case EpochBegan():
                self._acts.epoch_began(effect)
            case ReadReady():
                self._acts.read_ready(effect)
            case Report():
                self._acts.report(effect)


def _bytes_of(persist: Persist) -> int:
    own = sum(each.frame.head.payload_len for each in persist.own)
    return own + sum(frame.head.payload_len for frame in persist.frames)
