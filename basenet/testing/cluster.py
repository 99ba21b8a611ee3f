"""Several real nodes on loopback: started, killed, stopped, cut off from one another, and asked.

Theory of operation
===================

A `ClusterNode` is a folder and, while it runs, the process of ``basenet serve``: the guardian,
whose child is the daemon. A `Cluster` is a certificate authority and its nodes::

    FOLDER/ca/...                 made by `keys.authority`
    FOLDER/NODE/db/SHARD.db       what an application opens
    FOLDER/NODE/data/             BASE_DATA_DIR; the daemon is asked over the socket in it
    FOLDER/NODE/serve.log         all that its runs have printed

``db`` and ``data`` lie in FOLDER/NODE/disk, a filesystem of its own, with ``has_disks``
(`testing.hardware`).

With ``has_links`` every node dials every other through a `Link` of its own, so that any direction
can be cut or held. Nothing sleeps in the hope that something has happened: whoever waits asks until
it has, and gives up with what every node says of itself and the ends of their logs.

Nothing here opens a database: to close one would drop locks of this process on it.
"""

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self, TypeVar

from basenet.control.client import DaemonClient, Target
from basenet.control.listeners import SOCKET_NAME
from basenet.control.surface import Level, ShardRole, ShardStatus, WaitResult
from basenet.errors import BasenetError
from basenet.keys import authority
from basenet.testing.hardware import Hardware
from basenet.testing.links import LOOPBACK, Link

PATIENCE_S: Final = 60.0
SHARD: Final = "app"
_ASK_EVERY_S: Final = 0.03
_PORT_MIN: Final = 10_240
_PORT_TRIES: Final = 1_000
_LOG_LINES: Final = 25

_Answer = TypeVar("_Answer")


class ClusterStuck(AssertionError):  # noqa: N818  (what happened to the waiter)
    """What was waited for did not come; the sentence tells what every node said last."""


class ClusterNode:
    """One node: its files, its settings and its processes. Made by `Cluster`."""

    def __init__(
        self, folder: Path, name: str, environment: Mapping[str, str], hardware: Hardware
    ) -> None:
        self.name = name
        self.folder = folder
        self.hardware = hardware
        self.data_dir = hardware.disk / "data"
        self.log = folder / "serve.log"
        self.environment = dict(environment)
        """What the next start is given, beside the inherited environment."""
        self.process: subprocess.Popen[bytes] | None = None
        self.client = DaemonClient(Target(socket_path=self.data_dir / SOCKET_NAME))
        (hardware.disk / "db").mkdir(parents=True, exist_ok=True)

    def database(self, shard: str = SHARD) -> Path:
        """Return the path of a shard's database on this node."""
        return self.hardware.disk / "db" / f"{shard}.db"

    # Its processes.

    @property
    def is_running(self) -> bool:
        """Whether the guardian runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start guardian and daemon; return at once."""
        assert not self.is_running, f"{self.name} runs already"
        inherited = {name: text for name, text in os.environ.items() if name[:5] != "BASE_"}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "basenet", "serve"],
                env=inherited | self.environment | dict(self.hardware.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def guardian_pid(self) -> int:
        """The guardian's process id."""
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    def daemon_pid(self) -> int | None:
        """Return the daemon's process id; None while there is none."""
        guardian = self.guardian_pid
        try:
            children = Path(f"/proc/{guardian}/task/{guardian}/children").read_text()
        except OSError:
            return None
        return next((int(pid) for pid in children.split() if _is_alive(int(pid))), None)

    def kill(self) -> None:
        """End guardian and daemon as the death of the host does; returns when both are gone."""
        if self.process is None:
            return
        daemon = self.daemon_pid() if self.is_running else None
        self.process.kill()
        if daemon is not None:
            _kill_and_wait(daemon)
        self.process.wait()

    def kill_daemon(self) -> int | None:
        """End only the daemon; its guardian starts another. Returns the pid that was killed."""
        daemon = self.daemon_pid()
        if daemon is not None:
            _kill_and_wait(daemon)
        return daemon

    def pause(self) -> None:
        """Let the daemon stand still (SIGSTOP)."""
        self._signal_daemon(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal_daemon(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask for an orderly end; returns at once."""
        if self.is_running:
            assert self.process is not None, "it runs"
            self.process.terminate()

    def wait_ended(self, patience_s: float = PATIENCE_S) -> int:
        """Return the exit code once the guardian has ended; raise `ClusterStuck` after a while."""
        assert self.process is not None, f"{self.name} was never started"
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired as error:
            raise ClusterStuck(
                f"{self.name} goes on after {patience_s:.0f} s\n{self.tail()}"
            ) from error

    def _signal_daemon(self, number: int) -> None:
        if (daemon := self.daemon_pid()) is not None:
            with suppress(ProcessLookupError):
                os.kill(daemon, number)

    # What it says.

    def find_status(self, shard: str = SHARD) -> ShardStatus | None:
        """Return a shard's status; None when the daemon does not answer or does not have it."""
        if not self.is_running:
            return None
        try:
            return self.client.get_shard_status(shard)
        except BasenetError:
            return None

    def wait_final(self, shard: str = SHARD, timeout_s: float = 30.0) -> WaitResult:
        """Return once what is committed here now is final; raises what the daemon answers."""
        return self.client.wait(shard, None, Level.FINAL, timeout_s)

    def read_log(self) -> str:
        """Return everything that was logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = _LOG_LINES) -> str:
        """Return the last lines of the log."""
        return "\n".join(line[:400] for line in self.read_log().splitlines()[-lines:])

    def describe(self, shard: str = SHARD) -> str:
        """Return one line about a shard here."""
        if not self.is_running:
            code = None if self.process is None else self.process.returncode
            return f"{self.name}: not running (exit code {code})"
        try:
            status = self.client.get_shard_status(shard)
        except BasenetError as error:
            return f"{self.name}: {error}"
        return (
            f"{self.name}: {status.state.value} {status.role.value} of {status.writer} "
            f"epoch {status.epoch} view {status.view} captured {status.captured_seq} final "
            f"{status.final_seq} applied {status.applied_seq} fence {status.fence.value} "
            f"orphans {status.orphans} error {status.error}"
        )


class Cluster:
    """Nodes ``n0`` ... on loopback; leaving its block ends them, whatever they do."""

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        shards: Sequence[str] = (SHARD,),
        has_links: bool = False,
        has_disks: bool = False,
        clocked: Sequence[str] = (),
        can_slow: bool = False,
        **environment: str,
    ) -> None:
        """Make the files of ``count`` nodes; `start` starts them.

        ``has_disks``, ``can_slow``: as `Hardware` says; ``clocked``: whose clock can step.
        ``environment``: BASE_* settings for all of them, over those that a node needs.
        """
        self.folder = folder
        self.shards = tuple(shards)
        self.clocked = tuple(clocked)
        self.names = tuple(f"n{number}" for number in range(count))
        self.links: dict[tuple[str, str], Link] = {}
        """By (who dials, who listens); empty without ``has_links``."""
        folder.mkdir(parents=True, exist_ok=True)
        authority.init(folder / "ca", self.names, now=datetime.now(UTC))
        ports = dict(zip(self.names, _free_ports(count), strict=True))
        if has_links:
            self.links = {
                (one, other): Link(ports[other])
                for one in self.names
                for other in self.names
                if one != other
            }
        self.nodes: dict[str, ClusterNode] = {}
        for name in self.names:
            hardware = Hardware(
                folder / name, has_disk=has_disks, has_clock=name in clocked, can_slow=can_slow
            )
            settings = self._settings(name, ports, hardware.disk) | environment
            self.nodes[name] = ClusterNode(folder / name, name, settings, hardware)

    def _settings(self, name: str, ports: Mapping[str, int], folder: Path) -> dict[str, str]:
        keys = self.folder / "ca"
        peers = [
            self.links[name, other].port if self.links else ports[other]
            for other in self.names
            if other != name
        ]
        return {
            "BASE_NETWORK": "quasar",
            "BASE_NODE_ID": name,
            "BASE_SHARDS": ",".join(f"{shard}={folder}/db/{shard}.db" for shard in self.shards),
            "BASE_DATA_DIR": str(folder / "data"),
            "BASE_PEERS": ",".join(f"{LOOPBACK}:{port}" for port in peers),
            "BASE_LISTEN_P2P": f"{LOOPBACK}:{ports[name]}",
            "BASE_LISTEN_HTTP": f"{LOOPBACK}:0",
            "BASE_TLS_CA": str(keys / "ca.crt"),
            "BASE_TLS_SERVER_CERT": str(keys / name / "node.crt"),
            "BASE_TLS_SERVER_KEY": str(keys / name / "node.key"),
            "BASE_TLS_ALLOWED_SANS": ",".join(self.names),
            "BASE_TRUSTED_KEYS": str(keys / "trusted.keys"),
            "BASE_ARCHIVE": "off",
            "BASE_REPLICATION": str(len(self.names)),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self:
            node.kill()
            node.hardware.close()
        for link in self.links.values():
            link.close()

    def __iter__(self) -> Iterator[ClusterNode]:
        return iter(self.nodes.values())

    def __getitem__(self, name: str) -> ClusterNode:
        return self.nodes[name]

    def others(self, *without: ClusterNode) -> list[ClusterNode]:
        """Return the nodes but ``without``."""
        return [node for node in self if node not in without]

    # All of them.

    def start(self) -> None:
        """Start all that do not run; return at once."""
        for node in self:
            if not node.is_running:
                node.start()

    def stop(self) -> dict[str, int]:
        """End all in order, at once; return their exit codes."""
        running = [node for node in self if node.is_running]
        for node in running:
            node.terminate()
        return {node.name: node.wait_ended() for node in running}

    def isolate(self, node: ClusterNode, *, is_silent: bool = True) -> None:
        """Cut a node off from all others: silently (packets get lost), or by ended connections."""
        self._with_links(node, Link.hold if is_silent else Link.cut)

    def heal(self) -> None:
        """Let all links forward again."""
        for link in self.links.values():
            link.heal()

    def _with_links(self, node: ClusterNode, act: Callable[[Link], None]) -> None:
        assert self.links, "this cluster was made without links"
        for ends, link in self.links.items():
            if node.name in ends:
                act(link)

    # Waiting.

    def until(
        self,
        question: Callable[[], _Answer | None],
        what: str,
        patience_s: float = PATIENCE_S,
        shard: str = SHARD,
    ) -> _Answer:
        """Return the first answer that is true; raise `ClusterStuck` after ``patience_s``."""
        deadline = time.monotonic() + patience_s
        while True:
            if answer := question():
                return answer
            if time.monotonic() > deadline:
                raise ClusterStuck(
                    f"{what}: not within {patience_s:.0f} s\n{self.describe(shard, with_logs=True)}"
                )
            time.sleep(_ASK_EVERY_S)

    def find_writer(
        self, shard: str = SHARD, *, but: ClusterNode | None = None
    ) -> ClusterNode | None:
        """Return the node that says it may write now, ``but`` left out."""
        for node in self:
            status = node.find_status(shard) if node is not but else None
            if status is not None and status.role is ShardRole.WRITER:
                return node
        return None

    def wait_writer(
        self,
        shard: str = SHARD,
        *,
        but: ClusterNode | None = None,
        patience_s: float = PATIENCE_S,
    ) -> ClusterNode:
        """Return the writer once there is one that is not ``but``."""
        return self.until(
            lambda: self.find_writer(shard, but=but), "a node may write", patience_s, shard
        )

    def wait_settled(
        self, shard: str = SHARD, *, patience_s: float = PATIENCE_S, nodes: int | None = None
    ) -> int:
        """Return the seq at which all running nodes are final and applied, with one writer.

        ``nodes``: how many must run, all by default.
        """
        wanted = len(self.names) if nodes is None else nodes

        def question() -> list[int] | None:
            running = [node for node in self if node.is_running]
            found = [node.find_status(shard) for node in running]
            if len(found) < wanted or None in found:
                return None
            known = [status for status in found if status is not None]
            writers = [status for status in known if status.role is ShardRole.WRITER]
            seqs = {status.final_seq for status in known}
            seqs |= {status.applied_seq for status in known}
            is_settled = len(writers) == 1 and len(seqs) == 1 and not writers[0].unfinal_commits
            return list(seqs) if is_settled else None

        return self.until(question, "all nodes are at one seq, with one writer", patience_s, shard)[
            0
        ]

    def wait_taken_in(self, shard: str = SHARD, *, patience_s: float = PATIENCE_S) -> None:
        """Return once every running node takes part and has in its file what is final.

        For a moment only, while somebody writes.
        """
        for node in self:
            if node.is_running:
                self.until(
                    lambda node=node: _has_caught_up(node.find_status(shard)),  # type: ignore[misc]
                    f"{node.name} has caught up",
                    patience_s,
                    shard,
                )

    def describe(self, shard: str = SHARD, *, with_logs: bool = False) -> str:
        """Return what every node says of a shard; with the ends of the logs if asked for."""
        lines = [node.describe(shard) for node in self]
        if with_logs:
            lines += [f"--- {node.log}\n{node.tail()}" for node in self]
        return "\n".join(lines)


def _has_caught_up(status: ShardStatus | None) -> bool:
    if status is None or status.role is ShardRole.LEARNER:
        return False
    return status.writer is not None and 0 < status.final_seq == status.applied_seq


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, outside of those that the kernel gives to diallers.

    So a node can come back to its own: nobody gets it by chance in between.
    """
    try:
        range_text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
        port_max = int(range_text.split()[0]) - 1
    except OSError:
        port_max = 32_767
    found: list[int] = []
    for _ in range(_PORT_TRIES):
        port = random.randint(_PORT_MIN, max(port_max, _PORT_MIN + _PORT_TRIES))
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            if port not in found:
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports on loopback")


def _is_alive(pid: int) -> bool:
    """Return whether a process runs or stands still; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill_and_wait(pid: int) -> None:
    """Kill a process that is not our child and return when it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], PATIENCE_S)
    finally:
        os.close(descriptor)
