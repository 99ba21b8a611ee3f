"""Commits that a power loss took are put back as a log, and only while nobody has the file."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import numpy as np
import pytest

from basenet.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from basenet.sqlite import locks, walformat
from basenet.sqlite import reinject as module
from basenet.sqlite.attach import DetachedState, attach, state_of
from basenet.sqlite.captured import Cursor
from basenet.sqlite.recover import scan
from basenet.sqlite.reinject import DRAFT_SUFFIX, Missing, Reinjected, reinject
from basenet.sqlite.walformat import FrameCodec
from basenet.wire.payload import CommitPayload

HOLDER = """
import sqlite3, sys
app = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2].split("; "):
    app.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
"""


def image(path: Path) -> list[bytes]:
    """Return the pages of the database as SQLite sees them, checkpointed, with its size."""
    with closing(apsw.Connection(os.fspath(path))) as connection:
        connection.execute("pragma wal_checkpoint(truncate)").fetchall()
        size = connection.execute("pragma page_size").get
    data = path.read_bytes()
    return [data[start : start + size] for start in range(0, len(data), size)]


class History:
    """A database's commits, one state and one change each, as capture journals them."""

    def __init__(self, path: Path, page_size: int = 4096, *, auto_vacuum: bool = False) -> None:
        self.path = path
        self.page_size = page_size
        with closing(sqlite3.connect(path, isolation_level=None)) as app:
            app.execute(f"pragma page_size={page_size}")
            if auto_vacuum:
                app.execute("pragma auto_vacuum=full")
            app.execute("pragma journal_mode=wal")
            app.execute("create table t(id integer primary key, x blob)")
        self.states = [image(path)]
        self.changes: list[Missing] = []

    def commit(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as app:
            app.execute("begin")
            for statement in statements:
                app.execute(statement)
            app.execute("commit")
        self.record()

    def record(self) -> None:
        """Note what the last commit changed."""
        before, after = self.states[-1], image(self.path)
        changed = [
            index
            for index, page in enumerate(after)
            if index >= len(before) or before[index] != page
        ]
        self.states.append(after)
        self.changes.append(Missing(payload=self.payload(changed, after)))

    def payload(self, changed: list[int], after: list[bytes]) -> CommitPayload:
        return CommitPayload(
            page_size=self.page_size,
            db_pages=len(after),
            commits=1,
            pgnos=np.array([index + 1 for index in changed], np.uint32),
            pages=b"".join(after[index] for index in changed),
        )

    def lose(self, keep: int, target: Path) -> Path:
        """Return the database at ``target`` as it was after ``keep`` commits."""
        target.write_bytes(b"".join(self.states[keep]))
        return target


def written(path: Path, commits: int = 12, page_size: int = 4096, seed: int = 1) -> History:
    """Return a history with inserts, deletions, a schema change and growth."""
    chance = random.Random(seed)
    history = History(path, page_size)
    for number in range(commits):
        size = chance.choice((10, 500, 9_000, 40_000))
        history.commit(
            f"insert into t(x) values (randomblob({size}))",
            f"delete from t where id = {chance.randrange(1, number + 2)}",
            *([f"create index i{number} on t(length(x))"] if number == commits // 2 else []),
        )
    return history


def assert_is(path: Path, state: list[bytes]) -> None:
    with closing(sqlite3.connect(path)) as app:
        assert app.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert image(path) == state


def state_of_path(path: Path) -> DetachedState:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return state_of(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def holder(path: Path, statements: str) -> Iterator[None]:
    """An application in another process that has done ``statements`` and stays."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, os.fspath(path), statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.kill()


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
def test_the_next_opener_recovers_every_missing_commit(tmp_path: Path, page_size: int) -> None:
    """From any older state: content page for page, integrity_check, and our SQLite's view."""
    history = written(tmp_path / "a.db", page_size=page_size)
    last = len(history.changes)
    for keep in (0, 1, 5, last - 1):
        path = history.lose(keep, tmp_path / f"lost{keep}.db")
        facts = reinject(path, history.changes[keep:])
        assert facts.commits == last - keep
        assert facts.wal_bytes == Path(f"{path}-wal").stat().st_size
        assert_is(path, history.states[-1])


def test_the_log_is_readable_by_the_newest_sqlite_without_a_checkpoint(tmp_path: Path) -> None:
    """An apsw connection opens, sees the rows, and finds the log's frames as its own."""
    history = written(tmp_path / "a.db")
    path = history.lose(3, tmp_path / "lost.db")
    facts = reinject(path, history.changes[3:])
    with closing(apsw.Connection(os.fspath(path))) as connection:
        connection.execute("pragma wal_autocheckpoint=0").fetchall()
        assert connection.execute("pragma integrity_check").get == "ok"
        busy, frames, _ = connection.execute("pragma wal_checkpoint(passive)").get
        assert (busy, frames) == (0, facts.frames)
        connection.execute("insert into t(x) values (1)").fetchall()


def test_after_a_power_loss_at_any_point_of_the_log_the_rest_can_be_put_back(
    tmp_path: Path,
) -> None:
    """The disk kept a random prefix of the log, torn at its end: recover, compare, put back.

    Then again with the power lost once more, before anybody opened the reinjected log.
    """
    history = written(tmp_path / "a.db", commits=10)
    whole = history.lose(0, tmp_path / "whole.db")
    reinject(whole, history.changes)
    log = Path(f"{whole}-wal").read_bytes()
    chance = random.Random(7)
    for number, cut in enumerate(sorted(chance.randrange(len(log)) for _ in range(25))):
        path = history.lose(0, tmp_path / f"cut{number}.db")
        wal = Path(f"{path}-wal")
        wal.write_bytes(log[:cut] + chance.randbytes(chance.choice((0, 100, 5000))))
        state = image(path)
        keep = history.states.index(state)
        missing = history.changes[keep:]
        reinject(path, missing)
        if missing and number % 2:
            # What was synced is kept, what SQLite did not see yet is no loss.
            again = tmp_path / f"again{number}.db"
            shutil.copy(path, again)
            shutil.copy(wal, f"{again}-wal")
            assert_is(again, history.states[-1])
        assert_is(path, history.states[-1])


def end_of_log(path: Path) -> Cursor:
    """Return where the log beside ``path`` ends, as a scan finds it when it attaches."""
    database = attach(path)
    found = scan(database)
    database.close()
    return found.cursor


@pytest.mark.parametrize("page_size", [512, 4096])
def test_what_the_disk_kept_of_the_log_is_kept_and_the_rest_follows_on(
    tmp_path: Path, page_size: int
) -> None:
    """The log's prefix is at state k with the file: byte for byte the front of the new log."""
    history = written(tmp_path / "a.db", page_size=page_size)
    whole = history.lose(0, tmp_path / "whole.db")
    reinject(whole, history.changes)
    log = Path(f"{whole}-wal").read_bytes()
    chance = random.Random(5)
    for number in range(12):
        path = history.lose(0, tmp_path / f"lost{number}.db")
        wal = Path(f"{path}-wal")
        wal.write_bytes(log[: chance.randrange(len(log) // 3, len(log))])
        cursor = end_of_log(path)
        kept = wal.read_bytes()[: 32 + cursor.frame * (page_size + 24)]
        copy = tmp_path / f"state{number}.db"
        shutil.copy(path, copy)
        copy.with_name(f"{copy.name}-wal").write_bytes(kept)
        missing = history.changes[history.states.index(image(copy)) :]
        facts = reinject(path, missing, expected=state_of_path(path), log=cursor)
        if missing:
            assert wal.read_bytes().startswith(kept)
            assert (
                facts.wal_bytes == wal.stat().st_size == len(kept) + facts.frames * (page_size + 24)
            )
        assert_is(path, history.states[-1])


def test_a_log_of_big_endian_checksums_goes_on_in_them(tmp_path: Path) -> None:
    """The file came from another machine; the magic number says so."""
    history = written(tmp_path / "a.db", commits=4)
    path = history.lose(0, tmp_path / "lost.db")
    salts = b"8 bytes."
    header = walformat.encode_header(page_size=4096, salts=salts, is_big_endian=True)
    decoded = walformat.decode_header(header)
    assert decoded is not None
    payload = history.changes[0].payload
    block, _ = FrameCodec(4096, is_big_endian=True).encode(
        [(int(pgno), payload.page(row)) for row, pgno in enumerate(payload.pgnos)],
        db_pages=payload.db_pages,
        salts=salts,
        start=decoded.checksum,
    )
    Path(f"{path}-wal").write_bytes(header + block)
    reinject(path, history.changes[1:], log=end_of_log(path))
    assert_is(path, history.states[-1])


def test_an_empty_last_piece_takes_page_1_from_the_kept_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's own page 1 is older than the log's, also when the log is read in many blocks."""
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4096 + 24)
    history = written(tmp_path / "a.db", commits=6)
    path = history.lose(0, tmp_path / "lost.db")
    reinject(path, history.changes[:4])
    cursor = end_of_log(path)
    empty = Missing(payload=history.payload([], history.states[4]))
    reinject(path, [empty, *history.changes[4:]], log=cursor)
    assert_is(path, history.states[-1])


def test_commits_that_came_after_the_proof_are_never_overwritten(tmp_path: Path) -> None:
    """Into the log, or through it into the file: either shows, and nothing is put in."""
    history = written(tmp_path / "a.db")
    for is_checkpointed in (False, True):
        path = history.lose(2, tmp_path / f"lost{is_checkpointed}.db")
        reinject(path, history.changes[2:4])
        expected, cursor = state_of_path(path), end_of_log(path)
        visit = "" if is_checkpointed else "pragma wal_autocheckpoint=0; "
        with holder(path, f"{visit}insert into t(x) values ('visitor')"):
            pass
        if is_checkpointed:
            image(path)
        before = path.read_bytes()
        with pytest.raises(ConflictError, match=r"was changed while|holds other commits"):
            reinject(path, history.changes[4:], expected=expected, log=cursor)
        assert path.read_bytes() == before
        with closing(sqlite3.connect(path)) as app:
            found = app.execute("select count(*) from t where x = 'visitor'").fetchone()
        assert found == (1,)


def test_a_torn_log_without_a_whole_commit_is_replaced(tmp_path: Path) -> None:
    """Nothing in it would be recovered, so nothing is lost."""
    history = written(tmp_path / "a.db")
    donor = history.lose(0, tmp_path / "donor.db")
    reinject(donor, history.changes)
    frame = 4096 + 24
    path = history.lose(0, tmp_path / "lost.db")
    for left in (0, 20, 32, 32 + frame - 1):
        Path(f"{path}-wal").write_bytes(Path(f"{donor}-wal").read_bytes()[:left])
        reinject(path, history.changes)
        assert_is(path, history.states[-1])
        history.lose(0, path)


def test_a_log_with_a_commit_in_it_is_never_replaced(tmp_path: Path) -> None:
    """Those commits may be new work; the file is not behind then, or not only."""
    history = written(tmp_path / "a.db")
    path = history.lose(0, tmp_path / "lost.db")
    reinject(path, history.changes[:3])
    before = Path(f"{path}-wal").read_bytes()
    with pytest.raises(ConflictError, match="holds other commits than basenet has seen"):
        reinject(path, history.changes)
    assert Path(f"{path}-wal").read_bytes() == before
    assert_is(path, history.states[3])


@pytest.mark.parametrize(
    "statements",
    [
        "select * from t",
        "begin; select * from t",
        "begin immediate",
        "pragma locking_mode=exclusive; select * from t",
    ],
)
def test_a_file_that_a_process_has_open_is_refused_and_left_alone(
    tmp_path: Path, statements: str
) -> None:
    """The application may be idle, in a transaction, or exclusive: its process id is named."""
    history = written(tmp_path / "a.db")
    path = history.lose(2, tmp_path / "lost.db")
    with holder(path, statements):
        with pytest.raises(ConflictError, match=r"process \d+ has it open: stop the application"):
            reinject(path, history.changes[2:])
        assert not Path(f"{path}{DRAFT_SUFFIX}").exists()
    reinject(path, history.changes[2:])
    assert_is(path, history.states[-1])


def test_an_application_that_comes_during_the_work_is_noticed_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the lock somebody opens the file and stays: refused, no draft."""
    history = written(tmp_path / "a.db")
    path = history.lose(2, tmp_path / "lost.db")
    with holder(path, "select count(*) from t"):
        monkeypatch.setattr(module, "_check_free", lambda *_: None)
        with pytest.raises(ConflictError, match="has it open"):
            reinject(path, history.changes[2:])
    assert not Path(f"{path}{DRAFT_SUFFIX}").exists()


def test_one_that_came_wrote_and_left_is_noticed_by_the_files_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``expected`` binds the proof that the file is at state k to the moment of the rename."""
    history = written(tmp_path / "a.db")
    path = history.lose(2, tmp_path / "lost.db")
    expected = state_of_path(path)
    check = module._check_state
    calls: list[int] = []

    def visited(*arguments: object) -> None:
        if len(calls) == 1:
            with closing(sqlite3.connect(path)) as app:
                app.execute("create table visitor(x)")
        calls.append(1)
        check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_check_state", visited)
    monkeypatch.setattr(module, "_all_locked", unlocked)
    with pytest.raises(ConflictError, match="was changed while basenet worked on it"):
        reinject(path, history.changes[2:], expected=expected)
    assert not Path(f"{path}-wal").exists()


@contextmanager
def unlocked(*_arguments: object) -> Iterator[None]:
    yield


def test_nobody_can_open_the_database_during_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the lock another process finds the database locked; afterwards it reads everything."""
    history = written(tmp_path / "a.db")
    path = history.lose(2, tmp_path / "lost.db")
    outcomes = []
    sync = module._sync_directory

    def try_to_open(directory: Path) -> None:
        code = (
            f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('select * from t')"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        outcomes.append(run.stderr.decode())
        sync(directory)

    monkeypatch.setattr(module, "_sync_directory", try_to_open)
    reinject(path, history.changes[2:])
    assert "database is locked" in outcomes[0]
    assert_is(path, history.states[-1])


def test_an_empty_file_gets_its_first_page_so_that_sqlite_keeps_the_log(tmp_path: Path) -> None:
    """The first page never reached the disk, and SQLite deletes a log beside 0 bytes."""
    history = written(tmp_path / "a.db")
    everything = list(range(len(history.states[3])))
    birth = Missing(payload=history.payload(everything, history.states[3]))
    path = tmp_path / "lost.db"
    path.touch()
    facts = reinject(path, [birth, *history.changes[3:]])
    assert facts.commits == len(history.changes) - 2
    assert_is(path, history.states[-1])


def test_a_run_of_partial_changes_is_one_transaction(tmp_path: Path) -> None:
    """Cut anywhere, SQLite recovers all of it or nothing; the last piece may be empty."""
    history = written(tmp_path / "a.db")
    path = history.lose(2, tmp_path / "lost.db")
    after = history.states[-1]
    half = len(after) // 2
    pieces = [
        Missing(payload=history.payload(list(range(half)), after), is_partial=True),
        Missing(payload=history.payload(list(range(half, len(after))), after), is_partial=True),
        Missing(payload=history.payload([], after)),
    ]
    facts = reinject(path, pieces)
    assert facts == Reinjected(
        commits=1, frames=len(after) + 1, wal_bytes=32 + (len(after) + 1) * (4096 + 24)
    )
    log = Path(f"{path}-wal").read_bytes()
    cut = history.lose(2, tmp_path / "cut.db")
    Path(f"{cut}-wal").write_bytes(log[:-1])
    assert image(cut) == history.states[2]
    assert_is(path, after)


def test_a_shrinking_database_shrinks(tmp_path: Path) -> None:
    """auto_vacuum commits fewer pages; one that only cuts pages off still needs a frame."""
    history = History(tmp_path / "a.db", auto_vacuum=True)
    history.commit(*["insert into t(x) values (randomblob(30000))"] * 8)
    history.commit("delete from t where id > 2")
    assert len(history.states[-1]) < len(history.states[-2])
    path = history.lose(1, tmp_path / "lost.db")
    reinject(path, history.changes[1:])
    assert_is(path, history.states[-1])


def test_the_fence_of_a_replica_does_not_come_back(tmp_path: Path) -> None:
    """Bytes 18 and 19 of page 1 are the file's, not the history's."""
    history = written(tmp_path / "a.db", commits=2)
    path = history.lose(0, tmp_path / "lost.db")
    payload = history.changes[1].payload
    assert payload.pgnos[0] == 1
    fenced = bytearray(payload.pages)
    fenced[18] = 3
    change = CommitPayload(
        page_size=4096,
        db_pages=payload.db_pages,
        commits=1,
        pgnos=payload.pgnos,
        pages=bytes(fenced),
    )
    reinject(path, [history.changes[0], Missing(payload=change)])
    assert_is(path, history.states[-1])


def test_the_log_belongs_to_whom_the_database_belongs(tmp_path: Path) -> None:
    """Owner, group and mode as SQLite itself sets them, or the application could not write."""
    history = written(tmp_path / "a.db", commits=3)
    path = history.lose(0, tmp_path / "lost.db")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    reinject(path, history.changes)
    log, database = Path(f"{path}-wal").stat(), path.stat()
    assert (log.st_uid, log.st_gid, log.st_mode) == (
        database.st_uid,
        database.st_gid,
        database.st_mode,
    )


def test_what_cannot_be_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    """No file, another page size, a rollback database, a hot journal, another daemon's file."""
    history = written(tmp_path / "a.db", commits=3)
    changes = history.changes
    with pytest.raises(NotFoundError, match="does not exist"):
        reinject(tmp_path / "missing.db", changes)

    other = written(tmp_path / "b.db", commits=1, page_size=1024)
    with pytest.raises(UsageError, match="4096 bytes"):
        reinject(other.path, changes)
    with pytest.raises(UsageError, match="change the page size from 4096 to 1024"):
        reinject(history.lose(0, tmp_path / "c.db"), [*changes, *other.changes])
    assert not (tmp_path / f"c.db{DRAFT_SUFFIX}").exists()

    rollback = tmp_path / "d.db"
    with closing(sqlite3.connect(rollback)) as app:
        app.execute("create table t(x)")
    with pytest.raises(UsageError, match="not the WAL-mode database"):
        reinject(rollback, changes)

    hot = history.lose(0, tmp_path / "e.db")
    Path(f"{hot}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
    with pytest.raises(ConflictError, match="transaction that was not finished"):
        reinject(hot, changes)

    owned = history.lose(0, tmp_path / "f.db")
    descriptor = os.open(owned, os.O_RDWR)
    assert locks.try_lock(descriptor, locks.OWNER_BYTE)
    with pytest.raises(ConflictError, match="another basenet process"):
        reinject(owned, changes)
    os.close(descriptor)

    empty = tmp_path / "g.db"
    empty.touch()
    without_page_1 = Missing(payload=history.payload([1], history.states[0]))
    with pytest.raises(UsageError, match="do not bring page 1"):
        reinject(empty, [without_page_1])
    assert not [name for name in tmp_path.iterdir() if name.name.endswith(("-wal", DRAFT_SUFFIX))]


def test_nothing_missing_changes_nothing(tmp_path: Path) -> None:
    """Not even a log is made."""
    path = tmp_path / "missing.db"
    assert reinject(path, []) == Reinjected(commits=0, frames=0, wal_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft is removed, the sentence says what to do, and a later attempt succeeds."""
    history = written(tmp_path / "a.db", commits=3)
    path = history.lose(0, tmp_path / "lost.db")

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(UnavailableError, match="No space left"):
            reinject(path, history.changes)
    assert sorted(name.name for name in tmp_path.glob("lost*")) == ["lost.db"]
    Path(f"{path}{DRAFT_SUFFIX}").write_bytes(b"left by a crash")
    reinject(path, history.changes)
    assert_is(path, history.states[-1])
