"""The CERT record."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.errors import SegmentCorrupt
from basenet.units import Epoch, FrameHash, PublicKeyBytes, Seq, View
from basenet.wire.certificate import Certificate, decode_certificate, encode_certificate

U64 = st.integers(0, (1 << 64) - 1)
KEYS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=31, unique=True)


def certificate_of(keys: list[bytes], *, phase: int = 1) -> Certificate:
    return Certificate(
        phase=phase,
        epoch=Epoch(1),
        view=View(2),
        height=Seq(3),
        hash=FrameHash(b"h" * 32),
        votes=tuple((PublicKeyBytes(key), key[:1] * 64) for key in keys),
    )


@given(KEYS, st.integers(0, 2), U64, U64, U64)
def test_a_certificate_comes_back(
    keys: list[bytes], phase: int, epoch: int, view: int, height: int
) -> None:
    """View 2^64-1 stands for none and is a number like any other here."""
    certificate = Certificate(
        phase=phase,
        epoch=Epoch(epoch),
        view=View(view),
        height=Seq(height),
        hash=FrameHash(b"h" * 32),
        votes=tuple((PublicKeyBytes(key), b"s" * 64) for key in sorted(keys)),
    )
    encoded = encode_certificate(certificate)
    assert len(encoded) == 60 + 96 * len(keys)
    assert decode_certificate(encoded) == certificate
    assert decode_certificate(memoryview(encoded)) == certificate


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, b"\2", "not a CERT"),
        (1, b"\3", "phase 3 is unknown"),
        (58, b"\0\0", "0 votes"),
        (58, b"\0\x20", "32 votes"),
        (58, b"\xff\xff", "65535 votes"),
        (58, b"\0\3", "expected"),
        (58, b"\0\1", "96 bytes too many"),
        (60, b"\2" * 32, "ascend strictly"),
        (60, b"\3" * 32, "ascend strictly"),
    ],
)
def test_a_certificate_that_breaks_a_rule_is_refused(
    offset: int, value: bytes, problem: str
) -> None:
    """Signers ascend strictly by key, so none is counted twice; never more than voters (Q21)."""
    encoded = bytearray(encode_certificate(certificate_of([b"\1" * 32, b"\2" * 32])))
    encoded[offset : offset + len(value)] = value
    with pytest.raises(SegmentCorrupt, match=problem):
        decode_certificate(bytes(encoded))


def test_unsorted_signers_are_never_written() -> None:
    """No reader would count them."""
    with pytest.raises(AssertionError):
        encode_certificate(certificate_of([b"\2" * 32, b"\1" * 32]))


def test_damage_to_a_certificate_is_refused_or_is_another_certificate(
    mutations: Callable[[bytes], Iterator[bytes]], decodes_or_refuses: Callable[..., Any]
) -> None:
    """An encoding is the only one of its value; that it changed, the object's signature tells."""
    for damaged in mutations(encode_certificate(certificate_of([b"\1" * 32, b"\3" * 32]))):
        certificate = decodes_or_refuses(decode_certificate, damaged)
        assert certificate is None or encode_certificate(certificate) == damaged


@given(st.binary(max_size=300))
def test_garbage_is_no_certificate(garbage: bytes) -> None:
    """Only `SegmentCorrupt`."""
    for data in (garbage, b"\3\1" + bytes(56) + b"\0\2" + garbage[:150]):
        with pytest.raises(SegmentCorrupt):
            decode_certificate(data)
