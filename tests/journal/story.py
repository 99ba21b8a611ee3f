"""A shard's life as the journal is told of it: births, commits, runs, and what must come back."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from basenet.journal.journal import Journal
from basenet.journal.records import Batch, FrameRow
from basenet.units import LocalNumber, ShardId
from basenet.wire.frame import Flag, Frame, Kind, check_link, decode_frame, encode_frame
from basenet.wire.merkle import StateTree
from tests.fakes.chain import Chain

SHARD = ShardId("app")


def cursor_at(seq: int) -> bytes:
    """The capture cursor that belongs to the state after frame ``seq``."""
    return b"cursor behind frame %d" % seq


class Story:
    """One lineage, its rows and batches; ``chain`` makes the frames."""

    def __init__(
        self, chain: Chain | None = None, *, shard: ShardId = SHARD, pages: int = 20
    ) -> None:
        self.chain = chain or Chain(
            pages={pgno: bytes([pgno % 251]) * 512 for pgno in range(1, pages + 1)}
        )
        self.shard = shard
        self.local_last = 0
        self.rows: list[FrameRow] = [self._row(self.chain.frames[0])]
        self._groups = self.groups()

    def groups(self) -> dict[int, bytes]:
        """All leaf hashes of the present state, by group."""
        tree = self.chain.tree
        return {group: tree.group_leaves(group) for group in range(-(-tree.db_pages // 16))}

    def _row(self, frame: Frame) -> FrameRow:
        head = frame.head
        is_counted = head.kind == Kind.COMMIT and not head.flags
        first = self.local_last + 1
        self.local_last += is_counted
        return FrameRow(
            head=head,
            record=encode_frame(frame),
            local_first=LocalNumber(first),
            local_last=LocalNumber(self.local_last),
        )

    def birth(self) -> dict[str, Any]:
        """The arguments of `Journal.begin_lineage` for the genesis."""
        return {
            "shard": self.shard,
            "path": "/data/app.db",
            "lineage": self.chain.lineage,
            "config": self.chain.frames[0].payload,
            "batch": self.batch(self.rows),
        }

    def batch(self, rows: Sequence[FrameRow], *, detached: bytes | None = None) -> Batch:
        """``rows`` and, when they end a state, that state's cursor and changed leaf hashes."""
        is_whole = not rows or not rows[-1].head.flags & Flag.PARTIAL
        before, now = self._groups, self.groups()
        if is_whole:
            self._groups = now
        changed: Mapping[int, bytes] = {
            group: leaves
            for group, leaves in now.items()
            if is_whole and (before.get(group) != leaves or len(self.rows) == 1)
        }
        return Batch(
            shard=self.shard,
            frames=tuple(rows),
            page_size=self.chain.page_size,
            db_pages=self.chain.db_pages,
            cursor=cursor_at(rows[-1].head.seq) if rows and is_whole else None,
            detached=detached,
            groups=changed,
        )

    def commit(self, *, grow: int = 0, touch: int = 3) -> Batch:
        """One commit in one frame."""
        frame = self.chain.random_commit(grow=grow, touch=touch)
        self.rows.append(self._row(frame))
        return self.batch(self.rows[-1:])

    def commits(self, count: int) -> Batch:
        """That many commits in one batch."""
        start = len(self.rows)
        for _ in range(count):
            self.rows.append(self._row(self.chain.random_commit()))
        return self.batch(self.rows[start:])

    def run(self, pieces: int) -> list[Batch]:
        """One commit of ``pieces`` frames, each in a batch of its own."""
        start = len(self.rows)
        changes = {pgno: self.chain.page() for pgno in range(1, self.chain.db_pages + 1)}
        for frame in self.chain.commit(changes, run=pieces):
            self.rows.append(self._row(frame))
        return [self.batch([row]) for row in self.rows[start:]]

    def records(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """(seq, record) of the frames ``start`` .. ``end``."""
        return [(row.head.seq, row.record) for row in self.rows if start <= row.head.seq <= end]


def begin(folder: Path, story: Story) -> Journal:
    """Open the journal in ``folder`` and give birth to ``story``."""
    journal = Journal(folder)
    journal.begin_lineage(**story.birth())
    return journal


def check_whole(journal: Journal, shard: ShardId = SHARD) -> int:
    """Assert that what ``journal`` holds of ``shard`` fits together; return the tip's seq."""
    record = journal.load(shard)
    assert record is not None
    tip = record.tip
    tree = StateTree(record.page_size, journal.leaves(shard))
    assert tree.db_pages == record.db_pages
    assert tree.root() == tip.state_root
    assert record.cursor == cursor_at(tip.seq)
    sizes = journal.frame_sizes(shard, 0)
    heads = []
    for seq, size in sizes:
        ((found, encoded),) = journal.frames(shard, seq, seq, 0)
        frame = decode_frame(encoded)
        assert isinstance(frame, Frame)
        assert (found, len(encoded), frame.head.seq) == (seq, size, seq)
        heads.append(frame.head)
    for before, after in pairwise(heads):
        check_link(before, after)
    assert not heads or heads[-1] == tip
    assert journal.count_bytes(shard) == sum(size for _, size in sizes)
    return tip.seq
