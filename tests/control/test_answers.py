import pytest

from basenet.control.answers import get_status
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
