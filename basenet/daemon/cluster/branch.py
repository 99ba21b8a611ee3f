"""The states of a shard's database along its chain, told by leaf hashes alone.

Theory of operation
===================

Two trees stand for two states::

    final ──▶ a ──▶ b ──▶ c          ``final``: what the journal's leaf hashes say, too
                          tip        ``tip``: the end of the branch that was judged or sealed last

A frame is judged by taking its pages to the tip's tree and comparing the root that comes out with
the root that the frame claims. Where the frame continues another branch, the tip goes back to the
final state and comes up again along that branch. What a frame changes (its page numbers and their
leaf hashes, 36 bytes a page) is remembered until the frame is final, so that coming up again, and
taking it to the final tree, hashes nothing twice.

It is CPU work: in a thread, except where that takes longer than the work (`is_at`, `is_next` and
`is_remembered` tell). `Branch.lock` is held meanwhile, by whoever works on the trees.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from basenet.errors import ChainBroken, CorruptionError, FrameCorrupt
from basenet.sqlite.captured import Captured
from basenet.units import KIB, ZERO_HASH, FrameHash, Seq, StateRoot
from basenet.wire.chain import CommitRules
from basenet.wire.frame import Frame, Head, Kind
from basenet.wire.merkle import StateTree, group_count, leaf_hash
from basenet.wire.payload import CommitPayload, decode_commit

GetFrame = Callable[[FrameHash], Frame]
"""Returns a frame that is held; raises `CorruptionError` if it is not."""
DecodePayload = Callable[[Frame], CommitPayload]
"""Returns what a COMMIT carries; raises `FrameCorrupt`."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What a transaction changes; or one piece of it, if it is not whole."""

    page_size: int
    db_pages: int
    pgnos: Sequence[int]
    hashes: Sequence[bytes]
    is_whole: bool = True


# A thread and back take longer than what is this small; how much is packed into so few bytes of
# payload is not told by a head, but it is rarely ten times as much.
_SMALL_BYTES: Final = 32 * KIB
_SMALL_HEADS: Final = 8
_SMALL_PAGES: Final = 64


def decode_payload(frame: Frame) -> CommitPayload:
    """Return what a COMMIT carries; raises `FrameCorrupt`."""
    return decode_commit(frame.payload)


class BranchLost(Exception):  # noqa: N818  (no error: it happens to who is slower than others)
    """The frames continue a branch that another one has won against."""


class Branch:
    """The final state of one shard, and the state at the end of one branch above it."""

    def __init__(
        self,
        tree: StateTree,
        place: tuple[Seq, FrameHash],
        decode: DecodePayload = decode_payload,
    ) -> None:
        """Begin at the final frame ``place`` with its state; ``tree`` is given away."""
        self._decode = decode
        self.lock = trio.Lock()
        self.final = tree
        self.final_place = place
        self._final_root = tree.root()
        self.tip = tree.copy()
        self.tip_hash: FrameHash | None = place[1]
        # So many captured pieces the tip is ahead of ``tip_hash``.
        self.taken = 0
        self._changes: dict[FrameHash, tuple[Seq, Change | None]] = {}
        # The pieces of a run that the tip has seen so far, and the rules between frames there.
        self._run = _Run()
        self._rules = CommitRules(tree.page_size, tree.db_pages)

    # What is little work.

    def is_at(self, place: FrameHash, taken: int) -> bool:
        """Return whether the tip is ``taken`` changes behind the frame ``place`` already."""
        return self.tip_hash == place and self.taken == taken

    def is_next(self, heads: Sequence[Head]) -> bool:
        """Return whether judging ``heads`` is little work: few pages, right behind the tip."""
        size = sum(head.payload_len for head in heads)
        is_little = size <= _SMALL_BYTES and len(heads) <= _SMALL_HEADS
        return is_little and self.is_at(heads[0].prev_hash, 0)

    def is_remembered(self, heads: Sequence[Head]) -> bool:
        """Return whether settling ``heads`` is little work: few pages, hashed already."""
        pages = 0
        for head in heads:
            _, change = self._changes.get(head.hash, (0, None))
            if change is None or not change.is_whole:
                return False
            pages += len(change.pgnos)
        return pages <= _SMALL_PAGES

    # Own commits: framed first, sealed later.

    def come_to(self, place: FrameHash, taken: Sequence[Change | None], get: GetFrame) -> None:
        """Let the tip be the state after the frame ``place`` and the changes ``taken`` behind it.

        Whoever judged another branch meanwhile has moved it.
        """
        if self.tip_hash == place and self.taken == len(taken):
            return
        self._go_to(place, get)
        for change in taken:
            if change is None:
                continue
            if change.is_whole:
                self.tip = _apply(self.tip, change)
                self._run = _Run()
            else:
                self._run.extend(change)
        self._rules = CommitRules(self.tip.page_size, self.tip.db_pages)
        self.taken = len(taken)

    def take(self, item: Captured) -> StateRoot:
        """Take a captured piece to the tip; return the root after it, zeros inside a run.

        Raises `ChainBroken` when it cannot be the whole change.
        """
        self.taken += 1
        root = self._advance_raw(
            item.page_size, item.db_pages, item.pgnos.tolist(), item.pages, item.is_run_last
        )
        if item.is_run_last:
            self._rules = CommitRules(self.tip.page_size, self.tip.db_pages)
        return root

    def last_change(self) -> Change | None:
        """Return what the piece changed that `take` took last."""
        return self._run.done

    @property
    def open_run(self) -> tuple[Sequence[int], Sequence[bytes]]:
        """The page numbers and leaf hashes of the run at the tip that has not ended; else empty."""
        return self._run.pages

    def sealed(self, heads: Sequence[Head], changes: Sequence[Change | None]) -> None:
        """Note that everything taken was sealed as ``heads``."""
        for head, change in zip(heads, changes, strict=True):
            self._changes[head.hash] = (head.seq, change)
        self.tip_hash = heads[-1].hash
        self.taken = 0

    # Frames of others.

    def judge(self, heads: Iterable[Head], get: GetFrame) -> FrameHash | None:
        """Return the first of ``heads`` whose state root is wrong; None when all are right.

        ``heads`` ascend and are linked; the state before the first of them is known to be right.
        What has become final meanwhile is not judged any more. Raises `BranchLost` when something
        else has, and `CorruptionError` when it is
        the final state here that is wrong: then nobody else is to blame (Q8).
        """
        for head in heads:
            if head.seq <= self.final_place[0]:
                continue
            try:
                is_right = self._enter(head, get) == head.state_root
            except (FrameCorrupt, ChainBroken):
                is_right = False
            if not is_right:
                # Nothing may be built on a state that nobody has.
                self.tip_hash = None
                self._require_final_root()
                return head.hash
        return None

    def state_at(self, head: Head, get: GetFrame) -> StateTree:
        """Return a tree of its own for the state after the whole frame ``head``, final or above."""
        tree = self.final.copy()
        for change in self._changes_up_to(head, get):
            tree = _apply(tree, change)
        return tree

    def settle(self, heads: Sequence[Head], get: GetFrame) -> dict[int, bytes]:
        """Let ``heads`` be final; return the leaf hashes of every group that they changed.

        The last of them is no piece of a run. Raises `CorruptionError` when the state is not the
        one that the last frame claims, so that nothing wrong is ever kept or applied.
        """
        groups: set[int] = set()
        pieces: list[Head] = []
        for head in heads:
            change = self._recall(head, get, pieces)
            if change is not None:
                if change.page_size != self.final.page_size:
                    self.final = StateTree(change.page_size)
                    groups.clear()
                groups.update(self.final.update(change.pgnos, change.hashes, change.db_pages))
        height = heads[-1].seq
        self.final_place = (height, heads[-1].hash)
        self._final_root = heads[-1].state_root
        self._require_final_root()
        for digest in [one for one, (seq, _) in self._changes.items() if seq <= height]:
            del self._changes[digest]
        count = group_count(self.final.db_pages)
        return {group: self.final.group_leaves(group) for group in groups if group < count}

    def reset(self) -> None:
        """Go back to the final state: what lay above it may be gone."""
        self._changes.clear()
        self._return_to_final()

    # Inside.

    def _require_final_root(self) -> None:
        if self.final.root() != self._final_root:
            raise CorruptionError(
                f"the page hashes kept here do not give the state root of the final frame "
                f"{self.final_place[0]}: move journal.db and what begins with its name out of the "
                "data directory; basenet then comes back as a new member of this shard."
            )

    def _return_to_final(self) -> None:
        self.tip = self.final.copy()
        self.tip_hash = self.final_place[1]
        self.taken = 0
        self._run = _Run()
        self._rules = CommitRules(self.tip.page_size, self.tip.db_pages)

    def _enter(self, head: Head, get: GetFrame) -> StateRoot:
        """Take the tip to the state after ``head``; return its root."""
        self._require_above(head)
        if self.tip_hash != head.prev_hash or self.taken:
            self._go_to(head.prev_hash, get)
        if head.kind == Kind.CONFIG:
            self._rules.accept_config(head)
            self._changes[head.hash] = (head.seq, None)
            self.tip_hash = head.hash
            return self.tip.root()
        payload = self._decode(get(head.hash))
        self._rules.accept_commit(head, payload)
        root = self._advance_raw(
            payload.page_size,
            payload.db_pages,
            payload.pgnos.tolist(),
            payload.pages,
            not head.is_partial,
        )
        self._changes[head.hash] = (head.seq, self._run.done)
        self.tip_hash = head.hash
        return root

    def _go_to(self, place: FrameHash, get: GetFrame) -> None:
        """Take the tip to the state after the frame ``place``, final or above."""
        self._return_to_final()
        for head in self._path(place, get):
            self._enter(head, get)

    def _require_above(self, head: Head) -> None:
        seq, digest = self.final_place
        if head.seq <= seq or (head.seq == seq + 1 and head.prev_hash != digest):
            raise BranchLost(f"frame {head.seq} is on no branch above the final frame {seq}")

    def _path(self, place: FrameHash, get: GetFrame) -> list[Head]:
        path: list[Head] = []
        while place != self.final_place[1]:
            head = get(place).head
            self._require_above(head)
            path.append(head)
            place = head.prev_hash
        path.reverse()
        return path

    def _changes_up_to(self, head: Head, get: GetFrame) -> list[Change]:
        pieces: list[Head] = []
        found = [self._recall(one, get, pieces) for one in self._path(head.hash, get)]
        return [change for change in found if change is not None]

    def _recall(self, head: Head, get: GetFrame, pieces: list[Head]) -> Change | None:
        """Return what a frame changes, remembered or worked out; None for a CONFIG or a piece.

        ``pieces``: of the run so far. Only the end of a run is remembered with what it changes, so
        one that was judged in part is worked out as a whole.
        """
        if head.kind == Kind.CONFIG:
            return None
        if head.is_partial:
            pieces.append(head)
            return None
        run_heads = [*pieces, head]
        pieces.clear()
        _, known = self._changes.get(head.hash, (head.seq, None))
        if known is not None:
            return known
        run = _Run()
        for one in run_heads:
            payload = self._decode(get(one.hash))
            run.add(payload.page_size, payload.pgnos.tolist(), payload.pages)
        return run.finish(payload.page_size, payload.db_pages)

    def _advance_raw(
        self,
        page_size: int,
        db_pages: int,
        pgnos: list[int],
        pages: bytes | memoryview,
        is_last: bool,  # noqa: FBT001  (one fact of a piece among others)
    ) -> StateRoot:
        run = self._run
        run.done = None
        piece = run.add(page_size, pgnos, pages)
        if not is_last:
            run.done = Change(page_size, db_pages, pgnos, piece, is_whole=False)
            return StateRoot(ZERO_HASH)
        change = run.finish(page_size, db_pages)
        self.tip = _apply(self.tip, change)
        run.done = change
        return self.tip.root()


class _Run:
    """The pages of a transaction in pieces."""

    __slots__ = ("_hashes", "_pgnos", "done")

    def __init__(self) -> None:
        self._pgnos: list[int] = []
        self._hashes: list[bytes] = []
        self.done: Change | None = None

    @property
    def pages(self) -> tuple[Sequence[int], Sequence[bytes]]:
        return tuple(self._pgnos), tuple(self._hashes)

    def add(self, page_size: int, pgnos: list[int], pages: bytes | memoryview) -> list[bytes]:
        view = memoryview(pages)
        hashes = [
            leaf_hash(pgno, view[index * page_size : (index + 1) * page_size])
            for index, pgno in enumerate(pgnos)
        ]
        self._pgnos += pgnos
        self._hashes += hashes
        return hashes

    def extend(self, piece: Change) -> None:
        self._pgnos += piece.pgnos
        self._hashes += piece.hashes

    def finish(self, page_size: int, db_pages: int) -> Change:
        change = Change(page_size, db_pages, self._pgnos, self._hashes)
        self._pgnos, self._hashes = [], []
        return change


def _apply(tree: StateTree, change: Change) -> StateTree:
    """Return the tree after ``change``; the same one unless the page size changes."""
    if change.page_size != tree.page_size:
        tree = StateTree(change.page_size)
    tree.update(change.pgnos, change.hashes, change.db_pages)
    return tree
