r"""HELLO: what two nodes tell each other before anything else, bound to their TLS connection.

::

    HELLO  = "BNP2" | proto_min u16 | proto_max u16 | lane u8
             | software_len u8 | software | id_len u8 | node id | key[32] | journal id[16]
             | jcount u64 | boot nonce[8] | features u64 | SHA256(M)[32] | nonce[16]
    HELLO2 = Ed25519(key, "basenet/hello/1\0" || own key || SHA256(own certificate)
             || SHA256(peer's certificate) || peer's nonce || own HELLO)

Both sides send HELLO, then HELLO2. The second one proves that whoever holds the TLS certificate
also holds the signing key, on this connection and no other: Python offers no TLS 1.3 exporter, so
the two certificates and the peer's fresh nonce stand for the connection (Q20).
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final

from basenet.errors import PeerError
from basenet.units import HASH_BYTES, JOURNAL_ID_BYTES, KEY_BYTES, JournalId, PublicKeyBytes
from basenet.wire.codec import Reader, u8, u16, u64

MAGIC: Final = b"BNP2"
PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
HELLO_BYTES_MAX: Final = 1024
NONCE_BYTES: Final = 16
BOOT_NONCE_BYTES: Final = 8
_NODE_ID = re.compile(r"[a-z0-9.-]{1,253}\Z")
_SOFTWARE = re.compile(r"[ -~]{0,64}\Z")
_DOMAIN: Final = b"basenet/hello/1\0"


class Lane(IntEnum):
    """What a connection carries: short messages, or frames and snapshots that may take a while."""

    ORDINARY = 0
    BULK = 1


# Looked up instead of caught: an unknown lane comes from a newer peer.
_LANES: Final = {int(lane): lane for lane in Lane}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who a node says it is. ``journal_count`` grows with every transaction of its journal (Q9)."""

    lane: Lane
    software: str
    node_id: str
    key: PublicKeyBytes
    journal_id: JournalId
    journal_count: int
    boot_nonce: bytes
    features: int
    members_hash: bytes
    nonce: bytes
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX


def encode_hello(hello: Hello) -> bytes:
    """Encode a HELLO."""
    node_id, software = hello.node_id.encode("ascii"), hello.software.encode("ascii")
    assert len(hello.nonce) == NONCE_BYTES, "a nonce of another length"
    assert len(hello.boot_nonce) == BOOT_NONCE_BYTES, "a boot nonce of another length"
    return b"".join(
        (
            MAGIC,
            u16(hello.protocol_min),
            u16(hello.protocol_max),
            u8(hello.lane),
            u8(len(software)),
            software,
            u8(len(node_id)),
            node_id,
            hello.key,
            hello.journal_id,
            u64(hello.journal_count),
            hello.boot_nonce,
            u64(hello.features),
            hello.members_hash,
            hello.nonce,
        )
    )


def decode_hello(data: bytes) -> Hello:
    """Decode a HELLO; raise `PeerError` if it is malformed or not of this protocol."""
    reader = Reader(data, error=PeerError, what="a HELLO")
    if reader.take(len(MAGIC)) != MAGIC:
        raise reader.fail("its magic is wrong: the peer is no basenet, or an older one")
    protocol_min, protocol_max, lane = reader.u16(), reader.u16(), reader.u8()
    software = str(reader.view(reader.u8()), "latin-1")
    node_id = str(reader.view(reader.u8()), "latin-1")
    hello = Hello(
        protocol_min=protocol_min,
        protocol_max=protocol_max,
        lane=_LANES.get(lane, Lane.ORDINARY),
        software=software,
        node_id=node_id,
        key=PublicKeyBytes(reader.take(KEY_BYTES)),
        journal_id=JournalId(reader.take(JOURNAL_ID_BYTES)),
        journal_count=reader.u64(),
        boot_nonce=reader.take(BOOT_NONCE_BYTES),
        features=reader.u64(),
        members_hash=reader.take(HASH_BYTES),
        nonce=reader.take(NONCE_BYTES),
    )
    reader.finish()
    if lane not in _LANES:
        raise reader.fail(f"lane {lane} is unknown")
    if not _NODE_ID.match(node_id) or not _SOFTWARE.match(software):
        raise reader.fail("its node id or software name has characters that none has")
    if protocol_min > protocol_max:
        raise reader.fail(f"its protocols {protocol_min}..{protocol_max} are no range")
    return hello


def choose_protocol(mine: Hello, theirs: Hello) -> int:
    """Return the protocol version that both speak: the smaller maximum.

    Raises `PeerError` when one side is too old for the other.
    """
    version = min(mine.protocol_max, theirs.protocol_max)
    if version < max(mine.protocol_min, theirs.protocol_min):
        older, newer = sorted((mine, theirs), key=lambda hello: hello.protocol_max)
        raise PeerError(
            f"{older.node_id} ({older.software}) speaks protocol {older.protocol_max} at most and "
            f"{newer.node_id} ({newer.software}) at least {newer.protocol_min}; upgrade "
            f"{older.node_id}, one release at a time"
        )
    return version


def proof(
    own_hello: bytes, key: PublicKeyBytes, own_cert: bytes, peer_cert: bytes, peer_nonce: bytes
) -> bytes:
    """Return what HELLO2 signs; the certificates are DER."""
    return b"".join(
        (
            _DOMAIN,
            key,
            sha256(own_cert).digest(),
            sha256(peer_cert).digest(),
            peer_nonce,
            own_hello,
        )
    )
