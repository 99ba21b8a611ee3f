"""Which log object speaks for which frames, when several claim the same ones.

Theory of operation
===================

As a rule the log objects of a lineage follow one another, and their names alone say so. Two may
overlap: a writer that lost an answer cut its frames anew, or a writer without the lease went on
beside the next one. The objects that overlap are then opened. If their frames are equal, it is one
history, and it does not matter whose are used. The first seq with different frames is a *fork*, and
everything that reaches it is opened:

* From the fork on the higher archive epoch wins, from its first seq. What an older epoch wrote
  there or beyond is *orphaned*: listed, never used (P24).
* Different frames at one seq under one epoch are two histories, and nobody can say which one is
  right: `ConflictError`.

::

    epoch 1   [1 .. 40][41 .. 60][61 .. 90]         equal up to 52, a fork at 53
    epoch 2                [51 .. 70]
    used       1 .. 40  41..52 53..70               orphaned: 53 .. 60 and 61 .. 90 of epoch 1

*Merged* objects (`basenet.archive.compact`) hold the frames of others on purpose, and are named so,
by a level. Where the names of all that overlap form a tree (each lies whole within one of a higher
level, and none beside it overlaps it) the root speaks for all, and nothing is opened for it::

    level 0    [33][34] ... [63][64]  [65][66][67]
    level 1    [33 .............. 64]                   used: 33 .. 64, 65, 66, 67

Anything else there (two writers that merged across one another, a stale one's late object) is no
tree: then it is the overlap that it would be without levels, and all of it is opened. A merged
object carries the highest archive epoch of what it was made from, which is that of its last source,
so the rule above says of it what it says of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from basenet.archive.catalog import LogItem
from basenet.archive.facts import LogFacts
from basenet.errors import ConflictError
from basenet.units import Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The frames ``first`` .. ``last`` of a log object."""

    item: LogItem
    first: Seq
    last: Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The spans to use, ascending and without overlap but maybe with gaps, and the orphans."""

    spans: tuple[Span, ...]
    orphans: tuple[Span, ...] = ()


def find_covered(items: Sequence[LogItem]) -> dict[LogItem, LogItem]:
    """Return which of ``items``, of one lineage, need no look, and the merged object that says so.

    A merged object covers others where all that overlaps it forms a tree, by ranges and levels.
    """
    if not any(item.log.level for item in items):
        return {}
    ordered = sorted(items, key=lambda item: (item.log.start, -item.log.end, -item.log.level))
    covered: dict[LogItem, LogItem] = {}
    cluster: list[LogItem] = []
    end = -1
    for item in ordered:
        if item.log.start > end:
            covered |= _cover(cluster)
            cluster = []
        cluster.append(item)
        end = max(end, item.log.end)
    return covered | _cover(cluster)


def _cover(cluster: Sequence[LogItem]) -> dict[LogItem, LogItem]:
    """Return who of ``cluster``, which hangs together, is covered by its root: all, or nobody."""
    path: list[LogItem] = []
    for item in cluster:
        while path and path[-1].log.end < item.log.start:
            path.pop()
        if path:
            above = path[-1].log
            if item.log.end > above.end or item.log.level >= above.level:
                return {}
        path.append(item)
    return dict.fromkeys(cluster[1:], cluster[0]) if cluster else {}


def list_visible(items: Sequence[LogItem]) -> list[LogItem]:
    """Return ``items`` without those that a merged object covers."""
    covered = find_covered(items)
    return [item for item in items if item not in covered]


def find_doubtful(
    items: Sequence[LogItem], facts: Mapping[str, LogFacts], *, is_thorough: bool = False
) -> list[LogItem]:
    """Return the log objects that must be opened next; none: `resolve` has what it needs.

    ``items``: those of one lineage, by start; ``facts``: of the objects that were opened, by name.
    ``is_thorough``: what merged objects cover is opened and compared, too.
    """
    if not is_thorough:
        items = list_visible(items)
    overlapping = _find_overlapping(items)
    unopened = [item for item in overlapping if item.name not in facts]
    if unopened or not overlapping:
        return unopened
    fork = _find_fork(overlapping, facts)
    if fork is None:
        return []
    return [item for item in items if item.log.end >= fork and item.name not in facts]


def resolve(
    items: Sequence[LogItem], facts: Mapping[str, LogFacts], *, is_thorough: bool = False
) -> Stretch:
    """Return who speaks for which frames, once `find_doubtful` asks for nothing more.

    Raises `ConflictError` for two histories under one archive epoch.
    """
    if not is_thorough:
        items = list_visible(items)
    overlapping = _find_overlapping(items)
    fork = _find_fork(overlapping, facts) if overlapping else None
    if fork is None:
        return Stretch(spans=tuple(_lay([_whole(item) for item in items])))
    _require_one_final(overlapping, facts)
    usable, orphans = _cut_by_epoch(items, facts, fork)
    if conflict := next(_find_differences(usable, facts), None):
        earlier, later, seq = conflict
        raise ConflictError(
            f"{earlier.item.name} and {later.item.name} hold different frames at seq {seq} under "
            "one archive epoch: these are two histories, and neither is restored; remove the "
            "object that is not yours"
        )
    return Stretch(spans=tuple(_lay(usable)), orphans=tuple(orphans))


def _require_one_final(overlapping: Sequence[LogItem], facts: Mapping[str, LogFacts]) -> None:
    """Raise `ConflictError` where different frames both have certificates: no epoch decides there.

    Only a quorum that broke its word could make two; a certificate that is none is found out when
    one of the two objects is taken away.
    """
    for one, two, seq in _find_differences([_whole(item) for item in overlapping], facts):
        if min(facts[one.item.name].certified_to, facts[two.item.name].certified_to) >= seq:
            raise ConflictError(
                f"two final histories: {one.item.name} and {two.item.name} hold different frames "
                f"at seq {seq}, both with certificates; keep both, and find out which of the "
                "voters signed both"
            )


def find_gap(spans: Sequence[Span], first: int, last: int) -> tuple[Seq, Seq] | None:
    """Return the first range within ``first`` .. ``last`` that no span holds, or None."""
    due = first
    for span in spans:
        if span.last < due:
            continue
        if span.first > due or due > last:
            break
        due = span.last + 1
    if due > last:
        return None
    later = [span.first for span in spans if span.first > due]
    return Seq(due), Seq(min([last, *(start - 1 for start in later)]))


def _whole(item: LogItem) -> Span:
    return Span(item=item, first=item.log.start, last=item.log.end)


def _find_overlapping(items: Sequence[LogItem]) -> list[LogItem]:
    """Return the objects that share a seq with another one, by start."""
    found: dict[LogItem, None] = {}
    furthest: LogItem | None = None
    for item in items:
        if furthest is not None and item.log.start <= furthest.log.end:
            found |= {furthest: None, item: None}
        if furthest is None or item.log.end > furthest.log.end:
            furthest = item
    return sorted(found, key=lambda item: item.log)


def _find_fork(overlapping: Sequence[LogItem], facts: Mapping[str, LogFacts]) -> int | None:
    """Return the lowest seq at which two objects hold different frames."""
    spans = [_whole(item) for item in overlapping]
    return min((seq for _, _, seq in _find_differences(spans, facts)), default=None)


def _find_differences(
    spans: Sequence[Span], facts: Mapping[str, LogFacts]
) -> Iterator[tuple[Span, Span, int]]:
    """Yield pairs of spans, by start, with the first seq at which their frames differ."""
    reaching: list[Span] = []
    for span in spans:
        reaching = [earlier for earlier in reaching if earlier.last >= span.first]
        for earlier in reaching:
            one, two = facts[earlier.item.name], facts[span.item.name]
            for seq in range(span.first, min(earlier.last, span.last) + 1):
                if one.hash(seq) != two.hash(seq):
                    yield earlier, span, seq
                    break
        reaching.append(span)


def _cut_by_epoch(
    items: Sequence[LogItem], facts: Mapping[str, LogFacts], fork: int
) -> tuple[list[Span], list[Span]]:
    """Return what is usable of each object, and what a higher archive epoch orphaned."""
    epochs = {item: facts[item.name].signed.archive_epoch for item in items if item.log.end >= fork}
    taken_over: dict[int, int] = {}
    for item, epoch in epochs.items():
        start = max(item.log.start, fork)
        taken_over[epoch] = min(start, taken_over.get(epoch, start))
    usable, orphans = [], []
    for item in items:
        starts = [start for epoch, start in taken_over.items() if epoch > epochs.get(item, epoch)]
        last = min([item.log.end, *(start - 1 for start in starts)])
        if last >= item.log.start:
            usable.append(Span(item=item, first=item.log.start, last=Seq(last)))
        if last < item.log.end:
            first = max(item.log.start, last + 1)
            orphans.append(Span(item=item, first=Seq(first), last=item.log.end))
    return usable, orphans


def _lay(usable: Sequence[Span]) -> list[Span]:
    """Return ``usable``, ascending by start, without what an earlier span holds already."""
    laid: list[Span] = []
    due = 0
    for span in usable:
        if span.last >= due:
            first = Seq(max(span.first, due))
            laid.append(Span(item=span.item, first=first, last=span.last))
            due = span.last + 1
    return laid
