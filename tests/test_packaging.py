"""What is installed: the package basenet, and nothing else of the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """No program of cmd/, no test; the license and the mark of types are in."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"basenet", "basenet-0.1.0.dist-info"}
    assert "basenet/py.typed" in names
    assert "basenet-0.1.0.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if name.startswith("basenet/") and "test_" in name]


def test_the_wheel_runs_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    """Whatever the program needs is in the wheel: it prints its version from there alone."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = "import basenet.cli.main as m; print(m.__file__); m.main(['version'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    place, version = done.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert version.startswith("basenet 0.1.0 (")


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    """The console script is the same entry point that cmd/basenet calls."""
    entry_points = zipfile.ZipFile(wheel).read("basenet-0.1.0.dist-info/entry_points.txt").decode()
    assert "basenet = basenet.cli.main:main" in entry_points
