"""A replica for tests: commits of a source database, applied to a copy of it by injection."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import numpy as np

from basenet.sqlite import locks
from basenet.sqlite.inject import Injector, Transaction


class Source:
    """A database whose commits are told as transactions, page by page."""

    def __init__(self, path: Path, page_size: int = 4096) -> None:
        self.path = path
        self.page_size = page_size
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.run(f"PRAGMA page_size={page_size}")
        self.run("PRAGMA journal_mode=WAL")
        self.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
        self.run("CREATE INDEX i ON t (v)")
        self._pages = self._read()

    def run(self, sql: str, *values: object) -> None:
        self.connection.execute(sql, values).fetchall()

    def _read(self) -> dict[int, bytes]:
        self.run("PRAGMA wal_checkpoint(TRUNCATE)")
        content = self.path.read_bytes()
        size = self.page_size
        return {n // size + 1: content[n : n + size] for n in range(0, len(content), size)}

    def change(self) -> Transaction:
        """What changed since the last call, as one transaction."""
        before, self._pages = self._pages, self._read()
        changed = [pgno for pgno, page in self._pages.items() if before.get(pgno) != page]
        return make_transaction({pgno: self._pages[pgno] for pgno in changed}, len(self._pages))

    def close(self) -> None:
        self.connection.close()


def make_transaction(pages: dict[int, bytes], db_pages: int) -> Transaction:
    ordered = sorted(pages)
    return Transaction(
        pieces=[(np.array(ordered, np.uint32), b"".join(pages[pgno] for pgno in ordered))],
        db_pages=db_pages,
    )


@dataclass
class Replica:
    """A database that is applied to. ``another``: a second injector, as after a restart."""

    path: Path
    connection: apsw.Connection
    injector: Injector
    another: Callable[[], Injector]


@contextmanager
def applying(source: Source, path: Path) -> Iterator[Replica]:
    """An injector for a copy of ``source`` at ``path``, with the fence held by a third party."""
    shutil.copy(source.path, path)
    with ExitStack() as stack:

        def open_injector() -> Injector:
            injector = Injector(path, page_size=source.page_size)
            stack.callback(injector.close)
            return injector

        fence = stack.enter_context(Path(f"{path}-shm").open("a+b", buffering=0))
        connection = apsw.Connection(str(path))
        connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        replica = Replica(path, connection, open_injector(), open_injector)
        assert locks.try_lock(fence.fileno(), locks.WAL_WRITE_BYTE)
        try:
            yield replica
        finally:
            # In this order: a closed descriptor drops the connection's locks.
            locks.unlock(fence.fileno(), locks.WAL_WRITE_BYTE)
            connection.close()


def content_of(path: Path) -> bytes:
    """The whole database as the file holds it after a full checkpoint."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return path.read_bytes()
