"""The other side of `control.server`: a small synchronous client, for commands and for scripts.

It asks one question per connection, over the Unix socket in a data directory or over ``http://``.
An error body comes back as the exception that the daemon answered for, so a command ends with the
same sentence and exit code as if the daemon had been called directly.
"""

import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from basenet.config.shards import parse_shards
from basenet.config.values import Endpoint, parse_endpoint
from basenet.control.listeners import SOCKET_NAME, socket_address
from basenet.control.members import (
    COMMAND_HEADER,
    COMMAND_WORD,
    LOSS_PARAMETER,
    MembersCommand,
)
from basenet.control.reset import ResetCommand
from basenet.control.surface import Level, NodeStatus, Orphaned, ShardStatus, WaitResult
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    PeerError,
    UnavailableError,
    UsageError,
)

DATA_DIR_NAME: Final = ".basenet"
ANSWER_SECONDS_MAX: Final = 10.0
COMMAND_SECONDS_MAX: Final = 120.0  # a CONFIG waits for its new voters to catch up
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024  # 10,000 shards are about 10 MB
_HTTP_PORT: Final = 80
_OK: Final = 200

_Fact = TypeVar("_Fact")

_CLASS_OF_STATUS: Final[dict[int, type[BasenetError]]] = {
    400: UsageError,
    403: UsageError,
    404: NotFoundError,
    409: ConflictError,
    500: BasenetError,
    502: PeerError,
    503: UnavailableError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a daemon should answer: exactly one of the two is set."""

    socket_path: Path | None = None
    endpoint: Endpoint | None = None

    def __str__(self) -> str:
        return str(self.socket_path) if self.socket_path else f"http://{self.endpoint}"


def find_target(
    environment: Mapping[str, str],
    *,
    data_dir: Path | None = None,
    url: str | None = None,
) -> Target:
    """Return where the daemon that the caller means should answer.

    In this order: ``url``, ``data_dir``, BASE_DATA_DIR, ``.basenet`` beside the first database of
    BASE_SHARDS, ``.basenet`` in the present directory. Raises `UsageError` for a URL of another
    form and for a BASE_SHARDS that cannot be read.
    """
    if url is not None and data_dir is not None:
        raise UsageError("--url and --data-dir exclude each other: write one of them")
    if url is not None:
        return Target(endpoint=_parse_url(url))
    if data_dir is None:
        data_dir = _find_data_dir(environment)
    return Target(socket_path=data_dir / SOCKET_NAME)


class DaemonClient:
    """Asks one daemon.

    Every method raises `UnavailableError` when no daemon answers at the target, and the exception
    behind the error body when it refuses.
    """

    def __init__(self, target: Target) -> None:
        self._target = target

    def get_node_status(self) -> NodeStatus:
        """Return the node and all its shards."""
        return self._get("/v1/shards", NodeStatus)

    def get_shard_status(self, shard: str) -> ShardStatus:
        """Return one shard; raise `NotFoundError` if the daemon does not have it."""
        return self._get(f"/v1/shards/{quote(shard, safe='')}", ShardStatus)

    def wait(
        self,
        shard: str,
        seq: int | None,
        level: Level | None,
        timeout_s: float,
        generation: str | None = None,
    ) -> WaitResult:
        """Return when ``seq`` (None: the present commit) is safe; see `Surface.wait`.

        ``level`` None leaves the choice to the daemon: final with peers, else archived.
        Raises `Orphaned` when what was committed since ``generation`` may be lost.
        """
        query = {"timeout": f"{timeout_s * 1000:.0f}ms"}
        query |= {"now": "1"} if seq is None else {"seq": str(seq)}
        query |= {"level": level.value} if level is not None else {}
        query |= {"generation": generation} if generation is not None else {}
        path = f"/v1/shards/{quote(shard, safe='')}/wait?{urlencode(query)}"
        return self._get(path, WaitResult, patience_s=timeout_s)

    def command(self, shard: str, command: MembersCommand) -> str:
        """Do what an operator told about the members of ``shard``; see `Surface.command`."""
        query = {"node": ",".join(command.nodes)} if command.nodes else {}
        query |= {"lineage": command.lineage} if command.lineage is not None else {}
        query |= {LOSS_PARAMETER: "1"} if command.is_loss_accepted else {}
        path = f"/v1/shards/{quote(shard, safe='')}/members/{command.verb}?{urlencode(query)}"
        done = self._ask(
            "POST",
            path,
            _Done,
            headers={COMMAND_HEADER: COMMAND_WORD},
            patience_s=COMMAND_SECONDS_MAX,
        )
        return done.done

    def reset(self, shard: str, command: ResetCommand) -> str:
        """Let the file or the chain of ``shard`` count; see `Surface.reset`."""
        query = {"keep": command.keep.value} | ({"force": "1"} if command.is_forced else {})
        path = f"/v1/shards/{quote(shard, safe='')}/reset?{urlencode(query)}"
        done = self._ask(
            "POST",
            path,
            _Done,
            headers={COMMAND_HEADER: COMMAND_WORD},
            patience_s=COMMAND_SECONDS_MAX,
        )
        return done.done

    def _get(self, path: str, kind: type[_Fact], *, patience_s: float = 0.0) -> _Fact:
        return self._ask("GET", path, kind, headers={}, patience_s=patience_s)

    def _ask(
        self,
        method: str,
        path: str,
        kind: type[_Fact],
        *,
        headers: Mapping[str, str],
        patience_s: float,
    ) -> _Fact:
        connection = _connect(self._target, ANSWER_SECONDS_MAX + patience_s)
        try:
            # One question per connection: said so, the server ends it with its answer.
            ours = {"accept": "application/json", "connection": "close", **headers}
            connection.request(method, path, headers=ours)
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._unanswered(error) from error
        finally:
            connection.close()
        if response.status != _OK:
            raise self._rebuild_error(response.status, body)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnavailableError(
                f"what answers at {self._target} is not a basenet daemon of this version: "
                "look at BASE_LISTEN_HTTP or --data-dir"
            ) from error

    def _unanswered(self, error: OSError | http.client.HTTPException) -> UnavailableError:
        if isinstance(error, PermissionError):
            return UnavailableError(
                f"the basenet daemon at {self._target} belongs to another user: run this as that "
                "user, or ask it with --url"
            )
        if isinstance(error, TimeoutError):
            return UnavailableError(
                f"the basenet daemon at {self._target} did not answer in time: look at its log"
            )
        return UnavailableError(
            f"no basenet daemon answers at {self._target}; start one with `basenet serve`, or say "
            "with --data-dir or --url where it is"
        )

    def _rebuild_error(self, status: int, body: bytes) -> BasenetError:
        """Return the exception that stands behind an error body."""
        try:
            answer = msgspec.json.decode(body, type=_ErrorBody)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return UnavailableError(
                f"what answers at {self._target} says {status} and is not a basenet daemon: "
                "look at --url"
            )
        if answer.code == CorruptionError.code:
            return CorruptionError(answer.error)
        if answer.code == Orphaned.code:
            return Orphaned(answer.error, bundles=answer.bundles)
        return _CLASS_OF_STATUS.get(status, BasenetError)(answer.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ErrorBody:
    error: str
    code: str
    bundles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    done: str


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; the host is only a word for the Host header."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        with socket_address(self._path) as address:
            self.sock.connect(address)


def _connect(target: Target, timeout_s: float) -> http.client.HTTPConnection:
    if target.socket_path is not None:
        return _UnixConnection(target.socket_path, timeout_s)
    assert target.endpoint is not None, "a target is a socket or an endpoint"
    return http.client.HTTPConnection(target.endpoint.host, target.endpoint.port, timeout=timeout_s)


def _parse_url(url: str) -> Endpoint:
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket without its other half
        parts = urlsplit("")
    if parts.scheme != "http" or parts.path.strip("/") or parts.query or "@" in parts.netloc:
        raise UsageError(
            f"--url {url!r} is not the address of a daemon: write http://host:port, such as "
            "http://127.0.0.1:8090"
        )
    has_port = parts.netloc.rpartition("]")[2].rpartition(":")[1] == ":"
    endpoint = parse_endpoint(parts.netloc if has_port else f"{parts.netloc}:{_HTTP_PORT}")
    if not endpoint.host:
        raise UsageError(f"--url {url!r} names no host: write http://127.0.0.1:{endpoint.port}")
    return endpoint


def _find_data_dir(environment: Mapping[str, str]) -> Path:
    """Return the data directory that `basenet serve` would use in this environment.

    Only the two variables that decide it are read: a fault in another one is no reason not to ask
    a daemon that runs.
    """
    if given := environment.get("BASE_DATA_DIR", "").strip():
        return Path(given)
    shards = parse_shards(environment.get("BASE_SHARDS", ""))
    return (shards[0].directory if shards else Path()) / DATA_DIR_NAME
