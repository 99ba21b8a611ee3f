"""The programs in cmd/: each starts from a checkout, and the folder's name hides no module."""

import ast
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted((ROOT / "cmd").glob("*/__main__.py"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_there_are_programs() -> None:
    """The tests below would pass over nothing if the folder moved."""
    assert {program.parent.name for program in PROGRAMS} >= {"basenet", "check"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.parent.name)
def test_a_program_tells_its_version_in_one_line(program: Path) -> None:
    """It starts from the root of a checkout, says one line on stdout and nothing else."""
    done = run(program.parent, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert "0.1.0" in done.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.parent.name)
def test_a_program_only_imports_and_calls(program: Path) -> None:
    """Logic lives in basenet/, where tests reach it; the gate alone is never shipped."""
    if program.parent.name == "check":
        imported = {
            name.name.split(".")[0]
            for node in ast.walk(ast.parse(program.read_text()))
            if isinstance(node, ast.Import)
            for name in node.names
        }
        assert imported <= sys.stdlib_module_names
    else:
        kinds = [type(node) for node in ast.parse(program.read_text()).body]
        assert kinds[:2] == [ast.Expr, ast.ImportFrom], "a docstring, then one import"
        assert set(kinds[2:]) <= {ast.Expr, ast.ImportFrom}


def test_cmd_is_not_a_package() -> None:
    """With an __init__.py it would hide the standard module cmd."""
    assert list((ROOT / "cmd").rglob("__init__.py")) == []


def test_the_standard_module_cmd_is_found_from_the_root() -> None:
    """Started in the root, `cmd` is the standard library's, and pdb, which needs it, works."""
    done = run("-c", "import cmd, pdb; cmd.Cmd; pdb.Pdb; print(cmd.__file__)")
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(ROOT / "cmd")


def test_the_gate_refuses_a_step_that_it_does_not_know() -> None:
    """A typing error must not look like a passed gate."""
    done = run("cmd/check", "tpyes")
    assert done.returncode == 2
    assert "no step is called 'tpyes'" in done.stderr


def test_the_gate_names_a_step_and_its_seconds() -> None:
    """One step can be run alone, and says how it went."""
    done = run("cmd/check", "contracts")
    assert "check: contracts " in done.stdout.splitlines()[-3]
    assert done.stdout.splitlines()[-3].endswith(" s")


def test_continuous_integration_runs_what_a_developer_runs() -> None:
    """.ci/run is executable and holds nothing but calls of make."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    commands = [line for line in script.read_text().splitlines() if line[:1].isalpha()]
    assert commands == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "make test",
        "make test-system",
    ]
