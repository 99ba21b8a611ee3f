"""The gate: what must hold before a change lands, run the same by hand and by CI.

``python cmd/check`` runs every step of the gate in order, goes on after a failure so that one run
tells all, and ends with 1 if any step failed. ``python cmd/check lint types`` runs only those.
``system`` is not part of the gate: ``.ci/run`` asks for it by name.

Only the standard library is imported here: whichever Python starts this file, the tools come from
the environment that has them, which is the running one or ``.venv``.
"""

import argparse
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Each program is typed on its own: as scripts all of them are the module __main__.
PROGRAMS = sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.glob("cmd/*/__main__.py"))

# One process a core; the tests of a file stay together, since they may share a daemon. The slowest
# are named: the suites have a time to keep to.
PYTEST = ["pytest", "--numprocesses", "auto", "--dist", "loadfile", "--durations", "12"]

# A step is one or more calls of a tool. The order is that of the quickest answer.
GATE = {
    "format": [["ruff", "format", "--check", "."]],
    "lint": [["ruff", "check", "."]],
    "types": [["mypy"], *(["mypy", program] for program in PROGRAMS)],
    "contracts": [["lint-imports"]],
    "tests": [PYTEST],
}
STEPS = {**GATE, "system": [[*PYTEST, "-m", "system"]]}


def main() -> int:
    """Run the chosen steps; return 0 if all passed, 1 if one failed, 2 without the tools."""
    parser = argparse.ArgumentParser(prog="check", description="Run the gate, or some of it.")
    parser.add_argument("--version", action="version", version=f"check (basenet {_version()})")
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"one or more of {', '.join(STEPS)}"
    )
    chosen: list[str] = parser.parse_args().steps or list(GATE)
    if unknown := [name for name in chosen if name not in STEPS]:
        parser.error(f"no step is called {unknown[0]!r}; there are {', '.join(STEPS)}")

    tools = _tools()
    if tools is None:
        print("check: ruff is neither beside this Python nor in .venv; run `make venv` first.")
        return 2
    failed = [name for name in chosen if not _passes(name, tools)]
    print(f"check: {', '.join(failed)} failed" if failed else "check: all passed", flush=True)
    return 1 if failed else 0


def _version() -> str:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def _tools() -> Path | None:
    """Return the directory that holds the tools, the running Python's own first."""
    for directory in (Path(sys.executable).parent, ROOT / ".venv" / "bin"):
        if (directory / "ruff").exists():
            return directory
    return None


def _passes(name: str, tools: Path) -> bool:
    """Run one step from the root of the repository and say how it went and how long it took."""
    print(f"check: {name}", flush=True)
    started = time.monotonic()
    # Tests start `python` and our own programs by name, and must meet this environment's.
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
    statuses = [
        subprocess.call([tools / tool, *arguments], cwd=ROOT, env=environment)
        for tool, *arguments in STEPS[name]
    ]
    failed = any(statuses)
    seconds = time.monotonic() - started
    print(f"check: {name} {'failed' if failed else 'ok'} in {seconds:.1f} s\n", flush=True)
    return not failed


sys.exit(main())
