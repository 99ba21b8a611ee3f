"""What lies in a service's folder of the archive, by name alone.

Theory of operation
===================

A restore lists a shard once and plans from names: they say which frames an object holds, so a gap
is found before a byte is fetched. A name is only a claim. Whoever reads the object compares it
with what is signed inside (`basenet.archive.facts`), so a false name cannot add anything; it can
only make a restore fail.

What is no object of ours is kept by name and size, to be reported, and otherwise ignored. The log
objects of the system that basenet follows are recognised and kept apart: they have no chain, so
nothing can be proven from them.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from basenet.archive.names import LogName, OldLogName, PartName, SetName, ShardNames
from basenet.archive.port import Entry, Store
from basenet.errors import NotFoundError, UsageError
from basenet.units import Lineage, ShardId, is_shard_id


class EmptyArchive(NotFoundError):  # noqa: N818  (states a fact; the kind is in the base)
    """There is nothing in it: no service, no shard."""


# The character behind "/": the first name that is beyond everything in a folder.
_AFTER_FOLDER = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogItem:
    """A log object: its whole name, its size in bytes, and what the name says."""

    name: str
    size: int
    log: LogName


@dataclass(frozen=True, slots=True, kw_only=True)
class SetItem:
    """A page set's manifest; ``index`` is the entry of its index, None when there is none."""

    name: str
    size: int
    set: SetName
    index: Entry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageItems:
    """The objects of one lineage, each kind in the order of its seqs.

    ``stray_indexes``: indexes without a manifest. ``parts``: size by part name.
    """

    lineage: Lineage
    logs: tuple[LogItem, ...]
    sets: tuple[SetItem, ...]
    stray_indexes: tuple[Entry, ...]
    parts: dict[bytes, Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """One shard of one service, as listed at one moment."""

    names: ShardNames
    lineages: dict[Lineage, LineageItems]
    tip: Entry | None
    lease: Entry | None
    old_logs: tuple[Entry, ...]
    unknown: tuple[Entry, ...]
    entries: tuple[Entry, ...]

    @property
    def shard(self) -> ShardId:
        """The shard."""
        return self.names.shard

    def items(self, lineage: Lineage) -> LineageItems:
        """Return the objects of ``lineage``; empty when there are none."""
        empty = LineageItems(lineage=lineage, logs=(), sets=(), stray_indexes=(), parts={})
        return self.lineages.get(lineage, empty)


@dataclass(slots=True)
class _Draft:
    """A lineage while its names are being read."""

    logs: list[LogItem] = field(default_factory=list)
    sets: list[tuple[Entry, SetName]] = field(default_factory=list)
    indexes: dict[SetName, Entry] = field(default_factory=dict)
    parts: dict[bytes, Entry] = field(default_factory=dict)

    def finish(self, lineage: Lineage) -> LineageItems:
        sets = []
        for entry, name in self.sets:
            index = self.indexes.pop(_index_of(name), None)
            sets.append(SetItem(name=entry.name, size=entry.size, set=name, index=index))
        return LineageItems(
            lineage=lineage,
            logs=tuple(sorted(self.logs, key=lambda item: item.log)),
            sets=tuple(sorted(sets, key=lambda item: item.set)),
            stray_indexes=tuple(self.indexes.values()),
            parts=self.parts,
        )


def _index_of(name: SetName) -> SetName:
    return SetName(
        to_seq=name.to_seq,
        from_seq=name.from_seq,
        level=name.level,
        lineage=name.lineage,
        is_index=True,
    )


def make_catalog(names: ShardNames, entries: Iterable[Entry]) -> Catalog:
    """Return the catalog of the objects ``entries``, which all lie below ``names.prefix``."""
    entries = tuple(entries)
    drafts: defaultdict[Lineage, _Draft] = defaultdict(_Draft)
    tip = lease = None
    old_logs, unknown = [], []
    for entry in entries:
        parsed = names.parse(entry.name)
        if isinstance(parsed, LogName) and parsed.start <= parsed.end:
            item = LogItem(name=entry.name, size=entry.size, log=parsed)
            drafts[parsed.lineage].logs.append(item)
        elif isinstance(parsed, SetName) and parsed.is_index:
            drafts[parsed.lineage].indexes[parsed] = entry
        elif isinstance(parsed, SetName):
            drafts[parsed.lineage].sets.append((entry, parsed))
        elif isinstance(parsed, PartName):
            drafts[parsed.lineage].parts[parsed.name] = entry
        elif isinstance(parsed, OldLogName):
            old_logs.append(entry)
        elif entry.name == names.tip:
            tip = entry
        elif entry.name == names.lease:
            lease = entry
        else:
            unknown.append(entry)
    return Catalog(
        names=names,
        lineages={lineage: drafts[lineage].finish(lineage) for lineage in sorted(drafts)},
        tip=tip,
        lease=lease,
        old_logs=tuple(old_logs),
        unknown=tuple(unknown),
        entries=entries,
    )


async def read_catalog(store: Store, names: ShardNames) -> Catalog:
    """List the shard ``names`` once and return its catalog."""
    return make_catalog(names, [entry async for entry in store.list(names.prefix)])


async def list_services(store: Store) -> list[str]:
    """Return the services that have objects in the archive, sorted."""
    return await _list_folders(store, "")


async def list_shards(store: Store, service: str) -> list[ShardId]:
    """Return the shards of ``service`` that have objects in the archive, sorted."""
    folders = await _list_folders(store, f"{service}/")
    return [ShardId(folder) for folder in folders if is_shard_id(folder)]


async def _list_folders(store: Store, prefix: str) -> list[str]:
    """Return the folders right below ``prefix``, sorted, at one page of listing each.

    The port has no delimiter, so the walk jumps: past everything in the folder just found.
    """
    folders: list[str] = []
    after: str | None = None
    while True:
        found = None
        async for entry in store.list(prefix, start_after=after):
            head, slash, _ = entry.name[len(prefix) :].partition("/")
            if slash:
                found = head
                break
        if found is None:
            return sorted(folders)
        folders.append(found)
        after = f"{prefix}{found}{_AFTER_FOLDER}"


async def find_shard(store: Store, service: str, shard: ShardId | None) -> ShardId:
    """Return ``shard`` if it exists, or the only one there is when None is given.

    Raises `NotFoundError` that says what exists instead, and `UsageError` when a choice is needed.
    """
    if shard is not None:
        async for _ in store.list(ShardNames(service=service, shard=shard).prefix):
            return shard
    shards = await list_shards(store, service)
    if shard is None and len(shards) == 1:
        return shards[0]
    if shard is None and shards:
        raise UsageError(
            f"{store.url} holds {len(shards)} shards of service {service!r}: "
            f"choose one of {', '.join(shards)} with --shard"
        )
    raise await _explain_absence(store, service, shard, shards)


async def _explain_absence(
    store: Store, service: str, shard: ShardId | None, shards: list[ShardId]
) -> NotFoundError:
    wanted = "no shard" if shard is None else f"no shard {shard!r}"
    if shards:
        rest = f"it has {', '.join(shards)}"
    elif services := await list_services(store):
        rest = f"the services in it are {', '.join(services)}: choose one with --service"
    else:
        return EmptyArchive(
            f"{store.url} holds {wanted} of service {service!r}; there is nothing in it"
        )
    return NotFoundError(f"{store.url} holds {wanted} of service {service!r}; {rest}")
