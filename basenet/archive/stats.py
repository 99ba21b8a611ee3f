"""What a shard's archive consists of, counted: for `basenet archive ls` and ``stats``.

Names tell nearly all of it. What a page set takes from parts that others use too stands in its
manifest, and manifests are small, so they are read; only their integrity is checked, since nothing
is restored here and nothing believed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from basenet.archive.catalog import Catalog, LineageItems, SetItem
from basenet.archive.facts import SetFacts, open_set
from basenet.archive.fetch import Fetcher
from basenet.archive.port import Entry, StoreNotFound
from basenet.archive.stretch import find_covered, list_visible
from basenet.errors import CorruptionError
from basenet.units import Lineage, Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An object and what its name says; ``is_covered``: a merged one holds its frames, too.

    ``kind``: log, merged log, page set, index, part, TIP, LEASE, old log or unknown.
    """

    name: str
    size: int
    kind: str
    lineage: Lineage | None = None
    first_seq: Seq | None = None
    last_seq: Seq | None = None
    is_covered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many objects, of how many bytes."""

    objects: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStats:
    """A page set: its size, and how much of it lies in parts that an older one names, too.

    ``is_complete``: its parts are all there. None of it is known where the manifest is damaged.
    """

    lineage: Lineage
    seq: Seq
    timestamp_ns: int
    parts: int
    stored_bytes: int
    shared_bytes: int
    is_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStats:
    """One shard: its objects by kind, its page sets, and what a restore of the newest state reads.

    ``restore``: by names alone, of the newest lineage; None without a page set to begin with, when
    it begins at the genesis or cannot be told.
    """

    kinds: Mapping[str, Tally]
    sets: tuple[SetStats, ...]
    damaged: tuple[str, ...]
    restore: Tally | None


def list_objects(catalog: Catalog) -> list[Listed]:
    """Return every object of the shard, each lineage by seq."""
    listed: list[Listed] = []
    for lineage, items in catalog.lineages.items():
        listed += _list_lineage(lineage, items)
    for kind, entries in (
        ("TIP", (catalog.tip,)),
        ("LEASE", (catalog.lease,)),
        ("old log", catalog.old_logs),
        ("unknown", catalog.unknown),
    ):
        listed += [
            Listed(name=entry.name, size=entry.size, kind=kind)
            for entry in entries
            if entry is not None
        ]
    return listed


def _list_lineage(lineage: Lineage, items: LineageItems) -> list[Listed]:
    covered = find_covered(items.logs)
    listed = [
        Listed(
            name=item.name,
            size=item.size,
            kind="merged log" if item.log.level else "log",
            lineage=lineage,
            first_seq=item.log.start,
            last_seq=item.log.end,
            is_covered=item in covered,
        )
        for item in items.logs
    ]
    for item in items.sets:
        listed.append(_list_set(lineage, item, Entry(name=item.name, size=item.size), "page set"))
        if item.index is not None:
            listed.append(_list_set(lineage, item, item.index, "index"))
    for kind, entries in (("index", items.stray_indexes), ("part", items.parts.values())):
        listed += [
            Listed(name=entry.name, size=entry.size, kind=kind, lineage=lineage)
            for entry in entries
        ]
    return listed


def _list_set(lineage: Lineage, item: SetItem, entry: Entry, kind: str) -> Listed:
    return Listed(
        name=entry.name,
        size=entry.size,
        kind=kind,
        lineage=lineage,
        last_seq=item.set.to_seq,
    )


async def read_stats(catalog: Catalog, fetcher: Fetcher) -> ShardStats:
    """Count what ``catalog`` lists; the manifests are read. Raises what the store raises."""
    kinds: dict[str, Tally] = {}
    for listed in list_objects(catalog):
        name = "covered log" if listed.is_covered else listed.kind
        before = kinds.get(name, Tally(objects=0, stored_bytes=0))
        kinds[name] = Tally(
            objects=before.objects + 1, stored_bytes=before.stored_bytes + listed.size
        )
    sets: list[SetStats] = []
    damaged: list[str] = []
    restore: Tally | None = None
    for lineage, items in catalog.lineages.items():
        seen: set[str] = set()
        for item in items.sets:
            try:
                data = await fetcher.get(item.name)
                facts = open_set(data, item.name, item.set, catalog.names)
            except (CorruptionError, StoreNotFound) as error:
                damaged.append(str(error))
                continue
            sets.append(_count_set(lineage, items, facts, seen))
            restore = _count_restore(items, item, facts)
    return ShardStats(kinds=kinds, sets=tuple(sets), damaged=tuple(damaged), restore=restore)


def _count_set(lineage: Lineage, items: LineageItems, facts: SetFacts, seen: set[str]) -> SetStats:
    """Return the numbers of one page set; ``seen``: the parts of older ones, which is extended."""
    pages = facts.pages
    shared = sum(part.stored_len for part in pages.parts if part.file_name in seen)
    is_inline = pages.inline is not None
    held = {(part.name or part.node_hash) in items.parts or is_inline for part in pages.parts}
    if not is_inline:
        seen.update(part.file_name for part in pages.parts)
    return SetStats(
        lineage=lineage,
        seq=facts.head.seq,
        timestamp_ns=facts.head.timestamp_ns,
        parts=0 if is_inline else len(pages.parts),
        stored_bytes=pages.index_len + sum(part.stored_len for part in pages.parts),
        shared_bytes=shared,
        is_complete=False not in held,
    )


def _count_restore(items: LineageItems, base: SetItem, facts: SetFacts) -> Tally:
    """Return what a restore of the newest state reads that begins with ``base``."""
    logs = [item for item in list_visible(items.logs) if item.log.end > base.set.to_seq]
    sizes = [base.size, *(item.size for item in logs)]
    if facts.pages.inline is None and base.index is not None:
        sizes += [base.index.size, *(part.stored_len for part in facts.pages.parts)]
    return Tally(objects=len(sizes), stored_bytes=sum(sizes))


def add(tallies: Sequence[Tally]) -> Tally:
    """Return the sum of ``tallies``."""
    return Tally(
        objects=sum(one.objects for one in tallies),
        stored_bytes=sum(one.stored_bytes for one in tallies),
    )
