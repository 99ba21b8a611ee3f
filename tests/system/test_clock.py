"""A real daemon whose wall clock is set: nothing is deleted by it, and nothing stops."""

import time

import pytest

from basenet.testing.hardware import Hardware, find_faketime
from tests.system.harness import Scene, until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_faketime() is None, reason="libfaketime is missing: make faketime"),
]

YEAR_S = 365 * 24 * 3600
LATER_NS = time.time_ns() + YEAR_S * 10**9


@pytest.mark.timeout(240)
def test_a_clock_that_is_set_deletes_nothing_and_stops_nothing(scene: Scene) -> None:
    """Each snapshot is followed by a pass of retention, so several passes saw the wrong clock."""
    step_s = 10 * YEAR_S
    host = Hardware(scene.folder / "host", has_clock=True)
    daemon = scene.serve(
        BASE_RETENTION="1h",
        BASE_SNAPSHOT_INTERVAL="500ms",
        BASE_PROOF_INTERVAL="2s",
        BASE_PROOF_BYTES_PER_DAY="1000GiB",
        BASE_TEST="on",
        **dict(host.environment),
    )
    application = scene.start_wal_application()

    def snapshots(count: int) -> None:
        for _ in range(count):
            application.sql("INSERT INTO t VALUES (1, randomblob(3000))")
            seq = daemon.wait_archived().seq
            daemon.wait_snapshot(above=seq - 1)

    def wait_told(count: int) -> None:
        def is_told() -> bool:
            application.sql("INSERT INTO t VALUES (2, 'wakes the daemon')")
            return daemon.read_log().count("clock_stepped") == count

        until(is_told, "the step is told", 60)

    snapshots(2)
    first = daemon.wait_archived().seq
    kept = {path for path in scene.archive.rglob("*") if path.suffix in (".lbn", ".idx", ".pg")}
    host.step(step_s)
    wait_told(1)
    snapshots(2)
    assert abs(daemon.metric("base_clock_step_seconds") - step_s) < 3600
    assert abs(daemon.client.get_node_status().clock_step_s - step_s) < 3600
    daemon.wait_status(lambda status: (status.proof_verified_ns or 0) > LATER_NS, "a proof")
    host.step(0)
    wait_told(2)
    snapshots(1)
    daemon.wait_status(lambda status: (status.proof_verified_ns or 0) < LATER_NS, "one more")
    assert "retention_failed" not in daemon.read_log()
    assert {path for path in kept if not path.exists()} == set()
    assert daemon.status().retention.startswith("nothing expires yet")
    assert scene.restore(to_seq=first).query("SELECT count(*) FROM t") == [(2,)]
    application.sql("INSERT INTO t VALUES (9, 'last')")
    daemon.wait_archived()
    assert scene.check_restore().query("SELECT y FROM t WHERE x = 9") == [("last",)]


@pytest.mark.timeout(240)
def test_a_daemon_that_starts_ten_years_ahead_deletes_only_what_was_watched(scene: Scene) -> None:
    """It was stopped, the clock of the host is wrong afterwards: the boot went on counting."""
    host = Hardware(scene.folder / "host", has_clock=True)
    settings = {"BASE_RETENTION": "5s", "BASE_SNAPSHOT_INTERVAL": "500ms"}
    daemon = scene.serve(**settings, **dict(host.environment))
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, randomblob(3000))")
    old = daemon.wait_archived().seq
    daemon.wait_snapshot(above=old - 1)
    until(lambda: list(scene.data_dir.glob("watched/*.json")), "it is watched", 60)
    assert daemon.stop() == 0
    host.step(10 * YEAR_S)
    began_s = time.monotonic()
    daemon = scene.serve(**settings, **dict(host.environment))
    daemon.wait_answering()
    while daemon.status().retention != "ok":
        application.sql("INSERT INTO t VALUES (2, randomblob(3000))")
        seq = daemon.wait_archived().seq
        daemon.wait_snapshot(above=seq - 1)
        assert time.monotonic() - began_s < 200, daemon.read_log()
    until(lambda: '"witness": "watch"' in daemon.read_log(), "what is old goes", 60)
    scene.check_restore()
    assert daemon.stop() == 0
    code, out, errors = scene.run("verify", f"file://{scene.archive}", "--retention", "5s")
    assert code == 0, out + errors
