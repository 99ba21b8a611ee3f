"""Carrying retention out: read what the plan needs, rehearse a restore, delete in order.

Only the holder of the lease deletes, and it makes sure of that again and again while it does.
Before the first deletion the restore of the oldest kept moment and that of the newest are *planned*
on the listing without the objects that are to go: if either cannot be planned any more, nothing is
deleted and the sentence says why. A pass that is broken off (a crash, a store that fails) leaves an
archive that restores every kept moment; the next pass goes on.

How old anything is, the wall clock does not say, unless the operator believes it for one pass
(`basenet.archive.watch`). Ages of what nothing names are the store's to tell; where it does not, it
is counted from when this process first saw them. (What a merged object covers is not lost with the
covered ones, so there a file's time is enough.)

Snapshots and retention of one shard are the business of one task, one after the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

import trio

from basenet.archive.catalog import Catalog, LogItem, make_catalog
from basenet.archive.clock import SECOND_NS, SYSTEM_CLOCK, Clock, Reading
from basenet.archive.cutoff import (
    NOTHING_EXPIRED,
    Cutoff,
    Witness,
    find_newest_old,
    find_watched,
)
from basenet.archive.facts import LogFacts, SetFacts, make_log_facts, open_log, open_set
from basenet.archive.fetch import Fetcher
from basenet.archive.lease import Lease
from basenet.archive.lineage import Reach, make_line
from basenet.archive.names import ShardNames
from basenet.archive.plan import Wish, find_genesis, list_lineages
from basenet.archive.port import Entry, Object, Store, StoreNotFound, StoreRefused
from basenet.archive.retention import (
    GARBAGE_AGE_NS,
    Deletion,
    Kind,
    RetentionFacts,
    RetentionPlan,
    Why,
    find_strays,
    is_complete,
    plan_retention,
)
from basenet.archive.stretch import find_covered
from basenet.archive.survey import Survey, read_tip_data
from basenet.archive.trust import Genesis
from basenet.archive.watch import Watch
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    UsageError,
)
from basenet.units import Lineage, PublicKeyBytes, TimestampNs

DELETES_MAX: Final = 2000
STRAYS_MAX: Final = 64  # so many ages are asked for in one pass: each is a whole object
NOTHING: Final = RetentionPlan(base=None, deletions=(), notes=())
_CONCURRENT_DELETES: Final = 4
_DELETES_PER_LEASE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What a pass did; of a dry run: what it would do. ``is_whole``: nothing was left for later.

    ``cutoff``: up to where history has expired, and who says so.
    """

    plan: RetentionPlan
    deleted: int
    deleted_bytes: int
    is_whole: bool
    cutoff: Cutoff = NOTHING_EXPIRED


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
        list_merged_ns: Callable[[], Mapping[str, int]] | None = None,
        watch: Watch | None = None,
        is_by_clock: bool = False,
    ) -> None:
        """``lineage`` is the one that is written; the line that leads to it is pruned.

        ``list_merged_ns``: the ages of the merged objects that this process has stored, by name.
        ``watch``: how old the history is at least; without one only the store can tell.
        ``is_by_clock``: an operator says that the wall clock is right.
        """
        self._watch = watch or Watch(clock=clock)
        self._is_by_clock = is_by_clock
        self._first_seen: dict[str, Reading] = {}
        self._list_merged_ns = list_merged_ns
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
        # Before the listing: the log grows meanwhile, and the TIP with it.
        tip = await read_tip_data(self._fetcher, self._names)
        entries = [entry async for entry in self._store.list(self._names.prefix)]
        catalog = make_catalog(self._names, entries)
        if self._lineage not in list_lineages(catalog):
            return PruneReport(plan=NOTHING, deleted=0, deleted_bytes=0, is_whole=True)
        facts, cutoff = await self._read_facts(catalog)
        plan = plan_retention(facts)
        if config_logs := await self._find_config_logs(facts, plan):
            plan = plan_retention(replace(facts, config_logs=config_logs))
        chosen = plan.deletions[:deletes_max]
        if plan.deletions:
            await self._rehearse(entries, plan, facts.cutoff_ns, tip)
        if not dry_run:
            await self._delete(chosen)
        return PruneReport(
            plan=plan,
            deleted=len(chosen),
            deleted_bytes=sum(deletion.size for deletion in chosen),
            is_whole=len(chosen) == len(plan.deletions),
            cutoff=cutoff,
        )

    # What the plan needs to know.

    async def _read_facts(self, catalog: Catalog) -> tuple[RetentionFacts, Cutoff]:
        geneses = {
            lineage: await self._read_genesis(catalog, lineage)
            for lineage in list_lineages(catalog)
        }

        def find(lineage: Lineage) -> Genesis | None:
            if lineage not in geneses:
                raise NotFoundError(f"lineage {lineage.hex()} has no objects")
            return geneses[lineage]

        line = make_line(self._lineage, find)
        facts = RetentionFacts(
            catalog=catalog,
            line=line,
            shared=_find_shared(line, geneses),
            sets=await self._read_sets(catalog, line),
            config_logs=frozenset(),
            ages_ns={},
            cutoff_ns=NOTHING_EXPIRED.moment,
            garbage_cutoff_ns=NOTHING_EXPIRED.moment,
        )
        cutoff = await self._find_cutoff(facts, self._retention_ns)
        garbage = cutoff
        if self._retention_ns < GARBAGE_AGE_NS:
            garbage = await self._find_cutoff(facts, GARBAGE_AGE_NS)
        facts = replace(facts, cutoff_ns=cutoff.moment, garbage_cutoff_ns=garbage.moment)
        strays = find_strays(facts)[:STRAYS_MAX]
        ages_ns = await self._read_ages(strays) | await self._read_merged_ages(facts)
        seen = {name: self._first_seen[name] for name in ages_ns if name in self._first_seen}
        self._first_seen = seen
        return replace(facts, ages_ns=ages_ns), cutoff

    async def _find_cutoff(self, facts: RetentionFacts, age_ns: int) -> Cutoff:
        """Return up to where the history is surely ``age_ns`` old."""
        if self._is_by_clock:
            moment = TimestampNs(max(0, self._clock.wall_ns() - age_ns))
            return Cutoff(moment=moment, witness=Witness.CLOCK)
        marks = self._watch.find_older(age_ns)
        if watched := find_watched(marks, facts.line):
            return Cutoff(moment=watched, witness=Witness.WATCH)
        return await self._find_stored(facts, age_ns)

    async def _find_stored(self, facts: RetentionFacts, age_ns: int) -> Cutoff:
        """Return the newest page set that has lain in the store for ``age_ns``, as that says."""
        sets = [
            (facts.sets[item.name].head.timestamp_ns, item.name)
            for reach in facts.line
            for item in facts.catalog.items(reach.lineage).sets
            if item.name in facts.sets
            and reach.holds(item.set.to_seq)
            and is_complete(item, facts.sets[item.name], facts.catalog.items(reach.lineage))
        ]

        async def is_old(number: int) -> bool:
            try:
                found = await self._store.get(sets[number][1])
            except StoreNotFound:
                return False
            age = _tell_age(found)
            return age is not None and age >= age_ns

        number = await find_newest_old(len(sets), is_old)
        if number is None:
            return NOTHING_EXPIRED
        return Cutoff(moment=sets[number][0], witness=Witness.STORE)

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
                try:
                    data = await self._fetcher.get(item.name)
                    facts = open_set(data, item.name, item.set, self._names)
                except CorruptionError:
                    continue
                if facts.signed.signer in self._trusted:
                    sets[item.name] = facts
        return sets

    async def _read_ages(self, strays: Sequence[Entry]) -> dict[str, int]:
        """Return how old ``strays`` are."""
        ages_ns: dict[str, int] = {}
        for entry in strays:
            try:
                found = await self._store.get(entry.name)
            except (StoreNotFound, CorruptionError):
                continue
            ages_ns[entry.name] = self._find_age(entry.name, found)
        return ages_ns

    def _find_age(self, name: str, found: Object) -> int:
        """Return how old an object is: by the store's clock, or since it was first seen."""
        age_ns = _tell_age(found)
        if age_ns is not None:
            return age_ns
        if self._is_by_clock and found.modified_ns is not None:
            return self._clock.wall_ns() - found.modified_ns
        now = self._clock.steady()
        return now.elapsed_ns(self._first_seen.setdefault(name, now))

    async def _read_merged_ages(self, facts: RetentionFacts) -> dict[str, int]:
        """Return how old the merged objects are that cover others.

        What this process stored is known. Others are read, a few in a pass: that gives their age
        by the store's clock, and proves that they are sound, before their sources go.
        """
        known = self._list_merged_ns() if self._list_merged_ns is not None else {}
        ages_ns: dict[str, int] = {}
        read = 0
        for reach in facts.line:
            covering = set(find_covered(facts.catalog.items(reach.lineage).logs).values())
            for item in sorted(covering, key=lambda item: item.log):
                if item.name in known:
                    ages_ns[item.name] = known[item.name]
                elif read < STRAYS_MAX:
                    read += 1
                    ages_ns[item.name] = await self._read_merged_age(item)
        return ages_ns

    async def _read_merged_age(self, item: LogItem) -> int:
        """Return how old a merged object is; 0 if it is damaged, foreign or without a time."""
        try:
            found = await self._store.get(item.name)
            segment = open_log(found.data, item.name, item.log, self._names)
        except (StoreNotFound, CorruptionError):
            return 0
        if segment.public not in self._trusted:
            return 0
        age_ns = self._find_age(item.name, found)
        if found.server_now_ns is None and found.modified_ns is not None:
            # All that a wrong clock costs here is that a restore which listed before plans anew.
            age_ns = max(age_ns, self._clock.wall_ns() - found.modified_ns)
        return age_ns

    async def _find_config_logs(self, facts: RetentionFacts, plan: RetentionPlan) -> frozenset[str]:
        """Return which of the log objects that are to go hold a CONFIG, and so must stay.

        A CONFIG begins an epoch: a lineage whose last object has the epoch of its genesis has
        none, and nothing else of it has to be read. What cannot be read stays, too.
        """
        due = {
            deletion.name
            for deletion in plan.deletions
            if deletion.kind is Kind.LOG and deletion.why is Why.EXPIRED
        }
        kept: set[str] = set()
        for reach in facts.line:
            logs = facts.catalog.items(reach.lineage).logs
            doubtful = [item for item in logs if item.name in due]
            if not doubtful:
                continue
            last = await self._read_log(logs[-1])
            genesis_epoch = reach.genesis.head.epoch if reach.genesis else None
            if last is not None and last.epoch(last.log.end) == genesis_epoch:
                continue
            for item in doubtful:
                found = await self._read_log(item)
                if found is None or found.configs:
                    kept.add(item.name)
        return frozenset(kept)

    async def _read_log(self, item: LogItem) -> LogFacts | None:
        try:
            data = await self._fetcher.get(item.name)
            segment = open_log(data, item.name, item.log, self._names)
            return make_log_facts(segment, item.name, item.log)
        except CorruptionError:
            return None

    # Before and during the deletions.

    async def _rehearse(
        self, entries: Sequence[Entry], plan: RetentionPlan, cutoff_ns: int, tip: bytes | None
    ) -> None:
        """Plan the restores of the oldest and the newest kept moment without what is to go.

        ``tip``: the TIP as it was before ``entries`` were listed.
        """
        gone = {deletion.name for deletion in plan.deletions}
        rest = make_catalog(self._names, [entry for entry in entries if entry.name not in gone])
        wishes = [Wish(lineage=self._lineage)]
        if plan.base is not None:
            wishes.append(Wish(lineage=self._lineage, to_time_ns=TimestampNs(cutoff_ns)))
        for wish in wishes:
            try:
                planned = await Survey(self._fetcher, rest, tip=tip).make_plan(wish, self._trusted)
            except StoreRefused:
                raise  # that says nothing of what lies there
            except (CorruptionError, NotFoundError, ConflictError, UsageError) as error:
                raise CorruptionError(
                    f"nothing of shard {self._names.shard} was deleted, because the archive would "
                    f"then not restore what it must: {error}"
                ) from error
        if plan.base is not None and (
            planned.base is None or planned.base.item.name != plan.base.name
        ):
            raise CorruptionError(
                f"nothing of shard {self._names.shard} was deleted, because a restore would not "
                f"begin with {plan.base.name}; run `basenet verify` on the archive"
            )

    async def _delete(self, deletions: Sequence[Deletion]) -> None:
        for _, group in groupby(deletions, key=lambda deletion: deletion.kind):
            same = list(group)
            for start in range(0, len(same), _DELETES_PER_LEASE):
                await self._lease.ensure()
                await self._delete_some(same[start : start + _DELETES_PER_LEASE])

    async def _delete_some(self, deletions: Sequence[Deletion]) -> None:
        """Delete objects of one kind, a few at a time; the first failure ends it."""
        places = trio.CapacityLimiter(_CONCURRENT_DELETES)
        failures: list[BasenetError] = []

        async def delete(deletion: Deletion, scope: trio.CancelScope) -> None:
            async with places:
                try:
                    await self._store.delete(deletion.name)
                except BasenetError as error:
                    failures.append(error)
                    scope.cancel()

        async with trio.open_nursery() as nursery:
            for deletion in deletions:
                nursery.start_soon(delete, deletion, nursery.cancel_scope)
        if failures:
            raise failures[0]


def _tell_age(found: Object) -> int | None:
    """Return how old the store says that an object is; None: it has no clock of its own."""
    if found.modified_ns is None or found.server_now_ns is None:
        return None
    return found.server_now_ns - found.modified_ns


def _find_shared(
    line: Sequence[Reach], geneses: Mapping[Lineage, Genesis | None]
) -> frozenset[Lineage]:
    """Return the lineages of the line that lineages beside it descend from.

    A lineage beside it that has lost its genesis may descend from any of them.
    """
    on_line = {reach.lineage for reach in line}
    shared: set[Lineage] = set()
    for lineage in geneses:
        if lineage in on_line:
            continue
        above: Lineage | None = lineage
        for _ in geneses:  # whatever the geneses say, a way up is no longer than that
            if above is None or above in on_line:
                break
            genesis = geneses.get(above)
            if genesis is None:
                return frozenset(on_line)
            above = genesis.config.parent[0] if genesis.config.parent else None
        places = [number for number, reach in enumerate(line) if reach.lineage == above]
        shared.update(reach.lineage for reach in line[: places[0] + 1] if places)
    return frozenset(shared)
