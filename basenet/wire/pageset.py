"""Page sets: a snapshot as a small signed manifest, an index of group hashes, and parts.

Theory of operation
===================

A *manifest* is an LBN2 object (role PAGE_SET) of EPOCH, HEAD of the frame that the set stands at,
and PAGESET::

    5 | lineage[16] | page_size u32 | db_pages u32 | from_seq u64 | to_seq u64 | from_root[32]
      | to_root[32] | codec u8 (1 zstd) | flags u8 (1 inline, 2 patched) | idx_len u32
      | idx_sha256[32]
      | hot_len u32 | hot_sha256[32] (0 and zeros: no hot pack)
      | parts u32 | (first_group u32 | stored_len u32 | name_len u8 | name | node_hash[32]) * parts
      | inline only: index bytes | the parts' bytes, end to end

The *index* has one row per group, `stored_size u32 | group hash[32]` in group order, so the slice
of any group is at a fixed offset. A *part* is the zstd blocks of up to `units.part_groups` groups,
end to end, and nothing else. Its object is named by the SHA-256 of its bytes (``name_len`` 32), so
an unchanged part is stored once for all snapshots; by the node hash above its groups (0) or at
random (16, for encrypted parts) where that is said.

A *patched* set takes most blocks from the parts of an older one. Its parts hold what blocks they
hold, in the order of groups, some of them of no use any more, and have no node hash; behind the
rows its index says where each group is, in *extents*::

    first_group u32 | groups u32 | part u32 | offset u32

Together they tile all groups; within a part they ascend and do not overlap. So a manifest names all
that a restore reads, whichever snapshot wrote it first, and there are no chains of snapshots.

Trust flows from the manifest's signature: it fixes the index by hash and the state root by HEAD;
the index's group hashes must give that root; a block must give its group hash. Sizes are not in
the tree, a wrong one only makes a block fail its hash; they are bounded by what zstd can make of
a group, so that no manifest makes a reader fetch without end. Parts are written first and the
manifest last: without a manifest a page set does not exist.

Who checks what: `decode_pageset` the record, `decode_manifest` that it belongs to the HEAD beside
it, `decode_index` the rows, `decode_extents` where their blocks lie, `check_groups` that they give
the root, `decode_block` each block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import Final

from basenet.errors import PageSetCorrupt
from basenet.units import (
    GROUP_PAGES,
    HASH_BYTES,
    LINEAGE_BYTES,
    LOCK_BYTE_OFFSET,
    ZERO_HASH,
    Lineage,
    Seq,
    StateRoot,
    is_page_size,
    part_groups,
)
from basenet.wire.codec import Reader, u8, u32, u64
from basenet.wire.compression import compress, decompress_exactly
from basenet.wire.frame import Head
from basenet.wire.merkle import (
    group_count,
    group_hash,
    leaf_hashes,
    root_of_groups,
    subtree_hash,
)
from basenet.wire.segment import PAGESET_RECORD_VERSION, PageSetRecord, Role, Segment

INDEX_ROW_BYTES: Final = 36
SNAPSHOT_LEVEL: Final = 9
# Level 3 for snapshots: background work, 5 % smaller than level 1 on real rows.
BLOCK_ZSTD_LEVEL: Final = 3
_CODEC_ZSTD: Final = 1
_FLAG_INLINE: Final = 1
_FLAG_PATCHED: Final = 2
_INDEX_ROW: Final = Struct(f">I{HASH_BYTES}s")
_EXTENT: Final = Struct(">IIII")
_PART_BYTES_MIN: Final = 4 + 4 + 1 + HASH_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a page set: the blocks of up to `part_groups` groups.

    In a patched set ``first_group`` is 0 and ``node_hash`` zeros: the extents say what it is for.
    """

    first_group: int
    stored_len: int
    node_hash: bytes
    name: bytes = b""

    @property
    def file_name(self) -> str:
        """The part's object name below ``part/``."""
        return f"{(self.name or self.node_hash).hex()}.pg"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSet:
    """What a manifest says of a page set; ``from_seq`` 0 makes it a whole snapshot."""

    lineage: Lineage
    page_size: int
    db_pages: int
    from_seq: Seq
    to_seq: Seq
    from_root: StateRoot
    to_root: StateRoot
    index_len: int
    index_hash: bytes
    parts: tuple[Part, ...]
    inline: bytes | None = None
    is_patched: bool = False

    @property
    def groups(self) -> int:
        """How many groups the database had."""
        return group_count(self.db_pages)

    def part_groups_of(self, number: int) -> range:
        """Return the groups of part ``number`` of a set that is not patched."""
        span = part_groups(self.page_size)
        first = self.parts[number].first_group
        return range(first, min(first + span, self.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """One group: how many bytes its block is stored in, and its hash."""

    stored_size: int
    group_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The blocks of ``groups`` groups from ``first_group`` on lie in a part from ``offset`` on."""

    first_group: int
    groups: int
    part: int
    offset: int

    @property
    def span(self) -> range:
        """The groups."""
        return range(self.first_group, self.first_group + self.groups)


def block_bytes_max(page_size: int) -> int:
    """Return the most that the block of one group can need: the bound of zstd, rounded up."""
    raw = GROUP_PAGES * page_size
    return raw + raw // 256 + 128


def encode_index(rows: Sequence[IndexRow], extents: Sequence[Extent] = ()) -> bytes:
    """Encode the index of a page set; ``extents``: of one that is patched."""
    return b"".join(
        [
            *(_INDEX_ROW.pack(row.stored_size, row.group_hash) for row in rows),
            *(_EXTENT.pack(one.first_group, one.groups, one.part, one.offset) for one in extents),
        ]
    )


def decode_index(data: bytes | memoryview, pages: PageSet, what: str) -> list[IndexRow]:
    """Decode the rows of an index and check them against the manifest's hash and part lengths."""
    reader = Reader(data, error=PageSetCorrupt, what=what)
    if len(data) != pages.index_len or sha256(data).digest() != pages.index_hash:
        raise reader.fail("it is not the index that the manifest was signed for")
    rows = [
        IndexRow(stored_size=stored_size, group_hash=digest)
        for stored_size, digest in _INDEX_ROW.iter_unpack(
            memoryview(data)[: pages.groups * INDEX_ROW_BYTES]
        )
    ]
    if pages.is_patched:
        return rows
    for number, part in enumerate(pages.parts):
        sizes = [rows[group].stored_size for group in pages.part_groups_of(number)]
        if sum(sizes) != part.stored_len or min(sizes) == 0:
            raise reader.fail(
                f"part {number} has {part.stored_len} bytes, but its blocks {sum(sizes)}, or none"
            )
    return rows


def decode_extents(
    data: bytes | memoryview, rows: Sequence[IndexRow], pages: PageSet, what: str
) -> list[Extent]:
    """Return where the blocks of all groups lie, by group; ``rows``: what `decode_index` returned.

    Raises `PageSetCorrupt` if that is not within the parts, or not the rows' blocks end to end.
    """
    if not pages.is_patched:
        parts = range(len(pages.parts))
        spans = [pages.part_groups_of(number) for number in parts]
        return [
            Extent(first_group=span.start, groups=len(span), part=number, offset=0)
            for number, span in zip(parts, spans, strict=True)
        ]
    reader = Reader(data, error=PageSetCorrupt, what=what)
    extents = [
        Extent(first_group=first_group, groups=groups, part=part, offset=offset)
        for first_group, groups, part, offset in _EXTENT.iter_unpack(
            memoryview(data)[pages.groups * INDEX_ROW_BYTES :]
        )
    ]
    due, used = 0, [0] * len(pages.parts)
    for extent in extents:
        is_due = extent.first_group == due and 0 < extent.groups <= pages.groups - due
        if not is_due or extent.part >= len(used) or extent.offset < used[extent.part]:
            raise reader.fail(f"the blocks from group {due} on are in no place")
        sizes = [rows[group].stored_size for group in extent.span]
        end = extent.offset + sum(sizes)
        if end > pages.parts[extent.part].stored_len or min(sizes) == 0:
            raise reader.fail(f"the blocks from group {due} on do not fit into their part")
        used[extent.part] = end
        due += extent.groups
    if due != pages.groups or not all(used):
        raise reader.fail(f"it places {due} of {pages.groups} groups, or leaves a part unused")
    return extents


def check_groups(rows: Sequence[IndexRow], pages: PageSet, what: str) -> None:
    """Raise `PageSetCorrupt` unless the group hashes give the parts' names and the state root.

    Without this an index that was signed but is false would only show at the last page.
    """
    reader = Reader(b"", error=PageSetCorrupt, what=what)
    groups = b"".join(row.group_hash for row in rows)
    for number, part in enumerate(() if pages.is_patched else pages.parts):
        span = pages.part_groups_of(number)
        slice_ = groups[span.start * HASH_BYTES : span.stop * HASH_BYTES]
        if part_node_hash(slice_, pages.page_size) != part.node_hash:
            raise reader.fail(f"the groups of part {number} do not give its node hash")
    if root_of_groups(pages.page_size, pages.db_pages, groups) != pages.to_root:
        raise reader.fail("its groups do not give the state root that was signed")


def encode_pageset(pages: PageSet) -> bytes:
    """Encode a PAGESET record, version byte included."""
    stored = pages.index_len + sum(part.stored_len for part in pages.parts)
    assert pages.inline is None or len(pages.inline) == stored, "inline is the index and the parts"
    assert pages.inline is None or not pages.is_patched, "an inline set holds all it needs"
    parts = [
        u8(PAGESET_RECORD_VERSION),
        pages.lineage,
        u32(pages.page_size),
        u32(pages.db_pages),
        u64(pages.from_seq),
        u64(pages.to_seq),
        pages.from_root,
        pages.to_root,
        u8(_CODEC_ZSTD),
        u8(_FLAG_PATCHED if pages.is_patched else 0 if pages.inline is None else _FLAG_INLINE),
        u32(pages.index_len),
        pages.index_hash,
        u32(0),
        ZERO_HASH,
        u32(len(pages.parts)),
    ]
    for part in pages.parts:
        parts += [u32(part.first_group), u32(part.stored_len)]
        parts += [u8(len(part.name)), part.name, part.node_hash]
    return b"".join(parts) + (pages.inline or b"")


def decode_pageset(data: bytes | memoryview) -> PageSet:
    """Decode the body of a PAGESET record (without its version byte)."""
    reader = Reader(data, error=PageSetCorrupt, what="a PAGESET record")
    lineage = Lineage(reader.take(LINEAGE_BYTES))
    page_size, db_pages = reader.u32(), reader.u32()
    from_seq, to_seq = Seq(reader.u64()), Seq(reader.u64())
    from_root, to_root = StateRoot(reader.take(HASH_BYTES)), StateRoot(reader.take(HASH_BYTES))
    codec, flags = reader.u8(), reader.u8()
    if not is_page_size(page_size) or codec != _CODEC_ZSTD or flags > _FLAG_PATCHED:
        raise reader.fail(
            f"page size {page_size}, codec {codec} or flags {flags} are unknown; upgrade basenet"
        )
    if from_seq != 0 or from_root != ZERO_HASH or to_seq == 0:
        raise reader.fail(
            f"a page set from {from_seq} to {to_seq} is not supported; upgrade basenet"
        )
    index_len, index_hash = reader.u32(), reader.take(HASH_BYTES)
    if reader.u32() != 0 or reader.take(HASH_BYTES) != ZERO_HASH:
        raise reader.fail("a hot pack is not supported; upgrade basenet")
    parts = _decode_parts(reader)
    inline = None
    if flags & _FLAG_INLINE:
        inline = reader.take(index_len + sum(part.stored_len for part in parts))
    reader.finish()
    pages = PageSet(
        lineage=lineage,
        page_size=page_size,
        db_pages=db_pages,
        from_seq=from_seq,
        to_seq=to_seq,
        from_root=from_root,
        to_root=to_root,
        index_len=index_len,
        index_hash=index_hash,
        parts=parts,
        inline=inline,
        is_patched=bool(flags & _FLAG_PATCHED),
    )
    (_check_patched_parts if pages.is_patched else _check_parts)(pages, reader)
    return pages


def _decode_parts(reader: Reader) -> tuple[Part, ...]:
    count = reader.u32()
    if count * _PART_BYTES_MIN > reader.remaining:
        raise reader.fail(f"{count} parts do not fit")
    parts = []
    for _ in range(count):
        first_group, stored_len = reader.u32(), reader.u32()
        name = reader.take(reader.u8())
        if len(name) not in (0, HASH_BYTES // 2, HASH_BYTES):
            raise reader.fail(f"a part name of {len(name)} bytes")
        parts.append(
            Part(
                first_group=first_group,
                stored_len=stored_len,
                name=name,
                node_hash=reader.take(HASH_BYTES),
            )
        )
    return tuple(parts)


def _check_parts(pages: PageSet, reader: Reader) -> None:
    span = part_groups(pages.page_size)
    if pages.index_len != pages.groups * INDEX_ROW_BYTES:
        raise reader.fail(f"an index of {pages.index_len} bytes for {pages.groups} groups")
    # The count first: a hostile db_pages would make the list of expected parts long.
    if len(pages.parts) != -(-pages.groups // span) or any(
        part.first_group != number * span for number, part in enumerate(pages.parts)
    ):
        raise reader.fail(f"its parts do not cover {pages.groups} groups in steps of {span}")
    block_max = block_bytes_max(pages.page_size)
    for number, part in enumerate(pages.parts):
        groups = len(pages.part_groups_of(number))
        if not groups <= part.stored_len <= groups * block_max:
            raise reader.fail(f"part {number} of {groups} groups in {part.stored_len} bytes")


def _check_patched_parts(pages: PageSet, reader: Reader) -> None:
    extents, rest = divmod(pages.index_len - pages.groups * INDEX_ROW_BYTES, _EXTENT.size)
    if rest or not len(pages.parts) <= extents <= pages.groups:
        raise reader.fail(f"an index of {pages.index_len} bytes for {pages.groups} groups")
    bytes_max = part_groups(pages.page_size) * block_bytes_max(pages.page_size)
    for number, part in enumerate(pages.parts):
        if not part.name or part.first_group or part.node_hash != ZERO_HASH:
            raise reader.fail(f"part {number} of a patched set has no name, or more than that")
        if not 1 <= part.stored_len <= bytes_max:
            raise reader.fail(f"part {number} has {part.stored_len} bytes")


def decode_manifest(segment: Segment, what: str) -> tuple[Head, PageSet]:
    """Return the HEAD and the page set of a decoded manifest that fit one another.

    Raises `PageSetCorrupt` if the object is no manifest or contradicts itself.
    """
    epoch = segment.epoch
    if epoch is None or epoch.role != Role.PAGE_SET:
        raise PageSetCorrupt(f"{what} is no manifest of a page set.")
    head, record = segment.records[1], segment.records[-1]
    assert isinstance(head, Head), "the decoder of segments knows this role"
    assert isinstance(record, PageSetRecord), "the decoder of segments knows this role"
    pages = decode_pageset(record.data)
    found = (pages.to_seq, pages.to_root, pages.lineage)
    if found != (head.seq, head.state_root, epoch.lineage):
        raise PageSetCorrupt(
            f"{what} holds a page set of lineage {pages.lineage.hex()} at {pages.to_seq}, which is "
            f"not the state of frame {head.seq} beside it."
        )
    return head, pages


def encode_block(pages: bytes | memoryview) -> bytes:
    """Compress the raw pages of one group into its block.

    They stand as their hash speaks of them: bytes 18 and 19 of page 1 are 2, the lock page zeros.
    """
    return compress(pages, level=BLOCK_ZSTD_LEVEL)


def decode_block(
    block: bytes | memoryview, *, group: int, page_size: int, db_pages: int, expected: bytes
) -> tuple[bytes, bytes]:
    """Return (raw pages, leaf hashes) of ``group`` after checking them against ``expected``."""
    first_page = group * GROUP_PAGES
    count = min(GROUP_PAGES, db_pages - first_page)
    what = f"the block of group {group}"
    reader = Reader(block, error=PageSetCorrupt, what=what)
    pages = decompress_exactly(block, count * page_size, reader)
    leaves = leaf_hashes(first_page + 1, pages, page_size)
    if group_hash(leaves) != expected:
        raise reader.fail("its pages are not the ones that were signed")
    # What the hashes leave out must not smuggle bytes into a restored file.
    if group == 0 and pages[18:20] != b"\x02\x02":
        raise reader.fail("bytes 18 and 19 of page 1 are not 2")
    # The lock page is the first of its group for every page size.
    if first_page * page_size == LOCK_BYTE_OFFSET and any(pages[:page_size]):
        raise reader.fail("its lock page is not zeros")
    return pages, leaves


def part_node_hash(group_hashes: bytes | bytearray, page_size: int) -> bytes:
    """Return the hash that names a part with these group hashes, laid end to end."""
    return subtree_hash(group_hashes, part_groups(page_size))
