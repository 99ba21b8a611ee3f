"""Events of one shard, with whatever does not matter filled in."""

from basenet.engine.effects import Persist
from basenet.engine.events import FrameCaptured, LineageBorn
from basenet.engine.replica import Replica
from basenet.engine.state import ShardState
from basenet.units import (
    FrameHash,
    JournalId,
    Lineage,
    LocalNumber,
    ShardId,
    StateRoot,
    TimestampNs,
)
from basenet.wire.frame import Flag, Frame
from basenet.wire.payload import ConfigPayload, Voter
from basenet.wire.signature import Signer

SHARD = ShardId("app")
BEGIN_NS = 1_700_000_000_000_000_000
ROOT = StateRoot(b"r" * 32)
NO_ROOT = StateRoot(bytes(32))
PARENT = (Lineage(b"p" * 16), 40, FrameHash(b"h" * 32))


def signer(number: int = 1) -> Signer:
    return Signer(bytes([number]) * 32)


def config(
    *voters: int, parent: tuple[Lineage, int, bytes] | None = None, lineage: bytes = b"l" * 16
) -> ConfigPayload:
    """A configuration whose voters have the keys ``voters``; node 1 alone without any."""
    return ConfigPayload(
        lineage=Lineage(lineage),
        parent=parent,
        voters=tuple(
            Voter(
                node_id=f"node-{number}",
                key=signer(number).public,
                journal_id=JournalId(bytes([number]) * 16),
            )
            for number in voters or (1,)
        ),
        page_size=4096,
        members_hash=bytes(32),
    )


def born(
    configuration: ConfigPayload | None = None, *, timestamp_ns: int = BEGIN_NS
) -> LineageBorn:
    return LineageBorn(
        config=configuration or config(),
        state_root=ROOT,
        timestamp_ns=TimestampNs(timestamp_ns),
        salt=b"s" * 16,
    )


def captured(
    first: int,
    last: int | None = None,
    *,
    flags: Flag = Flag.NONE,
    timestamp_ns: int = BEGIN_NS,
    state_root: StateRoot | None = None,
    payload: bytes = b"pages",
) -> FrameCaptured:
    """The commits ``first`` .. ``last``; one commit without ``last``, none below ``first``."""
    root = NO_ROOT if flags & Flag.PARTIAL else ROOT
    return FrameCaptured(
        payload=payload,
        flags=flags,
        state_root=root if state_root is None else state_root,
        timestamp_ns=TimestampNs(timestamp_ns),
        salt=b"s" * 16,
        local_first=LocalNumber(first),
        local_last=LocalNumber(first if last is None else last),
    )


def piece(first: int, flags: Flag = Flag.NONE) -> FrameCaptured:
    """A PARTIAL of the run whose first commit will be ``first``."""
    return captured(first, first - 1, flags=flags | Flag.PARTIAL)


def new_replica(*voters: int) -> Replica:
    """A replica of node 1 that has given birth, its genesis not stored yet."""
    replica = Replica(ShardState(shard=SHARD), signer())
    replica.step(born(config(*voters)))
    return replica


def sealed(replica: Replica, event: FrameCaptured | LineageBorn) -> Frame:
    """The one frame that ``event`` makes ``replica`` persist."""
    (effect,) = replica.step(event)
    assert isinstance(effect, Persist)
    return effect.frame
