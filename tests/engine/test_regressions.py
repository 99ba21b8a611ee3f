"""Every mistake that running a prototype exposed, and every rule of the attacks, has its test."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
NAMES = [
    *(f"mistake {number}" for number in range(1, 15)),
    *(f"P{number}" for number in range(19, 24)),
    *(f"Q{number}" for number in (5, 6, 7, 8, 9, 14, 15, 16, 19)),
]


@cache
def quoted() -> str:
    """Return the docstrings of all tests of engine and simulator.

    The rules of birth (Q1 to Q4) are numbered sentences of their own: docs/protocol/birth.md.
    """
    texts = []
    for room in ("engine", "simulator", "testing"):
        for path in sorted((TESTS / room).rglob("test_*.py")):
            texts += [
                ast.get_docstring(node) or ""
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            ]
    return "\n".join(texts)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_cited_by_a_test(name: str) -> None:
    """So that whoever breaks it again is told what it was."""
    text = quoted()
    if name.startswith("mistake"):
        number = name.split()[1]
        cited = re.findall(r"[Mm]istakes? ((?:\d+(?:, | and )?)+)", text)
        assert any(number in re.findall(r"\d+", one) for one in cited)
    else:
        assert re.search(rf"\b{name}\b", text)
