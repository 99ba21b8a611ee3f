"""docs/protocol/heartbeats.md and its tests say the same: each sentence is quoted by a test."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "protocol" / "heartbeats.md"
TESTS = Path(__file__).with_name("test_pulse.py")
SENTENCE = re.compile(r"^\*\*(H\d+)\.\*\* (.+?)(?=\n\n)", re.MULTILINE | re.DOTALL)
QUOTE = re.compile(r"(?:^|\n\s*\n)\s*(H\d+)\. (.+?)(?=\n\s*\n|$)", re.DOTALL)


def plain(text: str) -> str:
    return " ".join(text.split())


def test_every_sentence_is_quoted_by_a_test() -> None:
    """Word for word; and no test quotes what the page does not say."""
    sentences = {number: plain(text) for number, text in SENTENCE.findall(PAGE.read_text())}
    quotes = {
        number: plain(text)
        for node in ast.walk(ast.parse(TESTS.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for number, text in QUOTE.findall(ast.get_docstring(node) or "")
    }
    assert list(sentences) == [f"H{number + 1}" for number in range(len(sentences))]
    assert len(sentences) > 20
    assert quotes == sentences
