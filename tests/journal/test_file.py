"""The journal's file: who may open it, what its errors mean, and what it promises of a disk."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from basenet.errors import ConflictError, CorruptionError, UnavailableError, UsageError
from basenet.journal import file
from basenet.journal.file import JournalFile
from basenet.journal.journal import Journal, JournalBroken
from basenet.journal.records import Batch
from tests.fakes.chain import Chain
from tests.journal.faulty_disk import DATABASE, LOG, FaultyDisk, faulty_disk
from tests.journal.story import SHARD, Story, begin, check_whole

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with faulty_disk() as disk:
        yield disk


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def log_bytes(journal: Journal) -> int:
    return Path(f"{journal.path}-wal").stat().st_size


def large_commit(story: Story) -> Batch:
    """A frame of 64 KiB."""
    story.rows.append(story._row(story.chain.commit({1: os.urandom(65536)})[0]))
    return story.batch(story.rows[-1:])


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# Who may open it


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    """Directory 0700 and files 0600, also SQLite's own, whatever the umask allows."""
    before = os.umask(0)
    try:
        journal = begin(tmp_path / "new" / "data", Story())
        modes = {path.name: mode_of(path) for path in journal.path.parent.iterdir()}
        assert modes == dict.fromkeys(
            ["journal.db", "journal.db-wal", "journal.db-shm", "lock"], 0o600
        )
        assert mode_of(journal.path.parent) == 0o700
        journal.close()
    finally:
        os.umask(before)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """It is told which directory is taken; when the first is gone, it may."""
    program = (
        "import sys; from pathlib import Path; from basenet.journal.journal import Journal\n"
        "from basenet.errors import ConflictError\n"
        "try: Journal(Path(sys.argv[1])).close()\n"
        "except ConflictError as error: sys.exit(str(error))"
    )
    journal = begin(tmp_path, Story())
    refused = run_python(program, str(tmp_path))
    assert refused.returncode == 1
    assert f"uses the data directory {tmp_path}" in refused.stderr
    with pytest.raises(ConflictError, match="another basenet"):
        Journal(tmp_path)
    assert check_whole(journal) == 1
    journal.close()
    journal.close()
    assert run_python(program, str(tmp_path)).returncode == 0


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    """The kernel gives it back, so nobody has to remove a file."""
    program = (
        "import sys, time; from pathlib import Path; from basenet.journal.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(ConflictError):
            Journal(tmp_path)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    Journal(tmp_path).close()


def test_the_journal_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    """And left as it is, for the program that wrote it."""
    journal = begin(tmp_path, Story())
    journal.close()
    connection = sqlite3.connect(journal.path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = journal.path.read_bytes()
    with pytest.raises(UsageError, match="has version 7, this basenet knows 2"):
        Journal(tmp_path)
    assert journal.path.read_bytes() == before


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    """It is not filled with our tables, nor changed at all."""
    connection = sqlite3.connect(tmp_path / "journal.db")
    connection.execute("CREATE TABLE orders (id)")
    connection.commit()
    connection.close()
    before = (tmp_path / "journal.db").read_bytes()
    with pytest.raises(UsageError, match="not a journal of basenet"):
        Journal(tmp_path)
    assert (tmp_path / "journal.db").read_bytes() == before


@pytest.mark.parametrize("name", ["data", "data/lock", "data/journal.db"])
def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    """A file where the directory should be, or a directory where a file should be."""
    if name == "data":
        (tmp_path / name).write_text("a file")
    else:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"BASE_DATA_DIR"):
        Journal(tmp_path / "data")


def test_a_file_system_without_shared_memory_is_refused(tmp_path: Path) -> None:
    """Without it SQLite has no write-ahead log that two connections can use."""
    with faulty_disk("unix-dotfile"), pytest.raises(UsageError, match="on a local disk"):
        Journal(tmp_path)


def test_a_refused_journal_is_not_held(tmp_path: Path) -> None:
    """Whatever a start failed for, the next one meets no lock and no open file."""
    (tmp_path / "journal.db").write_bytes(b"no database " * 1_000)
    for _ in range(2):
        with pytest.raises(CorruptionError):
            Journal(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(CorruptionError):
            Journal(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_closed_journal_is_not_used(tmp_path: Path) -> None:
    """That is a mistake of ours."""
    journal = begin(tmp_path, Story())
    journal.close()
    with pytest.raises(AssertionError, match="after it was closed"):
        journal.leaves(SHARD)


# Damage


def test_a_file_that_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    """The sentence names the file and the way out."""
    (tmp_path / "journal.db").write_bytes(b"no database " * 1_000)
    with pytest.raises(CorruptionError, match=r"journal\.db is damaged .* move .* aside"):
        Journal(tmp_path)


def read_all(folder: Path) -> None:
    """Open the journal and read all that is in it."""
    journal = Journal(folder)
    try:
        if journal.load(SHARD) is not None:
            journal.leaves(SHARD)
            list(journal.past_roots(SHARD))
            for seq, _ in journal.frame_sizes(SHARD, 0):
                journal.frames(SHARD, seq, seq, 0)
    finally:
        journal.close()


def damages(whole: bytes) -> Iterator[bytes]:
    for position in range(0, len(whole), 97):
        yield whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
    for length in range(0, len(whole), 4096 // 2):
        yield whole[:length]
    for page in range(0, len(whole), 4096):
        yield whole[:page] + bytes(4096) + whole[page + 4096 :]


def test_damage_is_ours_to_explain(tmp_path: Path) -> None:
    """Any byte, any length, any page: what is read is right or refused in our words."""
    story = Story(pages=60)
    journal = begin(tmp_path, story)
    journal.store([story.commits(6)])
    journal.close()
    whole = journal.path.read_bytes()
    refusals: list[str] = []
    for damaged in damages(whole):
        journal.path.write_bytes(damaged)
        for suffix in ("-wal", "-shm"):
            Path(f"{journal.path}{suffix}").unlink(missing_ok=True)
        try:
            read_all(tmp_path)
        except (CorruptionError, UsageError) as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all("journal" in sentence for sentence in refusals)


def test_a_rotten_frame_is_not_handed_out(tmp_path: Path) -> None:
    """SQLite does not notice a bit that flips inside a record; its neighbours stay readable."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(3)])
    journal.close()
    record = story.rows[1].record
    whole = journal.path.read_bytes()
    place = whole.index(record) + len(record) // 2
    journal.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    journal = Journal(tmp_path)
    with pytest.raises(CorruptionError, match=r"frame 2 in the journal .* reads back differently"):
        journal.frames(SHARD, 1, 4, 1 << 20)
    assert journal.frames(SHARD, 3, 4, 1 << 20) == story.records(3, 4)
    journal.close()


# A full disk


def test_a_full_disk_stores_nothing_and_is_not_the_end(tmp_path: Path) -> None:
    """SQLITE_FULL in the midst of a transaction: all of it is undone, and it may be repeated."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(3)])
    writer = journal._file._writer
    writer.pragma("max_page_count", writer.pragma("page_count") + 2)
    small, large = story.commit(), story.commits(200)
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"disk of the journal .* is full"):
            journal.store([small, large])
        assert check_whole(journal) == 4
    writer.pragma("max_page_count", 1 << 30)
    journal.store([small, large])
    assert check_whole(journal) == 205
    journal.close()
    journal = Journal(tmp_path)
    assert check_whole(journal) == 205
    journal.close()


def test_a_birth_on_a_full_disk_leaves_the_shard_unborn(tmp_path: Path) -> None:
    """It has no number, no row and no frame; later it is born as if nothing had been."""
    journal = Journal(tmp_path)
    writer = journal._file._writer
    writer.pragma("max_page_count", writer.pragma("page_count") + 2)
    story = Story(pages=800)
    with pytest.raises(UnavailableError):
        journal.begin_lineage(**story.birth())
    assert journal.load(SHARD) is None
    writer.pragma("max_page_count", 1 << 30)
    journal.begin_lineage(**story.birth())
    assert check_whole(journal) == 1
    journal.close()


def test_a_child_on_a_full_disk_leaves_its_parent(tmp_path: Path) -> None:
    """The older lineage goes in the transaction of the birth, or not at all."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(3)])
    writer = journal._file._writer
    writer.pragma("max_page_count", writer.pragma("page_count"))
    child = Story(Chain(number=2, parent=story.chain, pages={n: bytes(512) for n in range(1, 800)}))
    with pytest.raises(UnavailableError):
        journal.begin_lineage(**child.birth())
    assert check_whole(journal) == 4
    writer.pragma("max_page_count", 1 << 30)
    journal.store([story.commit()])
    assert check_whole(journal) == 5
    journal.close()


def test_a_log_without_room_stores_nothing_and_is_not_the_end(
    tmp_path: Path, disk: FaultyDisk
) -> None:
    """The disk is full at the commit: rolled back, repeated, stored once."""
    story = Story()
    journal = begin(tmp_path, story)
    batch = story.commits(3)
    disk.fail("write", LOG, apsw.FullError)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="free some space"):
            journal.store([batch])
    disk.heal()
    assert check_whole(journal) == 1
    journal.store([batch])
    assert check_whole(journal) == 4
    journal.close()


def test_a_log_index_that_cannot_grow_is_a_full_disk(tmp_path: Path, disk: FaultyDisk) -> None:
    """SQLite calls it an I/O error, which would end the process for nothing."""

    class IndexFull(apsw.IOError):
        extendedresult = apsw.SQLITE_IOERR_SHMSIZE

    story = Story()
    journal = begin(tmp_path, story)
    batch = story.commit()
    disk.fail("write", LOG, IndexFull)
    with pytest.raises(UnavailableError, match="full"):
        journal.store([batch])
    disk.heal()
    journal.store([batch])
    assert check_whole(journal) == 2
    journal.close()


def test_a_full_disk_at_a_checkpoint_is_no_error(
    tmp_path: Path, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames are durable in the log; it goes on growing until the disk has room again."""
    monkeypatch.setattr(file, "_CHECKPOINT_PAGES", 10)
    story = Story()
    journal = begin(tmp_path, story)
    disk.fail("write", DATABASE, apsw.FullError)
    for _ in range(20):
        journal.store([story.commit()])
    disk.heal()
    journal.store([story.commit()])
    grown = log_bytes(journal)
    for _ in range(20):
        journal.store([story.commit()])
    assert log_bytes(journal) == grown
    assert check_whole(journal) == 42
    journal.close()


def test_another_programs_lock_is_waited_for_and_then_named(tmp_path: Path) -> None:
    """A person with the sqlite3 shell; nothing is stored meanwhile."""
    story = Story()
    journal = begin(tmp_path, story)
    journal._file._writer.set_busy_timeout(20)
    program = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    batch = story.commit()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(journal.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(UnavailableError, match="another program holds a lock"):
            journal.store([batch])
        assert check_whole(journal) == 1
        child.communicate()
    journal.store([batch])
    assert check_whole(journal) == 2
    journal.close()


# A disk that fails


@pytest.mark.parametrize("act", ["write", "sync"])
def test_a_failed_write_or_fsync_is_the_end(tmp_path: Path, disk: FaultyDisk, act: str) -> None:
    """P32: after it nothing is tried again, nothing is read, nothing is said."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(3)])
    batch = story.commit()
    disk.fail(act, LOG, apsw.IOError)
    with pytest.raises(JournalBroken, match="check the disk"):
        journal.store([batch])
    disk.heal()
    acts: list[Callable[[], object]] = [
        lambda: journal.store([batch]),
        lambda: journal.set_archived(SHARD, 2),
        lambda: journal.load(SHARD),
        lambda: journal.leaves(SHARD),
        lambda: journal.frames(SHARD, 1, 4, 1 << 20),
    ]
    for forbidden in acts:
        with pytest.raises(JournalBroken, match="failed before"):
            forbidden()
    disk.trace.clear()
    journal.close()
    assert ("write", str(journal.path)) not in disk.trace  # the log is not copied
    journal = Journal(tmp_path)
    assert check_whole(journal) in (4, 5)  # what was reported, and perhaps what was not
    journal.close()


@pytest.mark.parametrize("act", ["write", "sync"])
def test_a_checkpoint_that_fails_is_the_end(
    tmp_path: Path, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """SQLite's automatic checkpoint would drop this error, and with it a failed fsync."""
    monkeypatch.setattr(file, "_CHECKPOINT_PAGES", 10)
    story = Story()
    journal = begin(tmp_path, story)
    disk.fail(act, DATABASE, apsw.IOError)

    def store_until_it_is_checkpointed() -> None:
        for _ in range(20):
            journal.store([story.commit()])

    with pytest.raises(JournalBroken):
        store_until_it_is_checkpointed()
    disk.heal()
    journal.close()
    journal = Journal(tmp_path)
    assert check_whole(journal) == len(story.rows)
    journal.close()


def test_a_failed_read_is_the_end(tmp_path: Path, disk: FaultyDisk) -> None:
    """It is told to whoever reads, and the next transaction tells the process."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(30)])
    disk.fail("read", LOG, apsw.IOError)
    disk.fail("read", DATABASE, apsw.IOError)
    with pytest.raises(JournalBroken):
        journal.frames(SHARD, 1, 31, 1 << 20)
    disk.heal()
    with pytest.raises(JournalBroken):
        journal.store([story.commit()])
    journal.close()


def test_a_disk_that_fails_at_the_start_is_named(tmp_path: Path, disk: FaultyDisk) -> None:
    """Whatever fails first; and a full one may be tried again."""
    disk.fail("write", "", apsw.IOError)
    with pytest.raises(JournalBroken, match="check the disk"):
        Journal(tmp_path)
    disk.heal()
    disk.fail("write", "", apsw.FullError)
    with pytest.raises(UnavailableError, match="free some space"):
        Journal(tmp_path)
    disk.heal()
    Journal(tmp_path).close()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, disk: FaultyDisk) -> None:
    """Without the right to it, say."""
    disk.fail("read", "", apsw.CantOpenError)
    with pytest.raises(UsageError, match="cannot be opened"):
        Journal(tmp_path)


def test_a_journal_that_was_deleted_is_the_end(tmp_path: Path) -> None:
    """P9: what it stores would be gone with the process, so nothing counts as stored."""
    story = Story()
    journal = begin(tmp_path / "data", story)
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    with pytest.raises(JournalBroken, match="was deleted"):
        journal.store([story.commit()])
    with pytest.raises(JournalBroken):
        journal.frames(SHARD, 1, 1, 0)
    journal.close()


def test_our_own_mistakes_are_not_explained_away(tmp_path: Path) -> None:
    """A statement that is wrong shows itself, changes nothing and breaks nothing."""
    journal = JournalFile(tmp_path)
    with pytest.raises(apsw.SQLError, match="no such table"):
        journal.transact(
            lambda connection: connection.execute("DELETE FROM meta; DELETE FROM nowhere")
        )
    with pytest.raises(apsw.SQLError), journal.reading() as connection:
        connection.execute("SELECT nothing")
    with pytest.raises(ZeroDivisionError):
        journal.transact(
            lambda connection: 1 // len(connection.execute("DELETE FROM meta").get or ())
        )
    with journal.reading() as connection:
        assert connection.execute("SELECT count(*) FROM meta").get == 3
    journal.close()


# What is durable, and what it costs of the disk


def test_what_is_stored_was_synced(tmp_path: Path, disk: FaultyDisk) -> None:
    """The last write to the log is followed by a sync before `store` returns."""
    story = Story()
    journal = begin(tmp_path, story)
    for _ in range(20):
        disk.trace.clear()
        journal.store([story.commit()])
        on_log = [act for act, name in disk.trace if name.endswith(LOG) and act != "read"]
        assert "write" in on_log
        assert on_log[-1] == "sync"
    journal.close()


def test_readers_do_not_hold_the_log_open(tmp_path: Path) -> None:
    """Not even one that looks at the newest past state only, or takes a part of the frames."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(50)])
    past = journal.past_roots(SHARD)
    next(past)
    journal.frames(SHARD, 1, 50, 1)
    journal.frames(SHARD, 99, 100, 1)
    journal.frame_sizes(SHARD, 0)
    journal.leaves(SHARD)
    journal.load(SHARD)
    journal._file._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    assert log_bytes(journal) == 0
    assert len(list(past)) == 50
    journal.close()


def test_the_log_stays_small_while_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 MiB stored, read again all the time by two threads: the log is reset in between."""
    monkeypatch.setattr(file, "_CHECKPOINT_PAGES", 200)
    monkeypatch.setattr(file, "_LOG_PAGES_MAX", 800)
    story = Story(Chain(page_size=65536, pages={1: bytes(65536)}))
    journal = begin(tmp_path, story)
    is_over = threading.Event()
    seen: list[int] = []

    def read() -> None:
        start = 1
        while not is_over.is_set():
            found = journal.frames(SHARD, start, 1 << 40, 1 << 20)
            seen.append(len(found))
            start = found[-1][0] + 1 if found else 1
            journal.count_bytes()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    largest = 0
    for _ in range(320):
        journal.store([large_commit(story)])
        largest = max(largest, log_bytes(journal))
    is_over.set()
    for reader in readers:
        reader.join()
    assert sum(seen) > 0
    assert largest < 5 << 20
    assert check_whole(journal) == 321
    journal.close()


def test_a_strangers_reader_does_not_hold_us_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log grows until it goes, but it is waited for ever more seldom."""
    monkeypatch.setattr(file, "_CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(file, "_LOG_PAGES_MAX", 40)
    monkeypatch.setattr(file, "_READERS_MS_MAX", 1)
    story = Story(Chain(page_size=65536, pages={1: bytes(65536)}))
    journal = begin(tmp_path, story)
    program = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN'); connection.execute('SELECT count(*) FROM frame').fetchall()\n"
        "print('reading', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(journal.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        for _ in range(40):
            journal.store([large_commit(story)])
        grown = log_bytes(journal)
        assert grown > 40 * 65536
        assert journal._file._log_pages_max > grown // 4096 // 2
        child.communicate()
    for _ in range(60):
        journal.store([large_commit(story)])
    assert log_bytes(journal) < 2 * grown
    assert check_whole(journal) == 101
    journal.close()


def test_space_is_given_back_when_most_of_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage of the archive the file shrinks while it is drained; nothing is harmed."""
    monkeypatch.setattr(file, "_FREE_PAGES_KEPT", 32)
    monkeypatch.setattr(file, "_GIVING_BACK_PAUSE_S", 0.0)
    monkeypatch.setattr(file, "_GIVING_BACK_S_MAX", 60.0)
    story = Story(Chain(page_size=65536, pages={1: bytes(65536)}))
    journal = begin(tmp_path, story)
    for _ in range(100):
        journal.store([large_commit(story)])
    writer = journal._file._writer
    high = writer.pragma("page_count")
    for seq in range(5, 98, 5):
        journal.set_archived(SHARD, seq)
    assert check_whole(journal) == 101
    assert writer.pragma("integrity_check") == "ok"
    assert writer.pragma("page_count") < high / 3
    writer.wal_checkpoint()
    assert journal.path.stat().st_size == writer.pragma("page_count") * 4096
    journal.close()


def test_space_is_given_back_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stores waits for it but a moment, and then not again for a while."""
    monkeypatch.setattr(file, "_FREE_PAGES_KEPT", 32)
    monkeypatch.setattr(file, "_GIVING_BACK_S_MAX", 0.0)
    story = Story(Chain(page_size=65536, pages={1: bytes(65536)}))
    journal = begin(tmp_path, story)
    journal.store([large_commit(story) for _ in range(40)])
    journal.set_archived(SHARD, 38)
    writer = journal._file._writer
    pages = writer.pragma("page_count")
    monkeypatch.setattr(file, "_GIVING_BACK_S_MAX", 60.0)
    monkeypatch.setattr(file, "_GIVING_BACK_PAUSE_S", 3_600.0)
    journal.set_archived(SHARD, 39)
    fewer = writer.pragma("page_count")
    assert fewer < pages / 2
    journal.set_archived(SHARD, 41)
    assert writer.pragma("page_count") == fewer
    journal.close()


def test_a_little_free_space_is_kept(tmp_path: Path) -> None:
    """The next frames need it; the file does not breathe with every upload."""
    story = Story()
    journal = begin(tmp_path, story)
    journal.store([story.commits(200)])
    pages = journal._file._writer.pragma("page_count")
    journal.set_archived(SHARD, 201)
    assert journal._file._writer.pragma("page_count") == pages
    journal.close()


def test_a_log_that_a_huge_transaction_blew_up_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite alone would keep it at its largest size for ever."""
    monkeypatch.setattr(file, "_LOG_BYTES_KEPT", 1 << 20)
    story = Story(Chain(page_size=65536, pages={1: bytes(65536)}))
    journal = begin(tmp_path, story)
    monkeypatch.setattr(file, "_CHECKPOINT_PAGES", 200)
    journal.store([large_commit(story) for _ in range(80)])
    assert log_bytes(journal) > 4 << 20
    journal.store([large_commit(story)])
    assert log_bytes(journal) <= 1 << 20
    journal.close()
