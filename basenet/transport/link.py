r"""One connection that this node dials: it sends what waits in the peer's outbox, and redials.

Theory of operation
===================

A link belongs to an *address*, since that is what is dialled; who answers is known after HELLO.
It lives through states that `status` shows::

    dialling -> connected -> waiting -> dialling ...
            \-> refused (the peer is not who it must be), itself, twin -> waiting

``itself``: the address leads to this node. ``twin``: another link reaches the same peer already,
which happens when a name has several addresses. Both are looked at again, rarely.

The other end never sends after HELLO, so a read that returns tells that the connection has ended;
it is how a dead peer is noticed while nothing is sent. A write that makes no progress for
`STALLED_S` ends the connection, too: a peer behind a cut cable says nothing at all.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import trio

from basenet.config.values import Endpoint
from basenet.errors import BasenetError, PeerError, UnavailableError
from basenet.transport import handshake
from basenet.transport.framing import pack
from basenet.transport.handshake import Self, Session
from basenet.transport.outbox import Outbox
from basenet.transport.tls import Credentials
from basenet.wire.hello import Hello, Lane

DIAL_S: Final = 3.0
FAREWELL_S: Final = 2.0
STALLED_S: Final = 10.0
REDIAL_MIN_S: Final = 0.1
REDIAL_MAX_S: Final = 2.0
# Before an address that leads nowhere useful is tried again.
LOOK_AGAIN_S: Final = 30.0


class LinkState(StrEnum):
    """What a link is doing."""

    DIALLING = "dialling"
    CONNECTED = "connected"
    WAITING = "waiting"
    REFUSED = "refused"
    ITSELF = "itself"
    TWIN = "twin"


class Unwelcome(PeerError):  # noqa: N818  (the field's word; the kind is in the base)
    """The peer is refused after HELLO, and is told why: ``farewell`` is the only message to it."""

    def __init__(self, sentence: str, farewell: bytes) -> None:
        super().__init__(sentence)
        self.farewell = farewell


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPort:
    """What a link needs from the mesh.

    ``claim`` is told who answered and returns the outbox to send from, or why not to: the state to
    take; it raises `PeerError` to refuse, as `Unwelcome` with a last word. ``lost`` is told when a
    claimed connection has ended; ``unreachable`` when a redial after that was refused.
    """

    me: Self
    credentials: Credentials
    claim: Callable[["Link", Hello], Outbox | LinkState]
    lost: Callable[["Link", Hello], None]
    unreachable: Callable[[Hello], None]
    wall_clock: Callable[[], float]
    say: Callable[[str, str], None]


class Link:
    """Keeps one connection to one address alive."""

    def __init__(self, address: Endpoint, lane: Lane, port: LinkPort) -> None:
        self.address = address
        self.lane = lane
        self.state = LinkState.WAITING
        self.problem: str | None = None
        self.peer: Hello | None = None
        self._port = port
        self._retry = trio.Event()

    def retry(self) -> None:
        """Dial now instead of later: something speaks for it."""
        self._retry.set()

    async def run(self) -> None:
        """Dial, send, redial, for ever."""
        pause_s = REDIAL_MIN_S
        last: Hello | None = None
        while True:
            # From here on, so that a word which comes before the wait is not lost.
            self._retry = trio.Event()
            self.state = LinkState.DIALLING
            try:
                session = await self._dial()
                self.problem = None
                try:
                    outcome = await self._claim(session)
                    if isinstance(outcome, LinkState):
                        self.state, pause_s = outcome, LOOK_AGAIN_S
                    else:
                        last, pause_s = session.peer, REDIAL_MIN_S
                        await self._serve(session, outcome)
                finally:
                    await trio.aclose_forcefully(session.stream)
            except PeerError as error:
                self._note(LinkState.REFUSED, error)
            except UnavailableError as error:
                self._note(LinkState.WAITING, error)
                # Both lanes find out; the one whose end was told tells this, too.
                if last is not None and self.lane is Lane.ORDINARY:
                    self._port.unreachable(last)
                last = None
            await self._wait(pause_s)
            pause_s = min(REDIAL_MAX_S, pause_s * 2) if pause_s < LOOK_AGAIN_S else REDIAL_MIN_S

    async def _claim(self, session: Session) -> Outbox | LinkState:
        try:
            return self._port.claim(self, session.peer)
        except Unwelcome as error:
            with trio.move_on_after(FAREWELL_S), suppress(trio.BrokenResourceError):
                await session.stream.send_all(pack(error.farewell))
            raise

    def _note(self, state: LinkState, error: BasenetError) -> None:
        self.state = state
        if self.problem != str(error):
            self.problem = str(error)
            self._port.say(str(self.address), self.problem)

    async def _wait(self, pause_s: float) -> None:
        if self.state is LinkState.DIALLING:
            self.state = LinkState.WAITING
        with trio.move_on_after(pause_s * random.uniform(0.75, 1.25)):  # noqa: S311  (spreads redials)
            await self._retry.wait()

    async def _dial(self) -> Session:
        raw = await self._open()
        try:
            return await handshake.connect(
                self._port.me,
                raw,
                self._port.credentials.contexts(),
                self.lane,
                self._port.wall_clock(),
            )
        except BaseException:
            await trio.aclose_forcefully(raw)
            raise

    async def _open(self) -> trio.SocketStream:
        try:
            with trio.fail_after(DIAL_S):
                return await trio.open_tcp_stream(self.address.host, self.address.port)
        except trio.TooSlowError as error:
            raise UnavailableError(
                f"{self.address} did not answer within {DIAL_S:.0f} s"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnavailableError(f"{self.address} cannot be reached ({reason})") from error

    async def _serve(self, session: Session, outbox: Outbox) -> None:
        """Send from ``outbox`` until the connection ends."""
        self.peer, self.state = session.peer, LinkState.CONNECTED
        try:
            with trio.move_on_after(session.valid_for_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_watch, session, nursery.cancel_scope)
                    nursery.start_soon(_send, session, outbox, nursery.cancel_scope)
        finally:
            self.peer, self.state = None, LinkState.WAITING
            # The outbox was filled for this connection: what it lost, the protocol asks for again.
            outbox.clear()
            self._port.lost(self, session.peer)


async def _watch(session: Session, scope: trio.CancelScope) -> None:
    """End the connection when the other side does, or says anything at all."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await session.stream.receive_some(1)
    scope.cancel()


async def _send(session: Session, outbox: Outbox, scope: trio.CancelScope) -> None:
    while True:
        data = await outbox.take()
        try:
            with trio.fail_after(STALLED_S):
                await session.stream.send_all(data)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            break
    scope.cancel()
