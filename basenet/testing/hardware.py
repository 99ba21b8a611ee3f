"""What a node runs on, and how that fails: a disk that fills up or slows down, a clock that steps.

Theory of operation
===================

*Disk.* With ``has_disk`` a tmpfs of its own holds the node's database and data directory; a file
beside them takes all room that is left (`fill`), so that every write of the daemon and of the
application meets a real ENOSPC. To mount needs root; the node's log and keys are elsewhere.

*Slowness.* With ``can_slow``, `slow` makes everything that the daemon makes durable take longer, by
the failpoint ``sync`` (`basenet.failpoints`).

*Clock.* With ``has_clock`` the node runs under Debian's libfaketime, which reads the offset of
CLOCK_REALTIME from a file; every other clock is that of the machine, as when an administrator or
NTP sets the time. libfaketime 0.9.10 spoils the absolute `clock_nanosleep` of `time.sleep` even
then, so the node's interpreters sleep by select(2), which it leaves alone.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

LIBRARIES: Final = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"),
)
DISK_BYTES: Final = 192 * 1024 * 1024
_PIECE_BYTES: Final = 64 * 1024
_SLEEP: Final = """\
import select, time
def sleep(seconds):
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)
time.sleep = sleep
"""


class Hardware:
    """The disk and the clock of one node; `close` gives them back."""

    def __init__(
        self,
        folder: Path,
        *,
        has_disk: bool = False,
        has_clock: bool = False,
        can_slow: bool = False,
    ) -> None:
        """Mount a disk at ``folder``/disk if asked for; raise `AssertionError` where that fails."""
        self.disk = folder / "disk" if has_disk else folder
        """Where database and data directory belong."""
        self._folder = folder
        self._has_disk = has_disk
        self._can_slow = can_slow
        self._slowness = folder / "slowness"
        self._clock = folder / "clock"
        self._library = find_faketime() if has_clock else None
        folder.mkdir(parents=True, exist_ok=True)
        if has_disk:
            self.disk.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.disk)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert not done.returncode, f"{done.stderr.strip()}: a disk of its own needs root"
        if has_clock:
            assert self._library is not None, "libfaketime is missing: make faketime"
            (folder / "python").mkdir(exist_ok=True)
            (folder / "python" / "sitecustomize.py").write_text(_SLEEP)
            self.step(0)

    @property
    def environment(self) -> Mapping[str, str]:
        """What the node's processes are given."""
        given: dict[str, str] = {}
        if self._can_slow:
            given["BASE_TEST"] = "on"
            given["BASE_FAILPOINTS"] = f"sync=sleep:{self._slowness.absolute()}"
        if self._library is not None:
            paths = [str(self._folder / "python"), os.environ.get("PYTHONPATH", "")]
            given |= {
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "LD_PRELOAD": str(self._library),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_CACHE_DURATION": "1",
                "NO_FAKE_STAT": "1",
            }
        return given

    # The disk.

    def fill(self) -> int:
        """Take all room that is left on the disk; return how many bytes that were."""
        assert self._has_disk, "this node has no disk of its own"
        filler = self.disk / "filler"
        with filler.open("ab", buffering=0) as file:
            for size in (_PIECE_BYTES, 4096):
                with suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        return filler.stat().st_size

    def free(self) -> None:
        """Give it back."""
        (self.disk / "filler").unlink(missing_ok=True)

    def slow(self, milliseconds: int) -> None:
        """Make everything durable take longer from now on; 0 ends that."""
        assert self._can_slow, "this node's disk cannot be slowed"
        if milliseconds:
            self._slowness.write_text(str(milliseconds))
        else:
            self._slowness.unlink(missing_ok=True)

    # The clock.

    def step(self, seconds: int) -> None:
        """Set the node's wall clock to the machine's plus ``seconds``, within a second."""
        fresh = self._clock.with_name("clock.new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._clock)

    def close(self) -> None:
        """Unmount the disk; its files stay in the folder. Idempotent."""
        if not self._has_disk:
            return
        self._has_disk = False
        self.free()
        kept = self._folder / "kept"
        subprocess.run(["cp", "-a", "--sparse=always", str(self.disk), str(kept)], check=True)
        subprocess.run(["umount", "--lazy", str(self.disk)], check=True)
        self.disk.rmdir()
        shutil.move(kept, self.disk)


def find_faketime() -> Path | None:
    """Return libfaketime's library; None where it is not installed."""
    return next((path for path in LIBRARIES if path.exists()), None)


def can_mount() -> bool:
    """Return whether a node can be given a disk of its own."""
    return os.geteuid() == 0 and shutil.which("mount") is not None
