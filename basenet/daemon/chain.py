"""A shard's chain in memory: loaded from the journal, or born.

Birth (formats.md; cluster-rules Q4): the first frame of a lineage is its genesis, a CONFIG whose
state root is that of the adopted file. A journal that cannot continue the archive's history gives
birth to a *child* instead: the genesis names its parent's newest archived frame and has that
frame's root, and what the file holds beyond follows at once as a RECOVERED frame, in the same
journal transaction. So no history is ever written twice, and none is mixed with another.
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

from basenet.daemon.framer import Framer, instant
from basenet.daemon.tracefile import TraceFile
from basenet.engine.alone import Alone
from basenet.engine.ballot import GENESIS_VIEW, begin_epoch, continue_alone
from basenet.engine.genesis import write_genesis
from basenet.engine.limits import Timing
from basenet.engine.replica import Replica
from basenet.errors import CorruptionError
from basenet.journal.journal import Journal
from basenet.journal.records import Batch, FrameRow, ShardRecord
from basenet.sqlite.captured import Captured
from basenet.sqlite.recover import Scan
from basenet.units import (
    GROUP_PAGES,
    HASH_BYTES,
    LINEAGE_BYTES,
    SALT_BYTES,
    JournalId,
    Lineage,
    LocalNumber,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
)
from basenet.wire.codec import u8
from basenet.wire.frame import Head
from basenet.wire.merkle import StateTree, group_count
from basenet.wire.message import Mark
from basenet.wire.payload import ConfigPayload, Voter, decode_config, encode_config
from basenet.wire.signature import Signer, is_signed
from basenet.wire.tuples import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """This node, as the voter that a genesis names."""

    node_id: str
    signer: Signer
    journal_id: JournalId

    def voter(self) -> Voter:
        """Return the voter."""
        return Voter(node_id=self.node_id, key=self.signer.public, journal_id=self.journal_id)

    def members_hash(self) -> bytes:
        """Return SHA256(M) for a membership of this node alone (Q1)."""
        name = self.node_id.encode("ascii")
        return sha256(u8(len(name)) + name + self.signer.public).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The archived frame that a child lineage continues from.

    ``group_hashes``: of the parent's state, None where they are not known; ``page_size`` of it.
    ``is_archived``: a restore can walk up to it; otherwise the child needs a snapshot of its own.
    ``has_regressed``: our own journal stood at an older frame, and so did the file, perhaps.
    """

    lineage: Lineage
    seq: Seq
    hash: bytes
    state_root: StateRoot
    page_size: int
    timestamp_ns: int
    group_hashes: tuple[bytes | None, ...]
    is_forced: bool
    is_archived: bool
    has_regressed: bool = False


def load(
    journal: Journal, shard: ShardId, signer: Signer, traces: TraceFile | None = None
) -> tuple[ShardRecord, Framer] | None:
    """Return what the journal holds of ``shard``, ready to go on; None before its genesis.

    Raises `CorruptionError` when the leaf hashes do not give the state root of the tip.
    """
    record = journal.load(shard)
    if record is None:
        return None
    config = decode_config(record.config)
    tree = StateTree(record.page_size, journal.leaves(shard))
    if tree.root() != record.tip.state_root:
        raise CorruptionError(
            f"the journal's page hashes of shard {shard} do not give the state root of frame "
            f"{record.tip.seq}: move journal.db and what begins with its name out of the data "
            "directory; basenet then continues as a child lineage of the archive."
        )
    # A copy of a journal has another id than its CONFIG says; what it captures until it becomes a
    # child goes on where the journal stood.
    named = {voter.key: voter.journal_id for voter in config.voters}
    author = (signer, named.get(signer.public, journal.journal_id))
    replica = continue_chain(shard, config, record.tip, record.local_last, author, traces)
    return record, Framer(replica, tree, shard=shard)


def continue_chain(  # noqa: PLR0917  (what one replica is made of)
    shard: ShardId,
    config: ConfigPayload,
    tip: Head,
    local_last: LocalNumber,
    author: tuple[Signer, JournalId],
    traces: TraceFile | None = None,
    *,
    is_newborn: bool = False,
) -> Replica:
    """Return the replica of this node, the only voter, ready to seal frames onto ``tip``.

    ``traces``: where it tells what it decides. ``is_newborn``: ``tip`` is the genesis, and nothing
    has been told of it yet.
    """
    signer, journal_id = author
    now = instant()
    ballot = continue_alone(config, tip)
    if is_newborn:
        ballot = begin_epoch(config, tip.epoch, Mark(GENESIS_VIEW, tip.seq, tip.hash))
        if traces is not None:
            traces.begin(shard, config, tip)
    replica = Replica(
        scope=Scope(config.lineage, shard),
        me=(signer.public, journal_id),
        signer=signer,
        verify=is_signed,
        ballot=ballot,
        heads=(tip,),
        database=(tip.seq, tip.hash),
        local_last=local_last,
        liveness=Alone(),
        timing=Timing(),
        now=now,
        draw=lambda low, high: low + secrets.randbelow(high - low + 1),
        trace=None if traces is None else traces.tracer(shard, config.lineage),
    )
    # With one voter the ballot follows from the frames, so what boot would persist is there.
    replica.boot(now)
    return replica


def is_voter(config: bytes, signer: Signer) -> bool:
    """Return whether this node's key may continue a lineage with this CONFIG payload."""
    return signer.public in {voter.key for voter in decode_config(config).voters}


def is_copied(config: bytes, author: Author) -> bool:
    """Return whether this node's key writes the lineage of ``config``, from another journal."""
    voters = {voter.key: voter.journal_id for voter in decode_config(config).voters}
    key = author.signer.public
    return key in voters and voters[key] != author.journal_id


def groups_to_send(leaves: bytes, parent: Parent, page_size: int) -> set[int]:
    """Return the groups of the file whose pages the child's first frame must carry."""
    tree = StateTree(page_size, leaves)
    count = len(tree.groups) // HASH_BYTES
    if page_size != parent.page_size:
        return set(range(count))
    known = parent.group_hashes
    hashes = bytes(tree.groups)
    return {
        group
        for group in range(count)
        if group >= len(known)
        or known[group] != hashes[group * HASH_BYTES : (group + 1) * HASH_BYTES]
    }


def leaves_without(leaves: bytes, groups: Iterable[int]) -> bytes:
    """Return ``leaves`` with those of ``groups`` zeroed, so that a diff finds all their pages."""
    out = bytearray(leaves)
    span = GROUP_PAGES * HASH_BYTES
    for group in groups:
        end = min((group + 1) * span, len(out))
        out[group * span : end] = bytes(end - group * span)
    return bytes(out)


class AllGroups(Mapping[int, bytes]):
    """The leaf hashes of every group of a tree, made as they are asked for: there are many."""

    def __init__(self, tree: StateTree) -> None:
        self._tree = tree

    def __len__(self) -> int:
        return group_count(self._tree.db_pages)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, group: int) -> bytes:
        return self._tree.group_leaves(group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """A lineage about to be born over a scanned file; call it with the journal to store it.

    ``beyond``: what the file holds beyond ``parent``, as `Captured` with the flag RECOVERED.
    ``local_last``: the last commit that this node captured of the shard, in whatever lineage.
    """

    shard: ShardId
    path: str
    author: Author
    scan: Scan
    local_last: LocalNumber
    parent: Parent | None = None
    beyond: tuple[Captured, ...] = ()
    traces: TraceFile | None = None

    def __call__(self, journal: Journal) -> None:
        """Store genesis, leaf hashes and what lies beyond the parent, durable on return."""
        parent, scan = self.parent, self.scan
        tree = StateTree(scan.page_size, scan.leaves)
        config = self._config()
        first = write_genesis(
            config,
            shard=self.shard,
            state_root=parent.state_root if parent else tree.root(),
            timestamp_ns=self._timestamp_ns(),
            salt=secrets.token_bytes(SALT_BYTES),
            signer=self.author.signer,
        )
        genesis = FrameRow(
            head=first.head,
            record=first.record,
            local_first=LocalNumber(self.local_last + 1),
            local_last=self.local_last,
        )
        author = (self.author.signer, self.author.journal_id)
        replica = continue_chain(
            self.shard, config, first.head, self.local_last, author, self.traces, is_newborn=True
        )
        framer = Framer(replica, tree, shard=self.shard)
        more = framer.frame(self.beyond).frames if self.beyond else ()
        cursor = self.beyond[-1].cursor if self.beyond else scan.cursor
        tree = framer.tree
        journal.begin_lineage(
            shard=self.shard,
            path=self.path,
            lineage=config.lineage,
            config=encode_config(config),
            batch=Batch(
                shard=self.shard,
                frames=(genesis, *more),
                page_size=tree.page_size,
                db_pages=tree.db_pages,
                cursor=cursor.encode(),
                groups=AllGroups(tree),
            ),
        )
        if parent is not None and parent.is_archived:
            # A restore walks up to the parent, so the next snapshot is due when it would be there.
            journal.set_snapshot(self.shard, parent.seq, time.time_ns())

    def _config(self) -> ConfigPayload:
        parent = self.parent
        return ConfigPayload(
            lineage=Lineage(secrets.token_bytes(LINEAGE_BYTES)),
            parent=(parent.lineage, parent.seq, parent.hash) if parent else None,
            voters=(self.author.voter(),),
            page_size=self.scan.page_size,
            members_hash=self.author.members_hash(),
            is_forced=bool(parent and parent.is_forced),
        )

    def _timestamp_ns(self) -> TimestampNs:
        earliest_ns = self.parent.timestamp_ns + 1 if self.parent else 0
        return TimestampNs(max(time.time_ns(), earliest_ns))
