"""Ballots and births as bytes: what comes back is what was kept, or nothing does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.engine.ballot import Ballot, begin_epoch
from basenet.engine.birth_record import BirthRecord, FileFate, KnownLineage, Promise
from basenet.errors import CorruptionError
from basenet.journal.ballots import decode_ballot, encode_ballot
from basenet.journal.births import decode_birth, encode_birth
from basenet.units import Epoch, FrameHash, Seq
from basenet.wire.birth import Withdraw
from basenet.wire.certificate import Certificate
from basenet.wire.message import Justification, Mark, NewView, Refuse
from basenet.wire.payload import ConfigPayload, FaultModel, Voter, VoterRole

KEYS = st.binary(min_size=32, max_size=32)
SIXTEEN = st.binary(min_size=16, max_size=16).filter(any)
SIGNATURES = st.binary(min_size=64, max_size=64)
NUMBERS = st.integers(0, 2**64 - 1)
MARKS = st.builds(Mark, st.integers(-1, 2**63), NUMBERS, KEYS)


@st.composite
def certificates(draw: st.DrawFn) -> Certificate:
    keys = sorted(draw(st.sets(KEYS, min_size=1, max_size=5)))
    return Certificate(
        phase=draw(st.integers(0, 2)),
        epoch=draw(NUMBERS),  # type: ignore[arg-type]
        view=draw(NUMBERS),  # type: ignore[arg-type]
        height=draw(NUMBERS),  # type: ignore[arg-type]
        hash=draw(KEYS),  # type: ignore[arg-type]
        votes=tuple((key, draw(SIGNATURES)) for key in keys),  # type: ignore[misc]
    )


@st.composite
def configs(draw: st.DrawFn) -> ConfigPayload:
    names = draw(
        st.sets(st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True), min_size=1, max_size=5)
    )
    voters = tuple(
        Voter(
            node_id=name,
            key=bytes([index]) * 32,  # type: ignore[arg-type]
            journal_id=bytes([index]) * 16,  # type: ignore[arg-type]
            role=draw(st.sampled_from(VoterRole)),
        )
        for index, name in enumerate(sorted(names))
    )
    models = list(FaultModel) if len(voters) >= 4 else [FaultModel.CRASH]
    lineage = draw(SIXTEEN)
    parent = draw(st.none() | st.tuples(SIXTEEN, st.integers(1, 2**64 - 1), KEYS.filter(any)))
    return ConfigPayload(
        lineage=lineage,  # type: ignore[arg-type]
        parent=None if parent is None or parent[0] == lineage else parent,  # type: ignore[arg-type]
        voters=voters,
        page_size=draw(st.sampled_from([0, 512, 4096, 65536])),
        members_hash=draw(KEYS),
        fault_model=draw(st.sampled_from(models)),
        is_forced=draw(st.booleans()),
    )


REFUSALS = st.builds(
    Refuse, epoch=NUMBERS, sender=KEYS, height=NUMBERS, hash=KEYS, signature=SIGNATURES
)
JUSTIFICATIONS = st.builds(
    Justification,
    new_views=st.lists(
        st.builds(
            NewView,
            epoch=NUMBERS,
            view=NUMBERS,
            sender=KEYS,
            high=MARKS,
            proof=st.none() | certificates(),
            signature=SIGNATURES,
        ),
        max_size=3,
    ).map(tuple),
    refusals=st.lists(REFUSALS, max_size=2).map(tuple),
)
BALLOTS = st.builds(
    Ballot,
    config=configs(),
    epoch=NUMBERS,
    genesis=MARKS,
    view=NUMBERS,
    voted=st.none() | MARKS,
    vstart=st.none() | NUMBERS,
    anchor=st.none() | MARKS,
    justification=st.none() | JUSTIFICATIONS,
    prepared=st.none() | certificates(),
    final=MARKS,
    certificate=st.none() | certificates(),
    refused=st.lists(REFUSALS, max_size=3).map(tuple),
)
GENESES = st.binary(max_size=50)
BIRTHS = st.builds(
    BirthRecord,
    is_decided=st.booleans(),
    promise=st.none() | st.builds(Promise, author=KEYS, journal_id=SIXTEEN, genesis=GENESES),
    withdrawn=st.lists(
        st.builds(Withdraw, lineage=SIXTEEN, frame_hash=KEYS, signature=SIGNATURES), max_size=3
    ).map(tuple),
    known=st.none()
    | st.builds(
        KnownLineage,
        genesis=GENESES,
        certificate=st.none() | certificates(),
        file=st.sampled_from(FileFate),
        is_settled=st.booleans(),
    ),
    left=st.lists(SIXTEEN, max_size=3).map(tuple),
)


@given(BALLOTS)
def test_a_ballot_comes_back(ballot: Ballot) -> None:
    """Field by field, with the types that the engine compares by."""
    encoded = encode_ballot(ballot)
    assert decode_ballot(encoded) == ballot
    assert encode_ballot(decode_ballot(encoded)) == encoded


@given(BIRTHS)
def test_a_birth_comes_back(birth: BirthRecord) -> None:
    """Field by field; the fate of the file as what it is."""
    found = decode_birth(encode_birth(birth))
    assert found == birth
    assert found.known is None or isinstance(found.known.file, FileFate)


def test_a_name_that_is_no_text_is_damage() -> None:
    """A message's tag is text; msgspec tells of one that is not by an error of its own."""
    config = ConfigPayload(
        lineage=bytes([2]) * 16,  # type: ignore[arg-type]
        parent=None,
        voters=(Voter(node_id="a", key=bytes([1]) * 32, journal_id=bytes([1]) * 16),),  # type: ignore[arg-type]
        page_size=4096,
        members_hash=bytes(32),
    )
    refuse = Refuse(epoch=1, sender=bytes(32), height=1, hash=bytes(32), signature=bytes(64))  # type: ignore[arg-type]
    genesis = Mark(-1, Seq(1), FrameHash(bytes(32)))
    encoded = encode_ballot(replace(begin_epoch(config, Epoch(1), genesis), refused=(refuse,)))
    assert b"Refuse" in encoded
    with pytest.raises(CorruptionError):
        decode_ballot(encoded.replace(b"Refuse", b"Refus\xc4"))


@given(BALLOTS, st.data())
def test_a_changed_ballot_is_another_one_or_none(ballot: Ballot, data: st.DataObject) -> None:
    """Two byte strings are never the same ballot; what does not decode is called damaged."""
    encoded = encode_ballot(ballot)
    place = data.draw(st.integers(0, len(encoded) - 1))
    change = data.draw(st.sampled_from(["bit", "cut", "more", "gap"]))
    changed = {
        "bit": encoded[:place]
        + bytes([encoded[place] ^ 1 << data.draw(st.integers(0, 7))])
        + encoded[place + 1 :],
        "cut": encoded[:place],
        "more": encoded + b"\x00",
        "gap": encoded[:place] + encoded[place + 1 :],
    }[change]
    try:
        found = decode_ballot(changed)
    except CorruptionError:
        return
    assert changed == encoded or found != ballot


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        (lambda: encode_ballot(example()), decode_ballot),
        (lambda: encode_birth(BirthRecord()), decode_birth),
    ],
)
def test_another_form_of_the_same_is_refused(
    encode: Callable[[], bytes], decode: Callable[[bytes], Any]
) -> None:
    """An int may be spelled in two ways, a field may be added, the version be another."""
    encoded = encode()
    values = msgspec.msgpack.decode(encoded[1:])
    more = encoded[:1] + msgspec.msgpack.encode([*values, 1])
    # The same array with a longer header.
    longer = encoded[:1] + b"\xdc\x00" + bytes([len(values)]) + encoded[2:]
    for other in (more, longer, b"\x02" + encoded[1:], b"", encoded[:1]):
        with pytest.raises(CorruptionError):
            decode(other)
    assert msgspec.msgpack.decode(longer[1:]) == values


def example() -> Ballot:
    mark = Mark(-1, 1, bytes(32))  # type: ignore[arg-type]
    voter = Voter(node_id="a", key=bytes(32), journal_id=bytes(16))  # type: ignore[arg-type]
    config = ConfigPayload(
        lineage=b"l" * 16,  # type: ignore[arg-type]
        parent=None,
        voters=(voter,),
        page_size=0,
        members_hash=bytes(32),
    )
    values: dict[str, Any] = dict.fromkeys(
        ("voted", "vstart", "anchor", "justification", "prepared", "certificate")
    )
    return Ballot(**values, config=config, epoch=1, genesis=mark, view=0, final=mark, refused=())  # type: ignore[arg-type]
