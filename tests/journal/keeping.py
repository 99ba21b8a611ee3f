"""A process that keeps and settles without end and says what it did: to be killed at any moment.

``python -m tests.journal.keeping DIRECTORY SEED``: goes on from the journal in DIRECTORY, or gives
birth to a shard with peers. After each durable transaction it prints what that made durable.
"""

import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from basenet.engine.ballot import Ballot
from basenet.journal.journal import Journal
from basenet.journal.records import BranchRow, OrphanRow, Settled, Step
from basenet.units import (
    ZERO_HASH,
    FrameHash,
    Lineage,
    LocalNumber,
    Seq,
    StateRoot,
    TimestampNs,
)
from basenet.wire.frame import Flag, Frame, Head, Kind, decode_frame, seal
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.payload import CommitPayload, decode_commit, encode_commit
from tests.fakes.branching import (
    NO_COMMITS,
    SHARD,
    Branching,
    certify,
    cursor_at,
    groups_of,
    mark_of,
    row_of,
)

PAGE_SIZE = 512


class Keeper:
    """One shard of one journal. ``path``: the branch that is followed, above the final frame."""

    def __init__(self, journal: Journal, chance: random.Random) -> None:
        self.journal = journal
        self.chance = chance
        self.signer = Branching().chain.signer
        if journal.load_replica(SHARD) is None:
            journal.begin_replica(**Branching().birth())
        record = journal.load_replica(SHARD)
        assert record is not None
        self.lineage = Lineage(record.lineage)
        self.ballot: Ballot = record.ballot
        self.tip: Head = record.tip
        self.local_last = record.local_last
        self.final = StateTree(record.page_size, journal.leaves(SHARD))
        self.path = self._read_path()
        if self.ballot.final.height > self.tip.seq:
            self._settle(self.ballot.final.height - self.tip.seq)

    def _read_path(self) -> list[BranchRow]:
        """What was voted for last, down to the final frame; nothing if it was given up since."""
        voted, path = self.ballot.voted, list[BranchRow]()
        digest = voted.hash if voted is not None else self.tip.hash
        while digest != self.tip.hash:
            encoded = self.journal.branch_frame(SHARD, digest)
            if encoded is None:
                return []
            frame = decode_frame(encoded)
            assert isinstance(frame, Frame)
            path.insert(0, row_of(frame, self._local_numbers(digest)))
            digest = frame.head.prev_hash
        lost = {orphan.first_local for orphan in self.journal.orphans(SHARD)}
        return [] if lost & {row.local_first for row in commits_of(path)} else path

    def _local_numbers(self, digest: FrameHash) -> tuple[LocalNumber, LocalNumber]:
        with self.journal._file.reading() as connection:
            ((first, last),) = connection.execute(
                "SELECT local_first, local_last FROM branch WHERE hash = ?", (digest,)
            )
        return LocalNumber(first), LocalNumber(last)

    @property
    def end(self) -> Head:
        return self.path[-1].head if self.path else self.tip

    def tree_behind(self, rows: list[BranchRow]) -> StateTree:
        """The final state, and on top of it what ``rows`` change."""
        tree = self.final.copy()
        run: dict[int, bytes] = {}
        for row in rows:
            frame = decode_frame(row.record)
            assert isinstance(frame, Frame)
            payload = decode_commit(frame.payload)
            for index, pgno in enumerate(payload.pgnos.tolist()):
                run[pgno] = leaf_hash(pgno, payload.page(index))
            if not row.head.is_partial:
                pgnos = sorted(run)
                tree.update(pgnos, [run[pgno] for pgno in pgnos], payload.db_pages)
                run.clear()
        return tree

    def commit(
        self, before: Head, tree: StateTree, pieces: int, *, is_own: bool
    ) -> list[BranchRow]:
        """The frames of one commit behind ``before``, whose state ``tree`` has."""
        size = max(1, tree.db_pages + self.chance.randint(-10, 15))
        pgnos = sorted(
            {self.chance.randint(1, size) for _ in range(6)}
            | set(range(tree.db_pages + 1, size + 1))
        )
        pages = [self.chance.randbytes(PAGE_SIZE) for _ in pgnos]
        hashes = [leaf_hash(pgno, page) for pgno, page in zip(pgnos, pages, strict=True)]
        tree.update(pgnos, hashes, size)
        rows = []
        for piece in range(pieces):
            cut = slice(piece * len(pgnos) // pieces, (piece + 1) * len(pgnos) // pieces)
            is_last = piece == pieces - 1
            payload = CommitPayload(
                page_size=PAGE_SIZE,
                db_pages=size,
                commits=int(is_last),
                pgnos=np.array(pgnos[cut], np.uint32),
                pages=b"".join(pages[cut]),
            )
            frame = self._seal(before, encode_commit(payload), tree if is_last else None)
            before = frame.head
            local = NO_COMMITS
            if is_own:
                first = LocalNumber(self.local_last + 1)
                self.local_last = LocalNumber(self.local_last + is_last)
                local = (first, self.local_last)
            rows.append(row_of(frame, local))
        return rows

    def _seal(self, before: Head, payload: bytes, tree: StateTree | None) -> Frame:
        return seal(
            shard=SHARD,
            seq=Seq(before.seq + 1),
            timestamp_ns=TimestampNs(max(before.timestamp_ns + 1, time.time_ns())),
            salt=self.chance.randbytes(16),
            payload=payload,
            kind=Kind.COMMIT,
            flags=Flag.PARTIAL if tree is None else Flag.NONE,
            epoch=before.epoch,
            view=before.view,
            prev_hash=before.hash,
            state_root=StateRoot(ZERO_HASH) if tree is None else tree.root(),
            signer=self.signer,
        )

    # What it does

    def keep(self, *, is_own: bool) -> None:
        """Go on, by commits of this node or of another, perhaps beside a rival branch."""
        tree = self.tree_behind(self.path)
        rows: list[BranchRow] = []
        for _ in range(self.chance.randint(1, 3)):
            before = rows[-1].head if rows else self.end
            rows += self.commit(before, tree, self.chance.choice([1, 1, 3]), is_own=is_own)
        rivals: list[BranchRow] = []
        if self.chance.random() < 0.3:
            rivals = self.commit(self.tip, self.final.copy(), 2, is_own=False)
        self.ballot = replace(self.ballot, voted=mark_of(rows[-1].head))
        head = rows[-1].head
        self.journal.keep(
            [
                Step(
                    shard=SHARD,
                    frames=tuple(rivals + rows),
                    ballot=self.ballot,
                    cursor=cursor_at(head.seq) if is_own else None,
                    place=(head.seq, head.hash) if is_own else None,
                    local_last=self.local_last if is_own else None,
                )
            ]
        )
        self.path += rows
        for row in rows:
            say("kept", row.head)

    def settle(self) -> None:
        """Call a part of the path final, then settle it, in two transactions as a replica does."""
        ends = [index for index, row in enumerate(self.path, 1) if not row.head.is_partial]
        if not ends:
            return
        cut = self.chance.choice(ends)
        head = self.path[cut - 1].head
        self.ballot = replace(self.ballot, final=mark_of(head), certificate=certify(head))
        self.journal.keep([Step(shard=SHARD, ballot=self.ballot)])
        say("decided", head)
        self._settle(cut)

    def _settle(self, cut: int) -> None:
        heads = tuple(row.head for row in self.path[:cut])
        tree = self.tree_behind(self.path[:cut])
        self.journal.settle(
            [
                Settled(
                    shard=SHARD,
                    heads=heads,
                    certificate=certify(heads[-1]),
                    page_size=PAGE_SIZE,
                    db_pages=tree.db_pages,
                    groups=groups_of(tree),
                    intent=b"up to %d" % heads[-1].seq,
                )
            ]
        )
        self.tip, self.final, self.path = heads[-1], tree, self.path[cut:]
        say("settled", self.tip)

    def place(self) -> None:
        """The file has what is final."""
        place = (self.tip.seq, self.tip.hash)
        self.journal.set_place(
            SHARD, place, cursor=cursor_at(place[0]), local_last=None, intent=None
        )
        say("placed", self.tip)

    def lose(self) -> None:
        """A branch of another node becomes final; what was kept here above the tip is orphaned."""
        own = commits_of(self.path)
        if not own:
            return
        first, last = own[0].local_first, own[-1].local_last
        self.journal.add_orphan(
            OrphanRow(
                id=f"o{first}",
                shard=SHARD,
                lineage=self.lineage,
                path=f"orphans/o{first}",
                kept_seq=self.tip.seq,
                first_local=first,
                last_local=last,
                commits=last - first + 1,
                created_ns=TimestampNs(time.time_ns()),
                state="kept",
                reason="it lost",
            )
        )
        say("orphaned", own[-1].head)
        self.path = []
        self.place()
        self.keep(is_own=False)
        self.settle()


def commits_of(rows: list[BranchRow]) -> list[BranchRow]:
    """Those that end a commit of this node."""
    return [row for row in rows if row.local_last >= row.local_first]


def say(what: str, head: Head) -> None:
    sys.stdout.write(f"{what} {head.seq} {head.hash.hex()}\n")
    sys.stdout.flush()


def main() -> None:
    journal = Journal(Path(sys.argv[1]))
    keeper = Keeper(journal, random.Random(sys.argv[2]))
    acts = {
        "own": lambda: keeper.keep(is_own=True),
        "others": lambda: keeper.keep(is_own=False),
        "settle": keeper.settle,
        "place": keeper.place,
        "lose": keeper.lose,
    }
    while True:
        if len(keeper.path) > 40:
            keeper.settle()
        (act,) = keeper.chance.choices(list(acts), (4, 4, 4, 2, 1))
        acts[act]()


if __name__ == "__main__":
    main()
