"""Running the application, and its report as a value."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from basenet.errors import UnavailableError
from basenet.testing.bench import writer
from basenet.testing.bench.processes import Process, read_last_line

_SECONDS_MAX: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the application does. ``rate``: transactions a second, 0 for as fast as it can."""

    transactions: int
    rows: int = 1
    row_bytes: int = 0
    rate: float = 0.0
    is_compressible: bool = False
    ends_with_truncate: bool = False
    busy_seconds: float = 5.0

    def command(self, database: Path, acknowledged: Path | None = None) -> list[str | Path]:
        """Return the command line of the writer."""
        options: list[str | Path] = [
            *("--transactions", str(self.transactions)),
            *("--rows", str(self.rows)),
            *("--bytes", str(self.row_bytes)),
            *("--rate", str(self.rate)),
            *("--busy", str(self.busy_seconds)),
        ]
        options += ["--compressible"] if self.is_compressible else []
        options += ["--truncate"] if self.ends_with_truncate else []
        options += ["--acknowledge", acknowledged] if acknowledged is not None else []
        return [sys.executable, writer.__file__, database, *options]

    def start(self, database: Path, acknowledged: Path | None = None) -> Process:
        """Start the writer; its report is the last line of its output."""
        output = database.with_suffix(".writer")
        output.unlink(missing_ok=True)
        return Process(self.command(database, acknowledged), output=output, environment={})

    def run(self, database: Path) -> "Report":
        """Run the writer to its end and return its report."""
        with self.start(database) as process:
            return read_report(process)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the application fared."""

    transactions: int
    seconds: float
    p50_us: float
    p99_us: float
    max_ms: float
    busy: int
    cpu_seconds: float
    wal_bytes_max: int
    payload_bytes: int

    @property
    def rate(self) -> float:
        """Transactions a second."""
        return self.transactions / self.seconds


ONE_ROW: Final = Load(transactions=1)


def read_report(process: Process) -> Report:
    """Wait for a writer's end and return its report."""
    code = process.wait(_SECONDS_MAX)
    if code != 0:
        tail = process.errors.read_text(errors="replace")[-400:].strip()
        raise UnavailableError(f"the writer ended with {code}: {tail}")
    return Report(**json.loads(read_last_line(process.output)))


def read_acknowledged(notes: Path) -> list[tuple[int, int]]:
    """Return (number, time_ns) of each commit that the writer noted; a cut last line is left."""
    lines = notes.read_text().split("\n")[:-1] if notes.exists() else []
    return [(int(number), int(at)) for number, at in (line.split() for line in lines)]
