"""A lock that mostly nobody has: taken without a turn of the event loop."""

import trio


class Quickly:
    """A lock as a context: ``async with Quickly(lock)``; who has to wait waits as ever."""

    __slots__ = ("_lock",)

    def __init__(self, lock: trio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        """Take it."""
        if self._lock.locked():
            await self._lock.acquire()
        else:
            self._lock.acquire_nowait()

    async def __aexit__(self, *_: object) -> None:
        """Let go of it."""
        self._lock.release()
