# ruff: noqa: ASYNC240  (nothing else runs in these event loops)
"""A replica's file behind a real guardian, with applications beside it."""

import os
import sqlite3
import stat
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import apsw
import pytest
import trio

from basenet.daemon.cluster.file import (
    Intent,
    Outcome,
    ReplicaFile,
    Standing,
    decode_intent,
    encode_intent,
)
from basenet.errors import ConflictError, CorruptionError, UnavailableError, UsageError
from basenet.sqlite.capture import Capture, CapturePolicy
from basenet.sqlite.captured import Captured, Cursor
from basenet.sqlite.inject import Position
from basenet.units import Lineage, ShardId
from basenet.wire.merkle import StateTree, leaf_hash
from tests.daemon.cluster.files import (
    PLACE,
    Opened,
    apply,
    opened,
    payload_of,
    root_of,
    whole_of,
)
from tests.daemon.cluster.guarding import guardian
from tests.sqlite.application import Application, ApplicationError
from tests.sqlite.replica import Source, content_of

ROOT = Path(__file__).parents[3]
PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


# -- begin and end


@pytest.mark.parametrize("page_size", [0, *PAGE_SIZES])
async def test_a_file_that_is_not_there_is_made(path: Path, socket: Path, page_size: int) -> None:
    """Empty, in WAL mode, of the page size that was asked for, this user's alone, and fenced."""
    async with opened(path, socket, page_size=page_size) as here:
        size = page_size or 4096
        assert here.file.database.page_size == size
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        facts = await here.file.facts()
        assert (facts.page_size, facts.db_pages, facts.has_rows) == (size, 1, False)
        assert here.file.is_fenced
        with Application(path, timeout_s=0) as app:
            assert app.sql("PRAGMA journal_mode", "PRAGMA page_size") == [[size]]
            with pytest.raises(ApplicationError, match="locked"):
                app.sql("CREATE TABLE t (x)")


async def test_a_file_that_is_there_is_taken_as_it_is(path: Path, socket: Path) -> None:
    """Also an empty one, which an application has opened and not written to yet."""
    with Application(path, timeout_s=0) as app:
        app.sql("PRAGMA page_size=8192", "PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        async with opened(path, socket, page_size=512) as here:
            assert here.file.database.page_size == 8192
            assert app.sql("SELECT count(*) FROM t") == [[0]]
    empty = path.with_name("empty.db")
    with Application(empty, timeout_s=0) as app:
        empty.touch()
        async with opened(empty, socket, page_size=512) as here:
            assert here.file.database.page_size == 512
            with pytest.raises(ApplicationError, match="locked"):
                app.sql("CREATE TABLE t (x)")


async def test_a_link_leads_to_the_file(path: Path, socket: Path, tmp_path: Path) -> None:
    """SQLite keeps the log beside the file that the link names, and so do we."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path.symlink_to(folder / "real.db")
    async with opened(path, socket):
        assert (folder / "real.db-shm").exists()
        with Application(path, timeout_s=0) as app, pytest.raises(ApplicationError, match="locked"):
            app.sql("CREATE TABLE t (x)")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
async def test_a_file_that_root_makes_is_the_directorys_owners(
    socket: Path, tmp_path: Path
) -> None:
    """The application is not root, and has to open it; its log and index follow it."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 12_345, 23_456)
    async with opened(folder / "app.db", socket):
        owners = {(each.stat().st_uid, each.stat().st_gid) for each in folder.iterdir()}
        assert owners == {(12_345, 23_456)}
        assert len(list(folder.iterdir())) == 3


async def test_a_file_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    """Its directory is missing, for instance."""
    file = ReplicaFile(
        shard=ShardId("s"),
        path=tmp_path / "nowhere" / "app.db",
        guard=None,
        limiter=trio.CapacityLimiter(1),
    )
    with pytest.raises(UsageError, match="cannot be created"):
        await file.open()
    assert not file.is_open
    await file.close()


async def test_a_closed_file_is_the_applications_again(path: Path, socket: Path) -> None:
    """Fence and locks are gone; what was injected stays; it can be opened once more."""
    async with opened(path, socket) as here:
        await here.file.close()
        await here.file.close()
        assert not here.file.is_open
    with Application(path, timeout_s=5) as app:
        app.sql("CREATE TABLE t (x)")
        async with opened(path, socket) as here:
            with pytest.raises(ApplicationError, match="locked"):
                app.sql("INSERT INTO t VALUES (1)")


async def test_a_second_owner_is_refused(path: Path, socket: Path, tmp_path: Path) -> None:
    """The guardian is the owner of the file: another one cannot fence it, and lets go of it."""
    other = tmp_path / "other"
    other.mkdir()
    async with opened(path, socket):
        with guardian(other) as elsewhere:
            command = [sys.executable, "-c", _SECOND_OWNER, str(path), str(elsewhere)]
            done = await trio.run_process(command, capture_stdout=True, cwd=ROOT)
            assert b"another basenet" in done.stdout


_SECOND_OWNER = """
import sys, trio
from pathlib import Path
from tests.daemon.cluster.files import opened
from basenet.errors import ConflictError
async def main():
    try:
        async with opened(Path(sys.argv[1]), Path(sys.argv[2])):
            print("opened")
    except* ConflictError as error:
        print(error.exceptions)
trio.run(main)
"""


@pytest.mark.parametrize("is_second_whole", [True, False])
async def test_a_header_that_a_daemon_died_over_is_repaired(
    path: Path, socket: Path, source: Source, *, is_second_whole: bool
) -> None:
    """The guardian kept the lock, so nobody could; the next daemon reads at once (P3)."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        old = os.pread(here.file.database.shm_fd, 48, 0)
        source.run("INSERT INTO t (v) VALUES ('x')")
        await apply(here.file, payload_of(source))
        os.pwrite(here.file.database.shm_fd, old, 0)
        if not is_second_whole:
            os.pwrite(here.file.database.shm_fd, os.urandom(20), 50)
        here.die()
    with trio.fail_after(8):
        async with opened(path, socket) as here:
            with Application(path, timeout_s=0) as app:
                expected = 1 if is_second_whole else 0
                assert app.sql("SELECT count(*) FROM t") == [[expected]]


# -- applying beside a capture


def follow(capture: Capture, cursor: Cursor) -> list[Captured]:
    capture.restart_at(cursor)
    return list(capture.poll())


@pytest.mark.parametrize("policy", list(CapturePolicy))
async def test_a_capture_sees_the_application_and_nothing_injected(
    path: Path, socket: Path, source: Source, policy: CapturePolicy
) -> None:
    """50 times: inject, open the fence, the application commits, capture: its commits, exactly.

    Meanwhile the log begins anew, by us and by the application, and readers come and stay.
    """
    random = Random(5)
    restarts = 0
    async with opened(path, socket) as here:
        file = here.file
        await apply(file, whole_of(source))
        capture = Capture(file.database, policy=policy)
        reader = Application(path)
        with Application(path) as app, Application(path) as idle:
            idle.sql("SELECT count(*) FROM t")
            app.sql("PRAGMA wal_autocheckpoint=40")
            for step in range(50):
                # The application's last commits were captured; from here on the file is ours.
                await file.held()
                if step % 6 == 1:
                    reader.sql("BEGIN", "SELECT count(*) FROM t")
                if step % 6 == 4:
                    reader.sql("ROLLBACK")
                capture.rotation.pin.release()
                for _ in range(random.randint(1, 3)):
                    await inject_change(file, random)
                if step % 3 == 0:
                    salts = (await file.position()).salts
                    await relieve_all(file)
                    restarts += (await file.position()).salts != salts
                cursor = await file.cursor()
                assert follow(capture, cursor) == []
                here.release()
                count = random.randint(0, 6)
                app.run(
                    f"for n in range({count}):\n"
                    f"    c.execute('insert into t (v) values (?)', ('app {step} %d' % n,))"
                )
                if step % 5 == 2:
                    app.sql("PRAGMA wal_checkpoint(PASSIVE)")
                found = follow(capture, cursor)
                assert sum(each.commits for each in found) == count
                assert app.sql("PRAGMA integrity_check") == [["ok"]]
                await file.held()
                assert capture.cursor == await file.cursor() or not count
        reader.close()
        capture.rotation.pin.release()
    assert restarts > 5


async def relieve_all(file: ReplicaFile) -> None:
    """Relieve however short the log is."""
    injector = file._injecting._injector
    file.database.checkpoint(file.database.connections[1])
    injector.restart()
    await file.relieve()


async def inject_change(file: ReplicaFile, random: Random) -> None:
    """Apply a change that another node's application made to the same state."""
    kept = await file.keep_aside(Lineage(random.randbytes(16)))
    other = Source.__new__(Source)
    other.path, other.page_size = kept, file.database.page_size
    other.connection = sqlite3.connect(kept, isolation_level=None)
    other._pages = other._read()
    with closing(other):
        other.run("INSERT INTO t (v) VALUES (?)", random.randbytes(random.randint(10, 9000)))
        await apply(file, payload_of(other))
    kept.unlink()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
async def test_changes_of_every_page_size_are_applied_beside_a_reader(
    tmp_path: Path, path: Path, socket: Path, page_size: int
) -> None:
    """Growth, shrinking and VACUUM; the file ends up equal."""
    with closing(Source(tmp_path / "sized.db", page_size)) as source:
        async with opened(path, socket, page_size=page_size) as here:
            await apply(here.file, whole_of(source))
            with Application(path) as reader:
                for step in range(6):
                    source.run("INSERT INTO t (v) VALUES (randomblob(?))", 3000 * (step + 1))
                    first = payload_of(source)
                    if step % 2:
                        source.run("DELETE FROM t WHERE id % 2 = 0")
                        source.run("VACUUM")
                    second = payload_of(source) if step % 2 else None
                    await apply(here.file, first, *([second] if second else []))
                    await here.file.relieve()
                    expected = source.connection.execute("SELECT count(*) FROM t").fetchone()
                    assert reader.sql("SELECT count(*) FROM t") == [list(expected)]
        assert content_of(path) == content_of(source.path)


async def test_nothing_is_applied_without_the_fence(
    path: Path, socket: Path, source: Source
) -> None:
    """Before, while it is open, and to a path that leads elsewhere."""
    async with opened(path, socket) as here:
        prepared = await here.file.prepare([[whole_of(source)]])
        assert prepared is not None
        here.release()
        for act in (
            here.file.inject(prepared),
            here.file.prepare([[whole_of(source)]]),
            here.file.relieve(),
            here.file.inspect(None, None),
        ):
            with pytest.raises(UnavailableError, match="not fenced"):
                await act
        await here.file.held()
        moved = path.with_name("moved.db")
        path.rename(moved)
        with pytest.raises(ConflictError, match="deleted or moved"):
            await here.file.inject(prepared)
        moved.rename(path)
        await here.file.inject(prepared)


async def test_changes_without_a_page_are_no_batch(path: Path, socket: Path) -> None:
    """Nothing is written for them, and nothing has to be journalled."""
    async with opened(path, socket) as here:
        with closing(Source(path.with_name("source.db"))) as source:
            empty = whole_of(source)
            none = replace(empty, pgnos=empty.pgnos[:0], pages=b"")
            assert await here.file.prepare([[none], []]) is None
            assert await here.file.prepare([]) is None


async def test_pages_of_another_size_are_refused(path: Path, socket: Path, tmp_path: Path) -> None:
    """They cannot be in one file; `mend` makes it anew."""
    async with opened(path, socket, page_size=1024) as here:
        with (
            closing(Source(tmp_path / "big.db", 4096)) as source,
            pytest.raises(ConflictError, match="pages of 1024 bytes"),
        ):
            await here.file.prepare([[whole_of(source)]])


async def test_the_log_begins_anew_only_outside_of_a_batch(
    path: Path, socket: Path, source: Source
) -> None:
    """An intent names the end of the log, so it stays where it is until the batch is in."""
    async with opened(path, socket) as here:
        source.run("INSERT INTO t (v) VALUES (randomblob(6000000))")
        await apply(here.file, whole_of(source))
        source.run("INSERT INTO t (v) VALUES ('x')")
        prepared = await here.file.prepare([[payload_of(source)]])
        assert prepared is not None
        assert (await here.file.relieve()).log_bytes > 6_000_000
        await here.file.inject(prepared)
        assert (await here.file.relieve()).log_bytes == 0


# -- what became of the file


def intent_of(before: Position, after: Position) -> Intent:
    return decode_intent(encode_intent(before, after, PLACE))


def test_an_intent_survives_the_journal() -> None:
    """Byte for byte; anything else is refused."""
    position = Position(
        salts=b"12345678", frame_max=2**32 - 1, checksum=(1, 2), change=3, db_pages=4
    )
    after = replace(position, change=5)
    data = encode_intent(position, after, PLACE)
    assert decode_intent(data) == Intent(before=position, after=after, place=PLACE)
    for bad in (data[:-1], b"\x02" + data[1:], b""):
        with pytest.raises(CorruptionError, match="intent"):
            decode_intent(bad)


@pytest.mark.parametrize("is_index_lost", [False, True])
@pytest.mark.parametrize(
    "story", ["nothing", "written", "applied", "restarted", "ahead", "foreign"]
)
async def test_what_became_of_a_batch_is_told_at_the_start(
    path: Path, socket: Path, source: Source, story: str, *, is_index_lost: bool
) -> None:
    """Whether the wal-index lives on or a reboot took it: iChange then begins anew, the log not."""
    async with opened(path, socket) as here:
        file = here.file
        await apply(file, whole_of(source))
        cursor = await file.cursor()
        source.run("INSERT INTO t (v) VALUES ('batch')")
        prepared = await file.prepare([[payload_of(source)]])
        assert prepared is not None
        intent = intent_of(prepared.before, prepared.after)
        if story == "written":
            injector = file._injecting._injector
            injector._write_header = lambda _: None  # type: ignore[method-assign]  # dies before
        if story not in ("nothing", "foreign"):
            await file.inject(prepared)
        if story == "restarted":
            await relieve_all(file)
            assert (await file.position()).frame_max == 0
        if story in ("ahead", "foreign"):
            here.release()
            with Application(path) as app:
                app.sql("INSERT INTO t (v) VALUES ('app')", "INSERT INTO t (v) VALUES ('app')")
        if not is_index_lost:
            here.die()
    if is_index_lost:
        lose_index(path)
    async with opened(path, socket) as here:
        found = await here.file.inspect(cursor, intent)
        check_standing(story, found, is_index_lost=is_index_lost)
        if story == "ahead":
            capture = Capture(here.file.database)
            assert found.cursor is not None
            assert sum(each.commits for each in follow(capture, found.cursor)) == 2
        # What was given up does not come back, whoever recovers the log.
        before = (await here.file.facts()).state_root
    lose_index(path)
    async with opened(path, socket) as here:
        assert (await here.file.facts()).state_root == before


def check_standing(story: str, found: Standing, *, is_index_lost: bool) -> None:
    expected = {
        "nothing": (Outcome.NOT_APPLIED, False),
        # A recovery takes whole frames behind the end for a commit: it is the batch itself.
        "written": (Outcome.APPLIED, True) if is_index_lost else (Outcome.NOT_APPLIED, False),
        "applied": (Outcome.APPLIED, True),
        "restarted": (Outcome.APPLIED, True),
        "ahead": (Outcome.AHEAD, True),
        "foreign": (Outcome.AHEAD, False),
    }[story]
    assert (found.outcome, found.is_applied) == expected
    assert found.commits == (2 if found.outcome is Outcome.AHEAD else 0)
    assert found.cursor is not None


def lose_index(path: Path) -> None:
    """What a power failure does to shared memory."""
    Path(f"{path}-shm").unlink(missing_ok=True)


async def test_a_log_that_a_stranger_began_anew_tells_nothing(
    path: Path, socket: Path, source: Source
) -> None:
    """Then the pages tell: what differs from the leaves is one RECOVERED change."""
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        cursor, leaves = await here.file.cursor(), bytes(await here.file.leaves())
    with Application(path) as app:
        app.sql("INSERT INTO t (v) VALUES ('while nobody looked')")
    async with opened(path, socket) as here:
        found = await here.file.inspect(cursor, None)
        assert (found.outcome, found.cursor) == (Outcome.UNKNOWN, None)
        pieces: list[Captured] = []
        end = await here.file.compare(leaves, pieces.append)
        (piece,) = pieces
        tree = StateTree(4096, leaves)
        hashes = [
            leaf_hash(pgno, bytes(piece.pages[n * 4096 : (n + 1) * 4096]))
            for n, pgno in enumerate(piece.pgnos.tolist())
        ]
        tree.update(piece.pgnos.tolist(), hashes, piece.db_pages)
        assert tree.root() == (await here.file.facts()).state_root
        assert end == await here.file.cursor()


# -- what it holds


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["CREATE TABLE t (x)"], False),
        (["CREATE TABLE t (x)", "INSERT INTO t VALUES (NULL)"], True),
        (['CREATE TABLE "a ""b" (x)', 'INSERT INTO "a ""b" VALUES (1)'], True),
        (["CREATE TABLE w (x PRIMARY KEY) WITHOUT ROWID", "INSERT INTO w VALUES (1)"], True),
        (["CREATE TABLE a (x INTEGER PRIMARY KEY AUTOINCREMENT)", "ANALYZE"], False),
        (["CREATE TABLE t (x)", "CREATE VIEW v AS SELECT 1"], False),
        (["CREATE VIRTUAL TABLE f USING fts5(x)"], False),
        (["CREATE VIRTUAL TABLE f USING fts5(x)", "INSERT INTO f VALUES ('a')"], True),
    ],
)
async def test_rows_are_looked_for_in_tables_of_the_user(
    path: Path, socket: Path, statements: list[str], *, expected: bool
) -> None:
    """A schema alone is as good as an empty file; one row is not."""
    connection = apsw.Connection(str(path))
    for statement in ("PRAGMA journal_mode=WAL", *statements):
        connection.execute(statement).fetchall()
    connection.close()
    async with opened(path, socket) as here:
        facts = await here.file.facts()
        assert facts.has_rows is expected
    assert facts.state_root == root_of(content_of(path), facts.page_size)


async def test_what_is_kept_aside_is_never_overwritten(
    path: Path, socket: Path, source: Source
) -> None:
    """An equal copy is not made twice; another state gets another name."""
    lineage = Lineage(bytes(range(16)))
    async with opened(path, socket) as here:
        await apply(here.file, whole_of(source))
        first = await here.file.keep_aside(lineage)
        assert first.name == f"app.db.before-{lineage.hex()}"
        assert await here.file.keep_aside(lineage) == first
        before = first.read_bytes()
        source.run("INSERT INTO t (v) VALUES ('x')")
        await apply(here.file, payload_of(source))
        second = await here.file.keep_aside(lineage)
        assert second.name == f"app.db.before-{lineage.hex()}-2"
    assert first.read_bytes() == before
    assert root_of(second.read_bytes(), 4096) == root_of(content_of(path), 4096)
    assert content_of(second) == second.read_bytes()
    assert sorted(each.name for each in path.parent.glob("*.partial")) == []


async def test_a_stopped_application_is_seen_as_gone(path: Path, socket: Path) -> None:
    """The guardian's own lock on the last shared byte does not count (Q10)."""
    async with opened(path, socket) as here:
        assert not here.file.database.others_connected()
        with Application(path) as app:
            app.sql("SELECT count(*) FROM sqlite_schema")
            assert here.file.database.others_connected()
        assert not here.file.database.others_connected()


async def test_the_cursor_is_the_position(path: Path, socket: Path, source: Source) -> None:
    """They name the same end of the log."""
    async with opened(path, socket) as here:
        assert isinstance(here, Opened)
        await apply(here.file, whole_of(source))
        position = await here.file.position()
        cursor = await here.file.cursor()
        assert (cursor.salts, cursor.frame, cursor.checksum, cursor.change) == (
            position.salts,
            position.frame_max,
            position.checksum,
            position.change,
        )
