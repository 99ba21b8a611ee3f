"""How commands speak."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basenet.cli import output


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (12 * 1024**2, "12 MiB"),
        (4 * 1024**3, "4.0 GiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_a_size_is_short_and_has_its_unit(size: int, text: str) -> None:
    assert output.format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.35, "350 ms"),
        (4.24, "4.2 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (3 * 86400 + 3600, "3 d 1 h"),
    ],
)
def test_a_duration_is_short_and_has_its_unit(seconds: float, text: str) -> None:
    assert output.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("timestamp_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_219_200_123_999_999, "2026-11-21T00:00:00.123Z"),
    ],
)
def test_a_time_is_rfc_3339_in_utc(timestamp_ns: int, text: str) -> None:
    """Cut and not rounded: a commit is never shown later than it was."""
    assert output.format_time(timestamp_ns) == text


def test_json_is_one_document_with_bytes_in_hexadecimal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Anything else that JSON has no form for is our mistake and not a text like <object>."""
    output.print_json({"lineage": b"\x00\xff", "seq": 2**63, "name": "ä"})
    text = capsys.readouterr().out
    assert json.loads(text) == {"lineage": "00ff", "seq": 2**63, "name": "ä"}
    assert "ä" in text
    with pytest.raises(TypeError, match="object has no form in JSON"):
        output.print_json(object())


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Under its headings, without blanks at the ends of lines."""
    output.print_table(["shard", "seq"], [["app", "12"], ["a-longer-one", "3"]])
    assert capsys.readouterr().out == ("shard         seq\napp           12\na-longer-one  3\n")


def test_facts_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_facts({"a": "1", "long": "2", "none": ""})
    output.print_facts({})
    assert capsys.readouterr().out == "a     1\nlong  2\nnone\n"


def test_remarks_do_not_mix_with_results(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("made a key")
    assert capsys.readouterr() == ("", "made a key\n")


@given(st.integers(min_value=0, max_value=2**80))
def test_any_size_has_a_form(size: int) -> None:
    number, unit = output.format_size(size).split(" ")
    assert float(number) >= 0
    assert unit in {"B", "KiB", "MiB", "GiB", "TiB"}
