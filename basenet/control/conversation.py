"""A connection from its first byte: what is asked at each commit is answered here, at once.

Theory of operation
===================

A wait is asked for after each commit of an application that must know its commits to be safe, and
what it costs is taken from the core that makes them so. On its way through hypercorn, starlette,
middleware and two nurseries it costs half a millisecond of CPU and fifteen turns of the event loop;
with the parser that hypercorn uses itself (h11) and nothing above it, a fifth of that. So every
connection begins as a conversation::

    head ── GET /v1/shards/{id} or /v1/shards/{id}/wait ──▶ answered here; the next head is awaited
      └──── anything else ──▶ hypercorn gets the connection, and every byte of that head again

*Anything else* is also what is only a little unusual: a body, an upgrade, HTTP/1.0, a head that is
too long or none at all. So there is one place that refuses such things, and it is not this one. A
connection that was handed over stays so: its waits are answered by `control.routes`, in the same
words (`control.question`) and with the same headers.

What a client can take is bounded: a head must be whole within ``patience_s`` after the last
answer, however steadily its bytes drip; while a question is being answered, no more than
`AHEAD_BYTES_MAX` and one block are read of what its client sends already. Sends and the number of
connections are bounded below (`control.connections`). A client that goes ends its wait: the one
task that reads goes on reading while the other one waits.
"""

import re
import time
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, unquote

import h11
import trio
from starlette.responses import Response

from basenet.control.boundary import choose_request_id, report_fault, sign
from basenet.control.connections import BoundedStream
from basenet.control.question import (
    Wait,
    answer_status,
    answer_wait,
    check_query,
    get_default_level,
    parse_wait,
    refuse,
)
from basenet.control.surface import Surface
from basenet.errors import BasenetError, UnavailableError, UsageError

HEAD_BYTES_MAX: Final = 16 * 1024
AHEAD_BYTES_MAX: Final = 16 * 1024
_BLOCK_BYTES: Final = 64 * 1024
_REMEMBERED_MAX: Final = 256
_REMEMBERED_BYTES_MAX: Final = 512
_PATH: Final = re.compile(r"/v1/shards/(?P<shard>[^/]+)(?P<wait>/wait)?\Z")
# With one of these a request is none of ours, whatever its value.
_UNUSUAL: Final = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"expect"})


class Desk:
    """Where the questions of all conversations are answered, until it closes."""

    def __init__(self, surface: Surface, *, patience_s: float) -> None:
        """``surface`` must answer already. ``patience_s``: how long a whole head may take."""
        node = surface.node_status()
        self.surface = surface
        self.node_id = node.node_id
        self.level = get_default_level(node)
        self.patience_s = patience_s
        self.is_closed = False
        self._open: set[Conversation] = set()

    async def converse(self, stream: BoundedStream) -> bool:
        """Answer on ``stream`` what is ours to answer.

        Returns True when something else is asked, which is then what the stream gives next; False
        at the end. Raises what the stream raises, in a group.
        """
        if self.is_closed:
            return False
        conversation = Conversation(self, stream)
        self._open.add(conversation)
        try:
            return await conversation.run()
        finally:
            self._open.discard(conversation)

    def close(self) -> None:
        """Answer every wait that it must be asked again later, and let the idle ones go."""
        self.is_closed = True
        for conversation in self._open:
            conversation.interrupt()


class Conversation:
    """One connection that asks nothing unusual so far."""

    def __init__(self, desk: Desk, stream: BoundedStream) -> None:
        self._desk = desk
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._received = b""  # all since the first byte of the head that is not answered yet
        self._ahead = b""  # received, and not given to the parser
        self._arrived = self._taken = trio.Event()
        self._has_ended = False
        self._waiting = trio.CancelScope()  # for a head or for an answer

    async def run(self) -> bool:
        """See `Desk.converse`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            is_unusual = await self._answer_all()
            nursery.cancel_scope.cancel()
        if is_unusual:
            self._stream.unread(self._received + self._ahead)
        elif not self._has_ended:
            await self._stream.send_eof()
        return is_unusual

    def interrupt(self) -> None:
        """End what is waited for; the desk has closed."""
        self._waiting.cancel()

    async def _listen(self) -> None:
        while not self._has_ended:
            try:
                data = await self._stream.receive_some(_BLOCK_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self._has_ended = not data
            self._ahead += data
            self._arrived.set()
            if self._has_ended:
                self._waiting.cancel()  # nobody reads the answer
            elif len(self._ahead) > AHEAD_BYTES_MAX:
                self._taken = trio.Event()
                await self._taken.wait()

    async def _answer_all(self) -> bool:
        """Return True when something unusual is asked, False at the end."""
        while not self._desk.is_closed:
            with trio.move_on_after(self._desk.patience_s) as self._waiting:
                try:
                    request = await self._read_request()
                except h11.RemoteProtocolError:
                    return True
            if self._waiting.cancelled_caught or request is None:
                return False
            question = _read_question(request)
            if question is None:
                return True
            if not await self._answer(request, question):
                return False
            self._http.start_next_cycle()
            self._received = self._http.trailing_data[0]
        return False

    async def _read_request(self) -> h11.Request | None:
        """Return the next head; None at the end."""
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                return event
            if event is not h11.NEED_DATA:
                return None
            while not self._ahead:
                if self._has_ended:
                    return None
                self._arrived = trio.Event()
                await self._arrived.wait()
            data, self._ahead = self._ahead, b""
            self._received += data
            self._http.receive_data(data)
            self._taken.set()

    async def _answer(self, request: h11.Request, question: "_Question") -> bool:
        """Return whether another question may follow."""
        end = self._http.next_event()
        assert isinstance(end, h11.EndOfMessage), "a request without a length has no body"
        request_id = choose_request_id(request.headers)
        with trio.CancelScope() as self._waiting:
            if self._has_ended or self._desk.is_closed:
                self._waiting.cancel()
            response = await self._ask(question, request_id)
        if self._waiting.cancelled_caught:
            if self._has_ended:
                return False
            error = UnavailableError(
                "the daemon is shutting down before the wait ended: ask again when it is back"
            )
            response = refuse(error, question.shard, request_id)
        if self._desk.is_closed:
            response.headers["connection"] = "close"
        date = (b"date", _format_date(int(time.time())))
        head = h11.Response(
            status_code=response.status_code,
            headers=[*response.raw_headers, *sign(request_id, self._desk.node_id), date],
        )
        events = (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage())
        await self._stream.send_all(b"".join(map(self._encode, events)))
        return self._http.our_state is self._http.their_state is h11.DONE

    def _encode(self, event: h11.Event) -> bytes:
        data: bytes | None = self._http.send(event)
        return data or b""

    async def _ask(self, question: "_Question", request_id: str) -> Response:
        desk = self._desk
        try:
            if question.fault is not None:
                raise UsageError(question.fault)  # noqa: TRY301  (refused like all that follows)
            if question.wait is None:
                return answer_status(desk.surface, question.shard)
            return await answer_wait(desk.surface, question.wait, desk.level)
        except BasenetError as error:
            return refuse(error, question.shard, request_id)
        except Exception:  # noqa: BLE001  (whatever it is, the client gets the error body)
            return report_fault(request_id, question.path)


@lru_cache(maxsize=1)
def _format_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


@dataclass(frozen=True, slots=True)
class _Question:
    """A target that is answered here."""

    path: str
    shard: str
    wait: Wait | None = None  # None: how far it is now
    fault: str | None = None  # why it is not understood


def _read_question(request: h11.Request) -> _Question | None:
    """Return what is asked; None for what is none of ours."""
    is_plain = request.method == b"GET" and request.http_version == b"1.1"
    if not is_plain or any(name in _UNUSUAL for name, _ in request.headers):
        return None
    # Who waits for each commit asks the same each time.
    is_short = len(request.target) <= _REMEMBERED_BYTES_MAX
    return _parse_again(request.target) if is_short else _parse(request.target)


def _parse(target: bytes) -> _Question | None:
    """Take a target apart as starlette does."""
    raw_path, _, raw_query = target.partition(b"?")
    path = unquote(raw_path.decode("ascii"))
    match = _PATH.match(path)
    if match is None:
        return None
    shard, query = match["shard"], parse_qsl(raw_query.decode("ascii"), keep_blank_values=True)
    try:
        if match["wait"] is not None:
            return _Question(path, shard, parse_wait(path, shard, query))
        check_query(path, query, frozenset())
    except UsageError as error:
        return _Question(path, shard, fault=str(error))
    return _Question(path, shard)


_parse_again = lru_cache(maxsize=_REMEMBERED_MAX)(_parse)
