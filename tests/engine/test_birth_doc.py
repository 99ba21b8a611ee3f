"""docs/protocol/birth.md and its tests say the same: each sentence is quoted by a test."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "protocol" / "birth.md"
SENTENCE = re.compile(r"^\*\*(B\d+)\.\*\* (.+?)(?=\n\n)", re.MULTILINE | re.DOTALL)
QUOTE = re.compile(r"(?:^|\n\s*\n)\s*(B\d+)\. (.+?)(?=\n\s*\n|$)", re.DOTALL)


def plain(text: str) -> str:
    return " ".join(text.split())


def quotes() -> dict[str, set[str]]:
    """Return what the docstrings of tests quote, by number."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests" / "engine").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number, text in QUOTE.findall(ast.get_docstring(node) or ""):
                    found.setdefault(number, set()).add(plain(text))
    return found


def test_every_sentence_is_quoted_by_a_test() -> None:
    """Word for word; and no test quotes what the page does not say."""
    sentences = {number: plain(text) for number, text in SENTENCE.findall(PAGE.read_text())}
    assert list(sentences) == [f"B{number + 1}" for number in range(len(sentences))]
    assert len(sentences) > 50
    assert quotes() == {number: {text} for number, text in sentences.items()}
