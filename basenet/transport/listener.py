"""The connections that peers dialled: this node reads from them and never answers.

Whoever is not authenticated yet costs a socket and a kilobyte, for five seconds, and there are at
most `GREETING_MAX` of those at once. Of an authenticated peer the newest few connections of a lane
are read: the end of an old one may not have been noticed yet, and a peer that finds us by two
addresses gives the second connection up again. Reading waits for the consumer, so that a peer which
floods is slowed down alone.
"""

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from basenet.config.values import Endpoint
from basenet.errors import BasenetError, PeerError, UnavailableError
from basenet.transport import handshake
from basenet.transport.framing import MESSAGE_BYTES_MAX
from basenet.transport.handshake import Self, Session
from basenet.transport.tls import Credentials
from basenet.units import PublicKeyBytes
from basenet.wire.hello import Hello, Lane

GREETING_MAX: Final = 64
PER_LANE_MAX: Final = 4
# A message that has begun is whole after this long; 16 MiB at 3 Mbit/s.
MESSAGE_S: Final = 45.0
_PAUSE_S: Final = 0.1
# Of accept(2): no file descriptors or memory now, or the peer has gone already.
_PASSING_ERRORS: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerPort:
    """What the listener needs from the mesh.

    ``admit`` is told who came and raises `PeerError` to refuse; ``deliver`` takes a message and
    returns when there is room for the next one, or raises `PeerError` to end the connection.
    ``refused`` is told whose connection never began, ``broken`` whose ended by an error of theirs.
    """

    me: Self
    credentials: Credentials
    admit: Callable[[Hello], None]
    deliver: Callable[[Hello, bytes], Awaitable[None]]
    refused: Callable[[str, BasenetError], None]
    broken: Callable[[Hello, BasenetError], None]
    wall_clock: Callable[[], float]


class Listener:
    """Accepts and reads the connections of peers."""

    def __init__(self, port: ListenerPort) -> None:
        self._port = port
        self._greeting = trio.Semaphore(GREETING_MAX)
        self._reading: dict[tuple[PublicKeyBytes, Lane], list[trio.CancelScope]] = {}

    async def open(self, address: Endpoint) -> list[trio.SocketListener]:
        """Return listening sockets on ``address``; raises `UnavailableError` if it is taken."""
        try:
            return await trio.open_tcp_listeners(address.port, host=address.host or None)
        except OSError as error:
            raise UnavailableError(
                f"BASE_LISTEN_P2P: {address} cannot be listened on ({error.strerror or error}); "
                "choose another address or stop what uses it"
            ) from error

    async def run(self, listener: trio.SocketListener) -> None:
        """Accept for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._greeting.acquire()
                try:
                    raw = await listener.accept()
                except OSError as error:
                    self._greeting.release()
                    if error.errno not in _PASSING_ERRORS:
                        raise
                    await trio.sleep(_PAUSE_S)
                    continue
                nursery.start_soon(self._handle, raw)

    async def _handle(self, raw: trio.SocketStream) -> None:
        port = self._port
        origin = _name_of(raw)
        try:
            try:
                session = await handshake.accept(
                    port.me, raw, port.credentials.contexts(), port.wall_clock()
                )
                port.admit(session.peer)
            finally:
                self._greeting.release()
            try:
                await self._read(session)
            except PeerError as error:
                port.broken(session.peer, error)
        except (PeerError, UnavailableError) as error:
            port.refused(origin, error)
        finally:
            await trio.aclose_forcefully(raw)

    def drop(self, key: PublicKeyBytes) -> None:
        """End the connections of a peer; it may come back."""
        for (owner, _), scopes in self._reading.items():
            if owner == key:
                for scope in scopes:
                    scope.cancel()

    async def _read(self, session: Session) -> None:
        slot = (session.peer.key, session.peer.lane)
        session.reader.size_max = MESSAGE_BYTES_MAX
        with trio.move_on_after(session.valid_for_s) as scope:
            scopes = self._reading.setdefault(slot, [])
            scopes.append(scope)
            for old in scopes[:-PER_LANE_MAX]:
                old.cancel()
            try:
                await self._read_messages(session)
            finally:
                scopes.remove(scope)

    async def _read_messages(self, session: Session) -> None:
        try:
            while (message := await session.reader.next(within_s=MESSAGE_S)) is not None:
                await self._port.deliver(session.peer, message)
        except trio.BrokenResourceError:
            # The peer's process died or its machine reset the connection: an end like any other.
            return


def _name_of(raw: trio.SocketStream) -> str:
    try:
        host, port, *_ = raw.socket.getpeername()
    except OSError:
        return "a peer that has gone"
    return str(Endpoint(host=str(host), port=int(port)))
