"""Captured commits become sealed frames and one journal batch.

Synchronous and CPU-bound (hashing, compression, signing); the pump runs it in a thread. It owns
the shard's state tree and steps the shard's replica, and nobody else does while it runs.

A run of PARTIAL pieces changes the tree once, with its last piece: only then is the state whole,
and only then do leaf hashes and cursor go into the journal.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from basenet.engine.effects import Persist
from basenet.engine.events import FrameCaptured
from basenet.engine.replica import Replica
from basenet.journal.records import Batch, FrameRow
from basenet.sqlite.captured import Captured
from basenet.units import SALT_BYTES, ZERO_HASH, LocalNumber, StateRoot, TimestampNs
from basenet.wire.frame import Flag, encode_frame
from basenet.wire.merkle import StateTree, group_count, leaf_hash
from basenet.wire.payload import CommitPayload, encode_commit


@dataclass(slots=True, kw_only=True)
class _Run:
    """The pages of a PARTIAL run so far."""

    pgnos: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)


class Framer:
    """Turns what capture found into frames of one shard's chain."""

    def __init__(
        self,
        replica: Replica,
        tree: StateTree,
        *,
        make_salt: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Take the shard's replica and the tree of the state at its tip."""
        self.replica = replica
        self.tree = tree
        self._make_salt = make_salt
        self._run = _Run()

    def frame(self, captured: Sequence[Captured]) -> Batch:
        """Return the batch that makes ``captured`` durable.

        Raises `ChainBroken` when the captured pages cannot be the whole change; replica and tree
        must then be loaded anew from the journal.
        """
        rows: list[FrameRow] = []
        changed: set[int] = set()
        cursor: bytes | None = None
        for item in captured:
            payload = self._encode(item)
            root = self._advance(item, changed)
            rows.append(self._seal(item, payload, root))
            if item.is_run_last:
                cursor = item.cursor.encode()
        tree = self.tree
        count = group_count(tree.db_pages)
        return Batch(
            shard=self.replica.state.shard,
            frames=tuple(rows),
            page_size=tree.page_size,
            db_pages=tree.db_pages,
            cursor=cursor,
            groups={group: tree.group_leaves(group) for group in changed if group < count},
        )

    def _encode(self, item: Captured) -> bytes:
        return encode_commit(
            CommitPayload(
                page_size=item.page_size,
                db_pages=item.db_pages,
                commits=item.commits,
                pgnos=item.pgnos,
                pages=item.pages,
            )
        )

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

    def _seal(self, item: Captured, payload: bytes, root: StateRoot) -> FrameRow:
        local_last = self.replica.state.local_last
        effects = self.replica.step(
            FrameCaptured(
                payload=payload,
                flags=Flag(item.flags),
                state_root=root,
                timestamp_ns=TimestampNs(item.captured_ns),
                salt=self._make_salt(SALT_BYTES),
                local_first=LocalNumber(local_last + 1),
                local_last=LocalNumber(local_last + item.commits),
            )
        )
        (persist,) = effects
        assert isinstance(persist, Persist), "a captured frame is persisted and nothing else"
        return FrameRow(
            head=persist.frame.head,
            record=encode_frame(persist.frame),
            local_first=persist.local_first,
            local_last=persist.local_last,
        )
