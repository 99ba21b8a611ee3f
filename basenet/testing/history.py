"""Clients that write wherever the writer is, what they were told, and whether that can be true.

Theory of operation
===================

Every operation adds one to a register and notes it, in one transaction::

    reg   key, version, tag              the register's present version and who made it
    hist  (key, version), tag            who made each version

so it is an atomic increment that learns its place. For such an object linearizability is simple: an
order of the operations is legal iff it is the order of their versions, hence a history of them is
linearizable iff no version was given twice, every version that was acknowledged final is in the
final database under its tag, and whoever ended before another began has the lower version. That
decides it without a search (`find_contradictions`).

An operation is *local* once SQLite acknowledged the commit, and *final* once `wait` said so and the
same connection then still saw its tag. The second look is needed: a commit that was rolled back
before the wait began was not waited for.

The application is a process of its own with the standard library's sqlite3; it knows nothing of
basenet.
"""

import json
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from basenet.errors import BasenetError
from basenet.testing.cluster import SHARD, Cluster, ClusterNode

KEYS: Final = 8
_BATCH_MAX: Final = 12
_WAIT_S: Final = 4.0
_BUSY_S: Final = 1.5
_PAUSE_S: Final = 0.05
# Small rows, and a few of many pages: a snapshot is more than one object then.
_PAD_BYTES: Final = (10, 60, 150) * 8 + (8_000,)

_APPLICATION: Final = """
import json, sqlite3, sys
path, timeout = sys.argv[1], float(sys.argv[2])
db = sqlite3.connect(path, timeout=timeout, isolation_level=None)
db.execute("PRAGMA synchronous=NORMAL")
def bump(key, tag, pad):
    '''Return the version; "not begun" is certain, everything else may have happened.'''
    stage = "begin"
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE IF NOT EXISTS reg (key TEXT PRIMARY KEY, version INT, tag TEXT)")
        db.execute("CREATE TABLE IF NOT EXISTS hist (key TEXT, version INT, tag TEXT, pad BLOB, "
                   "PRIMARY KEY (key, version)) WITHOUT ROWID")
        db.execute("INSERT INTO reg VALUES (?, 1, ?) ON CONFLICT (key) DO UPDATE "
                   "SET version = version + 1, tag = excluded.tag", (key, tag))
        ((version,),) = db.execute("SELECT version FROM reg WHERE key = ?", (key,)).fetchall()
        db.execute("INSERT INTO hist VALUES (?, ?, ?, randomblob(?))", (key, version, tag, pad))
        stage = "commit"
        db.execute("COMMIT")
        return {"version": version}
    except sqlite3.Error as error:
        answer = {"error": str(error), "stage": stage}
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:
            pass
        return answer
def sees(tags):
    rows = db.execute("SELECT tag FROM hist WHERE tag IN (%s)" % ",".join("?" * len(tags)), tags)
    return {"tags": [tag for (tag,) in rows.fetchall()]}
def versions():
    db.execute("BEGIN")
    try:
        reg = db.execute("SELECT key, version FROM reg").fetchall()
        hist = db.execute("SELECT key, max(version), count(*) FROM hist GROUP BY key").fetchall()
        return {"reg": sorted(reg), "hist": sorted(hist)}
    finally:
        db.execute("ROLLBACK")
acts = {"bump": bump, "sees": sees, "versions": versions}
for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        answer = acts[name](*arguments)
    except sqlite3.Error as error:
        answer = {"error": str(error), "stage": "read"}
    print(json.dumps(answer), flush=True)
db.close()
"""


class Outcome(StrEnum):
    """What the client knows of an operation."""

    FAILED = "failed"
    """It certainly did not happen."""

    UNKNOWN = "unknown"
    """The application ended, or COMMIT raised."""

    LOCAL = "local"
    """SQLite acknowledged the commit."""

    FINAL = "final"
    """Nothing may ever lose it."""


@dataclass(slots=True, kw_only=True)
class Operation:
    """One increment. Times are `time.monotonic_ns`.

    ``end_ns``: when it was known to be final, else that of SQLite's answer. ``seq`` is what the
    wait answered for the batch that it belongs to.
    """

    tag: str
    key: str
    node: str
    begin_ns: int
    end_ns: int = 0
    version: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    seq: int | None = None

    def learn(self, answer: Mapping[str, Any]) -> None:
        """Take in what the application was told."""
        self.end_ns = time.monotonic_ns()
        if "error" in answer:
            is_certain = answer["stage"] == "begin"
            self.outcome = Outcome.FAILED if is_certain else Outcome.UNKNOWN
        else:
            self.version, self.outcome = int(answer["version"]), Outcome.LOCAL


class ApplicationGone(Exception):  # noqa: N818  (what happened to it)
    """The application's process ended before it answered."""


class RegisterApplication:
    """The process that has the database open."""

    def __init__(self, database: Path, timeout_s: float = _BUSY_S) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _APPLICATION, str(database), str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ask(self, *words: object) -> dict[str, Any]:
        """Have something done and return the answer; raises `ApplicationGone`."""
        assert self.process.stdin is not None, "a pipe was asked for"
        assert self.process.stdout is not None, "a pipe was asked for"
        try:
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except (OSError, ValueError) as error:
            raise ApplicationGone(str(error)) from error
        if not line.endswith("\n"):
            raise ApplicationGone("it ended")
        answer = json.loads(line)
        assert isinstance(answer, dict), "an answer is a dict"
        return answer

    def close(self) -> None:
        """Let it close the database, which copies the log if nobody else has it open, and end."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        self.process.wait()

    def kill(self) -> None:
        """End it as SIGKILL does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue


def write_unguarded(
    node: ClusterNode, name: str, count: int, *, is_closed: bool
) -> list[Operation]:
    """Commit up to ``count`` operations at a node of which nothing runs; return what was told.

    ``is_closed``: the application closes the database in the end; otherwise it is killed.
    """
    told: list[Operation] = []
    with RegisterApplication(node.database()) as application:
        try:
            for number in range(count):
                tag = f"{name}:{number}:{secrets.token_hex(6)}"
                key = f"r{number % KEYS}"
                begin_ns = time.monotonic_ns()
                told.append(Operation(tag=tag, key=key, node=node.name, begin_ns=begin_ns))
                told[-1].learn(application.ask("bump", key, tag, 60))
        except ApplicationGone:
            return told
        if is_closed:
            application.close()
    return told


class Client:
    """Writes at the present writer until `stop`, in a thread of its own; notes what it is told."""

    def __init__(self, cluster: Cluster, name: str, *, seed: int, shard: str = SHARD) -> None:
        self.operations: list[Operation] = []
        self.error: BaseException | None = None
        self._cluster = cluster
        self._name = name
        self._shard = shard
        self._chance = random.Random(seed)
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> list[Operation]:
        """End it and return its operations; raises what broke it."""
        self._is_stopping.set()
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self.operations

    def count(self, outcome: Outcome) -> int:
        """Return how many operations have the outcome so far."""
        return sum(one.outcome is outcome for one in list(self.operations))

    def _run(self) -> None:
        try:
            while not self._is_stopping.is_set():
                node = self._cluster.find_writer(self._shard)
                if node is None:
                    self._is_stopping.wait(_PAUSE_S)
                    continue
                with RegisterApplication(node.database(self._shard)) as application:
                    while not self._is_stopping.is_set() and self._batch(node, application):
                        self._is_stopping.wait(self._chance.uniform(0, _PAUSE_S))
        except BaseException as error:  # noqa: BLE001  (`stop` raises it in the caller's thread)
            self.error = error

    def _batch(self, node: ClusterNode, application: RegisterApplication) -> bool:
        """Commit a few times and wait for all of them; return whether to go on at this node."""
        batch: list[Operation] = []
        try:
            for _ in range(self._chance.randint(1, _BATCH_MAX)):
                operation = self._bump(node, application)
                if operation.outcome is not Outcome.LOCAL:
                    break
                batch.append(operation)
            return bool(batch) and self._confirm(node, application, batch)
        except ApplicationGone:
            return False

    def _bump(self, node: ClusterNode, application: RegisterApplication) -> Operation:
        operation = Operation(
            tag=f"{self._name}:{len(self.operations)}:{secrets.token_hex(6)}",
            key=f"r{self._chance.randrange(KEYS)}",
            node=node.name,
            begin_ns=time.monotonic_ns(),
        )
        self.operations.append(operation)
        answer = application.ask(
            "bump", operation.key, operation.tag, self._chance.choice(_PAD_BYTES)
        )
        operation.learn(answer)
        return operation

    def _confirm(
        self, node: ClusterNode, application: RegisterApplication, batch: Sequence[Operation]
    ) -> bool:
        try:
            result = node.wait_final(self._shard, _WAIT_S)
        except BasenetError:
            return False
        seen = set(application.ask("sees", [one.tag for one in batch]).get("tags", ()))
        now_ns = time.monotonic_ns()
        for one in batch:
            if one.tag in seen:
                one.outcome, one.end_ns, one.seq = Outcome.FINAL, now_ns, result.seq
        return len(seen) == len(batch)


def find_contradictions(
    operations: Sequence[Operation], final: Mapping[tuple[str, int], str]
) -> list[str]:
    """Return why the history cannot be true; empty if it is linearizable.

    ``final``: the final database's ``hist``, (key, version) to tag.
    """
    found: list[str] = []
    by_key: dict[str, list[Operation]] = {}
    for one in operations:
        if one.outcome is Outcome.FINAL:
            by_key.setdefault(one.key, []).append(one)
            assert one.version is not None, "a final operation has a version"
            held = final.get((one.key, one.version))
            if held != one.tag:
                found.append(
                    f"{one.tag} was acknowledged final at {one.node} as version {one.version} of "
                    f"{one.key}, where the final state has {held}"
                )
    for key, ones in by_key.items():
        found += _find_inversions(key, ones)
    refused = {one.tag for one in operations if one.outcome is Outcome.FAILED}
    found += [f"{tag} failed and is final" for tag in sorted(refused & set(final.values()))]
    return found


def _find_inversions(key: str, ones: list[Operation]) -> list[str]:
    """Return the pairs of which one ended before the other began and has the higher version."""
    found: list[str] = []
    by_begin = sorted(ones, key=lambda one: one.begin_ns)
    by_end = sorted(ones, key=lambda one: one.end_ns)
    highest, ended = None, 0
    for one in by_begin:
        while ended < len(by_end) and by_end[ended].end_ns < one.begin_ns:
            candidate = by_end[ended]
            if highest is None or (candidate.version or 0) > (highest.version or 0):
                highest = candidate
            ended += 1
        if highest is not None and (highest.version or 0) >= (one.version or 0):
            found.append(
                f"{key}: {one.tag} began after {highest.tag} was final and has version "
                f"{one.version}, not above {highest.version}"
            )
    return found
