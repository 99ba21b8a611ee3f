"""`basenet members` with real nodes: who votes and who writes, changed while applications go on."""

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import FenceState, ShardRole, ShardStatus
from basenet.errors import BasenetError, ConflictError, NotFoundError, UnavailableError
from basenet.testing.cluster import SHARD, Cluster, ClusterNode
from tests.sqlite.application import Application, ApplicationError

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

_SHORT_S = 5.0
"""No writer waits longer than this for a change of members, on a machine that does much else."""
_WRITE_ALL_THE_TIME = """
worst, count = 0.0, 0
while not os.path.exists(db + '.stop'):
    began = time.monotonic()
    c.execute("INSERT INTO t(v) VALUES ('busy')")
    worst, count = max(worst, time.monotonic() - began), count + 1
    time.sleep(0.01)
result = [worst, count]
"""


def give(node: ClusterNode, verb: MembersVerb, *nodes: str, **more: object) -> str:
    return node.client.command(SHARD, MembersCommand(verb=verb, nodes=nodes, **more))


def force(node: ClusterNode) -> str:
    """Force a lineage on ``node``; return its name."""
    said = give(node, MembersVerb.FORCE, node.name, is_loss_accepted=True)
    found = re.search(r"forced lineage ([0-9a-f]{32})", said)
    assert found is not None, said
    return found.group(1)


def voters(node: ClusterNode) -> list[str]:
    status = node.find_status()
    return [one.node_id for one in status.members if one.is_voter] if status else []


def is_role(node: ClusterNode, role: ShardRole) -> ShardStatus | None:
    status = node.find_status()
    return status if status is not None and status.role is role else None


def is_connected(node: ClusterNode, other: ClusterNode) -> bool:
    members = node.client.get_shard_status(SHARD).members
    return any(one.node_id == other.name and one.is_connected for one in members)


def write(node: ClusterNode, value: str, count: int = 1) -> None:
    with Application(node.database()) as application:
        application.run("c.execute('CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v TEXT)')")
        for _ in range(count):
            application.run(f"c.execute(\"INSERT INTO t(v) VALUES ('{value}')\")")
    node.wait_final()


def rows(node: ClusterNode) -> dict[str, int]:
    """Return how many rows of each value the database of a node has, and that it is whole."""
    with Application(node.database()) as application:
        assert application.run("result = c.execute('PRAGMA integrity_check').fetchall()") == [
            ["ok"]
        ]
        found = application.run(
            "result = c.execute('SELECT v, count(*) FROM t GROUP BY v').fetchall()"
        )
    return dict(found)


@contextmanager
def busy(node: ClusterNode) -> Iterator[list[float]]:
    """Write to a node all the time; the list has the longest wait and the count afterwards."""
    stop = Path(f"{node.database()}.stop")
    facts: list[float] = []
    with Application(node.database(), timeout_s=30) as application:
        application.start(_WRITE_ALL_THE_TIME)
        try:
            yield facts
        finally:
            stop.touch()
            facts += application.finish()
            stop.unlink()


def wait_learners(cluster: Cluster, *names: str) -> None:
    """Return once nodes have joined and their files hold something."""
    for name in names:
        cluster.until(
            lambda name=name: (status := cluster[name].find_status()) and status.applied_seq,
            f"{name} has joined",
        )


def test_one_voter_becomes_three_while_the_application_writes(tmp_path: Path) -> None:
    """Two learners are added in one CONFIG, and nobody notices more than a short lock."""
    with Cluster(tmp_path, BASE_REPLICATION="1", BASE_WRITER="n0") as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        assert (writer.name, voters(writer)) == ("n0", ["n0"])
        write(writer, "first", 5)
        with busy(writer) as facts:
            wait_learners(cluster, "n1", "n2")
            with pytest.raises(ConflictError, match="n0 leads shard app"):
                give(cluster["n1"], MembersVerb.ADD, "n1")
            with pytest.raises(UnavailableError, match="n9 is not connected"):
                give(writer, MembersVerb.ADD, "n9")
            said = give(writer, MembersVerb.ADD, "n1", "n2")
            assert said == "shard app has the voters n0, n1, n2 (epoch 2)."
            cluster.until(lambda: is_role(writer, ShardRole.WRITER), "it goes on writing")
            writer.wait_final()
        longest_s, count = facts
        assert longest_s < _SHORT_S
        cluster.wait_settled()
        assert all(rows(node) == {"first": 5, "busy": count} for node in cluster)
        assert all(voters(node) == ["n0", "n1", "n2"] for node in cluster)
        writer.kill()
        heir = cluster.wait_writer(but=writer)
        write(heir, "heir")
        assert rows(heir) == {"first": 5, "busy": count, "heir": 1}


def test_voters_leave_and_come_back_and_the_writer_moves(tmp_path: Path) -> None:
    """Who was removed stays fenced and follows; nothing is lost by any of it."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        write(writer, "a", 3)
        cluster.wait_settled()
        gone, other = cluster.others(writer)
        for verb, name, error in (
            (MembersVerb.REMOVE, "n9", NotFoundError),
            (MembersVerb.REMOVE, writer.name, ConflictError),
            (MembersVerb.ADD, other.name, ConflictError),
            (MembersVerb.TRANSFER, writer.name, ConflictError),
            (MembersVerb.INIT, writer.name, ConflictError),
        ):
            with pytest.raises(error):
                give(writer, verb, name)
        with pytest.raises(ConflictError, match="is a quorum: nothing is lost"):
            give(writer, MembersVerb.FORCE, writer.name, is_loss_accepted=True)

        give(writer, MembersVerb.REMOVE, gone.name)
        status = cluster.until(lambda: is_role(gone, ShardRole.LEARNER), "it is a learner")
        assert status.fence is FenceState.CLOSED
        with Application(gone.database(), timeout_s=0) as rogue, pytest.raises(ApplicationError):
            rogue.run("c.execute(\"INSERT INTO t(v) VALUES ('rogue')\")")
        write(writer, "without", 2)
        cluster.wait_settled()
        assert rows(gone) == {"a": 3, "without": 2}

        gone.kill()
        write(writer, "away", 2)
        gone.start()
        cluster.wait_settled()
        cluster.until(lambda: is_connected(writer, gone), "they are connected")
        give(writer, MembersVerb.ADD, gone.name)
        assert sorted(voters(writer)) == ["n0", "n1", "n2"]

        give(writer, MembersVerb.TRANSFER, gone.name)
        cluster.until(lambda: is_role(gone, ShardRole.WRITER), f"{gone.name} writes")
        write(gone, "moved", 2)
        cluster.wait_settled()
        assert all(rows(node) == {"a": 3, "without": 2, "away": 2, "moved": 2} for node in cluster)
        assert not any(one.client.get_shard_status(SHARD).orphans for one in cluster)


def test_a_voter_that_was_removed_while_away_learns_it(tmp_path: Path) -> None:
    """It comes back fenced, as a learner (Q25)."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        write(writer, "a")
        away = cluster.others(writer)[0]
        away.kill()
        give(writer, MembersVerb.REMOVE, away.name)
        write(writer, "b")
        away.start()
        status = cluster.until(
            lambda: (found := is_role(away, ShardRole.LEARNER)) and found.epoch == 2 and found,
            "it knows",
        )
        assert status.fence is FenceState.CLOSED
        cluster.wait_settled()
        assert rows(away) == {"a": 1, "b": 1}


def test_a_lost_quorum_is_left_behind_and_the_others_follow_when_told(tmp_path: Path) -> None:
    """What was final without the survivor is in bundles on those who accept (Q5)."""
    with Cluster(tmp_path, BASE_WRITER="n0") as cluster:
        cluster.start()
        cluster.wait_writer()
        first, second, survivor = cluster["n0"], cluster["n1"], cluster["n2"]
        write(first, "a", 5)
        cluster.wait_settled()
        survivor.kill()
        write(first, "lost", 4)
        first.kill()
        second.kill()
        survivor.start()
        cluster.until(survivor.find_status, "the survivor answers")
        with pytest.raises(ConflictError, match="give the command on the host of n0"):
            give(survivor, MembersVerb.FORCE, "n0", is_loss_accepted=True)
        lineage = force(survivor)
        assert cluster.wait_writer() is survivor
        write(survivor, "forced", 3)
        assert rows(survivor) == {"a": 5, "forced": 3}

        first.start()
        cluster.until(first.find_status, "it answers")
        with pytest.raises(ConflictError, match="no node has announced a forced lineage"):
            give(first, MembersVerb.ACCEPT, lineage="0" * 32)
        cluster.until(lambda: _accept(first, lineage), "it has heard of the forced lineage")
        second.start()
        cluster.until(lambda: _accept(second, lineage), "it has heard of the forced lineage")
        for node in (first, second):
            cluster.until(
                lambda node=node: (s := node.find_status()) and s.applied_seq and s.epoch,
                "it follows",
            )
            assert rows(node) == {"a": 5, "forced": 3}
            status = node.find_status()
            assert status is not None
            assert (status.orphans, status.lineage) == (1, lineage)
        cluster.until(lambda: is_connected(survivor, first), "they are connected")
        cluster.until(lambda: is_connected(survivor, second), "they are connected")
        assert give(survivor, MembersVerb.ADD, "n0", "n1")
        cluster.until(lambda: is_role(first, ShardRole.WRITER), "BASE_WRITER writes again")
        write(first, "home")
        cluster.wait_settled()
        assert all(rows(node) == {"a": 5, "forced": 3, "home": 1} for node in cluster)
        shown = _run("orphans", "list", "--data-dir", str(first.data_dir))
        assert "was final" in shown


def _accept(node: ClusterNode, lineage: str) -> str | None:
    try:
        return give(node, MembersVerb.ACCEPT, lineage=lineage)
    except BasenetError:
        return None


def test_a_survivor_keeps_what_it_voted_for_and_what_its_application_wrote(tmp_path: Path) -> None:
    """The writer alone is left: what was not final yet stays in its history."""
    with Cluster(tmp_path, BASE_WRITER="n0") as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        write(writer, "a", 5)
        cluster.wait_settled()
        with Application(writer.database()) as application:
            for node in cluster.others(writer):
                node.pause()
            application.run("c.execute(\"INSERT INTO t(v) VALUES ('kept')\")")
        for node in cluster.others(writer):
            node.kill()
        cluster.until(lambda: is_role(writer, ShardRole.REPLICA), "the lease is over")
        cluster.until(lambda: _force(writer), "its peers are known to be gone")
        cluster.until(lambda: is_role(writer, ShardRole.WRITER), "it writes alone")
        write(writer, "alone")
        assert rows(writer) == {"a": 5, "kept": 1, "alone": 1}
        status = writer.find_status()
        assert status is not None
        assert (status.orphans, voters(writer)) == (0, ["n0"])


def _force(node: ClusterNode) -> str | None:
    try:
        return force(node)
    except BasenetError:
        return None


@pytest.mark.parametrize("archive", ["off", "on"])
def test_a_standalone_shard_becomes_a_cluster(tmp_path: Path, archive: str) -> None:
    """The lineage goes on over the same data; the application is not stopped (Q22)."""
    with Cluster(tmp_path) as cluster:
        node = cluster["n0"]
        quasar = node.environment
        node.environment = {
            name: text
            for name, text in quasar.items()
            if name in ("BASE_NODE_ID", "BASE_SHARDS", "BASE_DATA_DIR", "BASE_LISTEN_HTTP")
        } | {"BASE_NETWORK": "standalone", "BASE_ARCHIVE": "off"}
        if archive == "on":
            (tmp_path / "archive").mkdir()
            node.environment["BASE_ARCHIVE"] = str(tmp_path / "archive")
        with closing(sqlite3.connect(node.database())) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
        with busy(node) as facts:
            node.start()
            before = cluster.until(
                lambda: (s := node.find_status()) and s.final_seq > 20 and s, "it captures"
            )
            node.terminate()
            assert node.wait_ended() == 0
            node.environment = quasar | {"BASE_PEERS": ""}
            node.start()
            cluster.until(lambda: is_role(node, ShardRole.WRITER), "it goes on in a cluster")
            node.terminate()
            assert node.wait_ended() == 0
            node.environment = quasar
            cluster.start()
            cluster.until(lambda: is_role(node, ShardRole.WRITER), "it goes on with peers")
            wait_learners(cluster, "n1", "n2")
            give(node, MembersVerb.ADD, "n1", "n2")
        cluster.wait_settled()
        longest_s, count = facts
        assert longest_s < _SHORT_S
        assert [rows(one) for one in cluster] == [{"busy": count}] * 3
        status = node.find_status()
        assert status is not None
        assert (status.lineage, status.epoch) == (before.lineage, 3)
        assert (node.data_dir / "signing.key").stat().st_mode & 0o777 == 0o400


def test_a_witness_votes_and_holds_no_database(tmp_path: Path) -> None:
    """Two nodes with data and a witness survive the loss of each."""
    with Cluster(tmp_path) as cluster:
        cluster["n2"].environment["BASE_NODE_ROLE"] = "witness"
        cluster.start()
        writer = cluster.wait_writer()
        write(writer, "a", 5)
        cluster.wait_settled()
        with pytest.raises(ConflictError, match="n2 is a witness"):
            give(writer, MembersVerb.TRANSFER, "n2")
        for number in range(3):
            writer.kill()
            heir = cluster.wait_writer(but=writer)
            assert heir.name != "n2"
            write(heir, f"b{number}", 2)
            writer.start()
            cluster.wait_settled()
            writer = heir
        cluster["n2"].kill()
        write(writer, "c")
        cluster["n2"].start()
        cluster.wait_settled()
        status = is_role(cluster["n2"], ShardRole.WITNESS)
        assert status is not None
        assert status.fence is FenceState.NONE
        assert not cluster["n2"].database().exists()
        both = [node for node in cluster if node.name != "n2"]
        assert rows(both[0]) == rows(both[1]) == {"a": 5, "b0": 2, "b1": 2, "b2": 2, "c": 1}


def test_an_archive_node_follows_and_never_votes(tmp_path: Path) -> None:
    with Cluster(tmp_path, BASE_REPLICATION="2") as cluster:
        cluster["n2"].environment["BASE_NODE_ROLE"] = "archive"
        cluster.start()
        writer = cluster.wait_writer()
        assert sorted(voters(writer)) == ["n0", "n1"]
        write(writer, "a", 3)
        cluster.wait_settled()
        assert rows(cluster["n2"]) == {"a": 3}
        with pytest.raises(ConflictError, match="n2 is an archive node"):
            give(writer, MembersVerb.ADD, "n2")


def test_the_writer_comes_home_after_a_failover_and_not_after_an_order(tmp_path: Path) -> None:
    """BASE_WRITER, once it has been back for a while; an operator's transfer stands (Q26)."""
    with Cluster(tmp_path, BASE_WRITER="n1") as cluster:
        cluster.start()
        home = cluster.wait_writer()
        assert home.name == "n1"
        write(home, "a")
        home.kill()
        heir = cluster.wait_writer(but=home)
        write(heir, "b")
        home.start()
        cluster.until(lambda: is_role(home, ShardRole.WRITER), "the writer comes home")
        write(home, "c")
        cluster.wait_settled()
        away = cluster.others(home)[0]
        cluster.until(lambda: is_connected(home, away), "they are connected")
        give(home, MembersVerb.TRANSFER, away.name)
        cluster.until(lambda: is_role(away, ShardRole.WRITER), "the order is followed")
        write(away, "d")
        assert rows(away) == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_the_operator_decides_whose_file_a_shard_begins_with(tmp_path: Path) -> None:
    """Two nodes have different rows: nothing is born until somebody says whose count (Q3)."""
    with Cluster(tmp_path) as cluster:
        for name in ("n0", "n1"):
            with closing(sqlite3.connect(cluster[name].database())) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
                connection.execute("INSERT INTO t(v) VALUES (?)", (name,))
                connection.commit()
        cluster.start()
        node = cluster["n1"]
        cluster.until(
            lambda: (s := node.find_status()) and "differ" in (s.error or ""), "it is reported"
        )
        with pytest.raises(ConflictError, match="give the command on the host of n0"):
            give(node, MembersVerb.INIT, "n0")
        assert "n1 decides with its file" in give(node, MembersVerb.INIT, "n1")
        cluster.wait_writer()
        cluster.wait_settled()
        assert all(rows(one) == {"n1": 1} for one in cluster)
        assert list(cluster["n0"].database().parent.glob("app.db.before-*"))


def test_a_newcomers_own_rows_are_never_overwritten(tmp_path: Path) -> None:
    """Its file is left alone until somebody moves it away; then the node joins."""
    with Cluster(tmp_path, BASE_REPLICATION="1", BASE_WRITER="n0") as cluster:
        cluster.start()
        writer, newcomer = cluster.wait_writer(), cluster["n1"]
        write(writer, "a", 3)
        cluster.wait_settled()
        newcomer.terminate()
        newcomer.wait_ended()
        shutil.rmtree(newcomer.data_dir)
        shutil.rmtree(newcomer.database().parent)
        newcomer.database().parent.mkdir()
        with closing(sqlite3.connect(newcomer.database())) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
            connection.execute("INSERT INTO t(v) VALUES ('mine')")
            connection.commit()
        newcomer.start()
        cluster.until(
            lambda: (s := newcomer.find_status()) and "rows of its own" in (s.error or ""),
            "it is refused",
        )
        assert rows(newcomer) == {"mine": 1}
        newcomer.terminate()
        newcomer.wait_ended()
        newcomer.database().parent.rename(tmp_path / "moved")
        newcomer.database().parent.mkdir()
        newcomer.start()
        cluster.wait_settled()
        assert rows(newcomer) == {"a": 3}


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "basenet", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout
