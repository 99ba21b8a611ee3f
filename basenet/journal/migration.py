"""A journal of an older program becomes one of this program, all of it or nothing.

First the file is copied, to ``journal.db.v<version>``: who goes back to the older program puts that
in the place of ``journal.db`` (and removes ``journal.db-wal`` and ``-shm``). When a program of this
version opens that once more, it is another journal (`journal.identity`): it has forgotten what came
after. So where the journal lies is noted before the copy is made.

Then one transaction adds what the new version has. A crash leaves the old journal, and perhaps a
copy, which is made again.

==========  ======================================================================================
from 1      tables for shards with peers; the genesis of each shard, where it is still held, becomes
            the first of its line of CONFIGs
==========  ======================================================================================
"""

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw

from basenet.engine.ballot import first_seq
from basenet.engine.roster import JournalPlace
from basenet.errors import UnavailableError, UsageError
from basenet.journal import certificates, identity, schema
from basenet.wire.payload import decode_config


def migrate(connection: apsw.Connection, path: Path, place: JournalPlace) -> None:
    """Bring the journal at ``path``, which lies at ``place``, up to this version.

    Raises SQLite's errors, `UsageError` and `UnavailableError` when it cannot be copied, and
    `FrameCorrupt` if a CONFIG does not decode; what is remembered of shards is unchanged then.
    """
    version = connection.pragma("user_version")
    with _transaction(connection):
        _, journal_id, recorded = identity.read(connection)
        if recorded is None:
            identity.record(connection, journal_id, place)
    copy = path.with_name(f"{path.name}.v{version}")
    try:
        _copy(connection, copy)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (UnavailableError if is_full else UsageError)(
            f"the journal {path} cannot be copied to {copy} ({error.strerror}), which an upgrade "
            "begins with: make room for the copy, then start again."
        ) from error
    with _transaction(connection):
        _add_tables(connection)
        connection.pragma("user_version", schema.VERSION)


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _copy(connection: apsw.Connection, path: Path) -> None:
    """Copy the database as its readers see it; the copy is whole under its name, or not there."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        closing(apsw.Connection(str(unfinished), flags=apsw.SQLITE_OPEN_READWRITE)) as copy,
        copy.backup("main", connection, "main") as backup,
    ):
        backup.step()
    _sync(unfinished)
    unfinished.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _add_tables(connection: apsw.Connection) -> None:
    for table in schema.SINCE_2:
        connection.execute(table)
    for number, config in list(connection.execute("SELECT number, config FROM shard")):
        seq = first_seq(decode_config(config))
        row_id = schema.frame_id(number, seq)
        for (record,) in list(
            connection.execute("SELECT record FROM frame WHERE id = ?", (row_id,))
        ):
            certificates.keep_config(connection, number, seq, record, None)
