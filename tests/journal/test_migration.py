"""A journal of version 1 becomes one of version 2: all of it or nothing, after a copy."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from basenet.errors import CorruptionError, UsageError
from basenet.journal.journal import Journal
from basenet.units import ShardId
from basenet.wire.frame import encode_frame
from tests.fakes.chain import Chain
from tests.journal.story import SHARD, Story, check_whole

ROOT = Path(__file__).resolve().parents[2]
OTHER = ShardId("other")
# What the program of version 1 executed, to the letter.
VERSION_1 = [
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID",
    """CREATE TABLE shard (
    number INTEGER PRIMARY KEY,
    shard TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL,
    lineage BLOB NOT NULL,
    config BLOB NOT NULL,
    page_size INTEGER NOT NULL,
    db_pages INTEGER NOT NULL,
    cursor BLOB,
    detached BLOB,
    tip BLOB NOT NULL,
    local_last INTEGER NOT NULL,
    archived_seq INTEGER NOT NULL DEFAULT 0,
    broken_seq INTEGER,
    snapshot_seq INTEGER NOT NULL DEFAULT 0,
    snapshot_ns INTEGER NOT NULL DEFAULT 0
) STRICT""",
    """CREATE TABLE frame (
    id INTEGER PRIMARY KEY,
    flags INTEGER NOT NULL,
    local_first INTEGER NOT NULL,
    local_last INTEGER NOT NULL,
    bytes_end INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    state_root BLOB NOT NULL,
    record BLOB NOT NULL
) STRICT""",
    "CREATE TABLE leaf (id INTEGER PRIMARY KEY, hashes BLOB NOT NULL) STRICT",
]
JOURNAL_ID = b"v" * 16


def write_version_1(folder: Path) -> tuple[Story, Story]:
    """Make a journal as the program of version 1 left it, with two shards; return their stories.

    The second one has dropped its genesis.
    """
    stories = Story(), Story(Chain(number=3, pages={1: bytes(512)}), shard=OTHER)
    with_peers = folder.with_name("new")
    journal = Journal(with_peers)
    for story in stories:
        journal.begin_lineage(**story.birth())
        journal.store([story.commits(30)])
    journal.set_archived(OTHER, 20)
    count = journal.jcount
    journal.close()
    folder.mkdir()
    connection = sqlite3.connect(folder / "journal.db", isolation_level=None)
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("BEGIN")
    for table in VERSION_1:
        connection.execute(table)
    connection.execute(
        "INSERT INTO meta VALUES ('journal_id', ?), ('jcount', ?)", (JOURNAL_ID, count)
    )
    connection.execute("PRAGMA user_version = 1")
    connection.execute("COMMIT")
    connection.execute("ATTACH ? AS new", (str(with_peers / "journal.db"),))
    for table in ("shard", "frame", "leaf"):
        connection.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
    connection.close()
    return stories


def version_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    ((version,),) = connection.execute("PRAGMA user_version")
    connection.close()
    assert isinstance(version, int)
    return version


def check_migrated(folder: Path, stories: tuple[Story, Story]) -> None:
    """Assert that everything is there, in the new form and in the copy."""
    story, other = stories
    journal = Journal(folder)
    assert (journal.journal_id, journal.copied_from) == (JOURNAL_ID, None)
    assert check_whole(journal) == 31
    assert check_whole(journal, OTHER) == 31
    assert journal.frames(SHARD, 1, 99, 1 << 30) == story.records(1, 31)
    assert journal.frames(OTHER, 21, 99, 1 << 30) == other.records(21, 31)
    # The genesis is what a new member asks for; the second shard has none any more.
    assert journal.config_chain(SHARD) == ((encode_frame(story.chain.frames[0]), None),)
    assert journal.config_chain(OTHER) == ()
    assert journal.load_replica(SHARD) is None
    journal.store([story.commit(), other.commit()])
    journal.close()
    assert version_of(journal.path) == 2
    copy = folder / "journal.db.v1"
    assert version_of(copy) == 1
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not (folder / "journal.db.v1.tmp").exists()
    connection = sqlite3.connect(copy)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*) FROM frame").fetchone() == (31 + 11,)
    connection.close()


def test_a_journal_of_version_1_goes_on(tmp_path: Path) -> None:
    """Same id, same frames, same leaf hashes; its next start finds it as it is."""
    stories = write_version_1(tmp_path / "old")
    check_migrated(tmp_path / "old", stories)
    journal = Journal(tmp_path / "old")
    assert journal.journal_id == JOURNAL_ID
    assert check_whole(journal) == 32
    journal.close()


def test_the_copy_is_a_journal_of_its_own(tmp_path: Path) -> None:
    """Who goes back and comes again has forgotten what came between: another journal."""
    folder = tmp_path / "old"
    check_migrated(folder, write_version_1(folder))
    (folder / "journal.db.v1").rename(folder / "journal.db")
    for suffix in ("-wal", "-shm"):
        (folder / f"journal.db{suffix}").unlink(missing_ok=True)
    journal = Journal(folder)
    assert journal.copied_from == JOURNAL_ID
    assert check_whole(journal) == 31
    journal.close()


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.journal.faulty_disk import faulty_disk

left = int(sys.argv[2])


class Dying(dict):
    def items(self):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return ()


with faulty_disk() as disk:
    disk.faults = Dying()
    from basenet.journal.journal import Journal

    Journal(Path(sys.argv[1])).close()
print("done")
"""


@pytest.mark.system
def test_a_migration_that_is_killed_midway_is_done_again(tmp_path: Path) -> None:
    """At every act on the disk in turn, until one start lives long enough."""
    folder = tmp_path / "old"
    stories = write_version_1(folder)
    kills = 0
    for acts in range(5, 2_000, 7):
        result = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder), str(acts)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
        kills += 1
        assert version_of(folder / "journal.db") in (1, 2)
    assert kills > 3
    check_migrated(folder, stories)


def test_a_damaged_journal_of_version_1_is_left_alone(tmp_path: Path) -> None:
    """Neither migrated in part nor called another program's."""
    folder = tmp_path / "old"
    write_version_1(folder)
    connection = sqlite3.connect(folder / "journal.db")
    connection.execute("ALTER TABLE leaf ADD COLUMN more BLOB")
    connection.commit()
    connection.close()
    with pytest.raises(CorruptionError, match="not those of version 1"):
        Journal(folder)
    connection = sqlite3.connect(folder / "journal.db")
    connection.execute("ALTER TABLE leaf DROP COLUMN more")
    connection.execute("UPDATE shard SET config = x'00'")
    connection.commit()
    connection.close()
    with pytest.raises(CorruptionError):
        Journal(folder)
    assert version_of(folder / "journal.db") == 1


def test_a_copy_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    """Without the copy nobody could go back: the journal stays as it is."""
    folder = tmp_path / "old"
    stories = write_version_1(folder)
    (folder / "journal.db.v1").mkdir()
    with pytest.raises(UsageError, match=r"journal\.db\.v1 .*start again"):
        Journal(folder)
    assert version_of(folder / "journal.db") == 1
    (folder / "journal.db.v1").rmdir()
    check_migrated(folder, stories)
