"""Durations, sizes, addresses, secrets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.config import values
from basenet.config.model import CapturePolicy
from basenet.config.values import Endpoint, Secret
from basenet.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1s", 1),
        (" 5m ", 300),
        ("24h", 86400),
        ("7d", 604800),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("0s", 0),
    ],
)
def test_a_duration_is_numbers_with_units(text: str, seconds: float) -> None:
    """Every unit, fractions and sums; blanks around it do not matter."""
    assert values.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "1 s", "-1s", "1w", "1s!", "1e3s", "\u0661s", "1s\n2"]
)
def test_what_is_not_a_duration_is_refused_with_an_example(text: str) -> None:
    """A number without its unit above all: nobody knows whether it is seconds."""
    with pytest.raises(UsageError, match="250ms") as caught:
        values.parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("64MiB", 64 * 1024**2),
        ("4 GiB", 4 * 1024**3),
        ("4GiB", 4 * 1024**3),
        ("4MB", 4_000_000),
        ("1.5kib", 1536),
        ("10B", 10),
        ("2TiB", 2 * 1024**4),
    ],
)
def test_a_size_is_bytes_or_a_number_with_its_unit(text: str, size: int) -> None:
    """Powers of 1024 and of 1000 are told apart by their letters."""
    assert values.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "64M", "4  GiB", "-1", "1,5MiB", "1_000", "64MiB/s"])
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    """64M above all, which means two things."""
    with pytest.raises(UsageError, match="64MiB"):
        values.parse_size(text)


def test_a_fraction_of_a_byte_is_refused() -> None:
    """Rounding would be a guess."""
    with pytest.raises(UsageError, match="whole number of bytes"):
        values.parse_size("0.3KiB")


@given(st.integers(min_value=0, max_value=2**62))
def test_plain_bytes_come_back_exactly(size: int) -> None:
    """No size goes through a float."""
    assert values.parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8090", "127.0.0.1", 8090),
        (":9999", "", 9999),
        ("[::1]:0", "::1", 0),
        ("db-0.example:65535", "db-0.example", 65535),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    """It comes back as the text that it was."""
    endpoint = values.parse_endpoint(text)
    assert endpoint == Endpoint(host=host, port=port)
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text", ["", "8090", "host", "host:", "::1:80", "[::1]", "a b:80", "a:65536", "a:-1", "[x]:1"]
)
def test_what_is_not_an_address_is_refused(text: str) -> None:
    """Not an IPv6 address without brackets, not a port beyond the last."""
    with pytest.raises(UsageError, match="port"):
        values.parse_endpoint(text)


@pytest.mark.parametrize("text", [":1", "a:0", "a:1,a:1", "a:1,b"])
def test_a_peer_must_be_dialled_and_be_listed_once(text: str) -> None:
    """An address that one listens on is not one that can be called."""
    with pytest.raises(UsageError):
        values.parse_peers(text)


@pytest.mark.parametrize("text", ["on", "YES", "true", "1"])
def test_a_switch_is_on(text: str) -> None:
    assert values.parse_switch(text) is True


@pytest.mark.parametrize("text", ["off", "No", "false", "0"])
def test_a_switch_is_off(text: str) -> None:
    assert values.parse_switch(text) is False


@pytest.mark.parametrize("text", ["", "2", "enabled"])
def test_a_switch_is_nothing_else(text: str) -> None:
    with pytest.raises(UsageError, match="on or off"):
        values.parse_switch(text)


def test_a_choice_names_its_words() -> None:
    """Case does not matter; another word is answered with those that fit."""
    parse = values.choice(CapturePolicy)
    assert parse(" Strict ") is CapturePolicy.STRICT
    with pytest.raises(UsageError, match="adaptive or strict"):
        parse("loose")


def test_bounds_are_inside() -> None:
    """A value at the bound is taken, one beyond it is refused with the bound."""
    assert values.duration_between("1ms", "1h")("1h") == 3600
    assert values.size_from("1KiB")("1024") == 1024
    assert values.count_between(1, 31)("31") == 31
    with pytest.raises(UsageError, match="from 1ms to 1h"):
        values.duration_between("1ms", "1h")("61m")
    with pytest.raises(UsageError, match="at least 1KiB"):
        values.size_from("1KiB")("1023")
    with pytest.raises(UsageError, match="from 1 to 31"):
        values.count_between(1, 31)("0")


def test_a_secret_does_not_show_itself() -> None:
    """Neither in repr nor in text nor in a format; it is revealed only on purpose."""
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == "hunter2"
    assert secret == Secret("hunter2") != Secret("other")
    assert len({secret, Secret("hunter2")}) == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (" db1.example.org:8090 ", "db1.example.org:8090"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("https://base.example.org", "https://base.example.org"),
        ("http://10.0.0.1:80/", "http://10.0.0.1:80"),
    ],
)
def test_an_advertised_address_is_one_that_a_client_can_dial(text: str, address: str) -> None:
    assert values.parse_advertised(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8090",
        "a.example",
        "a.example:0",
        "ftp://a.example:1",
        "http://a.example/path",
        "a b:1",
    ],
)
def test_what_nobody_can_dial_is_not_advertised(text: str) -> None:
    with pytest.raises(UsageError, match=r"write (a )?host|no address of HTTP"):
        values.parse_advertised(text)
