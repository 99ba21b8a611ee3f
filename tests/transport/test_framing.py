"""Messages on a stream, however it is cut."""

import pytest
import trio
from trio.testing import MemoryReceiveStream, MockClock

from basenet.errors import PeerError
from basenet.transport.framing import MessageReader, Oversized, pack

MESSAGES = [b"", b"a", b"bc" * 40, bytes(70_000), b"last"]


class Cut(trio.abc.ReceiveStream):
    """Gives so many bytes at a time, then the end."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        size = min(self._size, max_bytes or self._size)
        piece, self._data = self._data[:size], self._data[size:]
        return piece

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100, 65_536, 10**6])
async def test_messages_are_what_was_packed_however_they_arrive(size: int) -> None:
    """Byte by byte, or many at once; a clean end is between two of them."""
    reader = MessageReader(Cut(b"".join(map(pack, MESSAGES)), size))
    assert [await reader.next() for _ in MESSAGES] == MESSAGES
    assert await reader.next() is None


@pytest.mark.parametrize("cut", [1, 3, 4, 5])
async def test_an_end_inside_a_message_is_an_error(cut: int) -> None:
    """Also inside the length."""
    reader = MessageReader(Cut(pack(b"whole") + pack(b"second")[:cut], 100))
    assert await reader.next(within_s=5) == b"whole"
    with pytest.raises(PeerError, match="ended inside a message"):
        await reader.next(within_s=5)


async def test_a_message_above_the_bound_is_refused_before_it_comes() -> None:
    """By its length alone; what came before it is given."""
    stream = MemoryReceiveStream()
    stream.put_data(pack(b"12345") + (6).to_bytes(4, "big"))
    reader = MessageReader(stream, size_max=5)
    assert await reader.next() == b"12345"
    with pytest.raises(Oversized, match="6 bytes; 5 at most"):
        await reader.next()


async def test_a_message_that_began_has_its_time(autojump_clock: MockClock) -> None:
    """Before it begins a peer may be silent for ever."""
    del autojump_clock
    stream = MemoryReceiveStream()
    reader = MessageReader(stream)

    async def feed() -> None:
        await trio.sleep(1_000)
        for byte in pack(b"slow"):
            stream.put_data(bytes([byte]))
            await trio.sleep(1)
        stream.put_data(pack(b"never")[:-1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        assert await reader.next(within_s=10) == b"slow"
        with pytest.raises(PeerError, match="not whole after 10 s"):
            await reader.next(within_s=10)
