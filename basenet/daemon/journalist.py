"""The one writer of the journal: all shards share its fsyncs, with peers or without.

Whoever has something to make durable hands it over and waits. While one transaction is being
synced the next ones gather and become one, so the rate of fsyncs is that of the disk and not that
of the commits. The application's WAL is synced in the same turn, before the journal (P7): a frame
never counts while the commit behind it could still be lost by SQLite.

Who is in no hurry says for how long (``patience_s``), and shares the transaction of whoever comes
next. What is asked for is done in the order of asking, and what a shard settles is never done when
the step in front of it was not: a log must not know more than the ballot.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final, TypeVar

import structlog
import trio

from basenet.daemon.hand import Hand
from basenet.errors import BasenetError, UnavailableError
from basenet.journal.journal import Journal, JournalBroken
from basenet.journal.records import Batch, Settled, Step
from basenet.units import ShardId

log = structlog.get_logger()

Result = TypeVar("Result")
_RETRY_S: Final = 1.0
_HEALTH_S: Final = 5.0


@dataclass(slots=True, eq=False)
class _Request:
    """What to store, or another act on the journal, and whoever waits for it.

    ``due_s``: when it is done at the latest, on trio's clock. ``after``: fails with this one.
    """

    work: Batch | Step | Settled | None
    act: Callable[[Journal], None] | None
    sync: Callable[[], None] | None
    due_s: float = 0.0
    after: "_Request | None" = None
    error: BasenetError | None = None
    is_withdrawn: bool = False
    done: trio.Event = field(default_factory=trio.Event)


class Journalist:
    """Owns the journal's writing connection; the only place that uses it after start."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.error: str | None = None
        self._requests: list[_Request] = []
        self._taken: list[_Request] = []
        self._wake = trio.Event()
        self._withdrawn = trio.Event()
        self._last_steps: dict[ShardId, _Request] = {}
        self.asked_bytes = 0
        """How many bytes of frames were ever handed over, to be written or moved."""
        self._has_ended = False
        self._hand = Hand("journal")
        self._read_limiter = trio.CapacityLimiter(1)

    async def persist(self, batch: Batch, sync: Callable[[], None] | None) -> None:
        """Return when ``batch`` is durable; ``sync`` (of the WAL) is called before."""
        await self._hand_over(_Request(work=batch, act=None, sync=sync))

    async def keep(
        self, step: Step, sync: Callable[[], None] | None, patience_s: float = 0.0
    ) -> None:
        """Return when ``step`` of a shard with peers is durable; ``sync`` (of the WAL) before.

        It may wait so long for others to share its transaction; see `hurry`.
        """
        request = _Request(work=step, act=None, sync=sync, due_s=_due_s(patience_s))
        self._last_steps[step.shard] = request
        await self._hand_over(request)

    async def settle(self, settled: Settled, patience_s: float = 0.0) -> None:
        """Return when these frames of a shard with peers are final on disk.

        Raises what the step before raised, if that was not made durable.
        """
        last = self._last_steps.get(settled.shard)
        await self._hand_over(
            _Request(work=settled, act=None, sync=None, due_s=_due_s(patience_s), after=last)
        )

    def begin_term(self, shard: ShardId) -> None:
        """Forget what an earlier replica of ``shard`` asked for; none of its requests waits."""
        self._last_steps.pop(shard, None)

    def hurry(self) -> None:
        """Let nothing that waits now wait for company any longer."""
        for request in self._requests:
            request.due_s = 0.0
        self._wake.set()

    async def perform(
        self, act: Callable[[Journal], Result], sync: Callable[[], None] | None = None
    ) -> Result:
        """Return the result of ``act``, run on the journal between two transactions.

        ``sync`` (of the WAL) is called before. Raises what ``act`` raises; but `UnavailableError`
        means to try it again.
        """
        results: list[Result] = []
        await self._hand_over(
            _Request(work=None, act=lambda journal: results.append(act(journal)), sync=sync)
        )
        return results[0]

    async def check_health(self) -> None:
        """Return when the journal answered; raise `UnavailableError` when it cannot."""
        with trio.move_on_after(_HEALTH_S):
            await self.perform(lambda _journal: None)
            return
        raise UnavailableError(
            self.error or f"the journal did not answer within {_HEALTH_S:.0f} s."
        )

    async def read(self, question: Callable[[Journal], Result]) -> Result:
        """Return the answer to ``question``, asked on the reading connection."""
        return await trio.to_thread.run_sync(question, self.journal, limiter=self._read_limiter)

    async def _hand_over(self, request: _Request) -> None:
        if self._has_ended:
            raise UnavailableError("the journal is being closed.")
        self._requests.append(request)
        self.asked_bytes += _bytes_of(request.work)
        self._wake.set()
        try:
            await request.done.wait()
        except trio.Cancelled:
            # Whoever asked may close the file that is to be synced: not while that is being done.
            request.is_withdrawn = True
            self._withdrawn.set()
            with trio.CancelScope(shield=True):
                await request.done.wait()
            raise
        if request.error is not None:
            raise request.error

    async def run(self) -> None:
        """Write for ever; raise `JournalBroken` when the journal cannot be trusted any more."""
        try:
            with self._hand:
                await self._write_forever()
        finally:
            self._has_ended = True
            for request in self._taken + self._requests:
                request.error = UnavailableError("the journal is being closed.")
                request.done.set()

    async def _write_forever(self) -> None:
        while True:
            await self._gather()
            self._taken, self._requests = self._requests, []
            await self._write_until_done()

    async def _gather(self) -> None:
        """Return as soon as somebody is in a hurry, or the first patience ends."""
        while True:
            due_s = min((request.due_s for request in self._requests), default=inf)
            if due_s <= trio.current_time():
                break
            self._wake = trio.Event()
            with trio.move_on_at(due_s):
                await self._wake.wait()

    async def _write_until_done(self) -> None:
        """Write all but what was withdrawn before its turn; on a full disk again and again."""
        while True:
            self._drop_withdrawn()
            try:
                # Not cancelled: a transaction that was begun is told to those who wait for it.
                await self._hand.do(partial(self._write, self._taken), self._tell)
            except UnavailableError as error:
                if self.error is None:
                    log.warning("journal_full", error=str(error))
                self.error = str(error)
                with trio.move_on_after(_RETRY_S):
                    await self._withdrawn.wait()
            else:
                return

    def _tell(self) -> None:
        self.error = None
        taken, self._taken = self._taken, []
        for request in taken:
            request.done.set()

    def _drop_withdrawn(self) -> None:
        self._withdrawn = trio.Event()
        for request in self._taken:
            if request.is_withdrawn:
                # Told to who stands behind it; who asked for it has been cancelled.
                request.error = UnavailableError("the step was given up.")
                request.done.set()
        self._taken = [request for request in self._taken if not request.is_withdrawn]

    def _write(self, requests: list[_Request]) -> None:
        for request in requests:
            if request.sync is not None:
                _sync(request.sync)
                request.sync = None
        self._write_works([request for request in requests if request.work is not None])
        for request in requests:
            if request.act is not None:
                request.error = _act(request.act, self.journal)
                request.act = None

    def _write_works(self, requests: list[_Request]) -> None:
        """Write all in one transaction; where one spoils it, each in its own."""
        works = [request.work for request in requests if request.work is not None]
        if not works:
            return
        failed = next((each.after.error for each in requests if each.after is not None), None)
        if failed is not None and len(requests) == 1:
            requests[0].error, requests[0].work = failed, None
            return
        error = failed or _act(lambda journal: journal.write(works), self.journal)
        if error is not None and len(requests) > 1:
            for request in requests:
                self._write_works([request])
            return
        for request in requests:
            request.error = error
            # Before anything else can fail: what is tried again must not store it twice.
            request.work = None


def _due_s(patience_s: float) -> float:
    """Return when a request must be done; what is in a hurry is due already."""
    return trio.current_time() + patience_s if patience_s else 0.0


def _act(act: Callable[[Journal], None], journal: Journal) -> BasenetError | None:
    """Return what ``act`` raised that only concerns who asked for it."""
    try:
        act(journal)
    except (JournalBroken, UnavailableError):
        raise
    except BasenetError as error:
        return error
    return None


def _sync(sync: Callable[[], None]) -> None:
    try:
        sync()
    except OSError as error:
        raise JournalBroken(
            f"an application's WAL could not be synced ({error}): basenet ends here so that "
            "nothing is said on the strength of it; check the disk, then start it again."
        ) from error


def _bytes_of(work: Batch | Step | Settled | None) -> int:
    if work is None:
        return 0
    if isinstance(work, Settled):
        return sum(head.payload_len for head in work.heads)
    return sum(len(row.record) for row in work.frames)
