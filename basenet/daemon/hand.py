"""A thread of one's own: work is handed to it without a turn of the event loop on the way.

`trio.to_thread` shares its threads among all who need one now and then, and costs two turns of the
loop and a look-up for that. Whoever hands over work hundreds of times a second keeps a thread.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Self, TypeVar

import trio

Result = TypeVar("Result")
_Work = Callable[[], None]
_END: Final = None


class Hand:
    """Does one thing after the other, in a thread that lives as long as the ``with`` block."""

    def __init__(self, name: str) -> None:
        """``name``: of the thread, for whoever looks at the process."""
        self._name = name
        self._work: SimpleQueue[_Work | None] = SimpleQueue()

    def __enter__(self) -> Self:
        """Begin; called in the event loop."""
        self._token = trio.lowlevel.current_trio_token()
        # It never keeps the process alive: what it does is waited for by whoever asked.
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the thread end."""
        self._work.put(_END)

    async def do(self, act: Callable[[], Result], then: Callable[[], None] | None = None) -> Result:
        """Return what ``act`` returns, called in the thread; raise what it raises.

        Not cancelled: what has begun is waited for. ``then``: called in the event loop as soon as
        ``act`` has returned, a turn earlier than the caller goes on.
        """
        task = trio.lowlevel.current_task()
        results: list[Result] = []
        errors: list[BaseException] = []

        def come_back() -> None:
            if then is not None and not errors:
                then()
            trio.lowlevel.reschedule(task)

        def work() -> None:
            try:
                results.append(act())
            except BaseException as error:  # noqa: BLE001  (raised where it was asked for)
                errors.append(error)
            self._token.run_sync_soon(come_back)

        self._work.put(work)
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        if errors:
            raise errors[0]
        return results[0]

    def _run(self) -> None:
        while (work := self._work.get()) is not _END:
            work()
