"""Nodes with real certificates on loopback, and what their meshes told them."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import trio

from basenet.config.values import Endpoint
from basenet.errors import BasenetError
from basenet.keys import authority, signing
from basenet.transport.handshake import Self
from basenet.transport.mesh import Listeners, Mesh
from basenet.transport.tls import Credentials, TlsFiles
from basenet.units import JournalId
from basenet.wire.hello import Hello, Lane

LOOPBACK = Endpoint(host="127.0.0.1", port=0)


def now_s() -> float:
    return datetime.now(UTC).timestamp()


def make_authority(directory: Path, *names: str, at: datetime | None = None) -> Path:
    """An authority in ``directory`` with certificates for ``names``."""
    authority.init(directory, names, now=at or datetime.now(UTC))
    return directory


def tls_files(directory: Path, name: str, *, authority_of: Path | None = None) -> TlsFiles:
    home = directory / name
    return TlsFiles(
        authority=(authority_of or directory) / "ca.crt",
        server_certificate=home / "node.crt",
        server_key=home / "node.key",
        client_certificate=home / "node.crt",
        client_key=home / "node.key",
    )


def make_self(directory: Path, name: str, allowed: Sequence[str], **changes: object) -> Self:
    """Who ``name`` says it is; ``changes`` are lies in its HELLO."""
    key = signing.load(directory / name / "node.key")
    hello = Hello(
        lane=Lane.ORDINARY,
        software="basenet test",
        node_id=name,
        key=key.public,
        journal_id=JournalId(name.encode().ljust(16, b"-")[:16]),
        journal_count=1,
        boot_nonce=bytes(8),
        features=0,
        members_hash=bytes(32),
        nonce=bytes(16),
    )
    lying = replace(hello, **changes)  # type: ignore[arg-type]  (names of HELLO's fields)
    return Self(signer=key.signer(), allowed_names=frozenset(allowed), describe=lambda: lying)


@dataclass
class Told:
    """What a mesh told its owner, and a way to wait for more of it."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)
    admit: Callable[[Hello], None] = lambda _: None
    hold: trio.Event | None = None

    def ring(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds; it is looked at after everything that is told."""
        with trio.fail_after(20):
            while not condition():
                await self.news.wait()

    async def deliver(self, peer: Hello, message: bytes) -> None:
        if self.hold is not None:
            await self.hold.wait()
        self.messages.append((peer.node_id, message))
        self.ring()

    def note(self, kind: str) -> Callable[[Hello], None]:
        def note(peer: Hello) -> None:
            getattr(self, kind).append(peer.node_id)
            self.ring()

        return note

    def note_refused(self, _: str, error: BasenetError) -> None:
        self.refused.append(str(error))
        self.ring()

    def listeners(self) -> Listeners:
        return Listeners(
            deliver=self.deliver,
            answered=lambda *_: None,
            admit=lambda peer: self.admit(peer),  # noqa: PLW0108  (it may be replaced later)
            connected=self.note("connected"),
            lost=self.note("lost"),
            unreachable=self.note("unreachable"),
            refused=self.note_refused,
            broken=lambda peer, error: self.note_refused(peer.node_id, error),
            undialled=lambda origin, problem: self.note_refused(origin, BasenetError(problem)),
        )


@dataclass
class Node:
    """A running mesh."""

    name: str
    me: Self
    mesh: Mesh
    told: Told
    address: Endpoint


@asynccontextmanager
async def running(
    directory: Path,
    name: str,
    allowed: Sequence[str],
    *,
    files: TlsFiles | None = None,
    listen: Endpoint = LOOPBACK,
    **changes: object,
) -> AsyncIterator[Node]:
    """A mesh of node ``name``, listening on a port of its own."""
    told = Told()
    me = make_self(directory, name, allowed, **changes)
    credentials = Credentials(files or tls_files(directory, name), on_problem=told.refused.append)
    mesh = Mesh(me=me, credentials=credentials, tell=told.listeners(), wall_clock=now_s)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(mesh.run, listen)
        yield Node(name, me, mesh, told, Endpoint(host="127.0.0.1", port=port))
        nursery.cancel_scope.cancel()


async def connect(*nodes: Node) -> None:
    """Let all of ``nodes`` dial all of them, themselves included; return when all are connected."""
    for node in nodes:
        node.mesh.set_addresses(other.address for other in nodes)
    for node in nodes:
        others = {other.name for other in nodes} - {node.name}
        told = node.told
        await told.until(lambda told=told, others=others: set(told.connected) >= others)
