"""``make demo``: a writer and basenet beside it are killed in mid-write, and what comes back.

Everything is real: the writer is the standard library's sqlite3 in a process of its own, which
notes each commit only after SQLite acknowledged it; both processes get SIGKILL; restore works from
the archive alone. The account tells what was checked, and the exit code whether all of it held.
"""

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from basenet import __version__

_WRITER: Final = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA synchronous=NORMAL")
connection.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, at REAL, text TEXT)")
number = connection.execute("SELECT coalesce(max(id), 0) FROM note").fetchone()[0]
while True:
    number += 1
    connection.execute("INSERT INTO note VALUES (?, ?, ?)", (number, time.time(), "x" * 100))
    print(number, time.time_ns(), flush=True)
    time.sleep(0.001)
"""
_SECONDS_OF_WRITING: Final = 6.0
_PATIENCE_S: Final = 60.0
# A commit is stamped when it is captured, a few milliseconds after it was acknowledged.
_STAMP_NS_MAX: Final = 500_000_000


class DemoFailed(Exception):  # noqa: N818  (it is the verdict, not an error of the program)
    """Something that the demonstration promises did not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where everything lies."""

    root: Path

    @property
    def database(self) -> Path:
        """The application's file."""
        return self.root / "app.db"

    @property
    def archive(self) -> Path:
        """The archive."""
        return self.root / "archive"

    @property
    def acknowledged(self) -> Path:
        """The writer's notes: one line per acknowledged commit, ``number time_ns``."""
        return self.root / "acknowledged.txt"


def say(text: str = "") -> None:
    """Print one line of the account."""
    print(text, flush=True)  # noqa: T201  (the account is what this program is for)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demonstration and exit with its verdict."""
    parser = argparse.ArgumentParser(prog="basenet-demo", description=__doc__)
    parser.add_argument("--version", action="version", version=f"basenet-demo {__version__}")
    parser.add_argument("--keep", action="store_true", help="keep the files and say where")
    options = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="basenet-demo-"))
    try:
        _play(Scene(root=root))
    except DemoFailed as failure:
        say(f"\nFAILED: {failure}  (files kept in {root})")
        sys.exit(1)
    if options.keep:
        say(f"Files kept in {root}")
    else:
        shutil.rmtree(root)


def _play(scene: Scene) -> None:
    say("1. An ordinary writer (Python's sqlite3, knows nothing of basenet) and basenet beside it")
    serve = _start_serve(scene)
    with scene.acknowledged.open("wb") as notes:
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, scene.database], stdout=notes)
    try:
        time.sleep(_SECONDS_OF_WRITING)
        say("2. SIGKILL to both, in mid-write")
        for process in (writer, serve):
            process.send_signal(signal.SIGKILL)
            process.wait()
    finally:
        for process in (writer, serve):
            if process.poll() is None:
                process.kill()
                process.wait()
    killed_ns = time.time_ns()
    notes_kept = _read_notes(scene)
    say(f"   the writer had {len(notes_kept):,} commits acknowledged by SQLite")
    _check_without_host(scene, notes_kept, killed_ns)
    _check_with_host(scene, notes_kept)
    _check_past(scene, notes_kept)
    say("\nAll of it held.")


def _start_serve(scene: Scene) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BASE_")}
    log = (scene.root / "basenet.log").open("ab")
    command = [sys.executable, "-m", "basenet", "serve", str(scene.database), str(scene.archive)]
    with log:
        return subprocess.Popen(
            command, env={**environment, "BASE_LISTEN_HTTP": "127.0.0.1:0"}, stdout=log, stderr=log
        )


def _read_notes(scene: Scene) -> list[tuple[int, int]]:
    lines = scene.acknowledged.read_text().splitlines()
    notes = []
    for line in lines:
        words = line.split()
        if len(words) == 2:  # noqa: PLR2004  (number and time; the last line may be cut)
            notes.append((int(words[0]), int(words[1])))
    if not notes:
        raise DemoFailed("the writer wrote nothing")
    return notes


def _check_without_host(scene: Scene, notes: list[tuple[int, int]], killed_ns: int) -> None:
    """Restore from the archive as it was at the kill: the host and its files are gone."""
    say("3. The host is gone: restore from the archive alone")
    report = _restore(scene, "host-lost.db")
    restored = _count(scene.root / "host-lost.db")
    lost = len(notes) - restored
    oldest_lost_ms = (killed_ns - notes[restored][1]) / 1e6 if lost > 0 else 0.0
    say(
        f"   {restored:,} of {len(notes):,} commits came back (seq {report['seq']}); the newest "
        f"{max(lost, 0):,}, at most {oldest_lost_ms:.0f} ms old, were not archived yet"
    )
    if oldest_lost_ms > 1_000 + 500:
        raise DemoFailed("a commit older than the flush interval + 500 ms is missing")


def _check_with_host(scene: Scene, notes: list[tuple[int, int]]) -> None:
    """Start basenet again over what the kill left; everything acknowledged must come back."""
    say("4. The host comes back: basenet starts again, catches up from the WAL, and is stopped")
    source = scene.root / "source.db"
    serve = _start_serve(scene)
    try:
        _wait_archived(scene)
    finally:
        serve.terminate()
        serve.wait(_PATIENCE_S)
    if serve.returncode != 0:
        raise DemoFailed(f"basenet serve ended with {serve.returncode}; see basenet.log")
    report = _restore(scene, "latest.db")
    # The source is copied only now that nobody uses it, so that its WAL is merged into the copy.
    for suffix in ("", "-wal"):
        if Path(f"{scene.database}{suffix}").exists():
            shutil.copy(f"{scene.database}{suffix}", f"{source}{suffix}")
    expected, found = _dump(source), _dump(scene.root / "latest.db")
    missing = [number for number, _ in notes if number not in found]
    say(f"   restored seq {report['seq']}: {len(found):,} rows, integrity_check ok")
    if missing:
        raise DemoFailed(f"{len(missing)} acknowledged commits are missing, first {missing[0]}")
    if expected != found:
        raise DemoFailed("the restored database is not the source")
    say("   every acknowledged commit is there, and the database equals the source")


def _check_past(scene: Scene, notes: list[tuple[int, int]]) -> None:
    """Restore one earlier moment and compare it with what the writer had noted by then."""
    number, at_ns = notes[len(notes) // 2]
    moment = at_ns + 1_000_000
    say(f"5. Back in time: the moment just after commit {number:,} was acknowledged")
    seconds, nanoseconds = divmod(moment, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"
    report = _restore(scene, "past.db", "--to-time", text)
    count = _count(scene.root / "past.db")
    say(f"   restored seq {report['seq']}: {count:,} rows")
    later = [note for note in notes if note[0] == count + 1]
    if count > number + 2 or (later and at_ns - later[0][1] > _STAMP_NS_MAX):
        raise DemoFailed(f"{count} rows came back where about {number} were expected")


def _wait_archived(scene: Scene) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    command = [sys.executable, "-m", "basenet", "wait", "--now", "--timeout", "30s"]
    environment = {**os.environ, "BASE_DATA_DIR": str(scene.root / ".basenet")}
    while time.monotonic() < deadline:
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.2)
    raise DemoFailed(f"basenet did not catch up: {done.stderr.decode().strip()}")


def _restore(scene: Scene, name: str, *options: str) -> dict[str, object]:
    """Restore into ``name`` and return the command's report."""
    out = scene.root / name
    environment = {**os.environ, "BASE_DATA_DIR": str(scene.root / ".basenet")}
    command = [sys.executable, "-m", "basenet", "restore", str(scene.archive), str(out)]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--json", *options], env=environment, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise DemoFailed(f"restore ended with {done.returncode}: {done.stderr.decode().strip()}")
    say(f"   restore took {time.monotonic() - started:.2f} s")
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def _dump(path: Path) -> dict[int, tuple[object, ...]]:
    """Return all rows after an integrity check."""
    connection = sqlite3.connect(path)
    try:
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise DemoFailed(f"integrity_check of {path} says {verdict}")
        return {row[0]: row for row in connection.execute("SELECT id, at, text FROM note")}
    finally:
        connection.close()


def _count(path: Path) -> int:
    """Return how many rows came back, which must be the first ones without a gap."""
    rows = _dump(path)
    if sorted(rows) != list(range(1, len(rows) + 1)):
        raise DemoFailed(f"{path} has gaps in its rows")
    return len(rows)
