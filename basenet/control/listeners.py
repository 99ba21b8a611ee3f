"""The two addresses at which a daemon can be asked: BASE_LISTEN_HTTP and its data directory.

Theory of operation
===================

Both are taken before the daemon touches any database, because both are how a second daemon finds
out that it is one. They are bound and listening when `open_listeners` returns, so a client that
comes early waits in the backlog instead of being refused.

The data directory is claimed by ``flock`` on the directory itself: the kernel gives it back however
the daemon ends, and no file is left to be judged stale. Whoever holds the claim may remove a socket
that lies there, since its maker is dead. Where directories cannot be locked (some NFS servers), the
claim is only that nobody answers at the socket.

A Unix socket's address ends at 107 bytes, and a data directory's path need not. Linux lets one name
the directory by a descriptor, so the length of the path does not matter there.

The socket is 0600: who may read the data directory's files as its owner may ask. Its mode is set
between bind and listen, when nobody can connect yet; the umask is the whole process's and is left
alone.
"""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from basenet.config.values import Endpoint
from basenet.errors import BasenetError, ConflictError, UnavailableError, UsageError

SOCKET_NAME: Final = "basenet.sock"
BACKLOG: Final = 128
_SOCKET_ADDRESS_BYTES_MAX: Final = 100  # of 108 on Linux and 104 on BSD, one of them a NUL
_SOCKET_MODE: Final = 0o600
_PROBE_SECONDS: Final = 1.0


@dataclass(slots=True, kw_only=True)
class Listeners:
    """Two listening sockets and the claim on the data directory. The holder calls `close`."""

    tcp: socket.socket
    unix: socket.socket
    address: Endpoint  # where ``tcp`` really listens
    announcement: str | None  # the line for standard output, when the port was ours to choose
    _socket_path: Path
    _socket_inode: int
    _claim: int

    def close(self) -> None:
        """Close both, remove the socket's file if it is ours, then give up the claim."""
        self.tcp.close()
        self.unix.close()
        with contextlib.suppress(FileNotFoundError):
            if self._socket_path.lstat().st_ino == self._socket_inode:
                self._socket_path.unlink()
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1


def open_listeners(endpoint: Endpoint, data_dir: Path) -> Listeners:
    """Claim ``data_dir``, then listen there and at ``endpoint``.

    Raises `ConflictError` when another basenet holds the directory or something holds the port, and
    `UsageError` when the address or the directory cannot be used.
    """
    with contextlib.ExitStack() as undo:
        claim = _claim_directory(data_dir)
        undo.callback(os.close, claim)
        path = data_dir / SOCKET_NAME
        unix = _listen_unix(path)
        undo.callback(path.unlink, missing_ok=True)
        undo.callback(unix.close)
        tcp = _listen_tcp(endpoint)
        undo.callback(tcp.close)
        port = int(tcp.getsockname()[1])
        address = Endpoint(host=endpoint.host, port=port)
        listeners = Listeners(
            tcp=tcp,
            unix=unix,
            address=address,
            announcement=f"BASE_LISTEN_ADDR={address}" if endpoint.port == 0 else None,
            _socket_path=path,
            _socket_inode=path.lstat().st_ino,
            _claim=claim,
        )
        undo.pop_all()
    return listeners


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Yield an address of the Unix socket at ``path`` that is short enough to bind or connect.

    Raises `OSError` when the directory cannot be opened, `UsageError` when the path is too long
    for this system.
    """
    text = os.fspath(path)
    if len(os.fsencode(text)) <= _SOCKET_ADDRESS_BYTES_MAX:
        yield text
        return
    if not sys.platform.startswith("linux"):
        raise UsageError(
            f"the path {text!r} is too long for a socket on this system: choose a BASE_DATA_DIR of "
            f"at most {_SOCKET_ADDRESS_BYTES_MAX - len(SOCKET_NAME) - 1} bytes"
        )
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _claim_directory(data_dir: Path) -> int:
    """Return a descriptor that holds the claim, or merely is open where none can be held."""
    try:
        directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"the data directory {str(data_dir)!r} cannot be opened ({error.strerror}): "
            "set BASE_DATA_DIR to a directory of this user"
        ) from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(directory)
        raise _occupied(data_dir) from error
    except OSError as error:
        if error.errno not in {errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}:
            os.close(directory)
            raise UnavailableError(
                f"the data directory {str(data_dir)!r} cannot be locked ({error.strerror}): "
                "set BASE_DATA_DIR to a directory on a local disk"
            ) from error
    return directory


def _listen_unix(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``, where a dead daemon may have left another."""
    if _is_answered(path):
        raise _occupied(path.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with socket_address(path) as address:
            listener.bind(address)
        path.chmod(_SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"no socket can be made at {str(path)!r} ({error.strerror}): "
            "set BASE_DATA_DIR to a directory of this user on a local disk"
        ) from error
    except UsageError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _is_answered(path: Path) -> bool:
    """Return whether somebody listens at ``path``."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(_PROBE_SECONDS)
    try:
        with socket_address(path) as address:
            probe.connect(address)
    except (BlockingIOError, TimeoutError):
        return True  # its backlog is full, so it has one
    except OSError:
        return False  # no such file, not a socket, or nobody behind it
    else:
        return True
    finally:
        probe.close()


def _listen_tcp(endpoint: Endpoint) -> socket.socket:
    """Return a socket that listens at ``endpoint``; an empty host is every interface."""
    try:
        if not endpoint.host:
            listener = _listen_everywhere(endpoint.port)
        else:
            found = socket.getaddrinfo(
                endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, place = found[0]
            listener = socket.create_server(place, family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise _explain_tcp(endpoint, error) from error
    listener.setblocking(False)
    return listener


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=BACKLOG)


def _explain_tcp(endpoint: Endpoint, error: OSError | UnicodeError) -> BasenetError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConflictError(
            f"BASE_LISTEN_HTTP: something listens at {endpoint} already; stop it or set "
            "BASE_LISTEN_HTTP to another address, such as 127.0.0.1:0 for any free port"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UsageError(
        f"BASE_LISTEN_HTTP: cannot listen at {endpoint} ({reason}); set it to an address of this "
        "host, such as 127.0.0.1:8090"
    )


def _occupied(data_dir: Path) -> ConflictError:
    return ConflictError(
        f"another basenet uses this data directory, {str(data_dir)!r}: stop it, or give this one "
        "a BASE_DATA_DIR of its own"
    )
