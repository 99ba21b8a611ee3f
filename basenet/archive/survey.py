"""Reads what a plan needs to know, and keeps what it read for the restore.

The planner asks for the facts of a few objects; a *survey* fetches them and asks again, until there
is a plan. What was fetched on the way (the last log object, as a rule) is part of the restore, too,
so it is kept, opened, up to `KEPT_BYTES_MAX`.

A TIP is written after the objects that it speaks of, and while we read, a writer goes on. So it
must be read *before* the listing: then everything that it proves is listed, or missing.
"""

from typing import Final

from basenet.archive.catalog import Catalog, LogItem, read_catalog
from basenet.archive.facts import make_log_facts, naming, open_log, open_set, open_tip
from basenet.archive.fetch import Fetcher, Request
from basenet.archive.names import ShardNames
from basenet.archive.plan import Book, Needs, Plan, Wish, make_plan
from basenet.archive.port import Store, StoreNotFound
from basenet.units import MIB, PublicKeyBytes
from basenet.wire.segment import Segment

KEPT_BYTES_MAX: Final = 16 * MIB


class Survey:
    """One catalog and what was read of its objects."""

    def __init__(self, fetcher: Fetcher, catalog: Catalog, *, tip: bytes | None = None) -> None:
        """``tip``: the TIP as it was before ``catalog`` was listed, if it was read then."""
        self._fetcher = fetcher
        self._catalog = catalog
        self._tip = tip
        self._book = Book()
        self._kept: dict[str, Segment] = {}
        self._kept_bytes = 0

    @property
    def catalog(self) -> Catalog:
        """What was listed."""
        return self._catalog

    async def make_plan(self, wish: Wish, trusted: frozenset[PublicKeyBytes]) -> Plan:
        """Return the plan for ``wish``; raises what `basenet.archive.plan.make_plan` raises."""
        while True:
            plan = make_plan(self._catalog, self._book, wish, trusted)
            if isinstance(plan, Plan):
                return plan
            await self._read(plan)

    def take(self, item: LogItem) -> Segment | None:
        """Return the opened log object ``item`` if it was kept, and forget it."""
        return self._kept.pop(item.name, None)

    async def _read(self, needs: Needs) -> None:
        await self._read_logs(needs.logs)
        for item in needs.sets:
            data = await self._fetcher.get(item.name)
            self._book.sets[item.name] = open_set(data, item.name, item.set, self._catalog.names)
        if needs.tip:
            data = self._tip or await self._fetcher.get(self._catalog.names.tip)
            self._book.tip = open_tip(data, self._catalog.names)

    async def _read_logs(self, items: tuple[LogItem, ...]) -> None:
        def opened(number: int, data: bytes) -> Segment:
            item = items[number]
            return open_log(data, item.name, item.log, self._catalog.names)

        requests = [Request(name=item.name, size=item.size) for item in items]
        async with self._fetcher.stream(requests, opened) as stream:
            async for number, segment in stream:
                item = items[number]
                with naming(item.name):
                    self._book.logs[item.name] = make_log_facts(segment, item.name, item.log)
                self._keep(item, segment)
                await stream.done(number)

    def _keep(self, item: LogItem, segment: Segment) -> None:
        if self._kept_bytes + item.size <= KEPT_BYTES_MAX:
            self._kept_bytes += item.size
            self._kept[item.name] = segment


async def read_tip_data(fetcher: Fetcher, names: ShardNames) -> bytes | None:
    """Return the TIP's bytes, None if there is none; call it before listing the shard."""
    try:
        return await fetcher.get(names.tip)
    except StoreNotFound:
        return None


async def survey_shard(store: Store, fetcher: Fetcher, names: ShardNames, wish: Wish) -> Survey:
    """List the shard ``names`` and return the survey from which ``wish`` can be planned."""
    # A past seq does not depend on how far the archive went on.
    tip = None if wish.to_seq is not None else await read_tip_data(fetcher, names)
    return Survey(fetcher, await read_catalog(store, names), tip=tip)
