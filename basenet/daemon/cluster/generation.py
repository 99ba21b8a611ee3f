"""What became of the commits that were made here: none is called final because of another one.

Theory of operation
===================

A commit is named by nobody: the application has SQLite's word and no number. Its seq is given to
another commit when it is orphaned, and this node may write again soon after. So "what is committed
here now is final" says nothing about a commit that is not here any more, unless this is known::

    read the generation ── commit ── wait for now, with that generation

    generation   lineage . journal . rows in the journal's index of what was put aside

Whatever is undone on this node is put aside first, and gets its row before it is undone. So as long
as the generation is the same nothing was undone, and what was committed since it was read is in the
file: it is captured, and is final when the end of the file is. A generation that has passed makes
the answer `Orphaned`, never final. It may be read too early, never too late: then it is at most
answered that a commit may be lost which is not.

An election ends no generation: a node that was deposed and lost nothing can say so.
"""

import weakref
from typing import Final, Protocol

import trio

from basenet.control.surface import Orphaned
from basenet.daemon.cluster.term import Term
from basenet.daemon.journalist import Journalist
from basenet.daemon.progress import Progress
from basenet.errors import ConflictError, UnavailableError
from basenet.units import JournalId, Lineage, Seq, ShardId

_DIGITS: Final = 8
_NAMED_MAX: Final = 5


class Written(Protocol):
    """A shard, as far as the fate of its commits is concerned."""

    shard: ShardId
    progress: Progress
    term: Term | None
    orphaned: int

    @property
    def lineage(self) -> Lineage | None:
        """The lineage that is known here."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether the shard ends."""
        ...


class Generations:
    """The generations of one shard on this node."""

    def __init__(self, shard: Written, journalist: Journalist, journal_id: JournalId) -> None:
        self._shard = shard
        self._journalist = journalist
        self._journal = journal_id.hex()[:_DIGITS]
        self._nursery: trio.Nursery | None = None
        self._seen_count = 0
        self._seen_term: weakref.ref[Term] | None = None
        self._rows: tuple[str, ...] | None = None

    @property
    def present(self) -> str | None:
        """The present one, or one that has just passed; None: not known yet."""
        lineage = self._shard.lineage
        if lineage is None or self._rows is None:
            return None
        return f"{lineage.hex()[:_DIGITS]}.{self._journal}.{len(self._rows)}"

    def begin(self, nursery: trio.Nursery) -> None:
        """Read in ``nursery``, from now on."""
        self._nursery = nursery
        self.look()

    def end(self) -> None:
        """Read no more."""
        self._nursery = None

    def look(self) -> None:
        """Have the index read if there may be news in it; returns at once."""
        if self._nursery is not None and not self._is_seen(self._sight):
            self._nursery.start_soon(self._read)

    @property
    def _sight(self) -> tuple[int, Term | None]:
        """What changes whenever a row may have been added: bundles, and the terms that begin."""
        term = self._shard.term
        return self._shard.orphaned, term if term is not None and term.is_at_work else None

    def _is_seen(self, sight: tuple[int, Term | None]) -> bool:
        count, term = sight
        seen = self._seen_term() if self._seen_term is not None else None
        return self._rows is not None and (self._seen_count, seen) == (count, term)

    async def _read(self) -> tuple[str, ...]:
        sight, shard = self._sight, self._shard.shard
        if self._rows is None or not self._is_seen(sight):
            rows = await self._journalist.read(lambda journal: journal.orphans(shard))
            self._rows = tuple(row.id for row in rows)
            # A term holds much, and is not kept alive by who has seen it.
            self._seen_count, term = sight
            self._seen_term = weakref.ref(term) if term is not None else None
        return self._rows

    async def require(self, since: str | None) -> None:
        """Raise `Orphaned` unless nothing was undone since the generation ``since``; None: any."""
        if since is None:
            return
        rows = await self._read()
        if since == self.present:
            return
        shard, (home, _, count) = self._shard.shard, since[:64].rpartition(".")
        is_ours = self.present is not None and self.present.rpartition(".")[0] == home
        newer = rows[int(count) :] if is_ours and count.isdecimal() else rows
        named = ", ".join(newer[-_NAMED_MAX:])
        where = f"{named} (`basenet orphans show`)" if newer else "`basenet orphans list`"
        raise Orphaned(
            f"something that was committed to shard {shard} on this node since generation "
            f"{since[:64]} lost against another history, and is not final: look at {where}; now it "
            f"is generation {self.present or 'unknown'}.",
            bundles=newer[-_NAMED_MAX:],
        )

    async def capture_now(self, since: str | None) -> Seq:
        """Capture what is committed here at this moment; return the seq that holds it.

        ``since``: the generation that was read before the commit. Without it, a node that is not
        the writer raises `ConflictError`: it cannot know which commit is meant.
        """
        shard = self._shard
        while not shard.is_stopping:
            await self.require(since)
            sight = self._sight
            seq = await self._captured(is_known=since is not None)
            if self._sight != sight:
                continue
            if seq is not None:
                return seq
            await shard.progress.moved()
        raise UnavailableError("basenet is shutting down.")

    async def _captured(self, *, is_known: bool) -> Seq | None:
        """Return up to where the chain must be final; None: that cannot be said now."""
        term = self._shard.term
        if term is None or not term.is_at_work or term.driver.performer.is_undoing:
            return None
        replica, writer = term.driver.replica, term.writer
        if writer is not None:
            is_whole = await writer.follower.look() and await writer.drained()
            if not is_whole or term.driver.performer.is_undoing:
                return None
            # Of a branch that loses, the file holds more than the chain.
            return max(replica.place.seq, replica.database.seq)
        if term.leads:
            return None  # the fence is closed, and capture begins before it opens
        if not is_known:
            raise ConflictError(
                f"this node is not the writer of shard {self._shard.shard}: what was committed "
                "here while it was may be lost; `basenet orphans list` shows it."
            )
        # What the file holds above the final frame may still be put aside.
        return max(replica.final.height, replica.database.seq)
