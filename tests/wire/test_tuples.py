"""The signed tuples: their layout, and that no two of them are ever the same bytes."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.units import Lineage, PublicKeyBytes, ShardId
from basenet.wire.hello import proof
from basenet.wire.tuples import NO_VIEW_WIRE, Scope, acknowledgement

NUMBERS = st.integers(0, 3) | st.integers(0, 2**64 - 2)
MARK_VIEWS = st.just(-1) | NUMBERS
HASHES = st.sampled_from([bytes(32), b"\xff" * 32]) | st.binary(min_size=32, max_size=32)
NONCES = st.binary(min_size=16, max_size=16)
SCOPES = st.tuples(
    st.sampled_from([bytes(16), b"l" * 16]) | st.binary(min_size=16, max_size=16),
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,3}", fullmatch=True),
)
FIELDS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "vote": (NUMBERS, NUMBERS, st.integers(0, 2), NUMBERS, HASHES),
    "new_view": (NUMBERS, NUMBERS, MARK_VIEWS, NUMBERS, HASHES, HASHES),
    "propose": (
        *(NUMBERS, NUMBERS, NUMBERS, HASHES, NUMBERS, HASHES),
        *(MARK_VIEWS, NUMBERS, HASHES),
    ),
    "release": (NUMBERS, NUMBERS, NUMBERS),
    "wish": (NUMBERS, NUMBERS),
    "refuse": (NUMBERS, NUMBERS, HASHES),
    "genesis": (HASHES,),
    "withdraw": (HASHES,),
    "read_index": (NUMBERS, NUMBERS, NUMBERS, NONCES),
}
ACK_FIELDS = (
    *(HASHES, HASHES, st.binary(min_size=8, max_size=8)),
    *(NUMBERS, NUMBERS, HASHES, st.integers(0, 1), HASHES),
)
SAID = st.one_of(
    *(
        st.tuples(st.just(name), SCOPES, st.tuples(*fields))
        for name, fields in sorted(FIELDS.items())
    ),
    st.tuples(st.just("ack"), st.none(), st.tuples(*ACK_FIELDS)),
)
Said = tuple[str, tuple[bytes, str] | None, tuple[Any, ...]]


def encode(said: Said) -> bytes:
    name, scope, fields = said
    if scope is None:
        return acknowledgement(*fields)
    lineage, shard = scope
    method: Callable[..., bytes] = getattr(Scope(Lineage(lineage), ShardId(shard)), name)
    return method(*fields)


@given(SAID, SAID)
def test_two_tuples_are_equal_only_if_they_say_the_same(one: Said, other: Said) -> None:
    """Type, lineage, shard and every field: no signature can pass for another one's."""
    assert (encode(one) == encode(other)) == (one == other)


@given(SAID)
def test_no_tuple_is_the_beginning_of_another(said: Said) -> None:
    """The length follows from the type and the shard, so nothing can be appended."""
    name, scope, _ = said
    encoded = encode(said)
    domain, rest = encoded.split(b"\0", 1)
    assert domain == f"basenet/{name.replace('_', '')}/1".encode()
    sizes = {"vote": 57, "newview": 96, "propose": 144, "release": 24, "wish": 16, "refuse": 48}
    sizes |= {"genesis": 32, "withdraw": 32, "readindex": 40, "ack": 153}
    prefix = 0 if scope is None else 16 + 2 + len(scope[1])
    assert len(rest) == prefix + sizes[name.replace("_", "")]


def test_every_method_of_a_scope_is_told_apart_here() -> None:
    """A new tuple must enter the table above."""
    methods = {
        name for name, value in vars(Scope).items() if callable(value) and not name.startswith("_")
    }
    assert methods == FIELDS.keys()


def test_what_stands_beside_the_tuples_has_domains_of_its_own() -> None:
    """The proof of a connection, frames and their hashes: no domain is the beginning of another."""
    scope: Any = Scope(Lineage(b"l" * 16), ShardId("orders"))
    signed: list[bytes] = [
        scope.genesis(b"h" * 32),
        scope.withdraw(b"h" * 32),
        proof(b"", PublicKeyBytes(b"k" * 32), b"", b"", b"n" * 16),
        b"basenet/framesig/1\0",
        b"basenet/frame/2\0",
        b"basenet/genesis/2\0",
        *(f"basenet/{name}/1\0".encode() for name in ("vote", "newview", "propose", "wish")),
    ]
    domains = [one.split(b"\0")[0] + b"\0" for one in signed]
    assert len(set(domains)) == len(domains)


def test_no_view_is_the_highest_number() -> None:
    """View -1, of a mark by its genesis alone, is 2^64 - 1 on the wire."""
    scope = Scope(Lineage(b"l" * 16), ShardId("orders"))
    fields: Any = (1, 0, -1, 1, b"h" * 32, b"q" * 32)
    assert NO_VIEW_WIRE.to_bytes(8, "big") in scope.new_view(*fields)


def test_fields_of_another_length_are_never_padded() -> None:
    """`struct` would fill or cut them in silence."""
    with pytest.raises(AssertionError, match="lineage"):
        Scope(Lineage(b"short"), ShardId("orders"))
    scope: Any = Scope(Lineage(b"l" * 16), ShardId("orders"))
    with pytest.raises(AssertionError, match="nonce"):
        scope.read_index(1, 0, 1, b"short")
    for place, problem in ((0, "key"), (1, "key"), (2, "nonce"), (5, "hash"), (7, "hash")):
        fields: list[Any] = [b"f" * 32, b"t" * 32, b"n" * 8, 1, 1, b"h" * 32, 1, b"e" * 32]
        fields[place] = b"short"
        with pytest.raises(AssertionError, match=problem):
            acknowledgement(*fields)
