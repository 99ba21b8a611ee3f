"""What came after a frame that is held already: looked for cheaply, and proven as a restore does.

Theory of operation
===================

Whoever keeps a copy up to date asks again and again, and mostly there is nothing new. So one small
object is read each time: TIP, which a writer replaces within seconds of new frames. While it stands
still nothing else is asked; for `ACTIVE_SECONDS` after it moved the log is listed each time, since
TIP itself moves rarely.

A listing begins behind the last object that is known, so its cost does not grow with the archive.
That is enough while the lineage goes on under its own names. Whatever does not fit (another lineage
in TIP, a gap, objects that were merged) is looked at once more with the whole shard listed.

What is found is planned from the frame that is held (`plan.Start`) and followed by a `Follower`:
links, signatures, certificates, CONFIGs, child lineages. The newest image of each page waits in an
overlay; the caller proves it by the state root before anybody sees it.
"""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import trio

from basenet.archive.catalog import Catalog, make_catalog, read_catalog
from basenet.archive.facts import open_log, open_tip
from basenet.archive.fetch import Fetcher, Request
from basenet.archive.names import LogName, ShardNames
from basenet.archive.overlay import Overlay
from basenet.archive.plan import Plan, Start, Wish
from basenet.archive.port import Entry, Store, StoreNotFound
from basenet.archive.replay import Follower
from basenet.archive.survey import Survey, read_tip_data
from basenet.errors import CorruptionError
from basenet.units import Lineage, PublicKeyBytes
from basenet.wire.segment import Segment

ACTIVE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What leads from one frame to a later one.

    ``overlay``: the pages that changed, and the size; the caller closes it. ``frames``: how many.
    """

    start: Start
    overlay: Overlay
    frames: int
    objects: int
    stored_bytes: int
    notes: tuple[str, ...]


class Pursuit:
    """Follows one shard's history from frame to frame."""

    def __init__(
        self,
        store: Store,
        names: ShardNames,
        *,
        trusted: frozenset[PublicKeyBytes],
        folder: Path,
        lineage: Lineage | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        """``folder`` takes changed pages, in files without a name; ``lineage``: the one chosen."""
        self._store = store
        self._names = names
        self._trusted = trusted
        self._folder = folder
        self._lineage = lineage
        self._fetcher = fetcher or Fetcher(store)
        self._catalog: Catalog | None = None
        self._tip_hash = b""
        self._active_until = float("-inf")

    def forget(self) -> None:
        """Take nothing for known: the next `advance` looks at everything."""
        self._catalog = None
        self._tip_hash = b""

    async def advance(self, start: Start, *, page_size: int, db_pages: int) -> Advance | None:
        """Return what leads on from ``start``, a database of that size; None: nothing is new.

        Raises `StartLeft` when the history left that frame, `CorruptionError` when the frames after
        it are gone or not as signed, `ConflictError` for two histories, `UnavailableError`.
        """
        data = await read_tip_data(self._fetcher, self._names)
        digest = sha256(data or b"").digest()
        now = trio.current_time()
        if digest != self._tip_hash:
            self._active_until = now + ACTIVE_SECONDS
        elif now > self._active_until:
            return None
        survey, wish = await self._survey(start, data)
        plan = await survey.make_plan(wish, self._trusted)
        advance = None
        if plan.spans:
            advance = await self._follow(survey, plan, page_size, db_pages)
            self._active_until = now + ACTIVE_SECONDS
        self._tip_hash, self._catalog = digest, survey.catalog
        return advance

    async def _survey(self, start: Start, tip: bytes | None) -> tuple[Survey, Wish]:
        wish = Wish(lineage=self._lineage, start=start)
        catalog = await self._list_news(start, tip)
        if catalog is None:
            catalog = await read_catalog(self._store, self._names)
        elif self._lineage is None:
            # Which leaf is meant was found out when all was listed.
            wish = replace(wish, lineage=start.lineage)
        return Survey(self._fetcher, catalog, tip=tip), wish

    async def _list_news(self, start: Start, tip: bytes | None) -> Catalog | None:
        """Return a catalog of what is new behind ``start``; None if that could not be enough."""
        known = self._catalog
        if known is None or tip is None:
            return None
        proven = open_tip(tip, self._names)
        if proven.lineage != start.lineage:
            return None
        items = known.items(start.lineage).logs
        last = next((item for item in reversed(items) if item.log.end <= start.head.seq), None)
        if last is None:
            return None
        kept = {item.name: Entry(name=item.name, size=item.size) for item in (items[0], last)}
        folder = f"{self._names.lineage(start.lineage)}log/"
        async for entry in self._store.list(folder, start_after=last.name):
            kept[entry.name] = entry
        logs = [name for name in map(self._names.parse, kept) if isinstance(name, LogName)]
        reached = start.head.seq
        for log in sorted(logs):
            if log.start <= reached + 1:
                reached = max(reached, log.end)
        if reached < max(proven.head.seq, *(log.end for log in logs)):
            return None
        entries = [*kept.values(), Entry(name=self._names.tip, size=len(tip))]
        return make_catalog(self._names, entries)

    async def _follow(self, survey: Survey, plan: Plan, page_size: int, db_pages: int) -> Advance:
        start = plan.wish.start
        assert start is not None, "it was wished for"
        overlay = Overlay(self._folder, page_size, db_pages)
        try:
            follower = Follower(plan, overlay)
            follower.continue_at(start, overlay, db_pages)
            await follow_spans(self._fetcher, survey, plan, follower)
            await trio.to_thread.run_sync(follower.check_end)
        except StoreNotFound as error:
            overlay.close()
            raise CorruptionError(f"an object that was listed is gone: {error}") from error
        except BaseException:
            overlay.close()
            raise
        return Advance(
            start=Start(lineage=follower.lineage, head=follower.head, standing=follower.standing),
            overlay=overlay,
            frames=follower.head.seq - start.head.seq,
            objects=plan.object_count,
            stored_bytes=plan.stored_bytes,
            notes=plan.notes,
        )


async def follow_spans(fetcher: Fetcher, survey: Survey, plan: Plan, follower: Follower) -> None:
    """Read the log objects of ``plan``, in order, and let ``follower`` prove their frames."""
    kept = {span: survey.take(span.item) for span in plan.spans}
    missing = [span for span in plan.spans if kept[span] is None]

    def opened(number: int, data: bytes) -> Segment:
        item = missing[number].item
        return open_log(data, item.name, item.log, plan.names)

    requests = [Request(name=span.item.name, size=span.item.size) for span in missing]
    async with fetcher.stream(requests, opened) as stream:
        for span in plan.spans:
            segment = kept.pop(span)
            if segment is not None:
                await trio.to_thread.run_sync(follower.apply, span, segment)
                continue
            number, fetched = await anext(stream)
            await trio.to_thread.run_sync(follower.apply, span, fetched)
            del fetched
            await stream.done(number)
