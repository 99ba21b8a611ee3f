"""What happens to a database while the daemon is away, or before it comes, or between two turns."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from basenet.control.surface import ShardState
from tests.system.harness import Daemon, Scene, until


def make_database(path: Path, rows: int, *pragmas: str, bytes_each: int = 300) -> None:
    """Play an application that comes, commits and goes."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in (*pragmas, "PRAGMA journal_mode=WAL"):
            connection.execute(pragma)
        connection.execute("CREATE TABLE IF NOT EXISTS t(x INTEGER, y)")
        connection.execute("BEGIN")
        for number in range(rows):
            connection.execute("INSERT INTO t VALUES (?, randomblob(?))", (number, bytes_each))
        connection.execute("COMMIT")


def count(scene: Scene) -> int:
    ((number,),) = scene.restore().query("SELECT count(*) FROM t")
    assert isinstance(number, int)
    return number


def wait_detached(daemon: Daemon) -> None:
    daemon.wait_state(ShardState.DETACHED)


def test_a_database_without_an_application_is_archived_and_let_go(scene: Scene) -> None:
    """It enters the archive whole, and neither -wal nor -shm stays beside it (P5)."""
    make_database(scene.database, 100)
    daemon = scene.serve()
    wait_detached(daemon)
    daemon.wait_archived()
    assert not Path(f"{scene.database}-wal").exists()
    assert not Path(f"{scene.database}-shm").exists()
    scene.check_restore()


def test_an_application_that_starts_later_is_captured(scene: Scene) -> None:
    """The database and even its folder may come after the daemon."""
    daemon = scene.serve()
    daemon.wait_state(ShardState.WAITING)
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon.wait_capturing()
    daemon.wait_archived()
    scene.check_restore()
    assert daemon.status().lapped == 0


def test_short_lived_writers_lose_nothing(scene: Scene) -> None:
    """Programs that open, commit and close faster than we attach are captured all the same (P5)."""
    make_database(scene.database, 10)
    daemon = scene.serve()
    wait_detached(daemon)
    for number in range(3):
        make_database(scene.database, 1)
        daemon.wait_archived()
        assert count(scene) == 11 + number
    scene.check_restore()


def test_a_file_moved_in_after_the_application_stopped_is_the_new_database(scene: Scene) -> None:
    """Stop the app, move a file in, start the app: neither file is damaged by us (P5)."""
    application = scene.start_wal_application()
    application.sql(*["INSERT INTO t VALUES (1, randomblob(2000))"] * 50)
    daemon = scene.serve()
    daemon.wait_archived()
    application.close()
    wait_detached(daemon)
    other = scene.folder / "other.db"
    make_database(other, 7)
    other.rename(scene.database)
    application = scene.start_wal_application()
    assert application.sql("SELECT count(*) FROM t") == [[7]]
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon.wait_archived()
    assert application.sql("PRAGMA integrity_check") == [["ok"]]
    scene.check_restore()
    assert count(scene) == 8


def test_files_moved_in_one_after_the_other_are_each_let_go(scene: Scene) -> None:
    """A file put in place of ours is not an application that was too quick for us."""
    daemon = scene.serve()
    for round_number in range(4):
        other = scene.folder / "other.db"
        make_database(other, round_number + 1)
        other.rename(scene.database)
        application = scene.start_wal_application()
        daemon.wait_archived()
        application.sql("INSERT INTO t VALUES (1, 2)")
        daemon.wait_archived()
        application.close()
        # Far below the minute that is waited for a database of short-lived writers.
        wait_detached(daemon)
    scene.check_restore()


def test_a_database_replaced_under_us_is_followed(scene: Scene) -> None:
    """Another file renamed over the database while both of us have it open: the new one counts."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve()
    daemon.wait_archived()
    application.kill()
    for suffix in ("-wal", "-shm"):
        Path(f"{scene.database}{suffix}").unlink(missing_ok=True)
    other = scene.folder / "other.db"
    make_database(other, 5)
    other.rename(scene.database)
    scene.start_wal_application().sql("INSERT INTO t VALUES (3, 4)")
    daemon.wait_status(lambda status: status.recovered, "the new file is taken in")
    daemon.wait_archived()
    scene.check_restore()
    assert count(scene) == 6


def test_a_database_deleted_and_made_anew_is_followed(scene: Scene) -> None:
    """The same with a file that was removed first."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve()
    daemon.wait_archived()
    application.close()
    for path in scene.folder.glob("app.db*"):
        path.unlink()
    daemon.wait_state(ShardState.WAITING)
    scene.start_wal_application().sql("INSERT INTO t VALUES (7, 8)", "INSERT INTO t VALUES (9, 9)")
    daemon.wait_capturing()
    daemon.wait_archived()
    scene.check_restore()
    assert count(scene) == 2


def test_work_done_while_the_daemon_was_down_comes_after_it(scene: Scene) -> None:
    """A commit that waits in the log is captured as itself, also after a SIGKILL."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve()
    daemon.wait_archived()
    before = daemon.status()
    daemon.kill()
    application.sql(*["INSERT INTO t VALUES (1, 2)"] * 5)
    daemon = scene.serve()
    daemon.wait_archived()
    after = daemon.status()
    assert (after.recovered, after.captured_local) == (0, before.captured_local + 5)
    assert after.lineage == before.lineage
    scene.check_restore()


def test_work_that_left_the_log_while_the_daemon_was_down_is_one_recovered_frame(
    scene: Scene,
) -> None:
    """The changed pages alone are shipped, flagged, and no snapshot is taken for it."""
    make_database(scene.database, 2_000)
    daemon = scene.serve()
    daemon.wait_archived()
    before = daemon.status()
    assert daemon.stop() == 0
    make_database(scene.database, 1)
    make_database(scene.database, 1)
    daemon = scene.serve()
    daemon.wait_archived()
    after = daemon.status()
    assert (after.recovered, after.captured_seq) == (1, before.captured_seq + 1)
    assert after.last_snapshot_seq == before.last_snapshot_seq
    scene.check_restore()


def test_a_page_size_changed_while_the_daemon_was_down_is_taken_in(scene: Scene) -> None:
    """A new page size means all pages anew, in the same lineage (P39)."""
    make_database(scene.database, 200)
    daemon = scene.serve()
    daemon.wait_archived()
    lineage = daemon.status().lineage
    assert daemon.stop() == 0
    with contextlib.closing(sqlite3.connect(scene.database, isolation_level=None)) as connection:
        for statement in ("journal_mode=DELETE", "page_size=1024"):
            connection.execute(f"PRAGMA {statement}")
        connection.execute("VACUUM")
    make_database(scene.database, 3)
    daemon = scene.serve()
    daemon.wait_archived()
    status = daemon.status()
    assert (status.page_size, status.lineage) == (1024, lineage)
    scene.check_restore()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"this is a text and no database. " * 200, "SQLite"),
        (bytes(range(256)) * 32, "encrypted"),
    ],
)
def test_a_file_that_is_no_database_is_one_sentence(
    scene: Scene, content: bytes, word: str
) -> None:
    """Not SQLite, or encrypted: the shard is refused, the file untouched, the daemon goes on."""
    scene.database.write_bytes(content)
    daemon = scene.serve()
    status = daemon.wait_state(ShardState.REFUSED)
    assert word in str(status.error)
    assert str(status.error).count(". ") == 0
    assert scene.database.read_bytes() == content
    assert sorted(path.name for path in scene.folder.glob("app.db*")) == ["app.db"]


def test_two_daemons_on_one_database_are_one_too_many(scene: Scene) -> None:
    """The second says so, does no harm, and takes over when the first is gone."""
    application = scene.start_wal_application()
    first = scene.serve()
    first.wait_archived()
    second = scene.serve(
        archive=str(scene.folder / "other-archive"), data_dir=scene.folder / "other-data"
    )
    status = second.wait_state(ShardState.REFUSED)
    assert "another basenet" in str(status.error)
    application.sql("INSERT INTO t VALUES (1, 2)")
    first.wait_archived()
    scene.check_restore()


def list_objects(scene: Scene) -> list[Path]:
    """Return what the archive holds of the shard, which nobody is writing to now."""
    return sorted((scene.archive / "default" / "app").rglob("*"))


def test_two_daemons_on_one_shard_of_one_archive_are_one_too_many(scene: Scene) -> None:
    """The lease, and the history that is not its own, keep the second out of the archive."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    first = scene.serve()
    first.wait_archived()
    # TIP follows the log by a second, and is the first's own doing.
    names = [path for path in list_objects(scene) if path.name != "TIP"]
    twin = scene.folder / "twin"
    twin.mkdir()
    make_database(twin / "app.db", 3)
    second = scene.serve(databases=str(twin / "app.db"), data_dir=scene.folder / "other-data")
    second.wait_status(
        lambda status: status.error or status.archive not in ("ok", "off"), "refusal"
    )
    assert names == [path for path in list_objects(scene) if path.name != "TIP"]
    application.sql("INSERT INTO t VALUES (1, 2)")
    first.wait_archived()
    scene.check_restore()


def copy_state(scene: Scene, to: Path) -> None:
    """Copy database and log as they are now, as a disk would keep them."""
    to.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{scene.database}{suffix}", to / f"app.db{suffix}")


def put_back(scene: Scene, kept: Path) -> None:
    """Make the disk forget what came after ``kept``: same files, older content, no -shm."""
    for suffix in ("", "-wal"):
        data = (kept / f"app.db{suffix}").read_bytes()
        with Path(f"{scene.database}{suffix}").open("r+b") as file:
            file.write(data)
            file.truncate(len(data))
            os.fsync(file.fileno())
    Path(f"{scene.database}-shm").unlink(missing_ok=True)


def test_a_file_that_a_power_loss_threw_back_gets_its_commits_back(scene: Scene) -> None:
    """With synchronous=NORMAL the file may lose what we hold.

    Nobody has it open, so we give it back, and no frame undoes what was acknowledged (P7).
    """
    application = scene.start_wal_application()
    application.sql("PRAGMA synchronous=NORMAL", *["INSERT INTO t VALUES (1, 2)"] * 3)
    daemon = scene.serve()
    daemon.wait_archived()
    copy_state(scene, scene.folder / "kept")
    application.sql(*["INSERT INTO t VALUES (3, 4)"] * 4)
    daemon.wait_archived()
    daemon.kill()
    application.kill()
    put_back(scene, scene.folder / "kept")
    daemon = scene.serve()
    daemon.wait_archived()
    assert "given_back" in daemon.read_log()
    assert daemon.status().regressed == 0
    application = scene.start_wal_application()
    assert application.sql("SELECT count(*) FROM t") == [[7]]
    application.sql("INSERT INTO t VALUES (5, 6)")
    daemon.wait_archived()
    scene.check_restore()
    assert count(scene) == 8


def test_a_file_thrown_back_and_in_use_is_flagged_and_told(scene: Scene) -> None:
    """The application works on the older state already: REGRESSED, in status and log (P7)."""
    application = scene.start_wal_application()
    application.sql(*["INSERT INTO t VALUES (1, 2)"] * 3)
    daemon = scene.serve()
    daemon.wait_archived()
    copy_state(scene, scene.folder / "kept")
    application.sql(*["INSERT INTO t VALUES (3, 4)"] * 4)
    reached = daemon.wait_archived().seq
    daemon.kill()
    application.kill()
    put_back(scene, scene.folder / "kept")
    application = scene.start_wal_application()
    application.sql("SELECT count(*) FROM t")
    daemon = scene.serve()
    status = daemon.wait_status(lambda status: status.regressed, "REGRESSED")
    assert status.regressed == 1
    daemon.wait_archived()
    scene.check_restore()
    assert count(scene) == 3
    before = scene.restore(to_seq=reached).query("SELECT count(*) FROM t")
    assert before == [(7,)]


def test_a_data_directory_that_was_deleted_is_no_second_history(scene: Scene) -> None:
    """A child lineage goes on from the archive's end; nothing old becomes unreachable (P9, Q4)."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    key = scene.folder / "signing.key"
    daemon = scene.serve()
    reached = daemon.wait_archived().seq
    daemon.stop()
    shutil.copy(scene.data_dir / "signing.key", key)
    shutil.rmtree(scene.data_dir)
    application.sql("INSERT INTO t VALUES (3, 4)")
    daemon = scene.serve(BASE_SIGNING_KEY=str(key))
    daemon.wait_archived()
    application.sql("INSERT INTO t VALUES (5, 6)")
    daemon.wait_archived()
    scene.check_restore()
    assert count(scene) == 3
    assert scene.restore(to_seq=reached).query("SELECT count(*) FROM t") == [(1,)]


def test_an_archive_of_an_unknown_key_does_not_stop_capture(scene: Scene) -> None:
    """The key is lost with the data directory: commits wait in the journal; status says why."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve()
    daemon.wait_archived()
    daemon.stop()
    old = (scene.data_dir / "trusted.keys").read_text()
    shutil.rmtree(scene.data_dir)
    daemon = scene.serve()
    daemon.wait_capturing()
    application.sql("INSERT INTO t VALUES (3, 4)")
    daemon.wait_final()
    told = daemon.wait_status(lambda status: "not trusted" in status.archive, "the refusal")
    assert (told.state, told.archived_seq) == (ShardState.CAPTURING, 0)
    assert scene.run("wait", "--now", "--timeout", "200ms")[0] == 1
    daemon.stop()
    with (scene.data_dir / "trusted.keys").open("a") as file:
        file.write(old)
    daemon = scene.serve()
    daemon.wait_archived()
    scene.check_restore()
    assert count(scene) == 2


def test_a_machine_put_back_to_an_older_state_is_told(scene: Scene) -> None:
    """File and journal are old together, and only the archive knows: REGRESSED, and no gap."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve()
    daemon.wait_archived()
    application.close()
    wait_detached(daemon)
    assert daemon.stop() == 0
    old = scene.folder / "old"
    shutil.copytree(scene.data_dir, old)
    shutil.copy(scene.database, scene.folder / "old.db")
    application = scene.start_application()
    daemon = scene.serve()
    application.sql("INSERT INTO t VALUES (3, 4)")
    reached = daemon.wait_archived().seq
    application.close()
    wait_detached(daemon)
    assert daemon.stop() == 0
    shutil.rmtree(scene.data_dir)
    old.rename(scene.data_dir)
    shutil.copy(scene.folder / "old.db", scene.database)
    application = scene.start_application()
    application.sql("SELECT count(*) FROM t")
    daemon = scene.serve()
    daemon.wait_archived()
    status = daemon.wait_status(lambda status: status.regressed, "REGRESSED")
    assert status.regressed == 1
    assert daemon.metric("base_regressed_frames_total") == 1
    assert '"regressed"' in daemon.read_log()
    scene.check_restore()
    assert count(scene) == 1
    assert scene.restore(to_seq=reached).query("SELECT count(*) FROM t") == [(2,)]


def test_an_old_data_directory_put_back_is_no_second_history(scene: Scene) -> None:
    """A journal older than the archive never goes on in its lineage (P9, Q4)."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve()
    daemon.wait_archived()
    assert daemon.stop() == 0
    old = scene.folder / "old"
    shutil.copytree(scene.data_dir, old)
    daemon = scene.serve()
    application.sql("INSERT INTO t VALUES (3, 4)")
    reached = daemon.wait_archived().seq
    first = daemon.status().lineage
    assert daemon.stop() == 0
    shutil.rmtree(scene.data_dir)
    old.rename(scene.data_dir)
    application.sql("INSERT INTO t VALUES (5, 6)")
    daemon = scene.serve()
    daemon.wait_archived()
    assert daemon.status().lineage != first
    scene.check_restore()
    assert count(scene) == 3
    assert scene.restore(to_seq=reached).query("SELECT count(*) FROM t") == [(2,)]


def test_a_restore_beside_a_stale_log_is_refused(scene: Scene) -> None:
    """A -wal that another file left would be replayed onto the restored one (P8)."""
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon = scene.serve()
    daemon.wait_archived()
    application.kill()
    daemon.kill()
    out = scene.folder / "out.db"
    shutil.copy(f"{scene.database}-wal", f"{out}-wal")
    code, _, error = scene.run("restore", str(scene.archive), str(out))
    assert code == 4
    assert f"{out}-wal" in error
    code, _, error = scene.run("restore", str(scene.archive), str(out), "--force")
    assert code == 0, error
    assert not Path(f"{out}-wal").exists()
    with contextlib.closing(sqlite3.connect(out)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_the_status_is_waiting_until_the_folder_exists(scene: Scene) -> None:
    """A database in a folder that comes later is picked up."""
    path = scene.folder / "later" / "app.db"
    daemon = scene.serve(databases=str(path))
    daemon.wait_state(ShardState.WAITING)
    path.parent.mkdir()
    make_database(path, 5)
    daemon.wait_archived()
    scene.check_restore(database=path)
    until(lambda: daemon.status().state is ShardState.DETACHED, "let go")
