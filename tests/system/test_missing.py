"""BASE_RESTORE_IF_MISSING: a container with an empty disk goes on where the last one stopped."""

import shutil
import sys

import pytest

from basenet.control.surface import ShardState
from tests.system.harness import Scene, compare, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

WANTED = {"BASE_RESTORE_IF_MISSING": "1"}
EXIT_CORRUPT = 1


def archive_two_rows(scene: Scene) -> None:
    """Leave an archive of a database with two rows, and no database."""
    daemon = scene.serve()
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'one')", "INSERT INTO t VALUES (2, 'two')")
    daemon.wait_archived()
    assert daemon.stop() == 0
    application.close()
    shutil.copy(scene.database, scene.folder / "before.db")
    for path in scene.folder.glob("app.db*"):
        path.unlink()


def test_the_application_of_exec_finds_what_the_last_container_archived(scene: Scene) -> None:
    """An empty disk but for the key: the database is there before the application starts."""
    archive_two_rows(scene)
    for path in scene.data_dir.glob("journal.db*"):
        path.unlink()
    seen, end = scene.folder / "seen.txt", scene.folder / "end"
    program = scene.folder / "application.py"
    program.write_text(
        "import pathlib, sqlite3, time\n"
        f"c = sqlite3.connect({str(scene.database)!r}, isolation_level=None)\n"
        "rows = c.execute('SELECT x FROM t ORDER BY x').fetchall()\n"
        "c.execute(\"INSERT INTO t VALUES (3, 'three')\")\n"
        f"open({str(seen)!r}, 'w').write(repr(rows))\n"
        f"while not pathlib.Path({str(end)!r}).exists():\n"
        "    time.sleep(0.01)\n"
        "c.close()\n"
    )
    daemon = scene.serve("--exec", f"{sys.executable} {program}", **WANTED)
    until(lambda: seen.exists() and seen.read_text(), "the application has looked", 60)
    daemon.wait_archived()
    end.touch()
    assert daemon.wait_ended(60) == 0
    assert seen.read_text() == "[(1,), (2,)]"
    assert '"restored"' in daemon.read_log()
    restored = scene.restore()
    assert restored.query("SELECT x FROM t ORDER BY x") == [(1,), (2,), (3,)]


def test_a_missing_file_beside_its_journal_comes_back_and_goes_on(scene: Scene) -> None:
    archive_two_rows(scene)
    daemon = scene.serve(**WANTED)
    daemon.wait_state(ShardState.CAPTURING, ShardState.DETACHED)
    compare(scene.folder / "before.db", scene.database, scene.folder / "scratch")
    application = scene.start_application()
    application.sql("INSERT INTO t VALUES (3, 'three')")
    daemon.wait_archived()
    status = daemon.status()
    assert (status.regressed, status.recovered) == (0, 0)
    scene.check_restore()


def test_an_archive_that_is_not_trusted_ends_the_start_and_makes_no_file(scene: Scene) -> None:
    """It must never look like an empty one: the application would begin anew."""
    archive_two_rows(scene)
    ran = scene.folder / "ran"
    daemon = scene.serve("--exec", f"touch {ran}", data_dir=scene.folder / "other-data", **WANTED)
    assert daemon.wait_ended(60) == EXIT_CORRUPT
    assert "not trusted" in daemon.read_log()
    assert not ran.exists()
    assert not scene.database.exists()
    assert not list(scene.folder.glob(".app.db*"))


def test_without_history_the_shard_begins_empty_and_a_database_that_is_there_is_kept(
    scene: Scene,
) -> None:
    daemon = scene.serve(**WANTED)
    daemon.wait_state(ShardState.WAITING)
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, 'mine')")
    daemon.wait_archived()
    assert daemon.stop() == 0
    application.sql("INSERT INTO t VALUES (2, 'mine')")
    again = scene.serve(**WANTED)
    again.wait_archived()
    assert application.sql("SELECT count(*) FROM t") == [[2]]
    assert '"restored"' not in again.read_log()
