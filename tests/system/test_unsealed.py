"""Commits that SQLite 3.40.1 leaves without a checksum, beside the real daemon.

Whoever opens such a log next finds only its front. The application's own last close would have
saved the commits; beside basenet they must be as safe as without it.
"""

import contextlib
import signal
import sqlite3
from pathlib import Path

from tests.sqlite.application import Application
from tests.sqlite.test_unsealed import PREPARE, unseal
from tests.system.harness import Daemon, Scene, until

DIGEST = "SELECT count(*), total(length(y)), max(hex(y)) FROM t"


def begin(scene: Scene) -> Application:
    application = scene.start_wal_application()
    application.sql(*PREPARE)
    return application


def digest(scene: Scene) -> list[tuple[object, ...]]:
    """Return what who opens the database now finds."""
    with contextlib.closing(sqlite3.connect(scene.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute(DIGEST).fetchall()


def wal_bytes(scene: Scene) -> int:
    wal = Path(f"{scene.database}-wal")
    return wal.stat().st_size if wal.exists() else 0


def unseal_beside(daemon: Daemon, scene: Scene, application: Application) -> None:
    """Unseal the log while ``daemon`` stands still: it would mend that before anybody looked."""
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        unseal(scene.database, application)
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_the_application_closes_last_but_us(scene: Scene) -> None:
    """Its close does not checkpoint while we have the file open; so we have done it."""
    application = begin(scene)
    daemon = scene.serve(BASE_DETACH_AFTER="60s")
    daemon.wait_archived()
    unseal_beside(daemon, scene, application)
    (expected,) = application.sql(DIGEST)
    daemon.wait_archived()
    application.close()
    daemon.kill()
    assert digest(scene) == [tuple(expected)]
    assert scene.restore().query(DIGEST) == [tuple(expected)]


def test_the_daemon_ends_before_the_application_dies(scene: Scene) -> None:
    """After SIGTERM nothing is left that a crash of the application could still lose."""
    application = begin(scene)
    daemon = scene.serve()
    daemon.wait_archived()
    unseal_beside(daemon, scene, application)
    (expected,) = application.sql(DIGEST)
    assert daemon.stop() == 0
    application.kill()
    assert digest(scene) == [tuple(expected)]
    assert scene.restore().query(DIGEST) == [tuple(expected)]


def test_a_daemon_that_is_killed_in_between_loses_nothing(scene: Scene) -> None:
    """The log is left as it is; the application's last close, or our next start, saves it."""
    application = begin(scene)
    daemon = scene.serve()
    daemon.wait_archived()
    daemon.kill()
    unseal(scene.database, application)
    (expected,) = application.sql(DIGEST)
    assert wal_bytes(scene)
    daemon = scene.serve(BASE_DETACH_AFTER="60s")
    daemon.wait_archived()
    until(lambda: not wal_bytes(scene), "the log is cut off")
    assert "log_unsealed" in daemon.read_log()
    application.kill()
    daemon.kill()
    assert digest(scene) == [tuple(expected)]
    assert scene.restore().query(DIGEST) == [tuple(expected)]


def test_a_crash_of_everybody_is_told(scene: Scene) -> None:
    """What SQLite loses by itself, with nobody there to save it, is said and not hidden."""
    application = begin(scene)
    daemon = scene.serve()
    daemon.wait_archived()
    daemon.kill()
    unseal(scene.database, application)
    application.kill()
    exit_code, output, _ = scene.run("doctor", str(scene.database))
    assert exit_code == 1
    assert "without a checksum" in output
    daemon = scene.serve()
    daemon.wait_archived()
    assert "log_cut_off" in daemon.read_log()
    scene.check_restore()
