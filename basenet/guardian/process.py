"""The guardian's loop: the daemon's messages and death, locks that were had, and time.

It is made of few system calls on purpose. A tick comes every `TICK_S`, and sooner when a lease ends
sooner, so that a fence closes within a few milliseconds of its time.
"""

import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from basenet.guardian.fence import Fence
from basenet.guardian.keeper import Keeper
from basenet.guardian.protocol import PACKET_BYTES_MAX, Ready, ToDaemon, decode, encode
from basenet.guardian.waiters import Waiters

TICK_S: Final = 0.1
_PER_SECOND: Final = 1_000_000_000
_LOOK_NS: Final = 95_000_000
"""Between two looks at the files: one a tick, and none for the messages in between."""


def now_ns() -> int:
    """Return the instant: a clock that runs while the machine sleeps and never steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class GuardianLoop:
    """Serves one daemon at a time; fences outlive it."""

    def __init__(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Call ``on_ready`` when a daemon says that it serves."""
        self._on_ready = on_ready
        self._selector = selectors.DefaultSelector()
        self._locked: deque[Fence] = deque()
        self._bell_out, self._bell_in = socket.socketpair()
        for end in (self._bell_out, self._bell_in):
            end.setblocking(False)
        self._selector.register(self._bell_out, selectors.EVENT_READ, self._take_locked)
        self._daemon: socket.socket | None = None
        self._look_at = 0
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.keeper = Keeper(tell=self._tell, wait_for=Waiters(self._on_locked).wait_for)

    def serve(self, daemon: socket.socket) -> None:
        """Take messages from ``daemon``, our end of a pair of packet sockets (SOCK_SEQPACKET)."""
        daemon.setblocking(False)
        self._daemon = daemon
        self._selector.register(daemon, selectors.EVENT_READ, self._take_message)

    def watch(self, descriptor: int, act: Callable[[], None]) -> None:
        """Call ``act`` whenever ``descriptor`` is readable: a process's end, a signal."""
        self._selector.register(descriptor, selectors.EVENT_READ, act)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching ``descriptor``."""
        self._selector.unregister(descriptor)

    def daemon_ended(self) -> None:
        """Close all fences: the daemon is dead, and what it said is void."""
        self.keeper.forget_daemon()
        if self._daemon is not None:
            self._selector.unregister(self._daemon)
            self._daemon.close()
            self._daemon = None
        self._unsent.clear()

    def step(self) -> None:
        """Wait for the next thing to happen, at most a tick, and do it."""
        now = now_ns()
        if now >= self._look_at:
            self._look_at = now + _LOOK_NS
            self.keeper.look_around()
        next_ns = self.keeper.tick(now)
        wait_s = TICK_S
        if next_ns is not None:
            wait_s = min(TICK_S, max(0.0, (next_ns - now) / _PER_SECOND))
        for key, _ in self._selector.select(wait_s):
            key.data()
        self._send_rest()

    def close(self) -> None:
        """Let go of the loop's own descriptors; fences stay as they are."""
        self._selector.close()
        self._bell_in.close()
        self._bell_out.close()

    def _on_locked(self, fence: Fence) -> None:
        """Pass a lock on to the loop's thread."""
        self._locked.append(fence)
        try:
            self._bell_in.send(b"!")
        except BlockingIOError:
            return  # it rings already

    def _take_locked(self) -> None:
        self._bell_out.recv(4096)
        while self._locked:
            self.keeper.on_locked(self._locked.popleft(), now_ns())

    def _take_message(self) -> None:
        assert self._daemon is not None, "a message from nobody"
        try:
            packet = self._daemon.recv(PACKET_BYTES_MAX)
        except ConnectionError:
            packet = b""
        if not packet:
            self.daemon_ended()
            return
        try:
            message = decode(packet)
        except ValueError:
            # A daemon that talks nonsense is a bug, and no reason to let go of the fences. It sees
            # the end of the socket, ends, and is started again.
            self.daemon_ended()
            return
        if isinstance(message, Ready):
            self._on_ready()
            return
        self.keeper.handle(message, now_ns())  # type: ignore[arg-type]  # the daemon's direction

    def _tell(self, message: ToDaemon, descriptors: tuple[int, ...]) -> None:
        self._unsent.append((encode(message), descriptors))
        self._send_rest()

    def _send_rest(self) -> None:
        while self._unsent and self._daemon is not None:
            packet, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._daemon, [packet], list(descriptors))
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    return  # the daemon is slow: at the next step again
                self._unsent.clear()
                return
            self._unsent.popleft()


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a pair of packet sockets: the guardian's and the daemon's."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_BYTES_MAX)
        os.set_inheritable(end.fileno(), False)
    return pair
