"""What applications do to a database while it is captured; one daemon watches a directory.

Each test has a database of its own, which appears while the daemon runs, and ends with a restore
that equals the source page for page.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from basenet.control.surface import ShardState
from basenet.errors import NotFoundError
from tests.sqlite.application import Application
from tests.system.harness import Daemon, Scene, until

HUGE_BYTES = 24 * 1024 * 1024


class Yard:
    """A watched directory, its daemon, and the applications in it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.folder = scene.folder / "databases"
        self.folder.mkdir()
        self.daemon: Daemon = scene.serve(databases=f"{self.folder}/")

    def open(self, name: str, *pragmas: str, suffix: str = "") -> Application:
        """Start an application with a new database of that name, and wait until it is captured."""
        application = self.scene.start_application(self.path(name), suffix=suffix)
        application.sql(*pragmas, "PRAGMA journal_mode=WAL", "CREATE TABLE t(x INTEGER, y)")
        self.daemon.wait_capturing(name)
        return application

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.db"

    def check(self, name: str) -> None:
        """What is committed now is archived, and a restore of it equals the source."""
        self.daemon.wait_archived(name)
        self.scene.check_restore(shard=name, database=self.path(name))


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with contextlib.ExitStack() as stack:
        yield Yard(Scene(tmp_path_factory.mktemp("yard"), stack))


def fill(rows: int, bytes_each: int, first: int = 1) -> str:
    return (
        f"WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n "
        f"WHERE i < {first + rows - 1}) INSERT INTO t SELECT i, randomblob({bytes_each}) FROM n"
    )


def test_vacuum_is_captured_like_any_commit(yard: Yard) -> None:
    """VACUUM rewrites every page and shrinks the file."""
    application = yard.open("vacuum")
    application.sql(fill(2_000, 300), "DELETE FROM t WHERE x % 3", "VACUUM", fill(10, 10))
    yard.check("vacuum")


@pytest.mark.parametrize("mode", ["FULL", "INCREMENTAL"])
def test_a_file_that_shrinks_is_captured(yard: Yard, mode: str) -> None:
    """With auto_vacuum the database loses pages at its end, and grows again."""
    name = f"shrink-{mode.lower()}"
    application = yard.open(name, f"PRAGMA auto_vacuum={mode}")
    application.sql(fill(1_000, 900), "DELETE FROM t WHERE x > 10", "PRAGMA incremental_vacuum")
    yard.check(name)
    application.sql(fill(300, 900, first=2_000))
    yard.check(name)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_every_page_size_is_captured(yard: Yard, page_size: int) -> None:
    """The smallest, the usual and the largest page."""
    name = f"pages-{page_size}"
    application = yard.open(name, f"PRAGMA page_size={page_size}")
    application.sql(fill(400, 700), "DELETE FROM t WHERE x % 2", fill(50, 20_000, first=1_000))
    assert yard.daemon.status(name).page_size == page_size
    yard.check(name)


def test_a_huge_transaction_is_captured_as_one_commit(yard: Yard) -> None:
    """A transaction of many frames' size becomes a run of PARTIAL frames and one commit."""
    application = yard.open("huge")
    application.sql(fill(10, 10))
    yard.daemon.wait_archived("huge")
    before = yard.daemon.status("huge")
    application.sql(fill(HUGE_BYTES // 20_000, 20_000, first=100))
    yard.check("huge")
    after = yard.daemon.status("huge")
    assert after.captured_local == before.captured_local + 1
    assert after.captured_seq - before.captured_seq > 1
    assert after.recovered == 0


def test_the_application_may_checkpoint_in_every_mode(yard: Yard) -> None:
    """Checkpoints and log restarts by the application cost no commit."""
    application = yard.open("checkpoints")
    for number, mode in enumerate(("PASSIVE", "FULL", "RESTART", "TRUNCATE") * 3):
        application.sql(
            fill(20, 500, first=100 * number), f"PRAGMA wal_checkpoint({mode})", fill(1, 5)
        )
    yard.check("checkpoints")


@pytest.mark.parametrize("limit", [0, 20_000])
def test_a_log_that_is_cut_short_is_captured(yard: Yard, limit: int) -> None:
    """With journal_size_limit SQLite truncates the log at its reset (P1)."""
    name = f"limit-{limit}"
    application = yard.open(name, f"PRAGMA journal_size_limit={limit}")
    application.sql("PRAGMA wal_autocheckpoint=5")
    for number in range(100):
        application.sql(fill(3, 900, first=10 * number))
    yard.check(name)


def test_repeated_commit_frames_are_captured_once(yard: Yard) -> None:
    """With psow=0 and synchronous=FULL SQLite pads a commit to the sector with copies of it."""
    application = yard.open("psow", suffix="?psow=0")
    application.sql("PRAGMA synchronous=FULL")
    before = yard.daemon.status("psow").captured_local
    for number in range(30):
        application.sql(fill(1, 100, first=number))
    yard.check("psow")
    assert yard.daemon.status("psow").captured_local - before <= 31


def test_an_application_that_never_checkpoints_keeps_a_small_log(yard: Yard) -> None:
    """With wal_autocheckpoint=0 nobody resets the log, so we do (P36)."""
    application = yard.open("never", "PRAGMA wal_autocheckpoint=0")
    for number in range(4):
        application.sql(*[fill(30, 20_000, first=100 * number)] * 20)  # 12 MB
        yard.daemon.wait_archived("never")
    application.sql(fill(1, 10))
    yard.check("never")
    assert Path(f"{yard.path('never')}-wal").stat().st_size < 40_000_000


def test_a_table_without_rowid_and_a_rolled_back_spill_leave_no_trace(yard: Yard) -> None:
    """A transaction that spilled into the log and was rolled back is not captured."""
    application = yard.open("spill", "PRAGMA cache_size=10")
    application.sql(fill(100, 500))
    application.sql("PRAGMA cache_spill=10", "BEGIN", fill(1_000, 3_000, first=500), "ROLLBACK")
    application.sql(fill(1, 10))
    yard.check("spill")
    assert yard.scene.restore(shard="spill").query("SELECT count(*) FROM t") == [(101,)]


def test_a_database_that_vanishes_is_dropped(yard: Yard) -> None:
    """A file that was removed is no shard any more, and the daemon goes on."""
    application = yard.open("vanishing")
    application.sql(fill(5, 5))
    yard.daemon.wait_archived("vanishing")
    application.close()
    for path in yard.folder.glob("vanishing.db*"):
        path.unlink()

    def is_gone() -> bool:
        try:
            yard.daemon.status("vanishing")
        except NotFoundError:
            return True
        return False

    until(is_gone, "the shard is dropped")
    assert yard.scene.restore(shard="vanishing").query("SELECT count(*) FROM t") == [(5,)]


def test_an_idle_rollback_database_is_converted(yard: Yard) -> None:
    """A rollback-journal database that nobody uses becomes a WAL database."""
    with yard.scene.start_application(yard.path("converted")) as application:
        application.sql("CREATE TABLE t(x, y)", fill(100, 100))
    yard.daemon.wait_state(ShardState.CAPTURING, ShardState.DETACHED, shard="converted")
    yard.check("converted")
    with yard.scene.start_application(yard.path("converted")) as application:
        assert application.sql("PRAGMA journal_mode") == [["wal"]]
        application.sql(fill(5, 5, first=1_000))
        yard.check("converted")


def test_a_rollback_database_in_use_is_one_sentence(scene: Scene) -> None:
    """It is left alone, the status says what to do, and doing it is enough."""
    application = scene.start_application(scene.database)
    application.sql(
        "CREATE TABLE t(x, y)", "BEGIN", "INSERT INTO t VALUES (1, 1)", "SELECT * FROM t"
    )
    # Only now: a daemon that is already there would convert the file in front of the BEGIN.
    daemon = scene.serve()
    status = daemon.wait_status(lambda status: status.error, "a sentence")
    assert status.error is not None
    assert "rollback" in status.error
    assert status.error.endswith(".")
    application.sql("COMMIT", "PRAGMA journal_mode=WAL", fill(3, 3))
    daemon.wait_capturing()
    assert daemon.status().error is None
    daemon.wait_archived()
    scene.check_restore()


def test_an_exclusive_lock_is_one_sentence(yard: Yard) -> None:
    """With locking_mode=EXCLUSIVE nobody else can open the database; basenet waits and says so."""
    application = yard.scene.start_application(yard.path("exclusive"))
    application.sql(
        "PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL", "CREATE TABLE t(x, y)"
    )
    status = yard.daemon.wait_status(
        lambda status: status.error, "a sentence", "exclusive", patience_s=10
    )
    assert "EXCLUSIVE" in str(status.error)
    application.sql(fill(3, 3))
    application.close()
    yard.scene.start_application(yard.path("exclusive")).sql(fill(3, 3))
    yard.daemon.wait_capturing("exclusive")
    yard.check("exclusive")
