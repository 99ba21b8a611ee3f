"""HELLO: who a peer is, and the proof that binds it to this connection."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.errors import PeerError
from basenet.units import JournalId, PublicKeyBytes
from basenet.wire.hello import (
    HELLO_BYTES_MAX,
    Hello,
    Lane,
    choose_protocol,
    decode_hello,
    encode_hello,
    proof,
)

HELLO = Hello(
    lane=Lane.ORDINARY,
    software="basenet 0.1.0",
    node_id="node-1.example",
    key=PublicKeyBytes(b"k" * 32),
    journal_id=JournalId(b"j" * 16),
    journal_count=7,
    boot_nonce=b"n" * 8,
    features=0,
    members_hash=b"m" * 32,
    nonce=b"o" * 16,
)


@given(
    st.sampled_from(Lane),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=64),
    st.from_regex(r"[a-z0-9.-]{1,253}", fullmatch=True),
    st.integers(0, 2**64 - 1),
    st.integers(0, 9),
    st.integers(9, 2**16 - 1),
)
def test_a_hello_comes_back(  # noqa: PLR0917  (one argument a field)
    lane: Lane, software: str, node_id: str, count: int, low: int, high: int
) -> None:
    """Every field, and never more bytes than a peer reads."""
    hello = replace(
        HELLO,
        lane=lane,
        software=software,
        node_id=node_id,
        journal_count=count,
        protocol_min=low,
        protocol_max=high,
    )
    encoded = encode_hello(hello)
    assert decode_hello(encoded) == hello
    assert len(encoded) <= HELLO_BYTES_MAX


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, b"HTTP", "its magic is wrong"),
        (4, b"\0\2\0\1", "its protocols 2..1 are no range"),
        (8, b"\7", "lane 7 is unknown"),
        (10, b"\n", "has characters that none has"),
        (24, b"N", "has characters that none has"),
        (23, b"\0", "bytes too many"),
    ],
)
def test_a_hello_that_breaks_a_rule_is_refused(offset: int, value: bytes, problem: str) -> None:
    """The error says which."""
    encoded = bytearray(encode_hello(HELLO))
    encoded[offset : offset + len(value)] = value
    with pytest.raises(PeerError, match=problem):
        decode_hello(bytes(encoded))


def test_damage_is_refused_or_is_another_hello(
    mutations: Callable[[bytes], Iterator[bytes]],
) -> None:
    """One value, one encoding; that it changed, the proof tells."""
    for damaged in mutations(encode_hello(HELLO)):
        try:
            hello = decode_hello(damaged)
        except PeerError:
            continue
        assert hello != HELLO
        assert encode_hello(hello) == damaged


def test_the_protocol_is_the_smaller_maximum_of_both() -> None:
    """Below either minimum it is refused, and the older one is named."""
    newer = replace(HELLO, node_id="new", protocol_min=2, protocol_max=4)
    older = replace(HELLO, node_id="old", protocol_min=1, protocol_max=3)
    assert choose_protocol(newer, older) == choose_protocol(older, newer) == 3
    oldest = replace(older, protocol_max=1)
    for mine, theirs in ((newer, oldest), (oldest, newer)):
        with pytest.raises(PeerError, match="upgrade old"):
            choose_protocol(mine, theirs)


def test_the_proof_names_both_certificates_and_the_peers_nonce() -> None:
    """So it is of this connection and no other (Q20)."""
    facts: list[Any] = [b"hello", b"k" * 32, b"own", b"peer", b"n" * 16]
    signed = proof(*facts)
    assert signed == b"".join(
        (
            b"basenet/hello/1\0",
            b"k" * 32,
            sha256(b"own").digest(),
            sha256(b"peer").digest(),
            b"n" * 16,
            b"hello",
        )
    )
    for place in range(len(facts)):
        other = [*facts]
        other[place] = other[place][:-1] + b"!"
        assert proof(*other) != signed


def test_nonces_of_another_length_are_never_sent() -> None:
    """Nobody could read what follows them."""
    with pytest.raises(AssertionError):
        encode_hello(replace(HELLO, nonce=b"short"))
    with pytest.raises(AssertionError):
        encode_hello(replace(HELLO, boot_nonce=b"short"))
