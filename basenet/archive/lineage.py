"""The tree of a shard's lineages, and the one line of it that a restore follows.

Theory of operation
===================

A lineage is a history that one journal wrote without a break. A daemon that finds an archive that
is not its journal's begins a *child*, whose genesis names the frame that it continues::

    a  1 ----- 2 ----- 3 ----- 4 ----- 5          5 is abandoned: b went on from 4
                               |
    b                          +-- 5 ----- 6

Who the parent is stands only in the genesis, the first frame of the first log object, so that
object of every lineage is read; retention keeps it for ever. A *leaf* is a lineage that nobody
continues; "latest" means the leaf. Two leaves are two databases, and only the operator can say
which one is meant. The *line* runs from the root to the chosen lineage; frames of an ancestor above
the seq at which it was left are abandoned: listed, and never mixed in.

A lineage whose genesis is gone can only be chosen by name: nothing then says whom it continues. If
another lineage continues it, that one's page sets are where a restore begins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from basenet.archive.trust import Genesis
from basenet.errors import ChainBroken, ConflictError, CorruptionError, NotFoundError
from basenet.units import Lineage, Seq

Find = Callable[[Lineage], Genesis | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A lineage's share of a line: its frames ``first`` .. ``last``.

    ``genesis`` is None when it is not in the archive, and ``last`` when nobody continues it.
    """

    lineage: Lineage
    genesis: Genesis | None
    first: Seq
    last: Seq | None

    def holds(self, seq: int) -> bool:
        """Return whether the frame ``seq`` of the line is one of this lineage."""
        return self.first <= seq and (self.last is None or seq <= self.last)


def find_leaf(geneses: Mapping[Lineage, Genesis | None], shard: str) -> Lineage:
    """Return the one lineage that nobody continues.

    A lineage that lost its genesis and is continued is no leaf, whomever it continued itself.
    Raises `CorruptionError` when the genesis of another one is missing and `ConflictError` for two
    leaves.
    """
    leaves = find_leaves(geneses)
    for lineage, genesis in geneses.items():
        if genesis is None and lineage in leaves:
            raise CorruptionError(
                f"lineage {lineage.hex()} of shard {shard!r} has lost its genesis, its first log "
                "object, so nothing says whom it continues; choose one with --lineage HEX"
            )
    if len(leaves) > 1:
        named = " and ".join(
            f"{lineage.hex()} (from seq {genesis.head.seq})"
            for lineage in leaves
            if (genesis := geneses[lineage]) is not None
        )
        raise ConflictError(
            f"shard {shard!r} has {len(leaves)} histories that nobody continues: {named}; "
            "choose one with --lineage HEX"
        )
    assert leaves, "a tree has a leaf, since a parent begins before its child"
    return leaves[0]


def find_leaves(geneses: Mapping[Lineage, Genesis | None]) -> list[Lineage]:
    """Return the lineages that no other one names as its parent, sorted."""
    parents = {
        genesis.config.parent[0]
        for genesis in geneses.values()
        if genesis is not None and genesis.config.parent is not None
    }
    return sorted(set(geneses) - parents)


def make_line(leaf: Lineage, find: Find) -> tuple[Reach, ...]:
    """Return the line that ends with ``leaf``, the root first.

    ``find`` returns the genesis of a lineage, None if it is not in the archive, and raises
    `NotFoundError` for a lineage that has no objects. An ancestor without objects ends the line:
    a page set may stand in for it.
    """
    reaches: list[Reach] = []
    lineage, last = leaf, None
    while True:
        try:
            genesis = find(lineage)
        except NotFoundError:
            if not reaches:
                raise
            return tuple(reversed(reaches))
        first = Seq(1) if genesis is None else genesis.head.seq
        if last is not None and first > last:
            raise ChainBroken(
                f"lineage {reaches[-1].lineage.hex()} says it continues {lineage.hex()} at seq "
                f"{last}, which begins only at {first}"
            )
        reaches.append(Reach(lineage=lineage, genesis=genesis, first=first, last=last))
        if genesis is None or genesis.config.parent is None:
            return tuple(reversed(reaches))
        lineage, last = genesis.config.parent[0], Seq(genesis.config.parent[1])
