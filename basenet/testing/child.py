"""A server in a child process: it prints its URL, and ends when its standard input does.

So it listens on a free port, does not share the interpreter's lock with what it serves, and
never outlives the test that started it, even when that is killed.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from basenet.errors import UnavailableError

_STOP_SECONDS: Final = 5.0


@contextmanager
def running_module(module: str, *arguments: str) -> Iterator[str]:
    """Run ``python -m module arguments`` while the body runs, and give the URL that it prints."""
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None, "a pipe was asked for"
    assert child.stdout is not None, "a pipe was asked for"
    try:
        url = child.stdout.readline().strip()
        if not url:
            raise UnavailableError(f"{module} did not start: its error output says why")
        yield url
    finally:
        child.stdin.close()
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def announce(url: str) -> None:
    """Print the URL of the server that this child runs."""
    sys.stdout.write(url + "\n")
    sys.stdout.flush()


def wait_for_parent() -> None:
    """Return when the parent has closed this child's standard input, or is gone."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
