"""Snapshots of a shard with peers, taken by its writer from its own file.

The file of the writer is ahead of what is final; a snapshot may read what is not final yet. So it
ends at a final frame with a certificate at or above all that was read, and its pages are proven by
the state root there. If the writer is deposed meanwhile, the attempt has failed, and the next
writer takes one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from basenet.archive.pageset import SnapshotStart
from basenet.config.model import NodeRole
from basenet.daemon.chain import Parent
from basenet.daemon.cluster.term import Term
from basenet.daemon.node import Node
from basenet.daemon.progress import Progress
from basenet.daemon.upkeep import Reader, Upkeep
from basenet.errors import ConflictError, UnavailableError
from basenet.sqlite.pages import read_pages
from basenet.units import Seq, ShardId
from basenet.wire.frame import Head, decode_head_of

if TYPE_CHECKING:
    from basenet.daemon.session import Session

_FINAL_S: Final = 30.0


class Archived(Protocol):
    """A shard with peers, as its archive sees it; `ClusterShard` satisfies it."""

    shard: ShardId
    progress: Progress
    term: Term | None

    async def capture_now(self) -> Seq:
        """Capture what is committed here at this moment; return the seq that holds it."""
        ...


class ArchivedHost:
    """The shard as `daemon.upkeep` asks for it: it never lets go of its file."""

    def __init__(self, shard: Archived) -> None:
        self.shard = shard.shard
        self.progress = shard.progress
        self.session: Session | None = None
        self.db_pages = 0
        self._shard = shard

    def want_attached(self) -> None:
        """Do nothing: the file is attached as long as the term lasts."""

    async def capture_now(self) -> int:
        """Capture what is committed at this moment; return the seq that holds it."""
        return await self._shard.capture_now()

    def become_child_of(self, parent: Parent) -> None:
        """Never happens: a lineage with peers is continued by all of them or not at all."""
        raise AssertionError(f"a shard with peers became a child of {parent.lineage.hex()}")


class ClusterReader:
    """Reads one shard's pages and frames for a snapshot: an `upkeep.Reader`."""

    def __init__(self, node: Node, shard: Archived) -> None:
        self.keep_from: Seq | None = None
        """The first frame that the journal must keep for this snapshot."""
        self._node = node
        self._shard = shard
        self._term: Term | None = None

    def _present(self) -> Term:
        term = self._shard.term
        if term is None or not term.is_at_work or self._term not in (None, term):
            raise UnavailableError(
                f"shard {self._shard.shard} is not being captured just now: its snapshot is taken "
                "later."
            )
        self._term = term
        return term

    async def begin(self) -> SnapshotStart:
        """Return where copying begins: the last settled frame that the file holds."""
        term = self._present()
        if not term.settler.place[0]:
            raise UnavailableError(f"the file of shard {self._shard.shard} is being mended.")
        async with term.branch.lock:
            tree = term.branch.final
            # A writer's file is ahead of what is settled, a replica's may be behind.
            seq = min(term.branch.final_place[0], term.settler.place[0])
        self.keep_from = Seq(seq + 1)
        return SnapshotStart(seq=seq, page_size=tree.page_size, db_pages=tree.db_pages)

    async def read_pages(self, first_pgno: int, count: int) -> memoryview:
        """Return pages as they stand now, each of them committed; fewer past the end."""
        async with self._present().settler.file_lock:
            return await trio.to_thread.run_sync(
                read_pages,
                self._present().file.database,
                first_pgno,
                count,
                limiter=self._node.background_limiter,
            )

    async def finish(self) -> Head:
        """Return the head of a certified final frame that holds all that `read_pages` returned."""
        with trio.move_on_after(_FINAL_S):
            seq = await self._file_end()
            await self._present().settler.reached(seq)
            return await self._head_at(seq)
        raise UnavailableError(
            f"what shard {self._shard.shard} holds is not final after {_FINAL_S:.0f} s: its "
            "snapshot is taken later."
        )

    async def _file_end(self) -> Seq:
        """Return the frame at or above everything that was read."""
        if self._node.config.cluster.node_role is NodeRole.ARCHIVE:
            return self._present().settler.settled[0]  # nothing else is ever injected
        try:
            return await self._shard.capture_now()
        except ConflictError as error:
            raise UnavailableError(str(error)) from error

    async def _head_at(self, seq: Seq) -> Head:
        """Return the head of the first certified frame from ``seq`` on, or of the last one."""
        shard, settled = self._shard.shard, self._present().settler.settled[0]

        def read() -> bytes:
            journal = self._node.journalist.journal
            proof = journal.certificate_for(shard, seq)
            height = settled if proof is None else proof.height
            return journal.frames(shard, height, height, 0)[0][1]

        return decode_head_of(await trio.to_thread.run_sync(read))

    async def frames(self, start: Seq, end: Seq, bytes_max: int) -> Sequence[bytes]:
        """Return the encoded frames ``start`` .. ``end``, at least one, up to ``bytes_max``."""
        rows = await self._node.journalist.read(
            lambda journal: journal.frames(self._shard.shard, start, end, bytes_max)
        )
        return [record for _, record in rows]


class ClusterUpkeep(Upkeep):
    """`Upkeep` of a shard with peers."""

    archived: Archived
    """The shard; set by whoever made this."""

    def count_pages(self) -> int:
        """Return how large the database is at its last final frame."""
        term = self.archived.term
        return term.branch.final.db_pages if self.is_attached() and term is not None else 0

    def is_attached(self) -> bool:
        """Return whether the file can be read now."""
        term = self.archived.term
        return term is not None and term.is_at_work

    def make_reader(self) -> Reader:
        """Return what a snapshot reads."""
        return ClusterReader(self._node, self.archived)
