"""The final history that this node's journal can hand to one that is behind, in certified pieces.

A piece is one message: it ends at a certificate and never goes on into the next epoch. Where the
next certificate is further away than a message can reach, the history cannot be told, and whoever
asks takes over a state (`cluster.adopting`).
"""

from itertools import takewhile
from typing import Final

from basenet.engine.ballot import first_seq
from basenet.journal.journal import Journal
from basenet.units import MIB, Epoch, Seq, ShardId
from basenet.wire.certificate import Certificate
from basenet.wire.envelope import PACK_RECORDS_MAX
from basenet.wire.frame import Frame, Head, decode_frame
from basenet.wire.payload import decode_config

_STRETCH_BYTES: Final = 8 * MIB
"""What is sent for one request; whoever needs more asks again when it has that."""
_PIECE_BYTES: Final = 15 * MIB

Piece = tuple[tuple[bytes, ...], Certificate | None]


def final_pieces(journal: Journal, shard: ShardId, above: Seq) -> list[Piece] | None:
    """Return the history above ``above``, as much as is sent at once.

    Each piece comes with what certifies its end: None where one voter's own frames need nothing.
    Empty when nothing is above ``above``; None when there is, and cannot be told any more.
    """
    pieces: list[Piece] = []
    size, seq = 0, Seq(above + 1)
    while size < _STRETCH_BYTES:
        rows = _read(journal, shard, seq)
        piece = _cut(journal, shard, rows) if rows else None
        if piece is None:
            break
        pieces.append(piece)
        size += sum(map(len, piece[0]))
        seq = Seq(seq + len(piece[0]))
    else:
        return pieces
    if pieces:
        return pieces
    return None if rows or journal.first_seq(shard) > seq else []


def _read(journal: Journal, shard: ShardId, seq: Seq) -> list[tuple[Head, bytes]]:
    """Return the frames from ``seq`` on that could be one piece, of one epoch."""
    rows: list[tuple[Head, bytes]] = []
    for _, record in journal.frames(shard, seq, seq + PACK_RECORDS_MAX - 1, _PIECE_BYTES):
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "the journal holds no frame of version 1"
        rows.append((frame.head, record))
    return list(takewhile(lambda row: row[0].epoch == rows[0][0].epoch, rows))


def _cut(journal: Journal, shard: ShardId, rows: list[tuple[Head, bytes]]) -> Piece | None:
    """Return as much of ``rows`` as is certified; None when nothing is."""
    certificate = _last_certificate(journal, shard, rows)
    if certificate is not None:
        rows = [row for row in rows if row[0].seq <= certificate.height]
    elif _has_one_voter(journal, shard, rows[0][0].epoch):
        # Each of its frames is final by itself, but a run only as a whole.
        while rows and rows[-1][0].is_partial:
            rows.pop()
    else:
        return None
    return (tuple(record for _, record in rows), certificate) if rows else None


def _last_certificate(
    journal: Journal, shard: ShardId, rows: list[tuple[Head, bytes]]
) -> Certificate | None:
    """Return the certificate of the highest of ``rows`` that has one."""
    found: Certificate | None = None
    (first, _), (end, _) = rows[0], rows[-1]
    seq = first.seq
    while seq <= end.seq:
        following = journal.certificate_for(shard, seq)
        if following is None or following.height > end.seq or following.epoch != first.epoch:
            break
        found = following
        seq = Seq(following.height + 1)
    return found


def _has_one_voter(journal: Journal, shard: ShardId, epoch: Epoch) -> bool:
    """Return whether one voter decided in ``epoch``, so that its frames need no certificate."""
    count = 0
    for record, _ in journal.config_chain(shard):
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "the journal holds no frame of version 1"
        config = decode_config(frame.payload)
        # The genesis is the first frame of its own epoch, any other CONFIG the last of one.
        is_genesis = frame.head.seq == first_seq(config)
        if frame.head.epoch + (not is_genesis) <= epoch:
            count = len(config.voters)
    return count == 1
