"""The paths.

===============================  ============================================================
``/healthz``                     200 while the process and its journal answer
``/readyz``                      200 when every shard is where it should be, else the reasons
``/metrics``                     Prometheus text or OpenMetrics, as asked
``/-/base/members``              who is in this cluster, in which role, and how far each shard is
``/v1/shards``                   the node and all its shards
``/v1/shards/{id}``              one shard
``/v1/shards/{id}/wait``         answers when a commit is safe: ``seq=N``, ``now=1`` or
                                 ``cookie=...``, ``level=archived|final|applied``,
                                 ``timeout=30s``, ``generation=...`` (of the shard's status,
                                 read before the commit: 409 if anything was undone on this
                                 node since, so that the commit may be lost)
``/v1/shards/{id}/writer``       200 at the writer, elsewhere 307 to it, 503 while nobody is known
``/v1/shards/{id}/members/...``  POST: a command to change the members (`control.operator`)
``/v1/shards/{id}/reset``        POST: file or chain counts: ``keep=chain|file``, ``force=1``
===============================  ============================================================

Everything but the last two is a GET and changes nothing. A query that is not understood is refused,
not ignored. No cross-origin header is ever sent, so a web page cannot read what its visitor's
loopback says. The shard's own path and its wait are mostly answered before they come here, by
`control.conversation`; `control.question` is what both say.

Headers, where they apply: X-Base-Member is the node that answered, X-Base-Shard the shard,
X-Base-Seq the seq up to which it is final here, X-Base-Lag how many captured frames are not.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import trio
from msgspec.json import encode
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from basenet.control.answers import (
    LongResponse,
    encode_long,
    error_response,
    exception_response,
    json_response,
)
from basenet.control.boundary import Boundary
from basenet.control.metrics import Exposition
from basenet.control.operator import check_operator, parse_command, parse_reset
from basenet.control.question import (
    answer_status,
    answer_wait,
    check_query,
    get_default_level,
    parse_wait,
    refuse,
    shard_headers,
)
from basenet.control.slices import Shared, visit
from basenet.control.surface import Level, ShardRole, ShardStatus, Surface
from basenet.errors import BasenetError, UnavailableError
from basenet.units import ShardId

HEALTH_SECONDS_MAX: Final = 2.0
_CLIENT_GONE: Final = 499  # nobody reads it; the number is nginx's word for just this
_WORDS: Final = {404: "not_found", 405: "method_not_allowed"}

_Endpoint = Callable[[Request], Awaitable[Response]]
_Result = TypeVar("_Result", Response, str)


def build_app(surface: Surface, closing: trio.Event, *, listens_at: str) -> Starlette:
    """Return the application. ``closing`` is set when the server stops, and ends every wait.

    ``listens_at`` is the host of its TCP listener, which decides whether commands are taken there.
    """
    paths = _Paths(surface, closing, listens_at)
    routes: tuple[tuple[str, _Endpoint], ...] = (
        ("/healthz", paths.healthz),
        ("/readyz", paths.readyz),
        ("/metrics", paths.metrics),
        ("/-/base/members", paths.members),
        ("/v1/shards", paths.shards),
        ("/v1/shards/{shard}", paths.shard),
        ("/v1/shards/{shard}/wait", paths.wait),
        ("/v1/shards/{shard}/writer", paths.writer),
    )
    commands = (
        Route("/v1/shards/{shard}/members/{verb}", paths.command, methods=["POST"]),
        Route("/v1/shards/{shard}/reset", paths.reset, methods=["POST"]),
    )
    app = Starlette(
        routes=[*(Route(path, endpoint, methods=["GET"]) for path, endpoint in routes), *commands],
        middleware=[Middleware(Boundary, get_member=paths.get_member)],
        exception_handlers={BasenetError: _on_error, HTTPException: _on_http_error},
        lifespan=paths.lifespan,
    )
    # A redirect to the slashless path would be made from the client's own Host header.
    app.router.redirect_slashes = False
    return app


class _Paths:
    """The endpoints, and the few facts of the node that never change while it runs."""

    def __init__(self, surface: Surface, closing: trio.Event, listens_at: str) -> None:
        self._surface = surface
        self._closing = closing
        self._listens_at = listens_at
        turn = trio.Lock()
        self._exposition = Exposition(surface, turn)
        self._members = Shared(turn, self._tell_members)
        self._shards = Shared(turn, self._tell_shards)
        self._node_id = ""
        self._level = Level.FINAL

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Ask for the node's constants before the first request is let in."""
        node = self._surface.node_status()
        self._node_id = node.node_id
        self._level = get_default_level(node)
        yield

    def get_member(self) -> str:
        """Return this node's id; it is known from the lifespan's start on."""
        return self._node_id

    async def healthz(self, request: Request) -> Response:
        """Answer whether the process and its journal are alive."""
        _check_query(request)
        with trio.move_on_after(HEALTH_SECONDS_MAX) as scope:
            await self._surface.check_health()
        if scope.cancelled_caught:
            raise UnavailableError(
                f"the journal did not answer within {HEALTH_SECONDS_MAX:g} s: look at the disk of "
                "BASE_DATA_DIR"
            )
        return json_response({"healthy": True, "node_id": self._node_id})

    async def readyz(self, request: Request) -> Response:
        """Answer whether the node does what it was configured to do."""
        _check_query(request)
        node = self._surface.node_status()
        if node.ready:
            return json_response({"ready": True, "reasons": []})
        error = UnavailableError("; ".join(node.reasons) or "the daemon is starting")
        return exception_response(
            error, request_id=request.scope["request_id"], ready=False, reasons=node.reasons
        )

    async def metrics(self, request: Request) -> Response:
        """Answer a scrape."""
        body, content_type = await self._exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    async def members(self, request: Request) -> Response:
        """Answer in the form that the followed system's clients read, and a little more."""
        _check_query(request)
        return LongResponse(await self._members.get())

    async def _tell_members(self) -> list[bytes]:
        node = self._surface.node_status()
        told: list[bytes] = []

        def look(shard: ShardId) -> None:
            progress = _progress(self._surface.shard_status(shard))
            told.append(encode(str(shard)) + b":" + encode(progress))

        await visit(self._surface.shard_ids(), look)
        return encode_long(
            {
                "nodeID": node.node_id,
                "shardKey": None,  # a gateway's; there is none
                "network": node.network,
                "members": [member.node_id for member in node.members],
                "roles": {member.node_id: member.role for member in node.members},
                "endpoints": {member.node_id: member.endpoint for member in node.members},
                "addresses": {member.node_id: member.address for member in node.members},
                "connected": [member.node_id for member in node.members if member.is_connected],
                "shards": {},
            },
            told,
        )

    async def shards(self, request: Request) -> Response:
        """Answer with the node and all its shards."""
        _check_query(request)
        return LongResponse(await self._shards.get())

    async def _tell_shards(self) -> list[bytes]:
        node = self._surface.node_status()
        told: list[bytes] = []
        await visit(
            self._surface.shard_ids(),
            lambda shard: told.append(encode(self._surface.shard_status(shard))),
        )
        return encode_long(node, told)

    async def shard(self, request: Request) -> Response:
        """Answer with one shard."""
        _check_query(request)
        return answer_status(self._surface, request.path_params["shard"])

    async def wait(self, request: Request) -> Response:
        """Answer when a commit is safe, when the time is up, or when the daemon closes."""
        query = request.query_params.multi_items()
        wait = parse_wait(request.url.path, request.path_params["shard"], query)
        response = await self._run_while(
            request.scope["client_gone"],
            lambda: answer_wait(self._surface, wait, self._level),
        )
        return self._unanswered("the wait") if response is None else response

    async def writer(self, request: Request) -> Response:
        """Answer who the writer is: itself with 200, else by sending the client there."""
        _check_query(request)
        status = self._surface.shard_status(request.path_params["shard"])
        lag = max(0, status.captured_seq - status.final_seq)
        headers = shard_headers(status.shard, status.final_seq, lag)
        if status.role is not ShardRole.WRITER:
            if status.writer is None or status.writer_endpoint is None:
                raise UnavailableError(_explain_no_writer(status, self._node_id))
            place = f"{_base_url(status.writer_endpoint)}{request.url.path}"
            headers = {**headers, "location": place}
        body = {
            "shard": status.shard,
            "writer": status.writer,
            "endpoint": status.writer_endpoint,
            "lineage": status.lineage,
            "epoch": status.epoch,
            "view": status.view,
        }
        return json_response(body, status=307 if "location" in headers else 200, headers=headers)

    async def command(self, request: Request) -> Response:
        """Do what an operator of this host commands."""
        check_operator(request, self._listens_at)
        command = parse_command(request.path_params["verb"], request.query_params.multi_items())
        shard = self._surface.shard_status(request.path_params["shard"]).shard
        done = await self._run_while(
            request.scope["client_gone"], lambda: self._surface.command(shard, command)
        )
        if done is None:
            return self._unanswered("the command")
        return json_response({"shard": shard, "verb": command.verb, "done": done})

    async def reset(self, request: Request) -> Response:
        """Let the file or the chain count, as an operator of this host says."""
        check_operator(request, self._listens_at)
        command = parse_reset(request.query_params.multi_items())
        shard = self._surface.shard_status(request.path_params["shard"]).shard
        done = await self._run_while(
            request.scope["client_gone"], lambda: self._surface.reset(shard, command)
        )
        if done is None:
            return self._unanswered("the reset")
        return json_response({"shard": shard, "keep": command.keep, "done": done})

    def _unanswered(self, what: str) -> Response:
        """Return what becomes of a request that the client or the server ended."""
        if not self._closing.is_set():
            return Response(status_code=_CLIENT_GONE)
        raise UnavailableError(
            f"the daemon is shutting down before {what} ended: ask again when it is back"
        )

    async def _run_while(
        self, client_gone: trio.Event, action: Callable[[], Awaitable[_Result]]
    ) -> _Result | None:
        """Return what ``action`` gives; None when the client or the server ended it before."""
        result: _Result | None = None
        failure: BasenetError | None = None
        async with trio.open_nursery() as nursery:

            async def cancel_at(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_at, client_gone)
            nursery.start_soon(cancel_at, self._closing)
            try:
                result = await action()
            except BasenetError as error:
                failure = error  # raised below, where no nursery wraps it into a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result


def _check_query(request: Request) -> None:
    """Raise `UsageError` for a query: the path knows none."""
    check_query(request.url.path, request.query_params.multi_items(), frozenset())


def _base_url(endpoint: str) -> str:
    """Return ``endpoint``, host:port or a URL, as a URL without its end."""
    url = endpoint if endpoint.startswith(("http://", "https://")) else f"http://{endpoint}"
    return url.rstrip("/")


def _explain_no_writer(status: ShardStatus, node_id: str) -> str:
    if status.writer is None:
        return f"shard {status.shard} has no writer that this node knows: ask again in a second"
    if status.writer == node_id:
        return (
            f"this node leads shard {status.shard} and may not write to it now, for want of a "
            "quorum or because something is under way: ask again in a second"
        )
    return (
        f"the writer of shard {status.shard} is {status.writer}, whose HTTP address this node does "
        "not know: set BASE_ADVERTISE_HTTP there"
    )


def _progress(shard: ShardStatus) -> dict[str, object]:
    return {
        "state": shard.state,
        "lineage": shard.lineage,
        "epoch": shard.epoch,
        "view": shard.view,
        "captured_seq": shard.captured_seq,
        "final_seq": shard.final_seq,
        "archived_seq": shard.archived_seq,
        "applied_seq": shard.applied_seq,
        "role": shard.role,
        "writer": shard.writer,
    }


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BasenetError), "registered for these only"
    return refuse(error, request.path_params.get("shard"), request.scope["request_id"])


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer for what the router itself refuses: an unknown path, or another method than GET."""
    assert isinstance(error, HTTPException), "registered for these only"
    path, method = request.url.path[:256], request.method[:32]
    sentences = {
        404: f"there is nothing at {path!r}: the paths are in docs/operations.md",
        405: f"{path!r} cannot be asked with {method}: all is a GET, but a command is a POST",
    }
    return error_response(
        sentences.get(error.status_code, error.detail),
        code=_WORDS.get(error.status_code, "bad_request"),
        status=error.status_code,
        request_id=request.scope["request_id"],
        headers=dict(error.headers or {}),
    )
