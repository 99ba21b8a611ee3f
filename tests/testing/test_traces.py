"""Recorded runs, written and read."""

from pathlib import Path

from basenet.testing.simulator.scenario import Scenario
from basenet.testing.tracecheck import check_trace
from basenet.testing.traces import read_trace, simulate, write_trace

SHORT = Scenario(nodes=2)


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    """NDJSON, one event a line; what is read back passes the same checks."""
    events = simulate(SHORT, 1)
    path = tmp_path / "trace.ndjson"
    write_trace(path, events)
    again = list(read_trace(path))
    assert again == events
    assert len(path.read_text().splitlines()) == len(events)
    assert check_trace(again) == len(events)


def test_a_seed_gives_the_same_trace_again() -> None:
    """A rejected trace can be looked at again by its seed."""
    assert simulate(SHORT, 3) == simulate(SHORT, 3)


def test_the_trace_of_a_broken_engine_ends_where_the_simulator_stopped_it() -> None:
    """A violation does not hide what led to it."""
    events = simulate(Scenario(nodes=3), 0, mutant="quorum-minus-one")
    assert events[0]["ev"] == "Genesis"
    assert any(event["ev"] == "Final" for event in events)
