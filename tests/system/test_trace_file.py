"""BASE_TRACE_FILE: what real daemons decide, held to the specification of the protocol."""

from pathlib import Path

import pytest

from basenet.testing.cluster import Cluster, ClusterNode
from basenet.testing.tracecheck import TraceError, check_together, check_trace
from basenet.testing.traces import collect, main, read_trace, split_traces, write_trace
from tests.sqlite.application import Application
from tests.system.harness import Scene

COUNT = 12


def run_traced(scene: Scene, trace: Path, name: str, *, count: int) -> None:
    """Serve, commit, and stop in order."""
    daemon = scene.serve(BASE_TRACE_FILE=str(trace))
    application = scene.start_wal_application()
    daemon.wait_capturing()
    for number in range(count):
        application.sql(f"INSERT INTO t VALUES ({number}, '{name}')")
        daemon.wait_final()
    daemon.wait_archived()
    daemon.process.terminate()
    assert daemon.wait_ended() == 0, daemon.read_log()


def test_the_trace_of_a_daemon_is_one_of_the_specification(scene: Scene) -> None:
    """From the genesis over commits and a restart to more commits, each step is an allowed one."""
    trace = scene.folder / "trace.ndjson"
    run_traced(scene, trace, "first run", count=COUNT)
    run_traced(scene, trace, "second run", count=COUNT)
    assert trace.stat().st_mode & 0o777 == 0o600
    (events,) = split_traces(read_trace(trace)).values()
    assert check_trace(events) == len(events)
    assert main([str(trace)]) == 0
    kinds = [event["ev"] for event in events]
    assert kinds.count("Genesis") == 1
    assert kinds.count("Restart") >= 3
    assert kinds.count("Final") >= 2 * COUNT
    assert {event["shard"] for event in events} == {"app"}

    forgotten = kinds.index("Frame")
    broken = events[:forgotten] + events[forgotten + 1 :]
    with pytest.raises(TraceError):
        check_trace(broken)
    write_trace(trace, broken)
    assert main([str(trace)]) == 1


def test_a_trace_file_that_cannot_be_written_is_refused_at_start(scene: Scene) -> None:
    """One sentence, before anything is attached."""
    daemon = scene.serve(BASE_TRACE_FILE=str(scene.folder / "no" / "trace.ndjson"))
    assert daemon.wait_ended() == 2
    assert "BASE_TRACE_FILE" in daemon.read_log()


def trace_of(node: ClusterNode) -> Path:
    return node.folder / "trace.ndjson"


def write(cluster: Cluster, name: str) -> None:
    """Commit at whoever may write."""
    writer = cluster.wait_writer()
    with Application(writer.database()) as application:
        application.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (id, v)")
        for number in range(COUNT):
            application.sql(f"INSERT INTO t VALUES ({number}, '{name}')")
            writer.wait_final()


def has_told(node: ClusterNode, seq: int) -> bool:
    """Whether the last that a node tells is that everything up to ``seq`` is final."""
    events = list(read_trace(trace_of(node)))
    return events[-1]["ev"] == "Final" and events[-1]["height"] == seq


@pytest.mark.system
@pytest.mark.timeout(300)
def test_three_traces_of_a_failover_are_one_run_of_the_specification(tmp_path: Path) -> None:
    """Birth, commits, the writer's death in a quiet moment, another's commits, its return.

    What the dead node had decided and not told yet would be missed by the others: so it is killed
    when it has told everything.
    """
    with Cluster(tmp_path, 3) as cluster:
        for node in cluster:
            node.environment["BASE_TRACE_FILE"] = str(trace_of(node))
        cluster.start()
        write(cluster, "before")
        seq, killed = cluster.wait_settled(), cluster.wait_writer()
        cluster.until(lambda: has_told(killed, seq), "the writer has told what is final")
        killed.kill()
        cluster.wait_writer(but=killed)
        write(cluster, "after")
        killed.start()
        cluster.wait_settled()
        assert set(cluster.stop().values()) == {0}, cluster.describe(with_logs=True)
        paths = [trace_of(node) for node in cluster]
        (traces,) = collect(paths).values()

    assert len(traces) == 3
    assert check_together(traces) == sum(map(len, traces)) - 2
    assert main([str(path) for path in paths]) == 0
    for path, events in zip(paths, traces, strict=True):
        assert path.stat().st_mode & 0o777 == 0o600
        names = {event["ev"] for event in events}
        assert names >= {"Genesis", "Restart", "Frame", "Vote", "Final"}
        assert {event["node"] for event in events[1:]} == {events[1]["node"]}
    assert {event["ev"] for events in traces for event in events} >= {"Enter", "NewView"}
    # Two elections at least, of which one is the failover.
    starts = {event["view"] for events in traces for event in events if event["ev"] == "Start"}
    assert len(starts) >= 2
    # Without the votes for a frame it cannot have become final.
    final = next(event for event in traces[0] if event["ev"] == "Final")
    forged = [
        [event for event in events if event["ev"] != "Vote" or event["hash"] != final["hash"]]
        for events in traces
    ]
    with pytest.raises(TraceError):
        check_together(forged)
