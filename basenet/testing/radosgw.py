"""A real S3 server for tests: Ceph's RADOS Gateway from Debian's packages, a cluster of one.

::

    with running_radosgw() as url:       # http://127.0.0.1:<port>, keys of `RADOSGW_ENVIRONMENT`
        ...

One monitor, one object daemon that keeps everything in memory, and one gateway, all on free ports
of loopback, with all files in a temporary folder; no root is needed. ``make radosgw`` installs
them. A start takes 2 seconds.

It is here because nothing of it is ours, or Python: it compares ``If-Match`` with the bare ETag and
not with the quoted one, answers losers of a race with 500, and is in no way one at a time.

Run by hand: ``python -m basenet.testing.radosgw``. It prints the URL and ends when its standard
input does. The daemons die with it, however it ends.
"""

import http.client
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from basenet.errors import UnavailableError, UsageError
from basenet.testing.child import announce, running_module, wait_for_parent

HOST: Final = "127.0.0.1"
RADOSGW_ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "testkey",
    "AWS_SECRET_ACCESS_KEY": "testsecret",
    "AWS_REGION": "us-east-1",
}
# Of somebody who may do nothing with the buckets of the other one.
STRANGER_KEYS: Final = ("strangerkey", "strangersecret")
PROGRAMS: Final = ("ceph-mon", "ceph-osd", "ceph", "radosgw")
# Below the ports that the kernel hands out by itself, so that hardly anybody takes one in between.
_PORTS: Final = range(10_000, 32_000)
_STORE_BYTES: Final = 4 << 30
_PATIENCE_SECONDS: Final = 120.0
_ASK_EVERY_SECONDS: Final = 0.05
_CALL_SECONDS: Final = 60.0

# The monitor collects changes for a second each, and a start is twenty of them: hence paxos. It
# would not start on a disk of which 5 % are free, however much that is. An
# object encrypted by the server is to be had over plain HTTP, with the one key that stands here.
_CONFIGURATION: Final = """\
[global]
fsid = {fsid}
mon host = [v1:{host}:{mon_port}]
public addr = {host}
cluster addr = {host}
auth cluster required = none
auth service required = none
auth client required = none
paxos propose interval = 0.02
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 0
mon data avail warn = 0
osd objectstore = memstore
memstore device bytes = {store_bytes}
ms bind port min = {osd_port}
ms bind port max = 65000
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
mon data = {folder}/mon
osd data = {folder}/osd
keyring = {folder}/keyring
[client.rgw]
rgw frontends = beast endpoint={host}:{rgw_port}
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = testkms=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=
"""


@contextmanager
def running_radosgw() -> Iterator[str]:
    """Run a cluster of one while the body runs, and give the URL of its S3.

    Raises `UnavailableError` when it does not start; the error output then says why.
    """
    with running_module("basenet.testing.radosgw") as url:
        yield url


class Cluster:
    """Monitor, object daemon and gateway, with all their files in one folder."""

    def __init__(self, folder: Path) -> None:
        """Choose the ports; nothing runs yet. Raises `UsageError` when a program is missing."""
        for program in PROGRAMS:
            if shutil.which(program) is None:
                raise UsageError(f"{program} is not installed: run `make radosgw`")
        self._folder = folder
        self._fsid = str(uuid.uuid4())
        self._mon_port, self._osd_port, self._rgw_port = _find_ports(3)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.url = f"http://{HOST}:{self._rgw_port}"

    def start(self) -> None:
        """Start everything, make the user, and return when S3 answers."""
        self._make_monitor()
        self._start_daemon("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._start_daemon("ceph-osd", "-i", "0")
        self._wait(self._is_osd_up, "ceph-osd is up")
        keys = (
            RADOSGW_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            RADOSGW_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        )
        self._make_user("basenet", *keys)
        self._make_user("stranger", *STRANGER_KEYS)
        self._start_daemon("radosgw", "-n", "client.rgw")
        self._wait(self._is_answering, "radosgw answers")

    def _make_user(self, name: str, key: str, secret: str) -> None:
        user = [f"--uid={name}", f"--display-name={name}"]
        keys = [f"--access-key={key}", f"--secret={secret}"]
        self._run("radosgw-admin", "user", "create", *user, *keys)

    def kill(self) -> None:
        """End the daemons at once: nothing of theirs is kept."""
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()

    def _make_monitor(self) -> None:
        for name in ("mon", "osd"):
            (self._folder / name).mkdir()
        (self._folder / "ceph.conf").write_text(
            _CONFIGURATION.format(
                fsid=self._fsid,
                host=HOST,
                folder=self._folder,
                mon_port=self._mon_port,
                osd_port=self._osd_port,
                rgw_port=self._rgw_port,
                store_bytes=_STORE_BYTES,
            )
        )
        keyring, monmap = str(self._folder / "keyring"), str(self._folder / "monmap")
        everything = [
            "--cap",
            "mon",
            "allow *",
            "--cap",
            "osd",
            "allow *",
            "--cap",
            "mgr",
            "allow *",
        ]
        address = f"[v1:{HOST}:{self._mon_port}]"
        _call("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", *everything)
        _call("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything)
        _call("monmaptool", "--create", "--addv", "a", address, "--fsid", self._fsid, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)

    def _with_configuration(self, program: str, *arguments: str) -> list[str]:
        return [program, "-c", str(self._folder / "ceph.conf"), *arguments]

    def _run(self, program: str, *arguments: str) -> str:
        return _call(*self._with_configuration(program, *arguments))

    def _start_daemon(self, program: str, *arguments: str) -> None:
        command = self._with_configuration(program, *arguments, "-f")
        with (self._folder / f"{program}.out").open("ab") as output:
            self._daemons[program] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _is_osd_up(self) -> bool:
        if self._daemons["ceph-osd"].poll() is not None:
            # It asks the monitor who it is before it has heard which cluster this is, now and
            # then, and gives up with "wrong fsid". The next one is luckier.
            self._start_daemon("ceph-osd", "-i", "0")
        return "1 up" in self._run("ceph", "osd", "stat")

    def _is_answering(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._rgw_port, timeout=_CALL_SECONDS)
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _wait(self, question: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not question():
            if time.monotonic() > deadline:
                raise UnavailableError(f"not within {_PATIENCE_SECONDS:.0f} s: {what}")
            time.sleep(_ASK_EVERY_SECONDS)

    def read_outputs(self) -> str:
        """Return what the daemons wrote before they kept logs: why they did not start."""
        return "".join(path.read_text() for path in sorted(self._folder.glob("*.out")))


def _call(*command: str) -> str:
    """Run ``command`` and return its output; raise `UnavailableError` with its last words."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_CALL_SECONDS
        )
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"{command[0]} failed: {error.stderr[-1000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{command[0]} took more than {_CALL_SECONDS:.0f} s") from error
    return done.stdout


def _find_ports(count: int) -> list[int]:
    """Return ports on which nobody listens now."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise UnavailableError(f"fewer than {count} ports of {HOST} are free")


def main() -> None:
    """Serve until standard input ends."""
    with tempfile.TemporaryDirectory(prefix="basenet-radosgw-") as folder:
        cluster = Cluster(Path(folder))
        try:
            try:
                cluster.start()
            except UnavailableError as error:
                raise UnavailableError(f"{error}\n{cluster.read_outputs()}") from error
            announce(cluster.url)
            wait_for_parent()
        finally:
            cluster.kill()


if __name__ == "__main__":
    main()
