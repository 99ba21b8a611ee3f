"""The archive in a directory: ``file://``.

Theory of operation
===================

An object is one file, 0600, and a segment of its name one directory, 0700. A write first makes a
whole and durable temporary file in the root, ``.tmp-<pid>-<random>``, and then gives it its name::

    put_if_absent   link(temporary, name)        fails with EEXIST: exactly one of many succeeds
    replace_if      flock(file at name), compare, rename(temporary, name)

and at last makes the name durable by fsync of its directory. So a reader finds a whole object or
none, after a crash of the process and after one of the machine. A token is the SHA-256 of the
content.

The flock is taken on the object's file itself. Whoever gets it looks whether the name still leads
to that file, because a replacement puts another file in its place; if not, he starts again with
the new one. There is no lock file that could be left behind, be deleted, or need a name.

A crash can leave temporary files. They are never listed, and the next writer removes those that
are older than a day by the wall clock: should that be wrong, a write that is under way fails and is
tried again.
"""

import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import trio

from basenet.archive.files import (
    DirectorySyncs,
    locked,
    read_descriptor,
    read_file,
    write_durable,
)
from basenet.archive.port import (
    Entry,
    Listing,
    Object,
    Store,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    StoreUnavailable,
    Token,
    check_name,
)
from basenet.errors import BasenetError

TEMPORARY_PREFIX: Final = ".tmp-"
LEFTOVER_AGE_SECONDS: Final = 24 * 3600
PAGE_ENTRIES: Final = 1000
CONCURRENT_CALLS_MAX: Final = 8

_Result = TypeVar("_Result")

_NO_LINKS = (
    StoreRefused,
    (
        "{where} is on a file system without hard links, which keeps no conditions: take another, "
        "or set BASE_ARCHIVE_UNCONDITIONAL=1 for a single writer"
    ),
)
_IN_THE_WAY = (
    StoreRefused,
    "{what} is in the way of object {name} in {where}: give the archive a directory of its own",
)
_NO_DIRECTORY = "{what} is a file and no directory: give the archive a directory of its own"
_FULL = (StoreUnavailable, "{where} is full: make room in it, or raise its quota")
_SENTENCES: Final[dict[int | None, tuple[type[BasenetError], str]]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: (StoreRefused, "{where} is on a read-only file system: remount it writable"),
    errno.EACCES: (
        StoreRefused,
        "no permission for {what} in {where}: give it to the user with the id {user}",
    ),
    errno.ENOENT: (StoreRefused, "{where} is missing: make it, or mount the disk it lies on"),
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EPERM: _NO_LINKS,
    errno.EOPNOTSUPP: _NO_LINKS,
}
_ELSE = (
    StoreUnavailable,
    "{where} failed at object {name}: {reason}; look at the disk and the kernel's log",
)


class DirectoryStore(Store):
    """The port on a `DirectoryTree`: its blocking calls run in threads, a few at a time."""

    def __init__(self, root: Path) -> None:
        """Keep objects below ``root``, which the first write makes if its parent exists."""
        self._tree = DirectoryTree(root.absolute())
        self._limiter = trio.CapacityLimiter(CONCURRENT_CALLS_MAX)

    @property
    def url(self) -> str:
        """Return the root as a URL."""
        return f"file://{self._tree.root}"

    @property
    def endpoint(self) -> str:
        """Return the root as a URL, without symbolic links."""
        return f"file://{self._tree.root.resolve()}"

    async def put_if_absent(self, name: str, data: bytes) -> Token:
        """Link a durable file to the name."""
        return await self._in_thread(lambda: self._tree.put_if_absent(name, data))

    async def replace_if(self, name: str, data: bytes, expected: Token | None) -> Token:
        """Rename a durable file over the object if its content hash is ``expected``."""
        if expected is None:
            return await self.put_if_absent(name, data)
        return await self._in_thread(lambda: self._tree.replace_if(name, data, expected))

    async def put_unconditional(self, name: str, data: bytes) -> Token:
        """Rename a durable file to the name."""
        return await self._in_thread(lambda: self._tree.put_unconditional(name, data))

    async def get(self, name: str) -> Object:
        """Read the object and hash it; both times are by this machine's clock."""
        return await self._in_thread(lambda: self._tree.get(name))

    async def get_data(self, name: str) -> bytes:
        """Read the object without hashing it for a token."""
        return await self._in_thread(lambda: self._tree.get_data(name))

    async def get_range(self, name: str, start: int, length: int) -> bytes:
        """Read a part of the object."""
        return await self._in_thread(lambda: self._tree.get_range(name, start, length))

    def list(self, prefix: str, start_after: str | None = None) -> Listing:
        """Walk the tree as the entries are consumed, one directory at a time."""
        walk = self._tree.walk(prefix, start_after or "")

        async def next_page() -> tuple[Entry, ...] | None:
            return await self._in_thread(lambda: tuple(islice(walk, PAGE_ENTRIES))) or None

        return Listing(next_page)

    async def delete(self, name: str) -> None:
        """Unlink the object."""
        await self._in_thread(lambda: self._tree.delete(name))

    async def aclose(self) -> None:
        """Do nothing: no file stays open between calls."""
        await trio.lowlevel.checkpoint()

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        # A network mount that is gone holds its callers in the kernel: do not wait for them.
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)


class DirectoryTree:
    """Objects as files below ``root``. Blocking, and safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directory_syncs = DirectorySyncs()
        self._swept_at_seconds: float | None = None

    def put_if_absent(self, name: str, data: bytes) -> Token:
        """See `Store.put_if_absent`."""
        with self._target(name) as target, self._temporary(data) as temporary:
            while not self._create(temporary, target):
                try:
                    if read_file(target) == data:
                        break  # an earlier try of ours got this far; its sync may lack
                except FileNotFoundError:
                    continue  # deleted since
                raise StoreConflict(f"{target} exists with other content: another writer was first")
            self._directory_syncs.sync(target.parent)
        return _compute_token(data)

    def replace_if(self, name: str, data: bytes, expected: Token) -> Token:
        """See `Store.replace_if`."""
        with self._target(name) as target, self._temporary(data) as temporary:
            try:
                with locked(target) as file:
                    current = read_descriptor(file)
                    if _compute_token(current) == expected:
                        temporary.rename(target)
                    elif current != data:
                        raise StoreConflict(
                            f"{target} is not the version that was read: another writer was first"
                        )
            except FileNotFoundError as error:
                raise StoreConflict(
                    f"{target} is gone, so the version that was read cannot be replaced"
                ) from error
            self._directory_syncs.sync(target.parent)
        return _compute_token(data)

    def put_unconditional(self, name: str, data: bytes) -> Token:
        """See `Store.put_unconditional`."""
        with self._target(name) as target, self._temporary(data) as temporary:
            self._make_directories(target)
            # Waiting for a replacement that is under way keeps it what it promises to be.
            try:
                with locked(target):
                    temporary.rename(target)
            except FileNotFoundError:
                temporary.rename(target)
            self._directory_syncs.sync(target.parent)
        return _compute_token(data)

    def get(self, name: str) -> Object:
        """See `Store.get`."""
        with self._opened(name) as file:
            modified_ns = os.fstat(file).st_mtime_ns
            data = read_descriptor(file)
        # A directory has no clock: ours may be years ahead of the one that wrote the file.
        return Object(
            data=data, token=_compute_token(data), modified_ns=modified_ns, server_now_ns=None
        )

    def get_data(self, name: str) -> bytes:
        """See `Store.get_data`."""
        with self._opened(name) as file:
            return read_descriptor(file)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """See `Store.get_range`."""
        with self._opened(name) as file:
            return read_descriptor(file, start, length)

    def delete(self, name: str) -> None:
        """See `Store.delete`. Not synced: a deletion that power loss undoes is asked for again."""
        with self._target(name) as target:
            try:
                with locked(target):
                    target.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return

    def walk(self, prefix: str, start_after: str) -> Iterator[Entry]:
        """Yield the objects whose names begin with ``prefix``, in order, beyond ``start_after``."""
        above, slash, _ = prefix.rpartition("/")
        if above:
            check_name(above)
        with self._translated(prefix):
            self._check_root()
            yield from self._walk_directory(above + slash, prefix, start_after)

    def _walk_directory(self, above: str, prefix: str, start_after: str) -> Iterator[Entry]:
        """Yield what lies in the directory ``above``, which is empty or ends with a slash."""
        for name, size in _scan(self.root / above, above):
            if not name.startswith(prefix):
                continue
            if size is None:
                if name > start_after or start_after.startswith(name):
                    yield from self._walk_directory(name, prefix, start_after)
            elif name > start_after:
                yield Entry(name=name, size=size)

    @contextmanager
    def _target(self, name: str) -> Iterator[Path]:
        """Give the path of the object, and turn what the file system says of it into our errors."""
        check_name(name)
        if any(segment.startswith(TEMPORARY_PREFIX) for segment in name.split("/")):
            raise StoreRefused(
                f"object name {name!r} is not usable: {TEMPORARY_PREFIX} begins temporary files"
            )
        with self._translated(name):
            yield self.root / name

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Open an object for reading; raise `StoreNotFound` if there is none."""
        with self._target(name) as path:
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError) as error:
                self._check_root()
                raise StoreNotFound(f"there is no object {name} in {self.root}") from error
            try:
                yield file
            except IsADirectoryError as error:
                raise StoreNotFound(f"there is no object {name} in {self.root}") from error
            finally:
                os.close(file)

    def _check_root(self) -> None:
        """Tell an archive that is still empty from a disk that is not mounted."""
        if self.root.is_dir():
            return
        if self.root.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
        if not self.root.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """Make a durable temporary file of ``data``, and remove it if it did not get a name."""
        self._sweep()
        path = self.root / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        try:
            try:
                write_durable(path, data)
            except FileNotFoundError:
                self._make_directory(self.root)
                write_durable(path, data)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _create(self, temporary: Path, target: Path) -> bool:
        """Make the temporary file the object, if there is none."""
        try:
            try:
                os.link(temporary, target)
            except FileNotFoundError:
                self._make_directories(target)
                os.link(temporary, target)
        except FileExistsError:
            return False
        return True

    def _make_directories(self, target: Path) -> None:
        """Make the directories between the root and the object, durable from the top down."""
        for parent in reversed(target.relative_to(self.root).parents[:-1]):
            self._make_directory(self.root / parent)

    def _make_directory(self, path: Path) -> None:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            return
        self._directory_syncs.sync(path.parent)

    def _sweep(self) -> None:
        """Once a day, remove temporary files that crashed writers left behind."""
        now = time.monotonic()
        last = self._swept_at_seconds
        if last is not None and now - last < LEFTOVER_AGE_SECONDS:
            return
        self._swept_at_seconds = now
        for path in self.root.glob(TEMPORARY_PREFIX + "*"):
            try:
                if time.time() - path.stat().st_mtime > LEFTOVER_AGE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue  # another writer swept it

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind, sentence = _SENTENCES.get(error.errno, _ELSE)
            what = _find_in_the_way(Path(error.filename)) if error.filename else name
            if what == self.root and sentence is _IN_THE_WAY[1]:
                sentence = _NO_DIRECTORY
            elif isinstance(what, Path) and what.name.startswith(TEMPORARY_PREFIX):
                what = "a new file"
            raise kind(
                sentence.format(
                    where=f"the archive directory {self.root}",
                    what=what,
                    name=name,
                    reason=error.strerror,
                    user=os.geteuid(),
                )
            ) from error


def _find_in_the_way(path: Path) -> Path:
    """Return the first file on the way to ``path`` that is no directory, or else ``path``."""
    for parent in reversed(path.parents):
        if parent.exists() and not parent.is_dir():
            return parent
    return path


def _scan(path: Path, above: str) -> list[tuple[str, int | None]]:
    """Return (name, size) of what a directory holds, in the order of the names below it.

    A directory has no size and ends with a slash: with it, "a-b" comes before "a/b" as it must.
    """
    try:
        children = list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []  # not made yet, or deleted just now, or an object
    found: list[tuple[str, int | None]] = []
    for child in children:
        if child.name.startswith(TEMPORARY_PREFIX):
            continue
        try:
            status = child.lstat()
        except FileNotFoundError:
            continue  # deleted just now
        if stat.S_ISDIR(status.st_mode):
            found.append((f"{above}{child.name}/", None))
        elif stat.S_ISREG(status.st_mode):
            found.append((above + child.name, status.st_size))
    return sorted(found)


def _compute_token(data: bytes) -> Token:
    return Token(hashlib.sha256(data).hexdigest())
