"""A file that fell behind its own history, and how it gets its commits back (P7).

With synchronous=NORMAL a power loss takes commits from the application's file that capture had
already read, journalled and perhaps archived. A diff would then sign the loss as if somebody had
wanted it. So before a diff the state root of the file is looked up among the states that the chain
went through: if it is one of them, the file is *behind*, and the frames since are put back as an
ordinary log beside it, which the next connection recovers. Where that is not possible (somebody
has the file open, the journal no longer has the frames, the file was replaced by an older copy on
purpose) the diff is flagged REGRESSED, and told loudly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from basenet.journal.journal import Journal
from basenet.sqlite import recover
from basenet.sqlite.attach import Database, DetachedState, state_of
from basenet.sqlite.captured import Cursor
from basenet.sqlite.reinject import Missing, Reinjected, reinject
from basenet.units import MIB, Seq, ShardId
from basenet.wire.frame import Flag, Frame, Kind, decode_frame
from basenet.wire.merkle import StateTree
from basenet.wire.payload import decode_commit

_READ_BYTES_MAX = 8 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """The file is at the state after ``seq``; the chain's tip is ``tip_seq``.

    ``expected``, ``log``: what the file and its log looked like when that was found out.
    """

    seq: Seq
    tip_seq: Seq
    expected: DetachedState
    log: Cursor


def find_behind(
    journal: Journal, shard: ShardId, database: Database, tip_seq: Seq
) -> Behind | None:
    """Return where the file stands if that is an older state of the chain; None if it is not."""
    past: dict[bytes, Seq] = {}
    for root in journal.past_roots(shard):
        # A state may come again, and the newest time counts.
        past.setdefault(root.state_root, root.seq)
    if not past:
        return None
    scan = recover.scan(database)
    seq = past.get(StateTree(scan.page_size, scan.leaves).root())
    if seq is None or seq >= tip_seq:
        return None
    return Behind(
        seq=seq,
        tip_seq=tip_seq,
        expected=state_of(database.database_fd),
        log=scan.cursor,
    )


def give_back(journal: Journal, shard: ShardId, path: Path, behind: Behind) -> Reinjected:
    """Put the frames after ``behind.seq`` beside the file; nobody may have it open.

    Raises what `reinject` raises.
    """
    return reinject(
        path, _missing(journal, shard, behind), expected=behind.expected, log=behind.log
    )


def _missing(journal: Journal, shard: ShardId, behind: Behind) -> Iterator[Missing]:
    seq = behind.seq + 1
    while seq <= behind.tip_seq:
        rows = journal.frames(shard, seq, behind.tip_seq, _READ_BYTES_MAX)
        assert rows, "a state that is stored has all frames after it stored"
        for _, record in rows:
            frame = decode_frame(record)
            assert isinstance(frame, Frame), "the journal holds frames of version 2"
            if frame.head.kind is Kind.COMMIT:
                yield Missing(
                    payload=decode_commit(frame.payload),
                    is_partial=bool(frame.head.flags & Flag.PARTIAL),
                )
        seq += len(rows)
