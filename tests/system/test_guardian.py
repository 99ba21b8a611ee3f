"""A node of a cluster as an operator has it: `basenet serve` is the guardian of the real daemon."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sqlite.application import Application, ApplicationError
from tests.system.harness import Daemon, until

pytestmark = pytest.mark.system

CLUSTER = {
    "BASE_NETWORK": "quasar",
    "BASE_REPLICATION": "1",
    "BASE_LISTEN_P2P": "127.0.0.1:0",
    "BASE_NODE_ID": "test-node",
}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Application]:
    with Application(tmp_path / "app.db", timeout_s=0) as app:
        app.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
        yield app


@pytest.fixture
def node(tmp_path: Path, app: Application) -> Iterator[Daemon]:
    with Daemon(
        [str(app.path)], data_dir=tmp_path / "data", log=tmp_path / "log", environment=CLUSTER
    ) as node:
        yield node


def daemon_of(node: Daemon) -> int | None:
    """Return the process of the daemon, None while there is none."""
    pid = node.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        if b"serve" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
            return int(child)
    return None


def can_write(app: Application) -> bool:
    try:
        app.sql("INSERT INTO t VALUES (1)")
    except ApplicationError as error:
        if "database is locked" not in str(error):
            raise
        return False
    return True


def test_a_node_alone_writes_again_after_the_death_of_its_daemon_and_after_an_upgrade(
    node: Daemon, app: Application
) -> None:
    """The process that was started stays the same; the application needs to do nothing."""
    events = node.read_log
    until(lambda: "lineage_begun" in events(), "the birth")
    until(lambda: can_write(app), "the lease")
    first = until(lambda: daemon_of(node), "a daemon")
    os.kill(first, signal.SIGKILL)
    until(lambda: daemon_of(node) not in (None, first), "another daemon")
    until(lambda: can_write(app), "the lease of the second")
    second = until(lambda: daemon_of(node), "a daemon")
    os.kill(node.process.pid, signal.SIGUSR2)
    until(lambda: daemon_of(node) not in (None, second), "a third daemon")
    until(lambda: can_write(app), "the lease of the third")
    assert events().count('"event": "upgrading"') == 1
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(30) == 0
    assert app.sql("SELECT count(*) FROM t")[0][0] >= 3


def test_a_daemon_whose_guardian_is_killed_ends_by_itself(node: Daemon, app: Application) -> None:
    """It keeps the locks to its end, says why, and leaves the way free for a supervisor."""
    until(lambda: can_write(app), "the lease")
    until(lambda: "lineage_begun" in node.read_log(), "the birth")
    daemon = until(lambda: daemon_of(node), "a daemon")
    node.process.kill()
    node.process.wait()
    until(lambda: not Path(f"/proc/{daemon}").exists(), "the daemon's end")
    log = node.read_log()
    assert '"event": "guardian_gone"' in log
    assert "guardian, parent of this process, is gone" in log
    assert "Traceback" not in log


def test_the_guardian_of_the_real_program_is_small(node: Daemon) -> None:
    """What the command line needed was left behind by the exec."""
    until(lambda: daemon_of(node), "a daemon")
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    (resident,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    assert int(resident.split()[1]) <= 15 * 1024, sys.version
