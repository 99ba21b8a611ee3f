"""BASE_TRACE_FILE: a real daemon's decisions, held to the specification of the protocol."""

from pathlib import Path

import pytest

from basenet.testing.tracecheck import TraceError, check_trace
from basenet.testing.traces import main, read_trace, split_traces, write_trace
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
