"""Nodes in one process, joined by memory: whole shards over real journals, files and a guardian.

No TLS and no sockets, and nothing depends on how fast a machine is: a leader has its lease for as
long as a quorum follows it and can be reached, and is missed at once when it cannot. What a test
cuts, kills or drops is all that goes wrong.
"""

from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import trio

from basenet.config.model import Config
from basenet.daemon.chain import Author
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.gate import NEVER, Gates
from basenet.daemon.cluster.guard import Guard
from basenet.daemon.cluster.heights import HeightBook
from basenet.daemon.cluster.node import ClusterNode
from basenet.daemon.cluster.ports import ShardPort
from basenet.daemon.cluster.shard import ClusterRoom, ClusterShard
from basenet.daemon.cluster.term import Term
from basenet.daemon.cluster.transfer import ServingBudget
from basenet.daemon.framer import instant
from basenet.daemon.journalist import Journalist
from basenet.daemon.node import Node
from basenet.daemon.tracefile import TraceFile
from basenet.daemon.waker import Waker
from basenet.engine.events import Instant
from basenet.engine.limits import MILLISECOND, Timing
from basenet.engine.liveness import Member as Who
from basenet.engine.placement import Membership, Peer
from basenet.journal.journal import Journal
from basenet.journal.records import ReplicaRecord
from basenet.sqlite.wake import open_wake
from basenet.units import Epoch, FrameHash, JournalId, Lineage, PublicKeyBytes, Seq, ShardId, View
from basenet.wire.hello import Hello, Lane
from basenet.wire.signature import Signer
from tests.daemon.cluster.guarding import guarded
from tests.daemon.cluster.nodes import SHARD, eventually, make_config
from tests.sqlite.application import Application

TIMING = Timing(
    heartbeat=20 * MILLISECOND,
    lease=100 * MILLISECOND,
    election_min=300 * MILLISECOND,
    election_max=350 * MILLISECOND,
    retry=100 * MILLISECOND,
    new_view_patience=20 * MILLISECOND,
    check_quorum=200 * MILLISECOND,
)
_LEASE_NS = 2 * 10**9
_NEVER = Instant(0)


class Heartbeats:
    """Stands in for the lane of heartbeats: everybody knows at once who leads and who follows."""

    def __init__(self, station: "Station") -> None:
        self._station = station
        self.led: dict[Lineage, tuple[tuple[Epoch, View], tuple[Who, ...], int]] = {}
        self.followed: dict[Lineage, tuple[tuple[Epoch, View], PublicKeyBytes]] = {}

    def lead(  # noqa: PLR0917
        self,
        lineage: Lineage,
        epoch: Epoch,
        view: View,
        followers: tuple[Who, ...],
        quorum: int,
        now: Instant,
    ) -> None:
        del now
        self.led[lineage] = (epoch, view), followers, quorum

    def unlead(self, lineage: Lineage, now: Instant) -> None:
        del now
        self.led.pop(lineage, None)

    def follow(self, lineage: Lineage, epoch: Epoch, view: View, leader: Who, now: Instant) -> None:
        del now
        self.followed[lineage] = (epoch, view), leader[0]

    def refuse(self, lineage: Lineage, now: Instant) -> None:
        del now
        self.followed.pop(lineage, None)

    def release(self, lineage: Lineage) -> None:
        pass

    def _has_quorum(self, lineage: Lineage) -> bool:
        if lineage not in self.led:
            return False
        term, followers, quorum = self.led[lineage]
        others = [self._station.reach(key) for key, _ in followers]
        grants = [
            one is not None and one.beats.followed.get(lineage) == (term, self._station.me.key)
            for one in others
        ]
        return 1 + sum(grants) >= quorum

    def lease_until(self, lineage: Lineage, now: Instant) -> Instant:
        return Instant(now + _LEASE_NS) if self._has_quorum(lineage) else _NEVER

    def promised_until(self, lineage: Lineage) -> Instant:
        del lineage
        return _NEVER

    def quorum_heard_at(self, lineage: Lineage, now: Instant) -> Instant:
        return now if self._has_quorum(lineage) else _NEVER

    def leader_heard_at(self, lineage: Lineage) -> Instant | None:
        if lineage not in self.followed:
            return None
        term, leader = self.followed[lineage]
        station = self._station.reach(leader)
        is_heard = station is not None and station.beats.led.get(lineage, (None,))[0] == term
        return instant() if is_heard else _NEVER


class Lease:
    """What a led shard has from the others, asked once for ever."""

    def __init__(self, station: "Station", lineage: Lineage) -> None:
        self._station, self._lineage = station, lineage

    @property
    def until(self) -> Instant:
        return self._station.beats.lease_until(self._lineage, instant())


class WatchedGates(Gates):
    """Sees before each renewal that nothing has changed where no look is taken."""

    renewals = 0

    def _renew_rests(self) -> None:
        for lease, rest in self._rests.items():
            for gate in rest._gates if lease.until > instant() else ():
                term = gate.term
                assert term.leads, "a gate at rest that does not lead"
                assert term.is_writing, "a gate at rest whose capture has ended"
                assert term.writable_until() > NEVER, "a gate at rest that may not be open"
                assert not term.file.fence.is_held, "a gate at rest whose fence is closed"
                self.renewals += 1
        super()._renew_rests()


class Station:
    """What a shard sees of its node (`cluster.node.ClusterNode`), over a `Net`."""

    def __init__(self, net: "Net", name: str, number: int, journal_id: JournalId) -> None:
        self.net = net
        self.signer = Signer(bytes([number + 1]) * 32)
        self.me = Peer(name, self.signer.public)
        self.journal_id = journal_id
        self.timing = TIMING
        self.heights = HeightBook()
        self.beats = Heartbeats(self)
        self.leases: dict[Lineage, Lease] = {}
        self.is_greeted = True
        self.port: ShardPort | None = None
        self.hello = Hello(
            lane=Lane.ORDINARY,
            software="basenet test",
            node_id=name,
            key=self.signer.public,
            journal_id=journal_id,
            journal_count=1,
            boot_nonce=bytes([number]) * 8,
            features=0,
            members_hash=bytes(32),
            nonce=bytes(16),
        )

    @property
    def liveness(self) -> Heartbeats:
        return self.beats

    def shared_lease(self, lineage: Lineage) -> Lease:
        return self.leases.setdefault(lineage, Lease(self, lineage))

    @property
    def members(self) -> Membership | str:
        return self.net.members

    @property
    def connected(self) -> Mapping[PublicKeyBytes, Hello]:
        others = {key: self.reach(key) for key in self.net.stations}
        return {key: other.hello for key, other in others.items() if other is not None}

    def reach(self, key: PublicKeyBytes) -> "Station | None":
        """The other station, if messages reach it and somebody is there."""
        other = self.net.stations.get(key)
        if other is None or other is self or other.port is None or self.port is None:
            return None
        return None if {self.me.node_id, other.me.node_id} in self.net.cuts else other

    def may_vote(self, config: object) -> bool:
        del config
        return self.is_greeted

    def settle(self) -> None:
        pass

    def register(self, port: ShardPort) -> None:
        self.port = port
        port.on_members(self.members)
        for key in self.connected:
            self.net.meet(self, self.net.stations[key])

    def unregister(self, port: ShardPort) -> None:
        assert self.port is port
        self.net.leave(self)

    def send(
        self, to: Iterable[PublicKeyBytes], shard: ShardId, lineage: Lineage, message: object
    ) -> None:
        self._post(to, shard, lineage, "on_message", message)

    def send_birth(self, to: Iterable[PublicKeyBytes], shard: ShardId, message: object) -> None:
        self._post(to, shard, None, "on_birth", message)

    def send_frames(
        self,
        to: Iterable[PublicKeyBytes],
        shard: ShardId,
        lineage: Lineage,
        records: Mapping[FrameHash, bytes],
    ) -> None:
        self._post(to, shard, lineage, "on_frames", tuple(records.values()))

    def is_coming(self, _to: PublicKeyBytes, _name: Hashable) -> bool:
        return False

    def send_final(
        self, to: PublicKeyBytes, shard: ShardId, lineage: Lineage, *piece: Any, name: Hashable
    ) -> bool:
        del name
        self._post((to,), shard, lineage, "on_final", *piece)
        return self.reach(to) is not None

    def send_transfer(
        self, to: PublicKeyBytes, shard: ShardId, lineage: Lineage, message: object
    ) -> bool:
        self._post((to,), shard, lineage, "on_transfer", message)
        return self.reach(to) is not None

    def _post(
        self,
        to: Iterable[PublicKeyBytes],
        shard: ShardId,
        lineage: Lineage | None,
        how: str,
        *what: Any,
    ) -> None:
        assert shard == SHARD
        for key in to:
            other = self.reach(key)
            if other is not None and not self.net.drops(self.me.node_id, other.me.node_id, what[0]):
                self.net.wire_to(self, other).send_nowait((lineage, how, what))


Posted = tuple[Lineage | None, str, tuple[Any, ...]]


class Net:
    """Who can reach whom; messages of a pair arrive in order."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.stations: dict[PublicKeyBytes, Station] = {}
        self.members: Membership | str = "nobody is here yet"
        self.cuts: list[set[str]] = []
        self.drops: Callable[[str, str, object], bool] = lambda _from, _to, _what: False
        self._nursery = nursery
        self._wires: dict[tuple[str, str], trio.MemorySendChannel[Posted]] = {}

    def wire_to(self, one: Station, other: Station) -> trio.MemorySendChannel[Posted]:
        ends = one.me.node_id, other.me.node_id
        if ends not in self._wires:
            self._wires[ends], received = trio.open_memory_channel[Posted](10_000)
            self._nursery.start_soon(self._carry, one, other, received)
        return self._wires[ends]

    async def _carry(
        self, one: Station, other: Station, received: trio.MemoryReceiveChannel[Posted]
    ) -> None:
        async for lineage, how, what in received:
            port = other.port
            if port is None or one.reach(other.me.key) is None:
                continue
            if lineage is not None and lineage != port.lineage:
                port.on_other_lineage(one.hello)
                continue
            done = getattr(port, how)(one.hello, *what)
            if done is not None:
                await done

    def meet(self, one: Station, other: Station) -> None:
        for here, there in ((one, other), (other, one)):
            assert here.port is not None
            here.port.on_connected(there.hello)

    def part(self, one: Station, other: Station) -> None:
        for here, there in ((one, other), (other, one)):
            if here.port is not None:
                here.port.on_lost(there.hello)
                here.port.on_unreachable(there.hello)

    def leave(self, station: Station) -> None:
        """Nobody is there any more."""
        others = [self.stations[key] for key in station.connected]
        station.port, station.beats = None, Heartbeats(station)
        for other in others:
            self.part(other, station)
        self.rouse()

    def rouse(self) -> None:
        for station in self.stations.values():
            if station.port is not None:
                station.port.rouse()


@dataclass
class Member:
    """One node: what outlives its process, and the shard while that runs."""

    name: str
    node: Node
    station: Station
    path: Path
    room: ClusterRoom
    nursery: trio.Nursery
    _shard: ClusterShard | None = None
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def start(self) -> None:
        """Begin to serve the shard, as a daemon does that has just been started."""
        self._shard = ClusterShard(node=self.node, room=self.room, shard=SHARD, path=self.path)
        self._scope = trio.CancelScope()
        self.nursery.start_soon(self._run, self.shard, self._scope)

    async def _run(self, shard: ClusterShard, scope: trio.CancelScope) -> None:
        with scope:
            await shard.run()

    async def stop(self) -> None:
        """End in order."""
        self.shard.stop()
        with trio.fail_after(30):
            await self.shard.ended.wait()

    async def kill(self) -> None:
        """End at once, wherever it is; nothing is handed over."""
        self.station.net.leave(self.station)
        self._scope.cancel()
        with trio.fail_after(30):
            await self.shard.ended.wait()

    @property
    def shard(self) -> ClusterShard:
        """The shard, since the last `start`."""
        assert self._shard is not None
        return self._shard

    @property
    def term(self) -> Term:
        """The present term."""
        assert self.shard.term is not None
        return self.shard.term

    @property
    def is_at_work(self) -> bool:
        """Whether there is a term with a replica."""
        term = self._shard.term if self._shard is not None else None
        return term is not None and term.is_at_work

    @property
    def file(self) -> ReplicaFile:
        """The open database file."""
        assert self.shard._file is not None
        return self.shard._file

    @property
    def journal(self) -> Journal:
        return self.node.journalist.journal

    def record(self) -> ReplicaRecord:
        """What the journal says now."""
        record = self.journal.load_replica(SHARD)
        assert record is not None
        return record

    @property
    def is_writer(self) -> bool:
        """Whether the application may write here."""
        if not self.is_at_work or self.term.writer is None or self.shard._file is None:
            return False
        fence = self.shard._file.fence
        return fence is not None and not fence.is_held

    def holds(self, seq: int) -> bool:
        """Whether ``seq`` and nothing above is final, in the journal and in the file."""
        if not self.is_at_work:
            return False
        settler = self.term.settler
        return settler.is_caught_up and settler.settled[0] == settler.place[0] == seq

    def seq(self) -> int:
        """What is final here."""
        return self.term.driver.replica.final.height


@dataclass
class Joined:
    """The nodes of a test, by name."""

    net: Net
    members: dict[str, Member]

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def others(self, *without: Member) -> list[Member]:
        return [one for one in self.members.values() if one not in without]

    async def writer(self, *, but: Member | None = None) -> Member:
        """Return the node that may write, once there is one."""
        found: list[Member] = []

        def look() -> bool:
            found[:] = [one for one in self.others() if one is not but and one.is_writer]
            return bool(found)

        await eventually(look)
        return found[0]

    async def commit(self, member: Member, *statements: str) -> int:
        """Let an application commit at ``member``; return the seq once that is final there."""
        with Application(member.path) as application:
            await trio.to_thread.run_sync(application.sql, *statements)
            seq = await member.shard.capture_now()
        await eventually(lambda: member.is_at_work and member.seq() >= seq)
        return int(seq)

    async def agree(self, *members: Member) -> int:
        """Return the seq at which all of them are, with the same pages in their files."""
        chosen = members or tuple(self.members.values())

        def agrees() -> bool:
            return len({one.is_at_work and one.seq() for one in chosen}) == 1 and all(
                one.is_at_work and one.holds(one.seq()) for one in chosen
            )

        await eventually(agrees)
        seq = chosen[0].seq()
        leaves = bytes(chosen[0].journal.leaves(SHARD))
        states = {bytes(await one.file.leaves()) for one in chosen}
        # A database to which nobody has written yet has a page in WAL mode.
        assert not leaves or states == {leaves}
        return int(seq)

    def cut(self, member: Member) -> None:
        """Let nothing reach ``member``, and nothing come from it."""
        for other in self.others(member):
            self.net.cuts.append({member.name, other.name})
            self.net.part(member.station, other.station)
        self.net.rouse()

    def heal(self) -> None:
        """Let everybody reach everybody."""
        cuts, self.net.cuts = self.net.cuts, []
        for names in cuts:
            one, other = (self.members[name].station for name in names)
            if one.port is not None and other.port is not None:
                self.net.meet(one, other)
        self.net.rouse()

    def next_seq(self) -> Seq:
        """The seq that the next frame will have."""
        return Seq(max(one.seq() for one in self.others() if one.is_at_work) + 1)


def trace_of(folder: Path, name: str) -> Path:
    """Where node ``name`` writes what its replicas decide."""
    return folder / name / "trace.ndjson"


@asynccontextmanager
async def _member(
    folder: Path, config: Config, guard: Guard, net: Net, nursery: trio.Nursery
) -> AsyncIterator[Member]:
    name = config.node_id
    home = config.data_dir.parent
    journal = Journal(config.data_dir)
    wake = open_wake()
    traces = TraceFile(trace_of(folder, name))
    try:
        station = Station(net, name, len(net.stations), journal.journal_id)
        net.stations[station.me.key] = station
        node = Node(
            config=config,
            author=Author(node_id=name, signer=station.signer, journal_id=journal.journal_id),
            journalist=Journalist(journal),
            waker=Waker(wake),
            store=None,
            trusted=frozenset({station.signer.public}),
            traces=traces,
        )
        nursery.start_soon(node.journalist.run)
        nursery.start_soon(node.waker.run)
        gates = WatchedGates(config.cluster, guard, lease=_LEASE_NS)
        nursery.start_soon(gates.run)
        room = ClusterRoom(
            cluster=cast("ClusterNode", station),
            guard=guard,
            gates=gates,
            budget=ServingBudget(),
            turns=trio.CapacityLimiter(2),
        )
        yield Member(name, node, station, home / "app.db", room, nursery)
    finally:
        wake.close()
        traces.close()
        journal.close()


def _config(folder: Path, name: str, replication: int) -> Config:
    config = make_config(folder, name, expect=3, names=("a", "b", "c"))
    cluster = replace(config.cluster, replication=replication)
    (folder / name).mkdir(exist_ok=True)
    return replace(config, data_dir=folder / name / "data", cluster=cluster)


@asynccontextmanager
async def joined(
    folder: Path, socket: Path, *names: str, replication: int = 3
) -> AsyncIterator[Joined]:
    """Nodes that were not started yet; the journals and files are those in ``folder``."""
    async with (
        guarded(socket) as guard,
        AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
        net = Net(nursery)
        members = {}
        for name in names or ("a", "b", "c"):
            member = _member(folder, _config(folder, name, replication), guard, net, nursery)
            members[name] = await stack.enter_async_context(member)
        net.members = Membership(peers=tuple(one.station.me for one in members.values()))
        yield Joined(net, members)
        for one in members.values():
            if one._shard is not None:
                one._scope.cancel()
                await one.shard.ended.wait()
        nursery.cancel_scope.cancel()
