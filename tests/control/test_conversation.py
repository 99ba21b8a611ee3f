"""What is asked at each commit is answered at once, and like everything else."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from basenet.control import connections, conversation, server
from basenet.control.connections import BoundedStream
from basenet.control.conversation import AHEAD_BYTES_MAX, Desk
from basenet.control.surface import Orphaned
from tests.fakes.client import Answer, ask, encode_request, read_answer, send_until_closed
from tests.fakes.served import served
from tests.fakes.surface import FakeSurface, make_shard

WAIT = "/v1/shards/app/wait?seq=9"
PENDING = "/v1/shards/app/wait?seq=99&timeout=60s"


@asynccontextmanager
async def connected(surface: FakeSurface, folder: Path) -> AsyncIterator[trio.SocketStream]:
    async with (
        served(surface, folder) as listeners,
        await trio.open_tcp_stream("127.0.0.1", listeners.address.port) as stream,
    ):
        yield stream


async def ask_on(stream: trio.SocketStream, path: str, **headers: str) -> Answer:
    await stream.send_all(encode_request(path, headers=headers))
    return await read_answer(stream)


def comparable(answer: Answer) -> tuple[int, Any, dict[str, str]]:
    """Return what two answers to one question must have in common."""
    body = {name: value for name, value in answer.json.items() if name != "request_id"}
    varying = {"date", "x-correlation-id"}
    headers = {name: value for name, value in answer.headers.items() if name not in varying}
    if "request_id" in answer.json:
        headers.pop("content-length")
        assert answer.json["request_id"] == answer.headers["x-correlation-id"]
    assert answer.headers["date"].endswith(" GMT")
    return answer.status, body, headers


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (WAIT, 200),
        ("/v1/shards/app/wait?now=1&level=final&timeout=2s", 200),
        ("/v1/shards/app/wait?cookie=00112233-5&level=final", 200),
        ("/v1/shards/%61pp/wait?seq=%39", 200),
        ("/v1/shards/app/wait?seq=99&timeout=10ms", 503),
        ("/v1/shards/app/wait?cookie=deadbeef-5", 409),
        ("/v1/shards/app/wait?now=1&generation=old", 409),
        ("/v1/shards/none/wait?now=1", 404),
        ("/v1/shards/a%2Fb/wait?now=1", 404),
        ("/v1/shards/app/wait", 400),
        ("/v1/shards/app/wait?seq=1&levle=final", 400),
        ("/v1/shards/app/wait?seq=1&seq=", 400),
        ("/v1/shards/app/wait/?seq=1", 404),
        ("/v1/shards/app", 200),
        ("/v1/shards/none", 404),
        ("/v1/shards/%C3%A9", 404),
        ("/v1/shards/app?a=1", 400),
    ],
)
async def test_both_ways_give_the_same_answer(tmp_path: Path, path: str, status: int) -> None:
    """At once on a new connection; through all layers on one that asked something else before."""
    surface = FakeSurface(make_shard(generation="new"))
    async with connected(surface, tmp_path) as stream:
        at_once = await ask_on(stream, path)
        assert (await ask_on(stream, "/healthz")).status == 200
        through = await ask_on(stream, path)
    assert at_once.status == status
    assert comparable(at_once) == comparable(through)


async def test_a_question_on_a_new_connection_does_not_pass_the_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all this would be for nothing."""

    class NoServer:
        def __init__(self, *_arguments: object) -> None:
            raise AssertionError("hypercorn was asked")

    monkeypatch.setattr(server, "TCPServer", NoServer)
    async with connected(FakeSurface(make_shard()), tmp_path) as stream:
        for path in (WAIT, "/v1/shards/app", WAIT):
            assert (await ask_on(stream, path)).status == 200


async def test_questions_sent_at_once_are_answered_in_order(tmp_path: Path) -> None:
    """Also where one of them hands the connection over."""
    paths = [WAIT, "/v1/shards/app", WAIT, "/healthz", WAIT]
    async with connected(FakeSurface(make_shard()), tmp_path) as stream:
        await stream.send_all(b"".join(map(encode_request, paths)))
        answers = b""
        while answers.count(b"}\n") < len(paths):
            answers += await stream.receive_some()
    words = [b'"seq":9', b'"lag_ms"', b'"seq":9', b'"healthy"', b'"seq":9']
    parts = answers.split(b"HTTP/1.1 200")[1:]
    assert [word in part for word, part in zip(words, parts, strict=True)] == 5 * [True]


@pytest.mark.parametrize("path", [WAIT, "/healthz"])
async def test_a_head_may_come_byte_by_byte(tmp_path: Path, path: str) -> None:
    """And the next one with it."""
    async with connected(FakeSurface(make_shard()), tmp_path) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in encode_request(path):
                await stream.send_all(bytes([byte]))
                await trio.lowlevel.checkpoint()
            assert (await read_answer(stream)).status == 200


@pytest.mark.parametrize("headers", [{}, {"content-length": "3"}, {"content-length": "0"}])
async def test_a_connection_ends_as_its_client_wishes(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    """``connection: close`` and HTTP/1.0 are heard, with a body and without."""
    body = b"abc" if headers.get("content-length") == "3" else b""
    async with connected(FakeSurface(make_shard()), tmp_path) as stream:
        head = encode_request(WAIT, headers={"connection": "close", **headers})
        await stream.send_all(head + body)
        answer = await read_answer(stream)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await stream.receive_some() == b""
    async with connected(FakeSurface(make_shard()), tmp_path) as stream:
        await stream.send_all(f"GET {WAIT} HTTP/1.0\r\nhost: x\r\n\r\n".encode())
        assert (await read_answer(stream)).json["seq"] == 9
        assert await stream.receive_some() == b""


async def test_a_request_keeps_its_id(tmp_path: Path) -> None:
    """As everywhere: the client's own, if it can stand in a log."""
    async with connected(FakeSurface(make_shard()), tmp_path) as stream:
        kept = await ask_on(stream, WAIT, **{"X-Correlation-Id": "trace-1"})
        made = await ask_on(stream, WAIT, **{"X-Correlation-Id": "{jndi}"})
    assert kept.headers["x-correlation-id"] == "trace-1"
    assert len(made.headers["x-correlation-id"]) == 16
    assert kept.headers["x-base-member"] == "node-a"


async def test_our_own_fault_is_logged_and_not_told(tmp_path: Path) -> None:
    """500 and the id; the connection goes on."""
    surface = FakeSurface(make_shard())
    surface.wait_error = RuntimeError("secret detail")
    with structlog.testing.capture_logs() as logs:
        async with connected(surface, tmp_path) as stream:
            answer = await ask_on(stream, WAIT)
            surface.wait_error = None
            after = await ask_on(stream, WAIT)
    assert (answer.status, answer.json["code"], after.status) == (500, "internal", 200)
    assert b"secret" not in answer.body
    assert [entry["request_id"] for entry in logs] == [answer.json["request_id"]]


async def test_an_error_does_not_end_the_conversation(tmp_path: Path) -> None:
    """Who is told of an orphan goes on asking."""
    surface = FakeSurface(make_shard())
    surface.wait_error = Orphaned("it lost", bundles=["app/5-4"])
    async with connected(surface, tmp_path) as stream:
        answer = await ask_on(stream, WAIT)
        assert (answer.status, answer.json["bundles"]) == (409, ["app/5-4"])
        surface.wait_error = None
        assert (await ask_on(stream, WAIT)).status == 200


@pytest.mark.parametrize("before", [None, WAIT, "/healthz"])
async def test_a_client_that_leaves_ends_its_wait(tmp_path: Path, before: str | None) -> None:
    """Whatever was asked on its connection before."""
    surface = FakeSurface(make_shard())
    with trio.fail_after(20):
        async with served(surface, tmp_path, grace_s=60) as listeners:
            stream = await trio.open_tcp_stream("127.0.0.1", listeners.address.port)
            if before is not None:
                await ask_on(stream, before)
            await stream.send_all(encode_request(PENDING))
            await surface.wait_began.wait()
            await stream.aclose()
            await surface.wait_cancelled.wait()
    assert surface.cancelled_waits == 1


@pytest.mark.parametrize("before", [None, WAIT, "/healthz"])
async def test_the_end_of_the_server_is_told_to_whoever_waits(
    tmp_path: Path, before: str | None
) -> None:
    """503 and the end of the connection, at once and not after the grace."""
    surface, stop = FakeSurface(make_shard()), trio.Event()
    with trio.fail_after(20):
        async with (
            served(surface, tmp_path, stop=stop, grace_s=600) as listeners,
            await trio.open_tcp_stream("127.0.0.1", listeners.address.port) as stream,
        ):
            if before is not None:
                await ask_on(stream, before)
            await stream.send_all(encode_request(PENDING))
            await surface.wait_began.wait()
            stop.set()
            answer = await read_answer(stream)
            assert await stream.receive_some() == b""
    assert (answer.status, answer.json["code"]) == (503, "shard_unavailable")
    assert "shutting down" in answer.json["error"]
    assert answer.headers["retry-after"] == "1"


async def test_who_is_idle_between_two_waits_is_closed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is one whose next head drips in."""
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.3)
    with trio.fail_after(30):
        async with served(FakeSurface(make_shard()), tmp_path) as listeners:
            idle = await trio.open_tcp_stream("127.0.0.1", listeners.address.port)
            await ask_on(idle, WAIT)
            assert await idle.receive_some() == b""
            slow = await trio.open_tcp_stream("127.0.0.1", listeners.address.port)
            await ask_on(slow, WAIT)
            await slow.send_all(f"GET {WAIT} HTTP/1.1\r\n".encode())
            await send_until_closed(slow, b"x: y\r\n", pause_s=0.05)
            for stream in (idle, slow):
                await stream.aclose()


async def test_who_asks_and_does_not_read_is_dropped_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are not gathered for it."""
    monkeypatch.setattr(connections, "SEND_SECONDS_MAX", 0.1)
    with trio.fail_after(60):
        async with served(FakeSurface(make_shard()), tmp_path) as listeners:
            stream = await trio.open_unix_socket(tmp_path / "basenet.sock")
            await send_until_closed(stream, encode_request("/v1/shards/app") * 100)
            await stream.aclose()
            assert (await ask(listeners.address.port, WAIT)).status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1/shards/app/wait?seq=9 HTTP/1.1\r\n\r\n", 400),  # without a host
        (b"GET /v1/shards/app/wait?seq=9 HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
        (b"GET /v1/shards/app/wait?seq=9&cookie=" + b"a" * 20_000, 431),
        (b"POST /v1/shards/app/wait?seq=9 HTTP/1.1\r\nhost: a\r\n\r\n", 405),
    ],
)
async def test_what_is_no_plain_question_is_refused_where_everything_is(
    tmp_path: Path, head: bytes, status: int
) -> None:
    """After an answered wait as at the beginning."""
    for before in (False, True):
        surface = FakeSurface(make_shard())
        async with connected(surface, tmp_path) as stream:
            if before:
                await ask_on(stream, WAIT)
            await stream.send_all(head)
            assert (await read_answer(stream)).status == status
        assert len(surface.waits) == before


async def test_little_is_read_ahead_of_the_answer() -> None:
    """Who sends on while it waits fills its own buffers, and not the daemon's memory."""
    surface, (ours, theirs) = FakeSurface(make_shard()), socket.socketpair()
    theirs.setblocking(False)
    stream = BoundedStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    talk = conversation.Conversation(Desk(surface, patience_s=60), stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run)
        theirs.send(encode_request(PENDING))
        await surface.wait_began.wait()
        has_room = True
        while has_room:
            has_room = False
            try:
                while theirs.send(b"x" * 4096):
                    has_room = True
            except BlockingIOError:
                await wait_all_tasks_blocked()
        assert len(talk._ahead) <= AHEAD_BYTES_MAX + 64 * 1024
        nursery.cancel_scope.cancel()
    await stream.aclose()
    theirs.close()


async def test_an_end_that_comes_with_the_question_ends_it() -> None:
    """Nobody is there to be answered, so that nothing is waited for."""
    surface, (ours, theirs) = FakeSurface(make_shard()), socket.socketpair()
    theirs.sendall(encode_request(PENDING))
    theirs.close()
    stream = BoundedStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    with trio.fail_after(20):
        assert not await Desk(surface, patience_s=60).converse(stream)
    await stream.aclose()
    assert len(surface.waits) == surface.cancelled_waits


async def test_a_closed_desk_hears_nobody() -> None:
    """A stream that comes after the end is let go."""
    ours, theirs = socket.socketpair()
    stream = BoundedStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    desk = Desk(FakeSurface(make_shard()), patience_s=60)
    desk.close()
    assert not await desk.converse(stream)
    await stream.aclose()
    theirs.close()


@given(
    questions=st.lists(st.sampled_from([WAIT, "/v1/shards/app", "/v1/shards/none"]), max_size=5),
    head=st.sampled_from(
        [
            b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
            b"POST /v1/shards/app/wait HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n",
            b"GET /v1/shards/app HTTP/1.0\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01",
            b"what\r\n\r\n",
        ]
    ),
    rest=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 1_000), max_size=6),
)
def test_nothing_is_lost_where_a_connection_is_handed_over(
    questions: list[str], head: bytes, rest: bytes, cuts: list[int]
) -> None:
    """Whatever pieces it comes in: what is not answered is read again, to the byte."""
    data = b"".join(map(encode_request, questions)) + head + rest
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})

    async def main() -> tuple[bytes, bytes]:
        ours, theirs = socket.socketpair()
        stream = BoundedStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        asker = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        is_handed_over = False
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for start, end in pairwise(places):
                    await asker.send_all(data[start:end])
                    await wait_all_tasks_blocked()
                await asker.send_eof()

            nursery.start_soon(send)
            desk = Desk(FakeSurface(make_shard()), patience_s=60)
            is_handed_over = await desk.converse(stream)
        assert is_handed_over
        left, answers = b"", b""
        while more := await stream.receive_some():
            left += more
        await stream.aclose()
        while more := await asker.receive_some():
            answers += more
        await asker.aclose()
        return left, answers

    left, answers = trio.run(main)
    assert left == head + rest
    assert answers.count(b"HTTP/1.1 ") == len(questions)
