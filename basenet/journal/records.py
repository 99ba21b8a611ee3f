"""The values that go into the journal and come out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from basenet.engine.ballot import Ballot
from basenet.units import (
    FrameHash,
    Lineage,
    LocalNumber,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
)
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Head
from basenet.wire.payload import ConfigPayload


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRow:
    """An encoded frame above the final one, on its way into the journal.

    ``local_first`` .. ``local_last``: the commits of this node in it; the last is one less than the
    first where there are none (frames of others, CONFIGs, pieces of a run before its last).
    """

    head: Head
    record: bytes
    local_first: LocalNumber
    local_last: LocalNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one shard's replica makes durable in one transaction; None: as it was.

    ``place``: the frame that the database file holds. ``cursor``: where capture stands behind the
    own frames. ``local_last``: the last commit that was captured here and is in a frame or in an
    orphan bundle; own ``frames`` move it by themselves.
    """

    shard: ShardId
    frames: tuple[BranchRow, ...] = ()
    ballot: Ballot | None = None
    cursor: bytes | None = None
    place: tuple[Seq, FrameHash] | None = None
    local_last: LocalNumber | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Frames that became final, and the state behind them.

    ``heads``: ascending from the end of the log, all in the branch, the last one no piece of a run.
    ``certificate``: for one of them, the last as a rule; None where one voter is enough.
    ``groups``: the leaf hashes of each changed group. ``place``, ``cursor``: None: as they were.
    ``intent``: what is to be injected into the file; None: nothing any more.
    """

    shard: ShardId
    heads: tuple[Head, ...]
    certificate: Certificate | None
    page_size: int
    db_pages: int
    groups: Mapping[int, bytes]
    place: tuple[Seq, FrameHash] | None = None
    intent: bytes | None = None
    cursor: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRecord:
    """What the journal knows of a shard with peers at start.

    ``config``: the payload in force behind ``tip``, the last whole final frame. ``heads``: those of
    all frames above it that are held, by seq; of its CONFIGs ``configs`` has the content, by frame
    hash. ``ballot`` may call more final than ``tip``: a crash came before that was settled.
    ``place``, ``local_last``: as in `Step`; ``intent``: as in `Settled`.
    """

    shard: ShardId
    path: str
    lineage: Lineage
    config: bytes
    ballot: Ballot
    tip: Head
    heads: tuple[Head, ...]
    configs: Mapping[FrameHash, ConfigPayload]
    page_size: int
    db_pages: int
    place: tuple[Seq, FrameHash]
    cursor: bytes | None
    intent: bytes | None
    local_last: LocalNumber
    archived_seq: Seq
    broken_seq: Seq | None
    snapshot_seq: Seq
    snapshot_ns: TimestampNs


CertifiedConfig = tuple[bytes, Certificate | None]
"""An encoded CONFIG frame, and what proves it final.

For a genesis that is the consent of all its voters; None where one voter is enough.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanRow:
    """One orphan bundle in the index.

    ``path``: of the bundle. ``kept_seq``: the frame that was rolled back to. ``first_local`` ..
    ``last_local``: the commits in it by their local numbers, ``commits`` of them. ``state``: what
    the operator decided about it. ``reason``: why it was made, one sentence.
    """

    id: str
    shard: ShardId
    lineage: Lineage
    path: str
    kept_seq: Seq
    first_local: LocalNumber
    last_local: LocalNumber
    commits: int
    created_ns: TimestampNs
    state: str
    reason: str
