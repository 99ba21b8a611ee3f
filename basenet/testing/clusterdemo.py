"""``make demo-cluster``: three nodes, one application that writes, and the death of its node.

Everything is real: three times ``basenet serve`` with certificates of a development authority, an
ordinary application (the standard library's sqlite3, knows nothing of basenet) on each node's own
file, SIGKILL. The account tells what was seen, and the exit code whether all of it held.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from basenet import __version__
from basenet.testing.cluster import Cluster, ClusterNode, ClusterStuck
from basenet.testing.clustercheck import Verdict, check
from basenet.testing.history import Client, Outcome, RegisterApplication

_WRITING_S: Final = 4.0
_READ_EVERY_S: Final = 0.05


class DemoFailed(Exception):  # noqa: N818  (it is the verdict, not an error of the program)
    """Something that the demonstration promises did not hold."""


class _Reader:
    """An application that only reads: what it sees must be whole."""

    def __init__(self, node: ClusterNode) -> None:
        self.node = node
        self.reads = 0
        self.highest = 0
        self.torn: str | None = None
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with RegisterApplication(self.node.database()) as application:
            while not self._is_stopping.wait(_READ_EVERY_S):
                answer = application.ask("versions")
                if "error" in answer:
                    continue
                self.reads += 1
                registers = dict(answer["reg"])
                for key, highest, count in answer["hist"]:
                    if not registers.get(key) == highest == count:
                        self.torn = f"{key}: {registers.get(key)}, {highest}, {count}"
                self.highest = max(self.highest, sum(registers.values()))


def say(text: str = "") -> None:
    """Print one line of the account."""
    print(text, flush=True)  # noqa: T201  (the account is what this program is for)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demonstration and exit with its verdict."""
    parser = argparse.ArgumentParser(prog="basenet-cluster-demo", description=__doc__)
    parser.add_argument(
        "--version", action="version", version=f"basenet-cluster-demo {__version__}"
    )
    parser.add_argument("--keep", action="store_true", help="keep the files and say where")
    options = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="basenet-cluster-demo-"))
    try:
        with Cluster(root, 3) as cluster:
            _play(cluster)
    except (DemoFailed, ClusterStuck) as failure:
        say(f"\nFAILED: {failure}\n(files kept in {root})")
        sys.exit(1)
    if options.keep:
        say(f"Files kept in {root}")
    else:
        shutil.rmtree(root)


def _play(cluster: Cluster) -> None:
    say("1. Three nodes on loopback, mutual TLS, no database anywhere yet")
    began_s = time.monotonic()
    cluster.start()
    writer = cluster.wait_writer()
    say(f"   born after {time.monotonic() - began_s:.1f} s; {writer.name} may write")
    say(f"2. An ordinary application writes at {writer.name}; others read at every node")
    client = Client(cluster, "app", seed=1)
    cluster.until(lambda: client.count(Outcome.FINAL), "a first commit is final")
    readers = [_Reader(node) for node in cluster]
    time.sleep(_WRITING_S)
    _show(cluster, client)
    _show_fence(cluster, writer)
    successor = _kill_writer(cluster, writer, client)
    time.sleep(_WRITING_S)
    _return(cluster, writer, successor)
    operations = client.stop()
    seq = cluster.wait_settled()
    for reader in readers:
        reader.stop()
        if reader.torn is not None:
            raise DemoFailed(f"a reader at {reader.node.name} saw a torn state: {reader.torn}")
    say(f"   {sum(one.reads for one in readers):,} reads at three nodes, each of a whole state")
    _show_orphans(cluster)
    say(f"5. All nodes are at seq {seq:,}; they are ended, and their files compared")
    if wrong := [f"{name}: {code}" for name, code in cluster.stop().items() if code]:
        raise DemoFailed(f"exit codes {wrong}")
    _compare(check(cluster, operations))
    say("\nAll of it held.")


def _show(cluster: Cluster, client: Client) -> None:
    say(f"   {client.count(Outcome.FINAL):,} commits acknowledged as final so far")
    for line in cluster.describe().splitlines():
        say(f"   {line}")


def _show_fence(cluster: Cluster, writer: ClusterNode) -> None:
    """Try to write at a replica: nobody can."""
    (replica, *_) = cluster.others(writer)
    with RegisterApplication(replica.database(), timeout_s=0.2) as application:
        answer = application.ask("bump", "rogue", "rogue", 10)
    if "error" not in answer:
        raise DemoFailed(f"a commit at the replica {replica.name} was acknowledged")
    say(f"   an application that tries to write at the replica {replica.name}: {answer['error']}")


def _kill_writer(cluster: Cluster, writer: ClusterNode, client: Client) -> ClusterNode:
    say(f"3. SIGKILL to guardian and daemon of {writer.name}, in mid-write")
    writer.kill()
    killed_s = time.monotonic()
    before = client.count(Outcome.FINAL)
    successor = cluster.wait_writer(but=writer)
    say(f"   {successor.name} may write after {time.monotonic() - killed_s:.2f} s")
    cluster.until(lambda: client.count(Outcome.FINAL) > before, "a commit is final again")
    say(f"   the next commit is final after {time.monotonic() - killed_s:.2f} s")
    return successor


def _return(cluster: Cluster, old: ClusterNode, successor: ClusterNode) -> None:
    say(f"4. {old.name} comes back while {successor.name} is written to")
    old.start()
    began_s = time.monotonic()

    def has_caught_up() -> bool:
        status = old.find_status()
        return status is not None and 0 < status.final_seq == status.applied_seq

    cluster.until(has_caught_up, f"{old.name} has caught up")
    say(f"   it is a replica and has caught up after {time.monotonic() - began_s:.1f} s")


def _show_orphans(cluster: Cluster) -> None:
    """Let the command show what lost, on every node."""
    for node in cluster:
        done = subprocess.run(
            [sys.executable, "-m", "basenet", "orphans", "list", "--data-dir", node.data_dir],
            env=node.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DemoFailed(f"basenet orphans list at {node.name}: {done.stderr.strip()}")
        lines = done.stdout.strip().splitlines()
        say(f"   basenet orphans list at {node.name}: {lines[0] if lines else 'none'}")
        for line in lines[1:]:
            say(f"      {line}")


def _compare(verdict: Verdict) -> None:
    if verdict.violations:
        raise DemoFailed(str(verdict))
    say(f"   {verdict}")
    say("   the three databases are equal, page for page, and pass integrity_check")
