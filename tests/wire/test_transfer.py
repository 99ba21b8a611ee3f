"""Messages about a state: everything survives, nothing unknown or out of bounds is accepted."""

import itertools
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basenet.errors import PeerError
from basenet.transport.framing import MESSAGE_BYTES_MAX
from basenet.units import MIB, Lineage, ShardId
from basenet.wire.certificate import Certificate
from basenet.wire.envelope import AboutState, decode_envelope, encode_envelope
from basenet.wire.leafparts import PART_PAGES
from basenet.wire.payload import VOTERS_MAX
from basenet.wire.transfer import (
    ASKED_PAGES_MAX,
    CONFIGS_MAX,
    PAGES_BYTES_MAX,
    STATE_PAGES_MAX,
    ArchivedUpTo,
    Leaves,
    LeavesAsk,
    Pages,
    PagesAsk,
    StateAsk,
    StateOffer,
    StateRefused,
    TransferMessage,
    Why,
)

HASH: Any = b"h" * 32
KEY: Any = b"k" * 32
CERTIFIED: Any = {"phase": 2, "epoch": 1, "view": 0, "height": 3, "hash": HASH}
CERTIFICATE = Certificate(**CERTIFIED, votes=((KEY, b"s" * 64),))
OFFER: dict[str, Any] = {
    "number": 7,
    "head": b"head",
    "certificate": CERTIFICATE,
    "page_size": 4096,
    "db_pages": 4097,
    "parts": b"p" * 64,
    "configs": ((b"frame", CERTIFICATE), (b"frame", None)),
}
LEAVES: dict[str, Any] = {"number": 8, "seq": 3, "hash": HASH, "first_page": 4097}
MESSAGES: list[TransferMessage] = [
    StateAsk(number=6, above_seq=2, epoch=1),  # type: ignore[arg-type]
    StateOffer(**OFFER),
    LeavesAsk(**LEAVES),
    Leaves(**LEAVES, hashes=b"x" * 64),
    PagesAsk(number=9, pages=((1, HASH), (7, HASH))),
    Pages(number=9, pages=((1, bytes(512)),), missing=(7,)),
    StateRefused(number=9, why=Why.BUSY),
    ArchivedUpTo(number=0, seq=17),  # type: ignore[arg-type]
]
messages = pytest.mark.parametrize("message", MESSAGES, ids=lambda each: type(each).__name__)


def envelope(body: Any) -> AboutState:
    return AboutState(shard=ShardId("app"), lineage=Lineage(b"l" * 16), body=body)


def plain(message: TransferMessage) -> list[Any]:
    """Return the fields as msgpack has them, the tag first."""
    found: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    return found


def decode(fields: list[Any]) -> TransferMessage:
    """Return what a peer that sends these fields has said; raise `PeerError`."""
    data = msgspec.msgpack.encode(["AboutState", "app", b"l" * 16, fields])
    found = decode_envelope(data)
    assert isinstance(found, AboutState)
    return found.body


@messages
def test_every_message_survives(message: TransferMessage) -> None:
    """Kind and content, and the shard and lineage beside it."""
    sent = envelope(message)
    assert decode_envelope(encode_envelope(sent)) == sent
    assert decode(plain(message)) == message


def test_every_kind_is_tried() -> None:
    """The list above is the whole of it."""
    assert {type(each) for each in MESSAGES} == set(get_args(TransferMessage))


@messages
def test_a_field_more_or_less_is_refused(message: TransferMessage) -> None:
    """One value, one form (Q20)."""
    fields = plain(message)
    for wrong in ([*fields, 0], fields[:-1], ["Unheard", *fields[1:]], fields[1:]):
        with pytest.raises(PeerError):
            decode(wrong)


@messages
def test_trailing_bytes_and_every_cut_are_refused(message: TransferMessage) -> None:
    """Neither more nor less than one message."""
    data = encode_envelope(envelope(message))
    with pytest.raises(PeerError):
        decode_envelope(data + b"\0")
    for size in range(len(data)):
        with pytest.raises(PeerError):
            decode_envelope(data[:size])


def wrong_values(value: Any) -> Iterator[Any]:
    """Yield what must not stand in the place of ``value``."""
    if isinstance(value, int):
        yield from (-2, 2.5, "1", None, 2**64 - 1)
    elif isinstance(value, bytes):
        yield from (7, None, "text")
    elif isinstance(value, tuple | list):
        for place, item in enumerate(value):
            for wrong in wrong_values(item):
                yield [*value[:place], wrong, *value[place + 1 :]]


@messages
def test_every_field_has_its_bounds(message: TransferMessage) -> None:
    """Numbers are not negative, and nothing is of another type."""
    fields = plain(message)
    free = {"number", "above_seq", "epoch", "seq"}
    names = ("tag", *type(message).__struct_fields__)
    for place, value in itertools.islice(enumerate(fields), 1, None):
        for wrong in wrong_values(value):
            if names[place] in {"certificate", "configs"}:
                continue  # judged in test_certificate and below
            if names[place] in free and wrong == 2**64 - 1:
                continue  # any count is a count
            with pytest.raises(PeerError):
                decode([*fields[:place], wrong, *fields[place + 1 :]])


def test_a_name_that_is_no_text_is_refused() -> None:
    """The decoder's own error for it is no `msgspec.DecodeError`."""
    data = encode_envelope(envelope(MESSAGES[0]))
    for name in (b"AboutState", b"StateAsk", b"app"):
        with pytest.raises(PeerError, match="cannot be read"):
            decode_envelope(data.replace(name, b"\x80" * len(name)))


WRONG: list[tuple[type[Any], dict[str, Any]]] = [
    (StateOffer, {**OFFER, "page_size": 4095}),
    (StateOffer, {**OFFER, "page_size": 0}),
    (StateOffer, {**OFFER, "parts": b"p" * 32}),
    (StateOffer, {**OFFER, "parts": b"p" * 63}),
    (StateOffer, {**OFFER, "parts": b"p" * 96}),
    (StateOffer, {**OFFER, "db_pages": STATE_PAGES_MAX + 1}),
    (StateOffer, {**OFFER, "head": bytes(1025)}),
    (StateOffer, {**OFFER, "configs": ((bytes(16 * 1024 + 1), None),)}),
    (StateOffer, {**OFFER, "configs": ((b"frame", None),) * (CONFIGS_MAX + 1)}),
    (LeavesAsk, {**LEAVES, "first_page": 4096}),
    (LeavesAsk, {**LEAVES, "first_page": 0}),
    (LeavesAsk, {**LEAVES, "hash": bytes(31)}),
    (Leaves, {**LEAVES, "hashes": b""}),
    (Leaves, {**LEAVES, "hashes": bytes(33)}),
    (Leaves, {**LEAVES, "hashes": bytes((PART_PAGES + 1) * 32)}),
    (Leaves, {**LEAVES, "hashes": bytes(32), "first_page": 2}),
    (PagesAsk, {"number": 1, "pages": ()}),
    (PagesAsk, {"number": 1, "pages": ((1, HASH), (1, HASH))}),
    (PagesAsk, {"number": 1, "pages": ((0, HASH),)}),
    (PagesAsk, {"number": 1, "pages": ((1, bytes(31)),)}),
    (PagesAsk, {"number": 1, "pages": tuple((n, HASH) for n in range(1, 258))}),
    (Pages, {"number": 1, "pages": ((1, bytes(511)),), "missing": ()}),
    (Pages, {"number": 1, "pages": ((1, bytes(65537)),), "missing": ()}),
    (Pages, {"number": 1, "pages": ((1, bytes(512)), (1, bytes(512))), "missing": ()}),
    (Pages, {"number": 1, "pages": ((1, bytes(512)),), "missing": (1,)}),
    (Pages, {"number": 1, "pages": (), "missing": (2, 2)}),
    (Pages, {"number": 1, "pages": (), "missing": tuple(range(1, 258))}),
    (
        Pages,
        {"number": 1, "pages": tuple((n, bytes(65536)) for n in range(1, 66)), "missing": ()},
    ),
    (StateRefused, {"number": 1, "why": 0}),
    (StateRefused, {"number": 1, "why": 4}),
]


@pytest.mark.parametrize(("kind", "fields"), WRONG, ids=[kind.__name__ for kind, _ in WRONG])
def test_values_out_of_bounds_are_refused(kind: type[Any], fields: dict[str, Any]) -> None:
    """Sizes that contradict each other are no message, so nobody has to look for them later."""
    with pytest.raises(PeerError, match="cannot be read"):
        decode([kind.__name__, *fields.values()])


def test_the_largest_messages_fit_a_message() -> None:
    """What the types allow, the transport carries."""
    config = (bytes(16 * 1024), certificate(VOTERS_MAX))
    largest = StateOffer(
        number=2**63,
        head=bytes(1024),
        certificate=certificate(VOTERS_MAX),
        page_size=65536,
        db_pages=STATE_PAGES_MAX,
        parts=bytes(STATE_PAGES_MAX // PART_PAGES * 32),
        configs=(config,) * CONFIGS_MAX,
    )
    pages = Pages(
        number=2**63,
        pages=tuple((STATE_PAGES_MAX - n, bytes(PAGES_BYTES_MAX // 256)) for n in range(256)),
        missing=(),
    )
    assert len(encode_envelope(envelope(largest))) < MESSAGE_BYTES_MAX
    assert len(encode_envelope(envelope(pages))) < PAGES_BYTES_MAX + MIB


def certificate(votes: int) -> Certificate:
    made: Any = tuple((bytes([n]) * 32, b"s" * 64) for n in range(votes))
    return Certificate(**CERTIFIED, votes=made)


digests = st.binary(min_size=32, max_size=32)
pgnos = st.integers(1, STATE_PAGES_MAX)
numbers = st.integers(0, 2**64 - 1)
firsts = st.integers(0, STATE_PAGES_MAX // PART_PAGES - 1).map(lambda n: n * PART_PAGES + 1)


@st.composite
def offers(draw: st.DrawFn) -> StateOffer:
    db_pages = draw(st.integers(0, 5 * PART_PAGES))
    count = -(-db_pages // PART_PAGES)
    return StateOffer(
        number=draw(numbers),
        head=draw(st.binary(max_size=64)),
        certificate=draw(st.sampled_from([None, CERTIFICATE, certificate(3)])),
        page_size=draw(st.sampled_from([512, 4096, 65536])),
        db_pages=db_pages,
        parts=draw(st.binary(min_size=32 * count, max_size=32 * count)),
        configs=draw(
            st.lists(
                st.tuples(st.binary(max_size=40), st.sampled_from([None, CERTIFICATE])),
                max_size=4,
            ).map(tuple)
        ),
    )


@st.composite
def answers(draw: st.DrawFn) -> Pages:
    asked = draw(st.lists(pgnos, unique=True, max_size=8))
    split = draw(st.integers(0, len(asked)))
    size = draw(st.sampled_from([512, 1024]))
    pages = tuple((pgno, bytes([draw(st.integers(0, 255))]) * size) for pgno in asked[:split])
    return Pages(number=draw(numbers), pages=pages, missing=tuple(asked[split:]))


places = {"number": numbers, "seq": numbers, "hash": digests, "first_page": firsts}
anything = st.one_of(
    st.builds(StateAsk, number=numbers, above_seq=numbers, epoch=numbers),
    offers(),
    st.builds(LeavesAsk, **places),
    st.builds(Leaves, **places, hashes=st.integers(1, 9).map(lambda n: b"x" * 32 * n)),
    st.builds(
        PagesAsk,
        number=numbers,
        pages=st.dictionaries(pgnos, digests, min_size=1, max_size=ASKED_PAGES_MAX // 16).map(
            lambda wants: tuple(wants.items())
        ),
    ),
    answers(),
    st.builds(StateRefused, number=numbers, why=st.sampled_from(Why)),
)


@given(anything)
def test_whatever_can_be_said_survives(message: TransferMessage) -> None:
    """Encode, decode: the same."""
    sent = envelope(message)
    assert decode_envelope(encode_envelope(sent)) == sent


@settings(max_examples=300)
@given(message=anything, data=st.data())
def test_noise_is_refused_or_is_a_message(message: TransferMessage, data: st.DataObject) -> None:
    """Bytes changed at a few places give `PeerError` or a whole message, and nothing else."""
    noisy = bytearray(encode_envelope(envelope(message)))
    for _ in range(data.draw(st.integers(1, 4))):
        noisy[data.draw(st.integers(0, min(len(noisy), 400) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode_envelope(bytes(noisy))
    except PeerError:
        return
    assert decode_envelope(encode_envelope(found)) == found
