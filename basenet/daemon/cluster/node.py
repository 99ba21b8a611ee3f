"""One node among several: its connections, its lane of heartbeats, and who gets a message.

Theory of operation
===================

::

    BASE_PEERS ── addresses ──▶ mesh ◀── HELLO ──▶ peers
                                 │
          greeting (Q9): who is admitted, what is remembered of their journals
          members (Q1): M, from configuration and who said HELLO
                                 │ messages
              ┌──────────────────┴────────────────┐
         lanes: heartbeats                   routing: by shard and lineage
              │ Rouse                             │
              └───────────▶ ShardPort ◀───────────┘

`ClusterNode` is what shards see of all this: `ports.Peers` towards them, `ports.ShardPort` from
them. It holds no state of a shard and nothing durable but the counts of others' journals. A message
that cannot be sent now is dropped: the protocol above asks again.

Nothing of a peer is believed but what its certificate and HELLO proved (`transport.handshake`): its
id, its key, its journal. A message that cannot be read, or that a shard finds wrong, ends that
connection and no other; the peer may come back.
"""

import secrets
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import structlog
import trio

from basenet import __version__
from basenet.config.model import Config, FaultModel, Tls
from basenet.config.values import Endpoint
from basenet.control.histogram import Histogram
from basenet.daemon.cluster.greeting import Greeter, PeersJournalist
from basenet.daemon.cluster.heights import HeightBook
from basenet.daemon.cluster.lanes import HeartbeatLane
from basenet.daemon.cluster.members import MemberBook
from basenet.daemon.cluster.ports import ShardPort
from basenet.daemon.cluster.reaching import HttpBook
from basenet.daemon.cluster.roles import features_of
from basenet.daemon.cluster.routing import Router
from basenet.daemon.cluster.tally import Tally
from basenet.daemon.framer import instant
from basenet.engine.events import Instant
from basenet.engine.lease import SharedLease
from basenet.engine.limits import MILLISECOND, Timing
from basenet.engine.liveness import Liveness
from basenet.engine.placement import Membership, Peer
from basenet.engine.pulse import Pulse
from basenet.errors import BasenetError, PeerError
from basenet.transport.addresses import AddressBook, Resolver
from basenet.transport.framing import Oversized
from basenet.transport.handshake import Self
from basenet.transport.link import Unwelcome
from basenet.transport.mesh import Listeners, Mesh
from basenet.transport.tls import Credentials, TlsFiles
from basenet.units import (
    KIB,
    ZERO_HASH,
    FrameHash,
    JournalId,
    Lineage,
    PublicKeyBytes,
    ShardId,
)
from basenet.wire.birth import BirthMessage
from basenet.wire.certificate import Certificate
from basenet.wire.envelope import (
    AboutBirth,
    AboutShard,
    AboutState,
    BetweenNodes,
    FinalPack,
    FramePack,
    cut,
    decode_envelope,
    encode_envelope,
)
from basenet.wire.heights import Heights
from basenet.wire.hello import BOOT_NONCE_BYTES, NONCE_BYTES, Hello, Lane
from basenet.wire.message import Heartbeat, HeartbeatAck, Message
from basenet.wire.payload import ConfigPayload
from basenet.wire.reachable import Reachable
from basenet.wire.rollback import Compared, RolledBack
from basenet.wire.signature import Signer
from basenet.wire.transfer import TransferMessage

log = structlog.get_logger()

BULK_FROM_BYTES: Final = 256 * KIB
"""Frames that make up a larger message travel on the bulk lane."""
# A sentence about a connection is logged again after this long, so that nobody fills the log.
_QUIET_S: Final = 60.0
_SENTENCES_MAX: Final = 1_024


class Unreadable(PeerError):  # noqa: N818  (the field's word; the kind is in the base)
    """What a peer sent is no envelope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFacts:
    """An address of BASE_PEERS, as `status` shows it.

    ``state``: of `transport.link.LinkState`. ``peer``: who said HELLO there last. ``problem``: why
    there is no connection.
    """

    address: Endpoint
    state: str
    peer: Hello | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What `status` shows of the cluster.

    ``members``: how many there are, or why M is not complete. ``unresolved``: entries of BASE_PEERS
    that DNS could not answer, and why.
    """

    peers: tuple[PeerFacts, ...]
    members: int | str
    unresolved: Mapping[Endpoint, str]


class ClusterNode:
    """This node's half of the cluster; implements `ports.Peers`."""

    def __init__(
        self,
        *,
        config: Config,
        signer: Signer,
        journalist: PeersJournalist,
        journal_is_alive: Callable[[], bool],
        on_rolled_back: Callable[[str], None],
        http: str | None = None,
        resolver: Resolver | None = None,
        clock: Callable[[], Instant] = instant,
    ) -> None:
        """Load the TLS files; raises `UsageError` if they are not usable.

        ``journal_is_alive``: whether the journal's thread has answered within 2 s.
        ``on_rolled_back`` is told once that the journal must take a new id (B49), and why; what it
        raises ends `run`. ``http``: what peers are told of this node's HTTP surface.
        """
        cluster, journal = config.cluster, journalist.journal
        self.tally = Tally()
        self.loop_stall = Histogram()
        """By how many seconds the timer of the heartbeats was late."""
        self.timing = Timing(lease=cluster.lease_ms * MILLISECOND)
        self.me = Peer(config.node_id, signer.public)
        self._signer = signer
        self._journal = journal
        self._listen = cluster.listen_p2p
        self._features = features_of(cluster.node_role)
        self._boot_nonce = secrets.token_bytes(BOOT_NONCE_BYTES)
        self._members = MemberBook(self.me, cluster.peers, cluster.bootstrap_expect)
        self._router = Router(self.tally, self._on_wrong)
        self._connected: dict[PublicKeyBytes, Hello] = {}
        self._answered: dict[Endpoint, Hello] = {}
        self._http = HttpBook(signer.public, http)
        self.heights = HeightBook()
        """How far peers say that their shards are."""
        self._told: dict[str, float] = {}
        self._greeter = Greeter(
            me=(signer.public, journal.journal_id),
            journalist=journalist,
            doubters_needed=_count_doubters(cluster.fault_model, cluster.replication),
            tally=self.tally,
            clock=clock,
            send=self._send,
            on_compared=self._rouse_all,
            on_rolled_back=on_rolled_back,
        )
        pulse = Pulse(
            me=(signer.public, journal.journal_id),
            signer=signer,
            verify=self.tally.verify,
            boot_nonce=self._boot_nonce,
            timing=self.timing,
            now=clock(),
        )
        self._lane = HeartbeatLane(
            pulse,
            beat=self.timing.heartbeat,
            send=self._send_urgent,
            rouse=self._rouse,
            journal_is_alive=journal_is_alive,
            clock=clock,
            late=self.loop_stall.observe,
        )
        self._mesh = self._make_mesh(cluster.tls) if cluster.tls is not None else None
        self._addresses = AddressBook(
            cluster.peers,
            resolver=resolver or Resolver(),
            on_change=self._on_addresses,
            on_problem=lambda entry, why: log.warning("peer_unresolved", entry=str(entry), why=why),
        )

    def _make_mesh(self, tls: Tls) -> Mesh:
        files = TlsFiles(
            authority=tls.authority,
            server_certificate=tls.server_certificate,
            server_key=tls.server_key,
            client_certificate=tls.client_certificate,
            client_key=tls.client_key,
        )
        credentials = Credentials(
            files, on_problem=lambda why: log.warning("tls_files_unusable", why=why)
        )
        me = Self(
            signer=self._signer,
            allowed_names=frozenset(tls.allowed_sans),
            describe=self._describe,
        )
        listeners = Listeners(
            deliver=self._deliver,
            answered=self._on_answered,
            admit=self._admit,
            connected=self._on_connected,
            lost=self._on_lost,
            unreachable=self._on_unreachable,
            refused=self._on_refused,
            broken=self._on_broken,
            undialled=self._on_undialled,
        )
        return Mesh(me=me, credentials=credentials, tell=listeners, wall_clock=time.time)

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial, beat, for ever; ``started`` is given the port, 0 without TLS.

        Raises `UnavailableError` if BASE_LISTEN_P2P is taken.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._router.run)
            nursery.start_soon(self._greeter.run)
            nursery.start_soon(self._lane.run)
            port = 0
            if self._mesh is not None:
                port = await nursery.start(self._mesh.run, self._listen)
                nursery.start_soon(self._addresses.run)
            task_status.started(port)

    # Shards.

    def register(self, port: ShardPort) -> None:
        """Give ``port`` the messages of its shard, and tell it who is there already."""
        assert port.shard not in self._router.ports, "two ports of one shard"
        self._router.ports[port.shard] = port
        port.on_members(self.members)
        for peer in self._connected.values():
            port.on_connected(peer)

    def unregister(self, port: ShardPort) -> None:
        """Give ``port`` nothing any more."""
        assert self._router.ports.get(port.shard) is port, "a port that is not registered"
        del self._router.ports[port.shard]

    # What shards ask (`ports.Peers`).

    @property
    def liveness(self) -> Liveness:
        """The lane of heartbeats."""
        return self._lane.pulse

    def shared_lease(self, lineage: Lineage) -> SharedLease | None:
        """Return the lease that a led shard shares with others; None while it has its own."""
        return self._lane.pulse.shared_lease(lineage)

    @property
    def signer(self) -> Signer:
        """This node's signing key."""
        return self._signer

    @property
    def journal_id(self) -> JournalId:
        """The id of this node's journal."""
        return self._journal.journal_id

    @property
    def members(self) -> Membership | str:
        """M, or why it is not complete."""
        return self._members.members

    @property
    def connected(self) -> Mapping[PublicKeyBytes, Hello]:
        """Whom this node can send to now: by signing key, the HELLO of the present connection."""
        return self._connected

    def may_vote(self, config: ConfigPayload) -> bool:
        """Return whether this node may vote, send a NewView or give a lease under ``config``.

        False until enough other voters have compared this node's HELLO (B50); whenever that may
        have changed, every shard is roused.
        """
        return self._greeter.may_vote(config)

    def send(
        self, to: Iterable[PublicKeyBytes], shard: ShardId, lineage: Lineage, message: Message
    ) -> None:
        """Send a message of the protocol."""
        data = encode_envelope(AboutShard(shard=shard, lineage=lineage, body=message))
        for key in to:
            self._send(key, data)

    def send_birth(
        self, to: Iterable[PublicKeyBytes], shard: ShardId, message: BirthMessage
    ) -> None:
        """Send a message of the birth."""
        data = encode_envelope(AboutBirth(shard=shard, body=message))
        for key in to:
            self._send(key, data)

    def send_frames(
        self,
        to: Iterable[PublicKeyBytes],
        shard: ShardId,
        lineage: Lineage,
        records: Mapping[FrameHash, bytes],
    ) -> None:
        """Send encoded frames: small packs in the ordinary lane, large ones in bulk."""
        keys = tuple(to)
        digests = iter(records)
        for pack in cut(records.values()):
            data = encode_envelope(FramePack(shard=shard, lineage=lineage, records=pack))
            lane = Lane.ORDINARY if len(data) < BULK_FROM_BYTES else Lane.BULK
            tags = tuple(islice(digests, len(pack)))
            for key in keys:
                self._send(key, data, lane, tags if lane is Lane.BULK else ())

    def is_coming(self, to: PublicKeyBytes, name: Hashable) -> bool:
        """Return whether a large thing is on its way to a peer, so that it need not be sent.

        ``name``: a frame's hash, or that of a stretch of the final history.
        """
        return self._mesh is not None and self._mesh.is_coming(to, name, Lane.BULK)

    def send_final(
        self,
        to: PublicKeyBytes,
        shard: ShardId,
        lineage: Lineage,
        records: tuple[bytes, ...],
        certificate: Certificate | None,
        *,
        name: Hashable,
    ) -> bool:
        """Send one piece of the final history in bulk; False when there is no room for it now.

        ``name``: of the stretch that it is of, for `is_coming`.
        """
        pack = FinalPack(shard=shard, lineage=lineage, records=records, certificate=certificate)
        data = encode_envelope(pack)
        return self._mesh_send(to, data, Lane.BULK, (name,) if len(data) >= BULK_FROM_BYTES else ())

    def send_transfer(
        self, to: PublicKeyBytes, shard: ShardId, lineage: Lineage, message: TransferMessage
    ) -> bool:
        """Send a piece of, or a question for, the state: in bulk; False when there is no room."""
        envelope = AboutState(shard=shard, lineage=lineage, body=message)
        return self._mesh_send(to, encode_envelope(envelope), Lane.BULK)

    def send_heights(self, to: PublicKeyBytes, message: Heights) -> None:
        """Tell a peer how far shards are here."""
        self._send(to, encode_envelope(BetweenNodes(body=message)))

    def settle(self) -> None:
        """Read the lane's `wake_at` again: a replica was stepped."""
        self._lane.settle()

    # What others ask.

    def find_http(self, key: PublicKeyBytes) -> str | None:
        """Return the address of a node's HTTP surface; None where that is not known."""
        return self._http.find(key, self._answered.items())

    def status(self) -> NodeFacts:
        """Return what `status` shows."""
        links = self._mesh.links() if self._mesh is not None else []
        members = self.members
        return NodeFacts(
            peers=tuple(
                PeerFacts(
                    address=link.address,
                    state=link.state.value,
                    peer=self._answered.get(link.address),
                    problem=link.problem,
                )
                for link in links
                if link.lane is Lane.ORDINARY
            ),
            members=members if isinstance(members, str) else len(members.peers),
            unresolved=self._addresses.problems,
        )

    @property
    def is_silent(self) -> bool:
        """Whether heartbeats are held back because the journal does not answer."""
        return self._lane.is_silent

    # What the mesh tells.

    def _describe(self) -> Hello:
        members = self.members
        return Hello(
            lane=Lane.ORDINARY,
            software=f"basenet {__version__}",
            node_id=self.me.node_id,
            key=self.me.key,
            journal_id=self._journal.journal_id,
            journal_count=self._journal.jcount,
            boot_nonce=self._boot_nonce,
            features=self._features,
            members_hash=ZERO_HASH if isinstance(members, str) else members.hash,
            nonce=bytes(NONCE_BYTES),
        )

    def _on_addresses(self, addresses: tuple[Endpoint, ...]) -> None:
        assert self._mesh is not None, "addresses without a mesh"
        for gone in set(self._answered) - set(addresses):
            del self._answered[gone]
        self._mesh.set_addresses(addresses)

    def _on_answered(self, address: Endpoint, hello: Hello) -> None:
        if hello.key == self.me.key:
            self._check_itself(hello)
        self._answered[address] = hello
        if self._members.on_answered(address, hello):
            self._tell_members()

    def _admit(self, peer: Hello) -> None:
        if peer.key == self.me.key:
            self._check_itself(peer)
            return
        self._greeter.admit(peer)
        if self._members.on_greeted(peer):
            self._tell_members()

    def _check_itself(self, peer: Hello) -> None:
        """Refuse another process with this node's key: two of them could vote twice."""
        if peer.boot_nonce != self._boot_nonce:
            raise PeerError(
                f"another process ({peer.node_id}) runs with the signing key of this node; stop it "
                "and give each node its own key"
            )

    def _tell_members(self) -> None:
        members = self.members
        if isinstance(members, Membership):
            names = [peer.node_id for peer in members.peers]
            log.info("membership", count=len(names), members=names)
        for port in self._ports():
            port.on_members(members)

    def _on_connected(self, peer: Hello) -> None:
        log.info("peer_connected", peer=peer.node_id, journal=peer.journal_id.hex())
        self._connected[peer.key] = peer
        self._greeter.on_connected(peer)
        if self._http.message is not None and self._http.is_told(peer):
            self._send(peer.key, encode_envelope(BetweenNodes(body=self._http.message)))
        for port in self._ports():
            port.on_connected(peer)

    def _on_lost(self, peer: Hello) -> None:
        log.info("peer_lost", peer=peer.node_id)
        self._connected.pop(peer.key, None)
        self._greeter.on_lost(peer)
        for port in self._ports():
            port.on_lost(peer)

    def _on_unreachable(self, peer: Hello) -> None:
        for port in self._ports():
            port.on_unreachable(peer)

    async def _deliver(self, peer: Hello, data: bytes) -> None:
        self.tally.messages += 1
        try:
            envelope = decode_envelope(data)
        except PeerError as error:
            raise Unreadable(str(error)) from error
        self._greeter.check_run(peer)
        if not isinstance(envelope, BetweenNodes):
            await self._router.route(peer, envelope, len(data))
            return
        match envelope.body:
            case Heartbeat() | HeartbeatAck() as beat:
                self._lane.received(peer, beat)
            case Compared() as compared:
                self._greeter.on_compared(peer, compared)
            case Reachable() as reachable:
                self._http.on_told(peer, reachable)
            case Heights() as heights:
                self.heights.on_told(peer, heights)
            case RolledBack() as answer:
                self._greeter.on_rolled_back(peer, answer)

    def _on_refused(self, origin: str, error: BasenetError) -> None:
        if not isinstance(error, Unwelcome):  # counted where it was found
            self.tally.refused += 1
        self._say_sometimes("connection_refused", origin.rpartition(":")[0], str(error))

    def _on_broken(self, peer: Hello, error: BasenetError) -> None:
        self.tally.oversized += isinstance(error, Oversized)
        self.tally.unreadable += isinstance(error, Unreadable)
        self.tally.wrong += not isinstance(error, (Oversized, Unreadable))
        self._say_sometimes("connection_ended", peer.node_id, str(error))

    def _on_wrong(self, peer: Hello, error: PeerError) -> None:
        """End the connections of a peer whose message a shard found wrong."""
        self._on_broken(peer, error)
        assert self._mesh is not None, "a message without a mesh"
        self._mesh.drop(peer.key)

    def _on_undialled(self, origin: str, problem: str) -> None:
        self._say_sometimes("peer_not_connected", origin, problem)

    def _say_sometimes(self, event: str, origin: str, why: str) -> None:
        """Log a sentence about a connection, each at most once a minute."""
        now_s = trio.current_time()
        text = f"{event} {origin} {why}"
        if now_s < self._told.get(text, now_s):
            return
        if len(self._told) >= _SENTENCES_MAX:
            self._told.clear()
        self._told[text] = now_s + _QUIET_S
        log.warning(event, origin=origin, why=why)

    # Inside.

    def _ports(self) -> list[ShardPort]:
        """Return the ports as they are now: one may go while another is told something."""
        return list(self._router.ports.values())

    def _rouse(self, lineages: Iterable[Lineage]) -> None:
        wanted = frozenset(lineages)
        for port in self._ports():
            if port.lineage in wanted:
                port.rouse()

    def _rouse_all(self) -> None:
        for port in self._ports():
            port.rouse()

    def _send(
        self,
        to: PublicKeyBytes,
        data: bytes,
        lane: Lane = Lane.ORDINARY,
        tags: Iterable[Hashable] = (),
    ) -> None:
        if not self._mesh_send(to, data, lane, tags):
            self.tally.unsent += 1

    def _mesh_send(
        self, to: PublicKeyBytes, data: bytes, lane: Lane, tags: Iterable[Hashable] = ()
    ) -> bool:
        return self._mesh is not None and self._mesh.send(to, data, lane=lane, tags=tags)

    def _send_urgent(self, to: PublicKeyBytes, slot: str, data: bytes) -> None:
        if self._mesh is not None:
            self._mesh.send_urgent(to, slot, data)


def _count_doubters(model: FaultModel, replication: int) -> int:
    """Return how many peers must say that our journal was rolled back: one of them is honest."""
    return (replication - 1) // 3 + 1 if model is FaultModel.BYZANTINE else 1
