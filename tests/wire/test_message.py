"""What nodes say to each other, as msgspec encodes it: nothing unknown, nothing out of bounds."""

import itertools
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest

from basenet.wire import message as messages
from basenet.wire.certificate import Certificate
from basenet.wire.message import Heartbeat, HeartbeatAck, Justification, LedShard, Mark, Message

Anything = Message | Heartbeat | HeartbeatAck
DECODER = msgspec.msgpack.Decoder(Anything)
# Plain values, as they are decoded: a `NewType` is nothing at run time.
HASH: Any = b"h" * 32
KEY: Any = b"k" * 32
SIGNATURE: Any = b"s" * 64
LINEAGE: Any = b"l" * 16
SEVEN: Any = 7
LED: Any = (LINEAGE, 1, 0)
VOTED: dict[str, Any] = {"phase": 2, "epoch": 2, "view": 1, "height": 7, "hash": HASH}
CERTIFICATE = Certificate(**VOTED, votes=((KEY, SIGNATURE),))
FIELDS: dict[str, Any] = {
    "epoch": 2,
    "view": 3,
    "target": 4,
    "sender": KEY,
    "high": Mark(-1, SEVEN, HASH),
    "proof": CERTIFICATE,
    "signature": SIGNATURE,
    "phase": 2,
    "height": 7,
    "hash": HASH,
    "prev_height": 6,
    "prev_hash": HASH,
    "end_height": 8,
    "end_hash": HASH,
    "anchor": Mark(1, SEVEN, HASH),
    "prepared": None,
    "final": CERTIFICATE,
    "certificate": CERTIFICATE,
    "above_height": 5,
    "above_hash": HASH,
    "nonce": b"n" * 16,
    "boot_nonce": b"n" * 8,
    "number": 1,
    "list_version": 2,
    "list_hash": HASH,
    "base_version": 0,
    "held_version": 2,
    "led": (LedShard(*LED),),
    "unled": (LINEAGE,),
    "is_granting": True,
    "exceptions": (LINEAGE,),
}


def make(kind: Any, **change: Any) -> Any:
    values = {name: FIELDS[name] for name in kind.__struct_fields__ if name != "justification"}
    if "justification" in kind.__struct_fields__:
        values["justification"] = Justification(
            new_views=(make(messages.NewView),), refusals=(make(messages.Refuse),)
        )
    return kind(**values | change)


KINDS = (*get_args(Message), Heartbeat, HeartbeatAck)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@kinds
def test_a_message_comes_back(kind: Any) -> None:
    """As the type that it was, equal and hashable."""
    said = make(kind)
    found = DECODER.decode(msgspec.msgpack.encode(said))
    assert found == said
    assert type(found) is kind
    assert hash(found) == hash(said)


@kinds
def test_what_is_optional_may_be_missing(kind: Any) -> None:
    """A proof at the genesis, a justification in view 0."""
    for name in ("proof", "justification", "prepared", "final"):
        if name in kind.__struct_fields__:
            said = make(kind, **{name: None})
            assert DECODER.decode(msgspec.msgpack.encode(said)) == said


@kinds
def test_a_field_more_or_less_is_refused(kind: Any) -> None:
    """One value, one form: nothing that a later version might mean is dropped in silence (Q20)."""
    items = msgspec.msgpack.decode(msgspec.msgpack.encode(make(kind)))
    for wrong in ([*items, 0], items[:-1], ["Unheard", *items[1:]], items[1:]):
        with pytest.raises(msgspec.ValidationError):
            DECODER.decode(msgspec.msgpack.encode(wrong))


@kinds
def test_trailing_bytes_are_refused(kind: Any) -> None:
    """And missing ones, wherever the message is cut."""
    encoded = msgspec.msgpack.encode(make(kind))
    with pytest.raises(msgspec.DecodeError):
        DECODER.decode(encoded + b"\0")
    for length in range(len(encoded)):
        with pytest.raises(msgspec.DecodeError):
            DECODER.decode(encoded[:length])


def wrong_values(value: Any) -> Iterator[Any]:
    """Yield what must not stand in the place of ``value``."""
    if isinstance(value, bool):
        yield from (1, None)
    elif isinstance(value, int):
        yield from (-2, 2.5, "1", None)
    elif isinstance(value, bytes):
        yield from (value[:-1], value + b"x", 7, None)
    elif isinstance(value, tuple | list):
        for place, item in enumerate(value):
            for wrong in wrong_values(item):
                yield [*value[:place], wrong, *value[place + 1 :]]


@kinds
def test_every_field_has_its_bounds(kind: Any) -> None:
    """Numbers are not negative; keys, hashes, nonces and signatures have their length."""
    items = msgspec.msgpack.decode(msgspec.msgpack.encode(make(kind)))
    for place, value in itertools.islice(enumerate(items), 1, None):
        for wrong in wrong_values(value):
            changed = [*items[:place], wrong, *items[place + 1 :]]
            with pytest.raises(msgspec.ValidationError):
                DECODER.decode(msgspec.msgpack.encode(changed))


@pytest.mark.parametrize(
    ("kind", "field", "item", "limit"),
    [
        (Heartbeat, "led", LedShard(*LED), messages.LED_SHARDS_MAX),
        (Heartbeat, "unled", LINEAGE, messages.LED_SHARDS_MAX),
        (HeartbeatAck, "exceptions", LINEAGE, messages.EXCEPTIONS_MAX),
    ],
)
def test_lists_have_an_end(kind: Any, field: str, item: Any, limit: int) -> None:
    """At the bound they are read, beyond it refused."""
    DECODER.decode(msgspec.msgpack.encode(make(kind, **{field: (item,) * limit})))
    with pytest.raises(msgspec.ValidationError, match="length"):
        DECODER.decode(msgspec.msgpack.encode(make(kind, **{field: (item,) * (limit + 1)})))


@pytest.mark.parametrize(
    ("part", "limit"), [("new_views", 31), ("refusals", messages.REFUSALS_MAX)]
)
def test_a_justification_has_no_more_than_the_voters_can_give(part: str, limit: int) -> None:
    """31 voters, each with one NewView and at most 64 refusals."""
    item = make(messages.NewView if part == "new_views" else messages.Refuse)
    other: dict[str, Any] = {"new_views": (), "refusals": ()}
    for count, is_good in ((limit, True), (limit + 1, False)):
        proof = Justification(**other | {part: (item,) * count})
        encoded = msgspec.msgpack.encode(make(messages.Propose, justification=proof))
        if is_good:
            DECODER.decode(encoded)
        else:
            with pytest.raises(msgspec.ValidationError, match="length"):
                DECODER.decode(encoded)
