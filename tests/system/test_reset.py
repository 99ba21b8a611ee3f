"""`basenet shards reset` with real nodes: a file in doubt, and the operator says what counts."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from basenet.control.surface import ShardRole, ShardState
from basenet.testing.cluster import SHARD, Cluster, ClusterNode
from tests.sqlite.application import Application

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def basenet(node: ClusterNode, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "basenet", *arguments, "--data-dir", str(node.data_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def reset(node: ClusterNode, keep: str, *more: str) -> tuple[int, str]:
    return basenet(node, "shards", "reset", SHARD, "--keep", keep, *more)


def rows(path: Path) -> list[str]:
    with Application(path) as application:
        assert application.run("result = c.execute('PRAGMA integrity_check').fetchall()") == [
            ["ok"]
        ]
        found = application.run("result = c.execute('SELECT v FROM t ORDER BY rowid').fetchall()")
    return [row[0] for row in found]


def write(node: ClusterNode, *values: str) -> None:
    with Application(node.database()) as application:
        application.run("c.execute('CREATE TABLE IF NOT EXISTS t(v TEXT)')")
        for value in values:
            application.run(f"c.execute(\"INSERT INTO t(v) VALUES ('{value}')\")")
    node.wait_final()


def replace_file(node: ClusterNode, value: str) -> None:
    """Move another database over a node's: a copy of it, with one more row."""
    path, other = node.database(), node.folder / "other.db"
    with closing(sqlite3.connect(other)) as copy:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source:
            source.backup(copy)
        copy.execute("PRAGMA journal_mode=WAL")
        copy.execute("INSERT INTO t(v) VALUES (?)", (value,))
        copy.commit()
        copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    other.replace(path)


def wait_state(cluster: Cluster, node: ClusterNode, state: ShardState) -> None:
    cluster.until(
        lambda: (status := node.find_status()) and status.state is state, f"{node.name}: {state}"
    )


def test_a_replica_whose_file_was_replaced_is_made_anew(tmp_path: Path) -> None:
    """What lay there is in a folder beside it, and named in the list; nothing is deleted."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        write(writer, "a")
        cluster.wait_settled()
        replica = cluster.others(writer)[0]
        code, said = reset(replica, "file")
        assert (code, "nothing to decide" in said) == (4, True), said
        replace_file(replica, "foreign")
        wait_state(cluster, replica, ShardState.STOPPED)
        with Application(replica.database()) as application:
            application.run("result = c.execute('SELECT count(*) FROM t').fetchall()")
            code, said = reset(replica, "chain")
            assert (code, "stop the application" in said) == (4, True), said
        write(writer, "b")
        code, said = reset(replica, "chain")
        assert code == 0, said
        cluster.wait_settled()
        assert rows(replica.database()) == ["a", "b"]
        copy = replica.database().parent / "app.db.reset-1" / "app.db"
        assert str(copy) in said
        assert rows(copy) == ["a", "foreign"]
        code, said = basenet(replica, "orphans", "list")
        assert (code, str(copy) in said) == (0, True), said

        # A file that is well is made anew, too, if somebody wants that.
        code, said = reset(replica, "chain")
        assert code == 0, said
        write(writer, "c")
        cluster.wait_settled()
        assert rows(replica.database()) == ["a", "b", "c"]
        assert rows(replica.database().parent / "app.db.reset-2" / "app.db") == ["a", "b"]


def test_a_newcomer_with_rows_of_its_own_joins_when_told(tmp_path: Path) -> None:
    """It is refused by itself: nobody knows whether its rows are wanted."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        write(writer, "a")
        cluster.wait_settled()
        newcomer = cluster.others(writer)[0]
        newcomer.kill()
        shutil.rmtree(newcomer.data_dir)
        with closing(sqlite3.connect(newcomer.database())) as own:
            own.execute("INSERT INTO t VALUES ('own')")
            own.commit()
        newcomer.start()
        wait_state(cluster, newcomer, ShardState.REFUSED)
        code, said = reset(newcomer, "file")
        assert (code, "taken no part" in said) == (4, True), said
        code, said = reset(newcomer, "chain")
        assert code == 0, said
        cluster.wait_settled()
        assert rows(newcomer.database()) == ["a"]
        assert rows(newcomer.database().parent / "app.db.reset-1" / "app.db") == ["a", "own"]


def test_what_a_kept_file_holds_is_final_at_a_writer_and_an_orphan_elsewhere(
    tmp_path: Path,
) -> None:
    """The same decision on a lone voter and on one that was deposed when its file went."""
    with Cluster(tmp_path / "alone", 1) as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        write(writer, "a")
        replace_file(writer, "restored")
        wait_state(cluster, writer, ShardState.STOPPED)
        code, said = reset(writer, "chain")
        assert (code, "no other node" in said) == (1, True), said
        code, said = reset(writer, "file")
        assert code == 0, said
        cluster.wait_writer()
        write(writer, "b")
        assert rows(writer.database()) == ["a", "restored", "b"]
    with Cluster(tmp_path / "three") as cluster:
        cluster.start()
        writer = cluster.wait_writer()
        write(writer, "a")
        cluster.wait_settled()
        replace_file(writer, "restored")
        wait_state(cluster, writer, ShardState.STOPPED)
        heir = cluster.wait_writer(but=writer)
        write(heir, "b")
        code, said = reset(writer, "file")
        assert code == 0, said
        cluster.until(
            lambda: (s := writer.find_status()) and s.orphans and s.role is ShardRole.REPLICA,
            "its difference is an orphan",
        )
        cluster.wait_settled()
        assert rows(writer.database()) == rows(heir.database()) == ["a", "b"]
        code, said = basenet(writer, "orphans", "list")
        assert (code, "1 orphan" in said or "app/" in said) == (0, True), said
