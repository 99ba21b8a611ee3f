"""A process that stores without end and says what is stored: to be killed at any moment.

``python -m tests.journal.storing DIRECTORY SEED``: goes on from the journal in DIRECTORY, or gives
birth to a shard. After each durable transaction it prints the seq that it made durable. It works as
the daemon does, by engine and state tree, over a database of random pages.
"""

import random
import sys
import time
from pathlib import Path

import numpy as np

from basenet.daemon.chain import continue_chain
from basenet.engine.effects import Persist
from basenet.engine.events import FrameCaptured, Instant
from basenet.engine.genesis import write_genesis
from basenet.journal.journal import Journal
from basenet.journal.records import Batch, FrameRow
from basenet.units import Lineage, LocalNumber, StateRoot, TimestampNs
from basenet.wire.frame import Flag, encode_frame
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.payload import (
    CommitPayload,
    ConfigPayload,
    Voter,
    decode_config,
    encode_commit,
    encode_config,
)
from basenet.wire.signature import Signer
from tests.journal.story import SHARD, cursor_at

PAGE_SIZE = 512
SIGNER = Signer(b"s" * 32)


class Storer:
    """One shard of one journal, and an application that commits at random."""

    def __init__(self, journal: Journal, chance: random.Random) -> None:
        self.journal = journal
        self.chance = chance
        record = journal.load(SHARD)
        if record is None:
            self._be_born()
            record = journal.load(SHARD)
        assert record is not None
        self.tree = StateTree(record.page_size, journal.leaves(SHARD))
        config = decode_config(record.config)
        author = (SIGNER, journal.journal_id)
        self.replica = continue_chain(SHARD, config, record.tip, record.local_last, author)

    def _be_born(self) -> None:
        voter = Voter(node_id="n", key=SIGNER.public, journal_id=self.journal.journal_id)
        config = ConfigPayload(
            lineage=Lineage(b"l" * 16),
            parent=None,
            voters=(voter,),
            page_size=PAGE_SIZE,
            members_hash=bytes(32),
        )
        tree = StateTree(PAGE_SIZE)
        genesis = write_genesis(
            config,
            shard=SHARD,
            state_root=tree.root(),
            timestamp_ns=now_ns(),
            salt=bytes(16),
            signer=SIGNER,
        )
        none = LocalNumber(0)
        row = FrameRow(
            head=genesis.head, record=genesis.record, local_first=LocalNumber(1), local_last=none
        )
        self.journal.begin_lineage(
            shard=SHARD,
            path="app.db",
            lineage=config.lineage,
            config=encode_config(config),
            batch=Batch(
                shard=SHARD, frames=(row,), page_size=PAGE_SIZE, cursor=cursor_at(row.head.seq)
            ),
        )

    def _persist(self, event: FrameCaptured) -> FrameRow:
        effect, *_ = self.replica.step(event, Instant(0))
        assert isinstance(effect, Persist)
        (own,) = effect.own
        return FrameRow(
            head=own.frame.head,
            record=encode_frame(own.frame),
            local_first=own.local_first,
            local_last=own.local_last,
        )

    def commit(self, pieces: int) -> None:
        """Commit in ``pieces`` frames, each made durable and reported by itself."""
        before = self.tree.db_pages
        size = max(1, before + self.chance.randint(-20, 30))
        pgnos = sorted(
            {self.chance.randint(1, size) for _ in range(8)} | set(range(before + 1, size + 1))
        )
        pages = [self.chance.randbytes(PAGE_SIZE) for _ in pgnos]
        hashes = [leaf_hash(pgno, page) for pgno, page in zip(pgnos, pages, strict=True)]
        changed = self.tree.update(pgnos, hashes, size)
        for piece in range(pieces):
            cut = slice(piece * len(pgnos) // pieces, (piece + 1) * len(pgnos) // pieces)
            is_last = piece == pieces - 1
            payload = encode_commit(
                CommitPayload(
                    page_size=PAGE_SIZE,
                    db_pages=size,
                    commits=int(is_last),
                    pgnos=np.array(pgnos[cut], np.uint32),
                    pages=b"".join(pages[cut]),
                )
            )
            self._store(payload, changed if is_last else None)

    def _store(self, payload: bytes, changed: list[int] | None) -> None:
        is_last = changed is not None
        last = self.replica.local_last
        row = self._persist(
            FrameCaptured(
                payload=payload,
                flags=Flag.NONE if is_last else Flag.PARTIAL,
                state_root=self.tree.root() if is_last else StateRoot(bytes(32)),
                timestamp_ns=now_ns(),
                salt=self.chance.randbytes(16),
                local_first=LocalNumber(last + 1),
                local_last=LocalNumber(last + is_last),
            )
        )
        self.journal.store(
            [
                Batch(
                    shard=SHARD,
                    frames=(row,),
                    page_size=PAGE_SIZE,
                    db_pages=self.tree.db_pages,
                    cursor=cursor_at(row.head.seq) if is_last else None,
                    groups={group: self.tree.group_leaves(group) for group in changed or ()},
                )
            ]
        )
        say("stored" if is_last else "piece", row.head.seq)

    def archive(self) -> None:
        """Drop what an archive would have by now."""
        seq = self.replica.final.height - self.chance.randint(0, 20)
        self.journal.set_archived(SHARD, max(seq, 0), keep_bytes=self.chance.randint(0, 40_000))
        say("archived", seq)


def now_ns() -> TimestampNs:
    return TimestampNs(time.time_ns())


def say(what: str, seq: int) -> None:
    sys.stdout.write(f"{what} {seq}\n")
    sys.stdout.flush()


def main() -> None:
    journal = Journal(Path(sys.argv[1]))
    storer = Storer(journal, random.Random(sys.argv[2]))
    while True:
        storer.commit(storer.chance.choice([1, 1, 1, 1, 4]))
        if storer.chance.random() < 0.1:
            storer.archive()


if __name__ == "__main__":
    main()
