"""Continuous proof in a real daemon: what it finds is told, and what it needs is gone again."""

from pathlib import Path

import pytest

from basenet.control.surface import ShardState
from tests.system.harness import Daemon, Scene, until
from tests.system.test_cluster_archive import archived, wait_archived, write

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PATIENCE_S = 120.0
EAGER = {
    "BASE_PROOF_INTERVAL": "20ms",
    "BASE_PROOF_BYTES_PER_DAY": "1000000GiB",
    "BASE_TEST": "on",
}


def largest_object(scene: Scene) -> Path:
    """Return the first log object or part that holds most of the history."""
    objects = [path for path in scene.archive.rglob("*") if path.suffix in (".lbn", ".pg")]
    return max(objects, key=lambda path: path.stat().st_size)


def find_prover(daemon: Daemon) -> int | None:
    """Return the pid of the proving child that has its scratch file open."""
    pid = daemon.process.pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                links = [str(one.readlink()) for one in Path(f"/proc/{child}/fd").iterdir()]
            except OSError:
                continue
            if any(".proof" in link and "(deleted)" in link for link in links):
                return int(child)
    return None


def test_a_flipped_byte_is_found_told_and_mended(scene: Scene) -> None:
    """Capture goes on all the while, and the failure goes when the byte is right again."""
    daemon = scene.serve(**EAGER)
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, randomblob(2000000))")
    daemon.wait_archived()
    first = daemon.wait_status(
        lambda status: status.proof_verified_ns, "a proof", patience_s=PATIENCE_S
    )
    assert first.proof.startswith("ok: seq ")
    assert daemon.metric("base_restore_verified_timestamp_seconds") > 1_600_000_000
    assert daemon.metric("base_restore_verify_duration_seconds") > 0
    target = largest_object(scene)
    whole = target.read_bytes()
    target.write_bytes(whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:])
    failed = daemon.wait_status(
        lambda status: status.is_proof_failed, "the failure", patience_s=PATIENCE_S
    )
    assert target.name in failed.proof
    assert failed.state is ShardState.CAPTURING
    assert daemon.client.get_node_status().ready
    assert daemon.metric("base_restore_verify_failures_total") >= 1
    assert '"proof_failed"' in daemon.read_log()
    application.sql("INSERT INTO t VALUES (2, 'goes on')")
    daemon.wait_archived()
    code, shown, _ = scene.run("status")
    assert code == 0
    assert "! app: proof failed: " in shown
    target.write_bytes(whole)
    mended = daemon.wait_status(
        lambda status: not status.is_proof_failed, "it is mended", patience_s=PATIENCE_S
    )
    assert mended.proof_verified_ns > first.proof_verified_ns
    assert daemon.stop() == 0
    assert list((scene.data_dir / "proof").iterdir()) == []


def test_a_kill_in_the_middle_leaves_nothing_and_the_last_proof_is_remembered(
    scene: Scene,
) -> None:
    """The scratch file has no name, and the child goes with the daemon."""
    daemon = scene.serve(**EAGER)
    application = scene.start_wal_application()
    application.sql("INSERT INTO t VALUES (1, randomblob(30000000))")
    daemon.wait_archived()
    before = daemon.wait_status(
        lambda status: status.proof_verified_ns, "a proof", patience_s=PATIENCE_S
    )
    child = until(lambda: find_prover(daemon), "a proof is under way", PATIENCE_S)
    daemon.kill()
    until(lambda: not Path(f"/proc/{child}/fd").exists(), "the child has ended", PATIENCE_S)
    assert list((scene.data_dir / "proof").iterdir()) == []
    again = scene.serve(BASE_PROOF_INTERVAL="100d")
    status = again.wait_capturing()
    assert status.proof_verified_ns is not None
    assert status.proof_verified_ns >= before.proof_verified_ns
    assert again.stop() == 0


def test_the_writer_of_a_cluster_alone_proves_what_it_archives(tmp_path: Path) -> None:
    """Frames count by their certificates there."""
    with archived(tmp_path, **EAGER) as cluster:
        write(cluster, 20, size=3000)
        wait_archived(cluster)

        def proven() -> str | None:
            writer = cluster.find_writer()
            status = writer.find_status() if writer is not None else None
            return status.proof if status is not None and status.proof_verified_ns else None

        said = cluster.until(proven, "the writer's proof", patience_s=PATIENCE_S)
        assert said.startswith("ok: seq ")
        logs = [(node.read_log(), node is cluster.find_writer()) for node in cluster]
        assert not any('"proof_failed"' in log for log, _ in logs)
        assert any('"proof_done"' in log for log, _ in logs)
        # Whoever never wrote never proved.
        for log, is_writer in logs:
            if not is_writer and '"event": "archiving"' not in log:
                assert '"proof_done"' not in log
