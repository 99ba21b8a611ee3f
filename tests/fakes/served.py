"""A real server on port 0 and a Unix socket, answering from a fake surface."""

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import trio

from basenet.config.values import Endpoint
from basenet.control.listeners import Listeners, open_listeners
from basenet.control.server import serve
from basenet.control.surface import Surface

ANY_PORT = Endpoint(host="127.0.0.1", port=0)


def _say_nothing(line: str) -> None:
    """Keep the announced address out of the test's standard output."""


@contextlib.asynccontextmanager
async def served(
    surface: Surface, data_dir: Path, *, stop: trio.Event | None = None, grace_s: float = 0.5
) -> AsyncIterator[Listeners]:
    """Serve inside this run of trio; leaving the block ends the server cleanly."""
    if stop is None:
        stop = trio.Event()
    listeners = open_listeners(ANY_PORT, data_dir)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(serve, surface, listeners, stop=stop, grace_s=grace_s, announce=_say_nothing)
        )
        try:
            yield listeners
        finally:
            stop.set()


@contextlib.contextmanager
def served_in_thread(surface: Surface, data_dir: Path) -> Iterator[Listeners]:
    """Serve from a thread, for clients that block."""
    listeners = open_listeners(ANY_PORT, data_dir)
    started = threading.Event()
    handle: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    async def run() -> None:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(serve, surface, listeners, stop=stop, grace_s=0.5, announce=_say_nothing)
            )
            handle.append((trio.lowlevel.current_trio_token(), stop))
            started.set()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    try:
        assert started.wait(10), "the server did not start"
        yield listeners
    finally:
        token, stop = handle[0]
        token.run_sync_soon(stop.set)
        thread.join(10)
        assert not thread.is_alive(), "the server did not end"
