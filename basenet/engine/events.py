"""What can happen to a shard: the only way by which facts enter the engine."""

from dataclasses import dataclass

from basenet.units import LocalNumber, Seq, StateRoot, TimestampNs
from basenet.wire.frame import Flag
from basenet.wire.payload import ConfigPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageBorn:
    """This node gives birth to a lineage: it becomes the author of the genesis.

    ``state_root`` is the root of the adopted file (or of the parent at its seq). ``salt``: 16
    random bytes.
    """

    config: ConfigPayload
    state_root: StateRoot
    timestamp_ns: TimestampNs
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameCaptured:
    """Commits of the application were read from its WAL (or from its file, with a flag).

    ``payload`` is an encoded COMMIT; ``state_root`` is the root after it, 32 zero bytes for a
    PARTIAL. ``local_first`` .. ``local_last`` are the numbers of the captured commits in it;
    an empty range (first = last + 1) says that it carries none that could be counted.
    """

    payload: bytes
    flags: Flag
    state_root: StateRoot
    timestamp_ns: TimestampNs
    salt: bytes
    local_first: LocalNumber
    local_last: LocalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Every frame up to ``seq`` is durable in this node's journal."""

    seq: Seq


Event = LineageBorn | FrameCaptured | Stored
