"""What an operator or a disk takes away from a node: it comes back from its peers."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from basenet.control.surface import ShardRole
from basenet.testing.cluster import Cluster, ClusterNode
from basenet.testing.clusterchaos import find_bugs
from basenet.testing.clustercheck import check
from basenet.testing.history import Client, Outcome

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def delete_database(node: ClusterNode) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{node.database()}{suffix}").unlink(missing_ok=True)


def is_refused(node: ClusterNode) -> bool:
    """Return whether the node says that its file has rows of its own."""
    status = node.find_status()
    return status is not None and "rows of its own" in (status.error or "")


def wait_back(cluster: Cluster, node: ClusterNode, above: int) -> None:
    """Return once the node holds in its file what is final above a seq."""

    def is_back() -> bool:
        status = node.find_status()
        return status is not None and above < status.final_seq == status.applied_seq

    cluster.until(is_back, f"{node.name} is back above seq {above}")


def test_a_node_that_lost_its_files_gets_them_back(tmp_path: Path) -> None:
    """First the database, then the data directory, which makes it a learner, then both."""
    with Cluster(tmp_path, 3) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        client = Client(cluster, "c", seed=1)
        cluster.until(lambda: client.count(Outcome.FINAL) > 50, "a beginning")
        node = cluster.others(writer)[0]
        for losses in ("database", "data", "both"):
            node.kill()
            if losses != "data":
                delete_database(node)
            if losses != "database":
                shutil.rmtree(node.data_dir)
            before = writer.find_status()
            assert before is not None
            node.start()
            if losses == "data":
                # Nothing tells any more that these rows are the shard's: somebody must say so.
                cluster.until(lambda: is_refused(node), "rows of its own are refused")
                node.kill()
                delete_database(node)
                node.start()
            wait_back(cluster, node, before.final_seq)
            status = node.find_status()
            assert status is not None
            expected = ShardRole.REPLICA if losses == "database" else ShardRole.LEARNER
            assert status.role is expected, losses
        operations = client.stop()
        cluster.wait_settled()
        assert set(cluster.stop().values()) == {0}
        assert find_bugs(cluster) == []
        verdict = check(cluster, operations)
        assert not verdict.violations, str(verdict)


def test_a_storm_of_restarts_ends_in_a_cluster_at_work(tmp_path: Path) -> None:
    """Each daemon is killed again and again; meanwhile and afterwards nothing final is lost."""
    with Cluster(tmp_path, 3) as cluster:
        cluster.start()
        cluster.wait_writer()
        client = Client(cluster, "c", seed=1)
        cluster.until(lambda: client.count(Outcome.FINAL) > 20, "a beginning")
        for turn in range(9):
            node = cluster[cluster.names[turn % 3]]
            killed = node.kill_daemon()
            cluster.until(
                lambda node=node, killed=killed: node.daemon_pid() not in (None, killed),
                f"another daemon at {node.name}",
            )
        before = client.count(Outcome.FINAL)
        cluster.until(lambda: client.count(Outcome.FINAL) > before + 20, "writes go on")
        operations = client.stop()
        cluster.wait_settled()
        assert set(cluster.stop().values()) == {0}
        assert find_bugs(cluster) == []
        verdict = check(cluster, operations)
        assert not verdict.violations, str(verdict)


def test_a_file_that_was_put_in_place_of_the_writers_is_kept_aside(tmp_path: Path) -> None:
    """It is never adopted: the shard's own history comes from the others (Q11)."""
    with Cluster(tmp_path, 3) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        client = Client(cluster, "c", seed=1)
        cluster.until(lambda: client.count(Outcome.FINAL) > 20, "a beginning")
        operations = client.stop()
        cluster.wait_settled()
        assert set(cluster.stop().values()) == {0}
        delete_database(writer)
        with sqlite3.connect(writer.database()) as stranger:
            stranger.execute("PRAGMA journal_mode=WAL")
            stranger.execute("CREATE TABLE strange (x)")
        stranger.close()
        cluster.start()
        cluster.wait_settled()
        assert set(cluster.stop().values()) == {0}
        verdict = check(cluster, operations)
        assert not verdict.violations, str(verdict)
        assert list(writer.database().parent.glob("*.before-*"))
