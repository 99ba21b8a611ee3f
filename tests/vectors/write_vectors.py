"""Writes the golden bytes of every wire format, from fixed values and a fixed key.

    python tests/vectors/write_vectors.py

Each ``NAME.hex`` is one record or object in hexadecimal, 32 bytes a line. ``values.json`` says what
each of them decodes to, for a reader in another language: bytes are in hexadecimal, and those
longer than 64 are given as their length and SHA-256. ``trusted.keys`` names the key that signed.

What is committed is the format: run this only for a *new* vector, and look at what it changed. The
vectors named in `ZSTD` hold compressed bytes, which another release of zstd may choose differently;
readers must read the committed ones, and writers need not write the same.
"""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from basenet.keys.trust import format_public
from basenet.units import (
    ZERO_HASH,
    Epoch,
    FrameHash,
    JournalId,
    Lineage,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
    View,
)
from basenet.wire.certificate import Certificate, decode_certificate, encode_certificate
from basenet.wire.frame import (
    Flag,
    Frame,
    Head,
    Kind,
    decode_frame,
    decode_head,
    encode_frame,
    encode_head,
    genesis_prev_hash,
    seal,
)
from basenet.wire.merkle import StateTree, leaf_hashes, normalised_first_page
from basenet.wire.pageset import (
    IndexRow,
    PageSet,
    Part,
    decode_manifest,
    encode_block,
    encode_index,
    encode_pageset,
    part_node_hash,
)
from basenet.wire.payload import (
    CommitPayload,
    ConfigPayload,
    Voter,
    compute_members_hash,
    decode_commit,
    decode_config,
    encode_commit,
    encode_config,
)
from basenet.wire.segment import (
    EpochRecord,
    Role,
    Segment,
    TreeRecord,
    decode_epoch,
    decode_segment,
    decode_tree,
    encode_epoch,
    encode_segment,
    encode_tree,
    pack_frames,
    service_hash,
)
from basenet.wire.signature import Signer
from basenet.wire.tuples import Scope, acknowledgement

HERE = Path(__file__).parent
SIGNER = Signer(sha256(b"basenet test vectors").digest())
TRUSTED = {SIGNER.public}
SHARD, SERVICE, LINEAGE = ShardId("orders"), "shop", Lineage(bytes(range(16)))
PAGE_SIZE, DB_PAGES = 512, 20
START_NS = TimestampNs(1_790_000_000_000_000_000)
# (page size, pages) of the golden state roots; the pages are those of `page_of`.
ROOTS = [(0, 0), (4096, 1), (512, 17), (1024, 4097)]
ZSTD = {
    "frame-commit-zstd",
    "log-packed",
    "page-set-inline",
    "page-set",
    "page-set-index",
    "page-set-part",
}
INLINE_BYTES_MAX = 64
# The fields of the signed tuples as docs/formats/tuples.md lists them, each with its bytes.
PLACE = ("height 8", "hash 32")
TUPLES = {
    "vote": ("epoch 8", "view 8", "phase 1", *PLACE),
    "newview": ("epoch 8", "view 8", "high_view 8", "high_height 8", "high_hash 32", "qc_hash 32"),
    "propose": (
        *("epoch 8", "view 8", "prev_height 8", "prev_hash 32", "end_height 8", "end_hash 32"),
        *("anchor_view 8", "anchor_height 8", "anchor_hash 32"),
    ),
    "release": ("epoch 8", "view 8", "target 8"),
    "wish": ("epoch 8", "view 8"),
    "refuse": ("epoch 8", *PLACE),
    "genesis": ("frame_hash 32",),
    "withdraw": ("frame_hash 32",),
    "readindex": ("epoch 8", "view 8", "height 8", "nonce 16"),
    "ack": (
        *("from 32", "to 32", "boot_nonce 8", "round 8", "list_version 8", "list_hash 32"),
        *("mode 1", "exceptions_hash 32"),
    ),
}


def page_of(pgno: int, page_size: int) -> bytes:
    """Return the page whose byte i is (31 * pgno + i) mod 256."""
    return bytes((31 * pgno + index) & 0xFF for index in range(page_size))


def noise(length: int) -> bytes:
    """Return bytes that nothing compresses: SHA256 of a counter (u32), end to end."""
    blocks = (sha256(number.to_bytes(4, "big")).digest() for number in range(length // 32 + 1))
    return b"".join(blocks)[:length]


def tree_of(page_size: int, db_pages: int) -> StateTree:
    """Return the state of a database of `page_of` pages."""
    pages = b"".join(page_of(pgno, page_size) for pgno in range(1, db_pages + 1))
    return StateTree(page_size, leaf_hashes(1, pages, page_size) if pages else b"")


def build_frames() -> tuple[Frame, Frame, Frame]:
    """Return a genesis, a raw COMMIT and a compressed COMMIT, in a chain."""
    voter = Voter(node_id="db-0.example", key=SIGNER.public, journal_id=JournalId(b"j" * 16))
    config = ConfigPayload(
        lineage=LINEAGE,
        parent=None,
        voters=(voter,),
        page_size=PAGE_SIZE,
        members_hash=compute_members_hash([(voter.node_id, voter.key)]),
    )
    payload = encode_config(config)
    root = tree_of(PAGE_SIZE, DB_PAGES).root()
    genesis = seal_frame(1, payload, genesis_prev_hash(payload), root, kind=Kind.CONFIG)
    raw = encode_commit(commit_of([3, 20], noise(1024)))
    first = seal_frame(2, raw, genesis.head.hash, StateRoot(b"r" * 32))
    small = encode_commit(commit_of([1], page_of(1, PAGE_SIZE)))
    second = seal_frame(3, small, first.head.hash, StateRoot(b"s" * 32), flags=Flag.RECOVERED)
    return genesis, first, second


def commit_of(pgnos: list[int], pages: bytes) -> CommitPayload:
    """Return a commit to the database of the vectors."""
    return CommitPayload(
        page_size=PAGE_SIZE,
        db_pages=DB_PAGES,
        commits=1,
        pgnos=np.array(pgnos, dtype=np.uint32),
        pages=pages,
    )


def seal_frame(
    seq: int,
    payload: bytes,
    prev_hash: FrameHash,
    state_root: StateRoot,
    *,
    kind: Kind = Kind.COMMIT,
    flags: Flag = Flag.NONE,
) -> Frame:
    """Return a signed frame of the vectors' shard."""
    return seal(
        shard=SHARD,
        seq=Seq(seq),
        timestamp_ns=TimestampNs(START_NS + seq),
        salt=bytes([seq]) * 16,
        payload=payload,
        kind=kind,
        flags=flags,
        epoch=Epoch(1),
        view=View(0),
        prev_hash=prev_hash,
        state_root=state_root,
        signer=SIGNER,
    )


def build_old_frame() -> bytes:
    """Return a frame of version 1, which basenet reads and never writes."""
    place, payload = (5).to_bytes(8, "big") + (4).to_bytes(8, "big"), b"rows of the followed system"
    cksm = sha256(SHARD.encode() + place + b"o" * 16 + payload).digest()
    time, length = START_NS.to_bytes(8, "big"), len(payload).to_bytes(4, "big")
    front = b"\1" + len(SHARD).to_bytes(2, "big") + SHARD.encode()
    return front + place + time + b"o" * 16 + length + payload + cksm


def epoch_of(role: Role) -> bytes:
    """Return the EPOCH record of an object with ``role``."""
    return encode_epoch(
        EpochRecord(
            archive_epoch=2,
            lineage=LINEAGE,
            writer=SIGNER.public,
            role=role,
            service_hash=service_hash(SERVICE),
        )
    )


def object_of(role: Role, start_seq: int, *records: bytes, count: int = 0) -> bytes:
    """Return a signed object."""
    return encode_segment(
        shard=SHARD,
        start_seq=Seq(start_seq),
        count=count,
        records=(epoch_of(role), *records),
        signer=SIGNER,
    )


def certificate_of(head: Head) -> bytes:
    """Return a CERT with two votes; their signatures are bytes that verify nothing."""
    return encode_certificate(
        Certificate(
            phase=2,
            epoch=head.epoch,
            view=head.view,
            height=head.seq,
            hash=head.hash,
            votes=tuple(
                sorted((Signer(bytes([seed]) * 32).public, bytes([seed]) * 64) for seed in (1, 2))
            ),
        )
    )


def build_page_set(blocks: list[bytes]) -> tuple[PageSet, bytes]:
    """Return the page set of the genesis's state over ``blocks``, and its index."""
    tree = tree_of(PAGE_SIZE, DB_PAGES)
    hashes = [bytes(tree.groups[at : at + 32]) for at in range(0, len(tree.groups), 32)]
    index = encode_index(
        [
            IndexRow(stored_size=len(block), group_hash=digest)
            for block, digest in zip(blocks, hashes, strict=True)
        ]
    )
    part = Part(
        first_group=0,
        stored_len=sum(map(len, blocks)),
        node_hash=part_node_hash(tree.groups, PAGE_SIZE),
    )
    pages = PageSet(
        lineage=LINEAGE,
        page_size=PAGE_SIZE,
        db_pages=DB_PAGES,
        from_seq=Seq(0),
        to_seq=Seq(1),
        from_root=StateRoot(ZERO_HASH),
        to_root=tree.root(),
        index_len=len(index),
        index_hash=sha256(index).digest(),
        parts=(part,),
    )
    return pages, index


def build_tuples() -> dict[str, bytes]:
    """Return one of each signed tuple; every field has another value."""
    scope = Scope(LINEAGE, SHARD)
    epoch, view, height = Epoch(2), View(3), Seq(4)
    hashes = [FrameHash(bytes([10 + number]) * 32) for number in range(4)]
    tuples = {
        "vote": scope.vote(epoch, view, 2, height, hashes[0]),
        "newview": scope.new_view(epoch, view, -1, Seq(5), hashes[0], hashes[1]),
        "propose": scope.propose(
            epoch, view, Seq(5), hashes[0], Seq(6), hashes[1], 1, height, hashes[2]
        ),
        "release": scope.release(epoch, view, View(7)),
        "wish": scope.wish(epoch, view),
        "refuse": scope.refuse(epoch, height, hashes[0]),
        "genesis": scope.genesis(hashes[0]),
        "withdraw": scope.withdraw(hashes[0]),
        "readindex": scope.read_index(epoch, view, height, bytes(range(16))),
        "ack": acknowledgement(
            SIGNER.public,
            Signer(bytes([1]) * 32).public,
            bytes(range(8)),
            9,
            8,
            hashes[2],
            1,
            hashes[3],
        ),
    }
    return {f"tuple-{name}": data for name, data in tuples.items()}


def build_vectors() -> dict[str, bytes]:
    """Return every vector by its name."""
    genesis, raw, small = build_frames()
    pages = [page_of(pgno, PAGE_SIZE) for pgno in range(1, DB_PAGES + 1)]
    pages[0] = normalised_first_page(pages[0])
    blocks = [encode_block(b"".join(pages[:16])), encode_block(b"".join(pages[16:]))]
    page_set, index = build_page_set(blocks)
    part = b"".join(blocks)
    inline = dataclasses.replace(page_set, inline=index + part)
    named_part = dataclasses.replace(page_set.parts[0], name=sha256(part).digest())
    named = dataclasses.replace(page_set, parts=(named_part,))
    head = encode_head(genesis.head)
    tree = TreeRecord(groups=((0, b"g" * 32), (1, b"h" * 32)))
    voted = certificate_of(raw.head)
    frames = (encode_frame(genesis), encode_frame(raw))
    three = (*frames, encode_frame(small))
    return {
        "frame-v1": build_old_frame(),
        "frame-config-genesis": frames[0],
        "frame-commit-raw": frames[1],
        "frame-commit-zstd": encode_frame(small),
        "head": encode_head(raw.head),
        "cert": voted,
        "epoch": epoch_of(Role.LOG),
        "tree": encode_tree(tree),
        "log": object_of(Role.LOG, 1, *frames, voted, encode_tree(tree), count=2),
        "log-packed": object_of(Role.LOG, 1, *pack_frames(three), voted, count=3),
        "tip": object_of(Role.TIP, 2, encode_head(raw.head), voted),
        "page-set-inline": object_of(Role.PAGE_SET, 1, head, encode_pageset(inline)),
        "page-set": object_of(Role.PAGE_SET, 1, head, encode_pageset(named)),
        "page-set-index": index,
        "page-set-part": part,
        **build_tuples(),
    }


def decode_tuple(data: bytes) -> dict[str, Any]:
    """Return what a tuple says, and the signature of the vectors' key under it.

    Nodes never decode one: they build what they expect and verify. So this is written after the
    table of the document, and not after the program.
    """
    domain, rest = data.split(b"\0", 1)
    name = domain.decode().split("/")[1]
    said: dict[str, Any] = {"domain": domain.decode()}
    if name != "ack":
        length = int.from_bytes(rest[16:18], "big")
        said |= {"lineage": rest[:16], "shard": rest[18 : 18 + length].decode()}
        rest = rest[18 + length :]
    for field in TUPLES[name]:
        label, size = field.split()
        value, rest = rest[: int(size)], rest[int(size) :]
        said[label] = int.from_bytes(value, "big") if is_number(label) else value
    assert rest == b""
    return said | {"signature": SIGNER.sign(data)}


def is_number(label: str) -> bool:
    """Return whether a field of a tuple is a number."""
    numbers = {"epoch", "view", "height", "phase", "target", "round", "version", "mode"}
    return label.rpartition("_")[2] in numbers


def decode_whole_frame(data: bytes) -> Any:
    """Return a frame with its payload decoded, too."""
    frame = decode_frame(data)
    if not isinstance(frame, Frame):
        return frame
    decode = decode_config if frame.head.kind == Kind.CONFIG else decode_commit
    return {"head": frame.head, "payload": decode(frame.payload)}


def decode_object(data: bytes) -> Segment:
    """Return a signed object."""
    return decode_segment(data, trusted=TRUSTED)


def decode_page_set(data: bytes) -> tuple[Head, PageSet]:
    """Return what a manifest says."""
    return decode_manifest(decode_object(data), "the vector")


# The blobs of a page set are decoded with its manifest at hand; alone they are bytes.
DECODERS: dict[str, Callable[[bytes], Any]] = {
    "frame-v1": decode_whole_frame,
    "frame-config-genesis": decode_whole_frame,
    "frame-commit-raw": decode_whole_frame,
    "frame-commit-zstd": decode_whole_frame,
    "head": decode_head,
    "cert": decode_certificate,
    "epoch": decode_epoch,
    "tree": decode_tree,
    "log": decode_object,
    "log-packed": decode_object,
    "tip": decode_object,
    "page-set-inline": decode_page_set,
    "page-set": decode_page_set,
    "page-set-index": bytes,
    "page-set-part": bytes,
    **{f"tuple-{name}": decode_tuple for name in TUPLES},
}


def describe(value: Any) -> Any:
    """Return ``value`` as JSON shows it."""
    if isinstance(value, Mapping):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list | np.ndarray):
        return [describe(item) for item in value]
    if isinstance(value, bytes | memoryview):
        raw = bytes(value)
        summary = {"bytes": len(raw), "sha256": sha256(raw).hexdigest()}
        return raw.hex() if len(raw) <= INLINE_BYTES_MAX else summary
    if isinstance(value, msgspec.Struct):
        return describe({"type": type(value).__name__, **msgspec.structs.asdict(value)})
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return describe({"type": type(value).__name__, **fields})
    return int(value) if isinstance(value, int | np.integer) else value


def describe_all(vectors: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what ``values.json`` holds."""
    roots = [
        {"page_size": size, "db_pages": count, "state_root": tree_of(size, count).root().hex()}
        for size, count in ROOTS
    ]
    decoded = {name: describe(DECODERS[name](data)) for name, data in vectors.items()}
    return {"state_roots": roots, **decoded}


def main() -> None:
    """Write all files beside this one."""
    vectors = build_vectors()
    for name, data in vectors.items():
        lines = textwrap.wrap(data.hex(), 64)
        (HERE / f"{name}.hex").write_text("\n".join(lines) + "\n")
    values = json.dumps(describe_all(vectors), indent=1)
    (HERE / "values.json").write_text(values + "\n")
    (HERE / "trusted.keys").write_text(f"{format_public(SIGNER.public)} test vectors\n")


if __name__ == "__main__":
    main()
