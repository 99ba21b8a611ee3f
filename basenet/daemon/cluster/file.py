"""The database file of one shard on this node: fenced, applied to, mended.

Theory of operation
===================

Whoever is not the writer changes the file by injection only, and injection needs the *fence*: the
write lock, held by the guardian. Start-up has one order (DESIGN 6)::

    create    an empty database, if there is no file
    attach    our connections read once, so that SQLite recovers the log if it must
    fence     the guardian takes the lock; from here on nobody else commits
    repair    a header that somebody died over, so that readers do not wait ten seconds
    compare   the end of the log with what the journal says (`ReplicaFile.inspect`)

If a daemon died over the header while the guardian held the lock, our own connection could not read
either. Then the fence is asked for first: it stands already.

To let go is the reverse: connections, then descriptors, then the fence.

With BASE_FENCE=readonly the file says itself that it is read-only, too (`sqlite.page1`): `mark`
changes that, `cluster.marking` says when. What is applied meanwhile keeps the mark.

Every act is a thread's, one at a time. A batch is *prepared*, its intent journalled by the caller,
and *injected*; between the two the log does not begin anew, as the intent names its end (Q13).
Nothing is written once the path leads to another file than ours.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

import trio

from basenet.daemon.cluster.guard import FenceGroup
from basenet.daemon.cluster.mending import (
    Gathered,
    Gatherer,
    MendResult,
    PageSources,
    Target,
)
from basenet.daemon.cluster.quickly import Quickly
from basenet.engine.events import Instant
from basenet.errors import BasenetError, ConflictError, CorruptionError, UnavailableError
from basenet.guardian.header import repair_header
from basenet.sqlite import locks
from basenet.sqlite.apply import Applier, Found, LogState
from basenet.sqlite.attach import Database, attach
from basenet.sqlite.captured import Captured, Cursor
from basenet.sqlite.checkpoint import DatabaseReplaced
from basenet.sqlite.contents import Schema, has_rows, is_blank, keep_copy, page_count
from basenet.sqlite.create import create
from basenet.sqlite.inject import ForeignCommit, Position, Prepared
from basenet.sqlite.page1 import clear_copy, is_marked
from basenet.sqlite.pages import PageView
from basenet.sqlite.recover import diff, scan
from basenet.sqlite.signals import SHM_SUFFIX, WAL_SUFFIX
from basenet.sqlite.standing import (
    Intent,
    Outcome,
    Standing,
    cursor_of,
    decode_intent,
    encode_intent,
    find_standing,
)
from basenet.units import KIB, Lineage, ShardId
from basenet.wire.birth import FileFacts
from basenet.wire.merkle import StateTree
from basenet.wire.payload import CommitPayload

__all__ = [
    "Fence",
    "FenceKeeper",
    "Intent",
    "MendResult",
    "Outcome",
    "PageSources",
    "Position",
    "Prepared",
    "ReplicaFile",
    "Standing",
    "Target",
    "decode_intent",
    "encode_intent",
]

_HEADER_COPY_BYTES: Final = 48
_DEAD_MAN_BYTE: Final = 128
_ASIDE_MAX: Final = 100
_INLINE_BYTES: Final = 64 * KIB
_T = TypeVar("_T")

OnReady = Callable[[Prepared], Awaitable[None]]
"""Journals the intent of a batch that is about to be injected."""
Take = Callable[[Captured], None]


class Fence(Protocol):
    """One database's fence, as the daemon sees it (`cluster.guard`)."""

    on_replaced: Callable[[], None] | None
    """Called, once, when another file lies at the path."""

    @property
    def is_held(self) -> bool:
        """Whether the write lock is the guardian's now, so that we may inject."""
        ...

    async def held(self) -> None:
        """Ask for the lock; return when the guardian has it."""
        ...

    def close(self) -> None:
        """Ask for the lock; returns at once."""
        ...

    def renew(self, until: Instant) -> None:
        """Let the application write until then; sent with the next `Guard.flush`."""
        ...

    def join(self, group: FenceGroup, on_left: Callable[[], None]) -> bool:
        """Be renewed with others from now, until it is closed; False while that may not be."""
        ...

    def part(self) -> None:
        """Be renewed by itself again."""
        ...

    def drop(self) -> None:
        """Give the fence up."""
        ...


class FenceKeeper(Protocol):
    """The guardian, as the daemon sees it (`cluster.guard`)."""

    async def fence(self, path: Path, *, database_inode: tuple[int, int]) -> Fence:
        """Return the fence of the database at ``path`` once it is held."""
        ...


class _Misfit(NamedTuple):
    """Why a file must be made anew, and what its name ends with when it is moved aside."""

    suffix: str
    why: str
    error: type[BasenetError]


class ReplicaFile:
    """One database file; made by the constructor, opened by `open`, let go by `close`."""

    def __init__(
        self,
        *,
        shard: ShardId,
        path: Path,
        guard: FenceKeeper | None,
        limiter: trio.CapacityLimiter,
        spool_folder: Path | None = None,
        marks_mended: bool = False,
        on_unapplied: Callable[[], None] = lambda: None,
    ) -> None:
        """``guard``: None: the caller sees to it that nobody else writes.

        ``spool_folder``: where the pages of a large mending wait; None: beside the database.
        ``marks_mended``: what is mended gets the read-only mark before anything is fetched.
        ``on_unapplied`` is told of each batch that could not be prepared or injected.
        """
        self._on_unapplied = on_unapplied
        self._marks_mended = marks_mended
        self.shard = shard
        self.path = path
        self._guard = guard
        self._limiter = limiter
        self._gatherer = Gatherer(spool_folder or path.parent, limiter)
        self._database: Database | None = None
        self._applier: Applier | None = None
        self._fence: Fence | None = None
        self._act = trio.Lock()
        # A batch whose intent may be journalled, and which was not injected yet.
        self._pending: Prepared | None = None
        self.is_adopted = False
        """Whether what it holds beyond its place counts, though the log begins anew there."""

    @property
    def database(self) -> Database:
        """The attached file, for captures and views; changes when `mend` changes the page size."""
        assert self._database is not None, "the file is not open"
        return self._database

    @property
    def fence(self) -> Fence | None:
        """The fence; None without a guard."""
        return self._fence

    @property
    def is_open(self) -> bool:
        """Whether the file is attached."""
        return self._database is not None

    @property
    def is_fenced(self) -> bool:
        """Whether nobody but us can write now."""
        return self._guard is None or (self._fence is not None and self._fence.is_held)

    @property
    def is_read_only(self) -> bool:
        """Whether the file says that nobody may write to it."""
        return self._applier is not None and self._applier.is_read_only

    async def held(self) -> None:
        """Close the fence; return when the write lock is ours. Raises `UnavailableError`."""
        if self._fence is not None:
            await self._fence.held()

    # -- begin and end

    async def open(self, *, page_size: int = 0) -> bool:
        """Attach the file, made empty with ``page_size`` (0: SQLite's default) where none is.

        Returns whether it was made. Raises what `create` and `attach` raise, `ConflictError` and
        `UnavailableError` if it cannot be fenced, and `ForeignCommit` if its header is beyond
        repair.
        """
        assert self._database is None, "opened twice"
        async with self._act:
            return await self._open(page_size)

    async def _open(self, page_size: int) -> bool:
        is_new = await self._run(lambda: create(self.path, page_size=page_size))
        try:
            await self._rescue()
            is_guarded = self._guard is not None
            self._database = await self._run(lambda: attach(self.path, is_guarded=is_guarded))
            inode = (self._database.device, self._database.inode)
            if self._guard is not None and self._fence is None:
                self._fence = await self._guard.fence(self._real_path, database_inode=inode)
            self._applier = await self._run(lambda: Applier(self.database))
            self._applier.is_read_only = is_marked(self._database)
        except BaseException:
            self._let_go()
            raise
        return is_new

    @property
    def _real_path(self) -> Path:
        """Where SQLite puts -wal and -shm."""
        return Path(os.path.realpath(self.path))

    async def _rescue(self) -> None:
        """Repair the header that a daemon before us died over, while the fence was closed."""
        if await self._run(lambda: self._repair_torn(is_ours=self._guard is None)):
            return
        assert self._guard is not None, "a torn header that may be repaired and was not"
        facts = self._real_path.stat()
        inode = (facts.st_dev, facts.st_ino)
        self._fence = await self._guard.fence(self._real_path, database_inode=inode)
        await self._run(lambda: self._repair_torn(is_ours=True))

    def _repair_torn(self, *, is_ours: bool) -> bool:
        """Return whether the header is whole, or nobody's; repair it if the lock ``is_ours``.

        No connection of ours is open yet, so that the descriptor may be closed again.
        """
        try:
            shm = os.open(f"{self._real_path}{SHM_SUFFIX}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            copies = os.pread(shm, 2 * _HEADER_COPY_BYTES, 0)
            if copies[:_HEADER_COPY_BYTES] == copies[_HEADER_COPY_BYTES:]:
                return True
            if locks.anyone(shm, _DEAD_MAN_BYTE) is None:
                return True  # nobody has it open: SQLite makes the index anew
            if is_ours:
                repair_header(shm)
            return is_ours
        finally:
            os.close(shm)

    async def close(self) -> None:
        """Let go of the file, and of the fence last; harmless when repeated.

        The caller has ended its captures and views of `database`.
        """
        with trio.CancelScope(shield=True):
            async with self._act:
                self._gatherer.close()
                self._let_go()

    def _let_go(self) -> None:
        database, self._database = self._database, None
        applier, self._applier = self._applier, None
        fence, self._fence = self._fence, None
        if database is not None:
            database.close_connections()
        if applier is not None:
            applier.close()
        if database is not None:
            database.close()
        if fence is not None:
            fence.drop()

    # -- where the log ends

    async def position(self) -> Position:
        """Return the end of the log; raises `ForeignCommit` while its header is torn."""
        async with self._act:
            return await self._run(self._injecting.position)

    async def cursor(self) -> Cursor:
        """Return the end of the log as the place from which a capture goes on.

        What a capture yields from there is what the application commits later, and nothing that was
        injected before.
        """
        return self.cursor_at(await self.position())

    def cursor_at(self, position: Position) -> Cursor:
        """Return ``position`` as the place from which a capture goes on."""
        return cursor_of(self.database, position)

    async def inspect(self, cursor: Cursor | None, intent: Intent | None) -> Standing:
        """Return how the file stands to what the journal has; under the fence, at the start.

        A batch that was not applied is given up for good: it can be prepared again, or another one.
        Raises `UnavailableError`.
        """
        async with self._act:
            self._require_fence()
            standing = await self._run(lambda: find_standing(self.database, cursor, intent))
            await self._run(self._injecting.forget_tail)
            return standing

    async def compare(self, leaves: bytes, take: Take) -> Cursor:
        """Hand what differs from ``leaves`` to ``take``, as one RECOVERED change, maybe none.

        ``leaves``: 32 bytes a page, end to end; empty gives all pages. ``take`` is called in a
        thread. Returns the place behind the change. Raises `UnavailableError`, `CorruptionError`.
        """

        def run() -> Cursor:
            with PageView(self.database) as view:
                for piece in diff(view, leaves):
                    take(piece)
                return view.cursor

        async with self._act:
            return await self._run(run)

    # -- applying

    async def prepare(self, changes: Sequence[Iterable[CommitPayload]]) -> Prepared | None:
        """Return consecutive ``changes``, each a run of pieces, as one batch; None without a page.

        The caller journals its intent and injects it, or prepares another one. Raises
        `UnavailableError` when the fence is not held and `ConflictError` for pages of another size.
        """
        whole = [tuple(change) for change in changes]
        if not any(len(piece.pgnos) for change in whole for piece in change):
            return None
        with self._counted():
            async with Quickly(self._act):
                self._require_fence()
                self._require_page_size(whole)
                # A thread and back take longer than a few pages do.
                size = sum(len(piece.pages) for change in whole for piece in change)
                if size <= _INLINE_BYTES and self._injecting.is_begun:
                    self._pending = self._injecting.prepare(whole)
                else:
                    self._pending = await self._run(lambda: self._injecting.prepare(whole))
                return self._pending

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except BasenetError:
            self._on_unapplied()
            raise

    async def inject(self, prepared: Prepared, *, is_relieved: bool = False) -> None:
        """Write the batch, durably: one commit to whoever reads; ``is_relieved``: then `relieve`.

        That may take half a second where the log has grown long (`Applier.make_way`).

        Raises `UnavailableError` (no fence, disk full), `ForeignCommit` and `DatabaseReplaced`;
        nothing is visible then.
        """
        with self._counted():
            async with Quickly(self._act):
                await self._inject(prepared, is_relieved=is_relieved)

    async def _inject(self, prepared: Prepared, *, is_relieved: bool = False) -> None:
        self._require_fence()
        self._pending = None
        await self._run(lambda: self._write(prepared, is_relieved=is_relieved))

    def _write(self, prepared: Prepared, *, is_relieved: bool) -> None:
        foreign = self.database.why_foreign()
        if foreign is not None:
            raise DatabaseReplaced(foreign)
        self._injecting.apply(prepared)
        if is_relieved:
            self._injecting.make_way()

    async def mark(self, *, is_read_only: bool, on_ready: OnReady | None = None) -> bool:
        """Let the file say whether anybody may write to it; return whether it said otherwise.

        ``on_ready`` is awaited before anything is written, to journal the intent. Nothing is
        prepared meanwhile. Raises what `prepare` and `inject` raise.
        """
        async with self._act:
            return await self._mark(is_read_only=is_read_only, on_ready=on_ready)

    async def _mark(self, *, is_read_only: bool, on_ready: OnReady | None) -> bool:
        applier = self._injecting
        if applier.is_read_only is is_read_only:
            return False
        self._require_fence()
        self._pending = None
        prepared = await self._run(lambda: applier.prepare_mark(is_read_only=is_read_only))
        if on_ready is not None:
            await on_ready(prepared)
        await self._inject(prepared)
        applier.is_read_only = is_read_only
        return True

    async def tell(self, before: Position, after: Position) -> Found:
        """Return whether the log ends before or after a batch, or elsewhere."""
        async with self._act:
            return await self._run(lambda: self._injecting.tell(before, after))

    async def relieve(self) -> LogState:
        """Copy the log into the file and begin it anew, as far as readers allow.

        Moves the end of the log, which `inspect` knows for ours. Not done between `prepare` and
        `inject`. Raises `UnavailableError` when the fence is not held, and `DatabaseReplaced`.
        """
        async with self._act:
            self._require_fence()
            may_restart = self._pending is None
            return await self._run(lambda: self._injecting.relieve(may_restart=may_restart))

    # -- mending

    async def mend(
        self, target: Target, sources: PageSources, on_ready: OnReady | None = None
    ) -> MendResult:
        """Bring the file to ``target`` in one transaction.

        ``on_ready`` is awaited once all pages are there, to journal the intent; it is not called
        when nothing differs. A file with another page size, or with pages where ``target`` has
        none, is moved aside and made anew, which needs that no application has it open.

        Raises `UnavailableError` (no fence; pages that nobody has; disk full), `ConflictError` (the
        page size, `ForeignCommit`, `DatabaseReplaced`), `CorruptionError`.
        """
        async with self._act:
            self._require_fence()
            self._pending = None
            aside = None
            if misfit := await self._run(lambda: self._find_misfit(target)):
                aside = await self._begin_anew(target.page_size, misfit)
            if self._marks_mended:
                await self._mark(is_read_only=True, on_ready=None)
            if not target.db_pages:
                return await self._mended(None, is_schema_undone=False, aside=aside)
            before = await self._run(self._read_schema)
            gathered = await self._gatherer.gather(self.database, target, sources)
            with closing(gathered.shortage):
                if not len(gathered.shortage.pgnos):
                    return await self._mended(gathered, is_schema_undone=False, aside=aside)
                await self._inject_gathered(gathered, on_ready)
            after = await self._run(lambda: Schema(self.database))
            return await self._mended(
                gathered, is_schema_undone=before is None or before.misleads(after), aside=aside
            )

    def _read_schema(self) -> Schema | None:
        """Return the schema; None when the file is damaged, which mending is for."""
        try:
            return Schema(self.database)
        except CorruptionError:
            return None

    async def _inject_gathered(self, gathered: Gathered, on_ready: OnReady | None) -> None:
        prepared = await self._run(
            lambda: self._injecting.prepare_merged([gathered.shortage.as_transaction()])
        )
        if on_ready is not None:
            await on_ready(prepared)
        await self._inject(prepared)

    async def _mended(
        self, gathered: Gathered | None, *, is_schema_undone: bool, aside: Path | None
    ) -> MendResult:
        position = await self._run(self._injecting.position)
        tally = gathered.tally if gathered is not None else None
        return MendResult(
            pages=len(gathered.shortage.pgnos) if gathered is not None else 0,
            from_file=tally.file if tally is not None else 0,
            from_frames=tally.frames if tally is not None else 0,
            from_peers=tally.peers if tally is not None else 0,
            position=position,
            cursor=self.cursor_at(position),
            is_schema_undone=is_schema_undone,
            set_aside=aside,
        )

    def _find_misfit(self, target: Target) -> _Misfit | None:
        """Return why no transaction leads to ``target``; None if one does."""
        database = self.database
        if not target.db_pages:
            # One page is what a database without a table has.
            if page_count(database) <= 1:
                return None
            # As soon as any page is final, a transaction leads there: worth another look soon.
            return _Misfit("never-final", "holds what never became final", UnavailableError)
        size = database.page_size
        if target.page_size == size:
            return None
        return _Misfit(
            f"page-size-{size}",
            f"has pages of {size} bytes where the shard has {target.page_size}, and a file cannot "
            "change that while it is open",
            ConflictError,
        )

    async def _begin_anew(self, page_size: int, misfit: _Misfit) -> Path:
        """Move the file aside and make an empty one with ``page_size``; return the new name."""
        aside = await self._run(lambda: self._check_movable(misfit))
        on_replaced = self._fence.on_replaced if self._fence is not None else None
        self._let_go()
        await self._run(lambda: self._move_to(aside))
        await self._open(page_size)
        if self._fence is not None:
            self._fence.on_replaced = on_replaced
        if (await self._run(self._injecting.position)).frame_max:
            raise ForeignCommit(f"{self.path} was written to while it was made anew")
        return aside

    def _check_movable(self, misfit: _Misfit) -> Path:
        """Return to where the file goes; raise where it cannot be moved."""
        database = self.database
        if database.others_connected():
            raise misfit.error(
                f"{self.path} {misfit.why}; stop the application once, and start it again when "
                "this node has caught up"
            )
        foreign = database.why_foreign()
        if foreign is not None:
            raise DatabaseReplaced(foreign)
        if not database.checkpoint(database.connections[0]).is_complete:
            raise UnavailableError(f"the log of {self.path} cannot be copied into it; trying again")
        name = f"{self._real_path.name}.{misfit.suffix}"
        for number in range(1, _ASIDE_MAX + 1):
            aside = self._real_path.with_name(name if number == 1 else f"{name}-{number}")
            if not aside.exists():
                return aside
        raise ConflictError(f"{self._real_path.with_name(name)} and many more exist; move them")

    def _move_to(self, aside: Path) -> None:
        """Move the database first: a log beside no database is deleted, never replayed."""
        real = self._real_path
        try:
            os.link(real, aside)
            real.unlink()
            for suffix in (WAL_SUFFIX, SHM_SUFFIX):
                Path(f"{real}{suffix}").unlink(missing_ok=True)
            with aside.open("r+b") as file:
                clear_copy(file.fileno())
        except OSError as error:
            raise UnavailableError(
                f"{self.path} cannot be moved to {aside} ({error.strerror})"
            ) from error

    # -- what it holds

    async def facts(self) -> FileFacts:
        """Return root, size and whether there are rows, as of now; under the fence.

        Raises `UnavailableError`, `CorruptionError`.
        """
        async with self._act:
            return await self._run(self._find_facts)

    def _find_facts(self) -> FileFacts:
        found = scan(self.database)
        return FileFacts(
            state_root=StateTree(found.page_size, found.leaves).root(),
            page_size=found.page_size,
            db_pages=found.db_pages,
            has_rows=has_rows(self.database),
        )

    async def is_blank(self) -> bool:
        """Return whether nobody has ever stored anything in the file; raises as `facts` does."""
        async with self._act:
            return await self._run(lambda: is_blank(self.database))

    async def leaves(self) -> bytearray:
        """Return the leaf hash of every page, 32 bytes each, as of now."""
        async with self._act:
            return (await self._run(lambda: scan(self.database))).leaves

    async def keep_aside(self, lineage: Lineage) -> Path:
        """Copy the database, as it is now, to ``<db>.before-<lineage>``; return the copy's path.

        Durable; overwrites nothing (an equal copy is not made twice). Raises `UnavailableError`.
        """
        name = self.path.with_name(f"{self.path.name}.before-{lineage.hex()}")
        async with self._act:
            return await self._run(lambda: keep_copy(self.database, name))

    # -- parts

    @property
    def _injecting(self) -> Applier:
        assert self._applier is not None, "the file is not open"
        return self._applier

    async def _run(self, act: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(act, limiter=self._limiter)

    def _require_fence(self) -> None:
        if not self.is_fenced:
            raise UnavailableError(
                f"{self.path} is not fenced now, so nothing can be applied to it; trying again"
            )

    def _require_page_size(self, changes: Sequence[Sequence[CommitPayload]]) -> None:
        size = self.database.page_size
        other = next(
            (piece.page_size for change in changes for piece in change if piece.page_size != size),
            None,
        )
        if other is not None:
            raise ConflictError(
                f"{self.path} has pages of {size} bytes and the shard's next change has pages of "
                f"{other}; the file is made anew"
            )


def pages_of(changes: Iterable[CommitPayload]) -> Iterator[tuple[int, memoryview]]:
    """Yield (pgno, image) of each page in ``changes``: what a `PageSources.images` is made of."""
    for change in changes:
        for index, pgno in enumerate(change.pgnos.tolist()):
            yield pgno, change.page(index)
