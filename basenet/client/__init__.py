"""The client library: a connection whose commit returns when the commit is safe.

========================  ====================================================================
`client.aio`              for asyncio: an aiosqlite connection (the extra ``client``)
`client.sync`             for everybody else: the standard library's sqlite3 connection
`client.waiting`          what a level is, and how a commit is waited for
`client.statements`       which statements commit by themselves
`client.exchange`         one question and its answer over HTTP, on a connection that is kept
`client.errors`           what can go wrong after a commit, which never unmakes the commit
========================  ====================================================================

It runs inside the application and asks the daemon beside it. So it imports nothing that only the
daemon needs: no trio, no apsw, nothing but the standard library, and aiosqlite for `client.aio`.

    from basenet.client import Level, connect

    async with connect("app.db", level=Level.FINAL) as db:
        await db.execute("INSERT INTO note VALUES (?)", ("hello",))
        await db.commit()           # returns when a quorum has it
        cookie = db.last_txseq      # for a reader elsewhere: `await db.read_your_writes(cookie)`
"""

from typing import TYPE_CHECKING

from basenet.client.errors import (
    ClientError,
    CommitOrphaned,
    DaemonUnavailable,
    LineageChanged,
    NotFinal,
    Refused,
)
from basenet.client.waiting import Level

if TYPE_CHECKING:
    from basenet.client.aio import Connection, connect

__all__ = [
    "ClientError",
    "CommitOrphaned",
    "Connection",
    "DaemonUnavailable",
    "Level",
    "LineageChanged",
    "NotFinal",
    "Refused",
    "connect",
]


def __getattr__(name: str) -> object:
    """Import the asyncio half when it is asked for: `client.sync` does without aiosqlite."""
    if name in {"connect", "Connection"}:
        from basenet.client import aio  # noqa: PLC0415  (why: above)

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
