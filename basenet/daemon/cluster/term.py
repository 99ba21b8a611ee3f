"""One stretch of a shard's life with its peers: from the journal's record to the first failure.

Theory of operation
===================

A term is made anew from the journal whenever something in it fails, and so is the replica: the
journal is the only memory that counts. Its parts, and who drives whom::

      peers ──▶ Driver (the replica) ──effects──▶ Performer ──▶ journal, peers
                  ▲          ▲                        │
       Judged ────┤          │ FramesCaptured         ├─▶ Settler ──▶ log, database file
       Applied ───┘        Writer ◀── capture         └─▶ Orphan: bundle, then mend

The database file is in one of three hands, and only one at a time:

*replica*   fenced; the settler injects what becomes final.
*writer*    the fence is open until the lease ends; the application commits, capture reads.
*mending*   fenced; pages are fetched by content until the file is at a final state again. The
            journal says meanwhile that the file is at no frame, so that a crash begins it anew.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from basenet.daemon.cluster.adopting import StateWanted, find_undecided
from basenet.daemon.cluster.branch import Branch, BranchLost
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.frames import Frames, Getter
from basenet.daemon.cluster.gate import NEVER, Gate, Gates
from basenet.daemon.cluster.historian import Historian
from basenet.daemon.cluster.intake import Intake
from basenet.daemon.cluster.leaving import leave, try_to_yield
from basenet.daemon.cluster.marking import Marking
from basenet.daemon.cluster.offer import FinalState
from basenet.daemon.cluster.orphaning import Bundler
from basenet.daemon.cluster.orphans import Reason
from basenet.daemon.cluster.perform import Performer
from basenet.daemon.cluster.placing import (
    Found,
    Placing,
    capture_all,
    find_head,
    unsettled_of,
)
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.cluster.repair import FetchPages, Repair
from basenet.daemon.cluster.replica import Driver
from basenet.daemon.cluster.settling import Place, SettledFrame, Settler
from basenet.daemon.cluster.signing import RememberingSigner
from basenet.daemon.cluster.transfer import FetchedState
from basenet.daemon.cluster.writing import Unfinal, Writer
from basenet.daemon.framer import instant
from basenet.daemon.node import Node
from basenet.engine.adoption import NOWHERE
from basenet.engine.effects import (
    EpochBegan,
    Fence,
    Finalize,
    Judge,
    Orphan,
    ReadReady,
    Report,
    ServeFinal,
)
from basenet.engine.events import (
    Applied,
    FinalReceived,
    FramesReceived,
    Instant,
    Judged,
    PeerLost,
    Received,
    Ticked,
)
from basenet.engine.lease import SharedLease
from basenet.engine.limits import Timing
from basenet.engine.replica import Replica
from basenet.errors import CorruptionError
from basenet.journal.records import ReplicaRecord, Step
from basenet.sqlite.captured import Captured, Cursor
from basenet.units import FrameHash, LocalNumber, Seq, ShardId
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, Head
from basenet.wire.hello import Hello
from basenet.wire.merkle import StateTree
from basenet.wire.message import Message, SyncRequest
from basenet.wire.payload import Voter
from basenet.wire.tuples import Scope

log = structlog.get_logger()

_INLINE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a term tells its shard."""

    final: Callable[[Sequence[Head]], None]
    settled: Callable[[Sequence[SettledFrame]], None]
    applied: Callable[[Seq], None]
    orphaned: Callable[[Seq], None]
    epoch: Callable[[EpochBegan], None]
    read: Callable[[ReadReady], None]
    reported: Callable[[Report], None]
    moved: Callable[[], None]


class Term:
    """A shard at work; `run` ends by an error, or by `stop`."""

    def __init__(
        self,
        *,
        node: Node,
        peers: Peers,
        gates: Gates,
        file: ReplicaFile,
        record: ReplicaRecord,
        timing: Timing,
        told: Told,
        fetch: FetchPages,
        intake: Intake,
        is_file_new: bool,
    ) -> None:
        self._node = node
        self.peers = peers
        self._record = record
        self._timing = timing
        self._told = told
        self._fetch = fetch
        self._is_file_new = is_file_new
        self.shard: ShardId = record.shard
        self.log = log.bind(shard=record.shard)
        self.frames = Frames(record.shard, node.journalist)
        self.file = file
        self.is_at_work = False
        """Whether there is a replica to give events to."""
        self._gates = gates
        self._intake = intake
        self._gate: Gate | None = None
        self._has_led = False
        self.writer: Writer | None = None
        self._is_undoing = self.is_yielding = False
        self._sealed_before = 0
        self.local_last = record.local_last
        self._stepped = trio.Event()
        self._stop = trio.Event()
        self._adopted: FetchedState | None = None
        self._nursery: trio.Nursery | None = None
        self.driver: Driver
        self.settler: Settler
        self.branch: Branch
        self.repair: Repair
        self.marking: Marking
        self._placing: Placing
        self._historian: Historian

    def stop(self) -> None:
        """End `run` soon, at a commit boundary."""
        self._stop.set()

    def adopt(self, state: FetchedState) -> None:
        """End with `StateWanted`, unless ``state`` is no news any more."""
        if state.head.seq > self.driver.replica.final.height:
            self._adopted = state
            self._stop.set()

    # The life.

    async def run(self) -> None:
        """Take part until something fails or `stop`."""
        journalist, record = self._node.journalist, self._record
        journalist.begin_term(self.shard)
        leaves = await journalist.read(lambda journal: journal.leaves(self.shard))
        tree = StateTree(record.page_size, leaves)
        if tree.root() != record.tip.state_root:
            raise CorruptionError(
                f"the journal's page hashes of shard {self.shard} do not give the state root of "
                f"frame {record.tip.seq}: move journal.db and what begins with its name out of "
                "the data directory; basenet then comes back as a new member of this shard."
            )
        place = (record.tip.seq, record.tip.hash)
        self.branch = Branch(tree, place, self.frames.payloads)
        self._placing = Placing(
            node=self._node,
            shard=self.shard,
            file=self.file,
            branch=self.branch,
            frames=self.frames,
        )
        await self.file.held()
        try:
            found = await self._find_place(record)
            self._build(record, found.place, tree)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.driver.performer.run)
                nursery.start_soon(self.settler.run)
                nursery.start_soon(self._historian.run)
                await self._begin(record, found)
                nursery.start_soon(self.marking.run)
                nursery.start_soon(self.driver.run_alarms)
                self._gate = self._gates.enter(self, self._start)
                await self._stop.wait()
                self._gate.leave()
                if self._adopted is not None:
                    await self._give_up()
                else:
                    await leave(self)
                nursery.cancel_scope.cancel()
            if self._adopted is not None:
                raise StateWanted(self._adopted)
        finally:
            if self._gate is not None:
                self._gate.leave()
            self._nursery, self.is_at_work = None, False
            self.close_fence()
            with trio.CancelScope(shield=True):
                if self.writer is not None:
                    await self.writer.end()

    def _build(self, record: ReplicaRecord, place: Place, tree: StateTree) -> None:
        peers = self.peers
        self.settler = Settler(
            node=self._node,
            shard=self.shard,
            branch=self.branch,
            frames=self.frames,
            file=self.file,
            place=place,
            final=FinalState(head=record.tip, certificate=record.ballot.certificate, tree=tree),
            on_settled=self._told.settled,
            on_applied=self._on_applied,
        )
        performer = Performer(
            shard=self.shard,
            lineage=record.lineage,
            journalist=self._node.journalist,
            peers=peers,
            frames=self.frames,
            acts=self,
        )
        self.driver = Driver(
            replica=self._make_replica(record, place),
            performer=performer,
            peers=peers,
            on_step=self._on_step,
        )
        self._historian = Historian(
            journalist=self._node.journalist,
            peers=peers,
            shard=self.shard,
            lineage=record.lineage,
            settler=self.settler,
        )
        self.marking = Marking(self, me=peers.signer.public, fence=self._node.config.cluster.fence)
        self.repair = Repair(
            node=self._node,
            shard=self.shard,
            file=self.file,
            branch=self.branch,
            settler=self.settler,
            fetch=self._fetch,
        )

    def _make_replica(self, record: ReplicaRecord, place: Place) -> Replica:
        peers, traces = self.peers, self._node.traces
        signer = RememberingSigner(peers.signer, self._intake.verify)
        return Replica(
            scope=Scope(record.lineage, self.shard),
            me=(peers.signer.public, peers.journal_id),
            signer=signer,
            verify=signer.verify,
            ballot=record.ballot,
            heads=[*record.heads, record.tip],
            configs=record.configs,
            database=place,
            local_last=self.local_last,
            liveness=peers.liveness,
            timing=self._timing,
            now=instant(),
            draw=lambda low, high: low + secrets.randbelow(high - low + 1),
            trace=None if traces is None else traces.tracer(self.shard, record.lineage),
        )

    async def _begin(self, record: ReplicaRecord, found: Found) -> None:
        """Settle what a crash left unsettled, put the file in somebody's hand, boot the replica."""
        place, unsettled = found.place, unsettled_of(record)
        is_own = bool(unsettled) and place[0] >= unsettled[-1].seq
        goal = unsettled[-1].seq if unsettled else self.settler.settled[0]
        is_strange = found.cursor is not None and place[0] < goal
        if place == NOWHERE or is_strange:
            # Nothing may be injected into such a file.
            self.settler.hold_back()
        if is_strange:
            # Before anything else becomes final here: the state at the place is still known.
            await self._put_aside(found)
            # What was put aside has numbers, too.
            self.driver.replica = self._make_replica(record, NOWHERE)
        if unsettled:
            certificate = record.ballot.certificate
            self.settler.put(
                Finalize(heads=tuple(unsettled), certificate=certificate, is_own=is_own)
            )
        if is_strange:
            pass  # it is being mended
        elif place == NOWHERE:
            self.start_mending(None)
        elif place[0] < self.settler.settled[0]:
            self.settler.hold_back()
            self._start(self.settler.catch_up)
        elif found.cursor is not None:
            self._begin_writing(found.cursor, found.items)
        self.driver.boot()
        self.is_at_work = True
        for peer in self.peers.connected.values():
            self.ask_history(peer)

    async def _put_aside(self, found: Found) -> None:
        """Keep what a stranger committed to a replica's file as an orphan; have it mended."""
        assert found.cursor is not None, "nothing to put aside"
        items = await trio.to_thread.run_sync(
            capture_all, self.file.database, found.cursor, limiter=self._node.capture_limiter
        )
        effect = Orphan(heads=(), kept_height=found.place[0], certificate=None)
        await self._bundle(effect, [*found.items, *items], Reason.FOREIGN)

    def close_fence(self) -> None:
        """Lock the application out; returns at once."""
        if self.file.fence is not None:
            self.file.fence.close()

    async def _give_up(self) -> None:
        """Keep what is undecided; the journal jumps to the adopted state."""
        assert self._adopted is not None, "a term that is not given up"
        await self.driver.performer.idle()
        await self.settler.drained()
        await self.file.held()
        async with self.marking.lock:
            items = await self.end_writing()
        kept = await self._head_at((), self.settler.settled)
        ballot, place = self.driver.replica.ballot, self.settler.place
        heads = await self._node.journalist.read(
            lambda journal: find_undecided(journal, self.shard, ballot, place)
        )
        if heads or items:
            effect = Orphan(heads=heads, kept_height=kept.seq, certificate=None)
            bundler = self._bundler()
            await bundler.keep(
                effect, items, kept=kept, local_last=self.local_last, reason=Reason.DEPOSED
            )
            self._told.orphaned(kept.seq)
        await self._placing.note_nowhere()

    @property
    def sealed_frames(self) -> int:
        """How many frames were sealed here in this term."""
        return self._sealed_before + (self.writer.sealed_frames if self.writer else 0)

    async def end_writing(self) -> list[Captured]:
        """End the term of writing, if there is one; return what is in no frame."""
        if self.writer is None:
            return []
        items = await self.writer.finish()
        self._sealed_before += self.writer.sealed_frames
        self.local_last = max(self.local_last, self.writer.local_last)
        self.writer = None
        return items

    async def _find_place(self, record: ReplicaRecord) -> Found:
        """Return what the file holds, and what was committed to it behind that."""
        return await self._placing.find(record, is_file_new=self._is_file_new)

    def _start(self, task: Callable[[], object]) -> None:
        assert self._nursery is not None, "a task of a term that has ended"
        self._nursery.start_soon(task)  # type: ignore[arg-type]

    def start_mending(self, pgnos: set[int] | None, kept_seq: int = 0) -> None:
        """Bring the file to a final state by content.

        ``pgnos``: what differs at most from the state at ``kept_seq``; None: any page may. The
        journal says `NOWHERE` already.
        """
        self.settler.hold_back()
        self.settler.moved_to(NOWHERE)

        async def mend() -> None:
            # Frames below the kept one that are still to be settled are in the file already.
            await self.settler.reached(kept_seq)
            await self.repair.run(pgnos)
            await self.settler.catch_up()

        self._start(mend)

    # Writing.

    def unfinal(self) -> Unfinal:
        """Return what this node would lose if it were deposed now."""
        writer = self.writer or self.marking.retired
        return Unfinal() if writer is None else writer.unfinal(self.driver.replica.final.height)

    async def begin_writing(self) -> None:
        """Begin to capture where the file ends, before the fence opens, unless that has begun.

        Not if this node was deposed meanwhile: look at `writer` again.
        """
        async with self.marking.lock:
            if not await self.marking.make_writable() or self.writer is not None:
                return
            place = self.settler.place
            cursor = await self.file.cursor()
            # Whatever was injected meanwhile must not be captured as a commit.
            is_same = place == self.settler.place and self.writable_until() > NEVER
            if self.writer is None and is_same:
                self._begin_writing(cursor, [])
        self.marking.look()

    def writable_until(self) -> Instant:
        """Return until when the application may write, as far as replica and file go."""
        now = instant()
        until = self.driver.replica.writable_until(now)
        is_whole = self.settler.is_caught_up and not (self._is_undoing or self.is_yielding)
        is_whole = is_whole and not self.driver.performer.is_undoing
        return until if until > now and is_whole else NEVER

    def lease_until(self) -> Instant:
        """Return until when a quorum gave its lease; the past without one."""
        return self.peers.liveness.lease_until(self._record.lineage, instant())

    def shared_lease(self) -> SharedLease | None:
        """Return the lease that it shares with other shards; None while anything is under way."""
        if self.driver.performer.is_idle and self.settler.is_idle:
            return self.peers.shared_lease(self._record.lineage)
        return None

    @property
    def leads(self) -> bool:
        """Whether this node leads, so that a lease may come without a step."""
        return self.driver.replica.is_leader

    @property
    def is_writing(self) -> bool:
        """Whether capture has begun, so that the fence may open."""
        return self.writer is not None and self.marking.is_open

    def _begin_writing(self, cursor: Cursor, items: Sequence[Captured]) -> None:
        self.writer = writer = Writer(
            node=self._node,
            shard=self.shard,
            database=self.file.database,
            cursor=cursor,
            branch=self.branch,
            frames=self.frames,
            driver=self.driver,
            local_last=self.local_last,
        )
        writer.give(items)
        self._start(writer.run)

    def hand_over_soon(self, target: Voter) -> None:
        """Have ``target`` lead once all that is committed here is sealed, if that is soon."""
        self._start(lambda: try_to_yield(self, target))

    async def stepped(self) -> None:
        """Return after the next step of the replica."""
        await self._stepped.wait()

    def moved(self) -> None:
        """Let whoever waits for a fact of this shard look again."""
        self._told.moved()

    def _on_step(self) -> None:
        stepped, self._stepped = self._stepped, trio.Event()
        stepped.set()
        self.marking.look()
        if self.writer is not None:
            self.writer.look_again()
        # A step of whoever does not lead is none of the gate's, but for the one that ended that.
        has_led, self._has_led = self._has_led, self.leads
        if self._gate is not None and (has_led or self._has_led):
            self._gate.stepped()

    def _on_applied(self, seq: Seq) -> None:
        self.driver.step(Applied(seq=seq))
        self._told.applied(seq)

    # What peers bring.

    def on_message(self, peer: Hello, message: Message) -> None:
        """Give a message to the replica."""
        self.driver.step(
            Received(
                sender=peer.key,
                journal_id=peer.journal_id,
                lineage=self._record.lineage,
                message=message,
            )
        )

    def take_frames(self, peer: Hello, records: Sequence[bytes]) -> bool:
        """Give a few frames to the replica, unless there is to be waited; raises `PeerError`."""
        is_little = sum(map(len, records)) < _INLINE_BYTES
        if not is_little or not self.driver.performer.has_room or not self.settler.has_room:
            return False
        self._step_frames(peer, self._intake.decode(records))
        return True

    async def on_frames(self, peer: Hello, records: Sequence[bytes]) -> None:
        """Give frames to the replica; raises `PeerError` if one cannot be read.

        The peer is not heard further while the disk has enough to do with what came before.
        """
        await self._room()
        self._step_frames(peer, await self._decode(records))

    def _step_frames(self, peer: Hello, frames: tuple[Frame, ...]) -> None:
        replica, before = self.driver.replica, self.driver.replica.final.height
        effects = self.driver.step(FramesReceived(sender=peer.key, frames=frames))
        self._intake.on_frames(frames, replica, before, effects)

    async def on_final(
        self, peer: Hello, records: Sequence[bytes], certificate: Certificate | None
    ) -> None:
        """Give final history to the replica; raises `PeerError` if a frame cannot be read."""
        await self._room()
        frames = await self._decode(records)
        before = self.driver.replica.final.height
        self.driver.step(FinalReceived(sender=peer.key, frames=frames, certificate=certificate))
        self._intake.on_final(frames, self.driver.replica, before)
        if self.driver.replica.final.height > before:
            # There may be more where this came from.
            self.ask_history(peer)

    def ask_history(self, peer: Hello) -> None:
        """Ask ``peer`` for what is final above what is known here.

        A voter that was away hears of nothing while nobody writes; so it asks whoever it meets.
        """
        replica = self.driver.replica
        message = SyncRequest(epoch=replica.ballot.epoch, above_height=replica.final.height)
        self.peers.send((peer.key,), self.shard, self._record.lineage, message)

    async def _room(self) -> None:
        await self.driver.performer.room()
        await self.settler.room()

    async def _decode(self, records: Sequence[bytes]) -> tuple[Frame, ...]:
        if sum(map(len, records)) < _INLINE_BYTES:
            return self._intake.decode(records)
        return await trio.to_thread.run_sync(
            self._intake.decode, records, limiter=self._node.work_limiter
        )

    def on_unreachable(self, peer: Hello) -> None:
        """Take the hint that a peer's process is gone."""
        self.driver.step(PeerLost(peer=peer.key))

    def rouse(self) -> None:
        """Look at the time."""
        self.driver.step(Ticked())

    # Effects.

    def kept(self, step: Step) -> None:
        """Take in what is durable now."""
        if step.place is not None:
            self.settler.moved_to(step.place)
        if step.local_last is not None:
            self.local_last = LocalNumber(max(self.local_last, step.local_last))

    def show_final(self, effect: Finalize) -> None:
        """Show what is final."""
        self._told.final(effect.heads)

    def finalize(self, effect: Finalize) -> None:
        """Settle and apply what is final."""
        self.settler.put(effect)

    def judge(self, effect: Judge) -> None:
        """Compute state roots and answer `Judged`."""
        assert self._nursery is not None, "an effect of a term that has ended"
        heads, branch = effect.heads, self.branch
        get = self.frames.getter(self._node.journalist.journal, heads)
        is_little = branch.is_next(heads) and self.frames.holds(heads)
        if not is_little or branch.lock.locked():
            self._nursery.start_soon(self._judge, effect, get)
            return
        with suppress(BranchLost):
            self._answer(effect, branch.judge(heads, get))

    async def _judge(self, effect: Judge, get: Getter) -> None:
        with suppress(BranchLost):  # the replica knows, and asks no more
            async with self.branch.lock:
                wrong = await trio.to_thread.run_sync(
                    self.branch.judge, effect.heads, get, limiter=self._node.work_limiter
                )
            self._answer(effect, wrong)

    def _answer(self, effect: Judge, wrong: FrameHash | None) -> None:
        if wrong is not None:
            self.log.error("root_refused", frame=wrong.hex())
        self.driver.step(
            Judged(epoch=effect.epoch, view=effect.view, hash=effect.heads[-1].hash, wrong=wrong)
        )

    def fence(self, effect: Fence) -> None:
        """Lock the application out."""
        self.log.info("fenced", epoch=effect.epoch, view=effect.view)
        self.close_fence()

    def serve_final(self, effect: ServeFinal) -> None:
        """Send final history from the journal."""
        self._historian.put(effect)

    async def orphan(self, effect: Orphan) -> None:
        """Keep what is lost; then have the file mended."""
        self._is_undoing = True  # whoever leads again meanwhile does not write yet
        await self.settler.drained()
        await self.file.held()
        async with self.marking.lock:
            items = await self.end_writing()
        if effect.heads or items:
            await self._bundle(effect, items, Reason.DEPOSED)
        self._is_undoing = False

    async def _bundle(self, effect: Orphan, items: Sequence[Captured], reason: Reason) -> None:
        """Make what is lost durable, then have the file mended."""
        kept = await self._head_at(effect.heads, self.settler.place)
        bundle = await self._bundler().keep(
            effect,
            items,
            kept=kept,
            local_last=self.local_last,
            reason=reason,
        )
        self.local_last = LocalNumber(max(self.local_last, bundle.local_last))
        self._told.orphaned(effect.kept_height)
        await self._placing.note_nowhere()
        async with self.branch.lock:
            self.branch.reset()
        # A stranger wrote to a file that was behind: what else differs only its pages tell.
        is_behind = self.settler.place[0] < self.settler.settled[0]
        self.start_mending(None if is_behind else bundle.pgnos, kept.seq)

    def _bundler(self) -> Bundler:
        return Bundler(
            node=self._node,
            signer=self.peers.signer,
            shard=self.shard,
            lineage=self._record.lineage,
            branch=self.branch,
            frames=self.frames,
        )

    async def _head_at(self, lost: Sequence[Head], place: Place) -> Head:
        """Return the head of the frame below the first ``lost`` one, or of the file's."""
        if lost:
            first = lost[0]
            place = (Seq(first.seq - 1), first.prev_hash)
        if place[1] == self._record.tip.hash:
            return self._record.tip
        return await self._node.journalist.read(
            lambda journal: find_head(journal, self.shard, place)
        )

    def epoch_began(self, effect: EpochBegan) -> None:
        """Tell who votes now."""
        self._told.epoch(effect)

    def read_ready(self, effect: ReadReady) -> None:
        """Answer a read."""
        self._told.read(effect)

    def report(self, effect: Report) -> None:
        """Tell the operator."""
        self._told.reported(effect)
