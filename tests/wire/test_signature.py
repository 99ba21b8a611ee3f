"""Ed25519."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from basenet.wire.signature import Signer, is_signed

# RFC 8032, 7.1, test 3.
SEED = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
PUBLIC = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
SIGNATURE = bytes.fromhex(
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)


def test_the_vector_of_the_rfc_holds() -> None:
    """So a reader in another language needs only RFC 8032."""
    signer = Signer(SEED)
    assert signer.public == PUBLIC
    assert signer.sign(b"\xaf\x82") == SIGNATURE
    assert is_signed(PUBLIC, SIGNATURE, b"\xaf\x82")


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_what_was_signed_verifies_also_in_place(seed: bytes, message: bytes) -> None:
    """A message is signed by one key only, and a memoryview of it is as good."""
    signer = Signer(seed)
    signature = signer.sign(message)
    Ed25519PublicKey.from_public_bytes(signer.public).verify(signature, message)
    assert is_signed(signer.public, signature, memoryview(message))
    assert not is_signed(Signer(bytes(32)).public, signature, message) or seed == bytes(32)
    assert not is_signed(signer.public, signature, message + b"\0")


def test_every_changed_byte_of_key_signature_or_message_is_refused() -> None:
    """96 + 20 flips, none of them raises."""
    signer, message = Signer(bytes(32)), b"twenty bytes, signed"
    signature = signer.sign(message)
    for place in range(96 + len(message)):
        whole = bytearray(signer.public + signature + message)
        whole[place] ^= 1
        assert not is_signed(bytes(whole[:32]), bytes(whole[32:96]), bytes(whole[96:]))


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_garbage_is_not_signed(public: bytes, signature: bytes) -> None:
    """Keys and signatures of any length are answered, not raised."""
    assert not is_signed(public, signature, b"message")


def test_a_signer_never_shows_its_key() -> None:
    """Neither in its repr nor in an attribute that a debugger prints by default."""
    assert SEED.hex() not in repr(Signer(SEED))
    assert not hasattr(Signer(SEED), "__dict__")


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_private_key_of_another_length_is_refused(length: int) -> None:
    """The caller names the file; here it is only not a key."""
    with pytest.raises(ValueError, match="32"):
        Signer(bytes(length))
