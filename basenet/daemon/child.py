"""The application as our child: started when we are ready, signalled through, and outlived.

`basenet serve --exec CMD` is the whole of a container: it starts the application after capture
has begun, passes signals on, and leaves with the application's exit code after a final flush.
"""

import os
import shlex
import signal
from collections.abc import Mapping
from typing import Final

import trio

from basenet.errors import NotFoundError, UsageError

# Signals that an operator sends to the application through us; the two that end it come apart.
PASSED_ON: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


class Child:
    """A running application."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, command: str, environment: Mapping[str, str]) -> "Child":
        """Start ``command``, split as a shell splits words but not run by one.

        Raises `UsageError` when it cannot be split and `NotFoundError` when it cannot be started.
        """
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"--exec {command!r} cannot be split into words: {error}.") from error
        if not words:
            raise UsageError("--exec is empty: give the command that starts the application.")
        try:
            process = await trio.lowlevel.open_process(
                words, env=dict(environment), stdin=None, start_new_session=False
            )
        except OSError as error:
            raise NotFoundError(
                f"--exec {words[0]!r} cannot be started: {os.strerror(error.errno or 0)}."
            ) from error
        return cls(process)

    def send(self, number: int) -> None:
        """Pass a signal on; a child that is gone already needs none."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Return the exit code as a shell would: 128 + n for a child that signal n ended."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code
