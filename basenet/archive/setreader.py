"""Reading a page set: each block is proven before anybody sees it.

The manifest's signature fixes the index by its hash, the index's group hashes must give the state
root of the frame at which the set stands, and every block must give its group hash. So a part needs
no signature, and its pages need no other proof.

The stored bytes of a block are more than its pages: zstd ignores some bits, so about one flipped
bit in 300 leaves the pages as they were. Since a changed object must be found all the same, a part
is named by the SHA-256 of what is stored (a name of 32 bytes), and refused when that differs. A
part without a name of its own is named by the hash above its groups, and proven by its pages alone.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from basenet.archive.facts import SetFacts, naming
from basenet.errors import PageSetCorrupt
from basenet.units import GROUP_PAGES, HASH_BYTES
from basenet.wire.merkle import group_hash
from basenet.wire.pageset import (
    PageSet,
    check_groups,
    decode_block,
    decode_extents,
    decode_index,
    encode_index,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The pages of one group, verified, and their leaf hashes, both end to end."""

    first_pgno: int
    pages: bytes
    leaves: bytes


class SetReader:
    """A page set whose index is verified. Safe to use from several threads."""

    def __init__(self, facts: SetFacts, index: bytes | None, index_name: str) -> None:
        """Take the manifest and the index; None for the index of an inline set.

        Raises `PageSetCorrupt`, which begins with ``index_name``.
        """
        self._pages = facts.pages
        self._inline = memoryview(facts.pages.inline or b"")
        data = self._inline[: facts.pages.index_len] if index is None else index
        with naming(index_name):
            self._rows = decode_index(data, facts.pages, index_name)
            extents = decode_extents(data, self._rows, facts.pages, index_name)
            check_groups(self._rows, facts.pages, index_name)
        self._numbers, self._offsets = array("I"), array("Q")
        self._groups_of: list[list[int]] = [[] for _ in facts.pages.parts]
        for extent in extents:
            start = extent.offset
            self._groups_of[extent.part] += extent.span
            for group in extent.span:
                self._numbers.append(extent.part)
                self._offsets.append(start)
                start += self._rows[group].stored_size

    @property
    def pages(self) -> PageSet:
        """What the manifest says."""
        return self._pages

    def locate(self, group: int) -> tuple[int, int, int]:
        """Return where the block of ``group`` lies: part, first byte in it, and stored size."""
        return self._numbers[group], self._offsets[group], self._rows[group].stored_size

    def group_hashes(self) -> bytearray:
        """Return the hashes of all groups, end to end, which give the state root of the set."""
        return bytearray().join(row.group_hash for row in self._rows)

    def read_block(self, group: int, data: bytes | memoryview, name: str) -> Block:
        """Return the block of ``group``, whose stored bytes are ``data``, of the object ``name``.

        Raises `PageSetCorrupt`, which begins with ``name``.
        """
        with naming(name):
            pages, leaves = decode_block(
                data,
                group=group,
                page_size=self._pages.page_size,
                db_pages=self._pages.db_pages,
                expected=self._rows[group].group_hash,
            )
        return Block(first_pgno=group * GROUP_PAGES + 1, pages=pages, leaves=leaves)

    def inline_part(self, number: int) -> memoryview:
        """Return the bytes of part ``number`` of an inline set."""
        lengths = [part.stored_len for part in self._pages.parts]
        start = self._pages.index_len + sum(lengths[:number])
        return self._inline[start : start + lengths[number]]

    def read_part(self, number: int, data: bytes | memoryview, name: str) -> Iterator[Block]:
        """Yield the blocks of part ``number``, whose object ``name`` holds ``data``.

        Raises `PageSetCorrupt`, which begins with ``name``.
        """
        with naming(name):
            self._check_part(number, data)
            for group in self._groups_of[number]:
                start, size = self._offsets[group], self._rows[group].stored_size
                yield self.read_block(group, memoryview(data)[start : start + size], name)

    def groups_of(self, number: int) -> list[int]:
        """Return the groups whose blocks are read from part ``number``."""
        return self._groups_of[number]

    def is_group(self, group: int, leaves: bytes) -> bool:
        """Return whether ``leaves``, end to end, are the leaf hashes of ``group``."""
        return group_hash(leaves) == self._rows[group].group_hash

    def list_blocks(self, number: int) -> frozenset[bytes]:
        """Return a hash of each block that the index says is in part ``number``, and where."""
        return frozenset(
            sha256(
                b"%d %d %s" % (group, self._offsets[group], encode_index([self._rows[group]]))
            ).digest()[:16]
            for group in self._groups_of[number]
        )

    def _check_part(self, number: int, data: bytes | memoryview) -> None:
        part = self._pages.parts[number]
        if len(data) != part.stored_len:
            raise PageSetCorrupt(f"it has {len(data)} bytes, and its manifest {part.stored_len}")
        if len(part.name) == HASH_BYTES and sha256(data).digest() != part.name:
            raise PageSetCorrupt("its bytes are not the ones that it is named by")
