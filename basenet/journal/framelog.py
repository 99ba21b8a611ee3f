"""The frames that the journal holds of one shard: a log, cut at either end.

Theory of operation
===================

The frames are contiguous, in seq and in local numbers (Q14): they are appended behind the last one,
dropped from the front, and the pieces of an unfinished run are dropped from the back. Each row says
where it ends in the lineage's bytes, so that the size of any range is a difference of two rows, and
the frame at which so many bytes lie is found by bisection::

    seq          41       42         43   44
    bytes_end   900     1500       2300   2400
            |____|________|__________|____|
    bytes_begin 700                       bytes_end

Of a shard with peers the log holds the final frames, of any author. They come out of the branch by
`move`, and there local numbers may be missing: those of orphaned commits.

A `FrameLog` is a value: what it returns counts once the transaction is durable.
"""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from zlib import crc32

import apsw

from basenet.errors import CorruptionError, UsageError
from basenet.journal import schema
from basenet.journal.records import FrameRow, PastRoot
from basenet.units import LocalNumber, Seq, ShardId, StateRoot
from basenet.wire.frame import Flag, Head, decode_head

_PARTIAL: Final = int(Flag.PARTIAL)
_DELETE: Final = "DELETE FROM frame WHERE id BETWEEN ? AND ?"


class MovedRow(NamedTuple):
    """A row of the branch that becomes one of the log: which, how long, its local numbers."""

    head: Head
    row_id: int
    size: int
    local_first: int
    local_last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLog:
    """Which frames are held; none when ``seq_first`` is behind ``seq_last``.

    ``number``: the shard's in row ids. ``seq_whole``: the tip, behind which the pieces of an open
    run lie; also when the tip itself was dropped. ``local_last``: that of the last frame.
    """

    number: int
    seq_first: Seq
    seq_whole: Seq
    seq_last: Seq
    bytes_begin: int
    bytes_end: int
    local_last: LocalNumber

    @property
    def size(self) -> int:
        """The bytes of all frames held."""
        return self.bytes_end - self.bytes_begin

    # Changing: within a transaction, on its connection

    def append(self, connection: apsw.Connection, rows: Sequence[FrameRow]) -> "FrameLog":
        """Insert ``rows`` behind the last frame.

        Raises `UsageError` when their seqs are beyond what a row id can hold.
        """
        if not rows:
            return self
        require_room(rows[-1].head)
        local_last, bytes_end = self.local_last, self.bytes_end
        bindings = []
        for seq, row in enumerate(rows, self.seq_last + 1):
            assert row.head.seq == seq, "a gap between two frames of a shard"
            assert row.local_first == local_last + 1, "a commit stored twice or not at all"
            assert row.local_last >= local_last, "local numbers moved backwards"
            local_last = row.local_last
            bytes_end += len(row.record)
            bindings.append(
                (
                    schema.frame_id(self.number, seq),
                    int(row.head.flags),
                    row.local_first,
                    row.local_last,
                    bytes_end,
                    crc32(row.record),
                    row.head.state_root,
                    row.record,
                )
            )
        connection.executemany("INSERT INTO frame VALUES (?, ?, ?, ?, ?, ?, ?, ?)", bindings)
        whole = [row.head.seq for row in rows if not row.head.flags & Flag.PARTIAL]
        return replace(
            self,
            seq_whole=whole[-1] if whole else self.seq_whole,
            seq_last=rows[-1].head.seq,
            bytes_end=bytes_end,
            local_last=local_last,
        )

    def move(self, connection: apsw.Connection, rows: Sequence[MovedRow]) -> "FrameLog":
        """Copy ``rows`` of the branch behind the last frame, inside SQLite; the last one is whole.

        Raises `UsageError` when their seqs are beyond what a row id can hold.
        """
        require_room(rows[-1].head)
        local_last, bytes_end = self.local_last, self.bytes_end
        bindings = []
        for seq, row in enumerate(rows, self.seq_last + 1):
            assert row.head.seq == seq, "a gap between two frames of a shard"
            first, last = row.local_first, row.local_last
            if last < first:
                first, last = local_last + 1, local_last
            assert first > local_last, "local numbers moved backwards"
            local_last = LocalNumber(last)
            bytes_end += row.size
            bindings.append(
                (
                    schema.frame_id(self.number, seq),
                    int(row.head.flags),
                    first,
                    last,
                    bytes_end,
                    row.head.state_root,
                    row.row_id,
                )
            )
        connection.executemany(
            "INSERT INTO frame SELECT ?, ?, ?, ?, ?, crc, ?, record FROM branch WHERE id = ?",
            bindings,
        )
        return replace(
            self,
            seq_whole=rows[-1].head.seq,
            seq_last=rows[-1].head.seq,
            bytes_end=bytes_end,
            local_last=local_last,
        )

    def cut_front(self, connection: apsw.Connection, seq_first: int) -> "FrameLog":
        """Drop all frames below ``seq_first``, but no piece of an open run."""
        first = Seq(min(seq_first, self.seq_whole + 1))
        if first <= self.seq_first:
            return self
        bytes_begin = self._bytes_end(connection, first - 1)
        connection.execute(_DELETE, schema.frame_ids(self.number, last=first - 1))
        return replace(self, seq_first=first, bytes_begin=bytes_begin)

    def cut_open_run(self, connection: apsw.Connection, local_last: LocalNumber) -> "FrameLog":
        """Drop the pieces of an open run; ``local_last`` is that of the last whole frame."""
        is_empty = self.seq_whole < self.seq_first
        bytes_end = self.bytes_begin if is_empty else self._bytes_end(connection, self.seq_whole)
        connection.execute(_DELETE, schema.frame_ids(self.number, self.seq_whole + 1))
        return replace(self, seq_last=self.seq_whole, bytes_end=bytes_end, local_last=local_last)

    # Asking

    def first_of_newest(self, connection: apsw.Connection, seq: int, bytes_max: int) -> Seq:
        """Return the first of the newest frames up to ``seq`` that fit ``bytes_max`` together.

        That is the one behind ``seq`` when not even frame ``seq`` fits.
        """
        last = min(seq, self.seq_last)
        if last < self.seq_first:
            return self.seq_first
        return self._first_at(connection, self._bytes_end(connection, last) - bytes_max, last)

    def first_behind_oldest(self, connection: apsw.Connection, bytes_min: int) -> Seq:
        """Return the first frame behind the oldest ones that have ``bytes_min`` together.

        That is the tip at most, and the one behind it when not even the tip is held.
        """
        if self.seq_whole < self.seq_first:
            return self.seq_first
        first = self._first_at(connection, self.bytes_begin + bytes_min, self.seq_whole)
        return Seq(min(first, self.seq_whole))

    def _first_at(self, connection: apsw.Connection, place: int, last: int) -> Seq:
        """Return the first frame that begins at or behind ``place``, up to ``last`` + 1."""
        if place <= self.bytes_begin:
            return self.seq_first
        index = bisect_left(
            range(self.seq_first, last),
            place,
            key=lambda seq: self._bytes_end(connection, seq),
        )
        return Seq(self.seq_first + index + 1)

    def _bytes_end(self, connection: apsw.Connection, seq: int) -> int:
        row_id = schema.frame_id(self.number, seq)
        rows = list(connection.execute("SELECT bytes_end FROM frame WHERE id = ?", (row_id,)))
        if not rows:
            raise _rotten(seq, "it is missing")
        bytes_end: int = rows[0][0]
        return bytes_end

    # Reading: on any connection, whatever this value says of the ends

    def read(
        self, connection: apsw.Connection, start: int, end: int, bytes_max: int
    ) -> list[tuple[Seq, bytes]]:
        """Return the encoded frames ``start`` .. ``end``, at least one, up to ``bytes_max``.

        None if frame ``start`` is not held. Raises `CorruptionError` for a frame that reads back
        differently.
        """
        out: list[tuple[Seq, bytes]] = []
        size = 0
        with closing(
            connection.execute(
                "SELECT id, crc, record FROM frame WHERE id BETWEEN ? AND ? ORDER BY id",
                schema.frame_ids(self.number, start, end),
            )
        ) as rows:
            for row_id, crc, record in rows:
                seq = schema.seq_of(row_id)
                if not out and seq != start:
                    break
                size += len(record)
                if out and size > bytes_max:
                    break
                if seq != start + len(out) or crc32(record) != crc:
                    raise _rotten(start + len(out), "it reads back differently")
                out.append((seq, record))
        return out

    def sizes(self, connection: apsw.Connection, above: int) -> list[tuple[Seq, int]]:
        """Return (seq, bytes) of all frames above the seq ``above``, ascending."""
        rows = connection.execute(
            "SELECT id, length(record) FROM frame WHERE id BETWEEN ? AND ? ORDER BY id",
            schema.frame_ids(self.number, above + 1),
        )
        return [(schema.seq_of(row_id), size) for row_id, size in rows]

    def past_roots(self, connection: apsw.Connection, below: int, count: int) -> list[PastRoot]:
        """Return the states of the newest ``count`` whole frames below ``below``, newest first."""
        rows = connection.execute(
            "SELECT id, state_root FROM frame WHERE id BETWEEN ? AND ? AND flags & ? = 0 "
            "ORDER BY id DESC LIMIT ?",
            (*schema.frame_ids(self.number, last=below - 1), _PARTIAL, count),
        )
        return [
            PastRoot(seq=schema.seq_of(row_id), state_root=StateRoot(root)) for row_id, root in rows
        ]


def load_frame_logs(connection: apsw.Connection) -> dict[ShardId, FrameLog]:
    """Return what is held of each shard; raise `FrameCorrupt` if a tip does not decode."""
    rows = connection.execute(
        # The oldest and the newest row of a range of ids are found without reading the others.
        "SELECT shard, number, tip, shard.local_last, oldest.id, "
        "oldest.bytes_end - length(oldest.record), newest.id, newest.bytes_end, newest.local_last "
        "FROM shard "
        "LEFT JOIN frame AS oldest ON oldest.id = (SELECT min(id) FROM frame "
        "WHERE id BETWEEN number << 44 AND ((number + 1) << 44) - 1) "
        "LEFT JOIN frame AS newest ON newest.id = (SELECT max(id) FROM frame "
        "WHERE id BETWEEN number << 44 AND ((number + 1) << 44) - 1)"
    )
    logs = {}
    for shard, number, tip, local_last, *ends in rows:
        seq_whole = decode_head(tip).seq
        if ends[0] is None:
            logs[ShardId(shard)] = empty_log(number, seq_whole, local_last)
            continue
        oldest, bytes_begin, newest, bytes_end, newest_local = ends
        logs[ShardId(shard)] = FrameLog(
            number=number,
            seq_first=schema.seq_of(oldest),
            seq_whole=seq_whole,
            seq_last=schema.seq_of(newest),
            bytes_begin=bytes_begin,
            bytes_end=bytes_end,
            local_last=newest_local,
        )
    return logs


def empty_log(number: int, seq_last: Seq, local_last: LocalNumber) -> FrameLog:
    """Return the log of a shard of which no frame is held; the next one follows ``seq_last``."""
    return FrameLog(
        number=number,
        seq_first=Seq(seq_last + 1),
        seq_whole=seq_last,
        seq_last=seq_last,
        bytes_begin=0,
        bytes_end=0,
        local_last=local_last,
    )


def require_room(head: Head) -> None:
    """Raise `UsageError` if the seq of ``head`` is beyond what a row id can hold."""
    if head.seq > schema.SEQ_MAX:
        raise UsageError(
            f"frame {head.seq} of shard {head.shard} is beyond {schema.SEQ_MAX}, the last that a "
            "journal can hold: archive the database under another shard id."
        )


def _rotten(seq: int, what: str) -> CorruptionError:
    return CorruptionError(
        f"frame {seq} in the journal is damaged ({what}): move journal.db* in the data directory "
        "aside; basenet then continues from the archive as a child lineage."
    )
