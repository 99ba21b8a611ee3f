"""The application beside a node: it commits whenever it may, and sometimes just before it may not.

A commit is in the database at once. The node captures it a little later, gives it a local number,
and frames it when its replica can seal: several at once, or a big one in many PARTIAL frames.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from basenet.engine.effects import Persist
from basenet.engine.events import FrameCaptured, FramesCaptured, Instant
from basenet.testing.simulator.clock import MILLISECOND
from basenet.testing.simulator.state import encode_commits, encode_part, root_after, wrong_root
from basenet.units import ZERO_HASH, FrameHash, LocalNumber, StateRoot, TimestampNs
from basenet.wire.frame import Flag, Head

if TYPE_CHECKING:
    from basenet.testing.simulator.disk import Row
    from basenet.testing.simulator.node import Node

_BEGIN_NS: Final = 1_700_000_000_000_000_000
_FRAMES_MAX: Final = 4
_COALESCED_MAX: Final = 8
_BIG_SHARE: Final = 0.03
_BIG_PARTS_MAX: Final = 6
_LATE_CAPTURE_SHARE: Final = 0.2


class Application:
    """What the application of one node does to its database, and how that becomes frames."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._chance = node.chance
        self._unsealed: deque[Row] = deque()
        self._parts_given = 0
        self._root: tuple[FrameHash, StateRoot] | None = None
        self._is_sealing = False
        self._is_noticed = False
        self._is_fenced = True
        self.slips = 0
        self.wrong_roots_until = 0

    def restart(self) -> None:
        """Begin with what the database and the journal hold."""
        self._root = None
        self._is_noticed = False
        self._is_fenced = True
        self._node.disk.capture()
        self.forget()

    def calm(self) -> None:
        """Let nothing slip any more, and honest roots be right."""
        self.slips = 0
        if self._node.is_honest:
            self.wrong_roots_until = 0

    def forget(self) -> None:
        """Take for sealed what the journal says, and nothing else."""
        disk = self._node.disk
        self._unsealed = deque(disk.waiting)
        self._parts_given = disk.parts_done

    # Commits.

    def write(self) -> None:
        """Commit once, and let the node see it soon; only while it may write."""
        self._is_fenced = False
        parts = 0
        if self._chance.random() < _BIG_SHARE:
            parts = self._chance.randint(1, _BIG_PARTS_MAX)
        self._commit(parts)
        if not self._is_noticed:
            self._is_noticed = True
            is_late = self._chance.random() < _LATE_CAPTURE_SHARE
            delay = self._chance.randrange(5 * MILLISECOND) if is_late else 0
            self._node.later(delay, self._capture, None)

    def slip(self) -> None:
        """Close the fence: a commit or more was quicker, if the schedule says so."""
        if not self._is_fenced:
            for _ in range(self.slips):
                self._commit(0)
            self.slips = 0
        self._is_fenced = True

    def _commit(self, parts: int) -> None:
        commit = self._node.world.new_commit()
        disk = self._node.disk
        disk.commits.append(commit)
        if parts:
            disk.sizes[commit] = parts

    def _capture(self, _: object) -> None:
        """Capture what is new, and seal what can be sealed."""
        self._is_noticed = False
        self.capture()
        self.seal(self._node.now)

    def capture(self) -> None:
        """Give what is new in the database its local numbers."""
        waiting = self._node.disk.waiting
        fresh = self._node.disk.capture()
        self._unsealed.extend(list(waiting)[len(waiting) - fresh :] if fresh else ())

    # Frames.

    def seal(self, now: Instant) -> None:
        """Frame what waits, as long as the replica takes it."""
        node = self._node
        if self._is_sealing:
            return
        self._is_sealing = True
        while self._unsealed and node.can_seal(now):
            frames, root = self._make_frames()
            node.step(FramesCaptured(frames=frames))
            if node.replica is not None:
                # The journal may not have these frames yet, so the root is kept here.
                self._root = (node.replica.tip.hash, root)
        self._is_sealing = False

    def _make_frames(self) -> tuple[tuple[FrameCaptured, ...], StateRoot]:
        """Return the next frames and the root after them; their rows count as given from now."""
        node = self._node
        assert node.replica is not None, "frames of a node that is down"
        root = self._tip_root(node.replica.tip)
        frames: list[FrameCaptured] = []
        count = self._chance.randint(1, _FRAMES_MAX)
        while self._unsealed and len(frames) < count:
            frame, root = self._make_frame(root)
            frames.append(frame)
        return tuple(frames), root

    def _make_frame(self, root: StateRoot) -> tuple[FrameCaptured, StateRoot]:
        row = self._unsealed[0]
        if self._parts_given < row.parts:
            self._parts_given += 1
            payload, flags, rows = encode_part(row.commit), Flag.PARTIAL, []
        else:
            rows = [self._unsealed.popleft()]
            more = self._chance.randrange(_COALESCED_MAX) if row.parts == 0 else 0
            while more and self._unsealed and self._unsealed[0].parts == 0:
                rows.append(self._unsealed.popleft())
                more -= 1
            commits = [row.commit for row in rows]
            payload, flags = encode_commits(commits), Flag.NONE
            root = root_after(root, commits)
            self._parts_given = 0
        frame = FrameCaptured(
            payload=payload,
            flags=flags,
            state_root=self._shown_root(root, flags),
            timestamp_ns=TimestampNs(_BEGIN_NS + self._node.world.scheduler.now),
            salt=self._chance.randbytes(16),
            local_first=row.number,
            local_last=LocalNumber(row.number + len(rows) - 1),
        )
        return frame, root

    def _shown_root(self, root: StateRoot, flags: Flag) -> StateRoot:
        if flags & Flag.PARTIAL:
            return StateRoot(ZERO_HASH)
        node = self._node
        assert node.replica is not None, "a root of a node that is down"
        is_alone = len(node.replica.ballot.config.voters) == 1
        if self.wrong_roots_until > node.world.scheduler.now and not is_alone:
            return wrong_root(root)
        return root

    def root_at_tip(self) -> StateRoot:
        """Return the state root that a CONFIG on the tip must carry."""
        assert self._node.replica is not None, "a root of a node that is down"
        return self._tip_root(self._node.replica.tip)

    def _tip_root(self, tip: Head) -> StateRoot:
        """Return the root of the last whole transaction at or below the tip."""
        if self._root is not None and self._root[0] == tip.hash:
            return self._root[1]
        frames = self._node.disk.frames
        while tip.is_partial:
            tip = frames[tip.prev_hash].head
        return tip.state_root

    # What the node asks.

    def check_own(self, effect: Persist) -> None:
        """Refuse own frames that do not follow what the database holds."""
        place = self._node.disk.place
        for own in effect.own:
            head = own.frame.head
            if (head.seq, head.prev_hash) != (place[0] + 1, place[1]):
                raise self._node.fail(f"order: seals {head.seq} on a database at {place[0]}")
            place = (head.seq, head.hash)

    def check_held(self, heads: Sequence[Head]) -> None:
        """Refuse to take for held and final what the database does not hold."""
        if not heads:
            return
        disk, last = self._node.disk, heads[-1]
        height, digest = disk.place
        while height > last.seq and digest in disk.frames:
            height, digest = height - 1, disk.frames[digest].head.prev_hash  # type: ignore[assignment]
        if digest not in disk.frames and height > last.seq:
            # The rest is pruned, and so it is final.
            height, digest = last.seq, self._node.world.truth.heads[last.seq].hash
        if (height, digest) != (last.seq, last.hash):
            raise self._node.fail(f"order: calls {last.seq} its own, which its database has not")

    def check_free(self) -> None:
        """Refuse to apply frames of others over commits that nobody took away first."""
        node = self._node
        self.slip()
        self.capture()
        if node.disk.waiting and node.is_honest:
            raise node.fail("order: applies frames over commits that wait")
