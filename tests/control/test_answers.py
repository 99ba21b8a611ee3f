from typing import Any

import msgspec
import pytest

from basenet.control import answers
from basenet.control.answers import encode_long, get_status
from basenet.control.surface import NotCaughtUp
from basenet.errors import (
    BasenetError,
    ConflictError,
    FrameCorrupt,
    NotFoundError,
    PeerError,
    SegmentUnsigned,
    UnavailableError,
    UsageError,
)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (UsageError, 400),
        (SegmentUnsigned, 400),
        (NotFoundError, 404),
        (ConflictError, 409),
        (FrameCorrupt, 500),
        (BasenetError, 500),
        (PeerError, 502),
        (UnavailableError, 503),
        (NotCaughtUp, 503),
    ],
)
def test_the_status_follows_from_the_class(kind: type[BasenetError], status: int) -> None:
    """Whatever the sentence says; a subclass has its ancestor's."""
    assert get_status(kind("404 conflict not found")) == status


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("kind", [list, dict])
def test_a_long_document_is_that_of_its_parts(
    count: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else is in it, and wherever the pieces end."""
    monkeypatch.setattr(answers, "_SHARDS_A_PIECE", 3)
    fact: dict[str, Any] = {
        "roles": {"shards": "validator", '"shards":[]': "witness"},
        "note": '"shards":{}',
        "members": [],
        "shards": kind(),
        "ready": True,
    }
    names = [f"s{number}" for number in range(count)]
    if kind is list:
        filled: Any = [{"shard": name} for name in names]
        shards = [msgspec.json.encode(each) for each in filled]
    else:
        filled = {name: {"seq": 1} for name in names}
        shards = [msgspec.json.encode(name) + b':{"seq":1}' for name in names]
    pieces = encode_long(fact, shards)
    assert b"".join(pieces) == msgspec.json.encode({**fact, "shards": filled}) + b"\n"
    assert len(pieces) == 2 + -(-count // 3)
