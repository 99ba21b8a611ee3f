"""The wal-index as SQLite writes it, and as it looks in the middle of a change."""

import os
from pathlib import Path

import pytest

from basenet.sqlite.attach import attach
from basenet.sqlite.walindex import decode_header, read_header_bytes, read_index
from tests.sqlite.application import Application


@pytest.fixture
def raw_index(tmp_path: Path) -> bytes:
    """The first bytes of a real -shm after three commits."""
    path = tmp_path / "app.db"
    with Application(path) as application:
        application.sql("pragma page_size=65536", "pragma journal_mode=wal", "create table t(x)")
        application.sql("insert into t values(1)", "insert into t values(2)")
        application.kill()
    return Path(f"{path}-shm").read_bytes()[:136]


def test_the_header_says_what_sqlite_did(raw_index: bytes) -> None:
    """Commits, frames, pages and page size (65536 is stored as 1)."""
    header = decode_header(raw_index)
    assert header is not None
    assert header.page_size == 65536
    assert (header.change, header.db_pages) == (3, 2)
    assert header.frame_max >= 3


def test_a_torn_or_wrong_header_is_none(raw_index: bytes) -> None:
    """Unequal copies, no isInit, a wrong own checksum, too few bytes: never half a header."""
    for place in range(96):
        torn = bytearray(raw_index)
        torn[place] ^= 1
        assert decode_header(bytes(torn)) is None
    both = bytearray(raw_index)
    both[16] ^= 1
    both[64] ^= 1
    assert decode_header(bytes(both)) is None
    assert decode_header(bytes(136)) is None
    assert decode_header(raw_index[:95]) is None


def test_reading_a_torn_index_ends(tmp_path: Path, raw_index: bytes) -> None:
    """A writer that died between the copies must not make us spin (P3)."""
    path = tmp_path / "shm"
    path.write_bytes(raw_index[:47] + b"?" + raw_index[48:])
    with path.open("rb") as file:
        assert read_index(file.fileno()) is None
        assert read_header_bytes(file.fileno()) == raw_index[:47] + b"?"
    path.write_bytes(b"")
    with path.open("rb") as file:
        assert read_index(file.fileno()) is None


def test_backfill_and_marks_are_seen(tmp_path: Path) -> None:
    """NBackfill follows a checkpoint; an empty log counts as backfilled."""
    path = tmp_path / "app.db"
    with Application(path) as application:
        application.sql("pragma journal_mode=wal", "create table t(x)")
        database = attach(path)
        try:
            application.sql("insert into t values(1)")
            index = database.read_index()
            assert index is not None
            assert not index.is_backfilled
            assert len(index.read_marks) == 5
            application.sql("pragma wal_checkpoint(passive)")
            index = database.read_index()
            assert index is not None
            assert index.is_backfilled
            assert index.backfilled == index.header.frame_max
            application.sql("pragma wal_checkpoint(truncate)")
            index = database.read_index()
            assert index is not None
            assert index.header.frame_max == 0
            assert index.is_backfilled
            assert os.fstat(database.wal_fd).st_size == 0
        finally:
            database.close()
