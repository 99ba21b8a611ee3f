"""Parts of a state's leaves: what one message brings, and is verified by.

A part is 4,096 pages, a whole subtree of the state tree (`wire.merkle`)::

    state root = SHA256(02 | page_size | db_pages | top)
                                                  │
                 more than one part:              ┴── the levels above the parts
                 part 0        part 1        part 2 (shorter)
                 4,096 leaves  4,096 leaves  1..4,096 leaves

The hash of a part is its node two levels above the groups, whatever its length. A state of a
single part is the exception: its only part hash is the top of the tree, of which a state root can
be made. So page size, number of pages and part hashes prove themselves against a state root before
any leaf has come, each part is verified when it comes, and who sent a wrong one is known.
"""

from typing import Final

from basenet.units import GROUP_PAGES, HASH_BYTES, ZERO_HASH, StateRoot
from basenet.wire.merkle import parents, state_root, subtree_hash, top_of_groups

_LEVELS: Final = 2  # of nodes above the groups that a part spans
_PART_GROUPS: Final = GROUP_PAGES**_LEVELS
PART_PAGES: Final = GROUP_PAGES * _PART_GROUPS
PART_BYTES: Final = PART_PAGES * HASH_BYTES


def part_count(db_pages: int) -> int:
    """Return how many parts ``db_pages`` pages make."""
    return -(-db_pages // PART_PAGES)


def parts_of_groups(groups: bytes | bytearray) -> bytes:
    """Return the part hashes, end to end, of the state with these group hashes, end to end."""
    if len(groups) <= _PART_GROUPS * HASH_BYTES:
        return top_of_groups(groups) if groups else b""
    nodes: bytes | bytearray = groups
    for level in range(1, _LEVELS + 1):
        nodes = parents(level, nodes)
    return bytes(nodes)


def root_of_parts(page_size: int, db_pages: int, parts: bytes) -> StateRoot:
    """Return the state root that ``parts`` make; there must be `part_count` of them."""
    assert len(parts) == part_count(db_pages) * HASH_BYTES, "as many parts as the pages make"
    nodes: bytes | bytearray = parts or ZERO_HASH
    level = _LEVELS + 1
    while len(nodes) > HASH_BYTES:
        nodes = parents(level, nodes)
        level += 1
    return state_root(page_size, db_pages, bytes(nodes))


def hash_part(leaves: bytes, *, is_only: bool) -> bytes:
    """Return the hash of the part with these leaf hashes, end to end: 1 to `PART_PAGES` of them."""
    assert 0 < len(leaves) <= PART_BYTES, "one part"
    groups = parents(0, leaves)
    return top_of_groups(groups) if is_only else subtree_hash(groups, _PART_GROUPS)
