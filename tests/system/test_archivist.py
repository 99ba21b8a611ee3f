"""A node of the role archive: it has no vote and never writes, and archives for those who do."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import FenceState, ShardRole
from basenet.errors import ConflictError, NotFoundError
from basenet.testing.cluster import SHARD, Cluster, ClusterNode
from tests.sqlite.application import Application

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def basenet(command: str, *arguments: str, **environment: str) -> str:
    """Run a command that reads the archive; it must end well."""
    inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
    done = subprocess.run(
        [sys.executable, "-m", "basenet", command, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(node: ClusterNode, value: str, count: int) -> int:
    with Application(node.database()) as application:
        application.run("c.execute('CREATE TABLE IF NOT EXISTS t(v TEXT)')")
        for _ in range(count):
            application.run(f"c.execute(\"INSERT INTO t(v) VALUES ('{value}')\")")
    return node.wait_final().seq


def rows(path: Path) -> list[str]:
    """Return all rows of a database that nobody serves."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in connection.execute("SELECT v FROM t ORDER BY rowid")]


def wait_archived(cluster: Cluster, archivist: ClusterNode, seq: int) -> None:
    """Return once the archivist says that everything up to ``seq`` can be restored."""

    def is_archived() -> bool:
        status = archivist.find_status()
        return status is not None and status.archived_seq >= seq and status.archive == "ok"

    cluster.until(is_archived, f"{archivist.name} has archived {seq}")


def test_an_archivist_archives_for_voters_that_have_no_archive(tmp_path: Path) -> None:
    """With certificates, over the death of the writer and its own: one history, all of it."""
    archive = tmp_path / "archive"
    archive.mkdir()
    with Cluster(tmp_path / "cluster", 4, BASE_REPLICATION="3") as cluster:
        archivist = cluster["n3"]
        archivist.environment |= {
            "BASE_NODE_ROLE": "archive",
            "BASE_ARCHIVE": str(archive),
            "BASE_FLUSH_INTERVAL": "200ms",
            "BASE_SNAPSHOT_INTERVAL": "300ms",
        }
        cluster.start()
        writer = cluster.wait_writer()
        assert writer is not archivist
        seq = write(writer, "a", 20)
        wait_archived(cluster, archivist, seq)
        status = archivist.find_status()
        assert status is not None
        assert (status.role, status.fence) == (ShardRole.LEARNER, FenceState.CLOSED)
        assert archivist.name not in [one.node_id for one in status.members if one.is_voter]
        for verb in (MembersVerb.ADD, MembersVerb.TRANSFER):
            with pytest.raises((ConflictError, NotFoundError)):
                writer.client.command(SHARD, MembersCommand(verb=verb, nodes=(archivist.name,)))

        writer.kill()
        heir = cluster.wait_writer(but=writer)
        seq = write(heir, "b", 20)
        wait_archived(cluster, archivist, seq)
        archivist.kill()
        seq = write(heir, "c", 5)
        archivist.start()
        wait_archived(cluster, archivist, seq)
        cluster.until(lambda: any(archive.glob("*/*/*/set/*/*.lbn")), "a snapshot of a replica")
        reader = {
            "BASE_ARCHIVE": str(archive),
            "BASE_TRUSTED_KEYS": str(tmp_path / "cluster" / "ca" / "trusted.keys"),
            "BASE_DATA_DIR": str(tmp_path / "reader"),
        }
        basenet("verify", **reader)
        out = tmp_path / "out.db"
        basenet("restore", "--shard", SHARD, "--out", str(out), **reader)
        assert rows(out) == ["a"] * 20 + ["b"] * 20 + ["c"] * 5
        lineages = [path for path in (archive / "default" / SHARD).iterdir() if path.is_dir()]
        assert len(lineages) == 1
