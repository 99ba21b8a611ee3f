"""A guardian and its daemon, as processes, and a rogue application: what the tests play with."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

PATIENCE_S: Final = 30.0
MS: Final = 1_000_000
LAUNCH: Final = Path(__file__).with_name("launch.py")

_ROGUE = """
import json, os, sqlite3, sys, threading, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
began, refused, others, is_over = [], 0, [], threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
print("writing", flush=True)
while not is_over.is_set():
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    try:
        connection.execute("INSERT INTO t VALUES (99)")
        began.append(now)
    except sqlite3.OperationalError as error:
        refused += 1
        if str(error) != "database is locked":
            others.append(str(error))
print(json.dumps({"began": began, "refused": refused, "others": others}), flush=True)
"""


def now_ns() -> int:
    """Return the instant of the guardian's clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def until(question: Callable[[], object], what: str) -> None:
    """Return once ``question`` is answered with something true."""
    deadline = time.monotonic() + PATIENCE_S
    while not question():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def until_instant(instant_ns: int) -> None:
    """Return when the guardian's clock has come to ``instant_ns``."""
    while (rest := instant_ns - now_ns()) > 0:
        time.sleep(rest / 1e9)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Rogue:
    """An application that tries to commit without end and never waits for a lock."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ROGUE, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[list[int], int]:
        """Return when each commit began, and how many were refused, all as "locked"."""
        output, _ = self.process.communicate("")
        answer = json.loads(output)
        assert answer["others"] == []
        return answer["began"], answer["refused"]


class Daemon:
    """The test's line to one puppet."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self._file = connection.makefile("rw")
        self._connection = connection
        hello = self.read()
        self.pid: int = hello["pid"]
        self.parent: int = hello["parent"]

    def read(self) -> dict[str, Any]:
        """Return the next thing that it says."""
        answer: dict[str, Any] = json.loads(self._file.readline())
        return answer

    def start(self, do: str, **more: object) -> None:
        """Tell it to do something; `read` has the answer."""
        self._file.write(json.dumps({"do": do, **more}) + "\n")
        self._file.flush()

    def ask(self, do: str, **more: object) -> dict[str, Any]:
        """Tell it to do something and return the answer."""
        self.start(do, **more)
        return self.read()

    def exit(self, code: int) -> None:
        """Have it end, with ``code``."""
        self.start("exit", code=code)

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._connection.close()


class Node:
    """One guardian with the daemons that it starts."""

    def __init__(
        self, folder: Path, *, command: str | None = None, before: str = "", **environment: str
    ) -> None:
        """``before``: Python code that the process runs before it becomes the guardian."""
        folder.mkdir(exist_ok=True)
        self.log = folder / "guardian.log"
        self.flushed = folder / "flushed.txt"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "socket"))
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)
        self._daemons: list[Daemon] = []
        execute = (
            f"import os, sys; {before}os.execv(sys.executable, [sys.executable, {str(LAUNCH)!r}])"
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", execute] if before else [sys.executable, str(LAUNCH)],
                env={
                    **os.environ,
                    "PUPPET_SOCKET": str(folder / "socket"),
                    "PUPPET_FLUSHED": str(self.flushed),
                    **({} if command is None else {"LAUNCH_EXEC": command}),
                    **environment,
                },
                stderr=log,
            )

    def accept(self) -> Daemon:
        """Return the next daemon that the guardian starts."""
        connection, _ = self._listener.accept()
        daemon = Daemon(connection)
        self._daemons.append(daemon)
        return daemon

    def events(self) -> list[dict[str, Any]]:
        """Return what the guardian logged."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if '"process": "guardian"' in line]

    def names(self) -> list[str]:
        """Return the names of the logged events."""
        return [event["event"] for event in self.events()]

    def wait(self) -> int:
        """Return the guardian's exit code."""
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End everything."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for daemon in self._daemons:
            daemon.close()
        self._listener.close()


@contextlib.contextmanager
def running(folder: Path, **more: str) -> Iterator[Node]:
    """Run a guardian for the length of a block."""
    node = Node(folder, **more)  # type: ignore[arg-type]
    try:
        yield node
    finally:
        node.close()
