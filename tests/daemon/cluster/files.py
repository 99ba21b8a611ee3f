"""Replica files for tests: opened behind a real guardian, and a source of changes."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from basenet.daemon.cluster.file import ReplicaFile, Target, pages_of
from basenet.daemon.cluster.guard import Fence, Guard
from basenet.daemon.framer import instant
from basenet.engine.events import Instant
from basenet.units import HASH_BYTES, FrameHash, Seq, ShardId, StateRoot
from basenet.wire.merkle import StateTree, leaf_hashes
from basenet.wire.payload import CommitPayload
from tests.daemon.cluster.guarding import guarded
from tests.sqlite.replica import Source

PLACE = (Seq(7), FrameHash(b"\x07" * 32))


@dataclass
class Opened:
    """A file that is open, and its guardian."""

    file: ReplicaFile
    guard: Guard
    left: tuple[int, ...] = ()

    @property
    def fence(self) -> Fence:
        assert isinstance(self.file.fence, Fence)
        return self.file.fence

    def release(self, seconds: int = 60) -> None:
        """Let the application write."""
        self.fence.renew(Instant(instant() + seconds * 10**9))
        self.guard._flush_now()  # the event loop stands still while an application runs

    def die(self) -> None:
        """Let go of nothing in order: no DROP reaches the guardian."""
        self.left = self.fence.surrender()
        self.file._fence = None


@asynccontextmanager
async def opened(path: Path, socket: Path, *, page_size: int = 0) -> AsyncIterator[Opened]:
    async with guarded(socket) as guard:
        file = ReplicaFile(
            shard=ShardId("s"), path=path, guard=guard, limiter=trio.CapacityLimiter(4)
        )
        await file.open(page_size=page_size)
        here = Opened(file, guard)
        try:
            yield here
        finally:
            await file.close()
            for descriptor in here.left:
                os.close(descriptor)


def payload_of(source: Source) -> CommitPayload:
    """What changed in ``source`` since the last call."""
    change = source.change()
    ((pgnos, pages),) = change.pieces
    return CommitPayload(
        page_size=source.page_size,
        db_pages=change.db_pages,
        commits=1,
        pgnos=pgnos,
        pages=pages,
    )


def whole_of(source: Source) -> CommitPayload:
    """All pages of ``source``, as one change."""
    source._pages = {}
    return payload_of(source)


def leaves_of(image: bytes, page_size: int) -> bytes:
    """The leaf hashes of a database file."""
    return leaf_hashes(1, image, page_size)


def root_of(image: bytes, page_size: int) -> StateRoot:
    """The state root of a database file."""
    return StateTree(page_size, leaves_of(image, page_size)).root()


@dataclass
class StateSources:
    """Frames at hand, and peers that have ``pages`` (by leaf hash); everything asked is noted."""

    frames: list[CommitPayload] = field(default_factory=list)
    pages: dict[bytes, bytes] = field(default_factory=dict)
    later: list[dict[bytes, bytes]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    waits: int = 0

    def images(self) -> Iterator[tuple[int, bytes | memoryview]]:
        return pages_of(reversed(self.frames))

    async def fetch(self, wants: Sequence[tuple[int, bytes]]) -> Mapping[int, bytes]:
        self.asked += [pgno for pgno, _ in wants]
        return {pgno: self.pages[hashed] for pgno, hashed in wants if hashed in self.pages}

    async def wait_for_more(self) -> bool:
        self.waits += 1
        if not self.later:
            return False
        self.pages.update(self.later.pop(0))
        return True


class State:
    """A database as it stood at one moment: what a target is, and what peers have."""

    def __init__(self, image: bytes, page_size: int) -> None:
        self.image, self.page_size = image, page_size
        self.leaves = leaves_of(image, page_size)
        self.db_pages = len(image) // page_size

    @classmethod
    def of(cls, source: Source) -> "State":
        source.run("PRAGMA wal_checkpoint(TRUNCATE)")
        return cls(source.path.read_bytes(), source.page_size)

    def leaf(self, pgno: int) -> bytes:
        assert 1 <= pgno <= self.db_pages
        return self.leaves[(pgno - 1) * HASH_BYTES : pgno * HASH_BYTES]

    def target(self, pgnos: Sequence[int] | None = None) -> Target:
        return Target(page_size=self.page_size, db_pages=self.db_pages, leaf=self.leaf, pgnos=pgnos)

    def pages(self) -> dict[bytes, bytes]:
        size = self.page_size
        return {
            self.leaf(pgno): self.image[(pgno - 1) * size : pgno * size]
            for pgno in range(1, self.db_pages + 1)
        }

    @property
    def root(self) -> bytes:
        return StateTree(self.page_size, self.leaves).root()


async def apply(file: ReplicaFile, *changes: CommitPayload) -> None:
    """Prepare and inject, as the settler does."""
    prepared = await file.prepare([[change] for change in changes])
    assert prepared is not None
    await file.inject(prepared)
