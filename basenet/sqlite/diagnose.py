"""What is wrong with a database file, from its bytes and its locks, without SQLite.

Theory of operation
===================

A diagnosis must not change what it looks at. So nothing is opened with SQLite, which would recover
a log or roll back a journal; nothing is locked, only asked whether it is; and what is read are a
few pages. It belongs into a process of its own: opening and closing the files would drop the locks
of SQLite connections in the same process (POSIX).

What locks tell, tried with SQLite 3.40 (SHARED, PENDING: bytes of the database file)::

    SHARED read                        an ordinary connection
    SHARED and PENDING exclusive       locking_mode=EXCLUSIVE, or the moment of a last close
    SHARED exclusive, PENDING free     the unix-excl VFS
    nothing, a -wal and no -shm        unix-none or unix-dotfile, or such an application died

Each check gives findings: a word for the check, a level, what is the matter, and how to mend it.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, unique
from pathlib import Path
from typing import Final

import numpy as np

from basenet.errors import BasenetError
from basenet.sqlite import filesystem, locks, unsealed, walformat, walindex
from basenet.sqlite.attach import HEADER_BYTES, MAGIC
from basenet.sqlite.page1 import WRITE_VERSION_AT
from basenet.sqlite.signals import JOURNAL_SUFFIX, SHM_SUFFIX, WAL_SUFFIX
from basenet.units import MIB, is_page_size

_JOURNAL_MAGIC: Final = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
_CHECKSUM_VFS_RESERVED: Final = 8
_DMS_BYTE: Final = 128
_FREE_BYTES_MIN: Final = 256 * MIB
_WAL_LARGE_BYTES: Final = 64 * MIB
# Ten times the default of wal_autocheckpoint.
_FRAMES_WAITING_MAX: Final = 10_000
_SAMPLE_FRAMES: Final = 256
_CHANGE_COUNTER_AT: Final = 24
_SCHEMA_COOKIE_AT: Final = 40
# A last close and a checkpoint hold exclusive locks for a moment.
_TRANSIENT_SECONDS: Final = 0.3


@unique
class Level(Enum):
    """How bad a finding is; only FAIL makes `doctor` fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. ``remedy`` says how to mend it; empty if nothing is to be done."""

    check: str
    level: Level
    message: str
    remedy: str = ""


def ok(check: str, message: str) -> Finding:
    """Return that there is nothing to do."""
    return Finding(check=check, level=Level.OK, message=message)


def warn(check: str, message: str, remedy: str) -> Finding:
    """Return something that works, but not as well as it could or not for long."""
    return Finding(check=check, level=Level.WARN, message=message, remedy=remedy)


def fail(check: str, message: str, remedy: str) -> Finding:
    """Return something that keeps basenet from doing its work."""
    return Finding(check=check, level=Level.FAIL, message=message, remedy=remedy)


def diagnose_database(path: Path) -> list[Finding]:
    """Return what every check says about the database at ``path``; takes up to half a second.

    No SQLite connection to it may be open in this process.
    """
    real = Path(os.path.realpath(path))
    findings = list(_check_directory(real))
    if not real.parent.is_dir():
        return findings
    file = _check_file(real)
    findings.append(file)
    if file.level is not Level.OK:
        return findings
    with ExitStack() as stack:
        try:
            files = _Files(real, stack)
        except OSError as error:
            return [*findings, _unreadable(real, error)]
        header = list(_check_header(files))
        findings += header
        if any(finding.level is Level.FAIL for finding in header):
            return findings
        for check in _CHECKS:
            findings += check(files)
    return findings


def _unreadable(path: Path, error: OSError) -> Finding:
    return fail(
        "file",
        f"{path} or a file beside it cannot be read: {error.strerror}",
        "run doctor and basenet as the user that the application runs as",
    )


class _Files:
    """The database and what lies beside it, opened for reading only."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.database = self._open(path, stack)
        self.facts = os.fstat(self.database)
        self.header = os.pread(self.database, HEADER_BYTES, 0)
        stored = int.from_bytes(self.header[16:18], "big")
        self.page_size = 65536 if stored == 1 else stored
        self.wal = self._open_beside(WAL_SUFFIX, stack)
        self.shm = self._open_beside(SHM_SUFFIX, stack)

    @staticmethod
    def _open(path: Path, stack: ExitStack) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        return descriptor

    def _open_beside(self, suffix: str, stack: ExitStack) -> int | None:
        try:
            return self._open(self.beside(suffix), stack)
        except FileNotFoundError:
            return None

    def beside(self, suffix: str) -> Path:
        return Path(f"{self.path}{suffix}")

    @property
    def is_wal_mode(self) -> bool:
        return self.header[19] == 2  # noqa: PLR2004  (SQLite's read version for WAL)

    @property
    def wal_bytes(self) -> int:
        return os.fstat(self.wal).st_size if self.wal is not None else 0

    def holder(self) -> locks.Holder | None:
        """Return somebody who has the database open."""
        return locks.anyone(self.database, locks.SHARED_FIRST_BYTE, length=locks.SHARED_BYTES)

    def is_attached(self) -> bool:
        """Return whether any process has the database or its -shm open, as far as locks show."""
        if self.holder() is not None:
            return True
        return self.shm is not None and locks.anyone(self.shm, _DMS_BYTE) is not None


def _check_directory(path: Path) -> Iterator[Finding]:
    """Check the file system and the directory, which need not hold the database yet."""
    directory = path.parent
    if not directory.is_dir():
        yield fail(
            "directory",
            f"{directory} does not exist",
            "create it, or correct the path in BASE_SHARDS",
        )
        return
    yield from _check_filesystem(path)
    if not os.access(directory, os.W_OK | os.X_OK):
        yield fail(
            "directory",
            f"this user may not write to {directory}, where SQLite keeps -wal and -shm",
            "run basenet as the user that the application runs as",
        )
        return
    try:
        seen = filesystem.locks_visible_across_processes(directory)
    except BasenetError as error:
        yield fail("locks", str(error), "put the database on a local disk")
        return
    if seen.is_good:
        yield ok("locks", f"locks and shared memory in {directory} are seen across processes")
        return
    unseen = [
        name
        for name, is_seen in (
            ("POSIX locks", seen.posix),
            ("OFD locks", seen.ofd),
            ("shared memory", seen.shared_memory),
        )
        if not is_seen
    ]
    yield fail(
        "locks",
        f"{' and '.join(unseen)} in {directory} are not seen by another process",
        "put the database on a local disk; a sandbox (gVisor) or a shared folder hides them",
    )


def _check_filesystem(path: Path) -> Iterator[Finding]:
    try:
        facts = filesystem.inspect(path)
    except BasenetError as error:
        yield fail("filesystem", str(error), "let this user read the directory")
        return
    where = f"{facts.point} ({facts.kind})"
    if facts.verdict is filesystem.Verdict.UNSAFE:
        yield fail(
            "filesystem",
            f"{path} lies on {where}: {facts.reason}",
            "move the database to a local disk",
        )
    elif facts.is_read_only:
        yield fail("filesystem", f"{where} is mounted read-only", "mount it read-write")
    elif facts.verdict is filesystem.Verdict.DOUBTFUL:
        yield warn(
            "filesystem",
            f"{path} lies on {where}: {facts.reason}",
            "put a database that matters on a disk",
        )
    else:
        yield ok("filesystem", f"{path} lies on {where}")
    if facts.free_bytes < _FREE_BYTES_MIN:
        yield warn(
            "free space",
            f"{facts.free_bytes // MIB} MiB are free on {where}",
            "make room: the -wal grows while the archive or a reader is slow",
        )


def _check_file(path: Path) -> Finding:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return warn(
            "file",
            f"{path} does not exist yet",
            "basenet waits for it; correct the path if it should be there",
        )
    except OSError as error:
        return _unreadable(path, error)
    if not stat.S_ISREG(facts.st_mode):
        return fail("file", f"{path} is not a file", "name the database file itself")
    if facts.st_size == 0:
        return warn(
            "file",
            f"{path} is empty, not a database yet",
            "basenet waits for the application's first table",
        )
    if not os.access(path, os.R_OK | os.W_OK):
        return fail(
            "file",
            f"this user may not read and write {path}, and SQLite's readers must lock it",
            "run basenet as the user that the application runs as",
        )
    return ok("file", f"{path} has {facts.st_size} bytes")


def _check_links(files: _Files) -> Iterator[Finding]:
    if files.facts.st_nlink > 1:
        yield warn(
            "links",
            f"{files.path} has {files.facts.st_nlink} names, and SQLite keeps a -wal beside each",
            "remove the other hard links: two names in use damage the database",
        )


def _check_header(files: _Files) -> Iterator[Finding]:
    """Check that it is SQLite, plain, and of a sane page size."""
    if len(files.header) < HEADER_BYTES or not files.header.startswith(MAGIC):
        is_encrypted = files.facts.st_size % 512 == 0 and _looks_random(files.header)
        yield fail(
            "header",
            f"{files.path} does not begin as an SQLite database"
            + (": it looks encrypted" if is_encrypted else ""),
            "basenet captures plain SQLite; encrypt the disk and the archive instead"
            if is_encrypted
            else "name the database file itself, or restore it",
        )
        return
    if not is_page_size(files.page_size):
        yield fail(
            "header",
            f"{files.path} claims a page size of {files.page_size} bytes",
            "restore the database: its first page is damaged",
        )
        return
    yield ok("header", f"an SQLite database with pages of {files.page_size} bytes")
    if files.facts.st_size % files.page_size:
        yield warn(
            "header",
            f"its size is not a multiple of the page size ({files.facts.st_size} bytes)",
            "run `pragma integrity_check`: the file was cut or is being copied",
        )
    reserved = files.header[20]
    if reserved == _CHECKSUM_VFS_RESERVED:
        yield ok("header", "8 bytes a page are reserved, as the checksum VFS does: captured as is")
    elif reserved:
        yield warn(
            "header",
            f"{reserved} bytes a page are reserved, as encrypting extensions do",
            "see that a restored copy opens in the application",
        )


def _looks_random(header: bytes) -> bool:
    """Return whether ``header`` has nothing of a plain file: nearly all its bytes differ."""
    return (
        len(header) == HEADER_BYTES
        and len(set(header)) > HEADER_BYTES // 2
        and b"\0\0" not in (header[:HEADER_BYTES])
    )


def _check_holders(files: _Files) -> Iterator[Finding]:
    """Check who has it open, and whether that leaves room for us."""
    holder = files.holder()
    if holder is not None and holder.is_exclusive:
        time.sleep(_TRANSIENT_SECONDS)
        holder = files.holder()
    if holder is None:
        yield from _check_nobody(files)
        return
    who = f"process {holder.pid}" if holder.pid > 0 else "a process"
    if not holder.is_exclusive:
        yield ok("connections", f"{who} has the database open")
        return
    if locks.anyone(files.database, locks.PENDING_BYTE) is None:
        yield fail(
            "connections",
            f"{who} uses the unix-excl VFS, which keeps everybody else out",
            "open the database with the default VFS",
        )
        return
    yield fail(
        "connections",
        f"{who} holds the database exclusively (locking_mode=EXCLUSIVE, or a long VACUUM)",
        "take `pragma locking_mode=exclusive` out of the application",
    )


def _check_nobody(files: _Files) -> Iterator[Finding]:
    if Path(f"{files.path}.lock").exists():
        yield fail(
            "connections",
            f"{files.path}.lock lies there: an application uses the unix-dotfile VFS",
            "open the database with the default VFS; remove the file if nobody does",
        )
    elif files.wal_bytes and files.shm is None:
        yield warn(
            "connections",
            "there is a -wal and no -shm, and no lock is seen",
            "if the application runs it uses locking_mode=EXCLUSIVE or the unix-none VFS, or locks "
            "are hidden by a sandbox; if not, it died, and its next start recovers",
        )
    else:
        yield ok("connections", "no process has the database open now")


def _check_mode(files: _Files) -> Iterator[Finding]:
    """Check for WAL mode, or a way to it."""
    read_version = files.header[19]
    write_version = _find_write_version(files)
    if (write_version, read_version) == (2, 2):
        yield ok("journal mode", "WAL")
    elif read_version == 1:
        in_use = files.holder() is not None
        # Bytes of a VFS in each page: only that VFS can write page 1.
        is_reserved = bool(files.header[20])
        yield (fail if in_use or is_reserved else warn)(
            "journal mode",
            "a rollback journal, not WAL" + (", and in use" if in_use else ""),
            "run `pragma journal_mode=wal` once in the application"
            + (
                ""
                if is_reserved
                else ", or stop it once so that basenet can"
                if in_use
                else "; else basenet does"
            ),
        )
    elif write_version > 2:  # noqa: PLR2004  (SQLite's write version for WAL)
        yield warn(
            "journal mode",
            f"write version {write_version}: a node of a cluster has marked it as read-only",
            "it takes the mark away where it makes this node the writer; if no node serves the "
            f"file any more, run `basenet shards writable {files.path}`",
        )
    else:
        yield fail(
            "journal mode",
            f"versions {write_version}, {read_version} are not SQLite's",
            "restore the database: its first page is damaged",
        )


def _find_write_version(files: _Files) -> int:
    """Return byte 18 of page 1 as the log has it, or the file if the log has none."""
    found = files.header[WRITE_VERSION_AT]
    header = walformat.decode_header(
        os.pread(files.wal, walformat.HEADER_BYTES, 0) if files.wal else b""
    )
    if header is None or header.page_size != files.page_size:
        return found
    assert files.wal is not None, "a header without a log"
    codec = walformat.FrameCodec(header.page_size, is_big_endian=header.is_big_endian)
    offset = walformat.HEADER_BYTES
    while block := os.pread(files.wal, _SAMPLE_FRAMES * codec.frame_bytes, offset):
        headers = codec.headers(block)
        salts = np.frombuffer(header.salts, ">u4")
        is_of_log = np.logical_and.accumulate((headers[:, 2:4] == salts).all(axis=1))
        for row in np.flatnonzero(is_of_log & (headers[:, 0] == 1)).tolist():
            at = offset + row * codec.frame_bytes + walformat.FRAME_HEADER_BYTES
            found = os.pread(files.wal, 1, at + WRITE_VERSION_AT)[0]
        if not len(is_of_log) or not is_of_log[-1]:
            break
        offset += len(block)
    return found


def _check_journal(files: _Files) -> Iterator[Finding]:
    journal = files.beside(JOURNAL_SUFFIX)
    try:
        with journal.open("rb") as file:
            is_hot = file.read(len(_JOURNAL_MAGIC)) == _JOURNAL_MAGIC
    except FileNotFoundError:
        return
    reserved = locks.anyone(files.database, locks.PENDING_BYTE + 1)
    if is_hot and reserved is None:
        yield fail(
            "hot journal",
            f"{journal} holds a transaction that was not finished",
            "start the application once: SQLite rolls it back; never delete the file",
        )


def _check_wal(files: _Files) -> Iterator[Finding]:
    """Check the log: its header, its size, and whether it belongs to this file."""
    if not files.wal_bytes or files.wal is None:
        return
    wal = files.beside(WAL_SUFFIX)
    header = walformat.decode_header(os.pread(files.wal, walformat.HEADER_BYTES, 0))
    if header is None:
        yield warn(
            "wal",
            f"{wal} has no valid header, so that nothing in it counts",
            "nothing, if the application is just starting; else look at the disk",
        )
        return
    if header.page_size != files.page_size:
        yield fail(
            "stale wal",
            f"{wal} has pages of {header.page_size} bytes and the database of {files.page_size}: "
            "it belongs to another file",
            f"stop the application, keep a copy, and remove {wal}",
        )
        return
    yield from _check_stale(files, header)
    yield from _check_unsealed(files, header)
    yield from _check_size(files)


def _check_stale(files: _Files, header: walformat.WalHeader) -> Iterator[Finding]:
    """Check whether another database file was put beside an old log, which SQLite would replay."""
    if files.is_attached():
        return
    assert files.wal is not None, "a log to judge"
    codec = walformat.FrameCodec(header.page_size, is_big_endian=header.is_big_endian)
    block = os.pread(files.wal, _SAMPLE_FRAMES * codec.frame_bytes, walformat.HEADER_BYTES)
    frames = codec.verify(block, header.salts, header.checksum)
    if not frames.sizes.any():
        return  # nothing in it would be replayed
    remedy = (
        "if you have put the database there by hand, remove -wal and -shm before anybody opens it: "
        "SQLite would replay them onto it, unnoticed"
    )
    wal = files.beside(WAL_SUFFIX)
    if _is_overtaken(files, frames):
        yield fail(
            "stale wal",
            f"{wal} belongs to an earlier file of that name: the database counts more changes "
            "than the log's last state",
            remedy,
        )
    elif _is_strange(files, frames):
        yield warn(
            "stale wal",
            f"{wal} may belong to an earlier file of that name: the database is newer and holds "
            "none of the log's pages",
            remedy,
        )


def _check_unsealed(files: _Files, header: walformat.WalHeader) -> Iterator[Finding]:
    """Check for frames that an old SQLite committed without a checksum."""
    assert files.wal is not None, "a log to judge"
    codec = walformat.FrameCodec(header.page_size, is_big_endian=header.is_big_endian)
    commits = unsealed.count_unsealed(files.wal, codec, header)
    if not commits:
        return
    wal = files.beside(WAL_SUFFIX)
    fault = f"{wal} has {commits} commits behind frames without a checksum, a bug of old SQLite"
    if files.is_attached():
        yield fail(
            "wal",
            f"{fault}: they are lost when the last process that has the database open dies",
            "run `pragma wal_checkpoint(truncate)` in the application now, and give it a newer "
            "SQLite; basenet does the first by itself",
        )
    else:
        yield fail(
            "wal",
            f"{fault}: whoever opens the database next does not see them",
            "keep a copy of database and -wal; then give the application a newer SQLite",
        )


def _is_overtaken(files: _Files, frames: walformat.Frames) -> bool:
    """Return whether the file's counters are ahead of the last page 1 that the log brings.

    Never so for a pair: what the file has came through the log.
    """
    rows = np.flatnonzero(frames.pgnos == 1)
    if not len(rows) or len(frames) == _SAMPLE_FRAMES:
        return False  # a later page 1 may lie beyond the sample
    image = frames.images[rows[-1]].tobytes()
    return any(
        files.header[at : at + 4] > image[at : at + 4]
        for at in (_CHANGE_COUNTER_AT, _SCHEMA_COOKIE_AT)
    )


def _is_strange(files: _Files, frames: walformat.Frames) -> bool:
    """Return whether the file was written after the log, but not with the log's pages.

    Only a checkpoint writes to the file of a pair. Copying a pair in the wrong order looks so too.
    """
    assert files.wal is not None, "frames without a log"
    is_newer = os.fstat(files.wal).st_mtime_ns < files.facts.st_mtime_ns
    return is_newer and not _holds_any(files, frames)


def _holds_any(files: _Files, frames: walformat.Frames) -> bool:
    """Return whether the database file has at least one page as some frame has it."""
    for pgno, image in zip(frames.pgnos.tolist(), frames.images, strict=True):
        page = os.pread(files.database, files.page_size, (pgno - 1) * files.page_size)
        if page == image.tobytes():
            return True
    return False


def _check_size(files: _Files) -> Iterator[Finding]:
    """Check for a log that is not copied back, or that was once large."""
    size = files.wal_bytes
    index = walindex.read_index(files.shm) if files.shm is not None else None
    waiting = index.header.frame_max - index.backfilled if index is not None else 0
    if waiting > _FRAMES_WAITING_MAX:
        yield warn(
            "wal",
            f"{waiting} frames of the -wal ({size // MIB} MiB) wait to be copied into the database",
            "a reader that never ends, or wal_autocheckpoint=0, is the usual cause: end "
            "transactions after reading, and leave wal_autocheckpoint at 1000",
        )
    elif size > _WAL_LARGE_BYTES:
        yield warn(
            "wal",
            f"the -wal has {size // MIB} MiB, most of it unused by now",
            "harmless; `pragma journal_size_limit=67108864` in the application keeps it small",
        )
    else:
        yield ok("wal", f"the -wal has {size} bytes, {waiting} frames of it not copied back yet")


def _check_shm(files: _Files) -> Iterator[Finding]:
    """Check whose the wal-index is, and whether it is whole."""
    if files.shm is None:
        return
    facts = os.fstat(files.shm)
    shm = files.beside(SHM_SUFFIX)
    same_owner = facts.st_uid == files.facts.st_uid
    others_may_write = stat.S_IMODE(facts.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    if not same_owner and not others_may_write:
        yield fail(
            "shm owner",
            f"{shm} belongs to user {facts.st_uid} and the database to user {files.facts.st_uid}, "
            "who may not write it",
            f"run both as one user, and `chown {files.facts.st_uid} {shm}`",
        )
    elif not os.access(shm, os.R_OK | os.W_OK):
        yield fail(
            "shm owner",
            f"this user may not write {shm}",
            "run basenet as the user that the application runs as",
        )
    if files.is_attached() and facts.st_size and walindex.read_index(files.shm) is None:
        yield warn(
            "shm",
            f"the header of {shm} is torn: a writer is stopped in the middle of a commit, or died",
            "nothing: the next reader repairs it; if all hang, restart the application",
        )


def _check_owner(files: _Files) -> Iterator[Finding]:
    if locks.anyone(files.database, locks.OWNER_BYTE) is not None:
        yield ok("capture", "a basenet process is capturing this database now")


_CHECKS: Final[tuple[Callable[[_Files], Iterator[Finding]], ...]] = (
    _check_links,
    _check_holders,
    _check_mode,
    _check_journal,
    _check_wal,
    _check_shm,
    _check_owner,
)
