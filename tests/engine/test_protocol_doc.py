"""docs/protocol.md and its tests say the same: each sentence is cited by a test, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "protocol.md"
SENTENCE = re.compile(r"^\*\*(\d+\.\d+)\*\* ", re.MULTILINE)
CITATION = re.compile(r"[Pp]rotocol ((?:\d+\.\d+(?:, | and )?)+)")


def citations() -> set[str]:
    """Return the numbers that docstrings of tests cite."""
    found: set[str] = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for numbers in CITATION.findall(ast.get_docstring(node) or ""):
                    found.update(re.findall(r"\d+\.\d+", numbers))
    return found


def test_sentences_are_numbered_without_a_gap() -> None:
    """Sections and sentences count from 1."""
    numbers = [tuple(map(int, one.split("."))) for one in SENTENCE.findall(PAGE.read_text())]
    sections = sorted({section for section, _ in numbers})
    assert sections == list(range(1, len(sections) + 1))
    expected = [
        (section, index + 1)
        for section in sections
        for index in range(sum(one == section for one, _ in numbers))
    ]
    assert numbers == expected


def test_every_sentence_is_cited_by_a_test() -> None:
    """And no test cites a sentence that the page does not have."""
    assert citations() == set(SENTENCE.findall(PAGE.read_text()))
