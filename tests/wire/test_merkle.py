"""The state tree, against a slow model that is written from the words of the format alone."""

import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.errors import ChainBroken
from basenet.units import part_groups
from basenet.wire import merkle
from basenet.wire.merkle import StateTree, leaf_hash, leaf_hashes, root_of_groups

LOCK = 16385  # of a database of 64 KiB pages: the first GiB ends there
PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def model_leaf(pgno: int, page: bytes) -> bytes:
    if pgno == 1:
        page = page[:18] + b"\x02\x02" + page[20:]
    if pgno == (1 << 30) // len(page) + 1:
        page = b"\0" * len(page)
    return sha256(b"\0" + pgno.to_bytes(4, "big") + page).digest()


def model_levels(leaves: list[bytes]) -> list[list[bytes]]:
    """Return all levels above the leaves, the top last; nothing for no leaves."""
    levels: list[list[bytes]] = []
    below = leaves
    while below and (not levels or len(below) > 1):
        prefix = b"\x01" + bytes([len(levels)])
        below = [
            sha256(prefix + b"".join(below[start : start + 16])).digest()
            for start in range(0, len(below), 16)
        ]
        levels.append(below)
    return levels


def model_root(page_size: int, leaves: list[bytes]) -> bytes:
    levels = model_levels(leaves)
    top = levels[-1][0] if levels else b"\0" * 32
    sizes = page_size.to_bytes(4, "big") + len(leaves).to_bytes(4, "big")
    return sha256(b"\x02" + sizes + top).digest()


def hash_of(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


def split(leaves: bytes | bytearray) -> list[bytes]:
    return [bytes(leaves[start : start + 32]) for start in range(0, len(leaves), 32)]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_leaf_binds_the_number_and_the_page(page_size: int) -> None:
    """Also of the first page, the lock page and its neighbours."""
    chance = random.Random(page_size)
    lock = (1 << 30) // page_size + 1
    page = chance.randbytes(page_size)
    for pgno in (1, 2, 16, 17, lock - 1, lock, lock + 1, (1 << 32) - 1):
        assert leaf_hash(pgno, page) == model_leaf(pgno, page)
        assert leaf_hash(pgno, memoryview(page)) == model_leaf(pgno, page)


def test_only_bytes_18_and_19_of_page_1_and_the_lock_page_do_not_count() -> None:
    """A fence in byte 18 leaves the root as it was; any other byte changes it."""
    page = bytes(range(256)) * 2
    for place in range(512):
        changed = page[:place] + bytes([page[place] ^ 0xFF]) + page[place + 1 :]
        assert (leaf_hash(1, changed) == leaf_hash(1, page)) == (place in (18, 19))
        assert leaf_hash(2, changed) != leaf_hash(2, page)
    assert leaf_hash(2097153, page) == leaf_hash(2097153, bytes(512))


@pytest.mark.parametrize("first", [1, 2, 16, LOCK - 2, LOCK, LOCK + 1])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_consecutive_leaves_are_the_single_ones_end_to_end(first: int, count: int) -> None:
    """Wherever page 1 or the lock page stand among them."""
    pages = [bytes([number + 1]) * 65536 for number in range(count)]
    expected = [model_leaf(pgno, page) for pgno, page in enumerate(pages, first)]
    assert leaf_hashes(first, b"".join(pages), 65536) == b"".join(expected)


def test_a_cut_page_is_our_own_mistake() -> None:
    """Whoever reads pages has checked their length."""
    with pytest.raises(AssertionError):
        leaf_hashes(1, bytes(513), 512)
    with pytest.raises(AssertionError):
        StateTree(512, bytes(33))


@pytest.mark.parametrize(
    "size", [0, 1, 2, 15, 16, 17, 255, 256, 257, 272, 4095, 4096, 4097, 65535, 65536, 65537, 70000]
)
def test_a_tree_of_any_size_has_the_root_of_the_model(size: int) -> None:
    """16, 256 and 4,096 groups are where a level begins."""
    leaves = [hash_of(number) for number in range(size)]
    tree = StateTree(4096, b"".join(leaves))
    root = model_root(4096, leaves)
    assert tree.root() == root
    assert root_of_groups(4096, size, tree.groups) == root
    levels = model_levels(leaves)
    assert split(tree.groups) == (levels[0] if levels else [])
    assert (merkle.group_count(size), len(tree.groups)) == (-(-size // 16), 32 * -(-size // 16))


def test_a_database_of_one_page_has_its_group_as_the_top() -> None:
    """Levels stop when one node is left (Q21)."""
    page = b"\x07" * 1024
    group = sha256(b"\x01\x00" + model_leaf(1, page)).digest()
    expected = sha256(b"\x02\x00\x00\x04\x00\x00\x00\x00\x01" + group).digest()
    assert StateTree(1024, leaf_hash(1, page)).root() == expected
    assert merkle.state_root(1024, 1, merkle.group_hash(leaf_hash(1, page))) == expected


def test_an_empty_database_has_a_root_of_its_own() -> None:
    """Its top is 32 zero bytes, with and without a page size."""
    for page_size in (0, 512):
        tree = StateTree(page_size)
        assert tree.root() == sha256(b"\x02" + page_size.to_bytes(4, "big") + bytes(36)).digest()
        assert tree.update([], [], 0) == []
        assert tree.root() == root_of_groups(page_size, 0, b"")


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """Return (size, page numbers written) of successive commits that leave no hole."""
    sizes = st.one_of(
        st.integers(0, 40), st.sampled_from([0, 1, 15, 16, 17, 240, 255, 256, 257, 300, 4096, 4100])
    )
    size, out = 0, []
    for _ in range(draw(st.integers(1, 8))):
        after = draw(sizes)
        some = st.sets(st.integers(1, after), max_size=6) if after else st.just(set())
        out.append((after, sorted({*range(size + 1, after + 1), *draw(some)})))
        size = after
    return out


@settings(max_examples=200, deadline=None)
@given(steps(), st.lists(st.booleans(), min_size=8, max_size=8))
def test_growing_shrinking_and_writing_keep_the_root_of_the_model(
    commits: list[tuple[int, list[int]]], looks: list[bool]
) -> None:
    """Also when several commits pass between two looks at the root; changed groups are named."""
    tree, leaves = StateTree(512), list[bytes]()
    for number, ((size, pgnos), look) in enumerate(zip(commits, looks, strict=False)):
        before = model_levels(leaves)[:1] or [[]]
        leaves = leaves[:size] + [b""] * (size - len(leaves))
        for pgno in pgnos:
            leaves[pgno - 1] = hash_of(number << 16 | pgno)
        hashes = [leaves[pgno - 1] for pgno in pgnos]
        changed = tree.update(pgnos, hashes, size)
        after = model_levels(leaves)[:1] or [[]]
        differing = {
            group
            for group, digest in enumerate(after[0])
            if before[0][group : group + 1] != [digest]
        }
        assert differing <= set(changed) <= set(range(len(after[0])))
        assert changed == sorted(changed)
        if look or number == len(commits) - 1:
            assert tree.root() == model_root(512, leaves)
    assert split(tree.leaves) == leaves
    assert split(tree.groups) == (model_levels(leaves)[:1] or [[]])[0]
    for pgno in (1, len(leaves), len(leaves) + 1):
        expected = leaves[pgno - 1] if 1 <= pgno <= len(leaves) else b""
        assert tree.leaf(pgno) == expected
    if leaves:
        last = (len(leaves) - 1) // 16
        assert tree.group_leaves(last) == b"".join(leaves[last * 16 :])


def test_updates_around_4096_groups_keep_the_root_of_the_model() -> None:
    """A level appears and disappears again over 65,536 pages."""
    chance = random.Random(1)
    leaves = [hash_of(number) for number in range(65_530)]
    tree = StateTree(4096, b"".join(leaves))
    for size in (65_536, 65_537, 65_600, 65_535, 65_536, 4_097, 4_096):
        new = list(range(len(leaves) + 1, size + 1))
        old = sorted(chance.sample(range(1, min(len(leaves), size) + 1), 3))
        leaves = leaves[:size] + [b""] * len(new)
        for pgno in old + new:
            leaves[pgno - 1] = chance.randbytes(32)
        tree.update(old + new, [leaves[pgno - 1] for pgno in old + new], size)
        assert tree.root() == model_root(4096, leaves)


def test_a_database_grows_over_the_lock_page_without_it() -> None:
    """Its leaf is that of zeros, wherever growth begins and ends around it, and it comes back."""
    zeros = model_leaf(LOCK, bytes(65536))
    below = [hash_of(number) for number in range(LOCK - 3)]
    for path in ([LOCK + 2], [LOCK - 1, LOCK], [LOCK], [LOCK, LOCK - 2, LOCK + 20, LOCK + 40]):
        leaves = list(below)
        tree = StateTree(65536, b"".join(leaves))
        for size in path:
            new = [pgno for pgno in range(len(leaves) + 1, size + 1) if pgno != LOCK]
            leaves = leaves[:size] + [zeros] * (size - len(leaves))
            for pgno in new:
                leaves[pgno - 1] = hash_of(pgno)
            tree.update(new, [hash_of(pgno) for pgno in new], size)
            assert tree.root() == model_root(65536, leaves)


@pytest.mark.parametrize(
    ("pgnos", "size", "problem"),
    [
        ([], 21, "grows from 20 to 21 pages but only 0"),
        ([21, 23], 23, "grows from 20 to 23 pages but only 2"),
        ([1, 2, 3], 23, "but only 0"),
        ([21], 20, "must ascend strictly"),
        ([0], 20, "must ascend strictly"),
        ([2, 1], 20, "must ascend strictly"),
        ([5, 5], 20, "must ascend strictly"),
        ([1, 30, 2], 20, "must ascend strictly"),
        ([21, 21], 22, "must ascend strictly"),
        ([1], 0, "must ascend strictly"),
    ],
)
def test_a_hole_or_a_page_out_of_place_is_refused_and_changes_nothing(
    pgnos: list[int], size: int, problem: str
) -> None:
    """A missing page <= db_pages is impossible (Q21)."""
    leaves = [hash_of(number) for number in range(20)]
    tree = StateTree(512, b"".join(leaves))
    root = tree.root()
    with pytest.raises(ChainBroken, match=problem):
        tree.update(pgnos, [bytes(32)] * len(pgnos), size)
    assert (tree.root(), tree.db_pages, split(tree.leaves)) == (root, 20, leaves)


def test_the_lock_page_is_never_given_nor_counted_twice() -> None:
    """Else it would hide a missing page: 2 given and 1 assumed for 3, of which one is missing."""
    leaves = [hash_of(number) for number in range(LOCK - 1)]
    tree = StateTree(65536, b"".join(leaves))
    with pytest.raises(ChainBroken, match="lock page"):
        tree.update([LOCK, LOCK + 1], [bytes(32)] * 2, LOCK + 2)
    with pytest.raises(ChainBroken, match="only 2 of the new pages"):
        tree.update([LOCK + 2], [bytes(32)], LOCK + 2)
    tree.update([LOCK + 1], [bytes(32)], LOCK + 1)
    assert tree.leaf(LOCK) == model_leaf(LOCK, bytes(65536))
    tree.update([5, LOCK + 1], [bytes(32)] * 2, LOCK + 1)


@pytest.mark.parametrize("pages", [0, 1, 300])
def test_a_copy_is_the_same_state_and_changes_alone(pages: int) -> None:
    """Also with changes whose nodes were not computed yet."""
    leaves = [hash_of(number) for number in range(pages)]
    tree = StateTree(4096, b"".join(leaves))
    if pages:
        leaves[0] = hash_of(1_000)
        tree.update([1], leaves[:1], pages)
    twin = tree.copy()
    for one, other in ((tree, twin), (twin, tree)):
        assert one.root() == other.root() == model_root(4096, leaves)
        more = [*leaves, hash_of(2_000)]
        one.update([pages + 1], more[-1:], pages + 1)
        assert one.root() == model_root(4096, more)
        assert (other.root(), other.db_pages) == (model_root(4096, leaves), pages)
        one.update([], [], pages)


def test_wrong_hashes_are_our_own_mistake() -> None:
    """As many as pages, each of 32 bytes."""
    with pytest.raises(AssertionError):
        StateTree(512).update([1], [], 1)
    with pytest.raises(AssertionError):
        StateTree(512).update([1], [bytes(31)], 1)


@pytest.mark.parametrize("page_size", [4096, 8192])
def test_a_part_is_named_by_the_node_above_its_groups(page_size: int) -> None:
    """Its name does not depend on what follows it, and is a node of any larger tree."""
    span = part_groups(page_size)
    level = 2 if span == 256 else 1
    leaves = [hash_of(number) for number in range(span * 16 + 40)]
    levels = model_levels(leaves)
    groups = b"".join(levels[0])
    first, rest = groups[: span * 32], groups[span * 32 :]
    assert merkle.subtree_hash(first, span) == levels[level][0]
    assert merkle.subtree_hash(rest, span) == levels[level][1]
    alone = model_levels(leaves[: span * 16])
    assert merkle.subtree_hash(b"".join(alone[0]), span) == levels[level][0]


def test_nodes_of_different_levels_and_lengths_differ() -> None:
    """A node can pass neither for a leaf nor for a node of another level or with more children."""
    child = bytes(32)
    hashes = [merkle.node_hash(level, child * count) for level in range(8) for count in (1, 2, 16)]
    assert len({*hashes, leaf_hash(2, bytes(512)), merkle.state_root(512, 1, child)}) == 26
