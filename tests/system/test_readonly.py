"""BASE_FENCE=readonly on real nodes: files refuse writers by themselves, with nobody alive."""

from contextlib import suppress
from pathlib import Path

import pytest

from basenet.errors import BasenetError
from basenet.sqlite.unmark import remove_mark
from basenet.testing.cluster import Cluster, ClusterNode
from basenet.testing.clusterchaos import find_bugs
from basenet.testing.clustercheck import check
from tests.sqlite.application import Application, ApplicationError
from tests.sqlite.test_page1 import set_mark

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

READ_ONLY = "OperationalError: attempt to write a readonly database"


def answer(node: ClusterNode, statement: str = "INSERT INTO t (v) VALUES ('rogue')") -> str:
    """What SQLite says to a new connection that writes and waits for no lock; empty: it wrote."""
    with Application(node.database(), timeout_s=0) as application:
        try:
            application.sql(statement)
        except ApplicationError as error:
            return str(error)
    return ""


def insert(text: str) -> str:
    """The statement that inserts a row."""
    return f"INSERT INTO t (v) VALUES ('{text}')"


def write(cluster: Cluster, *statements: str, but: ClusterNode | None = None) -> ClusterNode:
    """Commit where that is possible, with a connection for each; return there when all is final."""
    for statement in statements:

        def question(statement: str = statement) -> ClusterNode | None:
            node = cluster.find_writer(but=but)
            return node if node is not None and not answer(node, statement) else None

        writer = cluster.until(question, f"somebody may write: {statement}")
    with suppress(BasenetError):  # under load the lead may move; then it is settled below
        writer.wait_final()
    return writer


def wait_follows(cluster: Cluster) -> None:
    """Return once all nodes but the writer refuse by themselves."""

    def question() -> bool:
        said = [answer(node) for node in cluster if node is not cluster.find_writer()]
        assert all(said), "a rogue writer committed"
        return set(said) == {READ_ONLY}

    cluster.wait_settled()

    def is_told() -> bool:
        told = {node.name: node.find_status() for node in cluster}
        writer = cluster.find_writer()
        return writer is not None and all(
            status is not None and status.is_read_only is (name != writer.name)
            for name, status in told.items()
        )

    cluster.until(question, "all replicas are read-only")
    cluster.until(is_told, "each node tells whether its file is marked")


def test_the_file_refuses_while_nobody_is_alive(tmp_path: Path) -> None:
    """On replicas, after a kill of everything, and at rest; it is writable where it is led from."""
    with Cluster(tmp_path, 3, BASE_FENCE="readonly") as cluster:
        # What another cluster has left, or this one in an earlier life, is adopted and writable.
        with Application(cluster["n1"].database()) as app:
            app.sql(
                "PRAGMA journal_mode=WAL",
                "CREATE TABLE t (id INTEGER PRIMARY KEY, v)",
                insert("old"),
            )
        set_mark(cluster["n1"].database())
        assert answer(cluster["n1"]) == READ_ONLY
        cluster.start()
        # What is applied keeps the mark, page 1 included.
        writer = write(cluster, insert("first"), "CREATE TABLE u (x)")
        wait_follows(cluster)
        replica = cluster.others(writer)[0]
        replica.kill()
        assert answer(replica) == READ_ONLY
        replica.start()
        wait_follows(cluster)
        assert set(cluster.stop().values()) == {0}
        for node in cluster:
            assert answer(node) == READ_ONLY, node.name
            assert not Path(f"{node.database()}-wal").exists()  # the last one has closed
            assert answer(node) == READ_ONLY, node.name
        cluster.start()
        writer = write(cluster, insert("second"))
        cluster.wait_settled()
        # Its host dies as a whole: this file is not marked, and nobody writes to it meanwhile.
        writer.kill()
        write(cluster, insert("third"), but=writer)
        writer.start()
        wait_follows(cluster)
        assert set(cluster.stop().values()) == {0}
        judge(cluster, ["old", "first", "second", "third"])
        for node in cluster:
            assert "commits_found" not in node.read_log(), node.read_log()
            assert remove_mark(node.database())
            assert answer(node) == ""


def test_a_writer_that_is_cut_off_is_marked_and_taken_in_again(tmp_path: Path) -> None:
    """It learns of no successor; what it committed alone is kept, and its file is made equal."""
    with Cluster(tmp_path, 3, has_links=True, BASE_FENCE="readonly") as cluster:
        cluster.start()
        writer = write(cluster, "CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        cluster.wait_settled()
        cluster.isolate(writer)
        # Its lease lasts for a moment, and then the lock is all.
        cluster.until(lambda: answer(writer) == READ_ONLY, f"{writer.name} is read-only")
        write(cluster, insert("won"), but=writer)
        assert answer(writer) == READ_ONLY
        cluster.heal()
        wait_follows(cluster)
        assert set(cluster.stop().values()) == {0}
        judge(cluster, ["won"])


def judge(cluster: Cluster, values: list[str]) -> None:
    """See that all files refuse, are equal, and hold ``values``; nothing was taken for strange."""
    assert find_bugs(cluster) == []
    verdict = check(cluster, has_registers=False)
    assert not verdict.violations, str(verdict)
    assert verdict.aside == 0
    for node in cluster:
        assert "left_writable" not in node.read_log()
        assert answer(node) == READ_ONLY
        with Application(node.database()) as app:
            assert app.sql("SELECT v FROM t WHERE v <> 'rogue'") == [[one] for one in values]
