"""How many voters make a frame final."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.engine.quorum import finalized_seq, quorum_size
from basenet.units import PublicKeyBytes, Seq

VOTERS_MAX = 31


def held(*seqs: int) -> dict[PublicKeyBytes, Seq]:
    return {PublicKeyBytes(bytes([number]) * 32): Seq(seq) for number, seq in enumerate(seqs)}


@pytest.mark.parametrize(
    ("voters", "size"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4), (31, 16)]
)
def test_a_quorum_is_a_majority_and_both_of_two(voters: int, size: int) -> None:
    """The table of DESIGN 8."""
    assert quorum_size(voters) == size


@given(st.integers(1, VOTERS_MAX))
def test_any_two_quorums_share_a_voter(voters: int) -> None:
    """And no smaller number has that property."""
    size = quorum_size(voters)
    assert 2 * size > voters
    assert 2 * (size - 1) <= voters


def test_no_voters_are_no_quorum() -> None:
    """An empty map is a mistake of the caller and no shard without opinion."""
    with pytest.raises(AssertionError, match="no quorum"):
        quorum_size(0)
    with pytest.raises(AssertionError, match="no quorum"):
        finalized_seq({})


@pytest.mark.parametrize(
    ("seqs", "final"),
    [((7,), 7), ((7, 0), 0), ((7, 5), 5), ((9, 5, 0), 5), ((9, 0, 0), 0), ((9, 8, 7, 0), 7)],
)
def test_final_is_what_a_quorum_holds(seqs: tuple[int, ...], final: int) -> None:
    """A voter that holds nothing counts among the voters."""
    assert finalized_seq(held(*seqs)) == final


@given(st.lists(st.integers(0, 50), min_size=1, max_size=VOTERS_MAX))
def test_final_is_the_highest_seq_that_enough_voters_hold(seqs: list[int]) -> None:
    """Counted the slow way."""
    enough = [
        seq
        for seq in range(max(seqs) + 1)
        if sum(mine >= seq for mine in seqs) >= quorum_size(len(seqs))
    ]
    assert finalized_seq(held(*seqs)) == max(enough)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=VOTERS_MAX),
    st.integers(0, VOTERS_MAX),
    st.integers(0, 50),
)
def test_more_stored_never_makes_less_final(seqs: list[int], who: int, more: int) -> None:
    """Monotonic in every voter."""
    later = list(seqs)
    later[who % len(seqs)] += more
    assert finalized_seq(held(*later)) >= finalized_seq(held(*seqs))
