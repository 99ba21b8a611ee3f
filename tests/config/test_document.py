"""docs/configuration.md."""

import subprocess
import sys
from pathlib import Path

from basenet.config import variables
from basenet.config.document import render_markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_document_is_what_the_table_says() -> None:
    """After a change: python -m basenet.config > docs/configuration.md."""
    assert DOCUMENT.read_text() == render_markdown()


def test_the_program_prints_the_document() -> None:
    """The command in the document's first lines is the one that makes it."""
    done = subprocess.run(
        [sys.executable, "-m", "basenet.config"], capture_output=True, text=True, check=True
    )
    assert done.stdout == render_markdown()
    assert "python -m basenet.config" in done.stdout


def test_every_variable_and_every_refused_name_is_in_it() -> None:
    """Once each in the tables, with a meaning that ends as a sentence does."""
    text = render_markdown()
    for variable in variables.TABLE.values():
        assert text.count(f"\n| `{variable.name}` |") == 1
        assert variable.meaning.endswith("."), variable.name
        assert "|" not in variable.form + variable.meaning + variable.shown
    for name in variables.PROMISES:
        assert f"`{name}`" in text


def test_the_shown_default_is_the_default() -> None:
    """Where the document shows a text, that text is what an unset variable means."""
    for variable in variables.TABLE.values():
        shown = variable.shown.strip("`")
        if variable.shown.startswith("`") and " " not in variable.shown:
            assert variable.parse(shown) == variable.default, variable.name
