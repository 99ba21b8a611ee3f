"""Recipients and identities in the form of age."""

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.errors import ConflictError, NotFoundError, UsageError
from basenet.keys import age
from basenet.wire.encryption import Identity

# From the tests of rage, another implementation of age.
IDENTITY = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33"
RECIPIENT = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa"


def test_a_key_pair_of_another_implementation_is_understood() -> None:
    """The identity gives the recipient, and both are spelled as they were."""
    (identity,) = age.parse_identities(f"# a comment\n\n{IDENTITY}\n", what="a file")
    assert age.format_recipient(identity.recipient) == RECIPIENT
    assert age.format_identity(identity) == IDENTITY
    assert age.parse_recipient(RECIPIENT) == identity.recipient


@given(st.binary(min_size=32, max_size=32))
def test_what_is_spelled_is_read(private: bytes) -> None:
    """Any 32 bytes, both ways; the repr shows nothing."""
    identity = Identity(private=private)
    assert age.parse_identities(age.format_identity(identity), what="it") == (identity,)
    recipient = identity.recipient
    assert age.parse_recipient(age.format_recipient(recipient)) == recipient
    assert repr(identity) == "Identity()"


@given(st.integers(0, len(RECIPIENT) - 1), st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7lb1"))
def test_a_misspelt_recipient_is_refused(place: int, character: str) -> None:
    """One wrong character anywhere is found by the checksum."""
    text = RECIPIENT[:place] + character + RECIPIENT[place + 1 :]
    if text == RECIPIENT:
        assert age.parse_recipient(text)
        return
    with pytest.raises(UsageError, match="is not an age recipient"):
        age.parse_recipient(text)


@given(st.text(max_size=80) | st.text("qpzry9x8gf2tvdw0s3jn54khce6mua7l1age", max_size=80))
def test_no_text_breaks_the_parsers(text: str) -> None:
    """Whatever is written there, it is a value or one sentence."""
    with pytest.raises(UsageError):
        age.parse_recipient(f"{text}x")
    with pytest.raises(UsageError):
        age.parse_identities(f"{text}x", what="a file")


@pytest.mark.parametrize(
    "text", ["ssh-ed25519 AAAA", "age1", "", RECIPIENT[:-1], RECIPIENT.title(), IDENTITY[:20]]
)
def test_what_is_no_recipient_is_one_sentence(text: str) -> None:
    """Keys of other kinds, cut off, in mixed case."""
    with pytest.raises(UsageError, match="recipient"):
        age.parse_recipient(text)


def test_a_point_of_low_order_is_no_recipient() -> None:
    """Whatever is encrypted for it, everybody can open."""
    for point in (bytes(32), b"\1" + bytes(31)):
        with pytest.raises(UsageError, match="no key that anything"):
            age.parse_recipient(age._encode("age", point))


def test_no_message_shows_an_identity() -> None:
    """Neither where a recipient was meant, nor when it is misspelt."""
    for text in (IDENTITY, IDENTITY.lower(), IDENTITY[:-1] + "Q"):
        with pytest.raises(UsageError) as caught:
            age.parse_recipient(text)
        assert "GQ9778" not in str(caught.value).upper()
    with pytest.raises(UsageError, match="line 2 of a file") as caught:
        age.parse_identities(f"# it\n{IDENTITY[:-1]}Q", what="a file")
    assert "GQ9778" not in str(caught.value).upper()


def test_too_many_recipients_are_refused_and_equal_ones_are_one() -> None:
    """A header has eight places."""
    texts = [age.format_recipient(Identity(private=bytes([n]) * 32).recipient) for n in range(9)]
    assert len(age.parse_recipients(texts[:8] * 2)) == 8
    with pytest.raises(UsageError, match="at most 8"):
        age.parse_recipients(texts)


def test_an_identity_file_is_made_once_and_is_private(tmp_path: Path) -> None:
    """Mode 0600, as age-keygen would write it, never over another."""
    path = tmp_path / "archive.key"
    recipient = age.generate(path, now=datetime(2026, 11, 21, tzinfo=UTC))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().splitlines()[:2] == [
        "# created: 2026-11-21T00:00:00+00:00",
        f"# public key: {age.format_recipient(recipient)}",
    ]
    (identity,) = age.load_identities(str(path))
    assert identity.recipient == recipient
    with pytest.raises(ConflictError, match="never overwritten"):
        age.generate(path)


def test_an_identity_comes_from_a_file_or_the_value_itself(tmp_path: Path) -> None:
    """A file open to others, missing or of something else is one sentence."""
    assert age.load_identities(IDENTITY) == age.parse_identities(IDENTITY, what="it")
    path = tmp_path / "key"
    with pytest.raises(NotFoundError, match="BASE_ARCHIVE_IDENTITY"):
        age.load_identities(str(path))
    path.write_text(f"{RECIPIENT}\n")
    path.chmod(0o600)
    with pytest.raises(UsageError, match=r"line 1 of .*BASE_ARCHIVE_IDENTITY"):
        age.load_identities(str(path))
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="holds no age identity"):
        age.load_identities(str(path))
    path.write_text(f"{IDENTITY}\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        age.load_identities(str(path))
