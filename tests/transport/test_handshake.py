"""Everybody who must not get in, tried with real sockets against a running node."""

import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from basenet.keys import signing
from basenet.transport.framing import pack
from basenet.transport.handshake import HANDSHAKE_S, connect
from basenet.transport.tls import Credentials
from basenet.wire.hello import Lane
from tests.transport.nodes import (
    LOOPBACK,
    Node,
    make_authority,
    make_self,
    now_s,
    running,
    tls_files,
)

NAMES = ("a", "b", "evil")
ALLOWED = ("a", "b")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_authority(tmp_path / "ca", *NAMES)


async def knock(node: Node, directory: Path, name: str, **lies: object) -> None:
    """Dial ``node`` as ``name`` by the real protocol, with ``lies`` in the HELLO."""
    me = make_self(directory, name, NAMES, **lies)
    credentials = Credentials(tls_files(directory, name), on_problem=pytest.fail)
    raw = await trio.open_tcp_stream("127.0.0.1", node.address.port)
    try:
        session = await connect(me, raw, credentials.contexts(), Lane.ORDINARY, now_s())
        await session.stream.send_all(pack(b"let me in"))
    finally:
        await trio.aclose_forcefully(raw)


async def refused(node: Node, part: str) -> None:
    await node.told.until(lambda: any(part in text for text in node.told.refused))
    assert node.told.messages == []


async def test_a_name_outside_the_allow_list_is_refused(directory: Path) -> None:
    """A certificate of the right authority is not enough."""
    async with running(directory, "a", ALLOWED) as a:
        with suppress(Exception):
            await knock(a, directory, "evil")
        await refused(a, "certificate names evil, none of which stands in BASE_TLS_ALLOWED_SANS")


async def test_a_certificate_of_another_authority_is_refused(
    directory: Path, tmp_path: Path
) -> None:
    """The same name from a foreign authority does not get through TLS."""
    foreign = make_authority(tmp_path / "foreign", "b")
    async with running(directory, "a", ALLOWED) as a:
        with suppress(Exception):
            await knock(a, foreign, "b")
        await refused(a, "the connection failed in its handshake")


async def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    """Its validity is looked at, on the side that accepts."""
    past = datetime.now(UTC) - timedelta(days=2000)
    directory = make_authority(tmp_path / "ca", "b", at=past)
    make_authority(directory, "a")
    async with running(directory, "a", ALLOWED) as a:
        with suppress(Exception):
            await knock(a, directory, "b")
        await refused(a, "the connection failed in its handshake")


@pytest.mark.parametrize(
    ("lies", "expected"),
    [
        ({"node_id": "a"}, "the peer calls itself a, but its certificate names b"),
        ({"key": bytes(32)}, "b names another signing key than that of its certificate"),
        ({"protocol_min": 9, "protocol_max": 9}, "upgrade a, one release at a time"),
    ],
)
async def test_a_hello_that_lies_is_refused(
    directory: Path, lies: dict[str, object], expected: str
) -> None:
    """Name, key and version of a HELLO are held against the certificate and our own."""
    async with running(directory, "a", ALLOWED) as a:
        with suppress(Exception):
            await knock(a, directory, "b", **lies)
        await refused(a, expected)


async def test_a_key_that_the_peer_does_not_hold_is_refused(directory: Path) -> None:
    """HELLO2 must be signed by the key that the HELLO names, even when TLS is satisfied."""
    me = make_self(directory, "b", NAMES)
    thief = type(me)(
        signer=signing.load(directory / "evil" / "node.key").signer(),
        allowed_names=me.allowed_names,
        describe=me.describe,
    )
    credentials = Credentials(tls_files(directory, "b"), on_problem=pytest.fail)
    async with running(directory, "a", ALLOWED) as a:
        raw = await trio.open_tcp_stream("127.0.0.1", a.address.port)
        with suppress(Exception):
            await connect(thief, raw, credentials.contexts(), Lane.ORDINARY, now_s())
        await trio.aclose_forcefully(raw)
        await refused(a, "did not prove that it holds the signing key")


@pytest.mark.parametrize("kind", ["no certificate", "tls 1.2", "plaintext"])
async def test_other_ways_to_talk_are_refused(directory: Path, kind: str) -> None:
    """No client certificate, an older TLS, or none at all: nobody is served."""
    async with running(directory, "a", ALLOWED) as a:
        raw = await trio.open_tcp_stream("127.0.0.1", a.address.port)
        with suppress(Exception):
            if kind == "plaintext":
                await raw.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await raw.receive_some(100)
            else:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.load_verify_locations(directory / "ca.crt")
                if kind == "tls 1.2":
                    context.maximum_version = ssl.TLSVersion.TLSv1_2
                    context.load_cert_chain(directory / "b/node.crt", directory / "b/node.key")
                stream = trio.SSLStream(raw, context)
                await stream.do_handshake()
                await stream.send_all(pack(b"x" * 300))
                await stream.receive_some(100)
        await trio.aclose_forcefully(raw)
        await refused(a, "the connection failed in its handshake")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xff\xff\xff\xff", "a message of 4294967295 bytes"),
        (pack(b"BNP1" + bytes(200)), "its magic is wrong"),
        (pack(b"BNP2"), "bytes expected"),
        (b"\x00\x00\x00\x50abc", "ended inside a message"),
    ],
)
async def test_bytes_that_are_no_hello_are_refused(
    directory: Path, data: bytes, expected: str
) -> None:
    """Lengths are bounded before anything is allocated, and nothing malformed gets on."""
    credentials = Credentials(tls_files(directory, "b"), on_problem=pytest.fail)
    async with running(directory, "a", ALLOWED) as a:
        raw = await trio.open_tcp_stream("127.0.0.1", a.address.port)
        stream = trio.SSLStream(raw, credentials.contexts().client)
        await stream.send_all(data)
        await stream.aclose()
        await refused(a, expected)


async def test_who_says_nothing_is_hung_up_on(
    directory: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A silent connection costs a socket for a few seconds and no more."""
    del autojump_clock
    async with running(directory, "a", ALLOWED, listen=LOOPBACK) as a:
        raw = await trio.open_tcp_stream("127.0.0.1", a.address.port)
        await trio.sleep(HANDSHAKE_S + 1)
        await refused(a, "took more than 5 s")
        await trio.aclose_forcefully(raw)


async def test_a_message_that_never_ends_is_given_up(directory: Path) -> None:
    """An authenticated peer that dies inside a message leaves no half of it behind."""
    credentials = Credentials(tls_files(directory, "b"), on_problem=pytest.fail)
    async with running(directory, "a", ALLOWED) as a:
        raw = await trio.open_tcp_stream("127.0.0.1", a.address.port)
        me = make_self(directory, "b", NAMES)
        session = await connect(me, raw, credentials.contexts(), Lane.ORDINARY, now_s())
        await session.stream.send_all(pack(b"whole"))
        await session.stream.send_all(pack(b"torn")[:-2])
        await a.told.until(lambda: a.told.messages == [("b", b"whole")])
        await session.stream.aclose()
        await a.told.until(lambda: any("ended inside a message" in t for t in a.told.refused))
        assert a.told.messages == [("b", b"whole")]


async def test_new_certificates_are_used_without_a_restart(directory: Path) -> None:
    """Files replaced under a running node serve the next connection; broken ones are reported."""
    problems: list[str] = []
    files = tls_files(directory, "a")
    credentials = Credentials(files, on_problem=problems.append)
    first = credentials.contexts()
    assert credentials.contexts() is first
    fresh = make_authority(directory.parent / "ca2", "a")
    files.server_certificate.write_bytes((fresh / "a/node.crt").read_bytes())
    assert credentials.contexts() is first
    assert len(problems) == 1
    assert "are not usable together" in problems[0]
    files.server_key.write_bytes((fresh / "a/node.key").read_bytes())
    assert credentials.contexts().server_certificate != first.server_certificate
    assert credentials.contexts().server_certificate == credentials.contexts().client_certificate
