"""A shard that archives already grows from one node to three; an encrypted archive in a cluster."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import Level, ShardRole
from basenet.testing.cluster import SHARD, Cluster, ClusterNode
from basenet.wire.encryption import is_encrypted
from tests.sqlite.application import Application

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

_ALONE = ("BASE_NODE_ID", "BASE_SHARDS", "BASE_DATA_DIR", "BASE_LISTEN_HTTP", "BASE_ARCHIVE")
_WRITE_ALL_THE_TIME = """
count = 0
while not os.path.exists(db + '.stop'):
    c.execute("INSERT INTO t(v) VALUES ('busy')")
    count += 1
    time.sleep(0.02)
result = count
"""


def basenet(command: str, *arguments: str, **environment: str) -> None:
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


def rows(path: Path) -> list[tuple[object, ...]]:
    """Return all rows of a database that nobody serves."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT rowid, v FROM t ORDER BY rowid").fetchall()


def wait_role(cluster: Cluster, node: ClusterNode, role: ShardRole) -> None:
    cluster.until(lambda: (s := node.find_status()) and s.role is role, f"{node.name}: {role}")


def wait_all_archived(cluster: Cluster) -> None:
    """Return once what is final is archived, at whoever writes."""
    seq = cluster.wait_settled(nodes=sum(node.is_running for node in cluster))
    cluster.wait_writer().client.wait(SHARD, seq, Level.ARCHIVED, 60.0)


def test_a_shard_that_archives_grows_to_three_and_the_archive_goes_on(tmp_path: Path) -> None:
    """One lineage, one archive, from standalone over a failover; the application never stops."""
    (tmp_path / "archive").mkdir()
    settings = {"BASE_ARCHIVE": str(tmp_path / "archive"), "BASE_FLUSH_INTERVAL": "200ms"}
    with Cluster(tmp_path / "cluster", **settings) as cluster:
        node = cluster["n0"]
        quasar = node.environment
        alone = {name: text for name, text in quasar.items() if name in _ALONE}
        node.environment = alone | {"BASE_NETWORK": "standalone"}
        with closing(sqlite3.connect(node.database())) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE t(v TEXT)")
        stop = Path(f"{node.database()}.stop")
        with Application(node.database(), timeout_s=60) as application:
            application.start(_WRITE_ALL_THE_TIME)
            node.start()
            before = cluster.until(
                lambda: (s := node.find_status()) and s.archived_seq > 20 and s, "it archives"
            )
            node.terminate()
            assert node.wait_ended() == 0
            node.environment = quasar
            cluster.start()
            wait_role(cluster, node, ShardRole.WRITER)
            for name in ("n1", "n2"):
                cluster.until(
                    lambda name=name: (s := cluster[name].find_status()) and s.applied_seq,
                    f"{name} has joined",
                )
            add = MembersCommand(verb=MembersVerb.ADD, nodes=("n1", "n2"))
            said = node.client.command(SHARD, add)
            assert "voters n0, n1, n2" in said
            # Around the CONFIG the leader captures nothing for a moment: that is no conflict.
            node.wait_final()
            stop.touch()
            count = application.finish()
        wait_all_archived(cluster)
        node.kill()
        heir = cluster.wait_writer(but=node)
        with Application(heir.database()) as application:
            application.run("c.execute(\"INSERT INTO t(v) VALUES ('heir')\")")
        heir.wait_final()
        wait_all_archived(cluster)
        status = heir.find_status()
        assert status is not None
        assert status.lineage == before.lineage
        trusted = tmp_path / "trusted.keys"
        own = node.data_dir / "trusted.keys"
        trusted.write_text((tmp_path / "cluster" / "ca" / "trusted.keys").read_text())
        if own.exists():
            trusted.write_text(trusted.read_text() + own.read_text())
        reader = {
            "BASE_ARCHIVE": settings["BASE_ARCHIVE"],
            "BASE_TRUSTED_KEYS": str(trusted),
            "BASE_DATA_DIR": str(tmp_path / "reader"),
        }
        basenet("verify", **reader)
        basenet("restore", "--shard", SHARD, "--out", str(tmp_path / "out.db"), **reader)
        cluster.stop()
        restored = rows(tmp_path / "out.db")
        assert [row[1] for row in restored] == ["busy"] * count + ["heir"]
        assert rows(heir.database()) == restored


def test_an_encrypted_archive_goes_on_over_a_failover(tmp_path: Path) -> None:
    """Every node seals for the same recipients; who restores needs the identity, and no node."""
    identity, recipient_file = tmp_path / "one.key", tmp_path / "recipient"
    done = subprocess.run(
        [sys.executable, "-m", "basenet", "keys", "age", str(identity)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    recipient_file.write_text(done.stdout)
    archive = tmp_path / "archive"
    archive.mkdir()
    settings = {
        "BASE_ARCHIVE": str(archive),
        "BASE_FLUSH_INTERVAL": "200ms",
        "BASE_ARCHIVE_RECIPIENTS": done.stdout.strip(),
        "BASE_ARCHIVE_IDENTITY": str(identity),
    }
    with Cluster(tmp_path / "cluster", **settings) as cluster:
        cluster.start()
        expected = []
        writer = cluster.wait_writer()
        for value in ("first words", "second words"):
            with Application(writer.database()) as application:
                application.run("c.execute('CREATE TABLE IF NOT EXISTS t(v TEXT)')")
                application.run(f"c.execute(\"INSERT INTO t(v) VALUES ('{value}')\")")
                application.run("c.execute('INSERT INTO t(v) VALUES (randomblob(300000))')")
            writer.wait_final()
            wait_all_archived(cluster)
            expected.append(value)
            if value == "first words":
                writer.kill()
                gone, writer = writer, cluster.wait_writer(but=writer)
        gone.start()
        wait_all_archived(cluster)
        reader = {
            "BASE_ARCHIVE": str(archive),
            "BASE_ARCHIVE_IDENTITY": str(identity),
            "BASE_TRUSTED_KEYS": str(tmp_path / "cluster" / "ca" / "trusted.keys"),
            "BASE_DATA_DIR": str(tmp_path / "reader"),
        }
        basenet("verify", **reader)
        basenet("restore", "--shard", SHARD, "--out", str(tmp_path / "out.db"), **reader)
        assert set(cluster.stop().values()) == {0}
        restored = rows(tmp_path / "out.db")
        assert [row[1] for row in restored if isinstance(row[1], str)] == expected
        assert all(rows(node.database()) == restored for node in cluster)
        found = [path for path in archive.rglob("*") if path.is_file() and path.name[0] != "."]
        for path in found:
            data = path.read_bytes()
            assert b"words" not in data
            assert is_encrypted(data) == (path.name != "LEASE"), path
