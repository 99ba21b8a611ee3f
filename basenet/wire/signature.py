"""Ed25519 (RFC 8032): one key signs frames, segments and later votes, each in its own domain.

A domain is the NUL-terminated text in front of the signed bytes, so that a signature for one use
can never pass for another. A segment needs no text: its first four bytes are its magic.
"""

import base64
from functools import lru_cache
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from basenet.units import PublicKeyBytes


class AnySigner(Protocol):
    """Who can sign: `Signer`, or what stands for it in a simulation."""

    @property
    def public(self) -> PublicKeyBytes:
        """The raw 32-byte public key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""
        ...


class Signer:
    """Holds a private key and signs with it; never shows it."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        """Take the raw 32-byte seed of an Ed25519 key."""
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self.public = PublicKeyBytes(
            self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        )

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""
        return self._private.sign(message)


@lru_cache(maxsize=1024)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


def get_fingerprint(public: bytes) -> str:
    """Return a short name of a key to compare by eye, in the form that ssh uses."""
    return f"SHA256:{base64.b64encode(sha256(public).digest()).decode().rstrip('=')}"


def is_signed(public: bytes, signature: bytes, message: bytes | memoryview) -> bool:
    """Return whether ``signature`` (64 bytes) is ``public``'s (32 bytes) signature of it."""
    try:
        _public_key(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
