"""Encrypted objects of the archive, ``basenet/enc/1``: who can read them, and what binds them.

::

    "BNE1" | suite u8 | recipients u8 | 0 u16 | block_bytes u32 | plain_len u64 | key_commit[16]
    | body SHA-256[32] | signer[32] | (key_id[8] | wrapped[80]) * 8 | sig[64] | block *

Theory of operation
===================

One object is encrypted as a whole, whatever stands in it, under a random *data key* of its own.
The data key is wrapped for each *recipient* by HPKE (RFC 9180, base mode, X25519, HKDF-SHA256,
AES-256-GCM). The plaintext is cut into blocks of `BLOCK_BYTES`, each an AES-256-GCM message, so
that a range is read without the rest. A header has always the same size: so a listing tells the
size of the plaintext, and the number of recipients does not move what follows.

What binds the bytes to their place:

* the *name* of the object stands in the signature, in HPKE's ``info`` and in each block's AAD;
* ``plain_len`` stands in the signature and in each AAD, so the end cannot be cut off or moved;
* the number of the block is its nonce, which is used once, since no two objects share a data key;
* ``key_commit`` says which data key it must be: GCM alone would open under a second, chosen key;
* the *signature* covers the name, the header and, by its hash, all of the ciphertext. So whoever
  holds no key can tell a whole object from a damaged one. It shows integrity, never authority: what
  is inside is signed by its author, and that is judged by who reads it, encrypted or not.

Decoding has one order: length, magic, fields, signature; then the data key and its commitment; then
blocks. No chance and no clock: the data key is an argument. (HPKE draws its own ephemeral key.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from basenet.errors import EncryptionCorrupt
from basenet.units import HASH_BYTES, KEY_BYTES, KIB, SIGNATURE_BYTES, PublicKeyBytes
from basenet.wire.codec import Reader, u16
from basenet.wire.signature import Signer, is_signed

MAGIC: Final = b"BNE1"
BLOCK_BYTES: Final = 16 * KIB
TAG_BYTES: Final = 16
DATA_KEY_BYTES: Final = 32
RECIPIENTS_MAX: Final = 8
_SUITE_ID: Final = 1
_COMMIT_BYTES: Final = 16
_KEY_ID_BYTES: Final = 8
_WRAPPED_BYTES: Final = 80
_SLOT_BYTES: Final = _KEY_ID_BYTES + _WRAPPED_BYTES
_FIXED: Final = Struct(f">4sBBHIQ{_COMMIT_BYTES}s{HASH_BYTES}s{KEY_BYTES}s")
_SLOTS_BYTES: Final = RECIPIENTS_MAX * _SLOT_BYTES
_SIGNED_BYTES: Final = _FIXED.size + _SLOTS_BYTES
HEADER_BYTES: Final = _SIGNED_BYTES + SIGNATURE_BYTES
# Far above what any object is: no header makes a reader ask for more.
PLAIN_BYTES_MAX: Final = 2**40
_DOMAIN: Final = b"basenet/enc/1\0"
_INFO: Final = b"basenet/object-key/1\0"
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """Somebody who can read what is encrypted for him: a raw X25519 public key."""

    public: bytes

    @property
    def key_id(self) -> bytes:
        """The hint by which his wrapped key is found: 8 bytes of the SHA-256 of the key."""
        return sha256(self.public).digest()[:_KEY_ID_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What opens objects: a raw X25519 private key. Its ``repr`` does not show it."""

    private: bytes = field(repr=False)

    @property
    def recipient(self) -> Recipient:
        """For whom one encrypts so that this identity can read it."""
        key = X25519PrivateKey.from_private_bytes(self.private).public_key()
        return Recipient(public=key.public_bytes_raw())


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header whose signature holds: how long the plaintext is, and for whom it is.

    ``slots``: (key id, wrapped data key) of each recipient. ``body_hash``: of all blocks.
    """

    name: str
    plain_len: int
    commit: bytes
    body_hash: bytes
    signer: PublicKeyBytes
    slots: tuple[tuple[bytes, bytes], ...]

    def is_for(self, recipients: Iterable[Recipient]) -> bool:
        """Return whether each of ``recipients`` can read the object."""
        return {recipient.key_id for recipient in recipients} <= {slot[0] for slot in self.slots}

    def fail(self, problem: str) -> EncryptionCorrupt:
        """Return the error that names the object."""
        return EncryptionCorrupt(f"{self.name} is damaged: {problem}")


def is_encrypted(data: bytes | memoryview) -> bool:
    """Return whether an object that begins with ``data`` is one of this format."""
    return bytes(data[: len(MAGIC)]) == MAGIC


def count_blocks(plain_len: int) -> int:
    """Return how many blocks ``plain_len`` bytes are cut into."""
    return -(-plain_len // BLOCK_BYTES)


def stored_bytes(plain_len: int) -> int:
    """Return the size of the object that holds ``plain_len`` bytes."""
    return HEADER_BYTES + plain_len + TAG_BYTES * count_blocks(plain_len)


def plain_bytes(stored_len: int) -> int | None:
    """Return how many bytes an object of ``stored_len`` bytes holds; None: none is so long."""
    body = stored_len - HEADER_BYTES
    plain_len = body - TAG_BYTES * -(-body // (BLOCK_BYTES + TAG_BYTES))
    return plain_len if plain_len >= 0 and stored_bytes(plain_len) == stored_len else None


def encrypt_object(
    name: str,
    plain: bytes,
    *,
    data_key: bytes,
    recipients: Sequence[Recipient],
    signer: Signer,
) -> bytes:
    """Return the encrypted object that is to lie under ``name``.

    ``data_key``: 32 bytes from a source of secrets, never used before. Blocks for as long as the
    bytes take: 2 GB/s and more.
    """
    assert len(data_key) == DATA_KEY_BYTES, "a data key has 32 bytes"
    assert 1 <= len(recipients) <= RECIPIENTS_MAX, "the keyring checked how many there are"
    cipher, aad = AESGCM(_derive(data_key, b"block", DATA_KEY_BYTES)), _aad(name, len(plain))
    view = memoryview(plain)
    # Encrypted in place: to join blocks costs more than to encrypt them.
    data = memoryview(bytearray(stored_bytes(len(plain))))
    body, place = data[HEADER_BYTES:], 0
    for number, start in enumerate(range(0, len(plain), BLOCK_BYTES)):
        block = view[start : start + BLOCK_BYTES]
        end = place + len(block) + TAG_BYTES
        cipher.encrypt_into(_nonce(number), block, aad, body[place:end])
        place = end
    fixed = _FIXED.pack(
        MAGIC,
        _SUITE_ID,
        len(recipients),
        0,
        BLOCK_BYTES,
        len(plain),
        _derive(data_key, b"commit", _COMMIT_BYTES),
        sha256(body).digest(),
        signer.public,
    )
    slots = b"".join(_wrap(data_key, recipient, name) for recipient in recipients)
    signed = fixed + slots.ljust(_SLOTS_BYTES, b"\0")
    data[:HEADER_BYTES] = signed + signer.sign(_to_sign(name, signed))
    return bytes(data)


def _wrap(data_key: bytes, recipient: Recipient, name: str) -> bytes:
    public = X25519PublicKey.from_public_bytes(recipient.public)
    wrapped = _SUITE.encrypt(data_key, public, _INFO + name.encode())
    assert len(wrapped) == _WRAPPED_BYTES, "an ephemeral key, the data key and a tag"
    return recipient.key_id + wrapped


def decode_header(data: bytes | memoryview, name: str) -> Header:
    """Return the header that the object ``name`` begins with, its signature verified.

    Raises `EncryptionCorrupt`, which names the object.
    """
    reader = Reader(data, error=EncryptionCorrupt, what=name)
    if len(data) < HEADER_BYTES:
        raise reader.fail(f"{len(data)} bytes are too few for an encrypted object")
    signed = bytes(data[:_SIGNED_BYTES])
    magic, suite, count, zero, block_bytes, plain_len, commit, body_hash, signer = (
        _FIXED.unpack_from(signed)
    )
    if magic != MAGIC:
        raise reader.fail("it does not start with BNE1")
    if suite != _SUITE_ID or block_bytes != BLOCK_BYTES or zero:
        raise reader.fail(f"suite {suite} or blocks of {block_bytes} bytes are unknown")
    used = _FIXED.size + count * _SLOT_BYTES
    if not 1 <= count <= RECIPIENTS_MAX or any(signed[used:]) or plain_len > PLAIN_BYTES_MAX:
        raise reader.fail(f"{count} recipients, {plain_len} bytes, or what follows them")
    signature = bytes(data[_SIGNED_BYTES:HEADER_BYTES])
    if not is_signed(signer, signature, _to_sign(name, signed)):
        raise reader.fail("its signature is wrong: it was changed, or belongs under another name")
    starts = range(_FIXED.size, used, _SLOT_BYTES)
    return Header(
        name=name,
        plain_len=plain_len,
        commit=commit,
        body_hash=body_hash,
        signer=PublicKeyBytes(signer),
        slots=tuple(
            (
                signed[start : start + _KEY_ID_BYTES],
                signed[start + _KEY_ID_BYTES : start + _SLOT_BYTES],
            )
            for start in starts
        ),
    )


class Opened:
    """A header and its data key: what decrypts blocks. Safe to use from several threads."""

    def __init__(self, header: Header, data_key: bytes) -> None:
        """Raise `EncryptionCorrupt` if ``data_key`` is not the one that the header commits to."""
        if _derive(data_key, b"commit", _COMMIT_BYTES) != header.commit:
            raise header.fail("the key in it is not the one that it was encrypted with")
        self.header = header
        self._cipher = AESGCM(_derive(data_key, b"block", DATA_KEY_BYTES))
        self._aad = _aad(header.name, header.plain_len)

    def decrypt_blocks(self, first: int, data: bytes | memoryview) -> bytes:
        """Return the plaintext of the blocks from number ``first`` on that ``data`` holds.

        ``data`` ends where a block ends. Raises `EncryptionCorrupt`.
        """
        step, view, number = BLOCK_BYTES + TAG_BYTES, memoryview(data), first
        plain = memoryview(bytearray(max(len(view) - TAG_BYTES * -(-len(view) // step), 0)))
        place = 0
        try:
            for start in range(0, len(view), step):
                block = view[start : start + step]
                end = place + max(len(block) - TAG_BYTES, 0)
                self._cipher.decrypt_into(_nonce(number), block, self._aad, plain[place:end])
                place, number = end, number + 1
        except InvalidTag as error:
            raise self.header.fail(f"its block {number} is not what was encrypted there") from error
        return bytes(plain)

    def decrypt_body(self, body: bytes | memoryview) -> bytes:
        """Return the whole plaintext; ``body`` is everything behind the header."""
        header = self.header
        expected = stored_bytes(header.plain_len) - HEADER_BYTES
        if len(body) != expected:
            raise header.fail(f"{len(body)} bytes follow its header, not {expected}")
        if sha256(body).digest() != header.body_hash:
            raise header.fail("its bytes are not the ones that were signed")
        return self.decrypt_blocks(0, body)


def open_header(header: Header, identities: Iterable[Identity]) -> Opened | None:
    """Return what decrypts the object, or None if none of ``identities`` is a recipient.

    Raises `EncryptionCorrupt` if the key that is wrapped for one of them cannot be unwrapped.
    """
    for identity in identities:
        key_id = identity.recipient.key_id
        for slot_id, wrapped in header.slots:
            if slot_id == key_id:
                return Opened(header, _unwrap(header, wrapped, identity))
    return None


def _unwrap(header: Header, wrapped: bytes, identity: Identity) -> bytes:
    private = X25519PrivateKey.from_private_bytes(identity.private)
    try:
        data_key = _SUITE.decrypt(wrapped, private, _INFO + header.name.encode())
    except (InvalidTag, ValueError) as error:
        raise header.fail(
            "the key that is wrapped for this identity cannot be unwrapped"
        ) from error
    # A slot holds an ephemeral key, 32 bytes and a tag: there is no key of another length.
    return bytes(data_key)


def _derive(data_key: bytes, purpose: bytes, length: int) -> bytes:
    # Expand alone: the data key is uniformly random already (RFC 5869, 3.3).
    return HKDFExpand(SHA256(), length, _DOMAIN + purpose).derive(data_key)


def _aad(name: str, plain_len: int) -> bytes:
    return b"".join((_DOMAIN, plain_len.to_bytes(8, "big"), name.encode()))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _to_sign(name: str, signed: bytes) -> bytes:
    encoded = name.encode()
    return b"".join((_DOMAIN, u16(len(encoded)), encoded, signed))
