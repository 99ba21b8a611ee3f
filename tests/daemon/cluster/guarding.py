"""A real guardian process for tests of files; it serves one daemon after the other."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from socket import AF_UNIX, SOCK_SEQPACKET, socket

import trio

from basenet.daemon.cluster.guard import Guard

_GUARDIAN = """
import socket, sys
from basenet.guardian.process import GuardianLoop
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
loop = GuardianLoop()
def accept():
    loop.daemon_ended()
    loop.serve(listener.accept()[0])
loop.watch(listener.fileno(), accept)
loop.watch(sys.stdin.fileno(), lambda: sys.exit(0))  # the test is gone
print("ready", flush=True)
while True:
    loop.step()
"""


@contextmanager
def guardian(folder: Path) -> Iterator[Path]:
    """A guardian; yields the path of its socket. It serves one daemon after the other."""
    path = folder / "guardian.socket"
    process = subprocess.Popen(
        [sys.executable, "-c", _GUARDIAN, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield path
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@asynccontextmanager
async def guarded(path: Path) -> AsyncIterator[Guard]:
    """The daemon's end of the connection to the guardian at ``path``."""
    connection = socket(AF_UNIX, SOCK_SEQPACKET)
    connection.connect(str(path))
    guard = Guard(connection)
    with connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guard.run)
            yield guard
            nursery.cancel_scope.cancel()
