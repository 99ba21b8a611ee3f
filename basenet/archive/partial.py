"""What an interrupted restore has proven already, and the next one need not fetch again.

Theory of operation
===================

The draft of a restore has one name, ``.app.db.partial``, beside its target. It stays when the
restore is killed, cancelled or given up because the store or the network is away, and the next
restore to that target finds it. Nothing says what is in it, and nothing needs to: the index of the
page set that is restored has the hash of every group of 16 pages, so a group that is there proves
itself, whatever snapshot or attempt it came from. A part of which all groups are right is not
fetched.

Only pages of a page set are found again. What log objects brought is applied anew, from the log.

A draft with less than `KEPT_BYTES_MIN` proven is not worth a file that somebody has to delete, and
one that filled the disk must not go on filling it: these go as ever. Two restores to one target
cannot share a draft: the second one gets a file of its own.

A draft that was linked to its target and not yet unlinked when its process was killed has two
names, and one of them is a database in use by now: it is never written again.
"""

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from basenet.archive.place import DRAFT_MODE, Draft, Place
from basenet.errors import UnavailableError
from basenet.units import MIB

KEPT_BYTES_MIN: Final = 16 * MIB
_ATTEMPTS: Final = 3


class Partial(Draft):
    """A draft that is found again. Made by `open_partial`."""

    def __init__(self, path: Path, file: int) -> None:
        """Take over the descriptor ``file``, which is locked, of ``path``."""
        self.path = path
        self._file = file
        self._found_bytes = os.fstat(file).st_size
        self._proven_bytes = 0
        self._has_failed = False

    @property
    def is_found(self) -> bool:
        """Whether an earlier restore left something."""
        return self._found_bytes > 0

    @property
    def is_worth_keeping(self) -> bool:
        """Whether it stays when the restore is interrupted now."""
        return self._proven_bytes >= KEPT_BYTES_MIN and not self._has_failed

    def note_proven(self, size: int) -> None:
        """Take in that ``size`` bytes more of it are proven."""
        self._proven_bytes += size

    def read(self, offset: int, length: int) -> bytes:
        """Return what an earlier restore left there; b"" where it wrote nothing, or not all."""
        if offset + length > self._found_bytes:
            return b""
        try:
            if os.lseek(self._file, offset, os.SEEK_DATA) != offset:
                return b""
        except OSError:
            return b""  # nothing but a hole from here on, or a file system that cannot say
        return os.pread(self._file, length, offset)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``."""
        with self._noting_failure():
            super().write(offset, data)

    def write_all(self, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Write ``pieces`` end to end from ``offset``."""
        with self._noting_failure():
            super().write_all(offset, pieces)

    def sync(self) -> None:
        """Make the content durable."""
        with self._noting_failure():
            super().sync()

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except UnavailableError:
            self._has_failed = True
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_interrupted = kind is not None and (
            issubclass(kind, UnavailableError) or not issubclass(kind, Exception)
        )
        if is_interrupted and self.is_worth_keeping:
            os.close(self._file)
        else:
            super().__exit__(kind, error, traceback)


def get_partial_path(place: Place) -> Path:
    """Return where the draft of an interrupted restore to ``place`` lies, if there is one."""
    return place.path.with_name(f".{place.path.name}.partial")


def open_partial(place: Place) -> Draft:
    """Return the draft that an earlier restore to ``place`` left, or a new one.

    Raises `UnavailableError` when the disk refuses.
    """
    path = get_partial_path(place)
    for _ in range(_ATTEMPTS):
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, DRAFT_MODE)
        except OSError:
            break
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            break
        if _is_ours_alone(path, file):
            return Partial(path, file)
        path.unlink(missing_ok=True)
        os.close(file)
    return place.open_draft()


def _is_ours_alone(path: Path, file: int) -> bool:
    """Return whether the file has this name and no other, and nobody else can write to it."""
    facts = os.fstat(file)
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return (
        (named.st_dev, named.st_ino) == (facts.st_dev, facts.st_ino)
        and stat.S_ISREG(facts.st_mode)
        and stat.S_IMODE(facts.st_mode) == DRAFT_MODE
        and facts.st_uid == os.geteuid()
        and facts.st_nlink == 1
    )
