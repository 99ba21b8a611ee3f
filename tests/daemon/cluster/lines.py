"""A shard's history as a real application made it: frames whose pages are those of a database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import trio

from basenet.daemon.cluster.branch import Branch
from basenet.daemon.cluster.file import ReplicaFile
from basenet.daemon.cluster.frames import Frames
from basenet.daemon.cluster.offer import FinalState
from basenet.daemon.cluster.placing import Placing
from basenet.daemon.cluster.settling import SettledFrame, Settler
from basenet.daemon.node import Node
from basenet.engine.effects import Finalize
from basenet.journal.journal import Journal
from basenet.journal.records import BranchRow, ReplicaRecord
from basenet.units import Seq
from basenet.wire.merkle import StateTree
from tests.daemon.node import running_node
from tests.fakes.branching import SHARD, Branching, ballot_of, certify, row_of
from tests.fakes.chain import Chain
from tests.sqlite.replica import Source

PAGE_SIZE = 4096


class Line:
    """The history of an empty database to which an application writes."""

    def __init__(self, path: Path) -> None:
        self.source = Source(path, PAGE_SIZE)
        self.source._pages = {}
        self.branching = Branching(Chain(page_size=PAGE_SIZE, pages={}))

    @property
    def chain(self) -> Chain:
        return self.branching.chain

    def begin(self, journal: Journal) -> None:
        """Let the lineage begin in ``journal``."""
        journal.begin_replica(**{**self.branching.birth(), "cursor": None})

    def commit(self, *statements: str, pieces: int = 1) -> list[BranchRow]:
        """Run statements in one transaction; return its frames."""
        with closing_transaction(self.source):
            for statement in statements or ("INSERT INTO t (v) VALUES (randomblob(5000))",):
                self.source.run(statement)
        change = self.source.change()
        changes = {
            int(pgno): bytes(pages[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
            for pgnos, pages in change.pieces
            for index, pgno in enumerate(pgnos)
        }
        frames = self.chain.commit(changes, db_pages=change.db_pages, run=pieces)
        return [row_of(frame) for frame in frames]

    def fresh(self) -> list[BranchRow]:
        """Return a frame of all pages, on the genesis: as somebody else would have written."""
        other = Line.__new__(Line)
        other.source, other.branching = self.source, Branching(Chain(page_size=PAGE_SIZE, pages={}))
        self.source._pages = {}
        return other.commit("INSERT INTO t (v) VALUES (randomblob(99))")

    def create(self) -> list[BranchRow]:
        """Make the table."""
        return self.commit("CREATE TABLE u (x)")

    def keep(self, journal: Journal, rows: list[BranchRow]) -> Finalize:
        """Put frames into the branch, called final; return what the replica says of them."""
        config = self.branching.config
        ballot = ballot_of(config, rows[-1].head)
        journal.keep([self.branching.step(rows, ballot=ballot)])
        return finalize(rows)

    def leaves(self) -> bytes:
        """The leaf hashes of the state at the end."""
        return bytes(self.chain.tree.leaves)


class closing_transaction:  # noqa: N801  (reads as a word of the language)
    """One transaction of the source."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> None:
        self.source.run("BEGIN")

    def __exit__(self, *_: object) -> None:
        self.source.run("COMMIT")


def finalize(rows: list[BranchRow], *, is_own: bool = False) -> Finalize:
    return Finalize(
        heads=tuple(row.head for row in rows), certificate=certify(rows[-1].head), is_own=is_own
    )


@dataclass
class Bench:
    """One shard's settler at work over a journal and a file, and what it tells."""

    node: Node
    line: Line
    file: ReplicaFile
    branch: Branch
    frames: Frames
    settler: Settler
    record: ReplicaRecord
    settled: list[list[SettledFrame]]
    applied: list[Seq]

    @property
    def journal(self) -> Journal:
        return self.node.journalist.journal

    async def holds(self) -> bool:
        """Whether the file is the state at the end of the line."""
        return bytes(await self.file.leaves()) == self.line.leaves()

    def now(self) -> ReplicaRecord:
        """What the journal says now."""
        record = self.journal.load_replica(SHARD)
        assert record is not None
        return record


@asynccontextmanager
async def a_line(folder: Path) -> AsyncIterator[Line]:
    line = Line(folder / "source.db")
    with closing(line.source):
        yield line


@asynccontextmanager
async def at_bench(folder: Path, line: Line) -> AsyncIterator[Bench]:
    """Start from the journal, as a term does; the lineage begins if the journal is empty."""
    async with running_node(folder, shards=f"app={folder / 'app.db'}") as node:
        journal = node.journalist.journal
        if journal.load_replica(SHARD) is None:
            line.begin(journal)
        record = journal.load_replica(SHARD)
        assert record is not None
        file = ReplicaFile(
            shard=SHARD, path=folder / "app.db", guard=None, limiter=trio.CapacityLimiter(4)
        )
        is_new = await file.open(page_size=PAGE_SIZE)
        place = (record.tip.seq, record.tip.hash)
        tree = StateTree(PAGE_SIZE, journal.leaves(SHARD))
        branch = Branch(tree, place)
        frames = Frames(SHARD, node.journalist)
        placing = Placing(node=node, shard=SHARD, file=file, branch=branch, frames=frames)
        found = await placing.find(record, is_file_new=is_new)
        settled: list[list[SettledFrame]] = []
        applied: list[Seq] = []
        settler = Settler(
            node=node,
            shard=SHARD,
            branch=branch,
            frames=frames,
            file=file,
            place=found.place,
            final=FinalState(head=record.tip, certificate=record.ballot.certificate, tree=tree),
            on_settled=lambda told: settled.append(list(told)),
            on_applied=applied.append,
        )
        try:
            yield Bench(node, line, file, branch, frames, settler, record, settled, applied)
        finally:
            await file.close()
