"""A term of a shard with one voter, over a real journal, file, guardian and application."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import trio

from basenet.config.model import Fence
from basenet.daemon.cluster.adopting import StateWanted
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.gate import Gates
from basenet.daemon.cluster.intake import Intake
from basenet.daemon.cluster.ports import Peers
from basenet.daemon.cluster.term import Term, Told
from basenet.daemon.framer import instant
from basenet.daemon.node import Node
from basenet.engine.events import Instant
from basenet.engine.limits import Timing
from basenet.journal.records import ReplicaRecord
from basenet.units import JournalId, Lineage
from basenet.wire.frame import Frame, decode_frame
from tests.daemon.cluster.guarding import guarded
from tests.daemon.cluster.nodes import eventually
from tests.daemon.node import running_node
from tests.fakes.branching import SHARD, Branching
from tests.fakes.chain import JOURNAL_ID, Chain, signer

PAGE_SIZE = 4096


class Lane:
    """The lane of heartbeats of a node that is alone: its lease never ends."""

    def lease_until(self, _lineage: Lineage, now: Instant) -> Instant:
        return Instant(now + 60 * 10**9)

    def promised_until(self, _lineage: Lineage) -> Instant:
        return Instant(0)

    def quorum_heard_at(self, _lineage: Lineage, now: Instant) -> Instant:
        return now

    def leader_heard_at(self, _lineage: Lineage) -> Instant:
        return instant()

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args: None


class Endless:
    """The lease of all shards of such a node."""

    @property
    def until(self) -> Instant:
        return Instant(instant() + 60 * 10**9)


@dataclass
class NoPeers:
    """Nobody else is there; what is sent is written down."""

    journal_id: JournalId = JOURNAL_ID
    sent: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.signer = signer()
        self.liveness = Lane()
        self.connected: Mapping[bytes, Any] = {}
        self.lease = Endless()

    def shared_lease(self, _lineage: Lineage) -> Endless:
        return self.lease

    def settle(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.sent.append((name, args))


@dataclass
class Alone:
    """A term at work."""

    node: Node
    term: Term
    file: ReplicaFile
    told: list[tuple[str, Any]]

    def record(self) -> ReplicaRecord:
        """What the journal says now."""
        record = self.node.journalist.journal.load_replica(SHARD)
        assert record is not None
        return record

    async def writable(self) -> None:
        """Return when the fence is open."""
        fence = self.file.fence
        assert fence is not None
        await eventually(lambda: self.term.writer is not None and not fence.is_held)

    async def captured(self) -> int:
        """Return the seq up to which everything committed now is final."""
        writer = self.term.writer
        assert writer is not None
        assert await writer.follower.look()
        assert await writer.drained()
        seq = self.term.driver.replica.place.seq
        await self.term.driver.performer.idle()
        with trio.fail_after(20):
            await self.term.settler.reached(seq)
        return seq

    def frames(self) -> list[Frame]:
        """Everything in the log."""
        journal = self.node.journalist.journal
        frames = [
            decode_frame(record)
            for _, record in journal.frames(SHARD, journal.first_seq(SHARD), 10**9, 2**30)
        ]
        return [frame for frame in frames if isinstance(frame, Frame)]


async def _no_pages(_wants: Sequence[tuple[int, bytes]], _size: int) -> Mapping[int, bytes]:
    await trio.lowlevel.checkpoint()
    return {}


def _told(told: list[tuple[str, Any]]) -> Told:
    def teller(name: str) -> Any:
        return lambda *args: told.append((name, args))

    names: Iterable[str] = Told.__dataclass_fields__
    return Told(**{name: teller(name) for name in names})


def _fenced(node: Node, fence: Fence) -> Node:
    config = replace(node.config, cluster=replace(node.config.cluster, fence=fence))
    return replace(node, config=config)


@asynccontextmanager
async def alone(
    folder: Path,
    socket: Path,
    *,
    kind: type[Term] = Term,
    is_killed: bool = False,
    fence: Fence = Fence.LOCK,
) -> AsyncIterator[Alone]:
    """Run a term from what the journal holds; it is stopped at the end, or cancelled."""
    path = folder / "app.db"
    async with running_node(folder, shards=f"app={path}") as made, guarded(socket) as guard:
        node = _fenced(made, fence)
        journal = node.journalist.journal
        if journal.load_replica(SHARD) is None:
            birth = Branching(Chain(page_size=PAGE_SIZE, pages={})).birth()
            journal.begin_replica(**{**birth, "cursor": None, "certificate": None})
        record = journal.load_replica(SHARD)
        assert record is not None
        file = ReplicaFile(
            shard=SHARD,
            path=path,
            guard=guard,
            limiter=trio.CapacityLimiter(4),
            marks_mended=fence is Fence.READONLY,
        )
        told: list[tuple[str, Any]] = []
        timing = Timing()
        gates = Gates(node.config.cluster, guard, lease=timing.lease)
        is_new = await file.open(page_size=PAGE_SIZE)
        try:
            term = kind(
                node=node,
                peers=cast("Peers", NoPeers()),
                gates=gates,
                file=file,
                record=record,
                timing=timing,
                told=_told(told),
                fetch=_no_pages,
                intake=Intake(SHARD),
                is_file_new=is_new,
            )
            async with trio.open_nursery() as nursery:
                ended = trio.Event()

                async def run() -> None:
                    try:
                        await term.run()
                    except StateWanted:
                        told.append(("state", ()))
                    finally:
                        ended.set()

                nursery.start_soon(run)
                nursery.start_soon(gates.run)
                await eventually(lambda: term.is_at_work or ended.is_set())
                yield Alone(node, term, file, told)
                if is_killed:
                    nursery.cancel_scope.cancel()
                term.stop()
                with trio.fail_after(20):
                    await ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            await file.close()
