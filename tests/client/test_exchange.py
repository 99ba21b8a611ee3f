import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from basenet.client.errors import DaemonUnavailable
from basenet.client.exchange import Exchange, Place

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """Answers the connections that come with the given bytes, one entry a connection."""

    def __init__(self, scripts: Sequence[Sequence[bytes]]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.place = Place(host="127.0.0.1", port=self.listener.getsockname()[1])
        self.heard: list[bytes] = []
        self.thread = threading.Thread(target=self._run, args=(scripts,))
        self.thread.start()

    def _run(self, scripts: Sequence[Sequence[bytes]]) -> None:
        for answers in scripts:
            connection, _ = self.listener.accept()
            with connection:
                for answer in answers:
                    self.heard.append(connection.recv(65536))
                    connection.sendall(answer)

    def close(self) -> None:
        self.thread.join(10)
        self.listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*scripts: Sequence[bytes]) -> Server:
        servers.append(Server(scripts))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_one_connection_serves_many_questions(serve: Callable[..., Server]) -> None:
    """A commit costs a round trip and not a handshake."""
    server = serve([OK, OK.replace(b"200 OK", b"503 no")])
    exchange = Exchange(server.place)
    assert exchange.get("/a", 5).status == 200
    assert exchange.get("/b", 5).status == 503
    exchange.close()
    assert server.heard[0].startswith(b"GET /a HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    assert server.heard[1].startswith(b"GET /b ")


def test_a_connection_that_the_daemon_closed_is_made_anew(serve: Callable[..., Server]) -> None:
    """It closes idle ones; the question goes out again, once."""
    server = serve([OK], [OK])
    exchange = Exchange(server.place)
    assert exchange.get("/a", 5).body == b"{}"
    assert exchange.get("/b", 5).body == b"{}"
    exchange.close()
    assert server.heard[-1].startswith(b"GET /b ")


def test_a_connection_that_is_to_end_is_not_used_again(serve: Callable[..., Server]) -> None:
    """The daemon says so when it shuts down."""
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    server = serve([closing], [OK])
    exchange = Exchange(server.place)
    assert exchange.get("/a", 5).status == exchange.get("/b", 5).status == 200
    exchange.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nno length",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 what\r\ncontent-length: 2\r\n\r\n{}",
        b"x" * 200_000,
    ],
)
def test_what_is_no_daemon_is_said_to_be_none(serve: Callable[..., Server], answer: bytes) -> None:
    """And nothing is read without bound."""
    exchange = Exchange(serve([answer]).place)
    with pytest.raises(DaemonUnavailable, match="not a basenet daemon"):
        exchange.get("/a", 5)


def test_an_answer_that_ends_early_is_an_error(serve: Callable[..., Server]) -> None:
    """Half an answer is none, and the next question begins anew."""
    server = serve([b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{"], [OK])
    exchange = Exchange(server.place)
    with pytest.raises(DaemonUnavailable, match="middle of its answer"):
        exchange.get("/a", 5)
    assert exchange.get("/b", 5).status == 200
    exchange.close()


def test_a_daemon_that_says_nothing_is_given_up() -> None:
    """In the time that was given."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        exchange = Exchange(Place(host="127.0.0.1", port=silent.getsockname()[1]))
        with pytest.raises(DaemonUnavailable, match="in time"):
            exchange.get("/a", 0.05)


def test_a_socket_with_a_long_path_is_reached(tmp_path: Path) -> None:
    """An address ends at 107 bytes, a data directory need not."""
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{handle}/basenet.sock")
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(OK)

        thread = threading.Thread(target=answer)
        thread.start()
        exchange = Exchange(Place(socket_path=folder / "basenet.sock"))
        assert exchange.get("/a", 5).status == 200
        exchange.close()
        thread.join(10)
    os.close(handle)


def test_no_daemon_is_one_sentence(tmp_path: Path) -> None:
    """With the place that was tried."""
    for place in (Place(socket_path=tmp_path / "none.sock"), Place(host="127.0.0.1", port=1)):
        with pytest.raises(DaemonUnavailable, match="no basenet daemon answers at") as caught:
            Exchange(place).get("/a", 5)
        assert str(place) in str(caught.value)
        assert caught.value.is_committed is False
