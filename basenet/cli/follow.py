"""``basenet restore --follow``: a copy of a database, kept up to date from the archive alone.

Theory of operation
===================

::

    no copy yet          restore it                                      (as ever: whole or not)
    a copy of ours       its pages say at which of two frames it stands  (`cli.standing`)
    then, for ever       ask the archive, prove what is new, write down where that leads, make it
                         visible as one commit, write down that it is    (`archive.pursuit`,
                                                                          `sqlite.standby`)

A copy whose frame the archive left, or whose next frames retention deleted, cannot be followed from
there. Then the newest state is restored *aside*, into a file without a name, and what differs is
written into the copy as one commit: its readers see that like any other change.

A copy that holds anything else than what was followed was written to by somebody, perhaps because
it was promoted. It is never touched.

An archive that does not answer is waited for, and so is one that is still empty: a follower may be
started before what it follows. An archive with something else in it is a misspelt name, and ends
the command. What cannot get better by waiting (two histories, a
key that is not trusted, a page size that changed) ends the command with one sentence.
"""

import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from basenet.archive.catalog import EmptyArchive
from basenet.archive.fetch import Fetcher
from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Start, StartLeft, Wish
from basenet.archive.port import Store, StoreRefused
from basenet.archive.pursuit import Advance, Pursuit
from basenet.archive.restore import OnProgress, OnProven, RestoreReport, restore
from basenet.archive.scratch import Scratch, ScratchDraft, ScratchPages
from basenet.cli.standing import SUFFIX, Standing, StandingFile
from basenet.errors import (
    ConflictError,
    CorruptionError,
    NotFoundError,
    UnavailableError,
    UntrustedKey,
)
from basenet.sqlite.standby import Pages, Standby
from basenet.units import Lineage, PublicKeyBytes
from basenet.wire.frame import Head

_PAUSE_S_MAX: Final = 30.0
_NS_PER_SECOND: Final = 1_000_000_000
_NO_LIMIT: Final = 1 << 62


class Tell(Protocol):
    """Takes what happened: a word, and facts of it."""

    def __call__(self, event: str, **facts: object) -> None:
        """Show it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is followed."""

    store: Store
    names: ShardNames
    trusted: frozenset[PublicKeyBytes]
    lineage: Lineage | None
    fetcher: Fetcher


async def follow(
    open_source: Callable[[], Awaitable[Source]],
    place: Place,
    *,
    interval_seconds: float,
    tell: Tell,
    on_progress: OnProgress | None = None,
) -> None:
    """Follow what ``open_source`` finds into ``place`` until cancelled, SIGTERM, SIGINT or SIGHUP.

    It may raise `EmptyArchive`: then it is asked again. Raises `ConflictError` for a file that is
    no copy of ours, for one that was changed and for two histories; `NotFoundError`,
    `UntrustedKey`, `StoreRefused`, `UsageError`; and `UnavailableError` when the copy's own disk or
    locks refuse.
    """
    seq: int | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, nursery.cancel_scope)
        source = await _wait_until_there(open_source, place, interval_seconds, tell)
        follower = _Copy(source, place, interval_seconds, tell, on_progress)
        try:
            await follower.run()
        finally:
            seq = follower.seq
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(follower.close)
    tell("stopped", seq=seq)


async def _wait_until_there(
    open_source: Callable[[], Awaitable[Source]],
    place: Place,
    interval_seconds: float,
    tell: Tell,
) -> Source:
    """Return what is to be followed, once there is anything in the archive at all.

    A file that is no copy of ours is refused before, and not after hours.
    """
    is_told = False
    while True:
        try:
            return await open_source()
        except EmptyArchive as error:
            if not is_told:
                if not place.path.with_name(place.path.name + SUFFIX).exists():
                    await trio.to_thread.run_sync(place.check)
                tell("waiting", error=str(error))
            is_told = True
            await trio.sleep(max(interval_seconds, 1.0))


async def _stop_on_signal(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return


class _Copy:
    """One copy while it is followed."""

    def __init__(
        self,
        source: Source,
        place: Place,
        interval_seconds: float,
        tell: Tell,
        on_progress: OnProgress | None,
    ) -> None:
        names = source.names
        self._source = source
        self._place = place
        self._interval_s = interval_seconds
        self._tell = tell
        self._on_progress = on_progress
        self._file = StandingFile(place.path, service=names.service, shard=names.shard)
        self._pursuit = Pursuit(
            source.store,
            names,
            trusted=source.trusted,
            folder=place.path.parent,
            lineage=source.lineage,
            fetcher=source.fetcher,
        )
        self._standby: Standby | None = None
        self._at: Start | None = None

    @property
    def seq(self) -> int | None:
        """The frame whose state the copy has."""
        return self._at.head.seq if self._at is not None else None

    def close(self) -> None:
        """Let go of the copy."""
        if self._standby is not None:
            self._standby.close()

    async def run(self) -> None:
        """Follow for ever."""
        await self._begin()
        pause_s, said = self._interval_s, ""
        while True:
            try:
                await self._step()
            except StoreRefused:
                raise
            # Nothing there: an archive that was moved away or is begun anew. The copy stands.
            except (UnavailableError, NotFoundError) as error:
                if str(error) != said:
                    self._tell("waiting", error=str(error))
                said, pause_s = str(error), min(max(2 * pause_s, 1.0), _PAUSE_S_MAX)
            else:
                pause_s, said = self._interval_s, ""
            await trio.sleep(pause_s)

    # The beginning.

    async def _begin(self) -> None:
        standing = await trio.to_thread.run_sync(self._file.read)
        if not self._place.is_taken:
            await self._restore()
        elif standing is None:
            # Refuses, unless --force says that it may be replaced.
            await trio.to_thread.run_sync(self._place.check)
            await self._restore()
        else:
            await self._resume(standing)

    async def _restore(self) -> None:
        """Make the copy; one that cannot be made yet is waited for.

        A daemon has begun to archive a database that is empty, or of which the first snapshot is
        not stored yet. A history that was asked for by name and is not there never comes.
        """
        said = ""
        while True:
            try:
                report = await self._restore_to(self._place, on_proven=self._announce)
                break
            except (_Empty, NotFoundError) as error:
                if isinstance(error, NotFoundError) and self._source.lineage is not None:
                    raise
                if str(error) != said:
                    self._tell("waiting", error=str(error))
                said = str(error)
                await trio.sleep(max(self._interval_s, 1.0))
        self._at = _start_of(report)
        await trio.to_thread.run_sync(self._file.write, Standing(at=self._at))
        self._standby = await trio.to_thread.run_sync(Standby, self._place.path)
        self._tell(
            "restored",
            seq=report.seq,
            lineage=report.lineage.hex(),
            timestamp_ns=report.timestamp_ns,
            bytes=report.database_bytes,
            seconds=round(report.seconds, 3),
        )

    def _announce(self, lineage: Lineage, head: Head, size: int) -> None:
        """Write down what the file that is about to appear holds: then it is known for ours."""
        if not size:
            raise _Empty("the database in the archive has no page yet")
        self._file.write(Standing(next=Start(lineage=lineage, head=head)))

    async def _restore_to(
        self, place: Place, *, on_proven: OnProven | None = None
    ) -> RestoreReport:
        source = self._source
        return await restore(
            source.store,
            source.names,
            place,
            trusted=source.trusted,
            wish=Wish(lineage=source.lineage),
            fetcher=source.fetcher,
            on_progress=self._on_progress,
            on_proven=on_proven,
            is_resumable=on_proven is not None,  # not what is restored aside
        )

    async def _resume(self, standing: Standing) -> None:
        """Find out where the copy stands, by its own pages."""
        self._standby = standby = await trio.to_thread.run_sync(Standby, self._place.path)
        for start in (standing.next, standing.at):
            if start is not None and start.head.state_root == standby.root:
                self._at = start
                break
        else:
            raise ConflictError(
                f"{self._place.path} does not hold what was followed: another program wrote to it "
                "while nobody followed. It is left as it is; name another file, or delete "
                f"{self._file.path.name} and replace the copy with --force"
            )
        await trio.to_thread.run_sync(self._file.write, Standing(at=self._at))
        self._tell("resumed", seq=self.seq, lineage=self._at.lineage.hex())

    # Following.

    async def _step(self) -> None:
        standby, at = self._standby, self._at
        assert standby is not None, "begun"
        assert at is not None, "begun"
        try:
            advance = await self._pursuit.advance(
                at, page_size=standby.page_size, db_pages=standby.db_pages
            )
        except UntrustedKey:
            raise
        except StartLeft as error:
            await self._renew(str(error))
            return
        except CorruptionError as error:
            await self._renew(f"the frames after {at.head.seq} are gone or not as signed ({error})")
            return
        if advance is None:
            await trio.to_thread.run_sync(standby.relieve)
            return
        try:
            await self._take(advance)
        finally:
            advance.overlay.close()

    async def _take(self, advance: Advance) -> None:
        """Make what came visible."""
        standby, overlay, began = self._standby, advance.overlay, time.monotonic()
        assert standby is not None, "begun"
        if overlay.page_size != standby.page_size:
            raise self._explain_page_size(overlay.page_size)
        pgnos = overlay.pgnos()
        await self._change(
            advance.start, _Laid(overlay.get), pgnos, overlay.base_pages, overlay.db_pages
        )
        head = advance.start.head
        self._tell(
            "applied",
            seq=head.seq,
            lineage=advance.start.lineage.hex(),
            timestamp_ns=head.timestamp_ns,
            frames=advance.frames,
            pages=len(pgnos),
            objects=advance.objects,
            bytes=advance.stored_bytes,
            seconds=round(time.monotonic() - began, 3),
            lag_seconds=round((time.time_ns() - head.timestamp_ns) / _NS_PER_SECOND, 3),
        )

    async def _change(
        self, start: Start, pages: Pages, pgnos: list[int], lowest: int, db_pages: int
    ) -> None:
        """Bring the copy to ``start``: proven, announced, made visible, written down."""
        standby = self._standby
        assert standby is not None, "begun"

        def change() -> None:
            tree = standby.prove(
                pages, pgnos, lowest=lowest, db_pages=db_pages, root=start.head.state_root
            )
            self._file.write(Standing(at=self._at, next=start))
            standby.apply(pages, pgnos, tree)
            self._at = start
            self._file.write(Standing(at=start))
            standby.relieve()

        await trio.to_thread.run_sync(change)

    async def _renew(self, why: str) -> None:
        """Restore the newest state aside, and write what differs into the copy."""
        standby = self._standby
        assert standby is not None, "begun"
        self._tell("renewing", seq=self.seq, reason=why)
        self._pursuit.forget()
        kept: list[ScratchPages] = []

        def examine(draft: ScratchDraft) -> None:
            kept.append(draft.keep())

        try:
            aside = Scratch(self._place.path.parent, bytes_max=_NO_LIMIT, examine=examine)
            try:
                report = await self._restore_to(aside)
            except UntrustedKey:
                raise
            except (CorruptionError, NotFoundError) as error:
                # A damaged archive may be mended; the copy is as good as it was.
                raise UnavailableError(f"the archive cannot be restored: {error}") from error
            pages = kept[-1]
            if pages.page_size != standby.page_size:
                raise self._explain_page_size(pages.page_size)
            pgnos = await trio.to_thread.run_sync(standby.find_different, pages, pages.db_pages)
            if not pgnos and pages.db_pages != standby.db_pages:
                pgnos = [1]
            lowest = min(standby.db_pages, pages.db_pages)
            await self._change(_start_of(report), pages, pgnos, lowest, pages.db_pages)
        finally:
            for each in kept:
                each.close()
        self._tell(
            "renewed",
            seq=report.seq,
            lineage=report.lineage.hex(),
            timestamp_ns=report.timestamp_ns,
            pages=len(pgnos),
            bytes=report.stored_bytes,
            seconds=round(report.seconds, 3),
        )

    def _explain_page_size(self, page_size: int) -> ConflictError:
        assert self._standby is not None, "begun"
        return ConflictError(
            f"the database changed its page size from {self._standby.page_size} to {page_size}, "
            f"which cannot be done to {self._place.path} beside its readers: stop them, delete it "
            f"and {self._file.path.name}, and follow again"
        )


class _Empty(UnavailableError):  # noqa: N818  (states a fact; the kind is in the base)
    """There is no page to restore yet."""


class _Laid:
    """Pages out of an overlay, all of which it holds."""

    def __init__(self, get: Callable[[int], bytes | None]) -> None:
        self._get = get

    def read_page(self, pgno: int) -> bytes:
        """Return page ``pgno``."""
        page = self._get(pgno)
        assert page is not None, "it was listed"
        return page


def _start_of(report: RestoreReport) -> Start:
    assert report.head is not None, "not a dry run"
    return Start(lineage=report.lineage, head=report.head)
