"""Up to which moment a shard's history is surely older than the retention.

A moment is a timestamp of the line, which only grows along it. By which witness it is known:
`basenet.archive.watch` (time that was counted), the store's own clock, or the operator's word.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from basenet.archive.lineage import Reach
from basenet.archive.watch import Mark
from basenet.units import TimestampNs

NEVER: Final = TimestampNs(0)


class Witness(StrEnum):
    """Who says how old the history is."""

    WATCH = "watch"
    STORE = "store"
    CLOCK = "clock"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutoff:
    """Everything up to ``moment`` is older than what is kept, as ``witness`` says."""

    moment: TimestampNs
    witness: Witness


NOTHING_EXPIRED: Final = Cutoff(moment=NEVER, witness=Witness.NOBODY)


def find_watched(marks: Sequence[Mark], line: Sequence[Reach]) -> TimestampNs:
    """Return what the newest of ``marks`` that speaks of ``line`` says; `NEVER`: none does.

    ``marks``: those that are old enough, the newest first. Of a lineage that the line has left, a
    mark speaks for what lies below its child only: the child may be younger than the mark.
    """
    for mark in marks:
        places = [place for place, reach in enumerate(line) if reach.lineage == mark.lineage]
        if not places:
            continue
        if places[0] == len(line) - 1:
            return TimestampNs(mark.timestamp_ns)
        genesis = line[places[0] + 1].genesis
        if genesis is not None:
            return TimestampNs(min(mark.timestamp_ns, genesis.head.timestamp_ns - 1))
    return NEVER


async def find_newest_old(count: int, is_old: Callable[[int], Awaitable[bool]]) -> int | None:
    """Return the newest of ``count`` page sets, oldest first, of which ``is_old`` is true.

    They are as old as they stand in order, so few are asked; a wrong order makes it return an
    older one, of which it is true all the same.
    """
    low, high = 0, count  # everything below ``low`` is old
    found = None
    ask = count - 1  # most often only the newest ones are too young, or none
    while low < high:
        if await is_old(ask):
            found, low = ask, ask + 1
        else:
            high = ask
        ask = (low + high) // 2
    return found
