"""Threads that wait for write locks which somebody else holds: at most sixteen, made when needed.

A thread in ``F_OFD_SETLKW`` cannot be called back. So a fence that is opened again while a thread
waits for its lock gets the lock all the same, for the moment that its keeper needs to give it back.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from basenet.guardian.fence import Fence

WAITERS_MAX: Final = 16
_AGAIN_S: Final = 0.1


class Waiters:
    """Waits for locks off the keeper's thread."""

    def __init__(self, on_locked: Callable[[Fence], None]) -> None:
        """Call ``on_locked`` from a waiter's thread whenever a lock was had."""
        self._on_locked = on_locked
        self._lock = threading.Lock()
        self._queue: deque[Fence] = deque()
        self._waiting: set[Fence] = set()
        self._threads = 0

    def wait_for(self, fence: Fence) -> None:
        """Begin to wait for the lock of ``fence``, unless somebody does already."""
        with self._lock:
            if fence in self._waiting:
                return
            self._waiting.add(fence)
            self._queue.append(fence)
            if self._threads < WAITERS_MAX:
                self._threads += 1
                threading.Thread(target=self._run, name="fence waiter", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                fence = self._queue.popleft()
            while not _wait(fence):
                time.sleep(_AGAIN_S)
            with self._lock:
                self._waiting.discard(fence)
            self._on_locked(fence)


def _wait(fence: Fence) -> bool:
    """Wait for the lock of ``fence``; return False when the kernel had no room for a lock."""
    try:
        fence.wait_closed()
    except OSError:
        return False
    return True
