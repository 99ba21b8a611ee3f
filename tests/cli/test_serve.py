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


_WRITE = """
import sqlite3
db = sqlite3.connect("app.db")
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t (x)")
db.commit()
"""


def serve(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run basenet with an application that commits once, to their end."""
    folder.mkdir(exist_ok=True)
    (folder / "write.py").write_text(_WRITE)
    inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
    command = f"{sys.executable} write.py"
    return subprocess.run(
        [sys.executable, "-m", "basenet", "serve", "app.db", *arguments, "--exec", command],
        env=inherited | {"BASE_LISTEN_HTTP": "127.0.0.1:0"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_without_an_archive_it_says_that_nothing_leaves_the_host(tmp_path: Path) -> None:
    """A forgotten argument must not look like a backup."""
    done = serve(tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert '"event": "archive_off", "level": "warning"' in done.stderr
    assert "archive_off" not in serve(tmp_path / "two", str(tmp_path / "backups")).stderr


def test_the_archive_of_another_database_is_told_with_the_way_out(tmp_path: Path) -> None:
    """Nothing is written to it."""
    archive = tmp_path / "backups"
    assert serve(tmp_path / "one", str(archive)).returncode == 0
    before = {path: path.read_bytes() for path in archive.rglob("*.lbn")}
    assert before
    done = serve(tmp_path / "two", str(archive))
    assert "is not trusted" in done.stderr
    assert "give this one another BASE_ARCHIVE, BASE_SERVICE or shard id" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in archive.rglob("*.lbn")} == before
