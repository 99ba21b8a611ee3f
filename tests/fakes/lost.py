"""`LostHistory`: a real database of which the last commits lost, and the bundle that keeps them."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from basenet.daemon.cluster.orphans import FOLDER, BundleFacts, Reason, write_bundle
from basenet.keys.trust import format_public
from basenet.units import TimestampNs
from tests.archive.builder import History
from tests.fakes.chain import signer

NODE = signer(9)
CREATED_NS = TimestampNs(1_795_000_000_000_000_000)
PAGE_SIZE = 4096


class LostHistory:
    """Makes ``kept.db`` (the state that both histories share), ``lost.db`` and a bundle.

    ``shared`` and ``lost`` are commits, each the SQL of one transaction.
    """

    def __init__(self, directory: Path, shared: Sequence[str], lost: Sequence[str]) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.kept, self.lost = directory / "kept.db", directory / "lost.db"
        self.data_dir.mkdir()
        key = f"{format_public(NODE.public)} the node\n"
        (self.data_dir / "trusted.keys").write_text(key)
        run_sql(self.kept, "pragma journal_mode=wal", *shared)
        self.chain = History(page_size=PAGE_SIZE, pages=pages_of(self.kept))
        self.lost.write_bytes(self.kept.read_bytes())
        self.kept_head = self.chain.tip.head
        for sql in lost:
            before = self.chain.pages
            run_sql(self.lost, sql)
            after = pages_of(self.lost)
            changes = {pgno: page for pgno, page in after.items() if before.get(pgno) != page}
            self.chain.commit(changes, db_pages=len(after))

    def write(self, **changes: Any) -> Path:
        """Write the bundle into the data directory."""
        facts: dict[str, Any] = {
            "shard": self.chain.shard,
            "lineage": self.chain.lineage,
            "kept_seq": self.kept_head.seq,
            "kept_hash": self.kept_head.hash,
            "kept_root": self.kept_head.state_root,
            "page_size": PAGE_SIZE,
            "db_pages": len(pages_of(self.kept)),
            "reason": Reason.DEPOSED,
            "created_ns": CREATED_NS,
            "detail": "node-b became the writer",
        }
        return write_bundle(
            self.data_dir / FOLDER,
            BundleFacts(**(facts | changes)),
            self.chain.encoded(self.kept_head.seq + 1, self.chain.tip.head.seq),
            certificate=None,
            signer=NODE,
        )


def run_sql(path: Path, *statements: str) -> None:
    """Run ``statements`` and leave everything in the database file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.executescript(statement)
        database.execute("pragma wal_checkpoint(truncate)")


def pages_of(path: Path) -> dict[int, bytes]:
    """Return the pages of a database file that has no log."""
    data = path.read_bytes()
    return {
        number + 1: data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
        for number in range(len(data) // PAGE_SIZE)
    }


def rows_of(path: Path, query: str) -> list[Any]:
    """Return what ``query`` gives on the database at ``path``."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def contents_of(path: Path) -> dict[str, list[Any]]:
    """Return every table's rows, sorted, and the schema."""
    with closing(sqlite3.connect(path)) as database:
        tables = database.execute(
            "select name from sqlite_schema where type = 'table' and name not like 'sqlite\\_%' "
            "escape '\\' order by name"
        ).fetchall()
        found: dict[str, list[Any]] = {
            name: sorted(map(repr, database.execute(f'select * from "{name}"')))
            for (name,) in tables
        }
        found["schema"] = database.execute(
            "select type, name, sql from sqlite_schema where sql is not null order by type, name"
        ).fetchall()
    return found
