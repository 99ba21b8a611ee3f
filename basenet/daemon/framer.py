"""Captured commits become sealed frames and one journal batch.

Synchronous and CPU-bound (hashing, compression, signing); the pump runs it in a thread. It owns
the shard's state tree and steps the shard's replica, and nobody else does while it runs.

A run of PARTIAL pieces changes the tree once, with its last piece: only then is the state whole,
and only then do leaf hashes and cursor go into the journal.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from basenet.engine.effects import Finalize, Persist
from basenet.engine.events import FrameCaptured, FramesCaptured, Instant
from basenet.engine.replica import Replica
from basenet.journal.records import Batch, FrameRow
from basenet.sqlite.captured import Captured
from basenet.sqlite.page1 import WAL_VERSION, WRITE_VERSION_AT
from basenet.units import KIB, SALT_BYTES, ZERO_HASH, LocalNumber, ShardId, StateRoot, TimestampNs
from basenet.wire.frame import Flag, encode_frame
from basenet.wire.merkle import StateTree, group_count, leaf_hash, normalised_first_page
from basenet.wire.payload import CommitPayload, encode_commit

# Commits that come one by one are compressed together on their way to the archive (`wire.packed`),
# where the images of one page share what they have in common. Until then each is as large as its
# pages, in a journal that may have to hold them for days: so not where they come by the hundred.
_SMALL_BYTES_MAX: Final = 32 * KIB
_FEW: Final = 4


def instant() -> Instant:
    """Return the time of the engine's clock, which also runs while the machine sleeps (P18)."""
    return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME))


@dataclass(slots=True, kw_only=True)
class _Run:
    """The pages of a PARTIAL run so far."""

    pgnos: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)


class Framer:
    """Turns what capture found into frames of one shard's chain.

    ``tip``, ``local_last`` and ``is_run_open`` say where the chain stands after the last batch; any
    thread may read them. ``final_count``: so many frames become final when that batch is durable,
    the oldest of those that are not final yet.
    """

    def __init__(
        self,
        replica: Replica,
        tree: StateTree,
        *,
        shard: ShardId,
        make_salt: Callable[[int], bytes] = secrets.token_bytes,
        now: Callable[[], Instant] = instant,
    ) -> None:
        """Take the shard's booted replica and the tree of the state at its tip."""
        self.shard = shard
        self.tree = tree
        self.tip = replica.tip
        self.local_last = replica.local_last
        self.is_run_open = replica.is_run_open
        self.final_count = 0
        self.replica = replica
        self._make_salt = make_salt
        self._now = now
        self._run = _Run()

    def frame(self, captured: Sequence[Captured]) -> Batch:
        """Return the batch that makes ``captured`` durable.

        Raises `ChainBroken` when the captured pages cannot be the whole change; replica and tree
        must then be loaded anew from the journal.
        """
        events: list[FrameCaptured] = []
        changed: set[int] = set()
        cursor: bytes | None = None
        last = self.local_last
        are_few = len(captured) <= _FEW
        for item in captured:
            is_small = item.raw_bytes <= _SMALL_BYTES_MAX
            payload = self._encode(item, is_packed_later=are_few and is_small)
            root = self._advance(item, changed)
            events.append(self._event(item, payload, root, last))
            last = events[-1].local_last
            if item.is_run_last:
                cursor = item.cursor.encode()
        tree = self.tree
        count = group_count(tree.db_pages)
        return Batch(
            shard=self.shard,
            frames=self._seal(events),
            page_size=tree.page_size,
            db_pages=tree.db_pages,
            cursor=cursor,
            groups={group: tree.group_leaves(group) for group in changed if group < count},
        )

    def _encode(self, item: Captured, *, is_packed_later: bool) -> bytes:
        return encode_commit(payload_of(item), is_packed_later=is_packed_later)

    def _advance(self, item: Captured, changed: set[int]) -> StateRoot:
        """Hash the pages and, at the end of a run, move the tree; return the state root."""
        run = self._run
        numbers = item.pgnos.tolist()
        size = item.page_size
        view = memoryview(item.pages)
        run.pgnos += numbers
        run.hashes += [
            leaf_hash(pgno, view[index * size : (index + 1) * size])
            for index, pgno in enumerate(numbers)
        ]
        if not item.is_run_last:
            return StateRoot(ZERO_HASH)
        if size != self.tree.page_size:
            self.tree = StateTree(size)
            changed.clear()
        self._run = _Run()
        changed.update(self.tree.update(run.pgnos, run.hashes, item.db_pages))
        return self.tree.root()

    def _event(
        self, item: Captured, payload: bytes, root: StateRoot, last: LocalNumber
    ) -> FrameCaptured:
        return FrameCaptured(
            payload=payload,
            flags=Flag(item.flags),
            state_root=root,
            timestamp_ns=TimestampNs(item.captured_ns),
            salt=self._make_salt(SALT_BYTES),
            local_first=LocalNumber(last + 1),
            local_last=LocalNumber(last + item.commits),
        )

    def _seal(self, events: Sequence[FrameCaptured]) -> tuple[FrameRow, ...]:
        """Step the replica, which lists what becomes final behind what must be durable first."""
        persist, *rest = self.replica.step(FramesCaptured(frames=tuple(events)), self._now())
        assert isinstance(persist, Persist), "captured frames are persisted before all else"
        self.final_count = 0
        for effect in rest:
            assert isinstance(effect, Finalize), "the only voter asks nothing of anybody"
            self.final_count += len(effect.heads)
        self.tip = persist.own[-1].frame.head
        self.local_last = persist.own[-1].local_last
        self.is_run_open = bool(self.tip.flags & Flag.PARTIAL)
        return tuple(
            FrameRow(
                head=own.frame.head,
                record=encode_frame(own.frame),
                local_first=own.local_first,
                local_last=own.local_last,
            )
            for own in persist.own
        )


def payload_of(item: Captured) -> CommitPayload:
    """Return what a COMMIT frame of ``item`` carries: page 1 never with the read-only mark."""
    pages = item.pages
    if len(item.pgnos) and item.pgnos[0] == 1 and pages[WRITE_VERSION_AT] > WAL_VERSION:
        pages = normalised_first_page(memoryview(pages))
    return CommitPayload(
        page_size=item.page_size,
        db_pages=item.db_pages,
        commits=item.commits,
        pgnos=item.pgnos,
        pages=pages,
    )
