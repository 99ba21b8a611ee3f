"""One lineage, frame by frame: everything that can be proven of it without its pages' bytes.

Theory of operation
===================

A `Walk` follows the frames of one lineage in order and recomputes the state root of every commit
from the leaf hashes, which is all that it holds of the database: 32 bytes a page. It knows three
things, and each of them can be lost and found again:

* the *last frame*, for the links: lost where frames are missing or an object is damaged, found
  with the next frame;
* the *state* (all leaf hashes): lost with the last frame or at a wrong root, found at the next page
  set, or at a genesis without pages, or in the parent at the seq where a child goes on;
* the *standing* (whose signatures count): lost never, since without a CONFIG the operator's keys
  remain.

A moment is *restorable* while the state is known from a page set or genesis that a restore of that
moment would begin with. What is wrong is told to ``report`` with the name of the object, and the
walk goes on: one fault must not hide the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from basenet.archive.facts import SetFacts, Signed
from basenet.archive.finality import Finality
from basenet.archive.plan import enter_lineage, is_born_empty
from basenet.archive.replay import check_descent
from basenet.archive.trust import Genesis, Standing, change, check_author, check_signer
from basenet.errors import ChainBroken, CorruptionError
from basenet.units import HASH_BYTES, FrameHash, Lineage, Seq, TimestampNs
from basenet.wire.certificate import Certificate
from basenet.wire.chain import CommitRules
from basenet.wire.frame import Flag, Frame, Head, Kind, check_link
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.payload import CommitPayload, decode_commit
from basenet.wire.segment import TreeRecord

Report = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorableRange:
    """Seqs of a lineage that can be restored, and when they were captured."""

    lineage: Lineage
    first_seq: Seq
    last_seq: Seq
    first_ns: TimestampNs
    last_ns: TimestampNs


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a walk knew at one frame, for the children that continue it there."""

    lineage: Lineage
    head: Head
    standing: Standing
    page_size: int
    leaves: bytes | None
    is_restorable: bool


class Walk:
    """The walk along one lineage. Everything here blocks for as long as hashing takes."""

    def __init__(
        self,
        lineage: Lineage,
        standing: Standing,
        report: Report,
        *,
        watched: Sequence[int] = (),
        noted: int | None = None,
    ) -> None:
        """``watched``: seqs whose `Moment` is kept; ``noted``: a seq whose hash is kept."""
        self._lineage = lineage
        self._standing = standing
        self._changes: list[tuple[Seq, Standing]] = []  # what followed, and from which frame on
        self._report = report
        self._watched = frozenset(watched)
        self._noted = noted
        self._head: Head | None = None
        self._finality = Finality()
        self._tree: StateTree | None = None
        self._is_restorable = False
        self._genesis: Head | None = None
        self._rules = CommitRules(0, 0)  # of the state that the tree knows
        self._run_pgnos: list[int] = []
        self._run_hashes: list[bytes] = []
        self._range: RestorableRange | None = None
        self.moments: dict[int, Moment] = {}
        self.noted_hash: FrameHash | None = None
        self.ranges: list[RestorableRange] = []
        self.frame_count = 0

    @property
    def head(self) -> Head | None:
        """The last frame, None where it is not known."""
        return self._head

    @property
    def standing(self) -> Standing:
        """Whose signatures count now."""
        return self._standing

    @property
    def knows_state(self) -> bool:
        """Whether the leaf hashes of the last frame are known."""
        return self._tree is not None

    def standing_at(self, seq: int) -> Standing:
        """Return whose signatures counted after the frame ``seq``, which need not be there."""
        before = [standing for changed, standing in self._changes if changed <= seq]
        return before[-1] if before else self._standing

    # Where it begins, and what it loses.

    def begin(self, genesis: Genesis, name: str, parent: Moment | None) -> None:
        """Begin with ``genesis`` in the object ``name``; ``parent`` is what it continues."""
        config, self._genesis = genesis.config, genesis.head
        if parent is not None:
            self._standing = parent.standing
            try:
                check_descent(parent.head, parent.lineage, genesis)
            except CorruptionError as error:
                self._report(name, str(error))
                parent = None
        try:
            self._standing = enter_lineage(self._standing, genesis, name, None)
        except CorruptionError as error:
            self._report(name, str(error))
        self._changes.append((genesis.head.seq, self._standing))
        if parent is not None and parent.leaves is not None:
            self._know(StateTree(parent.page_size, parent.leaves))
            self._is_restorable = parent.is_restorable
        elif config.parent is None and is_born_empty(genesis):
            self._know(StateTree(config.page_size))
            self._is_restorable = True

    def lose(self) -> None:
        """Forget the last frame and the state: frames are missing or cannot be read."""
        self._head = None
        self._forget_state()

    def _know(self, tree: StateTree) -> None:
        self._tree = tree
        self._rules = CommitRules(tree.page_size, tree.db_pages)
        self._run_pgnos, self._run_hashes = [], []

    def _forget_state(self) -> None:
        self._tree = None
        self.stop_range()

    def stop_range(self) -> None:
        """Say that what follows cannot be restored, until a page set is found."""
        self._is_restorable = False
        if self._range is not None:
            self.ranges.append(self._range)
            self._range = None

    def adopt(self, facts: SetFacts, leaves: bytes) -> None:
        """Take the state of a page set that was verified and fits the frame it stands at."""
        if self._tree is None:
            self._head = facts.head
            if facts.head.seq == self._noted:
                self.noted_hash = facts.head.hash
            self._know(StateTree(facts.pages.page_size, leaves))
        self._is_restorable = True
        self._extend_range(facts.head)
        if facts.head.seq in self._watched:
            # Its frame was walked over before its state was known.
            self._keep_moment(facts.head)

    # The frames.

    def check_object(self, signed: Signed, before: Standing) -> None:
        """Report an object whose signer counts neither before nor after its frames."""
        if not before.accepts(signed.signer):
            try:
                check_signer(self._standing, signed)
            except CorruptionError as error:
                self._report(signed.name, str(error))

    def prove(
        self, heads: Sequence[Head], last: int, proofs: Sequence[Certificate], name: str
    ) -> None:
        """Report if the ``proofs`` in an object are wrong, after its frames up to ``last``."""
        try:
            self._finality.take(self._standing, heads, last, proofs, name)
        except CorruptionError as error:
            self._report(name, str(error))

    def end(self) -> None:
        """Report the object from which on nothing is proven final, at the end of the log."""
        try:
            self._finality.require()
        except CorruptionError as error:
            self._report(str(error).partition(": ")[0], str(error))

    def take(self, frames: Sequence[Frame], name: str, proofs: Sequence[Certificate] = ()) -> None:
        """Walk on over ``frames`` of the object ``name``; their signatures are verified already.

        ``proofs``: the certificates in the object, for its CONFIGs; see `prove`.

        Of one object only the first fault is told: the others mostly follow from it.
        """
        is_told = False
        for frame in frames:
            try:
                self._take(frame, name, proofs)
            except CorruptionError as error:
                if not is_told:
                    self._report(name, str(error))
                is_told = True
                self._forget_state()
            self._head = frame.head
            self.frame_count += 1
            if self._is_restorable and not self._rules.is_run_open:
                self._extend_range(frame.head)
            if frame.head.seq == self._noted:
                self.noted_hash = frame.head.hash
            if frame.head.seq in self._watched:
                self._keep_moment(frame.head)

    def _take(self, frame: Frame, name: str, proofs: Sequence[Certificate]) -> None:
        head, before = frame.head, self._head
        if before is not None:
            check_link(before, head)
            if head.timestamp_ns <= before.timestamp_ns:
                raise ChainBroken(f"frame {head.seq} is not later than the one before it")
        if head.kind is Kind.CONFIG:
            if self._genesis is None or head.hash != self._genesis.hash:
                self._change(frame, before, name, proofs)
            return
        check_author(self._standing, head, name)
        self._take_commit(head, decode_commit(frame.payload))

    def _change(
        self, frame: Frame, before: Head | None, name: str, proofs: Sequence[Certificate]
    ) -> None:
        self._standing = change(self._standing, frame, self._lineage, name, proofs)
        self._changes.append((frame.head.seq, self._standing))
        if self._tree is not None:
            self._rules.accept_config(frame.head)
        if before is not None and frame.head.state_root != before.state_root:
            raise ChainBroken(f"the CONFIG {frame.head.seq} has another state than the one before")

    def _take_commit(self, head: Head, commit: CommitPayload) -> None:
        if self._tree is None:
            return
        self._rules.accept_commit(head, commit)
        pages, size = memoryview(commit.pages), commit.page_size
        pgnos = commit.pgnos.tolist()
        self._run_pgnos += pgnos
        self._run_hashes += [
            leaf_hash(pgno, pages[index * size : (index + 1) * size])
            for index, pgno in enumerate(pgnos)
        ]
        if not head.flags & Flag.PARTIAL:
            pgnos, hashes = self._run_pgnos, self._run_hashes
            self._run_pgnos, self._run_hashes = [], []
            self._update(self._tree, head, commit, pgnos, hashes)

    def _update(
        self,
        tree: StateTree,
        head: Head,
        commit: CommitPayload,
        pgnos: Sequence[int],
        hashes: Sequence[bytes],
    ) -> None:
        """Take in a whole commit, or run; raise `ChainBroken` if its root is another."""
        if commit.page_size != tree.page_size:
            tree = self._tree = StateTree(commit.page_size)
        tree.update(pgnos, hashes, commit.db_pages)
        if tree.root() != head.state_root:
            raise ChainBroken(
                f"the pages up to frame {head.seq} give the state root {tree.root().hex()}, and it "
                f"was signed with {head.state_root.hex()}"
            )

    def check_tree(self, record: TreeRecord, name: str) -> None:
        """Report a TREE record that does not agree with the state after its object."""
        if self._tree is None or self._rules.is_run_open:
            return
        groups = self._tree.groups
        for group, digest in record.groups:
            if groups[group * HASH_BYTES : (group + 1) * HASH_BYTES] != digest:
                self._report(name, f"its TREE record has another hash for group {group}")
                return

    # What is remembered.

    def _extend_range(self, head: Head) -> None:
        start = self._range
        if start is None:
            self._range = RestorableRange(
                lineage=self._lineage,
                first_seq=head.seq,
                last_seq=head.seq,
                first_ns=head.timestamp_ns,
                last_ns=head.timestamp_ns,
            )
        else:
            self._range = replace(start, last_seq=head.seq, last_ns=head.timestamp_ns)

    def _keep_moment(self, head: Head) -> None:
        tree = None if self._rules.is_run_open else self._tree
        self.moments[head.seq] = Moment(
            lineage=self._lineage,
            head=head,
            standing=self._standing,
            page_size=0 if tree is None else tree.page_size,
            leaves=None if tree is None else bytes(tree.leaves),
            is_restorable=self._is_restorable,
        )
