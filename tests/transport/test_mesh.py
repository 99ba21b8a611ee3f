"""Nodes that find, authenticate and lose each other, with real TLS on loopback."""

from pathlib import Path

import pytest
import trio
import trio.testing

from basenet.errors import PeerError
from basenet.transport.link import LinkState
from basenet.wire.hello import Hello, Lane
from tests.transport.nodes import connect, make_authority, running

NAMES = ("a", "b", "c")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_authority(tmp_path / "ca", *NAMES)


async def test_three_nodes_hear_each_other_on_both_lanes(directory: Path) -> None:
    """Every node's messages arrive at every other node, under the name of who sent them."""
    async with (
        running(directory, "a", NAMES) as a,
        running(directory, "b", NAMES) as b,
        running(directory, "c", NAMES) as c,
    ):
        nodes = (a, b, c)
        await connect(*nodes)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    key = other.me.signer.public
                    assert node.mesh.send(key, b"small")
        for node in nodes:
            expected = {(other.name, b"small") for other in nodes if other is not node}
            await node.told.until(
                lambda node=node, expected=expected: set(node.told.messages) == expected
            )
        big = bytes(5_000_000)
        while not a.mesh.send(b.me.signer.public, big, lane=Lane.BULK):  # noqa: ASYNC110  (the bulk link)
            await trio.sleep(0.01)
        await b.told.until(lambda: ("a", big) in b.told.messages)
        states = {link.state for link in a.mesh.links() if link.address == a.address}
        assert states == {LinkState.ITSELF}


async def test_messages_of_a_peer_keep_their_order(directory: Path) -> None:
    """Ten thousand messages on one lane arrive once each, in order."""
    async with running(directory, "a", NAMES) as a, running(directory, "b", NAMES) as b:
        await connect(a, b)
        expected = [("a", str(number).encode()) for number in range(10_000)]
        for _, message in expected:
            assert a.mesh.send(b.me.signer.public, message)
        await b.told.until(lambda: len(b.told.messages) == len(expected))
        assert b.told.messages == expected


async def test_an_urgent_message_replaces_an_older_one_and_overtakes(directory: Path) -> None:
    """Of several heartbeats that wait, the newest is sent, before everything else."""
    async with running(directory, "a", NAMES) as a, running(directory, "b", NAMES) as b:
        await connect(a, b)
        key = b.me.signer.public
        # No checkpoint in between, so nothing of this is taken before all of it is there.
        a.mesh.send(key, b"first")
        for number in range(5):
            a.mesh.send_urgent(key, "heartbeat", f"beat {number}".encode())
        await b.told.until(lambda: len(b.told.messages) == 2)
        assert b.told.messages == [("a", b"beat 4"), ("a", b"first")]


async def test_a_peer_that_does_not_read_costs_only_its_own_messages(directory: Path) -> None:
    """Its outbox stays bounded and drops; another peer hears everything meanwhile."""
    async with (
        running(directory, "a", NAMES) as a,
        running(directory, "b", NAMES) as b,
        running(directory, "c", NAMES) as c,
    ):
        await connect(a, b, c)
        b.told.hold = trio.Event()
        chunk = bytes(1_000_000)
        while a.mesh.send(b.me.signer.public, chunk):
            await trio.lowlevel.checkpoint()
        assert a.mesh.dropped == 1
        assert a.mesh.queued_bytes(b.me.signer.public, Lane.ORDINARY) <= 8 * 1024 * 1024
        assert a.mesh.send(c.me.signer.public, b"hello")
        await c.told.until(lambda: c.told.messages == [("a", b"hello")])
        b.told.hold.set()
        await b.told.until(lambda: len(b.told.messages) > 8)


async def test_a_node_that_restarts_is_found_again(directory: Path) -> None:
    """Its end is noticed, a refused redial is told once, and the new process is connected."""
    async with running(directory, "a", NAMES) as a:
        async with running(directory, "b", NAMES) as b:
            await connect(a, b)
            address = b.address
        await a.told.until(lambda: a.told.lost == ["b"] and a.told.unreachable == ["b"])
        assert not a.mesh.is_connected(b.me.signer.public)
        assert not a.mesh.send(b.me.signer.public, b"nobody hears this")
        async with running(directory, "b", NAMES, listen=address) as b:
            await a.told.until(lambda: a.told.connected == ["b", "b"])
            assert a.mesh.send(b.me.signer.public, b"again")
            await b.told.until(lambda: b.told.messages == [("a", b"again")])


async def test_a_second_address_of_a_peer_takes_over(directory: Path) -> None:
    """Of two addresses of one node one is used; the other stands by."""
    async with running(directory, "a", NAMES) as a, running(directory, "b", NAMES) as b:
        other = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = other[0].socket.getsockname()[1]

        async def forward(stream: trio.SocketStream) -> None:
            """A second way to the same node."""
            far = await trio.open_tcp_stream("127.0.0.1", b.address.port)
            async with stream, far, trio.open_nursery() as copying:
                copying.start_soon(_copy, stream, far, copying.cancel_scope)
                copying.start_soon(_copy, far, stream, copying.cancel_scope)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, forward, other)
            second = type(b.address)(host="127.0.0.1", port=port)
            a.mesh.set_addresses([b.address])
            await a.told.until(lambda: a.told.connected == ["b"])
            a.mesh.set_addresses([b.address, second])
            await trio.testing.wait_all_tasks_blocked()
            (link,) = (
                link
                for link in a.mesh.links()
                if link.address == second and link.lane is Lane.ORDINARY
            )
            with trio.fail_after(10):
                while link.state is not LinkState.TWIN:  # noqa: ASYNC110  (nobody is told of a twin)
                    await trio.sleep(0.01)
            a.mesh.set_addresses([second])
            await a.told.until(lambda: a.told.connected == ["b", "b"])
            nursery.cancel_scope.cancel()


async def _copy(
    source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
) -> None:
    async for data in source:
        await sink.send_all(data)
    scope.cancel()


async def test_who_is_not_admitted_is_refused_on_both_sides(directory: Path) -> None:
    """A peer that the owner refuses after HELLO (a rolled-back journal) is not connected."""
    async with running(directory, "a", NAMES) as a, running(directory, "b", NAMES) as b:

        def refuse(peer: Hello) -> None:
            raise PeerError(f"{peer.node_id} went back in time")

        a.told.admit = refuse
        a.mesh.set_addresses([b.address])
        b.mesh.set_addresses([a.address])
        await a.told.until(lambda: a.told.refused.count("b went back in time") >= 2)
        assert a.told.connected == []
