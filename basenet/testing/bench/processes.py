"""Child processes of the benchmark: started, measured through /proc, and ended by their pid."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

from basenet.errors import UnavailableError

_STOP_SECONDS: Final = 30.0
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process took up to a moment; ``peak_bytes`` is the largest it ever was in memory."""

    cpu_seconds: float
    resident_bytes: int
    peak_bytes: int
    descriptors: int


class Process:
    """One child. As a context it is killed, if it still runs, at the end."""

    def __init__(
        self, command: Sequence[str | Path], *, output: Path, environment: Mapping[str, str]
    ) -> None:
        """Start ``command``; what it says goes to ``output`` (and its errors beside it)."""
        self.output = output
        self.errors = output.with_suffix(".errors")
        with output.open("ab") as out, self.errors.open("ab") as err:
            self._child = subprocess.Popen(command, stdout=out, stderr=err, env=dict(environment))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def check_alive(self) -> None:
        """Raise `UnavailableError` with the end of its error output if the child has ended."""
        if self._child.poll() is not None:
            tail = self.errors.read_text(errors="replace")[-400:].strip()
            raise UnavailableError(
                f"{self._child.args!r} ended with {self._child.returncode}: {tail}"
            )

    def usage(self) -> Usage:
        """Return what the child took up to now."""
        self.check_alive()
        return usage_of(self.pid)

    def wait(self, seconds_max: float) -> int:
        """Return the exit code; raise `UnavailableError` if the child takes longer."""
        try:
            return self._child.wait(seconds_max)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(
                f"{self._child.args!r} still runs after {seconds_max:.0f} s"
            ) from error

    def stop(self) -> float:
        """Ask the child to end; return the seconds that it took. Kill it after 30 s."""
        began = time.monotonic()
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        return time.monotonic() - began

    def kill(self) -> None:
        """End the child with SIGKILL, if it still runs."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()


def usage_of(pid: int) -> Usage:
    """Return what a process took up to now."""
    root = Path(f"/proc/{pid}")
    fields = (root / "stat").read_text().rpartition(")")[2].split()
    status = dict(
        line.split(":", 1) for line in (root / "status").read_text().splitlines() if ":" in line
    )
    return Usage(
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
        resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
        peak_bytes=int(status["VmHWM"].split()[0]) * 1024,
        descriptors=sum(1 for _ in (root / "fd").iterdir()),
    )


def wait_until(
    is_true: Callable[[], bool], what: str, *, seconds_max: float = 60.0, every: float = 0.05
) -> float:
    """Return after how many seconds ``is_true`` was; raise `UnavailableError` if it never is."""
    began = time.monotonic()
    while not is_true():
        if time.monotonic() - began > seconds_max:
            raise UnavailableError(f"{what}: not so after {seconds_max:.0f} s")
        time.sleep(every)
    return time.monotonic() - began


def read_last_line(file: IO[str] | Path) -> str:
    """Return the last line that is not empty, or an empty text."""
    text = file.read_text() if isinstance(file, Path) else file.read()
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
