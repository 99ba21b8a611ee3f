"""The application, played by a process of its own with the stdlib's SQLite.

`Application` runs Python code given line by line; the name ``c`` is its connection, ``db`` the
path. It answers with the value of ``result``, so a test can ask for what was acknowledged.
"""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

_LOOP = """
import json, os, sqlite3, sys, time
db = sys.argv[1]
def connect(suffix='', **more):
    if suffix:
        return sqlite3.connect('file:' + db + suffix, uri=True, isolation_level=None, **more)
    return sqlite3.connect(db, isolation_level=None, **more)
c = None
space = {'connect': connect, 'db': db, 'os': os, 'sqlite3': sqlite3, 'time': time, 'sys': sys}
for line in sys.stdin:
    space['result'] = None
    try:
        exec(json.loads(line), space)
        answer = {'result': space['result']}
    except Exception as error:
        answer = {'error': type(error).__name__ + ': ' + str(error)}
    print(json.dumps(answer), flush=True)
"""


class ApplicationError(Exception):
    """The application's code raised."""


class Application:
    """One process with one connection ``c``; ends with the ``with`` block."""

    def __init__(self, path: Path, *, suffix: str = "", timeout_s: float = 20) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run(f"c = connect({suffix!r}, timeout={timeout_s})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, code: str) -> None:
        """Begin to run ``code`` without waiting for the end; `finish` takes the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def is_finished(self) -> bool:
        """Whether the answer to `start` is there."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def finish(self) -> Any:
        """Wait for the answer to `start`."""
        assert self.process.stdout is not None
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise ApplicationError(answer["error"])
        return answer["result"]

    def run(self, code: str) -> Any:
        """Run ``code`` and return ``result``."""
        self.start(code)
        return self.finish()

    def sql(self, *statements: str) -> list[Any]:
        """Run each statement by itself and return the rows of the last."""
        rows: list[Any] = []
        for statement in statements:
            rows = self.run(f"result = c.execute({statement!r}).fetchall()")
        return rows

    def kill(self) -> None:
        """End it as SIGKILL does."""
        os.kill(self.process.pid, signal.SIGKILL)
        self._reap()

    def close(self) -> None:
        """End it as a program does that closes its connection."""
        if self.process.poll() is None:
            self.run("c.close()")
        self._reap()

    def _reap(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
