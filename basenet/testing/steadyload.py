"""``python -m basenet.testing.steadyload``: every operation, beside a writer that never rests.

Theory of operation
===================

What waits for a quiet moment may never come beside an application that commits steadily, and that
depends on its pace: on how long a machine takes for what has to fit between two commits. So every
operation of an operator is done at many paces, each on real nodes and within a bound::

    PLAN (how many vote, archive, fence) x PACE (pause between two commits) -> OPERATION: seconds

An unmodified application writes on every node all the time, as far as its file lets it, so that the
writes go where the lead goes. Meanwhile logs, journals, memory and lag are looked at. In the end
nobody writes, and all databases must be equal.

The rows are a ring, so that the database stays small however long it is written.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from basenet.control.members import MembersCommand, MembersVerb
from basenet.control.surface import ShardRole
from basenet.errors import BasenetError, UnavailableError
from basenet.testing.cluster import SHARD, Cluster, ClusterNode, ClusterStuck
from basenet.units import MIB

PACES_MS: Final = (0, 1, 3, 5, 8, 10, 12, 15, 20, 50, 100)
PLANS: Final = ("one", "three", "byzantine", "readonly", "archive", "short")
_BOUND_S: Final = 30.0
_AWAY_S: Final = 5.0
_WAL_MAX: Final = 64 * MIB
_LOOK_S: Final = 0.5
_PAUSED_S: Final = 0.5
_SAID_LINES: Final = 6
_FORCED_NODES: Final = 3
_LOSS: Final = {"is_loss_accepted": True}

_WRITE = """
import json, os, sqlite3, sys, time
path, name, pause, burst = sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000, int(sys.argv[4])
def connect():
    return sqlite3.connect(path, isolation_level=None, timeout=0.2)
c, count = connect(), 0
while not os.path.exists(path + '.stop'):
    if os.path.exists(path + '.pause'):
        time.sleep(0.05)
        continue
    try:
        for _ in range(burst):
            c.execute('INSERT OR REPLACE INTO ring VALUES (?, ?, ?)', (count % 5000, name, count))
            count += 1
    except sqlite3.OperationalError as error:
        if 'readonly' in str(error) or 'disk I/O' in str(error) or 'no such table' in str(error):
            c.close()
            c = connect()
            try:
                c.execute('CREATE TABLE IF NOT EXISTS ring (id INTEGER PRIMARY KEY, n, v)')
            except sqlite3.OperationalError:
                pass
        time.sleep(0.05)
        continue
    if pause:
        time.sleep(pause)
    if not count % 16 or pause > 0.005:
        with open(path + '.count', 'w') as file:
            file.write(str(count))
print(json.dumps(count))
"""
_READ = """
import hashlib, sqlite3, sys
c = sqlite3.connect(sys.argv[1], timeout=20)
digest = hashlib.sha256()
for row in c.execute('SELECT id, n, v FROM ring ORDER BY id'):
    digest.update(repr(row).encode())
print(c.execute('PRAGMA integrity_check').fetchone()[0], digest.hexdigest())
"""


class Writers:
    """An application on each node, which writes there as fast as it is told while it may."""

    def __init__(self, pause_ms: float, burst: int) -> None:
        self._pause_ms, self._burst = pause_ms, burst
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}

    def begin(self, node: ClusterNode) -> None:
        """Let ``node`` have one."""
        path = node.database()
        command = [sys.executable, "-c", _WRITE, str(path), node.name]
        self._processes[path] = subprocess.Popen(
            [*command, str(self._pause_ms), str(self._burst)], stdout=subprocess.PIPE
        )

    def pause(self, node: ClusterNode) -> None:
        """Have the one of ``node`` rest: while nobody holds the fence, it would write."""
        Path(f"{node.database()}.pause").touch()
        time.sleep(_PAUSED_S)

    def resume(self, node: ClusterNode) -> None:
        """Let it go on."""
        Path(f"{node.database()}.pause").unlink()

    def count(self, node: ClusterNode) -> int:
        """Return how many commits ``node`` took."""
        with suppress(OSError, ValueError):
            return int(Path(f"{node.database()}.count").read_text())
        return 0

    def stop(self) -> int:
        """End them; return how many commits there were."""
        for path in self._processes:
            Path(f"{path}.stop").touch()
        return sum(
            json.loads(process.communicate()[0] or b"0") for process in self._processes.values()
        )


@dataclass
class Watch:
    """What was seen of the nodes, while it runs: the most of everything, in bytes or frames."""

    cluster: Cluster
    wal: int = 0
    journal: int = 0
    memory: int = 0
    lag: int = 0
    status_s: float = 0.0
    _is_over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until `stop`."""
        while not self._is_over.wait(_LOOK_S):
            for node in self.cluster:
                self._look(node)

    def stop(self) -> None:
        """Look no more."""
        self._is_over.set()

    def _look(self, node: ClusterNode) -> None:
        for path in (Path(f"{node.database()}-wal"), *node.data_dir.glob("journal.db-wal")):
            with suppress(OSError):
                self.wal = max(self.wal, path.stat().st_size)
        with suppress(OSError):
            self.journal = max(self.journal, (node.data_dir / "journal.db").stat().st_size)
        pid = node.daemon_pid() if node.is_running else None
        with suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.memory = max(self.memory, pages * 4096)
        began = time.monotonic()
        status = node.find_status()
        if status is not None:
            self.status_s = max(self.status_s, time.monotonic() - began)
            if status.role is not ShardRole.LEARNER:
                self.lag = max(self.lag, status.apply_lag)


class Trial:
    """One plan at one pace; `times` has what took how long, `faults` what was not done in time."""

    def __init__(
        self, cluster: Cluster, settings: Mapping[str, str], pause_ms: float, burst: int
    ) -> None:
        self.cluster, self.settings = cluster, settings
        self.times: dict[str, float] = {}
        self.faults: list[str] = []
        self.watch = Watch(cluster)
        self.writers = Writers(pause_ms, burst)

    # What is done, and how long it takes.

    def do(self, name: str, act: Callable[[], object], bound_s: float = _BOUND_S) -> None:
        """Do ``act`` again and again until it is not refused; note how long that took."""
        began = time.monotonic()
        said = ""
        while True:
            try:
                act()
            except (BasenetError, ClusterStuck) as error:
                said = str(error)
            else:
                break
            if time.monotonic() - began > bound_s:
                self.faults.append(f"{name}: {said.splitlines()[0]}")
                _say("\n".join(f"  FAULT {name}: {said}".splitlines()[:_SAID_LINES]))
                break
            time.sleep(0.1)
        took = time.monotonic() - began
        self.times[name] = max(took, self.times.get(name, 0.0))

    def give(self, node: ClusterNode, verb: MembersVerb, *names: str, **more: object) -> None:
        """Give a command."""
        command = MembersCommand(verb=verb, nodes=names, **more)  # type: ignore[arg-type]
        node.client.command(SHARD, command)

    def wait_level(self, node: ClusterNode) -> None:
        """Return once ``node`` has applied what was final on the writer at this moment."""
        writer = self.cluster.wait_writer(patience_s=_BOUND_S)
        status = writer.find_status()
        seq = status.final_seq if status is not None else 0
        self.cluster.until(
            lambda: (found := node.find_status()) and found.applied_seq >= seq,
            f"{node.name} has applied {seq}",
            _BOUND_S,
        )

    def wait_writes(self, node: ClusterNode) -> None:
        """Return once the application on ``node`` has committed something more."""
        self.cluster.until(
            lambda: (found := node.find_status()) and found.role is ShardRole.WRITER,
            f"{node.name} writes",
            _BOUND_S,
        )
        before = self.writers.count(node)
        self.cluster.until(
            lambda: self.writers.count(node) > before, f"{node.name} takes commits", _BOUND_S
        )

    def transfer(self, node: ClusterNode) -> None:
        """Hand the lead to ``node``, and have it write."""
        writer = self.cluster.wait_writer(patience_s=_BOUND_S)
        if writer is not node:
            self.give(writer, MembersVerb.TRANSFER, node.name)
        self.wait_writes(node)

    def voters(self, node: ClusterNode) -> set[str]:
        """Return who votes, as ``node`` knows."""
        status = node.find_status()
        return {one.node_id for one in status.members if one.is_voter} if status else set()

    def add(self, *names: str) -> None:
        """Have ``names`` vote."""
        writer = self.cluster.wait_writer(patience_s=_BOUND_S)
        lacking = set(names) - self.voters(writer)
        if lacking:
            self.give(writer, MembersVerb.ADD, *sorted(lacking))
        self.cluster.until(
            lambda: set(names) <= self.voters(writer), f"{names} vote", patience_s=_BOUND_S
        )

    # All of it.

    def run(self) -> None:
        """Do everything, while it is written."""
        cluster = self.cluster
        cluster.start()
        first = cluster.wait_writer()
        self.writers.begin(first)
        thread = threading.Thread(target=self.watch.run, daemon=True)
        thread.start()
        try:
            self.wait_writes(first)
            for node in cluster.others(first):
                self.do("join", lambda node=node: self.wait_level(node))  # type: ignore[misc]
                self.writers.begin(node)
            self.do("add", lambda: self.add(*cluster.names))
            self._operate()
        finally:
            commits = self.writers.stop()
            self.watch.stop()
            thread.join()
        self.do("rest", lambda: cluster.wait_settled(patience_s=_BOUND_S))
        self._compare()
        _say(f"  {commits} commits")

    def _operate(self) -> None:
        cluster = self.cluster
        writer = cluster.wait_writer()
        follower, other = cluster.others(writer)[:2]
        self.do("wait", lambda: writer.wait_final(timeout_s=_BOUND_S))
        follower.kill()
        follower.start()
        self.do("restart follower", lambda: self.wait_level(follower))
        self.writers.pause(follower)
        follower.terminate()
        self.do("stop follower", lambda: follower.wait_ended(_BOUND_S))
        time.sleep(_AWAY_S)
        follower.start()
        self.do("catch up", lambda: self.wait_level(follower))
        self.writers.pause(other)
        other.kill()
        self.do("votes again", lambda: writer.wait_final(timeout_s=_BOUND_S))
        other.start()
        self.do("restart other", lambda: self.wait_level(other))
        self.writers.resume(other)
        self.writers.resume(follower)
        self.do("transfer", lambda: self.transfer(follower))
        self.do("transfer back", lambda: self.transfer(writer))
        self.do("remove", lambda: self.remove(other))
        self.do("add again", lambda: self.add(other.name))
        self.do("transfer to it", lambda: self.transfer(other))
        writer = cluster.wait_writer()
        writer.terminate()
        self.do("stop writer", lambda: writer.wait_ended(_BOUND_S))
        self.do("heir", lambda: self.wait_writes(cluster.wait_writer(but=writer)))
        writer.start()
        self.do("writer again", lambda: self.wait_level(writer))
        self.do("transfer home", lambda: self.transfer(writer))
        if "BASE_ARCHIVE" in self.settings:
            self.do("snapshot", self.wait_snapshot)
            self.do("verify", self.verify)
        self._count_orphans()
        if len(cluster.names) == _FORCED_NODES:
            self._force(writer)
        self.do("wait at last", lambda: writer.wait_final(timeout_s=_BOUND_S))

    def _force(self, survivor: ClusterNode) -> None:
        """Lose the quorum, force a lineage, and have the others follow it."""
        others = self.cluster.others(survivor)
        for node in others:
            self.writers.pause(node)
            node.kill()
        self.do("force", lambda: self.give(survivor, MembersVerb.FORCE, survivor.name, **_LOSS))
        self.do("writes alone", lambda: self.wait_writes(survivor))
        status = survivor.find_status()
        lineage = status.lineage if status is not None else None
        for node in others:
            node.start()
            self.do("accept", lambda node=node: self.accept(node, lineage))  # type: ignore[misc]
            self.writers.resume(node)
        self.do("add at last", lambda: self.add(*self.cluster.names))

    def _count_orphans(self) -> None:
        logs = "".join(node.read_log() for node in self.cluster)
        # Those who write while nobody holds their fence are found afterwards, and kept aside.
        orphans = logs.count('"event": "orphaned"') - logs.count('"event": "commits_found"')
        if orphans > 0:
            self.faults.append(f"{orphans} orphans, though everything was done in order")

    def accept(self, node: ClusterNode, lineage: str | None) -> None:
        """Have ``node`` follow ``lineage``."""
        status = node.find_status()
        if status is None or status.lineage != lineage:
            self.give(node, MembersVerb.ACCEPT, lineage=lineage)
        self.wait_level(node)

    def wait_snapshot(self) -> None:
        """Return once there are two snapshots more: the second is due by the time alone."""
        writer = self.cluster.wait_writer(patience_s=_BOUND_S)
        before = writer.read_log().count('"event": "snapshot"')
        self.cluster.until(
            lambda: writer.read_log().count('"event": "snapshot"') > before + 1,
            "there are snapshots",
            _BOUND_S,
        )

    def verify(self) -> None:
        """Prove the archive, from its beginning to where it is now."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "basenet", "verify", self.settings["BASE_ARCHIVE"]),
                *("--retention", self.settings["BASE_RETENTION"]),
                *("--trusted-keys", str(self.cluster.folder / "ca" / "trusted.keys")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UnavailableError(done.stdout + done.stderr)

    def remove(self, node: ClusterNode) -> None:
        """Have ``node`` vote no more."""
        writer = self.cluster.wait_writer(patience_s=_BOUND_S)
        if node.name in self.voters(writer):
            self.give(writer, MembersVerb.REMOVE, node.name)
        self.cluster.until(
            lambda: node.name not in self.voters(writer), f"{node.name} is out", _BOUND_S
        )

    def _compare(self) -> None:
        """Find out whether all databases are equal and whole."""
        found = set[str]()
        for node in self.cluster:
            done = subprocess.run(
                [sys.executable, "-c", _READ, str(node.database())],
                capture_output=True,
                text=True,
                check=False,
            )
            found.add(done.stdout.strip() or done.stderr.strip())
        if len(found) != 1 or not found.pop().startswith("ok "):
            self.faults.append("the databases differ in the end")
        if self.watch.wal > _WAL_MAX:
            self.faults.append(f"a log of {self.watch.wal / MIB:.0f} MiB")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def settings_of(plan: str, folder: Path) -> tuple[int, dict[str, str]]:
    """Return how many nodes a plan has, and what they are given."""
    match plan:
        case "one":
            return 3, {"BASE_REPLICATION": "1", "BASE_WRITER": "n0"}
        case "byzantine":
            return 4, {"BASE_FAULT_MODEL": "byzantine"}
        case "readonly":
            return 3, {"BASE_FENCE": "readonly"}
        case "archive":
            return 3, {
                "BASE_ARCHIVE": f"file://{folder}/archive",
                "BASE_SNAPSHOT_INTERVAL": "5s",
                "BASE_RETENTION": "20s",
            }
        case "short":
            return 3, {"BASE_JOURNAL_MAX_BYTES": "4MiB"}
        case _:
            return 3, {}


def run_trial(plan: str, pause_ms: float, burst: int, folder: Path) -> Trial:
    """Do everything under ``plan`` at one pace."""
    count, settings = settings_of(plan, folder)
    with Cluster(folder, count, **settings) as cluster:  # type: ignore[arg-type]
        trial = Trial(cluster, settings, pause_ms, burst)
        try:
            trial.run()
        except (BasenetError, ClusterStuck) as error:
            _say("\n".join(f"  FAULT {error}".splitlines()[:_SAID_LINES]))
            trial.faults.append(str(error).splitlines()[0])
    return trial


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep; return 0 if nothing waited for longer than it should."""
    parser = argparse.ArgumentParser(description="Every operation at many paces of an application.")
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument("--paces", default=",".join(map(str, PACES_MS)), help="milliseconds")
    parser.add_argument("--burst", type=int, default=1, help="commits between two pauses")
    parser.add_argument("--keep", type=Path, help="where files stay")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    faults = 0
    for plan in options.plans.split(","):
        for pace in options.paces.split(","):
            folder = Path(tempfile.mkdtemp(prefix="steady-", dir=options.keep))
            _say(f"{plan}, {pace} ms, burst {options.burst}: {folder}")
            trial = run_trial(plan, float(pace), options.burst, folder)
            _say(json.dumps(_told(trial)))
            faults += len(trial.faults)
            if not trial.faults:
                shutil.rmtree(folder)
    return min(faults, 1)


def _told(trial: Trial) -> dict[str, object]:
    watch = trial.watch
    return {
        "times": {name: round(seconds, 2) for name, seconds in trial.times.items()},
        "wal_mib": round(watch.wal / MIB, 1),
        "journal_mib": round(watch.journal / MIB, 1),
        "memory_mib": round(watch.memory / MIB),
        "lag": watch.lag,
        "status_s": round(watch.status_s, 2),
        "faults": trial.faults,
    }


if __name__ == "__main__":
    sys.exit(main())
