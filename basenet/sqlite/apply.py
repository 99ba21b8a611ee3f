"""A replica's database: final changes go in, the log stays short, readers are never blocked.

Theory of operation
===================

Final changes arrive in batches. Several of them become visible at once anyway, so a batch is merged
first: of each page only the last image is written. Before anything is written the caller journals
where the log stands and where it will stand (`Applier.prepare` tells both), so that after a crash
the two can be told from a stranger's commit (Q13)::

    the header is as before      apply it
    the header is as after       it was applied, only the watermark was lost
    anything else                somebody else wrote here

The log is copied to the database file whenever it has `_CHECKPOINT_FRAMES`, by SQLite itself on our
connection: PASSIVE, which needs no write lock and waits for nobody. When all of it is copied and no
reader needs it, it begins anew.

Readers that come and go beside a stream of batches leave no such moment: whenever one of them ends,
another one has begun behind the batch before the last, from where no more may be copied. So once
the log has `LONG_BYTES` nothing is applied for as long as readers mostly last (`make_way`): then
all of them read at the end of the log, all of it is copied, those who come next do not need it, and
it begins anew as soon as the others have ended. A reader that stays keeps it growing: that is told,
not forbidden, and waited for ever more seldom.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto, unique
from pathlib import Path
from typing import Final

import apsw
import numpy as np

from basenet.errors import UnavailableError
from basenet.sqlite.attach import Database
from basenet.sqlite.inject import Injector, Position, Prepared, Transaction
from basenet.sqlite.pages import PageView
from basenet.sqlite.walformat import frame_bytes
from basenet.units import MIB
from basenet.wire.payload import CommitPayload

_CHECKPOINT_BYTES: Final = 4 * MIB
LONG_BYTES: Final = 32 * MIB
WAIT_S: Final = 0.5
_LOOK_S: Final = 0.005
_WAIT_EVERY_S: Final = 5.0
_WAIT_EVERY_S_MAX: Final = 300.0


@unique
class Found(Enum):
    """What the log tells of a batch whose end was not journalled."""

    NOT_APPLIED = auto()
    APPLIED = auto()
    FOREIGN = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """How long the log is and how much of it the database file holds, in bytes of frames."""

    log_bytes: int
    waiting_bytes: int


class Applier:
    """Applies final changes to one attached database, while somebody holds its fence for us."""

    def __init__(
        self,
        database: Database,
        *,
        durable: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin to apply to ``database``, whose connections are used for checkpoints.

        ``durable``: a batch is on the disk when `apply` returns. ``clock``: monotonic seconds.
        Raises `UnavailableError`, and `ForeignCommit` if the log's header cannot be repaired; let
        go of the database then.
        """
        self._clock, self._sleep = clock, sleep
        self._wait_at_s, self._wait_every_s = clock(), _WAIT_EVERY_S
        self._database = database
        self._durable = durable
        real = Path(os.path.realpath(database.path))
        self._injector = Injector(real, page_size=database.page_size)
        try:
            self._injector.repair()
        except BaseException:
            # The database's connections are open: closing a descriptor drops their locks, and the
            # caller, who is refused, closes all of them next.
            self._injector.close()
            raise

    def _free_connection(self) -> apsw.Connection | None:
        """Return a connection that no read transaction of a capture occupies."""
        return next((each for each in self._database.connections if not each.in_transaction), None)

    def position(self) -> Position:
        """Return where the log ends; raises `ForeignCommit` while its header is torn."""
        return self._injector.position()

    @property
    def is_begun(self) -> bool:
        """Whether this generation of the log has frames, so that `prepare` touches no file."""
        return self._injector.position().frame_max > 0

    def prepare(self, changes: Sequence[Iterable[CommitPayload]]) -> Prepared:
        """Return ``changes``, consecutive and each a run of pieces, as one batch to be journalled.

        Small ones are merged; a large one keeps its pieces.
        """
        return self.prepare_merged(merge(changes, self._database.page_size))

    def prepare_merged(self, transactions: Sequence[Transaction]) -> Prepared:
        """Return ``transactions``, with a page at least, as one batch to be journalled."""
        before = self._injector.begin(durable=self._durable)
        return self._injector.prepare(before, transactions)

    @property
    def is_read_only(self) -> bool:
        """Whether page 1 is written with the read-only mark from now on (`page1`)."""
        return self._injector.is_read_only

    @is_read_only.setter
    def is_read_only(self, is_read_only: bool) -> None:
        self._injector.is_read_only = is_read_only

    def prepare_mark(self, *, is_read_only: bool) -> Prepared:
        """Return page 1 as it is now, but for the mark, as one batch to be journalled.

        Once it is applied the caller sets `is_read_only`. Raises `UnavailableError` and
        `CorruptionError`.
        """
        with PageView(self._database) as view:
            page = next(bytes(block) for _, block in view.blocks(1, 1))
            change = Transaction(pieces=[(np.array([1], np.uint32), page)], db_pages=view.db_pages)
        was = self.is_read_only
        self.is_read_only = is_read_only
        try:
            return self.prepare_merged([change])
        finally:
            self.is_read_only = was

    def apply(self, batch: Prepared) -> None:
        """Write ``batch``; raises `ForeignCommit` or `UnavailableError`, nothing visible then."""
        self._injector.apply(batch, durable=self._durable)

    def tell(self, before: Position, after: Position) -> Found:
        """Return what became of a batch that was journalled with these two positions."""
        now = self.position()
        if now == after:
            return Found.APPLIED
        return Found.NOT_APPLIED if now == before else Found.FOREIGN

    def forget_tail(self) -> None:
        """Give up, for good, a batch that was written and did not become visible.

        Raises `UnavailableError`.
        """
        try:
            self._injector.forget_tail()
        except OSError as error:
            raise UnavailableError(
                f"the log of {self._database.path} cannot be written ({error.strerror})"
            ) from error

    def relieve(self, *, may_restart: bool = True) -> LogState:
        """Keep the log short, as far as readers allow; return its state.

        ``may_restart``: False while a batch is prepared, which names the end of the log. Raises
        `DatabaseReplaced` if the path is no longer our file.
        """
        size = frame_bytes(self._database.page_size)
        frames = self.position().frame_max
        if frames * size < _CHECKPOINT_BYTES:
            return LogState(log_bytes=frames * size, waiting_bytes=0)
        connection = self._free_connection()
        if connection is None:
            return LogState(log_bytes=frames * size, waiting_bytes=frames * size)
        result = self._database.checkpoint(connection)
        if result.is_complete and may_restart and self._injector.restart():
            return LogState(log_bytes=0, waiting_bytes=0)
        waiting = max(frames - result.backfilled, 0)
        return LogState(log_bytes=frames * size, waiting_bytes=waiting * size)

    def make_way(self) -> LogState:
        """`relieve`, and where the log has grown long wait a moment for its readers; return it.

        Nothing may be prepared, and nothing is applied meanwhile. Raises `DatabaseReplaced`.
        """
        state, now_s = self.relieve(), self._clock()
        if state.log_bytes < LONG_BYTES or now_s < self._wait_at_s:
            return state
        while state.log_bytes and self._clock() < now_s + WAIT_S:
            self._sleep(_LOOK_S)
            state = self.relieve()
        is_vain = state.log_bytes > 0
        every_s = min(2 * self._wait_every_s, _WAIT_EVERY_S_MAX) if is_vain else _WAIT_EVERY_S
        self._wait_at_s, self._wait_every_s = self._clock() + every_s, every_s
        return state

    def close(self) -> None:
        """Let go of the log; only after the database's connections are closed."""
        self._injector.close()


def merge(changes: Sequence[Iterable[CommitPayload]], page_size: int) -> list[Transaction]:
    """Return ``changes`` as transactions: neighbours of one piece become one, the last image wins.

    Every payload has the page size ``page_size``. Changes without a page are left out.
    """
    transactions: list[Transaction] = []
    small: list[CommitPayload] = []
    for change in changes:
        pieces = tuple(change)
        if len(pieces) == 1:
            small.append(pieces[0])
            continue
        transactions += _merged(small, page_size)
        small = []
        transactions.append(
            Transaction(
                pieces=[(piece.pgnos, piece.pages) for piece in pieces],
                db_pages=pieces[-1].db_pages,
            )
        )
    transactions += _merged(small, page_size)
    return transactions


def _merged(payloads: Sequence[CommitPayload], page_size: int) -> list[Transaction]:
    """Return one transaction of the last image of each page, or none without a page."""
    if len(payloads) == 1 and len(payloads[0].pgnos):
        # As most batches are: numbers ascend in a payload, so there is nothing to merge.
        (only,) = payloads
        if only.pgnos[-1] <= only.db_pages:
            return [Transaction(pieces=[(only.pgnos, only.pages)], db_pages=only.db_pages)]
    pgnos = np.concatenate([np.empty(0, np.uint32), *(each.pgnos for each in payloads)])
    if not len(pgnos):
        return []
    db_pages = payloads[-1].db_pages
    # Of equal numbers the first in reversed order is the last one.
    unique_pgnos, places = np.unique(pgnos[::-1], return_index=True)
    keep = unique_pgnos <= db_pages
    rows = len(pgnos) - 1 - places[keep]
    images = np.frombuffer(b"".join(each.pages for each in payloads), np.uint8)
    kept = images.reshape(-1, page_size)[rows]
    numbers = unique_pgnos[keep].astype(np.uint32)
    return [Transaction(pieces=[(numbers, kept.tobytes())], db_pages=db_pages)]
