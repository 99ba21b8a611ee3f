"""Carrying retention out: read what the plan needs, rehearse a restore, delete in order.

Only the holder of the lease deletes, and it makes sure of that again and again while it does. Before
the first deletion the restore of the oldest kept moment and that of the newest are *planned* on the
listing without the objects that are to go: if either cannot be planned any more, nothing is deleted
and the sentence says why. A pass that is broken off (a crash, a store that fails) leaves an archive
that restores every kept moment; the next pass goes on.

Snapshots and retention of one shard are the business of one task, one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import trio

from basenet.archive.catalog import Catalog, make_catalog, read_catalog
from basenet.archive.clock import SECOND_NS, SYSTEM_CLOCK, Clock
from basenet.archive.facts import SetFacts, make_log_facts, open_log, open_set
from basenet.archive.fetch import Fetcher
from basenet.archive.lease import Lease
from basenet.archive.lineage import Reach, make_line
from basenet.archive.names import ShardNames
from basenet.archive.plan import Wish, find_genesis, list_lineages
from basenet.archive.port import Entry, Store, StoreNotFound
from basenet.archive.retention import (
    Deletion,
    RetentionFacts,
    RetentionPlan,
    find_strays,
    plan_retention,
)
from basenet.archive.survey import Survey
from basenet.archive.trust import Genesis
from basenet.errors import ConflictError, CorruptionError
from basenet.units import Lineage, PublicKeyBytes, TimestampNs

DELETES_MAX = 2000
STRAYS_MAX = 64
_CONCURRENT_DELETES = 4
_DELETES_PER_LEASE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What a pass did; of a dry run: what it would do. ``is_whole``: nothing was left for later."""

    plan: RetentionPlan
    deleted: int
    deleted_bytes: int
    is_whole: bool


class Pruner:
    """Deletes what one shard's archive no longer needs."""

    def __init__(
        self,
        *,
        store: Store,
        names: ShardNames,
        lease: Lease,
        lineage: Lineage,
        trusted: frozenset[PublicKeyBytes],
        retention_seconds: float,
        fetcher: Fetcher | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``lineage`` is the one that is written; the line that leads to it is pruned."""
        self._store = store
        self._names = names
        self._lease = lease
        self._lineage = lineage
        self._trusted = trusted
        self._retention_ns = int(retention_seconds * SECOND_NS)
        self._fetcher = fetcher or Fetcher(store)
        self._clock = clock

    async def run(self, *, dry_run: bool = False, deletes_max: int = DELETES_MAX) -> PruneReport:
        """Make one pass of at most ``deletes_max`` deletions.

        Raises `CorruptionError` when the archive would not restore what it must: nothing was
        deleted then. Raises `ConflictError` when the lease is another's, and what the store raises.
        """
        entries = [entry async for entry in self._store.list(self._names.prefix)]
        facts = await self._read_facts(make_catalog(self._names, entries))
        plan = plan_retention(facts)
        chosen = plan.deletions[:deletes_max]
        if plan.deletions:
            await self._rehearse(entries, plan, facts)
        if not dry_run:
            await self._delete(chosen)
        return PruneReport(
            plan=plan,
            deleted=len(chosen),
            deleted_bytes=sum(deletion.size for deletion in chosen),
            is_whole=len(chosen) == len(plan.deletions),
        )

    # What the plan needs to know.

    async def _read_facts(self, catalog: Catalog) -> RetentionFacts:
        geneses = {lineage: await self._read_genesis(catalog, lineage) for lineage in list_lineages(catalog)}
        line = make_line(self._lineage, lambda lineage: _find(geneses, lineage))
        sets = await self._read_sets(catalog, line)
        facts = RetentionFacts(
            catalog=catalog,
            line=line,
            shared=_find_shared(line, geneses),
            sets=sets,
            config_logs=await self._find_config_logs(catalog, line, sets),
            ages_ns={},
            now_ns=self._clock.wall_ns(),
            retention_ns=self._retention_ns,
        )
        return await self._with_ages(facts)

    async def _read_genesis(self, catalog: Catalog, lineage: Lineage) -> Genesis | None:
        logs = catalog.items(lineage).logs
        if not logs:
            return None
        item = logs[0]
        segment = open_log(await self._fetcher.get(item.name), item.name, item.log, self._names)
        return find_genesis(make_log_facts(segment, item.name, item.log))

    async def _read_sets(self, catalog: Catalog, line: Sequence[Reach]) -> dict[str, SetFacts]:
        """Read every manifest of the line; one that is damaged or foreign is left out."""
        sets: dict[str, SetFacts] = {}
        for reach in line:
            for item in catalog.items(reach.lineage).sets:
                data = await self._fetcher.get(item.name)
                try:
                    facts = open_set(data, item.name, item.set, self._names)
                except CorruptionError:
                    continue
                if facts.signed.signer in self._trusted:
                    sets[item.name] = facts
        return sets

    async def _find_config_logs(
        self, catalog: Catalog, line: Sequence[Reach], sets: dict[str, SetFacts]
    ) -> frozenset[str]:
        """Return the log objects with a CONFIG after the genesis.

        A CONFIG begins an epoch, so where no page set has another epoch than the genesis there is
        none below it, and nothing has to be read.
        """
        found: set[str] = set()
        for reach in line:
            items = catalog.items(reach.lineage)
            genesis = reach.genesis
            heads = [sets[item.name].head for item in items.sets if item.name in sets]
            if genesis is None or not items.logs[1:]:
                continue
            last = items.logs[-1]
            is_same = all(head.epoch == genesis.head.epoch for head in heads)
            if is_same and await self._has_epoch(last.name, genesis.head.epoch, catalog, reach):
                continue
            for item in items.logs[1:]:
                segment = open_log(
                    await self._fetcher.get(item.name), item.name, item.log, self._names
                )
                if make_log_facts(segment, item.name, item.log).configs:
                    found.add(item.name)
        return frozenset(found)
