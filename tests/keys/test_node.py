"""Names of nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.errors import UsageError
from basenet.keys.node import node_id_of_hostname, parse_node_id


@pytest.mark.parametrize("text", ["a", "db-0", "db-0.shop.example", "10.0.0.1", "a" * 253])
def test_a_node_id_is_a_dns_name(text: str) -> None:
    assert parse_node_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "A", "a_b", "-a", "a-", ".a", "a.", "a..b", "..", "a/b", "a b", "a\n", "a" * 254]
)
def test_what_is_no_node_id_is_refused(text: str) -> None:
    """Among them whatever would lead out of a directory."""
    with pytest.raises(UsageError, match="DNS name"):
        parse_node_id(text)


@given(st.text())
def test_every_machine_has_a_node_id(hostname: str) -> None:
    """Whatever it is called."""
    assert parse_node_id(node_id_of_hostname(hostname))


def test_a_good_hostname_is_the_node_id() -> None:
    assert node_id_of_hostname("db-0.shop") == "db-0.shop"
    assert node_id_of_hostname("My_Mac.local") == "my-mac.local"
