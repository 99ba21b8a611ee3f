"""A database of made-up pages, what capture would hand over of it, and the journal it goes into."""

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from basenet.daemon.chain import Author, Birth, Parent, load
from basenet.daemon.framer import Framer
from basenet.journal.journal import Journal
from basenet.journal.records import ShardRecord
from basenet.sqlite.captured import Captured, CaptureFlag, Cursor
from basenet.sqlite.recover import Scan
from basenet.units import JournalId, LocalNumber, ShardId, StateRoot
from basenet.wire.frame import Frame, decode_frame
from basenet.wire.merkle import StateTree, leaf_hash
from tests.fakes.chain import signer

SHARD = ShardId("app")
SIGNER = signer(1)


def cursor_at(place: int, page_size: int = 512) -> Cursor:
    return Cursor(
        device=1,
        inode=2,
        page_size=page_size,
        salts=b"saltsalt",
        frame=place,
        checksum=(place, place),
        change=place,
    )


class Model:
    """The pages of one database, by number; ``place`` is where its log ends."""

    def __init__(self, pages: int = 20, *, page_size: int = 512, seed: int = 1) -> None:
        self.page_size = page_size
        self.chance = random.Random(seed)
        self.pages = {pgno: self.page() for pgno in range(1, pages + 1)}
        self.place = 0
        self.now_ns = 1_800_000_000_000_000_000

    def page(self) -> bytes:
        return self.chance.randbytes(8) + bytes(self.page_size - 8)

    @property
    def leaves(self) -> bytes:
        return b"".join(leaf_hash(pgno, self.pages[pgno]) for pgno in sorted(self.pages))

    @property
    def root(self) -> StateRoot:
        return StateTree(self.page_size, self.leaves).root()

    @property
    def cursor(self) -> Cursor:
        return cursor_at(self.place, self.page_size)

    def scan(self) -> Scan:
        return Scan(
            page_size=self.page_size,
            db_pages=len(self.pages),
            leaves=bytearray(self.leaves),
            cursor=self.cursor,
        )

    def commit(
        self, *pgnos: int, db_pages: int | None = None, flags: CaptureFlag = CaptureFlag.NONE
    ) -> Captured:
        """Write new content to ``pgnos`` (page 1 if none is given) and return the change."""
        return self.run({pgno: self.page() for pgno in pgnos or (1,)}, db_pages, flags=flags)[0]

    def run(
        self,
        changes: Mapping[int, bytes],
        db_pages: int | None = None,
        *,
        pieces: int = 1,
        flags: CaptureFlag = CaptureFlag.NONE,
    ) -> list[Captured]:
        """Write ``changes`` and return them as a run of ``pieces``."""
        before = self.cursor
        size = max(len(self.pages), *changes) if db_pages is None else db_pages
        self.pages.update(changes)
        self.pages = {pgno: page for pgno, page in self.pages.items() if pgno <= size}
        self.place += len(changes)
        self.now_ns += 1_000_000
        pgnos = sorted(changes)
        step = -(-len(pgnos) // pieces)
        cuts = [pgnos[start : start + step] for start in range(0, len(pgnos), step)]
        return [
            Captured(
                page_size=self.page_size,
                db_pages=size,
                commits=int(cut is cuts[-1] and not flags),
                pgnos=np.array(cut, np.uint32),
                pages=b"".join(changes[pgno] for pgno in cut),
                flags=flags if cut is cuts[-1] else flags | CaptureFlag.PARTIAL,
                cursor=self.cursor if cut is cuts[-1] else before,
                captured_ns=self.now_ns,
            )
            for cut in cuts
        ]

    def three_pieces(self) -> list[Captured]:
        """Rewrite every page in a run of three."""
        return self.run({pgno: self.page() for pgno in self.pages}, pieces=3)


def author_of(journal_id: JournalId) -> Author:
    return Author(node_id="node1", signer=SIGNER, journal_id=journal_id)


def give_birth(
    journal: Journal,
    model: Model,
    *,
    shard: ShardId = SHARD,
    local_last: int = 0,
    parent: Parent | None = None,
    beyond: tuple[Captured, ...] = (),
) -> None:
    birth = Birth(
        shard=shard,
        path="/data/app.db",
        author=author_of(journal.journal_id),
        scan=model.scan(),
        local_last=LocalNumber(local_last),
        parent=parent,
        beyond=beyond,
    )
    birth(journal)


def born(folder: Path, model: Model) -> Journal:
    """Return a journal in ``folder`` that holds the genesis of ``model``."""
    journal = Journal(folder)
    give_birth(journal, model)
    return journal


def loaded(journal: Journal, shard: ShardId = SHARD) -> tuple[ShardRecord, Framer]:
    found = load(journal, shard, SIGNER)
    assert found is not None
    return found


def frames_of(journal: Journal, shard: ShardId = SHARD) -> list[Frame]:
    """Return all frames that the journal holds of ``shard``."""
    sizes = journal.frame_sizes(shard, 0)
    frames = []
    for _, record in journal.frames(shard, sizes[0][0], sizes[-1][0], 1 << 30):
        frame = decode_frame(record)
        assert isinstance(frame, Frame)
        frames.append(frame)
    return frames
