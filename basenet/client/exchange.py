"""One question and its answer over HTTP/1.1, on a connection that is kept between questions.

The daemon listens on a Unix socket in its data directory and on a TCP port. Questions are GETs that
change nothing, so one that met a connection which the daemon had closed meanwhile is asked again,
once, on a new one. Answers have a length and are bounded; anything else is no basenet daemon.
"""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from basenet.client.errors import DaemonUnavailable

HEAD_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
CONNECT_SECONDS_MAX: Final = 5.0
_SOCKET_ADDRESS_BYTES_MAX: Final = 100  # of 108 on Linux and 104 on BSD, one of them a NUL
_BLOCK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a daemon listens: a Unix socket, or a host and port."""

    socket_path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.socket_path is not None:
            return str(self.socket_path)
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else self._url

    @property
    def _url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body."""

    status: int
    body: bytes


class _Stale(Exception):  # noqa: N818  (never leaves this file)
    """The kept connection had ended before the question was heard."""


class Exchange:
    """Asks one daemon, one question at a time. Not for two threads at once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._socket: socket.socket | None = None
        self._process = os.getpid()

    def get(self, path: str, timeout_s: float) -> Answer:
        """Return the answer to a GET of ``path``, which is encoded.

        Raises `DaemonUnavailable` when none comes within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        if self._process != os.getpid():
            self._socket, self._process = None, os.getpid()  # the parent's, after a fork
        try:
            if self._socket is not None:
                try:
                    return self._ask(self._socket, path, deadline)
                except _Stale:
                    self.close()
            self._socket = self._connect(min(timeout_s, CONNECT_SECONDS_MAX))
            return self._ask(self._socket, path, deadline)
        except _Stale as error:
            self.close()
            raise DaemonUnavailable(f"{self.place} closed the connection unasked.") from error
        except PermissionError as error:
            self.close()
            raise DaemonUnavailable(
                f"the basenet daemon at {self.place} belongs to another user: run as that user, or "
                "name its http:// address."
            ) from error
        except TimeoutError as error:
            self.close()
            raise DaemonUnavailable(
                f"the basenet daemon at {self.place} did not answer in time."
            ) from error
        except EOFError as error:
            self.close()
            raise DaemonUnavailable(
                f"the basenet daemon at {self.place} ended in the middle of its answer."
            ) from error
        except OSError as error:
            self.close()
            raise DaemonUnavailable(
                f"no basenet daemon answers at {self.place} ({error.strerror or error})."
            ) from error
        except BaseException:
            self.close()  # an answer that is read in part would be taken for the next one
            raise

    def close(self) -> None:
        """End the connection, if there is one; the next question makes another."""
        if self._socket is not None and self._process == os.getpid():
            self._socket.close()
        self._socket = None

    def _connect(self, timeout_s: float) -> socket.socket:
        path = self.place.socket_path
        if path is None:
            return socket.create_connection((self.place.host, self.place.port), timeout_s)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            _connect_unix(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _ask(self, connection: socket.socket, path: str, deadline: float) -> Answer:
        host = self.place.host or "localhost"
        host = f"[{host}]" if ":" in host else host
        request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n\r\n"
        try:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            connection.sendall(request.encode("ascii"))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise _Stale from error
        data = self._read_head(connection, deadline)
        head, _, body = data.partition(b"\r\n\r\n")
        status, length, is_kept = self._parse_head(head)
        while len(body) < length:
            body += self._receive(connection, deadline)
        if not is_kept or len(body) > length:
            self.close()
        return Answer(status, body[:length])

    def _read_head(self, connection: socket.socket, deadline: float) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                data += self._receive(connection, deadline)
            except (ConnectionResetError, EOFError) as error:
                if not data:
                    raise _Stale from error
                raise self._strange() from error
            if len(data) > HEAD_BYTES_MAX + _BLOCK_BYTES:
                raise self._strange()
        return data

    def _receive(self, connection: socket.socket, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        data = connection.recv(_BLOCK_BYTES)
        if not data:
            raise EOFError("the daemon ended the connection")
        return data

    def _parse_head(self, head: bytes) -> tuple[int, int, bool]:
        """Return status, length of the body, and whether the connection goes on."""
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip().lower()
        words = first.split(" ", 2)
        length = headers.get("content-length", "")
        is_http = words[0] == "HTTP/1.1" and len(words) > 1 and words[1].isdecimal()
        if not is_http or not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            raise self._strange()
        return int(words[1]), int(length), headers.get("connection") != "close"

    def _strange(self) -> DaemonUnavailable:
        return DaemonUnavailable(f"what answers at {self.place} is not a basenet daemon.")


def _connect_unix(connection: socket.socket, path: Path) -> None:
    """Connect to the socket at ``path``, which may be longer than an address can be."""
    text = os.fspath(path)
    if len(os.fsencode(text)) <= _SOCKET_ADDRESS_BYTES_MAX:
        connection.connect(text)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
