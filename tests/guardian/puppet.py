"""A daemon that does what it is told: the real `Guard`, SQLite, and commands from the test.

Started by a guardian; it connects to the socket in PUPPET_SOCKET and answers one JSON document a
line. Not imported by any test.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import apsw
import trio

from basenet.daemon.cluster.guard import Fence, Guard, inherited_connection
from basenet.daemon.framer import instant
from basenet.engine.events import Instant
from basenet.errors import BasenetError, UnavailableError

MS = 1_000_000


class Puppet:
    """One daemon."""

    def __init__(self, guard: Guard, stream: trio.SocketStream) -> None:
        self.guard = guard
        self.stream = stream
        self.fences: dict[str, Fence] = {}
        self.connections: list[apsw.Connection] = []
        self.lease = trio.CancelScope()

    async def tell(self, **facts: Any) -> None:
        await self.stream.send_all(json.dumps(facts).encode() + b"\n")

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.hear_guardian)
            await self.tell(pid=os.getpid(), parent=os.getppid())
            buffer = b""
            async for chunk in self.stream:
                buffer += chunk
                while b"\n" in buffer:
                    line, _, buffer = buffer.partition(b"\n")
                    command = json.loads(line)
                    try:
                        answer = await self.do(nursery, **command)
                    except BasenetError as error:
                        answer = {"error": type(error).__name__, "sentence": str(error)}
                    await self.tell(**answer)
            os._exit(0)

    async def hear_guardian(self) -> None:
        """A real daemon ends here; this one waits to be told, so that a test can look."""
        try:
            await self.guard.run()
        except UnavailableError as error:
            held = all(fence.is_held for fence in self.fences.values())
            await self.tell(gone=str(error), held=held, at_ns=instant())

    async def do(self, nursery: trio.Nursery, do: str, **more: Any) -> dict[str, Any]:
        if do == "guard":
            path = more["path"]
            connection = apsw.Connection(path)
            connection.execute(
                "PRAGMA wal_autocheckpoint=0; SELECT * FROM sqlite_schema"
            ).fetchall()
            self.connections.append(connection)
            found = os.stat(path)  # noqa: PTH116
            self.fences[path] = await self.guard.fence(Path(path), (found.st_dev, found.st_ino))
            return {"held": self.fences[path].is_held}
        if do == "ready":
            self.guard.ready()
        elif do == "renew":
            until = instant() + more["ms"] * MS
            for fence in self.fences.values():
                fence.renew(Instant(until))
            if more.get("stop"):
                os.kill(os.getpid(), signal.SIGSTOP)
            self.guard.flush()
            return {"until": until}
        elif do == "lease":
            self.lease = trio.CancelScope()
            nursery.start_soon(self.keep_renewing, more["ms"], more["every"])
        elif do == "hold":
            self.lease.cancel()
            for fence in self.fences.values():
                await fence.held()
            return {"held": True, "at_ns": instant()}
        elif do == "replaced":
            return {"replaced": [fence.is_replaced for fence in self.fences.values()]}
        elif do == "nonsense":
            os.write(self.guard._connection.fileno(), b"\xff\xff")
        elif do == "exit":
            os._exit(more["code"])
        return {}

    async def keep_renewing(self, lease_ms: int, every_ms: int) -> None:
        with self.lease:
            while True:
                for fence in self.fences.values():
                    fence.renew(Instant(instant() + lease_ms * MS))
                self.guard.flush()
                await trio.sleep(every_ms / 1000)


def on_sigterm(*_: object) -> None:
    """Flush, which is a line in a file, and end."""
    with open(os.environ["PUPPET_FLUSHED"], "a") as file:  # noqa: PTH123
        file.write("flushed\n")
    os._exit(int(os.environ.get("PUPPET_CODE", "0")))


async def main() -> None:
    connection = inherited_connection(os.environ)
    assert connection is not None
    how = os.environ.get("PUPPET_SIGTERM", "flush")
    signal.signal(signal.SIGTERM, on_sigterm if how == "flush" else signal.SIG_IGN)
    stream = trio.SocketStream(trio.socket.socket(trio.socket.AF_UNIX))
    await stream.socket.connect(os.environ["PUPPET_SOCKET"])
    await Puppet(Guard(connection), stream).run()


if __name__ == "__main__":
    trio.run(main)
    sys.exit(0)
