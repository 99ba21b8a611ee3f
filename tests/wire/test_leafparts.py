"""Parts of leaves: together they make the state root, and each is verified by itself."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.units import GROUP_PAGES, HASH_BYTES
from basenet.wire.leafparts import (
    PART_BYTES,
    PART_PAGES,
    hash_part,
    part_count,
    parts_of_groups,
    root_of_parts,
)
from basenet.wire.merkle import StateTree


def leaves_of(db_pages: int) -> bytes:
    return b"".join(hashlib.sha256(b"%d" % pgno).digest() for pgno in range(db_pages))


def cut(leaves: bytes) -> list[bytes]:
    return [leaves[start : start + PART_BYTES] for start in range(0, len(leaves), PART_BYTES)]


SIZES = [0, 1, 16, 17, 256, 257, 4095, 4096, 4097, 8192, 65536, 65537]


@pytest.mark.parametrize("db_pages", SIZES)
def test_parts_make_the_state_root(db_pages: int) -> None:
    """Whatever the number of pages, across every edge of groups, parts and levels."""
    leaves = leaves_of(db_pages)
    tree = StateTree(4096 if db_pages else 0, leaves)
    parts = parts_of_groups(tree.groups if db_pages else b"")
    assert len(parts) == part_count(db_pages) * HASH_BYTES
    assert root_of_parts(tree.page_size, db_pages, parts) == tree.root()
    each = cut(leaves)
    found = b"".join(hash_part(part, is_only=len(each) == 1) for part in each)
    assert found == parts


@pytest.mark.parametrize("db_pages", [1, 17, 4096, 4097, 65537])
def test_another_size_or_part_makes_another_root(db_pages: int) -> None:
    """So that none of it has to be believed."""
    tree = StateTree(4096, leaves_of(db_pages))
    parts = parts_of_groups(tree.groups)
    assert root_of_parts(8192, db_pages, parts) != tree.root()
    changed = bytes([parts[0] ^ 1]) + parts[1:]
    assert root_of_parts(4096, db_pages, changed) != tree.root()
    if db_pages % PART_PAGES:
        assert root_of_parts(4096, db_pages + 1, parts) != tree.root()


@settings(max_examples=40)
@given(pages=st.integers(1, 9000), place=st.integers(0, 9000 * HASH_BYTES))
def test_a_wrong_leaf_is_found_in_its_part(pages: int, place: int) -> None:
    """And in no other one."""
    leaves = bytearray(leaves_of(pages))
    before = [hash_part(part, is_only=pages <= PART_PAGES) for part in cut(bytes(leaves))]
    place %= len(leaves)
    leaves[place] ^= 1
    after = [hash_part(part, is_only=pages <= PART_PAGES) for part in cut(bytes(leaves))]
    wrong = [
        index for index, (one, two) in enumerate(zip(before, after, strict=True)) if one != two
    ]
    assert wrong == [place // PART_BYTES]


def test_a_part_is_a_whole_subtree() -> None:
    """16 groups of groups: three levels of the tree (Q19 names 4,096)."""
    assert PART_PAGES == GROUP_PAGES**3 == 4096
