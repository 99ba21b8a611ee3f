"""What `basenet serve` makes of its arguments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_an_empty_argument_is_none(command: str, tmp_path: Path) -> None:
    """`basenet serve "$DB"` with the variable unset must not watch the root directory."""
    inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
    done = subprocess.run(
        [sys.executable, "-m", "basenet", command, "", ""],
        env=inherited | {"BASE_DATA_DIR": str(tmp_path / "data")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in {1, 2}
    assert "no database is" in done.stdout + done.stderr
