"""What every request passes on its way in and out: its id, its size, its client, its last error.

Theory of operation
===================

No path of ours wants a body. One is read nevertheless, and thrown away, for as long as the request
is being answered: the server library queues ten pieces of a body and then stops listening to the
connection, and it would neither notice that the client left nor get rid of its own last message.
So one task here takes in whatever comes and says when the client is gone; a wait for an archive
ends with it. A body that announces itself as bigger than `BODY_BYTES_MAX` is refused at once, an
unannounced one is cut off when the answer is sent.

An exception that nobody below expected is our bug: it is logged whole, and the client learns only
the id under which to look for it.
"""

import itertools
import re
import secrets
from collections.abc import Callable, Iterable
from typing import Final

import structlog
import trio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from basenet.control.answers import error_response

BODY_BYTES_MAX: Final = 64 * 1024
_BODY_TOO_LARGE: Final = 413
_INTERNAL: Final = 500
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}\Z")
# An id must be found again in the log, and is no secret.
_PROCESS_ID: Final = secrets.token_hex(4)

_numbers = itertools.count()
_log = structlog.get_logger()


class Boundary:
    """The outermost of our layers. It leaves ``request_id`` and ``client_gone`` in the scope."""

    def __init__(self, app: ASGIApp, get_member: Callable[[], str]) -> None:
        self._app = app
        self._get_member = get_member

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request of ASGI; anything else than HTTP passes untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gone = trio.Event()
        request_id = choose_request_id(scope["headers"])
        scope["request_id"], scope["client_gone"] = request_id, gone
        outgoing = _Outgoing(send, request_id, self._get_member())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, receive, gone)
            if _body_bytes(scope["headers"]) > BODY_BYTES_MAX:
                await _refuse_size(scope, receive, outgoing.send, request_id)
            else:
                await self._guard(scope, receive, outgoing)
            nursery.cancel_scope.cancel()

    async def _guard(self, scope: Scope, receive: Receive, outgoing: "_Outgoing") -> None:
        request_id: str = scope["request_id"]
        try:
            await self._app(scope, receive, outgoing.send)
        except Exception:  # noqa: BLE001  (whatever it is, the client gets the error body)
            response = report_fault(request_id, scope["path"])
            if outgoing.is_started:
                return  # half an answer cannot become another; the connection ends here
            await response(scope, receive, outgoing.send)


def sign(request_id: str, member: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that every answer carries."""
    return (
        (b"x-correlation-id", request_id.encode()),
        (b"x-base-member", member.encode()),
    )


def report_fault(request_id: str, path: str) -> Response:
    """Log the exception that is being handled, which is a bug; return what the client is told."""
    _log.exception("a request failed by a fault of basenet", request_id=request_id, path=path)
    return error_response(
        "basenet failed to answer; its log has the details under this request_id",
        code="internal",
        status=_INTERNAL,
        request_id=request_id,
    )


class _Outgoing:
    """Signs the answer with its id and this member, and remembers whether it has begun."""

    def __init__(self, send: Send, request_id: str, member: str) -> None:
        self._send = send
        self._headers = sign(request_id, member)
        self.is_started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_started = True
            message["headers"] = [*message.get("headers", ()), *self._headers]
        await self._send(message)


async def _drain(receive: Receive, gone: trio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _refuse_size(scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
    response = error_response(
        f"the request has a body of more than {BODY_BYTES_MAX} bytes: send none",
        code="payload_too_large",
        status=_BODY_TOO_LARGE,
        request_id=request_id,
        headers={"connection": "close"},
    )
    await response(scope, receive, send)


def choose_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the client's id if it can stand in a log line, else a fresh one."""
    given = _get_header(headers, b"x-correlation-id")
    if given is not None and _GIVEN_ID.match(given):
        return given.decode("ascii")
    return f"{_PROCESS_ID}{next(_numbers) & 0xFFFFFFFF:08x}"


def _body_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the announced size of the body; the server library has checked that it is a number."""
    announced = _get_header(headers, b"content-length")
    return int(announced) if announced else 0


def _get_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key.lower() == name), None)
