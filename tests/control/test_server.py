import os
import stat
from functools import partial
from pathlib import Path

import pytest
import trio

from basenet.control import connections, server
from basenet.control.listeners import open_listeners
from tests.fakes.client import ask, encode_request, read_answer, send_until_closed
from tests.fakes.served import ANY_PORT, served
from tests.fakes.surface import FakeSurface, make_shard

WAIT = "/v1/shards/app/wait?seq=99&timeout=60s"


async def test_a_server_says_its_port_only_when_it_chose_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With port 0 there is one line on standard output, and it is where the server answers."""
    listeners = open_listeners(ANY_PORT, tmp_path)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.serve, FakeSurface(), listeners, stop=stop))
        line = capsys.readouterr().out
        assert line == f"BASE_LISTEN_ADDR=127.0.0.1:{listeners.address.port}\n"
        port = int(line.strip().rpartition(":")[2])
        assert (await ask(port, "/healthz")).status == 200
        stop.set()
    chosen = open_listeners(listeners.address, tmp_path)
    assert chosen.announcement is None
    chosen.close()


async def test_both_addresses_answer_the_same(tmp_path: Path) -> None:
    """The data directory's socket and the TCP port are one surface."""
    async with served(FakeSurface(make_shard()), tmp_path) as listeners:
        over_tcp = await ask(listeners.address.port, "/v1/shards")
        async with await trio.open_unix_socket(tmp_path / "basenet.sock") as stream:
            await stream.send_all(encode_request("/v1/shards"))
            assert (await read_answer(stream)).json == over_tcp.json
        mode = (tmp_path / "basenet.sock").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


async def test_a_connection_is_used_again(tmp_path: Path) -> None:
    """Two questions on one connection have two answers."""
    async with (
        served(FakeSurface(make_shard()), tmp_path) as listeners,
        await trio.open_tcp_stream("127.0.0.1", listeners.address.port) as stream,
    ):
        for _ in range(2):
            await stream.send_all(encode_request("/v1/shards/app"))
            assert (await read_answer(stream)).json["shard"] == "app"


async def test_a_wait_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    """Stopping answers each pending wait with 503 and does not wait for it."""
    surface, stop = FakeSurface(make_shard()), trio.Event()
    with trio.fail_after(5):
        async with (
            served(surface, tmp_path, stop=stop, grace_s=60) as listeners,
            await trio.open_tcp_stream("127.0.0.1", listeners.address.port) as stream,
        ):
            await stream.send_all(encode_request(WAIT))
            await surface.wait_began.wait()
            stop.set()
            answer = await read_answer(stream)
    assert (answer.status, answer.json["code"]) == (503, "shard_unavailable")
    assert "shutting down" in answer.json["error"]
    assert surface.cancelled_waits == 1


async def test_idle_connections_do_not_delay_the_end(tmp_path: Path) -> None:
    """A keep-alive connection, and one that sent half a head, are closed at once."""
    with trio.fail_after(5):
        async with served(FakeSurface(), tmp_path, grace_s=60) as listeners:
            port = listeners.address.port
            idle = await trio.open_tcp_stream("127.0.0.1", port)
            await idle.send_all(encode_request("/healthz"))
            await read_answer(idle)
            half = await trio.open_tcp_stream("127.0.0.1", port)
            await half.send_all(b"GET /healthz HTTP/1.1\r\nhost:")
    assert await idle.receive_some() == b""
    assert await half.receive_some() == b""
    await idle.aclose()
    await half.aclose()


async def test_a_client_that_does_not_read_cannot_keep_the_server(tmp_path: Path) -> None:
    """After the grace its connection is closed below it, though its send is shielded."""
    surface = FakeSurface(*(make_shard(f"shard-{number}") for number in range(9_000)))
    stop = trio.Event()
    with trio.fail_after(5):
        async with served(surface, tmp_path, stop=stop, grace_s=0.2):
            stream = await trio.open_unix_socket(tmp_path / "basenet.sock")
            await stream.send_all(encode_request("/v1/shards"))
            await stream.receive_some(1)  # the answer, megabytes of it, is under way
            stop.set()
    await stream.aclose()


async def test_a_client_that_does_not_read_is_dropped_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send that nobody takes ends by itself, while the server goes on."""
    monkeypatch.setattr(connections, "SEND_SECONDS_MAX", 0.1)
    surface = FakeSurface(*(make_shard(f"shard-{number}") for number in range(9_000)))
    with trio.fail_after(20):
        async with served(surface, tmp_path) as listeners:
            stream = await trio.open_unix_socket(tmp_path / "basenet.sock")
            await stream.send_all(encode_request("/v1/shards"))
            await send_until_closed(stream, b"x", pause_s=0.01)
            await stream.aclose()
            assert (await ask(listeners.address.port, "/healthz")).status == 200


async def test_a_slow_asker_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that does not end ends the connection, however steadily its bytes drip."""
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.3)
    with trio.fail_after(10):
        async with served(FakeSurface(), tmp_path) as listeners:
            stream = await trio.open_tcp_stream("127.0.0.1", listeners.address.port)
            await stream.send_all(b"GET /healthz HTTP/1.1\r\n")
            await send_until_closed(stream, b"x: y\r\n", pause_s=0.05)
            await stream.aclose()


async def test_connections_beyond_the_budget_are_closed_unheard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood at the TCP port leaves the operator's socket usable."""
    monkeypatch.setattr(server, "TCP_CONNECTIONS_MAX", 2)
    async with served(FakeSurface(), tmp_path) as listeners:
        port = listeners.address.port
        held = []
        for _ in range(2):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(encode_request("/healthz"))
            await read_answer(stream)
            held.append(stream)
        refused = await trio.open_tcp_stream("127.0.0.1", port)
        assert await refused.receive_some() == b""
        async with await trio.open_unix_socket(tmp_path / "basenet.sock") as operator:
            await operator.send_all(encode_request("/healthz"))
            assert (await read_answer(operator)).status == 200
        for stream in [*held, refused]:
            await stream.aclose()


async def test_garbage_ends_its_connection_only(tmp_path: Path) -> None:
    """Bytes that are not HTTP, a head without end and a broken-off request harm nobody."""
    async with served(FakeSurface(), tmp_path) as listeners:
        port = listeners.address.port
        for garbage in (
            b"\x16\x03\x01\x02\x00",
            b"GET /" + b"a" * 40_000,
            b"POST / HTTP/9.9\r\n\r\n",
        ):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(garbage)
            await stream.send_eof()
            while await stream.receive_some():
                pass
            await stream.aclose()
        assert (await ask(port, "/healthz")).status == 200


async def test_a_cancelled_server_leaves_nothing(tmp_path: Path) -> None:
    """The socket's file is gone and the data directory free after a cancellation, too."""
    listeners = open_listeners(ANY_PORT, tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                server.serve,
                FakeSurface(),
                listeners,
                stop=trio.Event(),
                announce=lambda _line: None,
            )
        )
        nursery.cancel_scope.cancel()
    assert [entry.name for entry in os.scandir(tmp_path)] == []
    open_listeners(ANY_PORT, tmp_path).close()
