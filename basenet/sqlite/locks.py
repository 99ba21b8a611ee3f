"""Byte-range locks: how SQLite's processes, and we among them, see each other.

SQLite locks bytes of the database file and of -shm with POSIX locks, which belong to a process.
Our own locks are open-file-description locks (OFD): they belong to a descriptor, conflict with
POSIX locks of every process, ours included, and go when the descriptor is closed. So a lock of ours
excludes SQLite's writers exactly as another writer would, and ``F_OFD_GETLK`` shows also what our
own SQLite connections hold, while POSIX ``F_GETLK`` shows only other processes.

Nothing here waits but `wait_for_lock`: a lock is had at once or not at all.

::

    database    0x40000000 PENDING | +1 RESERVED | +2..+511 SHARED       0x40001000 our owner byte
    -shm        120 WRITE | 121 CKPT | 122 RECOVER | 123..127 READ(0..4) | 128 DMS
"""

import fcntl
from dataclasses import dataclass
from struct import Struct
from typing import Final

SHARED_FIRST_BYTE: Final = 0x40000002
SHARED_BYTES: Final = 510
PENDING_BYTE: Final = 0x40000000
# Beyond SQLite's own bytes: one daemon per database file.
OWNER_BYTE: Final = 0x40001000

WAL_WRITE_BYTE: Final = 120
WAL_CHECKPOINT_BYTE: Final = 121
WAL_READ_BYTE: Final = 123
WAL_READ_MARKS: Final = 5

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK: Final = Struct("hhqqi4x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who stands in the way: a process, or (``pid`` -1) an open file description."""

    pid: int
    is_exclusive: bool


def try_lock(descriptor: int, first_byte: int, *, length: int = 1, is_shared: bool = False) -> bool:
    """Take an OFD lock; return False at once if anybody holds a conflicting one."""
    kind = fcntl.F_RDLCK if is_shared else fcntl.F_WRLCK
    request = _FLOCK.pack(kind, 0, first_byte, length, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    return True


def wait_for_lock(descriptor: int, first_byte: int, *, length: int = 1) -> None:
    """Take an OFD lock, however long somebody holds a conflicting one.

    Cannot be called back, so it is for a thread of its own; raises `OSError` if the descriptor is
    closed before.
    """
    fcntl.fcntl(
        descriptor, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, 0, first_byte, length, 0)
    )


def unlock(descriptor: int, first_byte: int, *, length: int = 1) -> None:
    """Release an OFD lock taken by `try_lock` through the same descriptor."""
    request = _FLOCK.pack(fcntl.F_UNLCK, 0, first_byte, length, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)


def _query(command: int, descriptor: int, first_byte: int, length: int) -> Holder | None:
    request = _FLOCK.pack(fcntl.F_WRLCK, 0, first_byte, length, 0)
    answer = fcntl.fcntl(descriptor, command, request)
    kind, _whence, _start, _length, pid = _FLOCK.unpack(answer)
    if kind == fcntl.F_UNLCK:
        return None
    return Holder(pid=pid, is_exclusive=kind == fcntl.F_WRLCK)


def other_process(descriptor: int, first_byte: int, *, length: int = 1) -> Holder | None:
    """Return a holder of any lock in the range outside this process, or None."""
    return _query(fcntl.F_GETLK, descriptor, first_byte, length)


def anyone(descriptor: int, first_byte: int, *, length: int = 1) -> Holder | None:
    """Return a holder of any lock in the range but this descriptor's own, or None."""
    return _query(fcntl.F_OFD_GETLK, descriptor, first_byte, length)
