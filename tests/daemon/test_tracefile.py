"""The file in which engines tell what they decide."""

import json
from pathlib import Path
from threading import Event as Gate

import pytest

from basenet.daemon import tracefile
from basenet.daemon.tracefile import TraceFile
from basenet.errors import UsageError
from basenet.testing.traces import read_trace, split_traces
from basenet.units import Lineage, ShardId

LINEAGES = (Lineage(b"a" * 16), Lineage(b"b" * 16))


def test_every_event_is_one_line_with_its_shard_and_lineage(tmp_path: Path) -> None:
    """Several shards write to one file, which a second run appends to."""
    path = tmp_path / "trace"
    for view in (0, 1):
        traces = TraceFile(path)
        for lineage in LINEAGES:
            traces.tracer(ShardId("app"), lineage)({"ev": "Enter", "view": view})
        traces.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["view"] for line in lines] == [0, 0, 1, 1]
    assert {line["shard"] for line in lines} == {"app"}
    split = split_traces(read_trace(path))
    assert sorted(split) == [lineage.hex() for lineage in LINEAGES]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_queue_drops_events_and_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard never waits for the file; a trace with a hole is not taken for a whole one."""
    gate, real = Gate(), tracefile._line

    def slow(event: dict[str, object]) -> str:
        gate.wait()
        return real(event)

    monkeypatch.setattr(tracefile, "_line", slow)
    traces = TraceFile(tmp_path / "trace", events_max=3)
    tell = traces.tracer(ShardId("app"), LINEAGES[0])
    for view in range(20):
        tell({"ev": "Enter", "view": view})
    gate.set()
    traces.close()
    traces = TraceFile(tmp_path / "trace")
    traces.close()
    shown = [event.get("view") for event in read_trace(tmp_path / "trace")]
    assert shown == sorted(shown, key=lambda view: -1 if view is None else view)
    assert 3 <= len(shown) < 20


def test_a_hole_is_told_with_the_next_event(tmp_path: Path) -> None:
    """What was dropped stands as a count where it is missing, and `split_traces` refuses it."""
    traces = TraceFile(tmp_path / "trace")
    traces._dropped = 7
    traces.tracer(ShardId("app"), LINEAGES[0])({"ev": "Enter", "view": 1})
    traces.close()
    events = list(read_trace(tmp_path / "trace"))
    assert events[0] == {"ev": "Dropped", "count": 7}
    with pytest.raises(ValueError, match="7 events are missing"):
        split_traces(events)


def test_a_disk_that_is_full_makes_a_hole_and_ends_nothing() -> None:
    """The writer goes on, and says what is missing once it can."""
    traces = TraceFile(Path("/dev/full"))
    traces.tracer(ShardId("app"), LINEAGES[0])({"ev": "Enter", "view": 1})
    traces.close()
    assert traces._dropped == 1


def test_a_path_that_cannot_be_opened_is_the_operators_mistake(tmp_path: Path) -> None:
    """It says which variable, and what to do."""
    with pytest.raises(UsageError, match="BASE_TRACE_FILE"):
        TraceFile(tmp_path / "no" / "trace")
