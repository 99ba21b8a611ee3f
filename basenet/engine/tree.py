r"""The heads above the final frame, by hash: a tree of which one path is followed.

Theory of operation
===================

::

    final ── a ── b ── c ── d      the chain: the path that this node follows, up to the tip
              \── e ── f           another branch, kept until something at its height is final
       x ── y                      not linked: what is below x is not held (yet)

A frame is *linked* when the path down from it ends at the final frame, every step of it allowed by
`may_follow`. Frames come in any order, so linking spreads upwards when the missing one arrives.
No branch is forgotten before a frame at its height is final: somebody may hold a certificate for it
that we have not seen (mistake 8).

Every question that a vote asks is answered in O(1); only the path between two places is walked.
"""

from collections.abc import Iterable
from typing import NamedTuple

from basenet.units import FrameHash, Seq
from basenet.wire.frame import Flag, Head, Kind


class Place(NamedTuple):
    """A frame, by height and hash."""

    seq: Seq
    hash: FrameHash


def may_follow(before: Head, after: Head) -> bool:
    """Return whether ``after`` may come directly after ``before`` on one chain.

    Seqs without a gap, later timestamps (P33), (epoch, view) that never go back, nothing foreign
    inside a PARTIAL run (P22), and a CONFIG that changes no data.
    """
    if after.seq != before.seq + 1 or after.timestamp_ns <= before.timestamp_ns:
        return False
    if (after.epoch, after.view) < (before.epoch, before.view):
        return False
    if before.is_partial:
        return after.kind == Kind.COMMIT and after.flags | Flag.PARTIAL == before.flags
    return after.kind != Kind.CONFIG or after.state_root == before.state_root


class Tree:
    """The heads that are held, how they hang together, and the chain that is followed.

    ``root`` is the final frame; its own head may not be held. ``chain``: by height, from the root
    to the tip.
    """

    __slots__ = ("_children", "_heights", "chain", "heads", "linked", "root", "tip")

    def __init__(self, root: tuple[Seq, FrameHash], heads: Iterable[Head]) -> None:
        self.heads: dict[FrameHash, Head] = {}
        self._children: dict[FrameHash, list[Head]] = {}
        self._heights: dict[Seq, list[Head]] = {}
        self.linked: set[FrameHash] = {root[1]}
        self.chain: dict[int, FrameHash] = {root[0]: root[1]}
        self.root = root
        self.tip = root
        for head in sorted(heads, key=lambda head: head.seq):
            self.add(head)

    def __len__(self) -> int:
        return len(self.heads)

    def add(self, head: Head) -> None:
        """Hold ``head``; what it links becomes linked. Of those at the root only it counts."""
        digest, parent_hash = head.hash, head.prev_hash
        if digest in self.heads:
            return
        if head.seq <= self.root[0]:
            if digest == self.root[1]:
                self.heads[digest] = head
            return
        self.heads[digest] = head
        self._heights.setdefault(head.seq, []).append(head)
        self._children.setdefault(parent_hash, []).append(head)
        if parent_hash in self.linked and self._is_allowed(head):
            self.linked.add(digest)
            if digest in self._children:
                self._link_above(digest)

    def _is_allowed(self, head: Head) -> bool:
        before = self.heads.get(head.prev_hash)
        if before is None:
            return head.seq == self.root[0] + 1
        return may_follow(before, head)

    def _link_above(self, digest: FrameHash) -> None:
        waiting = [digest]
        while waiting:
            for child in self._children.get(waiting.pop(), ()):
                if self._is_allowed(child):
                    self.linked.add(child.hash)
                    waiting.append(child.hash)

    def path(self, end: FrameHash, above: int | None = None) -> list[Head]:
        """Return the heads above ``above`` (else the root) up to the linked ``end``, ascending."""
        floor = self.root[0] if above is None else above
        heads, path = self.heads, []
        digest = end
        while (head := heads.get(digest)) is not None and head.seq > floor:
            path.append(head)
            digest = head.prev_hash
        path.reverse()
        return path

    def is_on_chain(self, height: int, digest: FrameHash) -> bool:
        """Return whether the chain that is followed goes through this frame."""
        return self.chain.get(height) == digest

    def follow(self, end: FrameHash) -> None:
        """Let the chain end in the linked frame ``end``."""
        chain, heads = self.chain, self.heads
        height = self.root[0] if end == self.root[1] else heads[end].seq
        for above in range(height + 1, self.tip[0] + 1):
            del chain[above]
        self.tip = (height, end)
        at, digest = int(height), end
        while chain.get(at) != digest:
            chain[at] = digest
            digest = heads[digest].prev_hash
            at -= 1

    def append(self, head: Head) -> None:
        """Hold a head that was sealed on the tip."""
        digest = head.hash
        self.heads[digest] = head
        self._heights.setdefault(head.seq, []).append(head)
        self._children.setdefault(head.prev_hash, []).append(head)
        self.linked.add(digest)
        self.chain[head.seq] = digest
        self.tip = (head.seq, digest)

    def reach(self, start: FrameHash) -> Head | None:
        """Return the highest linked head on a branch above ``start``, None if there is none."""
        found: Head | None = None
        digest = start
        while True:
            children = [one for one in self._children.get(digest, ()) if one.hash in self.linked]
            if not children:
                return found
            found = max(children, key=lambda one: one.view)
            digest = found.hash

    def advance(self, root: FrameHash) -> list[Head]:
        """Make ``root``, which the chain goes through, the final frame.

        Everything below it or beside it is forgotten; what does not come from it is not linked any
        more. Returns the heads that were forgotten.
        """
        seq = self.heads[root].seq
        old_seq, old = self.root
        assert self.chain.get(seq) == root, "finality leaves the chain"
        gone: list[Head] = []
        for height in range(old_seq + 1, seq + 1):
            kept = self.chain[height]
            for head in self._heights.pop(Seq(height), ()):
                digest = head.hash
                if digest != kept:
                    self._unlink(digest)
                if digest != root:
                    del self.heads[digest]
                    self.linked.discard(digest)
                    gone.append(head)
                self._children.pop(head.prev_hash, None)
        for height in range(old_seq, seq):
            del self.chain[height]
        self.linked.discard(old)
        before = self.heads.pop(old, None)
        if before is not None:
            gone.append(before)
        self.root = (seq, root)
        return gone

    def _unlink(self, digest: FrameHash) -> None:
        """Take the link from a branch that lost, up to its ends."""
        waiting = [digest]
        while waiting:
            losing = waiting.pop()
            if losing in self.linked:
                self.linked.discard(losing)
                waiting += [child.hash for child in self._children.get(losing, ())]

    def cut(self) -> None:
        """Forget everything above the root: a new epoch begins there."""
        height, digest = self.root
        head = self.heads.get(digest)
        self.heads = {} if head is None else {digest: head}
        self._children = {}
        self._heights = {}
        self.linked = {digest}
        self.chain = {height: digest}
        self.tip = self.root
