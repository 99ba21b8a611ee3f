"""What a frame carries: the pages of a commit, or the voters of a configuration.

COMMIT (docs/formats/frame.md)::

    page_size u32 | db_pages u32 | commits u32 | n u32 | codec u8 | raw_len u32 | pgno u32 * n
    | bytes

CONFIG::

    format u16 | flags u8 | lineage[16] | parent lineage[16] | parent seq u64 | parent hash[32]
    | fault model u8 | SHA256(M)[32] | page_size u32 | n u16 | voter * n
    voter = id_len u8 | id | key[32] | journal_id[16] | role u8

A payload is judged alone here. What it may be after the frame before it, and whether ``commits`` 0
goes with the frame's flags, is judged in `wire.chain`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from basenet.errors import FrameCorrupt
from basenet.units import (
    HASH_BYTES,
    JOURNAL_ID_BYTES,
    KEY_BYTES,
    LINEAGE_BYTES,
    PARTIAL_RAW_BYTES_MAX,
    ZERO_HASH,
    JournalId,
    Lineage,
    PublicKeyBytes,
    is_page_size,
    lock_page,
)
from basenet.wire.codec import Reader, u8, u16, u32, u64
from basenet.wire.compression import compress, decompress_exactly

CONFIG_FORMAT: Final = 1
VOTERS_MAX: Final = 31
# Below this many voters nobody can be outvoted who lies, so the fault model is crash.
BYZANTINE_VOTERS_MIN: Final = 4
# Level 1 in the flush path: 16-page blocks at level 3 save 5 % more but cost 1.6 times the CPU.
ZSTD_LEVEL: Final = 1

_COMMIT_HEAD: Final = Struct(">IIIIBI")  # page_size, db_pages, commits, n, codec, raw_len
_CONFIG_HEAD_BYTES: Final = 2 + 1 + 2 * LINEAGE_BYTES + 8 + HASH_BYTES + 1 + HASH_BYTES + 4 + 2
_PGNO_WIRE: Final = np.dtype(">u4")
_NO_LINEAGE: Final = Lineage(bytes(LINEAGE_BYTES))
_VOTER_ID: Final = re.compile(r"[a-z0-9.-]{1,253}\Z")


class Codec(IntEnum):
    """How the pages of a COMMIT are stored."""

    RAW = 0
    ZSTD = 1


class FaultModel(IntEnum):
    """What a voter may do wrong."""

    CRASH = 1
    BYZANTINE = 2


class VoterRole(IntEnum):
    """What a voter holds."""

    VALIDATOR = 1
    WITNESS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CommitPayload:
    """The pages of one or more commits: the last image of each page, ascending.

    ``pgnos``: uint32, shape (n,). ``pages``: n * page_size bytes, in the order of ``pgnos``.
    ``commits``: SQLite commits in it; 0 only in RECOVERED, REGRESSED and PARTIAL frames.
    ``db_pages``: the size of the database after the commit (of a run: after the run).
    """

    page_size: int
    db_pages: int
    commits: int
    pgnos: npt.NDArray[np.uint32]
    pages: bytes | memoryview

    def page(self, index: int) -> memoryview:
        """Return the image of the page ``pgnos[index]``."""
        start = index * self.page_size
        return memoryview(self.pages)[start : start + self.page_size]


def encode_commit(payload: CommitPayload, *, is_packed_later: bool = False) -> bytes:
    """Encode ``payload``, compressed where that makes it smaller.

    ``is_packed_later``: as it is, to be compressed with its neighbours (`wire.packed`).
    """
    raw_len, count = len(payload.pages), len(payload.pgnos)
    assert is_page_size(payload.page_size), "a page size that SQLite does not have"
    assert raw_len == count * payload.page_size, "pages and page numbers differ"
    assert raw_len <= PARTIAL_RAW_BYTES_MAX, "a commit of more raw bytes is a PARTIAL run"
    assert _are_page_numbers(payload.pgnos, payload.db_pages, payload.page_size), (
        "page numbers that do not ascend strictly within the database, or the lock page"
    )
    codec, body = Codec.RAW, payload.pages
    if raw_len and not is_packed_later:
        compressed = compress(payload.pages, level=ZSTD_LEVEL)
        if len(compressed) < raw_len:
            codec, body = Codec.ZSTD, compressed
    head = _COMMIT_HEAD.pack(
        payload.page_size, payload.db_pages, payload.commits, count, codec, raw_len
    )
    return b"".join((head, payload.pgnos.astype(_PGNO_WIRE).tobytes(), body))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CommitSummary:
    """Which pages a COMMIT carries, without their images; fields as in `CommitPayload`."""

    page_size: int
    db_pages: int
    commits: int
    pgnos: npt.NDArray[np.uint32]


def decode_commit(data: bytes | memoryview) -> CommitPayload:
    """Decode a COMMIT payload; raise `FrameCorrupt` if anything in it is not as it must be."""
    reader = Reader(data, error=FrameCorrupt, what="a COMMIT payload")
    summary, codec, raw_len = _decode_commit_head(reader)
    body = reader.view(reader.remaining)
    return CommitPayload(
        page_size=summary.page_size,
        db_pages=summary.db_pages,
        commits=summary.commits,
        pgnos=summary.pgnos,
        pages=_decode_pages(codec, body, raw_len, reader),
    )


def decode_commit_summary(data: bytes | memoryview) -> CommitSummary:
    """Decode what a COMMIT payload touches, without unpacking it.

    Raises `FrameCorrupt` if the fields before the pages are not as they must be. The pages may
    still be damaged; `decode_commit` tells.
    """
    reader = Reader(data, error=FrameCorrupt, what="a COMMIT payload")
    return _decode_commit_head(reader)[0]


def _decode_commit_head(reader: Reader) -> tuple[CommitSummary, int, int]:
    """Return what stands before the pages: the summary, the codec and the raw length."""
    page_size, db_pages, commits, count, codec, raw_len = _COMMIT_HEAD.unpack(
        reader.view(_COMMIT_HEAD.size)
    )
    if not is_page_size(page_size):
        raise reader.fail(f"{page_size} is no page size")
    if raw_len != count * page_size or raw_len > PARTIAL_RAW_BYTES_MAX:
        raise reader.fail(f"raw length {raw_len} does not fit {count} pages of {page_size} bytes")
    pgnos = np.frombuffer(reader.view(4 * count), dtype=_PGNO_WIRE).astype(np.uint32)
    if not _are_page_numbers(pgnos, db_pages, page_size):
        raise reader.fail(
            f"its page numbers do not ascend strictly within 1..{db_pages}, or name the lock page"
        )
    summary = CommitSummary(page_size=page_size, db_pages=db_pages, commits=commits, pgnos=pgnos)
    return summary, codec, raw_len


def _are_page_numbers(pgnos: npt.NDArray[np.uint32], db_pages: int, page_size: int) -> bool:
    """Return whether ``pgnos`` ascend strictly within 1..``db_pages`` and skip the lock page."""
    if len(pgnos) == 0:
        return True
    if not 1 <= pgnos[0] <= pgnos[-1] <= db_pages or not (pgnos[1:] > pgnos[:-1]).all():
        return False
    lock = lock_page(page_size)
    # Almost every database is smaller than the 1 GiB that the lock page lies at.
    return bool(pgnos[-1] < lock or not (pgnos == lock).any())


def _decode_pages(codec: int, body: memoryview, raw_len: int, reader: Reader) -> bytes | memoryview:
    if codec == Codec.RAW:
        if len(body) != raw_len:
            raise reader.fail(f"{len(body)} bytes of pages where {raw_len} are announced")
        return body
    if codec != Codec.ZSTD or raw_len == 0:
        raise reader.fail(f"codec {codec} is unknown or has nothing to decode; upgrade basenet")
    return decompress_exactly(body, raw_len, reader)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """One member of a shard: who, with which key, with which journal."""

    node_id: str
    key: PublicKeyBytes
    journal_id: JournalId
    role: VoterRole = VoterRole.VALIDATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigPayload:
    """A shard's configuration: its lineage, where that comes from, and who votes, in order.

    ``parent``: (lineage, seq, hash) of the frame that this lineage continues, or None.
    ``page_size``: in bytes; 0 when there is no file yet.
    """

    lineage: Lineage
    parent: tuple[Lineage, int, bytes] | None
    voters: tuple[Voter, ...]
    page_size: int
    members_hash: bytes
    fault_model: FaultModel = FaultModel.CRASH
    is_forced: bool = False
    format: int = CONFIG_FORMAT


def encode_config(config: ConfigPayload) -> bytes:
    """Encode ``config``."""
    assert (problem := _contradiction(config)) is None, problem
    parent_lineage, parent_seq, parent_hash = config.parent or (_NO_LINEAGE, 0, ZERO_HASH)
    parts = [
        u16(config.format),
        u8(1 if config.is_forced else 0),
        config.lineage,
        parent_lineage,
        u64(parent_seq),
        parent_hash,
        u8(config.fault_model),
        config.members_hash,
        u32(config.page_size),
        u16(len(config.voters)),
    ]
    assert len(b"".join(parts)) == _CONFIG_HEAD_BYTES, "a lineage or hash of another length"
    for voter in config.voters:
        name = voter.node_id.encode("ascii")
        assert len(voter.key) == KEY_BYTES, "a key of another length"
        assert len(voter.journal_id) == JOURNAL_ID_BYTES, "a journal id of another length"
        parts += [u8(len(name)), name, voter.key, voter.journal_id, u8(voter.role)]
    return b"".join(parts)


def decode_config(data: bytes | memoryview) -> ConfigPayload:
    """Decode a CONFIG payload; raise `FrameCorrupt` if anything in it is not as it must be."""
    reader = Reader(data, error=FrameCorrupt, what="a CONFIG payload")
    version, flags = reader.u16(), reader.u8()
    if version != CONFIG_FORMAT or flags > 1:
        raise reader.fail(f"format {version} or flags {flags} are unknown; upgrade basenet")
    lineage = Lineage(reader.take(LINEAGE_BYTES))
    parent = _decode_parent(reader)
    fault_model = reader.u8()
    members_hash = reader.take(HASH_BYTES)
    page_size, count = reader.u32(), reader.u16()
    if fault_model not in tuple(FaultModel):
        raise reader.fail(f"fault model {fault_model} is unknown; upgrade basenet")
    if not 1 <= count <= VOTERS_MAX:
        raise reader.fail(f"{count} voters are not within 1..{VOTERS_MAX}")
    voters = tuple(_decode_voter(reader) for _ in range(count))
    reader.finish()
    config = ConfigPayload(
        lineage=lineage,
        parent=parent,
        voters=voters,
        page_size=page_size,
        members_hash=members_hash,
        fault_model=FaultModel(fault_model),
        is_forced=flags == 1,
        format=version,
    )
    if problem := _contradiction(config):
        raise reader.fail(problem)
    return config


def _contradiction(config: ConfigPayload) -> str | None:
    """Return which rule of Q21 the configuration breaks, or None."""
    count = len(config.voters)
    is_outvoted = config.fault_model == FaultModel.BYZANTINE and count < BYZANTINE_VOTERS_MIN
    rules = (
        (not 1 <= count <= VOTERS_MAX, f"{count} voters are not within 1..{VOTERS_MAX}"),
        (is_outvoted, f"{count} voters cannot tell who lies: the fault model must be crash"),
        (
            config.page_size != 0 and not is_page_size(config.page_size),
            f"{config.page_size} is no page size",
        ),
        (config.lineage == _NO_LINEAGE, "its lineage is zero, which stands for none"),
        (
            config.parent is not None and config.parent[0] == config.lineage,
            "its lineage is its own parent",
        ),
    )
    broken = (problem for is_broken, problem in rules if is_broken)
    return next(broken, None) or _voters_contradiction(config.voters)


def _voters_contradiction(voters: tuple[Voter, ...]) -> str | None:
    for voter in voters:
        if not _VOTER_ID.match(voter.node_id):
            return f"voter id {voter.node_id!r} is not 1..253 of [a-z0-9.-]"
    for field in ("node_id", "key", "journal_id"):
        if len({getattr(voter, field) for voter in voters}) != len(voters):
            return f"two voters have the same {field}"
    return None


def _decode_parent(reader: Reader) -> tuple[Lineage, int, bytes] | None:
    lineage = Lineage(reader.take(LINEAGE_BYTES))
    seq, digest = reader.u64(), reader.take(HASH_BYTES)
    absent = [lineage == _NO_LINEAGE, seq == 0, digest == ZERO_HASH]
    if all(absent):
        return None
    if any(absent):
        raise reader.fail("its parent is named only in part")
    return lineage, seq, digest


def _decode_voter(reader: Reader) -> Voter:
    name = str(reader.view(reader.u8()), "latin-1")
    key = PublicKeyBytes(reader.take(KEY_BYTES))
    journal_id = JournalId(reader.take(JOURNAL_ID_BYTES))
    role = reader.u8()
    if role not in tuple(VoterRole):
        raise reader.fail(f"voter role {role} is unknown; upgrade basenet")
    return Voter(node_id=name, key=key, journal_id=journal_id, role=VoterRole(role))


def compute_members_hash(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return SHA256(M): the hash of a membership list of (node id, key), in any order (Q1).

    The rows ``id_len u8 | id | key`` are hashed in the order of their ids.
    """
    rows = (u8(len(name)) + name.encode("ascii") + key for name, key in sorted(members))
    return sha256(b"".join(rows)).digest()
