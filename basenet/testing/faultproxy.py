"""An HTTP proxy on loopback that delays, loses, cuts and swallows requests on purpose.

::

    async with running_fault_proxy(server_url) as proxy:
        proxy.latency_seconds = 0.020
        proxy.add(Fault(FaultKind.LOSE_ANSWER))                 # the next write
        proxy.add(Fault(FaultKind.UNAVAILABLE, skip_count=2, count=3))   # the 3rd, 4th and 5th
        proxy.add(Fault(FaultKind.TOO_MANY, methods=ALL, count=EVER, chance=0.2))
        ...                                                     # a client that uses proxy.url

It reads a request in whole, passes it on over a connection of its own, and passes the answer back
in whole, so what a fault does is exact: a lost answer was certainly given. It speaks plain HTTP
to one server, and does not change headers; signatures stay right.

`running_weather` runs one in a thread, for callers that are not trio's: real daemons are tried so.
For a benchmark run it in a process of its own: ``running_latency_proxy(server_url, 0.020)``.
"""

import random
import socket
import struct
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import h11
import trio

from basenet.testing.child import announce, running_module, wait_for_parent

HOST: Final = "127.0.0.1"
WRITES: Final = frozenset({"PUT", "POST"})
READS: Final = frozenset({"GET", "HEAD"})
ALL: Final = WRITES | READS | {"DELETE"}
EVER: Final = 1 << 62
# What a cache between client and server would remember, for stale answers.
_REMEMBERED_MAX: Final = 2_000
_REMEMBERED_BYTES_MAX: Final = 64 * 1024
_RECEIVE_BYTES: Final = 256 * 1024


class FaultKind(Enum):
    """What the proxy does to a request."""

    LOSE_ANSWER = auto()
    """The server acts and answers; the client gets a reset connection."""
    RESET_REQUEST = auto()
    """The connection is reset after half of the request's body; the server sees nothing."""
    UNAVAILABLE = auto()
    """The proxy answers 503; the server sees nothing."""
    TOO_MANY = auto()
    """The proxy answers 429; the server sees nothing."""
    SWALLOW = auto()
    """Nothing is ever answered; the server sees nothing."""
    TRUNCATE_ANSWER = auto()
    """The connection ends after half of the answer's body."""
    RESET_ANSWER = auto()
    """The connection is reset after half of the answer's body."""
    STALE_ANSWER = auto()
    """The client gets what was answered to the same request the last time, if it was asked."""


_REFUSALS: Final = {
    FaultKind.UNAVAILABLE: (503, "Slow Down"),
    FaultKind.TOO_MANY: (429, "Too Many Requests"),
}
_CUTS: Final = (FaultKind.TRUNCATE_ANSWER, FaultKind.RESET_ANSWER)


@dataclass(frozen=True, slots=True)
class Fault:
    """``kind`` happens to ``count`` requests, after ``skip_count`` that it is also meant for.

    It is meant for requests whose method is in ``methods`` and whose target has ``target_part``,
    and happens to them with the probability ``chance``.
    """

    kind: FaultKind
    methods: frozenset[str] = WRITES
    target_part: str = ""
    skip_count: int = 0
    count: int = 1
    chance: float = 1.0


class FaultProxy:
    """One running proxy. Its attributes and faults may change at any time."""

    def __init__(self, server_url: str, url: str, latency_seconds: float = 0.0) -> None:
        """Speak for the server at ``server_url``; ``url`` is where clients find the proxy."""
        self.url = url
        self.latency_seconds = latency_seconds
        self.request_counts: Counter[str] = Counter()  # by method
        self.fault_counts: Counter[FaultKind] = Counter()
        self.written_bytes = 0  # bodies of writes that the server has answered with success
        self.written_count = 0
        self.on_request: Callable[[str, str], None] | None = None  # told method and target
        self.random = random.Random(1)
        self._answers: OrderedDict[tuple[bytes, bytes], tuple[h11.Response, bytes]] = OrderedDict()
        self._arrived = trio.Event()
        self._server = urlsplit(server_url)
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Plan a fault. Of several that are meant for a request the first added one happens."""
        self._faults.append(fault)

    def clear(self) -> None:
        """Forget all faults. Requests that were swallowed stay so."""
        self._faults.clear()

    async def wait_for_requests(self, count: int) -> None:
        """Return when ``count`` requests have arrived since the start."""
        while self.request_counts.total() < count:
            await self._arrived.wait()

    def _take_fault(self, method: str, target: str) -> FaultKind | None:
        for index, fault in enumerate(self._faults):
            if method not in fault.methods or fault.target_part not in target:
                continue
            if fault.chance < 1 and self.random.random() >= fault.chance:
                continue
            if fault.skip_count:
                self._faults[index] = replace(fault, skip_count=fault.skip_count - 1)
                continue
            if fault.count > 1:
                self._faults[index] = replace(fault, count=fault.count - 1)
            else:
                del self._faults[index]
            self.fault_counts[fault.kind] += 1
            return fault.kind
        return None

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client's connection until either side is through with it."""
        client = _Peer(stream, h11.Connection(h11.SERVER))
        try:
            while await self._serve_request(client):
                client.connection.start_next_cycle()
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # the client or the server gave up, as they do in tests of faults
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve_request(self, client: "_Peer") -> bool:
        """Serve one request; return whether the connection can carry another one."""
        request = await client.next_event()
        if not isinstance(request, h11.Request):
            return False
        method = request.method.decode("ascii")
        target = request.target.decode("ascii")
        self.request_counts[method] += 1
        if self.on_request is not None:
            self.on_request(method, target)
        self._arrived.set()
        self._arrived = trio.Event()
        kind = self._take_fault(method, target)
        await trio.sleep(self.latency_seconds)
        if kind is FaultKind.SWALLOW:
            await trio.sleep_forever()
        if kind is FaultKind.RESET_REQUEST:
            await client.read_body(limit_bytes=_content_bytes(request) // 2)
            client.reset()
            return False
        return await self._answer(client, request, await client.read_body(), kind)

    async def _answer(
        self, client: "_Peer", request: h11.Request, body: bytes, kind: FaultKind | None
    ) -> bool:
        """Answer a request that arrived in whole; return as `_serve_request` does."""
        if kind in _REFUSALS:
            return await client.send(_make_refusal(*_REFUSALS[kind]), b"")
        remembered = self._answers.get(_cache_key(request))
        is_read = request.method == b"GET"
        if kind is FaultKind.STALE_ANSWER and is_read and remembered is not None:
            return await client.send(*remembered)
        response, answer = await self._ask_server(request, body)
        self._note(request, body, response, answer)
        if kind not in (FaultKind.LOSE_ANSWER, *_CUTS):
            return await client.send(response, answer)
        if kind in _CUTS:
            await client.send_part(response, answer[: len(answer) // 2])
        if kind is not FaultKind.TRUNCATE_ANSWER:
            client.reset()
        return False

    def _note(
        self, request: h11.Request, body: bytes, response: h11.Response, answer: bytes
    ) -> None:
        method = request.method.decode("ascii")
        if method in WRITES and response.status_code < HTTPStatus.MULTIPLE_CHOICES:
            self.written_count += 1
            self.written_bytes += len(body)
        if method == "GET" and len(answer) <= _REMEMBERED_BYTES_MAX:
            self._answers[_cache_key(request)] = (response, answer)
            if len(self._answers) > _REMEMBERED_MAX:
                self._answers.popitem(last=False)

    async def _ask_server(self, request: h11.Request, body: bytes) -> tuple[h11.Response, bytes]:
        # A connection for each request: none can have been closed by the server in the meantime.
        stream = await trio.open_tcp_stream(self._server.hostname or HOST, self._server.port or 80)
        async with stream:
            server = _Peer(stream, h11.Connection(h11.CLIENT))
            headers = [(name, value) for name, value in request.headers if name != b"expect"]
            await server.send(
                h11.Request(method=request.method, target=request.target, headers=headers), body
            )
            response = await server.next_event()
            while isinstance(response, h11.InformationalResponse):
                response = await server.next_event()
            if not isinstance(response, h11.Response):
                raise trio.BrokenResourceError("the server closed the connection")
            return response, await server.read_body()


class _Peer:
    """One end of an HTTP/1.1 connection over a stream."""

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection) -> None:
        self.stream = stream
        self.connection = connection

    async def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self.connection.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.connection.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await self.stream.send_all(self.connection.send(go_on) or b"")
            self.connection.receive_data(await self.stream.receive_some(_RECEIVE_BYTES))

    async def read_body(self, limit_bytes: int | None = None) -> bytes:
        """Return the body that follows, or what came of it once there are ``limit_bytes``."""
        body = bytearray()
        while limit_bytes is None or len(body) < limit_bytes:
            event = await self.next_event()
            if isinstance(event, h11.EndOfMessage):
                break
            if not isinstance(event, h11.Data):
                raise trio.BrokenResourceError("the connection ended inside a body")
            body += event.data
        return bytes(body)

    async def send(self, head: h11.Request | h11.Response, body: bytes) -> bool:
        """Send a whole message; return whether the connection can carry another one."""
        sent = [self.connection.send(event) for event in (head, h11.Data(body), h11.EndOfMessage())]
        await self.stream.send_all(b"".join(piece or b"" for piece in sent))
        return self.connection.our_state is self.connection.their_state is h11.DONE

    async def send_part(self, head: h11.Response, body: bytes) -> None:
        """Send a message without its end."""
        sent = [self.connection.send(event) for event in (head, h11.Data(body))]
        await self.stream.send_all(b"".join(piece or b"" for piece in sent))

    def reset(self) -> None:
        """Let the connection end with a reset instead of politely, when it is closed."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _content_bytes(request: h11.Request) -> int:
    return int(dict(request.headers).get(b"content-length", b"0"))


def _cache_key(request: h11.Request) -> tuple[bytes, bytes]:
    return request.target, dict(request.headers).get(b"range", b"")


def _make_refusal(status: int, reason: str) -> h11.Response:
    return h11.Response(status_code=status, reason=reason, headers=[("Content-Length", "0")])


@asynccontextmanager
async def running_fault_proxy(
    server_url: str, *, latency_seconds: float = 0.0
) -> AsyncIterator[FaultProxy]:
    """Run a proxy for the server at ``server_url`` while the body runs."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        port = listener.socket.getsockname()[1]
        proxy = FaultProxy(server_url, f"http://{HOST}:{port}", latency_seconds)
        nursery.start_soon(partial(trio.serve_listeners, proxy.serve, [listener]))
        yield proxy
        nursery.cancel_scope.cancel()


class Weather:
    """A proxy that runs in a thread of its own. Its methods are for all other threads."""

    def __init__(self, proxy: FaultProxy, token: trio.lowlevel.TrioToken) -> None:
        """Speak for ``proxy``, which runs where ``token`` is from."""
        self.proxy = proxy
        self.url = proxy.url
        self._token = token

    def add(self, *faults: Fault) -> None:
        """Plan faults, as `FaultProxy.add` does."""
        for fault in faults:
            trio.from_thread.run_sync(self.proxy.add, fault, trio_token=self._token)

    def clear(self) -> None:
        """Forget all faults and the latency. Requests that were swallowed stay so."""
        trio.from_thread.run_sync(self.proxy.clear, trio_token=self._token)
        self.set_latency(0.0)

    def set_latency(self, seconds: float) -> None:
        """Delay every request from now on."""
        self.proxy.latency_seconds = seconds


@contextmanager
def running_weather(server_url: str, *, seed: int = 1) -> Iterator[Weather]:
    """Run a proxy for the server at ``server_url`` in a thread while the body runs."""
    started: list[tuple[FaultProxy, trio.lowlevel.TrioToken, trio.CancelScope]] = []
    is_started = threading.Event()

    async def run() -> None:
        with trio.CancelScope() as scope:
            async with running_fault_proxy(server_url) as proxy:
                proxy.random.seed(seed)
                started.append((proxy, trio.lowlevel.current_trio_token(), scope))
                is_started.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    is_started.wait()
    proxy, token, scope = started[0]
    try:
        yield Weather(proxy, token)
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join()


@contextmanager
def running_latency_proxy(server_url: str, latency_seconds: float) -> Iterator[str]:
    """Run a proxy that only delays, in a process of its own, and give its URL."""
    with running_module(__name__, server_url, repr(latency_seconds)) as url:
        yield url


async def _main() -> None:
    server_url, latency_seconds = sys.argv[1], float(sys.argv[2])
    async with running_fault_proxy(server_url, latency_seconds=latency_seconds) as proxy:
        announce(proxy.url)
        await trio.to_thread.run_sync(wait_for_parent)


if __name__ == "__main__":
    trio.run(_main)
