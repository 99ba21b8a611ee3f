"""What a frame carries: COMMIT and CONFIG payloads."""

import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.errors import FrameCorrupt
from basenet.units import FRAME_PAYLOAD_BYTES_MAX, MIB, JournalId, Lineage, PublicKeyBytes
from basenet.wire.payload import (
    CommitPayload,
    ConfigPayload,
    FaultModel,
    Voter,
    VoterRole,
    compute_members_hash,
    decode_commit,
    decode_commit_summary,
    decode_config,
    encode_commit,
    encode_config,
)

PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
RAW, ZSTD = 0, 1


def commit_of(pgnos: list[int], pages: bytes, **fields: Any) -> CommitPayload:
    facts: dict[str, Any] = {"page_size": 512, "db_pages": 100, "commits": 1}
    numbers = np.array(pgnos, dtype=np.uint32)
    return CommitPayload(pgnos=numbers, pages=pages, **facts | fields)


def encoded_by_hand(
    *,
    page_size: int = 512,
    db_pages: int = 100,
    commits: int = 1,
    pgnos: tuple[int, ...] = (1, 2),
    count: int | None = None,
    codec: int = RAW,
    raw_len: int | None = None,
    body: bytes | None = None,
) -> bytes:
    """Return a COMMIT payload with every field as given, the wrong ones too."""
    count = len(pgnos) if count is None else count
    raw_len = count * page_size if raw_len is None else raw_len
    body = bytes(len(pgnos) * page_size) if body is None else body
    head = b"".join(field.to_bytes(4, "big") for field in (page_size, db_pages, commits, count))
    numbers = b"".join(pgno.to_bytes(4, "big") for pgno in pgnos)
    return head + bytes([codec]) + raw_len.to_bytes(4, "big") + numbers + body


def facts_of(commit: CommitPayload) -> tuple[int, int, int, list[int], bytes]:
    numbers = commit.pgnos.tolist()
    return commit.page_size, commit.db_pages, commit.commits, numbers, bytes(commit.pages)


@st.composite
def commits(draw: st.DrawFn) -> CommitPayload:
    page_size = draw(st.sampled_from(PAGE_SIZES))
    db_pages = draw(st.integers(0, (1 << 32) - 1))
    pgnos: set[int] = set()
    if db_pages:
        pgnos = draw(st.sets(st.integers(1, db_pages), max_size=4)) - {(1 << 30) // page_size + 1}
    chance = random.Random(draw(st.integers(0, 99)))
    length = len(pgnos) * page_size
    pages = chance.randbytes(length) if draw(st.booleans()) else bytes(length)
    return commit_of(
        sorted(pgnos),
        pages,
        page_size=page_size,
        db_pages=db_pages,
        commits=draw(st.integers(0, (1 << 32) - 1)),
    )


@settings(max_examples=150, deadline=None)
@given(commits())
def test_a_commit_comes_back(commit: CommitPayload) -> None:
    """Of every page size, compressible or not, with no page or with the highest number."""
    decoded = decode_commit(encode_commit(commit))
    assert facts_of(decoded) == facts_of(commit)
    assert decoded.pgnos.dtype == np.uint32
    summary = decode_commit_summary(encode_commit(commit))
    facts = (summary.page_size, summary.db_pages, summary.commits, summary.pgnos.tolist())
    assert facts == facts_of(commit)[:4]
    for index in range(len(commit.pgnos)):
        size = commit.page_size
        assert decoded.page(index) == commit.pages[index * size : (index + 1) * size]


def test_pages_are_compressed_only_where_that_is_smaller() -> None:
    """Random pages stay raw, so that the payload never exceeds its bound."""
    noise = random.Random(1).randbytes(8192)
    assert encode_commit(commit_of([1], noise, page_size=8192))[16] == RAW
    assert encode_commit(commit_of([1], bytes(8192), page_size=8192))[16] == ZSTD
    assert encode_commit(commit_of([], b""))[16] == RAW


def test_the_largest_commit_fits_into_a_frame() -> None:
    """4 MiB raw in pages of 512 bytes is the worst case: most page numbers, nothing compresses."""
    noise = random.Random(2).randbytes(4 * MIB)
    commit = commit_of(list(range(1, 8193)), noise, db_pages=8192)
    encoded = encode_commit(commit)
    assert len(encoded) < FRAME_PAYLOAD_BYTES_MAX
    assert facts_of(decode_commit(encoded)) == facts_of(commit)


def test_a_memoryview_is_encoded_and_decoded_like_bytes() -> None:
    """Pages are not copied on their way."""
    pages = bytes(range(256)) * 4
    encoded = encode_commit(commit_of([3, 9], pages))
    assert encode_commit(commit_of([3, 9], memoryview(pages))) == encoded  # type: ignore[arg-type]
    assert bytes(decode_commit(memoryview(encoded)).pages) == pages


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"page_size": 256}, "256 is no page size"),
        ({"page_size": 513}, "513 is no page size"),
        ({"page_size": 131072}, "131072 is no page size"),
        ({"page_size": 0}, "0 is no page size"),
        ({"raw_len": 1023}, "raw length 1023 does not fit 2 pages"),
        ({"count": 8193, "raw_len": 8193 * 512}, "does not fit 8193 pages"),
        ({"count": (1 << 32) - 1, "raw_len": 0}, "does not fit 4294967295 pages"),
        ({"count": 5, "body": b""}, "20 bytes expected, 8 left"),
        ({"pgnos": (2, 1)}, "do not ascend strictly"),
        ({"pgnos": (2, 2)}, "do not ascend strictly"),
        ({"pgnos": (0, 1)}, "do not ascend strictly"),
        ({"pgnos": (1, 101)}, "do not ascend strictly within 1..100"),
        ({"db_pages": 0}, "do not ascend strictly within 1..0"),
        ({"pgnos": (1, 2097153), "db_pages": 1 << 31}, "lock page"),
        ({"pgnos": (2097153, 2097154), "db_pages": 1 << 31}, "lock page"),
        ({"body": bytes(1023)}, "1023 bytes of pages where 1024"),
        ({"body": bytes(1025)}, "1025 bytes of pages where 1024"),
        ({"codec": 2}, "codec 2 is unknown"),
        ({"codec": 255}, "codec 255 is unknown"),
        ({"codec": ZSTD, "pgnos": ()}, "has nothing to decode"),
        ({"pgnos": (), "body": b"x"}, "1 bytes of pages where 0"),
        ({"codec": ZSTD}, "zstd"),
        ({"codec": ZSTD, "body": zstandard.compress(bytes(1025))}, "content size"),
        ({"codec": ZSTD, "body": zstandard.compress(bytes(1024)) + b"x"}, "unused data"),
    ],
)
def test_a_commit_that_breaks_a_rule_is_refused(fields: dict[str, Any], problem: str) -> None:
    """Each rule of Q21 that a payload can break alone; its neighbour that keeps it is accepted."""
    decode_commit(encoded_by_hand())
    with pytest.raises(FrameCorrupt, match=problem):
        decode_commit(encoded_by_hand(**fields))


def test_a_commit_without_pages_is_allowed() -> None:
    """A transaction can change the size of a database alone, also to 0 pages (Q21)."""
    for db_pages in (0, 5):
        decoded = decode_commit(encoded_by_hand(pgnos=(), db_pages=db_pages))
        assert facts_of(decoded) == (512, db_pages, 1, [], b"")


@pytest.mark.parametrize(
    "commit",
    [
        commit_of([1], bytes(511)),
        commit_of([2, 1], bytes(1024)),
        commit_of([101], bytes(512)),
        commit_of([2097153], bytes(512), db_pages=1 << 31),
        commit_of([1], bytes(500), page_size=500),
        commit_of(list(range(1, 8194)), bytes(8193 * 512), db_pages=9000),
    ],
)
def test_a_wrong_commit_is_never_written(commit: CommitPayload) -> None:
    """What no reader accepts would be noticed at the restore."""
    with pytest.raises(AssertionError):
        encode_commit(commit)


@pytest.mark.parametrize("is_compressible", [True, False])
def test_damage_to_a_commit_is_refused_or_gives_a_commit(
    mutations: Callable[[bytes], Iterator[bytes]],
    decodes_or_refuses: Callable[..., Any],
    *,
    is_compressible: bool,
) -> None:
    """A changed count, number or raw byte can be valid: that it changed, the frame's cksm tells."""
    pages = bytes(512) if is_compressible else random.Random(3).randbytes(512)
    encoded = encode_commit(commit_of([7], pages))
    for damaged in mutations(encoded):
        commit = decodes_or_refuses(decode_commit, damaged)
        summary = decodes_or_refuses(decode_commit_summary, damaged)
        assert commit is None or summary is not None, "a summary refuses nothing that is whole"


@settings(max_examples=300)
@given(st.binary(max_size=120))
def test_garbage_is_no_commit(garbage: bytes) -> None:
    """Only `FrameCorrupt`, whatever follows a plausible beginning."""
    for data in (
        garbage,
        encoded_by_hand()[:17] + garbage,
        encoded_by_hand(codec=ZSTD)[:29] + garbage,
    ):
        with pytest.raises(FrameCorrupt):
            decode_commit(data)


def test_no_announced_length_is_allocated() -> None:
    """25 bytes that speak of 4 GiB cost nothing."""
    tracemalloc.start()
    for count, raw_len in (((1 << 32) - 1, 0), (8192, 4 * MIB), (1 << 23, 0)):
        with pytest.raises(FrameCorrupt):
            decode_commit(encoded_by_hand(count=count, raw_len=raw_len, pgnos=(), body=b""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


VOTER_IDS = st.from_regex(r"[a-z0-9.-]{1,253}\Z", fullmatch=True)
KEYS = st.binary(min_size=32, max_size=32)
LINEAGES = st.binary(min_size=16, max_size=16).filter(any)


@st.composite
def configs(draw: st.DrawFn) -> ConfigPayload:
    count = draw(st.integers(1, 6))
    unique: dict[str, Any] = {"min_size": count, "max_size": count, "unique": True}
    ids, keys = draw(st.lists(VOTER_IDS, **unique)), draw(st.lists(KEYS, **unique))
    journals = draw(st.lists(st.binary(min_size=16, max_size=16), **unique))
    roles = draw(st.lists(st.sampled_from(VoterRole), min_size=count, max_size=count))
    lineage, parent = draw(LINEAGES), draw(st.none() | LINEAGES)
    if parent == lineage:
        parent = None
    return ConfigPayload(
        lineage=Lineage(lineage),
        parent=(Lineage(parent), draw(st.integers(1, (1 << 64) - 1)), b"h" * 32)
        if parent
        else None,
        voters=tuple(
            Voter(
                node_id=node_id, key=PublicKeyBytes(key), journal_id=JournalId(journal), role=role
            )
            for node_id, key, journal, role in zip(ids, keys, journals, roles, strict=True)
        ),
        page_size=draw(st.sampled_from([0, *PAGE_SIZES])),
        members_hash=draw(KEYS),
        fault_model=FaultModel.BYZANTINE
        if count >= 4 and draw(st.booleans())
        else FaultModel.CRASH,
        is_forced=draw(st.booleans()),
    )


@settings(max_examples=100)
@given(configs())
def test_a_config_comes_back(config: ConfigPayload) -> None:
    """Voters keep their order; parent and page size may be absent."""
    encoded = encode_config(config)
    assert decode_config(encoded) == config
    assert decode_config(memoryview(encoded)) == config


def test_a_config_of_31_voters_with_the_longest_ids_comes_back(
    make_config: Callable[..., ConfigPayload],
) -> None:
    """The bounds are inside."""
    config = make_config(voters=31)
    longest = tuple(
        replace(voter, node_id=voter.node_id.ljust(253, "x")) for voter in config.voters
    )
    config = replace(config, voters=longest, fault_model=FaultModel.BYZANTINE)
    assert decode_config(encode_config(config)) == config


OFFSETS = {"flags": 2, "lineage": 3, "parent": 19, "fault model": 75, "page size": 108, "n": 112}


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, b"\0\2", "format 2"),
        (0, b"\0\0", "format 0"),
        (OFFSETS["flags"], b"\2", "flags 2 are unknown"),
        (OFFSETS["flags"], b"\x81", "flags 129 are unknown"),
        (OFFSETS["lineage"], bytes(16), "zero"),
        (OFFSETS["parent"], b"q" * 16, "only in part"),
        (OFFSETS["parent"], b"q" * 16 + bytes(8) + b"h" * 32, "only in part"),
        (OFFSETS["parent"], b"l" * 16 + b"\0\0\0\0\0\0\0\1" + b"h" * 32, "its own parent"),
        (OFFSETS["fault model"], b"\0", "fault model 0 is unknown"),
        (OFFSETS["fault model"], b"\2", "must be crash"),
        (OFFSETS["fault model"], b"\3", "fault model 3 is unknown"),
        (OFFSETS["page size"], b"\0\0\2\1", "513 is no page size"),
        (OFFSETS["n"], b"\0\0", "0 voters"),
        (OFFSETS["n"], b"\0\x20", "32 voters"),
        (OFFSETS["n"], b"\xff\xff", "65535 voters"),
        (OFFSETS["n"], b"\0\2", "expected"),
        (OFFSETS["n"] + 2, b"\0", "voter"),
        (OFFSETS["n"] + 3, b"N", "'Node-0' is not 1..253"),
        (OFFSETS["n"] + 3, b"\xff", "is not 1..253"),
        (OFFSETS["n"] + 3, b"\n", "is not 1..253"),
        (-1, b"\0", "voter role 0 is unknown"),
        (-1, b"\3", "voter role 3 is unknown"),
    ],
)
def test_a_config_that_breaks_a_rule_is_refused(
    make_config: Callable[..., ConfigPayload], offset: int, value: bytes, problem: str
) -> None:
    """Each rule of Q21, by the bytes that break it."""
    encoded = bytearray(encode_config(make_config()))
    offset %= len(encoded)
    encoded[offset : offset + len(value)] = value
    with pytest.raises(FrameCorrupt, match=problem):
        decode_config(bytes(encoded))


@pytest.mark.parametrize("field", ["node_id", "key", "journal_id"])
def test_two_voters_never_share_an_id_a_key_or_a_journal(
    make_config: Callable[..., ConfigPayload], field: str
) -> None:
    """Neither read nor written (Q21)."""
    config = make_config(voters=2)
    first, second = config.voters
    twin = replace(second, **{field: getattr(first, field)})
    encoded = encode_config(config)
    if field == "node_id":
        same = encoded.replace(b"node-1", b"node-0")
    else:
        same = encoded.replace(getattr(second, field), getattr(first, field))
    with pytest.raises(FrameCorrupt, match=f"same {field}"):
        decode_config(same)
    with pytest.raises(AssertionError, match=f"same {field}"):
        encode_config(replace(config, voters=(first, twin)))


@pytest.mark.parametrize(
    "fields",
    [
        {"voters": 0},
        {"voters": 3, "fault_model": FaultModel.BYZANTINE},
        {"page_size": 513},
        {"lineage": bytes(16)},
        {"lineage": b"short"},
        {"members_hash": b"short"},
        {"parent": (b"l" * 16, 1, b"h" * 32)},
        {"parent": (b"q" * 16, 1, b"short")},
    ],
)
def test_a_wrong_config_is_never_written(
    make_config: Callable[..., ConfigPayload], fields: dict[str, Any]
) -> None:
    """What no reader accepts would end a lineage."""
    with pytest.raises(AssertionError):
        encode_config(make_config(**fields))


@pytest.mark.parametrize("fields", [{"node_id": "A"}, {"key": b"k"}, {"journal_id": b"j"}])
def test_a_wrong_voter_is_never_written(
    make_config: Callable[..., ConfigPayload], fields: dict[str, Any]
) -> None:
    """An id, a key or a journal id of another form."""
    config = make_config()
    wrong = replace(config, voters=(replace(config.voters[0], **fields),))
    with pytest.raises(AssertionError):
        encode_config(wrong)


def test_damage_to_a_config_is_refused_or_is_another_config(
    make_config: Callable[..., ConfigPayload],
    mutations: Callable[[bytes], Iterator[bytes]],
    decodes_or_refuses: Callable[..., Any],
) -> None:
    """An encoding is the only one of its value; that it was changed, the frame's cksm tells."""
    encoded = encode_config(make_config(voters=2, parent=(b"q" * 16, 9, b"h" * 32)))
    for damaged in mutations(encoded):
        config = decodes_or_refuses(decode_config, damaged)
        assert config is None or encode_config(config) == damaged


@given(st.binary(max_size=400))
def test_garbage_is_no_config(garbage: bytes) -> None:
    """Only `FrameCorrupt`."""
    with pytest.raises(FrameCorrupt):
        decode_config(b"\0\1\0" + garbage)


def test_the_members_hash_does_not_depend_on_their_order() -> None:
    """SHA256 over `id_len u8 | id | key` in the order of the ids (Q1)."""
    members = [("b", b"2" * 32), ("a.example", b"1" * 32)]
    expected = sha256(b"\x09a.example" + b"1" * 32 + b"\x01b" + b"2" * 32).digest()
    assert compute_members_hash(members) == compute_members_hash(members[::-1]) == expected
