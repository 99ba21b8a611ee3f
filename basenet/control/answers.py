"""Facts and exceptions as JSON answers: one body for every error, one place that chooses a status.

The error body is the same from every path, for a client's mistake as for our bug::

    {"error": "one sentence", "code": "not_found", "status": 404, "request_id": "...", ...}

What stands in place of the dots (``shard``, ``reasons``) depends on the error. The status is chosen
by the exception's class alone, nearest ancestor first, never by its text.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from basenet.control.surface import Forbidden
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    PeerError,
    UnavailableError,
    UsageError,
)

STATUS_OF_CLASS: Final[dict[type[BasenetError], int]] = {
    UsageError: 400,
    Forbidden: 403,
    NotFoundError: 404,
    ConflictError: 409,
    CorruptionError: 500,
    PeerError: 502,
    UnavailableError: 503,
    BasenetError: 500,
}
RETRY_AFTER_SECONDS: Final = 1
_SHARDS_A_PIECE: Final = 250  # some 300 KiB: a piece costs as much as 50 KiB of its bytes


def json_response(
    fact: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return ``fact`` (a dataclass of `control.surface`, or plain values) as a JSON response."""
    return Response(
        msgspec.json.encode(fact) + b"\n",
        status_code=status,
        headers={"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )


class LongResponse(Response):
    """A JSON response in pieces, each of them sent before the next one is looked at.

    Megabytes at once would hold the event loop up while they are copied from one layer of the
    server to the other, and would have to be taken by a slow client within one send's time.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """``pieces``: of `encode_long`."""
        size = sum(len(piece) for piece in pieces)
        super().__init__(
            headers={"cache-control": "no-store", "content-length": str(size)},
            media_type="application/json",
        )
        self._pieces = pieces

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def encode_long(fact: object, shards: Sequence[bytes]) -> list[bytes]:
    """Return ``fact`` as JSON in pieces, its field ``shards``, which is empty, filled.

    ``shards``: the elements of that array, or the members of that object, as JSON.
    """
    document = msgspec.json.encode(fact)
    # No string has this in it, since its quotes would be escaped, and no other field is empty.
    for empty in (b'"shards":[]', b'"shards":{}'):
        head, found, tail = document.partition(empty)
        if found:
            break
    else:
        raise AssertionError("a document about shards has an empty field for them")
    pieces = [head + empty[:-1]]
    for first in range(0, len(shards), _SHARDS_A_PIECE):
        comma = b"," if first else b""
        pieces.append(comma + b",".join(shards[first : first + _SHARDS_A_PIECE]))
    return [*pieces, empty[-1:] + tail + b"\n"]


def get_status(error: BasenetError) -> int:
    """Return the HTTP status of ``error``."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF_CLASS:
            return STATUS_OF_CLASS[kind]
    raise AssertionError("every BasenetError has a BasenetError among its ancestors")


def error_response(
    sentence: str,
    *,
    code: str,
    status: int,
    request_id: str,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> Response:
    """Return the one error body. ``more`` adds fields to it."""
    body = {"error": sentence, "code": code, "status": status, "request_id": request_id, **more}
    return json_response(body, status=status, headers=headers)


def exception_response(error: BasenetError, *, request_id: str, **more: Any) -> Response:
    """Return the error body of ``error``; one that may pass by itself says when to ask again."""
    headers = (
        {"retry-after": str(RETRY_AFTER_SECONDS)} if isinstance(error, UnavailableError) else None
    )
    return error_response(
        str(error),
        code=error.code,
        status=get_status(error),
        request_id=request_id,
        headers=headers,
        **more,
    )
