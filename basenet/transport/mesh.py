"""All connections of this node: a sender per peer and lane, a listener, one list of addresses.

Peers are named by their signing keys. A message to a key that no link has reached is dropped, as is
one that finds the peer's outbox full; `send` tells, and the protocol above asks again.
"""

from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

import trio

from basenet.config.values import Endpoint
from basenet.errors import BasenetError
from basenet.transport.handshake import Self
from basenet.transport.link import Link, LinkPort, LinkState
from basenet.transport.listener import Listener, ListenerPort
from basenet.transport.outbox import BULK_BYTES_MAX, ORDINARY_BYTES_MAX, Outbox
from basenet.transport.tls import Credentials
from basenet.units import PublicKeyBytes
from basenet.wire.hello import Hello, Lane

_BYTES_MAX: Final = {Lane.ORDINARY: ORDINARY_BYTES_MAX, Lane.BULK: BULK_BYTES_MAX}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """What the mesh tells its owner.

    ``deliver``: a message of an authenticated peer; the next one of that connection waits for it.
    ``answered``: who said HELLO at an address that was dialled, this node itself included.
    ``admit``: a peer said HELLO, on either kind of connection; raises `PeerError` to refuse it,
    as `link.Unwelcome` with a last word for it where this node dialled.
    ``connected``, ``lost``: this node can, can no longer send to the peer on the ordinary lane.
    ``unreachable``: it was lost and dialling it again was refused at once: a hint that its process
    is gone. ``refused``: a connection failed to authenticate or was not admitted, with where it
    came from. ``broken``: an admitted one was ended by an error of the peer's. ``undialled``: why
    an address gives no connection, once per change of the text.
    """

    deliver: Callable[[Hello, bytes], Awaitable[None]]
    answered: Callable[[Endpoint, Hello], None]
    admit: Callable[[Hello], None]
    connected: Callable[[Hello], None]
    lost: Callable[[Hello], None]
    unreachable: Callable[[Hello], None]
    refused: Callable[[str, BasenetError], None]
    broken: Callable[[Hello, BasenetError], None]
    undialled: Callable[[str, str], None]


@dataclass(slots=True, kw_only=True)
class _Address:
    links: dict[Lane, Link]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Mesh:
    """Connects this node with its peers."""

    def __init__(
        self,
        *,
        me: Self,
        credentials: Credentials,
        tell: Listeners,
        wall_clock: Callable[[], float],
    ) -> None:
        self._own_key = me.signer.public
        self._tell = tell
        self._outboxes: dict[tuple[PublicKeyBytes, Lane], Outbox] = {}
        self._claims: dict[tuple[PublicKeyBytes, Lane], Link] = {}
        self._addresses: dict[Endpoint, _Address] = {}
        self._wanted: tuple[Endpoint, ...] = ()
        self._changed = trio.Event()
        self._link_port = LinkPort(
            me=me,
            credentials=credentials,
            claim=self._claim,
            lost=self._lost,
            unreachable=tell.unreachable,
            wall_clock=wall_clock,
            say=tell.undialled,
        )
        self._listener = Listener(
            ListenerPort(
                me=me,
                credentials=credentials,
                admit=tell.admit,
                deliver=tell.deliver,
                refused=tell.refused,
                broken=tell.broken,
                wall_clock=wall_clock,
            )
        )

    def set_addresses(self, addresses: Iterable[Endpoint]) -> None:
        """Dial these and no others; links to addresses that stay are left alone."""
        self._wanted = tuple(dict.fromkeys(addresses))
        self._changed.set()

    def send(
        self,
        to: PublicKeyBytes,
        message: bytes,
        *,
        lane: Lane = Lane.ORDINARY,
        tags: Iterable[Hashable] = (),
    ) -> bool:
        """Queue ``message``; False when the peer is not connected or too much waits for it.

        ``tags`` name what is in it, for `is_coming`.
        """
        if (to, lane) not in self._claims:
            return False
        return self._outboxes[to, lane].put(message, tags)

    def is_coming(self, to: PublicKeyBytes, tag: Hashable, lane: Lane) -> bool:
        """Return whether what has ``tag`` is on its way to the peer, on the present connection."""
        return (to, lane) in self._claims and self._outboxes[to, lane].is_coming(tag)

    def send_urgent(self, to: PublicKeyBytes, slot: str, message: bytes) -> bool:
        """Send ``message`` before all others, in place of an older one of the slot."""
        if (to, Lane.ORDINARY) not in self._claims:
            return False
        self._outboxes[to, Lane.ORDINARY].put_urgent(slot, message)
        return True

    def is_connected(self, peer: PublicKeyBytes) -> bool:
        """Return whether this node can send to ``peer``."""
        return (peer, Lane.ORDINARY) in self._claims

    def drop(self, peer: PublicKeyBytes) -> None:
        """End the connections by which ``peer`` sends to this node; it may come back."""
        self._listener.drop(peer)

    def queued_bytes(self, peer: PublicKeyBytes, lane: Lane) -> int:
        """Return how much waits to be sent to ``peer``."""
        outbox = self._outboxes.get((peer, lane))
        return outbox.queued_bytes if outbox else 0

    @property
    def dropped(self) -> int:
        """How many messages were dropped because a peer took too few of them."""
        return sum(outbox.dropped for outbox in self._outboxes.values())

    def links(self) -> list[Link]:
        """Return all links, for `status`."""
        return [link for address in self._addresses.values() for link in address.links.values()]

    async def run(
        self,
        listen: Endpoint,
        *,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on ``listen`` and dial, for ever; ``started`` is given the port.

        Raises `UnavailableError` if the address is taken.
        """
        listeners = await self._listener.open(listen)
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            for listener in listeners:
                await stack.enter_async_context(listener)
                nursery.start_soon(self._listener.run, listener)
            task_status.started(listeners[0].socket.getsockname()[1])
            while True:
                self._changed = trio.Event()
                self._follow(nursery)
                await self._changed.wait()

    def _follow(self, nursery: trio.Nursery) -> None:
        """Begin links to new addresses and end those to addresses that are gone."""
        for endpoint in [known for known in self._addresses if known not in self._wanted]:
            self._addresses.pop(endpoint).scope.cancel()
        for endpoint in self._wanted:
            if endpoint not in self._addresses:
                links = {lane: Link(endpoint, lane, self._link_port) for lane in Lane}
                self._addresses[endpoint] = address = _Address(links=links)
                nursery.start_soon(self._run_address, address)

    async def _run_address(self, address: _Address) -> None:
        with address.scope:
            async with trio.open_nursery() as nursery:
                for link in address.links.values():
                    nursery.start_soon(link.run)

    def _claim(self, link: Link, peer: Hello) -> Outbox | LinkState:
        self._tell.answered(link.address, peer)
        if peer.key == self._own_key:
            return LinkState.ITSELF
        slot = (peer.key, link.lane)
        if slot in self._claims:
            return LinkState.TWIN
        self._tell.admit(peer)
        self._claims[slot] = link
        outbox = self._outboxes.setdefault(slot, Outbox(_BYTES_MAX[link.lane]))
        outbox.clear()
        if link.lane is Lane.ORDINARY:
            self._tell.connected(peer)
        return outbox

    def _lost(self, link: Link, peer: Hello) -> None:
        slot = (peer.key, link.lane)
        del self._claims[slot]
        if link.lane is Lane.ORDINARY:
            self._tell.lost(peer)
        # A twin that reaches the same peer by another address takes over at once.
        for other in self.links():
            if other is not link and other.lane == link.lane and other.state is LinkState.TWIN:
                other.retry()
