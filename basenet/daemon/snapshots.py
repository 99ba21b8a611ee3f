"""What a snapshot asks of a running shard: `archive.pageset.SnapshotSource` over its session."""

from collections.abc import Sequence

import trio

from basenet.archive.pageset import SnapshotStart
from basenet.daemon.host import Host
from basenet.daemon.node import Node
from basenet.daemon.session import Session
from basenet.errors import UnavailableError
from basenet.sqlite.pages import read_pages
from basenet.units import Seq
from basenet.wire.frame import Head


class SnapshotReader:
    """Reads one shard's pages and frames; from `begin` on the journal keeps the frames after s0."""

    def __init__(self, node: Node, shard: Host) -> None:
        self.keep_from: Seq | None = None
        """The first frame that the journal must keep for this snapshot."""
        self._node = node
        self._shard = shard
        self._session: Session | None = None

    def _present(self) -> Session:
        """Return the session that the snapshot began with; it must still be the shard's."""
        session = self._shard.session
        if session is None or (self._session is not None and session is not self._session):
            raise UnavailableError(
                f"shard {self._shard.shard} is not being captured just now: its snapshot is taken "
                "later."
            )
        return session

    async def _settle(self) -> Head:
        """Capture and finalise what is committed now; return the head of the last final frame."""
        self._present()
        await self._shard.capture_now()
        framer = self._present().framer
        if framer.is_run_open or self._shard.progress.final_seq != framer.tip.seq:
            raise UnavailableError(
                f"shard {self._shard.shard} is in the middle of a large transaction: its snapshot "
                "is taken later."
            )
        return framer.tip

    async def begin(self) -> SnapshotStart:
        """Return s0: every commit up to it is captured."""
        self._session = self._present()
        # Held before the tip is known: nothing above the present watermark may go.
        self.keep_from = Seq(self._shard.progress.final_seq + 1)
        head = await self._settle()
        tree = self._session.framer.tree
        return SnapshotStart(seq=head.seq, page_size=tree.page_size, db_pages=tree.db_pages)

    async def read_pages(self, first_pgno: int, count: int) -> memoryview:
        """Return pages as they stand now, each of them committed; fewer past the end."""
        session = self._present()
        async with session.file_lock:
            # Whoever held the lock may have let go of the file.
            if not session.is_live:
                raise UnavailableError(f"shard {self._shard.shard} was let go in mid-snapshot.")
            return await trio.to_thread.run_sync(
                read_pages,
                self._present().database,
                first_pgno,
                count,
                limiter=self._node.background_limiter,
            )

    async def finish(self) -> Head:
        """Return the head of a final frame that holds all that `read_pages` returned."""
        return await self._settle()

    async def frames(self, start: Seq, end: Seq, bytes_max: int) -> Sequence[bytes]:
        """Return the encoded frames ``start`` .. ``end``, at least one, up to ``bytes_max``."""
        rows = await self._node.journalist.read(
            lambda journal: journal.frames(self._shard.shard, start, end, bytes_max)
        )
        return [record for _, record in rows]
