"""Streams that cannot hang, and no more of them than were allowed.

Theory of operation
===================

hypercorn's own ``serve`` for trio leaves two things open that a daemon beside a database cannot:
it sends inside a shielded scope without an end, so one client that stops reading keeps the process
from ever shutting down, and it accepts without a limit, so one client can take every descriptor.
Both are met here, below hypercorn, where a stream is still ours: a send has a deadline of its own,
and each listener has a budget, so that a flood at the TCP port leaves the operator's socket usable.

A client that is slow to *ask* is met above, by `control.conversation` and then by hypercorn: a
connection without a whole request head ends in time. What is done with a body that nobody wants is
in `control.boundary`.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

SEND_SECONDS_MAX: Final = 10.0  # for one send; what is longer than 1 MiB is sent in pieces

_log = structlog.get_logger()

_Handler = Callable[["BoundedStream"], Awaitable[None]]


class BoundedStream(trio.abc.HalfCloseableStream):
    """A socket stream whose sends fail instead of waiting for ever. hypercorn reads ``socket``."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._unread = b""
        self.socket = stream.socket

    def unread(self, data: bytes) -> None:
        """Put ``data``, which was received, in front of what comes: the next reader gets it."""
        self._unread = data + self._unread

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; raise `trio.BrokenResourceError` when the client does not take it."""
        with trio.move_on_after(SEND_SECONDS_MAX) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self._stream)  # or its reader would wait on
            raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See `trio.abc.ReceiveStream`."""
        if self._unread:
            await trio.lowlevel.checkpoint()
            size = len(self._unread) if max_bytes is None else max_bytes
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()


class BoundedListener(trio.abc.Listener[BoundedStream]):
    """Accepts from one listening socket, which it closes at its end."""

    def __init__(self, listening: socket.socket) -> None:
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

    async def accept(self) -> BoundedStream:
        """Return the next client's stream."""
        return BoundedStream(await self._listener.accept())

    async def aclose(self) -> None:
        """Stop listening."""
        await self._listener.aclose()


class Connections:
    """The open streams of one listener: at most ``limit``, one more is closed unheard."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[BoundedStream] = set()

    def bound(self, handler: _Handler) -> _Handler:
        """Return ``handler`` as one that neither exceeds the limit nor raises.

        What goes wrong on one connection ends that connection; it is logged, since it is a fault
        of ours or of the server library and not of a daemon that captures commits.
        """

        async def handle(stream: BoundedStream) -> None:
            if len(self._open) >= self._limit:
                return  # the caller closes it
            self._open.add(stream)
            try:
                await handler(stream)
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client went away in mid-sentence
            except* Exception:  # noqa: BLE001  (one connection is not worth the daemon)
                _log.exception("an HTTP connection failed")
            finally:
                self._open.discard(stream)

        return handle

    async def abort(self) -> None:
        """Close every stream at once, so that even a shielded send ends."""
        for stream in tuple(self._open):
            await trio.aclose_forcefully(stream)
