from pathlib import Path

import pytest
import structlog
import trio

from basenet.control.boundary import BODY_BYTES_MAX
from tests.fakes.client import ask, encode_request, read_answer, send_until_closed
from tests.fakes.served import served
from tests.fakes.surface import FakeSurface, make_shard


async def test_a_request_keeps_the_id_that_its_client_gave(tmp_path: Path) -> None:
    """X-Correlation-Id comes back on the answer and in the error body."""
    async with served(FakeSurface(), tmp_path) as listeners:
        answer = await ask(
            listeners.address.port, "/v1/shards/x", headers={"X-Correlation-Id": "trace-1:a/b"}
        )
    assert answer.headers["x-correlation-id"] == "trace-1:a/b"
    assert answer.json["request_id"] == "trace-1:a/b"


@pytest.mark.parametrize("given", ["", "a b", 'x"y', "x" * 129, "é", "{jndi}"])
async def test_an_id_that_cannot_stand_in_a_log_is_replaced(tmp_path: Path, given: str) -> None:
    """Else a client could write our log lines."""
    async with served(FakeSurface(), tmp_path) as listeners:
        answer = await ask(listeners.address.port, "/healthz", headers={"x-correlation-id": given})
    made = answer.headers["x-correlation-id"]
    assert len(made) == 16
    assert int(made, 16) >= 0


async def test_each_request_without_an_id_gets_its_own(tmp_path: Path) -> None:
    """Two requests are told apart in the log."""
    async with served(FakeSurface(), tmp_path) as listeners:
        ids = {
            (await ask(listeners.address.port, "/healthz")).headers["x-correlation-id"]
            for _ in range(3)
        }
    assert len(ids) == 3


async def test_our_own_fault_is_logged_and_not_told(tmp_path: Path) -> None:
    """The client gets 500 and the id; the log gets the exception under the same id."""
    surface = FakeSurface(make_shard())
    surface.metrics_error = RuntimeError("secret detail")
    with structlog.testing.capture_logs() as logs:
        async with served(surface, tmp_path) as listeners:
            answer = await ask(listeners.address.port, "/metrics")
            after = await ask(listeners.address.port, "/healthz")
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert b"secret" not in answer.body
    assert [entry["request_id"] for entry in logs] == [answer.json["request_id"]]
    assert after.status == 200


async def test_a_body_that_is_too_big_is_refused(tmp_path: Path) -> None:
    """413 before a byte of it is read, and the connection ends."""
    with trio.fail_after(5):
        async with served(FakeSurface(), tmp_path) as listeners:
            stream = await trio.open_tcp_stream("127.0.0.1", listeners.address.port)
            size = {"content-length": str(BODY_BYTES_MAX + 1)}
            await stream.send_all(encode_request("/healthz", headers=size))
            answer = await read_answer(stream)
            assert (answer.status, answer.json["code"]) == (413, "payload_too_large")
            assert await stream.receive_some() == b""
            await stream.aclose()


async def test_a_body_that_is_small_is_thrown_away(tmp_path: Path) -> None:
    """It changes nothing, and the connection is used again."""
    async with served(FakeSurface(), tmp_path) as listeners:
        stream = await trio.open_tcp_stream("127.0.0.1", listeners.address.port)
        for _ in range(2):
            head = encode_request("/healthz", headers={"content-length": "5"})
            await stream.send_all(head + b"12345")
            assert (await read_answer(stream)).status == 200
        await stream.aclose()


async def test_an_endless_body_does_not_hold_its_connection(tmp_path: Path) -> None:
    """A chunked body without end is answered and cut off, also behind a wait that takes long."""
    surface = FakeSurface(make_shard())
    chunked = {"transfer-encoding": "chunked"}
    with trio.fail_after(10):
        async with served(surface, tmp_path) as listeners:
            stream = await trio.open_tcp_stream("127.0.0.1", listeners.address.port)
            path = "/v1/shards/app/wait?seq=99&timeout=60s"
            await stream.send_all(encode_request(path, headers=chunked))
            for _ in range(200):  # far more pieces than the server library queues
                await stream.send_all(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await surface.wait_began.wait()
            surface.grant()
            assert (await read_answer(stream)).status == 200
            await send_until_closed(stream, b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await stream.aclose()


async def test_a_web_socket_is_refused(tmp_path: Path) -> None:
    """There is none, and asking for one harms nothing."""
    upgrade = {
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    async with served(FakeSurface(), tmp_path) as listeners:
        assert (await ask(listeners.address.port, "/healthz", headers=upgrade)).status == 403
        assert (await ask(listeners.address.port, "/healthz")).status == 200
