"""What a node remembers of its shards: their frames, leaf hashes, cursors and watermarks.

Theory of operation
===================

A frame counts as stored when its transaction is durable, and `Journal.store` takes the batches of
all shards at once, so that many shards share one fdatasync. Frames, capture cursor and leaf hashes
go into one transaction: after a crash either a commit is framed and the cursor stands behind it, or
it is neither and is captured again from the application's WAL::

    seq      1 ...... 40 | 41 ...... 70 | 71 ...... 90 | 91 ... 94
             dropped     | archived,    | waits for    | pieces of a PARTIAL run: tip, cursor and
                         | kept to mend | the archive  | leaf hashes still stand at 90

``jcount`` grows with every transaction; a journal that comes back from a backup shows it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import apsw

from basenet.errors import FrameCorrupt, UsageError
from basenet.journal import schema
from basenet.journal.file import JournalBroken, JournalFile, damaged
from basenet.journal.framelog import FrameLog, empty_log, load_frame_logs
from basenet.journal.records import Batch, PastRoot, ShardRecord
from basenet.units import (
    GROUP_PAGES,
    HASH_BYTES,
    JournalId,
    Lineage,
    LocalNumber,
    Seq,
    ShardId,
)
from basenet.wire.frame import Flag, decode_head, encode_head
from basenet.wire.merkle import group_count

__all__ = ["Journal", "JournalBroken"]

_GROUP_BYTES: Final = GROUP_PAGES * HASH_BYTES
_PAST_ROOTS_AT_ONCE: Final = 256
# The columns that are a field of `ShardRecord` under the same name.
_FACTS: Final = (
    "path",
    "lineage",
    "config",
    "page_size",
    "db_pages",
    "cursor",
    "detached",
    "local_last",
    "archived_seq",
    "broken_seq",
    "snapshot_seq",
    "snapshot_ns",
)
_RECORD: Final = f"SELECT tip, {', '.join(_FACTS)} FROM shard WHERE number = ?"  # noqa: S608  (constants)


class Journal:
    """One node's journal; opened by at most one process at a time.

    What stands under "Reading" may be called by any thread at any time, everything else by one
    thread at a time.

    Everything raises `JournalBroken` when the process must end. What changes the journal raises
    `UnavailableError` when nothing was changed and trying again can help. What reads it raises
    `CorruptionError` when it is not what was written.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create the journal in ``directory``; raises what `JournalFile` raises."""
        self._file = JournalFile(directory)
        self.path = self._file.path
        try:
            with self._file.reading() as connection:
                ((journal_id,),) = list(
                    connection.execute("SELECT value FROM meta WHERE key = 'journal_id'")
                )
                self.journal_id = JournalId(journal_id)
                self._logs = load_frame_logs(connection)
        except (FrameCorrupt, TypeError, ValueError) as error:
            self.close()
            raise damaged(self.path, str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    # Shards

    def load(self, shard: ShardId) -> ShardRecord | None:
        """Return what is known of ``shard``; None before its genesis is stored.

        The PARTIAL frames of a run that a crash cut off are dropped first: nothing in such a run
        was final, and its cursor still stands in front of it.
        """
        log = self._logs.get(shard)
        if log is None:
            return None
        with self._file.reading() as connection:
            rows = list(connection.execute(_RECORD, (log.number,)))
        try:
            ((tip, *facts),) = rows
            record = ShardRecord(
                shard=shard, tip=decode_head(tip), **dict(zip(_FACTS, facts, strict=True))
            )
        except (FrameCorrupt, TypeError, ValueError) as error:
            raise damaged(self.path, f"shard {shard}: {error}") from error
        if not record.tip.is_signed_by_author():
            raise damaged(self.path, f"shard {shard}: nobody signed its tip")
        if log.seq_last > log.seq_whole:
            self._logs[shard] = self._file.transact(
                lambda connection: self._shrunk(log.cut_open_run(connection, record.local_last))
            )
        return record

    def _shrunk(self, log: FrameLog) -> FrameLog:
        self._file.give_back()
        return log

    def begin_lineage(
        self, *, shard: ShardId, path: str, lineage: Lineage, config: bytes, batch: Batch
    ) -> None:
        """Store a genesis: ``batch`` holds its frame and all leaf hashes of the adopted state.

        Everything that an earlier lineage of the shard left in the journal goes. Raises
        `UsageError` when the journal cannot hold one more shard or such a seq.
        """
        genesis = batch.frames[0]
        before = self._logs.get(shard)

        def write(connection: apsw.Connection) -> FrameLog:
            number = before.number if before else _next_number(connection)
            for statement, ids in (
                ("DELETE FROM frame WHERE id BETWEEN ? AND ?", schema.frame_ids(number)),
                ("DELETE FROM leaf WHERE id BETWEEN ? AND ?", schema.leaf_ids(number)),
                ("DELETE FROM shard WHERE number = ?", (number,)),
            ):
                connection.execute(statement, ids)
            connection.execute(
                "INSERT INTO shard (number, shard, path, lineage, config, page_size, db_pages, "
                "tip, local_last, archived_seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    shard,
                    path,
                    lineage,
                    config,
                    batch.page_size,
                    batch.db_pages,
                    encode_head(genesis.head),
                    genesis.local_last,
                    genesis.head.prev_seq,
                ),
            )
            local_last = LocalNumber(genesis.local_first - 1)
            empty = empty_log(number, genesis.head.prev_seq, local_last)
            return self._shrunk(_write_batch(connection, empty, batch))

        self._logs[shard] = self._file.transact(write)

    def forget_cursor(self, shard: ShardId) -> None:
        """Make the next attach compare the whole file with the leaf hashes."""
        self._update(shard, "cursor = NULL, detached = NULL", ())

    def store(self, batches: Sequence[Batch]) -> None:
        """Make all ``batches`` durable in one transaction."""

        def write(connection: apsw.Connection) -> dict[ShardId, FrameLog]:
            logs: dict[ShardId, FrameLog] = {}
            for batch in batches:
                log = logs.get(batch.shard) or self._logs[batch.shard]
                logs[batch.shard] = _write_batch(connection, log, batch)
            return logs

        self._logs |= self._file.transact(write)

    # Reading

    def frames(
        self, shard: ShardId, start: int, end: int, bytes_max: int
    ) -> list[tuple[Seq, bytes]]:
        """Return the encoded frames ``start`` .. ``end``, at least one, up to ``bytes_max``.

        None of them if frame ``start`` is not held (any more).
        """
        with self._file.reading() as connection:
            return self._logs[shard].read(connection, start, end, bytes_max)

    def frame_sizes(self, shard: ShardId, above: int) -> list[tuple[Seq, int]]:
        """Return (seq, bytes) of all stored frames above the seq ``above``, ascending."""
        with self._file.reading() as connection:
            return self._logs[shard].sizes(connection, above)

    def first_seq(self, shard: ShardId) -> Seq:
        """Return the oldest frame of ``shard`` that is held; the next one when there is none."""
        return self._logs[shard].seq_first

    def first_behind_oldest(self, shard: ShardId, bytes_min: int) -> Seq:
        """Return the seq that `drop_below` needs to free ``bytes_min``; the tip's at most."""
        with self._file.reading() as connection:
            return self._logs[shard].first_behind_oldest(connection, bytes_min)

    def leaves(self, shard: ShardId) -> bytearray:
        """Return all leaf hashes of ``shard``, 32 bytes a page."""
        number = self._logs[shard].number
        leaves, size = bytearray(), _GROUP_BYTES
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT id, hashes FROM leaf WHERE id BETWEEN ? AND ? ORDER BY id",
                schema.leaf_ids(number),
            )
            for index, (identity, hashes) in enumerate(rows):
                is_next = identity == schema.leaf_id(number, index)
                # All but the last group are whole.
                if not is_next or size != _GROUP_BYTES or len(hashes) % HASH_BYTES:
                    raise damaged(self.path, f"shard {shard}: page hashes are missing")
                leaves += hashes
                size = len(hashes)
        return leaves

    def past_roots(self, shard: ShardId) -> Iterator[PastRoot]:
        """Yield the states of the stored frames, newest first."""
        log = self._logs[shard]
        below = log.seq_last + 1
        while True:
            with self._file.reading() as connection:
                found = log.past_roots(connection, below, _PAST_ROOTS_AT_ONCE)
            if not found:
                return
            yield from found
            below = found[-1].seq

    def count_bytes(self, shard: ShardId | None = None) -> int:
        """Return how many bytes of frames the journal holds, of ``shard`` or of all shards."""
        if shard is not None:
            return self._logs[shard].size
        return sum(log.size for log in list(self._logs.values()))

    # Watermarks

    def set_archived(
        self, shard: ShardId, seq: int, *, keep_bytes: int = 0, keep_from: int | None = None
    ) -> None:
        """Move the archived watermark to ``seq`` and drop frames at or below it.

        The newest ``keep_bytes`` of them stay, to recognise and mend a file that fell behind, and
        those from ``keep_from`` on, for a snapshot that is being made.
        """
        log = self._logs[shard]

        def write(connection: apsw.Connection) -> FrameLog:
            connection.execute(
                "UPDATE shard SET archived_seq = max(archived_seq, ?) WHERE number = ?",
                (seq, log.number),
            )
            first = log.first_of_newest(connection, seq, keep_bytes)
            first_kept = first if keep_from is None else min(first, keep_from)
            return self._shrunk(log.cut_front(connection, first_kept))

        self._logs[shard] = self._file.transact(write)

    def drop_below(self, shard: ShardId, seq: int) -> None:
        """Drop the frames below ``seq``; if not all of them are archived, the archive is broken.

        The watermark of `set_broken` then moves up to the last of them in the same transaction, so
        that no crash leaves a gap that nobody knows of. The pieces of an unfinished run stay.
        """
        log = self._logs[shard]
        dropped_seq = min(seq - 1, log.seq_whole)

        def write(connection: apsw.Connection) -> FrameLog:
            connection.execute(
                "UPDATE shard SET broken_seq = max(coalesce(broken_seq, 0), ?) "
                "WHERE number = ? AND archived_seq < ?",
                (dropped_seq, log.number, dropped_seq),
            )
            return self._shrunk(log.cut_front(connection, seq))

        self._logs[shard] = self._file.transact(write)

    def set_broken(self, shard: ShardId, seq: int | None) -> None:
        """Say that frames up to ``seq`` were dropped before they were archived; None: mended."""
        self._update(shard, "broken_seq = ?", (seq,))

    def set_snapshot(self, shard: ShardId, seq: int, at_ns: int) -> None:
        """Remember the newest snapshot in the archive; a gap that ends below it is mended."""
        self._update(
            shard,
            "snapshot_seq = ?, snapshot_ns = ?, "
            "broken_seq = CASE WHEN broken_seq <= ? THEN NULL ELSE broken_seq END",
            (seq, at_ns, seq),
        )

    def _update(self, shard: ShardId, assignment: str, values: tuple[object, ...]) -> None:
        statement = f"UPDATE shard SET {assignment} WHERE number = ?"  # noqa: S608  (our own constant)
        bindings = (*values, self._logs[shard].number)
        self._file.transact(lambda connection: connection.execute(statement, bindings))


def _next_number(connection: apsw.Connection) -> int:
    ((last,),) = list(connection.execute("SELECT coalesce(max(number), 0) FROM shard"))
    if last >= schema.SHARD_NUMBER_MAX:
        raise UsageError(
            f"the journal has seen {schema.SHARD_NUMBER_MAX} shards and can hold no more: set "
            "BASE_DATA_DIR to a new directory; basenet then continues from the archive."
        )
    number: int = last + 1
    return number


def _write_batch(connection: apsw.Connection, log: FrameLog, batch: Batch) -> FrameLog:
    """Write one shard's frames, leaf hashes and new place; return what is held then."""
    after = log.append(connection, batch.frames)
    connection.executemany(
        "INSERT OR REPLACE INTO leaf VALUES (?, ?)",
        ((schema.leaf_id(log.number, group), hashes) for group, hashes in batch.groups.items()),
    )
    whole = [row for row in batch.frames if not row.head.flags & Flag.PARTIAL]
    if batch.frames and not whole:
        return after  # inside a run: nothing moves before its end
    tip = encode_head(whole[-1].head) if whole else None
    connection.execute(
        "UPDATE shard SET tip = coalesce(?, tip), local_last = coalesce(?, local_last), "
        "cursor = coalesce(?, cursor), detached = ?, page_size = ?, db_pages = ? WHERE number = ?",
        (
            tip,
            whole[-1].local_last if whole else None,
            batch.cursor,
            batch.detached,
            batch.page_size,
            batch.db_pages,
            log.number,
        ),
    )
    connection.execute(
        "DELETE FROM leaf WHERE id BETWEEN ? AND ?",
        schema.leaf_ids(log.number, group_count(batch.db_pages)),
    )
    return after
