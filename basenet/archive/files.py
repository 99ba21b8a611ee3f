"""Files that hold what they should after a crash, and a lock on what a name leads to.

Everything here blocks and is safe to use from several threads.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from basenet.archive.port import StoreUnavailable

LOCK_WAIT_SECONDS: Final = 5.0
LOCK_POLL_SECONDS: Final = 0.002

# A new file needs its bytes and its size on the disk, not its times. macOS has no fdatasync.
_sync_file = getattr(os, "fdatasync", os.fsync)


class DirectorySyncs:
    """Makes names in directories durable; threads that want the same directory share one fsync.

    A sync covers every name made before it *started*. A thread notes how many had started when it
    came. Once it holds the lock and a later one has succeeded, there is nothing left to do.
    """

    class _Directory:
        """One directory: the lock held during its fsync, and two numbers of its fsyncs."""

        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.started_count = 0
            self.succeeded_last = 0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._directories: WeakValueDictionary[Path, DirectorySyncs._Directory] = (
            WeakValueDictionary()
        )

    def sync(self, path: Path) -> None:
        """Return when every name that is now in the directory ``path`` is durable."""
        with self._lock:
            directory = self._directories.get(path)
            if directory is None:
                self._directories[path] = directory = self._Directory()
        seen_count = directory.started_count
        with directory.lock:
            if directory.succeeded_last > seen_count:
                return
            directory.started_count += 1
            _sync_directory(path)
            directory.succeeded_last = directory.started_count


def _sync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Lock the file that ``path`` leads to, and give its descriptor.

    While it is locked, nobody who also locks first can replace or delete it. Raises
    `FileNotFoundError` if there is none, and `StoreUnavailable` after `LOCK_WAIT_SECONDS`.
    """
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _wait_for_lock(file, path, deadline)
            # The last holder may have put another file in the place of the one we waited for.
            if os.path.samestat(os.fstat(file), path.stat()):
                yield file
                return
        finally:
            os.close(file)


def _wait_for_lock(file: int, path: Path, deadline: float) -> None:
    # Not a blocking flock: its holder can be a stopped process, or a machine that is gone.
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"{path} has been locked for {LOCK_WAIT_SECONDS:g} s by another process: "
                    "look for a stopped basenet on this archive"
                ) from error
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return


def write_durable(path: Path, data: bytes) -> None:
    """Write a new file, 0600, whose bytes are durable; its name is not until its directory is."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        _sync_file(file)
    finally:
        os.close(file)


def read_file(path: Path) -> bytes:
    """Return the bytes of the file at ``path``."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_descriptor(file)
    finally:
        os.close(file)


def read_descriptor(file: int, start: int = 0, length: int | None = None) -> bytes:
    """Return ``length`` bytes of an open file from ``start``, or as many as there are."""
    rest_bytes = max(0, os.fstat(file).st_size - start)
    if length is not None:
        rest_bytes = min(rest_bytes, length)
    pieces = []
    while rest_bytes and (piece := os.pread(file, rest_bytes, start)):
        pieces.append(piece)
        start += len(piece)
        rest_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
