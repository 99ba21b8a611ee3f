"""The HTTP server: our routes on hypercorn, from the first accepted client to a clean end.

Theory of operation
===================

Each stream begins as a `control.conversation`, which answers what is asked at each commit; whatever
else is asked on it, hypercorn speaks HTTP from there on (`TCPServer`) and drives the application's
lifespan. Accepting, bounding and ending are ours (`control.connections` says why). No periodic task
is started: an idle connection costs one timer, an idle server nothing, so it never wakes the
machine.

The end, when ``stop`` is set, in this order:

1. no connection is accepted any more, and idle ones are closed;
2. every wait is answered with 503, and requests under way get ``grace_s`` to finish;
3. what is left then is closed from below, because a send may be shielded;
4. the application's lifespan ends, then the sockets and the claim on the data directory.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState

from basenet.control.connections import BoundedListener, BoundedStream, Connections
from basenet.control.conversation import HEAD_BYTES_MAX, Desk
from basenet.control.listeners import Listeners
from basenet.control.routes import build_app
from basenet.control.surface import Surface

GRACE_SECONDS: Final = 2.0
KEEP_ALIVE_SECONDS: Final = 15.0  # for an idle connection, and for one that is slow to ask
TCP_CONNECTIONS_MAX: Final = 256
UNIX_CONNECTIONS_MAX: Final = 64
_LIFESPAN_SECONDS: Final = 10.0


def announce_on_stdout(line: str) -> None:
    """Write ``line`` for whoever started us and must learn the port."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def serve(
    surface: Surface,
    listeners: Listeners,
    *,
    stop: trio.Event,
    grace_s: float = GRACE_SECONDS,
    announce: Callable[[str], None] = announce_on_stdout,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at ``listeners`` until ``stop`` is set, then end cleanly and close them.

    Reports ``started`` when clients are being served; ``surface`` must answer from then on. Says
    the address through ``announce`` when the port was not chosen by the operator. Cancelling it
    ends it without the grace.
    """
    config = _configure()
    app = ASGIWrapper(build_app(surface, stop, listens_at=listeners.address.host))  # type: ignore[arg-type]  # (ASGI, twice typed)
    state: LifespanState = {}
    try:
        async with trio.open_nursery() as nursery:
            lifespan = Lifespan(app, config, state)
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            if listeners.announcement is not None:
                announce(listeners.announcement)
            front = _Front(app, config, state, Desk(surface, patience_s=KEEP_ALIVE_SECONDS))
            await _serve_connections(
                front, listeners, stop=stop, grace_s=grace_s, task_status=task_status
            )
            await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()
    finally:
        listeners.close()


def _configure() -> HypercornConfig:
    config = HypercornConfig()
    # Faults are logged by our boundary, in our form; requests are not, being mostly probes.
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    config.startup_timeout = _LIFESPAN_SECONDS
    config.shutdown_timeout = _LIFESPAN_SECONDS
    return config


class _Front:
    """What every accepted stream meets."""

    def __init__(
        self, app: AppWrapper, config: HypercornConfig, state: LifespanState, desk: Desk
    ) -> None:
        self._app = app
        self._config = config
        self._state = state
        self._desk = desk
        self._context = WorkerContext(None)

    async def handle(self, stream: BoundedStream) -> None:
        """Serve one client until its connection ends."""
        if await self._desk.converse(stream):
            state = ConnectionState(self._state.copy())
            server = TCPServer(self._app, self._config, self._context, state, stream)  # type: ignore[arg-type]  # (typed for TLS, works by duck)
            await server.run()

    async def close(self) -> None:
        """Let idle clients go, and end every wait."""
        self._desk.close()
        await self._context.terminated.set()


async def _serve_connections(
    front: _Front,
    listeners: Listeners,
    *,
    stop: trio.Event,
    grace_s: float,
    task_status: trio.TaskStatus[None],
) -> None:
    budgets = [
        (listeners.tcp, Connections(TCP_CONNECTIONS_MAX)),
        (listeners.unix, Connections(UNIX_CONNECTIONS_MAX)),
    ]
    async with trio.open_nursery() as watching:
        async with trio.open_nursery() as open_connections:
            async with trio.open_nursery() as accepting:
                for listening, connections in budgets:
                    await accepting.start(
                        partial(
                            trio.serve_listeners,
                            connections.bound(front.handle),
                            [BoundedListener(listening)],
                            handler_nursery=open_connections,
                        )
                    )
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            await front.close()
            watching.start_soon(_end, open_connections.cancel_scope, budgets, grace_s)
        watching.cancel_scope.cancel()


async def _end(
    requests: trio.CancelScope,
    budgets: Sequence[tuple[object, Connections]],
    grace_s: float,
) -> None:
    """End what is still being answered after ``grace_s``."""
    await trio.sleep(grace_s)
    requests.cancel()
    for _, connections in budgets:
        await connections.abort()
