"""Keys of encryption at rest, always the same."""

from hashlib import sha256

from basenet.archive.keyring import Keyring
from basenet.wire.encryption import Identity
from basenet.wire.signature import Signer

SIGNER = Signer(b"a signer of ciphertext, 32 bytes")


def make_identity(name: str = "one") -> Identity:
    return Identity(private=sha256(name.encode()).digest())


def make_keyring(*names: str, identity: str | None = None, signer: Signer = SIGNER) -> Keyring:
    """Return a keyring that writes for ``names`` and opens with ``identity``, the first of them."""
    names = names or ("one",)
    return Keyring(
        recipients=tuple(make_identity(name).recipient for name in names),
        identities=(make_identity(identity or names[0]),),
        signer=signer,
    )


def make_reader(*names: str) -> Keyring:
    return Keyring(identities=tuple(make_identity(name) for name in names))
