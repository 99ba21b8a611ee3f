"""How long things may take and how much may be held: every bound of the engine, with its name.

Times are nanoseconds. What they must satisfy together stands in `Timing`; the numbers come from a
simulation of four hours (docs/protocol.md): with these, no lease was lost in it that should have
been kept, and a dead leader was replaced within 1.1 s (median) to 1.4 s (p99).
"""

from dataclasses import dataclass
from typing import Final

from basenet.engine.events import Instant
from basenet.errors import UsageError

MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000 * MILLISECOND

PULSE_GAP: Final = 10 * MILLISECOND
"""Between two heartbeats to one peer, also where news cannot wait for the next regular one."""

WINDOW_FRAMES: Final = 64
"""Un-final frames above which nothing new is sealed; a PARTIAL run that has begun may pass it."""

PROPOSALS_MAX: Final = 2 * WINDOW_FRAMES
"""Proposals that a follower keeps while frames of them are missing."""

HEADS_MAX: Final = 65_536
"""Un-final frames that are kept in all; a run of one transaction of 256 GiB has as many."""

VIEW_BYTES_MAX: Final = 1 << 30
"""Payload bytes of un-final frames that are kept of one view (BASE_JOURNAL_MAX_BYTES / 4)."""

SEND_HEADS_MAX: Final = 512
"""Frames that one request brings; whoever needs more asks again."""

REFUSALS_MAX: Final = 64
"""Refusals that are kept of one peer in one epoch (Q24)."""

EVIDENCE_MAX: Final = 64
"""Proofs against one peer that are reported in one epoch (Q24)."""

LEARNERS_MAX: Final = 64
"""Nodes that are no voters and are told what became final."""

READS_MAX: Final = 1_024
"""Reads that wait for an answer at one time."""

BACK_OFF_MAX: Final = 4
"""How often the time is doubled that a view gets to start, after views that did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of one node, in nanoseconds; every node of a cluster should have the same.

    ``lease``: how long a grant keeps its giver from entering another view. ``drift_per_mille`` and
    ``drift_fixed``: how much faster one node's clock may run than another's, which a leader takes
    off its lease. ``election_min`` .. ``election_max``: how long a follower waits in silence.
    ``retry``: between two tries of anything. ``progress``: how long pending frames may stay
    pending. ``new_view_patience``: how long a new leader with a quorum waits for the others (Q15).
    ``need_patience``: how long an incomplete proposal waits before it asks.
    """

    heartbeat: int = 100 * MILLISECOND
    lease: int = 1_000 * MILLISECOND
    election_min: int = 1_250 * MILLISECOND
    election_max: int = 1_500 * MILLISECOND
    retry: int = 250 * MILLISECOND
    progress: int = 5 * SECOND
    drift_per_mille: int = 10
    drift_fixed: int = 5 * MILLISECOND
    new_view_patience: int = 100 * MILLISECOND
    need_patience: int = 50 * MILLISECOND
    run_progress: int = 300 * SECOND
    check_quorum: int = 2_500 * MILLISECOND
    suspicion: int = 300 * MILLISECOND
    learner_poll: int = 10 * SECOND
    patience: int = 3 * SECOND

    def __post_init__(self) -> None:
        """Raise `UsageError` unless the times fit together."""
        if not 0 < self.heartbeat < self.lease - self.drift:
            raise UsageError(
                f"BASE_LEASE_MS is {self.lease / MILLISECOND:g}, too short for a heartbeat every "
                f"{self.heartbeat / MILLISECOND:g} ms and a drift of {self.drift / MILLISECOND:g} "
                "ms; make it longer"
            )
        if not self.lease < self.election_min <= self.election_max:
            raise UsageError(
                f"BASE_LEASE_MS is {self.lease / MILLISECOND:g}, which must be below the election "
                f"timeout of {self.election_min / MILLISECOND:g} ms; make it shorter"
            )

    @property
    def drift(self) -> int:
        """What a leader takes off a lease because clocks do not run at one rate."""
        return self.lease * self.drift_per_mille // 1_000 + self.drift_fixed

    def lease_from(self, sent_at: Instant) -> Instant:
        """Return when the lease ends that a heartbeat sent at ``sent_at`` gives its sender."""
        return Instant(sent_at + self.lease - self.drift)

    def promise_from(self, received_at: Instant) -> Instant:
        """Return until when whoever grants at ``received_at`` enters no other view."""
        return Instant(received_at + self.lease)
