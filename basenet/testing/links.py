"""A TCP connection that can be cut, held or slowed: one direction of dialling between two nodes.

A node that is given the port of a `Link` instead of its peer's dials through it, so a partition
needs no privilege and touches no other link. What is forwarded is bytes; TLS goes through unread.

    forwarding   as if it were not there
    cut          connections end, new ones are refused at once (RST)
    held         nothing arrives and nobody is told: bytes wait, as in a network that loses packets,
                 and arrive when it heals; new connections are accepted and go nowhere
    delayed      every piece arrives later, in order

Between two nodes data goes from who dialled to who listened, so holding the link from A to B makes
A silent for B while A hears B: a partition one way.
"""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_PIECE_BYTES: Final = 64 * 1024
_CONNECT_S: Final = 5.0
_LINGER: Final = struct.pack("ii", 1, 0)


class Link:
    """A proxy on a free port of loopback in front of ``port``; threads, ended by `close`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._gate = threading.Condition()
        self._is_cut = self._is_held = self._is_closed = False
        self._delay_s = 0.0
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        """Where to dial."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection and refuse new ones."""
        self._turn(is_cut=True, is_held=False)
        self.drop()

    def hold(self) -> None:
        """Let nothing through in either direction, and tell nobody."""
        self._turn(is_cut=False, is_held=True)

    def delay(self, seconds: float) -> None:
        """Let every piece arrive ``seconds`` later."""
        self._delay_s = seconds

    def drop(self) -> None:
        """End the connections of this moment; new ones go through."""
        with self._gate:
            ended = list(self._sockets)
        for one in ended:
            _reset(one)

    def heal(self) -> None:
        """Forward everything at once again."""
        self._delay_s = 0.0
        self._turn(is_cut=False, is_held=False)

    def close(self) -> None:
        """End the proxy; idempotent."""
        with self._gate:
            self._is_closed = True
            self._gate.notify_all()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def _turn(self, *, is_cut: bool, is_held: bool) -> None:
        with self._gate:
            self._is_cut, self._is_held = is_cut, is_held
            self._gate.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                dialler, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(dialler,), daemon=True).start()

    def _join(self, dialler: socket.socket) -> None:
        with self._gate:
            self._sockets.add(dialler)
        if not self._may_pass():
            self._end(dialler)
            return
        try:
            target = socket.create_connection((LOOPBACK, self._target), timeout=_CONNECT_S)
        except OSError:
            self._end(dialler)
            return
        target.settimeout(None)
        with self._gate:
            self._sockets.add(target)
        for one in (dialler, target):
            with suppress(OSError):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._pump, args=(target, dialler), daemon=True)
        back.start()
        self._pump(dialler, target)
        back.join()
        self._end(dialler, target)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Forward one direction until either end is closed; then end both."""
        try:
            while piece := source.recv(_PIECE_BYTES):
                if self._delay_s:
                    time.sleep(self._delay_s)
                if not self._may_pass():
                    break
                sink.sendall(piece)
        except OSError:
            pass
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _may_pass(self) -> bool:
        """Wait while the link is held; return whether it forwards."""
        with self._gate:
            self._gate.wait_for(lambda: not self._is_held or self._is_closed)
            return not (self._is_cut or self._is_closed)

    def _end(self, *ended: socket.socket) -> None:
        with self._gate:
            self._sockets.difference_update(ended)
        for one in ended:
            one.close()


def _reset(one: socket.socket) -> None:
    """End a connection without a word, as a host that is gone does; its thread closes it."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        one.shutdown(socket.SHUT_RDWR)
