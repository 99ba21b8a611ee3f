"""The one writer of the journal: all shards' batches share its fsyncs.

Whoever has something to make durable hands it over and waits. While one transaction is being
synced the next batches gather, so the rate of fsyncs is that of the disk and not that of the
commits. The application's WAL is synced in the same turn, before the journal (P7): a frame never
counts while the commit behind it could still be lost by SQLite.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog
import trio

from basenet.errors import UnavailableError
from basenet.journal.journal import Journal, JournalBroken
from basenet.journal.records import Batch

log = structlog.get_logger()

Result = TypeVar("Result")
_RETRY_S: Final = 1.0


@dataclass(slots=True, eq=False)
class _Request:
    """A batch to store, or another act on the journal, and whoever waits for it."""

    batch: Batch | None
    act: Callable[[Journal], None] | None
    sync: Callable[[], None] | None
    done: trio.Event = field(default_factory=trio.Event)


class Journalist:
    """Owns the journal's writing connection; the only place that uses it after start."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.error: str | None = None
        self._requests: list[_Request] = []
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._read_limiter = trio.CapacityLimiter(1)

    async def persist(self, batch: Batch, sync: Callable[[], None] | None) -> None:
        """Return when ``batch`` is durable; ``sync`` (of the WAL) is called before."""
        await self._hand_over(_Request(batch=batch, act=None, sync=sync))

    async def perform(self, act: Callable[[Journal], Result]) -> Result:
        """Return the result of ``act``, run on the journal between two transactions."""
        results: list[Result] = []
        await self._hand_over(
            _Request(batch=None, act=lambda journal: results.append(act(journal)), sync=None)
        )
        return results[0]

    async def read(self, question: Callable[[Journal], Result]) -> Result:
        """Return the answer to ``question``, asked on the reading connection."""
        return await trio.to_thread.run_sync(question, self.journal, limiter=self._read_limiter)

    async def _hand_over(self, request: _Request) -> None:
        self._requests.append(request)
        self._wake.set()
        await request.done.wait()

    async def run(self) -> None:
        """Write for ever; raise `JournalBroken` when the journal cannot be trusted any more."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            requests, self._requests = self._requests, []
            await self._write_until_done(requests)
            for request in requests:
                request.done.set()

    async def _write_until_done(self, requests: list[_Request]) -> None:
        while True:
            try:
                # Shielded: a transaction that was begun is told to those who wait for it.
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._write, requests, limiter=self._limiter)
            except UnavailableError as error:
                if self.error is None:
                    log.warning("journal_full", error=str(error))
                self.error = str(error)
                await trio.sleep(_RETRY_S)
            else:
                self.error = None
                return

    def _write(self, requests: list[_Request]) -> None:
        for request in requests:
            if request.sync is not None:
                _sync(request.sync)
                request.sync = None
        batches = [request.batch for request in requests if request.batch is not None]
        if batches:
            self.journal.store(batches)
        for request in requests:
            request.batch = None
            if request.act is not None:
                request.act(self.journal)
                request.act = None


def _sync(sync: Callable[[], None]) -> None:
    try:
        sync()
    except OSError as error:
        raise JournalBroken(
            f"an application's WAL could not be synced ({error}): basenet ends here so that "
            "nothing is said on the strength of it; check the disk, then start it again."
        ) from error
