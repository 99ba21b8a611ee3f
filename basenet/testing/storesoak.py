"""``cmd/basenet-store-soak``: load, an object store in bad weather, and SIGKILLs of the daemon.

Applications commit to several databases all the time. One daemon archives them through a fault
proxy, which goes through each kind of weather in turn, with an outage of several minutes in the
middle; now and then the daemon is killed and started again. In the end the sky clears, and then::

    nothing lost      every shard's newest state, restored from the store alone, is its database,
                      and every commit that SQLite acknowledged is in it
    by itself         nobody did anything but to start the daemon again
    memory bounded    the largest memory of any of the daemons
    no herd           requests in the busiest tenth of a second, in and after the outage
    the truth         what status said was archived was in the store each time it was looked at;
                      in the outage every shard said what is wrong, afterwards that all is well

and objects, writes and bytes are counted. What a run tells is printed; it ends with 1 if any of
this did not hold.
"""

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

import trio

from basenet import __version__
from basenet.archive.names import LogName, ShardNames
from basenet.archive.store import open_store
from basenet.control.client import DaemonClient, Target
from basenet.control.listeners import SOCKET_NAME
from basenet.control.surface import NodeStatus
from basenet.errors import BasenetError
from basenet.testing.faultproxy import (
    ALL,
    EVER,
    READS,
    WRITES,
    Fault,
    FaultKind,
    Weather,
    running_weather,
)
from basenet.testing.objectstores import (
    SCHEMES,
    Kind,
    environment_for,
    make_bucket,
    running_object_store,
)
from basenet.units import ShardId

_BUCKET: Final = "soak"
_TICK_S: Final = 0.5
_LOOK_EVERY_S: Final = 10.0
# How long an outage may last before status must tell of it: a request's own time limit and a pause.
_TELL_S: Final = 75.0
_PATIENCE_S: Final = 300.0
_BUNCH_S: Final = 0.1
_OUTAGE_SHARE: Final = 0.3

_WRITER: Final = """
import random, sqlite3, sys, time
path, rate, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
connection = sqlite3.connect(path, isolation_level=None, timeout=120)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA synchronous=NORMAL")
connection.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, body BLOB)")
number = 0
while True:
    number += 1
    body = chance.randbytes(chance.choice((20, 200, 3000)))
    connection.execute("INSERT INTO note VALUES (?, ?)", (number, body))
    if chance.random() < 0.05:
        connection.execute("UPDATE note SET body = ? WHERE id % 97 = ?", (body, number % 97))
    print(number, flush=True)
    time.sleep(chance.uniform(0, 2 / rate))
"""


@dataclass(frozen=True, slots=True)
class Phase:
    """A kind of weather: faults and latency. ``is_outage``: nothing gets through."""

    name: str
    faults: tuple[Fault, ...] = ()
    latency_seconds: float = 0.0
    is_outage: bool = False


def _often(kind: FaultKind, chance: float, methods: frozenset[str] = ALL) -> Fault:
    return Fault(kind, methods=methods, count=EVER, chance=chance)


PHASES: Final = (
    Phase("200 ms more for each request", latency_seconds=0.2),
    Phase("half of all requests get 503", (_often(FaultKind.UNAVAILABLE, 0.5),)),
    Phase("half of all requests get 429", (_often(FaultKind.TOO_MANY, 0.5),)),
    Phase("a third of the writes is reset in mid-body", (_often(FaultKind.RESET_REQUEST, 0.3),)),
    Phase("a third of the writes is done and not answered", (_often(FaultKind.LOSE_ANSWER, 0.3),)),
    Phase(
        "a third of the answers ends in mid-body",
        (_often(FaultKind.TRUNCATE_ANSWER, 0.2), _often(FaultKind.RESET_ANSWER, 0.15)),
    ),
    Phase(
        "a third of the reads is answered as before", (_often(FaultKind.STALE_ANSWER, 0.3, READS),)
    ),
    Phase(
        "some of everything",
        (
            _often(FaultKind.UNAVAILABLE, 0.1),
            _often(FaultKind.LOSE_ANSWER, 0.1, WRITES),
            _often(FaultKind.TRUNCATE_ANSWER, 0.1, READS),
            _often(FaultKind.STALE_ANSWER, 0.1, READS),
        ),
        latency_seconds=0.05,
    ),
)
OUTAGE: Final = Phase(
    "nothing is answered at all", (_often(FaultKind.SWALLOW, 1.0),), is_outage=True
)
RESETS: Final = Phase(
    "every connection is reset", (_often(FaultKind.RESET_REQUEST, 1.0),), is_outage=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What a run is made of."""

    seed: int
    seconds: float
    kills: int
    shards: int
    rate: float
    kind: Kind


@dataclass(slots=True)
class Told:
    """What a run tells."""

    complaints: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)


def say(text: str = "") -> None:
    """Print one line of the account."""
    print(text, flush=True)  # noqa: T201  (the account is what this program is for)


class Requests:
    """When requests came, to tell whether many came at once."""

    def __init__(self) -> None:
        self._at_s: list[float] = []

    def note(self, _method: str, _target: str) -> None:
        """Be told by the proxy, in its thread."""
        self._at_s.append(time.monotonic())

    def count(self, begin_s: float, end_s: float) -> int:
        """Return how many came between two moments."""
        return bisect_left(self._at_s, end_s) - bisect_left(self._at_s, begin_s)

    def busiest(self, begin_s: float, end_s: float) -> int:
        """Return the largest number within a tenth of a second."""
        at_s = self._at_s[bisect_left(self._at_s, begin_s) : bisect_left(self._at_s, end_s)]
        counts = (
            bisect_left(at_s, one + _BUNCH_S, first) - first for first, one in enumerate(at_s)
        )
        return max(counts, default=0)


class Soak:
    """One run: its processes, its clock and what it found."""

    def __init__(
        self, outline: Outline, folder: Path, server_url: str, weather: Weather, told: Told
    ) -> None:
        self._outline = outline
        self._folder = folder
        self._weather = weather
        self._told = told
        self._chance = random.Random(outline.seed)
        self._url = f"{SCHEMES[outline.kind]}://{_BUCKET}/seed-{outline.seed}"
        self._direct = environment_for(outline.kind, server_url)
        self._data_dir = folder / "data"
        self._client = DaemonClient(Target(socket_path=self._data_dir / SOCKET_NAME))
        self._shards = [f"s{number:02}" for number in range(outline.shards)]
        self._writers: list[subprocess.Popen[bytes]] = []
        self._daemon: subprocess.Popen[bytes] | None = None
        self._memory_bytes_max = 0
        self._requests = Requests()
        weather.proxy.on_request = self._requests.note
        self._looks = 0
        self._phase = Phase("clear")
        self._phase_since_s = time.monotonic()
        self._silent: Counter[str] = Counter()

    # Processes

    def _start_daemon(self) -> None:
        inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
        settings = {
            "BASE_DATA_DIR": str(self._data_dir),
            "BASE_LISTEN_HTTP": "127.0.0.1:0",
            "BASE_NODE_ID": "soak",
            **environment_for(self._outline.kind, self._weather.url),
        }
        databases = ",".join(str(self._database(shard)) for shard in self._shards)
        with (self._folder / "serve.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "basenet", "serve", databases, self._url],
                env=inherited | settings,
                stdout=log,
                stderr=log,
            )

    def _kill_daemon(self) -> None:
        assert self._daemon is not None, "it was started"
        self._note_memory()
        self._daemon.kill()
        self._daemon.wait()

    def _database(self, shard: str) -> Path:
        return self._folder / f"{shard}.db"

    def _notes(self, shard: str) -> Path:
        return self._folder / f"{shard}.acknowledged"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run writers and daemon while the body runs; end them whatever happens."""
        try:
            for number, shard in enumerate(self._shards):
                with self._notes(shard).open("wb") as notes:
                    command = [sys.executable, "-c", _WRITER, str(self._database(shard))]
                    how = [str(self._outline.rate), str(self._outline.seed * 1000 + number)]
                    self._writers.append(subprocess.Popen([*command, *how], stdout=notes))
            self._start_daemon()
            yield
        finally:
            self._stop_writers()
            if self._daemon is not None:
                self._kill_daemon()

    def _stop_writers(self) -> None:
        for writer in self._writers:
            writer.kill()
            writer.wait()
        self._writers.clear()

    # The course of things

    def run(self) -> None:
        """Go through all the weather, then let it clear up and judge."""
        outline = self._outline
        schedule = self._make_schedule()
        kills = sorted(self._chance.uniform(10, outline.seconds) for _ in range(outline.kills))
        begun_s = time.monotonic()
        next_look_s = _LOOK_EVERY_S
        while (now_s := time.monotonic() - begun_s) < outline.seconds:
            while schedule and schedule[0][0] <= now_s:
                self._turn(schedule.pop(0)[1])
            if kills and kills[0] <= now_s:
                kills.pop(0)
                self._look()
                self._kill_daemon()
                say(f"{now_s:6.0f} s  SIGKILL")
                self._start_daemon()
            if now_s >= next_look_s:
                next_look_s = now_s + _LOOK_EVERY_S
                self._look()
            self._note_memory()
            self._check_alive()
            time.sleep(_TICK_S)
        self._turn(Phase("clear"))
        self._finish(begun_s)

    def _make_schedule(self) -> list[tuple[float, Phase]]:
        """Return when which weather begins: a third of the time the store is gone."""
        seconds = self._outline.seconds
        outages = {3: OUTAGE, 6: RESETS}
        each_s = seconds * (1 - _OUTAGE_SHARE) / len(PHASES)
        schedule, at_s = [], 0.0
        for number, phase in enumerate(PHASES):
            if number in outages:
                # The long one, and a short one.
                schedule.append((at_s, outages[number]))
                at_s += seconds * _OUTAGE_SHARE * (0.7 if number == min(outages) else 0.3)
            schedule.append((at_s, phase))
            schedule.append((at_s + each_s * 0.8, Phase("clear")))
            at_s += each_s
        return schedule

    def _turn(self, phase: Phase) -> None:
        """Let the weather change."""
        now_s = time.monotonic()
        if self._phase.is_outage:
            self._tell_outage(self._phase, self._phase_since_s, now_s)
        self._weather.clear()
        self._weather.set_latency(phase.latency_seconds)
        self._weather.add(*phase.faults)
        self._phase, self._phase_since_s = phase, now_s
        self._silent.clear()
        say(f"         {phase.name}")

    def _tell_outage(self, phase: Phase, begin_s: float, end_s: float) -> None:
        count = self._requests.count(begin_s, end_s)
        busiest = self._requests.busiest(begin_s + 1, end_s)
        seconds = end_s - begin_s
        shards = self._outline.shards
        self._told.facts.append(
            (
                f"{seconds:.0f} s, {phase.name}: requests for a shard and minute",
                f"{count / shards / seconds * 60:.1f}, at most {busiest} in 100 ms of all shards",
            )
        )

    def _check_alive(self) -> None:
        """Complain of a daemon that ended by itself, and start the next one."""
        assert self._daemon is not None, "it was started"
        if self._daemon.poll() is not None:
            self._complain(f"the daemon ended by itself, with {self._daemon.returncode}")
            self._start_daemon()

    # What status says, against what is

    def _look(self) -> None:
        """Compare what the daemon says with what is so."""
        try:
            status = self._client.get_node_status()
        except BasenetError:
            return  # it starts
        self._looks += 1
        stored = self._read_store()
        for shard in status.shards:
            held = stored[shard.shard]
            if shard.archived_seq > held:
                self._complain(
                    f"{shard.shard} says seq {shard.archived_seq} is archived and the store has "
                    f"{held}"
                )
        self._check_sentences(status)

    def _check_sentences(self, status: NodeStatus) -> None:
        is_long = time.monotonic() - self._phase_since_s > _TELL_S
        is_old = status.uptime_s > _TELL_S
        if not (self._phase.is_outage and is_long and is_old):
            return
        for shard in status.shards:
            if shard.lag_commits and shard.archive == "ok":
                self._complain(f"{shard.shard} says that all is well while the store is gone")
            if shard.lag_commits and shard.lag_ms < 1_000 * _TELL_S / 2:
                self._complain(f"{shard.shard} says its lag is {shard.lag_ms:.0f} ms in an outage")

    def _complain(self, what: str) -> None:
        self._told.complaints.append(what)
        say(f"         COMPLAINT: {what}")

    def _read_store(self) -> dict[str, int]:
        """Return the last seq that the store holds of each shard, asked without the proxy."""
        found = dict.fromkeys(self._shards, 0)
        names = {s: ShardNames(service="default", shard=ShardId(s)) for s in self._shards}
        for name, _ in self._list():
            for shard, its in names.items():
                parsed = its.parse(name)
                if isinstance(parsed, LogName):
                    found[shard] = max(found[shard], parsed.end)
        return found

    def _list(self) -> list[tuple[str, int]]:
        async def read() -> list[tuple[str, int]]:
            store = open_store(self._url, environment=self._direct)
            try:
                return [(entry.name, entry.size) async for entry in store.list("")]
            finally:
                await store.aclose()

        return trio.run(read)

    def _note_memory(self) -> None:
        assert self._daemon is not None, "it was started"
        with suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{self._daemon.pid}/status").read_text()
            peak = int(text.split("VmHWM:")[1].split()[0]) * 1024
            self._memory_bytes_max = max(self._memory_bytes_max, peak)

    # The end

    def _finish(self, begun_s: float) -> None:
        cleared_s = time.monotonic()
        self._stop_writers()
        if self._wait_archived():
            recovered_s = time.monotonic() - cleared_s
            self._told.facts.append(("from a clear sky to all archived", f"{recovered_s:.1f} s"))
        self._told.facts.append(
            ("busiest 100 ms of that", f"{self._requests.busiest(cleared_s, time.monotonic())}")
        )
        self._look()
        assert self._daemon is not None, "it was started"
        self._daemon.terminate()
        code = self._daemon.wait(_PATIENCE_S)
        if code:
            self._complain(f"the daemon ended with {code}")
        self._count(time.monotonic() - begun_s)
        commits = sum(self._check_shard(shard) for shard in self._shards)
        self._told.facts.insert(0, ("commits, all of them restored", f"{commits:,}"))
        log = (self._folder / "serve.log").read_text()
        if "Traceback" in log:
            self._complain("the daemon's log has a traceback")

    def _wait_archived(self) -> bool:
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            with suppress(BasenetError):
                shards = self._client.get_node_status().shards
                is_whole = all(one.archive == "ok" and not one.lag_commits for one in shards)
                if is_whole and len(shards) == len(self._shards):
                    return True
            time.sleep(_TICK_S)
        with suppress(BasenetError):
            for shard in self._client.get_node_status().shards:
                say(f"         {shard.shard}: lag {shard.lag_commits}, {shard.archive}")
        self._complain(f"not all was archived {_PATIENCE_S:.0f} s after the sky had cleared")
        return False

    def _count(self, seconds: float) -> None:
        """Tell what the archive has cost."""
        proxy, found = self._weather.proxy, self._list()
        logs = [size for name, size in found if "/log/" in name]
        databases = sum(self._database(shard).stat().st_size for shard in self._shards)
        faults = sum(proxy.fault_counts.values())
        puts, shards = proxy.written_count, len(self._shards)
        self._told.facts += [
            ("largest memory of a daemon", f"{self._memory_bytes_max / 1e6:.0f} MB"),
            ("requests, of them spoilt", f"{proxy.request_counts.total():,}, {faults:,}"),
            (
                "PUTs that succeeded; for a shard and second",
                f"{puts:,}, {proxy.written_bytes / 1e6:.1f} MB; {puts / shards / seconds:.2f}",
            ),
            ("objects", f"{len(found):,}, {sum(size for _, size in found) / 1e6:.1f} MB"),
            ("log objects", f"{len(logs):,}, {sum(logs) / 1e6:.1f} MB"),
            ("databases", f"{databases / 1e6:.1f} MB"),
            ("times that status was compared with the store", f"{self._looks}"),
        ]

    def _check_shard(self, shard: str) -> int:
        """Restore a shard from the store alone, compare; return how many commits came back."""
        out = self._folder / f"{shard}-restored.db"
        self._run("restore", self._url, str(out), "--shard", shard, "--json")
        self._run("verify", self._url, "--shard", shard)
        if _read_rows(self._database(shard)) != (rows := _read_rows(out)):
            self._complain(f"{shard}: the restored database is not the source")
        *lines, _ = self._notes(shard).read_bytes().split(b"\n")
        acknowledged = {int(line) for line in lines}
        if missing := acknowledged - rows.keys():
            self._complain(f"{shard}: {len(missing)} acknowledged commits are missing")
        return len(acknowledged)

    def _run(self, *arguments: str) -> None:
        environment: Mapping[str, str] = {**os.environ, **self._direct}
        done = subprocess.run(
            [sys.executable, "-m", "basenet", *arguments],
            env={**environment, "BASE_DATA_DIR": str(self._data_dir)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self._complain(f"{arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")


def _read_rows(path: Path) -> dict[int, bytes]:
    """Return all rows after an integrity check; nobody else uses the file."""
    with closing(sqlite3.connect(path)) as connection:
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            return {0: str(verdict).encode()}
        return dict(connection.execute("SELECT id, body FROM note"))


def play(outline: Outline, folder: Path) -> Told:
    """Do one run with all its files in ``folder``."""
    told = Told()
    with ExitStack() as stack:
        server_url = stack.enter_context(running_object_store(outline.kind))
        make_bucket(outline.kind, server_url, _BUCKET)
        weather = stack.enter_context(running_weather(server_url, seed=outline.seed))
        soak = Soak(outline, folder, server_url, weather, told)
        with soak.running():
            soak.run()
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Run once; exit with 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="basenet-store-soak", description=__doc__)
    parser.add_argument("--version", action="version", version=f"basenet-store-soak {__version__}")
    parser.add_argument("--minutes", type=float, default=10.0, help="of bad weather [10]")
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs of the daemon [10]")
    parser.add_argument("--shards", type=int, default=10, help="databases [10]")
    parser.add_argument("--rate", type=float, default=20.0, help="commits/s of each [20]")
    parser.add_argument(
        "--server", choices=get_args(Kind), default="rgw", help="Ceph, moto or a GCS emulator [rgw]"
    )
    parser.add_argument("--seed", type=int, default=None, help="of chance [by chance]")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    outline = Outline(
        seed=seed,
        seconds=60 * options.minutes,
        kills=options.kills,
        shards=options.shards,
        rate=options.rate,
        kind=options.server,
    )
    say(f"seed {seed}: {outline.shards} databases, {outline.seconds:.0f} s, {outline.kind}")
    folder = Path(tempfile.mkdtemp(prefix=f"basenet-store-soak-{seed}-"))
    told = play(outline, folder)
    say()
    for name, value in told.facts:
        say(f"| {name} | {value} |")
    if told.complaints:
        say(f"FAILED: {len(told.complaints)} complaints; seed {seed}; files kept in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)
    say("All of it held.")
