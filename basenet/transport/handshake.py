"""HELLO on a fresh connection: after it, both sides know who is there.

1. The TLS handshake: the certificate comes from our authority.
2. One of its DNS names stands in the allow-list; checked before any byte of the peer is read.
3. HELLO both ways. The node id is one of those names. Where the certificate's key is Ed25519, the
   signing key must be the same; else the HELLO says which one it is.
4. HELLO2 both ways: the signing key signs both certificates and the peer's nonce, so the key is
   there, now, on this connection (Q20).

All of it within `HANDSHAKE_S`. Until it is done a peer can make us hold a kilobyte, no more.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from basenet.errors import PeerError, UnavailableError
from basenet.transport import tls
from basenet.transport.framing import MessageReader, pack
from basenet.units import SIGNATURE_BYTES
from basenet.wire.hello import (
    HELLO_BYTES_MAX,
    NONCE_BYTES,
    Hello,
    Lane,
    choose_protocol,
    decode_hello,
    encode_hello,
    proof,
)
from basenet.wire.signature import Signer, is_signed

HANDSHAKE_S: Final = 5.0

Stream = trio.SSLStream[trio.SocketStream]


@dataclass(frozen=True, slots=True, kw_only=True)
class Self:
    """Who this node is. ``describe`` returns its HELLO as of now; lane and nonce are filled in."""

    signer: Signer
    allowed_names: frozenset[str]
    describe: Callable[[], Hello]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An authenticated connection: who is at the other end, and what both speak."""

    stream: Stream
    reader: MessageReader
    peer: Hello
    protocol: int
    valid_for_s: float
    """Until the peer's certificate expires; the connection must not outlive it."""


async def connect(
    me: Self, raw: trio.SocketStream, contexts: tls.Contexts, lane: Lane, now: float
) -> Session:
    """Authenticate a connection that this node dialled, for ``lane``.

    ``now``: seconds since 1970, for the certificate's end. Raises `PeerError` when the peer is not
    who it must be, and `UnavailableError` when the connection fails.
    """
    stream = trio.SSLStream(raw, contexts.client, https_compatible=True)
    return await _greet(me, stream, contexts.client_certificate, lane, now)


async def accept(me: Self, raw: trio.SocketStream, contexts: tls.Contexts, now: float) -> Session:
    """Authenticate a connection that a peer dialled; its HELLO names the lane.

    Raises as `connect` does.
    """
    stream = trio.SSLStream(raw, contexts.server, server_side=True, https_compatible=True)
    return await _greet(me, stream, contexts.server_certificate, None, now)


async def _greet(
    me: Self, stream: Stream, own_certificate: bytes, lane: Lane | None, now: float
) -> Session:
    try:
        with trio.fail_after(HANDSHAKE_S):
            await stream.do_handshake()
            certificate = tls.read_peer(stream)
            allowed = certificate.names & me.allowed_names
            if not allowed:
                raise PeerError(
                    f"the peer's certificate names {_spell(certificate.names)}, none of which "
                    "stands in BASE_TLS_ALLOWED_SANS; connection refused"
                )
            return await _exchange(me, stream, own_certificate, certificate, lane, now)
    except trio.TooSlowError as error:
        raise UnavailableError(f"the peer's HELLO took more than {HANDSHAKE_S:.0f} s") from error
    except trio.BrokenResourceError as error:
        raise UnavailableError(
            f"the connection failed in its handshake ({_explain(error)})"
        ) from error


async def _exchange(  # noqa: PLR0917  (one connection's facts)
    me: Self,
    stream: Stream,
    own_certificate: bytes,
    certificate: tls.PeerCertificate,
    lane: Lane | None,
    now: float,
) -> Session:
    reader = MessageReader(stream, size_max=HELLO_BYTES_MAX)
    own = replace(me.describe(), nonce=secrets.token_bytes(NONCE_BYTES))
    if lane is not None:
        # The dialler speaks first, so that the other side can name the lane in its answer.
        own = replace(own, lane=lane)
        await stream.send_all(pack(encode_hello(own)))
        peer = await _receive_hello(reader)
        if peer.lane != lane:
            raise PeerError(f"{peer.node_id} answered for another lane than it was dialled for")
    else:
        peer = await _receive_hello(reader)
        own = replace(own, lane=peer.lane)
        await stream.send_all(pack(encode_hello(own)))
    _check_names(me, peer, certificate)
    signed = proof(encode_hello(own), own.key, own_certificate, certificate.encoded, peer.nonce)
    await stream.send_all(pack(me.signer.sign(signed)))
    signature = await reader.next()
    expected = proof(encode_hello(peer), peer.key, certificate.encoded, own_certificate, own.nonce)
    if signature is None:
        raise UnavailableError(f"{peer.node_id} closed the connection instead of proving its key")
    if len(signature) != SIGNATURE_BYTES or not is_signed(peer.key, signature, expected):
        raise PeerError(
            f"{peer.node_id} did not prove that it holds the signing key that it names; refused"
        )
    protocol = choose_protocol(own, peer)
    return Session(
        stream=stream,
        reader=reader,
        peer=peer,
        protocol=protocol,
        valid_for_s=certificate.expires_at.timestamp() - now,
    )


async def _receive_hello(reader: MessageReader) -> Hello:
    data = await reader.next()
    if data is None:
        raise UnavailableError("the peer closed the connection instead of saying HELLO")
    return decode_hello(data)


def _check_names(me: Self, peer: Hello, certificate: tls.PeerCertificate) -> None:
    if peer.node_id not in certificate.names & me.allowed_names:
        raise PeerError(
            f"the peer calls itself {peer.node_id}, but its certificate names "
            f"{_spell(certificate.names)}; connection refused"
        )
    if certificate.key is not None and certificate.key != peer.key:
        raise PeerError(
            f"{peer.node_id} names another signing key than that of its certificate; refused"
        )


def _spell(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nobody"


def _explain(error: BaseException) -> str:
    cause = error.__cause__
    return getattr(cause, "reason", None) or str(cause or error)
