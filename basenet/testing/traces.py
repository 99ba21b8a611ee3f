"""Recorded runs: made in the simulator, kept as NDJSON, held to the specification.

`simulate` gives the events of a seed of the simulator, `write_trace` and `read_trace` keep them as
NDJSON, one event a line. `basenet.testing.tracecheck` checks a trace of any length,
`basenet.testing.specs` gives one of some hundred events to TLC. As a program
(``python -m basenet.testing.traces FILE...``) this checks what daemons wrote with BASE_TRACE_FILE:
the file of each node of a cluster, or that of a node alone.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from basenet.testing.simulator.checkers import Violation
from basenet.testing.simulator.mutants import mutated
from basenet.testing.simulator.node import Node
from basenet.testing.simulator.scenario import Scenario
from basenet.testing.simulator.world import World
from basenet.testing.tracecheck import Event, TraceError, check_together
from basenet.wire.payload import FaultModel

if TYPE_CHECKING:
    from basenet.units import JournalId


class TracedWorld(World):
    """A world that keeps what its honest nodes tell."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        """Make the world of a seed."""
        self.events: list[Event] = []
        self._journals: dict[int, JournalId] = {}
        super().__init__(scenario, seed, trace=self.events.append)

    def tracer(self, node: Node) -> Callable[[dict[str, object]], None] | None:
        """Return where the engine of ``node`` tells its steps to."""
        return partial(self._tell, node) if node.is_honest else None

    def _tell(self, node: Node, event: dict[str, object]) -> None:
        """Keep an event; say so when the node begins with another journal."""
        journal = node.disk.journal_id
        if event["ev"] == "Restart" and self._journals.setdefault(node.place, journal) != journal:
            self._journals[node.place] = journal
            self.events.append({**event, "ev": "Renewed"})
        self.events.append(event)


def simulate(scenario: Scenario, seed: int, *, mutant: str | None = None) -> list[Event]:
    """Return the events of a run, its genesis first.

    A run that the simulator itself ends with a `Violation` (of a mutant, say) returns what happened
    until then.
    """
    with mutated(mutant):
        world = TracedWorld(scenario, seed)
        genesis = {
            "ev": "Genesis",
            "hash": world.genesis.head.hash.hex(),
            "height": world.genesis.head.seq,
            "voters": [voter.key.hex() for voter in world.config.voters],
            "is_byzantine": world.config.fault_model == FaultModel.BYZANTINE,
            "liars": sorted(key.hex() for key in world.liars),
        }
        # What the simulator holds against a run, the trace tells in its own words.
        with suppress(Violation):
            world.run()
    return [genesis, *world.events]


def write_trace(path: Path, events: Iterable[Event]) -> None:
    """Write a trace as NDJSON."""
    with path.open("w", encoding="ascii") as file:
        for event in events:
            file.write(json.dumps(event, separators=(",", ":")) + "\n")


def split_traces(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Return the traces of a daemon's file, by lineage; a ValueError says that events are lost."""
    traces: dict[str, list[Event]] = {}
    for event in events:
        if event["ev"] == "Dropped":
            raise ValueError(f"{event['count']} events are missing: they came too fast")
        traces.setdefault(event["lineage"], []).append(event)
    return traces


def read_trace(path: Path) -> Iterator[Event]:
    """Yield the events of a trace; a ValueError names what is no JSON."""
    with path.open(encoding="ascii") as file:
        for line in file:
            yield json.loads(line)


def collect(paths: Iterable[Path]) -> dict[str, list[list[Event]]]:
    """Return the traces of several nodes' files by lineage, one for each node that has any."""
    lineages: dict[str, list[list[Event]]] = {}
    for path in paths:
        for lineage, events in split_traces(read_trace(path)).items():
            lineages.setdefault(lineage, []).append(events)
    return lineages


def main(arguments: Sequence[str]) -> int:
    """Check the traces of the nodes' files, lineage by lineage; return 1 if one is rejected."""
    is_right = True
    for lineage, traces in collect(map(Path, arguments)).items():
        try:
            verdict = f"{check_together(traces)} events accepted"
        except TraceError as error:
            is_right, verdict = False, str(error)
        sys.stdout.write(f"{traces[0][0]['shard']}, lineage {lineage}: {verdict}\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
