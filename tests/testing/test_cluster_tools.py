"""What judges a cluster must notice what is wrong; the links between nodes do what they say."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from basenet.testing.history import Operation, Outcome, find_contradictions
from basenet.testing.links import LOOPBACK, Link

SHORT_S = 0.2


def final(tag: str, version: int, begin: int, end: int, key: str = "k") -> Operation:
    return Operation(
        tag=tag,
        key=key,
        node="n0",
        begin_ns=begin,
        end_ns=end,
        version=version,
        outcome=Outcome.FINAL,
    )


def test_a_history_that_can_be_true_is_not_contradicted() -> None:
    """Operations at the same time may be in any order; those of other keys are not compared."""
    history = [
        final("a", 2, 0, 50),
        final("b", 1, 10, 60),
        final("c", 3, 61, 70),
        final("d", 1, 80, 90, key="other"),
    ]
    state = {("k", 1): "b", ("k", 2): "a", ("k", 3): "c", ("other", 1): "d", ("k", 4): "unknown"}
    assert find_contradictions(history, state) == []


def test_a_lost_write_is_found() -> None:
    """Acknowledged and not in the final state, or under another's tag."""
    history = [final("a", 1, 0, 10), final("b", 2, 20, 30)]
    (only,) = find_contradictions(history, {("k", 1): "a"})
    assert "b was acknowledged final" in only
    (other,) = find_contradictions(history, {("k", 1): "a", ("k", 2): "stranger"})
    assert "where the final state has stranger" in other


def test_an_order_against_time_is_found() -> None:
    """Who began after another was final has the higher version."""
    history = [final("late", 1, 100, 110), final("early", 2, 0, 50)]
    (only,) = find_contradictions(history, {("k", 1): "late", ("k", 2): "early"})
    assert only.startswith("k: late began after early was final")


def test_a_version_that_was_given_twice_is_found() -> None:
    """Two writers that both acknowledged version 1."""
    history = [final("a", 1, 0, 10), final("b", 1, 5, 15)]
    assert len(find_contradictions(history, {("k", 1): "a"})) == 1


def test_what_failed_must_not_have_happened() -> None:
    """SQLite said that the transaction did not begin."""
    failed = final("a", 1, 0, 10)
    failed.outcome = Outcome.FAILED
    assert find_contradictions([failed], {("k", 1): "a"}) == ["a failed and is final"]


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listener = socket.create_server((LOOPBACK, 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def link(echo: int) -> Iterator[Link]:
    link = Link(echo)
    yield link
    link.close()


def dial(link: Link) -> socket.socket:
    connection = socket.create_connection((LOOPBACK, link.port), timeout=10)
    connection.settimeout(10)
    return connection


def test_a_link_forwards_and_what_was_held_arrives_later(link: Link) -> None:
    """Held: nothing arrives and nothing ends; healed: all of it does."""
    with dial(link) as connection:
        connection.sendall(b"one")
        assert connection.recv(10) == b"one"
        link.hold()
        connection.sendall(b"two")
        connection.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        connection.settimeout(10)
        link.heal()
        assert connection.recv(10) == b"two"


def test_a_cut_link_ends_connections_and_refuses_new_ones(link: Link) -> None:
    """And forwards again when it is healed."""
    with dial(link) as connection:
        connection.sendall(b"one")
        assert connection.recv(10) == b"one"
        link.cut()
        with suppress(ConnectionError):
            assert connection.recv(10) == b""
    with dial(link) as refused, suppress(ConnectionError):
        assert refused.recv(10) == b""
    link.heal()
    with dial(link) as again:
        again.sendall(b"back")
        assert again.recv(10) == b"back"
