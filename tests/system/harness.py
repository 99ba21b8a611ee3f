"""Real processes around one database: the daemon, the application, and what an archive gives back.

`Scene` is a folder with an application database, an archive and a data directory. `Daemon` is a
`basenet serve` of its own process, `Writer` an application that notes a commit only after SQLite
acknowledged it, `Application` one that is told line by line what to do. Nothing here sleeps in the
hope that something has happened: whoever waits asks until it has, and gives up with the daemon's
log.
"""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

import trio

from basenet.archive.names import ShardNames
from basenet.archive.place import Place
from basenet.archive.plan import Wish
from basenet.archive.restore import RestoreReport, restore
from basenet.archive.store import open_store
from basenet.control.client import DaemonClient, Target
from basenet.control.listeners import SOCKET_NAME
from basenet.control.surface import Level, NodeStatus, ShardState, ShardStatus, WaitResult
from basenet.errors import NotFoundError, UnavailableError
from basenet.keys.trust import TRUSTED_KEYS_NAME, read_trusted_keys
from basenet.units import PublicKeyBytes, Seq, ShardId, TimestampNs, lock_page
from tests.sqlite.application import Application

PATIENCE_S: Final = 30.0
_ASK_EVERY_S: Final = 0.01
_SERVICE: Final = "default"

_Answer = TypeVar("_Answer")


class GaveUp(AssertionError):  # noqa: N818  (what the waiter did)
    """What was waited for did not come."""


def until(
    question: Callable[[], _Answer | None], what: str, patience_s: float = PATIENCE_S
) -> _Answer:
    """Return the first answer of ``question`` that is true; raise `GaveUp` after a while."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise GaveUp(f"{what}: not within {patience_s:.0f} s")
        time.sleep(_ASK_EVERY_S)


class Daemon:
    """One `basenet serve`; leaving its block ends it, whatever it is doing."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        data_dir: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.log = log
        self.client = DaemonClient(Target(socket_path=data_dir / SOCKET_NAME))
        inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
        settings = {
            "BASE_DATA_DIR": str(data_dir),
            "BASE_LISTEN_HTTP": "127.0.0.1:0",
            "BASE_FLUSH_INTERVAL": "100ms",
            "BASE_DETACH_AFTER": "300ms",
            "BASE_NODE_ID": "test-node",
        }
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "basenet", "serve", *arguments],
                env=inherited | settings | dict(environment or {}),
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def read_log(self) -> str:
        """Return everything that was logged."""
        return self.log.read_text()

    def _until(
        self, question: Callable[[], _Answer | None], what: str, patience_s: float
    ) -> _Answer:
        def ask() -> _Answer | None:
            assert self.process.poll() is None, (
                f"the daemon ended with {self.process.returncode} while waiting for: {what}\n"
                + self.read_log()
            )
            try:
                return question()
            except (UnavailableError, NotFoundError):
                return None

        try:
            return until(ask, what, patience_s)
        except GaveUp as error:
            raise GaveUp(f"{error}\n{self.read_log()}") from error

    def wait_answering(self) -> NodeStatus:
        """Return once the daemon answers."""
        return self._until(self.client.get_node_status, "the daemon answers", PATIENCE_S)

    def status(self, shard: str = "app") -> ShardStatus:
        """Return the shard's status now."""
        return self.client.get_shard_status(shard)

    def wait_status(
        self,
        is_reached: Callable[[ShardStatus], object],
        what: str,
        shard: str = "app",
        patience_s: float = PATIENCE_S,
    ) -> ShardStatus:
        """Return the first status of which ``is_reached`` is true."""

        def question() -> ShardStatus | None:
            status = self.status(shard)
            return status if is_reached(status) else None

        return self._until(question, what, patience_s)

    def wait_state(
        self, *states: ShardState, shard: str = "app", patience_s: float = PATIENCE_S
    ) -> ShardStatus:
        """Return once the shard is in one of ``states``."""
        return self.wait_status(
            lambda status: status.state in states, f"{states}", shard, patience_s
        )

    def wait_capturing(self, shard: str = "app") -> ShardStatus:
        """Return once the shard is captured."""
        return self.wait_state(ShardState.CAPTURING, shard=shard)

    def wait_archived(self, shard: str = "app", patience_s: float = PATIENCE_S) -> WaitResult:
        """Return once what is committed at this moment is archived."""
        return self._until(
            lambda: self.client.wait(shard, None, Level.ARCHIVED, patience_s),
            "the present commit is archived",
            patience_s,
        )

    def wait_final(self, shard: str = "app") -> WaitResult:
        """Return once what is committed at this moment is final."""
        return self._until(
            lambda: self.client.wait(shard, None, Level.FINAL, PATIENCE_S),
            "the present commit is final",
            PATIENCE_S,
        )

    def wait_snapshot(self, shard: str = "app", above: int = 0) -> ShardStatus:
        """Return once the shard has a snapshot above the seq ``above``."""
        return self.wait_status(
            lambda status: (status.last_snapshot_seq or 0) > above, "a snapshot", shard
        )

    def get(self, path: str) -> str:
        """Return what ``path`` answers on the TCP port that the daemon chose and announced."""
        (address,) = re.findall(r"^BASE_LISTEN_ADDR=(.+)$", self.read_log(), re.MULTILINE)
        with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE_S) as answer:
            body: bytes = answer.read()
        return body.decode()

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def wait_ended(self, patience_s: float = PATIENCE_S) -> int:
        """Return the exit code once the process has ended by itself."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired as error:
            raise GaveUp(f"the daemon goes on after {patience_s} s\n{self.read_log()}") from error

    def stop(self, patience_s: float = PATIENCE_S) -> int:
        """End it as an operator does and return its exit code."""
        self.process.terminate()
        return self.wait_ended(patience_s)

    def kill(self) -> None:
        """End it as SIGKILL does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


_WRITER: Final = """
import random, sqlite3, sys, time
path, log, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(seed)
c = sqlite3.connect(path, isolation_level=None, timeout=60)
c.execute("PRAGMA journal_mode=WAL")
c.execute("PRAGMA synchronous=NORMAL")
c.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, at INTEGER, body BLOB)")
number = c.execute("SELECT coalesce(max(id), 0) FROM note").fetchone()[0]
with open(log, "ab", buffering=0) as acknowledged:
    while True:
        number += 1
        c.execute("BEGIN IMMEDIATE")
        body = chance.randbytes(chance.choice((20, 200, 3000)))
        c.execute("INSERT INTO note VALUES (?, ?, ?)", (number, time.time_ns(), body))
        if chance.random() < 0.02:
            c.execute("UPDATE note SET body = zeroblob(5000) WHERE id % 97 = ?", (number % 97,))
        if chance.random() < 0.01:
            c.execute("CREATE TABLE IF NOT EXISTS extra%d (x)" % chance.randrange(5))
        c.execute("COMMIT")
        acknowledged.write(b"%d %d\\n" % (number, time.time_ns()))
        if chance.random() < 0.001:
            c.execute("VACUUM")
        if chance.random() < 0.001:  # a transaction of several frames, and pages that go again
            c.execute("CREATE TABLE heap AS SELECT randomblob(12000000) AS x")
            c.execute("DROP TABLE heap")
        if chance.random() < 0.003:
            mode = chance.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
            c.execute("PRAGMA wal_checkpoint(%s)" % mode)
        pause = chance.choice((0, 0, 0, 0.0005, 0.002))
        if pause:
            time.sleep(pause)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """A commit that SQLite acknowledged to the application."""

    number: int
    at_ns: int


class Writer:
    """An application that commits rows 1, 2, 3, ... as fast as chance lets it."""

    def __init__(self, database: Path, acknowledged: Path, *, seed: int) -> None:
        self._acknowledged = acknowledged
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(database), str(acknowledged), str(seed)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as SIGKILL does; harmless when it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait_for(self, number: int) -> None:
        """Return once the commit ``number`` is acknowledged."""
        until(lambda: self.last() >= number, f"commit {number}")

    def last(self) -> int:
        """Return the number of the last acknowledged commit, 0 before the first."""
        commits = read_acknowledged(self._acknowledged)
        return commits[-1].number if commits else 0


def read_acknowledged(path: Path) -> list[Acknowledged]:
    """Return the commits that a writer noted; a line that its death cut off does not count."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [
        Acknowledged(number=int(number), at_ns=int(at_ns))
        for number, at_ns in (line.split() for line in lines)
    ]


class Scene:
    """A folder with an application's database, its archive and the daemon's data directory."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.database = folder / "app.db"
        self.archive = folder / "archive"
        self.data_dir = folder / "data"
        self.acknowledged = folder / "acknowledged.txt"
        self._stack = stack
        self._serial = 0

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def serve(
        self,
        *options: str,
        databases: str | None = None,
        archive: str | None = None,
        data_dir: Path | None = None,
        **environment: str,
    ) -> Daemon:
        """Start the daemon; it runs until the test ends at the latest."""
        return self._stack.enter_context(
            Daemon(
                [*options, databases or str(self.database), archive or str(self.archive)],
                data_dir=data_dir or self.data_dir,
                log=self.folder / f"serve-{self._next()}.log",
                environment=environment,
            )
        )

    def start_application(
        self, path: Path | None = None, *, suffix: str = "", timeout_s: float = 20
    ) -> Application:
        """Start an application with one connection to the database."""
        return self._stack.enter_context(
            Application(path or self.database, suffix=suffix, timeout_s=timeout_s)
        )

    def start_wal_application(self, path: Path | None = None, *pragmas: str) -> Application:
        """Start an application whose database is in WAL mode and has a table ``t(x, y)``."""
        application = self.start_application(path)
        application.sql(*pragmas, "PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t(x, y)")
        return application

    def start_writer(self, *, seed: int = 1) -> Writer:
        """Start an application that commits without end."""
        return self._stack.enter_context(Writer(self.database, self.acknowledged, seed=seed))

    def restore(
        self,
        *,
        shard: str = "app",
        to_seq: int | None = None,
        to_time_ns: int | None = None,
        archive: Path | None = None,
        data_dir: Path | None = None,
    ) -> "Restored":
        """Restore into a new file, checked with SQLite's integrity_check."""
        out = self.folder / f"restored-{self._next()}.db"
        wish = Wish(
            to_seq=None if to_seq is None else Seq(to_seq),
            to_time_ns=None if to_time_ns is None else TimestampNs(to_time_ns),
        )
        report = restore_file(
            archive or self.archive,
            out,
            shard=shard,
            wish=wish,
            trusted=read_publics(data_dir or self.data_dir),
        )
        return Restored(path=out, report=report)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command of basenet to its end; return exit code, output and errors."""
        inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
        done = subprocess.run(
            [sys.executable, "-m", "basenet", *arguments],
            env=inherited | {"BASE_DATA_DIR": str(self.data_dir)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def check_restore(
        self, *, shard: str = "app", database: Path | None = None, archive: Path | None = None
    ) -> "Restored":
        """Restore the newest state and compare it with the source, page for page."""
        restored = self.restore(shard=shard, archive=archive)
        compare(database or self.database, restored.path, self.folder / "scratch")
        return restored


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A restored file and the report of its restore."""

    path: Path
    report: RestoreReport

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """Return what ``sql`` answers on the restored database."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql).fetchall()


def read_publics(data_dir: Path) -> frozenset[PublicKeyBytes]:
    """Return the keys that the data directory trusts."""
    return read_trusted_keys(data_dir / TRUSTED_KEYS_NAME).publics


def restore_file(
    archive: Path,
    out: Path,
    *,
    shard: str,
    wish: Wish,
    trusted: frozenset[PublicKeyBytes],
) -> RestoreReport:
    """Restore one shard of the archive directory into ``out``."""

    async def run() -> RestoreReport:
        store = open_store(f"file://{archive}", environment={})
        names = ShardNames(service=_SERVICE, shard=ShardId(shard))
        try:
            return await restore(store, names, Place(out), trusted=trusted, wish=wish)
        finally:
            await store.aclose()

    try:
        report = trio.run(run)
    except BaseExceptionGroup as group:
        raise _first(group) from group
    with contextlib.closing(sqlite3.connect(out)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return report


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def compare(source: Path, restored: Path, scratch: Path) -> None:
    """Assert that both databases are equal, page for page, in TRUNCATE-checkpointed copies.

    Bytes 18 and 19 of page 1 count as 2 and the lock page as zeros (docs/formats). The source is
    copied by another process, since to close it here would drop locks of this one.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    left = _checkpointed(source, scratch / "source.db")
    right = _checkpointed(restored, scratch / "restored.db")
    assert left.stat().st_size == right.stat().st_size
    with left.open("rb") as ours, right.open("rb") as theirs:
        page_size = _page_size(ours.read(100))
        assert page_size == _page_size(theirs.read(100))
        ours.seek(0)
        theirs.seek(0)
        differing: list[int] = []
        for pgno in range(1, left.stat().st_size // page_size + 1):
            pages = ours.read(page_size), theirs.read(page_size)
            if pages[0] != pages[1] and pgno != lock_page(page_size):
                is_header = pgno == 1 and _normal(pages[0]) == _normal(pages[1])
                differing += [] if is_header else [pgno]
    assert differing == [], f"pages {differing[:20]} of {source} and {restored} differ"
    shutil.rmtree(scratch)


def _normal(page: bytes) -> bytes:
    return page[:18] + b"\2\2" + page[20:]


def _page_size(header: bytes) -> int:
    stored = int.from_bytes(header[16:18], "big")
    return 65536 if stored == 1 else stored


def _checkpointed(path: Path, copy: Path) -> Path:
    # The log first: a checkpoint between the two copies then only repeats what the log says. A
    # daemon that lets go of the file meanwhile deletes the log, and all is in the file.
    for suffix in ("-wal", ""):
        source = Path(f"{path}{suffix}")
        if source.exists():
            done = subprocess.run(
                ["cp", "--sparse=always", source, f"{copy}{suffix}"],
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0 or not source.exists(), done.stderr
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return copy
