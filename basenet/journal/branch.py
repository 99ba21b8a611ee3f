"""The frames of one shard above its final one: of any author, on any branch, by hash.

A frame enters when it was sealed or received and leaves when something at its height is final: it
moves into the frame log or is dropped. It is held once, however often it is kept.
"""

from collections.abc import Sequence
from typing import Final
from zlib import crc32

import apsw

from basenet.errors import CorruptionError
from basenet.journal import schema
from basenet.journal.records import BranchRow
from basenet.units import FrameHash, LocalNumber
from basenet.wire.frame import Frame, Head, Kind, decode_frame, decode_head, encode_head
from basenet.wire.payload import ConfigPayload, decode_config

_INSERT: Final = (
    "INSERT INTO branch (number, hash, seq, local_first, local_last, crc, head, record) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


def keep_frames(
    connection: apsw.Connection,
    number: int,
    rows: Sequence[BranchRow],
    *,
    final: int,
    local_last: LocalNumber,
) -> LocalNumber:
    """Keep the ``rows`` above the height ``final`` that are not there yet.

    ``local_last``: the last commit of this node that is accounted for; returns what it is now.
    """
    for row in rows:
        assert row.local_last >= row.local_first - 1, "a range of local numbers that runs backwards"
        # What is beyond the last seq can follow nothing that is held: some peer made it up.
        if not final < row.head.seq <= schema.SEQ_MAX:
            continue
        digest = row.head.hash
        values = (
            number,
            digest,
            row.head.seq,
            row.local_first,
            row.local_last,
            crc32(row.record),
            encode_head(row.head),
            row.record,
        )
        connection.execute(_INSERT, values)
        if row.local_last >= row.local_first and connection.changes():
            assert row.local_first == local_last + 1, "a commit framed twice or not at all"
            local_last = row.local_last
    return local_last


def drop_frames(connection: apsw.Connection, number: int, last: int | None = None) -> None:
    """Drop all frames up to the height ``last``; None: all."""
    connection.execute(
        "DELETE FROM branch WHERE number = ?1 AND (?2 IS NULL OR seq <= ?2)", (number, last)
    )


def read_frame(connection: apsw.Connection, number: int, digest: FrameHash) -> bytes | None:
    """Return an encoded frame, None if it is not held; `CorruptionError` if it is rotten."""
    rows = list(
        connection.execute(
            "SELECT crc, record FROM branch WHERE number = ? AND hash = ?", (number, digest)
        )
    )
    if not rows:
        return None
    crc, record = rows[0]
    if crc32(record) != crc:
        raise CorruptionError(f"the frame {digest.hex()} reads back differently")
    encoded: bytes = record
    return encoded


def read_locals(connection: apsw.Connection, number: int) -> tuple[LocalNumber, LocalNumber] | None:
    """Return the first and the last local number in own frames; None if there are none."""
    rows = connection.execute(
        "SELECT min(local_first), max(local_last) FROM branch "
        "WHERE number = ? AND local_first <= local_last",
        (number,),
    ).fetchall()
    first, last = rows[0]
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    return LocalNumber(first), LocalNumber(last)


def load_heads(connection: apsw.Connection, number: int) -> tuple[Head, ...]:
    """Return the heads of all frames, by seq; raise `CorruptionError` if one is rotten."""
    rows = list(
        connection.execute(
            "SELECT hash, seq, head FROM branch WHERE number = ? ORDER BY seq, hash", (number,)
        )
    )
    heads = []
    for digest, seq, encoded in rows:
        head = decode_head(encoded)
        if (head.hash, head.seq) != (digest, seq):
            raise CorruptionError(f"the head of the frame {digest.hex()} reads back differently")
        heads.append(head)
    return tuple(heads)


def load_configs(
    connection: apsw.Connection, number: int, heads: Sequence[Head]
) -> dict[FrameHash, ConfigPayload]:
    """Return the content of the CONFIGs among ``heads``, by frame hash."""
    return {
        head.hash: read_config(connection, number, head.hash)[1]
        for head in heads
        if head.kind == Kind.CONFIG
    }


def read_config(
    connection: apsw.Connection, number: int, digest: FrameHash
) -> tuple[bytes, ConfigPayload]:
    """Return the payload of a CONFIG frame in the branch, encoded and decoded."""
    record = read_frame(connection, number, digest)
    if record is None:
        raise CorruptionError(f"the CONFIG frame {digest.hex()} is missing")
    frame = decode_frame(record)
    if not isinstance(frame, Frame) or frame.head.hash != digest:
        raise CorruptionError(f"the CONFIG frame {digest.hex()} is another one")
    return frame.payload, decode_config(frame.payload)
