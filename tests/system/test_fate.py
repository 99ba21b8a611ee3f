"""What a client is told of its commit, when the node that it was made on is deposed meanwhile."""

import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from basenet.client import ClientError, CommitOrphaned, Level, NotFinal, sync
from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import ShardRole
from basenet.errors import BasenetError
from basenet.testing.cluster import SHARD, Cluster, ClusterNode
from tests.sqlite.application import Application

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def transfer(cluster: Cluster, target: ClusterNode) -> None:
    """Let a node write again."""

    def ask() -> bool:
        writer = cluster.find_writer()
        if writer is not None and writer is not target:
            with suppress(BasenetError):
                writer.client.command(
                    SHARD, MembersCommand(verb=MembersVerb.TRANSFER, nodes=(target.name,))
                )
        return writer is target

    cluster.until(ask, f"{target.name} writes again")


def basenet(node: ClusterNode, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "basenet", *arguments, "--data-dir", str(node.data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_an_orphaned_commit_is_never_called_final_by_the_node_that_made_it(tmp_path: Path) -> None:
    """Deposed, rolled back, and writer again, with another commit in its place: it is told."""
    with Cluster(tmp_path, has_links=True) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        with closing(sync.connect(writer.database(), daemon=writer.data_dir)) as db:
            db.execute("CREATE TABLE t(v TEXT)")
            with db:
                db.execute("INSERT INTO t VALUES ('final')")
            before = db.last_seq
            code, said = basenet(writer, "wait", "--print-generation")
            assert code == 0, said
            generation = said.strip()

            db.timeout_s = 0.1
            cluster.isolate(writer)
            with pytest.raises(NotFinal) as unsure, db:
                db.execute("INSERT INTO t VALUES ('lost')")
            assert unsure.value.is_committed
            other = cluster.wait_writer(but=writer)
            with Application(other.database()) as application:
                application.run("c.execute(\"INSERT INTO t VALUES ('theirs')\")")
            assert other.wait_final().seq > (before or 0)
            cluster.heal()
            cluster.wait_settled()
            # As long as another node writes, it is told, too.
            code, said = basenet(writer, "wait", "--now", "--generation", generation)
            assert (code, "lost against" in said) == (4, True), said
            transfer(cluster, writer)
            cluster.wait_settled()
            with Application(writer.database()) as application:
                application.run("c.execute(\"INSERT INTO t VALUES ('mine again')\")")

            # Whoever asks for now alone hears of what is there now, and that is final.
            assert writer.wait_final().seq > (before or 0)
            with pytest.raises(CommitOrphaned) as lost:
                db.wait(timeout_s=30)
            (bundle,) = lost.value.bundles
            code, said = basenet(writer, "orphans", "show", bundle)
            assert code == 0, said
            assert "deposed" in said

            db.timeout_s = 30
            with db:
                db.execute("INSERT INTO t VALUES ('later')")
            assert [row[0] for row in db.execute("SELECT v FROM t")] == [
                "final",
                "theirs",
                "mine again",
                "later",
            ]


def test_a_commit_that_survived_the_election_is_final_wherever_its_node_stands(
    tmp_path: Path,
) -> None:
    """Handed over in order: nothing was undone, so a deposed writer can say that it is final."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        with closing(sync.connect(writer.database(), daemon=writer.data_dir)) as db:
            with db:
                db.execute("CREATE TABLE t(v TEXT)")
            db.level = Level.LOCAL
            with db:
                db.execute("INSERT INTO t VALUES ('kept')")
            heir = cluster.others(writer)[0]
            transfer(cluster, heir)
            cluster.until(
                lambda: (s := writer.find_status()) and s.role is ShardRole.REPLICA, "it follows"
            )
            with Application(heir.database()) as application:
                application.run("c.execute(\"INSERT INTO t VALUES ('theirs')\")")
            heir.wait_final()
            cluster.wait_settled()
            assert db.wait(Level.FINAL)
            transfer(cluster, writer)
            cluster.wait_settled()
            db.level = Level.FINAL
            try:
                with db:
                    db.execute("INSERT INTO t VALUES ('home')")
            except ClientError as error:  # with all that the nodes say
                raise AssertionError(f"{error}\n{cluster.describe(with_logs=True)}") from error
            assert [row[0] for row in db.execute("SELECT v FROM t")] == ["kept", "theirs", "home"]
