"""Three nodes on loopback for a row: what their daemons take, and who waits for a commit there."""

import http.client
import socket
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Self

from basenet.control.listeners import SOCKET_NAME
from basenet.errors import UnavailableError
from basenet.testing.bench.context import Context
from basenet.testing.bench.loads import ONE_ROW
from basenet.testing.bench.processes import Usage, usage_of
from basenet.testing.bench.report import megabytes
from basenet.testing.cluster import SHARD, Cluster, ClusterNode, ClusterStuck

_WAIT: Final = f"/v1/shards/{SHARD}/wait?now=1&level=final&timeout=60s"
_WAIT_S: Final = 70.0
_OK: Final = 200


class Asker:
    """Asks one node on one connection, as an application that waits for its commits does."""

    def __init__(self, node: ClusterNode) -> None:
        """Connect to the daemon's socket; raises `UnavailableError` if nobody listens."""
        self._http = http.client.HTTPConnection("localhost", timeout=_WAIT_S)
        self._http.sock = socket.socket(socket.AF_UNIX)
        self._http.sock.settimeout(_WAIT_S)
        try:
            self._http.sock.connect(str(node.data_dir / SOCKET_NAME))
        except OSError as error:
            raise UnavailableError(f"{node.name} does not answer: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def wait_final(self) -> None:
        """Return when what is committed at this node now is final; raise `UnavailableError`."""
        try:
            self._http.request("GET", _WAIT)
            answer = self._http.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"the wait was cut off: {error}") from error
        if answer.status != _OK:
            raise UnavailableError(f"the wait was answered {answer.status}: {text[:200]!r}")


class Meter:
    """What the daemons of a cluster take between two moments."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._began = self._read()

    def _read(self) -> dict[str, Usage]:
        pids = {node.name: node.daemon_pid() for node in self._cluster if node.is_running}
        return {name: usage_of(pid) for name, pid in pids.items() if pid is not None}

    def again(self) -> Self:
        """Begin anew from now."""
        self._began = self._read()
        return self

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU of each node's daemon since the beginning."""
        now = self._read()
        return {
            name: round(usage.cpu_seconds - self._began[name].cpu_seconds, 2)
            for name, usage in now.items()
            if name in self._began
        }

    def resident(self) -> dict[str, str]:
        """Return how much memory each node's daemon has now, and had at most."""
        return {
            name: f"{megabytes(usage.resident_bytes)}, peak {megabytes(usage.peak_bytes)}"
            for name, usage in self._read().items()
        }

    def guardians(self) -> dict[str, str]:
        """Return how much memory each guardian has now."""
        return {
            node.name: megabytes(usage_of(node.guardian_pid).resident_bytes)
            for node in self._cluster
            if node.is_running
        }


def spread(values: Mapping[str, float]) -> str:
    """Return the least and the most of ``values``."""
    return f"{min(values.values()):.2f} to {max(values.values()):.2f}"


def mean(values: Mapping[str, float]) -> float:
    """Return the mean over the nodes."""
    return statistics.mean(values.values())


@contextmanager
def three_nodes(context: Context, database: Path | None = None) -> Iterator[Cluster]:
    """Give three nodes that are started; ``database``: what the first one has before (moved)."""
    with tempfile.TemporaryDirectory(dir=context.root) as folder:
        cluster = Cluster(Path(folder), BASE_LOG_LEVEL="warning")
        with cluster:
            if database is not None:
                database.rename(cluster["n0"].database())
            cluster.start()
            yield cluster


def settle(cluster: Cluster) -> ClusterNode:
    """Return the writer once all nodes are at one place, with a table to write to."""
    try:
        writer = cluster.wait_writer()
        ONE_ROW.run(writer.database())
        with closing(Asker(writer)) as asker:
            asker.wait_final()
        cluster.wait_settled()
    except ClusterStuck as error:
        raise UnavailableError(str(error)) from error
    return writer
