"""Which objects of a shard's archive are no longer needed: a function of facts.

Theory of operation
===================

What is kept is every moment from ``now - retention`` on: each commit since, and the state at that
moment itself. A restore of the oldest of them begins with the newest page set at or before it, the
*base*. So on the line from the root of the lineages to ours::

      P  set 1 --------- 400                              retired: only the genesis object stays
                          |
      L                   401 === set 500 === set 700 === tip
                                       ^        cutoff ^
      deleted: everything below the base                 kept: the base and everything after it

Without a base nothing of the line is deleted, so the last snapshot never goes.

What ``now - retention`` is, no wall clock decides: the *cutoff* is a moment of the line that is
surely as old as that (`basenet.archive.watch`, `basenet.archive.cutoff`).

* The log object with the *genesis* of a lineage stays for ever: it says whom the lineage continues
  and whom to believe. So do objects that hold a later CONFIG.
* Frames of an ancestor above the seq at which it was left, and page sets there, go when they are
  older than the retention: no moment of the line needs them.
* Log objects that a *merged* one covers (`basenet.archive.stretch`) go once that has been there for
  `MERGE_GRACE_NS`: a restore that listed them has ended by then, or lists again.
* A *part* goes when no kept manifest names it and it is older than a day: younger, it may belong
  to a snapshot that is being written.
* What is not understood is not touched: names that are not ours, all parts of a lineage of which
  one manifest cannot be read, and an ancestor that a lineage beside the line continues, too.

The order is safe to break off anywhere: manifests first (without one a page set does not exist),
then indexes, log objects, parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

from basenet.archive.catalog import Catalog, LineageItems, LogItem, SetItem
from basenet.archive.clock import SECOND_NS
from basenet.archive.facts import SetFacts
from basenet.archive.lineage import Reach
from basenet.archive.port import Entry
from basenet.archive.stretch import find_covered
from basenet.units import Lineage

GARBAGE_AGE_NS: Final = 24 * 3600 * SECOND_NS
MERGE_GRACE_NS: Final = 3600 * SECOND_NS


class Kind(IntEnum):
    """What is deleted, in the order in which it is deleted."""

    MANIFEST = 1
    INDEX = 2
    LOG = 3
    PART = 4


class Why(StrEnum):
    """Why an object is not needed any more."""

    EXPIRED = "expired"  # older than what is kept
    MERGED = "merged"  # its frames are in a merged object
    GARBAGE = "garbage"  # nothing names it


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Deletion:
    """An object that is no longer needed."""

    kind: Kind
    name: str
    size: int
    why: Why = field(default=Why.EXPIRED, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionFacts:
    """What the plan is made from.

    ``line``: from the root to the lineage that is written. ``shared``: the lineages of the line
    that a lineage beside it continues, too. ``sets``: the manifests that were read, by name; one
    that is missing here could not be. ``config_logs``: names of log objects with a CONFIG.
    ``ages_ns``: ages of parts and indexes that no manifest names, and of merged objects that cover
    others, as far as they are known. ``cutoff_ns``: the oldest moment that is kept;
    ``garbage_cutoff_ns``: one that is surely `GARBAGE_AGE_NS` old.
    """

    catalog: Catalog
    line: tuple[Reach, ...]
    shared: frozenset[Lineage]
    sets: Mapping[str, SetFacts]
    config_logs: frozenset[str]
    ages_ns: Mapping[str, int]
    cutoff_ns: int
    garbage_cutoff_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """What to delete, in order; ``base``: the page set that the kept moments begin with."""

    base: SetItem | None
    deletions: tuple[Deletion, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many bytes go."""
        return sum(deletion.size for deletion in self.deletions)


def plan_retention(facts: RetentionFacts) -> RetentionPlan:
    """Return what to delete."""
    return _Planner(facts).plan()


def find_strays(facts: RetentionFacts) -> list[Entry]:
    """Return the parts and indexes of the line that no manifest names: their age decides."""
    strays: list[Entry] = []
    for reach in facts.line:
        items = facts.catalog.items(reach.lineage)
        named = _named_parts(
            facts.sets[item.name] for item in items.sets if item.name in facts.sets
        )
        strays += items.stray_indexes
        strays += [entry for name, entry in items.parts.items() if name not in named]
    return strays


def is_complete(item: SetItem, facts: SetFacts, items: LineageItems) -> bool:
    """Return whether all that a page set consists of is listed, with the right sizes."""
    if facts.pages.inline is not None:
        return True
    if item.index is None or item.index.size != facts.pages.index_len:
        return False
    entries = [items.parts.get(part.name or part.node_hash) for part in facts.pages.parts]
    return all(
        entry is not None and entry.size == part.stored_len
        for entry, part in zip(entries, facts.pages.parts, strict=True)
    )


def _named_parts(sets: Iterator[SetFacts]) -> set[bytes]:
    return {part.name or part.node_hash for facts in sets for part in facts.pages.parts}


class _Planner:
    """One plan in the making."""

    def __init__(self, facts: RetentionFacts) -> None:
        self._facts = facts
        self._notes: list[str] = []

    def plan(self) -> RetentionPlan:
        place, base = self._find_base()
        deletions: list[Deletion] = []
        for number, reach in enumerate(self._facts.line):
            if reach.lineage in self._facts.shared:
                self._notes.append(
                    f"lineage {reach.lineage.hex()} is kept whole: another lineage than ours "
                    "continues it, too"
                )
                continue
            items = self._facts.catalog.items(reach.lineage)
            sets = self._expired_sets(items, reach, number, place, base)
            deletions += self._sets(sets)
            merged = list(self._merged(items))
            gone = {deletion.name for deletion in merged}
            deletions += merged
            deletions += (
                deletion
                for deletion in self._logs(items, reach, number, place, base)
                if deletion.name not in gone
            )
            deletions += self._garbage(items, sets)
        return RetentionPlan(
            base=base, deletions=tuple(sorted(deletions)), notes=tuple(self._notes)
        )

    def _find_base(self) -> tuple[int, SetItem | None]:
        """Return the newest whole page set of the line at or before the cutoff, and its place."""
        for place in reversed(range(len(self._facts.line))):
            reach = self._facts.line[place]
            items = self._facts.catalog.items(reach.lineage)
            for item in reversed(items.sets):
                facts = self._facts.sets.get(item.name)
                if (
                    facts is not None
                    and reach.holds(item.set.to_seq)
                    and facts.head.timestamp_ns <= self._facts.cutoff_ns
                    and is_complete(item, facts, items)
                ):
                    return place, item
        return 0, None

    def _is_left(self, reach: Reach, number: int, seq: int) -> bool:
        """Return whether ``seq`` is above where the line left ``reach``, longer ago than kept."""
        if reach.last is None or seq <= reach.last:
            return False
        genesis = self._facts.line[number + 1].genesis
        return genesis is not None and genesis.head.timestamp_ns <= self._facts.cutoff_ns

    def _expired_sets(
        self, items: LineageItems, reach: Reach, number: int, place: int, base: SetItem | None
    ) -> list[SetItem]:
        expired = []
        for item in items.sets:
            facts = self._facts.sets.get(item.name)
            if facts is None or facts.head.timestamp_ns > self._facts.cutoff_ns:
                continue
            is_on_line = reach.holds(item.set.to_seq)
            is_below = base is not None and (number, item.set.to_seq) < (place, base.set.to_seq)
            if is_below if is_on_line else self._is_left(reach, number, item.set.to_seq):
                expired.append(item)
        return expired

    def _sets(self, expired: Sequence[SetItem]) -> Iterator[Deletion]:
        for item in expired:
            yield Deletion(kind=Kind.MANIFEST, name=item.name, size=item.size)
            if item.index is not None:
                yield Deletion(kind=Kind.INDEX, name=item.index.name, size=item.index.size)

    def _logs(
        self, items: LineageItems, reach: Reach, number: int, place: int, base: SetItem | None
    ) -> Iterator[Deletion]:
        for item in items.logs[1:]:  # the first one has the genesis
            if item.name in self._facts.config_logs or item.log.nanos > self._facts.cutoff_ns:
                continue
            if self._is_left(reach, number, item.log.start) or (
                base is not None and self._is_below(item, reach, number, place, base)
            ):
                yield Deletion(kind=Kind.LOG, name=item.name, size=item.size)

    def _merged(self, items: LineageItems) -> Iterator[Deletion]:
        """Yield what merged objects cover, where they have been there for long enough."""
        for item, merged in find_covered(items.logs).items():
            is_old = self._facts.ages_ns.get(merged.name, 0) > MERGE_GRACE_NS
            if is_old and item is not items.logs[0]:
                yield Deletion(kind=Kind.LOG, name=item.name, size=item.size, why=Why.MERGED)

    def _is_below(
        self, item: LogItem, reach: Reach, number: int, place: int, base: SetItem
    ) -> bool:
        """Return whether all that the object gives to the line lies at or below the base."""
        if number > place:
            return False
        if number == place:
            return item.log.end <= base.set.to_seq
        is_all_on_line = reach.last is not None and item.log.end <= reach.last
        return is_all_on_line or self._is_left(reach, number, item.log.end)

    def _garbage(self, items: LineageItems, expired: Sequence[SetItem]) -> Iterator[Deletion]:
        """Yield parts and indexes that nothing names any more, if they are old enough."""
        read = [item for item in items.sets if item.name in self._facts.sets]
        if len(read) < len(items.sets):
            unread = next(item for item in items.sets if item.name not in self._facts.sets)
            self._notes.append(
                f"{unread.name} cannot be read, so no part of its lineage is deleted"
            )
            return
        kept = _named_parts(self._facts.sets[item.name] for item in read if item not in expired)
        retired = _named_parts(
            facts
            for item in expired
            if (facts := self._facts.sets[item.name]).head.timestamp_ns
            <= self._facts.garbage_cutoff_ns
        )
        for name, entry in items.parts.items():
            if name not in kept and (name in retired or self._is_old(entry)):
                why = Why.EXPIRED if name in retired else Why.GARBAGE
                yield Deletion(kind=Kind.PART, name=entry.name, size=entry.size, why=why)
        for entry in items.stray_indexes:
            if self._is_old(entry):
                yield Deletion(kind=Kind.INDEX, name=entry.name, size=entry.size, why=Why.GARBAGE)

    def _is_old(self, entry: Entry) -> bool:
        return self._facts.ages_ns.get(entry.name, 0) > GARBAGE_AGE_NS
