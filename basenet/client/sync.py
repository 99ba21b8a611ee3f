"""The standard library's `sqlite3.Connection`, whose commit returns when the commit is safe.

Theory of operation
===================

Everything is as in `sqlite3`, but that each call that commits goes on to wait: `commit`, the end of
a ``with`` block, COMMIT, and a statement that commits by itself because no transaction is open.
First SQLite commits, then the daemon is asked. If the second fails, the first stays done, and the
error says so (``is_committed``). What is asked before a transaction, at most once a second, only
makes the answer of the wait one about this very commit (`client.waiting`); it never stops one.

A statement with RETURNING that runs by itself commits when its last row was read. So its rows are
read at once and kept in the cursor, and then the commit is waited for.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from basenet.client.errors import ClientError
from basenet.client.statements import has_committed, is_reader, may_begin
from basenet.client.waiting import TIMEOUT_SECONDS, Level, Reached, Waiter, find_place
from basenet.errors import UsageError

__all__ = ["Connection", "Cursor", "Level", "connect"]


def connect(
    path: str | os.PathLike[str],
    *,
    level: Level = Level.FINAL,
    daemon: str | os.PathLike[str] | None = None,
    shard: str | None = None,
    timeout_s: float = TIMEOUT_SECONDS,
    **options: Any,
) -> "Connection":
    """Return a connection to the database ``path``; its `Connection.close` closes it.

    ``level``: how safe a commit must be before it returns; ``timeout_s``: how long that may take.
    ``daemon``: the daemon's http:// address, data directory or socket; by default BASE_DATA_DIR,
    ``.basenet`` beside the database, BASE_LISTEN_HTTP. ``shard``: its id, needed only where the
    daemon sees the file under another path. ``options`` are those of `sqlite3.connect`.

    The daemon is not asked yet. Raises `UsageError` for an address that is none, else what
    `sqlite3.connect` raises.
    """
    if os.fspath(path) in {"", ":memory:"} or options.get("uri"):
        raise UsageError("basenet.client opens databases by their path, not in memory or by URI.")
    waiter = Waiter(Path(path), find_place(Path(path), daemon), shard)
    return Connection(path, waiter=waiter, level=Level(level), timeout_s=timeout_s, **options)


class Connection(sqlite3.Connection):
    """See the module. ``level`` and ``timeout_s`` may be changed at any time."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        waiter: Waiter,
        level: Level,
        timeout_s: float,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self._waiter = waiter
        self._reached: Reached | None = None
        self.level = level
        self.timeout_s = timeout_s

    @property
    def last_txseq(self) -> str | None:
        """The cookie of the last wait that ended well; None before. It covers every commit then."""
        return self._reached.cookie if self._reached is not None else None

    @property
    def last_seq(self) -> int | None:
        """The seq in that cookie."""
        return self._reached.seq if self._reached is not None else None

    def wait(self, level: Level | None = None, timeout_s: float | None = None) -> str:
        """Return, with its cookie, once everything committed until now is at ``level``.

        By default the connection's own level and time. Raises `UsageError` for level local.
        """
        chosen = self.level if level is None else Level(level)
        if chosen is Level.LOCAL:
            raise UsageError("level local is SQLite's own: there is nothing to wait for.")
        patience_s = self.timeout_s if timeout_s is None else timeout_s
        self._reached = self._waiter.wait_now(chosen, patience_s)
        return self._reached.cookie

    def read_your_writes(self, cookie: str, timeout_s: float | None = None) -> None:
        """Return once this database holds the commit that ``cookie`` names, made on any node.

        The next transaction reads it. Raises `UsageError` while one is open, whose view is older;
        `NotFinal` when the time is up, `LineageChanged` when the cookie is of another history.
        """
        if self.in_transaction:
            raise UsageError("a transaction is open and keeps its view: end it first, then read.")
        patience_s = self.timeout_s if timeout_s is None else timeout_s
        self._waiter.wait_applied(cookie, patience_s)

    def before_commit(self) -> None:
        """Ask in which generation the next transaction commits, unless nobody is to be asked."""
        if self.level is not Level.LOCAL:
            self._waiter.before_commit()

    def wait_committed(self) -> None:
        """Wait for what was just committed, as ``level`` says; errors say that it is committed."""
        self._waiter.on_commit()
        if self.level is Level.LOCAL:
            return
        try:
            self.wait()
        except ClientError as error:
            error.is_committed = True
            raise

    @property
    def isolation_level(self) -> Any:
        """See `sqlite3.Connection.isolation_level`; None commits an open transaction, and waits."""
        return super().isolation_level

    @isolation_level.setter
    def isolation_level(self, level: Any) -> None:
        was_open = self.in_transaction
        sqlite3.Connection.isolation_level.__set__(self, level)  # type: ignore[union-attr]  # (C)
        if was_open and not self.in_transaction:
            self.wait_committed()

    def commit(self) -> None:
        """Commit, then return when the commit has reached the level."""
        was_open = self.in_transaction
        if was_open and self._waiter.generation is None:
            self.before_commit()  # begun by something else than our cursors
        super().commit()
        if was_open:
            self.wait_committed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> Literal[False]:
        if kind is not None:
            self.rollback()
            return False
        try:
            self.commit()
        except sqlite3.Error:
            self.rollback()
            raise
        return False

    def cursor(self, factory: Any = None) -> Any:
        """Return a `Cursor`, or what ``factory`` makes (its statements are not waited for)."""
        return super().cursor(factory or Cursor)  # type: ignore[arg-type]  # (overloads, merged)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """See `sqlite3.Connection.execute`."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:
        """See `sqlite3.Connection.executemany`."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:
        """See `sqlite3.Connection.executescript`; it is waited for once, at its end."""
        return self.cursor().executescript(sql_script)

    def close(self) -> None:
        """Close the database and the connection to the daemon."""
        self._waiter.close()
        super().close()


class Cursor(sqlite3.Cursor):
    """A cursor whose statements are waited for when they commit by themselves."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._owner = connection
        self._rows: Iterator[Any] | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """See `sqlite3.Cursor.execute`."""
        before = self._begin(sql)
        super().execute(sql, parameters)
        if not self._owner.in_transaction and self.description is not None and not is_reader(sql):
            self._rows = iter(super().fetchall())
        self._end(sql, *before)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """See `sqlite3.Cursor.executemany`."""
        before = self._begin(sql)
        super().executemany(sql, parameters)
        self._end(sql, *before)
        return self

    def executescript(self, sql_script: str, /) -> Self:
        """See `sqlite3.Cursor.executescript`."""
        self._begin("begin")
        super().executescript(sql_script)
        self._owner.wait_committed()
        return self

    def _begin(self, sql: str) -> tuple[bool, int]:
        self._rows = None
        if not self._owner.in_transaction and may_begin(sql):
            self._owner.before_commit()
        return self._owner.in_transaction, self._owner.total_changes

    def _end(self, sql: str, was_open: bool, changes: int) -> None:  # noqa: FBT001  (from _begin)
        if has_committed(
            sql,
            was_open=was_open,
            is_open=self._owner.in_transaction,
            has_changed_rows=self._owner.total_changes != changes,
        ):
            self._owner.wait_committed()

    def fetchone(self) -> Any:
        """See `sqlite3.Cursor.fetchone`."""
        return super().fetchone() if self._rows is None else next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """See `sqlite3.Cursor.fetchmany`."""
        count = self.arraysize if size is None else size
        if self._rows is None:
            return super().fetchmany(count)
        return [row for _, row in zip(range(count), self._rows, strict=False)]

    def fetchall(self) -> list[Any]:
        """See `sqlite3.Cursor.fetchall`."""
        return super().fetchall() if self._rows is None else list(self._rows)

    def __next__(self) -> Any:
        return super().__next__() if self._rows is None else next(self._rows)
