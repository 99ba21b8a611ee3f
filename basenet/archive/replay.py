"""Rebuilding a database from a page set and log objects: the deciding part of a restore.

Theory of operation
===================

A `Follower` proves frames and hands their pages on; a `Replay` is the one that writes a database.
It holds the draft, the leaf hash of every page (32 bytes each) and the last frame. Nothing
is used before it is proven, and the proofs build on one another:

* The *page set* proves itself (`basenet.archive.setreader`).
* A *log object*: its signature, the link of each frame to the one before, and the author's
  signature of its last frame. The chain of hashes carries that signature back to every earlier
  frame, so one Ed25519 verification serves a whole object. Every author must be a voter in force.
* At the end the state root of all leaves must be the one that the target frame was signed with. So
  a page that was lost, stale or misplaced anywhere on the way cannot survive.

Within an object the newest image of a page wins, and a frame whose pages are all older is not even
unpacked; across objects later pages replace earlier ones. After a shrink the pages beyond the new
end are gone: if the database grows again, a frame carries them anew, and a page that none carries
leaves a hole in the leaves, which is refused.

Bytes 18 and 19 of page 1 are written as 2 (WAL), as they stand in a checkpointed source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from basenet.archive.facts import Signed, naming, sign_of
from basenet.archive.finality import Finality
from basenet.archive.pagebuffer import PageBuffer
from basenet.archive.partial import Partial
from basenet.archive.place import Draft
from basenet.archive.plan import Base, Plan, Start, enter_lineage, is_born_empty
from basenet.archive.setreader import SetReader
from basenet.archive.stretch import Span
from basenet.archive.trust import Genesis, Standing, change, check_author, check_signer
from basenet.errors import ChainBroken, UntrustedKey
from basenet.keys.trust import get_fingerprint
from basenet.units import GROUP_PAGES, HASH_BYTES, MIB, ZERO_HASH, Lineage, lock_page
from basenet.wire.certificate import Certificate
from basenet.wire.chain import CommitRules
from basenet.wire.frame import Flag, Frame, Head, Kind, check_link
from basenet.wire.merkle import leaf_hashes, parents, root_of_groups
from basenet.wire.payload import decode_commit, decode_commit_summary
from basenet.wire.segment import Segment

WRITE_BYTES: Final = 4 * MIB


@dataclass(frozen=True, slots=True)
class _Touch:
    """Which pages a COMMIT carries, read without unpacking them."""

    frame: Frame
    db_pages: int
    pgnos: list[int]


class Pages(Protocol):
    """Where the pages of a history go: a `PageBuffer` for a file, or what a query looks into."""

    page_size: int

    def reset(self, page_size: int) -> None:
        """Begin anew with a database of no pages."""
        ...

    def resize(self, lowest: int, db_pages: int) -> None:
        """Forget the pages beyond ``lowest``, then make room for ``db_pages``."""
        ...

    def put(self, pgnos: Sequence[int], pages: bytes | memoryview, wanted: Sequence[int]) -> None:
        """Take the pages at the places ``wanted`` (ascending) of ``pgnos`` and ``pages``."""
        ...


class Follower:
    """Proves the frames after the base, one log object after another, and hands on their pages.

    Every method blocks. Raises `CorruptionError` that names the object.
    """

    def __init__(self, plan: Plan, pages: Pages) -> None:
        """Stand before the first frame; ``pages`` holds none yet."""
        self._plan = plan
        self._geneses = {reach.lineage: reach.genesis for reach in plan.line}
        self._standing = plan.standing
        self._lineage: Lineage | None = None
        self._head: Head | None = None
        self._taker = pages
        self._rules = CommitRules(0, 0)
        self._finality = Finality()

    @property
    def head(self) -> Head:
        """The last frame that was followed."""
        assert self._head is not None, "a plan begins with a page set or a genesis"
        return self._head

    def begin_at(self, base: Base, pages: Pages) -> None:
        """Stand at the page set ``base``, which proves itself; ``pages`` is its state."""
        self._lineage, self._head = base.item.set.lineage, base.facts.head
        self._taker = pages
        self._rules = CommitRules(base.facts.pages.page_size, base.facts.pages.db_pages)
        self._check_tip(base.facts.head, base.item.name)

    def continue_at(self, start: Start, pages: Pages, db_pages: int) -> None:
        """Stand at a frame that was followed before; ``pages`` takes what comes behind it."""
        self._lineage, self._head = start.lineage, start.head
        self._taker = pages
        self._rules = CommitRules(pages.page_size, db_pages)

    @property
    def standing(self) -> Standing:
        """Who counts behind the last frame."""
        return self._standing

    @property
    def lineage(self) -> Lineage:
        """The lineage of the last frame."""
        assert self._lineage is not None, "every frame has a lineage"
        return self._lineage

    def apply(self, span: Span, segment: Segment) -> None:
        """Prove the frames of ``span`` and write their pages; ``segment`` is its opened object."""
        name = span.item.name
        frames = segment.frames[span.first - segment.start_seq :][: span.last - span.first + 1]
        with naming(name):
            before = self._standing
            for frame in frames:
                self._follow(frame, span.item.log.lineage, name, segment.certificates)
            later = [frame.head for frame in segment.frames[span.first - segment.start_seq :]]
            self._finality.take(self._standing, later, span.last, segment.certificates, name)
            if not self.head.is_signed_by_author():
                raise ChainBroken(f"frame {self.head.seq} is not signed by its author")
            if not before.accepts(segment.public):
                check_signer(self._standing, sign_of(segment, name))
            tip = self._plan.tip
            if tip is not None and span.first <= tip.head.seq <= span.last:
                self._check_tip(frames[tip.head.seq - span.first].head, name)
            self._write_commits(frames)

    # The chain.

    def _follow(
        self, frame: Frame, lineage: Lineage, name: str, proofs: Sequence[Certificate]
    ) -> None:
        """Take ``frame`` as the next one, or raise."""
        head = frame.head
        if lineage != self._lineage:
            self._enter(frame, lineage, name)
        else:
            check_link(self.head, head)
            if head.kind is Kind.CONFIG:
                self._standing = change(self._standing, frame, lineage, name, proofs)
            elif not self._standing.accepts(head.author):
                check_author(self._standing, head, name)
        self._head = head

    def _enter(self, frame: Frame, lineage: Lineage, name: str) -> None:
        """Begin ``lineage`` with its genesis: it continues the last frame, or begins the shard."""
        genesis = self._geneses[lineage]
        if genesis is None or genesis.head.hash != frame.head.hash:
            raise ChainBroken(f"frame {frame.head.seq} is not the genesis of {lineage.hex()}")
        if self._head is None:
            if genesis.config.parent is not None or not is_born_empty(genesis):
                raise ChainBroken(f"genesis {frame.head.seq} needs a state that nothing gives")
            self._taker.page_size = genesis.config.page_size
            self._rules = CommitRules(genesis.config.page_size, 0)
        else:
            assert self._lineage is not None, "every frame has a lineage"
            check_descent(self._head, self._lineage, genesis)
        self._finality.require()
        self._standing = enter_lineage(self._standing, genesis, name, self._plan.wish.lineage)
        self._lineage = lineage

    def _check_tip(self, head: Head, name: str) -> None:
        """Refuse a frame at the TIP's seq that is not the TIP's."""
        tip = self._plan.tip
        if tip is None or tip.lineage != self._lineage or tip.head.seq != head.seq:
            return
        if tip.head.hash != head.hash:
            raise ChainBroken(
                f"{name}: frame {head.seq} is not the one that {tip.signed.name} proves: "
                "two histories are mixed"
            )

    # The pages.

    def _write_commits(self, frames: Sequence[Frame]) -> None:
        """Hand on the newest image of every page that ``frames`` carry."""
        touches = self._read_touches(frames)
        if not touches:
            return
        end = touches[-1].db_pages
        self._taker.resize(min(touch.db_pages for touch in touches), end)
        done: set[int] = set()
        for touch in reversed(touches):
            wanted = [
                place for place, pgno in enumerate(touch.pgnos) if pgno <= end and pgno not in done
            ]
            if wanted:
                commit = decode_commit(touch.frame.payload)
                self._taker.put(touch.pgnos, commit.pages, wanted)
                done.update(touch.pgnos)
            end = min(end, touch.db_pages)

    def _read_touches(self, frames: Sequence[Frame]) -> list[_Touch]:
        """Return what each COMMIT touches, from the last change of the page size on."""
        touches: list[_Touch] = []
        for frame in frames:
            if frame.head.kind is not Kind.COMMIT:
                self._rules.accept_config(frame.head)
                continue
            summary = decode_commit_summary(frame.payload)
            self._rules.accept_commit(frame.head, summary)
            if summary.page_size != self._taker.page_size:
                # It carries every page (that is a rule), so nothing from before is left.
                touches = []
                self._taker.reset(summary.page_size)
            touches.append(_Touch(frame, summary.db_pages, summary.pgnos.tolist()))
        return touches

    def check_end(self) -> None:
        """Raise `ChainBroken` unless the last frame is the planned one; judge the TIP's keys."""
        target, head = self._plan.target, self.head
        self._finality.require()
        if (head.seq, head.hash) != (target.seq, target.hash):
            raise ChainBroken(
                f"the replay ended at frame {head.seq}, {head.hash.hex()}, and not at the planned "
                f"{target.seq}, {target.hash.hex()}"
            )
        if self._plan.tip is not None:
            check_tip_trust(self._standing, self._plan.tip.signed, self._plan.tip.head)


class Replay(Follower):
    """A database while it is being rebuilt. Every method blocks; `write_part` alone is reentrant.

    Raises `CorruptionError` that names the object, and `UnavailableError` when the disk refuses.
    """

    def __init__(self, plan: Plan, draft: Draft) -> None:
        """Start from nothing; the draft is empty."""
        self._draft = draft
        self._pages = PageBuffer(draft, 0, bytearray())
        super().__init__(plan, self._pages)

    @property
    def size_bytes(self) -> int:
        """How large the database is now."""
        return self._pages.db_pages * self._pages.page_size

    def begin_base(self, base: Base, reader: SetReader) -> None:
        """Start from the page set ``base``, and make room for its pages."""
        leaves = bytearray(reader.pages.db_pages * HASH_BYTES)
        self._pages = PageBuffer(self._draft, reader.pages.page_size, leaves)
        self.begin_at(base, self._pages)
        self._draft.resize(self.size_bytes)

    def write_part(
        self, reader: SetReader, number: int, data: bytes | memoryview, name: str
    ) -> int:
        """Verify part ``number`` of the base, write its pages, and return how many bytes."""
        waiting: list[bytes] = []
        offset = size = 0
        leaves, page_size = self._pages.leaves, self._pages.page_size
        for block in reader.read_part(number, data, name):
            first = block.first_pgno - 1
            leaves[first * HASH_BYTES : first * HASH_BYTES + len(block.leaves)] = block.leaves
            if waiting and (size >= WRITE_BYTES or first * page_size != offset + size):
                self._draft.write_all(offset, waiting)
                waiting = []
            if not waiting:
                offset, size = first * page_size, 0
            waiting.append(block.pages)
            size += len(block.pages)
        if waiting:
            self._draft.write_all(offset, waiting)
        return len(data)

    def adopt_part(self, partial: Partial, reader: SetReader, number: int) -> bool:
        """Return whether all pages of part ``number`` are in the draft already, proven now."""
        page_size, pages = self._pages.page_size, reader.pages
        found: list[tuple[int, bytes]] = []
        # No hash says what lies in the page that SQLite never uses.
        if (lock_page(page_size) - 1) // GROUP_PAGES in reader.groups_of(number):
            return False
        for group in reader.groups_of(number):
            first = group * GROUP_PAGES + 1
            count = min(GROUP_PAGES, pages.db_pages + 1 - first)
            data = partial.read((first - 1) * page_size, count * page_size)
            if len(data) != count * page_size:
                return False
            leaves = leaf_hashes(first, data, page_size)
            if not reader.is_group(group, leaves):
                return False
            found.append((first - 1, leaves))
        for place, leaves in found:
            self._pages.leaves[place * HASH_BYTES : place * HASH_BYTES + len(leaves)] = leaves
        partial.note_proven(len(found) * GROUP_PAGES * page_size)
        return True

    def finish(self) -> None:
        """Prove that the result is the state of the target frame, and cut the draft to its size."""
        self.check_end()
        head = self.head
        self._pages.flush()
        leaves, page_size = self._pages.leaves, self._pages.page_size
        if (hole := leaves.find(ZERO_HASH)) >= 0:
            raise ChainBroken(
                f"page {hole // HASH_BYTES + 1} of the database at frame {head.seq} is in no "
                "object that was replayed; run `basenet verify` on the archive"
            )
        root = root_of_groups(page_size, self._pages.db_pages, parents(0, leaves))
        if root != head.state_root:
            raise ChainBroken(
                f"the pages that were replayed do not give the state root of frame {head.seq}, so "
                "at least one of them is missing or stale; run `basenet verify` on the archive"
            )
        self._draft.resize(self.size_bytes)


def check_descent(head: Head, lineage: Lineage, genesis: Genesis) -> None:
    """Raise `ChainBroken` unless ``genesis`` continues the frame ``head`` of ``lineage``."""
    parent = genesis.config.parent
    if parent != (lineage, head.seq, head.hash) or head.flags & Flag.PARTIAL:
        raise ChainBroken(
            f"genesis {genesis.head.seq} of {genesis.config.lineage.hex()} continues another frame "
            f"than {head.seq} of {lineage.hex()}"
        )
    if genesis.head.state_root != head.state_root:
        raise ChainBroken(f"genesis {genesis.head.seq} begins at another state than its parent's")


def check_tip_trust(standing: Standing, signed: Signed, head: Head) -> None:
    """Raise `UntrustedKey` unless the TIP was made by keys that were believed by now.

    A TIP can be older than the last CONFIG, so it need not be by a voter that is still in force.
    """
    for key in (signed.signer, head.author):
        if key not in standing.believed:
            raise UntrustedKey(f"{signed.name} is signed by {get_fingerprint(key)}: not trusted")
