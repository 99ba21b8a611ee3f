"""A shard's history made by hand: a genesis and commits over a model database."""

import random
from collections.abc import Mapping

import numpy as np

from basenet.units import (
    PARTIAL_RAW_BYTES_MAX,
    ZERO_HASH,
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
    lock_page,
)
from basenet.wire.frame import Flag, Frame, Kind, encode_frame, genesis_prev_hash, seal
from basenet.wire.merkle import StateTree, leaf_hash
from basenet.wire.payload import CommitPayload, ConfigPayload, Voter, encode_commit, encode_config
from basenet.wire.signature import Signer

FIRST_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000_000_000
JOURNAL_ID = JournalId(b"j" * 16)


def signer(number: int = 1) -> Signer:
    return Signer(bytes([number]) * 32)


def lineage(number: int = 1) -> Lineage:
    return Lineage(bytes([number]) * 16)


class Chain:
    """The frames of one lineage, and the pages they lead to (by number, from 1)."""

    def __init__(
        self,
        *,
        number: int = 1,
        key: int = 1,
        page_size: int = 512,
        pages: Mapping[int, bytes] | None = None,
        parent: "Chain | None" = None,
        parent_seq: int | None = None,
        seed: int = 7,
        journal_id: JournalId = JOURNAL_ID,
        is_forced: bool = False,
        begin_ns: int | None = None,
    ) -> None:
        self.shard = ShardId("app")
        self.lineage = lineage(number)
        self.signer = signer(key)
        self.epoch = Epoch(1)
        self.page_size = page_size
        self.rng = random.Random(seed)
        self.parent = parent
        self.frames: list[Frame] = []
        self.images: list[dict[int, bytes]] = []  # the model after each frame
        self.pages = dict(pages or {})
        before = None
        if parent is not None:
            at = parent_seq or parent.tip.head.seq
            before = parent.frame(at).head
            self.pages = dict(parent.image(at)) if pages is None else dict(pages)
        self.tree = StateTree(page_size, self._leaves())
        self.now_ns = begin_ns or (before.timestamp_ns + STEP_NS if before else FIRST_NS)
        config = ConfigPayload(
            lineage=self.lineage,
            parent=(parent.lineage, before.seq, before.hash) if parent and before else None,
            voters=(Voter(node_id=f"node{key}", key=self.signer.public, journal_id=journal_id),),
            page_size=page_size,
            members_hash=ZERO_HASH,
            is_forced=is_forced,
        )
        payload = encode_config(config)
        self._append(
            payload,
            Kind.CONFIG,
            Flag.NONE,
            seq=Seq(before.seq + 1 if before else 1),
            prev_hash=genesis_prev_hash(payload),
            state_root=before.state_root if before else self.tree.root(),
        )

    @property
    def db_pages(self) -> int:
        return len(self.pages)

    @property
    def start(self) -> int:
        return self.frames[0].head.seq

    @property
    def tip(self) -> Frame:
        return self.frames[-1]

    def frame(self, seq: int) -> Frame:
        return self.frames[seq - self.start]

    def image(self, seq: int) -> dict[int, bytes]:
        return self.images[seq - self.start]

    def encoded(self, start: int, end: int) -> list[bytes]:
        return [encode_frame(self.frame(seq)) for seq in range(start, end + 1)]

    def _leaves(self) -> bytes:
        return b"".join(leaf_hash(pgno, self.pages[pgno]) for pgno in sorted(self.pages))

    def page(self) -> bytes:
        """Return a page that compresses about as a database's does."""
        return self.rng.randbytes(self.page_size // 4) + bytes(self.page_size * 3 // 4)

    def commit(
        self,
        changes: Mapping[int, bytes],
        *,
        db_pages: int | None = None,
        flags: Flag = Flag.NONE,
        run: int = 1,
    ) -> list[Frame]:
        """Commit ``changes`` in a run of ``run`` frames; growth must be given, as SQLite does."""
        size = db_pages if db_pages is not None else max(self.db_pages, *changes, 0)
        lock = lock_page(self.page_size)
        self.pages.update(changes)
        self.pages = {pgno: page for pgno, page in self.pages.items() if pgno <= size}
        if lock <= size:
            self.pages[lock] = bytes(self.page_size)
        pgnos = sorted(pgno for pgno in changes if pgno <= size and pgno != lock)
        hashes = [leaf_hash(pgno, self.pages[pgno]) for pgno in pgnos]
        self.tree.page_size = self.page_size
        self.tree.update(pgnos, hashes, size)
        cuts = [
            pgnos[index * len(pgnos) // run : (index + 1) * len(pgnos) // run]
            for index in range(run)
        ]
        return [
            self._commit_part(cut, size, flags, is_last=index == run - 1)
            for index, cut in enumerate(cuts)
        ]

    def _commit_part(self, pgnos: list[int], size: int, flags: Flag, *, is_last: bool) -> Frame:
        pages = b"".join(self.pages[pgno] for pgno in pgnos)
        assert len(pages) <= PARTIAL_RAW_BYTES_MAX
        payload = encode_commit(
            CommitPayload(
                page_size=self.page_size,
                db_pages=size,
                commits=1 if is_last and not flags else 0,
                pgnos=np.array(pgnos, dtype=np.uint32),
                pages=pages,
            )
        )
        root = self.tree.root() if is_last else StateRoot(ZERO_HASH)
        before = self.tip.head
        return self._append(
            payload,
            Kind.COMMIT,
            flags if is_last else flags | Flag.PARTIAL,
            seq=Seq(before.seq + 1),
            prev_hash=before.hash,
            state_root=root,
        )

    def random_commit(self, *, grow: int = 0, touch: int = 3) -> Frame:
        """Commit a few changed pages and ``grow`` new ones; a negative number cuts some off."""
        size = max(1, self.db_pages + grow)
        changes = {pgno: self.page() for pgno in range(self.db_pages + 1, size + 1)}
        for _ in range(touch):
            changes[self.rng.randint(1, size)] = self.page()
        return self.commit(changes, db_pages=size)[-1]

    def _append(
        self,
        payload: bytes,
        kind: Kind,
        flags: Flag,
        *,
        seq: Seq,
        prev_hash: FrameHash,
        state_root: StateRoot,
    ) -> Frame:
        self.now_ns += STEP_NS
        frame = seal(
            shard=self.shard,
            seq=seq,
            timestamp_ns=TimestampNs(self.now_ns),
            salt=self.rng.randbytes(16),
            payload=payload,
            kind=kind,
            flags=flags,
            epoch=self.epoch,
            view=View(0),
            prev_hash=prev_hash,
            state_root=state_root,
            signer=self.signer,
        )
        self.frames.append(frame)
        self.images.append(dict(self.pages))
        return frame


class ChainSource:
    """The journal's side of a chain: gives encoded frames back, and counts how often."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.reads: list[tuple[int, int]] = []

    async def frames(self, start: Seq, end: Seq, bytes_max: int) -> list[bytes]:
        self.reads.append((start, end))
        out: list[bytes] = []
        for encoded in self.chain.encoded(start, min(end, self.chain.tip.head.seq)):
            if out and sum(map(len, out)) + len(encoded) > bytes_max:
                break
            out.append(encoded)
        return out
