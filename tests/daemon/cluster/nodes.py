"""Cluster nodes on loopback with real certificates, found by a resolver that the test decides."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from basenet.config.loader import load
from basenet.config.model import Config, Network, Tls
from basenet.config.values import Endpoint
from basenet.daemon.cluster.node import ClusterNode
from basenet.engine.birth_record import BirthRecord
from basenet.engine.liveness import Member
from basenet.engine.placement import Membership
from basenet.keys import signing
from basenet.transport.addresses import Answer, Resolver
from basenet.units import JournalId, Lineage, PublicKeyBytes, ShardId
from basenet.wire.birth import BirthMessage
from basenet.wire.certificate import Certificate
from basenet.wire.hello import Hello, Lane
from basenet.wire.message import Message
from basenet.wire.transfer import TransferMessage
from tests.transport.nodes import LOOPBACK

SHARD = ShardId("app")
LINEAGE = Lineage(b"l" * 16)
NAMES = ("a", "b", "c")


class Bell:
    """A way to wait for what is told."""

    def __init__(self) -> None:
        self._news = trio.Event()

    def ring(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds; it is looked at after everything that is told."""
        with trio.fail_after(30):
            while not condition():
                await self._news.wait()


async def eventually(condition: Callable[[], bool]) -> None:
    """Return when ``condition`` holds, of which nobody is told."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  (nobody tells)
            await trio.sleep(0.005)


def hello_of(name: str, *, key: int, run: int = 0, count: int = 1) -> Hello:
    """The HELLO of a node that exists only in it."""
    return Hello(
        lane=Lane.ORDINARY,
        software="basenet test",
        node_id=name,
        key=PublicKeyBytes(bytes([key]) * 32),
        journal_id=JournalId(bytes([key]) * 16),
        journal_count=count,
        boot_nonce=bytes([run]) * 8,
        features=0,
        members_hash=bytes(32),
        nonce=bytes(16),
    )


class MemoryJournal:
    """What a journal keeps for the cluster, without a disk."""

    def __init__(self, journal_id: JournalId) -> None:
        self.journal_id = journal_id
        self.jcount = 1
        self.remembered: dict[Member, int] = {}
        self.births: dict[ShardId, BirthRecord] = {}

    def peers(self) -> Mapping[Member, int]:
        return dict(self.remembered)

    def remember_peers(self, counts: Iterable[tuple[Member, int]], /) -> None:
        self.jcount += 1
        self.remembered = dict(counts)

    def keep_birth(self, shard: ShardId, birth: BirthRecord, /) -> None:
        self.jcount += 1
        self.births[shard] = birth

    def load_birth(self, shard: ShardId, /) -> BirthRecord:
        return self.births.get(shard, BirthRecord())


@dataclass
class MemoryJournalist:
    """Writes to a `MemoryJournal`, one after the other; ``hold``: not before that is set."""

    journal: MemoryJournal
    bell: Bell = field(default_factory=Bell)
    hold: trio.Event | None = None
    is_held: bool = False

    async def perform(self, act: Callable[[Any], None]) -> None:
        await trio.lowlevel.checkpoint()
        if self.hold is not None:
            self.is_held = True
            await self.hold.wait()
        act(self.journal)
        self.bell.ring()

    async def read(self, question: Callable[[Any], BirthRecord]) -> BirthRecord:
        await trio.lowlevel.checkpoint()
        return question(self.journal)


class Directory(Resolver):
    """Where nodes are, by name; a name that was never told is waited for."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[Endpoint, ...]] = {}
        self._bell = Bell()

    def tell(self, name: str, *endpoints: Endpoint) -> None:
        self._told[name] = endpoints
        self._bell.ring()

    async def resolve(self, entry: Endpoint) -> Answer:
        await self._bell.until(lambda: entry.host in self._told)
        return Answer(endpoints=self._told[entry.host], ttl_s=0)


@dataclass
class Port:
    """A shard in memory that notes what it is told.

    ``hold``: what takes long waits for it.
    """

    shard: ShardId = SHARD
    lineage: Lineage | None = LINEAGE
    bell: Bell = field(default_factory=Bell)
    hold: trio.Event | None = None
    error: Exception | None = None
    heard: list[tuple[str, object]] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    members: list[Membership | str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    roused: int = 0

    def _note(self, peer: Hello, what: object) -> None:
        self.heard.append((peer.node_id, what))
        self.bell.ring()

    async def _take(self, peer: Hello, what: object) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        self._note(peer, what)

    def on_message(self, peer: Hello, message: Message) -> None:
        self._note(peer, message)

    def take_frames(self, _peer: Hello, _records: tuple[bytes, ...]) -> bool:
        return False

    async def on_frames(self, peer: Hello, records: tuple[bytes, ...]) -> None:
        await self._take(peer, records)

    async def on_final(
        self, peer: Hello, records: tuple[bytes, ...], certificate: Certificate | None
    ) -> None:
        await self._take(peer, (records, certificate))

    async def on_transfer(self, peer: Hello, message: TransferMessage) -> None:
        await self._take(peer, message)

    def on_birth(self, peer: Hello, message: BirthMessage) -> None:
        self._note(peer, message)

    def on_other_lineage(self, peer: Hello) -> None:
        self.corrected.append(peer.node_id)
        self.bell.ring()

    def on_connected(self, peer: Hello) -> None:
        self.connected.append(peer.node_id)
        self.bell.ring()

    def on_lost(self, peer: Hello) -> None:
        self.lost.append(peer.node_id)
        self.bell.ring()

    def on_unreachable(self, peer: Hello) -> None:
        self.unreachable.append(peer.node_id)
        self.bell.ring()

    def on_members(self, members: Membership | str) -> None:
        self.members.append(members)
        self.bell.ring()

    def rouse(self) -> None:
        self.roused += 1
        self.bell.ring()


@dataclass
class Running:
    """A node that runs, and what it lives from; ``alive``: whether its journal answers."""

    name: str
    node: ClusterNode
    journalist: MemoryJournalist
    address: Endpoint
    rolled_back: list[str]
    bell: Bell
    alive: dict[str, bool]

    @property
    def key(self) -> PublicKeyBytes:
        return self.node.me.key

    @property
    def journal(self) -> MemoryJournal:
        return self.journalist.journal


def make_config(folder: Path, name: str, *, expect: int, names: tuple[str, ...]) -> Config:
    """The configuration of node ``name`` of ``names``, which find each other by name."""
    config = load({"BASE_SHARDS": str(folder / "app.db"), "BASE_ARCHIVE": "off"})
    home = folder / name
    tls = Tls(
        authority=folder / "ca.crt",
        server_certificate=home / "node.crt",
        server_key=home / "node.key",
        client_certificate=home / "node.crt",
        client_key=home / "node.key",
        allowed_sans=names,
    )
    cluster = replace(
        config.cluster,
        peers=tuple(Endpoint(host=f"{other}.test", port=1) for other in names),
        listen_p2p=LOOPBACK,
        advertise_http=None,
        bootstrap_expect=expect,
        tls=tls,
    )
    return replace(config, network=Network.QUASAR, node_id=name, cluster=cluster)


@asynccontextmanager
async def running(
    folder: Path,
    name: str,
    directory: Directory,
    *ports: Any,
    names: tuple[str, ...] = NAMES,
    journal: MemoryJournal | None = None,
    journalist: Any = None,
    expect: int = 3,
    http: str | None = None,
) -> AsyncIterator[Running]:
    """Node ``name``, on a port of its own that ``directory`` is told."""
    if journalist is None:
        journalist = MemoryJournalist(journal or MemoryJournal(JournalId(name.encode() * 16)))
    rolled_back: list[str] = []
    bell = Bell()
    alive = {"journal": True}

    def note(why: str) -> None:
        rolled_back.append(why)
        bell.ring()

    node = ClusterNode(
        config=make_config(folder, name, expect=expect, names=names),
        signer=signing.load(folder / name / "node.key").signer(),
        journalist=journalist,
        journal_is_alive=lambda: alive["journal"],
        on_rolled_back=note,
        http=http,
        resolver=directory,
    )
    for port in ports:
        node.register(port)
    async with trio.open_nursery() as nursery:
        number = await nursery.start(node.run)
        address = Endpoint(host="127.0.0.1", port=number)
        directory.tell(f"{name}.test", address)
        yield Running(name, node, journalist, address, rolled_back, bell, alive)
        nursery.cancel_scope.cancel()
