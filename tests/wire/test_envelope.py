"""Envelopes: everything survives, nothing unknown is accepted."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.errors import PeerError
from basenet.wire.birth import BirthAsk
from basenet.wire.certificate import Certificate
from basenet.wire.envelope import (
    PACK_BYTES,
    AboutBirth,
    AboutShard,
    BetweenNodes,
    Envelope,
    FinalPack,
    FramePack,
    cut,
    decode_envelope,
    encode_envelope,
)
from basenet.wire.message import HeartbeatAck, Vote
from basenet.wire.rollback import Compared, RolledBack

HASH: Any = b"h" * 32
WHERE: dict[str, Any] = {"shard": "app", "lineage": b"l" * 16}
VOTE: Any = {"epoch": 1, "view": 0, "phase": 2, "height": 3, "hash": HASH}
CERTIFICATE = Certificate(**VOTE, votes=((b"k" * 32, b"s" * 64),))  # type: ignore[arg-type]
ENVELOPES: list[Envelope] = [
    AboutShard(**WHERE, body=Vote(**VOTE, signature=b"s" * 64)),
    FramePack(**WHERE, records=(b"one", b"two")),
    FinalPack(**WHERE, records=(b"one",), certificate=CERTIFICATE),
    FinalPack(**WHERE, records=(b"one",), certificate=None),
    BetweenNodes(body=RolledBack(journal_id=b"j" * 16, count=9)),  # type: ignore[arg-type]
    BetweenNodes(body=Compared(journal_id=b"j" * 16, count=9)),  # type: ignore[arg-type]
    BetweenNodes(
        body=HeartbeatAck(
            boot_nonce=b"n" * 8,
            number=1,
            held_version=2,
            list_hash=HASH,
            is_granting=True,
            exceptions=(),
            signature=b"s" * 64,
        )
    ),
]


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda each: type(each).__name__)
def test_every_kind_survives(envelope: Envelope) -> None:
    """What is encoded is decoded, kind and content."""
    assert decode_envelope(encode_envelope(envelope)) == envelope


def test_births_name_their_shard() -> None:
    """A birth is about a shard without a lineage."""
    (fields,) = (msgspec.structs.fields(AboutBirth),)
    assert [field.name for field in fields] == ["shard", "body"]
    assert "lineage" not in {field.name for field in msgspec.structs.fields(BirthAsk)}


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda each: type(each).__name__)
def test_trailing_bytes_and_every_cut_are_refused(envelope: Envelope) -> None:
    """Neither more nor less than one message."""
    data = encode_envelope(envelope)
    with pytest.raises(PeerError):
        decode_envelope(data + b"\0")
    for size in range(len(data)):
        with pytest.raises(PeerError):
            decode_envelope(data[:size])


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": "../etc"},
        {"shard": "app\n"},
        {"lineage": b"short"},
        {"records": ()},
        {"records": (b"x" * (8 * 1024 * 1024 + 1),)},
    ],
)
def test_values_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    """Shard ids become names of files; lengths are bounded by the type."""
    fields = {**WHERE, "records": (b"x",), **changes}
    with pytest.raises(PeerError, match="cannot be read"):
        decode_envelope(encode_envelope(FramePack(**fields)))


def test_a_field_too_many_is_refused() -> None:
    """An array with an unknown element at its end would otherwise pass in silence."""
    longer = msgspec.msgpack.encode(["FramePack", "app", b"l" * 16, [b"x"], "more"])
    with pytest.raises(PeerError, match="cannot be read"):
        decode_envelope(longer)


@given(st.binary(max_size=300))
def test_noise_is_refused_or_is_a_message(data: bytes) -> None:
    """Nothing but `PeerError` comes of bytes that a peer invents."""
    try:
        envelope = decode_envelope(data)
    except PeerError:
        return
    assert decode_envelope(encode_envelope(envelope)) == envelope


@given(st.lists(st.integers(0, 3 * PACK_BYTES // 2), max_size=8))
def test_packs_hold_everything_in_order_and_are_bounded(sizes: list[int]) -> None:
    """A record that is larger than a pack stands alone."""
    records = [bytes(size) for size in sizes]
    packs = list(cut(records))
    assert [record for pack in packs for record in pack] == records
    assert all(len(pack) == 1 or sum(map(len, pack)) <= PACK_BYTES for pack in packs)
    assert all(packs)


def test_a_pack_has_a_bounded_number_of_records() -> None:
    """Many tiny frames do not make one message that nobody may accept."""
    packs = list(cut([b""] * 10_000))
    assert [len(pack) for pack in packs] == [4096, 4096, 1808]
