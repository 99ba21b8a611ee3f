"""The daemon as a process: signals, exit codes, the application as its child."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from basenet.control.surface import ShardState
from basenet.daemon.assembly import _ONE_WISH_S
from tests.system.harness import Scene, until

CHILD = """
import os, signal, sqlite3, sys, time
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA journal_mode=WAL")
c.execute("CREATE TABLE IF NOT EXISTS t(x, y)")
told = []
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: told.append(number))
print("ready", flush=True)
while signal.SIGTERM not in told:
    time.sleep(0.01)
    while told and told[0] != signal.SIGTERM:
        c.execute("INSERT INTO t VALUES (?, 'signal')", (told.pop(0),))
        print("noted", flush=True)
c.execute("INSERT INTO t VALUES (0, 'last words')")
os._exit(7)
"""


def exec_option(scene: Scene, code: str) -> list[str]:
    script = scene.folder / "child.py"
    script.write_text(code)
    return ["--exec", f"{sys.executable} {script} {scene.database}"]


def test_the_child_gets_signals_and_its_last_commit_is_archived(scene: Scene) -> None:
    """--exec passes signals on, flushes after the end and exits with the child's code."""
    daemon = scene.serve(*exec_option(scene, CHILD))
    until(lambda: daemon.read_log().count("ready"), "the child runs")
    for number in (signal.SIGHUP, signal.SIGUSR1):
        daemon.process.send_signal(number)
    until(lambda: daemon.read_log().count("noted") == 2, "both signals arrived")
    daemon.process.terminate()
    assert daemon.wait_ended() == 7
    rows = scene.restore().query("SELECT x FROM t ORDER BY rowid")
    assert sorted(rows[:2]) == [(int(signal.SIGHUP),), (int(signal.SIGUSR1),)]
    assert rows[2:] == [(0,)]
    scene.check_restore()


def test_a_short_child_is_archived_whole(scene: Scene) -> None:
    """An application that commits once and ends at once is archived before we end."""
    code = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA journal_mode=WAL")
c.execute("CREATE TABLE t AS SELECT 1 AS x")
c.close()
"""
    daemon = scene.serve(*exec_option(scene, code))
    assert daemon.wait_ended() == 0
    assert scene.check_restore().query("SELECT x FROM t") == [(1,)]


def test_a_child_that_dies_of_a_signal_gives_the_shells_code(scene: Scene) -> None:
    """128 + the signal's number."""
    daemon = scene.serve(*exec_option(scene, "import os, signal; os.kill(os.getpid(), 9)"))
    assert daemon.wait_ended() == 128 + 9


def test_a_child_that_cannot_be_started_is_one_sentence(scene: Scene) -> None:
    """Exit code 3 and the name of what is missing."""
    daemon = scene.serve("--exec", "/no/such/program")
    assert daemon.wait_ended() == 3
    assert "/no/such/program" in daemon.read_log()
    assert "Traceback" not in daemon.read_log()


def test_sigterm_flushes_what_waits(scene: Scene) -> None:
    """Stopping in the middle of a flush interval loses nothing: the archive has the last commit."""
    application = scene.start_wal_application()
    daemon = scene.serve(BASE_FLUSH_INTERVAL="30s")
    daemon.wait_archived()
    application.sql("INSERT INTO t VALUES (1, 2)", "INSERT INTO t VALUES (3, 4)")
    daemon.wait_final()
    assert daemon.stop() == 0
    scene.check_restore()


def test_what_is_committed_just_before_sigterm_is_archived(scene: Scene) -> None:
    """The daemon looks once more after it was told to stop: who tells it has committed first."""
    application = scene.start_wal_application()
    daemon = scene.serve()
    daemon.wait_archived()
    for number in range(3):
        daemon.process.send_signal(signal.SIGSTOP)
        application.sql(f"INSERT INTO t VALUES ({number}, 'last')")
        daemon.process.terminate()
        daemon.process.send_signal(signal.SIGCONT)
        assert daemon.wait_ended() == 0
        (count,) = scene.check_restore().query("SELECT count(*) FROM t WHERE y = 'last'")
        assert count == (number + 1,)
        daemon = scene.serve()
        daemon.wait_archived()


def test_a_second_sigterm_hurries(scene: Scene) -> None:
    """With an archive that does not answer, the second signal ends at once what would wait."""
    application = scene.start_wal_application()
    daemon = scene.serve()
    daemon.wait_archived()
    away = scene.folder / "away"
    scene.archive.rename(away)
    os.mkfifo(scene.archive)
    application.sql("INSERT INTO t VALUES (1, 2)")
    daemon.wait_final()
    daemon.process.terminate()
    until(lambda: "stopping" in daemon.read_log(), "the daemon is stopping")
    # Signals that follow at once are one wish.
    patience_is_over = time.monotonic() + 1.5 * _ONE_WISH_S
    until(lambda: time.monotonic() > patience_is_over, "a while")
    daemon.process.terminate()
    assert daemon.wait_ended(patience_s=5) == 1
    scene.archive.unlink()
    away.rename(scene.archive)
    daemon = scene.serve()
    daemon.wait_archived()
    scene.check_restore()
    assert daemon.status().recovered == 0


def test_a_start_that_cannot_be_says_all_faults_at_once(scene: Scene) -> None:
    """A bad environment: exit code 2, each fault with its variable, no traceback."""
    daemon = scene.serve(BASE_FLUSH_INTERVAL="soon", BASE_CAPTURE="sometimes", BASE_ENCRYPT="1")
    assert daemon.wait_ended() == 2
    for name in ("BASE_FLUSH_INTERVAL", "BASE_CAPTURE", "BASE_ENCRYPT"):
        assert name in daemon.read_log()
    assert "Traceback" not in daemon.read_log()


def test_a_second_daemon_on_one_data_directory_refuses(scene: Scene) -> None:
    """The data directory has one owner: exit code 4 and one sentence."""
    scene.start_wal_application()
    first = scene.serve()
    first.wait_capturing()
    second = scene.serve()
    assert second.wait_ended() == 4
    assert str(scene.data_dir) in second.read_log()
    assert "Traceback" not in second.read_log()


def test_databases_come_and_go_in_a_directory(scene: Scene) -> None:
    """A directory is watched: what appears is picked up, what goes is dropped, not its archive."""
    folder = scene.folder / "many"
    folder.mkdir()
    daemon = scene.serve(databases=f"{folder}/*.db")
    for name in ("one", "two"):
        application = scene.start_wal_application(folder / f"{name}.db")
        application.sql("INSERT INTO t VALUES (1, 2)")
        daemon.wait_archived(name)
        application.close()
    for path in folder.glob("one.db*"):
        path.unlink()
    until(
        lambda: [shard.shard for shard in daemon.client.get_node_status().shards] == ["two"],
        "the first is dropped",
    )
    daemon.wait_state(ShardState.DETACHED, shard="two")
    scene.check_restore(shard="two", database=folder / "two.db")
    assert scene.restore(shard="one").query("SELECT x FROM t") == [(1,)]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_leaves_no_trace_in_the_way_of_the_application(
    scene: Scene, signal_number: signal.Signals
) -> None:
    """After the end the application goes on, and its close removes -wal and -shm as ever."""
    application = scene.start_wal_application()
    daemon = scene.serve()
    daemon.wait_archived()
    daemon.process.send_signal(signal_number)
    assert daemon.wait_ended() == 0
    application.sql("INSERT INTO t VALUES (1, 2)")
    application.close()
    assert not Path(f"{scene.database}-wal").exists()


@pytest.mark.parametrize("moment", [0.06, 0.12, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1])
def test_sigterm_during_the_start_ends_it_at_once(scene: Scene, moment: float) -> None:
    """Whatever of the start is under way: exit 0 soon, and the next start finds nothing amiss."""
    scene.start_wal_application()
    begun = time.monotonic()
    daemon = scene.serve()
    # Not before Python itself is there: its own start cannot be taught anything.
    until(lambda: _catches_sigterm(daemon.process.pid), "the program catches SIGTERM")
    until(lambda: time.monotonic() > begun + moment, "that moment of the start")
    daemon.process.terminate()
    assert daemon.wait_ended(patience_s=10) == 0
    assert "Traceback" not in daemon.read_log()
    daemon = scene.serve()
    daemon.wait_archived()
    assert daemon.stop() == 0
    scene.check_restore()


def _catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
