"""Which blocks a snapshot stores anew, and which it takes from parts that are there: a function.

Theory of operation
===================

A block is one group of 16 pages. One whose group hash is that of the newest snapshot is in the
archive already, and the new manifest only says where (`wire.pageset`, patched sets). So a snapshot
costs what changed since the last one, in blocks, wherever in the database that is::

    part 1   [a b c d e f g h]        stored with the first snapshot
    part 2   [i j k l]
    changed      x       y     m      b, g; m is new
    part 3   [x y m]                  the second snapshot: parts 1, 2 and 3

Two bounds keep a restore what it was. A part is *kept* only while half of its bytes are of use: so
a restore reads at most twice what it needs, and a database that changes everywhere is stored whole
again now and then. And there are at most twice as many parts as a whole snapshot has, and
`MORE_PARTS`: beyond that those of which least is of use are stored anew, together. What nothing
names any more goes with the snapshots that did (`basenet.archive.retention`).

No snapshot leans on another snapshot, only on parts, each of which its manifest names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from basenet.units import HASH_BYTES, part_groups
from basenet.wire.pageset import Extent, IndexRow, Part

MORE_PARTS: Final = 8
_LIVE_SHARE_MIN: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OldPart:
    """A part that is in the archive, and where the blocks lie in it that an index names."""

    part: Part
    groups: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Of what a snapshot consists: parts that are ``kept``, and the groups of each new one."""

    kept: tuple[OldPart, ...]
    cuts: tuple[Sequence[int], ...]


def list_old_parts(
    rows: Sequence[IndexRow], extents: Sequence[Extent], parts: Sequence[Part]
) -> list[OldPart]:
    """Return ``parts`` with the blocks that the index of their page set names in them."""
    groups: list[list[int]] = [[] for _ in parts]
    offsets: list[list[int]] = [[] for _ in parts]
    for extent in extents:
        start = extent.offset
        for group in extent.span:
            groups[extent.part].append(group)
            offsets[extent.part].append(start)
            start += rows[group].stored_size
    return [
        OldPart(
            part=part,
            groups=tuple(groups[number]),
            offsets=tuple(offsets[number]),
            sizes=tuple(rows[group].stored_size for group in groups[number]),
        )
        for number, part in enumerate(parts)
    ]


def plan_layout(
    hashes: bytes | bytearray, page_size: int, rows: Sequence[IndexRow], old: Sequence[OldPart]
) -> Layout:
    """Return the layout of a snapshot with the group hashes ``hashes``, laid end to end.

    ``old``: what the newest snapshot, with the index ``rows``, consists of and what is there.
    """
    count, step = len(hashes) // HASH_BYTES, part_groups(page_size)
    kept = [live for one in old if (live := _cut_to_live(one, hashes, count, rows)) is not None]
    parts_max = 2 * -(-count // step) + MORE_PARTS
    kept.sort(key=lambda one: len(one.groups), reverse=True)
    held = sum(len(one.groups) for one in kept)
    while kept and len(kept) + -(-(count - held) // step) > parts_max:
        held -= len(kept.pop().groups)
    kept.sort(key=lambda one: one.groups)
    taken = {group for one in kept for group in one.groups}
    anew: Sequence[int] = range(count)
    if taken:
        anew = [group for group in range(count) if group not in taken]
    return Layout(
        kept=tuple(kept),
        cuts=tuple(anew[first : first + step] for first in range(0, len(anew), step)),
    )


def _cut_to_live(
    old: OldPart, hashes: bytes | bytearray, count: int, rows: Sequence[IndexRow]
) -> OldPart | None:
    """Return what of ``old`` did not change, None if that is too little to keep it."""
    live = [
        place
        for place, group in enumerate(old.groups)
        if group < count
        and hashes[group * HASH_BYTES : (group + 1) * HASH_BYTES] == rows[group].group_hash
    ]
    if sum(old.sizes[place] for place in live) < _LIVE_SHARE_MIN * old.part.stored_len or not live:
        return None
    return OldPart(
        part=old.part,
        groups=tuple(old.groups[place] for place in live),
        offsets=tuple(old.offsets[place] for place in live),
        sizes=tuple(old.sizes[place] for place in live),
    )


def make_extents(placed: Sequence[OldPart]) -> list[Extent]:
    """Return where the groups of ``placed``, numbered in this order, lie: as few extents as can be.

    All groups are in one of them.
    """
    where = sorted(
        (group, number, offset, size)
        for number, one in enumerate(placed)
        for group, offset, size in zip(one.groups, one.offsets, one.sizes, strict=True)
    )
    extents: list[Extent] = []
    end = -1
    for group, number, offset, size in where:
        last = extents[-1] if extents else None
        if last is not None and last.part == number and end == offset:
            extents[-1] = Extent(
                first_group=last.first_group,
                groups=last.groups + 1,
                part=number,
                offset=last.offset,
            )
        else:
            extents.append(Extent(first_group=group, groups=1, part=number, offset=offset))
        end = offset + size
    return extents
