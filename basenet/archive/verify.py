"""Verify: every object of an archive, and what can be restored from it.

Theory of operation
===================

Nothing is sampled. Every object is read; every signature of object and frame, every link, CONFIG
and state root, every block of every page set is checked, and every name against what is signed
inside. A *problem* names one object, which is damaged, missing, or not what it should be. A *note*
is what an operator may want to know: abandoned and orphaned frames, objects that are no objects.

What is missing is found in four ways: a gap between log objects, a page set whose index or part is
gone, an index whose manifest is gone, and a TIP that proves more than there is. The name of a
missing log object is known but for its end, so it is given with a star.

*Retention* deletes the log up to the oldest page set that it keeps; only the genesis stays. So a
gap right behind the genesis that reaches to the oldest page set is no problem once that set is
older than the retention. What is deleted in just this shape cannot be told apart from it, nor can
an inline page set that no moment depends on: it leaves no trace.

The lease is neither signed nor needed, and not judged. Objects that vanish while they are read
(retention again) make the shard be listed and verified once more.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from basenet.archive.catalog import Catalog, LineageItems, LogItem, SetItem, make_catalog
from basenet.archive.facts import (
    LogFacts,
    SetFacts,
    TipFacts,
    make_log_facts,
    open_log,
    open_set,
    open_tip,
    sign_of,
)
from basenet.archive.fetch import Fetcher, Request
from basenet.archive.lineage import find_leaves
from basenet.archive.names import LOG_FOLDER_SEQS, ShardNames
from basenet.archive.plan import find_genesis, list_lineages
from basenet.archive.port import Entry, Store, StoreNotFound
from basenet.archive.replay import check_tip_trust
from basenet.archive.setreader import SetReader
from basenet.archive.stretch import Span, Stretch, resolve
from basenet.archive.trust import Genesis, Standing, begin, check_author, check_signer
from basenet.archive.walk import Moment, RestorableRange, Walk
from basenet.errors import BasenetError, ConflictError, CorruptionError, SegmentCorrupt
from basenet.units import HASH_BYTES, Lineage, PublicKeyBytes, Seq, ShardId, is_shard_id
from basenet.wire.segment import Segment, TreeRecord

RETENTION_SECONDS: Final = 7 * 24 * 3600.0
ATTEMPTS: Final = 2
_NS_PER_SECOND: Final = 1_000_000_000

OnProgress = Callable[[int, int], None]
"""Called with the bytes verified so far and the bytes of all objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An object that is damaged, missing (then perhaps with a star) or not what it should be."""

    object: str
    sentence: str


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

    Raises `UnavailableError` when the store does not answer; what is wrong with the archive is in
    the report.
    """
    started = time.monotonic()
    fetcher = fetcher or Fetcher(store)
    shards, strangers = await _list_all(store, service, shard)
    total = sum(entry.size for entries in shards.values() for entry in entries)
    meter = _Meter(total, on_progress)
    horizon_ns = (time.time_ns() if now_ns is None else now_ns) - int(
        retention_seconds * _NS_PER_SECOND
    )
    reports = []
    for names, entries in shards.items():
        catalog = make_catalog(names, entries)
        for attempt in range(1, ATTEMPTS + 1):
            verifier = _ShardVerifier(fetcher, catalog, trusted, horizon_ns, meter)
            report = await verifier.run()
            if not verifier.has_lost_objects or attempt == ATTEMPTS:
                break
            catalog = make_catalog(names, [entry async for entry in store.list(names.prefix)])
        reports.append(report)
    notes = [f"{entry.name} is no object of basenet" for entry in strangers]
    return VerifyReport(
        url=store.url,
        shards=tuple(reports),
        notes=tuple(notes),
        seconds=time.monotonic() - started,
    )


async def _list_all(
    store: Store, service: str | None, shard: ShardId | None
) -> tuple[dict[ShardNames, list[Entry]], list[Entry]]:
    """Return all objects by shard, and those that lie in no shard's folder."""
    prefix = "" if service is None else f"{service}/"
    shards: dict[ShardNames, list[Entry]] = {}
    strangers = []
    async for entry in store.list(prefix):
        folders = entry.name.split("/")
        if len(folders) < 3 or not is_shard_id(folders[1]):  # noqa: PLR2004  (service, shard, rest)
            strangers.append(entry)
            continue
        names = ShardNames(service=folders[0], shard=ShardId(folders[1]))
        if shard is None or shard == names.shard:
            shards.setdefault(names, []).append(entry)
    return shards, strangers


class _Meter:
    """Counts bytes and tells who wants to know."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total = total
        self._done = 0
        self._on_progress = on_progress

    def add(self, size: int) -> None:
        self._done += size
        if self._on_progress is not None:
            self._on_progress(min(self._done, self._total), self._total)
