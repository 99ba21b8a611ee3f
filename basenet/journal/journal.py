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

A shard with peers has more to remember, and its frames wait in a branch until they are final: see
`journal.replica`. What is said here of frames is then said of the final ones.

``jcount`` grows with every transaction; a journal that comes back from a backup shows it. A journal
that was copied takes a new id (`journal.identity`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from basenet.engine.ballot import Ballot
from basenet.engine.birth_record import BirthRecord
from basenet.engine.liveness import Member
from basenet.errors import CorruptionError, FrameCorrupt, UsageError
from basenet.journal import births, branch, certificates, identity, orphans, peers, replica, schema
from basenet.journal.file import JournalBroken, JournalFile, damaged
from basenet.journal.framelog import FrameLog, empty_log, load_frame_logs, require_room
from basenet.journal.records import (
    Batch,
    CertifiedConfig,
    FrameRow,
    OrphanRow,
    PastRoot,
    ReplicaRecord,
    Settled,
    ShardRecord,
    Step,
)
from basenet.units import (
    GROUP_PAGES,
    HASH_BYTES,
    FrameHash,
    JournalId,
    Lineage,
    LocalNumber,
    PublicKeyBytes,
    Seq,
    ShardId,
)
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Flag, Head, decode_head, encode_head
from basenet.wire.merkle import group_count
from basenet.wire.payload import decode_config

__all__ = ["Journal", "JournalBroken"]

_GROUP_BYTES: Final = GROUP_PAGES * HASH_BYTES
_PAST_ROOTS_AT_ONCE: Final = 256
# Old certificates are many rows to count, so they are looked for now and then.
_SETTLES_PER_THINNING: Final = 512
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
        self._settles = 0
        try:
            self._identity = self._file.identify()
            with self._file.reading() as connection:
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

    # The journal itself

    @property
    def journal_id(self) -> JournalId:
        """The random name of this journal; a copy of it has another one."""
        return self._identity.journal_id

    @property
    def copied_from(self) -> JournalId | None:
        """The id of the journal that this one turned out to be a copy of when it was opened."""
        return self._identity.copied_from

    @property
    def jcount(self) -> int:
        """How many transactions are durable; of any thread."""
        return self._file.jcount

    def renew_id(self) -> JournalId:
        """Take a new id, as a journal that was rolled back must (Q9), and return it."""
        journal_id = identity.new_id()
        self._file.transact(lambda connection: identity.set_id(connection, journal_id))
        self._identity = identity.Identity(journal_id=journal_id, copied_from=None)
        return journal_id

    # Shards

    def load(self, shard: ShardId) -> ShardRecord | None:
        """Return what is known of ``shard``, before anything is written to it in this life.

        The PARTIAL frames of a run that a crash cut off are dropped first: nothing in such a run
        was final, and its cursor still stands in front of it. A run that is being written would be
        cut off, too: whoever only wants to know asks for the `record`.
        """
        record = self.record(shard)
        if record is None:
            return None
        log = self._logs[shard]
        if log.seq_last > log.seq_whole:
            self._logs[shard] = self._file.transact(
                lambda connection: self._shrunk(log.cut_open_run(connection, record.local_last))
            )
        return record

    def record(self, shard: ShardId) -> ShardRecord | None:
        """Return what is known of ``shard``; None before its genesis is stored."""
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
            empty = _begin(
                connection,
                number,
                genesis,
                facts=(shard, path, lineage, config, batch.page_size, batch.db_pages),
                certificate=None,
            )
            return self._shrunk(_write_batch(connection, empty, batch))

        self._logs[shard] = self._file.transact(write)

    def forget_cursor(self, shard: ShardId) -> None:
        """Make the next attach compare the whole file with the leaf hashes."""
        self._update(shard, "cursor = NULL, detached = NULL", ())

    def store(self, batches: Sequence[Batch]) -> None:
        """Make all ``batches`` durable in one transaction."""
        self.write(batches)

    # Shards with peers

    def begin_replica(
        self,
        *,
        shard: ShardId,
        path: str,
        genesis: FrameRow,
        certificate: Certificate | None,
        ballot: Ballot,
        page_size: int,
        db_pages: int,
        groups: Mapping[int, bytes],
        place: tuple[Seq, FrameHash],
        cursor: bytes | None,
        local_last: LocalNumber,
    ) -> None:
        """Store a genesis that is known, with what proves it, and the state that it starts from.

        ``certificate``: the consent of its voters. Everything that an earlier lineage of the shard
        left in the journal goes, but for orphan bundles and the birth. ``local_last`` is that of
        the earlier one, if there was one: local numbers are never used twice. Raises as
        `begin_lineage`.
        """
        before = self._logs.get(shard)
        config = replica.genesis_payload(genesis.record)
        lineage = decode_config(config).lineage

        def write(connection: apsw.Connection) -> FrameLog:
            number = before.number if before else _next_number(connection)
            empty = _begin(
                connection,
                number,
                genesis,
                facts=(shard, path, lineage, config, page_size, db_pages),
                certificate=certificate,
            )
            log = self._shrunk(empty.append(connection, [genesis]))
            replica.begin(connection, number, ballot=ballot, place=place, local_last=local_last)
            replica.set_state(connection, number, page_size, db_pages, groups)
            replica.set_place(connection, number, None, cursor=cursor, local_last=None)
            return log

        self._logs[shard] = self._file.transact(write)

    def adopt_replica(
        self,
        shard: ShardId,
        *,
        ballot: Ballot,
        place: tuple[Seq, FrameHash],
        configs: Sequence[CertifiedConfig] = (),
    ) -> None:
        """Make a shard that had no peers one that has; its frames, state and cursor stay (Q22).

        The pieces of an unfinished run go. ``configs``: the CONFIG frames since the genesis, where
        the journal of an older program does not hold them any more. Raises `UsageError` when the
        genesis is missing even so.
        """
        log = self._logs[shard]

        def write(connection: apsw.Connection) -> FrameLog:
            ((config, local_last),) = connection.execute(
                "SELECT config, local_last FROM shard WHERE number = ?", (log.number,)
            )
            certificates.keep_configs(connection, log.number, configs)
            replica.require_genesis(connection, log.number, shard, config)
            replica.begin(connection, log.number, ballot=ballot, place=place, local_last=local_last)
            if log.seq_last == log.seq_whole:
                return log
            return self._shrunk(log.cut_open_run(connection, local_last))

        self._logs[shard] = self._file.transact(write)

    def jump(
        self,
        shard: ShardId,
        *,
        tip: Head,
        certificate: Certificate | None,
        ballot: Ballot,
        page_size: int,
        db_pages: int,
        groups: Mapping[int, bytes],
        configs: Sequence[CertifiedConfig] = (),
    ) -> None:
        """Let the final state be one that came from elsewhere, verified: that behind ``tip``.

        The log begins anew above it, and the branch keeps what lies above it. ``groups``: all
        leaf hashes of that state. ``configs``: the line of CONFIGs up to it, those that are
        held already may be among them. Place and cursor stay: the file is mended afterwards.
        """
        log = self._logs[shard]

        def write(connection: apsw.Connection) -> FrameLog:
            after = replica.jump(
                connection, log, tip=tip, certificate=certificate, configs=configs, ballot=ballot
            )
            connection.execute(
                "DELETE FROM leaf WHERE id BETWEEN ? AND ?", schema.leaf_ids(log.number)
            )
            replica.set_state(connection, log.number, page_size, db_pages, groups)
            return self._shrunk(after)

        self._logs[shard] = self._file.transact(write)

    def keep(self, steps: Sequence[Step]) -> None:
        """Make all ``steps`` durable in one transaction.

        A frame that is held already, or is at or below the final one, is left as it is.
        """
        self.write(steps)

    def settle(self, settled: Sequence[Settled]) -> None:
        """Let frames of the branch become final ones, of all shards in one transaction.

        What lost against them goes. Raises `UsageError` for a seq that is too high.
        """
        self.write(settled)

    def write(self, works: Sequence[Batch | Step | Settled]) -> None:
        """Make all ``works`` durable in one transaction, in this order."""
        settles = sum(isinstance(work, Settled) for work in works)
        is_thinning = (self._settles + settles) // _SETTLES_PER_THINNING > (
            self._settles // _SETTLES_PER_THINNING
        )

        def write(connection: apsw.Connection) -> dict[ShardId, FrameLog]:
            logs: dict[ShardId, FrameLog] = {}
            for work in works:
                log = logs.get(work.shard) or self._logs[work.shard]
                logs[work.shard] = _write(connection, log, work)
            if is_thinning:
                for log in self._logs.values():
                    certificates.thin_certificates(connection, log.number)
            return logs

        self._logs |= self._file.transact(write)
        self._settles += settles

    def set_place(
        self,
        shard: ShardId,
        place: tuple[Seq, FrameHash] | None,
        *,
        cursor: bytes | None,
        local_last: LocalNumber | None,
        intent: bytes | None,
    ) -> None:
        """Say what the database file holds now; None: as it was, but no ``intent`` is none."""
        number = self._logs[shard].number

        def write(connection: apsw.Connection) -> None:
            replica.set_place(connection, number, place, cursor=cursor, local_last=local_last)
            replica.set_intent(connection, number, intent)

        self._file.transact(write)

    # Births, peers, orphans

    def keep_birth(self, shard: ShardId, birth: BirthRecord) -> None:
        """Keep what this node promised about the birth of ``shard``."""
        self._file.transact(lambda connection: births.keep_birth(connection, shard, birth))

    def remember_peer(self, key: PublicKeyBytes, journal_id: JournalId, jcount: int) -> None:
        """Raise the highest count that was heard of a journal; a lower one changes nothing."""
        self._file.transact(
            lambda connection: peers.remember_peer(connection, key, journal_id, jcount)
        )

    def remember_peers(self, counts: Iterable[tuple[Member, int]]) -> None:
        """Remember exactly these counts, the journal heard of for longest first (`KeepRoster`)."""
        self._file.transact(lambda connection: peers.replace_peers(connection, counts))

    def add_orphan(self, orphan: OrphanRow) -> None:
        """Note an orphan bundle, which is durable; its commits are accounted for from now."""
        self._file.transact(lambda connection: orphans.add_orphan(connection, orphan))

    def set_orphan(self, identity: str, *, state: str) -> None:
        """Say what was decided about a bundle; raises `NotFoundError` if there is none."""
        self._file.transact(
            lambda connection: orphans.set_orphan(connection, identity, state=state)
        )

    # Reading

    def frames(
        self, shard: ShardId, start: int, end: int, bytes_max: int
    ) -> list[tuple[Seq, bytes]]:
        """Return the encoded frames ``start`` .. ``end``, at least one, up to ``bytes_max``.

        None of them if frame ``start`` is not held (any more).
        """
        with self._file.reading() as connection:
            return self._logs[shard].read(connection, start, end, bytes_max)

    final_frames = frames

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

    def count_branch_bytes(self) -> int:
        """Return how many bytes of frames above the final ones are held, of all shards."""
        with self._file.reading() as connection:
            ((size,),) = connection.execute("SELECT coalesce(sum(length(record)), 0) FROM branch")
            return int(size)

    # Reading of shards with peers

    def load_replica(self, shard: ShardId) -> ReplicaRecord | None:
        """Return what is known of a shard with peers; None of another one, or an unknown one."""
        log = self._logs.get(shard)
        if log is None:
            return None
        with self._judging(shard) as connection:
            return replica.load(connection, log.number, shard)

    def branch_frame(self, shard: ShardId, digest: FrameHash) -> bytes | None:
        """Return an encoded frame above the final one; None if it is not there (any more)."""
        with self._judging(shard) as connection:
            return branch.read_frame(connection, self._logs[shard].number, digest)

    def undecided_locals(self, shard: ShardId) -> tuple[LocalNumber, LocalNumber] | None:
        """Return the local numbers, first and last, in own frames above the final one; or None."""
        with self._judging(shard) as connection:
            return branch.read_locals(connection, self._logs[shard].number)

    def certificate_for(self, shard: ShardId, seq: int) -> Certificate | None:
        """Return the lowest certificate at or above ``seq`` in the epoch of that frame."""
        with self._judging(shard) as connection:
            return certificates.find_certificate(connection, self._logs[shard].number, seq)

    def last_certificate(self, shard: ShardId, first: int, last: int) -> Certificate | None:
        """Return the certificate of the highest frame of ``first`` .. ``last`` that has one."""
        with self._judging(shard) as connection:
            return certificates.find_last_certificate(
                connection, self._logs[shard].number, first, last
            )

    def config_chain(self, shard: ShardId) -> tuple[CertifiedConfig, ...]:
        """Return every CONFIG frame of the lineage since its genesis, and what proves it final."""
        with self._judging(shard) as connection:
            return certificates.load_config_chain(connection, self._logs[shard].number)

    def load_birth(self, shard: ShardId) -> BirthRecord:
        """Return what this node promised about the birth of ``shard``; empty if nothing."""
        with self._judging(shard) as connection:
            return births.load_birth(connection, shard)

    def peers(self) -> dict[Member, int]:
        """Return the highest counts that were heard, the journal heard of for longest first."""
        with self._file.reading() as connection:
            return peers.load_peers(connection)

    def orphans(self, shard: ShardId | None = None) -> tuple[OrphanRow, ...]:
        """Return the orphan bundles of ``shard``, or of all shards, oldest first."""
        with self._file.reading() as connection:
            return orphans.load_orphans(connection, shard)

    @contextmanager
    def _judging(self, shard: ShardId) -> Iterator[apsw.Connection]:
        """Lend a connection that sees one moment; what is wrong with what it reads is damage."""
        with self._file.reading() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            except (CorruptionError, TypeError, ValueError) as error:
                raise damaged(self.path, f"shard {shard}: {error}") from error
            finally:
                connection.execute("ROLLBACK")

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

    def trim(self, shard: ShardId, seq: int, *, keep_bytes: int) -> None:
        """Drop frames below ``seq`` that nobody waits for, but the newest ``keep_bytes``."""
        log = self._logs[shard]

        def write(connection: apsw.Connection) -> FrameLog:
            first = log.first_of_newest(connection, log.seq_whole, keep_bytes)
            return self._shrunk(log.cut_front(connection, min(first, seq)))

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


def _begin(
    connection: apsw.Connection,
    number: int,
    genesis: FrameRow,
    *,
    facts: tuple[ShardId, str, Lineage, bytes, int, int],
    certificate: Certificate | None,
) -> FrameLog:
    """Put a new lineage in the place of what the shard had; return its log, still empty."""
    require_room(genesis.head)
    for statement, ids in (
        ("DELETE FROM frame WHERE id BETWEEN ? AND ?", schema.frame_ids(number)),
        ("DELETE FROM leaf WHERE id BETWEEN ? AND ?", schema.leaf_ids(number)),
        ("DELETE FROM shard WHERE number = ?", (number,)),
    ):
        connection.execute(statement, ids)
    replica.forget(connection, number)
    head = genesis.head
    connection.execute(
        "INSERT INTO shard (number, shard, path, lineage, config, page_size, db_pages, "
        "tip, local_last, archived_seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (number, *facts, encode_head(head), genesis.local_last, head.prev_seq),
    )
    certificates.keep_config(connection, number, head.seq, genesis.record, certificate)
    return empty_log(number, head.prev_seq, LocalNumber(genesis.local_first - 1))


def _write(connection: apsw.Connection, log: FrameLog, work: Batch | Step | Settled) -> FrameLog:
    if isinstance(work, Batch):
        return _write_batch(connection, log, work)
    if isinstance(work, Settled):
        return replica.settle(connection, log, work)
    replica.keep(connection, log, work)
    return log


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
