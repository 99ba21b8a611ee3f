"""The archive that the nodes of a cluster share, and how it fails.

Theory of operation
===================

A directory, so that it needs no server and nothing of it can be lost in between. Its faults::

    missing      a directory above it has another name for a while: nothing is read or written
    read-only    its filesystem is mounted again without writing; it is read as before
    full         a file beside it takes all room

The last two need a filesystem of its own (``has_disk``), and root to mount it. `grow_old` makes
merged objects as old as they must be before retention deletes what they cover.

Settings are as short as a run: many small objects, which are merged; a snapshot every few seconds;
and, with ``has_retention``, deletions all the time.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from basenet.archive.retention import MERGE_GRACE_NS
from basenet.testing.hardware import Hardware

RETENTION: Final = "20s"
_FOR_EVER: Final = "36500d"
_FLUSH_INTERVAL: Final = "40ms"
_SNAPSHOT_INTERVAL: Final = "6s"
_MOUNT_TRIES: Final = 20
_MOUNT_AGAIN_S: Final = 0.02


class ClusterArchive:
    """A directory; `close` unmounts what it lies on, its files stay."""

    def __init__(self, folder: Path, *, has_disk: bool = False, has_retention: bool = True) -> None:
        """Use the one in ``folder``, or make it, on a disk of its own if asked for."""
        self._hardware = Hardware(folder, has_disk=has_disk)
        self._has_disk = has_disk
        self._away = self._hardware.disk / "away"
        self.directory = self._hardware.disk / "here" / "archive"
        self.retention = RETENTION if has_retention else _FOR_EVER
        self.absences = 0
        """How often it was taken away; odd while it is."""
        self.directory.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """The archive as a URL."""
        return f"file://{self.directory}"

    @property
    def settings(self) -> Mapping[str, str]:
        """What the nodes are given."""
        return {
            "BASE_ARCHIVE": self.url,
            "BASE_FLUSH_INTERVAL": _FLUSH_INTERVAL,
            "BASE_SNAPSHOT_INTERVAL": _SNAPSHOT_INTERVAL,
            "BASE_RETENTION": self.retention,
        }

    def count_merged(self) -> int:
        """Return how many log objects were merged from others."""
        return len(list(self._merged()))

    # Faults.

    def take_away(self) -> None:
        """Let it be missing."""
        self.absences += 1
        self.directory.parent.rename(self._away)

    def protect(self) -> bool:
        """Let nobody write; return whether that was possible: not while a write is under way."""
        return self._mount_again("ro")

    def fill(self) -> None:
        """Leave no room."""
        self._hardware.fill()

    def heal(self) -> None:
        """End every fault."""
        if self._has_disk:
            self._mount_again("rw")
            self._hardware.free()
        with suppress(FileNotFoundError):
            self._away.rename(self.directory.parent)
            self.absences += 1

    def grow_old(self) -> None:
        """Make merged objects so old that what they cover may go."""
        then_s = time.time() - 2 * MERGE_GRACE_NS / 1e9
        for path in self._merged():
            with suppress(OSError):
                os.utime(path, (then_s, then_s))

    def close(self) -> None:
        """End every fault and unmount; idempotent."""
        self.heal()
        self._has_disk = False
        self._hardware.close()

    def _merged(self) -> Iterator[Path]:
        return self.directory.glob("*/*/*/log/*/*-L?.lbn")

    def _mount_again(self, how: str) -> bool:
        assert self._has_disk, "this archive has no disk of its own"
        command = ["mount", "-o", f"remount,{how}", str(self._hardware.disk)]
        for _ in range(_MOUNT_TRIES):
            if not subprocess.run(command, capture_output=True, check=False).returncode:
                return True
            time.sleep(_MOUNT_AGAIN_S)
        return False
