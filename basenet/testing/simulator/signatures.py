"""Signatures: ideal ones for speed, real ones for a few seeds.

An ideal signature is valid when its key's owner did sign that message: the pair stands in a set
that only signing extends. So nothing can be forged, and nothing is computed.
"""

from hashlib import sha256
from typing import Protocol

from basenet.units import PublicKeyBytes
from basenet.wire.signature import AnySigner, Signer, is_signed


class Notary(Protocol):
    """Gives out signers and verifies what they sign."""

    def signer(self, number: int) -> AnySigner:
        """Return the signer of the node ``number``; the same key whenever it is asked."""
        ...

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        """Return whether ``signature`` is that of ``public`` for ``message``."""
        ...


class _IdealSigner:
    __slots__ = ("_signature", "_signed", "public")

    def __init__(self, public: PublicKeyBytes, signed: set[bytes]) -> None:
        self.public = public
        self._signed = signed
        self._signature = bytes(public) * 2

    def sign(self, message: bytes) -> bytes:
        self._signed.add(message)
        return self._signature


class IdealNotary:
    """Ideal signatures: whoever did not sign cannot have signed."""

    def __init__(self) -> None:
        self._signed: dict[bytes, set[bytes]] = {}

    def signer(self, number: int) -> AnySigner:
        """Return the signer of the node ``number``."""
        public = PublicKeyBytes(sha256(b"node %d" % number).digest())
        return _IdealSigner(public, self._signed.setdefault(public, set()))

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        """Return whether ``public`` signed ``message``, and this is what came out."""
        signed = self._signed.get(public)
        return signed is not None and message in signed and signature == public * 2


class RealNotary:
    """Ed25519, as the program has it."""

    def signer(self, number: int) -> AnySigner:
        """Return the signer of the node ``number``."""
        return Signer(sha256(b"node %d" % number).digest())

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        """Return whether the Ed25519 signature is right."""
        return is_signed(public, signature, message)
