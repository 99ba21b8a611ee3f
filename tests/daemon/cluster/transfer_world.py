"""Nodes with real databases and real certificates over a network that loses, delays and lies."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import trio

from basenet.daemon.cluster.asking import Asker
from basenet.daemon.cluster.offer import ConfigPiece, FinalState
from basenet.daemon.cluster.transfer import ServingBudget, StateSource, StateTransfer
from basenet.errors import PeerError
from basenet.sqlite.attach import Database, attach
from basenet.sqlite.glance import glance
from basenet.sqlite.pages import PageView
from basenet.units import (
    FrameHash,
    JournalId,
    Lineage,
    PublicKeyBytes,
    Seq,
    ShardId,
    TimestampNs,
    View,
)
from basenet.wire.certificate import Certificate
from basenet.wire.envelope import AboutState, decode_envelope, encode_envelope
from basenet.wire.frame import Flag, Frame, Head, Kind, encode_frame, seal
from basenet.wire.hello import Hello, Lane
from basenet.wire.merkle import StateTree, leaf_hashes
from basenet.wire.payload import ConfigPayload, encode_config
from basenet.wire.transfer import TransferMessage
from tests.wire.cluster import SHARD, SIGNERS, History, config_of

LINEAGE = config_of(3).lineage
Tamper = Callable[[TransferMessage], TransferMessage | None]


class Chain(History):
    """A history whose frames carry the state root that is set before they are sealed."""

    def __init__(self, config: ConfigPayload) -> None:
        self.root = StateTree(0).root()
        self.configs: list[ConfigPiece] = []
        super().__init__(config)
        self.configs.append((encode_frame(self.genesis), None))

    def _seal(
        self,
        seq: int,
        payload: bytes,
        prev_hash: FrameHash,
        *,
        kind: Kind = Kind.COMMIT,
        flags: Flag = Flag.NONE,
        view: int = 0,
        author: int | None = None,
    ) -> Frame:
        leader = view % len(self.config.voters) if author is None else author
        self.last = seal(
            shard=SHARD,
            seq=Seq(seq),
            timestamp_ns=TimestampNs(seq),
            salt=bytes(16),
            payload=payload,
            kind=kind,
            flags=flags,
            epoch=self.epoch,
            view=View(view),
            prev_hash=prev_hash,
            state_root=self.root,
            signer=SIGNERS[leader],
        )
        return self.last

    def commit(self, tree: StateTree, *voters: int) -> FinalState:
        """Return the state ``tree`` after a new frame that ``voters`` made final."""
        self.root = tree.root()
        head = self.add()
        certificate = self.certify(head, *(voters or range(len(self.config.voters))))
        return FinalState(head=head, certificate=certificate, tree=tree)

    def configure(self, config: ConfigPayload) -> Head:
        """End the epoch."""
        change = self.change(config, *range(len(self.config.voters)))
        self.configs.append((encode_frame(self.last), change.certificate))
        assert encode_config(config) == self.last.payload
        return change.head


class Application:
    """A database with a program in this process that writes to it by SQLite."""

    def __init__(self, path: Path, *, page_size: int = 4096, size: int = 1_000_000) -> None:
        self.connection = apsw.Connection(str(path))
        self.run(f"pragma page_size={page_size}", "pragma journal_mode=wal")
        self.run("create table t(x integer primary key, y)")
        for _ in range(0, size, 500_000):
            self.run(f"insert into t(y) values(randomblob({min(size, 500_000)}))")
        self.database: Database = attach(path)

    def run(self, *statements: str) -> None:
        """Execute each."""
        for statement in statements:
            self.connection.execute(statement).fetchall()

    def tree(self) -> StateTree:
        """Return the tree of the present state."""
        with PageView(self.database) as view:
            leaves = b"".join(
                leaf_hashes(first, block, view.page_size) for first, block in view.blocks()
            )
            return StateTree(view.page_size, leaves)

    def pages(self) -> dict[int, bytes]:
        """Return all pages as they are now."""
        with PageView(self.database) as view:
            size = view.page_size
            return {
                first + index: bytes(block[index * size : (index + 1) * size])
                for first, block in view.blocks()
                for index in range(len(block) // size)
            }

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()
        self.database.close()


class Node:
    """One node: its connections, its transfer, and how its messages are changed on their way."""

    def __init__(self, world: "World", number: int, budget: ServingBudget | None = None) -> None:
        self.world = world
        self.number = number
        self.key = PublicKeyBytes(number.to_bytes(32, "big"))
        self.links: dict[PublicKeyBytes, Hello] = {}
        self.faults: list[tuple[PublicKeyBytes, str]] = []
        self.received: list[tuple[float, PublicKeyBytes, TransferMessage]] = []
        self.tamper: Tamper = lambda message: message
        self.has_room = True
        self.state: FinalState | None = None
        self.chain: Sequence[ConfigPiece] = ()
        self.read: Callable[[Sequence[int]], Mapping[int, bytes]] = lambda _: {}
        self.frames: (
            Callable[[Sequence[tuple[int, bytes]]], Awaitable[Mapping[int, bytes]]] | None
        ) = None
        self.budget = budget or ServingBudget()
        self.turns: trio.CapacityLimiter | None = None
        self.start()

    def start(self) -> None:
        """Begin with a new server and client, as after a restart."""
        self.transfer = StateTransfer(
            shard=SHARD,
            lineage=LINEAGE,
            source=StateSource(
                final_state=lambda: self.state,
                config_chain=self._config_chain,
                read_pages=self._read_pages,
                pages_from_frames=self._from_frames,
            ),
            sender=self,
            budget=self.budget,
            tasks=self.world.nursery,
            on_fault=lambda peer, error: self.faults.append((peer, self._said(error))),
            turns=self.turns,
        )

    @staticmethod
    def _said(error: PeerError) -> str:
        assert isinstance(error, PeerError)
        return str(error)

    def _read_pages(self, pgnos: Sequence[int]) -> Mapping[int, bytes]:
        return self.read(pgnos)

    async def _config_chain(self) -> Sequence[ConfigPiece]:
        await trio.lowlevel.checkpoint()
        return self.chain

    async def _from_frames(self, wants: Sequence[tuple[int, bytes]]) -> Mapping[int, bytes]:
        await trio.lowlevel.checkpoint()
        return {} if self.frames is None else await self.frames(wants)

    def has(self, state: FinalState | None, chain: Chain, application: Application | None) -> None:
        """Hold ``state``, and the pages of ``application``'s file."""
        self.state, self.chain = state, tuple(chain.configs)
        if application is not None:
            self.read = lambda pgnos: glance(application.database, pgnos)

    @property
    def connected(self) -> Mapping[PublicKeyBytes, Hello]:
        return self.links

    def send_transfer(
        self, to: PublicKeyBytes, shard: ShardId, lineage: Lineage, message: TransferMessage
    ) -> bool:
        assert (shard, lineage) == (SHARD, LINEAGE)
        if not self.has_room or to not in self.links:
            return False
        sent = self.tamper(message)
        if sent is not None:
            self.world.carry(self, to, sent)
        return True

    @property
    def asker(self) -> Asker:
        """What counts its asks."""
        return self.transfer.client._asker


class World:
    """The network: each message takes its time, or is lost."""

    def __init__(self, nursery: trio.Nursery, seed: int = 0) -> None:
        self.nursery = nursery
        self.random = random.Random(seed)
        self.loss = 0.0
        self.latency_s = 0.001
        self.bytes_per_second = 100e6
        self.nodes: dict[PublicKeyBytes, Node] = {}

    def node(self, number: int, budget: ServingBudget | None = None) -> Node:
        """Return a new node, connected to nobody."""
        node = Node(self, number, budget)
        self.nodes[node.key] = node
        return node

    def connect(self, one: Node, *others: Node) -> None:
        """Connect ``one`` to each of the ``others``."""
        for other in others:
            for here, there in ((one, other), (other, one)):
                here.links[there.key] = hello(there)
                here.transfer.on_connected(there.key)

    def lose(self, one: Node, other: Node) -> None:
        """End the connection between two nodes."""
        for here, there in ((one, other), (other, one)):
            del here.links[there.key]
            here.transfer.on_lost(there.key)

    def carry(self, sender: Node, to: PublicKeyBytes, message: TransferMessage) -> None:
        """Bring ``message`` over, as bytes."""
        data = encode_envelope(AboutState(shard=SHARD, lineage=LINEAGE, body=message))
        if self.random.random() >= self.loss:
            self.nursery.start_soon(self._carry, sender, to, data)

    async def _carry(self, sender: Node, to: PublicKeyBytes, data: bytes) -> None:
        await trio.sleep(self.latency_s + len(data) / self.bytes_per_second)
        receiver = self.nodes[to]
        if sender.key in receiver.links:
            found = decode_envelope(data)
            assert isinstance(found, AboutState)
            receiver.received.append((trio.current_time(), sender.key, found.body))
            receiver.transfer.on_message(sender.key, found.body)


def hello(node: Node) -> Hello:
    """Return how ``node`` introduces itself."""
    return Hello(
        lane=Lane.BULK,
        software="test",
        node_id=f"node-{node.number}",
        key=node.key,
        journal_id=JournalId(bytes(16)),
        journal_count=1,
        boot_nonce=bytes(8),
        features=0,
        members_hash=bytes(32),
        nonce=bytes(16),
    )


def wants_of(tree: StateTree) -> list[tuple[int, bytes]]:
    """Return all pages of ``tree`` with their leaf hashes."""
    return [(pgno, tree.leaf(pgno)) for pgno in range(1, tree.db_pages + 1)]


def synthetic(db_pages: int, salt: int = 0) -> StateTree:
    """Return a tree of invented leaves, for what needs many of them and no pages."""
    rng = random.Random(salt)
    return StateTree(4096, rng.randbytes(32 * db_pages))


def unlike(certificate: Certificate | None, **changes: Any) -> Certificate:
    """Return the certificate with other fields."""
    assert certificate is not None
    fields = {name: getattr(certificate, name) for name in Certificate.__struct_fields__}
    return Certificate(**{**fields, **changes})
