"""A raw HTTP/1.1 client on trio, for tests that look at bytes, headers and broken manners."""

import json
from dataclasses import dataclass
from typing import Any

import trio


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def read_answer(stream: trio.abc.Stream, *, has_body: bool = True) -> Answer:
    """Read one answer whose length is announced."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        assert more, f"the connection ended after {data!r}"
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    size = int(headers.get("content-length", "0")) if has_body else 0
    while len(body) < size:
        more = await stream.receive_some()
        assert more, "the body ended early"
        body += more
    return Answer(int(lines[0].split()[1]), headers, body)


async def ask(
    port: int, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> Answer:
    """Ask one question on a connection of its own."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(encode_request(path, method=method, headers=headers))
        return await read_answer(stream, has_body=method != "HEAD")


async def send_until_closed(stream: trio.abc.Stream, data: bytes, *, pause_s: float = 0.0) -> None:
    """Send ``data`` again and again until the server has closed the connection."""
    try:
        while True:
            await stream.send_all(data)
            await trio.sleep(pause_s)
    except trio.BrokenResourceError:
        return


def encode_request(
    path: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode()
