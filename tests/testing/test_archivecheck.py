"""What judges a restored state must notice what is wrong with it."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from basenet.testing.archivecheck import find_moment_faults, read_whole
from basenet.testing.clusterarchive import ClusterArchive
from basenet.testing.clustercheck import compute_root

FINAL = {("k", 1): "a", ("k", 2): "b", ("other", 1): "c"}


def make(path: Path, rows: Iterable[tuple[str, int, str]], **registers: int) -> Path:
    """Return a database as the clients of `testing.history` write it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE reg (key TEXT PRIMARY KEY, version INT, tag TEXT)")
        connection.execute("CREATE TABLE hist (key TEXT, version INT, tag TEXT)")
        connection.executemany("INSERT INTO hist VALUES (?, ?, ?)", rows)
        connection.executemany("INSERT INTO reg VALUES (?, ?, '')", registers.items())
    return path


def test_a_prefix_of_the_final_state_is_sound(tmp_path: Path) -> None:
    """With the root that the journals have for it, and what was final by then."""
    path = make(tmp_path / "a.db", [("k", 1, "a"), ("other", 1, "c")], k=1, other=1)
    assert find_moment_faults(path, FINAL, {"a"}, compute_root(path).hex()) == []
    assert read_whole(path) == ({("k", 1): "a", ("other", 1): "c"}, [])


def test_what_was_final_by_then_and_is_missing_is_found(tmp_path: Path) -> None:
    """An acknowledged commit that the archive lost."""
    path = make(tmp_path / "a.db", [("k", 1, "a")], k=1)
    (only,) = find_moment_faults(path, FINAL, {"a", "b"}, None)
    assert only == "b was final by then and is not in it"


def test_what_never_became_final_is_found(tmp_path: Path) -> None:
    """A commit of a deposed writer must not be archived."""
    path = make(tmp_path / "a.db", [("k", 1, "a"), ("k", 2, "orphan")], k=2)
    (only,) = find_moment_faults(path, FINAL, {"a"}, None)
    assert only == "orphan is in it and not in the final state"


def test_a_state_that_is_not_whole_is_found(tmp_path: Path) -> None:
    """A version is left out; a register is behind; another page than that of the root."""
    path = make(tmp_path / "a.db", [("k", 2, "b"), ("other", 1, "c")], k=2)
    root, of_k, of_other = find_moment_faults(path, FINAL, set(), "00" * 32)
    assert root.startswith("its root is ")
    assert of_k == "k is 2, its history has 1 up to 2"
    assert of_other == "other is None, its history has 1 up to 1"


@pytest.mark.parametrize("offset", [3, 4096 + 3])
def test_a_damaged_file_is_found(tmp_path: Path, offset: int) -> None:
    """Whether SQLite refuses it or `integrity_check` names it."""
    path = make(tmp_path / "a.db", [("k", 1, "a")], k=1)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff\xff")
    rows, faults = read_whole(path)
    assert (rows, len(faults)) == ({}, 1)


def test_an_archive_is_missing_and_back(tmp_path: Path) -> None:
    """Its files are there again, and its absence was counted."""
    archive = ClusterArchive(tmp_path / "store")
    (archive.directory / "object").write_text("kept")
    archive.take_away()
    assert archive.absences == 1
    assert not archive.directory.parent.exists()
    archive.heal()
    archive.heal()
    assert archive.absences == 2
    assert (archive.directory / "object").read_text() == "kept"
    with pytest.raises(AssertionError):
        archive.protect()
    archive.close()
