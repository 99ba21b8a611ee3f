"""What this node signed needs no other proof: its own votes come back to it in certificates.

A signature that was made here for exactly these bytes is right, and to look that up costs a
fiftieth of verifying it. Everything else is verified as ever.
"""

from collections import OrderedDict
from typing import Final

from basenet.units import PublicKeyBytes
from basenet.wire.certificate import Verify
from basenet.wire.signature import AnySigner

_REMEMBERED_MAX: Final = 256


class RememberingSigner:
    """Signs, and knows its newest signatures again; an `AnySigner`."""

    def __init__(self, signer: AnySigner, verify: Verify) -> None:
        """``verify``: asked about everything that was not signed here just now."""
        self.public = signer.public
        self._signer = signer
        self._verify = verify
        self._made: OrderedDict[bytes, bytes] = OrderedDict()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""
        signature = self._signer.sign(message)
        self._made[message] = signature
        if len(self._made) > _REMEMBERED_MAX:
            self._made.popitem(last=False)
        return signature

    def verify(self, key: PublicKeyBytes, signature: bytes, message: bytes) -> bool:
        """Return whether ``key`` signed ``message``."""
        if key == self.public and self._made.get(message) == signature:
            return True
        return self._verify(key, signature, message)
