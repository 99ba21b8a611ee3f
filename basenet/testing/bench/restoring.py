"""Running a restore command, what it cost, and whether what came back is the source."""

import os
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from basenet.errors import UnavailableError
from basenet.testing.bench.sidecars import Sidecar


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What one restore took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a database holds; ``rows`` of the table ``t``."""

    integrity: str
    rows: int
    last_id: int


def restore(sidecar: Sidecar, out: Path) -> Restored:
    """Restore to ``out``, removing what lies there; raise `UnavailableError` if it fails."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{out}{suffix}").unlink(missing_ok=True)
    command, environment = sidecar.restore_command(out)
    os.sync()  # what was written before must not be paid for now
    began = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        assert child.stderr is not None, "a pipe was asked for"
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if child.returncode != 0:
        label = sidecar.contender.label
        tail = said.decode(errors="replace")[-400:].strip()
        raise UnavailableError(f"the restore of {label} ended with {child.returncode}: {tail}")
    return Restored(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
    )


def read_content(database: Path) -> Content:
    """Return what ``database`` holds, after an integrity check."""
    with closing(sqlite3.connect(database)) as connection:
        integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
        rows, last_id = connection.execute(
            "SELECT count(*), coalesce(max(id), 0) FROM t"
        ).fetchone()
    return Content(integrity=integrity, rows=rows, last_id=last_id)
