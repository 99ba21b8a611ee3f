"""Style beyond the formatter: what must not pile up in the tree."""

import ast
import re
from pathlib import Path

from basenet.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
LINES_MAX = 700
# Spelled so that this file does not hold what it looks for.
MARKER = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3]) + r")\b")
DAEMON_ROOMS = ["cli", "daemon", "control", "archive", "sqlite", "journal", "keys", "config"]


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Return every module that ``path`` may import, ``from a import b`` giving a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{name.name}" for name in node.names)
    return found


def test_no_marker_of_unfinished_work_is_left() -> None:
    """What is not done is an issue, not a comment."""
    texts = [
        path
        for folder in ("basenet", "cmd", "docs", "deploy")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    marked = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*texts, ROOT / "README.md", ROOT / "Makefile"]
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if MARKER.search(line)
    ]
    assert marked == []


def test_no_file_grows_into_a_coordinator() -> None:
    """A file that cannot be read in one sitting is two files."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources("basenet")
        if (lines := len(path.read_text().splitlines())) > LINES_MAX
    }
    assert long == {}


# Rooms of the cluster whose foundations stand before the daemon uses them. Each leaves this list
# when it is wired; nothing else may enter it.
UNWIRED: list[str] = []


def test_every_module_is_used() -> None:
    """A module is imported by another or by a program, or is a command, a target or a __main__."""
    used = {f"basenet.cli.{name}" for name in COMMANDS}
    used |= set(re.findall(r"-m (basenet[a-z_.]*)", (ROOT / "Makefile").read_text()))
    for path in [*sources("basenet"), *sources("cmd")]:
        used |= imports_of(path) - {module_of(path)}
    used |= {name.rpartition(".")[0] for name in used}  # a module's package is used with it
    dead = [
        name
        for name in map(module_of, sources("basenet"))
        if name not in used and not name.endswith("__main__")
    ]
    assert dead == UNWIRED


def test_every_command_has_its_module_and_every_module_its_line() -> None:
    """`basenet --help` lists what exists, all of it and nothing else."""
    modules = {
        path.stem
        for path in sources("basenet/cli")
        if re.search(r"^def command\(|^command = ", path.read_text(), re.MULTILINE)
    }
    assert modules == set(COMMANDS)


def test_the_old_sqlite_of_the_system_stays_out_of_the_daemon() -> None:
    """SQLite below 3.51.3 can corrupt a database that two connections checkpoint and write."""
    offenders = [
        str(path.relative_to(ROOT))
        for room in DAEMON_ROOMS
        for path in sources(f"basenet/{room}")
        if any(name.split(".")[0] == "sqlite3" for name in imports_of(path))
    ]
    assert offenders == []
