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

A commit is final after so many transactions in a row, so none is made that can be spared, and
nothing waits for one that need not:

*Judge* is a question to this process alone, whose answer is an event. It is asked at once, while
its frames are held in memory.

*Frames of others* speak of nothing. A `Persist` of nothing else, with nothing behind it, waits a
moment for the vote that mostly follows, and then shares its transaction.

*A proven `Finalize`.* A FINAL certificate is made of votes that left their voters when they were
durable there, so it holds whatever becomes of this node. Who waits for the commit is told at once
(`Acts.show_final`), unless something in front may have to be undone, or what the certificate speaks
of is still on its way to the disk here. And settling begins beside the `Persist` of the decision
and not behind it: the journal's transactions are made in the order in which they are asked for, so
nothing is settled on disk before the decision is (`_begin_settling`).

*A certificate in a stream of commits.* The next proposal carries the certificate of the one before.
So where own commits come one after the other, a decision waits a moment for the next of them
(`Rhythm`): then both share a transaction, and the certificate is in the proposal and is not sent by
itself. What a lone commit has led to waits for nothing.

*Own commits* that wait are sealed when a transaction is about to be made (`on_turn`), so that what
came during one shares the next.

A disk that is full or slow holds everything up and loses no order. What peers send waits with them
meanwhile (`Performer.room`), so that memory is bounded.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

import trio

from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.cluster.rhythm import Rhythm
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
from basenet.units import MIB, Lineage, LocalNumber, PublicKeyBytes, ShardId
from basenet.wire.certificate import COMMIT, Certificate
from basenet.wire.frame import Frame, Head, Kind
from basenet.wire.message import Certified, Propose

_WAITING_BYTES_MAX: Final = 64 * MIB
# Of the frames that are sent for one effect.
_SENT_BYTES_MAX: Final = 32 * MIB
# How long, and how many bytes of, frames of others wait for the vote that speaks of them; and how
# long a decision waits for company.
_PATIENCE_S: Final = 0.01
_PATIENT_BYTES_MAX: Final = 1 * MIB


class Acts(Protocol):
    """What the shard itself does about an effect. All but `orphan` return at once."""

    def kept(self, step: Step) -> None:
        """Take in that a step is durable."""
        ...

    async def orphan(self, effect: Orphan) -> None:
        """Keep what is lost, then undo it; both are done on return."""
        ...

    def show_final(self, effect: Finalize) -> None:
        """Show what is final, and wake who waits for it; once, and before `finalize`."""
        ...

    def finalize(self, effect: Finalize) -> None:
        """Settle and apply what is final."""
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


@dataclass(slots=True, eq=False)
class _Entry:
    """An effect, and for own frames where capture stood behind them.

    ``size``: of a `Persist`, in bytes. ``is_shown``, ``is_begun``: how far a `Finalize` is done.
    ``is_carried``: it is of a step that only tells of a certificate, and holds no vote.
    """

    effect: Effect
    cursor: bytes | None
    sync: Callable[[], None] | None
    size: int = 0
    is_shown: bool = False
    is_begun: bool = False
    is_carried: bool = False


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
        self.on_turn: Callable[[], None] | None = None
        """Called whenever something could be taken: whoever has more to put puts it now."""
        self.is_persisting = False
        """Whether a transaction is being made; `on_turn` is called when it is durable."""
        self._queue: deque[_Entry] = deque()
        self._taken: Sequence[_Entry] = ()
        self._orphans = 0
        self._rhythm = Rhythm()
        self._proposed_to: frozenset[PublicKeyBytes] = frozenset()
        self._has_pressing = self._is_patient = False
        self._news = trio.Event()
        self._put_count = self._done_count = 0
        self._did = trio.Event()
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
            return  # as of most messages
        questions: list[Judge] = []
        earlier = len(self._queue)
        entries: list[_Entry] = []
        for effect in effects:
            entry = _Entry(effect, cursor, sync)
            match effect:
                case Persist():
                    entry.size = _bytes_of(effect)
                    self._hold(effect, entry.size)
                case Finalize():
                    self._show_early(entry, effect, earlier)
                case Orphan():
                    self._orphans += 1
                case Judge() if not self.is_undoing and self._frames.holds(effect.heads):
                    questions.append(effect)
                    continue
            entries.append(entry)
        self._enter(entries)
        for question in questions:
            self._acts.judge(question)

    def _enter(self, step: Sequence[_Entry]) -> None:
        """Queue what is left of a step, and wake who performs it unless it may wait."""
        self._queue += step
        self._put_count += len(step)
        if self._is_carried(step):
            for entry in step:
                entry.is_carried = True
        else:
            self._has_pressing |= not all(_is_patient(entry.effect) for entry in step)
        if self._queue:
            self._news.set()
            if self._is_patient and self._has_pressing:
                self._journalist.hurry()

    def _is_carried(self, step: Sequence[_Entry]) -> bool:
        """Return whether a step only tells of a certificate that a proposal will soon carry."""
        if not self._rhythm.is_stream(trio.current_time()):
            return False
        is_told = False
        for entry in step:
            match entry.effect:
                case Persist(own=()):
                    pass
                case Finalize() if entry.is_shown:
                    pass
                case Send(to=to, message=Certified(certificate=certificate)) if (
                    certificate.phase == COMMIT
                ):
                    is_told |= not self._proposed_to.isdisjoint(to)
                case _:
                    return False
        return is_told

    def _hold(self, persist: Persist, size: int) -> None:
        if persist.own:
            self._rhythm.beat(trio.current_time())
        for own in persist.own:
            self._frames.hold(own.frame)
        for frame in persist.frames:
            self._frames.hold(frame)
        self._bytes += size

    def _show_early(self, entry: _Entry, effect: Finalize, earlier: int) -> None:
        """Show what is proven to be final, if nothing in front of its step speaks against it."""
        if effect.certificate is None or effect.heads[-1].kind is Kind.CONFIG or self.is_undoing:
            return
        in_front = (*self._taken, *islice(self._queue, earlier))
        if not any(_may_decide(each, effect.certificate.height) for each in in_front):
            self._show(entry, effect)

    def _show(self, entry: _Entry, effect: Finalize) -> None:
        if not entry.is_shown:
            entry.is_shown = True
            self._acts.show_final(effect)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be performed."""
        return self._done_count == self._put_count

    async def idle(self) -> None:
        """Return when all that waits now has been performed.

        What comes meanwhile is not waited for: under a steady load there is always something.
        """
        target = self._put_count
        while self._done_count < target:
            await self._did.wait()

    @property
    def has_room(self) -> bool:
        """Whether what waits to be durable is little enough for peers to send more."""
        return self._bytes <= _WAITING_BYTES_MAX

    async def room(self) -> None:
        """Return when there `has_room`."""
        while not self.has_room:
            await self._made_room.wait()

    @property
    def is_undoing(self) -> bool:
        """Whether something is about to be undone, so that nothing may be sealed before."""
        return self._orphans > 0

    async def run(self) -> None:
        """Perform for ever; any error ends it, and the shard starts again from the journal."""
        while True:
            if self.on_turn is not None:
                self.on_turn()
            if not self._queue:
                self._news = trio.Event()
                await self._news.wait()
                continue
            if isinstance(self._queue[0].effect, Orphan):
                await self._acts.orphan(self._queue[0].effect)
                self._queue.popleft()
                self._orphans -= 1
                self._has_done(1)
                continue
            await self._gather()
            self._taken = batch = self._take()
            await self._persist(batch)
            for entry in _without_carried(batch) if self._proposed_to else batch:
                await self._do(entry)
            self._taken = ()
            self._has_done(len(batch))

    def _has_done(self, count: int) -> None:
        self._done_count += count
        did, self._did = self._did, trio.Event()
        did.set()

    async def _gather(self) -> None:
        """Return when something in the queue does not wait for company any more."""
        if self._has_pressing:
            return  # as mostly; a time-out costs more than all that
        with trio.move_on_after(_PATIENCE_S):
            while not self._has_pressing and self._bytes < _PATIENT_BYTES_MAX:
                self._news = trio.Event()
                await self._news.wait()

    def _take(self) -> list[_Entry]:
        """Return what may be done now: all in front of a `Persist`, or all that shares one."""
        queue = self._queue
        batch: list[_Entry] = []
        starts_durable = type(queue[0].effect) is Persist
        while queue:
            kind = type(queue[0].effect)
            if kind is Orphan or (kind is Persist and not starts_durable):
                break
            batch.append(queue.popleft())
        self._has_pressing = bool(queue)
        return batch

    async def _persist(self, batch: Sequence[_Entry]) -> None:
        persists = [(entry, entry.effect) for entry in batch if isinstance(entry.effect, Persist)]
        if not persists:
            return
        step = self._step_of(persists)
        sync = next((entry.sync for entry, _ in reversed(persists) if entry.sync is not None), None)
        begun = self._begin_settling(batch)
        # Nobody but the settler waits for it, and shares its transaction.
        self._is_patient = len(persists) + begun == len(batch) and step.place is None
        self.is_persisting = True
        await self._journalist.keep(step, sync, _PATIENCE_S if self._is_patient else 0.0)
        self.is_persisting = self._is_patient = False
        self.persisted += 1
        for entry, persist in persists:
            self._release(persist, entry.size)
        made_room, self._made_room = self._made_room, trio.Event()
        made_room.set()
        self._acts.kept(step)

    def _begin_settling(self, batch: Sequence[_Entry]) -> int:
        """Begin what certificates prove, beside the transaction and not behind it; return how many.

        Nothing was begun before.
        """
        count = 0
        for entry in batch:
            if entry.is_shown and isinstance(entry.effect, Finalize):
                entry.is_begun = True
                self._acts.finalize(entry.effect)
                count += 1
        return count

    def _release(self, persist: Persist, size: int) -> None:
        for own in persist.own:
            self._frames.release(own.frame.head.hash)
        for frame in persist.frames:
            self._frames.release(frame.head.hash)
        self._bytes -= size

    def _step_of(self, persists: Sequence[tuple[_Entry, Persist]]) -> Step:
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

    async def _do(self, entry: _Entry) -> None:
        match effect := entry.effect:
            case Send():
                self._send(effect)
            case SendFrames():
                await self._send_frames(effect)
            case Finalize():
                self._finish(entry, effect)
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

    async def _send_frames(self, effect: SendFrames) -> None:
        """Send what is not on its way already, and not more than a connection can hold at once.

        Who waits for large frames asks again several times a second, and for the rest later.
        """
        is_coming = self._peers.is_coming
        heads: list[Head] = []
        size = 0
        for head in effect.heads:
            if all(is_coming(key, head.hash) for key in effect.to):
                continue
            size += head.payload_len
            if heads and size > _SENT_BYTES_MAX:
                break
            heads.append(head)
        if heads:
            records = await self._frames.records(heads)
            found = {head.hash: record for head, record in zip(heads, records, strict=True)}
            self._peers.send_frames(effect.to, self._shard, self._lineage, found)

    def _send(self, effect: Send) -> None:
        if type(effect.message) is Propose:
            self._proposed_to = frozenset(effect.to)
        self._peers.send(effect.to, self._shard, self._lineage, effect.message)

    def _finish(self, entry: _Entry, effect: Finalize) -> None:
        self._show(entry, effect)
        if not entry.is_begun:
            self._acts.finalize(effect)


def _is_patient(effect: Effect) -> bool:
    """Return whether an effect may wait for company: frames of others, kept for what follows."""
    return isinstance(effect, Persist) and not effect.own and effect.ballot is None


def _without_carried(batch: Sequence[_Entry]) -> list[_Entry]:
    """Return ``batch`` without certificates for those whom a proposal behind them tells as much."""
    told: dict[PublicKeyBytes, Certificate] = {}
    kept: list[_Entry] = []
    for entry in reversed(batch):
        match entry.effect:
            case Send(to=to, message=Propose(final=Certificate() as final)):
                told |= dict.fromkeys(to, final)
            case Send(to=to, message=Certified(certificate=certificate) as message) if told:
                to = tuple(key for key in to if not _brings(told.get(key), certificate))
                if not to:
                    continue
                entry.effect = Send(to=to, message=message)
        kept.append(entry)
    kept.reverse()
    return kept


def _brings(final: Certificate | None, certificate: Certificate) -> bool:
    """Return whether ``final`` makes final what ``certificate`` does."""
    if final is None or certificate.phase != COMMIT:
        return False
    return final.epoch == certificate.epoch and final.height >= certificate.height


def _may_decide(entry: _Entry, height: int) -> bool:
    """Return whether what is proven final at ``height`` may not be shown before ``entry`` is done.

    That is so for what is still to be shown below it, for own frames up to it and for a vote, both
    of which may not be durable here yet, whatever was made of them. A carried decision adds no vote
    to what stands in front of it.
    """
    match entry.effect:
        case Finalize():
            return not entry.is_shown
        case Persist(own=(), ballot=ballot):
            return ballot is not None and not entry.is_carried
        case Persist(own=own):
            return own[0].frame.head.seq <= height
        case _:
            return False


def _bytes_of(persist: Persist) -> int:
    own = sum(each.frame.head.payload_len for each in persist.own)
    return own + sum(frame.head.payload_len for frame in persist.frames)
