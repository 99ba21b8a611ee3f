"""A shard with peers: what its replica promised, the branch above what is final, and settling.

Theory of operation
===================

::

    frame log                          branch, by hash
    1 ... 40 | 41 ... 70          71 ── 72 ── 73 ── 74
    archived | final                ╲── 72'              place: what the database file holds,
                     tip ^                               a final frame or an own one in the branch

- `keep`: one step of the protocol. Frames enter the branch together with the ballot that speaks of
  them, so that a crash leaves all of a step or nothing.
- `settle`: the ballot has called frames final, in a transaction before. Now they move behind the
  log's end, inside SQLite, and with them everything that belongs to the final state: tip, leaf
  hashes, CONFIG, certificate, and the intent to inject them into the file. What lost against them
  goes. A settle never ends inside a PARTIAL run, so the log never does.
- `place` moves when the file has them: in the next transaction of the shard, and if a crash comes
  before, the intent tells (Q13).

Local numbers count the commits of this node alone (Q14). In the log frames of others have an empty
range, and a number is missing there when its commit is in an orphan bundle instead.

All of it happens within a transaction, on its connection.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import apsw

from basenet.engine.ballot import Ballot, first_seq
from basenet.errors import CorruptionError, UsageError
from basenet.journal import branch, certificates, schema, sealed
from basenet.journal.ballots import decode_ballot, encode_ballot
from basenet.journal.framelog import FrameLog, MovedRow, empty_log
from basenet.journal.records import CertifiedConfig, ReplicaRecord, Settled, Step
from basenet.units import FrameHash, LocalNumber, Seq, ShardId
from basenet.wire.certificate import Certificate
from basenet.wire.frame import Frame, Head, Kind, decode_frame, decode_head, encode_head
from basenet.wire.merkle import group_count
from basenet.wire.payload import decode_config, encode_config

Place = tuple[Seq, FrameHash]
# The columns that are a field of `ReplicaRecord` under the same name.
_FACTS: Final = (
    "path",
    "lineage",
    "config",
    "page_size",
    "db_pages",
    "cursor",
    "archived_seq",
    "broken_seq",
    "snapshot_seq",
    "snapshot_ns",
)
_RECORD: Final = (
    f"SELECT tip, ballot, place_seq, place_hash, intent, replica.local_last, {', '.join(_FACTS)} "  # noqa: S608  (constants)
    "FROM shard JOIN replica USING (number) WHERE number = ?"
)


def begin(
    connection: apsw.Connection,
    number: int,
    *,
    ballot: Ballot,
    place: Place,
    local_last: LocalNumber,
) -> None:
    """Make the shard one with peers."""
    connection.execute(
        "INSERT INTO replica VALUES (?, ?, ?, ?, NULL, ?)",
        (number, _close(ballot), *place, local_last),
    )


def forget(connection: apsw.Connection, number: int) -> None:
    """Drop all that only a shard with peers has, and the line of CONFIGs: a lineage has ended."""
    for table in ("certificate", "config"):
        connection.execute(
            f"DELETE FROM {table} WHERE id BETWEEN ? AND ?",  # noqa: S608  (our own constants)
            schema.frame_ids(number),
        )
    branch.drop_frames(connection, number)
    connection.execute("DELETE FROM replica WHERE number = ?", (number,))


def require_genesis(
    connection: apsw.Connection, number: int, shard: ShardId, config: bytes
) -> None:
    """Raise `UsageError` unless the line of CONFIGs begins with the genesis of ``config``."""
    seq = first_seq(decode_config(config))
    row_id = schema.frame_id(number, seq)
    if not list(connection.execute("SELECT 1 FROM config WHERE id = ?", (row_id,))):
        raise UsageError(
            f"the journal does not hold the genesis of shard {shard} (frame {seq}) any more, which "
            "every new member asks for: begin a child lineage instead (`members init`)."
        )


def keep(connection: apsw.Connection, log: FrameLog, step: Step) -> None:
    """Make one step of the replica durable."""
    local_last = _local_last(connection, log.number)
    local_last = branch.keep_frames(
        connection, log.number, step.frames, final=log.seq_last, local_last=local_last
    )
    if step.ballot is not None:
        set_ballot(connection, log.number, step.ballot)
    set_place(
        connection,
        log.number,
        step.place,
        cursor=step.cursor,
        local_last=LocalNumber(max(local_last, step.local_last or 0)),
    )


def set_ballot(connection: apsw.Connection, number: int, ballot: Ballot) -> None:
    """Keep what the replica promised."""
    connection.execute("UPDATE replica SET ballot = ? WHERE number = ?", (_close(ballot), number))


def set_intent(connection: apsw.Connection, number: int, intent: bytes | None) -> None:
    """Keep what is to be injected into the file; None: nothing."""
    connection.execute("UPDATE replica SET intent = ? WHERE number = ?", (intent, number))


def set_place(
    connection: apsw.Connection,
    number: int,
    place: Place | None,
    *,
    cursor: bytes | None,
    local_last: LocalNumber | None,
) -> None:
    """Keep what the file holds, where capture stands and what is accounted for; None: as it was."""
    connection.execute(
        "UPDATE replica SET place_seq = coalesce(?, place_seq), "
        "place_hash = coalesce(?, place_hash), local_last = max(local_last, coalesce(?, 0)) "
        "WHERE number = ?",
        (*(place or (None, None)), local_last, number),
    )
    assert connection.changes() == 1, "a shard without peers steps as if it had some"
    if cursor is not None:
        connection.execute("UPDATE shard SET cursor = ? WHERE number = ?", (cursor, number))


def settle(connection: apsw.Connection, log: FrameLog, settled: Settled) -> FrameLog:
    """Move frames that are final into the log, with the state behind them."""
    number, heads = log.number, settled.heads
    if heads:
        _check_chain(connection, log, heads)
        log = log.move(connection, _find(connection, number, heads))
        _settle_proofs(connection, number, settled)
        config = _last_config(connection, number, heads)
        branch.drop_frames(connection, number, heads[-1].seq)
        connection.execute(
            "UPDATE shard SET tip = ?, config = coalesce(?, config), local_last = ? "
            "WHERE number = ?",
            (encode_head(heads[-1]), config, log.local_last, number),
        )
    set_state(connection, number, settled.page_size, settled.db_pages, settled.groups)
    set_place(connection, number, settled.place, cursor=settled.cursor, local_last=None)
    set_intent(connection, number, settled.intent)
    return log


def set_state(
    connection: apsw.Connection,
    number: int,
    page_size: int,
    db_pages: int,
    groups: Mapping[int, bytes],
) -> None:
    """Write the changed groups of leaf hashes, and drop those behind the end."""
    connection.execute(
        "UPDATE shard SET page_size = ?, db_pages = ? WHERE number = ?",
        (page_size, db_pages, number),
    )
    connection.executemany(
        "INSERT OR REPLACE INTO leaf VALUES (?, ?)",
        ((schema.leaf_id(number, group), hashes) for group, hashes in groups.items()),
    )
    connection.execute(
        "DELETE FROM leaf WHERE id BETWEEN ? AND ?",
        schema.leaf_ids(number, group_count(db_pages)),
    )


def jump(
    connection: apsw.Connection,
    log: FrameLog,
    *,
    tip: Head,
    certificate: Certificate | None,
    configs: Sequence[CertifiedConfig],
    ballot: Ballot,
) -> FrameLog:
    """Let the final state be the one behind ``tip``, which came from elsewhere."""
    assert not tip.is_partial, "a state inside a run"
    assert tip.seq > log.seq_last, "a jump back"
    number = log.number
    connection.execute("DELETE FROM frame WHERE id BETWEEN ? AND ?", schema.frame_ids(number))
    certificates.keep_configs(connection, number, configs)
    if certificate is not None:
        certificates.keep_certificate(connection, number, certificate, tip)
    branch.drop_frames(connection, number, tip.seq)
    connection.execute(
        "UPDATE shard SET tip = ?, config = ? WHERE number = ?",
        (encode_head(tip), encode_config(ballot.config), number),
    )
    set_ballot(connection, number, ballot)
    set_intent(connection, number, None)
    return empty_log(number, tip.seq, log.local_last)


def load(connection: apsw.Connection, number: int, shard: ShardId) -> ReplicaRecord | None:
    """Return what is known of a shard with peers, None of another one.

    Raises `CorruptionError` when anything is not what was written, or does not fit together.
    """
    rows = list(connection.execute(_RECORD, (number,)))
    if not rows:
        return None
    ((encoded_tip, ballot, seq, digest, intent, local_last, *facts),) = rows
    tip = decode_head(encoded_tip)
    if not tip.is_signed_by_author():
        raise CorruptionError("nobody signed its tip")
    heads = branch.load_heads(connection, number)
    if heads and heads[0].seq <= tip.seq:
        raise CorruptionError(f"frame {heads[0].seq} is final and waits to become it")
    return ReplicaRecord(
        shard=shard,
        ballot=decode_ballot(sealed.reopen(ballot, "its ballot")),
        tip=tip,
        heads=heads,
        configs=branch.load_configs(connection, number, heads),
        place=(Seq(seq), FrameHash(digest)),
        intent=intent,
        local_last=LocalNumber(local_last),
        **dict(zip(_FACTS, facts, strict=True)),
    )


# Inside.


def _close(ballot: Ballot) -> bytes:
    return sealed.close(encode_ballot(ballot))


def _local_last(connection: apsw.Connection, number: int) -> LocalNumber:
    rows = list(connection.execute("SELECT local_last FROM replica WHERE number = ?", (number,)))
    assert rows, "a shard without peers steps as if it had some"
    return LocalNumber(rows[0][0])


def _check_chain(connection: apsw.Connection, log: FrameLog, heads: Sequence[Head]) -> None:
    ((encoded,),) = connection.execute("SELECT tip FROM shard WHERE number = ?", (log.number,))
    tip = decode_head(encoded)
    assert log.seq_last == tip.seq, "the log of a shard with peers ends inside a run"
    for before, after in pairwise((tip, *heads)):
        assert after.seq == before.seq + 1, "a gap between two final frames"
        assert after.prev_hash == before.hash, "two histories in one log"
    assert not heads[-1].is_partial, "a settle ends inside a run"


def _find(connection: apsw.Connection, number: int, heads: Sequence[Head]) -> list[MovedRow]:
    found = []
    for head in heads:
        rows = list(
            connection.execute(
                "SELECT id, length(record), local_first, local_last FROM branch "
                "WHERE number = ? AND hash = ?",
                (number, head.hash),
            )
        )
        assert rows, "a frame settles that is not in the branch"
        ((row_id, size, first, last),) = rows
        found.append(MovedRow(head, row_id, size, first, last))
    return found


def _settle_proofs(connection: apsw.Connection, number: int, settled: Settled) -> None:
    certificate = settled.certificate
    proven = None
    for head in settled.heads:
        if head.kind == Kind.CONFIG:
            certificates.keep_settled_config(connection, number, head, certificate)
        if certificate is not None and certificate.hash == head.hash:
            proven = head
    if certificate is not None:
        assert proven is not None, "a certificate of a frame that does not settle with it"
        certificates.keep_certificate(connection, number, certificate, proven)


def _last_config(connection: apsw.Connection, number: int, heads: Sequence[Head]) -> bytes | None:
    found = [head for head in heads if head.kind == Kind.CONFIG]
    return branch.read_config(connection, number, found[-1].hash)[0] if found else None


def genesis_payload(record: bytes) -> bytes:
    """Return the CONFIG payload of an encoded genesis."""
    frame = decode_frame(record)
    assert isinstance(frame, Frame), "a genesis of version 1"
    assert frame.head.kind == Kind.CONFIG, "a genesis without a CONFIG"
    return frame.payload
