"""How many voters decide, and why that is enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.wire.payload import BYZANTINE_VOTERS_MIN, VOTERS_MAX, FaultModel
from basenet.wire.quorum import fault_limit, quorum_size

CRASH, BYZANTINE = FaultModel.CRASH, FaultModel.BYZANTINE


@pytest.mark.parametrize(
    ("voters", "size", "faults"),
    [(1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1), (5, 3, 2), (7, 4, 3), (31, 16, 15)],
)
def test_a_crash_quorum_is_a_majority_and_both_of_two(voters: int, size: int, faults: int) -> None:
    """Also when the model is not said."""
    assert quorum_size(voters) == quorum_size(voters, CRASH) == size
    assert fault_limit(voters, CRASH) == faults


@pytest.mark.parametrize(
    ("voters", "size", "faults"), [(4, 3, 1), (5, 4, 1), (6, 4, 1), (7, 5, 2), (10, 7, 3)]
)
def test_a_byzantine_quorum_leaves_room_for_liars(voters: int, size: int, faults: int) -> None:
    """With 3f + 1 voters it is 2f + 1."""
    assert quorum_size(voters, BYZANTINE) == size
    assert fault_limit(voters, BYZANTINE) == faults


@given(st.integers(1, VOTERS_MAX))
def test_two_crash_quorums_share_a_voter_and_one_can_be_had(voters: int) -> None:
    """And no smaller number has the first property."""
    size = quorum_size(voters, CRASH)
    assert 2 * size > voters >= size + fault_limit(voters, CRASH)
    assert 2 * (size - 1) <= voters


@given(st.integers(BYZANTINE_VOTERS_MIN, VOTERS_MAX))
def test_two_byzantine_quorums_share_an_honest_voter_and_one_can_be_had(voters: int) -> None:
    """Also while f voters lie or are silent."""
    size, faults = quorum_size(voters, BYZANTINE), fault_limit(voters, BYZANTINE)
    assert 2 * size - voters > faults
    assert voters - faults >= size


def test_no_voters_are_no_quorum() -> None:
    """An empty list is a mistake of the caller and no shard without opinion."""
    for model in FaultModel:
        with pytest.raises(AssertionError, match="no quorum"):
            quorum_size(0, model)
