"""The proxy does to requests exactly what it was told to, and to no others."""

import http.client
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
import trio

from basenet.testing.faultproxy import (
    ALL,
    READS,
    Fault,
    FaultKind,
    running_fault_proxy,
    running_latency_proxy,
)

_Result = TypeVar("_Result")


class Server(ThreadingHTTPServer):
    """Remembers the bodies that were PUT, by path."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[mutable-override]  # (it is never set)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.held[self.path] = data
        self.answer(b"stored")

    def do_GET(self) -> None:
        self.answer(self.server.held.get(self.path, b""))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """Send one request over a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, answer.status
        return data
    finally:
        connection.close()


async def in_thread(call: Callable[[], _Result]) -> _Result:
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


async def test_without_faults_it_is_transparent(server: Server) -> None:
    """Several requests over one connection, big bodies, and a client that waits for 100."""
    big = b"0123456789" * 200_000
    async with running_fault_proxy(server.url) as proxy:

        def talk() -> None:
            connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=10)
            for number, body in enumerate((b"", b"data", big)):
                connection.request("PUT", f"/{number}", body, {"Expect": "100-continue"})
                assert connection.getresponse().read() == b"stored"
                connection.request("GET", f"/{number}")
                assert connection.getresponse().read() == body
            connection.close()

        await in_thread(talk)
        assert proxy.request_counts == {"PUT": 3, "GET": 3}


async def test_a_lost_answer_was_given(server: Server) -> None:
    """The server has the body, the client a reset connection; the next request is whole."""
    async with running_fault_proxy(server.url) as proxy:
        proxy.add(Fault(FaultKind.LOSE_ANSWER))
        with pytest.raises(ConnectionError):
            await in_thread(lambda: ask(proxy.url, "PUT", "/a", b"data"))
        assert server.held == {"/a": b"data"}
        assert await in_thread(lambda: ask(proxy.url, "PUT", "/b", b"data")) == b"stored"


async def test_a_reset_request_never_reaches_the_server(server: Server) -> None:
    """Half of its body does not become an object."""
    async with running_fault_proxy(server.url) as proxy:
        proxy.add(Fault(FaultKind.RESET_REQUEST))
        with pytest.raises(ConnectionError):
            await in_thread(lambda: ask(proxy.url, "PUT", "/a", b"data" * 100_000))
        assert server.held == {}


async def test_a_truncated_answer_ends_in_the_middle(server: Server) -> None:
    """Its length is announced, half of it comes."""
    server.held["/a"] = b"0123456789"
    async with running_fault_proxy(server.url) as proxy:
        proxy.add(Fault(FaultKind.TRUNCATE_ANSWER, methods=READS))
        with pytest.raises(http.client.IncompleteRead) as caught:
            await in_thread(lambda: ask(proxy.url, "GET", "/a"))
        assert caught.value.partial == b"01234"


async def test_a_fault_is_for_the_requests_that_it_names(server: Server) -> None:
    """By method, part of the target, how many to skip, and how many then."""
    async with running_fault_proxy(server.url) as proxy:
        proxy.add(
            Fault(FaultKind.UNAVAILABLE, methods=ALL, target_part="LEASE", skip_count=1, count=2)
        )
        outcomes = []
        for path in ("/LEASE", "/TIP", "/LEASE", "/LEASE", "/LEASE"):
            try:
                await in_thread(lambda path=path: ask(proxy.url, "PUT", path, b""))  # type: ignore[misc]  # (mypy cannot infer a lambda's default)
                outcomes.append(200)
            except AssertionError as error:
                outcomes.append(int(str(error).split("\n")[0]))
        assert outcomes == [200, 200, 503, 503, 200]


async def test_a_swallowed_request_is_never_answered(server: Server) -> None:
    """Others are, meanwhile, and after all faults are cleared."""
    async with running_fault_proxy(server.url) as proxy, trio.open_nursery() as nursery:
        proxy.add(Fault(FaultKind.SWALLOW))
        nursery.start_soon(in_thread, lambda: ask(proxy.url, "PUT", "/a", b"data"))
        await proxy.wait_for_requests(1)
        assert await in_thread(lambda: ask(proxy.url, "PUT", "/b", b"data")) == b"stored"
        proxy.add(Fault(FaultKind.SWALLOW))
        proxy.clear()
        assert await in_thread(lambda: ask(proxy.url, "PUT", "/c", b"data")) == b"stored"
        assert server.held == {"/b": b"data", "/c": b"data"}
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_gone_is_a_lost_connection(server: Server) -> None:
    """The proxy itself goes on."""
    async with running_fault_proxy("http://127.0.0.1:1") as proxy:
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await in_thread(lambda: ask(proxy.url, "GET", "/a"))
    assert server.held == {}


async def test_a_proxy_of_its_own_process_delays(server: Server) -> None:
    """Each request by the given time, for benchmarks; it ends with the block."""
    server.held["/a"] = b"data"
    with running_latency_proxy(server.url, 0.05) as url:
        begin = trio.current_time()
        assert await in_thread(lambda: ask(url, "GET", "/a")) == b"data"
        assert trio.current_time() - begin >= 0.05
    with pytest.raises(ConnectionError):
        await in_thread(lambda: ask(url, "GET", "/a"))
