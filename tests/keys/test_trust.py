"""Trusted keys."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.errors import NotFoundError, UsageError
from basenet.keys import trust

A, B = bytes(32), bytes([1] * 32)
HERE = Path("trusted.keys")


def test_a_file_is_a_key_a_line_with_a_comment() -> None:
    """Blank lines and lines that begin with # say nothing; a repeated key counts once."""
    text = (
        "# the nodes of the shop\n\n"
        f"  {trust.format_public(A)}   db-0  in Berlin \n"
        f"{trust.format_public(B)}\r\n"
        f"{trust.format_public(A)} again\n"
    )
    keys = trust.parse_trusted_keys(text, source=HERE)
    assert [(key.public, key.comment) for key in keys.keys] == [(A, "db-0  in Berlin"), (B, "")]
    assert keys.publics == {A, B}
    assert keys.source == HERE


@given(st.binary(min_size=32, max_size=32))
def test_the_text_of_a_key_is_the_key(public: bytes) -> None:
    """Printed and read again it is the same, and the fingerprint has one form."""
    assert trust.parse_public(trust.format_public(public)) == public
    assert len(trust.get_fingerprint(public)) == len("SHA256:") + 43


def test_a_fingerprint_is_that_of_ssh_for_the_raw_key() -> None:
    """A fixed vector: fingerprints that people wrote down must stay what they are."""
    assert trust.get_fingerprint(A) == "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU"


@pytest.mark.parametrize(
    "text",
    [
        "",
        base64.b64encode(A).decode(),
        "ed25519:",
        "ed25519:AAAA",
        "ed25519:!" + base64.b64encode(A).decode(),
        "ssh-ed25519 AAAA",
        "rsa:" + base64.b64encode(A).decode(),
        trust.format_public(A).upper(),
    ],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a public key"):
        trust.parse_public(text)


def test_every_bad_line_is_named_at_once() -> None:
    """With its number, and the file; a good line beside it does not rescue the file."""
    text = f"nonsense\n{trust.format_public(A)}\ned25519:x y\n"
    with pytest.raises(UsageError, match=r"trusted.keys.*line 1.*line 3") as caught:
        trust.parse_trusted_keys(text, source=HERE)
    assert "line 2" not in str(caught.value)


def test_a_file_without_a_key_is_refused(tmp_path: Path) -> None:
    """Trusting nobody is never what was meant. Nor is a file that is no text."""
    with pytest.raises(UsageError, match="holds no key"):
        trust.parse_trusted_keys("# nobody yet\n", source=HERE)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        trust.read_trusted_keys(tmp_path / "binary")


def write(path: Path, public: bytes) -> Path:
    path.write_text(trust.format_public(public) + "\n")
    return path


def test_the_first_place_that_is_named_decides(tmp_path: Path) -> None:
    """Option, then variable, then data directory; never their union."""
    option = write(tmp_path / "option", bytes([1] * 32))
    configured = write(tmp_path / "configured", bytes([2] * 32))
    own = write(tmp_path / "trusted.keys", bytes([3] * 32))
    for by_option, by_variable, source in [
        (option, configured, option),
        (None, configured, configured),
        (None, None, own),
    ]:
        found = trust.find_trusted_keys(option=by_option, configured=by_variable, data_dir=tmp_path)
        assert found is not None
        assert found.source == source
        assert len(found.keys) == 1


def test_a_named_file_that_is_missing_is_not_passed_over(tmp_path: Path) -> None:
    """Going on to the next place would widen what the operator meant to narrow."""
    write(tmp_path / "trusted.keys", A)
    for option, configured in [(tmp_path / "no", None), (None, tmp_path / "no")]:
        with pytest.raises(NotFoundError):
            trust.find_trusted_keys(option=option, configured=configured, data_dir=tmp_path)


def test_without_any_place_nothing_is_trusted(tmp_path: Path) -> None:
    """The error names the signer that was met and how to get its key."""
    assert trust.find_trusted_keys(option=None, configured=None, data_dir=tmp_path) is None
    assert trust.find_trusted_keys(option=None, configured=None, data_dir=None) is None
    message = str(trust.explain_missing_trust(signer=A))
    assert trust.get_fingerprint(A) in message
    assert "--trusted-keys" in message
    assert "SHA256:" not in str(trust.explain_missing_trust())


def test_a_key_is_added_once_and_nothing_else_changes(tmp_path: Path) -> None:
    """Comments, order and a last line without its end survive."""
    path = tmp_path / "trusted.keys"
    path.write_text(f"# mine\n{trust.format_public(A)} a")
    trust.add_trusted_key(path, B, comment="b")
    expected = f"# mine\n{trust.format_public(A)} a\n{trust.format_public(B)} b\n"
    assert path.read_text() == expected
    trust.add_trusted_key(path, B, comment="other")
    trust.add_trusted_key(path, A)
    assert path.read_text() == expected


def test_a_broken_list_is_not_written_over(tmp_path: Path) -> None:
    """It may be the only copy of what somebody typed."""
    path = tmp_path / "trusted.keys"
    path.write_text("nonsense\n")
    with pytest.raises(UsageError, match="line 1"):
        trust.add_trusted_key(path, A)
    assert path.read_text() == "nonsense\n"
