"""A disk that fails when told to: an apsw VFS between SQLite and the real one.

While it is registered every new apsw connection goes through it. What it was asked to do stands in
``trace``, so that a test can say what was synced when.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw

LOG = "-wal"
DATABASE = ".db"


class FaultyDisk(apsw.VFS):
    """Passes everything on to the operating system until `fail` says otherwise."""

    def __init__(self, base: str) -> None:
        super().__init__("faulty", base, makedefault=True)
        self.base = base
        self.trace: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], type[Exception]] = {}
        self._spared = 0

    def xOpen(self, name: Any, flags: list[int]) -> "_File":  # noqa: N802  (SQLite's name)
        return _File(self, name, flags)

    def fail(self, act: str, suffix: str, error: type[Exception]) -> None:
        """From now on ``act`` (read, write, sync) on files that end in ``suffix`` fails."""
        self.faults[act, suffix] = error

    def fail_after(self, spared: int, act: str, suffix: str, error: type[Exception]) -> None:
        """Fail as `fail` says, but not the next ``spared`` times."""
        self._spared = spared
        self.fail(act, suffix, error)

    def heal(self) -> None:
        """Let everything succeed again."""
        self.faults.clear()

    def do(self, act: str, name: str, perform: Callable[[], Any]) -> Any:
        for (failing, suffix), error in self.faults.items():
            if failing == act and name.endswith(suffix):
                if self._spared:
                    self._spared -= 1
                    break
                raise error("the disk was told to fail")
        self.trace.append((act, name))
        return perform()


class _File(apsw.VFSFile):
    def __init__(self, disk: FaultyDisk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        super().__init__(disk.base, name, flags)

    def xRead(self, amount: int, offset: int) -> Any:  # noqa: N802
        return self._disk.do("read", self._name, lambda: super(_File, self).xRead(amount, offset))

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        self._disk.do("write", self._name, lambda: super(_File, self).xWrite(data, offset))

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.do("sync", self._name, lambda: super(_File, self).xSync(flags))


@contextmanager
def faulty_disk(base: str = "unix") -> Iterator[FaultyDisk]:
    """Put a faulty disk under all connections that are opened in the body; close them in it."""
    disk = FaultyDisk(base)
    try:
        yield disk
    finally:
        disk.unregister()
