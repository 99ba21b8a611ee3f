"""Encrypted objects."""

import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.errors import EncryptionCorrupt
from basenet.keys import age
from basenet.wire import encryption
from basenet.wire.encryption import (
    BLOCK_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    Header,
    Identity,
    Opened,
    decode_header,
    encrypt_object,
    is_encrypted,
    open_header,
    plain_bytes,
    stored_bytes,
)
from basenet.wire.signature import Signer

NAME = "default/app/00112233445566778899aabbccddeeff/log/0000000000000000/object.lbn"
ONE, TWO, OTHER = (Identity(private=bytes([n]) * 32) for n in (1, 2, 3))
SIGNER = Signer(b"a signer of ciphertext, 32 bytes")
VECTORS = Path(__file__).parents[1] / "vectors" / "encrypted"
SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 17]


def plain_of(size: int) -> bytes:
    return bytes(n * n % 251 for n in range(size))


def encrypted(plain: bytes, name: str = NAME, key: bytes = b"k" * 32) -> bytes:
    recipients = [ONE.recipient, TWO.recipient]
    return encrypt_object(name, plain, data_key=key, recipients=recipients, signer=SIGNER)


def opened(data: bytes, name: str = NAME, identity: Identity = ONE) -> Opened:
    found = open_header(decode_header(data, name), [OTHER, identity])
    assert found is not None
    return found


def decrypted(data: bytes, name: str = NAME, identity: Identity = ONE) -> bytes:
    return opened(data, name, identity).decrypt_body(memoryview(data)[HEADER_BYTES:])


@pytest.mark.parametrize("size", SIZES)
def test_each_recipient_reads_what_was_encrypted(size: int) -> None:
    """Whole, with a size that follows from the plaintext's, and nothing of it in sight."""
    plain = plain_of(size)
    data = encrypted(plain)
    assert is_encrypted(data)
    assert len(data) == stored_bytes(size)
    assert plain_bytes(len(data)) == size
    assert decrypted(data) == decrypted(data, identity=TWO) == plain
    assert size < 16 or plain[:16] not in data


@given(st.integers(0, 2**41))
def test_the_size_of_an_object_tells_that_of_its_plaintext(size: int) -> None:
    """There and back; a size that no object has tells nothing."""
    assert plain_bytes(stored_bytes(size)) == size
    found = plain_bytes(size)
    assert found is None or stored_bytes(found) == size


def test_sizes_that_no_object_has_tell_nothing() -> None:
    """Below a header, and a block of a tag alone."""
    nobody = [0, HEADER_BYTES - 1, *range(HEADER_BYTES + 1, HEADER_BYTES + TAG_BYTES + 1)]
    nobody.append(stored_bytes(BLOCK_BYTES) + TAG_BYTES)
    assert [plain_bytes(size) for size in nobody] == [None] * len(nobody)


def test_who_is_no_recipient_opens_nothing() -> None:
    """None, and no error: the object is whole."""
    header = decode_header(encrypted(b"secret"), NAME)
    assert open_header(header, [OTHER]) is None
    assert open_header(header, []) is None
    assert header.is_for([TWO.recipient])
    assert not header.is_for([TWO.recipient, OTHER.recipient])


@pytest.mark.parametrize("size", [1, BLOCK_BYTES + 5])
def test_a_flipped_bit_anywhere_is_refused_with_the_name(size: int) -> None:
    """Each byte of the header, and of the blocks at both ends and in between."""
    data = encrypted(plain_of(size))
    places = {*range(HEADER_BYTES + 40), *range(len(data) - 40, len(data))}
    places |= set(range(HEADER_BYTES, len(data), 997))
    for place in sorted(place for place in places if place < len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(EncryptionCorrupt, match=NAME):
            decrypted(bytes(damaged))


@given(st.integers(0, stored_bytes(2 * BLOCK_BYTES + 9)))
@settings(deadline=None)
def test_a_cut_off_object_is_refused_with_the_name(length: int) -> None:
    """Also where a block ends, and what is too long."""
    data = encrypted(plain_of(2 * BLOCK_BYTES + 9))
    cut = data[:length] if length < len(data) else data + b"\0"
    with pytest.raises(EncryptionCorrupt, match=NAME):
        decrypted(cut)


def test_an_object_under_another_name_is_refused() -> None:
    """The true bytes of another place: the signature speaks of the name."""
    with pytest.raises(EncryptionCorrupt, match="under another name"):
        decrypted(encrypted(b"secret"), "default/app/other")


def test_an_object_signed_anew_under_another_name_is_refused() -> None:
    """Who signs anew needs no key for that, but HPKE and the blocks are bound to the name, too."""
    data, other = encrypted(b"secret"), NAME + "x"
    signed = data[: HEADER_BYTES - 64]
    forged = signed + SIGNER.sign(encryption._to_sign(other, signed)) + data[HEADER_BYTES:]
    with pytest.raises(EncryptionCorrupt, match="cannot be unwrapped"):
        decrypted(forged, other)


def sign_anew(signed: bytes) -> bytes:
    return signed + SIGNER.sign(encryption._to_sign(NAME, signed))


def test_a_header_of_another_length_or_key_is_refused_even_if_signed() -> None:
    """Each block knows how long the plaintext is, and the commitment which key it was."""
    data = encrypted(plain_of(BLOCK_BYTES + 5))
    signed = bytearray(data[: HEADER_BYTES - 64])
    signed[12:20] = BLOCK_BYTES.to_bytes(8, "big")  # the second block is cut off
    body = data[HEADER_BYTES : stored_bytes(BLOCK_BYTES)]
    signed[36:68] = sha256(body).digest()
    with pytest.raises(EncryptionCorrupt, match="block 0 is not what was encrypted"):
        decrypted(sign_anew(bytes(signed)) + body)
    signed = bytearray(data[: HEADER_BYTES - 64])
    signed[20:36] = bytes(16)
    with pytest.raises(EncryptionCorrupt, match="not the one that it was encrypted with"):
        decrypted(sign_anew(bytes(signed)) + data[HEADER_BYTES:])


@pytest.mark.parametrize(("place", "value"), [(4, 2), (5, 0), (5, 9), (7, 1), (11, 1), (860, 1)])
def test_what_is_unknown_is_refused_even_if_signed(place: int, value: int) -> None:
    """Another suite, no recipients or too many, a flag, another block size, an unused slot."""
    data = encrypted(b"secret")
    signed = bytearray(data[: HEADER_BYTES - 64])
    signed[min(place, len(signed) - 1)] = value
    with pytest.raises(EncryptionCorrupt, match=r"unknown|recipients"):
        decode_header(sign_anew(bytes(signed)), NAME)


def test_a_wrapped_key_of_low_order_is_refused_even_if_signed() -> None:
    """X25519 refuses the point; the error is ours all the same."""
    data = encrypted(b"secret")
    signed = bytearray(data[: HEADER_BYTES - 64])
    signed[108:140] = bytes(32)
    with pytest.raises(EncryptionCorrupt, match="cannot be unwrapped"):
        opened(sign_anew(bytes(signed)) + data[HEADER_BYTES:])


def test_swapped_blocks_are_refused() -> None:
    """A block decrypts where it was encrypted, and nowhere else."""
    data, step = encrypted(plain_of(3 * BLOCK_BYTES)), BLOCK_BYTES + TAG_BYTES
    key = opened(data)
    blocks = [data[HEADER_BYTES + n * step :][:step] for n in range(3)]
    assert key.decrypt_blocks(1, blocks[1]) == plain_of(3 * BLOCK_BYTES)[BLOCK_BYTES:][:BLOCK_BYTES]
    for place in (0, 2):
        with pytest.raises(EncryptionCorrupt, match=f"{NAME} .*block {place}"):
            key.decrypt_blocks(place, blocks[1])
    with pytest.raises(EncryptionCorrupt):
        key.decrypt_blocks(0, blocks[0] + blocks[2])


def test_equal_bytes_never_look_equal() -> None:
    """Another data key: nothing is the same behind the key ids, and keys do not open each other."""
    one, two = encrypted(plain_of(100), key=b"a" * 32), encrypted(plain_of(100), key=b"b" * 32)
    assert one[HEADER_BYTES:] != two[HEADER_BYTES:]
    with pytest.raises(EncryptionCorrupt):
        opened(one).decrypt_blocks(0, two[HEADER_BYTES:])


@given(st.binary(max_size=1200) | st.binary(max_size=1200).map(lambda tail: b"BNE1" + tail))
def test_garbage_is_refused(data: bytes) -> None:
    """No input does anything but raise the one error."""
    with pytest.raises(EncryptionCorrupt, match=NAME):
        decode_header(data, NAME)


@given(st.binary(min_size=HEADER_BYTES - 64 - 4, max_size=HEADER_BYTES - 64 - 4), st.booleans())
@settings(deadline=None)
def test_a_signed_garbage_header_is_refused_or_opens_nothing(rest: bytes, is_near: bool) -> None:  # noqa: FBT001
    """Whoever may sign still cannot make a reader do anything else."""
    signed = b"BNE1" + rest
    if is_near:
        used = 100 + 2 * 88
        fixed = b"BNE1\1\2\0\0" + BLOCK_BYTES.to_bytes(4, "big") + bytes(5) + rest[17:96]
        signed = (fixed[:20] + rest[16:96] + ONE.recipient.key_id + rest[104:])[:used]
        signed = signed.ljust(HEADER_BYTES - 64, b"\0")
    with suppress(EncryptionCorrupt):
        header = decode_header(sign_anew(signed), NAME)
        assert isinstance(header, Header)
        assert open_header(header, [ONE]) is None


def test_the_golden_object_is_read_for_ever() -> None:
    """HPKE is random, so it is never written again: its fields, its keys, its plaintext."""
    values = json.loads((VECTORS / "values.json").read_text())
    data = bytes.fromhex((VECTORS / "object.hex").read_text())
    header = decode_header(data, values["name"])
    assert (len(data), header.plain_len) == (values["stored_len"], values["plain_len"])
    assert header.commit.hex() == values["key_commit"]
    assert header.body_hash.hex() == values["body_sha256"]
    assert header.signer.hex() == values["signer"]
    assert [key_id.hex() for key_id, _ in header.slots] == values["key_ids"]
    for text in values["identities"]:
        (identity,) = age.parse_identities(text, what="the vector")
        plain = decrypted(data, values["name"], identity)
        assert sha256(plain).hexdigest() == values["plain_sha256"]
    key = bytes.fromhex(values["data_key"])
    assert encryption._derive(key, b"block", 32).hex() == values["block_key"]
    assert encryption._derive(key, b"commit", 16).hex() == values["key_commit"]
    # All but what HPKE drew, and the signature over it, is written the same.
    again = encrypted(plain, values["name"], key)
    assert again[:108] == data[:108]
    assert again[HEADER_BYTES:] == data[HEADER_BYTES:]
