"""`basenet version`."""

import json

import apsw
import pytest

from basenet import __version__
from basenet.cli.main import run


def test_it_is_one_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """With what a report of a fault needs: Python's, SQLite's and the machine's."""
    assert run(["version"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"basenet {__version__} (Python 3.")
    assert apsw.sqlite_lib_version() in out
    assert (out.count("\n"), err) == (1, "")


def test_it_is_a_document_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["basenet"] == __version__
    assert set(facts) == {"basenet", "python", "sqlite", "platform"}
