"""A database that is committed to while a snapshot reads it."""

import random

from basenet.archive.pageset import SnapshotStart
from basenet.wire.frame import Head
from tests.fakes.chain import Chain, ChainSource


class LiveDatabase(ChainSource):
    """A chain whose database is committed to while it is read."""

    def __init__(self, chain: Chain, *, commits: int = 0, seed: int = 1) -> None:
        super().__init__(chain)
        self.rng = random.Random(seed)
        self.commits = commits  # at most so many before each read
        self.reads_done = 0

    def churn(self) -> None:
        for _ in range(self.rng.randint(0, self.commits)):
            grow = self.rng.choice([0, 0, 1, 5, 40, -1, -17, -60])
            self.chain.random_commit(grow=grow, touch=self.rng.randint(0, 4))

    async def begin(self) -> SnapshotStart:
        return SnapshotStart(
            seq=self.chain.tip.head.seq,
            page_size=self.chain.page_size,
            db_pages=self.chain.db_pages,
        )

    async def read_pages(self, first_pgno: int, count: int) -> bytes:
        """Each page as it stands at one moment, with commits between the pages."""
        self.reads_done += 1
        out = []
        for pgno in range(first_pgno, first_pgno + count):
            if self.rng.random() < 0.05:
                self.churn()
            out.append(self.chain.pages.get(pgno, b""))
        return b"".join(out)

    async def finish(self) -> Head:
        self.churn()
        return self.chain.tip.head


def grown(pages: int, *, page_size: int = 512, seed: int = 7, number: int = 1) -> Chain:
    """Return a chain whose database has so many pages."""
    chain = Chain(page_size=page_size, seed=seed, number=number)
    step = max(1, (4 << 20) // page_size)
    for first_pgno in range(1, pages + 1, step):
        last = min(first_pgno + step, pages + 1)
        chain.commit({pgno: chain.page() for pgno in range(first_pgno, last)})
    return chain
