"""Whether the journal's thread still gets on: a node that cannot write must not lead (Q16).

Theory of operation
===================

The thread is asked twice a second, and has two seconds to answer; then heartbeats are held back and
somebody else is free to lead. But one transaction of the application can be gigabytes, which the
journal keeps in as many bytes: that must cost the lead of no shard, least of all of the one whose
transaction would then be lost. So what was handed to the journal since it answered last adds to its
time, as if the disk took ten megabytes a second. A disk that hangs is given no more than a minute.
"""

import time
from collections.abc import Callable
from typing import Final

import trio

from basenet.daemon.journalist import Journalist

_ASK_S: Final = 0.5
_PATIENCE_S: Final = 2.0
_PATIENCE_S_MAX: Final = 60.0
_BYTES_PER_S: Final = 10_000_000


class JournalWatch:
    """Asks the journal's thread, while `run` runs."""

    def __init__(self, journalist: Journalist, clock: Callable[[], float] = time.monotonic) -> None:
        self._journalist = journalist
        self._clock = clock
        self._answered_s = clock()
        # How much had been handed over when the question was that was answered last.
        self._answered_bytes = 0

    def is_alive(self) -> bool:
        """Return whether it has answered in time."""
        waiting = self._journalist.asked_bytes - self._answered_bytes
        patience_s = min(_PATIENCE_S + waiting / _BYTES_PER_S, _PATIENCE_S_MAX)
        return self._clock() - self._answered_s < patience_s

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            asked_bytes = self._journalist.asked_bytes
            await self._journalist.perform(lambda _journal: None)
            self._answered_s, self._answered_bytes = self._clock(), asked_bytes
            await trio.sleep(_ASK_S)
