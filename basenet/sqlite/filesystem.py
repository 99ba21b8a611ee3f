"""Which file system holds a database, and whether SQLite's locks and shared memory work on it.

Theory of operation
===================

Everything that we and the application say to each other goes through byte-range locks and the
mapped -shm. On a network file system, or one that a user-space server imitates, locks may be
seen by one host only, by one process only or by nobody, and two mappings of one file may differ;
SQLite then damages the database quietly. So such a mount is refused by its type, before anything
is opened, and a doubtful one is named. What a type cannot tell (gVisor, Docker Desktop, a
`nolock` option), `locks_visible_across_processes` finds out by trying.

The kernel's list of mounts is /proc/self/mountinfo (proc(5))::

    36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue
    id parent device root  where  options  optional*  -  type source  options

with blanks, tabs, line feeds and backslashes in names as octal escapes. Other systems have no such
list; there the type is unknown and nothing is refused.
"""

import mmap
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, unique
from pathlib import Path
from typing import Final

from basenet.errors import UnavailableError, UsageError
from basenet.sqlite import locks

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_FIELDS_BEFORE_OPTIONAL: Final = 6
_UNKNOWN: Final = "unknown"

_NETWORK: Final = "locks and shared memory do not work reliably across hosts"
_HOST_SHARE: Final = "it is a folder of another machine, whose processes do not see our locks"
_UNSAFE: Final = {
    "nfs": _NETWORK,
    "nfs4": _NETWORK,
    "cifs": _NETWORK,
    "smb3": _NETWORK,
    "smbfs": _NETWORK,
    "ncpfs": _NETWORK,
    "afs": _NETWORK,
    "coda": _NETWORK,
    "ceph": _NETWORK,
    "lustre": _NETWORK,
    "gpfs": _NETWORK,
    "beegfs": _NETWORK,
    "orangefs": _NETWORK,
    "9p": _HOST_SHARE,
    "vboxsf": _HOST_SHARE,
    "vmhgfs": _HOST_SHARE,
    "prl_fs": _HOST_SHARE,
    "fakeowner": _HOST_SHARE,
}
_FUSE: Final = "a user-space file system need not pass on locks and shared memory"
# A block device's driver in user space, and the overlay of rootless containers: both local, both
# leave locks to the kernel.
_LOCAL_FUSE: Final = frozenset({"fuseblk", "fuse.fuse-overlayfs"})
_DOUBTFUL: Final = {
    "tmpfs": "it is memory: a reboot empties it",
    "ramfs": "it is memory: a reboot empties it",
    "overlay": "it is a container's own layer: it goes with the container; use a volume",
    "fuse.fuse-overlayfs": "it is a container's own layer: it goes with the container; "
    "use a volume",
    "virtiofs": "only processes of this virtual machine see each other's locks there",
}


@unique
class Verdict(Enum):
    """What a file system's type alone says."""

    SAFE = "safe"
    DOUBTFUL = "doubtful"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo; ``device`` is st_dev of the files on it (not on btrfs)."""

    device: int
    point: str
    kind: str
    source: str
    is_read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """What holds a path. ``reason`` says why the verdict is not SAFE, else it is empty."""

    path: Path
    point: str
    kind: str
    source: str
    is_read_only: bool
    free_bytes: int
    total_bytes: int
    free_inodes: int | None
    verdict: Verdict
    reason: str


def _unescape(text: str) -> str:
    """Return a name of mountinfo as the file system has it."""
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
    return os.fsdecode(raw.encode("latin-1")) if raw.isascii() else raw


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts in the order in which they were made; a line not understood is no mount."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(" ")
        if "-" not in fields[_FIELDS_BEFORE_OPTIONAL:]:
            continue
        separator = fields.index("-", _FIELDS_BEFORE_OPTIONAL)
        numbers = fields[2].split(":")
        if len(fields) < separator + 3 or not all(number.isdecimal() for number in numbers):
            continue
        options = fields[5].split(",") + "".join(fields[separator + 3 :]).split(",")
        mounts.append(
            Mount(
                device=os.makedev(int(numbers[0]), int(numbers[-1])),
                point=_unescape(fields[4]),
                kind=fields[separator + 1],
                source=_unescape(fields[separator + 2]),
                is_read_only="ro" in options,
            )
        )
    return mounts


def find_mount(path: str, device: int, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that holds the resolved ``path``, whose st_dev is ``device``.

    The longest mount point that leads to the path, and of equals the last made. A mount that lies
    hidden below a later one is told apart by its device, where the device is to be trusted.
    """
    best: Mount | None = None
    best_rank = (False, -1)
    for mount in mounts:
        prefix = mount.point.rstrip("/") + "/"
        if not (path + "/").startswith(prefix):
            continue
        rank = (mount.device == device, len(prefix))
        if rank >= best_rank:
            best, best_rank = mount, rank
    return best


def judge(kind: str) -> tuple[Verdict, str]:
    """Return what the type ``kind`` of a file system says, and why."""
    if kind in _UNSAFE:
        return Verdict.UNSAFE, _UNSAFE[kind]
    if (kind == "fuse" or kind.startswith("fuse.")) and kind not in _LOCAL_FUSE:
        return Verdict.UNSAFE, _FUSE
    if kind in _DOUBTFUL:
        return Verdict.DOUBTFUL, _DOUBTFUL[kind]
    return Verdict.SAFE, ""


def inspect(path: Path) -> Filesystem:
    """Return the facts about the file system that holds ``path``, or its nearest existing parent.

    Raises `UsageError` if not even that can be looked at.
    """
    existing = Path(os.path.realpath(path))
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        device = existing.stat().st_dev
        sizes = os.statvfs(existing)
    except OSError as error:
        raise UsageError(
            f"{existing} cannot be looked at ({error.strerror}): let basenet's user read it"
        ) from error
    mount = find_mount(os.fspath(existing), device, _read_mounts())
    verdict, reason = judge(mount.kind) if mount is not None else (Verdict.SAFE, "")
    return Filesystem(
        path=path,
        point=mount.point if mount is not None else _UNKNOWN,
        kind=mount.kind if mount is not None else _UNKNOWN,
        source=mount.source if mount is not None else _UNKNOWN,
        is_read_only=bool(sizes.f_flag & os.ST_RDONLY),
        free_bytes=sizes.f_bavail * sizes.f_frsize,
        total_bytes=sizes.f_blocks * sizes.f_frsize,
        # File systems without a table of inodes (btrfs) say 0 of 0.
        free_inodes=sizes.f_favail if sizes.f_files else None,
        verdict=verdict,
        reason=reason,
    )


def _read_mounts() -> list[Mount]:
    try:
        return parse_mountinfo(_MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return []  # not Linux, or a container without /proc


def require_usable(path: Path) -> Filesystem:
    """Return the facts about the file system of the database ``path``.

    Raises `UsageError`, one sentence, if it is of an unsafe type or mounted read-only.
    """
    facts = inspect(path)
    if facts.verdict is Verdict.UNSAFE:
        raise UsageError(
            f"{path} lies on {facts.point}, a {facts.kind} file system, where SQLite in WAL mode "
            f"is not safe ({facts.reason}): move the database to a local disk"
        )
    if facts.is_read_only:
        raise UsageError(
            f"{path} lies on {facts.point}, which is mounted read-only: SQLite cannot keep its "
            "-wal and -shm there; mount it read-write"
        )
    return facts


@dataclass(frozen=True, slots=True, kw_only=True)
class LockVisibility:
    """What two processes see of each other in one directory.

    ``posix`` and ``ofd``: a lock of the other process, as SQLite takes it and as we do, is seen
    and excludes. ``shared_memory``: what one writes to a mapping, the other reads.
    """

    posix: bool
    ofd: bool
    shared_memory: bool

    @property
    def is_good(self) -> bool:
        """Whether a database in this directory can be shared between processes at all."""
        return self.posix and self.ofd and self.shared_memory


_POSIX_BYTE: Final = 10
_OFD_BYTE: Final = 20
_MAPPED_BYTE: Final = 30
_SCRATCH_BYTES: Final = 4096
_CHILD_SECONDS_MAX: Final = 10.0
# The other process: it locks as SQLite does (POSIX) and as basenet does (OFD), writes to a
# mapping, says so, and stays until its input ends.
_CHILD: Final = f"""
import fcntl, mmap, os, struct, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
for command, byte in ((fcntl.F_SETLK, {_POSIX_BYTE}), (fcntl.F_OFD_SETLK, {_OFD_BYTE})):
    fcntl.fcntl(descriptor, command, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0))
mapping = mmap.mmap(descriptor, {_SCRATCH_BYTES})
mapping[{_MAPPED_BYTE}] = 1
print("ready", flush=True)
sys.stdin.read()
"""


def locks_visible_across_processes(directory: Path) -> LockVisibility:
    """Try with a child process and a scratch file in ``directory`` what both see of each other.

    Takes about 50 ms. Raises `UsageError` if no file can be made there, `UnavailableError` if the
    child could not do its part (a file system without such locks answers so).
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=".basenet-locks-", dir=directory)
    except OSError as error:
        raise UsageError(
            f"no file can be made in {directory} ({error.strerror}): SQLite needs to keep -wal and "
            "-shm beside the database; let basenet's user write there"
        ) from error
    try:
        # Written and not only made longer: a hole on a full disk would end in SIGBUS.
        os.pwrite(descriptor, bytes(_SCRATCH_BYTES), 0)
        with mmap.mmap(descriptor, _SCRATCH_BYTES) as mapping:
            return _compare_views(descriptor, mapping, name)
    except OSError as error:
        raise UnavailableError(
            f"locks cannot be tried in {directory}: {error.strerror}; see whether the file system "
            "supports byte-range locks"
        ) from error
    finally:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)


def _compare_views(descriptor: int, mapping: mmap.mmap, name: str) -> LockVisibility:
    """Let the child do its part, then look."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _CHILD, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            is_answer, _, _ = select.select([child.stdout], [], [], _CHILD_SECONDS_MAX)
            if not is_answer or child.stdout.readline() != b"ready\n":
                child.kill()
                last_words = child.stderr.read().decode(errors="replace").strip().splitlines()
                raise UnavailableError(
                    f"locks cannot be tried with {name}: "
                    f"{last_words[-1] if last_words else 'the second process ended'}; see whether "
                    "the file system supports byte-range locks and shared memory"
                )
            return LockVisibility(
                posix=_is_excluded(descriptor, _POSIX_BYTE),
                ofd=_is_excluded(descriptor, _OFD_BYTE),
                shared_memory=mapping[_MAPPED_BYTE] == 1,
            )
        finally:
            child.kill()


def _is_excluded(descriptor: int, byte: int) -> bool:
    """Return whether another's lock on ``byte`` is shown to us and keeps us out."""
    is_shown = locks.anyone(descriptor, byte) is not None
    return is_shown and not locks.try_lock(descriptor, byte)
