"""Which addresses a node tells its peers."""

import pytest

from basenet.wire.reachable import ADDRESS_CHARACTERS_MAX, is_tellable


@pytest.mark.parametrize(
    "http", ["n1.example:8080", "http://n1:8080", "https://[2001:db8::1]:443", ":8080", "10.0.0.1"]
)
def test_what_a_client_could_follow_is_told(http: str) -> None:
    """A host, with or without scheme and port, or a port alone."""
    assert is_tellable(http)


@pytest.mark.parametrize(
    "http",
    [
        "",
        "http://user@n1:8080",
        "n1:8080/path",
        "n1\r\nSet-Cookie: a",
        "[fe80::1%eth0]:8080",
        "n" * (ADDRESS_CHARACTERS_MAX + 1),
    ],
)
def test_what_would_not_be_read_is_not_told(http: str) -> None:
    """It goes into a header of an answer."""
    assert not is_tellable(http)
