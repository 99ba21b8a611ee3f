"""The index of orphan bundles: the bundles themselves are files beside the journal."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Final

import apsw

from basenet.errors import NotFoundError
from basenet.journal.records import OrphanRow
from basenet.units import ShardId

_COLUMNS: Final = tuple(field.name for field in fields(OrphanRow))
_INSERT: Final = (
    f"INSERT OR REPLACE INTO orphan ({', '.join(_COLUMNS)}) "  # noqa: S608  (constants)
    f"VALUES ({', '.join('?' for _ in _COLUMNS)})"
)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM orphan"  # noqa: S608  (constants)


def add_orphan(connection: apsw.Connection, orphan: OrphanRow) -> None:
    """Note a bundle; its commits are accounted for from now. To note it again is harmless."""
    connection.execute(_INSERT, tuple(getattr(orphan, name) for name in _COLUMNS))
    connection.execute(
        "UPDATE replica SET local_last = max(local_last, ?) "
        "WHERE number = (SELECT number FROM shard WHERE shard = ?)",
        (orphan.last_local, orphan.shard),
    )


def load_orphans(connection: apsw.Connection, shard: ShardId | None) -> tuple[OrphanRow, ...]:
    """Return the bundles of ``shard``, or of all shards, oldest first."""
    return tuple(_read(connection, shard))


def _read(connection: apsw.Connection, shard: ShardId | None) -> Iterator[OrphanRow]:
    rows = connection.execute(
        f"{_SELECT} WHERE ?1 IS NULL OR shard = ?1 ORDER BY created_ns, id", (shard,)
    )
    for row in rows:
        yield OrphanRow(**dict(zip(_COLUMNS, row, strict=True)))


def set_orphan(connection: apsw.Connection, identity: str, *, state: str) -> None:
    """Say what was decided about a bundle; raise `NotFoundError` if there is no such bundle."""
    connection.execute("UPDATE orphan SET state = ? WHERE id = ?", (state, identity))
    if not connection.changes():
        raise NotFoundError(f"there is no orphan bundle {identity!r}: list them with `orphans`.")
