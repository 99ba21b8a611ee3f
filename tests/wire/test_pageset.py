"""Page sets: manifest, index and blocks."""

import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.errors import PageSetCorrupt
from basenet.units import ZERO_HASH, Lineage, Seq, ShardId, StateRoot, part_groups
from basenet.wire.frame import Frame, encode_head
from basenet.wire.merkle import StateTree, group_hash, leaf_hashes, normalised_first_page
from basenet.wire.pageset import (
    Extent,
    IndexRow,
    PageSet,
    Part,
    block_bytes_max,
    check_groups,
    decode_block,
    decode_extents,
    decode_index,
    decode_manifest,
    decode_pageset,
    encode_block,
    encode_index,
    encode_pageset,
    part_node_hash,
)
from basenet.wire.segment import (
    EpochRecord,
    Role,
    decode_segment,
    encode_epoch,
    encode_segment,
    service_hash,
)
from basenet.wire.signature import Signer

LINEAGE = Lineage(b"l" * 16)


class Snapshot:
    """A database of ``db_pages`` pages as index rows, blocks and a page set at frame 7."""

    def __init__(self, db_pages: int, *, page_size: int = 512, is_inline: bool = False) -> None:
        chance = random.Random(db_pages)
        self.page_size, self.db_pages = page_size, db_pages
        self.groups = [
            b"".join(
                chance.randbytes(8) * (page_size // 8)
                for _ in range(first, min(first + 16, db_pages))
            )
            for first in range(0, db_pages, 16)
        ]
        if self.groups:
            self.groups[0] = normalised_first_page(self.groups[0])
        leaves = [
            leaf_hashes(number * 16 + 1, pages, page_size)
            for number, pages in enumerate(self.groups)
        ]
        tree = StateTree(page_size, b"".join(leaves))
        self.root = tree.root()
        self.hashes = [bytes(tree.groups[at : at + 32]) for at in range(0, len(tree.groups), 32)]
        self.blocks = [encode_block(pages) for pages in self.groups]
        self.rows = [
            IndexRow(stored_size=len(block), group_hash=digest)
            for block, digest in zip(self.blocks, self.hashes, strict=True)
        ]
        self.index = encode_index(self.rows)
        inline = self.index + b"".join(self.blocks) if is_inline else None
        self.pages = PageSet(
            lineage=LINEAGE,
            page_size=page_size,
            db_pages=db_pages,
            from_seq=Seq(0),
            to_seq=Seq(7),
            from_root=StateRoot(ZERO_HASH),
            to_root=self.root,
            index_len=len(self.index),
            index_hash=sha256(self.index).digest(),
            parts=tuple(self._parts()),
            inline=inline,
        )

    def _parts(self) -> Iterator[Part]:
        span = part_groups(self.page_size)
        for first in range(0, len(self.groups), span):
            groups = slice(first, first + span)
            yield Part(
                first_group=first,
                stored_len=sum(len(block) for block in self.blocks[groups]),
                node_hash=part_node_hash(b"".join(self.hashes[groups]), self.page_size),
            )

    def record(self, **fields: Any) -> bytes:
        """Return the body of a PAGESET record with some fields another."""
        return encode_pageset(replace(self.pages, **fields))[1:]

    def block(self, group: int, block: bytes | None = None) -> tuple[bytes, bytes]:
        return decode_block(
            self.blocks[group] if block is None else block,
            group=group,
            page_size=self.page_size,
            db_pages=self.db_pages,
            expected=self.hashes[group],
        )


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    return Snapshot(20)


@pytest.mark.parametrize("is_inline", [True, False])
@pytest.mark.parametrize(
    ("db_pages", "page_size"),
    [(0, 4096), (1, 512), (16, 512), (17, 65536), (4096, 512), (4097, 512), (257, 8192)],
)
def test_a_page_set_comes_back_and_gives_its_pages(
    db_pages: int, page_size: int, *, is_inline: bool
) -> None:
    """Manifest, index, groups and blocks, with no page, whole groups, and more than one part."""
    snapshot = Snapshot(db_pages, page_size=page_size, is_inline=is_inline)
    pages = decode_pageset(encode_pageset(snapshot.pages)[1:])
    assert pages == snapshot.pages
    assert pages.groups == len(snapshot.groups)
    index = snapshot.index if pages.inline is None else pages.inline[: pages.index_len]
    rows = decode_index(index, pages, "the index")
    assert rows == snapshot.rows
    check_groups(rows, pages, "the index")
    covered = [group for part in range(len(pages.parts)) for group in pages.part_groups_of(part)]
    assert covered == list(range(pages.groups))
    for group in {0, pages.groups - 1} & set(covered):
        raw, leaves = snapshot.block(group)
        assert raw == snapshot.groups[group]
        assert leaves == leaf_hashes(group * 16 + 1, raw, page_size)


def test_a_part_is_named_by_its_content_or_at_random() -> None:
    """SHA-256 of its bytes, its node hash, or the random name of an encrypted part."""
    part = Part(first_group=0, stored_len=9, node_hash=b"\xab" * 32)
    assert part.file_name == "ab" * 32 + ".pg"
    assert replace(part, name=b"\xcd" * 16).file_name == "cd" * 16 + ".pg"


@pytest.mark.parametrize("length", [0, 16, 32])
def test_a_part_name_comes_back(snapshot: Snapshot, length: int) -> None:
    """None, 16 or 32 bytes."""
    part = replace(snapshot.pages.parts[0], name=b"n" * length)
    assert decode_pageset(snapshot.record(parts=(part,))).parts == (part,)


def broken(snapshot: Snapshot, offset: int, value: bytes) -> bytes:
    record = bytearray(snapshot.record())
    record[offset : offset + len(value)] = value
    return bytes(record)


INDEX_LEN, HOT, PARTS = 106, 142, 178


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (16, b"\0\0\2\1", "page size 513"),
        (16, bytes(4), "page size 0"),
        (20, b"\0\0\0\x21", "index of 72 bytes for 3 groups"),
        (20, b"\xff\xff\xff\xff", "for 268435456 groups"),
        (24, b"\0\0\0\0\0\0\0\1", "from 1 to 7 is not supported"),
        (32, bytes(8), "from 0 to 0 is not supported"),
        (40, b"x", "is not supported"),
        (104, b"\0", "codec 0"),
        (104, b"\2", "codec 2"),
        (105, b"\3", "flags 3"),
        (105, b"\2", "index of 72 bytes for 2 groups"),
        (105, b"\x80", "flags 128"),
        (105, b"\1", "bytes expected, 0 left"),
        (INDEX_LEN, b"\xff\xff\xff\xff", "index of 4294967295 bytes for 2 groups"),
        (INDEX_LEN, bytes(4), "index of 0 bytes for 2 groups"),
        (HOT, b"\0\0\0\1", "hot pack"),
        (HOT + 4, b"\1", "hot pack"),
        (PARTS, b"\0\0\0\0", "41 bytes too many"),
        (PARTS, b"\0\0\0\2", "2 parts do not fit"),
        (PARTS, b"\xff\xff\xff\xff", "4294967295 parts do not fit"),
        (PARTS + 4, b"\0\0\0\1", "do not cover 2 groups in steps of 256"),
        (PARTS + 8, b"\0\0\0\1", "part 0 of 2 groups in 1 bytes"),
        (PARTS + 8, b"\xff\xff\xff\xff", "part 0 of 2 groups in 4294967295 bytes"),
        (PARTS + 12, b"\1", "part name of 1 bytes"),
        (PARTS + 12, b"\xff", "255 bytes expected"),
    ],
)
def test_a_page_set_that_breaks_a_rule_is_refused(
    snapshot: Snapshot, offset: int, value: bytes, problem: str
) -> None:
    """Each rule, by the bytes that break it; what is not supported yet is refused by name."""
    with pytest.raises(PageSetCorrupt, match=problem):
        decode_pageset(broken(snapshot, offset, value))


def test_parts_cover_all_groups_in_order() -> None:
    """None missing, none twice, none before another."""
    snapshot = Snapshot(4097)
    first, second = snapshot.pages.parts
    for parts in ((first,), (second, first), (first, first), (first, second, second), ()):
        with pytest.raises(PageSetCorrupt, match="do not cover 257 groups"):
            decode_pageset(snapshot.record(parts=parts))


def test_the_bytes_of_an_inline_page_set_are_all_there() -> None:
    """One missing or one more is refused; a writer never makes such a record."""
    record = Snapshot(20, is_inline=True).record()
    with pytest.raises(PageSetCorrupt, match="expected"):
        decode_pageset(record[:-1])
    with pytest.raises(PageSetCorrupt, match="1 bytes too many"):
        decode_pageset(record + b"x")
    with pytest.raises(AssertionError):
        Snapshot(20, is_inline=True).record(inline=b"x")


def test_a_hostile_page_set_costs_no_more_than_its_bytes(snapshot: Snapshot) -> None:
    """2^28 groups, 2^32 parts or an index of 4 GiB are announced in 223 bytes."""
    tracemalloc.start()
    huge = b"\xff\xff\xff\xff"
    for record in (
        broken(snapshot, 20, huge),
        broken(snapshot, INDEX_LEN, huge),
        broken(snapshot, PARTS, huge),
        # The lengths fit together: 2^28 groups and the index that they need.
        snapshot.record(db_pages=1 << 26, index_len=(1 << 22) * 36, parts=()),
    ):
        with pytest.raises(PageSetCorrupt):
            decode_pageset(record)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("is_inline", [True, False])
def test_damage_to_a_page_set_is_refused_or_is_another_page_set(
    mutations: Callable[[bytes], Iterator[bytes]],
    decodes_or_refuses: Callable[..., Any],
    *,
    is_inline: bool,
) -> None:
    """One value, one encoding; that it was changed, the object's signature tells."""
    for damaged in mutations(Snapshot(3, is_inline=is_inline).record()):
        pages = decodes_or_refuses(decode_pageset, damaged)
        assert pages is None or encode_pageset(pages)[1:] == damaged


@given(st.binary(max_size=300))
def test_garbage_is_no_page_set(snapshot: Snapshot, garbage: bytes) -> None:
    """Only `PageSetCorrupt`, also behind a plausible beginning."""
    for data in (garbage, snapshot.record()[:178] + garbage):
        with pytest.raises(PageSetCorrupt):
            decode_pageset(data)


def test_no_damage_to_an_index_goes_unseen(
    snapshot: Snapshot, mutations: Callable[[bytes], Iterator[bytes]]
) -> None:
    """The manifest holds its length and its hash."""
    for damaged in mutations(snapshot.index):
        with pytest.raises(PageSetCorrupt, match=r"the index is damaged.*not the index"):
            decode_index(damaged, snapshot.pages, "the index")


@pytest.mark.parametrize("sizes", [(100, 0), (0, 100), (100, 100)])
def test_an_index_that_was_signed_but_does_not_fit_its_parts_is_refused(
    snapshot: Snapshot, sizes: tuple[int, int]
) -> None:
    """Every block has a size, and together they are the part."""
    rows = [replace(row, stored_size=size) for row, size in zip(snapshot.rows, sizes, strict=True)]
    index = encode_index(rows)
    part = replace(snapshot.pages.parts[0], stored_len=100)
    pages = replace(snapshot.pages, index_hash=sha256(index).digest(), parts=(part,))
    with pytest.raises(PageSetCorrupt, match="part 0 has 100 bytes"):
        decode_index(index, pages, "the index")


def test_groups_that_do_not_give_the_root_or_the_parts_are_refused(snapshot: Snapshot) -> None:
    """A signed but false index is found before a page is fetched."""
    rows = [snapshot.rows[1], snapshot.rows[0]]
    with pytest.raises(PageSetCorrupt, match="part 0 do not give its node hash"):
        check_groups(rows, snapshot.pages, "the index")
    wrong = replace(snapshot.pages, to_root=StateRoot(b"x" * 32))
    with pytest.raises(PageSetCorrupt, match="do not give the state root"):
        check_groups(snapshot.rows, wrong, "the index")


def test_no_damage_to_a_block_changes_a_page(
    snapshot: Snapshot, mutations: Callable[[bytes], Iterator[bytes]]
) -> None:
    """It is refused; an unused bit of zstd's header may differ, but then the pages do not."""
    for damaged in mutations(snapshot.blocks[1]):
        try:
            raw, _ = snapshot.block(1, damaged)
        except PageSetCorrupt as error:
            problem = str(error)
        else:
            problem = "the block of group 1 is unharmed" if raw == snapshot.groups[1] else "wrong"
        assert problem.startswith("the block of group 1 is")


def test_a_block_of_another_group_is_refused(snapshot: Snapshot) -> None:
    """The number of a page is in its leaf hash, so a block has one place."""
    same = Snapshot(32)
    same.blocks[1] = encode_block(same.groups[0])
    with pytest.raises(PageSetCorrupt, match="not the ones that were signed"):
        same.block(1)
    with pytest.raises(PageSetCorrupt, match="content size"):
        snapshot.block(1, snapshot.blocks[0])


@pytest.mark.parametrize("place", [18, 19])
def test_bytes_that_no_hash_covers_are_refused_in_page_1(snapshot: Snapshot, place: int) -> None:
    """Byte 18 of 3 would make a restored file read-only."""
    pages = bytearray(snapshot.groups[0])
    pages[place] = 3
    with pytest.raises(PageSetCorrupt, match="bytes 18 and 19 of page 1 are not 2"):
        snapshot.block(0, encode_block(bytes(pages)))


@pytest.mark.parametrize("count", [1, 2, 16])
def test_bytes_that_no_hash_covers_are_refused_in_the_lock_page(count: int) -> None:
    """At 64 KiB it is the first page of group 1,024; elsewhere nothing is special."""
    size, group = 65536, 1024
    expected = group_hash(leaf_hashes(group * 16 + 1, bytes(count * size), size))
    facts: dict[str, Any] = {"page_size": size, "db_pages": group * 16 + count}
    clean = encode_block(bytes(count * size))
    assert decode_block(clean, group=group, expected=expected, **facts)[0] == bytes(count * size)
    for place in (0, 18, size - 1):
        pages = bytearray(count * size)
        pages[place] = 1
        with pytest.raises(PageSetCorrupt, match="lock page is not zeros"):
            decode_block(encode_block(bytes(pages)), group=group, expected=expected, **facts)


def test_a_database_that_ends_before_the_lock_page_has_none() -> None:
    """The group before it may hold anything."""
    size, group = 1024, 65536
    facts: dict[str, Any] = {"page_size": size, "db_pages": group * 16}
    pages = b"x" * size * 16
    expected = group_hash(leaf_hashes((group - 1) * 16 + 1, pages, size))
    assert (
        decode_block(encode_block(pages), group=group - 1, expected=expected, **facts)[0] == pages
    )


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([512, 4096, 65536]), st.integers(1, 16), st.booleans())
def test_no_block_is_larger_than_its_bound(page_size: int, pages: int, is_noise: bool) -> None:  # noqa: FBT001
    """Noise is stored at a little more than its size."""
    raw = (
        random.Random(pages).randbytes(pages * page_size) if is_noise else bytes(pages * page_size)
    )
    block = encode_block(raw)
    assert 0 < len(block) <= block_bytes_max(page_size)
    assert zstandard.decompress(block) == raw


class Manifests:
    """Builds signed manifests of one page set."""

    def __init__(self, signer: Signer, make_frame: Callable[..., Frame]) -> None:
        self.signer, self.make_frame = signer, make_frame
        self.snapshot = Snapshot(20)

    def decode(
        self, pages: PageSet | None = None, *, role: Role = Role.PAGE_SET, **fields: Any
    ) -> tuple[Any, PageSet]:
        facts: dict[str, Any] = {"state_root": self.snapshot.root}
        head = self.make_frame(**facts | fields).head
        epoch = EpochRecord(
            archive_epoch=1,
            lineage=LINEAGE,
            writer=self.signer.public,
            role=role,
            service_hash=service_hash("shop"),
        )
        records = [encode_epoch(epoch), encode_head(head)]
        if role == Role.PAGE_SET:
            records.append(encode_pageset(pages or self.snapshot.pages))
        data = encode_segment(
            shard=ShardId("orders"),
            start_seq=head.seq,
            count=0,
            records=records,
            signer=self.signer,
        )
        segment = decode_segment(data, trusted={self.signer.public})
        return decode_manifest(segment, "object x")


@pytest.fixture
def manifests(signer: Signer, make_frame: Callable[..., Frame]) -> Manifests:
    return Manifests(signer, make_frame)


def test_a_manifest_is_a_head_and_the_page_set_of_its_state(manifests: Manifests) -> None:
    """It says of the frame's state what the frame itself says."""
    head, pages = manifests.decode()
    assert pages == manifests.snapshot.pages
    assert (head.seq, head.state_root) == (pages.to_seq, pages.to_root)


def test_a_manifest_that_contradicts_itself_is_refused(manifests: Manifests) -> None:
    """Another seq, root or lineage in the page set than beside it, or another role."""
    pages = manifests.snapshot.pages
    for wrong in (
        replace(pages, to_seq=Seq(8)),
        replace(pages, to_root=StateRoot(b"x" * 32)),
        replace(pages, lineage=Lineage(b"m" * 16)),
    ):
        with pytest.raises(PageSetCorrupt, match="not the state of frame 7"):
            manifests.decode(wrong)
    with pytest.raises(PageSetCorrupt, match="not the state of frame 7"):
        manifests.decode(state_root=b"x" * 32)
    with pytest.raises(PageSetCorrupt, match="object x is no manifest"):
        manifests.decode(role=Role.TIP)


def test_an_object_without_epoch_is_no_manifest(signer: Signer) -> None:
    """Only the followed system writes such."""
    place = (1).to_bytes(8, "big") + bytes(8)
    cksm = sha256(b"orders" + place + bytes(16)).digest()
    old = b"\1\0\6orders" + place + bytes(8) + bytes(16) + bytes(4) + cksm
    data = encode_segment(
        shard=ShardId("orders"), start_seq=Seq(1), count=1, records=[old], signer=signer
    )
    segment = decode_segment(data, trusted={signer.public})
    with pytest.raises(PageSetCorrupt, match="no manifest"):
        decode_manifest(segment, "object x")


class Patched:
    """The blocks of a snapshot in parts of another cut, with blocks of no use between them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.rows = snapshot.rows
        sizes = [row.stored_size for row in self.rows]
        self.extents = [
            Extent(first_group=0, groups=1, part=1, offset=5),
            Extent(first_group=1, groups=2, part=0, offset=0),
            Extent(first_group=3, groups=1, part=1, offset=sizes[0] + 9),
        ]
        self.snapshot = snapshot
        self.lengths = [sum(sizes[1:3]) + 1, sizes[0] + 9 + sizes[3]]

    def index(self, extents: list[Extent] | None = None) -> bytes:
        return encode_index(self.rows, self.extents if extents is None else extents)

    def pages(self, index: bytes, **fields: Any) -> PageSet:
        parts = tuple(
            Part(first_group=0, stored_len=length, node_hash=ZERO_HASH, name=bytes([number]) * 32)
            for number, length in enumerate(self.lengths)
        )
        return replace(
            self.snapshot.pages,
            **{
                "index_len": len(index),
                "index_hash": sha256(index).digest(),
                "parts": parts,
                "is_patched": True,
                **fields,
            },
        )

    def decode(self, extents: list[Extent] | None = None) -> list[Extent]:
        index = self.index(extents)
        pages = decode_pageset(encode_pageset(self.pages(index))[1:])
        rows = decode_index(index, pages, "index")
        check_groups(rows, pages, "index")
        return decode_extents(index, rows, pages, "index")


@pytest.fixture(scope="session")
def patched() -> Patched:
    return Patched(Snapshot(64))


def test_a_patched_set_comes_back(patched: Patched) -> None:
    """Record, rows and extents."""
    index = patched.index()
    pages = patched.pages(index)
    assert decode_pageset(encode_pageset(pages)[1:]) == pages
    assert patched.decode() == patched.extents


def test_the_parts_of_a_whole_set_are_its_extents(snapshot: Snapshot) -> None:
    """One for each part, from its beginning; together they are all groups, in order."""
    found = decode_extents(snapshot.index, snapshot.rows, snapshot.pages, "index")
    assert [one.part for one in found] == list(range(len(snapshot.pages.parts)))
    assert {one.offset for one in found} == {0}
    groups = [
        group for one in found for group in range(one.first_group, one.first_group + one.groups)
    ]
    assert groups == list(range(snapshot.pages.groups))


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        (0, {"first_group": 1}),
        (0, {"groups": 0}),
        (0, {"groups": 2}),
        (2, {"groups": 2}),
        (0, {"part": 2}),
        (1, {"offset": 2}),
        (2, {"offset": 5}),
        (2, {"offset": 2**32 - 1}),
        (1, {"part": 1}),
    ],
)
def test_extents_that_do_not_tile_or_do_not_fit_are_refused(
    patched: Patched, place: int, fields: dict[str, int]
) -> None:
    """Each of them would read beyond its part, twice, or not at all."""
    extents = list(patched.extents)
    extents[place] = replace(extents[place], **fields)
    with pytest.raises(PageSetCorrupt, match=r"in no place|do not fit|it places"):
        patched.decode(extents)


def test_extents_that_are_too_few_or_too_many_are_refused(patched: Patched) -> None:
    """By the manifest already, as far as it can tell."""
    with pytest.raises(PageSetCorrupt, match="for 4 groups"):
        patched.decode(patched.extents[:1])
    with pytest.raises(PageSetCorrupt, match="it places 3"):
        patched.decode(patched.extents[:2])
    with pytest.raises(PageSetCorrupt, match="for 4 groups"):
        patched.decode(patched.extents * 2)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": b""}, "has no name"),
        ({"first_group": 1}, "or more than that"),
        ({"node_hash": b"h" * 32}, "or more than that"),
        ({"stored_len": 0}, "has 0 bytes"),
        ({"stored_len": 2**32 - 1}, "has 4294967295 bytes"),
    ],
)
def test_parts_of_a_patched_set_have_a_name_and_a_size(
    patched: Patched, fields: dict[str, Any], problem: str
) -> None:
    """And nothing else, since extents say the rest."""
    pages = patched.pages(patched.index())
    parts = (replace(pages.parts[0], **fields), pages.parts[1])
    with pytest.raises(PageSetCorrupt, match=problem):
        decode_pageset(encode_pageset(replace(pages, parts=parts))[1:])
