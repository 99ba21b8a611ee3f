"""What all shards of a node share."""

from dataclasses import dataclass, field
from typing import Final

import trio

from basenet.archive.store import Store, StoreUsage
from basenet.archive.turns import Turns
from basenet.config.model import Config
from basenet.control.histogram import Histogram
from basenet.daemon.chain import Author
from basenet.daemon.journalist import Journalist
from basenet.daemon.ledger import Ledger
from basenet.daemon.tracefile import TraceFile
from basenet.daemon.waker import Waker
from basenet.daemon.wallclock import WallClock
from basenet.units import PublicKeyBytes

# A shard has a thread of its own only while its application commits.
_CAPTURE_THREADS_MAX: Final = 40
# Hashing and compressing release the GIL only in part; more threads than cores only queue up.
_WORK_THREADS_MAX: Final = 2
# Snapshots and scrubs are background work: one at a time, whatever the number of shards.
_BACKGROUND_THREADS_MAX: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The configuration, the journal, the waker, the archive's store and the threads."""

    config: Config
    author: Author
    journalist: Journalist
    waker: Waker
    store: Store | None
    trusted: frozenset[PublicKeyBytes]
    # Where the engines tell what they decide (BASE_TRACE_FILE).
    traces: TraceFile | None = None
    # For how many seconds we held SQLite's write lock, by the reason.
    lock_held: dict[str, Histogram] = field(default_factory=dict)
    # What was asked of the store.
    store_usage: StoreUsage = field(default_factory=StoreUsage)
    # What the last proofs of the archive found.
    proofs: Ledger = field(default_factory=Ledger)
    # Whether this machine's clock was set since the process began.
    wall_clock: WallClock = field(default_factory=WallClock)
    # One shard asks the store whether it keeps conditions; the others find the answer.
    probe_lock: trio.Lock = field(default_factory=trio.Lock)
    # Who ships much of the log to the archive takes turns with the others.
    turns: Turns = field(default_factory=Turns)
    capture_limiter: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(_CAPTURE_THREADS_MAX)
    )
    work_limiter: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(_WORK_THREADS_MAX)
    )
    background_limiter: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(_BACKGROUND_THREADS_MAX)
    )
