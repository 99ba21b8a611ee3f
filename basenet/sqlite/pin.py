"""The pin: a read transaction that keeps SQLite from resetting the log under us.

Theory of operation
===================

A reader holds one of five read marks. On marks 1..4 it reads the log up to its mark: nothing behind
the mark is copied into the database file and the log is not reset. A reader that begins when
everything is copied holds mark 0 and ignores the log: that one *may* be reset at once, but nothing
of the generation that then begins is copied or reset while mark 0 is held.

To move the pin without a moment of no pin, begin a second read transaction, capture to the tip, end
the first: a reset needs every mark above 0, so all that could be overwritten is captured by then.
Which connection holds the pin alternates; the other one checkpoints.
"""

import os

import apsw

from basenet.sqlite import locks
from basenet.sqlite.attach import Database


class Pin:
    """At most one read transaction at rest, two while it moves."""

    __slots__ = ("_database", "_held", "_next", "mark")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: apsw.Connection | None = None
        self._next: apsw.Connection | None = None
        self.mark: int | None = None
        """Which of the read marks 0..4 the pin holds; None: no pin, or not to be told."""

    @property
    def is_held(self) -> bool:
        """Whether a read transaction is open."""
        return self._held is not None

    @property
    def free_connection(self) -> apsw.Connection:
        """The connection without a transaction, for checkpoints.

        While a pin is being moved there is none, and it is that of the newer transaction. A pin
        that was not held before it is moved leaves one, for `engage` in the midst of the move.
        """
        first, second = self._database.connections
        if self._held is None:
            return second if self._next is first else first
        return second if self._held is first else first

    def engage(self) -> bool:
        """Begin to read where the log ends now; return False if SQLite is busy. No-op when held."""
        if self._held is not None:
            return True
        connection = self.free_connection
        if not _begin(connection):
            return False
        self._held = connection
        self.mark = self._find_mark()
        return True

    def release(self) -> None:
        """End every read transaction of ours."""
        self.abandon_next()
        if self._held is not None:
            self._held.execute("rollback")
            self._held = None
        self.mark = None

    def begin_next(self) -> bool:
        """Begin a second read transaction where the log ends; return False if SQLite is busy."""
        assert self._next is None, "the pin is already being moved"
        connection = self.free_connection
        if not _begin(connection):
            return False
        self._next = connection
        return True

    def abandon_next(self) -> None:
        """End the second read transaction, if there is one, and stay where we are."""
        if self._next is not None:
            self._next.execute("rollback")
            self._next = None

    def complete_move(self) -> None:
        """End the first read transaction; the second is the pin from now on."""
        assert self._next is not None, "the pin is not being moved"
        if self._held is not None:
            self._held.execute("rollback")
        self._held, self._next = self._next, None
        self.mark = self._find_mark()

    def _find_mark(self) -> int | None:
        """Return which mark this process holds.

        A lock query names one holder per byte. Ours is certain if it is named; otherwise it hides
        behind another process's on the same byte, which tells only if one byte is left for it.
        """
        hidden = []
        for mark in range(locks.WAL_READ_MARKS):
            holder = locks.anyone(self._database.shm_fd, locks.WAL_READ_BYTE + mark)
            if holder is None:
                continue
            if holder.pid == os.getpid():
                return mark
            hidden.append(mark)
        return hidden[0] if len(hidden) == 1 else None


def _begin(connection: apsw.Connection) -> bool:
    try:
        connection.execute("begin")
        # Needs no schema, so it works for any schema and stays cheap when the schema changes.
        connection.execute("pragma schema_version").fetchall()
    except (apsw.BusyError, apsw.ProtocolError, apsw.LockedError):
        if connection.in_transaction:
            connection.execute("rollback")
        return False
    return True
