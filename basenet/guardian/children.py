"""Processes that the guardian starts: known by descriptors, signalled through them, and reaped.

The guardian may be process 1 of a container, so it reaps whoever becomes its child. The number of a
child of ours cannot be another process's as long as it was not reaped, and it is reaped here only;
everybody else uses the descriptor (pidfd).
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from basenet.errors import NotFoundError

# What a child finds as the system would have given it: nothing blocked, nothing ignored by us.
_DEFAULTS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)


class Child:
    """A process of ours that was not reaped yet."""

    def __init__(self, pid: int) -> None:
        """Know the child ``pid``, which this process (or what it was before an exec) started."""
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)

    @classmethod
    def start(
        cls,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        inherit: int | None = None,
        has_own_group: bool = False,
    ) -> "Child":
        """Start ``words``, found by PATH; raises `NotFoundError` when that is not possible.

        ``inherit``: a descriptor that it gets under the same number. ``has_own_group``: signals
        that a terminal sends to us do not reach it.
        """
        group = 0 if has_own_group else os.getpgrp()
        if inherit is not None:
            os.set_inheritable(inherit, True)
        try:
            pid = os.posix_spawnp(
                words[0],
                list(words),
                environment,
                setpgroup=group,
                setsigmask=(),
                setsigdef=_DEFAULTS,
            )
        except OSError as error:
            raise NotFoundError(
                f"{words[0]!r} cannot be started: {os.strerror(error.errno or 0)}."
            ) from error
        finally:
            if inherit is not None:
                os.set_inheritable(inherit, False)
        return cls(pid)

    def send(self, number: int) -> None:
        """Send it a signal; one that has ended needs none."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def close(self) -> None:
        """Forget a child that was reaped."""
        os.close(self.descriptor)


def reap() -> Iterable[tuple[int, int]]:
    """Yield the number and exit code of every child that has ended, strangers among them.

    The code is what a shell would say: 128 + n for a child that signal n ended.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        yield pid, code if code >= 0 else 128 - code
