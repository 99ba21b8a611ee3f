"""Which moments of a shard can be restored, from a listing and a handful of objects.

Names say which frames the log objects hold and where the page sets stand. A moment can be restored
when the log leads to it without a gap from a page set, or from a genesis without pages. What the
names promise is then planned at both ends of each range as a restore would, which also tells the
times: so missing parts, orphaned frames and strange keys show up. Only a restore, or `verify`,
proves that every object in between is whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from basenet.archive.catalog import Catalog
from basenet.archive.fetch import Fetcher
from basenet.archive.lineage import Reach
from basenet.archive.names import ShardNames
from basenet.archive.plan import Plan, Wish, is_born_empty
from basenet.archive.port import Store
from basenet.archive.survey import Survey, survey_shard
from basenet.archive.walk import RestorableRange
from basenet.errors import CorruptionError, NotFoundError, UsageError
from basenet.units import Lineage, PublicKeyBytes, Seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What can be restored of a shard along the line to the lineage that was meant.

    ``snapshots``: the seqs of its page sets, ascending. ``troubles``: sentences about what the
    names promise and a plan refuses.
    """

    names: ShardNames
    lineage: Lineage
    ranges: tuple[RestorableRange, ...]
    snapshots: tuple[Seq, ...]
    troubles: tuple[str, ...]


async def look_ahead(
    store: Store,
    names: ShardNames,
    *,
    trusted: frozenset[PublicKeyBytes],
    lineage: Lineage | None = None,
    fetcher: Fetcher | None = None,
) -> Outlook:
    """Return what can be restored of the shard ``names``, of ``lineage`` or of the leaf.

    Raises what planning a restore of the newest state raises.
    """
    fetcher = fetcher or Fetcher(store)
    wish = Wish(lineage=lineage)
    survey = await survey_shard(store, fetcher, names, wish)
    found, troubles = list[RestorableRange](), list[str]()
    try:
        newest = await survey.make_plan(wish, trusted)
    except CorruptionError as error:
        troubles.append(str(error))
        newest = await _plan_what_is_left(survey, error, lineage, trusted)
    bases = _list_bases(survey.catalog, newest.line)
    for first, last in _join(survey.catalog, newest.line, bases):
        try:
            begin = await survey.make_plan(Wish(to_seq=first, lineage=lineage), trusted)
            end = await _plan_end(survey, newest, first, last, trusted)
        except (CorruptionError, NotFoundError) as error:
            troubles.append(str(error))
            continue
        found.append(
            RestorableRange(
                lineage=newest.target.lineage,
                first_seq=begin.target.seq,
                last_seq=end.target.seq,
                first_ns=begin.target.timestamp_ns,
                last_ns=end.target.timestamp_ns,
            )
        )
    return Outlook(
        names=names,
        lineage=newest.target.lineage,
        ranges=tuple(found),
        snapshots=tuple(seq for seq, is_set in bases if is_set),
        troubles=tuple(troubles),
    )


async def _plan_what_is_left(
    survey: Survey,
    failure: CorruptionError,
    lineage: Lineage | None,
    trusted: frozenset[PublicKeyBytes],
) -> Plan:
    """Return the plan of the newest state that there is a plan for; else raise ``failure``."""
    ends = {
        seq
        for items in survey.catalog.lineages.values()
        for seq in (
            *(item.log.end for item in items.logs),
            *(item.set.to_seq for item in items.sets),
        )
    }
    for seq in sorted(ends, reverse=True):
        try:
            return await survey.make_plan(Wish(to_seq=seq, lineage=lineage), trusted)
        except (CorruptionError, NotFoundError, UsageError):
            continue
    raise failure


def _list_bases(catalog: Catalog, line: Sequence[Reach]) -> list[tuple[Seq, bool]]:
    """Return where a restore can begin: (seq, whether a page set stands there), ascending."""
    bases = [
        (item.set.to_seq, True)
        for reach in line
        for item in catalog.items(reach.lineage).sets
        if reach.holds(item.set.to_seq)
    ]
    genesis = line[0].genesis
    if genesis is not None and is_born_empty(genesis):
        bases.append((genesis.head.seq, False))
    return sorted(bases)


def _join(
    catalog: Catalog, line: Sequence[Reach], bases: Sequence[tuple[Seq, bool]]
) -> list[tuple[Seq, Seq]]:
    """Return the ranges of seqs that a base and the log after it lead to, ascending."""
    held = sorted(
        (max(item.log.start, reach.first), min(item.log.end, reach.last or item.log.end))
        for reach in line
        for item in catalog.items(reach.lineage).logs
    )
    ranges: list[tuple[Seq, Seq]] = []
    for base, _ in bases:
        if ranges and base <= ranges[-1][1] + 1:
            # The base continues what is restorable already, or begins right behind it.
            start, end = ranges.pop()
            end = max(end, base)
        else:
            start = end = base
        for first, last in held:
            if first <= end + 1 and last > end:
                end = Seq(last)
        ranges.append((start, end))
    return ranges


async def _plan_end(
    survey: Survey,
    newest: Plan,
    first: Seq,
    last: Seq,
    trusted: frozenset[PublicKeyBytes],
) -> Plan:
    """Return the plan of the last whole commit in ``first`` .. ``last``."""
    if newest.wish.to_seq is None and last >= newest.target.seq:
        return newest
    for seq in range(last, first, -1):
        try:
            return await survey.make_plan(
                Wish(to_seq=Seq(seq), lineage=newest.wish.lineage), trusted
            )
        except UsageError:  # inside a transaction of several frames
            continue
    return await survey.make_plan(Wish(to_seq=first, lineage=newest.wish.lineage), trusted)
