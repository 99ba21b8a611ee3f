"""What the engines of this node decide, written to a file for whoever checks it (BASE_TRACE_FILE).

One line of JSON for each event of `engine.trace`, with its shard and lineage, in the order of each
shard's steps; a `Genesis` where a lineage begins. `basenet.testing.tracecheck` holds such a trace
to the specification of the protocol. A step is told when it is decided, so the last lines before a
kill may tell of one that never became durable.

Nothing here may slow a shard down: events are queued in memory and written by a thread of its own.
When the queue is full events are dropped, and a line says how many, since a trace with a hole
proves nothing. Without BASE_TRACE_FILE none of this exists, and the engine compares once a step.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread
from typing import Final

from basenet.errors import UsageError
from basenet.units import Lineage, ShardId
from basenet.wire.frame import Head
from basenet.wire.payload import ConfigPayload, FaultModel

_EVENTS_MAX: Final = 100_000
"""Events that wait to be written; some 30 MB."""
_BATCH_EVENTS: Final = 1_000
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC

Event = dict[str, object]
Trace = Callable[[Event], None]


class TraceFile:
    """A file that is appended to; the tracers of any number of shards and threads write to it."""

    def __init__(self, path: Path, *, events_max: int = _EVENTS_MAX) -> None:
        """Open or make the file, with mode 0600; raise `UsageError` if that cannot be."""
        try:
            self._descriptor = os.open(path, _FLAGS, 0o600)
        except OSError as error:
            raise UsageError(
                f"BASE_TRACE_FILE {path} cannot be written ({error.strerror}): name a file in a "
                "directory that exists."
            ) from error
        self._queue: Queue[Event | None] = Queue(events_max)
        self._dropped = 0
        self._thread = Thread(target=self._write, name="trace file", daemon=True)
        self._thread.start()

    def tracer(self, shard: ShardId, lineage: Lineage) -> Trace:
        """Return what `engine.replica.Replica` takes as ``trace``."""
        name = lineage.hex()

        def tell(event: Event) -> None:
            self._put({"shard": shard, "lineage": name, **event})

        return tell

    def begin(self, shard: ShardId, config: ConfigPayload, genesis: Head) -> None:
        """Tell that a lineage begins, by whom it is decided, and in which fault model."""
        self._put(
            {
                "shard": shard,
                "lineage": config.lineage.hex(),
                "ev": "Genesis",
                "hash": genesis.hash.hex(),
                "height": genesis.seq,
                "voters": [voter.key.hex() for voter in config.voters],
                "is_byzantine": config.fault_model == FaultModel.BYZANTINE,
                "liars": [],
            }
        )

    def close(self) -> None:
        """Write what waits, and end."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._descriptor)

    def _put(self, event: Event) -> None:
        try:
            if self._dropped:
                self._queue.put_nowait({"ev": "Dropped", "count": self._dropped})
                self._dropped = 0
            self._queue.put_nowait(event)
        except Full:
            self._dropped += 1

    def _write(self) -> None:
        while (event := self._queue.get()) is not None:
            lines = [_line(event)]
            is_ending = False
            while len(lines) < _BATCH_EVENTS:
                try:
                    more = self._queue.get_nowait()
                except Empty:
                    break
                if more is None:
                    is_ending = True
                    break
                lines.append(_line(more))
            try:
                self._append("".join(lines).encode("ascii"))
            except OSError:
                # A full disk makes a hole like a full queue does.
                self._dropped += len(lines)
            if is_ending:
                return

    def _append(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def _line(event: Event) -> str:
    return json.dumps(event, separators=(",", ":")) + "\n"
