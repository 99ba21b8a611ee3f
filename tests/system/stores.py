"""An archive in any store, for daemons and commands that are processes of their own."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from basenet.archive.names import LogName, ShardNames
from basenet.archive.store import Entry, open_store
from basenet.testing.objectstores import SCHEMES, Kind, environment_for
from basenet.units import ShardId
from tests.conftest import BUCKET
from tests.system.harness import Daemon, compare

KINDS = ("file", "s3", "rgw", "gs")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A fresh place in a store. ``environment`` leads to it directly, not through a proxy."""

    url: str
    kind: Kind | None  # None: a directory
    server_url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def through(self, url: str) -> dict[str, str]:
        """Return the environment that leads to it by the proxy at ``url``."""
        assert self.kind is not None, "a directory has no proxy"
        return environment_for(self.kind, url)

    def list(self) -> list[Entry]:
        """Return what is in the store now."""

        async def read() -> list[Entry]:
            store = open_store(self.url, environment=self.environment)
            try:
                return [entry async for entry in store.list("")]
            finally:
                await store.aclose()

        return trio.run(read)

    def archived_seqs(self, *shards: str) -> dict[str, int]:
        """Return the last seq of each shard that a log object in the store holds, 0: none."""
        found = self.list()
        held = {}
        for shard in shards:
            names = ShardNames(service="default", shard=ShardId(shard))
            parsed = [names.parse(entry.name) for entry in found]
            held[shard] = max((name.end for name in parsed if isinstance(name, LogName)), default=0)
        return held

    def run(self, *arguments: str, data_dir: Path) -> tuple[int, str]:
        """Run a command of basenet; return its exit code and everything that it said."""
        inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
        done = subprocess.run(
            [sys.executable, "-m", "basenet", *arguments],
            env=inherited | {"BASE_DATA_DIR": str(data_dir)} | dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    def restore(self, out: Path, *, shard: str, data_dir: Path) -> None:
        """Restore the newest state by the command, into a file of its own."""
        code, said = self.run("restore", self.url, str(out), "--shard", shard, data_dir=data_dir)
        assert code == 0, said

    def check(self, source: Path, *, data_dir: Path) -> None:
        """Restore the newest state and compare it with ``source``, page for page."""
        out = data_dir.with_name("restored") / f"{next(_numbers)}.db"
        out.parent.mkdir(exist_ok=True)
        self.restore(out, shard=source.stem, data_dir=data_dir)
        compare(source, out, data_dir.with_name("scratch"))

    def verify(self, *, data_dir: Path) -> None:
        """Read all of it and check every signature, hash and number, by the command."""
        code, said = self.run("verify", self.url, data_dir=data_dir)
        assert code == 0, said


def make_archive(request: pytest.FixtureRequest, kind: str, folder: Path) -> Archive:
    """Return a new place in the store ``kind``, one of `KINDS`; its server runs from now on."""
    if kind == "file":
        return Archive(url=f"file://{folder}", kind=None)
    for known, scheme in SCHEMES.items():
        if known == kind:
            server_url: str = request.getfixturevalue(f"{kind}_server")
            return Archive(
                url=f"{scheme}://{BUCKET}/system-{next(_numbers)}",
                kind=known,
                server_url=server_url,
                environment=environment_for(known, server_url),
            )
    raise ValueError(kind)


class Host:
    """A folder that stands for a machine: data directory, databases, one daemon after another."""

    def __init__(self, folder: Path, archive: Archive, stack: contextlib.ExitStack) -> None:
        folder.mkdir()
        self.folder = folder
        self.data_dir = folder / "data"
        self.archive = archive
        self._stack = stack
        self._starts = itertools.count()

    def database(self, shard: str = "app") -> Path:
        """Return where a shard's database is."""
        return self.folder / f"{shard}.db"

    def serve(self, environment: Mapping[str, str] | None = None, **more: str) -> Daemon:
        """Start the daemon on all databases of the host, directly at the archive by default."""
        databases = ",".join(str(path) for path in sorted(self.folder.glob("*.db")))
        return self._stack.enter_context(
            Daemon(
                [databases, self.archive.url],
                data_dir=self.data_dir,
                log=self.folder / f"serve-{next(self._starts)}.log",
                environment=dict(environment or self.archive.environment) | more,
            )
        )
