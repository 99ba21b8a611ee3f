"""The journal file and its transactions.

Theory of operation
===================

A frame counts as stored when its transaction is durable: the file runs with synchronous=FULL in
WAL mode, so a commit is one fdatasync, and `store` takes the batches of all shards at once, so
that many shards share it. Frames, capture cursor and leaf hashes go into one transaction: after a
crash either a commit is framed and the cursor stands behind it, or it is neither and is captured
again from the application's WAL.

An I/O error or a failed fsync ends the process (`JournalBroken`): what the file then holds is
unknown, and nothing may be sent on the strength of it (P32). A full disk is different: SQLite
rolls the transaction back, so it can be tried again.

Two connections: one writes, one reads, and each is used by one thread at a time (the daemon's
duty). ``jcount`` grows with every transaction; a journal that comes back from a backup shows it.
"""

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import apsw

from basenet.errors import BasenetError, ConflictError, CorruptionError, UnavailableError
from basenet.journal import schema
from basenet.journal.records import Batch, PastRoot, ShardRecord
from basenet.units import (
    GROUP_PAGES,
    JournalId,
    Lineage,
    LocalNumber,
    Seq,
    ShardId,
    StateRoot,
    TimestampNs,
)
from basenet.wire.frame import Flag, decode_head, encode_head

_FILE_NAME: Final = "journal.db"
# Larger than SQLite's 1,000 pages: a checkpoint costs an fsync of the database file.
_AUTOCHECKPOINT_PAGES: Final = 4_000


class JournalBroken(BasenetError):  # noqa: N818  (the state it is in, like its siblings)
    """The journal cannot be trusted any more; the process must end."""


class Journal:
    """One node's journal; opened by at most one process at a time."""

    def __init__(self, directory: Path) -> None:
        """Open or create the journal in ``directory`` (created 0700).

        Raises `ConflictError` when another process has it open, `UsageError` when a newer
        program wrote it, `CorruptionError` when it is damaged.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = directory / _FILE_NAME
        self._lock_fd = _lock_directory(directory)
        try:
            self._writer = _connect(self.path)
            schema.prepare(self._writer, str(self.path))
            self._reader = _connect(self.path)
            self.journal_id = self._load_journal_id()
            rows = self._writer.execute("SELECT shard, number FROM shard")
            self._numbers: dict[ShardId, int] = {ShardId(name): number for name, number in rows}
        except (apsw.CorruptError, apsw.NotADBError) as error:
            os.close(self._lock_fd)
            raise CorruptionError(
                f"the journal {self.path} is damaged ({error}): move the data directory aside; "
                "basenet then continues from the archive as a child lineage."
            ) from error
        except BaseException:
            os.close(self._lock_fd)
            raise

    def close(self) -> None:
        """Close the file; idempotent."""
        self._reader.close()
        self._writer.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _load_journal_id(self) -> JournalId:
        rows = list(self._writer.execute("SELECT value FROM meta WHERE key = 'journal_id'"))
        if rows:
            return JournalId(rows[0][0])
        fresh = secrets.token_bytes(16)
        with self._writer:
            self._writer.execute("INSERT INTO meta VALUES ('journal_id', ?)", (fresh,))
            self._writer.execute("INSERT INTO meta VALUES ('jcount', 0)")
        return JournalId(fresh)

    # Shards

    def load(self, shard: ShardId) -> ShardRecord | None:
        """Return what is known of ``shard``; None before its genesis is stored.

        The PARTIAL frames of a run that a crash cut off are dropped first: nothing in such a run
        was final, and its cursor still stands in front of it.
        """
        number = self._numbers.get(shard)
        if number is None:
            return None
        self._drop_open_run(number)
        row = next(
            self._writer.execute(
                "SELECT path, lineage, config, page_size, db_pages, cursor, detached, tip, "
                "local_last, archived_seq, broken_seq, snapshot_seq, snapshot_ns "
                "FROM shard WHERE number = ?",
                (number,),
            )
        )
        return ShardRecord(
            shard=shard,
            path=row[0],
            lineage=Lineage(row[1]),
            config=row[2],
            page_size=row[3],
            db_pages=row[4],
            cursor=row[5],
            detached=row[6],
            tip=decode_head(row[7]),
            local_last=LocalNumber(row[8]),
            archived_seq=Seq(row[9]),
            broken_seq=None if row[10] is None else Seq(row[10]),
            snapshot_seq=Seq(row[11]),
            snapshot_ns=TimestampNs(row[12]),
        )

    def _drop_open_run(self, number: int) -> None:
        low, high = _range(number)
        with self._writer:
            self._writer.execute(
                "DELETE FROM frame WHERE id BETWEEN ? AND ? AND id > (SELECT coalesce(max(id), ?) "
                "FROM frame WHERE id BETWEEN ? AND ? AND flags & ? = 0) AND flags & ? != 0",
                (low, high, low, low, high, int(Flag.PARTIAL), int(Flag.PARTIAL)),
            )

    def begin_lineage(
        self, *, shard: ShardId, path: str, lineage: Lineage, config: bytes, batch: Batch
    ) -> None:
        """Store a genesis: ``batch`` holds its frame and all leaf hashes of the adopted state.

        Everything that an earlier lineage of the shard left in the journal goes.
        """
        genesis = batch.frames[0]

        def write() -> None:
            number = self._numbers.get(shard)
            if number is not None:
                self._writer.execute("DELETE FROM frame WHERE id BETWEEN ? AND ?", _range(number))
                self._writer.execute(
                    "DELETE FROM leaf WHERE id BETWEEN ? AND ?", _leaf_range(number)
                )
                self._writer.execute("DELETE FROM shard WHERE number = ?", (number,))
            self._writer.execute(
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
            self._numbers[shard] = self._writer.last_insert_rowid()
            self._write_batch(batch)

        self._transact(write)

    def forget_cursor(self, shard: ShardId) -> None:
        """Make the next attach compare the whole file with the leaf hashes."""
        self._update(shard, "cursor = NULL, detached = NULL", ())

    # The hot path

    def store(self, batches: Sequence[Batch]) -> None:
        """Make all ``batches`` durable in one transaction.

        Raises `UnavailableError` when the disk is full (nothing was stored, try again) and
        `JournalBroken` when the journal cannot be trusted any more.
        """

        def write() -> None:
            for batch in batches:
                self._write_batch(batch)

        self._transact(write)

    def _write_batch(self, batch: Batch) -> None:
        number = self._numbers[batch.shard]
        frame_base, leaf_base = number << schema.SEQ_BITS, number << schema.GROUP_BITS
        self._writer.executemany(
            "INSERT INTO frame VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    frame_base | row.head.seq,
                    int(row.head.flags),
                    row.local_first,
                    row.local_last,
                    row.head.state_root,
                    len(row.record),
                    row.record,
                )
                for row in batch.frames
            ),
        )
        self._writer.executemany(
            "INSERT OR REPLACE INTO leaf VALUES (?, ?)",
            ((leaf_base | group, hashes) for group, hashes in batch.groups.items()),
        )
        self._move_shard(number, leaf_base, batch)

    def _move_shard(self, number: int, leaf_base: int, batch: Batch) -> None:
        whole = [row for row in batch.frames if not row.head.flags & Flag.PARTIAL]
        if whole:
            self._writer.execute(
                "UPDATE shard SET tip = ?, local_last = ? WHERE number = ?",
                (encode_head(whole[-1].head), whole[-1].local_last, number),
            )
        if batch.cursor is None and batch.detached is None and not whole:
            return
        self._writer.execute(
            "UPDATE shard SET cursor = coalesce(?, cursor), detached = ?, page_size = ?, "
            "db_pages = ? WHERE number = ? ",
            (batch.cursor, batch.detached, batch.page_size, batch.db_pages, number),
        )
        groups = -(-batch.db_pages // GROUP_PAGES)
        self._writer.execute(
            "DELETE FROM leaf WHERE id BETWEEN ? AND ?",
            (leaf_base + groups, leaf_base | ((1 << schema.GROUP_BITS) - 1)),
        )

    # Reading

    def frames(
        self, shard: ShardId, start: int, end: int, bytes_max: int
    ) -> list[tuple[Seq, bytes]]:
        """Return the encoded frames ``start`` .. ``end``, at least one, up to ``bytes_max``."""
        out: list[tuple[Seq, bytes]] = []
        total = 0
        for row_id, record in self._reader.execute(
            "SELECT id, record FROM frame WHERE id BETWEEN ? AND ? ORDER BY id",
            (self._row_id(shard, start), self._row_id(shard, end)),
        ):
            if out and total + len(record) > bytes_max:
                break
            out.append((Seq(row_id & ((1 << schema.SEQ_BITS) - 1)), record))
            total += len(record)
        return out

    def frame_sizes(self, shard: ShardId, above: int) -> list[tuple[Seq, int]]:
        """Return (seq, bytes) of all stored frames above the seq ``above``, ascending."""
        low, high = self._row_id(shard, above + 1), _range(self._numbers[shard])[1]
        rows = self._reader.execute(
            "SELECT id, size FROM frame WHERE id BETWEEN ? AND ? ORDER BY id", (low, high)
        )
        return [(Seq(row_id & ((1 << schema.SEQ_BITS) - 1)), size) for row_id, size in rows]

    def leaves(self, shard: ShardId) -> bytes:
        """Return all leaf hashes of ``shard``, 32 bytes a page."""
        rows = self._reader.execute(
            "SELECT hashes FROM leaf WHERE id BETWEEN ? AND ? ORDER BY id",
            _leaf_range(self._numbers[shard]),
        )
        return b"".join(hashes for (hashes,) in rows)

    def past_roots(self, shard: ShardId) -> Iterator[PastRoot]:
        """Yield the states of the stored frames, newest first."""
        for row_id, root in self._reader.execute(
            "SELECT id, state_root FROM frame WHERE id BETWEEN ? AND ? "
            "AND flags & ? = 0 ORDER BY id DESC",
            (*_range(self._numbers[shard]), int(Flag.PARTIAL)),
        ):
            yield PastRoot(
                seq=Seq(row_id & ((1 << schema.SEQ_BITS) - 1)),
                state_root=StateRoot(root),
            )

    def count_bytes(self) -> int:
        """Return how many bytes of frames the journal holds, of all shards."""
        row = next(self._reader.execute("SELECT coalesce(sum(size), 0) FROM frame"))
        return int(row[0])

    # Watermarks

    def set_archived(
        self, shard: ShardId, seq: int, *, keep_bytes: int = 0, keep_from: int | None = None
    ) -> None:
        """Move the archived watermark to ``seq`` and drop frames at or below it.

        The newest ``keep_bytes`` of them stay, to recognise and mend a file that fell behind, and
        those from ``keep_from`` on, for a snapshot that is being made.
        """
        oldest_kept = self._oldest_kept(shard, seq, keep_bytes)
        first_kept = oldest_kept if keep_from is None else min(oldest_kept, keep_from)

        def write() -> None:
            number = self._numbers[shard]
            self._writer.execute(
                "UPDATE shard SET archived_seq = max(archived_seq, ?) WHERE number = ?",
                (seq, number),
            )
            self._writer.execute(
                "DELETE FROM frame WHERE id BETWEEN ? AND ?",
                (_range(number)[0], self._row_id(shard, first_kept - 1)),
            )

        self._transact(write)

    def _oldest_kept(self, shard: ShardId, seq: int, keep_bytes: int) -> int:
        kept, total = seq + 1, 0
        for row_id, size in self._writer.execute(
            "SELECT id, size FROM frame WHERE id BETWEEN ? AND ? ORDER BY id DESC",
            (_range(self._numbers[shard])[0], self._row_id(shard, seq)),
        ):
            total += size
            if total > keep_bytes:
                break
            kept = int(row_id) & ((1 << schema.SEQ_BITS) - 1)
        return kept

    def set_broken(self, shard: ShardId, seq: int | None) -> None:
        """Say that frames up to ``seq`` were dropped before they were archived; None: mended."""
        self._update(shard, "broken_seq = ?", (seq,))

    def set_snapshot(self, shard: ShardId, seq: int, at_ns: int) -> None:
        """Remember the newest snapshot in the archive."""
        self._update(shard, "snapshot_seq = ?, snapshot_ns = ?", (seq, at_ns))

    def drop_below(self, shard: ShardId, seq: int) -> None:
        """Drop the frames below ``seq`` whether or not they are archived."""

        def write() -> None:
            low = _range(self._numbers[shard])[0]
            self._writer.execute(
                "DELETE FROM frame WHERE id BETWEEN ? AND ?", (low, self._row_id(shard, seq - 1))
            )

        self._transact(write)

    def _update(self, shard: ShardId, assignment: str, values: tuple[object, ...]) -> None:
        def write() -> None:
            self._writer.execute(
                f"UPDATE shard SET {assignment} WHERE number = ?",  # noqa: S608  (our own constant)
                (*values, self._numbers[shard]),
            )

        self._transact(write)

    def _row_id(self, shard: ShardId, seq: int) -> int:
        return (int(self._numbers[shard]) << schema.SEQ_BITS) | seq

    def _transact(self, write: Callable[[], None]) -> None:
        try:
            with self._writer:
                write()
                self._writer.execute("UPDATE meta SET value = value + 1 WHERE key = 'jcount'")
        except apsw.FullError as error:
            raise UnavailableError(
                f"the disk of the journal {self.path} is full: free some space; nothing is lost, "
                "capture goes on by itself."
            ) from error
        except (apsw.IOError, apsw.CorruptError, apsw.NotADBError) as error:
            raise JournalBroken(
                f"the journal {self.path} failed ({error}): basenet ends here so that nothing is "
                "said on the strength of it; check the disk, then start it again."
            ) from error


def _range(number: int) -> tuple[int, int]:
    return number << schema.SEQ_BITS, ((number + 1) << schema.SEQ_BITS) - 1


def _leaf_range(number: int) -> tuple[int, int]:
    return number << schema.GROUP_BITS, ((number + 1) << schema.GROUP_BITS) - 1


def _connect(path: Path) -> apsw.Connection:
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(5_000)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "FULL")
    connection.pragma("wal_autocheckpoint", _AUTOCHECKPOINT_PAGES)
    connection.pragma("cache_size", -2_000)
    return connection


def _lock_directory(directory: Path) -> int:
    """Take the data directory for this process; raise `ConflictError` if another has it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConflictError(
            f"another basenet uses the data directory {directory}: stop it, or set BASE_DATA_DIR "
            "to another directory."
        ) from error
    return descriptor
