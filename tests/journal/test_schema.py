"""Row ids: each shard has its own range, whatever the seqs are."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.journal import schema

NUMBERS = st.integers(1, schema.SHARD_NUMBER_MAX)
SEQS = st.integers(0, schema.SEQ_MAX)


@given(NUMBERS, SEQS)
def test_a_row_id_gives_its_seq_back(number: int, seq: int) -> None:
    """And fits SQLite's signed 64 bits."""
    row_id = schema.frame_id(number, seq)
    assert schema.seq_of(row_id) == seq
    assert 0 < row_id < 1 << 63


@given(NUMBERS, SEQS, NUMBERS, st.integers(-(1 << 65), 1 << 65), st.integers(-(1 << 65), 1 << 65))
def test_a_range_never_reaches_into_another_shard(
    number: int, seq: int, other: int, first: int, last: int
) -> None:
    """Also one whose ends no seq can be: a frame is in it if, and only if, it should be."""
    low, high = schema.frame_ids(number, first, last)
    assert (low <= schema.frame_id(number, seq) <= high) == (first <= seq <= last)
    if other != number:
        assert not low <= schema.frame_id(other, seq) <= high
    connection = sqlite3.connect(":memory:")
    connection.execute("SELECT ? BETWEEN ? AND ?", (1, low, high))  # both can be bound
    connection.close()


@given(NUMBERS, st.integers(0, (1 << 28) - 1), NUMBERS, st.integers(0, (1 << 28) - 1))
def test_leaf_hashes_of_two_shards_lie_apart(
    number: int, group: int, other: int, first: int
) -> None:
    """A database of 2^32 pages has 2^28 groups."""
    low, high = schema.leaf_ids(number, first)
    assert (low <= schema.leaf_id(number, group) <= high) == (first <= group)
    if other != number:
        assert not low <= schema.leaf_id(other, group) <= high


@pytest.mark.parametrize(
    ("number", "seq"),
    [(0, 1), (schema.SHARD_NUMBER_MAX + 1, 1), (1, schema.SEQ_MAX + 1), (1, -1)],
)
def test_what_does_not_fit_is_never_packed(number: int, seq: int) -> None:
    """It would name a frame of another shard."""
    with pytest.raises(AssertionError, match="fit a row id"):
        schema.frame_id(number, seq)
