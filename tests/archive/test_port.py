"""What all stores share: listings and the names of objects."""

import pytest

from basenet.archive.port import Entry, Listing, StoreRefused, check_name


async def test_a_listing_draws_pages_until_there_are_none() -> None:
    """Empty pages in between are no end."""
    pages = [[Entry(name="a", size=1)], [], [Entry(name="b", size=2), Entry(name="c", size=3)]]

    async def next_page() -> list[Entry] | None:
        return pages.pop(0) if pages else None

    assert [entry.name async for entry in Listing(next_page)] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a", "a/b.lbn", ".basenet-probe-1", "a b/ü", "..a", "a..b/c"])
def test_ordinary_names_are_usable(name: str) -> None:
    """Whatever its segments are, except none, itself or the one above."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "/", "a/", "/a", ".", "..", "a/../b", "a/./b", "a//b", "\0"])
def test_names_that_lead_elsewhere_are_not(name: str) -> None:
    """The error quotes the name."""
    with pytest.raises(StoreRefused) as caught:
        check_name(name)
    assert repr(name) in str(caught.value)
