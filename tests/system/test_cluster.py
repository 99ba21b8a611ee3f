"""Real nodes over real TLS: births, failover, partitions, and what an outside checker says of it.

Every failure shows what all nodes said last and the ends of their logs; the files stay in pytest's
temporary directory.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from basenet.control.surface import FenceState, Level, ShardRole
from basenet.errors import BasenetError, UnavailableError
from basenet.keys import signing
from basenet.testing.archivecheck import judge_archive
from basenet.testing.cluster import Cluster, ClusterNode
from basenet.testing.clusterarchive import ClusterArchive
from basenet.testing.clusterchaos import Outline, find_bugs, play
from basenet.testing.clustercheck import check
from basenet.testing.history import Client, Operation, Outcome, RegisterApplication
from tests.sqlite.application import Application, ApplicationError

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MIB = 1024 * 1024


def judge(
    cluster: Cluster, operations: Sequence[Operation] = (), *, has_registers: bool = True
) -> None:
    """End all nodes and have their files judged."""
    cluster.wait_settled()
    assert set(cluster.stop().values()) == {0}, cluster.describe(with_logs=True)
    assert find_bugs(cluster) == []
    verdict = check(cluster, operations, has_registers=has_registers)
    assert not verdict.violations, str(verdict)


@contextlib.contextmanager
def started(folder: Path, count: int = 3, **options: object) -> Iterator[Cluster]:
    """Give a cluster that was born."""
    with Cluster(folder, count, **options) as cluster:  # type: ignore[arg-type]
        cluster.start()
        cluster.wait_writer()
        yield cluster


@contextlib.contextmanager
def writing(cluster: Cluster, count: int = 2) -> Iterator[list[Client]]:
    """Let clients write meanwhile; they have begun, and have ended afterwards."""
    clients = [Client(cluster, f"c{number}", seed=number) for number in range(count)]
    try:
        wait_for_more(cluster, clients)
        yield clients
    finally:
        for client in clients:
            client.stop()


def wait_for_more(cluster: Cluster, clients: Sequence[Client], more: int = 20) -> None:
    """Return once ``more`` further operations are final."""
    before = sum(client.count(Outcome.FINAL) for client in clients)
    cluster.until(
        lambda: sum(client.count(Outcome.FINAL) for client in clients) >= before + more,
        f"{more} more operations are final",
    )


def operations_of(clients: Sequence[Client]) -> list[Operation]:
    return [one for client in clients for one in client.operations]


def make_database(node: ClusterNode, mebibytes: int = 0, text: str = "here first") -> None:
    """Make a database in WAL mode as an application would, before there is a cluster."""
    with Application(node.database()) as application:
        application.sql(
            "PRAGMA journal_mode=WAL",
            "CREATE TABLE t (id INTEGER PRIMARY KEY, v)",
            f"INSERT INTO t (v) VALUES ('{text}')",
        )
        for _ in range(mebibytes):
            application.sql(f"INSERT INTO t (v) VALUES (randomblob({MIB}))")


def run_orphans(node: ClusterNode) -> str:
    """Return what `basenet orphans list` shows."""
    inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
    done = subprocess.run(
        [sys.executable, "-m", "basenet", "orphans", "list"],
        env=inherited | node.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def refused(application: Application, statement: str) -> str:
    """Return why SQLite refused a statement; fail if it did not."""
    with pytest.raises(ApplicationError) as caught:
        application.sql(statement)
    return str(caught.value)


# -- births ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_empty_cluster_is_born_and_replicates(tmp_path: Path, count: int) -> None:
    """Any number of nodes: commits become final and are in every file."""
    with started(tmp_path, count) as cluster:
        with writing(cluster, 1) as clients:
            wait_for_more(cluster, clients)
        judge(cluster, operations_of(clients))


def test_four_nodes_in_byzantine_mode(tmp_path: Path) -> None:
    """Two phases, and the death of the writer."""
    with started(tmp_path, 4, BASE_FAULT_MODEL="byzantine") as cluster:
        with writing(cluster) as clients:
            writer = cluster.wait_writer()
            writer.kill()
            cluster.wait_writer(but=writer)
            wait_for_more(cluster, clients)
            writer.start()
        judge(cluster, operations_of(clients))


def test_what_one_node_had_before_is_on_all_of_them(tmp_path: Path) -> None:
    """20 MiB on one node; the others get the state from it."""
    with Cluster(tmp_path, 3) as cluster:
        make_database(cluster["n1"], 20)
        cluster.start()
        cluster.wait_settled()
        for node in cluster:
            with Application(node.database()) as application:
                assert application.sql("SELECT count(*), min(v) FROM t")[0][0] == 21, node.name
        judge(cluster, has_registers=False)


def test_two_nodes_with_different_data_are_not_joined(tmp_path: Path) -> None:
    """Nobody chooses between two databases but their owner; both files stay as they are."""
    with Cluster(tmp_path, 3) as cluster:
        make_database(cluster["n0"], text="one")
        make_database(cluster["n2"], text="other")
        cluster.start()

        def sentence() -> str | None:
            errors = [status.error for node in cluster if (status := node.find_status())]
            return next((error for error in errors if error and "differ" in error), None)

        said = cluster.until(sentence, "a node says that the databases differ")
        assert "n0" in said or "n2" in said, said
        assert cluster.find_writer() is None
        assert set(cluster.stop().values()) == {0}
        for name, text in (("n0", "one"), ("n2", "other")):
            with Application(cluster[name].database()) as application:
                assert application.sql("SELECT v FROM t") == [[text]]


# -- deaths ----------------------------------------------------------------------------------------


def test_the_death_of_the_writers_node(tmp_path: Path) -> None:
    """Writes go on elsewhere; the old node comes back; nothing acknowledged final is lost."""
    with started(tmp_path) as cluster:
        with writing(cluster) as clients:
            for _ in range(2):
                writer = cluster.wait_writer()
                writer.kill()
                cluster.wait_writer(but=writer)
                wait_for_more(cluster, clients)
                writer.start()
                cluster.wait_taken_in()
        judge(cluster, operations_of(clients))


def test_a_daemon_that_dies_alone_comes_back(tmp_path: Path) -> None:
    """The guardian starts another; an application with the file open goes on."""
    with started(tmp_path) as cluster:
        with writing(cluster) as clients:
            writer = cluster.wait_writer()
            killed = writer.kill_daemon()
            cluster.until(lambda: writer.daemon_pid() not in (None, killed), "another daemon")
            assert writer.is_running
            wait_for_more(cluster, clients)
        with Application(cluster.wait_writer().database()) as application:
            assert application.sql("SELECT count(*) > 0 FROM hist") == [[1]]
        judge(cluster, operations_of(clients))


def test_a_writer_that_stands_still_is_fenced_and_its_orphans_are_kept(tmp_path: Path) -> None:
    """SIGSTOP of the daemon: the guardian alone closes the fence when the lease is over."""
    with started(tmp_path) as cluster:
        with writing(cluster) as clients:
            wait_for_more(cluster, clients)
        writer = cluster.wait_writer()
        with RegisterApplication(writer.database(), timeout_s=0.05) as application:
            writer.pause()
            lost: list[Operation] = []
            deadline = time.monotonic() + 30
            while True:
                operation = Operation(
                    tag=f"lost:{len(lost)}",
                    key="r0",
                    node=writer.name,
                    begin_ns=time.monotonic_ns(),
                )
                answer = application.ask("bump", operation.key, operation.tag, 10)
                if "error" in answer:
                    break
                operation.outcome, operation.version = Outcome.LOCAL, answer["version"]
                lost.append(operation)
                assert time.monotonic() < deadline, "the fence never closed"
        assert lost, "the fence closed before the lease was over"
        cluster.wait_writer(but=writer)
        with writing(cluster, 1) as later:
            wait_for_more(cluster, later)
        writer.resume()
        cluster.wait_settled()
        assert "deposed" in run_orphans(writer)
        judge(cluster, operations_of([*clients, *later]) + lost)


def test_a_writer_that_is_asked_to_end_hands_over(tmp_path: Path) -> None:
    """SIGTERM: a voter that is caught up leads at once; nobody waits for the end of a lease.

    Every node in turn: whoever was named by the old writer is the new one.
    """
    with started(tmp_path) as cluster:
        with writing(cluster) as clients:
            for _ in range(3):
                old = cluster.wait_writer()
                cluster.wait_taken_in()
                status, said = old.find_status(), len(old.read_log())
                assert status is not None
                old.terminate()
                assert old.wait_ended() == 0
                said_last = old.read_log()[said:]
                (line,) = [one for one in said_last.splitlines() if "handing_over" in one]
                new = cluster.wait_writer(but=old)
                key = signing.load(cluster.folder / "ca" / new.name / "node.key").public
                assert json.loads(line)["to"] == key.hex()
                found = new.find_status()
                assert found is not None
                # The view is the next one that the named voter leads.
                assert 1 <= found.view - status.view < len(cluster.names), "there were elections"
                wait_for_more(cluster, clients)
                old.start()
                cluster.wait_taken_in()
        judge(cluster, operations_of(clients))


# -- partitions ------------------------------------------------------------------------------------


def test_a_partition_of_the_writer_and_its_healing(tmp_path: Path) -> None:
    """Packets are lost, then connections are cut: each time another writes, and all agree later."""
    with started(tmp_path, has_links=True) as cluster:
        with writing(cluster) as clients:
            for is_silent in (True, False):
                writer = cluster.wait_writer()
                cluster.isolate(writer, is_silent=is_silent)
                cluster.wait_writer(but=writer)
                wait_for_more(cluster, clients)
                status = writer.find_status()
                assert status is not None
                assert status.role is not ShardRole.WRITER
                cluster.heal()
                cluster.wait_taken_in()
        judge(cluster, operations_of(clients))


def test_a_rogue_writer_on_a_replica_never_commits(tmp_path: Path) -> None:
    """Whatever a process tries on a replica's file, SQLite tells it that it is locked."""
    with started(tmp_path) as cluster, writing(cluster) as clients:
        wait_for_more(cluster, clients)
        writer = cluster.wait_writer()
        for replica in cluster.others(writer):
            with Application(replica.database(), timeout_s=0.05) as application:
                for statement in (
                    "INSERT INTO reg VALUES ('rogue', 1, 'rogue')",
                    "DROP TABLE hist",
                    "BEGIN EXCLUSIVE",
                    "VACUUM",
                    "PRAGMA journal_mode=DELETE",
                ):
                    assert "locked" in refused(application, statement), statement
                application.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        wait_for_more(cluster, clients)
        for client in clients:
            client.stop()
        judge(cluster, operations_of(clients))


def test_readers_on_replicas_see_whole_states_that_only_grow(tmp_path: Path) -> None:
    """Many reads beside the apply, of one connection each: no torn state, never back in time."""
    with started(tmp_path) as cluster:
        with writing(cluster) as clients, contextlib.ExitStack() as stack:
            cluster.wait_taken_in()
            replicas = cluster.others(cluster.wait_writer())
            readers = [
                stack.enter_context(RegisterApplication(node.database())) for node in replicas
            ]
            before: list[dict[str, int]] = [{} for _ in readers]
            for _ in range(150):
                for number, reader in enumerate(readers):
                    answer = reader.ask("versions")
                    registers = dict(answer["reg"])
                    for key, highest, count in answer["hist"]:
                        assert registers[key] == highest == count, answer
                    for key, version in before[number].items():
                        assert registers.get(key, 0) >= version, (key, before[number], answer)
                    before[number] = registers
            assert all(sum(one.values()) > 0 for one in before)
        judge(cluster, operations_of(clients))


# -- what applications do --------------------------------------------------------------------------


def test_whatever_sqlite_can_do_to_a_file_replicates(tmp_path: Path) -> None:
    """Schema, VACUUM, another page size, auto_vacuum, 20 MiB at once, roll-backs, all gone."""
    with started(tmp_path) as cluster:
        writer = cluster.wait_writer()
        with Application(writer.database()) as application:
            application.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
            application.sql("CREATE INDEX by_v ON t (v)", "ALTER TABLE t ADD COLUMN w")
            application.sql("INSERT INTO t (v, w) VALUES ('a', 1), ('b', 2)")
            application.sql("BEGIN", "DELETE FROM t", "ROLLBACK")
            application.sql("CREATE VIRTUAL TABLE words USING fts5(x)")
            application.sql("INSERT INTO words VALUES ('replicated words')")
            # One transaction of many frames, then one that frees nearly all of it.
            application.sql("BEGIN")
            application.run(
                "for i in range(20): c.execute('INSERT INTO t (v) VALUES (randomblob(1048576))')"
            )
            application.sql("COMMIT")
            writer.wait_final(timeout_s=90)
            application.sql("DELETE FROM t WHERE length(v) > 1000", "VACUUM")
            writer.wait_final(timeout_s=90)
            application.sql("PRAGMA auto_vacuum=INCREMENTAL", "VACUUM")
            application.sql("DROP INDEX by_v", "PRAGMA user_version=7", "REINDEX", "ANALYZE")
            application.sql("PRAGMA wal_checkpoint(TRUNCATE)", "INSERT INTO t (v) VALUES ('last')")
            writer.wait_final()
            expected = application.sql("SELECT count(*), max(w), max(v) FROM t")
        cluster.wait_settled()
        for node in cluster:
            with Application(node.database()) as reader:
                assert reader.sql("SELECT count(*), max(w), max(v) FROM t") == expected, node.name
                assert reader.sql("PRAGMA user_version") == [[7]]
                assert reader.sql("SELECT x FROM words WHERE words MATCH 'words'")
        judge(cluster, has_registers=False)


def test_thousands_of_small_transactions(tmp_path: Path) -> None:
    """As fast as SQLite takes them; a wait then covers all of them."""
    with started(tmp_path) as cluster:
        writer = cluster.wait_writer()
        with Application(writer.database(), timeout_s=30) as application:
            application.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
            application.run(
                "c.execute('PRAGMA synchronous=NORMAL')\n"
                "for i in range(20000): c.execute('INSERT INTO t (v) VALUES (?)', (i,))"
            )
            writer.wait_final(timeout_s=90)
        cluster.wait_settled()
        for node in cluster:
            with Application(node.database()) as reader:
                assert reader.sql("SELECT count(*), max(v) FROM t") == [[20000, 19999]], node.name
        judge(cluster, has_registers=False)


def test_the_writer_is_held_back_while_nothing_becomes_final(tmp_path: Path) -> None:
    """BASE_MAX_UNFINALIZED_COMMITS, the quorum stopped for less than a lease, then back."""
    with started(tmp_path, BASE_MAX_UNFINALIZED_COMMITS="50") as cluster:
        writer = cluster.wait_writer()
        peers = cluster.others(writer)
        with Application(writer.database(), timeout_s=0.2) as application:
            application.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
            writer.wait_final()
            for peer in peers:
                peer.pause()
            committed = application.run(
                "result = 0\n"
                "try:\n"
                "    for i in range(5000):\n"
                "        c.execute('INSERT INTO t (v) VALUES (1)')\n"
                "        result += 1\n"
                "        time.sleep(0.002)\n"
                "except sqlite3.OperationalError as error: pass"
            )
            assert committed < 1_500, "nobody held the application back"
            status = writer.find_status()
            assert status is not None
            assert status.fence is FenceState.CLOSED
            for peer in peers:
                peer.resume()
            again = cluster.wait_writer()
        with Application(again.database(), timeout_s=20) as application:
            application.sql("INSERT INTO t (v) VALUES (2)")
        again.wait_final()
        judge(cluster, has_registers=False)


# -- all at once -----------------------------------------------------------------------------------


def test_all_nodes_end_and_come_back_at_once(tmp_path: Path) -> None:
    """First in order, then by SIGKILL: nothing that was final is lost, and it goes on by itself."""
    with started(tmp_path) as cluster:
        with writing(cluster) as clients:
            assert set(cluster.stop().values()) == {0}
            cluster.start()
            cluster.wait_writer()
            wait_for_more(cluster, clients)
            for node in cluster:
                node.kill()
            cluster.start()
            cluster.wait_writer()
            wait_for_more(cluster, clients)
        judge(cluster, operations_of(clients))


def test_wait_gives_up_where_there_is_no_quorum(tmp_path: Path) -> None:
    """One node of three: what it commits is never called final."""
    with started(tmp_path) as cluster:
        writer = cluster.wait_writer()
        with Application(writer.database(), timeout_s=5) as application:
            application.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
            writer.wait_final()
            for peer in cluster.others(writer):
                peer.pause()
            with contextlib.suppress(ApplicationError):  # the lease may be over already
                application.sql("INSERT INTO t (v) VALUES (1)")
                with pytest.raises(BasenetError, match="not up to"):
                    writer.wait_final(timeout_s=3)
            for peer in cluster.others(writer):
                peer.resume()
        judge(cluster, has_registers=False)


def test_everything_at_random_for_a_while(tmp_path: Path) -> None:
    """45 s of the soak, from a fixed seed, archive and its judgement included."""
    told = play(tmp_path, Outline(seed=20_261_121, seconds=45), lambda _: None)
    account = [*told.faults, *told.complaints, str(told.verdict), str(told.archive)]
    assert told.is_good, "\n".join(account)
    assert told.verdict is not None
    assert told.verdict.acknowledged > 100
    assert told.reads > 100
    assert told.archive is not None
    assert told.archive.restored > 1
    # And the judge of the archive sees.
    archive = ClusterArchive(tmp_path / "store")
    max(archive.directory.glob("*/*/*/log/*/*.lbn"), key=lambda path: path.name).unlink()
    last = told.archive.last_seq
    again = judge_archive(tmp_path, archive, [], told.verdict, archived_seq=last, seed=1)
    # A snapshot may have been taken behind them.
    signs = ("the newest objects were deleted", "are missing: no log object holds them")
    assert any(sign in violation for violation in again.violations for sign in signs)


def test_a_wait_for_applied_does_not_count_frames_that_lost(tmp_path: Path) -> None:
    """A deposed writer's file is ahead by frames of its own: another's commit is not in it."""
    with started(tmp_path, has_links=True) as cluster:
        old = cluster.wait_writer()
        with Application(old.database(), timeout_s=0.05) as application:
            application.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
            old.wait_final()
            cluster.wait_taken_in()
            cluster.isolate(old)
            with contextlib.suppress(ApplicationError):  # until the lease is over
                application.run(
                    "for i in range(100000):\n"
                    "    c.execute('INSERT INTO t (v) VALUES (1)')\n"
                    "    time.sleep(0.001)"
                )
        status = old.find_status()
        assert status is not None
        assert status.captured_seq > status.final_seq + 5, "it wrote nothing of its own"
        new = cluster.wait_writer(but=old)
        with Application(new.database()) as application:
            application.sql("INSERT INTO t (v) VALUES (2)")
        seq = new.wait_final().seq
        assert seq <= status.captured_seq, "the old writer was not ahead"
        with pytest.raises(UnavailableError):
            old.client.wait("app", seq, Level.APPLIED, 0.5)
        cluster.heal()
        old.client.wait("app", seq, Level.APPLIED, 30)
        with Application(old.database()) as reader:
            assert reader.sql("SELECT count(*) FROM t WHERE v = 2") == [[1]]
        judge(cluster, has_registers=False)
