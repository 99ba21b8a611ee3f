import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.control.cookie import format_cookie, parse_cookie
from basenet.errors import UsageError


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1))
def test_a_cookie_comes_back(lineage: bytes, seq: int) -> None:
    """The first 4 bytes of the lineage, and the seq."""
    assert parse_cookie(format_cookie(lineage.hex(), seq)) == (lineage.hex()[:8], seq)


def test_without_a_lineage_there_is_no_cookie() -> None:
    """What has no history has no place in it."""
    assert format_cookie("", 0) == ""


@pytest.mark.parametrize(
    "text", ["", "-1", "00112233", "00112233-", "00112233--1", "00112233-1 ", "00112233-1\n"]
)
def test_what_is_no_cookie_is_refused(text: str) -> None:
    """Nothing is guessed of it."""
    with pytest.raises(UsageError, match="no cookie"):
        parse_cookie(text)
