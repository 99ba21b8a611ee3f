"""A node's own Ed25519 key: named by the operator, or made once in the data directory.

On disk the key is PKCS #8 in PEM (RFC 8410), as ``openssl genpkey -algorithm ed25519`` writes it;
a file that holds nothing but the base64 of the 32 raw bytes is read as well, since that is how
secret stores like to keep them.
"""

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from basenet.errors import ConflictError, NotFoundError, UsageError
from basenet.keys import files
from basenet.keys.trust import (
    TRUSTED_KEYS_NAME,
    add_trusted_key,
    format_public,
    get_fingerprint,
)
from basenet.units import KEY_BYTES, PublicKeyBytes
from basenet.wire.signature import Signer

SIGNING_KEY_NAME: Final = "signing.key"
INLINE_PREFIX: Final = "base64:"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A node's key and where it came from."""

    private: bytes = field(repr=False)  # the 32-byte seed
    public: PublicKeyBytes
    path: Path | None  # None: it came from the environment itself
    created: bool = False  # this very call made it

    @property
    def public_text(self) -> str:
        """Return the public half as it stands in a trusted keys file."""
        return format_public(self.public)

    @property
    def fingerprint(self) -> str:
        """Return the short name of the public half, for people to compare."""
        return get_fingerprint(self.public)

    def signer(self) -> Signer:
        """Return what signs with this key."""
        return Signer(self.private)


def load_or_create(data_dir: Path, override: str | None = None, *, comment: str = "") -> SigningKey:
    """Return the node's key; without ``override`` the one in ``data_dir``, made if missing.

    ``override`` is the value of BASE_SIGNING_KEY: the path of a key file, or ``base64:`` and the
    key. Afterwards ``trusted.keys`` in ``data_dir`` names the public half, with ``comment`` (a
    node's id, say) if the line is new, so that a restore on this machine needs no further word.

    Raises `UsageError` if the key is unreadable, malformed or open to others, and
    `UnavailableError` if the directory cannot be written.
    """
    files.make_private_directory(data_dir, setting="BASE_DATA_DIR")
    if override is None:
        key = _load_or_create_own(data_dir / SIGNING_KEY_NAME)
    elif override.startswith(INLINE_PREFIX):
        key = _make_key(parse_inline(override), path=None)
    else:
        key = _load_named(Path(override))
    add_trusted_key(data_dir / TRUSTED_KEYS_NAME, key.public, comment=comment)
    return key


def load(path: Path) -> SigningKey:
    """Return the key in the file ``path``.

    Raises `NotFoundError` if there is none and `UsageError` if it is no Ed25519 private key or is
    open to others.
    """
    content = files.read_file(path, what="the signing key", private=True)
    private = _decode_pem(content, path) if b"-----BEGIN" in content else _decode_seed(content)
    if private is None:
        raise UsageError(
            f"{path} holds no Ed25519 private key; it must hold one in PEM, as made by "
            "`basenet keys init`, or the base64 of its 32 bytes"
        )
    return _make_key(private, path=path)


def generate(path: Path) -> SigningKey:
    """Make a new key and write it to ``path`` with mode 0600; never over an existing file.

    Raises `ConflictError` if the name is taken and `UnavailableError` if the disk refuses.
    """
    key = Ed25519PrivateKey.generate()
    files.write_new(path, encode_pem(key))
    return _make_key(key.private_bytes_raw(), path=path, created=True)


def encode_pem(key: Ed25519PrivateKey) -> bytes:
    """Return ``key`` as it stands in a key file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def is_seed_text(text: str) -> bool:
    """Return whether ``text`` is the base64 of 32 bytes, as a pasted secret would be."""
    return _decode_seed(text.encode()) is not None


def parse_inline(text: str) -> bytes:
    """Return the 32 private bytes of ``base64:...``; the `UsageError` never repeats the text."""
    private = _decode_seed(text.removeprefix(INLINE_PREFIX).encode())
    if private is None:
        raise UsageError(
            f"the value after {INLINE_PREFIX} must be the base64 of the 32 bytes of an Ed25519 "
            "private key, 44 characters (it is not shown here)"
        )
    return private


def _load_or_create_own(path: Path) -> SigningKey:
    try:
        return load(path)
    except NotFoundError:
        pass
    try:
        key = generate(path)
    except ConflictError:  # another process made it at this moment: its key is ours, too
        return load(path)
    files.remove_drafts(path)
    return key


def _load_named(path: Path) -> SigningKey:
    try:
        return load(path)
    except NotFoundError as error:
        raise UsageError(
            f"the key file {path} that BASE_SIGNING_KEY names does not exist; "
            "make one with `basenet keys init`, or unset the variable to have one made"
        ) from error


def _make_key(private: bytes, *, path: Path | None, created: bool = False) -> SigningKey:
    return SigningKey(private=private, public=Signer(private).public, path=path, created=created)


def _decode_pem(content: bytes, path: Path) -> bytes | None:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise UsageError(
            f"the signing key {path} is encrypted with a password, which a daemon cannot ask for; "
            "store it without one and with mode 0600"
        ) from error
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key.private_bytes_raw() if isinstance(key, Ed25519PrivateKey) else None


def _decode_seed(content: bytes) -> bytes | None:
    try:
        private = base64.b64decode(content.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return private if len(private) == KEY_BYTES else None
