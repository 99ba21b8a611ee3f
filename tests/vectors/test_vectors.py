"""The golden bytes: what was written once is read for ever, and written the same."""

import json
import runpy
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from basenet.keys.trust import format_public, read_trusted_keys
from basenet.wire.certificate import Certificate, decode_certificate, encode_certificate
from basenet.wire.chain import check_genesis
from basenet.wire.frame import (
    Frame,
    Head,
    check_link,
    decode_frame,
    decode_head,
    encode_frame,
    encode_head,
)
from basenet.wire.merkle import normalised_first_page
from basenet.wire.pageset import (
    check_groups,
    decode_block,
    decode_index,
    decode_manifest,
    encode_index,
    encode_pageset,
)
from basenet.wire.payload import decode_commit, decode_config, encode_config
from basenet.wire.segment import (
    EpochRecord,
    PageSetRecord,
    Record,
    TreeRecord,
    decode_segment,
    encode_epoch,
    encode_segment,
    encode_tree,
)
from basenet.wire.signature import is_signed

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.hex"))
OBJECTS = ["log", "tip", "page-set", "page-set-inline"]


def read(name: str) -> bytes:
    return bytes.fromhex((HERE / f"{name}.hex").read_text())


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(HERE / "write_vectors.py"))


@pytest.fixture(scope="module")
def trusted() -> frozenset[bytes]:
    return frozenset(read_trusted_keys(HERE / "trusted.keys").publics)


def test_the_vectors_decode_to_what_they_were_written_for(program: dict[str, Any]) -> None:
    """Every field of every vector, and the golden state roots, as values.json says."""
    values = json.loads((HERE / "values.json").read_text())
    assert program["describe_all"]({name: read(name) for name in NAMES}) == values
    assert set(values) == {"state_roots", *NAMES}


def test_the_program_still_writes_the_vectors(program: dict[str, Any]) -> None:
    """All of them; of those with compressed bytes only the names, since zstd may change."""
    built = program["build_vectors"]()
    assert sorted(built) == NAMES
    for name in sorted(set(NAMES) - program["ZSTD"]):
        assert built[name] == read(name), name


ENCODERS: dict[type, Callable[[Any], bytes]] = {
    Frame: encode_frame,
    Head: encode_head,
    Certificate: encode_certificate,
    EpochRecord: encode_epoch,
    TreeRecord: encode_tree,
    PageSetRecord: lambda record: b"\5" + record.data,
}


def encode(record: Record) -> bytes:
    return ENCODERS[type(record)](record)


def test_what_a_vector_decodes_to_encodes_to_the_vector() -> None:
    """One value, one encoding: also for the compressed ones, whose bytes are kept."""
    for name in ("frame-config-genesis", "frame-commit-raw", "frame-commit-zstd"):
        frame = decode_frame(read(name))
        assert isinstance(frame, Frame)
        assert encode_frame(frame) == read(name)
        assert frame.head.is_signed_by_author()
    assert encode_head(decode_head(read("head"))) == read("head")
    assert encode_certificate(decode_certificate(read("cert"))) == read("cert")
    genesis = decode_frame(read("frame-config-genesis"))
    assert isinstance(genesis, Frame)
    assert encode_config(decode_config(genesis.payload)) == genesis.payload


@pytest.mark.parametrize("name", OBJECTS)
def test_the_records_of_an_object_give_the_object(
    program: dict[str, Any], trusted: frozenset[bytes], name: str
) -> None:
    """Ed25519 signatures are not random, so the whole object comes back."""
    segment = decode_segment(read(name), trusted=trusted)
    assert read(name) == encode_segment(
        shard=segment.shard,
        start_seq=segment.start_seq,
        count=segment.count,
        records=map(encode, segment.records),
        signer=program["SIGNER"],
    )
    assert is_signed(segment.public, read(name)[-64:], read(name)[:-64])


def test_the_frames_are_one_chain(trusted: frozenset[bytes]) -> None:
    """From the genesis on."""
    names = ("frame-config-genesis", "frame-commit-raw", "frame-commit-zstd")
    heads = [frame.head for name in names if isinstance(frame := decode_frame(read(name)), Frame)]
    genesis = decode_frame(read(names[0]))
    check_genesis(heads[0], decode_config(genesis.payload), None)
    check_link(heads[0], heads[1])
    check_link(heads[1], heads[2])
    log = decode_segment(read("log"), trusted=trusted)
    assert [frame.head for frame in log.frames] == heads[:2]
    packed = decode_segment(read("log-packed"), trusted=trusted)
    assert [encode_frame(frame) for frame in packed.frames] == [read(name) for name in names]


def test_the_compressed_pages_are_the_pages(program: dict[str, Any]) -> None:
    """The zstd frame was written by zstd 1.5.7."""
    frame = decode_frame(read("frame-commit-zstd"))
    commit = decode_commit(frame.payload)
    assert frame.payload[16] == 1
    assert (commit.pgnos.tolist(), commit.pages) == ([1], program["page_of"](1, 512))


@pytest.mark.parametrize("name", ["page-set", "page-set-inline"])
def test_the_page_set_gives_its_pages(
    program: dict[str, Any], trusted: frozenset[bytes], name: str
) -> None:
    """Manifest, index, part and blocks, up to the state root of the genesis."""
    segment = decode_segment(read(name), trusted=trusted)
    head, pages = decode_manifest(segment, name)
    index, part = read("page-set-index"), read("page-set-part")
    assert pages.inline == (index + part if name == "page-set-inline" else None)
    rows = decode_index(index, pages, "the index")
    check_groups(rows, pages, "the index")
    assert encode_index(rows) == index
    assert pages.groups == len(rows) == 2
    raw, at = b"", 0
    for group, row in enumerate(rows):
        block = part[at : at + row.stored_size]
        at += row.stored_size
        raw += decode_block(
            block, group=group, page_size=512, db_pages=20, expected=row.group_hash
        )[0]
    expected = b"".join(program["page_of"](pgno, 512) for pgno in range(1, 21))
    assert raw == normalised_first_page(expected)
    named = sha256(part).hexdigest() if name == "page-set" else pages.parts[0].node_hash.hex()
    assert pages.parts[0].file_name == f"{named}.pg"
    genesis = decode_frame(read("frame-config-genesis"))
    assert isinstance(genesis, Frame)
    assert head == genesis.head
    assert PageSetRecord(data=encode_pageset(pages)[1:]) == segment.records[-1]


def test_the_trusted_keys_name_the_signer(program: dict[str, Any]) -> None:
    """`ed25519:<base64> [comment]`, a line a key."""
    text = (HERE / "trusted.keys").read_text()
    assert text == f"{format_public(program['SIGNER'].public)} test vectors\n"
    (key,) = read_trusted_keys(HERE / "trusted.keys").keys
    assert (key.public, key.comment) == (program["SIGNER"].public, "test vectors")
