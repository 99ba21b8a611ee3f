"""How long a failure is left alone."""

import pytest

from basenet.daemon.cluster.pausing import pause_after
from basenet.errors import (
    BasenetError,
    ConflictError,
    CorruptionError,
    UnavailableError,
    UsageError,
)
from basenet.sqlite.checkpoint import DatabaseReplaced


@pytest.mark.parametrize(
    ("error", "pause_s"),
    [
        (DatabaseReplaced("x"), 0.5),
        (UsageError("x"), 15),
        (ConflictError("x"), 15),
        (CorruptionError("x"), 15),
        (UnavailableError("x"), 3),
    ],
)
def test_how_long_a_failure_is_left_alone(error: BasenetError, pause_s: float) -> None:
    """Somebody has to act, or it passes by itself; a file moved away is noticed at once."""
    assert pause_after(error, 3) == pause_s
