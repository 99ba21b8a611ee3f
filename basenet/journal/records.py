"""The values that go into the journal and come out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from basenet.units import Lineage, LocalNumber, Seq, ShardId, StateRoot, TimestampNs
from basenet.wire.frame import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRow:
    """One encoded frame on its way into the journal, with the facts that are queried."""

    head: Head
    record: bytes
    local_first: LocalNumber
    local_last: LocalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one shard makes durable in one transaction.

    ``frames``: ascending, without a gap to what is stored. ``cursor``: where capture stands after
    the last frame (None inside a PARTIAL run: the old cursor stays, so that an unfinished run is
    captured again after a crash). ``groups``: the leaf hashes of each changed group, end to end
    (empty inside a run). ``detached``: what is known of a file that we let go of.
    """

    shard: ShardId
    frames: tuple[FrameRow, ...]
    page_size: int = 0
    db_pages: int = 0
    cursor: bytes | None = None
    detached: bytes | None = None
    groups: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """What the journal knows of a shard at start.

    ``config``: the payload of the last CONFIG. ``tip``: the head of the last whole frame.
    ``broken_seq``: frames up to it were dropped before they were archived, so the archive has a gap
    until it has a snapshot at or above it; None: no gap.
    """

    shard: ShardId
    path: str
    lineage: Lineage
    config: bytes
    page_size: int
    db_pages: int
    cursor: bytes | None
    detached: bytes | None
    tip: Head
    local_last: LocalNumber
    archived_seq: Seq
    broken_seq: Seq | None
    snapshot_seq: Seq
    snapshot_ns: TimestampNs


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRoot:
    """A state that this shard's history went through, to recognise a file that fell behind."""

    seq: Seq
    state_root: StateRoot
