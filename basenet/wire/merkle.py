"""The state tree: one hash that speaks for every page of a database.

Theory of operation
===================

Pages are the leaves of a Merkle tree of arity 16. Sixteen pages are one *group*: the unit of
hashing, of compression and of range reads, so that verifying a page needs no sibling hashes
beyond the block that it came in::

    leaf  = SHA256(00 | pgno u32 | page)              bytes 18 and 19 of page 1 count as 2,
    node  = SHA256(01 | level u8 | 1..16 children)    the lock page as zeros
    root  = SHA256(02 | page_size u32 | db_pages u32 | top)

Level 0 nodes are the groups; levels go up until one node is left, which is the top. A one-page
database has a top of level 0; a database without pages has a top of 32 zero bytes.

`StateTree` keeps all leaves (32 bytes a page, 8 MiB per GiB of 4 KiB pages) and all nodes in
memory and recomputes only the paths above changed pages. It refuses a hole: a database may grow
only by pages that are given, except the lock page, which is never written. A tree has one page
size for life; a frame that changes the page size carries all pages and starts a new tree.
Normalising bytes 18 and 19 (the file format versions) lets a replica be fenced by them without
having another root; nothing else may differ between two copies of one state.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from operator import ge
from struct import Struct
from typing import Final

from basenet.errors import ChainBroken
from basenet.units import (
    GROUP_PAGES,
    HASH_BYTES,
    LOCK_BYTE_OFFSET,
    ZERO_HASH,
    StateRoot,
    lock_page,
)

_LEAF_PREFIX: Final = Struct(">BI")
_ROOT_PREFIX: Final = Struct(">BII")
_GROUP_BYTES: Final = GROUP_PAGES * HASH_BYTES
# 2^32 pages make 8 levels.
_NODE_PREFIXES: Final = tuple(b"\x01" + level.to_bytes(1, "big") for level in range(8))


def normalised_first_page(page: bytes | memoryview) -> bytes:
    """Return page 1 as the state root sees it: bytes 18 and 19 are 2."""
    return bytes(page[:18]) + b"\x02\x02" + bytes(page[20:])


def leaf_hash(pgno: int, page: bytes | memoryview) -> bytes:
    """Return the leaf hash of page ``pgno`` (from 1) with the content ``page``."""
    if pgno == 1:
        page = normalised_first_page(page)
    elif (pgno - 1) * len(page) == LOCK_BYTE_OFFSET:
        page = bytes(len(page))
    return sha256(_LEAF_PREFIX.pack(0, pgno) + page).digest()


def leaf_hashes(first_pgno: int, pages: bytes | memoryview, page_size: int) -> bytes:
    """Return the leaf hashes of consecutive whole pages, 32 bytes each, end to end."""
    view, pack = memoryview(pages), _LEAF_PREFIX.pack
    assert len(view) % page_size == 0, "a page was cut"
    leaves = [
        sha256(pack(0, pgno) + view[start : start + page_size]).digest()
        for pgno, start in enumerate(range(0, len(view), page_size), first_pgno)
    ]
    for special in (1, lock_page(page_size)):
        index = special - first_pgno
        if 0 <= index < len(leaves):
            page = view[index * page_size : (index + 1) * page_size]
            leaves[index] = leaf_hash(special, page)
    return b"".join(leaves)


def node_hash(level: int, children: bytes | memoryview) -> bytes:
    """Return the node of ``level`` over 1..16 child hashes laid end to end."""
    return sha256(_NODE_PREFIXES[level] + children).digest()


def group_hash(leaves: bytes | memoryview) -> bytes:
    """Return the hash of one group from its 1..16 leaf hashes laid end to end."""
    return node_hash(0, leaves)


def parents(level: int, children: bytes | bytearray | memoryview) -> bytearray:
    """Return all nodes of ``level`` over the child hashes laid end to end."""
    view = memoryview(children)
    prefix = _NODE_PREFIXES[level]
    return bytearray().join(
        sha256(prefix + view[start : start + _GROUP_BYTES]).digest()
        for start in range(0, len(view), _GROUP_BYTES)
    )


def top_of_groups(groups: bytes | bytearray) -> bytes:
    """Return the top of the tree whose group hashes are ``groups``, end to end."""
    if not groups:
        return ZERO_HASH
    nodes: bytes | bytearray = groups
    level = 1
    while len(nodes) > HASH_BYTES:
        nodes = parents(level, nodes)
        level += 1
    return bytes(nodes)


def state_root(page_size: int, db_pages: int, top: bytes) -> StateRoot:
    """Return the state root of a database of ``db_pages`` pages with the tree top ``top``."""
    return StateRoot(sha256(_ROOT_PREFIX.pack(2, page_size, db_pages) + top).digest())


def root_of_groups(page_size: int, db_pages: int, groups: bytes | bytearray) -> StateRoot:
    """Return the state root from the group hashes alone."""
    return state_root(page_size, db_pages, top_of_groups(groups))


def subtree_hash(groups: bytes | bytearray, groups_max: int) -> bytes:
    """Return the node over a part's group hashes: always log16(``groups_max``) levels up.

    A part of the last, incomplete subtree has fewer groups but as many levels, so that the name
    of a part does not depend on what follows it.
    """
    nodes: bytes | bytearray = groups
    level, span = 1, GROUP_PAGES
    while span <= groups_max:
        nodes = parents(level, nodes)
        level, span = level + 1, span * GROUP_PAGES
    return bytes(nodes)


def group_count(db_pages: int) -> int:
    """Return how many groups ``db_pages`` pages make."""
    return -(-db_pages // GROUP_PAGES)


class StateTree:
    """All leaf hashes and nodes of one database, updated in place."""

    __slots__ = ("_dirty", "_levels", "db_pages", "leaves", "page_size")

    def __init__(self, page_size: int, leaves: bytes | bytearray = b"") -> None:
        """Take the page size in bytes and the leaf hashes, 32 bytes a page.

        A database that does not exist yet has page size 0 and no pages, and only its root is asked.
        """
        assert len(leaves) % HASH_BYTES == 0, "a leaf hash was cut"
        self.page_size = page_size
        self.leaves = bytearray(leaves)
        self.db_pages = len(leaves) // HASH_BYTES
        self._levels: list[bytearray] = []
        self._dirty: set[int] = set()
        self._rebuild()

    def copy(self) -> "StateTree":
        """Return a tree of the same state that changes on its own."""
        self._settle()
        twin = StateTree(self.page_size)
        twin.leaves = bytearray(self.leaves)
        twin.db_pages = self.db_pages
        twin._levels = [bytearray(nodes) for nodes in self._levels]
        return twin

    def _rebuild(self) -> None:
        nodes = parents(0, self.leaves)
        self._levels = [nodes]
        while len(nodes) > HASH_BYTES:
            nodes = parents(len(self._levels), nodes)
            self._levels.append(nodes)
        self._dirty.clear()

    @property
    def groups(self) -> bytearray:
        """The group hashes, end to end: a live view of the tree, not to be changed."""
        self._settle()
        return self._levels[0]

    def leaf(self, pgno: int) -> bytes:
        """Return the leaf hash of page ``pgno``, or b"" beyond the end."""
        return bytes(self.leaves[(pgno - 1) * HASH_BYTES : pgno * HASH_BYTES])

    def group_leaves(self, group: int) -> bytes:
        """Return the 1..16 leaf hashes of ``group``, end to end."""
        return bytes(self.leaves[group * _GROUP_BYTES : (group + 1) * _GROUP_BYTES])

    def update(self, pgnos: Sequence[int], hashes: Iterable[bytes], db_pages: int) -> list[int]:
        """Set the leaves of ``pgnos`` and the size; return the groups that changed, ascending.

        ``pgnos``: a list of int, strictly ascending; ``hashes``: as many, 32 bytes each.
        Raises `ChainBroken`, and changes nothing, if the pages do not ascend within ``db_pages``,
        name the lock page, or leave a page out that the database would grow by.
        """
        self._check_growth(pgnos, db_pages)
        digests = list(hashes)
        assert len(digests) == len(pgnos), "as many hashes as pages"
        before = self.db_pages
        if db_pages < before:
            del self.leaves[db_pages * HASH_BYTES :]
        elif db_pages > before:
            self.leaves.extend(bytes((db_pages - before) * HASH_BYTES))
        self.db_pages = db_pages
        leaves = self.leaves
        for pgno, digest in zip(pgnos, digests, strict=True):
            leaves[(pgno - 1) * HASH_BYTES : pgno * HASH_BYTES] = digest
        assert len(leaves) == db_pages * HASH_BYTES, "a hash of another length"
        changed = {(pgno - 1) // GROUP_PAGES for pgno in pgnos}
        changed |= self._resize(before)
        self._dirty |= changed
        return sorted(changed)

    def _check_growth(self, pgnos: Sequence[int], db_pages: int) -> None:
        if db_pages == 0 and len(pgnos) == 0:
            return
        lock = lock_page(self.page_size)
        if len(pgnos) > 0:
            if not 1 <= pgnos[0] <= pgnos[-1] <= db_pages or any(map(ge, pgnos, pgnos[1:])):
                raise ChainBroken(
                    f"a frame carries pages {pgnos[0]} to {pgnos[-1]} for a database of "
                    f"{db_pages} pages: they must ascend strictly within it"
                )
            if pgnos[-1] >= lock and lock in pgnos:
                raise ChainBroken(
                    f"a frame carries page {lock}, the lock page, which has no content"
                )
        grown = db_pages - self.db_pages
        if grown <= 0:
            return
        # Distinct pages of the new range are counted, so an equal number means: every one of them.
        given = sum(1 for pgno in pgnos if pgno > self.db_pages)
        if self.db_pages < lock <= db_pages:
            given += 1
        if given < grown:
            raise ChainBroken(
                f"the database grows from {self.db_pages} to {db_pages} pages "
                f"but only {given} of the new pages are given"
            )

    def _resize(self, before: int) -> set[int]:
        """Fit the levels to the new size; return the groups whose member count changed.

        Growth makes every new group dirty, and a shrink the last group that is left: the nodes
        above them are then recomputed, which covers every node whose children changed.
        """
        after = self.db_pages
        if after == before:
            return set()
        lock = lock_page(self.page_size)
        if before < lock <= after:
            zero = leaf_hash(lock, bytes(self.page_size))
            self.leaves[(lock - 1) * HASH_BYTES : lock * HASH_BYTES] = zero
        width = group_count(after)
        depth = 0
        while True:
            if depth == len(self._levels):
                self._levels.append(bytearray())
            _fit(self._levels[depth], width)
            depth += 1
            if width <= 1:
                break
            width = -(-width // GROUP_PAGES)
        del self._levels[depth:]
        if after < before:
            return {group_count(after) - 1} if after else set()
        first = max(before - 1, 0) // GROUP_PAGES
        return set(range(first, group_count(after)))

    def _settle(self) -> None:
        """Recompute the nodes above the dirty groups."""
        if not self._dirty:
            return
        width = group_count(self.db_pages)
        indexes: Iterable[int] = [index for index in self._dirty if index < width]
        below = self.leaves
        for nodes, prefix in zip(self._levels, _NODE_PREFIXES, strict=False):
            for index in indexes:
                start = index * _GROUP_BYTES
                digest = sha256(prefix + below[start : start + _GROUP_BYTES]).digest()
                nodes[index * HASH_BYTES : (index + 1) * HASH_BYTES] = digest
            indexes = {index // GROUP_PAGES for index in indexes}
            below = nodes
        self._dirty.clear()

    def root(self) -> StateRoot:
        """Return the state root of the present leaves."""
        self._settle()
        top = bytes(self._levels[-1]) if self.db_pages else ZERO_HASH
        return state_root(self.page_size, self.db_pages, top)


def _fit(nodes: bytearray, width: int) -> None:
    """Cut or extend ``nodes`` to ``width`` hashes."""
    length = width * HASH_BYTES
    if len(nodes) > length:
        del nodes[length:]
    else:
        nodes.extend(bytes(length - len(nodes)))
