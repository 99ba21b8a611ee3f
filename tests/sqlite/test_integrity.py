"""integrity_check over pages that are no file."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from basenet.errors import CorruptionError
from basenet.sqlite.integrity import check_integrity


@dataclass
class Pages:
    """A database file as pages."""

    data: bytes
    page_size: int = 4096

    @property
    def db_pages(self) -> int:
        return len(self.data) // self.page_size

    def read_page(self, pgno: int) -> bytes:
        return self.data[(pgno - 1) * self.page_size : pgno * self.page_size]


def made(path: Path, *statements: str) -> bytes:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.create_collation("ours", lambda one, two: (one > two) - (one < two))
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    for statement in statements:
        connection.execute(statement).fetchall()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return path.read_bytes()


TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, v)"
ROWS = (
    "INSERT INTO t SELECT value, hex(randomblob(50)) "
    "FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 500) "
    "SELECT value FROM n)"
)


def test_a_sound_database_has_no_findings(tmp_path: Path) -> None:
    data = made(tmp_path / "a.db", TABLE, "CREATE INDEX i ON t(v)", ROWS)
    assert check_integrity(Pages(data)) == ([], None)
    assert check_integrity(Pages(b"")) == ([], None)


def test_an_index_that_lost_its_rows_is_found(tmp_path: Path) -> None:
    """Every page alone is right; together they are not."""
    data = made(tmp_path / "a.db", TABLE, ROWS, "CREATE INDEX i ON t(v)")
    other = made(tmp_path / "b.db", TABLE, ROWS, "CREATE INDEX i ON t(v)")
    half = len(data) // 2 // 4096 * 4096
    findings, note = check_integrity(Pages(data[:half] + other[half:]))
    assert findings
    assert note is None


def test_what_is_no_database_is_damage() -> None:
    with pytest.raises(CorruptionError):
        check_integrity(Pages(b"\x55" * 8192))


def test_a_schema_that_needs_the_application_says_nothing_against_the_database(
    tmp_path: Path,
) -> None:
    """A collation that only the application has cannot be compared by here."""
    data = made(tmp_path / "a.db", TABLE, "CREATE INDEX i ON t(v COLLATE ours)", ROWS)
    findings, note = check_integrity(Pages(data))
    assert findings == []
    assert note is not None
    assert "ours" in note
