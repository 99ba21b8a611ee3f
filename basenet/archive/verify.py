"""Verify: every object of an archive, and what can be restored from it.

Theory of operation
===================

Nothing is sampled. Every object is read; every signature of object and frame, every link, CONFIG
and state root, every block of every page set is checked, and every name against what is signed
inside. A *problem* names one object, which is damaged, missing, or not what it should be. A *note*
is what an operator may want to know: abandoned and orphaned frames, objects that are no objects.

What is missing is found in four ways: a gap between log objects, a page set whose index or part is
gone, an index whose manifest is gone where a gap makes it needed, and a TIP that proves more than
there is. The name of a missing log object is known but for its end, so it is given with a star.

*Retention* keeps every moment since a while, from the newest page set before that while on; below
it only geneses and CONFIGs stay. So what is missing below the oldest page set is no problem once
that set is older than the retention: no moment that is still kept needs it. Three things are not
missed when they are deleted: the TIP, the manifest of a page set that no moment depends on (without
it the rest of the set is what a broken-off snapshot leaves), and the end of an abandoned lineage.

The lease is neither signed nor needed, and not judged. Objects that vanish while they are read
(retention again) make the shard be listed and verified once more.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from basenet.archive.catalog import Catalog, LineageItems, read_catalog
from basenet.archive.facts import (
    TipFacts,
    make_log_facts,
    naming,
    open_log,
    open_set,
    open_tip,
)
from basenet.archive.fetch import Fetcher
from basenet.archive.findings import Inspection, Meter, OnProgress, Problem
from basenet.archive.inspector import LineageInspector, LineageLimits, LocatedSet
from basenet.archive.lineage import find_leaves
from basenet.archive.names import LOG_FOLDER_SEQS, SetName, ShardNames
from basenet.archive.plan import find_genesis, list_lineages
from basenet.archive.port import Entry, Store
from basenet.archive.replay import check_tip_trust
from basenet.archive.survey import read_tip_data
from basenet.archive.trust import Genesis, Standing, begin
from basenet.archive.walk import Moment, RestorableRange, Walk
from basenet.errors import CorruptionError, EncryptionCorrupt
from basenet.keys.trust import get_fingerprint
from basenet.units import Lineage, PublicKeyBytes, Seq, ShardId, is_shard_id

RETENTION_SECONDS: Final = 7 * 24 * 3600.0
ATTEMPTS: Final = 2
_NS_PER_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """One shard: what is wrong, what else there is to know, and what can be restored."""

    service: str
    shard: ShardId
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    ranges: tuple[RestorableRange, ...]
    lineages: tuple[Lineage, ...]
    objects: int
    stored_bytes: int
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """A whole archive."""

    url: str
    shards: tuple[ShardReport, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def problems(self) -> list[Problem]:
        """The problems of all shards."""
        return [problem for shard in self.shards for problem in shard.problems]


async def verify(
    store: Store,
    *,
    trusted: frozenset[PublicKeyBytes],
    service: str | None = None,
    shard: ShardId | None = None,
    retention_seconds: float = RETENTION_SECONDS,
    now_ns: int | None = None,
    on_progress: OnProgress | None = None,
    fetcher: Fetcher | None = None,
) -> VerifyReport:
    """Verify all shards of the archive, or those of ``service``, or the one ``shard``.

    ``retention_seconds`` is the writer's, ``now_ns`` the present by default. Raises
    `UnavailableError` when the store does not answer; what is wrong with the archive is in the
    report.
    """
    started = time.monotonic()
    shards, strangers = await _list_all(store, service, shard)
    meter = Meter(sum(shards.values()), on_progress)
    reports = []
    fetcher = fetcher or Fetcher(store)
    for names in shards:
        for _ in range(ATTEMPTS):
            # The TIP first: a writer goes on, and what the TIP proves must be in the listing.
            tip, why = None, None
            try:
                tip = await read_tip_data(fetcher, names)
            except EncryptionCorrupt as error:
                why = str(error)
            catalog = await read_catalog(store, names)
            # The time afterwards: what is not listed was deleted before, by what was old then.
            present_ns = time.time_ns() if now_ns is None else now_ns
            inspection = Inspection(
                names=names,
                fetcher=fetcher,
                trusted=trusted,
                horizon_ns=present_ns - int(retention_seconds * _NS_PER_SECOND),
                present_ns=present_ns,
                meter=meter,
            )
            if why is not None:
                inspection.report(names.tip, why)
            report = await _ShardVerifier(inspection, catalog, tip).run()
            if not inspection.has_lost_objects:
                break
        reports.append(report)
    return VerifyReport(
        url=store.url,
        shards=tuple(reports),
        notes=tuple(f"{entry.name} is no object of basenet" for entry in strangers),
        seconds=time.monotonic() - started,
    )


async def _list_all(
    store: Store, service: str | None, shard: ShardId | None
) -> tuple[dict[ShardNames, int], list[Entry]]:
    """Return the bytes of each shard's objects, and what lies in no shard's folder."""
    shards: dict[ShardNames, int] = {}
    strangers = []
    async for entry in store.list("" if service is None else f"{service}/"):
        folders = entry.name.split("/")
        if len(folders) < 3 or not is_shard_id(folders[1]):  # noqa: PLR2004  (service, shard, rest)
            strangers.append(entry)
            continue
        names = ShardNames(service=folders[0], shard=ShardId(folders[1]))
        if shard is None or shard == names.shard:
            shards[names] = shards.get(names, 0) + entry.size
    return shards, strangers


class _ShardVerifier:
    """One pass over one shard."""

    def __init__(self, inspection: Inspection, catalog: Catalog, tip_data: bytes | None) -> None:
        self._inspection = inspection
        self._catalog = catalog
        self._tip_data = tip_data
        self._names = catalog.names
        self._walks: dict[Lineage, Walk] = {}
        self._ends: dict[Lineage, Seq] = {}
        self._gaps: dict[Lineage, list[tuple[Seq, Seq]]] = {}
        self._sets: dict[Lineage, list[LocatedSet]] = {}

    async def run(self) -> ShardReport:
        geneses = {
            lineage: await self._read_genesis(self._catalog.items(lineage))
            for lineage in list_lineages(self._catalog)
        }
        tip = self._open_tip()
        for lineage in geneses:
            self._sets[lineage] = await self._read_manifests(self._catalog.items(lineage))
        # A parent begins before its child, so it is walked before.
        order = sorted(geneses, key=lambda lineage: _get_first_seq(geneses[lineage]))
        for lineage in order:
            await self._inspect(lineage, geneses, tip)
        if tip is not None:
            self._check_tip(tip)
        self._check_stray_indexes(geneses, tip)
        self._take_notes(geneses)
        return self._make_report(order)

    def _make_report(self, order: Sequence[Lineage]) -> ShardReport:
        sizes = [entry.size for entry in self._catalog.entries]
        return ShardReport(
            service=self._names.service,
            shard=self._names.shard,
            problems=self._inspection.problems,
            notes=tuple(self._inspection.notes),
            ranges=tuple(found for lineage in order for found in self._walks[lineage].ranges),
            lineages=tuple(order),
            objects=len(sizes),
            stored_bytes=sum(sizes),
            frames=sum(walk.frame_count for walk in self._walks.values()),
        )

    # Where lineages begin, and how far the shard reaches.

    async def _read_genesis(self, items: LineageItems) -> Genesis | None:
        missing = f"{self._names.lineage(items.lineage)}log/*"
        if not items.logs:
            self._inspection.report(missing, "the genesis is missing, and all of the log with it")
            return None
        item = items.logs[0]
        data = await self._inspection.get(item.name)
        if data is None:
            return None
        try:
            segment = open_log(data, item.name, item.log, self._names)
        except CorruptionError:
            return None  # it is read again in its turn, and reported then
        try:
            with naming(item.name):
                genesis = find_genesis(make_log_facts(segment, item.name, item.log))
        except CorruptionError as error:
            self._inspection.report(item.name, str(error))
            return None
        if genesis is None:
            self._inspection.report(
                missing,
                f"the genesis is missing: the log begins with frame {item.log.start}, and nothing "
                "says whom it continues",
            )
        return genesis

    def _open_tip(self) -> TipFacts | None:
        if self._tip_data is None:
            self._inspection.notes.append(
                "there is no TIP, so objects deleted from the end would not be missed"
            )
            return None
        self._inspection.meter.add(len(self._tip_data))
        try:
            return open_tip(self._tip_data, self._names)
        except CorruptionError as error:
            self._inspection.report(self._names.tip, str(error))
            return None

    async def _read_manifests(self, items: LineageItems) -> list[LocatedSet]:
        """Return the page sets of a lineage whose manifests are sound, by seq."""
        found = []
        for item in items.sets:
            data = await self._inspection.get(item.name)
            self._inspection.meter.add(item.size)
            if data is None:
                continue
            try:
                found.append((item, open_set(data, item.name, item.set, self._names)))
            except CorruptionError as error:
                self._inspection.report(item.name, str(error))
        return found

    # The lineages.

    async def _inspect(
        self, lineage: Lineage, geneses: Mapping[Lineage, Genesis | None], tip: TipFacts | None
    ) -> None:
        items, genesis = self._catalog.items(lineage), geneses[lineage]
        walk = Walk(
            lineage,
            self._find_standing(genesis),
            self._inspection.report,
            watched=_list_parent_seqs(geneses, lineage),
            noted=tip.head.seq if tip is not None and tip.lineage == lineage else None,
        )
        self._walks[lineage] = walk
        if genesis is not None:
            walk.begin(genesis, items.logs[0].name, self._find_parent(genesis))
        inspector = LineageInspector(
            self._inspection,
            items,
            walk,
            sets=self._sets[lineage],
            limits=self._find_limits(items, geneses),
        )
        await inspector.run()
        self._ends[lineage] = inspector.end
        self._gaps[lineage] = inspector.gaps

    def _find_limits(
        self, items: LineageItems, geneses: Mapping[Lineage, Genesis | None]
    ) -> LineageLimits:
        genesis = geneses[items.lineage]
        if genesis is not None:
            first_seq = genesis.head.seq
        else:
            first_seq = items.logs[0].log.start if items.logs else items.sets[0].set.to_seq
        return LineageLimits(
            first_seq=first_seq,
            pruned_to=self._find_pruned(items.lineage, geneses),
            left_at=max(_list_parent_seqs(geneses, items.lineage), default=None),
        )

    def _find_pruned(self, lineage: Lineage, geneses: Mapping[Lineage, Genesis | None]) -> int:
        """Return the seq of ``lineage`` below which retention may have deleted."""
        if self._sets[lineage]:
            oldest = self._sets[lineage][0][1].head
            return oldest.seq if self._inspection.may_have_expired(oldest.timestamp_ns) else 0
        # Without a page set of its own it is retired when one stands in a lineage that goes on.
        children = [
            child
            for child, genesis in geneses.items()
            if genesis is not None
            and genesis.config.parent is not None
            and genesis.config.parent[0] == lineage
        ]
        pruned = [self._find_pruned(child, geneses) for child in children]
        return max(_list_parent_seqs(geneses, lineage)) if pruned and all(pruned) else 0

    def _find_standing(self, genesis: Genesis | None) -> Standing:
        """Return who counts before ``genesis``, as far as its parent's CONFIGs say."""
        parent = genesis.config.parent if genesis is not None else None
        if parent is not None and parent[0] in self._walks:
            return self._walks[parent[0]].standing_at(parent[1])
        return begin(self._inspection.trusted)

    def _find_parent(self, genesis: Genesis) -> Moment | None:
        parent = genesis.config.parent
        if parent is None or parent[0] not in self._walks:
            return None
        return self._walks[parent[0]].moments.get(parent[1])

    # What concerns the shard as a whole.

    def _check_tip(self, tip: TipFacts) -> None:
        name, seq = self._names.tip, tip.head.seq
        walk, end = self._walks.get(tip.lineage), self._ends.get(tip.lineage)
        if walk is None or end is None:
            if not self._is_believed(tip.signed.signer):
                self._inspection.report(
                    name,
                    f"it is signed by {get_fingerprint(tip.signed.signer)}, which is not trusted, "
                    "and names a lineage that is not there",
                )
                return
            self._inspection.report(
                f"{self._names.lineage(tip.lineage)}*",
                f"lineage {tip.lineage.hex()}, which the TIP names, is missing",
            )
            return
        try:
            check_tip_trust(walk.standing, tip.signed, tip.head)
        except CorruptionError as error:
            self._inspection.report(name, str(error))
        if end < seq:
            folder = f"{self._names.lineage(tip.lineage)}log/{(end + 1) // LOG_FOLDER_SEQS:016d}"
            self._inspection.report(
                f"{folder}/{end + 1:020d}-*",
                f"frames {end + 1}..{seq} are missing: the TIP proves that they were archived",
            )
        elif walk.noted_hash not in (None, tip.head.hash):
            self._inspection.report(name, f"it names another frame {seq} than the log holds")

    def _is_believed(self, key: PublicKeyBytes) -> bool:
        """Return whether some lineage of the shard gives weight to ``key``."""
        believed = [walk.standing.believed for walk in self._walks.values()]
        return any(key in keys for keys in [self._inspection.trusted, *believed])

    def _check_stray_indexes(
        self, geneses: Mapping[Lineage, Genesis | None], tip: TipFacts | None
    ) -> None:
        """Judge indexes without a manifest: a snapshot was broken off, or its manifest is gone.

        A manifest that was deleted leaves the same behind as a snapshot that never got one. It is
        missed where frames before it are, or when nothing can be restored: only with it something
        would be.
        """
        leaves = find_leaves(geneses)
        is_nothing_left = any(not self._walks[leaf].ranges for leaf in leaves)
        for items in self._catalog.lineages.values():
            newest = max([item.set.to_seq for item in items.sets], default=Seq(0))
            if tip is not None and tip.lineage == items.lineage:
                newest = max(newest, tip.head.seq)
            known = items.lineage in geneses
            pruned_to = self._find_pruned(items.lineage, geneses) if known else 0
            gaps = self._gaps.get(items.lineage, [])
            is_leaf = items.lineage in leaves
            for index in items.stray_indexes:
                parsed = self._names.parse(index.name)
                assert isinstance(parsed, SetName), "the catalog parsed it as an index"
                seq = parsed.to_seq
                if seq <= pruned_to:
                    self._inspection.notes.append(f"{index.name} is left over from retention")
                elif is_nothing_left or any(first <= seq for first, _ in gaps):
                    self._inspection.report(
                        f"{index.name.removesuffix('.idx')}.lbn",
                        "the manifest is missing: its index lies there without it, and what it "
                        "would give back cannot be restored otherwise",
                    )
                else:
                    # Snapshots are taken of the present, and only of the lineage that goes on.
                    self._note_leftover(index, is_over=seq < newest or not is_leaf)

    def _note_leftover(self, index: Entry, *, is_over: bool) -> None:
        """Note an index whose snapshot was broken off, or (not ``is_over``) is being written."""
        sentence = (
            "has no manifest: it is left over from a snapshot that was broken off, no moment needs "
            "it, and retention deletes it after a day"
            if is_over
            else "has no manifest yet: a snapshot is being written, or was broken off"
        )
        self._inspection.notes.append(f"{index.name} {sentence}")

    def _take_notes(self, geneses: Mapping[Lineage, Genesis | None]) -> None:
        notes, catalog = self._inspection.notes, self._catalog
        leaves = find_leaves(geneses)
        if len(leaves) > 1:
            named = ", ".join(leaf.hex() for leaf in leaves)
            notes.append(f"{len(leaves)} histories that nobody continues: {named}; restore asks")
        for genesis in geneses.values():
            parent = genesis.config.parent if genesis is not None else None
            if genesis is not None and parent is not None:
                end = self._ends.get(parent[0])
                if end is not None and end > parent[1]:
                    notes.append(
                        f"frames {parent[1] + 1}..{end} of lineage {parent[0].hex()} are "
                        f"abandoned: {genesis.config.lineage.hex()} went on from {parent[1]}"
                    )
        if catalog.lease is not None:
            notes.append(f"{catalog.lease.name} is neither signed nor needed, and not judged")
        if catalog.old_logs:
            notes.append(
                f"{len(catalog.old_logs)} log objects are of the layout before chain and "
                f"signature, and not judged: {catalog.old_logs[0].name} ..."
            )
        notes += [f"{entry.name} is no object of basenet" for entry in catalog.unknown]


def _get_first_seq(genesis: Genesis | None) -> int:
    return 0 if genesis is None else genesis.head.seq


def _list_parent_seqs(geneses: Mapping[Lineage, Genesis | None], lineage: Lineage) -> list[int]:
    """Return the seqs at which other lineages went on from ``lineage``."""
    return [
        genesis.config.parent[1]
        for genesis in geneses.values()
        if genesis is not None
        and genesis.config.parent is not None
        and genesis.config.parent[0] == lineage
    ]
