"""Which log objects are merged into one: a function of the pieces that a log consists of.

Theory of operation
===================

A log object is written every flush interval while commits come, so a log of small commits is many
small objects, and a restore pays for each of them. A *merge* stores the frames of neighbours once
more, as one object of a higher *level*; the sources go later (`basenet.archive.retention`). Nothing
about a frame changes, so every commit stays a restore point::

    level 0   ||||||||||||||||||||||||||||||||  |||||||          32 of them, then the newest
    level 1   [------------------------------]                   the next merge counts these

*Full* is a piece of `FULL_BYTES` of frames or more: what a restore gains by fewer objects ends
there. Full pieces are left alone, so bulk loads are stored once. Between them lie *stretches* of
small ones, and three rules make objects of them, the first that holds:

1. A stretch that holds more than one object may (`SEGMENT_TARGET_BYTES`) gives up its oldest
   pieces, as many as fit: a full piece, of seven objects or more.
2. A stretch that a full piece (or a gap) has ended, of `CLOSED_PIECES_MIN` pieces or more, becomes
   one piece.
3. `FAN_IN` pieces of one level in a row become one of the next level.

So a log is at most eight objects for each `FULL_BYTES` of frames, plus ``FAN_IN - 1`` a level at
its end; a byte is written once a level (two or three times in all, and not again when it came in
bulk); and a merge costs one PUT for seven objects at the least, for 32 when commits are small. The
newest object is never merged: whoever asks how far the archive reaches finds it.

*Fixed* pieces are not merged: the first object of a lineage (its genesis), objects with a CONFIG,
which retention keeps, objects of another author where no certificates prove them, and what
overlaps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from basenet.archive.names import LEVEL_MAX, LogName
from basenet.units import KIB, SEGMENT_TARGET_BYTES

FAN_IN: Final = 32
FULL_BYTES: Final = 512 * KIB
CLOSED_PIECES_MIN: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A log object that is part of the log as it is read.

    ``raw_bytes``: the sum of its encoded frames; where nobody counted yet, its stored size, which
    is never more. ``archive_epoch``: None where it was not read yet.
    """

    log: LogName
    raw_bytes: int
    archive_epoch: int | None = None
    is_fixed: bool = False

    @property
    def is_small(self) -> bool:
        """Whether it is to be merged."""
        return not self.is_fixed and self.raw_bytes < FULL_BYTES


def plan_merge(
    pieces: Sequence[Piece],
    *,
    fan_in: int = FAN_IN,
    target_bytes: int = SEGMENT_TARGET_BYTES,
) -> range | None:
    """Return which of ``pieces``, which ascend, to merge next; None: nothing is worth it.

    The last piece is the newest object of the log, and never among them.
    """
    for stretch, is_closed in _find_stretches(pieces):
        if sum(pieces[number].raw_bytes for number in stretch) > target_bytes:
            chosen = _fit(pieces, stretch, target_bytes)
        elif is_closed and len(stretch) >= CLOSED_PIECES_MIN:
            chosen = stretch
        else:
            chosen = _find_level(pieces, stretch, fan_in)
        if len(chosen) > 1 and merged_level([pieces[number] for number in chosen]) <= LEVEL_MAX:
            return chosen
    return None


def merged_level(sources: Sequence[Piece]) -> int:
    """Return the level of what ``sources`` are merged into."""
    return 1 + max(piece.log.level for piece in sources)


def _find_stretches(pieces: Sequence[Piece]) -> Iterator[tuple[range, bool]]:
    """Yield the stretches of small pieces, oldest first, and whether something has ended them."""
    start = 0
    for number, piece in enumerate(pieces[:-1]):
        follows = number == start or pieces[number - 1].log.end + 1 == piece.log.start
        if piece.is_small and follows:
            continue
        if number > start:
            yield range(start, number), True
        start = number if piece.is_small else number + 1
    if start < len(pieces) - 1:
        last = pieces[-1]
        is_open = last.is_small and pieces[-2].log.end + 1 == last.log.start
        yield range(start, len(pieces) - 1), not is_open


def _fit(pieces: Sequence[Piece], stretch: range, target_bytes: int) -> range:
    """Return the oldest pieces of ``stretch`` that one object may hold."""
    size = 0
    for number in stretch:
        size += pieces[number].raw_bytes
        if size > target_bytes:
            return range(stretch.start, number)
    return stretch


def _find_level(pieces: Sequence[Piece], stretch: range, fan_in: int) -> range:
    """Return the oldest ``fan_in`` pieces of one level in a row, empty when there are none."""
    start = stretch.start
    for number in stretch:
        if pieces[number].log.level != pieces[start].log.level:
            start = number
        if number - start + 1 == fan_in:
            return range(start, number + 1)
    return range(0)
