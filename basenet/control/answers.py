"""Facts and exceptions as JSON answers: one body for every error, one place that chooses a status.

The error body is the same from every path, for a client's mistake as for our bug::

    {"error": "one sentence", "code": "not_found", "status": 404, "request_id": "...", ...}

What stands in place of the dots (``shard``, ``reasons``) depends on the error. The status is chosen
by the exception's class alone, nearest ancestor first, never by its text.
"""

from typing import Any, Final

import msgspec
from starlette.responses import Response

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
