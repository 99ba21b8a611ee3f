"""Which log object speaks for which frames, when several claim the same ones.

Theory of operation
===================

As a rule the log objects of a lineage follow one another, and their names alone say so. Two may
overlap: a writer that lost an answer cut its frames anew, or a writer without the lease went on
beside the next one. Only then are the objects opened, all of them from the first overlap on:

* The higher archive epoch wins from its first seq. What an older epoch wrote there or beyond is
  *orphaned*: listed, never used (P24).
* Within one epoch the frames must be equal, and then it does not matter whose are used. Different
  frames at one seq are two histories: `ConflictError`.

::

    epoch 1   [1 .. 40][41 .. 60][61 .. 90]
    epoch 2                [51 .. 70]
    used       1 .. 40  41..50 51..70           orphaned: 51 .. 60 and 61 .. 90 of epoch 1
"""

from collections.abc import Mapping, Sequence
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


def find_doubtful(items: Sequence[LogItem]) -> list[LogItem]:
    """Return the log objects, of one lineage by start, that must be opened to resolve them all."""
    overlap = _find_overlap(items)
    return [] if overlap is None else [item for item in items if item.log.end >= overlap]


def resolve(items: Sequence[LogItem], facts: Mapping[str, LogFacts]) -> Stretch:
    """Return who speaks for which frames of ``items``, log objects of one lineage by start.

    ``facts``: by name, of those that `find_doubtful` returns. Raises `ConflictError` for two
    histories.
    """
    doubtful = {item: facts[item.name] for item in find_doubtful(items)}
    usable, orphans = _cut_by_epoch(doubtful)
    _refuse_two_histories(usable, doubtful)
    laid = _lay(usable)
    return Stretch(
        spans=(*(_whole(item) for item in items if item not in doubtful), *laid),
        orphans=tuple(orphan for orphan in orphans if not _is_copy(orphan, laid, doubtful)),
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


def _find_overlap(items: Sequence[LogItem]) -> Seq | None:
    """Return the lowest seq that two objects hold."""
    end = 0
    for item in items:
        if item.log.start <= end:
            return item.log.start
        end = item.log.end
    return None


def _cut_by_epoch(facts: dict[LogItem, LogFacts]) -> tuple[list[Span], list[Span]]:
    """Return what is usable of each object, and what a higher archive epoch orphaned."""
    taken_over: dict[int, int] = {}
    for item, fact in facts.items():
        epoch = fact.signed.archive_epoch
        taken_over[epoch] = min(item.log.start, taken_over.get(epoch, item.log.start))
    usable, orphans = [], []
    for item, fact in facts.items():
        starts = [start for epoch, start in taken_over.items() if epoch > fact.signed.archive_epoch]
        last = min([item.log.end, *(start - 1 for start in starts)])
        if last >= item.log.start:
            usable.append(Span(item=item, first=item.log.start, last=Seq(last)))
        if last < item.log.end:
            first = max(item.log.start, last + 1)
            orphans.append(Span(item=item, first=Seq(first), last=item.log.end))
    return usable, orphans


def _refuse_two_histories(usable: Sequence[Span], facts: dict[LogItem, LogFacts]) -> None:
    """Raise `ConflictError` if two spans hold different frames at one seq."""
    reaching: list[Span] = []
    for span in usable:
        reaching = [earlier for earlier in reaching if earlier.last >= span.first]
        for earlier in reaching:
            for seq in range(span.first, min(earlier.last, span.last) + 1):
                if facts[earlier.item].hash(seq) != facts[span.item].hash(seq):
                    raise ConflictError(
                        f"{earlier.item.name} and {span.item.name} hold different frames at seq "
                        f"{seq} under one archive epoch: these are two histories, and neither is "
                        "restored; remove the object that is not yours"
                    )
        reaching.append(span)


def _is_copy(orphan: Span, laid: Sequence[Span], facts: dict[LogItem, LogFacts]) -> bool:
    """Return whether all that ``orphan`` holds is held, with equal frames, by what is used."""
    copied = 0
    for span in laid:
        for seq in range(max(span.first, orphan.first), min(span.last, orphan.last) + 1):
            if facts[span.item].hash(seq) != facts[orphan.item].hash(seq):
                return False
            copied += 1
    return copied == orphan.last - orphan.first + 1


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
