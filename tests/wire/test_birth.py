"""What nodes say while a shard has no lineage, and to a journal that came from a backup."""

from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest

from basenet.wire import birth
from basenet.wire.birth import BirthMessage, FileFacts, HeldPromise, MemberRole, Standing
from basenet.wire.certificate import Certificate
from basenet.wire.rollback import RolledBack

DECODER = msgspec.msgpack.Decoder(BirthMessage | RolledBack)
# Plain values, as they are decoded: a `NewType` is nothing at run time.
HASH: Any = b"h" * 32
KEY: Any = b"k" * 32
JOURNAL: Any = b"j" * 16
LINEAGE: Any = b"l" * 16
PLACE: dict[str, Any] = {"phase": 0, "epoch": 1, "view": 0, "height": 1, "hash": HASH}
STANDING = Standing(
    members_hash=HASH,
    role=MemberRole.WITNESS,
    file=FileFacts(state_root=HASH, page_size=4096, db_pages=7, has_rows=True),
    writer="node-1.example",
    is_decided=False,
    promised=HeldPromise(
        author=KEY, journal_id=JOURNAL, lineage=LINEAGE, frame_hash=HASH, voters=(KEY,)
    ),
)
BARE = Standing(
    members_hash=HASH,
    role=MemberRole.ARCHIVE,
    file=None,
    writer=None,
    is_decided=True,
    promised=None,
)
FIELDS: dict[str, Any] = {
    "standing": STANDING,
    "genesis": b"an encoded frame",
    "lineage": LINEAGE,
    "frame_hash": HASH,
    "signature": b"s" * 64,
    "certificate": Certificate(**PLACE, votes=((KEY, b"s" * 64),)),
    "is_asking": True,
    "journal_id": JOURNAL,
    "count": 3,
}
kinds = pytest.mark.parametrize(
    "kind", [*get_args(BirthMessage), RolledBack], ids=lambda kind: kind.__name__
)


def make(kind: Any, **change: Any) -> Any:
    return kind(**{name: FIELDS[name] for name in kind.__struct_fields__} | change)


@kinds
def test_a_message_comes_back(kind: Any) -> None:
    """Also with all that is optional left out."""
    said = [make(kind)]
    if "standing" in kind.__struct_fields__:
        said.append(make(kind, standing=BARE))
    if "certificate" in kind.__struct_fields__:
        said.append(make(kind, certificate=None))
    for message in said:
        assert DECODER.decode(msgspec.msgpack.encode(message)) == message


@kinds
def test_a_field_more_or_another_kind_is_refused(kind: Any) -> None:
    """And bytes that follow."""
    encoded = msgspec.msgpack.encode(make(kind))
    items = msgspec.msgpack.decode(encoded)
    for wrong in ([*items, 0], ["Unheard", *items[1:]], items[1:]):
        with pytest.raises(msgspec.ValidationError):
            DECODER.decode(msgspec.msgpack.encode(wrong))
    with pytest.raises(msgspec.DecodeError):
        DECODER.decode(encoded + b"\0")


def wrong_values(value: Any) -> Iterator[Any]:
    """Yield what must not stand in the place of ``value``."""
    if isinstance(value, bool):
        yield 1
    elif isinstance(value, int):
        yield from (-1, "1")
    elif isinstance(value, bytes) and len(value) in {16, 32, 64} and value != FIELDS["genesis"]:
        yield from (value[:-1], value + b"x", 7)
    elif isinstance(value, str):
        yield from ("Node", "node\n", "", "n" * 254)
    elif isinstance(value, tuple | list):
        for place, item in enumerate(value):
            for wrong in wrong_values(item):
                yield [*value[:place], wrong, *value[place + 1 :]]


@kinds
def test_every_field_has_its_bounds(kind: Any) -> None:
    """Lengths, ranges, and names as CONFIG has them."""
    items = msgspec.msgpack.decode(msgspec.msgpack.encode(make(kind)))
    for place, value in enumerate(items[1:], start=1):
        for wrong in wrong_values(value):
            changed = [*items[:place], wrong, *items[place + 1 :]]
            with pytest.raises(msgspec.ValidationError):
                DECODER.decode(msgspec.msgpack.encode(changed))


def test_a_genesis_is_not_longer_than_one_can_be() -> None:
    """At the bound it is read, beyond it refused."""
    for length, is_good in ((birth.GENESIS_BYTES_MAX, True), (birth.GENESIS_BYTES_MAX + 1, False)):
        encoded = msgspec.msgpack.encode(make(birth.LineageKnown, genesis=bytes(length)))
        if is_good:
            DECODER.decode(encoded)
        else:
            with pytest.raises(msgspec.ValidationError, match="length"):
                DECODER.decode(encoded)
