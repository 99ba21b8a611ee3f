"""What the numbers were measured on."""

import datetime as dt
import os
import platform
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import apsw

from basenet import __version__
from basenet.testing.bench.sidecars import litestream_program


def facts() -> dict[str, Any]:
    """Return the machine, the versions and the moment."""
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "processor": _first(Path("/proc/cpuinfo"), "model name"),
        "memory": _first(Path("/proc/meminfo"), "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "load_1_minute": os.getloadavg()[0],
        "python": platform.python_version(),
        "basenet": f"{__version__} ({_commit()})",
        "sqlite_of_the_application": sqlite3.sqlite_version,
        "sqlite_of_basenet": apsw.sqlite_lib_version(),
        "litestream": _say(litestream_program(), "version") or "not installed",
    }


def sentence(machine: dict[str, Any]) -> str:
    """Return the facts as one paragraph."""
    return (
        f"{machine['date']}, {machine['cores']} cores ({machine['processor']}), "
        f"{machine['memory']} memory, {machine['system']}, load {machine['load_1_minute']:.1f} at "
        f"the start; basenet {machine['basenet']} on Python {machine['python']} and SQLite "
        f"{machine['sqlite_of_basenet']}, litestream {machine['litestream']}, the application on "
        f"SQLite {machine['sqlite_of_the_application']}."
    )


def _first(file: Path, name: str) -> str:
    for line in file.read_text().splitlines() if file.exists() else []:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _commit() -> str:
    return _say("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")


def _say(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    return done.stdout.strip()
