"""An aiosqlite connection, whose commit returns when the commit is safe.

aiosqlite runs a `sqlite3.Connection` in a thread of its own. That connection is ours
(`client.sync`), so everything that is waited for is waited for there, in the order of the calls,
and the event loop is free meanwhile. A task that is cancelled while it waits leaves the thread
waiting until the answer or ``timeout_s``; what it committed stays committed.
"""

import os
from typing import Any, Final, Self

import aiosqlite

from basenet.client import sync
from basenet.client.waiting import TIMEOUT_SECONDS, Level

__all__ = ["Connection", "Level", "connect"]

_ROWS_A_TURN: Final = 64


def connect(
    path: str | os.PathLike[str],
    *,
    level: Level = Level.FINAL,
    daemon: str | os.PathLike[str] | None = None,
    shard: str | None = None,
    timeout_s: float = TIMEOUT_SECONDS,
    iter_chunk_size: int = _ROWS_A_TURN,
    **options: Any,
) -> "Connection":
    """Return a connection to await, or to use as ``async with``; arguments as in `sync.connect`."""

    def connector() -> sync.Connection:
        return sync.connect(
            path, level=level, daemon=daemon, shard=shard, timeout_s=timeout_s, **options
        )

    return Connection(connector, iter_chunk_size)


class Connection(aiosqlite.Connection):
    """See the module; the rest is as in aiosqlite."""

    async def __aenter__(self) -> Self:
        await self
        return self

    @property
    def _ours(self) -> sync.Connection:
        connection = self._conn
        assert isinstance(connection, sync.Connection), "made by our connector"
        return connection

    @property
    def level(self) -> Level:
        """How safe a commit must be before it returns; may be changed at any time."""
        return self._ours.level

    @level.setter
    def level(self, level: Level) -> None:
        self._ours.level = Level(level)

    @property
    def last_txseq(self) -> str | None:
        """The cookie of the last wait that ended well; None before. It covers every commit then."""
        return self._ours.last_txseq

    @property
    def last_seq(self) -> int | None:
        """The seq in that cookie."""
        return self._ours.last_seq

    async def wait(self, level: Level | None = None, timeout_s: float | None = None) -> str:
        """Return, with its cookie, once everything committed until now is at ``level``."""
        cookie: str = await self._execute(self._ours.wait, level, timeout_s)  # type: ignore[no-untyped-call]  # (untyped there)
        return cookie

    async def read_your_writes(self, cookie: str, timeout_s: float | None = None) -> None:
        """Return once this database holds the commit that ``cookie`` names, made on any node."""
        await self._execute(self._ours.read_your_writes, cookie, timeout_s)  # type: ignore[no-untyped-call]
