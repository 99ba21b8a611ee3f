"""Nothing, basenet and litestream as one interface, so that a row treats them alike.

A sidecar watches `Scene.database`, or every database in `Scene.directory`, and writes to
`Scene.archive`: a directory, or an S3 URL whose server the environment names. ``start`` returns at
once; `Sidecar.wait_ready` when the first state is in the archive and the program is at rest, so
that a load never pays for the start.
"""

import os
import shutil
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from basenet.control.client import DaemonClient, Target
from basenet.control.surface import Level, NodeStatus, ShardState
from basenet.errors import UnavailableError
from basenet.testing.bench.contenders import Contender, Kind
from basenet.testing.bench.processes import Process, Usage, wait_until

_READY_SECONDS_MAX: Final = 120.0
_DRAIN_SECONDS_MAX: Final = 300.0
# Longer than litestream's default interval: silence means that it has synced.
_LITESTREAM_SILENCE_S: Final = 2.5
_ANNOUNCEMENT: Final = "BASE_LISTEN_ADDR="
_LAPPED: Final = "base_capture_lapped_total"


def litestream_program() -> str:
    """Return the litestream program: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("litestream")
    return str(beside) if beside.exists() else (shutil.which("litestream") or "litestream")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where everything of one measurement lies.

    ``archive_url`` and ``environment`` are of an object store; without them the archive is the
    directory `archive`. ``settings`` are BASE_* variables on top of the contender's.
    """

    root: Path
    is_directory: bool = False
    archive_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where the databases are."""
        return self.root / "databases"

    @property
    def database(self) -> Path:
        """The one database of most measurements."""
        return self.directory / "app.db"

    @property
    def archive(self) -> Path:
        """The archive, when it is a directory."""
        return self.root / "archive"

    @property
    def location(self) -> str:
        """The archive as a command wants it."""
        return self.archive_url or str(self.archive)


class Sidecar(ABC):
    """What runs beside the application."""

    def __init__(self, scene: Scene, contender: Contender) -> None:
        self.scene = scene
        self.contender = contender
        self._process: Process | None = None

    @abstractmethod
    def start(self) -> None:
        """Start the program."""

    @abstractmethod
    def wait_ready(self) -> None:
        """Return when the present state is archived and the program is at rest."""

    @abstractmethod
    def wait_archived(self) -> None:
        """Return when everything that is committed now is archived."""

    @abstractmethod
    def newest(self) -> str:
        """Return the name of the newest object; it changes when one comes. For file archives."""

    @abstractmethod
    def restore_command(self, out: Path) -> tuple[list[str | Path], dict[str, str]]:
        """Return the command that restores the database to ``out``, and its environment."""

    def laps(self) -> int:
        """Return how often the application's log overtook the program."""
        return 0

    @property
    def process(self) -> Process:
        """The running program."""
        assert self._process is not None, "start comes first"
        return self._process

    def usage(self) -> Usage:
        """Return what the program took up to now."""
        return self.process.usage()

    def stop(self) -> float:
        """End the program in order; return the seconds that it took."""
        return self._process.stop() if self._process is not None else 0.0

    def kill(self) -> None:
        """End the program with SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def stored(self, part: str = "") -> tuple[int, int]:
        """Return (files, bytes) in the file archive whose path there contains ``part``."""
        files = size = 0
        for folder, _, names in os.walk(self.scene.archive):
            for name in names:
                path = os.path.join(folder, name)  # noqa: PTH118  (a Path costs more)
                if part not in path.removeprefix(str(self.scene.archive)):
                    continue
                try:
                    size += os.stat(path).st_size  # noqa: PTH116  (the same)
                except FileNotFoundError:
                    continue
                files += 1
        return files, size


class Nothing(Sidecar):
    """The application is alone."""

    def start(self) -> None:
        """Do nothing."""

    def wait_ready(self) -> None:
        """Do nothing."""

    def wait_archived(self) -> None:
        """Do nothing."""

    def newest(self) -> str:
        """Return nothing."""
        return ""

    def restore_command(self, out: Path) -> tuple[list[str | Path], dict[str, str]]:
        """Raise: there is no archive."""
        raise UnavailableError(f"nothing was archived, so nothing can be restored to {out}")

    def usage(self) -> Usage:
        """Return zeros."""
        return Usage(cpu_seconds=0.0, resident_bytes=0, peak_bytes=0, descriptors=0)


class Basenet(Sidecar):
    """``basenet serve``, with its own settings unless the contender says otherwise."""

    def start(self) -> None:
        """Start the daemon on a free port."""
        source = self.scene.directory if self.scene.is_directory else self.scene.database
        command = [sys.executable, "-m", "basenet", "serve", str(source), self.scene.location]
        self._process = Process(
            command, output=self.scene.root / "basenet.log", environment=self._environment()
        )

    def _environment(self) -> dict[str, str]:
        plain = {
            name: value
            for name, value in os.environ.items()
            # An installed program has compiled modules; it must not compile itself each time.
            if not name.startswith("BASE_") and name != "PYTHONDONTWRITEBYTECODE"
        }
        settings = {
            "BASE_LISTEN_HTTP": "127.0.0.1:0",
            "BASE_DATA_DIR": str(self.scene.root / "data"),
            "BASE_CAPTURE": self.contender.capture,
        }
        if self.contender.interval is not None:
            settings["BASE_FLUSH_INTERVAL"] = self.contender.interval
        return {**plain, **settings, **self.scene.environment, **self.scene.settings}

    def _client(self) -> DaemonClient:
        return DaemonClient(Target(socket_path=self.scene.root / "data" / "basenet.sock"))

    def status(self) -> NodeStatus | None:
        """Return what the daemon says of itself, None while it does not answer."""
        self.process.check_alive()
        try:
            return self._client().get_node_status()
        except UnavailableError:
            return None

    def wait_ready(self) -> None:
        """Return when every shard captures, or waits for its application, and is archived."""
        wait_until(self._is_ready, "basenet is ready", seconds_max=_READY_SECONDS_MAX)
        self.wait_archived()

    def _is_ready(self) -> bool:
        status = self.status()
        settled = {ShardState.CAPTURING, ShardState.DETACHED}
        return (
            status is not None
            and bool(status.shards)
            and all(
                shard.state in settled and shard.last_snapshot_seq is not None
                for shard in status.shards
            )
        )

    def wait_archived(self) -> None:
        """Ask the daemon to answer when all that is committed now is archived."""
        status = self.status()
        for shard in status.shards if status is not None else ():
            self._client().wait(shard.shard, None, Level.ARCHIVED, _DRAIN_SECONDS_MAX)

    def newest(self) -> str:
        """Return the last log object's name."""
        logs = (self.scene.archive / "default" / "app").glob("*/log/*/*.lbn")
        return max((path.name for path in logs), default="")

    def laps(self) -> int:
        """Return base_capture_lapped_total, summed over the shards."""
        return int(self.metric(_LAPPED))

    def metric(self, name: str) -> float:
        """Return a metric of ``/metrics``, summed over its samples."""
        with urllib.request.urlopen(f"http://{self._address()}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = [line.rpartition(" ") for line in lines if line.startswith(name)]
        return sum(float(value) for key, _, value in samples if key.partition("{")[0] == name)

    def _address(self) -> str:
        for line in reversed(self.process.output.read_text().splitlines()):
            if line.startswith(_ANNOUNCEMENT):
                return line.removeprefix(_ANNOUNCEMENT)
        raise UnavailableError("basenet did not say where it listens")

    def restore_command(self, out: Path) -> tuple[list[str | Path], dict[str, str]]:
        """Return ``basenet restore``, trusting the keys that the daemon left in its directory."""
        command: list[str | Path] = [sys.executable, "-m", "basenet", "restore"]
        return [*command, self.scene.location, out, "--json"], self._environment()


class Litestream(Sidecar):
    """``litestream replicate``, with a configuration file as its manual has it."""

    def start(self) -> None:
        """Write the configuration and start the program."""
        self._configuration.write_text(self._render())
        self._process = Process(
            [litestream_program(), "replicate", "-config", str(self._configuration)],
            output=self.scene.root / "litestream.log",
            environment=self._environment(),
        )

    @property
    def _configuration(self) -> Path:
        return self.scene.root / "litestream.yml"

    def _environment(self) -> dict[str, str]:
        # litestream 0.5.17 cannot open an S3 replica while AWS_CA_BUNDLE is set.
        plain = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
        return {**plain, **self.scene.environment}

    def _render(self) -> str:
        scene, interval = self.scene, self.contender.interval
        lines = [] if self.contender.is_compacted else ["levels:", "  - interval: 24h"]
        lines += ["dbs:"]
        if scene.is_directory:
            lines += [f"  - dir: {scene.directory}", '    pattern: "*.db"', "    watch: true"]
        else:
            lines += [f"  - path: {scene.database}"]
        lines += [f"    monitor-interval: {interval}"] if interval else []
        lines += ["    replica:", *(f"      {line}" for line in self._replica())]
        lines += [f"      sync-interval: {interval}"] if interval else []
        return "\n".join(lines) + "\n"

    def _replica(self) -> list[str]:
        if self.scene.archive_url is None:
            return ["type: file", f"path: {self.scene.archive}"]
        bucket, _, prefix = self.scene.archive_url.removeprefix("s3://").partition("/")
        return [
            "type: s3",
            f"bucket: {bucket}",
            f"path: {prefix}",
            f"endpoint: {self.scene.environment['AWS_ENDPOINT_URL']}",
            "region: us-east-1",
            "force-path-style: true",
        ]

    def wait_ready(self) -> None:
        """Return when something was replicated and nothing more comes."""
        if self.scene.archive_url is not None:
            time.sleep(2 * _LITESTREAM_SILENCE_S)
            return
        wait_until(lambda: self.stored(".ltx")[0] > 0, "litestream is ready")
        self.wait_archived()

    def wait_archived(self) -> None:
        """Return when the replica was silent for longer than the longest interval."""
        if self.scene.archive_url is not None:
            time.sleep(2 * _LITESTREAM_SILENCE_S)
            return
        before, since = self.stored(), time.monotonic()
        deadline = since + _DRAIN_SECONDS_MAX
        while time.monotonic() - since < _LITESTREAM_SILENCE_S and time.monotonic() < deadline:
            time.sleep(0.1)
            now = self.stored()
            if now != before:
                before, since = now, time.monotonic()

    def newest(self) -> str:
        """Return the last object of level 0."""
        level = (self.scene.archive / "ltx" / "0").glob("*.ltx")
        return max((path.name for path in level), default="")

    def restore_command(self, out: Path) -> tuple[list[str | Path], dict[str, str]]:
        """Return ``litestream restore`` by the configuration."""
        # The scene may lead to the archive by another way than when the program was started.
        self._configuration.write_text(self._render())
        command: list[str | Path] = [litestream_program(), "restore", "-o", out]
        return [*command, "-config", self._configuration, self.scene.database], self._environment()


_KINDS: Final[dict[Kind, type[Sidecar]]] = {
    Kind.NOTHING: Nothing,
    Kind.BASENET: Basenet,
    Kind.LITESTREAM: Litestream,
}


def make_sidecar(scene: Scene, contender: Contender) -> Sidecar:
    """Return the contender's sidecar, not started."""
    return _KINDS[contender.kind](scene, contender)


@contextmanager
def running(scene: Scene, contender: Contender) -> Iterator[Sidecar]:
    """Run the contender's sidecar, ready, while the body runs; stop it afterwards."""
    sidecar = make_sidecar(scene, contender)
    try:
        sidecar.start()
        sidecar.wait_ready()
        yield sidecar
        sidecar.stop()
    finally:
        sidecar.kill()
