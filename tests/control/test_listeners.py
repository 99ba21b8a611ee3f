import errno
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from basenet.config.values import Endpoint
from basenet.control.listeners import SOCKET_NAME, open_listeners, socket_address
from basenet.errors import ConflictError, UsageError
from tests.fakes.served import ANY_PORT


def listen_at(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``, as a daemon of another program would."""
    listener = socket.socket(socket.AF_UNIX)
    with socket_address(path) as address:
        listener.bind(address)
    listener.listen(1)
    return listener


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    """The first keeps its socket, and the second says whose directory it is."""
    first = open_listeners(ANY_PORT, tmp_path)
    with pytest.raises(ConflictError, match="another basenet uses this data directory"):
        open_listeners(ANY_PORT, tmp_path)
    assert (tmp_path / SOCKET_NAME).exists()
    first.close()
    open_listeners(ANY_PORT, tmp_path).close()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_trace(tmp_path: Path) -> None:
    """The claim ends with its holder however it ends, and its socket is replaced."""
    program = (
        "import sys, pathlib\n"
        "from basenet.config.values import Endpoint\n"
        "from basenet.control.listeners import open_listeners\n"
        "open_listeners(Endpoint(host='127.0.0.1', port=0), pathlib.Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ConflictError, match=re.escape(str(tmp_path))):
            open_listeners(ANY_PORT, tmp_path)
        other.kill()
    assert (tmp_path / SOCKET_NAME).exists(), "a killed daemon leaves its socket"
    open_listeners(ANY_PORT, tmp_path).close()
    assert not (tmp_path / SOCKET_NAME).exists()


def test_a_socket_that_somebody_answers_is_not_taken(tmp_path: Path) -> None:
    """Where directories cannot be locked, this is the whole claim."""
    with listen_at(tmp_path / SOCKET_NAME):
        with pytest.raises(ConflictError, match="another basenet"):
            open_listeners(ANY_PORT, tmp_path)
        assert (tmp_path / SOCKET_NAME).exists()


def test_a_socket_with_a_full_backlog_is_alive(tmp_path: Path) -> None:
    """A busy daemon is not a dead one."""
    listener = listen_at(tmp_path / SOCKET_NAME)
    waiting = []
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        waiting.append(client)
        with socket_address(tmp_path / SOCKET_NAME) as address:
            if client.connect_ex(address) == errno.EAGAIN:
                break
    with pytest.raises(ConflictError):
        open_listeners(ANY_PORT, tmp_path)
    for client in [*waiting, listener]:
        client.close()


def test_a_stale_socket_and_a_stray_file_are_replaced(tmp_path: Path) -> None:
    """Whoever holds the claim may remove what lies at its own address."""
    listen_at(tmp_path / SOCKET_NAME).close()
    open_listeners(ANY_PORT, tmp_path).close()
    (tmp_path / SOCKET_NAME).write_text("not a socket")
    open_listeners(ANY_PORT, tmp_path).close()


def test_the_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    """0600 whatever the umask was, and the umask is left as it was."""
    umask = os.umask(0)
    try:
        listeners = open_listeners(ANY_PORT, tmp_path)
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
        listeners.close()
        assert os.umask(0) == 0
    finally:
        os.umask(umask)


def test_a_data_directory_may_have_a_long_name(tmp_path: Path) -> None:
    """A socket's address ends at 107 bytes, a path does not."""
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    listeners = open_listeners(ANY_PORT, deep)
    with socket.socket(socket.AF_UNIX) as client, socket_address(deep / SOCKET_NAME) as address:
        client.connect(address)
    listeners.close()
    assert list(deep.iterdir()) == []


def test_closing_leaves_a_successor_alone(tmp_path: Path) -> None:
    """A socket that is not ours any more is not removed."""
    listeners = open_listeners(ANY_PORT, tmp_path)
    (tmp_path / SOCKET_NAME).unlink()
    with listen_at(tmp_path / SOCKET_NAME):
        listeners.close()
        assert (tmp_path / SOCKET_NAME).exists()


def test_a_port_in_use_names_the_setting(tmp_path: Path) -> None:
    """One sentence with the variable, the address and a way out; nothing stays behind."""
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        with pytest.raises(ConflictError) as caught:
            open_listeners(Endpoint(host="127.0.0.1", port=port), tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith(f"BASE_LISTEN_HTTP: something listens at 127.0.0.1:{port}")
    assert "\n" not in sentence
    assert list(tmp_path.iterdir()) == []
    open_listeners(ANY_PORT, tmp_path).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b"])
def test_an_address_that_is_not_ours_names_the_setting(tmp_path: Path, host: str) -> None:
    """A host that does not resolve or is another's is the operator's to mend."""
    with pytest.raises(UsageError, match="BASE_LISTEN_HTTP: cannot listen at"):
        open_listeners(Endpoint(host=host, port=0), tmp_path)


@pytest.mark.parametrize("host", ["", "localhost", "::1"])
def test_other_hosts_are_listened_at(tmp_path: Path, host: str) -> None:
    """Every interface, a name, and IPv6; the port that was chosen is told."""
    listeners = open_listeners(Endpoint(host=host, port=0), tmp_path)
    assert listeners.address.port > 0
    target = host or "localhost"
    socket.create_connection((target, listeners.address.port)).close()
    assert listeners.announcement == f"BASE_LISTEN_ADDR={listeners.address}"
    listeners.close()


def test_a_missing_data_directory_is_a_sentence(tmp_path: Path) -> None:
    """Neither a traceback nor a directory made in passing."""
    with pytest.raises(UsageError, match=r"cannot be opened .*BASE_DATA_DIR"):
        open_listeners(ANY_PORT, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
