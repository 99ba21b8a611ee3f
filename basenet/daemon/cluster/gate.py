"""When the application of this node may write: the fence, opened and held open.

Theory of operation
===================

The fence is open until an instant that is renewed several times within a lease, and only while all
of this is true; otherwise nothing is done, and the guardian closes it when its time is over::

    the replica leads, with a lease from a quorum                (`Replica.writable_until`)
    the file holds everything that is settled, nothing is mended
    capture has begun, so that no commit precedes it
    not too much is captured and not final                       (BASE_MAX_UNFINALIZED_*)

The last one bounds what a deposed writer loses. When it does not hold, the fence is closed at once,
and opened again as soon as the quorum has caught up: the application sees SQLITE_BUSY meanwhile.
"""

import time
from math import inf
from typing import Final, Protocol

import structlog
import trio

from basenet.config.model import ClusterConfig
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.guard import Guard
from basenet.daemon.cluster.writing import Unfinal
from basenet.engine.events import Instant
from basenet.units import ShardId

log = structlog.get_logger()

NEVER: Final = Instant(0)
_RENEW_S: Final = 0.2
_LOOK_S: Final = 0.05
_NS_PER_MS: Final = 1_000_000


class Gated(Protocol):
    """What the gate looks at; `term.Term` satisfies it."""

    shard: ShardId
    file: ReplicaFile

    @property
    def leads(self) -> bool:
        """Whether this node leads, so that a lease may come without a step."""
        ...

    def writable_until(self) -> Instant:
        """Return until when the application may write; `NEVER` when it may not."""
        ...

    def unfinal(self) -> Unfinal:
        """Return what this node would lose if it were deposed now."""
        ...

    async def begin_writing(self) -> None:
        """Begin to capture, unless that has begun."""
        ...

    async def stepped(self) -> None:
        """Return after the next step of the replica."""
        ...

    def close_fence(self) -> None:
        """Lock the application out; returns at once."""
        ...

    def moved(self) -> None:
        """Let whoever waits for a fact of this shard look again."""
        ...


class Gate:
    """Keeps the fence of one term open while that is right."""

    def __init__(self, term: Gated, config: ClusterConfig, guard: Guard) -> None:
        self._term = term
        self._guard = guard
        self._limits = (
            config.unfinalized_commits_max,
            config.unfinalized_bytes_max,
            config.unfinalized_ms_max,
        )
        self._pause_s = _RENEW_S if self._limits == (None, None, None) else _LOOK_S
        self.is_held_back = False
        """Whether the application waits for the quorum."""

    async def run(self) -> None:
        """Look for ever: a few times within a lease while this node leads, else after each step."""
        term = self._term
        while True:
            self._weigh()
            if term.writable_until() > NEVER and not self.is_held_back:
                await term.begin_writing()
                # It takes a moment to begin.
                until = term.writable_until()
                if until > NEVER and term.file.fence is not None:
                    term.file.fence.renew(until)
                    self._guard.flush()
                term.moved()
                await trio.sleep(self._pause_s)
                continue
            term.moved()
            # The lease of a leader comes with an acknowledgement, which is no step.
            with trio.move_on_after(_LOOK_S if term.leads else inf):
                await term.stepped()

    def _weigh(self) -> None:
        """Find out whether too much is not final; close the fence when that begins."""
        unfinal = self._term.unfinal()
        age_ms = 0.0
        if unfinal.oldest_ns is not None:
            age_ms = (time.time_ns() - unfinal.oldest_ns) / _NS_PER_MS
        values = (unfinal.commits, unfinal.bytes, age_ms)
        is_too_much = any(
            limit is not None and value > limit
            for value, limit in zip(values, self._limits, strict=True)
        )
        if is_too_much and not self.is_held_back:
            log.warning(
                "application_held_back",
                shard=self._term.shard,
                commits=unfinal.commits,
                ms=round(age_ms),
            )
            self._term.close_fence()
        elif self.is_held_back and not is_too_much:
            log.info("application_released", shard=self._term.shard)
        self.is_held_back = is_too_much
