"""What survives the death of a node: its journal and its application's database.

The journal takes one transaction at a time and keeps all of it or nothing. The database is the
application's own: commits get into it before the journal hears of them, and are found there when
the node comes back. A disk can be copied, so that an old copy can come back in its place (Q9).

::

    database.commits   [ .... applied or framed .... | waiting rows | not captured yet ]
                                               place ^
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from basenet.engine.adoption import NOWHERE
from basenet.engine.ballot import Ballot, first_seq
from basenet.engine.effects import Persist
from basenet.testing.simulator.state import commits_of
from basenet.units import FrameHash, JournalId, LocalNumber, PublicKeyBytes, Seq
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, Head, Kind

_NO_COMMIT: Final = LocalNumber(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A captured commit that is not in a frame yet; ``parts``: PARTIAL frames before its last."""

    number: LocalNumber
    commit: int
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mending:
    """What the database shall become: the state of a frame that was adopted."""

    head: Head
    commits: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Disk:
    """One node's journal and database.

    ``frames``: the tree, by hash. ``ranges``: the local numbers in own frames. ``waiting``: those
    captured and not framed; of its first row ``parts_done`` PARTIAL frames exist. ``place``: the
    frame that the database holds, with ``place_commits`` commits. ``history``: the final chain by
    height, and
    ``certificates`` for some of its heights. ``orphans``: the commits of bundles, by local number.
    ``known``: the highest count of Persists that each peer's journal was seen with.

    Once frames are pruned or a state was adopted: ``line``: the CONFIG frames after the genesis
    that are not in ``history`` any more, with their certificates; ``settled``: the commits of own
    final frames that were dropped; ``draft``: what the next adoption will leave undecided, and
    ``undecided``: what earlier ones did; ``mending``: what the database is being made into.
    """

    journal_id: JournalId
    ballot: Ballot
    place: tuple[Seq, FrameHash]
    jcount: int = 0
    frames: dict[FrameHash, Frame] = field(default_factory=dict)
    ranges: dict[FrameHash, tuple[LocalNumber, LocalNumber]] = field(default_factory=dict)
    waiting: deque[Row] = field(default_factory=deque)
    parts_done: int = 0
    local_captured: LocalNumber = _NO_COMMIT
    local_framed: LocalNumber = _NO_COMMIT
    place_commits: int = 0
    history: dict[Seq, FrameHash] = field(default_factory=dict)
    certificates: dict[Seq, Certificate] = field(default_factory=dict)
    orphans: dict[LocalNumber, int] = field(default_factory=dict)
    commits: list[int] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    known: dict[tuple[PublicKeyBytes, JournalId], int] = field(default_factory=dict)
    line: list[tuple[Frame, Certificate | None]] = field(default_factory=list)
    settled: dict[LocalNumber, int] = field(default_factory=dict)
    draft: dict[LocalNumber, int] = field(default_factory=dict)
    undecided: dict[LocalNumber, int] = field(default_factory=dict)
    mending: Mending | None = None

    def persist(self, effect: Persist) -> None:
        """Make ``effect`` durable, whole."""
        self.jcount += 1
        for frame in effect.frames:
            self.frames[frame.head.hash] = frame
        for own in effect.own:
            head = own.frame.head
            self.frames[head.hash] = own.frame
            if head.kind == Kind.COMMIT:
                self.ranges[head.hash] = (own.local_first, own.local_last)
                self._absorb(own.frame, own.local_last)
            self.place = (head.seq, head.hash)
        if effect.ballot is not None:
            self._keep(effect.ballot)

    def _absorb(self, frame: Frame, last: LocalNumber) -> None:
        """Take the rows out that ``frame`` carries: in the same transaction (Q14)."""
        if frame.head.is_partial:
            self.parts_done += 1
            return
        for commit in commits_of(frame):
            row = self.waiting.popleft()
            assert row.commit == commit, "a frame absorbs other rows than those that wait first"
            self.place_commits += 1
        self.parts_done = 0
        self.local_framed = last

    def _keep(self, ballot: Ballot) -> None:
        """Keep the ballot, and what it makes final."""
        final = ballot.final
        certificate = ballot.certificate
        if certificate is not None:
            frame = self.frames.get(certificate.hash)
            # What a later epoch says of the CONFIG that it starts from proves nothing to others.
            if frame is None or frame.head.epoch == certificate.epoch:
                self.certificates[certificate.height] = certificate
        self.extend_history(final.height, final.hash)
        self.ballot = ballot

    def extend_history(self, height: Seq, digest: FrameHash) -> None:
        """Note the chain that ends in ``digest`` as final, as far down as is not noted yet."""
        history = self.history
        while history.get(height) != digest and digest in self.frames:
            history[height] = digest
            height, digest = Seq(height - 1), self.frames[digest].head.prev_hash

    def capture(self) -> int:
        """Read what is new in the database into waiting rows; return how many."""
        if self.mending is not None:
            return 0
        known = self.place_commits + len(self.waiting)
        for commit in self.commits[known:]:
            self.local_captured = LocalNumber(self.local_captured + 1)
            self.waiting.append(
                Row(number=self.local_captured, commit=commit, parts=self.sizes.pop(commit, 0))
            )
        return len(self.commits) - known

    def bundle(self, heads: tuple[Head, ...]) -> dict[LocalNumber, int]:
        """Keep the commits of ``heads`` and all that wait as orphans; return what was kept."""
        kept: dict[LocalNumber, int] = {}
        for head in heads:
            first, _ = self.ranges.get(head.hash, (LocalNumber(0), LocalNumber(0)))
            for index, commit in enumerate(commits_of(self.frames[head.hash])):
                kept[LocalNumber(first + index)] = commit
        for row in self.waiting:
            kept[row.number] = row.commit
        self.orphans.update(kept)
        return kept

    def roll_back(self, place: tuple[Seq, FrameHash], commits: int) -> None:
        """Undo the database down to ``place``, which holds ``commits`` commits; nothing waits."""
        del self.commits[commits:]
        self.waiting.clear()
        self.parts_done = 0
        self.local_framed = self.local_captured
        self.place = place
        self.place_commits = commits

    def apply(self, frame: Frame) -> None:
        """Inject a final frame into the database and note that in the journal."""
        commits = commits_of(frame)
        self.commits += commits
        self.place_commits += len(commits)
        self.place = (frame.head.seq, frame.head.hash)

    # What is pruned, and what comes in its place.

    def is_pruned(self, above: Seq) -> bool:
        """Return whether the final frame after ``above`` was there and is not any more."""
        return above < self.ballot.final.height and Seq(above + 1) not in self.history

    def prune(self, below: int) -> None:
        """Drop the final frames below ``below``: the database has them, and so has an archive."""
        below = min(below, self.ballot.final.height, self.place[0])
        for height in sorted(height for height in self.history if height < below):
            frame = self.frames.pop(self.history.pop(height))
            certificate = self.certificates.pop(height, None)
            if frame.head.kind == Kind.CONFIG and frame.head.seq != first_seq(self.ballot.config):
                self.line.append((frame, certificate))
            first, _ = self.ranges.pop(frame.head.hash, (LocalNumber(0), LocalNumber(0)))
            for index, commit in enumerate(commits_of(frame) if first else ()):
                self.settled[LocalNumber(first + index)] = commit

    def commits_at(self, head: Head) -> tuple[int, ...]:
        """Return the content of the database at a frame of its chain, at or below its place."""
        count, digest = self.place_commits, self.place[1]
        while digest != head.hash:
            frame = self.frames[digest]
            count -= len(commits_of(frame))
            digest = frame.head.prev_hash
        return tuple(self.commits[:count])

    def leave_undecided(self, heads: tuple[Head, ...]) -> None:
        """Keep the commits of ``heads`` and all that wait, for an adoption that follows."""
        self.draft = {row.number: row.commit for row in self.waiting}
        for head in heads:
            first, _ = self.ranges.get(head.hash, (LocalNumber(0), LocalNumber(0)))
            for index, commit in enumerate(commits_of(self.frames[head.hash]) if first else ()):
                self.draft[LocalNumber(first + index)] = commit

    def adopt(
        self,
        ballot: Ballot,
        certified: tuple[Frame, Certificate | None],
        line: list[tuple[Frame, Certificate | None]],
        kept: tuple[Head, ...],
        commits: tuple[int, ...],
    ) -> None:
        """Take a state over: one transaction; the database is not touched yet."""
        frame, certificate = certified
        self.jcount += 1
        final = set(self.history.values())
        for digest, (first, _) in self.ranges.items():
            if digest in final:
                for index, commit in enumerate(commits_of(self.frames[digest])):
                    self.settled[LocalNumber(first + index)] = commit
        self.ranges = {}
        self.undecided |= self.draft
        self.draft = {}
        self.waiting.clear()
        self.parts_done = 0
        self.local_framed = self.local_captured
        self.ballot = ballot
        self.frames = {head.hash: self.frames[head.hash] for head in kept}
        self.frames[frame.head.hash] = frame
        self.history = {frame.head.seq: frame.head.hash}
        self.certificates = {} if certificate is None else {frame.head.seq: certificate}
        self.line = line
        self.place, self.place_commits = NOWHERE, 0
        self.mending = Mending(head=frame.head, commits=commits)

    def heads_between(self, above: int, last: int) -> tuple[Head, ...]:
        """Return the final heads above ``above`` up to ``last``, ascending."""
        heights = (Seq(height) for height in range(above + 1, last + 1))
        return tuple(self.frames[self.history[height]].head for height in heights)

    def copy(self) -> "Disk":
        """Return a disk with the same content."""
        return replace(
            self,
            frames=dict(self.frames),
            ranges=dict(self.ranges),
            waiting=deque(self.waiting),
            history=dict(self.history),
            certificates=dict(self.certificates),
            orphans=dict(self.orphans),
            commits=list(self.commits),
            sizes=dict(self.sizes),
            known=dict(self.known),
            line=list(self.line),
            settled=dict(self.settled),
            draft=dict(self.draft),
            undecided=dict(self.undecided),
        )
